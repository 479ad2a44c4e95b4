package reactor

import (
	"math/bits"
	"time"
)

const (
	// tick is the wheel's resolution: a deadline is never early and at most
	// two ticks late.
	tick = 16 * time.Millisecond

	// wheelSlots is the number of slots. What is due later than one round,
	// 65 s, is looked at once a round.
	wheelSlots = 4096
)

// Expirer is told that its deadline is over. OnDeadline runs on the loop and
// must not block.
type Expirer interface {
	OnDeadline(now time.Duration)
}

// Deadline is a place for one coarse deadline, to be embedded in what it is
// for; the zero value is not armed. It is made for deadlines that are pushed
// back all the time and hardly ever reached: moving one to a later time is
// one store. It must not be copied, and is used on its loop only.
type Deadline struct {
	next    *Deadline
	prev    **Deadline // what points here; nil: not armed
	at      time.Duration
	expirer Expirer
}

// Arm has e.OnDeadline called once, when the loop's clock has reached at, or
// up to 32 ms later. It replaces what d was armed for. Loop only.
func (l *Loop) Arm(d *Deadline, at time.Duration, e Expirer) {
	d.expirer = e
	// A later time needs no move: when the slot comes up, d goes on from there.
	if d.prev != nil && at >= d.at {
		d.at = at
		return
	}
	l.Disarm(d)
	d.at = at
	l.wheel.insert(d)
}

// Disarm takes back Arm. Loop only.
func (l *Loop) Disarm(d *Deadline) {
	if d.prev != nil {
		d.unlink()
	}
}

// Armed says whether d is to expire, and when. Loop only.
func (d *Deadline) Armed() (at time.Duration, ok bool) { return d.at, d.prev != nil }

func (d *Deadline) link(head **Deadline) {
	d.next, d.prev = *head, head
	if d.next != nil {
		d.next.prev = &d.next
	}
	*head = d
}

func (d *Deadline) unlink() {
	*d.prev = d.next
	if d.next != nil {
		d.next.prev = d.prev
	}
	d.next, d.prev = nil, nil
}

// wheel is one list of deadlines a slot, and one bit a slot that may have
// some.
type wheel struct {
	current int64     // all ticks up to this one have expired
	expired *Deadline // the list of the slot that is expiring
	slots   [wheelSlots]*Deadline
	marks   [wheelSlots / 64]uint64
}

func (w *wheel) init(now time.Duration) { w.current = int64(now / tick) }

func (w *wheel) insert(d *Deadline) {
	t := int64((d.at + tick - 1) / tick)
	t = min(max(t, w.current+1), w.current+wheelSlots-1)
	slot := t % wheelSlots
	d.link(&w.slots[slot])
	w.marks[slot/64] |= 1 << (slot % 64)
}

// expire calls what is due at now. Each call may arm and disarm any deadline.
func (w *wheel) expire(now time.Duration) {
	from, to := w.current+1, int64(now/tick)
	if to < from {
		return
	}
	w.current = to
	from = max(from, to-wheelSlots+1)
	for t := from; t <= to; t++ {
		slot := t % wheelSlots
		word, bit := &w.marks[slot/64], uint64(1)<<(slot%64)
		if *word == 0 {
			t |= 63 // on to the next word
			continue
		}
		if *word&bit == 0 {
			continue
		}
		*word &^= bit
		w.expireSlot(&w.slots[slot], now)
	}
}

func (w *wheel) expireSlot(slot **Deadline, now time.Duration) {
	// What is not due goes back to the wheel, perhaps to this very slot.
	w.expired, *slot = *slot, nil
	if w.expired != nil {
		w.expired.prev = &w.expired
	}
	for w.expired != nil {
		d := w.expired
		d.unlink()
		if d.at > now {
			w.insert(d)
			continue
		}
		d.expirer.OnDeadline(now)
	}
}

// next returns when the next slot that may hold a deadline is due.
func (w *wheel) next() (time.Duration, bool) {
	first := uint64(w.current + 1)
	for t := first; t < first+wheelSlots; t = (t | 63) + 1 { // on to the next word
		slot := t % wheelSlots
		if word := w.marks[slot/64] >> (slot % 64); word != 0 {
			return time.Duration(t+uint64(bits.TrailingZeros64(word))) * tick, true
		}
	}
	return 0, false
}
