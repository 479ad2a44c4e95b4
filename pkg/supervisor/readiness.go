package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// heardReadiness notes that a worker's application wants no new connections,
// or wants them again.
func (s *Supervisor) heardReadiness(inc *incarnation, m link.Readiness) {
	if m.Ready {
		if inc.unready != "" {
			s.log.Info("worker takes connections again", inc.fields()...)
		}
		inc.unready = ""
		return
	}
	inc.unready = m.Reason
	if inc.unready == "" {
		inc.unready = "the application does not say why"
	}
	s.log.Warn("worker takes no connections", append(inc.fields(), zap.String("reason", inc.unready))...)
	// A wake-up may have gone to it.
	s.rearm()
	if inc.state == ready && inc.slot.next == inc {
		// It is on trial, and what it would replace still serves.
		inc.reason = "took itself out during the bake time: " + inc.unready
		inc.terms.prompt = true
		s.happen(inc, unsettling)
	}
}

// accepts reports whether the slot has a worker that takes new connections.
func (sl *slot) accepts() bool { return sl.hasWorker() && sl.current.unready == "" }

// readyRequest asks whether the service serves.
type readyRequest struct{ reply chan verdict }

func (readyRequest) isMessage() {}

type verdict struct {
	text string
	err  error
}

// readiness says how many workers take connections, or why the service does
// not serve.
func (s *Supervisor) readiness() verdict {
	switch s.phase {
	case booting:
		return verdict{err: fmt.Errorf("starting: %s", s.absent())}
	case stopping:
		return verdict{err: errStopping}
	}
	n := 0
	for _, sl := range s.pool.slots {
		if sl.accepts() {
			n++
		}
	}
	if n > 0 {
		return verdict{text: fmt.Sprintf("pool %s: %d of %d workers take connections", s.pool.name, n, len(s.pool.slots))}
	}
	for _, sl := range s.pool.slots {
		if sl.hasWorker() {
			return verdict{err: fmt.Errorf("pool %s: none of %d workers takes connections; worker %d: %s", s.pool.name, len(s.pool.slots), sl.index, sl.current.unready)}
		}
	}
	return verdict{err: fmt.Errorf("pool %s: no worker is ready; %s", s.pool.name, s.absent())}
}

// probeTimeout is how long the supervisor's goroutine has to answer a probe.
const probeTimeout = 2 * time.Second

// Ready returns how many workers of each pool take connections, or an error
// that says why the service does not serve: it starts or stops, a pool has no
// worker that takes connections, or the supervisor does not answer within two
// seconds. Any goroutine may call it.
func (s *Supervisor) Ready(ctx context.Context) (string, error) {
	v, err := s.probe(ctx)
	if err != nil {
		return "", err
	}
	return v.text, v.err
}

// Healthy returns nil if the supervisor's goroutine answers within two
// seconds, whatever state the service is in. Any goroutine may call it.
func (s *Supervisor) Healthy(ctx context.Context) error {
	_, err := s.probe(ctx)
	return err
}

func (s *Supervisor) probe(ctx context.Context) (verdict, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errors.New("the supervisor does not answer"))
	defer cancel()
	m := readyRequest{reply: make(chan verdict, 1)}
	if err := s.ask(ctx, m); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return verdict{}, err
	}
	select {
	case v := <-m.reply:
		return v, nil
	case <-s.done:
		return verdict{}, errNotRunning
	case <-ctx.Done():
		return verdict{}, context.Cause(ctx)
	}
}

// watchHealth tells the journal when the service becomes degraded, and when
// it is well again.
func (s *Supervisor) watchHealth() {
	state, reason := s.judge()
	switch {
	case state == control.StateDegraded && !s.degraded:
		s.degraded = true
		s.log.Warn("service degraded", journal.ID(journal.ServiceDegraded), zap.String("reason", reason))
	case state == control.StateServing && s.degraded:
		s.degraded = false
		s.log.Info("service well again", journal.ID(journal.ServiceWell))
	}
}
