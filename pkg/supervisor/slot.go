package supervisor

import (
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// place is a slot's state.
type place int

const (
	empty      place = iota // no worker wanted
	starting                // its first worker, or a respawned one, is not ready yet
	serving                 // current serves
	replacing               // current serves, next is not ready yet
	proving                 // current and next both accept; next has to live through the bake time
	settling                // current serves alone and has to live through the bake time of a reload
	backingOff              // no worker; the next start is timed
	held                    // no worker, because the operator wants none
	handing                 // current serves; the worker it has replaced hands its connections over
)

const numPlaces = int(handing) + 1

func (p place) String() string {
	return [...]string{"empty", "starting", "serving", "replacing", "proving", "settling", "backing off", "held", "handing over"}[p]
}

// turn is an event of a slot.
type turn int

const (
	fill    turn = iota // a worker is wanted
	up                  // the worker that was starting is ready
	failed              // the worker that was starting, or on trial, is dead
	died                // the worker that served is dead or leaves
	replace             // a worker of the slot's release is to take over
	abandon             // the worker that was to take over is not wanted any more
	dismiss             // no worker is wanted any more
	due                 // the slot's timer: the delay, the bake time, or the time for a hand-over is over
	hold                // no worker is wanted until the operator says so
	given               // the worker that was replaced has handed over
)

const numTurns = int(given) + 1

func (t turn) String() string {
	return [...]string{"fill", "up", "failed", "died", "replace", "abandon", "dismiss", "due", "hold", "given"}[t]
}

// slot is a worker's place in its pool. The supervisor's goroutine owns it.
type slot struct {
	pool  *pool
	index int

	place    place
	release  *release       // what its next worker runs
	current  *incarnation   // it serves
	next     *incarnation   // it starts, or is on trial
	draining []*incarnation // they leave, oldest first
	giver    *incarnation   // whom current has replaced last; nil: nobody

	backoff backoff.Backoff
	lived   time.Duration // how long the last worker was in service that died
	retryAt time.Time     // backing off: when the next start is due
	timer   *time.Timer
	round   int // of the timer

	failures      int    // starts that failed in a row
	tooLate       bool   // the last of them was not ready in time
	startFailures uint64 // starts that failed
	respawns      uint64 // deaths that nobody asked for
	lastDeath     string
	predecessor   *link.Death
	waiting       []chan outcome // operators who wait for its worker
	recycleAfter  time.Time      // when it may be recycled by itself again
}

type move struct {
	next   place
	action func(*Supervisor, *slot)
}

type situation struct {
	in place
	on turn
}

// slots is the table: what an event does to a place in the pool.
var slots map[situation]move

// The rows name methods that apply the table in turn, so they are filled in
// at init.
func init() {
	slots = map[situation]move{
		{empty, fill}: {starting, (*Supervisor).spawn},

		{starting, up}:      {settling, (*Supervisor).promote},
		{starting, failed}:  {backingOff, (*Supervisor).backOffStart},
		{starting, replace}: {starting, (*Supervisor).startOver},
		{starting, dismiss}: {empty, (*Supervisor).retireAll},

		{starting, hold}:   {held, (*Supervisor).retireAll},
		{serving, hold}:    {held, (*Supervisor).retireAll},
		{replacing, hold}:  {held, (*Supervisor).retireAll},
		{proving, hold}:    {held, (*Supervisor).retireAll},
		{settling, hold}:   {held, (*Supervisor).retireAll},
		{backingOff, hold}: {held, (*Supervisor).retireAll},
		{held, fill}:       {starting, (*Supervisor).spawn},
		{held, dismiss}:    {empty, (*Supervisor).keepCounts},

		{serving, died}:    {backingOff, (*Supervisor).backOff},
		{serving, replace}: {replacing, (*Supervisor).spawn},
		{serving, dismiss}: {empty, (*Supervisor).retireAll},

		{replacing, up}:      {proving, (*Supervisor).prove},
		{replacing, failed}:  {serving, (*Supervisor).replacementFailed},
		{replacing, died}:    {starting, (*Supervisor).countDeath}, // the replacement is the slot's worker now
		{replacing, replace}: {replacing, (*Supervisor).startOver},
		{proving, replace}:   {replacing, (*Supervisor).startOver},
		{replacing, abandon}: {serving, (*Supervisor).dropNext},
		{replacing, dismiss}: {empty, (*Supervisor).retireAll},

		{proving, due}:     {handing, (*Supervisor).takeOver},
		{proving, failed}:  {serving, (*Supervisor).replacementFailed},
		{proving, died}:    {settling, (*Supervisor).takeOverAlone},
		{proving, abandon}: {serving, (*Supervisor).dropNext},
		{proving, dismiss}: {empty, (*Supervisor).retireAll},

		{handing, given}:   {serving, (*Supervisor).settled},
		{handing, due}:     {serving, (*Supervisor).settled}, // it goes on, and nobody waits for it
		{handing, died}:    {backingOff, (*Supervisor).backOff},
		{handing, replace}: {replacing, (*Supervisor).spawn},
		{handing, dismiss}: {empty, (*Supervisor).retireAll},
		{handing, hold}:    {held, (*Supervisor).retireAll},

		{settling, due}:     {serving, (*Supervisor).settled},
		{settling, died}:    {backingOff, (*Supervisor).backOff},
		{settling, replace}: {replacing, (*Supervisor).spawn},
		{settling, dismiss}: {empty, (*Supervisor).retireAll},

		{backingOff, due}:     {starting, (*Supervisor).spawn},
		{backingOff, replace}: {starting, (*Supervisor).spawn},
		{backingOff, dismiss}: {empty, (*Supervisor).retireAll},
	}
}

// occur queues an event of a slot. Actions cause events; they are applied
// one after the other, never inside one another.
func (s *Supervisor) occur(sl *slot, t turn) {
	s.agenda = append(s.agenda, func() { s.apply(sl, t) })
}

func (s *Supervisor) apply(sl *slot, t turn) {
	row, ok := slots[situation{sl.place, t}]
	if !ok {
		s.log.Debug("event dropped", append(sl.fields(), zap.Stringer("place", sl.place), zap.Stringer("event", t))...)
		return
	}
	sl.place = row.next
	sl.disarm()
	if row.action != nil {
		row.action(s, sl)
	}
}

func (sl *slot) fields() []zap.Field {
	return []zap.Field{zap.String("pool", sl.pool.name), zap.Int("worker", sl.index)}
}

func (s *Supervisor) armSlot(sl *slot, d time.Duration) {
	sl.disarm()
	round := sl.round
	sl.timer = time.AfterFunc(d, func() { s.post(slotTimeout{sl, round}) })
}

func (sl *slot) disarm() {
	sl.round++
	if sl.timer != nil {
		sl.timer.Stop()
		sl.timer = nil
	}
}

// forget takes a dead worker out of the slot.
func (sl *slot) forget(inc *incarnation) {
	switch inc {
	case sl.current:
		sl.current = nil
	case sl.next:
		sl.next = nil
	}
	sl.draining = slices.DeleteFunc(sl.draining, func(d *incarnation) bool { return d == inc })
}

// drainingSince moves a worker to those that leave.
func (sl *slot) drainingSince(inc *incarnation) {
	sl.forget(inc)
	sl.draining = append(sl.draining, inc)
}

// loss is what the end of a worker means to its slot.
func (sl *slot) loss(inc *incarnation) turn {
	if inc == sl.current {
		return died
	}
	return failed
}

// hasWorker reports whether somebody serves in the slot.
func (sl *slot) hasWorker() bool { return sl.current != nil && sl.current.state == ready }

func (s *Supervisor) promote(sl *slot) {
	sl.current, sl.next, sl.giver = sl.next, nil, nil
	sl.failures = 0
	s.wantBalance()
	s.settle(sl)
}

// settle has a worker that serves alone live through the bake time, if it
// came by a reload.
func (s *Supervisor) settle(sl *slot) {
	if bake := sl.current.release.settings.Bake; s.job != nil && slices.Contains(s.job.busy, sl) && bake > 0 {
		s.armSlot(sl, bake)
		return
	}
	s.occur(sl, due)
}

func (s *Supervisor) prove(sl *slot) { s.armSlot(sl, sl.next.release.settings.Bake) }

func (s *Supervisor) takeOver(sl *slot) {
	old := sl.current
	sl.current, sl.next, sl.giver = sl.next, nil, old
	sl.failures = 0
	s.retire(old, terms{grace: sl.release.settings.Grace, hand: true, heir: sl.current})
	if old.state != draining { // it hangs, and is being killed
		s.occur(sl, given)
		return
	}
	s.armSlot(sl, handWait)
}

// takeOverAlone: the old worker died while the new one was on trial.
func (s *Supervisor) takeOverAlone(sl *slot) {
	sl.respawns++
	sl.current, sl.next, sl.giver = sl.next, nil, nil
	sl.failures = 0
	s.wantBalance()
	s.settle(sl)
}

func (s *Supervisor) replacementFailed(sl *slot) { s.unsettled(sl) }

func (s *Supervisor) countDeath(sl *slot) { sl.respawns++ }

func (s *Supervisor) backOff(sl *slot) {
	sl.respawns++
	s.unsettled(sl)
	s.delay(sl)
}

func (s *Supervisor) backOffStart(sl *slot) {
	s.unsettled(sl)
	s.delay(sl)
}

func (s *Supervisor) delay(sl *slot) {
	sl.backoff.Policy = sl.release.settings.Respawn
	d := sl.backoff.Next(sl.lived)
	sl.lived = 0
	sl.retryAt = time.Now().Add(d)
	if d > 0 {
		s.log.Warn("worker will be respawned", append(sl.fields(), zap.Duration("delay", d), zap.Int("failures", sl.failures))...)
	}
	s.armSlot(sl, d)
}

func (s *Supervisor) startOver(sl *slot) {
	wanted := sl.release // dropNext returns to that of the one that stays
	s.dropNext(sl)
	sl.release = wanted
	s.spawn(sl)
}

func (s *Supervisor) dropNext(sl *slot) {
	if sl.next != nil {
		s.retire(sl.next, terms{prompt: true, grace: sl.next.release.settings.Grace, hand: true, heir: sl.current})
	}
	if sl.current != nil {
		sl.release = sl.current.release
	}
}

var errDismissed = errors.New("the worker is not wanted any more")

// retireAll asks everybody in the slot to leave, on the terms of a stop if
// the service stops.
func (s *Supervisor) retireAll(sl *slot) {
	sl.answerWaiting(errDismissed)
	s.keepCounts(sl)
	for _, inc := range []*incarnation{sl.current, sl.next} {
		if inc != nil {
			s.retire(inc, s.partingTerms(inc))
		}
	}
}

// partingTerms are those for a worker that leaves and has no successor: it
// hands over to all others, unless they leave as well.
func (s *Supervisor) partingTerms(inc *incarnation) terms {
	if s.phase == stopping {
		return terms{prompt: true, grace: s.current.settings.StopGrace}
	}
	return terms{grace: inc.release.settings.Grace, hand: true}
}

// retire asks a worker to leave and sees to it that no more than MaxOld of
// a slot do so at a time.
func (s *Supervisor) retire(inc *incarnation, t terms) {
	inc.terms = t
	if s.job != nil && s.job.to != nil && t.hand && inc.state == ready {
		s.job.givers = append(s.job.givers, inc)
	}
	sl := inc.slot
	sl.drainingSince(inc)
	s.happen(inc, retire)
	for i := range len(sl.draining) - max(1, sl.release.settings.MaxOld) {
		s.log.Warn("worker hastened: too many of its slot drain", sl.draining[i].fields()...)
		s.happen(sl.draining[i], hasten)
	}
}
