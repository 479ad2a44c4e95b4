package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// workerConfig is the part of the configuration that the workers of a
// generation are handed, as JSON. A worker of a newer program may read what
// an older supervisor wrote: unknown fields are ignored.
type workerConfig struct {
	Grace     time.Duration             `json:"grace"`
	StopGrace time.Duration             `json:"stop_grace"`
	LogLevel  string                    `json:"log_level"`
	LogFormat string                    `json:"log_format"`
	Listeners map[string]listenerConfig `json:"listeners"`

	// TLS is what the files of the listeners' certificates hold, by listener,
	// and TicketSeed what the keys of session tickets are made of. They are
	// secrets: this configuration is kept in memory only.
	TLS        map[string]tlsMaterial `json:"tls,omitempty"`
	TicketSeed []byte                 `json:"ticket_seed,omitempty"`

	// HangTimeout and MemorySoft are worker.Config's.
	HangTimeout time.Duration `json:"hang_timeout,omitempty"`
	MemorySoft  int64         `json:"memory_soft,omitempty"`
}

// work is the worker's role. What it writes to standard error before it is
// ready is what the supervisor reports of a failed start.
func (s *Service) work() int {
	in, err := link.Inherit()
	if err != nil {
		s.complain(err)
		return exitFailed
	}
	var c workerConfig
	if err := json.Unmarshal(in.Config, &c); err != nil {
		s.complain(fmt.Errorf("configuration from the supervisor: %w", err))
		return exitFailed
	}
	level, err := zap.ParseAtomicLevel(c.LogLevel)
	if err != nil {
		s.complain(fmt.Errorf("configuration from the supervisor: %w", err))
		return exitFailed
	}
	// Standard error is a pipe until the worker is ready; lines of the log go
	// to the service's own from the start.
	fd, err := unix.FcntlInt(uintptr(in.Stderr), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.complain(fmt.Errorf("standard error: fd %d: %w", in.Stderr, os.NewSyscallError("fcntl", err)))
		return exitFailed
	}
	stderr := os.NewFile(uintptr(fd), "stderr")
	defer stderr.Close()
	log, err := journal.Open(journal.Options{
		Format: c.LogFormat, Level: &level, Identifier: s.name, Stderr: stderr,
		Fields: []zap.Field{
			zap.String("pool", in.Pool), zap.Int("worker", in.Slot),
			zap.Uint64("generation", in.Generation), zap.Uint64("incarnation", in.Incarnation),
		},
	})
	if err != nil {
		s.complain(err)
		return exitFailed
	}
	defer log.Close()

	s.metrics.Own("mainstay_log_lines_dropped_total", "Lines of the worker's log that nobody got.", func() float64 { return float64(log.Dropped()) })
	conf := worker.Config{
		Metrics: s.metrics,
		Grace:   c.Grace, StopGrace: c.StopGrace, HangTimeout: c.HangTimeout, MemorySoft: c.MemorySoft,
		Build: buildVersion(), Log: log.Logger(), Level: &level,
		OnStart: s.started, OnDrain: s.drained, OnStop: s.stopped,
	}
	conf.Dials = s.dials
	for _, l := range in.Identity.Listeners {
		set := c.Listeners[l.Name]
		protocol, err := s.protocol(l.Name, set.Serve)
		if err != nil {
			s.complain(err)
			return exitFailed
		}
		served, err := protocol.listener(l.Name, set)
		if err != nil {
			s.complain(fmt.Errorf("listener %q: %w", l.Name, err))
			return exitFailed
		}
		if err := set.secure(&served, c.TLS[l.Name], c.TicketSeed); err != nil {
			s.complain(fmt.Errorf("listener %q: %w", l.Name, err))
			return exitFailed
		}
		conf.Listeners = append(conf.Listeners, served)
	}
	s.tellExpiry(conf.Listeners)
	if err := worker.Run(in, conf); err != nil {
		if !errors.Is(err, worker.ErrOverdue) {
			s.complain(err)
		}
		return exitFailed
	}
	return exitDone
}

func (s *Service) started(w *Worker) error {
	for _, f := range s.onStart {
		if err := f(w); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) drained(ctx context.Context, w *Worker) {
	for _, f := range s.onDrain {
		f(ctx, w)
	}
}

func (s *Service) stopped(w *Worker) {
	for _, f := range s.onStop {
		f(w)
	}
}
