package supervisor

import (
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
)

// restartSignal is SIGRTMIN+1 as systemd counts (RestartKillSignal=): the
// service ends, but only to be started again at once.
const restartSignal = syscall.Signal(35)

// watchSignals takes over the supervisor's signals. SIGPIPE is ignored: a
// journal that goes away must not end the service.
func watchSignals() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 16)
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGTTIN, syscall.SIGTTOU, restartSignal)
	return c, func() { signal.Stop(c) }
}

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
	case restartSignal:
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
