package service

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

type (
	// ConnectError says why no connection came about at one address.
	ConnectError = conn.ConnectError
	// Backoff says how long to wait between attempts to connect.
	Backoff = backoff.Policy
)

// Dialing is how outgoing connections are made and what happens on them: a
// Dialer, or a WebSocketDialer.
type Dialing interface {
	dialing(address string) conn.DialConfig
}

// Dialer makes outgoing connections, whose callbacks are those of accepted
// ones, with the same promises; see Framed. OnConnect is told of a connection
// once it is there; State is then what Dial was given.
type Dialer[T any] struct {
	Protocol wire.Protocol // nil: a message is what one read, or one datagram, brought

	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], m []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	// OnDown says that cl has no connection: an attempt has failed (why is
	// then a *ConnectError, or several joined), or the connection has ended,
	// after its OnClose. next is after which time it is tried again; a
	// negative one means never, which is told once and last. It runs on the
	// worker's loop and must not block.
	OnDown func(cl Client[T], why error, next time.Duration)

	Inline bool
	Pinned bool   // not to be moved, though declared by Service.Dial; UDP always is
	Limits Limits // no FirstByte unless it is set

	// Proxy, if not empty, is asked for the connection, and looks up the name:
	// socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT.
	// Only for tcp:// and tls://. The way to it is not encrypted; TLS is
	// spoken with the far end, through it.
	Proxy string

	// TLS, if not nil, is for tls://, and has all addresses be of that: the
	// authorities that are believed, certificates of one's own, ALPN and so on.
	// Without a ServerName the address has it; with a ClientSessionCache
	// sessions are resumed. It is not changed, and not to be changed.
	TLS *tls.Config

	Timeout   time.Duration // of an attempt, all of it; zero: 10 s
	Reconnect bool          // tries again, after what fails or ends, until Client.Close
	Backoff   Backoff       // how long between the attempts; zero: at once, then 200 ms, doubled up to 30 s
	Resolver  *net.Resolver // looks up names; nil: net.DefaultResolver
}

// Client is an outgoing connection, and with Dialer.Reconnect those that follow
// it. Its methods may be called from any goroutine. The zero Client is one that
// is over.
type Client[T any] struct{ client *conn.Client }

// Send sends m as Conn.Send does. While there is no connection, but may be
// one, m waits for it, and leaves behind what OnConnect sends; Limits.SendHard
// bounds that. What was in the send queue of a connection that broke is lost.
// For a WebSocket m is a text, for which it may return ErrNotText, and
// SendMessage sends others. It returns ErrClosed after Close, or once there will be no connection any
// more, and a *MovedError if another worker has it.
func (c Client[T]) Send(m []byte) error {
	return c.SendMessage(Message{Data: m})
}

// SendMessage is Send for a message that is not a text: for a WebSocket it is
// a binary one if m says so. For others it is Send(m.Data).
func (c Client[T]) SendMessage(m Message) error {
	switch {
	case c.client == nil:
		return ErrClosed
	case c.client.Protocol() != websocketName:
		return c.client.Send(m.Data)
	}
	return sendAs(m.kind(), m.Data, c.client.Send)
}

// Close ends the client for good: its connection, as by Conn.Close, and with it
// what would be tried again. What waits for an attempt that is under way still
// leaves.
func (c Client[T]) Close(why error, last ...[]byte) error {
	switch {
	case c.client != nil && c.client.Protocol() == websocketName:
		messages, refused := texts(last)
		if err := c.client.Close(why, messages...); err != nil {
			return err
		}
		return refused
	case c.client != nil:
		return c.client.Close(why, last...)
	case len(last) > 0:
		return ErrClosed
	default:
		return nil
	}
}

// CloseNow is Close without waiting for anything.
func (c Client[T]) CloseNow(why error) {
	if c.client != nil {
		c.client.CloseNow(why)
	}
}

// Address returns where it connects to, as it was given to Dial.
func (c Client[T]) Address() string {
	if c.client == nil {
		return ""
	}
	return c.client.Address()
}

// State returns what was given to Dial; the zero T if the connection came from
// another worker.
func (c Client[T]) State() (state T) {
	if c.client != nil {
		state, _ = c.client.Value().(T)
	}
	return state
}

// Up says whether there is a connection of which OnConnect has returned.
func (c Client[T]) Up() bool { return c.client != nil && c.client.Up() }

// Queued returns how many bytes wait, for a connection or to be sent on it.
func (c Client[T]) Queued() int {
	if c.client == nil {
		return 0
	}
	return c.client.Queued()
}

// Conn returns the connection; nil while there is none, or before its
// OnConnect.
func (c Client[T]) Conn() *Conn[T] {
	if c.client == nil {
		return nil
	}
	raw := c.client.Conn()
	if raw == nil {
		return nil
	}
	typed, _ := raw.Value().(*Conn[T])
	return typed
}

// Client returns the Client of an outgoing connection; ok is false for an
// accepted one. Closing the connection does not end a client that reconnects.
func (c *Conn[T]) Client() (cl Client[T], ok bool) {
	raw := c.conn.Client()
	return Client[T]{raw}, raw != nil
}

// Dial declares outgoing connections by a name, so that every worker knows
// them: those that Dial makes by it go to another worker by hand-off, as
// accepted ones do, unless they are Pinned. In connections and in logs their
// listener is "dial:" and the name. address is where Dial connects to unless
// it is told: tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///PATH
// or unix://@NAME; it may be empty. It panics if the name is not usable or
// taken, or if address or d is not usable. The addresses of a WebSocketDialer
// are its own.
func (s *Service) Dial(name, address string, d Dialing) {
	if err := checkListenerName(name); err != nil {
		panic("service: dial: " + err.Error())
	}
	for _, other := range s.dials {
		if other.Name == name {
			panic(fmt.Sprintf("service: dial %q is declared twice", name))
		}
	}
	c := d.dialing(address)
	if err := c.Check(); err != nil {
		panic(fmt.Sprintf("service: dial %q: %v", name, err))
	}
	s.dials = append(s.dials, worker.Dial{Name: name, Dial: c})
}

// Dial connects to address, or where an empty one was declared to lead, by what
// Service.Dial has declared under the name, and returns at once. Each
// connection of the client begins with state; T is the declared Dialer's, or
// OnConnect is not called and the connection is closed. It fails if nothing is declared by the
// name, if address is not usable, or when the worker has ended. Any goroutine
// may call it, from OnWorkerStart on.
func Dial[T any](w *Worker, name, address string, state T) (Client[T], error) {
	cl, err := w.Dial(name, address, state)
	return Client[T]{cl}, err
}

// Dial connects to address without a declaration: such a connection stays in
// this worker, and its successor is to make its own, in OnWorkerStart. name is
// for people, and not one that is declared. The rest is as with the function
// Dial.
func (d Dialer[T]) Dial(w *Worker, name, address string, state T) (Client[T], error) {
	cl, err := w.DialBy(name, d.dialing(address), state)
	return Client[T]{cl}, err
}

func (d Dialer[T]) dialing(address string) conn.DialConfig {
	h := &dialCallbacks[T]{callbacks[T]{Framed[T]{
		OnConnect: d.OnConnect, OnAdopt: d.OnAdopt, OnMessage: d.OnMessage, OnBufferFull: d.OnBufferFull, OnBufferDrain: d.OnBufferDrain,
		OnTimer: d.OnTimer, OnLeave: d.OnLeave, OnClose: d.OnClose,
	}}}
	c := conn.DialConfig{
		Config: conn.Config{
			Protocol: d.Protocol, ProtocolName: protocolName(d.Protocol), Handler: h, Limits: d.Limits,
			TLS: d.TLS, Inline: d.Inline, Pinned: d.Pinned, EncodeValue: h.encode, DecodeValue: h.decode,
		},
		Address: address, Proxy: d.Proxy, Timeout: d.Timeout, Reconnect: d.Reconnect, Backoff: d.Backoff, Resolver: d.Resolver,
	}
	if d.OnLeave != nil {
		c.OnLeave = h.leave
	}
	if d.OnDown != nil {
		c.OnDown = func(cl *conn.Client, why error, next time.Duration) { d.OnDown(Client[T]{cl}, why, next) }
	}
	return c
}

// dialCallbacks are callbacks of connections that begin with a state.
type dialCallbacks[T any] struct{ callbacks[T] }

// OnConnect makes the typed connection.
func (h *dialCallbacks[T]) OnConnect(c *conn.Conn) {
	typed := &Conn[T]{conn: c}
	c.SetValue(typed)
	value := c.Client().Value()
	state, ok := value.(T)
	if !ok && value != nil { // nil: T is an interface
		panic(fmt.Sprintf("service: %s: Dial with a state of type %T, want %T", c.Listener(), value, typed.State))
	}
	typed.State = state
	if h.Framed.OnConnect != nil {
		h.Framed.OnConnect(typed)
	}
}
