package supervisor

import (
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// state is an incarnation's.
type state int

const (
	spawned  state = iota // started, has said nothing yet
	unready               // has said hello, was never ready
	ready                 // could serve, and does
	late                  // SIGKILL sent because it was not ready in time
	hung                  // it is sick; SIGQUIT or SIGKILL sent
	draining              // asked to leave, or leaves by itself
	overdue               // SIGKILL sent because its drain did not end
	gone                  // reaped
)

const numStates = int(gone) + 1

func (s state) String() string {
	return [...]string{"spawned", "unready", "ready", "late", "hung", "draining", "overdue", "gone"}[s]
}

// event is what may happen to an incarnation.
type event int

const (
	saidHello  event = iota // its first message
	saidReady               // it could serve
	saidLeft                // it has left its listeners
	retire                  // it is to drain
	hasten                  // its drain is to end now
	timeout                 // its timer: what that means is told by its state
	exited                  // it is dead and reaped
	unsettling              // it broke the contract of messages
	stalled                 // it hangs
	bloated                 // it has more memory than it may
	saidHanded              // it has handed over what it could
	heirless                // who was to take its connections takes no more, or somebody does at last
)

const numEvents = int(heirless) + 1

func (e event) String() string {
	return [...]string{"hello", "ready", "left", "retire", "hasten", "timeout", "exited", "unsettling", "stalled", "bloated", "handed", "heirless"}[e]
}

// incarnation is one worker process, from its spawn to its reaping. The
// supervisor's goroutine owns it.
type incarnation struct {
	number  uint64
	slot    *slot
	release *release
	seat    *scoreboard.Seat
	seatNo  int
	born    time.Time

	state     state
	process   process // nil if the spawn failed
	build     string  // its own word
	contract  int     // that it speaks
	reason    string  // why it fails: its own word, or ours
	exit      Exit    // once gone
	readyAt   time.Time
	readyMono time.Duration // the same, CLOCK_MONOTONIC
	lot       lot
	timer     *time.Timer
	turn      int // of the timer: a late firing carries an older one

	unready string           // why its application wants no new connections; empty: it does
	app     []metrics.Family // its own metrics, as known last
	willed  bool             // app is final: it was left behind

	// As a peer.

	inbox  int                  // sending end of its inbox; -1: it has none
	told   map[uint64]link.Peer // what it knows of the others, by incarnation
	behind bool                 // it has not heard everything
	outbox []link.Body          // what it has not heard, but for peers

	// How its connections outlive it.

	keeper         *kept // nil: it has none, is not known yet, or is the harvester's
	protection     string
	adopted        bool      // it was started by an earlier supervisor, and is not our child
	lifeless       bool      // it was dead when it was adopted
	dead           bool      // its death is known, and its keeper's is awaited
	knowsHarvester bool      // it was told
	harvesterKnows link.Peer // as the harvester was told

	// Its drain.

	terms    terms
	deadline time.Time // the end of the grace
	hurried  bool      // told to end its drain
	handed   link.Handed
	handover handover
}

type step struct {
	next   state
	action func(*Supervisor, *incarnation)
}

type occasion struct {
	in state
	on event
}

// incarnations is the table: what an event does to a process.
var incarnations map[occasion]step

// The rows name methods that apply the table in turn, so they are filled in
// at init.
func init() {
	incarnations = map[occasion]step{
		{spawned, saidHello}:  {unready, nil},
		{spawned, retire}:     {draining, (*Supervisor).terminate}, // cannot read messages yet
		{spawned, timeout}:    {late, (*Supervisor).killLate},
		{spawned, unsettling}: {late, (*Supervisor).killBroken},
		{spawned, exited}:     {gone, (*Supervisor).startFailed},

		{unready, saidReady}:  {ready, (*Supervisor).announce},
		{unready, retire}:     {draining, (*Supervisor).terminate}, // its start may still run
		{unready, timeout}:    {late, (*Supervisor).killLate},
		{unready, unsettling}: {late, (*Supervisor).killBroken},
		{unready, exited}:     {gone, (*Supervisor).startFailed},

		{late, retire}: {overdue, nil},
		{late, exited}: {gone, (*Supervisor).startFailed},

		{ready, saidLeft}:   {draining, (*Supervisor).leftByItself},
		{ready, retire}:     {draining, (*Supervisor).drain},
		{ready, unsettling}: {draining, (*Supervisor).sendAway},
		{ready, stalled}:    {hung, (*Supervisor).takeEvidence},
		{ready, bloated}:    {hung, (*Supervisor).killBloated},
		{ready, exited}:     {gone, (*Supervisor).diedInService},

		{hung, timeout}: {hung, (*Supervisor).killHung},
		{hung, retire}:  {overdue, (*Supervisor).kill},
		{hung, exited}:  {gone, (*Supervisor).diedInService},

		{draining, saidLeft}: {draining, (*Supervisor).leftAsTold},
		{draining, retire}:   {draining, (*Supervisor).drain}, // on other terms
		{draining, hasten}:   {draining, (*Supervisor).hurry},
		{draining, timeout}:  {overdue, (*Supervisor).killOverdue},
		{draining, exited}:   {gone, (*Supervisor).letGo},

		{draining, saidHanded}: {draining, (*Supervisor).noteHanded},
		{draining, heirless}:   {draining, (*Supervisor).redirect},

		{overdue, saidHanded}: {overdue, (*Supervisor).noteHanded},
		{overdue, exited}:     {gone, (*Supervisor).letGo},
	}
}

// happen applies the table.
func (s *Supervisor) happen(inc *incarnation, e event) {
	row, ok := incarnations[occasion{inc.state, e}]
	if !ok {
		s.log.Debug("event dropped", append(inc.fields(), zap.Stringer("state", inc.state), zap.Stringer("event", e))...)
		return
	}
	served := inc.takes()
	inc.state = row.next
	if row.action != nil {
		row.action(s, inc)
	}
	s.agenda = append(s.agenda, func() { s.tellPeers(inc) })
	if served && !inc.takes() {
		s.lastly(func() { s.bereave(inc) })
	}
}

func (inc *incarnation) fields() []zap.Field {
	return []zap.Field{
		zap.String("pool", inc.slot.pool.name), zap.Int("worker", inc.slot.index),
		zap.Uint64("generation", inc.release.generation), zap.Uint64("incarnation", inc.number),
		zap.Int("worker_pid", inc.pid()),
	}
}

func (inc *incarnation) pid() int {
	if inc.process == nil {
		return 0
	}
	return inc.process.PID()
}

// arm sets the incarnation's timer; d must be positive.
func (s *Supervisor) arm(inc *incarnation, d time.Duration) {
	inc.disarm()
	turn := inc.turn
	inc.timer = time.AfterFunc(d, func() { s.post(incarnationTimeout{inc, turn}) })
}

func (inc *incarnation) disarm() {
	inc.turn++
	if inc.timer != nil {
		inc.timer.Stop()
		inc.timer = nil
	}
}

func (s *Supervisor) signal(inc *incarnation, sig unix.Signal) {
	if inc.dead {
		return
	}
	if err := inc.process.Signal(sig); err != nil {
		s.log.Warn("worker not signalled", append(inc.fields(), zap.Stringer("signal", sig), zap.Error(err))...)
	}
}

func (s *Supervisor) announce(inc *incarnation) {
	inc.disarm()
	inc.readyAt, inc.readyMono = time.Now(), s.clock()
	inc.lot = inc.release.settings.Health.draw()
	s.tell(EventWorkerReady, "ready", inc)
	s.log.Info("worker ready", append(inc.fields(), journal.ID(journal.WorkerReady), zap.Duration("took", inc.readyAt.Sub(inc.born)))...)
	s.send(inc, link.Accept{})
	s.occur(inc.slot, up)
	s.lastly(s.rescue)
}

// drainMargin is what a worker is given beyond its grace to close what is
// open, run OnWorkerStop and exit.
const drainMargin = 2 * time.Second

func (s *Supervisor) drain(inc *incarnation) {
	s.tell(EventWorkerDraining, fmt.Sprintf("drains within %v", inc.terms.grace), inc)
	s.leaveWithin(inc, inc.terms.grace)
	s.lastly(func() { s.sendDrain(inc, inc.terms.grace) })
}

// leaveWithin begins the time within which a worker is to be gone.
func (s *Supervisor) leaveWithin(inc *incarnation, grace time.Duration) {
	inc.deadline = time.Now().Add(grace)
	s.arm(inc, grace+drainMargin)
}

func (s *Supervisor) terminate(inc *incarnation) {
	s.signal(inc, unix.SIGTERM)
	s.leaveWithin(inc, inc.terms.grace)
}

// hastenMargin is what a worker is given to close everything in order when
// its grace is ended early.
const hastenMargin = time.Second

func (s *Supervisor) hurry(inc *incarnation) {
	if inc.hurried {
		return // its time runs already
	}
	inc.hurried = true
	s.send(inc, link.Stop{})
	s.arm(inc, hastenMargin)
}

func (s *Supervisor) killLate(inc *incarnation) {
	inc.reason = fmt.Sprintf("not ready within %v", s.startTimeout(inc))
	s.kill(inc)
}

func (s *Supervisor) killBroken(inc *incarnation) { s.kill(inc) }

func (s *Supervisor) killOverdue(inc *incarnation) {
	inc.reason = "did not end its drain in time"
	s.log.Warn("worker killed, its drain did not end", append(inc.fields(), zap.Duration("grace", inc.terms.grace))...)
	s.kill(inc)
}

func (s *Supervisor) kill(inc *incarnation) {
	inc.disarm()
	s.signal(inc, unix.SIGKILL)
}

// sendAway: it cannot be understood any more, so another is to take its
// place. It may still understand us.
func (s *Supervisor) sendAway(inc *incarnation) {
	inc.terms = terms{prompt: inc.terms.prompt, grace: inc.release.settings.Grace, hand: true, heir: inc.heirOf()}
	s.lastly(func() { s.sendDrain(inc, inc.terms.grace) })
	s.leftByItself(inc)
}

// leftByItself: it was not asked to, so its place is to be filled.
func (s *Supervisor) leftByItself(inc *incarnation) {
	s.log.Warn("worker leaves by itself", append(inc.fields(), zap.String("reason", inc.reason))...)
	if inc.terms.grace == 0 {
		inc.terms.grace = inc.release.settings.Grace
	}
	s.leaveWithin(inc, inc.terms.grace)
	s.rearm()
	inc.slot.lastDeath = "worker left by itself"
	if inc.reason != "" {
		inc.slot.lastDeath += ": " + inc.reason
	}
	inc.slot.lived = time.Since(inc.readyAt)
	loss := inc.slot.loss(inc)
	inc.slot.drainingSince(inc)
	s.occur(inc.slot, loss)
}

func (s *Supervisor) leftAsTold(*incarnation) { s.rearm() }

// rearm has every worker that accepts watch its listeners anew: the wake-up
// for a connection that waits may have gone to a worker that has left.
func (s *Supervisor) rearm() {
	for inc := range s.living() {
		if inc.state == ready {
			s.send(inc, link.Rearm{})
		}
	}
}

func (s *Supervisor) startFailed(inc *incarnation) {
	s.bury(inc)
	inc.slot.lastDeath = inc.obituary()
	inc.slot.startFailures++
	inc.slot.failures++
	s.tell(EventWorkerStartFailed, inc.slot.lastDeath, inc)
	inc.slot.tooLate = inc.exit.Class == ClassOverdue
	s.log.Warn("worker failed to start", append(append(inc.fields(), journal.ID(journal.WorkerFailedToStart)), inc.exit.fields()...)...)
	s.deathTold(inc)
	s.occur(inc.slot, failed)
}

func (s *Supervisor) diedInService(inc *incarnation) {
	loss := inc.slot.loss(inc)
	s.bury(inc)
	inc.slot.lived = time.Since(inc.readyAt)
	inc.slot.lastDeath = inc.obituary()
	s.tell(EventWorkerDied, inc.slot.lastDeath, inc)
	s.dump(inc)
	inc.slot.predecessor = &link.Death{PID: inc.pid(), Class: inc.exit.Class, Detail: inc.slot.lastDeath}
	s.log.Warn("worker died", append(append(inc.fields(), journal.ID(journal.WorkerDied)), inc.exit.fields()...)...)
	s.deathTold(inc)
	s.rearm()
	s.occur(inc.slot, loss)
}

func (s *Supervisor) letGo(inc *incarnation) {
	s.bury(inc)
	s.tell(EventWorkerLeft, inc.exit.String(), inc)
	if inc.exit.Class == ClassRequested {
		s.log.Info("worker left", inc.fields()...)
	} else {
		s.log.Warn("worker died while it drained", append(append(inc.fields(), journal.ID(journal.WorkerDied)), inc.exit.fields()...)...)
		s.deathTold(inc)
	}
	s.rearm()
}

// bury gives back what a dead process had.
func (s *Supervisor) bury(inc *incarnation) {
	inc.disarm()
	inc.slot.forget(inc)
	s.vacate(inc)
}

// obituary says how it died, with its last words, for people.
func (inc *incarnation) obituary() string {
	text := inc.exit.String()
	if inc.reason != "" {
		text = inc.reason + " (" + text + ")"
	}
	if inc.exit.Words != "" {
		text += ": " + inc.exit.Words
	}
	return text
}
