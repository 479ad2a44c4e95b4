package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
)

// errStopping is the verdict on a reload that the end of the service cut off.
var errStopping = errors.New("the service stops")

// reload is a new generation on its way in: slot by slot a worker of the new
// release is started, proves itself beside the old one, takes over, and gets
// the old one's connections. If one fails, all slots go back to the old
// release, and the new workers hand back what they have. The supervisor's
// goroutine owns it.
type reload struct {
	requests []*reloadRequest
	began    time.Time
	from, to *release
	todo     []*slot           // not begun
	busy     []*slot           // their replacement is under way
	failure  error             // set: it rolls back
	extra    []*slot           // slots that only the new release has
	env      map[string]string // with which the new configuration was read
	begun    map[*slot]beginning
	givers   []*incarnation // that were told to hand over
	back     bool           // to the last good release: a rollback that somebody asked for
	restart  bool           // the service was restarted, and this brings what that was for
}

// reloadRequest is somebody who waits for a verdict.
type reloadRequest struct {
	env     map[string]string
	step    chan string // buffered; steps that do not fit are left out; nil: nobody waits
	verdict chan error  // buffered for one; nil: nobody waits
	back    bool        // to the last good release
	restart bool        // a restart of the service wants it
}

// judge gives the verdict.
func (q *reloadRequest) judge(err error) {
	if q.verdict != nil {
		q.verdict <- err
	}
}

func (r *reload) judge(err error) {
	for _, q := range r.requests {
		q.judge(err)
	}
}

func (r *reload) tell(format string, args ...any) {
	for _, q := range r.requests {
		select {
		case q.step <- fmt.Sprintf(format, args...):
		default:
		}
	}
}

// Reload implements control.Backend: it brings in a new generation and
// returns nil when that serves, or the reason why the old one does. A reload
// during another is run after it, together with all others that were asked
// for meanwhile. Any goroutine may call it.
func (s *Supervisor) Reload(ctx context.Context, r control.ReloadRequest, step func(string)) error {
	q := &reloadRequest{env: r.Env}
	if !r.Detach {
		q.step, q.verdict = make(chan string, 256), make(chan error, 1)
	}
	if err := s.ask(ctx, q); err != nil {
		return err
	}
	if r.Detach {
		return nil
	}
	return s.follow(ctx, q, step)
}

// follow passes on the steps of what was asked for until there is a verdict.
func (s *Supervisor) follow(ctx context.Context, q *reloadRequest, step func(string)) error {
	for {
		select {
		case text := <-q.step:
			step(text)
		case err := <-q.verdict:
			for len(q.step) > 0 {
				step(<-q.step)
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return errStopping
		}
	}
}

// requestReload begins a reload, or notes that one is wanted after the one
// that runs.
func (s *Supervisor) requestReload(q *reloadRequest) {
	switch {
	case s.phase == stopping:
		q.judge(errStopping)
	case q.back:
		s.beginRollback(q)
	case s.phase == booting, s.job != nil:
		s.enqueue(q)
	default:
		s.beginReload([]*reloadRequest{q})
	}
}

// maxQueued bounds the requests that wait for a reload under way.
const maxQueued = 128

var errManyReloads = errors.New("too many wait for a reload already")

// enqueue keeps a request for after what is under way. Of those for which
// nobody waits, the last one stands for all.
func (s *Supervisor) enqueue(q *reloadRequest) {
	if q.verdict == nil {
		s.queued = slices.DeleteFunc(s.queued, func(other *reloadRequest) bool {
			if other.verdict == nil && q.env == nil {
				q.env = other.env
			}
			q.restart = q.restart || other.verdict == nil && other.restart
			return other.verdict == nil
		})
	} else if len(s.queued) >= maxQueued {
		q.judge(errManyReloads)
		return
	}
	if q.step != nil {
		q.step <- "waits for what is under way"
	}
	s.queued = append(s.queued, q)
}

// beginReload reads the configuration beside the loop; beginRolling goes on.
func (s *Supervisor) beginReload(requests []*reloadRequest) {
	s.generations++
	generation := s.generations
	s.job = &reload{requests: requests, began: time.Now(), from: s.current}
	s.tell(EventReloadBegun, fmt.Sprintf("to generation %d", generation), nil)
	s.log.Info("reload begins", zap.Uint64("generation", generation))
	env, bySystemd := s.env, false
	for _, q := range requests {
		if q.env != nil {
			env, bySystemd = q.env, true
		}
		s.job.restart = s.job.restart || q.restart
	}
	// If systemd runs the command of ExecReload= it knows. Told of it too, it
	// waits after that command for a READY=1, even of a main process that is
	// dead: v257 and others do not look (service_enter_reload_notify).
	if !bySystemd {
		s.notified("reloading", s.conf.Notify.Reloading(s.statusLine()))
	}
	s.extendTimeout(s.current.settings.StartTimeout)
	go func() {
		settings, err := s.load(env)
		var to *release
		if err == nil {
			to, err = s.makeRelease(generation, settings, s.conf.Executable)
		}
		s.post(released{to, env, err})
	}()
}

func (s *Supervisor) beginRolling(m released) {
	r := s.job
	if r == nil { // the service stops
		if m.err == nil {
			m.release.close()
		}
		return
	}
	if m.err != nil {
		s.finish(m.err)
		return
	}
	s.storeRelease(m.release)
	s.releases = append(s.releases, m.release)
	s.rollTo(m.release, m.env)
}

// rollTo begins to replace the workers by those of a release.
func (s *Supervisor) rollTo(to *release, env map[string]string) {
	r := s.job
	r.to, r.env = to, env
	s.unsaved = true
	if s.onlyHeld(to.settings.Workers) {
		s.finish(errOnlyHeld)
		return
	}
	for _, note := range r.to.settings.Notes {
		r.tell("%s", note)
	}
	p := s.pool
	for i := len(p.slots); i < r.to.settings.Workers; i++ {
		sl := p.add()
		sl.release = r.from // until its turn comes
		r.extra = append(r.extra, sl)
	}
	for _, sl := range p.slots[:r.to.settings.Workers] {
		if sl.place == held {
			sl.release = r.to // when it is resumed
			continue
		}
		r.todo = append(r.todo, sl)
	}
	r.tell("generation %d: replacing %d workers", r.to.generation, len(r.todo))
	s.extendTimeout(r.to.settings.StartTimeout + r.to.settings.Bake + handWait)
	s.roll()
}

// roll begins as many replacements as may run at a time, or ends the reload
// when all are done.
func (s *Supervisor) roll() {
	r := s.job
	parallel := r.to.settings.Parallel
	for len(r.todo) > 0 && len(r.busy) < parallel {
		sl := r.todo[0]
		r.todo = r.todo[1:]
		r.busy = append(r.busy, sl)
		r.begin(sl)
		if r.failure == nil {
			sl.release = r.to
		} else {
			sl.release = r.from
		}
		turn := replace
		if sl.place == empty {
			turn = fill
		}
		s.occur(sl, turn)
	}
	if len(r.busy) > 0 {
		return
	}
	if r.failure != nil {
		s.finish(r.failure)
		return
	}
	s.commit()
}

func (s *Supervisor) commit() {
	r := s.job
	var surplus []*incarnation
	for len(s.pool.slots) > r.to.settings.Workers {
		sl := s.pool.removeLast()
		surplus = append(surplus, sl.servers()...)
		s.occur(sl, dismiss)
	}
	r.givers = append(r.givers, surplus...)
	s.remember(r)
	s.current, s.env = r.to, r.env
	s.current.settings.apply()
	if len(surplus) == 0 {
		s.summary(r)
		s.finish(nil)
		return
	}
	// The new generation serves. Those who wait are told what has become of
	// the workers too many before they get the verdict.
	s.conclude(nil)
	s.bid(surplus, func([]control.Handover) {
		for _, inc := range surplus {
			r.tell("worker %d: pid %d leaves%s", inc.slot.index, inc.pid(), accountOf(inc))
		}
		s.summary(r)
		r.judge(nil)
	})
}

// settled: a slot has a worker of its release that serves.
func (s *Supervisor) settled(sl *slot) {
	sl.answerWaiting(nil)
	r := s.job
	if r == nil || !slices.Contains(r.busy, sl) {
		s.progress()
		return
	}
	r.busy = slices.DeleteFunc(r.busy, func(b *slot) bool { return b == sl })
	r.tell("worker %d: %s", sl.index, r.change(sl))
	s.extendTimeout(r.to.settings.StartTimeout + r.to.settings.Bake + handWait)
	s.roll()
}

// unsettled: a slot's worker has failed to start or died.
func (s *Supervisor) unsettled(sl *slot) {
	sl.answerWaiting(errors.New(sl.lastDeath))
	r := s.job
	switch {
	case s.phase == booting:
		s.judgeStart(sl)
	case r == nil || r.to == nil || sl.release != r.to && !slices.Contains(r.busy, sl):
		// not the reload's doing
	case r.failure != nil && !slices.Contains(r.busy, sl):
		// its turn in the rollback comes
	case r.failure == nil:
		s.rollBack(fmt.Errorf("worker %d of generation %d: %s", sl.index, r.to.generation, sl.lastDeath))
	default:
		// The old release does not come up either: serve on with what is
		// there; the slot keeps trying.
		r.tell("worker %d: the old generation failed too: %s", sl.index, sl.lastDeath)
		s.log.Error("rollback incomplete", append(sl.fields(), zap.String("status", sl.lastDeath))...)
		r.busy = slices.DeleteFunc(r.busy, func(b *slot) bool { return b == sl })
		if sl.current != nil {
			sl.release = sl.current.release
		}
		s.agenda = append(s.agenda, func() {
			if s.job == r {
				s.roll()
			}
		})
	}
}

// rollBack returns every slot that the reload has touched to the release it
// came from.
func (s *Supervisor) rollBack(reason error) {
	r := s.job
	r.failure = reason
	r.tell("rolling back: %v", reason)
	s.log.Error("reload rolls back", zap.Uint64("generation", r.to.generation), zap.Error(reason))
	r.todo, r.busy = nil, nil
	for _, sl := range r.extra {
		s.occur(sl, dismiss)
	}
	s.pool.slots = slices.DeleteFunc(s.pool.slots, func(sl *slot) bool { return slices.Contains(r.extra, sl) })
	for _, sl := range s.pool.slots {
		if sl.release != r.to {
			continue
		}
		if sl.place == held {
			sl.release = r.from
			continue
		}
		if sl.current != nil && sl.current.release == r.from {
			// The old worker has not been asked to leave yet.
			sl.release = r.from
			s.occur(sl, abandon)
			continue
		}
		r.todo = append(r.todo, sl)
	}
	s.agenda = append(s.agenda, func() {
		if s.job == r {
			s.roll()
		}
	})
}

// finish gives the verdict and begins the next reload if one is wanted.
func (s *Supervisor) finish(err error) {
	r := s.job
	s.conclude(err)
	r.judge(err)
}

// conclude ends the reload but for the verdict, and begins the next one.
func (s *Supervisor) conclude(err error) {
	r := s.job
	s.job, s.lastJob = nil, r
	s.unsaved = true
	s.countReload(r, err)
	took := time.Since(r.began)
	s.lastReload = &control.Reload{Generation: s.generations, OK: err == nil, Back: r.back, At: r.began.UTC().Format(time.RFC3339), TookMS: took.Milliseconds()}
	if r.to != nil {
		s.lastReload.Generation = r.to.generation
	}
	r.sum(s.lastReload)
	if err != nil {
		s.lastReload.Reason = err.Error()
	}
	if r.back {
		s.tellRollback(r, err, took)
	} else if err != nil {
		s.tell(EventReloadFailed, fmt.Sprintf("generation %d: %v", s.lastReload.Generation, err), nil)
		s.log.Error("reload failed, the old generation serves", journal.ID(journal.ReloadRolledBack), zap.Uint64("generation", s.lastReload.Generation), zap.Error(err), zap.Duration("took", took))
	} else {
		s.tell(EventReloadDone, fmt.Sprintf("generation %d serves", s.lastReload.Generation), nil)
		s.log.Info("reload done", journal.ID(journal.ReloadDone), zap.Uint64("generation", s.lastReload.Generation), zap.Duration("took", took))
	}
	if s.phase != stopping {
		s.notified("ready", s.conf.Notify.Ready(s.statusLine()))
	}
	s.sweepReleases()
	if len(s.queued) > 0 && s.phase == running {
		requests := s.queued
		s.queued = nil
		s.beginReload(requests)
	}
}
