package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// fakes launches processes that exist only in the test. behave is asked what
// a process does with its life.
type fakes struct {
	mu       sync.Mutex
	behave   func(*fake)
	all      []*fake
	launched int
	fail     error

	launching func(order) // told of each launch; may be nil
}

type fake struct {
	order order
	pid   int
	in    chan any // link.Body or unix.Signal
	once  sync.Once
	began time.Time
	busy  atomic.Bool                     // it does not read
	heir  atomic.Pointer[order]           // of the supervisor that has adopted it
	sent  atomic.Pointer[func(link.Body)] // called by the supervisor, in the step in which it sends something
}

func (f *fakes) launch(o order) (process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.launched++
	if f.fail != nil {
		return nil, f.fail
	}
	// No process of this machine has such a number: /proc/sys/kernel/pid_max.
	p := &fake{pid: 100_000_000 + f.launched, in: make(chan any, 64), began: time.Now()}
	// What it says goes to the supervisor that it has by then.
	hooks := func() *order {
		if heir := p.heir.Load(); heir != nil {
			return heir
		}
		return &o
	}
	p.order = o
	p.order.greeted = func(h link.Hello, inbox int) { hooks().greeted(h, inbox) }
	p.order.kept = func(k link.Kept, pidfd int) { hooks().kept(k, pidfd) }
	p.order.said = func(b link.Body) { hooks().said(b) }
	p.order.answered = func(g link.Gathered, fd int) { hooks().answered(g, fd) }
	p.order.unknown = func(err error) { hooks().unknown(err) }
	p.order.exited = func(e Exit) { hooks().exited(e) }
	f.all = append(f.all, p)
	behave := f.behave
	if f.launching != nil {
		f.launching(o)
	}
	go behave(p)
	return p, nil
}

func (f *fakes) set(behave func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behave = behave
}

func (f *fakes) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.launched
}

// last returns the youngest process of a slot.
func (f *fakes) last(slot int) *fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.all) - 1; i >= 0; i-- {
		if f.all[i].order.identity.Slot == slot {
			return f.all[i]
		}
	}
	return nil
}

// every returns all processes, oldest first.
func (f *fakes) every() []*fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

func (p *fake) PID() int { return p.pid }

func (p *fake) Send(b link.Body) error {
	if p.busy.Load() {
		return link.ErrBusy
	}
	if f := p.sent.Load(); f != nil {
		(*f)(b)
	}
	p.in <- b
	return nil
}

func (p *fake) SendFile(b link.Body, fd int) error {
	if p.busy.Load() {
		return link.ErrBusy
	}
	p.in <- withFile{b, fd}
	return nil
}

// withFile is what came with a descriptor, which is still the supervisor's.
type withFile struct {
	link.Body
	fd int
}

func (p *fake) Signal(sig unix.Signal) error {
	p.in <- sig
	return nil
}

func (p *fake) exit(e Exit) { p.once.Do(func() { p.order.exited(e) }) }

func (p *fake) hello() {
	id := p.order.identity
	p.order.greeted(link.Hello{Contract: link.Contract, Incarnation: id.Incarnation, Generation: id.Generation, Build: "test"}, -1)
}

// serve is the life of a good worker that needs a second to drain.
func serve(p *fake) {
	p.hello()
	p.order.said(link.Ready{})
	live(p)
}

func live(p *fake) {
	for m := range p.in {
		switch m := m.(type) {
		case link.Drain:
			p.order.said(link.Draining{})
			time.Sleep(time.Second) // fake time: the drain lasts a second
			p.exit(Exit{})
			return
		case link.Stop:
			p.exit(Exit{})
			return
		case unix.Signal:
			if m == unix.SIGKILL {
				p.exit(Exit{Signal: m})
			} else {
				p.exit(Exit{})
			}
			return
		}
	}
}

// stubborn never drains.
func stubborn(p *fake) {
	p.hello()
	p.order.said(link.Ready{})
	for m := range p.in {
		if m == any(unix.SIGKILL) {
			p.exit(Exit{Signal: unix.SIGKILL})
			return
		}
	}
}

// mute never says a word and heeds only SIGKILL.
func mute(p *fake) {
	for m := range p.in {
		if m == any(unix.SIGKILL) {
			p.exit(Exit{Signal: unix.SIGKILL})
			return
		}
	}
}

func brokenStart(p *fake) {
	p.hello()
	p.exit(Exit{Code: 3, Words: "cannot open the database"})
}

// crashYoung is ready and dies soon after.
func crashYoung(p *fake) {
	p.hello()
	p.order.said(link.Ready{})
	select {
	case <-time.After(300 * time.Millisecond): // fake time
		p.exit(Exit{Code: 2, Words: "panic: young"})
	case m := <-p.in:
		for m == any(link.Accept{}) {
			select {
			case <-time.After(300 * time.Millisecond):
				p.exit(Exit{Code: 2, Words: "panic: young"})
				return
			case m = <-p.in:
			}
		}
		p.exit(Exit{})
	}
}

var quick = Settings{
	Workers: 2, StartTimeout: 10 * time.Second, Grace: 20 * time.Second, StopGrace: 5 * time.Second, Bake: time.Second,
	Respawn: backoff.Policy{Jitter: -1},
}

type rig struct {
	*Supervisor
	t        *testing.T
	fakes    *fakes
	settings *Settings
	loadErr  error
	ended    chan error
	cancel   context.CancelFunc
}

// supervise runs body in a bubble of fake time beside a supervisor of fake
// processes, and ends the supervisor afterwards.
func supervise(t *testing.T, settings Settings, behave func(*fake), body func(r *rig)) {
	t.Helper()
	superviseWith(t, settings, behave, func(*Supervisor) {}, body)
}

// superviseWith is supervise with a supervisor that prepare has changed.
func superviseWith(t *testing.T, settings Settings, behave func(*fake), prepare func(*Supervisor), body func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, fakes: &fakes{behave: behave}, settings: &settings, ended: make(chan error, 1)}
		conf := Config{
			Name: "test", Executable: "/bin/true", Log: zap.NewNop(),
			Sockets: []activation.Socket{{Name: "echo", FD: -1, Address: "tcp://127.0.0.1:1"}},
			Load: func(map[string]string) (Settings, error) {
				if r.loadErr != nil {
					return Settings{}, r.loadErr
				}
				return *r.settings, nil
			},
		}
		s, err := newSupervisor(conf, r.fakes, newRelease)
		if err != nil {
			t.Fatal(err)
		}
		r.Supervisor = s
		prepare(s)
		ctx, cancel := context.WithCancel(t.Context())
		r.cancel = cancel
		go func() { r.ended <- s.run(ctx) }()
		synctest.Wait()
		body(r)
		cancel()
		select {
		case <-s.done:
		case <-time.After(time.Hour):
			t.Error("the supervisor does not end")
		}
		for _, p := range r.fakes.every() {
			close(p.in)
		}
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The verbs, of which most tests want to know only whether they fail.

func (r *rig) Scale(ctx context.Context, q control.ScaleRequest) error {
	_, err := r.Supervisor.Scale(ctx, q)
	return err
}

func (r *rig) Recycle(ctx context.Context, q control.SlotRequest) error {
	_, err := r.Supervisor.Recycle(ctx, q)
	return err
}

func (r *rig) Drain(ctx context.Context, q control.SlotRequest) error {
	_, err := r.Supervisor.Drain(ctx, q)
	return err
}

func (r *rig) status() control.Status {
	r.t.Helper()
	st, err := r.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// expect fails unless the service is in the state, with slots of the given
// generations ready.
func (r *rig) expect(state string, generations ...uint64) {
	r.t.Helper()
	synctest.Wait()
	st := r.status()
	if st.State != state {
		r.t.Errorf("state %q (%s), want %q", st.State, st.Reason, state)
	}
	got := []uint64{}
	for _, w := range st.Pools[0].Workers {
		if w.State == "ready" {
			got = append(got, w.Generation)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(append([]uint64{}, generations...)) {
		r.t.Errorf("ready workers of generations %v, want %v", got, generations)
	}
}

func (r *rig) reload() error {
	return r.Reload(r.t.Context(), control.ReloadRequest{}, func(string) {})
}

func TestFirstGenerationBecomesReady(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.expect(control.StateServing, 1, 1)
		if got := r.status().Pools[0].Workers[0].Build; got != "test" {
			t.Errorf("build %q, want test", got)
		}
	})
}

func TestStopDrainsEveryWorkerAndLeavesNone(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		if err := r.Stop(r.t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-r.ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		if len(r.incarnations) != 0 {
			t.Errorf("%d workers left", len(r.incarnations))
		}
	})
}

func TestStubbornWorkerIsKilledWhenTheDrainIsOver(t *testing.T) {
	supervise(t, quick, stubborn, func(r *rig) {
		began := time.Now()
		r.Stop(r.t.Context())
		if err := <-r.ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		if took, want := time.Since(began), quick.StopGrace+drainMargin; took != want {
			t.Errorf("took %v, want %v", took, want)
		}
	})
}

func TestSecondStopHastens(t *testing.T) {
	supervise(t, quick, stubborn, func(r *rig) {
		began := time.Now()
		r.Stop(r.t.Context())
		r.Stop(r.t.Context())
		<-r.ended
		if took := time.Since(began); took != hastenMargin {
			t.Errorf("took %v, want %v", took, hastenMargin)
		}
	})
}

func TestBrokenFirstGenerationIsAFailedStart(t *testing.T) {
	supervise(t, quick, brokenStart, func(r *rig) {
		err := <-r.ended
		var start *StartError
		if !errors.As(err, &start) || !strings.Contains(err.Error(), "cannot open the database") {
			t.Errorf("ended with %v, want a StartError with the last words", err)
		}
		// The first slot with three failures ends it.
		if n := r.fakes.count(); n < 5 || n > 6 {
			t.Errorf("%d processes for 2 slots and 3 attempts", n)
		}
	})
}

func TestFirstGenerationThatHangsIsAFailedStart(t *testing.T) {
	supervise(t, quick, mute, func(r *rig) {
		began := time.Now()
		err := <-r.ended
		if err == nil || !strings.Contains(err.Error(), "not ready within 10s") {
			t.Errorf("ended with %v", err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestWorkerThatCannotBeStartedIsTriedAgainLater(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.mu.Lock()
		r.fakes.fail = errors.New("no memory")
		r.fakes.mu.Unlock()
		r.fakes.last(1).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		r.expect(control.StateDegraded, 1)
		st := r.status()
		if w := st.Pools[0].Workers[1]; w.State != "backing off" || !strings.Contains(w.LastDeath, "no memory") {
			t.Errorf("slot 1 is %+v", w)
		}
	})
}

func TestKilledWorkerIsRespawnedAtOnceAndTheOthersAreNotTouched(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		untouched := r.fakes.last(1)
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond) // lets timers that are due fire
		r.expect(control.StateServing, 1, 1)
		st := r.status()
		if w := st.Pools[0].Workers[0]; w.Respawns != 1 || !strings.Contains(w.LastDeath, "SIGKILL") {
			t.Errorf("slot 0 is %+v", w)
		}
		if r.fakes.last(1) != untouched {
			t.Error("slot 1 got another worker")
		}
		if p := r.fakes.last(0).order.identity.Predecessor; p == nil || p.Class != ClassSignal {
			t.Errorf("the successor is told %+v of its predecessor", p)
		}
	})
}

func TestEachDeathForWantOfMemoryIsToldAsOne(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		kills := uint64(0)
		r.kernelKills = func() uint64 { return kills } // of the cgroup, all at once
		kills = r.oomKills + 2
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		r.fakes.last(1).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond) // lets timers that are due fire
		for slot := range 2 {
			if p := r.fakes.last(slot).order.identity.Predecessor; p == nil || p.Class != ClassOOM || !strings.Contains(p.Detail, "out of memory") {
				t.Errorf("slot %d is told %+v of its predecessor, want class %s", slot, p, ClassOOM)
			}
		}
		// Whoever is killed by somebody else is not one of them.
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Minute)
		if p := r.fakes.last(0).order.identity.Predecessor; p == nil || p.Class != ClassSignal {
			t.Errorf("slot 0 is told %+v of its predecessor, want class %s", p, ClassSignal)
		}
	})
}

func TestCrashLoopIsDelayedMoreAndMore(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(brokenStart)
		before := r.fakes.count()
		r.fakes.last(0).exit(Exit{Code: 3})
		time.Sleep(time.Minute)
		r.expect(control.StateDegraded, 1)
		// At once, then after 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6 s.
		if n := r.fakes.count() - before; n < 7 || n > 10 {
			t.Errorf("%d starts in a minute", n)
		}
		st := r.status()
		if w := st.Pools[0].Workers[0]; w.RetryMS <= 0 || w.StartFailures < 6 || w.Respawns != 1 {
			t.Errorf("slot 0 is %+v", w)
		}
		r.fakes.set(serve)
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 1, 1)
	})
}

func TestReloadReplacesEverySlotAndTheOldOnesDrain(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 2, 2)
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 2, 2)
		if n := len(r.status().Pools[0].Workers); n != 2 {
			t.Errorf("%d workers a minute after the reload, want 2", n)
		}
	})
}

func TestOldWorkerServesUntilTheNewOneHasProvedItself(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdict := make(chan error)
		go func() { verdict <- r.reload() }()
		time.Sleep(quick.Bake / 2)
		r.expect(control.StateReloading, 1, 2, 1)
		if err := <-verdict; err != nil {
			t.Error(err)
		}
	})
}

func TestReloadThatCannotStartIsRolledBack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		behave func(*fake)
		want   string
	}{
		{"exits", brokenStart, "cannot open the database"},
		{"hangs", mute, "not ready within 10s"},
		{"crashes young", crashYoung, "panic: young"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			supervise(t, quick, serve, func(r *rig) {
				old0, old1 := r.fakes.last(0), r.fakes.last(1)
				r.fakes.set(tt.behave)
				err := r.reload()
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("verdict %v, want it to say %q", err, tt.want)
				}
				r.expect(control.StateServing, 1, 1)
				st := r.status()
				if st.Generation != 1 || st.LastReload == nil || st.LastReload.OK || st.LastReload.Generation != 2 || !strings.Contains(st.LastReload.Reason, tt.want) {
					t.Errorf("status %+v, last reload %+v", st, st.LastReload)
				}
				for _, w := range st.Pools[0].Workers {
					if w.State == "ready" && w.PID != old0.pid && w.PID != old1.pid {
						t.Errorf("pid %d serves, want the old %d and %d", w.PID, old0.pid, old1.pid)
					}
				}
				r.fakes.set(serve)
				if err := r.reload(); err != nil {
					t.Fatal(err)
				}
				r.expect(control.StateServing, 3, 3)
			})
		})
	}
}

func TestReloadThatFailsInTheMiddleReturnsEverySlot(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(func(p *fake) {
			if p.order.identity.Generation == 2 && p.order.identity.Slot == 1 {
				brokenStart(p)
				return
			}
			serve(p)
		})
		err := r.reload()
		if err == nil || !strings.Contains(err.Error(), "worker 1 of generation 2") {
			t.Fatalf("verdict %v", err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestRollbackThatFailsTooServesOnAndSaysSo(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(func(p *fake) {
			if p.order.identity.Generation == 2 && p.order.identity.Slot == 0 {
				serve(p)
				return
			}
			brokenStart(p)
		})
		if err := r.reload(); err == nil {
			t.Fatal("reloaded")
		}
		r.expect(control.StateDegraded, 2, 1)
	})
}

func TestDeathOfATakenOverWorkerDuringTheReloadRollsBack(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdict := make(chan error)
		go func() { verdict <- r.reload() }()
		time.Sleep(quick.Bake + quick.Bake/2)
		r.expect(control.StateReloading, 2, 1, 2)
		r.fakes.last(0).exit(Exit{Code: 2, Words: "panic: later"})
		if err := <-verdict; err == nil || !strings.Contains(err.Error(), "panic: later") {
			t.Errorf("verdict %v", err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestDeathOfAnOldWorkerDuringTheReloadDoesNotFailIt(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdict := make(chan error)
		go func() { verdict <- r.reload() }()
		time.Sleep(quick.Bake / 2)
		for _, p := range r.fakes.every()[:2] {
			p.exit(Exit{Signal: unix.SIGKILL})
		}
		if err := <-verdict; err != nil {
			t.Errorf("verdict %v", err)
		}
		r.expect(control.StateServing, 2, 2)
	})
}

func TestBrokenConfigurationEndsAReloadBeforeAnythingChanges(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		before := r.fakes.count()
		r.loadErr = errors.New("app.toml:3: key \"wrokers\" is unknown")
		if err := r.reload(); err == nil || !strings.Contains(err.Error(), "wrokers") {
			t.Errorf("verdict %v", err)
		}
		if r.fakes.count() != before {
			t.Error("a process was started")
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestReloadDuringAReloadIsRunOnceAfterIt(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdicts := make(chan error)
		for range 4 {
			go func() { verdicts <- r.reload() }()
			synctest.Wait()
		}
		for range 4 {
			if err := <-verdicts; err != nil {
				t.Error(err)
			}
		}
		r.expect(control.StateServing, 3, 3)
	})
}

func TestReloadGoesOnWhenItsCallerLeaves(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		ctx, cancel := context.WithTimeout(r.t.Context(), quick.Bake/2)
		defer cancel()
		if err := r.Reload(ctx, control.ReloadRequest{}, func(string) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller gets %v", err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 2, 2)
		if lr := r.status().LastReload; lr == nil || !lr.OK {
			t.Errorf("last reload %+v", lr)
		}
	})
}

func TestReloadChangesTheNumberOfWorkers(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.settings.Workers = 4
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 2, 2, 2, 2)
		r.settings.Workers = 1
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 3)
		time.Sleep(time.Minute)
		if n := len(r.status().Pools[0].Workers); n != 1 {
			t.Errorf("%d workers, want 1", n)
		}
	})
}

func TestFailedReloadRemovesTheSlotsItAdded(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.settings.Workers = 4
		r.fakes.set(func(p *fake) {
			if p.order.identity.Slot == 3 {
				brokenStart(p)
				return
			}
			serve(p)
		})
		if err := r.reload(); err == nil {
			t.Fatal("reloaded")
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 1, 1)
		if n := len(r.status().Pools[0].Workers); n != 2 {
			t.Errorf("%d workers, want 2", n)
		}
	})
}

func TestScaleFillsAndDismissesSlots(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		scale := func(n int) error { return r.Scale(r.t.Context(), control.ScaleRequest{N: n}) }
		if err := scale(5); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 1, 1, 1, 1, 1)
		if err := scale(2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 1, 1)
		for _, n := range []int{-1, 0, MaxWorkers + 1} {
			if err := scale(n); !errors.Is(err, control.ErrInvalid) {
				t.Errorf("scale %d: %v", n, err)
			}
		}
		if err := r.Scale(r.t.Context(), control.ScaleRequest{Pool: "nobody", N: 2}); !errors.Is(err, control.ErrInvalid) {
			t.Errorf("unknown pool: %v", err)
		}
	})
}

func TestNoMoreThanMaxOldWorkersOfASlotDrain(t *testing.T) {
	settings := quick
	settings.Workers, settings.Grace = 1, time.Hour
	slow := func(p *fake) { // drains until it is hastened
		p.hello()
		p.order.said(link.Ready{})
		for m := range p.in {
			if _, ok := m.(link.Stop); ok || m == any(unix.SIGKILL) {
				p.exit(Exit{})
				return
			}
		}
	}
	supervise(t, settings, slow, func(r *rig) {
		for range 5 {
			if err := r.reload(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		n := 0
		for _, w := range r.status().Pools[0].Workers {
			if w.State == "draining" {
				n++
			}
		}
		if n != 2 {
			t.Errorf("%d old workers drain, want 2", n)
		}
	})
}

func TestWorkerThatLeavesByItselfIsReplaced(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		p := r.fakes.last(0)
		p.order.said(link.Draining{})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		r.expect(control.StateServing, 1, 1)
		if r.fakes.last(0) == p {
			t.Error("not replaced")
		}
		p.exit(Exit{})
	})
}

func TestOthersRearmWhenAWorkerDiesOrPauses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		happen func(*fake)
	}{
		{"dies", func(p *fake) { p.exit(Exit{Signal: unix.SIGKILL}) }},
		{"pauses", func(p *fake) { p.order.said(link.Paused{Listener: "echo", Reason: "EMFILE"}) }},
		{"leaves", func(p *fake) { p.order.said(link.Draining{}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var armed chan *fake
			rearming := func(p *fake) {
				p.hello()
				p.order.said(link.Ready{})
				for m := range p.in {
					switch m.(type) {
					case link.Rearm:
						armed <- p
					case link.Drain, unix.Signal:
						p.exit(Exit{})
					}
				}
			}
			supervise(t, quick, serve, func(r *rig) {
				armed = make(chan *fake, 16) // of this bubble
				r.fakes.set(rearming)
				if err := r.Scale(r.t.Context(), control.ScaleRequest{N: 3}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				sibling := r.fakes.last(2)
				tt.happen(r.fakes.last(0))
				synctest.Wait()
				select {
				case p := <-armed:
					if p != sibling {
						t.Errorf("pid %d was told to rearm, want %d", p.pid, sibling.pid)
					}
				default:
					t.Error("nobody was told to rearm")
				}
				r.fakes.last(0).exit(Exit{})
			})
		})
	}
}

func TestRequestsThatNobodyWaitsForAreOneReload(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdict := make(chan error)
		go func() { verdict <- r.reload() }()
		synctest.Wait()
		for range 1000 {
			if err := r.Reload(r.t.Context(), control.ReloadRequest{Detach: true}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-verdict; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 3, 3)
	})
}

func TestWorkerThatCannotBeUnderstoodIsToldToDrain(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		p := r.fakes.last(0)
		p.order.unknown(errors.New("message of unknown kind 99"))
		synctest.Wait()
		time.Sleep(time.Second + time.Millisecond) // a good worker's drain
		r.expect(control.StateServing, 1, 1)
		if r.fakes.last(0) == p {
			t.Error("not replaced")
		}
		if n := len(r.status().Pools[0].Workers); n != 2 {
			t.Errorf("%d workers: it was not told to leave", n)
		}
	})
}

func TestReleaseThatCrashesInASlotThatWasEmptyIsRolledBackToo(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(brokenStart)
		for range 4 {
			r.fakes.last(0).exit(Exit{Code: 3}) // from now on slot 0 backs off
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		r.fakes.set(crashYoung)
		if err := r.reload(); err == nil || !strings.Contains(err.Error(), "panic: young") {
			t.Errorf("verdict %v", err)
		}
		if g := r.status().Generation; g != 1 {
			t.Errorf("generation %d serves, want 1", g)
		}
	})
}

func TestStatusAfterTheEndIsAnError(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.Stop(r.t.Context())
		<-r.ended
		for range 50 {
			if st, err := r.Status(r.t.Context()); err == nil {
				t.Fatalf("status %+v", st)
			}
		}
	})
}

func TestStopDuringAReloadEndsBoth(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		verdict := make(chan error)
		go func() { verdict <- r.reload() }()
		time.Sleep(quick.Bake / 2)
		r.Stop(r.t.Context())
		if err := <-verdict; !errors.Is(err, errStopping) {
			t.Errorf("verdict %v, want %v", err, errStopping)
		}
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	})
}

// adopt finds the process of that number: it has outlived its supervisor.
func (f *fakes) adopt(o order, pid int, r remains) (process, error) {
	r.close()
	for _, p := range f.every() {
		if p.pid == pid {
			p.heir.Store(&o)
			return p, nil
		}
	}
	return nil, fmt.Errorf("no process %d", pid)
}
