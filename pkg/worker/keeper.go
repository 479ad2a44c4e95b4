package worker

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// orphanTTL is how long the sockets of a dead worker wait for a supervisor:
// longer than any restart of it.
const orphanTTL = 120 * time.Second

// kept is what the supervisor is to know of this worker's keeper.
type kept struct {
	asked bool
	body  link.Kept
	pidfd int
}

// protect starts the keeper, if the supervisor wants one: early, while there
// is little memory to copy and no connection. A worker that cannot have one
// serves without.
func (w *Worker) protect(in *link.Inherited) (*kept, error) {
	k := &kept{asked: in.Keeper, pidfd: -1}
	if !in.Keeper {
		return k, nil
	}
	name := fmt.Sprintf("keeper %s/%d", in.Service, in.Slot)
	made, err := keeper.Start(keeper.Options{
		Name: name[:min(len(name), keeper.MaxName)], Released: &w.seat.Released,
		SupervisorBeat: w.board.SupervisorBeat(), OrphanTTL: orphanTTL,
	})
	if _, unprotected := errors.AsType[*keeper.UnprotectedError](err); unprotected {
		w.log.Warn("worker has no keeper: its connections do not outlive it", zap.Error(err))
		k.body.Reason = err.Error()
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w.seat.KeeperPID.Store(int64(made.PID))
	k.body.PID, k.pidfd = made.PID, made.PIDFD
	return k, nil
}

// tell tells the supervisor, which was told Hello.
func (k *kept) tell(control *link.Channel) error {
	switch {
	case !k.asked:
		return nil
	case k.pidfd >= 0:
		return control.SendFile(k.body, k.pidfd)
	default:
		return control.Send(k.body)
	}
}

// close gives back the pidfd, which is the supervisor's to have.
func (k *kept) close() {
	if k.pidfd >= 0 {
		unix.Close(k.pidfd)
	}
}
