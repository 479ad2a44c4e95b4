package supervisor

import (
	"os"
	"syscall"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/signals"
)

// onSignal turns a signal into a request; true ends Run at once.
func (s *Supervisor) onSignal(sig os.Signal) (leave bool) {
	s.log.Info("signal received", zap.Stringer("signal", sig))
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		s.stop()
	case syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2:
		s.requestReload(&reloadRequest{})
	case syscall.SIGTTIN:
		s.scaleBySignal(+1)
	case syscall.SIGTTOU:
		s.scaleBySignal(-1)
	case signals.Restart:
		if s.phase != stopping {
			s.leave()
			return true
		}
	}
	return false
}

func (s *Supervisor) scaleBySignal(add int) {
	if _, err := s.resize(scaleRequest{add: add}); err != nil {
		s.log.Warn("not scaled", zap.Error(err))
	}
}
