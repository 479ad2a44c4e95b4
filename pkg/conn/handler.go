package conn

// Handler is what the application does with the connections of a listener.
//
// The callbacks of one connection come in order, never two at once, and never
// one inside another: OnConnect or OnAdopt first, OnClose last and exactly
// once. A connection that is given to another process has its OnClose
// there, and here Config.OnLeave; one that ends with its process has none. With
// Config.Inline they run on the loop and must not block; otherwise they run
// on a goroutine of the Pool and may. A panic in one of them closes that
// connection with a *PanicError.
type Handler interface {
	// OnConnect is told of a new connection.
	OnConnect(c *Conn)

	// OnAdopt is told of a connection that another process has had until now.
	// It stands where OnConnect stands for others: it is the first callback.
	// What the application is to know of it comes by Config.DecodeValue.
	OnAdopt(c *Conn, why Reason)

	// OnMessage is given one message. m is valid until OnMessage returns,
	// and must not be changed or kept.
	OnMessage(c *Conn, m []byte)

	// OnBufferFull says that more than Limits.SendHigh bytes wait to be
	// sent. Send still takes messages, up to Limits.SendHard.
	OnBufferFull(c *Conn)

	// OnBufferDrain follows an OnBufferFull when at most Limits.SendLow
	// bytes still wait.
	OnBufferDrain(c *Conn)

	// OnTimer says that the timer set by SetTimer under this name is over.
	OnTimer(c *Conn, name string)

	// OnClose says that the connection is over: its descriptor is closed
	// and nothing can be sent. why is what Close was given, or one of this
	// package's errors; errors.Is and errors.As tell which.
	OnClose(c *Conn, why error)
}

// NopHandler does nothing at each callback. Embedded in a handler, it stands
// in for the callbacks that the handler does not have.
type NopHandler struct{}

var _ Handler = NopHandler{}

// OnConnect does nothing.
func (NopHandler) OnConnect(*Conn) {}

// SilentAdopter is a Handler that may have nothing to do in OnAdopt.
type SilentAdopter interface {
	// AdoptsSilently returns true if OnAdopt does nothing. It is not called
	// then, so that the connection is at rest at once. Loop only.
	AdoptsSilently() bool
}

// OnAdopt does nothing.
func (NopHandler) OnAdopt(*Conn, Reason) {}

// OnMessage does nothing.
func (NopHandler) OnMessage(*Conn, []byte) {}

// OnBufferFull does nothing.
func (NopHandler) OnBufferFull(*Conn) {}

// OnBufferDrain does nothing.
func (NopHandler) OnBufferDrain(*Conn) {}

// OnTimer does nothing.
func (NopHandler) OnTimer(*Conn, string) {}

// OnClose does nothing.
func (NopHandler) OnClose(*Conn, error) {}

// PeerClosedHandler is what a Handler may be besides. OnPeerClosed is told on
// the loop that the peer of a connection that is kept by Hold sends no more:
// it ends when it is let go of. OnPeerClosed must not block.
type PeerClosedHandler interface{ OnPeerClosed(c *Conn) }
