package supervisor

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestAlarmRingsOnceAtTheTimeThatWasSetLast(t *testing.T) {
	kernel, err := newKernelAlarm()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		alarm alarm
	}{{"kernel", kernel}, {"timer", timerAlarm{time.NewTimer(time.Hour)}}} {
		t.Run(tt.name, func(t *testing.T) {
			a := tt.alarm
			defer a.close()
			await := func(atLeast time.Duration, began time.Time) {
				t.Helper()
				select {
				case <-a.rings():
					if took := time.Since(began); took < atLeast {
						t.Errorf("rang after %v, want %v or more", took, atLeast)
					}
				case <-time.After(time.Minute):
					t.Fatal("did not ring")
				}
			}
			for _, d := range []time.Duration{-time.Second, 0, time.Millisecond} {
				began := time.Now()
				a.set(d)
				await(d, began)
			}
			began := time.Now()
			a.set(time.Hour)
			a.set(20 * time.Millisecond)
			await(20*time.Millisecond, began)
			a.set(time.Hour)
			select {
			case <-a.rings():
				t.Error("rang again, an hour too early")
			default:
			}
		})
	}
}

// countedAlarm counts how often it was listened to.
type countedAlarm struct {
	alarm
	sets atomic.Int64
}

func (a *countedAlarm) set(d time.Duration) {
	a.sets.Add(1)
	a.alarm.set(d)
}

func TestIdleSupervisorDoesAllItHasToDoAtOneLook(t *testing.T) {
	settings := healthy(Health{HangTimeout: 10 * time.Second})
	var counted *countedAlarm
	var start time.Time
	prepare := func(s *Supervisor) {
		start = time.Now()
		s.clock = func() time.Duration { return time.Hour + time.Since(start) }
		counted = &countedAlarm{alarm: timerAlarm{time.NewTimer(time.Hour)}}
		s.alarm = counted
	}
	superviseWith(t, settings, serve, prepare, func(r *rig) {
		w := &ward{rig: r}
		w.beat(time.Minute, 0, 1)
		before := counted.sets.Load()
		for range 120 {
			w.beat(time.Second, 0, 1)
			if age := w.clock() - time.Duration(w.board.SupervisorBeat().Load()); age > beatEvery {
				t.Fatalf("the supervisor's heartbeat is %v old, want at most %v", age, beatEvery)
			}
		}
		// The workers' hearts beat each second: it may be nine that are seen of a timeout.
		if n := counted.sets.Load() - before; n < 12 || n > 14 {
			t.Errorf("%d looks in two minutes, want one for each hang timeout", n)
		}
	})
}
