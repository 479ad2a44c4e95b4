package service

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	httpweb "github.com/mainstay-go/mainstay/pkg/web"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// Stream is what a connection of a Web turns into with a request: WebSocket
// or Events. One of HTTP turns into a WebSocket only.
type Stream interface {
	// stream returns what is served behind a request for path, with what the
	// operator has set for the Web's listener.
	stream(path string, set listenerConfig) (httpweb.Stream, error)
}

// stream takes requests for an upgrade; others for the same path are the
// Handler's.
func (p WebSocket[T]) stream(path string, set listenerConfig) (httpweb.Stream, error) {
	l, err := p.listener("", set.forStream())
	if err != nil {
		return httpweb.Stream{}, err
	}
	l.Conn.ProtocolName += " at " + path
	return httpweb.Stream{Conn: l.Conn, Upgrade: true}, nil
}

// forStream is what of a Web's settings means the same for a stream.
func (l listenerConfig) forStream() listenerConfig {
	return listenerConfig{
		MaxMessage: l.MaxMessage, SendHigh: l.SendHigh, SendLow: l.SendLow, SendLimit: l.SendLimit,
		Movable: l.Movable, WriteTimeout: l.WriteTimeout, CloseTimeout: l.CloseTimeout,
		Origins: l.Origins, CompressAbove: l.CompressAbove, PingInterval: l.PingInterval, PongTimeout: l.PongTimeout,
	}
}

// Events serves server-sent events, what browsers have EventSource for: the
// answer to a request is a stream of them without an end. It is declared in
// Web.Streams. OnRequest has returned long since when events are sent, by any
// goroutine: so a stream has no goroutine of its own, and it moves to another
// worker as any connection does.
//
// The callbacks of one stream come in order, never two at once: OnConnect or
// OnAdopt first, OnClose last, which is told of no request that was refused.
// They run on the pool and may block, or Inline on the loop. When a stream ends,
// EventSource asks again by itself, with the ID of the last event it has got
// in Last-Event-ID.
type Events[T any] struct {
	// OnRequest returns the State of a new stream, or an error if there is to
	// be none: a *Refusal says how the request is answered, any other error
	// means 403, of which the client does not see the text. nil: all get one.
	OnRequest func(r *http.Request) (T, error)
	// Header returns more fields of the answer, such as those of CORS, or others
	// than "Cache-Control: no-store" and "X-Accel-Buffering: no". nil: none.
	Header func(r *http.Request) http.Header

	OnConnect func(c *EventStream[T])
	// OnAdopt is told of a stream that another worker has had until now, as
	// that of Framed: after a Crash State is what EventStream.Save has kept,
	// and there is no timer.
	OnAdopt       func(c *EventStream[T], why Reason)
	OnBufferFull  func(c *EventStream[T])
	OnBufferDrain func(c *EventStream[T])
	OnTimer       func(c *EventStream[T], name string)
	OnLeave       func(c *EventStream[T], slot int)
	OnClose       func(c *EventStream[T], why error)

	// Heartbeat is how often a comment is sent, which the client does not
	// notice: so that nobody on the way takes the stream for dead, and one
	// that is dead is found out. Default 15 s, negative: never.
	Heartbeat time.Duration

	Inline bool
	Pinned bool
	Limits Limits
}

// DefaultHeartbeat is that of Events.
const DefaultHeartbeat = 15 * time.Second

// EventStream is a stream of Events with the application's state of it. Its
// methods are those of Conn of the same name.
type EventStream[T any] struct {
	// State is the application's, and travels, as Conn.State.
	State T

	conn *conn.Conn
}

// ID returns the number of the connection.
func (c *EventStream[T]) ID() uint64 { return c.conn.ID() }

// Listener returns the name of the listener it came by.
func (c *EventStream[T]) Listener() string { return c.conn.Listener() }

// Peer returns the other end's address.
func (c *EventStream[T]) Peer() string { return c.conn.Peer() }

// Send sends an event. Errors are those of Conn.Send; besides, ErrEvent.
func (c *EventStream[T]) Send(e Event) error {
	b, err := e.encode(nil)
	if err != nil {
		return err
	}
	return c.conn.Send(b)
}

// SendEncoded sends what EncodeEvent has made, which may go to many streams.
func (c *EventStream[T]) SendEncoded(e []byte) error { return c.conn.Send(e) }

// Queued returns how many bytes wait to be sent.
func (c *EventStream[T]) Queued() int { return c.conn.Queued() }

// Close ends the stream when what was sent has left; the client will ask
// again.
func (c *EventStream[T]) Close(why error) { _ = c.conn.Close(why) }

// CloseNow ends the stream at once.
func (c *EventStream[T]) CloseNow(why error) { c.conn.CloseNow(why) }

// SetTimer calls OnTimer with the name once d has passed.
func (c *EventStream[T]) SetTimer(name string, d time.Duration) {
	c.conn.SetTimer(timerOf+name, d)
}

// StopTimer ends the timer of that name.
func (c *EventStream[T]) StopTimer(name string) { c.conn.StopTimer(timerOf + name) }

// MoveTo asks for the stream to be given to the worker in a slot.
func (c *EventStream[T]) MoveTo(slot int) error { return c.conn.MoveTo(slot) }

// Bind says that the stream belongs to id.
func (c *EventStream[T]) Bind(id uint64) { c.conn.Bind(id) }

// Hold keeps the stream in this worker until Release.
func (c *EventStream[T]) Hold() error { return c.conn.Hold() }

// Release takes back one Hold.
func (c *EventStream[T]) Release() { c.conn.Release() }

// Save keeps State as it is now where it outlives the worker, up to 256 bytes
// of it. Timers do not: after a Crash OnAdopt sets them anew.
func (c *EventStream[T]) Save() error { return c.conn.Save() }

// Event is what Events send (WHATWG HTML, 9.2). The zero Event is one of type
// "message" without data.
type Event struct {
	ID    string        // what the client sends as Last-Event-ID when it asks again; empty: as before
	Name  string        // its type; empty: "message"
	Data  []byte        // text in UTF-8, of any number of lines
	Retry time.Duration // after what time the client is to ask again; 0: as before
}

// ErrEvent says that an event cannot be sent: the end of a line, or NUL, is in its ID or
// Name.
var ErrEvent = errors.New("service: event cannot be sent")

// EncodeEvent returns e as it is sent, for SendEncoded, or ErrEvent.
func EncodeEvent(e Event) ([]byte, error) { return e.encode(nil) }

func (e *Event) encode(b []byte) ([]byte, error) {
	for _, field := range []struct{ name, value string }{{"id: ", e.ID}, {"event: ", e.Name}} {
		if strings.ContainsAny(field.value, "\r\n\x00") {
			return nil, fmt.Errorf("%w: %s%q", ErrEvent, field.name, field.value)
		}
		if field.value != "" {
			b = append(append(append(b, field.name...), field.value...), '\n')
		}
	}
	if e.Retry > 0 {
		b = append(strconv.AppendInt(append(b, "retry: "...), e.Retry.Milliseconds(), 10), '\n')
	}
	for data := e.Data; ; {
		n := bytes.IndexAny(data, "\r\n")
		line, more := data, n >= 0
		if more {
			line = data[:n]
			if data[n] == '\r' && n+1 < len(data) && data[n+1] == '\n' {
				n++
			}
			data = data[n+1:]
		}
		b = append(append(append(b, "data: "...), line...), '\n')
		if !more {
			return append(b, '\n'), nil
		}
	}
}

// The timers of a stream: the application's, behind timerOf, and our own.
const (
	timerOf       = "."
	heartbeat     = "heartbeat"
	heartbeatText = ":\n\n"
)

// eventHandler are the callbacks of Events as conn.Handler has them. A
// connection's Value is the *http.Request until OnConnect, then its
// EventStream[T], or nil if there is none.
type eventHandler[T any] struct{ Events[T] }

func (p Events[T]) stream(path string, set listenerConfig) (httpweb.Stream, error) {
	if p.Heartbeat == 0 {
		p.Heartbeat = DefaultHeartbeat
	}
	h := &eventHandler[T]{p}
	c := &conn.Config{
		ProtocolName: "events at " + path, Handler: h, Limits: set.forStream().limits(p.Limits),
		Inline: p.Inline, Pinned: p.Pinned, EncodeValue: h.encode, DecodeValue: h.decode,
	}
	if p.OnLeave != nil {
		c.OnLeave = h.leave
	}
	if set.Movable != nil {
		c.Pinned = !*set.Movable
	}
	c.Limits.MaxMessage = 0 // what the client sends is no message
	if err := c.Limits.Check(); err != nil {
		return httpweb.Stream{}, err
	}
	return httpweb.Stream{Conn: c, Begin: func(c *conn.Conn, r *http.Request) { c.SetValue(r) }}, nil
}

func (h *eventHandler[T]) of(c *conn.Conn) *EventStream[T] {
	typed, _ := c.Value().(*EventStream[T])
	return typed
}

// OnConnect answers the request.
func (h *eventHandler[T]) OnConnect(c *conn.Conn) {
	r, ok := c.Value().(*http.Request)
	c.SetValue(nil)
	if !ok {
		c.CloseNow(ErrClosed)
		return
	}
	typed := &EventStream[T]{conn: c}
	if h.OnRequest != nil {
		var err error
		if typed.State, err = h.OnRequest(r); err != nil {
			h.refuse(c, err)
			return
		}
	}
	head := http1.AppendStatusLine(nil, r.ProtoMinor, http.StatusOK)
	head = append(head, "Content-Type: text/event-stream\r\nConnection: close\r\n"...)
	head = http1.AppendDate(head, time.Now())
	fields := http.Header{"Cache-Control": {"no-store"}, "X-Accel-Buffering": {"no"}}
	if h.Header != nil {
		maps.Copy(fields, h.Header(r))
	}
	head = http1.AppendFields(head, fields, func(name string) bool {
		switch name {
		case "Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding": // they are said, or not to be said
			return false
		}
		return true
	})
	if err := c.Send(append(head, "\r\n"...)); err != nil {
		return // it is over
	}
	c.SetValue(typed)
	h.beat(c)
	if h.Events.OnConnect != nil {
		h.Events.OnConnect(typed)
	}
}

// refuse answers a request that gets no stream.
func (h *eventHandler[T]) refuse(c *conn.Conn, why error) {
	_ = c.Close(why, refusing(why)[1:]) // without the kind that a WebSocket's message has
}

func (h *eventHandler[T]) beat(c *conn.Conn) {
	if h.Heartbeat > 0 {
		c.SetTimer(heartbeat, h.Heartbeat)
	}
}

// encode and decode carry the State of a stream that has begun, as those of a
// WebSocket do.

func (h *eventHandler[T]) encode(c *conn.Conn) ([]byte, error) {
	typed := h.of(c)
	if typed == nil {
		return nil, nil
	}
	b, err := encodeState(&typed.State)
	return append([]byte{upgraded}, b...), err
}

func (h *eventHandler[T]) decode(c *conn.Conn, b []byte) error {
	typed := &EventStream[T]{conn: c}
	switch {
	case b == nil: // it was at rest when its worker died
		c.SetValue(typed)
		return nil
	case len(b) == 0 || b[0] != upgraded:
		return fmt.Errorf("service: state of events of %d bytes, not understood", len(b))
	}
	c.SetValue(typed)
	return decodeState(b[1:], &typed.State)
}

func (h *eventHandler[T]) OnAdopt(c *conn.Conn, why Reason) {
	typed := h.of(c)
	if typed == nil {
		return
	}
	if why == Crash {
		h.beat(c) // timers have not come along
	}
	if h.Events.OnAdopt != nil {
		h.Events.OnAdopt(typed, why)
	}
}

// OnMessage drops what a client sends, who has nothing to say any more.
func (h *eventHandler[T]) OnMessage(*conn.Conn, []byte) {}

func (h *eventHandler[T]) OnBufferFull(c *conn.Conn) {
	if typed := h.of(c); typed != nil && h.Events.OnBufferFull != nil {
		h.Events.OnBufferFull(typed)
	}
}

func (h *eventHandler[T]) OnBufferDrain(c *conn.Conn) {
	if typed := h.of(c); typed != nil && h.Events.OnBufferDrain != nil {
		h.Events.OnBufferDrain(typed)
	}
}

func (h *eventHandler[T]) OnTimer(c *conn.Conn, name string) {
	typed := h.of(c)
	if name == heartbeat {
		if c.Queued() == 0 { // else it is slow, and has enough to read
			_ = c.Send([]byte(heartbeatText)) // an error: it is over
		}
		h.beat(c)
		return
	}
	if typed != nil && h.Events.OnTimer != nil {
		h.Events.OnTimer(typed, strings.TrimPrefix(name, timerOf))
	}
}

func (h *eventHandler[T]) leave(c *conn.Conn, slot int) {
	if typed := h.of(c); typed != nil {
		h.Events.OnLeave(typed, slot)
	}
}

func (h *eventHandler[T]) OnClose(c *conn.Conn, why error) {
	if typed := h.of(c); typed != nil && h.Events.OnClose != nil {
		h.Events.OnClose(typed, why)
	}
}
