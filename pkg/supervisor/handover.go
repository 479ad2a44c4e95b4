package supervisor

import (
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// handWait is how long a reload, and who has asked for a worker to leave, wait
// for the end of its hand-over. That may go on longer, within the grace: a
// connection in a callback moves when the callback has returned.
const handWait = 5 * time.Second

// terms say how a worker is to drain.
type terms struct {
	prompt bool
	grace  time.Duration
	hand   bool         // its connections are handed over first
	heir   *incarnation // who gets them; nil: all that serve
}

// handover is what becomes of a worker's connections once it was told to hand
// them over.
type handover struct {
	began  time.Time // zero: it was not told to
	before uint64    // connections that it had given until then
	heir   *incarnation
	open   bool // its word on it is to come
	adrift bool // nobody takes connections; it goes on when somebody does
	cut    bool // it died before the end

	moved   int
	left    int
	longest time.Duration
}

// goesOn reports whether there is more to come.
func (h *handover) goesOn() bool { return h.open || h.adrift }

// lastly has f done when all has settled that follows from a message.
func (s *Supervisor) lastly(f func()) { s.epilogue = append(s.epilogue, f) }

// heirOf returns who is to take what a worker gives up: the one that serves
// in its slot, else the one on trial there; nil if neither takes connections.
func (inc *incarnation) heirOf() *incarnation {
	for _, other := range []*incarnation{inc.slot.current, inc.slot.next} {
		if other != nil && other != inc && other.takes() {
			return other
		}
	}
	return nil
}

// hasTakers reports whether anybody else takes connections.
func (s *Supervisor) hasTakers(inc *incarnation) bool {
	for other := range s.living() {
		if other != inc && other.takes() && other.slot.pool == inc.slot.pool {
			return true
		}
	}
	return false
}

// sendDrain tells a worker how to drain. It is done last, so that it knows by
// then who serves and who does not: of two that leave at once, neither hands
// to the other.
func (s *Supervisor) sendDrain(inc *incarnation, grace time.Duration) {
	if inc.state != draining || inc.hurried {
		return
	}
	h := &inc.handover
	h.open, h.adrift, h.heir = false, false, nil
	m := link.Drain{Prompt: inc.terms.prompt, Stays: inc.terms.prompt && s.phase != stopping, Grace: grace}
	if inc.terms.hand && inc.isPeer() {
		if inc.terms.heir != nil {
			h.heir = inc.terms.heir
			if !h.heir.takes() {
				h.heir = inc.heirOf()
			}
		}
		m.Hand = h.heir != nil || s.hasTakers(inc)
		h.open, h.adrift = m.Hand, !m.Hand
		s.beginHandover(inc)
	}
	if h.heir != nil {
		m.To = h.heir.number
	}
	m.Restart = s.job != nil && s.job.restart
	s.send(inc, m)
	if !h.goesOn() {
		if h.began.IsZero() {
			h.left = int(inc.open())
		}
		s.handedOver(inc)
	}
}

func (s *Supervisor) beginHandover(inc *incarnation) {
	h := &inc.handover
	if h.began.IsZero() {
		h.began, h.before = time.Now(), inc.seat.HandoffsGiven.Load()
	}
	to := "all that serve"
	switch {
	case h.adrift:
		to = "whoever comes: nobody takes connections now"
	case h.heir != nil:
		to = fmt.Sprintf("pid %d", h.heir.pid())
	}
	s.tell(EventHandingOver, fmt.Sprintf("%d connections to %s", inc.open(), to), inc)
}

// bereave finds new takers for those that hand over to a worker which takes
// no connections any more.
func (s *Supervisor) bereave(heir *incarnation) {
	for inc := range s.living() {
		if h := &inc.handover; h.heir == heir && (h.open || h.left > 0) {
			s.happen(inc, heirless)
		}
	}
}

// rescue finds takers for those who had none, now that there is one.
func (s *Supervisor) rescue() {
	for inc := range s.living() {
		if inc.handover.adrift {
			s.happen(inc, heirless)
		}
	}
}

// redirect tells a worker anew to whom it is to hand over, within what is left
// of its grace.
func (s *Supervisor) redirect(inc *incarnation) {
	s.lastly(func() { s.sendDrain(inc, max(time.Until(inc.deadline), time.Millisecond)) })
}

// noteHanded records a worker's own word.
func (s *Supervisor) noteHanded(inc *incarnation) {
	h := &inc.handover
	if h.began.IsZero() {
		return
	}
	h.moved += inc.handed.Given
	h.left = inc.handed.Left
	h.longest = max(h.longest, inc.handed.Longest)
	if h.adrift && h.left > 0 {
		return // somebody may come for the rest
	}
	h.open, h.adrift = false, false
	s.tell(EventHandedOver, inc.account().String(), inc)
	s.log.Info("worker has handed over", append(inc.fields(), zap.Int("moved", h.moved), zap.Int("left", h.left), zap.Duration("longest", h.longest))...)
	s.handedOver(inc)
}

// cutHandover: the worker is dead. Its seat still has its last figures.
func (s *Supervisor) cutHandover(inc *incarnation) {
	h := &inc.handover
	if !h.goesOn() {
		return
	}
	h.moved = max(h.moved, inc.givenNow())
	h.left = int(inc.open())
	h.open, h.adrift = false, false
	h.cut = h.left > 0 || inc.exit.Class != ClassRequested
	if h.cut {
		s.tell(EventHandedOver, "died: "+inc.account().String(), inc)
	}
	s.handedOver(inc)
}

// givenNow is how many connections a worker has given since it was told to.
func (inc *incarnation) givenNow() int {
	if inc.seat == nil || inc.seat.Incarnation.Load() != inc.number {
		return 0
	}
	given := inc.seat.HandoffsGiven.Load()
	return int(given - min(given, inc.handover.before))
}

// account is the hand-over as it stands.
func (inc *incarnation) account() control.Handover {
	h := &inc.handover
	a := control.Handover{
		Pool: inc.slot.pool.name, Slot: inc.slot.index, PID: inc.pid(), State: control.HandoverOver,
		Moved: h.moved, Left: h.left, LongestStallUS: h.longest.Microseconds(),
	}
	if h.heir != nil {
		a.To = h.heir.pid()
	}
	switch {
	case h.began.IsZero():
		a.State = control.HandoverNone
	case h.cut:
		a.State = control.HandoverCut
	case h.goesOn():
		a.State, a.Moved, a.Left = control.HandoverGoesOn, max(h.moved, inc.givenNow()), int(inc.open())
	}
	return a
}

// handedOver: nothing more is to be waited for.
func (s *Supervisor) handedOver(inc *incarnation) {
	if inc.slot.giver == inc {
		s.occur(inc.slot, given)
	}
	s.judgeFarewells()
	if r := s.lastJob; r != nil && slices.Contains(r.givers, inc) {
		last := *s.lastReload // of which others have a copy
		r.sum(&last)
		s.lastReload = &last
	}
}

// farewell is somebody who waits until workers that leave have handed over,
// or for handWait.
type farewell struct {
	givers []*incarnation
	then   func([]control.Handover)
}

// bid calls then when those of a slot's workers that serve now, and are about
// to leave, have handed over, or have had the time for it.
func (s *Supervisor) bid(givers []*incarnation, then func([]control.Handover)) {
	f := &farewell{givers: givers, then: then}
	// Once they have been told.
	s.agenda = append(s.agenda, func() {
		s.lastly(func() {
			s.farewells = append(s.farewells, f)
			s.judgeFarewells()
			if slices.Contains(s.farewells, f) {
				time.AfterFunc(handWait, func() { s.post(farewellTimeout{f}) })
			}
		})
	})
}

// servers are the workers of a slot that have connections to hand over when
// the slot is emptied.
func (sl *slot) servers() (all []*incarnation) {
	for _, inc := range []*incarnation{sl.current, sl.next} {
		if inc != nil && inc.state == ready {
			all = append(all, inc)
		}
	}
	return all
}

// judgeFarewells answers those who have waited long enough.
func (s *Supervisor) judgeFarewells() {
	for _, f := range slices.Clone(s.farewells) {
		if !slices.ContainsFunc(f.givers, func(inc *incarnation) bool { return inc.handover.goesOn() }) {
			s.endFarewell(f)
		}
	}
}

// endFarewell answers one, if that has not been done.
func (s *Supervisor) endFarewell(f *farewell) {
	n := len(s.farewells)
	s.farewells = slices.DeleteFunc(s.farewells, func(other *farewell) bool { return other == f })
	if len(s.farewells) < n {
		f.then(accounts(f.givers))
	}
}

func accounts(givers []*incarnation) []control.Handover {
	var all []control.Handover
	for _, inc := range givers {
		all = append(all, inc.account())
	}
	return all
}
