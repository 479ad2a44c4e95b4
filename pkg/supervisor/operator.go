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
	do      func(*Supervisor, *slot, chan outcome)
	verdict chan outcome // buffered for one
}

// outcome is what has come of an operator's request.
type outcome struct {
	handovers []control.Handover // of the workers that leave because of it
	err       error
}

func (verb) isMessage() {}

// Recycle replaces a slot's worker by a new one of the same generation: the
// new one first, then the old one hands over and drains. It returns when the
// new one serves and the old one has handed over, or has had five seconds for
// it; or why the new one does not serve: then the old one stays. Any goroutine
// may call it.
func (s *Supervisor) Recycle(ctx context.Context, r control.SlotRequest) ([]control.Handover, error) {
	return s.slotVerb(ctx, r, (*Supervisor).recycle)
}

// Drain has a slot's worker hand its connections to the others, finish what is
// left and leave, and keeps the slot empty until Resume. It returns when the
// worker has handed over, or has had five seconds for it. Any goroutine may
// call it.
func (s *Supervisor) Drain(ctx context.Context, r control.SlotRequest) ([]control.Handover, error) {
	return s.slotVerb(ctx, r, (*Supervisor).holdSlot)
}

// Resume fills a slot again that Drain has emptied. It returns when its
// worker serves, or why it does not. Any goroutine may call it.
func (s *Supervisor) Resume(ctx context.Context, r control.SlotRequest) error {
	_, err := s.slotVerb(ctx, r, (*Supervisor).resumeSlot)
	return err
}

func (s *Supervisor) slotVerb(ctx context.Context, r control.SlotRequest, do func(*Supervisor, *slot, chan outcome)) ([]control.Handover, error) {
	m := verb{slot: r, do: do, verdict: make(chan outcome, 1)}
	return s.outcomeOf(ctx, m, m.verdict)
}

// outcomeOf sends an operator's message and waits for what comes of it.
func (s *Supervisor) outcomeOf(ctx context.Context, m message, verdict <-chan outcome) ([]control.Handover, error) {
	if err := s.ask(ctx, m); err != nil {
		return nil, err
	}
	select {
	case o := <-verdict:
		return o.handovers, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, errNotRunning
	}
}

// obey finds the slot and does what is asked, unless something else is under
// way that it would disturb.
func (s *Supervisor) obey(m verb) {
	switch {
	case m.slot.Pool != "" && m.slot.Pool != poolName:
		m.verdict <- outcome{err: fmt.Errorf("%w: no pool %q, there is %q", control.ErrInvalid, m.slot.Pool, poolName)}
	case m.slot.Slot < 0 || m.slot.Slot >= len(s.pool.slots):
		m.verdict <- outcome{err: fmt.Errorf("%w: no worker %d, there are 0 to %d", control.ErrInvalid, m.slot.Slot, len(s.pool.slots)-1)}
	case s.phase != running:
		m.verdict <- outcome{err: errors.New("the service starts or stops")}
	case s.job != nil:
		m.verdict <- outcome{err: errors.New("a reload is under way")}
	default:
		m.do(s, s.pool.slots[m.slot.Slot], m.verdict)
	}
}

func (s *Supervisor) recycle(sl *slot, verdict chan outcome) {
	if sl.place != serving {
		verdict <- outcome{err: fmt.Errorf("worker %d is %s", sl.index, sl.place)}
		return
	}
	sl.waiting = append(sl.waiting, verdict)
	s.tell(EventRecycling, "asked for", sl.current)
	s.occur(sl, replace)
}

func (s *Supervisor) holdSlot(sl *slot, verdict chan outcome) {
	switch {
	case sl.place == held:
		verdict <- outcome{err: fmt.Errorf("worker %d is drained already", sl.index)}
	case s.occupied() <= 1:
		verdict <- outcome{err: errors.New("it is the last worker: stop the service instead")}
	default:
		s.tellSlot(EventHeld, "drained by the operator", sl)
		givers := sl.servers()
		s.occur(sl, hold)
		s.bid(givers, func(all []control.Handover) { verdict <- outcome{handovers: all} })
	}
}

func (s *Supervisor) resumeSlot(sl *slot, verdict chan outcome) {
	if sl.place != held {
		verdict <- outcome{err: fmt.Errorf("worker %d is not drained, it is %s", sl.index, sl.place)}
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
	o := outcome{err: err}
	if err == nil && sl.giver != nil {
		o.handovers = accounts([]*incarnation{sl.giver})
	}
	for _, v := range sl.waiting {
		v <- o
	}
	sl.waiting = nil
}
