package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// ward is a rig whose clock is the bubble's, with workers that sit on the
// scoreboard.
type ward struct {
	*rig
	memory sync.Map // pid to bytes, int64
}

// nurse runs body with workers whose hearts beat each second until healthy
// says no.
func nurse(t *testing.T, settings Settings, behave func(*fake), body func(w *ward)) {
	t.Helper()
	w := &ward{}
	prepare := func(s *Supervisor) {
		start := time.Now()
		s.clock = func() time.Duration { return time.Hour + time.Since(start) }
		s.resident = func(pid int) int64 {
			bytes, _ := w.memory.LoadOrStore(pid, int64(0))
			return bytes.(int64)
		}
	}
	superviseWith(t, settings, behave, prepare, func(r *rig) {
		w.rig = r
		body(w)
	})
}

// seat returns the seat of the youngest process of a slot.
func (w *ward) seat(slot int) *scoreboard.Seat {
	return w.board.Seat(w.fakes.last(slot).order.identity.Seat)
}

// beat has the hearts of the given slots beat for d.
func (w *ward) beat(d time.Duration, slots ...int) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, i := range slots {
			w.seat(i).Heartbeat.Store(int64(w.clock()))
		}
		time.Sleep(time.Second) // fake time
	}
}

func healthy(h Health) Settings {
	s := quick
	s.Health = h
	return s
}

func TestWorkerThatHangsIsAskedForEvidenceThenKilledAndReplaced(t *testing.T) {
	heard := make(chan string, 8)
	// The first worker of slot 0 is as one that was stopped: only SIGKILL ends it.
	stopped := func(p *fake) {
		if p.order.identity.Incarnation != 1 {
			serve(p)
			return
		}
		p.hello()
		p.order.said(link.Ready{})
		for m := range p.in {
			if sig, ok := m.(unix.Signal); ok {
				heard <- unix.SignalName(sig)
				if sig == unix.SIGKILL {
					p.exit(Exit{Signal: sig, Dump: "goroutine 1"})
				}
			}
		}
	}
	nurse(t, healthy(Health{HangTimeout: 8 * time.Second}), stopped, func(w *ward) {
		w.seat(0).SetHandler("chat", 77, int64(w.clock()))
		began := time.Now()
		w.beat(14*time.Second, 1)
		if got := <-heard; got != "SIGQUIT" {
			t.Errorf("first told %v, want SIGQUIT", got)
		}
		if got := <-heard; got != "SIGKILL" {
			t.Errorf("then told %v, want SIGKILL", got)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
		w.expect(control.StateServing, 1, 1)
		st := w.status().Pools[0].Workers[0]
		if !strings.Contains(st.LastDeath, "has not turned for") || !strings.Contains(st.LastDeath, `listener "chat" for connection 77`) || st.Respawns != 1 {
			t.Errorf("slot 0 is %+v", st)
		}
		if p := w.fakes.last(0).order.identity.Predecessor; p == nil || p.Class != ClassHung {
			t.Errorf("predecessor %+v, want class %s", p, ClassHung)
		}
	})
}

func TestWorkerWhoseHeartBeatsIsLeftAlone(t *testing.T) {
	nurse(t, healthy(Health{HangTimeout: 4 * time.Second}), serve, func(w *ward) {
		before := w.fakes.count()
		w.beat(time.Minute, 0, 1)
		if n := w.fakes.count(); n != before {
			t.Errorf("%d workers were started", n-before)
		}
	})
}

func TestHangIsFoundAtOnceAndHealthyWorkersAreLeftToSleep(t *testing.T) {
	for _, tt := range []struct {
		name   string
		health Health
		fewest time.Duration // between two looks at workers that are well
	}{
		{"hang timeout", Health{HangTimeout: 10 * time.Second}, 8 * time.Second},
		{"shorter handler timeout", Health{HangTimeout: 10 * time.Second, HandlerTimeout: 4 * time.Second}, 4 * time.Second},
		{"no timeout", Health{HangTimeout: -1}, 20 * time.Second},
		{"memory is sampled", Health{HangTimeout: 10 * time.Second, MemorySoft: 100}, 2500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nurse(t, healthy(tt.health), serve, func(w *ward) {
				w.beat(time.Minute, 0, 1)
				next := w.nextLook()
				for range 5 {
					seen := next
					for next == seen {
						w.beat(time.Second, 0, 1)
						next = w.nextLook()
					}
					if d := next.Sub(seen); d < tt.fewest {
						t.Errorf("%v between two looks, want %v or more", d, tt.fewest)
					}
				}
			})
		})
	}
	nurse(t, healthy(Health{HangTimeout: 10 * time.Second}), serve, func(w *ward) {
		w.beat(time.Minute, 0, 1)
		began := w.clock()
		w.seat(0).Heartbeat.Store(int64(began))
		for hung := false; !hung; {
			w.beat(time.Second, 1)
			hung = w.status().Pools[0].Workers[0].Respawns == 1
			if w.clock()-began > 20*time.Second {
				t.Fatal("not found")
			}
		}
		if took := w.clock() - began; took > 12*time.Second {
			t.Errorf("found after %v, want 10 s and the second in which it is noticed here", took)
		}
	})
}

// nextLook asks the supervisor's goroutine when it looks at the workers next.
func (w *ward) nextLook() time.Time {
	reply := make(chan time.Time, 1)
	w.post(verb{do: func(s *Supervisor, _ *slot, _ chan outcome) { reply <- s.lookDue }, verdict: make(chan outcome, 1)})
	return <-reply
}

func TestCallbackThatNeverEndsIsAHang(t *testing.T) {
	nurse(t, healthy(Health{HandlerTimeout: 5 * time.Second}), serve, func(w *ward) {
		w.seat(1).PoolOldest.Store(int64(w.clock()))
		w.beat(12*time.Second, 0, 1)
		if st := w.status().Pools[0].Workers[1]; st.Respawns != 1 || !strings.Contains(st.LastDeath, "a callback has been running") {
			t.Errorf("slot 1 is %+v", st)
		}
		w.expect(control.StateServing, 1, 1)
	})
}

func TestCallbackOfWhichASleepingLoopHasToldLastIsNotAHang(t *testing.T) {
	nurse(t, healthy(Health{HandlerTimeout: 500 * time.Millisecond, HangTimeout: 3 * time.Second}), serve, func(w *ward) {
		before := w.fakes.count()
		for range 20 {
			// One runs as the loop turns, returns, and nothing happens for a second.
			w.seat(1).PoolOldest.Store(int64(w.clock() - 10*time.Millisecond))
			w.beat(time.Second, 0, 1)
		}
		if n := w.fakes.count(); n != before {
			t.Errorf("%d workers were started: %s", n-before, w.status().Pools[0].Workers[1].LastDeath)
		}
	})
}

func TestWorkerWithTooMuchMemoryIsKilled(t *testing.T) {
	nurse(t, healthy(Health{MemoryHard: 100}), serve, func(w *ward) {
		w.memory.Store(w.fakes.last(0).pid, int64(101))
		w.beat(10*time.Second, 0, 1)
		if st := w.status().Pools[0].Workers[0]; st.Respawns != 1 || !strings.Contains(st.LastDeath, "memory_hard is 100") {
			t.Errorf("slot 0 is %+v", st)
		}
	})
}

func TestWorkersAreRecycledOneAtATimeReplacementFirst(t *testing.T) {
	for _, tt := range []struct {
		name   string
		health Health
		fall   func(w *ward)
	}{
		{"memory", Health{MemorySoft: 100}, func(w *ward) {
			w.memory.Store(w.fakes.last(0).pid, int64(101))
			w.memory.Store(w.fakes.last(1).pid, int64(101))
		}},
		{"messages", Health{MaxMessages: 1000}, func(w *ward) {
			w.seat(0).Messages.Store(1101)
			w.seat(1).Messages.Store(1101)
		}},
		{"age", Health{MaxAge: time.Minute}, func(w *ward) { w.beat(67*time.Second, 0, 1) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nurse(t, healthy(tt.health), serve, func(w *ward) {
				old0, old1 := w.fakes.last(0), w.fakes.last(1)
				tt.fall(w)
				for range 20 {
					w.beat(time.Second, 0, 1)
					ready, trial := 0, 0
					for _, st := range w.status().Pools[0].Workers {
						if st.State == "ready" {
							ready++
						}
					}
					for _, place := range w.places() {
						if place == replacing.String() || place == proving.String() {
							trial++
						}
					}
					if ready < 2 || trial > 1 {
						t.Fatalf("%d ready, %d being replaced", ready, trial)
					}
				}
				if w.fakes.last(0) == old0 || w.fakes.last(1) == old1 {
					t.Error("not both were recycled")
				}
				if st := w.status().Pools[0]; st.Respawns != 0 {
					t.Errorf("%d respawns: a recycling is no death", st.Respawns)
				}
			})
		})
	}
}

// places asks the supervisor's goroutine for the state of each slot.
func (w *ward) places() []string {
	reply := make(chan []string, 1)
	w.post(verb{do: func(s *Supervisor, _ *slot, _ chan outcome) {
		var p []string
		for _, sl := range s.pool.slots {
			p = append(p, sl.place.String())
		}
		reply <- p
	}, verdict: make(chan outcome, 1)})
	return <-reply
}

func TestRecycleReplacesOneWorkerAndWaits(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		old, other := r.fakes.last(0), r.fakes.last(1)
		if err := r.Recycle(r.t.Context(), control.SlotRequest{Slot: 0}); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 1, 1)
		if r.fakes.last(0) == old || r.fakes.last(1) != other {
			t.Error("the wrong workers were replaced")
		}
		r.fakes.set(brokenStart)
		if err := r.Recycle(r.t.Context(), control.SlotRequest{Slot: 1}); err == nil || !strings.Contains(err.Error(), "cannot open the database") {
			t.Errorf("verdict %v", err)
		}
		r.expect(control.StateServing, 1, 1)
		if r.fakes.last(1) == other {
			t.Error("nothing was tried")
		}
	})
}

func TestDrainedSlotStaysEmptyUntilItIsResumed(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		ctx := r.t.Context()
		if err := r.Drain(ctx, control.SlotRequest{Slot: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 1)
		if w := r.status().Pools[0].Workers[1]; w.State != "held" || w.PID != 0 {
			t.Errorf("slot 1 is %+v", w)
		}
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 2)
		if err := r.Drain(ctx, control.SlotRequest{Slot: 0}); err == nil {
			t.Error("the last worker was drained")
		}
		if err := r.Drain(ctx, control.SlotRequest{Slot: 1}); err == nil {
			t.Error("drained twice")
		}
		if err := r.Resume(ctx, control.SlotRequest{Slot: 1}); err != nil {
			t.Fatal(err)
		}
		r.expect(control.StateServing, 2, 2)
		if err := r.Resume(ctx, control.SlotRequest{Slot: 1}); err == nil {
			t.Error("resumed twice")
		}
		for _, bad := range []control.SlotRequest{{Slot: -1}, {Slot: 2}, {Pool: "nobody"}} {
			if err := r.Recycle(ctx, bad); !errors.Is(err, control.ErrInvalid) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	})
}

func TestEventsAreToldAsTheyHappen(t *testing.T) {
	one := quick
	one.Workers = 1
	supervise(t, one, serve, func(r *rig) {
		ctx, cancel := context.WithCancel(r.t.Context())
		var kinds []string
		ended := make(chan error)
		go func() {
			ended <- r.Events(ctx, true, func(e control.Event) { kinds = append(kinds, fmt.Sprint(e.Kind, " ", e.Slot)) })
		}()
		synctest.Wait()
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		want := "[worker-ready 0 service-ready -1 worker-died 0 worker-ready 0]"
		if got := fmt.Sprint(kinds); got != want {
			t.Errorf("events %s, want %s", got, want)
		}
	})
}

func TestListenerOfEventsThatFallsBehindIsToldSo(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		blocked := make(chan struct{})
		ended := make(chan error)
		go func() { ended <- r.Events(r.t.Context(), true, func(control.Event) { <-blocked }) }()
		synctest.Wait()
		for range eventsWaiting + 2 {
			r.fakes.last(0).order.said(link.Paused{Listener: "echo"})
		}
		synctest.Wait()
		close(blocked)
		if err := <-ended; !errors.Is(err, errBehind) {
			t.Errorf("ended with %v, want %v", err, errBehind)
		}
	})
}

func TestReloadTakesASlotThatIsBeingRecycledAlong(t *testing.T) {
	for _, moment := range []time.Duration{0, quick.Bake / 2} {
		supervise(t, quick, serve, func(r *rig) {
			recycled := make(chan error, 1)
			go func() { recycled <- r.Recycle(r.t.Context(), control.SlotRequest{Slot: 0}) }()
			time.Sleep(moment)
			if err := r.reload(); err != nil {
				t.Error(err)
			}
			<-recycled
			time.Sleep(time.Minute)
			r.expect(control.StateServing, 2, 2)
		})
	}
}

func TestHeldSlotsAreNeverAllThatIsLeft(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		if err := r.Drain(r.t.Context(), control.SlotRequest{Slot: 0}); err != nil {
			t.Fatal(err)
		}
		if err := r.Scale(r.t.Context(), control.ScaleRequest{N: 1}); !errors.Is(err, errOnlyHeld) {
			t.Errorf("scaled to the held slot: %v", err)
		}
		r.settings.Workers = 1
		if err := r.reload(); !errors.Is(err, errOnlyHeld) {
			t.Errorf("reloaded to the held slot: %v", err)
		}
		time.Sleep(time.Minute)
		r.expect(control.StateServing, 1)
	})
}
