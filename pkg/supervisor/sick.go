package supervisor

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// evidenceMargin is how long a hung worker has to write down what all its
// goroutines do, before it is killed.
const evidenceMargin = 2 * time.Second

// Health says when a worker is sick, and when it is to be replaced although
// it is well. Zero means never, but for HangTimeout.
type Health struct {
	HangTimeout    time.Duration // its loop has not turned for so long [10 s]; negative: never
	HandlerTimeout time.Duration // a callback on the pool runs for so long
	MemorySoft     int64         // bytes resident, beyond which it is recycled
	MemoryHard     int64         // bytes resident, beyond which it is killed
	MaxMessages    uint64        // messages after which it is recycled
	MaxAge         time.Duration // age at which it is recycled
	Jitter         float64       // MaxMessages and MaxAge are drawn from 1-Jitter to 1+Jitter times their value [0.1]; negative: exact
}

func (h Health) withDefaults() Health {
	if h.HangTimeout == 0 {
		h.HangTimeout = 10 * time.Second
	}
	if h.Jitter == 0 {
		h.Jitter = 0.1
	}
	h.Jitter = max(0, min(h.Jitter, 1))
	return h
}

// shortest is the shortest time after which a worker that was well may be
// sick; 20 s if no time makes it so.
func (h Health) shortest() time.Duration {
	shortest := time.Duration(0)
	for _, d := range []time.Duration{h.HangTimeout, h.HandlerTimeout} {
		if d > 0 && (shortest == 0 || d < shortest) {
			shortest = d
		}
	}
	if shortest == 0 {
		shortest = 20 * time.Second
	}
	return max(shortest, 40*time.Millisecond)
}

// judgeInterval is how often the workers are looked at for what cannot be
// foreseen: four times in the shortest of the times that matter.
func (h Health) judgeInterval() time.Duration { return h.shortest() / 4 }

// samples says whether h limits what cannot be foreseen.
func (h Health) samples() bool { return h.MemorySoft > 0 || h.MemoryHard > 0 || h.MaxMessages > 0 }

// lot is an incarnation's own draw of the limits that are jittered.
type lot struct {
	messages uint64
	age      time.Duration
}

func (h Health) draw() lot {
	f := 1 + h.Jitter*(2*rand.Float64()-1)
	return lot{messages: uint64(float64(h.MaxMessages) * f), age: time.Duration(float64(h.MaxAge) * f)}
}

// judgeWorkers looks at every worker that serves, and returns when to do so
// again: as long as all are well and nothing is limited that has to be sampled,
// that is about once in the shortest of the timeouts, so that an idle service
// sleeps. When the supervisor itself has overslept, because the machine was
// suspended or too busy, all heartbeats look old: then nobody is judged this
// time.
func (s *Supervisor) judgeWorkers() time.Duration {
	h := s.current.settings.Health
	if time.Since(s.lookDue) > h.judgeInterval() {
		s.log.Warn("workers not judged: the supervisor was late itself")
		return h.judgeInterval()
	}
	next := h.shortest()
	for inc := range s.living() {
		h := inc.release.settings.Health
		if inc.state != ready || inc.dead {
			next = min(next, h.shortest()) // it may be from now on
			continue
		}
		if reason := s.hangs(inc, h); reason != "" {
			inc.reason = reason
			s.happen(inc, stalled)
			continue
		}
		s.judgeMemory(inc, h)
		if inc.state == ready && inc.slot.place == serving && inc == inc.slot.current {
			s.judgeAge(inc, h)
		}
		next = min(next, s.outlook(inc, h))
	}
	return next
}

// outlook returns how long a worker need not be looked at: if nothing changes
// at it, it is sick right then.
func (s *Supervisor) outlook(inc *incarnation, h Health) time.Duration {
	if h.samples() {
		return h.judgeInterval()
	}
	next, now := h.shortest(), s.clock()
	until := func(left time.Duration) {
		if left <= 0 { // it is excused, or waits for its turn to be replaced
			left = h.judgeInterval()
		}
		next = min(next, left+lookMargin)
	}
	if h.HangTimeout > 0 {
		until(s.lastBeat(inc) + h.HangTimeout - now)
	}
	if oldest := time.Duration(inc.seat.PoolOldest.Load()); h.HandlerTimeout > 0 && oldest > 0 {
		until(oldest + h.HandlerTimeout - now)
	}
	if h.MaxAge > 0 {
		until(inc.lot.age - time.Since(inc.readyAt))
	}
	return next
}

// lookMargin is how much later than a deadline a worker is looked at.
const lookMargin = 10 * time.Millisecond

// lastBeat returns when a worker that is ready was well last, by s.clock.
func (s *Supervisor) lastBeat(inc *incarnation) time.Duration {
	return max(time.Duration(inc.seat.Heartbeat.Load()), inc.readyMono)
}

// hangs says in what way a worker hangs; empty: it does not.
func (s *Supervisor) hangs(inc *incarnation, h Health) string {
	now := s.clock()
	if age := now - s.lastBeat(inc); h.HangTimeout > 0 && age > h.HangTimeout && processState(inc.pid()) != 't' {
		reason := fmt.Sprintf("its loop has not turned for %v", age.Round(10*time.Millisecond))
		if listener, id, since, ok := inc.seat.Handler(); ok {
			reason += fmt.Sprintf(", in a callback of listener %q for connection %d since %v", listener, id, (now - time.Duration(since)).Round(10*time.Millisecond))
		}
		return reason
	}
	if oldest := stuckSince(inc.seat, h.HandlerTimeout); oldest > 0 {
		return fmt.Sprintf("a callback has been running for %v", (now - oldest).Round(10*time.Millisecond))
	}
	return ""
}

// stuckSince returns since when the oldest callback on the pool runs, if it ran
// still when its time was over; 0: none has, or it is not known yet. A loop
// that has nothing to do sleeps, and what it has said last is of a callback
// that may have returned right then.
func stuckSince(seat *scoreboard.Seat, timeout time.Duration) time.Duration {
	turned := time.Duration(seat.Heartbeat.Load()) // before what it dates
	oldest := time.Duration(seat.PoolOldest.Load())
	if timeout <= 0 || oldest <= 0 || turned-scoreboard.PoolAge-oldest <= timeout {
		return 0
	}
	return oldest
}

// processState is what proc_pid_stat(5) calls the state of a process: T is
// stopped by a signal, t held by a debugger. 0: it cannot be read.
func processState(pid int) byte {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(text, []byte(") "))
	if !ok || len(rest) == 0 {
		return 0
	}
	return rest[0]
}

func (s *Supervisor) judgeMemory(inc *incarnation, h Health) {
	if h.MemorySoft <= 0 && h.MemoryHard <= 0 {
		return
	}
	rss := s.resident(inc.pid())
	switch {
	case h.MemoryHard > 0 && rss > h.MemoryHard:
		inc.reason = fmt.Sprintf("%d bytes resident, memory_hard is %d", rss, h.MemoryHard)
		s.happen(inc, bloated)
	case h.MemorySoft > 0 && rss > h.MemorySoft:
		s.recycleSick(inc, fmt.Sprintf("%d bytes resident, memory_soft is %d", rss, h.MemorySoft))
	}
}

func (s *Supervisor) judgeAge(inc *incarnation, h Health) {
	messages, age := inc.seat.Messages.Load(), time.Since(inc.readyAt)
	switch {
	case h.MaxMessages > 0 && messages >= inc.lot.messages:
		s.recycleSick(inc, fmt.Sprintf("%d messages", messages))
	case h.MaxAge > 0 && age >= inc.lot.age:
		s.recycleSick(inc, fmt.Sprintf("age %v", age.Round(time.Second)))
	}
}

// recycleSick replaces a worker, unless another one is being replaced: one
// at a time, the replacement first.
func (s *Supervisor) recycleSick(inc *incarnation, why string) {
	if s.phase != running || s.job != nil || inc.slot.place != serving || inc != inc.slot.current {
		return
	}
	for _, sl := range s.pool.slots {
		if sl.place == replacing || sl.place == proving || sl.place == handing {
			return
		}
	}
	if time.Now().Before(inc.slot.recycleAfter) {
		return
	}
	// A replacement that fails is not tried again at every look.
	inc.slot.recycleAfter = time.Now().Add(recyclePause)
	s.log.Info("worker recycled", append(inc.fields(), zap.String("reason", why))...)
	s.tell(EventRecycling, why, inc)
	s.occur(inc.slot, replace)
	s.settleAgenda()
}

// recyclePause is the time between two attempts to recycle a slot.
const recyclePause = 30 * time.Second

// takeEvidence has a hung worker write down what its goroutines do: SIGQUIT
// makes the Go runtime do so, and exit.
func (s *Supervisor) takeEvidence(inc *incarnation) {
	s.log.Error("worker hangs", append(inc.fields(), journal.ID(journal.WorkerHung), zap.String("reason", inc.reason))...)
	s.tell(EventWorkerHung, inc.reason, inc)
	s.rearm()
	if processState(inc.pid()) == 'T' {
		s.kill(inc) // stopped: it cannot write anything down
		return
	}
	s.signal(inc, unix.SIGQUIT)
	s.arm(inc, evidenceMargin)
}

func (s *Supervisor) killHung(inc *incarnation) { s.kill(inc) }

func (s *Supervisor) killBloated(inc *incarnation) {
	s.log.Error("worker killed, it has too much memory", append(inc.fields(), journal.ID(journal.WorkerHung), zap.String("reason", inc.reason))...)
	s.tell(EventWorkerHung, inc.reason, inc)
	s.rearm()
	s.kill(inc)
}

// dump logs what a hung worker wrote down.
func (s *Supervisor) dump(inc *incarnation) {
	if inc.exit.Dump == "" {
		return
	}
	s.log.Error("goroutines of a hung worker", append(inc.fields(), zap.String("dump", strings.ToValidUTF8(inc.exit.Dump, "?")))...)
}
