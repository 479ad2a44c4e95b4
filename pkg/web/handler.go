package web

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// Handler is the conn.Handler that serves HTTP. It is made by New and may serve
// several listeners and loops. Its On methods are for package conn.
type Handler struct {
	// Set before the first connection.

	config   Config
	limits   Limits
	sendHigh int
	sendStep int
	start    time.Time
	event    func(conn.Event) // may be nil
	seat     *scoreboard.Seat // may be nil

	pool     pool
	sweep    sweep
	conns    atomic.Int64
	draining atomic.Bool
	turns    sync.Pool // of *turn
	date     atomic.Pointer[date]
}

var _ conn.Handler = (*Handler)(nil)

// New makes a Handler. The caller ends it by Close.
func New(config Config) *Handler {
	if config.Handler == nil {
		config.Handler = http.DefaultServeMux
	}
	h := &Handler{config: config, limits: config.Limits.withDefaults(config.Inline), sendHigh: DefaultSendHigh, sendStep: sendStep, start: time.Now()}
	h.pool.init(h.limits.Running, h.limits.Waiting)
	h.sweep.init(h.clock)
	h.turns.New = func() any { return &turn{room: room{body: make([]byte, 0, bodyRoom)}} }
	return h
}

// Serving tells where panics of the application are reported and what counts
// requests and panics; both may be nil. It is called before the first
// connection.
func (h *Handler) Serving(event func(conn.Event), seat *scoreboard.Seat) {
	h.event, h.seat = event, seat
}

// Drain has each connection closed behind the answer to its next request, or
// to the one that it is answered now, which says so (Connection: close). Those
// that are idle are left to conn.Set.Drain. Any goroutine may call it.
func (h *Handler) Drain() { h.draining.Store(true) }

// Close waits until all handlers that run have returned and ends the
// goroutines. It is to be called when the connections are gone.
func (h *Handler) Close() {
	h.pool.rest(true)
	h.pool.wg.Wait()
}

// Running returns how many requests are answered or wait for a goroutine. Any
// goroutine may call it.
func (h *Handler) Running() (running, waiting int) {
	h.pool.mu.Lock()
	defer h.pool.mu.Unlock()
	return h.pool.running - h.pool.idle, len(h.pool.queue) - h.pool.head
}

// Longest returns for how long that request has been worked on which has waited
// longest for the beginning of its answer, or since a part of its body was read;
// zero if there is none, and always with Inline. Any goroutine may call it.
func (h *Handler) Longest() time.Duration {
	if since := h.pool.oldest(); since != 0 {
		return h.clock() - since
	}
	return 0
}

// clock is the time of all deadlines: monotonic, and cheaper than the day's.
func (h *Handler) clock() time.Duration { return time.Since(h.start) }

// turn is what is needed while the input of one connection is handled on the
// loop, and by no connection between.
type turn struct {
	h    *Handler
	head http1.Head
	out  []byte // answers, to be sent together
	room room   // of the response that is being written
	now  time.Duration
	done int // requests answered

	// To be used again; most often nil.

	spare   *exchange
	reading *reading
}

// outHigh is how many bytes of answers are collected before they are sent.
const outHigh = 32 << 10

func (h *Handler) newTurn() *turn {
	t := h.turns.Get().(*turn)
	t.h, t.now, t.done = h, h.clock(), 0
	return t
}

func (t *turn) free() {
	if cap(t.out) > 2*outHigh {
		t.out = nil
	}
	t.out = t.out[:0]
	t.head = http1.Head{Fields: t.head.Fields[:0]}
	t.h.turns.Put(t)
}

// date is a Date field, and until when it says what the clock does.
type date struct {
	text  string
	until time.Duration // by the Handler's clock
}

// appendDate appends the field Date to an answer given at now, of the
// Handler's clock. It looks at the day's clock once a second: that costs twice
// as much as the other, and whoever sets it is noticed within that time.
func (h *Handler) appendDate(dst []byte, now time.Duration) []byte {
	d := h.date.Load()
	if d == nil || now >= d.until {
		from, wall := h.clock(), time.Now()
		d = &date{text: string(http1.AppendDate(nil, wall)), until: from + time.Second - time.Duration(wall.Nanosecond())}
		h.date.Store(d)
	}
	return append(dst, d.text...)
}

// flush sends the answers of the turn.
func (t *turn) flush(p *peer) error {
	if len(t.out) == 0 {
		return nil
	}
	err := p.c.Send(t.out)
	t.out = t.out[:0]
	if err != nil {
		p.c.CloseNow(err) // the stream has a gap now
	}
	return err
}

// OnConnect prepares a connection.
func (h *Handler) OnConnect(c *conn.Conn) { h.attach(c) }

func (h *Handler) attach(c *conn.Conn) *peer {
	p := &peer{h: h, c: c, reading: &atRest}
	if state := c.TLS(); state != nil {
		p.secure, p.rare = true, &rare{tls: state}
	}
	p.alarm.at.set(never)
	p.alarm.armed.set(never)
	p.flags.set(flagRest, true)
	p.self = p
	c.SetValueAt(&p.self)
	if h.conns.Add(1) == 1 && !h.config.Inline {
		h.pool.rest(false)
	}
	return p
}

// OnMessage takes what a read has brought.
func (h *Handler) OnMessage(c *conn.Conn, m []byte) {
	if p, ok := c.Value().(*peer); ok {
		p.receive(m)
	}
}

// OnBufferFull holds up a peer that sends requests and does not read the
// answers. Handlers on goroutines are held up in their Write.
func (h *Handler) OnBufferFull(c *conn.Conn) {
	if p, ok := c.Value().(*peer); ok && h.config.Inline {
		p.loop.set(loopFull, true)
		p.pause()
	}
}

// OnBufferDrain goes on after OnBufferFull.
func (h *Handler) OnBufferDrain(c *conn.Conn) {
	p, ok := c.Value().(*peer)
	if !ok {
		return
	}
	select {
	case p.drained() <- struct{}{}:
	default:
	}
	if p.loop.has(loopFull) {
		p.loop.set(loopFull, false)
		p.proceed()
	}
}

// OnTimer is told that a deadline is over, or that a goroutine has something
// for the loop.
func (h *Handler) OnTimer(c *conn.Conn, name string) {
	if p, ok := c.Value().(*peer); ok && name == timer {
		p.woken()
	}
}

// OnPeerClosed is told that the peer sends no more, while requests of it are
// answered: their context ends, as with net/http; what they still answer is
// sent.
func (h *Handler) OnPeerClosed(c *conn.Conn) {
	if p, ok := c.Value().(*peer); ok {
		p.peerClosed()
	}
}

// OnClose ends what the connection still has.
func (h *Handler) OnClose(c *conn.Conn, why error) {
	p, ok := c.Value().(*peer)
	if !ok {
		return
	}
	p.gone(why)
}

// released ends what h has of a connection that is over here: closed, or
// another process's.
func (h *Handler) released(c *conn.Conn) {
	if p, ok := c.Value().(*peer); ok {
		h.detach(p)
	}
}

func (h *Handler) detach(p *peer) {
	h.sweep.remove(p)
	if h.conns.Add(-1) == 0 && !h.config.Inline {
		h.pool.rest(true)
	}
}

// report tells of a panic.
func (h *Handler) report(c *conn.Conn, err *conn.PanicError) {
	if h.seat != nil {
		h.seat.Panics.Add(1)
	}
	if h.event != nil {
		h.event(conn.Event{Kind: conn.CallbackPanicked, Listener: c.Listener(), Conn: c, Peer: c.Peer(), Err: err})
	}
}
