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
	at    atomic.Int64 // time of the handler's clock, never: none
	armed atomic.Int64 // for when it is in the sweep's heap, never: it is not
	place int32        // in the heap; guarded by the sweep's mu
}

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
	a.at.Store(int64(at))
	// The sweep stores armed before it reads at: one of the two sees the other.
	if int64(at) < a.armed.Load() {
		s.arm(p, at)
	}
}

func (s *sweep) arm(p *peer, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &p.alarm
	if a.armed.Load() == int64(never) {
		a.armed.Store(int64(at))
		heap.Push(&s.heap, p)
	} else if int64(at) < a.armed.Load() {
		a.armed.Store(int64(at))
		heap.Fix(&s.heap, int(a.place))
	}
	s.startLocked()
}

// startLocked has the timer fire for the first of the heap. It needs mu.
func (s *sweep) startLocked() {
	first := never
	if len(s.heap) > 0 {
		first = time.Duration(s.heap[0].alarm.armed.Load())
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
	for len(s.heap) > 0 && s.heap[0].alarm.armed.Load() <= int64(now) {
		p := s.heap[0]
		a := &p.alarm
		heap.Pop(&s.heap)
		a.armed.Store(int64(never))
		at := a.at.Load()
		switch {
		case at <= int64(now):
			due = append(due, p)
		case at != int64(never):
			a.armed.Store(at)
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
	a.at.Store(int64(never))
	if a.armed.Load() != int64(never) {
		heap.Remove(&s.heap, int(a.place))
	}
	a.armed.Store(0) // not to be armed any more
	if len(s.heap) == 0 && s.timer != nil {
		s.timer.Stop()
		s.next = never
	}
}

// alarms is a heap of peers by the time for which they are armed.
type alarms []*peer

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].alarm.armed.Load() < h[j].alarm.armed.Load() }
func (h alarms) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].alarm.place, h[j].alarm.place = int32(i), int32(j)
}

// Push is for package heap.
func (h *alarms) Push(x any) {
	p := x.(*peer)
	p.alarm.place = int32(len(*h))
	*h = append(*h, p)
}

// Pop is for package heap.
func (h *alarms) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return p
}
