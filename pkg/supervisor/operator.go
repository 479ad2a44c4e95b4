package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/control"
)

var errBehind = errors.New("events come faster than they are read")

// verb is what an operator asks of one slot.
type verb struct {
	slot    control.SlotRequest
	do      func(*Supervisor, *slot, chan error)
	verdict chan error // buffered for one
}

func (verb) isMessage() {}

// Recycle replaces a slot's worker by a new one of the same generation: the
// new one first, then the old one drains. It returns when the new one serves,
// or why it does not; then the old one stays. Any goroutine may call it.
func (s *Supervisor) Recycle(ctx context.Context, r control.SlotRequest) error {
	return s.slotVerb(ctx, r, (*Supervisor).recycle)
}

// Drain has a slot's worker finish what is open and leave, and keeps the slot
// empty until Resume. It returns when the worker has been told. Any goroutine
// may call it.
func (s *Supervisor) Drain(ctx context.Context, r control.SlotRequest) error {
	return s.slotVerb(ctx, r, (*Supervisor).holdSlot)
}

// Resume fills a slot again that Drain has emptied. It returns when its
// worker serves, or why it does not. Any goroutine may call it.
func (s *Supervisor) Resume(ctx context.Context, r control.SlotRequest) error {
	return s.slotVerb(ctx, r, (*Supervisor).resumeSlot)
}

func (s *Supervisor) slotVerb(ctx context.Context, r control.SlotRequest, do func(*Supervisor, *slot, chan error)) error {
	m := verb{slot: r, do: do, verdict: make(chan error, 1)}
	if err := s.ask(ctx, m); err != nil {
		return err
	}
	select {
	case err := <-m.verdict:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return errNotRunning
	}
}

// obey finds the slot and does what is asked, unless something else is under
// way that it would disturb.
func (s *Supervisor) obey(m verb) {
	switch {
	case m.slot.Pool != "" && m.slot.Pool != poolName:
		m.verdict <- fmt.Errorf("%w: no pool %q, there is %q", control.ErrInvalid, m.slot.Pool, poolName)
	case m.slot.Slot < 0 || m.slot.Slot >= len(s.pool.slots):
		m.verdict <- fmt.Errorf("%w: no worker %d, there are 0 to %d", control.ErrInvalid, m.slot.Slot, len(s.pool.slots)-1)
	case s.phase != running:
		m.verdict <- errors.New("the service starts or stops")
	case s.job != nil:
		m.verdict <- errors.New("a reload is under way")
	default:
		m.do(s, s.pool.slots[m.slot.Slot], m.verdict)
	}
}

func (s *Supervisor) recycle(sl *slot, verdict chan error) {
	if sl.place != serving {
		verdict <- fmt.Errorf("worker %d is %s", sl.index, sl.place)
		return
	}
	sl.waiting = append(sl.waiting, verdict)
	s.tell(EventRecycling, "asked for", sl.current)
	s.occur(sl, replace)
}

func (s *Supervisor) holdSlot(sl *slot, verdict chan error) {
	switch {
	case sl.place == held:
		verdict <- fmt.Errorf("worker %d is drained already", sl.index)
	case s.occupied() <= 1:
		verdict <- errors.New("it is the last worker: stop the service instead")
	default:
		s.tellSlot(EventHeld, "drained by the operator", sl)
		s.occur(sl, hold)
		verdict <- nil
	}
}

func (s *Supervisor) resumeSlot(sl *slot, verdict chan error) {
	if sl.place != held {
		verdict <- fmt.Errorf("worker %d is not drained, it is %s", sl.index, sl.place)
		return
	}
	sl.release = s.current
	sl.waiting = append(sl.waiting, verdict)
	s.tellSlot(EventResumed, "resumed by the operator", sl)
	s.occur(sl, fill)
}

var errOnlyHeld = errors.New("only drained workers would be left: resume one first")

// onlyHeld says whether the first n slots are all held empty.
func (s *Supervisor) onlyHeld(n int) bool {
	for _, sl := range s.pool.slots[:min(n, len(s.pool.slots))] {
		if sl.place != held {
			return false
		}
	}
	return n <= len(s.pool.slots)
}

// occupied counts the slots that are not held empty.
func (s *Supervisor) occupied() int {
	n := 0
	for _, sl := range s.pool.slots {
		if sl.place != held {
			n++
		}
	}
	return n
}

// answerWaiting tells those who wait for a slot's worker.
func (sl *slot) answerWaiting(err error) {
	for _, v := range sl.waiting {
		v <- err
	}
	sl.waiting = nil
}
