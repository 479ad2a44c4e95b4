package worker

import (
	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// readiness is what the application says of itself. The loop owns it.
type readiness struct {
	withdrawn bool
	why       string
	held      bool // OnStart has returned, Ready waits for SetReady(true)
}

// SetReady says whether the application can serve new connections; why not,
// is what the operator reads. With false the worker leaves its listeners and
// the others take what comes; connections that are open are served on. With
// true it takes connections again. A worker that is not ready when
// OnWorkerStart returns becomes ready with the first SetReady(true), within
// the time that a start may take; one that says false while it is tried
// beside the worker it is to replace fails the reload. Any goroutine may call
// it; what several say at a time is done in some order.
func (w *Worker) SetReady(ready bool, why string) { w.post(func() { w.setReady(ready, why) }) }

func (w *Worker) setReady(ready bool, why string) {
	if ready {
		why = ""
	}
	r := &w.readiness
	if w.drain != nil || r.withdrawn == !ready && r.why == why {
		return
	}
	was := r.withdrawn
	r.withdrawn, r.why = !ready, why
	unready := uint32(0)
	if r.withdrawn {
		unready = 1
	}
	w.seat.Unready.Store(unready)
	switch {
	case w.phase == link.StateStarting:
		if ready && r.held {
			w.ready()
		}
		return
	case w.phase == link.StateServing && was != r.withdrawn:
		// Out of epoll first: no wake-up comes here any more when the
		// supervisor wakes the others.
		for _, l := range w.listeners {
			if ready {
				l.watch()
			} else {
				l.stepOut()
			}
		}
		for _, p := range w.packets {
			if ready {
				p.watch()
			} else {
				p.stepOut()
			}
		}
	}
	w.send(link.Readiness{Ready: ready, Reason: why})
	if ready {
		w.log.Info("takes connections again")
	} else {
		w.log.Warn("takes no connections", zap.String("reason", why))
	}
}

// becomeReady tells the supervisor of a start that is complete, unless the
// application holds it back.
func (w *Worker) becomeReady() {
	if w.readiness.withdrawn {
		w.readiness.held = true
		w.log.Info("started, and not ready yet", zap.String("reason", w.readiness.why))
		return
	}
	w.ready()
}
