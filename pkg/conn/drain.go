package conn

import (
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"golang.org/x/sys/unix"
)

// DrainMode is a way of ending all connections.
type DrainMode int

const (
	// DrainPatient serves on until the peers close. In the second half of
	// the grace the connections are closed one after the other, each at a
	// message boundary, so that not all clients come back at the same time.
	DrainPatient DrainMode = iota

	// DrainPrompt closes at once the connections at a message boundary, and
	// the others as soon as they get there.
	DrainPrompt

	// DrainStop is DrainPrompt for a service that ends: the connections end
	// with ErrStopping, so that their peers are not asked to come back.
	DrainStop
)

// drainSteps is into how many steps the second half of a patient grace is
// cut, though none is shorter than minDrainStep.
const (
	drainSteps   = 100
	minDrainStep = 10 * time.Millisecond
)

// drain is a drain that goes on.
type drain struct {
	outgoing   bool // of the connections that Dialers have made
	mode       DrainMode
	why        error
	start, end time.Duration
	timer      *reactor.Timer
	list       []*Conn // those to be closed, once that has begun
	next       int     // in list
	done       []func()
}

// Drain ends all connections that were accepted, and those that are accepted meanwhile, with
// ErrDrained, in the given way; what is left after grace is closed at once,
// wherever it is. A connection is at a message boundary if the peer has sent
// nothing that is not handled, no callback runs or waits for the Pool, and
// all replies have left. done, which may be nil, is called on the loop when
// no connection is left; their OnClose may still run on the Pool then. A
// second Drain replaces mode and grace of the first, and both done are
// called. Outgoing connections are left alone, save the other ends of pipes.
// Loop only, and not in a callback.
func (s *Set) Drain(mode DrainMode, grace time.Duration, done func()) {
	s.startDrain(&s.drain, false, mode, grace, done)
}

// DrainOutgoing is Drain for the outgoing connections, which end with
// ErrDrained in any mode. Attempts to connect end
// with ErrDrained, and no more are made. It is meant to come behind Drain: as
// long as others are served, they may need them.
func (s *Set) DrainOutgoing(mode DrainMode, grace time.Duration, done func()) {
	s.stopDials()
	s.startDrain(&s.last, true, mode, grace, done)
}

// drainOf returns the drain that c is part of, nil if there is none.
func (s *Set) drainOf(c *Conn) *drain {
	if c.cfg.dialer != nil {
		return s.last
	}
	return s.drain
}

// has says whether c is part of the drain.
func (d *drain) has(c *Conn) bool { return d.outgoing == (c.cfg.dialer != nil) }

// left returns how many connections are part of the drain.
func (d *drain) left(s *Set) int {
	if d.outgoing {
		return s.outgoing
	}
	return s.conns.count - s.outgoing
}

func (s *Set) startDrain(running **drain, outgoing bool, mode DrainMode, grace time.Duration, done func()) {
	d := *running
	if d == nil {
		d = &drain{outgoing: outgoing}
		*running = d
	} else {
		d.timer.Stop()
	}
	if done != nil {
		d.done = append(d.done, done)
	}
	switch {
	case mode == DrainStop && !outgoing:
		d.why = ErrStopping
	case d.why == nil:
		d.why = ErrDrained
	}
	if mode == DrainStop {
		mode = DrainPrompt
	}
	d.mode = mode
	d.start = s.loop.Clock()
	d.end = d.start + grace
	d.timer = s.loop.Every(max(grace/2/drainSteps, minDrainStep), func() { s.drainStep(d) })
	if mode == DrainPrompt {
		s.Each(func(c *Conn) {
			if d.has(c) {
				c.drainAtBoundary()
			}
		})
	}
	s.drainStep(d)
	s.drained()
}

// drainStep closes those whose time has come.
func (s *Set) drainStep(d *drain) {
	now := s.loop.Clock()
	half := max((d.end-d.start)/2, 1)
	switch late := now - d.start - half; {
	case now >= d.end:
		for i := s.conns.count - 1; i >= 0; i-- {
			// A frozen one is perhaps another process's already; if it comes
			// back, the next step finds it.
			if c := s.conns.at(i); d.has(c) && !c.has(flagFrozen) {
				c.cut(d.why)
			}
		}
	case d.mode == DrainPatient && late >= 0:
		if d.list == nil {
			s.Each(func(c *Conn) {
				if d.has(c) {
					d.list = append(d.list, c)
				}
			})
		}
		for upTo := int(int64(len(d.list)) * int64(late) / int64(half)); d.next < upTo; d.next++ {
			d.list[d.next].drainAtBoundary()
		}
	}
}

// drainAtBoundary has c closed at its next message boundary.
func (c *Conn) drainAtBoundary() {
	c.due = true
	c.mark(0, 0)
}

// joined is told of a connection that was accepted during the drain.
func (d *drain) joined(c *Conn) {
	switch {
	case d == nil:
	case d.mode == DrainPrompt:
		c.drainAtBoundary()
	case d.list != nil:
		d.list = append(d.list, c)
	}
}

// drained ends the drains of which no connection is left.
func (s *Set) drained() {
	for _, running := range []**drain{&s.drain, &s.last} {
		d := *running
		if d == nil || d.left(s) > 0 {
			continue
		}
		*running = nil
		d.timer.Stop()
		for _, done := range d.done {
			s.loop.AtTurnEnd(done)
		}
	}
}

// atBoundary says whether an open connection on which no callback runs is at
// a message boundary.
func (c *Conn) atBoundary() bool {
	if c.in != nil || c.buffered() > 0 || !c.outEmpty() || c.onHold() || c.handshaking() {
		return false
	}
	if l := c.layered(); l != nil && l.in != nil {
		return false
	}
	// Bytes that the kernel has and that were not read yet.
	n, err := unix.IoctlGetInt(int(c.fd), unix.TIOCINQ)
	return err != nil || n == 0
}
