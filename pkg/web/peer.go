package web

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// timer is the name of the timer by which others have the loop look at a
// peer.
const timer = "http"

// waiting says what a peer's deadline is for.
type waiting uint8

const (
	waitNothing waiting = iota
	waitRequest         // between two requests
	waitHead
	waitBody
)

// peer is a connection. What handlers on goroutines share with the loop is
// guarded by mu.
type peer struct {
	h    *Handler
	c    *conn.Conn
	self any // it, as c's Value

	// Owned by the loop.

	*reading // &atRest between two requests, which is not to be written to

	// Guarded by mu.

	mu    sync.Mutex
	queue requests // the first is being answered
	rare  *rare    // nil most often

	// What is small stands together, so that it takes no more than it needs.

	alarm  alarm
	loop   loopFlags // owned by the loop
	flags  flags     // guarded by mu
	waits  waiting   // what the deadline is for; guarded by mu
	secure bool      // rare has a state of TLS; set once
}

// loopFlags are those of a peer that its loop owns: a bit each, since there
// are many peers.
type loopFlags uint8

const (
	loopFull   loopFlags = 1 << iota // too much waits to be sent: nothing is parsed
	loopOver                         // nothing is parsed any more
	loopPaused                       // by us
)

func (f loopFlags) has(bits loopFlags) bool      { return f&bits != 0 }
func (f *loopFlags) set(flag loopFlags, on bool) { *f = withBits(*f, flag, on) }

// flags are those of a peer that mu guards.
type flags uint8

const (
	flagRunning flags = 1 << iota // on the pool's list, or on one of its goroutines
	flagStalled                   // the queue is full, or a request may end the protocol: nothing is parsed
	flagRest                      // the loop awaits nothing of a request that has begun
	flagPooled                    // a body comes in that is not collected
	flagHeld                      // Hold was called
	flagPartly                    // Partial was called
	flagClosing                   // nothing more is answered
)

func (f flags) has(bits flags) bool      { return f&bits != 0 }
func (f *flags) set(flag flags, on bool) { *f = withBits(*f, flag, on) }

// withBits returns all with the bits of flag, or without them.
func withBits[F ~uint8](all, flag F, on bool) F {
	if on {
		return all | flag
	}
	return all &^ flag
}

// requests are those of a connection, in their order. The zero value is none.
type requests struct {
	last *exchange // whose next is the first, and which knows how many there are
}

func (q *requests) empty() bool { return q.last == nil }

// len returns how many there are.
func (q *requests) len() int {
	if q.last == nil {
		return 0
	}
	return q.last.queued
}

// first returns the first one, nil if there is none.
func (q *requests) first() *exchange {
	if q.last == nil {
		return nil
	}
	return q.last.next
}

// push puts x behind the others.
func (q *requests) push(x *exchange) {
	x.next, x.queued = x, 1
	if q.last != nil {
		x.next, q.last.next = q.last.next, x
		x.queued += q.last.queued
	}
	q.last = x
}

// pop takes the first one out, which is there.
func (q *requests) pop() {
	first := q.last.next
	q.last.next = first.next
	if q.last.queued--; first == q.last {
		q.last = nil
	}
	first.next = nil
}

// all returns them in a slice.
func (q *requests) all() []*exchange {
	list := make([]*exchange, 0, q.len())
	for x := q.first(); len(list) < cap(list); x = x.next {
		list = append(list, x)
	}
	return list
}

// reading is how far a peer has come with its requests. Between two of them
// it has none: there is more of that than of all else.
type reading struct {
	parser   http1.Parser
	tail     []byte        // input that the parser awaits more of, or that waits
	incoming *body         // of the request whose body comes in
	inline   *inlineBody   // the same with Inline
	by       time.Duration // by when the head must be complete, or more of the body here; 0: neither has begun
}

// atRest is what peers have between two requests.
var atRest reading

// begin gives p a reading of its own. Loop only.
func (p *peer) begin(t *turn) {
	if p.reading != &atRest {
		return
	}
	if p.reading = t.reading; p.reading == nil {
		p.reading = new(reading)
	}
	t.reading = nil
}

// rests gives it back if there is nothing in it. Loop only.
func (p *peer) rests(t *turn) {
	r := p.reading
	if r == &atRest || !r.parser.Between() || r.tail != nil || r.incoming != nil || r.inline != nil || r.by != 0 {
		return
	}
	*r = reading{}
	t.reading, p.reading = r, &atRest
}

// forget drops what has come. Loop only.
func (p *peer) forget() {
	if p.reading != &atRest {
		p.tail, p.inline = nil, nil
	}
}

// rare is what few peers need; guarded by the peer's mu.
type rare struct {
	ended error                // the connection is over: why
	drain chan struct{}        // told when there is room to send again
	tls   *tls.ConnectionState // of all its requests, as with net/http; set once
}

// rareLocked returns what few peers need. It needs mu.
func (p *peer) rareLocked() *rare {
	if p.rare == nil {
		p.rare = new(rare)
	}
	return p.rare
}

// inlineBody is a request whose body is collected.
type inlineBody struct {
	head []byte // as it came
	body []byte
}

// wake has woken called on the loop. Any goroutine may call it.
func (p *peer) wake() { p.c.SetTimer(timer, 0) }

// tlsState returns what the handlers are told of TLS, nil without it. Any
// goroutine may call it.
func (p *peer) tlsState() *tls.ConnectionState {
	if !p.secure {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rare.tls
}

// drained returns the channel on which a handler waits for room.
func (p *peer) drained() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.rareLocked()
	if r.drain == nil {
		r.drain = make(chan struct{}, 1)
	}
	return r.drain
}

// receive handles input: what was left, and m behind it.
func (p *peer) receive(m []byte) {
	if p.loop.has(loopOver) {
		return
	}
	t := p.h.newTurn()
	p.begin(t)
	in, own := m, false
	if len(p.tail) > 0 {
		p.tail = append(p.tail, m...)
		in, own = p.tail, true
	}
	used := p.parse(t, in)
	switch rest := in[used:]; {
	case p.loop.has(loopOver) || len(rest) == 0:
		p.tail = nil
	case own:
		p.tail = p.tail[:copy(p.tail, rest)]
	default:
		p.tail = append([]byte(nil), rest...)
	}
	_ = t.flush(p) // an error has closed the connection
	p.settle(t.now)
	p.rests(t)
	if t.done > 1 && p.h.seat != nil {
		p.h.seat.Messages.Add(uint64(t.done - 1)) // the connection has counted the read
	}
	t.free()
}

// blocked says whether parsing waits for something.
func (p *peer) blocked() bool {
	if p.loop.has(loopFull | loopOver) {
		return true
	}
	if p.h.config.Inline {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.queue.empty() && p.parser.InHead() && p.c.Leaving() {
		p.flags.set(flagStalled, true) // what comes next is for another process
	}
	return p.flags.has(flagStalled | flagClosing)
}

// parse handles what in holds and returns how much of it that was.
func (p *peer) parse(t *turn, in []byte) (used int) {
	for !p.blocked() {
		advance, kind, data, err := p.parser.Next(&p.h.limits.Wire, &t.head, in[used:])
		used += advance
		if err != nil {
			status, reason := 400, err.Error()
			if e, ok := errors.AsType[*http1.Error](err); ok {
				status, reason = e.Status, e.Reason
			}
			p.refuse(t, status, reason)
			return used
		}
		switch kind {
		case http1.More:
			if p.by == 0 && p.parser.InHead() && used < len(in) {
				p.by = later(t.now, p.h.limits.HeadTimeout)
			}
			return used
		case http1.RequestHead:
			p.by = 0
			if t.head.HasBody() {
				p.by = later(t.now, p.h.limits.BodyTimeout)
			}
			if s, ok := p.stream(&t.head); ok {
				if p.stallBehindAnswers() {
					p.parser = http1.Parser{}
					return used - advance
				}
				p.turnInto(t, s, in[used-advance:], advance)
				return len(in)
			}
			p.head(t)
		case http1.BodyPart:
			p.extend(t.now, len(data))
			p.part(t, data)
		case http1.BodyEnd:
			p.by = 0
			p.end(t, data)
		}
	}
	return used
}

// stream says whether the request is for one of Config.Streams.
func (p *peer) stream(h *http1.Head) (Stream, bool) {
	if len(p.h.config.Streams) == 0 || h.HasBody() || string(h.Method) != http.MethodGet {
		return Stream{}, false
	}
	path, _, _ := bytes.Cut(h.Target, []byte("?"))
	s, ok := p.h.config.Streams[string(path)]
	return s, ok && (h.Upgrade || !s.Upgrade)
}

// stallBehindAnswers says whether requests are being answered, and if so has
// nothing parsed before that is over.
func (p *peer) stallBehindAnswers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flags.set(flagStalled, !p.queue.empty())
	return p.flags.has(flagStalled)
}

// turnInto makes the connection a stream: in begins with the head, of n bytes,
// of the request for it.
func (p *peer) turnInto(t *turn, s Stream, in []byte, n int) {
	var request *http.Request
	if s.Begin != nil {
		x := newExchange(p, t)
		if x == nil {
			p.refuse(t, 400, "")
			return
		}
		request = x.request
		in = in[n:]
	}
	if t.flush(p) != nil {
		return
	}
	p.loop.set(loopOver, true)
	p.tail = nil
	p.h.detach(p)
	p.c.SetValue(nil)
	p.mu.Lock()
	p.keepLocked(false, false)
	p.mu.Unlock()
	if s.Begin != nil {
		s.Begin(p.c, request)
	}
	if err := p.c.Become(s.Conn.ProtocolName, in); err != nil {
		p.c.CloseNow(fmt.Errorf("web: %w", err))
	}
}

// later is now+d, or never.
func later(now, d time.Duration) time.Duration {
	if d == never {
		return never
	}
	return now + d
}

// extend gives the peer the time that n bytes of a body are worth.
func (p *peer) extend(now time.Duration, n int) {
	if p.by != never {
		worth := time.Duration(n) * time.Second / time.Duration(p.h.limits.BodyRate)
		p.by = min(p.by+worth, now+p.h.limits.BodyTimeout)
	}
}

// head begins a request.
func (p *peer) head(t *turn) {
	h := &t.head
	if h.ContentLength > p.h.limits.Body {
		p.refuse(t, 413, "")
		return
	}
	continues := false
	if len(h.Expect) > 0 {
		if continues = http1.HasToken([]string{string(h.Expect)}, "100-continue"); !continues {
			p.refuse(t, 417, "")
			return
		}
		continues = continues && h.Minor == 1 && h.HasBody()
	}
	if p.h.config.Inline {
		p.headInline(t, continues)
		return
	}
	x := newExchange(p, t)
	if x == nil {
		p.refuse(t, 400, "")
		return
	}
	if h.HasBody() {
		x.body = newBody(p, x.request, h.ContentLength, continues)
		x.request.Body = x.body
		p.incoming = x.body
	}
	p.enqueue(t, x)
}

func (p *peer) headInline(t *turn, continues bool) {
	h := &t.head
	if h.HasBody() {
		if continues {
			t.out = append(t.out, http1.Continue...)
		}
		p.inline = &inlineBody{head: append([]byte(nil), h.Raw...)}
		return
	}
	if x := newExchange(p, t); x != nil {
		p.serveInline(t, x)
	} else {
		p.refuse(t, 400, "")
	}
}

// part takes a part of the incoming body.
func (p *peer) part(t *turn, data []byte) {
	if in := p.inline; in != nil {
		if int64(len(in.body)+len(data)) > p.h.limits.Body {
			p.refuse(t, 413, "")
			return
		}
		in.body = append(in.body, data...)
		return
	}
	if p.incoming == nil {
		return
	}
	if err := p.incoming.put(data); err != nil {
		p.incoming = nil
		p.loop.set(loopOver, true)
		p.finish(err)
	}
}

// end completes the incoming body.
func (p *peer) end(t *turn, trailer []byte) {
	if in := p.inline; in != nil {
		p.inline = nil
		x := newExchangeOf(p, t, in, trailer)
		if x == nil {
			p.refuse(t, 400, "")
			return
		}
		p.serveInline(t, x)
		return
	}
	if p.incoming != nil {
		p.incoming.end(trailer)
		p.incoming = nil
	}
}

// refuse answers the stream, which cannot be read any further, behind the
// answers to what came before; status 0: without an answer.
func (p *peer) refuse(t *turn, status int, reason string) {
	p.loop.set(loopOver, true)
	p.forget()
	err := fmt.Errorf("web: request refused: %d %s", status, reason)
	if p.incoming != nil {
		// Its handler runs, or will: that gives the answer.
		p.incoming.fail(err)
		p.incoming = nil
		p.finish(err)
		return
	}
	p.mu.Lock()
	if !p.queue.empty() {
		p.queue.push(&exchange{p: p, status: status, reason: reason, why: err})
		p.mu.Unlock()
		return
	}
	p.flags.set(flagClosing, true)
	p.mu.Unlock()
	if t.flush(p) != nil {
		return
	}
	if status == 0 {
		_ = p.c.Close(err)
		return
	}
	_ = p.c.Close(err, http1.AppendError(nil, status, reason, time.Now()))
}

// finish closes the connection when what is being answered has been.
func (p *peer) finish(why error) {
	p.mu.Lock()
	idle := p.queue.empty()
	if idle {
		p.flags.set(flagClosing, true)
	} else {
		p.queue.push(&exchange{p: p, why: why})
	}
	p.mu.Unlock()
	if idle {
		_ = p.c.Close(why)
	}
}

// enqueue has a request answered by a goroutine.
func (p *peer) enqueue(t *turn, x *exchange) {
	p.mu.Lock()
	start := p.queue.empty() && !p.flags.has(flagRunning)
	if start && !p.h.pool.submit(p, false) {
		p.mu.Unlock()
		x.handler = busy
		p.serveInline(t, x)
		return
	}
	t.done++
	p.flags.set(flagRunning, true)
	p.queue.push(x)
	p.flags.set(flagStalled, p.queue.len() >= p.h.limits.Pipeline)
	p.mu.Unlock()
}

// serveInline answers a request on the loop.
func (p *peer) serveInline(t *turn, x *exchange) {
	t.done++
	x.response.turn = t
	closing := x.serve(nil)
	x.response.turn = nil
	if x.body != nil {
		x.body.abandon()
	}
	if len(t.out) >= outHigh || !p.h.config.Inline { // there, others may send next
		_ = t.flush(p) // an error has closed the connection
		if p.c.Queued() > p.h.sendHigh {
			p.loop.set(loopFull, true)
		}
	}
	if !closing {
		t.keep(x)
		return
	}
	p.loop.set(loopOver, true)
	if t.flush(p) == nil {
		x.end()
	}
}

// run answers up to n requests and says whether there may be more. It runs on
// a goroutine of the pool.
func (p *peer) run(r *runner, n int) (more bool) {
	for range n {
		p.mu.Lock()
		if p.queue.empty() || p.flags.has(flagClosing) {
			p.flags.set(flagRunning, false)
			p.mu.Unlock()
			return false
		}
		x := p.queue.first()
		p.mu.Unlock()
		returned := false
		func() {
			defer func() {
				if !returned {
					p.answered(x, true) // runtime.Goexit
				}
			}()
			closing := x.serve(r)
			returned = true
			p.answered(x, closing)
		}()
	}
	return true
}

// answered goes on behind a request.
func (p *peer) answered(x *exchange, closing bool) {
	if x.body != nil {
		x.body.abandon()
	}
	p.mu.Lock()
	p.queue.pop()
	wake := false
	switch {
	case closing:
		p.flags.set(flagClosing, true)
	case p.flags.has(flagStalled) && p.queue.len() <= p.h.limits.Pipeline/2:
		p.flags.set(flagStalled, false)
		wake = true
	}
	if p.queue.empty() {
		p.restLocked(p.h.clock()) // if not at rest, the loop has set a deadline
	}
	p.mu.Unlock()
	if closing {
		x.end()
	}
	if wake {
		p.wake()
	}
}

// settle looks what is awaited now. Loop only.
func (p *peer) settle(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flags.set(flagRest, p.parser.Between() && len(p.tail) == 0 && p.inline == nil)
	p.flags.set(flagPooled, !p.parser.InHead() && p.inline == nil)
	pause := !p.loop.has(loopOver) && (p.loop.has(loopFull) || p.flags.has(flagStalled) || p.incoming.isFull())
	switch {
	case pause:
		p.pause()
	case p.loop.has(loopPaused):
		p.loop.set(loopPaused, false)
		if !p.parser.InHead() {
			p.by = later(now, p.h.limits.BodyTimeout) // it was not the peer who was slow
		}
		p.c.Resume()
	}
	switch {
	case p.restLocked(now):
	case p.flags.has(flagRest | flagClosing), p.loop.has(loopPaused | loopOver):
		p.awaitLocked(waitNothing, never)
	case !p.parser.InHead():
		p.awaitLocked(waitBody, p.by)
	case p.by != 0:
		p.awaitLocked(waitHead, p.by)
	default:
		p.awaitLocked(waitNothing, never)
	}
}

func (p *peer) pause() {
	if !p.loop.has(loopPaused) {
		p.loop.set(loopPaused, true)
		p.c.Pause()
	}
}

// restLocked notes what of a request is there, which says whether the
// connection may be closed, or given away; if there is nothing, the next one
// is awaited, and it returns true. It needs mu.
func (p *peer) restLocked(now time.Duration) bool {
	busy := !p.queue.empty() || p.flags.has(flagClosing|flagPooled)
	p.keepLocked(busy, !busy && !p.flags.has(flagRest))
	idle := !busy && p.flags.has(flagRest)
	if idle {
		p.awaitLocked(waitRequest, later(now, p.h.limits.IdleTimeout))
	}
	return idle
}

// keepLocked keeps the connection here, by Hold, or from being closed between
// two requests, by Partial. It needs mu.
func (p *peer) keepLocked(here, partly bool) {
	if p.endedLocked() != nil {
		return
	}
	// What is new comes first, so that it is not let go of in between.
	if partly && !p.flags.has(flagPartly) {
		p.c.Partial(true)
	}
	if here != p.flags.has(flagHeld) {
		p.flags.set(flagHeld, here)
		if !here {
			p.c.Release()
		} else if p.c.Hold() != nil {
			p.flags.set(flagHeld, false) // it is over
		}
	}
	if !partly && p.flags.has(flagPartly) {
		p.c.Partial(false)
	}
	p.flags.set(flagPartly, partly)
}

// awaitLocked sets the deadline and what it is for. It needs mu.
func (p *peer) awaitLocked(w waiting, at time.Duration) {
	p.waits = w
	p.h.sweep.set(p, at)
}

// woken looks what there is to do. Loop only.
func (p *peer) woken() {
	p.mu.Lock()
	waits, over := p.waits, p.alarm.at.time() <= p.h.clock()
	p.mu.Unlock()
	if over && waits != waitNothing {
		p.expire(waits)
		return
	}
	p.proceed()
}

// proceed goes on with input that was held up. Loop only.
func (p *peer) proceed() {
	if !p.loop.has(loopOver) && len(p.tail) > 0 && !p.blocked() {
		p.receive(nil)
		return
	}
	p.settle(p.h.clock())
}

// expire acts on a deadline that is over. Loop only.
func (p *peer) expire(waits waiting) {
	t := p.h.newTurn()
	defer t.free()
	switch {
	case waits == waitRequest:
		p.mu.Lock()
		p.flags.set(flagClosing, true)
		p.mu.Unlock()
		p.loop.set(loopOver, true)
		_ = p.c.Close(conn.ErrIdle)
		return
	case waits == waitBody && p.incoming == nil && p.inline == nil:
		p.loop.set(loopOver, true)
		p.finish(conn.ErrMessageDeadline) // the rest of a body that nobody reads
	default:
		p.refuse(t, 408, "")
	}
	p.settle(t.now)
}

// peerClosed ends the contexts of what is being answered, and what will not
// be complete any more. Loop only.
func (p *peer) peerClosed() {
	if p.loop.has(loopOver) {
		return
	}
	if !p.parser.Between() {
		p.loop.set(loopOver, true)
		p.forget()
		if p.incoming != nil {
			p.incoming.fail(errCut)
			p.incoming = nil
		}
		p.finish(conn.ErrPeerClosed)
	}
	p.mu.Lock()
	queue := p.queue.all()
	p.mu.Unlock()
	for _, x := range queue {
		x.ctx.cancel()
	}
}

// gone is told that the connection is over.
func (p *peer) gone(why error) {
	if why == nil {
		why = conn.ErrClosed
	}
	p.loop.set(loopOver, true)
	p.forget()
	p.mu.Lock()
	r := p.rareLocked()
	r.ended = why
	p.flags.set(flagClosing, true)
	queue := p.queue.all()
	drain := r.drain
	p.mu.Unlock()
	if p.incoming != nil {
		p.incoming.fail(errCut)
		p.incoming = nil
	}
	for _, x := range queue {
		x.ctx.cancel()
	}
	if drain != nil {
		select {
		case drain <- struct{}{}:
		default:
		}
	}
}

// endedWith returns why nothing can be sent, nil if it can.
func (p *peer) endedWith() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.endedLocked()
}

func (p *peer) endedLocked() error {
	if p.rare == nil {
		return nil
	}
	return p.rare.ended
}
