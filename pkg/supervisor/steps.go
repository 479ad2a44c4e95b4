package supervisor

import (
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// beginning is a slot as a reload found it.
type beginning struct {
	at  time.Time
	old *incarnation // nil: nobody served there
}

// begin notes that a slot's turn has come.
func (r *reload) begin(sl *slot) {
	if r.begun == nil {
		r.begun = make(map[*slot]beginning)
	}
	r.begun[sl] = beginning{time.Now(), sl.current}
}

// change says what has become of a slot whose turn is over: "pid 4711 ->
// 4720, generation 2 serves after 1.2s, 12 connections moved, 0 left, longest
// stall 3ms".
func (r *reload) change(sl *slot) string {
	b, now := r.begun[sl], sl.current
	served := time.Now()
	if b.old != nil && b.old == sl.giver && !b.old.handover.began.IsZero() {
		served = b.old.handover.began
	}
	text := fmt.Sprintf("generation %d serves after %v", now.release.generation, served.Sub(b.at).Round(time.Millisecond))
	switch {
	case b.old == nil:
		return fmt.Sprintf("pid %d, %s", now.pid(), text)
	case b.old == now: // a rollback came before the new one
		return fmt.Sprintf("pid %d stays, generation %d", now.pid(), now.release.generation)
	}
	text = fmt.Sprintf("pid %d -> %d, %s", b.old.pid(), now.pid(), text)
	if b.old == sl.giver {
		return text + accountOf(b.old)
	}
	return text
}

// accountOf tells what a worker that leaves has done with its connections, as
// the end of a line; empty if it had none.
func accountOf(inc *incarnation) string {
	if a := inc.account(); a.Moved+a.Left > 0 {
		return ", " + a.String()
	}
	return ""
}

// sum fills in what the workers that a reload has replaced have done with
// their connections.
func (r *reload) sum(to *control.Reload) {
	to.Moved, to.Left, to.Lost, to.LongestStallUS = 0, 0, 0, 0
	for _, inc := range r.givers {
		a := inc.account()
		to.Moved += a.Moved
		if a.State == control.HandoverCut {
			to.Lost += a.Left
		} else {
			to.Left += a.Left
		}
		to.LongestStallUS = max(to.LongestStallUS, a.LongestStallUS)
	}
}

// open is how many connections a worker has, 0 once it is gone.
func (inc *incarnation) open() int64 {
	if inc.seat == nil || inc.seat.Incarnation.Load() != inc.number {
		return 0
	}
	return inc.seat.Connections.Load()
}

// summary tells, when the new generation serves everywhere, what the old one
// still has to do, and what only a restart would change.
func (s *Supervisor) summary(r *reload) {
	workers, connections := 0, int64(0)
	for inc := range s.living() {
		if inc.state == draining && inc.release != r.to {
			workers++
			connections += inc.open()
		}
	}
	if connections > 0 {
		r.tell("old workers: %d, with %d connections, which have %v at most", workers, connections, r.from.settings.Grace)
	}
	for _, sl := range s.pool.slots {
		if c := sl.current; c != nil && c.build != "" && s.conf.Version != "" && c.build != s.conf.Version {
			r.tell("the supervisor stays version %s, the workers are %s: restart the service to change it", s.conf.Version, c.build)
			return
		}
	}
}
