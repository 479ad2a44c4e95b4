package service

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
)

// WebSocketDialer makes outgoing connections that speak WebSocket, as their
// clients: a Dialing, whose addresses are ws://HOST[:PORT][/PATH][?QUERY], or
// wss:// with TLS. The
// callbacks and promises are those of WebSocket, the rest is as in Dialer.
//
// OnConnect is told of a connection on which the server has agreed, with State
// as Dial was given it; until then what Client.Send was given waits. A server
// that refuses, or does not answer in time, is a failed attempt: OnDown is told
// a *ConnectError of step Negotiating, which holds an *Unaccepted if there was
// an answer.
//
// A connection moves at any point, inside of the handshake too. At a drain the
// server is told 1001.
type WebSocketDialer[T any] struct {
	// Subprotocols are offered, best first; Conn.Subprotocol is the server's
	// choice. A server that chooses none of them is taken all the same.
	Subprotocols []string
	// Header returns what is sent with a request, such as Origin,
	// Authorization or Cookie. It must not have fields of the handshake. It
	// runs where OnConnect does. nil: nothing.
	Header func(cl Client[T]) http.Header

	OnConnect      func(c *Conn[T])
	OnAdopt        func(c *Conn[T], why Reason)
	OnMessage      func(c *Conn[T], m Message)
	OnPing, OnPong func(c *Conn[T], data []byte)
	OnBufferFull   func(c *Conn[T])
	OnBufferDrain  func(c *Conn[T])
	OnTimer        func(c *Conn[T], name string)
	OnLeave        func(c *Conn[T], slot int)
	OnClose        func(c *Conn[T], why error)
	OnDown         func(cl Client[T], why error, next time.Duration) // as in Dialer

	Inline bool
	Pinned bool
	Limits Limits

	// CompressAbove, PingEvery and PongWithin are as in WebSocket; 0 as
	// CompressAbove offers no compression.
	CompressAbove         int
	PingEvery, PongWithin time.Duration

	Proxy     string        // as in Dialer
	TLS       *tls.Config   // as in Dialer, for wss://
	Timeout   time.Duration // of an attempt until the server is reached, and of the handshake as much again; zero: 10 s
	Reconnect bool
	Backoff   Backoff
	Resolver  *net.Resolver
}

// Unaccepted is a server's answer that is no WebSocket: a status, or what was
// wrong with it.
type Unaccepted = websocket.Unaccepted

var _ Dialing = WebSocketDialer[int]{}

func (d WebSocketDialer[T]) dialing(address string) conn.DialConfig {
	h := &webClient[T]{
		web: web[T]{
			WebSocket: WebSocket[T]{
				OnConnect: d.OnConnect, OnAdopt: d.OnAdopt, OnMessage: d.OnMessage, OnPing: d.OnPing, OnPong: d.OnPong,
				OnBufferFull: d.OnBufferFull, OnBufferDrain: d.OnBufferDrain, OnTimer: d.OnTimer,
				OnLeave: d.OnLeave, OnClose: d.OnClose,
			},
			common: webConfig{compressAbove: d.CompressAbove, client: true},
		},
		subprotocols: d.Subprotocols, header: d.Header, timeout: d.Timeout,
	}
	if h.timeout <= 0 {
		h.timeout = conn.DefaultConnect
	}
	config, limits := websocketLimits(d.Limits, d.CompressAbove)
	c := conn.DialConfig{
		Config: conn.Config{
			TLS:          d.TLS,
			NewSession:   func() wire.Session { return websocket.NewClient(config) },
			ProtocolName: websocketName, Handler: h, Limits: limits, Inline: d.Inline, Pinned: d.Pinned,
			EncodeValue: h.encode, DecodeValue: h.decode, Farewell: h.farewell,
		},
		Address: address, Route: h.route, Negotiates: true,
		Proxy: d.Proxy, Timeout: d.Timeout, Reconnect: d.Reconnect, Backoff: d.Backoff, Resolver: d.Resolver,
	}
	c.Probe, c.ProbeAfter, c.ProbeWait = probing(h.ping, d.PingEvery, d.PongWithin)
	if d.OnLeave != nil {
		c.OnLeave = h.leave
	}
	if d.OnDown != nil {
		c.OnDown = func(cl *conn.Client, why error, next time.Duration) { d.OnDown(Client[T]{cl}, why, next) }
	}
	return c
}

// webClient are the callbacks of a WebSocket's client. Until the server has
// agreed, a connection's Value is a *negotiation.
type webClient[T any] struct {
	web[T]
	subprotocols []string
	header       func(Client[T]) http.Header
	timeout      time.Duration // of the handshake
}

// negotiation is a handshake that is under way.
type negotiation[T any] struct{ state T } // of the connection that it is for

// negotiationTimer is the timer of the handshake. The application has none
// before its OnConnect.
const negotiationTimer = "handshake"

// route says where a URL leads. What is wrong with the request is found here,
// where somebody is told of it at once.
func (h *webClient[T]) route(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", errors.New("service: address of a WebSocket: not a URL") // which may have a password in it
	}
	network, port := "tcp", "80"
	switch {
	case u.User != nil, u.Scheme != "ws" && u.Scheme != "wss":
		return "", fmt.Errorf("service: address %q: want ws:// or wss://, and HOST[:PORT][/PATH][?QUERY], without a user", u.Redacted())
	case u.Scheme == "wss":
		network, port = "tls", "443"
	}
	if _, err := websocket.NewRequest(address, h.options(nil)); err != nil {
		return "", fmt.Errorf("service: %w", err)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	return network + "://" + net.JoinHostPort(u.Hostname(), port), nil
}

func (h *webClient[T]) options(fields http.Header) *websocket.RequestOptions {
	return &websocket.RequestOptions{Subprotocols: h.subprotocols, Header: fields, Deflate: h.common.compressAbove > 0}
}

// OnConnect asks the server.
func (h *webClient[T]) OnConnect(c *conn.Conn) {
	cl := c.Client()
	n := &negotiation[T]{}
	value := cl.Value()
	state, ok := value.(T)
	if !ok && value != nil { // nil: T is an interface
		panic(fmt.Sprintf("service: %s: Dial with a state of type %T, want %T", c.Listener(), value, n.state))
	}
	n.state = state
	c.SetValue(n)
	c.SetTimer(negotiationTimer, h.timeout)
	var fields http.Header
	if h.header != nil {
		fields = h.header(Client[T]{cl})
	}
	request, err := websocket.NewRequest(cl.Address(), h.options(fields))
	if err == nil {
		err = c.Send(request)
	}
	if err != nil {
		c.CloseNow(fmt.Errorf("service: %w", err)) // or it is over
	}
}

func (h *webClient[T]) OnMessage(c *conn.Conn, m []byte) {
	if websocket.Kind(m[0]) != websocket.Response {
		h.web.OnMessage(c, m)
		return
	}
	n, ok := c.Value().(*negotiation[T])
	if !ok {
		return // its OnConnect has panicked
	}
	c.StopTimer(negotiationTimer)
	typed := &Conn[T]{State: n.state, conn: c, web: &h.common}
	c.SetValue(typed)
	if h.WebSocket.OnConnect != nil {
		h.WebSocket.OnConnect(typed)
	}
	c.Client().Ready(c)
}

// OnTimer ends a handshake that takes too long.
func (h *webClient[T]) OnTimer(c *conn.Conn, name string) {
	if _, ok := c.Value().(*negotiation[T]); ok {
		c.CloseNow(fmt.Errorf("no answer within %v: %w", h.timeout, os.ErrDeadlineExceeded))
		return
	}
	h.web.OnTimer(c, name)
}

// OnAdopt is told of a connection as it was there: perhaps not agreed on yet.
func (h *webClient[T]) OnAdopt(c *conn.Conn, why Reason) {
	h.web.OnAdopt(c, why)
	if h.of(c) != nil {
		c.Client().Ready(c)
	} else if why == Crash { // the timers are gone
		c.SetTimer(negotiationTimer, h.timeout)
	}
}

// farewell is what the server is told when the connection ends by itself, or
// by Client.Close.
func (h *webClient[T]) farewell(c *conn.Conn, why error) []byte {
	switch {
	case h.of(c) == nil, errors.Is(why, ErrPeerClosed), errors.Is(why, ErrClosed):
		return nil
	case errors.Is(why, ErrDrained): // we do not come back on it, and the server need not know more
		return websocket.AppendClose(nil, websocket.GoingAway, "")
	}
	code, reason := closeCode(why)
	return websocket.AppendClose(nil, code, reason)
}

// encode and decode are those of a server, and carry a handshake too.

func (h *webClient[T]) encode(c *conn.Conn) ([]byte, error) {
	n, ok := c.Value().(*negotiation[T])
	if !ok {
		return h.web.encode(c)
	}
	b, err := encodeState(&n.state)
	return append([]byte{negotiating}, b...), err
}

func (h *webClient[T]) decode(c *conn.Conn, b []byte) error {
	n := new(negotiation[T])
	switch s, ok := c.Session().(*websocket.Session); {
	case b == nil && ok && !s.Open(): // after a crash
		c.SetValue(n)
		return nil
	case len(b) == 0 || b[0] != negotiating:
		return h.web.decode(c, b)
	}
	c.SetValue(n)
	return decodeState(b[1:], &n.state)
}

const negotiating = 2
