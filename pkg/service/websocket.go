package service

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// WebSocket serves connections by WebSocket (RFC 6455). A connection begins
// with the client's request, which OnUpgrade may refuse. From then on the
// callbacks are as in Framed: OnConnect or OnAdopt first, OnClose last, which
// is told of no connection that was refused.
//
// Pings are answered, and the close of the peer, with its own code. Whoever
// breaks the protocol is told the code for that. At a drain the peers are told
// to come back: with 1012 if their worker leaves and the service stays, with
// 1001 if the service stops. Connections move at any point, inside of a
// message and of the handshake too.
type WebSocket[T any] struct {
	// OnUpgrade returns the State of a new connection, or an error if it is
	// not taken: a *Refusal says how the request is answered, any other error
	// means 403, of which the client does not see the text. nil: all are taken.
	// The request has no body; RemoteAddr is Conn.Peer. It runs on the pool
	// like other callbacks, and may block, unless Inline. Behind HTTP the Handler
	// has its part, see Upgrade.
	OnUpgrade func(r *http.Request) (T, error)
	// Header returns what is sent with the answer to a request that is taken,
	// such as a cookie. It must not have fields of the handshake. nil: nothing.
	Header func(r *http.Request) http.Header

	// Origins are the origins whose pages may connect, as patterns of
	// path.Match in lower case, "https://*.example.com", or "*" for any. None:
	// a page has to come from the host, and the port, that its request is for.
	// Clients that are no browsers send no Origin and are not asked for one.
	Origins []string
	// Subprotocols are those that are spoken here, best first; Conn.Subprotocol
	// is the first of them that the client offers.
	Subprotocols []string

	OnConnect func(c *Conn[T])
	OnAdopt   func(c *Conn[T], why Reason)
	// OnMessage is given one message, assembled; Data is valid until it
	// returns and must not be changed.
	OnMessage func(c *Conn[T], m Message)
	// OnPing is told of a ping, which has been answered already; OnPong of a
	// pong, and of those that answer pings of PingEvery too.
	OnPing, OnPong func(c *Conn[T], data []byte)
	OnBufferFull   func(c *Conn[T])
	OnBufferDrain  func(c *Conn[T])
	OnTimer        func(c *Conn[T], name string)
	OnLeave        func(c *Conn[T], slot int)
	// OnClose is told why the connection is over: if the peer has closed it
	// with a code, that is a *CloseError, which is ErrPeerClosed as well.
	OnClose func(c *Conn[T], why error)

	Inline bool
	Pinned bool
	Limits Limits

	// CompressAbove is the length in bytes from which on messages are
	// compressed, for clients that want it; 0: none is, and the clients'
	// are not either. 512 is a good value for text.
	CompressAbove int
	// PingEvery is after how long a silence of the peer a ping is sent, and
	// PongWithin in what time something must come then; otherwise the
	// connection ends with ErrIdle. Defaults 60 s and 30 s; a negative
	// PingEvery sends none.
	PingEvery, PongWithin time.Duration
}

// Defaults of WebSocket.
const (
	DefaultPingEvery  = 60 * time.Second
	DefaultPongWithin = 30 * time.Second
)

// Message is a message of WebSocket: text, which has to be UTF-8, or bytes.
type Message struct {
	Data   []byte
	Binary bool

	raw []byte // Data with its kind in front, as it came; nil: it did not come
}

func (m Message) kind() websocket.Kind {
	if m.Binary {
		return websocket.Binary
	}
	return websocket.Text
}

// CloseCode says why a WebSocket is closed; 4000 to 4999 are the
// application's own.
type CloseCode = websocket.Code

// Codes that an application may have use for.
const (
	CloseNormal          = websocket.Normal
	CloseGoingAway       = websocket.GoingAway
	CloseUnsupported     = websocket.Unsupported
	CloseNoCode          = websocket.NoCode // never sent: the peer gave no code
	ClosePolicyViolation = websocket.PolicyViolation
	CloseTooBig          = websocket.TooBig
	CloseInternalError   = websocket.InternalError
	CloseServiceRestart  = websocket.ServiceRestart
	CloseTryAgainLater   = websocket.TryAgainLater
)

// CloseError is a close with a code and a reason. Conn.Close sends those of
// the one that it is given; OnClose is told the peer's.
type CloseError struct {
	Code   CloseCode
	Reason string // up to 123 bytes, UTF-8
	Peer   bool   // it is the peer's; errors.Is(err, ErrPeerClosed) is true then
}

// Error tells who has closed, the code and the reason.
func (e *CloseError) Error() string {
	who := "closed"
	if e.Peer {
		who = "closed by the peer"
	}
	return fmt.Sprintf("websocket: %s with code %d %q", who, e.Code, e.Reason)
}

// Unwrap returns ErrPeerClosed if the peer has closed.
func (e *CloseError) Unwrap() error {
	if e.Peer {
		return ErrPeerClosed
	}
	return nil
}

// Refusal is an error of OnUpgrade that says how the request is answered:
// with a status from 300 to 599, fields, and a text.
type Refusal = websocket.Refusal

// ErrNotText is Send's answer to a text that is not UTF-8, which a peer would
// take for a broken protocol.
var ErrNotText = errors.New("service: text is not UTF-8")

// Prepared is a message that is encoded once for any number of connections,
// as when all of a room get it. It is made by Prepare, does not change, and
// may be used by any goroutine.
type Prepared struct {
	message Message
	plain   []byte        // for WebSockets
	packed  func() []byte // the same for those that have agreed on compression
}

// Prepare copies m into a Prepared. A text that is not UTF-8 is refused, with
// ErrNotText, by SendPrepared.
func Prepare(m Message) *Prepared {
	m = Message{Data: append([]byte{}, m.Data...), Binary: m.Binary}
	p := &Prepared{message: m}
	if m.Binary || utf8.Valid(m.Data) {
		p.plain = websocket.Prepare(nil, m.kind(), m.Data, false)
		p.packed = sync.OnceValue(func() []byte { return websocket.Prepare(nil, m.kind(), m.Data, true) })
	}
	return p
}

// SendPrepared is SendMessage for a message that many get.
func (c *Conn[T]) SendPrepared(p *Prepared) error {
	switch {
	case c.web == nil:
		return c.conn.Send(p.message.Data)
	case p.plain == nil:
		return ErrNotText
	case c.web.client: // whose frames are masked, each in its own way
		return c.send(p.message.kind(), p.message.Data)
	}
	if above := c.web.compressAbove; above > 0 && len(p.message.Data) >= above && c.session().Compressed() {
		return c.conn.Send(p.packed())
	}
	return c.conn.Send(p.plain)
}

// SendMessage is Send for a message that is not a text: on a WebSocket it
// is a binary one if m says so. A message that OnMessage was given is sent back
// without a copy. On other connections it is Send(m.Data).
func (c *Conn[T]) SendMessage(m Message) error {
	switch {
	case c.web == nil:
		return c.conn.Send(m.Data)
	case m.came():
		return c.conn.Send(m.raw)
	}
	return c.send(m.kind(), m.Data)
}

// came says whether m is, as it is, a message that came.
func (m Message) came() bool {
	return len(m.raw) == len(m.Data)+1 && m.raw[0] == byte(m.kind()) && (len(m.Data) == 0 || &m.raw[1] == &m.Data[0])
}

// Ping sends a ping with up to 125 bytes, for whose answer OnPong is called.
// Errors are Send's; on what is no WebSocket it does nothing.
func (c *Conn[T]) Ping(data []byte) error {
	if c.web == nil {
		return nil
	}
	return c.send(websocket.Ping, data)
}

// Subprotocol returns which of WebSocket.Subprotocols the client and this end
// speak, "" if none, and on what is no WebSocket.
func (c *Conn[T]) Subprotocol() string {
	if c.web == nil {
		return ""
	}
	return c.session().Subprotocol()
}

func (c *Conn[T]) session() *websocket.Session { return c.conn.Session().(*websocket.Session) }

// withKind are buffers for messages with their kind in front.
var withKind = sync.Pool{New: func() any { return new([]byte) }}

const maxKept = 64 << 10

// send sends a message of WebSocket.
func (c *Conn[T]) send(kind websocket.Kind, data []byte) error {
	return sendAs(kind, data, c.conn.Send)
}

// sendAs has a message sent with its kind in front.
func sendAs(kind websocket.Kind, data []byte, send func([]byte) error) error {
	if kind == websocket.Text && !utf8.Valid(data) {
		return ErrNotText
	}
	b := withKind.Get().(*[]byte)
	*b = append(append((*b)[:0], byte(kind)), data...)
	err := send(*b)
	if cap(*b) <= maxKept {
		withKind.Put(b)
	}
	return err
}

// closeMessages are what Close sends on a WebSocket: texts, and the close.
func closeMessages(why error, last [][]byte) (all [][]byte, err error) {
	all, err = texts(last)
	code, reason := closeCode(why)
	return append(all, websocket.AppendClose(nil, code, reason)), err
}

// texts are messages with their kind in front; err says that some were none.
func texts(messages [][]byte) (all [][]byte, err error) {
	for _, m := range messages {
		if !utf8.Valid(m) {
			err = ErrNotText
			continue
		}
		all = append(all, append([]byte{byte(websocket.Text)}, m...))
	}
	return all, err
}

// closeCode is what the peer is told of why.
func closeCode(why error) (CloseCode, string) {
	if e, ok := errors.AsType[*CloseError](why); ok {
		if (e.Code.Valid() || e.Code == websocket.NoCode) && utf8.ValidString(e.Reason) {
			return e.Code, e.Reason
		}
		return websocket.InternalError, "" // rather than nothing at all
	}
	if e, ok := errors.AsType[*websocket.Error](why); ok {
		return e.Code, e.Err.Error()
	}
	switch {
	case why == nil:
		return websocket.Normal, ""
	case errors.Is(why, conn.ErrStopping):
		return websocket.GoingAway, "service stops"
	case errors.Is(why, ErrDrained):
		return websocket.ServiceRestart, "service restarts"
	case errors.Is(why, ErrIdle):
		return websocket.PolicyViolation, "idle for too long"
	case errors.Is(why, ErrMessageDeadline):
		return websocket.PolicyViolation, "message not completed in time"
	case errors.Is(why, ErrUnauthenticated):
		return websocket.PolicyViolation, "not authenticated in time"
	case errors.Is(why, ErrTooLong):
		return websocket.TooBig, ""
	}
	return websocket.InternalError, "" // why is nobody's business outside
}

// refusalFor is the answer to a request that came to nothing for another
// reason than OnUpgrade's.
func refusalFor(why error) *Refusal {
	if r, ok := errors.AsType[*Refusal](why); ok {
		return r
	}
	switch {
	case errors.Is(why, ErrMessageDeadline), errors.Is(why, ErrUnauthenticated), errors.Is(why, ErrIdle):
		return &Refusal{Status: http.StatusRequestTimeout, Err: why}
	case errors.Is(why, ErrTooLong):
		return &Refusal{Status: http.StatusRequestHeaderFieldsTooLarge, Err: why}
	case errors.Is(why, ErrDrained):
		return &Refusal{Status: http.StatusServiceUnavailable, Err: why}
	}
	return &Refusal{Status: http.StatusInternalServerError, Err: why}
}

// web are the callbacks of a WebSocket, as conn.Handler has them. A connection
// has a Value, its Conn[T], from the upgrade on.
type web[T any] struct {
	WebSocket[T]
	common  webConfig
	session *websocket.Config
}

// webConfig is what the methods of a Conn need of its WebSocket, whatever T
// is.
type webConfig struct {
	compressAbove int
	client        bool // of an outgoing connection
}

// websocketName is the ProtocolName.
const websocketName = "websocket"

// websocketLimits is what a session bears, and the connection that has it.
// What is too long is the protocol's to say, with a code; the connection has
// to bear a whole head, and a message with its kind.
func websocketLimits(limits Limits, compressAbove int) (*websocket.Config, Limits) {
	config := &websocket.Config{MaxMessage: limits.MaxMessage, CompressAbove: compressAbove}
	if compressAbove <= 0 {
		config.CompressAbove = -1
	}
	if limits.MaxMessage == 0 {
		limits.MaxMessage = conn.DefaultMaxMessage
	}
	limits.MaxMessage = max(limits.MaxMessage, websocket.DefaultMaxHead) + 1
	return config, limits
}

// probing is Config.Probe and what belongs to it.
func probing(ping func(*conn.Conn), every, within time.Duration) (probe func(*conn.Conn), after, wait time.Duration) {
	switch {
	case every < 0:
		return nil, 0, 0
	case every == 0:
		every = DefaultPingEvery
	}
	if within <= 0 {
		within = DefaultPongWithin
	}
	return ping, every, within
}

func (p WebSocket[T]) listener(name string, set listenerConfig) (worker.Listener, error) {
	h := &web[T]{WebSocket: p}
	if len(set.Origins) > 0 {
		h.Origins = set.Origins
	}
	if set.CompressAbove != 0 {
		h.CompressAbove = set.CompressAbove
	}
	h.common.compressAbove = h.CompressAbove
	if err := h.check(); err != nil {
		return worker.Listener{}, err
	}
	config, limits := websocketLimits(set.limits(p.Limits), h.CompressAbove)
	h.session = config
	c := &conn.Config{
		NewSession:   func() wire.Session { return websocket.NewServer(config) },
		ProtocolName: websocketName, Handler: h, Limits: limits, Inline: p.Inline, Pinned: p.Pinned,
		EncodeValue: h.encode, DecodeValue: h.decode, Farewell: h.farewell,
	}
	every, within := p.PingEvery, p.PongWithin
	if set.PingInterval != 0 {
		every = set.PingInterval
	}
	if set.PongTimeout != 0 {
		within = set.PongTimeout
	}
	c.Probe, c.ProbeAfter, c.ProbeWait = probing(h.ping, every, within)
	if p.OnLeave != nil {
		c.OnLeave = h.leave
	}
	return set.serve(name, c)
}

// check says what is wrong with what the application, or the operator, wants.
func (h *web[T]) check() error {
	for _, pattern := range h.Origins {
		if _, err := path.Match(pattern, ""); err != nil {
			return &settingError{"origins", fmt.Sprintf("origin %q: %v", pattern, err)}
		}
	}
	r, err := websocket.ParseRequest([]byte("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"))
	if err != nil {
		return err
	}
	_, _, _, err = websocket.Accept(r, &websocket.AcceptOptions{Subprotocols: h.Subprotocols})
	return err
}

// OnConnect answers a request that Upgrade has taken. Otherwise the client
// speaks first.
func (h *web[T]) OnConnect(c *conn.Conn) {
	if g, ok := c.Value().(*granted[T]); ok {
		h.open(c, &Conn[T]{State: g.state, conn: c, web: &h.common}, g.answer)
	}
}

// upgrade answers the client's request.
func (h *web[T]) upgrade(c *conn.Conn, head []byte) {
	r, err := websocket.ParseRequest(head)
	if err != nil {
		h.refuse(c, err)
		return
	}
	opts := &websocket.AcceptOptions{Origins: h.Origins, Subprotocols: h.Subprotocols, Deflate: h.CompressAbove > 0}
	answer, _, _, err := websocket.Accept(r, opts) // before the application is asked
	if err != nil {
		h.refuse(c, err)
		return
	}
	typed := &Conn[T]{conn: c, web: &h.common}
	if h.OnUpgrade != nil || h.Header != nil {
		request, err := r.HTTP()
		if err != nil {
			h.refuse(c, err)
			return
		}
		request.RemoteAddr, request.TLS = c.Peer(), c.TLS()
		if h.OnUpgrade != nil {
			if typed.State, err = h.OnUpgrade(request); err != nil {
				h.refuse(c, err)
				return
			}
		}
		if h.Header != nil {
			opts.Header = h.Header(request)
			if answer, _, _, err = websocket.Accept(r, opts); err != nil {
				panic(fmt.Errorf("service: header of the answer to a request: %w", err))
			}
		}
	}
	h.open(c, typed, answer)
}

// open sends the answer to a request that is taken.
func (h *web[T]) open(c *conn.Conn, typed *Conn[T], answer []byte) {
	if err := c.Send(answer); err != nil {
		return // it is over
	}
	c.SetValue(typed)
	if h.WebSocket.OnConnect != nil {
		h.WebSocket.OnConnect(typed)
	}
}

// refuse answers a request that is not taken.
func (h *web[T]) refuse(c *conn.Conn, why error) {
	_ = c.Close(why, refusing(why))
}

// refusing is the answer to a request that OnUpgrade, or OnRequest of Events,
// has refused with an error.
func refusing(why error) []byte {
	r, ok := errors.AsType[*Refusal](why)
	if !ok {
		r = &Refusal{Status: http.StatusForbidden, Err: why}
	}
	m, err := dated(r).Message()
	if err != nil {
		panic(fmt.Errorf("service: answer to a request that is refused: %w", err))
	}
	return m
}

// dated is r with the field Date (RFC 9110 6.6.1).
func dated(r *Refusal) *Refusal {
	copied := *r
	copied.Header = http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}}
	maps.Copy(copied.Header, r.Header)
	return &copied
}

// farewell is what the peer is told when the connection ends by itself.
func (h *web[T]) farewell(c *conn.Conn, why error) []byte {
	if errors.Is(why, ErrPeerClosed) || errors.Is(why, ErrClosed) {
		return nil
	}
	if h.of(c) != nil {
		code, reason := closeCode(why)
		return websocket.AppendClose(nil, code, reason)
	}
	if c.BytesIn() == 0 {
		return nil // it has asked for nothing
	}
	m, err := dated(refusalFor(why)).Message()
	if err != nil {
		return nil // OnUpgrade's, which has panicked for it
	}
	return m
}

// ping asks a silent peer for a sign of life.
func (h *web[T]) ping(c *conn.Conn) {
	if h.of(c) != nil {
		_ = c.Send([]byte{byte(websocket.Ping)}) // it is over, or full of what will be answered
	}
}

// of returns c with its type, nil before the upgrade.
func (h *web[T]) of(c *conn.Conn) *Conn[T] {
	typed, _ := c.Value().(*Conn[T])
	return typed
}

func (h *web[T]) OnMessage(c *conn.Conn, m []byte) {
	kind, data := websocket.Kind(m[0]), m[1:]
	if kind == websocket.Request {
		h.upgrade(c, data)
		return
	}
	typed := h.of(c)
	if typed == nil {
		return // it was refused
	}
	switch kind {
	case websocket.Text, websocket.Binary:
		if h.WebSocket.OnMessage != nil {
			h.WebSocket.OnMessage(typed, Message{Data: data, Binary: kind == websocket.Binary, raw: m})
		}
	case websocket.Ping:
		// Of a peer that does not read, the last ping need not be answered
		// (RFC 6455 5.5.3).
		_ = typed.send(websocket.Pong, data)
		if h.OnPing != nil {
			h.OnPing(typed, data)
		}
	case websocket.Pong:
		if h.OnPong != nil {
			h.OnPong(typed, data)
		}
	case websocket.Close:
		code, reason := websocket.ParseClose(data)
		_ = c.Close(&CloseError{Code: code, Reason: reason, Peer: true}, m)
	}
}

// encode and decode carry the State of a connection that is upgraded: behind
// a byte, so that there is a difference between none and one that is empty.

func (h *web[T]) encode(c *conn.Conn) ([]byte, error) {
	typed := h.of(c)
	if typed == nil {
		return nil, nil
	}
	b, err := encodeState(&typed.State)
	return append([]byte{upgraded}, b...), err
}

func (h *web[T]) decode(c *conn.Conn, b []byte) error {
	if b == nil {
		// After a crash there may be no State, but a WebSocket all the same.
		if s, ok := c.Session().(*websocket.Session); ok && s.Open() {
			c.SetValue(&Conn[T]{conn: c, web: &h.common})
		}
		return nil
	}
	if len(b) == 0 || b[0] != upgraded {
		return fmt.Errorf("service: state of a WebSocket of %d bytes, not understood", len(b))
	}
	typed := &Conn[T]{conn: c, web: &h.common}
	c.SetValue(typed)
	return decodeState(b[1:], &typed.State)
}

const upgraded = 1

func (h *web[T]) OnAdopt(c *conn.Conn, why Reason) {
	if typed := h.of(c); typed != nil && h.WebSocket.OnAdopt != nil {
		h.WebSocket.OnAdopt(typed, why)
	}
}

func (h *web[T]) OnBufferFull(c *conn.Conn) {
	if typed := h.of(c); typed != nil && h.WebSocket.OnBufferFull != nil {
		h.WebSocket.OnBufferFull(typed)
	}
}

func (h *web[T]) OnBufferDrain(c *conn.Conn) {
	if typed := h.of(c); typed != nil && h.WebSocket.OnBufferDrain != nil {
		h.WebSocket.OnBufferDrain(typed)
	}
}

func (h *web[T]) OnTimer(c *conn.Conn, name string) {
	if typed := h.of(c); typed != nil && h.WebSocket.OnTimer != nil {
		h.WebSocket.OnTimer(typed, name)
	}
}

func (h *web[T]) leave(c *conn.Conn, slot int) {
	if typed := h.of(c); typed != nil {
		h.WebSocket.OnLeave(typed, slot)
	}
}

func (h *web[T]) OnClose(c *conn.Conn, why error) {
	if typed := h.of(c); typed != nil && h.WebSocket.OnClose != nil {
		h.WebSocket.OnClose(typed, why)
	}
}
