package web

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

// sweepStep is how exact a deadline is.
const sweepStep = 20 * time.Millisecond

// alarm is the deadline of one peer. Moving it to a later time, which is what
// nearly every request does, is one store: when the time comes for which it
// is armed, the sweep looks at what it is by then.
type alarm struct {
	at    moment // never: none
	armed moment // for when it is in the sweep's heap, never: it is not
	place int32  // in the heap; guarded by the sweep's mu
}

// moment is a time of the handler's clock, in steps of sweepStep, rounded up,
// so that it takes 4 bytes. It is never if it is more than two years after the
// clock's start.
type moment struct{ steps atomic.Uint32 }

const neverSteps = 1<<32 - 1

func stepsOf(at time.Duration) uint32 {
	if at >= neverSteps*sweepStep-sweepStep {
		return neverSteps
	}
	return uint32((max(at, 0) + sweepStep - 1) / sweepStep)
}

func timeOf(steps uint32) time.Duration {
	if steps == neverSteps {
		return never
	}
	return time.Duration(steps) * sweepStep
}

func (m *moment) set(at time.Duration) { m.steps.Store(stepsOf(at)) }
func (m *moment) time() time.Duration  { return timeOf(m.steps.Load()) }

// sweep tells peers that their deadline is over. It has one timer, which runs
// only while there is a deadline.
type sweep struct {
	clock func() time.Duration

	mu    sync.Mutex
	heap  alarms
	timer *time.Timer
	next  time.Duration // when timer fires; never: it does not
}

func (s *sweep) init(clock func() time.Duration) { s.clock, s.next = clock, never }

// set moves p's deadline. Any goroutine may call it.
func (s *sweep) set(p *peer, at time.Duration) {
	a := &p.alarm
	a.at.set(at)
	// The sweep stores armed before it reads at: one of the two sees the other.
	if at = a.at.time(); at < a.armed.time() {
		s.arm(p, at)
	}
}

func (s *sweep) arm(p *peer, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &p.alarm
	if armed := a.armed.time(); armed == never {
		a.armed.set(at)
		heap.Push(&s.heap, p)
	} else if at < armed {
		a.armed.set(at)
		heap.Fix(&s.heap, int(a.place))
	}
	s.startLocked()
}

// startLocked has the timer fire for the first of the heap. It needs mu.
func (s *sweep) startLocked() {
	first := never
	if s.heap.count > 0 {
		first = s.heap.at(0).alarm.armed.time()
	}
	if first >= s.next {
		return
	}
	s.next = first
	d := max(first-s.clock(), 0) + sweepStep
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.fire)
	} else {
		s.timer.Reset(d)
	}
}

// fire looks at those whose time has come. The peers are told on the loop,
// behind the events of its turn, so that what was sent in time is read first.
func (s *sweep) fire() {
	var due []*peer
	s.mu.Lock()
	now := s.clock()
	s.next = never
	for s.heap.count > 0 && s.heap.at(0).alarm.armed.time() <= now {
		p := s.heap.at(0)
		a := &p.alarm
		heap.Pop(&s.heap)
		a.armed.set(never)
		switch at := a.at.time(); {
		case at <= now:
			due = append(due, p)
		case at != never:
			a.armed.set(at)
			heap.Push(&s.heap, p)
		}
	}
	s.startLocked()
	s.mu.Unlock()
	for _, p := range due {
		p.wake()
	}
}

// remove takes p out for good.
func (s *sweep) remove(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &p.alarm
	a.at.set(never)
	if a.armed.time() != never {
		heap.Remove(&s.heap, int(a.place))
	}
	a.armed.set(0) // not to be armed any more
	if s.heap.count == 0 && s.timer != nil {
		s.timer.Stop()
		s.next = never
	}
}

// alarmPage is how many peers a page of alarms has: 32 KiB, which is what it
// takes. The allocator rounds 4 KiB of pointers up to 4864 bytes.
const alarmPage = 4096

// alarms is a heap of peers by the time for which they are armed. It grows and
// shrinks by pages: one slice would leave, when it grows, as much garbage as it holds.
type alarms struct {
	pages []*[alarmPage]*peer // one more than needed at most
	count int
}

func (h *alarms) place(i int) **peer { return &h.pages[i/alarmPage][i%alarmPage] }
func (h *alarms) at(i int) *peer     { return *h.place(i) }

func (h *alarms) Len() int           { return h.count }
func (h *alarms) Less(i, j int) bool { return h.at(i).alarm.armed.time() < h.at(j).alarm.armed.time() }
func (h *alarms) Swap(i, j int) {
	a, b := h.place(i), h.place(j)
	*a, *b = *b, *a
	(*a).alarm.place, (*b).alarm.place = int32(i), int32(j)
}

// Push is for package heap.
func (h *alarms) Push(x any) {
	p := x.(*peer)
	if h.count == len(h.pages)*alarmPage {
		h.pages = append(h.pages, new([alarmPage]*peer))
	}
	p.alarm.place = int32(h.count)
	*h.place(h.count) = p
	h.count++
}

// Pop is for package heap.
func (h *alarms) Pop() any {
	h.count--
	last := h.at(h.count)
	*h.place(h.count) = nil
	if spare := len(h.pages) - 1; spare*alarmPage >= h.count+alarmPage {
		h.pages[spare] = nil
		h.pages = h.pages[:spare]
	}
	return last
}
