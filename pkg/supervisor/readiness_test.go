package supervisor

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// wantReady compares what /readyz says; why is part of the reason, empty: it
// is ready.
func (r *rig) wantReady(why string) {
	r.t.Helper()
	synctest.Wait()
	text, err := r.Ready(r.t.Context())
	switch {
	case why == "" && err != nil:
		r.t.Errorf("not ready: %v", err)
	case why != "" && (err == nil || !strings.Contains(err.Error(), why)):
		r.t.Errorf("ready: %q, %v; want it not to be because of %q", text, err, why)
	}
	if err := r.Healthy(r.t.Context()); err != nil {
		r.t.Errorf("not healthy: %v", err)
	}
}

func TestWorkerThatIsNotReadyIsShownAndTheOthersAreWoken(t *testing.T) {
	rearmed := make(chan int, 16)
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(func(p *fake) {
			p.hello()
			p.order.said(link.Ready{})
			for m := range p.in {
				switch m.(type) {
				case link.Rearm:
					rearmed <- p.order.identity.Slot
				case link.Drain, link.Stop, unix.Signal:
					p.exit(Exit{})
					return
				}
			}
		})
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		r.wantReady("")
		for len(rearmed) > 0 {
			<-rearmed
		}
		r.fakes.last(0).order.said(link.Readiness{Reason: "no database"})
		synctest.Wait()
		woken := map[int]bool{}
		for len(rearmed) > 0 {
			woken[<-rearmed] = true
		}
		if !woken[1] {
			t.Error("worker 1 is not woken")
		}
		st := r.status()
		if p := st.Pools[0]; p.Ready != 1 || p.Workers[0].Unready != "no database" || p.Workers[1].Unready != "" {
			t.Errorf("status %+v", p)
		}
		r.wantReady("")
		r.fakes.last(1).order.said(link.Readiness{Reason: "no disk"})
		r.wantReady("none of 2 workers takes connections; worker 0: no database")
		r.wantSamples(map[string]float64{
			`mainstay_worker_ready{pool="worker",worker="0"}`: 0,
			`mainstay_pool_workers_ready{pool="worker"}`:      0,
		})
		r.fakes.last(1).order.said(link.Readiness{Ready: true})
		r.wantReady("")
		if p := r.status().Pools[0]; p.Ready != 1 || p.Workers[1].Unready != "" {
			t.Errorf("status %+v", p)
		}
	})
}

func TestReadinessFollowsTheService(t *testing.T) {
	supervise(t, quick, func(p *fake) { p.hello(); live(p) }, func(r *rig) {
		r.wantReady("starting: worker 0 starting")
		for slot := range 2 {
			r.fakes.last(slot).order.said(link.Ready{})
		}
		r.wantReady("")
		r.fakes.set(brokenStart)
		for slot := range 2 {
			r.fakes.last(slot).exit(Exit{Signal: unix.SIGKILL})
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		r.wantReady("no worker is ready; worker 0 backing off")
		r.fakes.set(func(p *fake) {
			p.hello()
			p.order.said(link.Ready{})
			live(p)
		})
		time.Sleep(time.Minute)
		r.wantReady("")
		r.Stop(r.t.Context())
		r.wantReady(errStopping.Error())
	})
	// After its end.
	s := &Supervisor{inbox: make(chan message), done: make(chan struct{})}
	close(s.done)
	if err := s.Healthy(t.Context()); err == nil {
		t.Error("healthy after the end")
	}
}

func TestSupervisorThatHangsIsNotHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Supervisor{inbox: make(chan message), done: make(chan struct{})}
		began := time.Now()
		if err := s.Healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("healthy: %v", err)
		}
		if took := time.Since(began); took != probeTimeout {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Healthy(ctx); err == nil {
			t.Error("healthy for somebody who has gone")
		}
	})
}

func TestNewWorkerThatTakesItselfOutIsRolledBack(t *testing.T) {
	supervise(t, quick, serve, func(r *rig) {
		r.fakes.set(func(p *fake) {
			p.hello()
			p.order.said(link.Ready{})
			time.Sleep(quick.Bake / 2) // fake time
			p.order.said(link.Readiness{Reason: "no database"})
			live(p)
		})
		err := r.reload()
		if err == nil || !strings.Contains(err.Error(), "no database") {
			t.Errorf("verdict %v, want the reason", err)
		}
		r.expect(control.StateServing, 1, 1)
	})
}
