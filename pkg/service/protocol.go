package service

import (
	"cmp"
	"crypto/tls"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	httpweb "github.com/mainstay-go/mainstay/pkg/web"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/delimiter"
	"github.com/mainstay-go/mainstay/pkg/wire/frame"
	"github.com/mainstay-go/mainstay/pkg/wire/length"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// Protocol is what can be served on a listener: Raw, Text, Frame, Length,
// Delimiter, Framed, WebSocket, Packet, Web or HTTP.
type Protocol interface {
	// listener returns what a worker serves under the name, with what the
	// operator has set.
	listener(name string, set listenerConfig) (worker.Listener, error)
}

// Limits bound what one connection may take of memory and time. What the
// operator has set goes before it.
type Limits = conn.Limits

// Conn is a connection with the application's state of it. It is valid for
// ever; what it does after OnClose is said at each method. Its methods may be
// called from any goroutine, in callbacks too, where they take effect when
// the callback has returned.
type Conn[T any] struct {
	// State is the application's. The callbacks of one connection never run
	// at the same time, so they may use it freely; other goroutines need a
	// lock of their own, and Hold.
	//
	// It travels when another worker takes over the connection: by
	// MarshalBinary and UnmarshalBinary if *T has both, else as JSON, so
	// what is not exported stays behind. A State that cannot be encoded, or
	// decoded there, keeps the connection where it is.
	State T

	conn *conn.Conn
	web  *webConfig // nil: it is no WebSocket
}

// ID returns the number of the connection, which it keeps when it moves to
// another worker. No other connection of the service has it while it is open.
func (c *Conn[T]) ID() uint64 { return c.conn.ID() }

// Listener returns the name of the listener it came by.
func (c *Conn[T]) Listener() string { return c.conn.Listener() }

// Peer returns the other end's address: "192.0.2.1:80", "[2001:db8::1]:80",
// the path of a unix socket, or "unix" for one without a name. Behind a proxy
// (proxy_protocol) it is that of which the PROXY header speaks.
func (c *Conn[T]) Peer() string { return c.conn.Peer() }

// Local returns this end's address in Peer's form, "" after OnClose. It makes
// a system call.
func (c *Conn[T]) Local() string { return c.conn.Local() }

// TLS returns what the TLS handshake has agreed on, such as the name that was
// asked for, the protocol of ALPN and the client's certificates, which have
// been verified if there are any; nil without TLS. Each call makes it anew.
// What does not travel when the connection moves is left out: VerifiedChains,
// and what could export keying material.
func (c *Conn[T]) TLS() *tls.ConnectionState { return c.conn.TLS() }

// Proxy returns the PROXY header with which a trusted proxy has begun the
// connection; ok is false without one.
func (c *Conn[T]) Proxy() (header proxyproto.Header, ok bool) { return c.conn.Proxy() }

// Send puts the message into the send queue, from where it leaves at the end
// of the loop's turn; m is copied. On a WebSocket it is a text, for which it may
// return ErrNotText; SendMessage sends others. nil means that it is in the queue. It
// returns ErrFull, and takes nothing, if more than Limits.SendHard bytes
// would wait; ErrClosed after Close or once the connection is over; ErrTooLong
// or the protocol's own error if the message cannot be sent at all.
func (c *Conn[T]) Send(m []byte) error {
	if c.web != nil {
		return c.send(websocket.Text, m)
	}
	return c.conn.Send(m)
}

// Close ends the connection: what is in the send queue leaves first, and
// behind it the messages in last, within Limits.Close; OnClose is told why.
// The peer gets the end of the stream and is given the rest of that time to
// take note, so that what it still sends does not destroy what is on its way.
// The peer of a WebSocket is told a code first: the one of a *CloseError, 1000
// for nil, 1011 for any other why, and for a code or a reason that may not be sent. After the first call, or the end of the connection, it does nothing. The
// error is Send's for the first message of last that was refused; the
// connection is closed all the same.
func (c *Conn[T]) Close(why error, last ...[]byte) error {
	if c.web == nil {
		return c.conn.Close(why, last...)
	}
	messages, refused := closeMessages(why, last)
	if err := c.conn.Close(why, messages...); len(last) > 0 && err != nil {
		return err
	}
	return refused
}

// CloseNow ends the connection without waiting for what is in the send queue;
// otherwise as Close.
func (c *Conn[T]) CloseNow(why error) { c.conn.CloseNow(why) }

// Authenticated says that the peer has shown who it is; until then
// Limits.Auth, the listener's auth_timeout, runs.
func (c *Conn[T]) Authenticated() { c.conn.Authenticated() }

// Pause stops reading until Resume. Messages that were read before may still
// come.
func (c *Conn[T]) Pause() { c.conn.Pause() }

// Resume undoes Pause.
func (c *Conn[T]) Resume() { c.conn.Resume() }

// SetTimer calls OnTimer with the name once d has passed. A timer of that
// name that is set already is replaced. It ends with the connection.
func (c *Conn[T]) SetTimer(name string, d time.Duration) { c.conn.SetTimer(name, d) }

// StopTimer ends the timer of that name, if there is one.
func (c *Conn[T]) StopTimer(name string) { c.conn.StopTimer(name) }

// Working says that the callback which runs is well, however long it takes:
// its handler_timeout starts anew. It is of no use to a callback that is
// Inline, which must not block at all.
func (c *Conn[T]) Working() { c.conn.Working() }

// MoveTo asks for the connection to be given to the worker in a slot, from 0
// on: there OnAdopt is told, and what this Conn is asked for afterwards is
// answered by a *MovedError. The callbacks that run or wait come first. It
// stays if that worker cannot take it. MoveTo returns ErrPinned if the
// connection does not move at all, ErrClosed if it is over.
func (c *Conn[T]) MoveTo(slot int) error { return c.conn.MoveTo(slot) }

// Bind says that the connection belongs to id. If the listener's dispatch is
// hash-id, it is given to the worker that has all of an id, after the
// callbacks that run or wait; otherwise Bind does nothing. The last call
// counts.
func (c *Conn[T]) Bind(id uint64) { c.conn.Bind(id) }

// Hold keeps the connection in this worker until Release, as a running
// callback does. Whoever works for it outside of its callbacks, and changes
// State, calls Hold in the callback that starts the work. It counts. It
// returns nil, or why the connection could not be held: ErrFrozen if it is
// about to move, which cannot be in a callback, ErrClosed or a *MovedError.
func (c *Conn[T]) Hold() error { return c.conn.Hold() }

// Release takes back one Hold that has returned nil.
func (c *Conn[T]) Release() { c.conn.Release() }

// Save keeps State as it is now, up to 256 bytes of it, where it outlives the
// worker: should that be killed, the worker that takes up the connection has
// it in State, and what was not saved is zero there. It holds from the time on
// at which all input is handled and answered, and until the next Save. It is
// called in a callback. It returns ErrTooLong if there are more bytes, the
// error of MarshalBinary or JSON, ErrClosed or a *MovedError.
func (c *Conn[T]) Save() error { return c.conn.Save() }

// Pipe joins two connections of one worker: each message that comes on one is
// sent on the other, by the protocol of that one, in the place of OnMessage,
// from the message after the running callback on. A connection is read only
// while no more than Limits.SendHigh bytes wait on the other. When one ends,
// in whatever way, the other is closed with the same reason, and what came
// before still leaves; so ends a pipe into which a message does not fit. Pause
// is undone; OnBufferFull and OnBufferDrain are not called any more.
//
// It returns ErrNoPipe if one of them is a WebSocket, ErrPiped if one is piped
// already, or both are the same; ErrFrozen if one is just about to move; ErrClosed or a *MovedError if one is
// over, and then the other is closed. Any goroutine may call it.
func Pipe[T, U any](a *Conn[T], b *Conn[U]) error {
	if a.web != nil || b.web != nil {
		return ErrNoPipe
	}
	return conn.Pipe(a.conn, b.conn)
}

// ErrNoPipe is Pipe's answer if a connection is a WebSocket: a pipe stands in the
// place of OnMessage, and without that nobody would answer its pings or its
// close, nor say of which kind the messages are that go into it.
var ErrNoPipe = errors.New("service: a WebSocket has no pipe")

// BytesIn returns how many bytes came in.
func (c *Conn[T]) BytesIn() uint64 { return c.conn.BytesIn() }

// BytesOut returns how many bytes the kernel has taken.
func (c *Conn[T]) BytesOut() uint64 { return c.conn.BytesOut() }

// Queued returns how many bytes wait to be sent.
func (c *Conn[T]) Queued() int { return c.conn.Queued() }

// Framed serves connections with a protocol of the application's own.
//
// The callbacks of one connection come in order, never two at once and never
// one inside another: OnConnect or OnAdopt first, OnClose last and exactly
// once, in the worker that has the connection then, unless that is killed; those
// that had it before were told by OnLeave. Each may be nil. They run on a pool of goroutines and may block; with Inline they run
// on the loop and must not. A panic in one of them costs that connection.
type Framed[T any] struct {
	Protocol wire.Protocol // nil: as Raw

	OnConnect func(c *Conn[T])
	// OnAdopt is told of a connection that another worker has had until now,
	// in the place of OnConnect. State is as it was there, or after a Crash as
	// Conn.Save has kept it; what is not in it, such as a place in a list of the
	// worker's, is made anew here, and after a Crash timers are too.
	OnAdopt func(c *Conn[T], why Reason)
	// OnMessage is given one message, which is valid until it returns and
	// must not be changed.
	OnMessage func(c *Conn[T], m []byte)
	// OnBufferFull says that more than Limits.SendHigh bytes wait.
	OnBufferFull func(c *Conn[T])
	// OnBufferDrain follows an OnBufferFull when few enough wait.
	OnBufferDrain func(c *Conn[T])
	// OnTimer says that a timer set by SetTimer is over.
	OnTimer func(c *Conn[T], name string)
	// OnLeave is told that the worker in another slot, or this one's successor
	// in the same slot, has the connection now, where OnAdopt is told: this is
	// the last callback here. What the worker keeps of it, such as a place in
	// a list, can go. Only State is still good for anything: it is what it was
	// when it was sent there.
	OnLeave func(c *Conn[T], slot int)
	// OnClose is told why the connection is over.
	OnClose func(c *Conn[T], why error)

	Inline bool
	// Pinned connections stay in the worker that has accepted them: they are
	// not moved, and at a reload they are drained.
	Pinned bool
	Limits Limits
}

// Raw serves connections without framing: a message is what one read brought,
// and on a unix socket of SOCK_SEQPACKET a packet, both ways. The rest is as in
// Framed.
type Raw[T any] struct {
	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], m []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits
}

// Text serves connections on which a message is a line, ended by a newline
// that is not part of the message; so is a carriage return before it. The
// rest is as in Framed.
type Text[T any] struct {
	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], line []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits
}

// Frame serves connections on which a message comes behind its length: four
// bytes, big endian, which count themselves too. A length below four, or of a
// message over Limits.MaxMessage, ends the connection at once; so long a
// message cannot be sent either. The rest is as in Framed.
type Frame[T any] struct {
	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], m []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits
}

// Length serves connections on which a message says its length, at a place and
// in a way that Format chooses; its zero value is four bytes, big endian, that
// count themselves, and the whole package as the message. The rest is as in
// Framed.
type Length[T any] struct {
	// Format says where the length is. Its MaxMessage is Limits.MaxMessage.
	Format length.Protocol

	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], m []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits
}

// Delimiter serves connections on which a message is ended by the bytes that
// Format chooses; its zero value is an empty line. The rest is as in Framed,
// but Limits.MaxMessage is 64 KiB if nobody says otherwise: the longer a
// message may be, the more can a peer that dribbles cost.
type Delimiter[T any] struct {
	// Format says what ends a message. Its MaxMessage is Limits.MaxMessage.
	Format delimiter.Protocol

	OnConnect     func(c *Conn[T])
	OnAdopt       func(c *Conn[T], why Reason)
	OnMessage     func(c *Conn[T], m []byte)
	OnBufferFull  func(c *Conn[T])
	OnBufferDrain func(c *Conn[T])
	OnTimer       func(c *Conn[T], name string)
	OnLeave       func(c *Conn[T], slot int)
	OnClose       func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits
}

// Datagram is a datagram that a Packet's OnPacket was given: Data, from whom
// it came, Peer or Path, and Reply. It is valid until OnPacket returns.
type Datagram = conn.Datagram

// Packet serves datagrams, on a UDP or unix datagram socket. All workers read from the same
// socket, so those of one peer may come to several workers, and in another
// order than they were sent.
type Packet struct {
	// OnPacket is given each datagram. It runs on the worker's loop and must
	// not block. A panic in it costs that datagram.
	OnPacket func(w *Worker, p *Datagram)

	MaxMessage int // longest datagram, others are dropped; default what UDP can carry, at most 64 KiB
	SendLimit  int // bytes of replies that may wait while the kernel takes none; default 1 MiB
}

// WebLimits bound what the peers of a Web may take.
type WebLimits = httpweb.Limits

// Web serves HTTP/1.1 and HTTP/1.0 on the worker's loop, for what net/http
// does with a goroutine and several KiB for each connection that is idle. The
// handler is any http.Handler; what it is given and what it writes behaves as
// with net/http, but for Hijack, which fails. A panic in it costs that connection,
// which is answered by 500 if nothing was sent.
//
// Requests of one connection are answered in order. Each runs on a goroutine,
// of which there are Limits.Running, and may block; what comes when too many wait is
// answered by 503. The context ends when the handler has returned or the
// client has gone.
//
// A connection moves to another worker between two requests, in the middle of
// a head, and, with Inline, of a body. When its worker leaves, a handler that runs is waited
// for until the end of the grace, while the client notices nothing.
type Web struct {
	Handler http.Handler // nil: http.DefaultServeMux

	// Streams are what a connection turns into with a GET for one of these
	// paths: a WebSocket, if the request asks for one, or Events. The path is to
	// be as in the request, without escapes, and means itself only.
	Streams map[string]Stream

	// Inline runs the handler on the loop, where it must not block. It is
	// given requests with their body complete, up to Limits.Body (1 MiB), and
	// what it writes waits in memory.
	Inline bool

	// Reuse, with Inline, allows the request, its Header and URL, the
	// ResponseWriter and its Header to be used again when the handler has
	// returned: nothing may hold them then. Strings stay good.
	Reuse bool

	Limits WebLimits
	// Send bounds what waits to be sent: SendHigh (256 KiB), SendLow and
	// SendHard. Of the others FirstByte, WriteStall and Close are of use.
	Send Limits
}

// HTTP serves HTTP/1.1 and, with TLS, HTTP/2 by net/http. Its connections do
// not move to other workers, but those that Upgrade has made WebSockets do.
type HTTP struct {
	Handler http.Handler // nil: http.DefaultServeMux

	// WebSockets are what the Handler may make of a request's connection, by a
	// name of your choice for Upgrade. The Handler has the checks that are
	// OnUpgrade's elsewhere, so they must not have that, nor Header. nil: none.
	WebSockets map[string]Stream
}

func (p Raw[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	return Framed[T]{
		OnConnect: p.OnConnect, OnAdopt: p.OnAdopt, OnMessage: p.OnMessage, OnBufferFull: p.OnBufferFull, OnBufferDrain: p.OnBufferDrain,
		OnTimer: p.OnTimer, OnLeave: p.OnLeave, OnClose: p.OnClose, Inline: p.Inline, Pinned: p.Pinned, Limits: p.Limits,
	}.listener(name, set)
}

func (p Text[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	// The same limit as the connection's, so that a line that is too long ends
	// the connection whether its newline has come or not.
	limit := set.limits(p.Limits).MaxMessage
	if limit == 0 {
		limit = conn.DefaultMaxMessage
	}
	return Framed[T]{
		Protocol:  text.Protocol{MaxLine: limit},
		OnConnect: p.OnConnect, OnAdopt: p.OnAdopt, OnMessage: p.OnMessage, OnBufferFull: p.OnBufferFull, OnBufferDrain: p.OnBufferDrain,
		OnTimer: p.OnTimer, OnLeave: p.OnLeave, OnClose: p.OnClose, Inline: p.Inline, Pinned: p.Pinned, Limits: p.Limits,
	}.listener(name, set)
}

func (p Frame[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	return Framed[T]{
		Protocol:  frame.Protocol{MaxMessage: set.limits(p.Limits).MaxMessage}, // both defaults are the same
		OnConnect: p.OnConnect, OnAdopt: p.OnAdopt, OnMessage: p.OnMessage, OnBufferFull: p.OnBufferFull, OnBufferDrain: p.OnBufferDrain,
		OnTimer: p.OnTimer, OnLeave: p.OnLeave, OnClose: p.OnClose, Inline: p.Inline, Pinned: p.Pinned, Limits: p.Limits,
	}.listener(name, set)
}

func (p Length[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	format := p.Format
	format.MaxMessage = set.limits(p.Limits).MaxMessage // both defaults are the same
	if err := format.Validate(); err != nil {
		return worker.Listener{}, err
	}
	return Framed[T]{
		Protocol:  format,
		OnConnect: p.OnConnect, OnAdopt: p.OnAdopt, OnMessage: p.OnMessage, OnBufferFull: p.OnBufferFull, OnBufferDrain: p.OnBufferDrain,
		OnTimer: p.OnTimer, OnLeave: p.OnLeave, OnClose: p.OnClose, Inline: p.Inline, Pinned: p.Pinned, Limits: p.Limits,
	}.listener(name, set)
}

func (p Delimiter[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	format, limits := p.Format, set.limits(p.Limits)
	switch most := limits.MaxMessage; {
	case most == 0:
		p.Limits.MaxMessage = delimiter.DefaultMaxMessage + delimiter.MaxDelimiter
	case format.Keep: // the delimiter is a part of the message
		format.MaxMessage = max(1, most-len(cmp.Or(format.Delimiter, delimiter.Default)))
	default:
		format.MaxMessage = most
	}
	if err := format.Validate(); err != nil {
		return worker.Listener{}, err
	}
	return Framed[T]{
		Protocol:  format,
		OnConnect: p.OnConnect, OnAdopt: p.OnAdopt, OnMessage: p.OnMessage, OnBufferFull: p.OnBufferFull, OnBufferDrain: p.OnBufferDrain,
		OnTimer: p.OnTimer, OnLeave: p.OnLeave, OnClose: p.OnClose, Inline: p.Inline, Pinned: p.Pinned, Limits: p.Limits,
	}.listener(name, set)
}

func (p Framed[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	h := &callbacks[T]{p}
	c := &conn.Config{
		Protocol: p.Protocol, ProtocolName: protocolName(p.Protocol), Handler: h, Limits: set.limits(p.Limits),
		Inline: p.Inline, Pinned: p.Pinned, EncodeValue: h.encode, DecodeValue: h.decode,
	}
	if p.OnLeave != nil {
		c.OnLeave = h.leave
	}
	if key := set.usesAny("origins", "compress_above", "ping_interval", "pong_timeout"); key != "" {
		return worker.Listener{}, &settingError{key, "only WebSocket has this setting"}
	}
	return set.serve(name, c)
}

// serve is a listener of connections, with what the operator has set for any
// protocol.
func (set listenerConfig) serve(name string, c *conn.Config) (worker.Listener, error) {
	if key := set.usesAny("max_running", "max_waiting"); key != "" {
		return worker.Listener{}, &settingError{key, "only HTTP has this setting"}
	}
	if set.Inline != nil {
		c.Inline = *set.Inline
	}
	if set.Movable != nil {
		c.Pinned = !*set.Movable
	}
	if err := c.Limits.Check(); err != nil {
		return worker.Listener{}, err
	}
	return worker.Listener{Name: name, Conn: c, Accept: set.accept(), Dispatch: set.Dispatch}, nil
}

// protocolName tells protocols apart that must not be taken for one another:
// by their type, and by what they have been told of the bytes, though not by
// their limits.
func protocolName(p wire.Protocol) string {
	name := reflect.TypeOf(wire.Raw{}).String()
	if p != nil {
		name = reflect.TypeOf(p).String()
	}
	switch p := p.(type) {
	case length.Protocol:
		p.MaxMessage = 0
		return fmt.Sprintf("%s%+v", name, p)
	case delimiter.Protocol:
		return fmt.Sprintf("%s{%q keep:%v}", name, p.Delimiter, p.Keep)
	}
	return name
}

// limits is what the operator has set, where he has not, what the code says.
func (l listenerConfig) limits(code Limits) Limits {
	number := func(field *int, set int) {
		if set != 0 {
			*field = set
		}
	}
	number(&code.MaxMessage, l.MaxMessage)
	number(&code.SendHigh, l.SendHigh)
	number(&code.SendLow, l.SendLow)
	number(&code.SendHard, l.SendLimit)
	number(&code.QueueDepth, l.QueueDepth)
	time := func(field *time.Duration, set time.Duration) {
		if set != 0 {
			*field = set
		}
	}
	time(&code.FirstByte, l.FirstByteTimeout)
	time(&code.Message, l.MessageTimeout)
	time(&code.Auth, l.AuthTimeout)
	time(&code.Idle, l.IdleTimeout)
	time(&code.ReadIdle, l.ReadIdleTimeout)
	time(&code.WriteIdle, l.WriteIdleTimeout)
	time(&code.WriteStall, l.WriteTimeout)
	time(&code.Close, l.CloseTimeout)
	time(&code.Handshake, l.HandshakeTimeout)
	return code
}

func (l listenerConfig) accept() worker.AcceptLimits {
	return worker.AcceptLimits{Connections: l.MaxConnections, PerPeer: l.MaxConnectionsPerPeer, Rate: l.AcceptRate, Burst: l.AcceptBurst}
}

// unusable returns a key that is set and is none of those that a protocol
// has; address and serve are every protocol's.
func (l listenerConfig) unusable(has ...string) string {
	for _, key := range l.keys() {
		if !slices.Contains(has, key) {
			return key
		}
	}
	return ""
}

// usesAny returns the first of the keys that is set.
func (l listenerConfig) usesAny(keys ...string) string {
	for _, key := range l.keys() {
		if slices.Contains(keys, key) {
			return key
		}
	}
	return ""
}

// keys are those that are set, but for address and serve.
func (l listenerConfig) keys() (keys []string) {
	for _, k := range []struct {
		key string
		set bool
	}{
		{"inline", l.Inline != nil}, {"movable", l.Movable != nil}, {"dispatch", l.Dispatch != ""}, {"max_message", l.MaxMessage != 0}, {"send_high", l.SendHigh != 0},
		{"send_low", l.SendLow != 0}, {"send_limit", l.SendLimit != 0}, {"queue_depth", l.QueueDepth != 0},
		{"max_connections", l.MaxConnections != 0}, {"max_connections_per_peer", l.MaxConnectionsPerPeer != 0},
		{"accept_rate", l.AcceptRate != 0}, {"accept_burst", l.AcceptBurst != 0}, {"auth_timeout", l.AuthTimeout != 0},
		{"read_idle_timeout", l.ReadIdleTimeout != 0}, {"write_idle_timeout", l.WriteIdleTimeout != 0},
		{"first_byte_timeout", l.FirstByteTimeout != 0}, {"message_timeout", l.MessageTimeout != 0},
		{"idle_timeout", l.IdleTimeout != 0}, {"write_timeout", l.WriteTimeout != 0}, {"close_timeout", l.CloseTimeout != 0},
		{"max_running", l.MaxRunning != 0}, {"max_waiting", l.MaxWaiting != 0},
		{"origins", len(l.Origins) != 0}, {"compress_above", l.CompressAbove != 0},
		{"ping_interval", l.PingInterval != 0}, {"pong_timeout", l.PongTimeout != 0},
		{"handshake_timeout", l.HandshakeTimeout != 0}, {"proxy_protocol", len(l.ProxyProtocol) > 0}, {"tls.cert", l.TLS.isSet()},
	} {
		if k.set {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// listener takes, of what the operator can set, the limits that datagrams
// have as well.
func (p Packet) listener(name string, set listenerConfig) (worker.Listener, error) {
	if p.OnPacket == nil {
		return worker.Listener{}, errors.New("a Packet without OnPacket")
	}
	c := &conn.PacketConfig{MaxMessage: p.MaxMessage, SendLimit: p.SendLimit}
	if set.MaxMessage != 0 {
		c.MaxMessage = set.MaxMessage
	}
	if set.SendLimit != 0 {
		c.SendLimit = set.SendLimit
	}
	if key := set.unusable("max_message", "send_limit"); key != "" {
		return worker.Listener{}, &settingError{key, "datagrams have no such setting, only max_message and send_limit"}
	}
	return worker.Listener{Name: name, Packet: c, OnPacket: p.OnPacket}, nil
}

// netHTTPSettings are what net/http has of the operator's settings, and
// webSocketSettings what WebSockets behind it have besides.
var (
	netHTTPSettings = []string{"message_timeout", "idle_timeout", "write_timeout", "max_connections", "max_connections_per_peer", "accept_rate", "accept_burst",
		"proxy_protocol", "tls.cert"}
	webSocketSettings = []string{"max_message", "send_high", "send_low", "send_limit", "close_timeout", "movable",
		"origins", "compress_above", "ping_interval", "pong_timeout"}
)

// listener takes, of what the operator can set, the timeouts that net/http
// has as well, and for WebSockets what forStream says.
func (p HTTP) listener(name string, set listenerConfig) (worker.Listener, error) {
	h := p.Handler
	if h == nil {
		h = http.DefaultServeMux
	}
	has := netHTTPSettings
	if len(p.WebSockets) > 0 {
		has = slices.Concat(netHTTPSettings, webSocketSettings)
	}
	if key := set.unusable(has...); key != "" {
		why := "net/http has no such setting, only " + strings.ReplaceAll(strings.Join(has, ", "), "tls.cert", "tls")
		if slices.Contains(webSocketSettings, key) {
			why += "; WebSockets would have it, and there is none"
		}
		return worker.Listener{}, &settingError{key, why}
	}
	upgrades := make(map[string]*conn.Config)
	for name, s := range p.WebSockets {
		if s == nil || name == "" {
			return worker.Listener{}, fmt.Errorf("WebSocket %q: want a name, and what is served by it", name)
		}
		made, err := s.stream(name, set)
		if err != nil {
			return worker.Listener{}, fmt.Errorf("WebSocket %q: %w", name, err)
		}
		switch h, ok := made.Conn.Handler.(interface{ hooked() bool }); {
		case !ok:
			return worker.Listener{}, fmt.Errorf("WebSocket %q: it is none; handlers of net/http send events themselves", name)
		case h.hooked():
			return worker.Listener{}, fmt.Errorf("WebSocket %q: OnUpgrade and Header are of no use here: the Handler decides, and sets the fields of the answer", name)
		}
		upgrades[name] = made.Conn
	}
	limits := worker.HTTPLimits{Header: set.MessageTimeout, Idle: set.IdleTimeout, Stall: set.WriteTimeout}
	return worker.Listener{Name: name, HTTP: h, HTTPLimits: limits, Upgrades: upgrades, Accept: set.accept()}, nil
}

// listener takes, of what the operator can set, what HTTP has as well:
// max_message is the longest body, queue_depth the requests read ahead,
// max_running and max_waiting are Limits.Running and Waiting,
// read_idle_timeout how long a peer may fall behind with a body.
func (p Web) listener(name string, set listenerConfig) (worker.Listener, error) {
	if key := set.usesAny("auth_timeout", "write_idle_timeout"); key != "" {
		return worker.Listener{}, &settingError{key, "HTTP has no such setting"}
	}
	if key := set.usesAny("origins", "compress_above", "ping_interval", "pong_timeout"); key != "" && len(p.Streams) == 0 {
		return worker.Listener{}, &settingError{key, "only WebSocket has this setting, and there is none here"}
	}
	if set.Inline != nil {
		p.Inline = *set.Inline
	}
	if key := set.usesAny("max_running", "max_waiting"); key != "" && p.Inline {
		return worker.Listener{}, &settingError{key, "these handlers run on the loop, one at a time: want inline = false with it"}
	}
	if set.MaxRunning != 0 {
		p.Limits.Running = set.MaxRunning
	}
	if set.MaxWaiting != 0 {
		p.Limits.Waiting = set.MaxWaiting
	}
	if set.MaxMessage != 0 {
		p.Limits.Body = int64(set.MaxMessage)
	}
	if set.QueueDepth != 0 {
		p.Limits.Pipeline = set.QueueDepth
	}
	if set.MessageTimeout != 0 {
		p.Limits.HeadTimeout = set.MessageTimeout
	}
	if set.ReadIdleTimeout != 0 {
		p.Limits.BodyTimeout = set.ReadIdleTimeout
	}
	if set.IdleTimeout != 0 {
		p.Limits.IdleTimeout = set.IdleTimeout
	}
	streams := make(map[string]httpweb.Stream)
	for path, s := range p.Streams {
		var err error
		if streams[path], err = streamAt(path, s, set); err != nil {
			return worker.Listener{}, err
		}
	}
	h := httpweb.New(httpweb.Config{Handler: p.Handler, Inline: p.Inline, Reuse: p.Reuse, Limits: p.Limits, Streams: streams})
	c := h.ConnConfig(set.limits(p.Send))
	if set.Movable != nil {
		c.Pinned = !*set.Movable
	}
	if err := c.Limits.Check(); err != nil {
		return worker.Listener{}, err
	}
	return worker.Listener{Name: name, Conn: c, Dispatch: set.Dispatch, Accept: set.accept()}, nil
}

// streamAt returns what is served at a path, or what is wrong with that.
func streamAt(path string, s Stream, set listenerConfig) (httpweb.Stream, error) {
	if s == nil || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#% ") {
		return httpweb.Stream{}, fmt.Errorf("stream at %q: want a path as it is in a request, and what is served there", path)
	}
	made, err := s.stream(path, set)
	if err != nil {
		return httpweb.Stream{}, fmt.Errorf("stream at %q: %w", path, err)
	}
	return made, nil
}

// callbacks gives the callbacks of a Framed their typed connection.
type callbacks[T any] struct{ Framed[T] }

func (h *callbacks[T]) of(c *conn.Conn) *Conn[T] { return c.Value().(*Conn[T]) }

func (h *callbacks[T]) OnConnect(c *conn.Conn) {
	typed := &Conn[T]{conn: c}
	c.SetValue(typed)
	if h.Framed.OnConnect != nil {
		h.Framed.OnConnect(typed)
	}
}

// encode and decode carry the State to another process.

func (h *callbacks[T]) encode(c *conn.Conn) ([]byte, error) {
	typed, ok := c.Value().(*Conn[T])
	if !ok {
		return nil, nil // OnConnect has panicked before it was made, or it is piped away
	}
	return encodeState(&typed.State)
}

func (h *callbacks[T]) decode(c *conn.Conn, b []byte) error {
	typed := &Conn[T]{conn: c}
	c.SetValue(typed)
	if b == nil {
		return nil
	}
	return decodeState(b, &typed.State)
}

// encodeState returns what another process needs of a State, given by its
// address; nil for one that has nothing to say.
func encodeState(state any) ([]byte, error) {
	if _, none := state.(*struct{}); none {
		return nil, nil
	}
	if m, ok := state.(binaryState); ok {
		return m.MarshalBinary()
	}
	return json.Marshal(state)
}

// decodeState is the reverse.
func decodeState(b []byte, state any) error {
	if _, none := state.(*struct{}); none {
		return nil
	}
	if m, ok := state.(binaryState); ok {
		return m.UnmarshalBinary(b)
	}
	return json.Unmarshal(b, state)
}

// binaryState is a State that says itself how it travels.
type binaryState interface {
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

func (h *callbacks[T]) OnAdopt(c *conn.Conn, why Reason) {
	if h.Framed.OnAdopt != nil {
		h.Framed.OnAdopt(h.of(c), why)
	}
}

func (h *callbacks[T]) AdoptsSilently() bool { return h.Framed.OnAdopt == nil }

func (h *callbacks[T]) OnMessage(c *conn.Conn, m []byte) {
	if h.Framed.OnMessage != nil {
		h.Framed.OnMessage(h.of(c), m)
	}
}

func (h *callbacks[T]) OnBufferFull(c *conn.Conn) {
	if h.Framed.OnBufferFull != nil {
		h.Framed.OnBufferFull(h.of(c))
	}
}

func (h *callbacks[T]) OnBufferDrain(c *conn.Conn) {
	if h.Framed.OnBufferDrain != nil {
		h.Framed.OnBufferDrain(h.of(c))
	}
}

func (h *callbacks[T]) OnTimer(c *conn.Conn, name string) {
	if h.Framed.OnTimer != nil {
		h.Framed.OnTimer(h.of(c), name)
	}
}

func (h *callbacks[T]) leave(c *conn.Conn, slot int) { h.Framed.OnLeave(h.of(c), slot) }

func (h *callbacks[T]) OnClose(c *conn.Conn, why error) {
	if h.Framed.OnClose != nil {
		h.Framed.OnClose(h.of(c), why)
	}
}
