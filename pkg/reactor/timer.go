package reactor

import "time"

// Timer is a timer of the application, made by After or Every.
type Timer struct {
	loop   *Loop
	at     time.Duration
	period time.Duration // 0: fires once
	f      func()
	index  int // in the heap; -1: not in it
}

// After calls f on the loop once, when d has passed; with d <= 0 in the next
// turn. Loop only.
func (l *Loop) After(d time.Duration, f func()) *Timer {
	t := &Timer{loop: l, at: l.clock.read() + d, f: f}
	l.timers.push(t)
	return t
}

// Every calls f on the loop each time d has passed, which must be positive. A
// loop that was held up skips the calls it has missed. Loop only.
func (l *Loop) Every(d time.Duration, f func()) *Timer {
	if d <= 0 {
		panic("reactor: Every with a period that is not positive")
	}
	t := &Timer{loop: l, at: l.clock.read() + d, period: d, f: f}
	l.timers.push(t)
	return t
}

// Stop ends the timer; f is not called any more. It says whether the timer
// was still to fire. Loop only.
func (t *Timer) Stop() bool {
	t.period = 0
	if t.index < 0 {
		return false
	}
	t.loop.timers.remove(t)
	return true
}

// Timers returns how many timers of After and Every are still to fire. Loop
// only.
func (l *Loop) Timers() int { return len(l.timers) }

// timerHeap is a heap of four children a node, by time: half as deep as a
// binary one, and the four lie side by side.
type timerHeap []*Timer

func (h timerHeap) next() (time.Duration, bool) {
	if len(h) == 0 {
		return 0, false
	}
	return h[0].at, true
}

// fire calls the timers that are due at now. Those that these calls add are
// for the next turn at the earliest.
func (h *timerHeap) fire(now time.Duration) {
	for range len(*h) {
		if len(*h) == 0 || (*h)[0].at > now {
			return
		}
		t := (*h)[0]
		h.remove(t)
		if t.period > 0 {
			t.at += t.period * ((now-t.at)/t.period + 1)
			h.push(t)
		}
		t.f()
	}
}

func (h *timerHeap) push(t *Timer) {
	t.index = len(*h)
	*h = append(*h, t)
	h.up(t.index)
}

func (h *timerHeap) remove(t *Timer) {
	i, last := t.index, len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	t.index = -1
	if i < last {
		h.down(i)
		h.up(i)
	}
}

func (h timerHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 4
		if h[parent].at <= h[i].at {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h timerHeap) down(i int) {
	for {
		first := 4*i + 1
		if first >= len(h) {
			return
		}
		least := first
		for child := first + 1; child < min(first+4, len(h)); child++ {
			if h[child].at < h[least].at {
				least = child
			}
		}
		if h[i].at <= h[least].at {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h timerHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
