package conn

import (
	"sync/atomic"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// counts are what the events of a turn add to a seat's counters: one atomic
// instruction a turn instead of one a message.
type counts struct {
	seat              *scoreboard.Seat // nil: nothing is counted
	in, out, messages uint64
}

// of returns the counts for a seat. The caller adds to them between
// beginEvents and the end of the events. Loop only.
func (s *Set) countsOf(seat *scoreboard.Seat) *counts {
	if s.counts.seat != seat {
		s.counts.publish()
		s.counts.seat = seat
	}
	return &s.counts
}

func (c *counts) publish() {
	if c.seat == nil {
		return
	}
	if c.in > 0 {
		c.seat.BytesIn.Add(c.in)
	}
	if c.out > 0 {
		c.seat.BytesOut.Add(c.out)
	}
	if c.messages > 0 {
		c.seat.Messages.Add(c.messages)
	}
	*c = counts{}
}

// beginEvents is called before a descriptor's event is acted on.
func (s *Set) beginEvents() {
	if !s.inEvents {
		s.inEvents = true
		s.loop.AfterEvents(s.eventsOver)
	}
}

// afterEvents publishes what the turn's events have left to be.
func (s *Set) afterEvents() {
	s.inEvents = false
	s.counts.publish()
	s.unnote()
}

// addTo adds to a count that only the loop adds to, and anyone reads, by a
// plain store: it costs a fraction of an atomic one, and a word is stored whole
// all the same.
//
//go:norace
func addTo(count *atomic.Uint64, n int) {
	p := (*uint64)(unsafe.Pointer(count))
	*p += uint64(n)
}

// note tells the seat that a callback of c runs on the loop. During the
// events of a turn, which are many and short, the seat is told of the first
// one's time only, and of the end after all of them.
func (s *Set) note(c *Conn) {
	if s.noted == c.cfg {
		c.cfg.Seat.MoveHandler(c.ID())
		return
	}
	s.unnote()
	c.cfg.Seat.SetHandler(c.cfg.Listener, c.ID(), int64(s.since))
	s.noted = c.cfg
}

// unnote tells the seat that no callback runs.
func (s *Set) unnote() {
	if s.noted != nil {
		s.lookAtClock()
		s.noted.Seat.ClearHandler()
		s.noted = nil
	}
}
