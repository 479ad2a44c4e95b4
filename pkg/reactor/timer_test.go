package reactor

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// expiry notes when it is called.
type expiry struct {
	Deadline
	calls []time.Duration
	then  func()
}

func (e *expiry) OnDeadline(now time.Duration) {
	e.calls = append(e.calls, now)
	if e.then != nil {
		e.then()
	}
}

// newWheelLoop makes a loop whose wheel the test turns itself.
func newWheelLoop(t testing.TB) *Loop {
	t.Helper()
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	l.wheel.init(0)
	return l
}

func TestDeadlineIsNeverEarlyAndHardlyLate(t *testing.T) {
	for _, at := range []time.Duration{
		1, tick - 1, tick, tick + 1, 10 * tick, time.Second, 64 * time.Second,
		wheelSlots * tick, wheelSlots*tick + 1, 3*wheelSlots*tick + 5*tick/2, time.Hour,
	} {
		t.Run(at.String(), func(t *testing.T) {
			l := newWheelLoop(t)
			e := new(expiry)
			l.Arm(&e.Deadline, at, e)
			if got, ok := e.Armed(); got != at || !ok {
				t.Errorf("Armed %v, %v, want %v, true", got, ok, at)
			}
			// As the loop does: sleep until the wheel says, then turn it.
			for range 1000 {
				now, ok := l.wheel.next()
				if !ok {
					break
				}
				l.wheel.expire(now)
			}
			if len(e.calls) != 1 {
				t.Fatalf("called at %v, want once", e.calls)
			}
			if got := e.calls[0]; got < at || got > at+2*tick {
				t.Errorf("called at %v, want from %v to %v", got, at, at+2*tick)
			}
			if _, ok := e.Armed(); ok {
				t.Error("still armed")
			}
		})
	}
}

func TestDeadlineIsMovedBothWays(t *testing.T) {
	l := newWheelLoop(t)
	e := new(expiry)
	l.Arm(&e.Deadline, time.Second, e)
	l.Arm(&e.Deadline, 3*time.Second, e) // later: stays where it is
	l.wheel.expire(2 * time.Second)
	if len(e.calls) != 0 {
		t.Fatalf("called at %v, want not before 3s", e.calls)
	}
	l.Arm(&e.Deadline, 2500*time.Millisecond, e) // earlier: moves
	l.wheel.expire(2600 * time.Millisecond)
	if len(e.calls) != 1 {
		t.Fatalf("called at %v, want once", e.calls)
	}
	l.Arm(&e.Deadline, 4*time.Second, e)
	l.Disarm(&e.Deadline)
	l.Disarm(&e.Deadline)
	l.wheel.expire(10 * time.Second)
	if len(e.calls) != 1 {
		t.Errorf("called at %v after Disarm", e.calls)
	}
}

func TestOverduePassedAndHugeStepsExpireEachOnce(t *testing.T) {
	l := newWheelLoop(t)
	all := make([]expiry, 2000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range all {
		l.Arm(&all[i].Deadline, time.Duration(r.Int64N(int64(3*wheelSlots*tick))), &all[i])
	}
	past := new(expiry)
	l.wheel.expire(time.Second)
	l.Arm(&past.Deadline, time.Millisecond, past) // over already
	l.wheel.expire(time.Second + tick)
	if len(past.calls) != 1 {
		t.Errorf("past deadline called at %v, want once, in the next tick", past.calls)
	}
	l.wheel.expire(10 * wheelSlots * tick) // a loop that was stopped for long
	for i := range all {
		if len(all[i].calls) != 1 {
			t.Fatalf("deadline %d called at %v, want once", i, all[i].calls)
		}
	}
	if at, ok := l.wheel.next(); ok {
		t.Errorf("the empty wheel is due at %v", at)
	}
}

func TestExpiringDeadlinesMayChangeOthers(t *testing.T) {
	l := newWheelLoop(t)
	a, b, c := new(expiry), new(expiry), new(expiry)
	change := func() {
		for _, e := range []*expiry{a, b} {
			l.Disarm(&e.Deadline)
		}
		l.Arm(&c.Deadline, time.Minute, c)
	}
	a.then, b.then = change, change
	for _, e := range []*expiry{a, b, c} {
		l.Arm(&e.Deadline, time.Second, e)
	}
	l.wheel.expire(2 * time.Second)
	if got := len(a.calls) + len(b.calls); got != 1 {
		t.Errorf("%d of two deadlines called, want only the first", got)
	}
	calls := len(c.calls)
	l.wheel.expire(2 * time.Minute)
	if len(c.calls) != calls+1 {
		t.Errorf("third deadline called at %v, want once more after a minute", c.calls)
	}
	again := new(expiry)
	again.then = func() { l.Arm(&again.Deadline, l.wheel.slotTime()+time.Second, again) }
	l.Arm(&again.Deadline, 0, again)
	for s := range 5 {
		l.wheel.expire(2*time.Minute + time.Duration(s+1)*2*time.Second)
	}
	if len(again.calls) != 5 {
		t.Errorf("deadline that arms itself called at %v, want 5 times", again.calls)
	}
}

// slotTime is the time up to which the wheel has expired.
func (w *wheel) slotTime() time.Duration { return time.Duration(w.current) * tick }

func TestTimersFireInOrder(t *testing.T) {
	l := newWheelLoop(t)
	r := rand.New(rand.NewPCG(3, 4))
	var got []time.Duration
	var timers []*Timer
	for range 1000 {
		timer := l.After(time.Duration(r.Int64N(int64(time.Hour))), nil)
		timer.f = func() { got = append(got, timer.at) }
		timers = append(timers, timer)
	}
	stopped := 0
	for i, timer := range timers {
		if i%3 == 0 {
			stopped++
			if !timer.Stop() || timer.Stop() {
				t.Fatal("Stop of a timer to come must be true, of a stopped one false")
			}
		}
	}
	if got, want := l.Timers(), 1000-stopped; got != want {
		t.Errorf("%d timers, want %d", got, want)
	}
	for len(l.timers) > 0 {
		at, _ := l.timers.next()
		l.timers.fire(at)
	}
	if len(got) != 1000-stopped || !slices.IsSorted(got) {
		t.Errorf("%d fired, in order %v, want %d in order", len(got), slices.IsSorted(got), 1000-stopped)
	}
}

func TestPeriodicTimerSkipsWhatItMissed(t *testing.T) {
	l := newWheelLoop(t)
	calls := 0
	timer := l.Every(time.Second, func() { calls++ })
	first := timer.at
	l.timers.fire(first - 1)
	if calls != 0 {
		t.Error("fired early")
	}
	l.timers.fire(first)
	l.timers.fire(first + 3500*time.Millisecond)
	if calls != 2 {
		t.Errorf("%d calls, want 2", calls)
	}
	if want := first + 4*time.Second; timer.at != want {
		t.Errorf("next at %v, want %v", timer.at, want)
	}
	timer.f = func() { calls++; timer.Stop() }
	l.timers.fire(timer.at)
	if l.Timers() != 0 || calls != 3 {
		t.Errorf("%d timers, %d calls after Stop in the call, want 0, 3", l.Timers(), calls)
	}
}

func TestTimerThatAddsTimersDoesNotHoldTheLoop(t *testing.T) {
	l := newWheelLoop(t)
	calls := 0
	var again func()
	again = func() { calls++; l.After(-time.Second, again) }
	l.After(-time.Second, again)
	l.timers.fire(l.Clock())
	if calls != 1 {
		t.Errorf("%d calls in one turn, want 1", calls)
	}
}

func TestRunningLoopKeepsItsTimes(t *testing.T) {
	l := start(t, Options{MaxSleep: time.Hour})
	fired := make(chan string, 3)
	var began time.Duration
	e := &expiry{then: func() { fired <- "deadline" }}
	do(t, l, func() {
		began = l.Clock()
		l.After(20*time.Millisecond, func() { fired <- "timer" })
		l.Arm(&e.Deadline, began+100*time.Millisecond, e)
	})
	for _, want := range []struct {
		name  string
		after time.Duration
	}{{"timer", 20 * time.Millisecond}, {"deadline", 100 * time.Millisecond}} {
		select {
		case got := <-fired:
			if took := l.Clock() - began; got != want.name || took < want.after {
				t.Errorf("%s after %v, want %s after %v", got, took, want.name, want.after)
			}
		case <-time.After(deadline):
			t.Fatalf("no %s", want.name)
		}
	}
}

func BenchmarkDeadlinePushedBack(b *testing.B) {
	l := newWheelLoop(b)
	all := make([]expiry, 100_000)
	for i := range all {
		l.Arm(&all[i].Deadline, time.Duration(i), &all[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e := &all[i%len(all)]
		l.Arm(&e.Deadline, time.Minute+time.Duration(i), e)
		i++
	}
}

func BenchmarkNextDeadline(b *testing.B) {
	for _, at := range []time.Duration{tick, 60 * time.Second} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			l := newWheelLoop(b)
			e := new(expiry)
			l.Arm(&e.Deadline, at, e)
			for b.Loop() {
				l.wheel.next()
			}
		})
	}
}
