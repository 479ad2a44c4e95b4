package worker

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// Timer is a timer made by Worker.After or Worker.Every.
type Timer struct {
	worker  *Worker
	stopped atomic.Bool
	timer   *reactor.Timer // owned by the loop
}

// After calls f on the loop when d has passed; f must not block. A panic in
// f is logged and counted, and costs nothing else. Any goroutine may call
// After.
func (w *Worker) After(d time.Duration, f func()) *Timer {
	return w.newTimer(f, func(f func()) *reactor.Timer { return w.loop.After(d, f) })
}

// Every calls f on the loop each time d has passed, until the timer is
// stopped or the worker ends; calls that the loop was too busy for are left
// out. It panics unless d is positive; otherwise as After.
func (w *Worker) Every(d time.Duration, f func()) *Timer {
	if d <= 0 {
		panic("worker: Every with a period that is not positive")
	}
	return w.newTimer(f, func(f func()) *reactor.Timer { return w.loop.Every(d, f) })
}

func (w *Worker) newTimer(f func(), arm func(func()) *reactor.Timer) *Timer {
	t := &Timer{worker: w}
	w.post(func() {
		if t.stopped.Load() {
			return
		}
		t.timer = arm(func() {
			if !t.stopped.Load() {
				w.guarded("timer", f)
			}
		})
	})
	return t
}

// Stop ends the timer: from its return on f is not begun any more, if Stop
// is called on the loop; otherwise it may be running at that moment. Any
// goroutine may call it, and more than once.
func (t *Timer) Stop() {
	if t.stopped.Swap(true) {
		return
	}
	t.worker.post(func() {
		if t.timer != nil {
			t.timer.Stop()
		}
	})
}

// guarded runs f of the application. Its panic is logged and counted.
func (w *Worker) guarded(who string, f func()) {
	w.logPanic(guard(who, func() error { f(); return nil }))
}

// Post has f run on the loop, soon; f must not block. It says whether the
// loop will run it: not any more when the worker has ended. A panic in f is
// logged and counted. Any goroutine may call it.
func (w *Worker) Post(f func()) bool {
	return w.loop.Post(func() { w.guarded("posted function", f) }) == nil
}

// Service returns the service's name.
func (w *Worker) Service() string { return w.id.Service }

// Slot returns the worker's place in its pool, from 0. A successor has the
// same.
func (w *Worker) Slot() int { return w.id.Slot }

// Generation counts the service's reloads, from 1.
func (w *Worker) Generation() uint64 { return w.id.Generation }

// Predecessor says how the process died that had the slot before; nil if
// there was none or if it left as it was told.
func (w *Worker) Predecessor() *link.Death { return w.id.Predecessor }

// Log returns the worker's logger. It has the fields worker and generation.
func (w *Worker) Log() *zap.Logger { return w.log }

// Draining says whether the worker has left its listeners.
func (w *Worker) Draining() bool { return w.draining.Load() }

// Connections returns how many connections are open, those of net/http
// included.
func (w *Worker) Connections() int { return int(w.seat.Connections.Load()) }
