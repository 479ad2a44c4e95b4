package worker

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/reactor"
)

const (
	// closeMargin is what the worker takes beyond its grace, for the last
	// flush, OnStop and the end of what runs. It is under the supervisor's,
	// so that a worker ends by its own word and not by SIGKILL.
	closeMargin = time.Second

	// hastenMargin is the same when the grace was ended early.
	hastenMargin = 500 * time.Millisecond
)

// terms say how to drain.
type terms struct {
	prompt bool          // close connections between two messages
	stop   bool          // the service ends; goes with prompt
	grace  time.Duration // for all of it
	hasten bool          // the grace is over
	hand   bool          // hand the connections over first
	to     uint64        // to this incarnation; 0: to all that serve

	restart bool // of the service, which is why
}

// drain is a worker on its way out. The loop owns it.
type drain struct {
	w      *Worker
	begun  time.Time
	ctx    context.Context // for OnDrain; ends at the end of the grace
	cancel context.CancelFunc

	grace    *reactor.Timer // its firing ends the grace
	end      time.Duration  // of the grace, by the loop's clock
	margin   time.Duration  // beyond the grace
	graceful bool           // the grace lasts
	restart  bool           // of the service, which is why
	told     bool           // OnDrain has returned
	conns    bool           // the connections that were accepted are gone
	dials    dialsState     // of those that were made from here
	servers  int            // HTTP servers that have not ended
	packets  int            // datagram sockets with replies that wait
	stopping bool
	looking  bool           // progress is to come
	exodus   *exodus        // nil: nothing was handed over
	again    *reactor.Timer // the next attempt to hand over; nil: there was none
	pause    time.Duration  // before it
}

// expire makes Run return. Any goroutine may call it.
func (w *Worker) expire() { w.expiring.Do(func() { close(w.overdue) }) }

func (t terms) margin() time.Duration {
	if t.hasten {
		return hastenMargin
	}
	return closeMargin
}

// leave begins the end of the worker, or goes on with it on other terms. The
// end comes even if the loop hangs. Any goroutine may call it.
func (w *Worker) leave(t terms) {
	if t.hasten {
		t.grace = 0
	}
	w.endBy(t.grace + t.margin())
	w.post(func() { w.leaveOn(t) })
}

// endBy makes Run return after d, whatever still runs then.
func (w *Worker) endBy(d time.Duration) {
	w.endingMu.Lock()
	defer w.endingMu.Unlock()
	if w.ending != nil {
		w.ending.Stop()
	}
	w.ending = time.AfterFunc(d, w.expire)
}

func (w *Worker) leaveOn(t terms) {
	if w.phase == link.StateStopping {
		return
	}
	d := w.drain
	if d == nil {
		d = w.leaveListeners()
	}
	d.on(t)
}

// leaveListeners is the first step, the order of which matters: no wake-up
// comes here any more before the supervisor is told to wake the others.
func (w *Worker) leaveListeners() *drain {
	for _, l := range w.listeners {
		l.unwatch()
	}
	d := &drain{w: w, begun: time.Now(), graceful: true, servers: len(w.servers), packets: len(w.packets)}
	for _, p := range w.packets {
		if err := p.Drain(func() { d.packets--; d.progress() }); err != nil {
			w.log.Warn("listener not taken out of epoll", zap.String("listener", p.name), zap.Error(err))
		}
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	w.drain = d
	w.draining.Store(true)
	for _, s := range w.servers {
		s.leaving.Store(true) // whoever is told of the drain finds it so
		s.drained = func() { w.post(func() { d.servers--; d.progress() }) }
	}
	w.enter(link.StateDraining)
	open := int(w.seat.Connections.Load())
	w.send(link.Draining{Connections: open})
	w.log.Info("draining", zap.Int("connections", open))
	if w.conf.OnDrain == nil || !w.started.Load() {
		d.told = true
	} else {
		go func() {
			w.guarded("OnWorkerDrain", func() { w.conf.OnDrain(d.ctx, w) })
			w.post(func() { d.told = true; d.progress() })
		}()
	}
	return d
}

// on sets the terms.
func (d *drain) on(t terms) {
	w := d.w
	d.restart = t.restart
	d.margin = t.margin()
	if d.grace != nil {
		d.grace.Stop()
	}
	d.grace = w.loop.After(t.grace, d.graceOver)
	d.end = w.loop.Clock() + t.grace
	mode := conn.DrainPatient
	if t.prompt && !t.hand {
		mode = conn.DrainPrompt
	}
	if t.stop {
		mode = conn.DrainStop
	}
	w.set.Drain(mode, t.grace, func() { d.conns = true; d.progress() })
	if d.again != nil {
		d.again.Stop()
	}
	if d.dials == dialsEnding {
		w.set.DrainOutgoing(conn.DrainPrompt, t.grace, nil)
	}
	if t.hand {
		// Those that go to others are to hear no goodbye with their next
		// answer.
		w.loop.After(t.grace/2, d.sayGoodbye)
		d.pause = firstPause
		d.handOver(t)
	} else {
		d.sayGoodbye()
	}
	for _, s := range w.servers {
		s.drain(t.prompt, t.grace)
	}
	d.progress()
}

// sayGoodbye has those told who are answered from now on.
func (d *drain) sayGoodbye() {
	for _, a := range d.w.handlers {
		a.Drain()
	}
}

// graceOver stops waiting for callbacks of the application; connections
// end with the grace by themselves.
func (d *drain) graceOver() {
	d.graceful = false
	d.cancel()
	d.progress()
}

// progress goes on to the last step when nothing is left to wait for.
func (d *drain) progress() {
	w := d.w
	if d.stopping || !d.conns || d.servers > 0 {
		return
	}
	if d.exodus.goesOn() && d.graceful {
		return // its end is told to the supervisor
	}
	if w.ends.Owes() && d.graceful {
		d.lookAgain()
		return
	}
	if d.graceful && (d.packets > 0 || !d.told || !w.started.Load()) {
		return
	}
	if !w.background.end() && d.graceful {
		return
	}
	// Last, as all that went before may have been in need of them.
	if d.dials == dialsServe {
		d.endDials()
	}
	if d.dials != dialsEnded {
		return
	}
	d.stopping = true
	d.cancel()
	w.enter(link.StateStopping)
	w.endBy(d.margin) // what was left of the grace is not for OnStop
	go w.stop(d.margin / 2)
}

// lookAgain has progress called a little later.
func (d *drain) lookAgain() {
	if d.looking {
		return
	}
	d.looking = true
	d.w.loop.After(time.Millisecond, func() { d.looking = false; d.progress() })
}

// stop is the last step: the callbacks and what Go has started end, OnStop,
// the loop. What runs for longer than patience is given up, once OnStop had
// its turn.
func (w *Worker) stop(patience time.Duration) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.pool.Close()
		for _, a := range w.handlers {
			a.Close()
		}
		<-w.background.done
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
	if w.conf.OnStop != nil && w.started.Load() {
		w.guarded("OnWorkerStop", func() { w.conf.OnStop(w) })
	}
	select {
	case <-ended:
		w.loop.Stop()
	default:
		w.expire()
	}
}
