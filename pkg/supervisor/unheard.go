package supervisor

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/signals"
)

// The signal of a restart may come before this process has taken over its
// signals. Before Go's runtime is there it kills, which the unit takes for a
// clean end (SuccessExitStatus=); but from then on until package signals is
// initialized, for less than a millisecond, the runtime drops it without a
// trace. systemd would wait for an end that nobody knows of, and kill this
// process when TimeoutStopSec= is over. So systemd is asked, once: it sends the
// signal before it says that it is ending the service, so whatever it says after
// the signals were taken over is decisive. The signals of a stop are never
// dropped: they kill.
//
// Where systemd cannot be asked, for the bus has no name for the user of the
// service (DynamicUser= without libnss-systemd) or is not there, the restart goes
// on after TimeoutStopSec=, and the workers with their connections serve on.

const (
	// managerTimeout bounds the question; a busy manager takes its time.
	managerTimeout = time.Minute

	// signalMargin is how long a signal that has been sent may need to be
	// received.
	signalMargin = time.Second
)

// askEnding returns what asks systemd whether it is ending the service of that
// cgroup. nil: nobody is to be asked.
func askEnding(conf Config) func(context.Context) (bool, error) {
	if conf.Cgroup == "" || conf.Notify == nil {
		return nil
	}
	args := []string{"show", "--value", "--property=ActiveState", filepath.Base(conf.Cgroup)}
	if strings.Contains(conf.Cgroup, "/user@") { // a user's own manager
		args = append([]string{"--user"}, args...)
	}
	return func(ctx context.Context) (bool, error) {
		out, err := exec.CommandContext(ctx, "systemctl", args...).Output()
		return strings.TrimSpace(string(out)) == "deactivating", err
	}
}

// findUnheard leaves for the next supervisor, if we were told to before we could
// hear it. It returns when that is known, or ctx ends.
func (s *Supervisor) findUnheard(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, managerTimeout)
	defer cancel()
	ending, err := s.ending(asking)
	if err != nil && ctx.Err() == nil {
		s.log.Debug("systemd not asked whether it has told us to leave", zap.Error(err))
	}
	if !ending {
		return
	}
	t := time.NewTimer(signalMargin)
	defer t.Stop()
	select {
	case <-t.C: // whatever else was sent has been received: a stop is under way
		s.log.Warn("the signal of a restart was lost: it came before the supervisor could take it")
		s.post(signalled{signals.Restart})
	case <-ctx.Done():
	}
}
