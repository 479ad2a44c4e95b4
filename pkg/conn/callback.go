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

	// wary is for how long each callback is timed by itself once some were
	// slow.
	wary = time.Minute
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
// clock at the end, since the start is the end of what went before; and during
// the events of a turn, which are many and short, only after several of them.
func (s *Set) enter(c *Conn) {
	if s.unclocked == 0 {
		s.since = max(s.since, s.loop.Now())
	}
	s.note(c)
}

// leave is to be deferred: it catches the callback's panic.
func (s *Set) leave(c *Conn) {
	if v := recover(); v != nil {
		c.panicked(v)
	}
	s.unclocked, s.called = s.unclocked+1, c
	if !s.inEvents {
		s.unnote()
	} else if s.unclocked >= clockEvery || s.since < s.waryUntil {
		s.lookAtClock()
	}
}

// lookAtClock tells if the callbacks since the last look have taken too long.
// Which of several it was is not known; so for a while it is looked after each.
func (s *Set) lookAtClock() {
	if s.unclocked == 0 {
		return
	}
	now := s.loop.Clock()
	if took := now - s.since; took > slow {
		if s.unclocked > 1 {
			s.called = nil
		}
		s.noted.tellSlow(s.called, took, now)
		s.waryUntil = now + wary
	}
	s.since, s.unclocked, s.called = now, 0, nil
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
	e := Event{Kind: SlowCallback, Listener: s.Listener, Conn: c, Took: took, Skipped: s.slowSkipped}
	if c != nil {
		e.Peer = c.Peer()
	}
	s.Event(e)
	s.slowTold, s.slowSkipped = now, 0
}
