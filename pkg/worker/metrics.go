package worker

import (
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
)

// Metrics returns where the application makes figures of its own. They are
// on the service's /metrics with the labels pool and worker. What has been
// counted outlives the worker: all of it if that leaves in order, and what
// /metrics showed last if it is killed.
func (w *Worker) Metrics() *metrics.Registry { return w.conf.Metrics }

func (w *Worker) tellMetrics(json.RawMessage) ([]byte, error) {
	return metrics.Encode(w.conf.Metrics.Gather())
}

// bequeathTimeout bounds how long the application's functions may take to
// tell their figures at the end.
const bequeathTimeout = 250 * time.Millisecond

// bequeath leaves the last figures to the supervisor, which has them before
// it learns of the exit.
func (w *Worker) bequeath() {
	told := make(chan error, 1)
	go func() { told <- guard("metrics", w.sendMetrics) }()
	select {
	case err := <-told:
		if err != nil {
			w.log.Warn("last metrics not left behind", zap.Error(err))
		}
	case <-time.After(bequeathTimeout):
		w.log.Warn("last metrics not left behind: they are not told in time")
	}
}

func (w *Worker) sendMetrics() error {
	text, err := w.tellMetrics(nil)
	if err != nil {
		return err
	}
	f, err := link.AnswerFile(text)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.control.SendFile(link.Gathered{ID: link.Legacy}, int(f.Fd()))
}
