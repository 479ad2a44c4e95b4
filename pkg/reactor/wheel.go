package reactor

import (
	"math"
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

	// slotMark in row.prev says that the rest of it is a slot, of whose list
	// the row is the first. A table has fewer rows than that.
	slotMark = 1 << 31

	// expiring is the slot, in row.prev, of the list that is expiring.
	expiring = wheelSlots
)

// tickTime is a time in ticks, modulo 2^32: half a word. It is told from the
// others of a year before and after it.
type tickTime uint32

// mostTicks is the farthest deadline, a year away: what is due later is due
// then.
const mostTicks = math.MaxInt32

// after says how many ticks t comes after u.
func (t tickTime) after(u tickTime) int32 { return int32(t - u) }

// Expirer is told that its deadline is over. OnDeadline runs on the loop and
// must not block.
type Expirer interface {
	OnDeadline(now time.Duration)
}

// Arm has OnDeadline called once of the token's handler, which must be an
// Expirer, when the loop's clock has reached at, or up to 32 ms later. It
// replaces what the token was armed for. It is made for coarse deadlines that
// are pushed back all the time and hardly ever reached: moving one to a later
// time is one store. A token whose registration is over stays unarmed; one
// whose handler is no Expirer panics. Loop only.
func (l *Loop) Arm(token Token, at time.Duration) {
	r := l.table.find(token)
	if r == nil {
		return
	}
	due := l.wheel.ticks(at)
	// A later time needs no move: when the slot comes up, it goes on from there.
	if r.prev != 0 && due.after(r.at) >= 0 {
		r.at = due
		return
	}
	_ = r.handler.(Expirer) // not only once it is over
	l.wheel.unlink(r)
	r.at = due
	l.wheel.insert(token.index(), r)
}

// Disarm takes back Arm. Loop only.
func (l *Loop) Disarm(token Token) {
	if r := l.table.find(token); r != nil {
		l.wheel.unlink(r)
	}
}

// Armed says whether the token has a deadline, and when: not before what Arm
// was told, and less than 16 ms after. Loop only.
func (l *Loop) Armed(token Token) (at time.Duration, ok bool) {
	r := l.table.find(token)
	if r == nil || r.prev == 0 {
		return 0, false
	}
	return time.Duration(l.wheel.current+l.wheel.left(r.at)) * tick, true
}

// wheel is one list of rows a slot, linked by their indices, and one bit a
// slot that may have some.
type wheel struct {
	table   *table
	current int64                  // all ticks up to this one have expired
	slots   [wheelSlots + 1]uint32 // the first row's index, 0: none; the last is the list that is expiring
	marks   [wheelSlots / 64]uint64
}

func (w *wheel) init(t *table, now time.Duration) { w.table, w.current = t, int64(now/tick) }

// ticks returns the first tick that is not before at, but none that is over.
func (w *wheel) ticks(at time.Duration) tickTime {
	n := int64(at / tick)
	if at%tick > 0 {
		n++
	}
	return tickTime(min(max(n, w.current), w.current+mostTicks))
}

// left returns how many ticks are to come before t.
func (w *wheel) left(t tickTime) int64 { return int64(t.after(tickTime(w.current))) }

// insert puts a row that is not armed into the slot of its deadline.
func (w *wheel) insert(index uint32, r *row) {
	t := w.current + min(max(w.left(r.at), 1), wheelSlots-1)
	slot := uint32(t % wheelSlots)
	w.marks[slot/64] |= 1 << (slot % 64)
	first := w.slots[slot]
	w.slots[slot] = index
	r.next, r.prev = first, slotMark|slot
	if first != 0 {
		w.table.at(first).prev = index
	}
}

// unlink takes a row out of its list, if it is in one.
func (w *wheel) unlink(r *row) {
	if r.prev == 0 {
		return
	}
	if r.prev&slotMark != 0 {
		w.slots[r.prev&^slotMark] = r.next
	} else {
		w.table.at(r.prev).next = r.next
	}
	if r.next != 0 {
		w.table.at(r.next).prev = r.prev
	}
	r.next, r.prev = 0, 0
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
		w.expireSlot(uint32(slot), now)
	}
}

func (w *wheel) expireSlot(slot uint32, now time.Duration) {
	// What is not due goes back to the wheel, perhaps to this very slot.
	first := w.slots[slot]
	w.slots[expiring], w.slots[slot] = first, 0
	if first != 0 {
		w.table.at(first).prev = slotMark | expiring
	}
	for index := first; index != 0; index = w.slots[expiring] {
		r := w.table.at(index)
		w.unlink(r)
		if w.left(r.at) > 0 {
			w.insert(index, r)
			continue
		}
		r.handler.(Expirer).OnDeadline(now)
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
