package supervisor

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// configured is settings whose configuration says something.
func configured(settings Settings, text string) Settings {
	settings.Memo = []byte(text)
	return settings
}

func (r *rig) rollback() (steps []string, err error) {
	err = r.Rollback(context.Background(), func(step string) { steps = append(steps, step) })
	return steps, err
}

func (r *rig) wantGood(generation uint64) {
	r.t.Helper()
	switch st := r.look(); {
	case generation == 0 && st.LastGood != nil:
		r.t.Errorf("the last good release is %+v, want none", *st.LastGood)
	case generation != 0 && (st.LastGood == nil || st.LastGood.Generation != generation):
		r.t.Errorf("the last good release is %+v, want generation %d", st.LastGood, generation)
	}
}

func TestRollbackReturnsToWhatServedBeforeAndAReloadGoesForwardAgain(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		r.wantGood(0)
		*r.settings = configured(quick, "two")
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.wantGood(1)
		steps, err := r.rollback()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"generation 1: replacing 2 workers", "worker 0: pid ", "worker 1: pid "} {
			if !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("steps %q lack %q", steps, want)
			}
		}
		r.expect(control.StateServing, 1, 1)
		r.wantGood(0)
		st := r.status()
		if st.Generation != 1 || st.Release.Generation != 1 || st.LastReload == nil || !st.LastReload.OK || !st.LastReload.Back || st.LastReload.Generation != 1 {
			t.Errorf("status %+v, last reload %+v", st, st.LastReload)
		}
		if _, err := r.rollback(); err == nil || !strings.Contains(err.Error(), "no earlier release") {
			t.Errorf("a second rollback: %v, want a refusal", err)
		}
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 3, 3)
		r.wantGood(1)
	})
}

func TestRollbackWithoutAnEarlierReleaseIsRefused(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		if _, err := r.rollback(); err == nil || !strings.Contains(err.Error(), "no earlier release") {
			t.Errorf("%v, want a refusal", err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestReloadThatBringsNothingNewLeavesTheLastGoodReleaseAsItIs(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		for range 3 {
			if err := r.reload(); err != nil {
				t.Fatal(err)
			}
		}
		r.wantGood(1)
		*r.settings = configured(quick, "three")
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.wantGood(4)
	})
}

func TestReloadThatFailsLeavesTheLastGoodReleaseAsItIs(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		*r.settings = configured(quick, "three")
		r.fakes.set(brokenStart)
		if err := r.reload(); err == nil {
			t.Fatal("the reload has not failed")
		}
		r.fakes.set(serve)
		r.wantGood(1)
		if _, err := r.rollback(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestRollbackWhoseWorkersDoNotStartLeavesTheNewerOnes(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.fakes.set(brokenStart)
		if _, err := r.rollback(); err == nil || !strings.Contains(err.Error(), "cannot open the database") {
			t.Errorf("%v, want why the workers do not start", err)
		}
		r.fakes.set(serve)
		r.expect(control.StateServing, 2, 2)
		r.wantGood(1)
	})
}

func TestRollbackDuringAReloadIsRefused(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		verdict := make(chan error, 1)
		go func() { verdict <- r.reload() }()
		synctest.Wait()
		if _, err := r.rollback(); err == nil || !strings.Contains(err.Error(), "under way") {
			t.Errorf("%v, want a refusal", err)
		}
		if err := <-verdict; err != nil {
			t.Error(err)
		}
	})
}

func TestRollbackReturnsToTheNumberOfWorkersOfThen(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		more := configured(quick, "two")
		more.Workers = 3
		*r.settings = more
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 2, 2, 2)
		if _, err := r.rollback(); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}

func TestLastGoodReleaseOutlivesTheSupervisor(t *testing.T) {
	succession(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		if err := r.Reload(context.Background(), control.ReloadRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}, true, nil, func(r *rig) {
		r.wantGood(1)
		if _, err := r.rollback(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := r.look(); st.State != control.StateServing || st.Generation != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestRollbackCutOffIsTakenBack(t *testing.T) {
	succession(t, configured(quick, "one"), serve, func(r *rig) {
		*r.settings = configured(quick, "two")
		if err := r.Reload(context.Background(), control.ReloadRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		go r.rollback()
		time.Sleep(1500 * time.Millisecond) // fake time: one slot is done, the other is on trial
	}, true, nil, func(r *rig) {
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		st := r.look()
		if st.State != control.StateServing || st.Generation != 2 || st.LastReload == nil || st.LastReload.OK || !st.LastReload.Back {
			t.Errorf("status %+v, last reload %+v", st, st.LastReload)
		}
		r.wantGood(1)
	})
}

func TestStatusIsToldWhileAReloadAddsWorkers(t *testing.T) {
	supervise(t, configured(quick, "one"), serve, func(r *rig) {
		more := configured(quick, "two")
		more.Workers = 4
		*r.settings = more
		verdict := make(chan error, 1)
		go func() { verdict <- r.reload() }()
		synctest.Wait()
		st := r.status()
		if n := len(st.Pools[0].Workers); n < 4 || st.State != control.StateReloading {
			t.Errorf("%d workers, %s; want the slots of the new release", n, st.State)
		}
		if err := <-verdict; err != nil {
			t.Error(err)
		}
		r.expect(control.StateServing, 2, 2, 2, 2)
	})
}
