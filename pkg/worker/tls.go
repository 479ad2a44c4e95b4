package worker

import (
	"crypto/rand"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
)

// prepareTLS makes ready what the listeners with TLS, and outgoing connections
// with it, have in common.
func (w *Worker) prepareTLS() error {
	for i := range w.conf.Listeners {
		l := &w.conf.Listeners[i]
		if l.TLS == nil {
			continue
		}
		if l.TicketSeed == nil {
			l.TicketSeed = make([]byte, tlsrec.MinTicketSeed)
			rand.Read(l.TicketSeed) // never fails
		}
	}
	w.probeKernelTLS()
	h := conn.NewHandshakes(w.conf.Handshakes)
	w.handshakes = h
	h.OnCooled(w.tidy)
	own := w.conf.Metrics.Own
	own("mainstay_tls_handshakes_total", "TLS handshakes that have led to a connection, accepted or outgoing.", func() float64 { return float64(h.Figures().Done) })
	own("mainstay_tls_handshakes_resumed_total", "TLS handshakes that have resumed a session.", func() float64 { return float64(h.Figures().Resumed) })
	own("mainstay_tls_handshakes_failed_total", "TLS handshakes that have failed, or were not done in time.", func() float64 { return float64(h.Figures().Failed) })
	return w.renewTickets()
}

// probeKernelTLS finds out whether the kernel can do what listeners want of
// it. If not, they do without.
func (w *Worker) probeKernelTLS() {
	wanted := false
	for _, l := range w.conf.Listeners {
		wanted = wanted || l.KernelTLS
	}
	if !wanted {
		return
	}
	err := conn.ProbeKernelTLS()
	switch {
	case err == nil && w.Slot() == 0:
		w.log.Info("the kernel seals for TLS")
	case err != nil:
		for i := range w.conf.Listeners {
			w.conf.Listeners[i].KernelTLS = false
		}
		if w.Slot() == 0 {
			w.log.Warn("the kernel does not seal for TLS, the worker does", zap.Error(err))
		}
	}
}

const (
	// tidyMany is how many connections are to have become idle before what
	// they have left is given back, and a part of all; tidyEvery is how often
	// that is done.
	tidyMany  = 64
	tidyPart  = 16
	tidyEvery = 10 * time.Second
)

// tidy is told on the loop that n connections with TLS have become idle. The
// handshake of each has left some 40 KiB of garbage, and their keys some more: several times of what they take.
// The runtime's collector leaves that lying until as much as all of the heap has become garbage.
func (w *Worker) tidy(n int) {
	w.idled += n
	if w.idled < max(tidyMany, w.set.Len()/tidyPart) || w.tidying {
		return
	}
	w.idled, w.tidying = 0, true
	go debug.FreeOSMemory()
	w.loop.After(tidyEvery, func() {
		w.tidying = false
		w.tidy(0)
	})
}

// renewTickets sets the keys of session tickets, now and whenever there are
// others.
func (w *Worker) renewTickets() error {
	now := time.Now()
	var next time.Time
	for _, l := range w.conf.Listeners {
		if l.TLS == nil {
			continue
		}
		keys, until, err := tlsrec.TicketKeys(l.TicketSeed, now)
		if err != nil {
			return fmt.Errorf("worker: listener %q: %w", l.Name, err)
		}
		l.TLS.SetSessionTicketKeys(keys)
		next = until
	}
	if next.IsZero() {
		return nil // no listener has TLS
	}
	w.loop.After(next.Sub(now), func() {
		if err := w.renewTickets(); err != nil {
			w.log.Error("session ticket keys not renewed", zap.Error(err))
		}
	})
	return nil
}
