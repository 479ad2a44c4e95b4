package worker

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// A worker outlives its supervisor. While the service manager keeps the
// supervisor's end of the control socket there is no EOF: what is said meanwhile
// waits in the socket, and what finds no room there is dropped and said again
// when the next supervisor asks. That none comes is told by the supervisor's
// heartbeat on the scoreboard. Where nobody keeps the other end, EOF tells it
// at once.

// orphanLooks is how often the supervisor's heartbeat is looked at in the time
// that a worker does without it.
const orphanLooks = 24

// checkSupervisor drains a worker that has been without a supervisor for too
// long. It is called on the loop.
func (w *Worker) checkSupervisor(now time.Duration) {
	beat := time.Duration(w.board.SupervisorBeat().Load())
	if beat != 0 && now-beat > w.conf.OrphanGrace && w.drain == nil {
		w.orphaned(now - beat)
	}
}

// orphaned: there is no supervisor, and none will adopt this worker. It serves
// the connections that it has, and leaves.
func (w *Worker) orphaned(since time.Duration) {
	if !w.draining.Load() {
		w.log.Warn("supervisor is gone", zap.Duration("since", since))
		w.leave(terms{grace: w.conf.Grace})
	}
}

// adoptedBy answers a new supervisor: what the one before was told may have
// died with it.
func (w *Worker) adoptedBy(m link.Adopt, epoch uint64) {
	w.log.Info("adopted by a new supervisor", zap.Uint64("epoch", epoch))
	failpoint.Here("obey.adopt")
	w.peers.retain(m.Living)
	failpoint.Here("obey.retained")
	w.send(link.Hello{Contract: w.id.Contract, Incarnation: w.id.Incarnation, Generation: w.id.Generation, Build: w.conf.Build})
	if w.drain != nil {
		w.send(link.Draining{Connections: int(w.seat.Connections.Load())})
	}
	if w.readiness.withdrawn && w.phase == link.StateServing {
		w.send(link.Readiness{Reason: w.readiness.why})
	}
}

// retain forgets peers that are not among the living.
func (p *peers) retain(living []uint64) {
	for incarnation := range p.all {
		if !slices.Contains(living, incarnation) {
			p.gone(incarnation)
		}
	}
	if p.harvester != 0 && !slices.Contains(living, p.harvester) {
		p.w.ends.Gone(p.harvester) // that of the supervisor before
		p.harvester = 0
	}
}
