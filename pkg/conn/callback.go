package conn

import (
	"runtime/debug"
	"time"
)

// slow is how long Inline callbacks may hold the loop before it is told;
// slowEvery is how often that is told.
const (
	slow      = 10 * time.Millisecond
	slowEvery = time.Second
)

// eventKind tells which callback an event is for.
type eventKind uint8

const (
	connected eventKind = iota
	adopted
	message
	bufferFull
	bufferDrain
	timerOver
	left
	closed
)

// event is a callback that is due.
type event struct {
	kind    eventKind
	message *buffer // of message
	timer   *timer  // of timerOver
	reason  Reason  // of adopted
	slot    int     // of left
	why     error   // of closed
}

// deliver has an event's callback called: now if Inline, else by the Pool.
// Loop only, and in no callback.
func (c *Conn) deliver(ev event) {
	if !c.cfg.Inline {
		c.push(ev)
		return
	}
	c.set.enter(c)
	defer c.set.leave(c)
	c.call(ev)
}

// call calls an event's callback.
func (c *Conn) call(ev event) {
	h := c.cfg.Handler
	switch ev.kind {
	case connected:
		h.OnConnect(c)
	case adopted:
		h.OnAdopt(c, ev.reason)
	case message:
		c.message(ev.message.bytes())
	case bufferFull:
		if c.piped() == nil {
			h.OnBufferFull(c)
		}
	case bufferDrain:
		if c.piped() == nil {
			h.OnBufferDrain(c)
		}
	case timerOver:
		if c.takeTimer(ev.timer) {
			h.OnTimer(c, ev.timer.name)
		}
	case left:
		c.cfg.OnLeave(c, ev.slot)
	case closed:
		h.OnClose(c, ev.why)
	}
}

// enter and leave stand around the callbacks of c on the loop. They read the
// clock once, at the end: the start is the end of what went before.
func (s *Set) enter(c *Conn) {
	s.since = max(s.since, s.loop.Now())
	s.note(c)
}

// leave is to be deferred: it catches the callback's panic.
func (s *Set) leave(c *Conn) {
	if v := recover(); v != nil {
		c.panicked(v)
	}
	if !s.inEvents {
		s.unnote()
	}
	now := s.loop.Clock()
	if took := now - s.since; took > slow {
		c.cfg.tellSlow(c, took, now)
	}
	s.since = now
}

// panicked ends c. It runs on the stack that panicked.
func (c *Conn) panicked(value any) {
	err := &PanicError{Value: value, Stack: debug.Stack()}
	c.cfg.Seat.Panics.Add(1)
	if c.cfg.Farewell != nil {
		c.end(err)
	} else {
		c.CloseNow(err)
	}
	if c.cfg.Event != nil {
		c.cfg.Event(Event{Kind: CallbackPanicked, Listener: c.Listener(), Conn: c, Peer: c.Peer(), Err: err})
	}
}

func (s *settings) tellSlow(c *Conn, took, now time.Duration) {
	if s.Event == nil {
		return
	}
	if now-s.slowTold < slowEvery {
		s.slowSkipped++
		return
	}
	s.Event(Event{Kind: SlowCallback, Listener: c.Listener(), Conn: c, Peer: c.Peer(), Took: took, Skipped: s.slowSkipped})
	s.slowTold, s.slowSkipped = now, 0
}
