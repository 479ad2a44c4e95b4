package conn

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
)

// Limits bound what one connection may take of memory and time. A zero field
// means its default, a negative duration that there is no such deadline. All
// sizes are bytes that are really there, whatever a peer has announced.
type Limits struct {
	MaxMessage int // longest message, and, with up to 64 bytes of framing, most of an incomplete one; default 1 MiB
	SendHigh   int // OnBufferFull when more bytes wait; default 1 MiB, or half of SendHard if that is less
	SendLow    int // OnBufferDrain when this many or fewer still wait; default a quarter of SendHigh
	SendHard   int // Send refuses what would make more bytes wait; default 8 MiB, or SendHigh if that is more; at most MaxSendHard
	QueueDepth int // messages that may wait for the Pool, then reading pauses; default 64

	FirstByte  time.Duration // from the accept, or the end of the TLS handshake, to the first byte; default 30 s
	Handshake  time.Duration // from the accept to OnConnect: PROXY header and TLS handshake; default 10 s
	Message    time.Duration // from the first byte of an incomplete message to its last; default 30 s
	Auth       time.Duration // from the accept to Conn.Authenticated; default none
	Idle       time.Duration // without a byte in either direction; default none
	ReadIdle   time.Duration // without a byte from the peer; default none
	WriteIdle  time.Duration // without a byte to the peer; default none
	WriteStall time.Duration // bytes wait and the peer takes none; default 60 s
	Close      time.Duration // from Close to the end, flush and linger together; default 5 s
}

// Defaults of Limits.
const (
	DefaultMaxMessage = 1 << 20
	DefaultSendHigh   = 1 << 20
	DefaultSendHard   = 8 << 20
	DefaultQueueDepth = 64
	DefaultFirstByte  = 30 * time.Second
	DefaultHandshake  = 10 * time.Second
	DefaultMessage    = 30 * time.Second
	DefaultWriteStall = 60 * time.Second
	DefaultClose      = 5 * time.Second
)

// MaxSendHard is the largest Limits.SendHard: what waits is counted in 32 bits.
const MaxSendHard = 1 << 30

// Config is what the connections of one listener have in common. It must not
// be changed once a connection was accepted with it.
type Config struct {
	Listener string        // its name, for Conn.Listener and the seat
	Protocol wire.Protocol // nil means wire.Raw, unless there is NewSession
	Handler  Handler
	Limits   Limits

	Inline bool  // callbacks on the loop; they must not block
	Pool   *Pool // runs the callbacks unless Inline

	// Proxy, if not nil, is who may say by a PROXY header whose connection it
	// passes on: each connection is to come from there and to begin so.
	Proxy *proxyproto.Trusted

	// Identified, if not nil, is told on the loop that a PROXY header has come:
	// Conn.Peer is right from then on. An error ends the connection.
	Identified func(c *Conn) error

	// TLS, if not nil, has the peers speak TLS, behind the PROXY header if
	// there is one. It should have ticket keys: see tlsrec.Server. It may be
	// used by others, and nothing of it is changed. It needs Handshakes.
	TLS        *tls.Config
	Handshakes *Handshakes

	// KernelTLS has the kernel seal what connections over TCP with TLS 1.3
	// send, see ProbeKernelTLS. Where it cannot, and for those that are taken over
	// without it, all is as if this were not set.
	KernelTLS bool

	// Seat gets the counters; nil means that nobody reads them.
	Seat *scoreboard.Seat

	// Released, if not nil, is called on the loop when a connection's
	// descriptor has been closed: before OnClose, or because another process
	// has the connection.
	Released func(*Conn)

	// Farewell, if not nil, returns the message with which a connection is
	// closed, nil for none, when that is not asked for by Close or CloseNow:
	// why is a *ProtocolError, ErrDrained, ErrPeerClosed and the like, or a
	// *PanicError. It is sent behind what waits, as Close's last messages
	// are. Without a Farewell, a connection whose time is over, or whose
	// callback has panicked, is closed as by CloseNow. It is called on the
	// loop, or after a panic where that was, and must not block.
	Farewell func(c *Conn, why error) []byte

	// Probe, if not nil, is called on the loop when nothing came from the
	// peer for ProbeAfter, to ask it for a sign of life, and must not block.
	// If nothing comes within ProbeWait after it, the connection ends with
	// ErrIdle. Neither passes while the connection is not read.
	Probe                 func(c *Conn)
	ProbeAfter, ProbeWait time.Duration

	// Seqpacket says that the connections are of unix sockets of SOCK_SEQPACKET:
	// a message is a packet, of at most MaxPacket bytes and Limits.MaxMessage; a
	// longer one ends the connection. Protocol is wire.Raw then, see Packetable.
	// The last of the packets that a peer has sent is not to be an empty one:
	// that cannot be told from the end.
	Seqpacket bool

	// Becomes is what Conn.Become can make of a connection of this Config:
	// other Configs for the same listener, told apart by their ProtocolName.
	Becomes []*Config

	// FinishFirst has Freeze leave a connection that Hold keeps as it is, read
	// and served, until Release; Conn.Leaving says so meanwhile. Without it a
	// connection is not read, and told nothing, from Freeze on: whoever has
	// called Hold must not need more of the peer then.
	FinishFirst bool

	// Pinned connections do not move to another process: Set.Freeze and
	// Conn.MoveTo answer ErrPinned.
	Pinned bool

	// ProtocolName names the protocol and what a change of it must not be
	// mistaken for, such as its version; Set.Adopt refuses a connection of
	// another one.
	ProtocolName string

	// NewSession, if not nil, makes the protocol of each connection, in the
	// place of Protocol.
	NewSession func() wire.Session

	// EncodeValue, if not nil, returns what another process that takes over
	// the connection is to know of it, nil for nothing; DecodeValue there is
	// given it, nil if nothing has come, and makes of it what SetValue keeps. Both are called on
	// the loop, while no callback runs, and must not block; an error, or a
	// panic, means that the connection stays where it is. DecodeValue must
	// not tell anybody of the connection: OnAdopt is the place for that,
	// which does not come if the connection stays.
	EncodeValue func(c *Conn) ([]byte, error)
	DecodeValue func(c *Conn, b []byte) error

	// OnLeave, if not nil, is a callback as the Handler's are: the connection is
	// another process's, which serves in that slot, and this is the last one
	// here, in the place of OnClose. What the application keeps of the
	// connection here, such as its place in a list, can go; what travels is
	// there already. Nothing can be done with c any more: its methods answer
	// a *MovedError. It is not called of a connection that left before
	// OnConnect. It costs an event for each connection that moves.
	OnLeave func(c *Conn, slot int)

	// Move, if not nil, is told on the loop that MoveTo was called, after
	// the callbacks. Without it MoveTo answers ErrPinned.
	Move func(c *Conn, slot int)

	// Bound, if not nil, is told on the loop that Bind was called, after the
	// callbacks.
	Bound func(c *Conn, id uint64)

	dialer *Dialer // of outgoing connections; nil: of accepted ones

	// Event, if not nil, is told what ought to be logged, since this package
	// does not log. It is called on the loop or on a goroutine of the Pool
	// and must not block.
	Event func(Event)
}

// EventKind is a kind of Event.
type EventKind int

const (
	// SlowCallback means that Inline callbacks have held the loop for more
	// than 10 ms without a break: those of one connection, or of up to eight
	// one after the other, and then it is not said whose. For a minute from
	// then on each is timed by itself. It is told at most once a second for
	// each Config.
	SlowCallback EventKind = iota + 1

	// CallbackPanicked means that a callback panicked; the connection is
	// being closed.
	CallbackPanicked

	// DatagramsDropped means that datagrams were lost here: longer than
	// allowed, or replies for which there was no room or no way. It is told
	// at most once a second for each socket.
	DatagramsDropped

	// PacketsBroken means that a datagram socket is not served any more.
	PacketsBroken

	// NotOpened means that a peer has not shown whose its connection is, or
	// not agreed on keys, and nobody else was told of it. It is told at most
	// once a second for each Config.
	NotOpened
)

// String returns what happened, in words.
func (k EventKind) String() string {
	switch k {
	case SlowCallback:
		return "callback is slow"
	case CallbackPanicked:
		return "callback panicked"
	case DatagramsDropped:
		return "datagrams dropped"
	case PacketsBroken:
		return "datagram socket is broken"
	case NotOpened:
		return "connection not opened"
	default:
		return fmt.Sprintf("conn.EventKind(%d)", int(k))
	}
}

// Event is something to be logged.
type Event struct {
	Kind     EventKind
	Listener string
	Conn     *Conn         // nil if it is about a datagram, or about one of several
	Peer     string        // empty if it is about no one peer
	Took     time.Duration // SlowCallback: how long the loop was held
	Skipped  int           // how many of the kind were not told since the last one
	Err      error         // CallbackPanicked: a *PanicError; otherwise why, if there is a reason
}

// settings is a Config with its defaults filled in.
type settings struct {
	Config
	readMax int    // most bytes of one read
	raw     bool   // the encoding of a message is the message
	whole   bool   // so is what is read, and the loop handles it
	packets bool   // a message is a datagram; raw is true
	key     uint32 // ListenerKey of Listener
	kind    uint32 // the same of ProtocolName

	slowTold    time.Duration // loop: when a SlowCallback was told last
	slowSkipped int
	openTold    time.Duration // the same for NotOpened
	openSkipped int
	dropped     int           // loop: datagrams that were lost since that was told
	droppedTold time.Duration // loop: when it was, 0: never
}

// Check says what is wrong with the limits: the first that contradicts
// another, once the defaults are filled in.
func (l Limits) Check() error { return l.fill() }

func (cfg *Config) settings() (*settings, error) {
	s := &settings{Config: *cfg, readMax: reactor.ReadBufferSize, slowTold: -time.Hour, openTold: -time.Hour}
	if s.Seqpacket {
		s.ProtocolName += " in packets" // a captured connection of a stream is not one
	}
	s.key, s.kind = ListenerKey(s.Listener), ListenerKey(s.ProtocolName)
	if s.Handler == nil {
		return nil, fmt.Errorf("conn: listener %q: no Handler", s.Listener)
	}
	if !s.Inline && s.Pool == nil {
		return nil, fmt.Errorf("conn: listener %q: neither Inline nor a Pool", s.Listener)
	}
	if s.TLS != nil && s.Handshakes == nil {
		return nil, fmt.Errorf("conn: listener %q: TLS without Handshakes", s.Listener)
	}
	if s.Seat == nil {
		s.Seat = scoreboard.NewSeat()
	}
	if err := s.Limits.fill(); err != nil {
		return nil, fmt.Errorf("conn: listener %q: %w", s.Listener, err)
	}
	if s.Seqpacket {
		return s, s.ofPackets()
	}
	s.Protocol = s.protocol()
	if s.NewSession != nil {
		return s, nil
	}
	if _, raw := s.Protocol.(wire.Raw); raw {
		// A read is a message there, so the limit is that of a read.
		s.readMax = min(s.readMax, s.Limits.MaxMessage)
		s.raw, s.whole = true, s.Inline
	}
	if s.packets = s.raw && s.dialer != nil && s.dialer.datagrams; s.packets {
		s.readMax = reactor.ReadBufferSize // what is too long is dropped as a whole
	}
	return s, nil
}

// protocol is the Protocol, or its default.
func (cfg *Config) protocol() wire.Protocol {
	if cfg.Protocol == nil {
		return wire.Raw{}
	}
	return cfg.Protocol
}

func (l *Limits) fill() error {
	if l.SendHard == 0 {
		l.SendHard = max(DefaultSendHard, l.SendHigh)
	}
	if l.SendHigh == 0 {
		// Below SendHard, so that OnBufferFull comes before ErrFull.
		l.SendHigh = min(DefaultSendHigh, l.SendHard/2)
	}
	if l.SendLow == 0 {
		l.SendLow = l.SendHigh / 4
	}
	if l.MaxMessage == 0 {
		l.MaxMessage = DefaultMaxMessage
	}
	if l.QueueDepth == 0 {
		l.QueueDepth = DefaultQueueDepth
	}
	if l.MaxMessage < 0 || l.QueueDepth < 0 {
		return fmt.Errorf("MaxMessage %d, QueueDepth %d: want at least 0", l.MaxMessage, l.QueueDepth)
	}
	if l.SendHard > MaxSendHard {
		return fmt.Errorf("SendHard %d, want at most %d", l.SendHard, MaxSendHard)
	}
	if l.SendLow < 0 || l.SendLow > l.SendHigh || l.SendHigh > l.SendHard {
		return fmt.Errorf("SendLow %d, SendHigh %d, SendHard %d: want them in this order", l.SendLow, l.SendHigh, l.SendHard)
	}
	for _, d := range []struct {
		limit *time.Duration
		unset time.Duration
	}{
		{&l.FirstByte, DefaultFirstByte},
		{&l.Handshake, DefaultHandshake},
		{&l.Message, DefaultMessage},
		{&l.Auth, -1},
		{&l.Idle, -1},
		{&l.ReadIdle, -1},
		{&l.WriteIdle, -1},
		{&l.WriteStall, DefaultWriteStall},
		{&l.Close, DefaultClose},
	} {
		if *d.limit == 0 {
			*d.limit = d.unset
		}
	}
	return nil
}
