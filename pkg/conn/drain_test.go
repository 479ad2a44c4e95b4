package conn

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

func TestPromptDrainClosesAtMessageBoundaries(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		type end struct {
			c   *Conn
			why error
		}
		closed := make(chan end, 10)
		blocked := make(chan struct{})
		cfg := r.config(funcs{
			message: func(c *Conn, m []byte) {
				if string(m) == "work" {
					<-blocked
				}
				echo(t)(c, m)
			},
			close: func(c *Conn, why error) { closed <- end{c, why} },
		}, inline)
		cfg.Protocol = text.Protocol{}
		idleClient, idle := r.pair(cfg)
		halfClient, half := r.pair(cfg)
		write(t, halfClient, "half a mess")
		r.until("half a message is read", func() bool { return half.BytesIn() > 0 })
		workClient, work := r.pair(cfg)
		if !inline {
			write(t, workClient, "work\n")
			r.until("the work is begun", func() bool { return work.has(flagRunning) })
		}
		done := make(chan struct{})
		r.do(func() { r.set.Drain(DrainPrompt, time.Hour, func() { close(done) }) })
		if got := expectEnd(t, idleClient); got != "" {
			t.Errorf("idle client got %q", got)
		}
		idleClient.Close()
		if got := receive(t, closed); got.c != idle && got.c != work || got.why != ErrDrained {
			t.Errorf("first OnClose of %p with %v, want of %p with ErrDrained", got.c, got.why, idle)
		}
		write(t, halfClient, "age\n")
		if got := expectEnd(t, halfClient); got != "half a message\n" {
			t.Errorf("client in the middle of a message got %q", got)
		}
		halfClient.Close()
		if !inline {
			receive(t, closed)
			close(blocked)
			if got := expectEnd(t, workClient); got != "work\n" {
				t.Errorf("client whose handler runs got %q", got)
			}
		}
		workClient.Close()
		wait(t, done)
		if half.State() != Closed || work.State() != Closed {
			t.Errorf("states %v, %v, want closed", half.State(), work.State())
		}
	})
}

func TestPromptDrainAnswersWhatWasNotReadYet(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	cfg.Protocol = text.Protocol{}
	client, c := r.pair(cfg)
	done := make(chan struct{})
	r.do(func() {
		write(t, client, "sent in time\n")
		r.set.Drain(DrainPrompt, time.Hour, func() { close(done) })
	})
	if got := expectEnd(t, client); got != "sent in time\n" {
		t.Errorf("got %q", got)
	}
	client.Close()
	wait(t, done)
	if c.State() != Closed {
		t.Errorf("state %v, want closed", c.State())
	}
}

func TestGraceEndsEverything(t *testing.T) {
	for _, mode := range []DrainMode{DrainPatient, DrainPrompt} {
		r := newRig(t)
		const grace = 60 * time.Millisecond
		closed := make(chan error, 1)
		cfg := r.config(funcs{close: func(c *Conn, why error) { closed <- why }}, true)
		cfg.Protocol = text.Protocol{}
		client, c := r.pair(cfg)
		write(t, client, "half")
		r.until("half a message is read", func() bool { return c.BytesIn() > 0 })
		began := time.Now()
		done := make(chan struct{})
		r.do(func() { r.set.Drain(mode, grace, func() { close(done) }) })
		wait(t, done)
		if took := time.Since(began); took < grace {
			t.Errorf("mode %d: over after %v, want not before %v", mode, took, grace)
		}
		if why := receive(t, closed); why != ErrDrained {
			t.Errorf("mode %d: OnClose with %v, want ErrDrained", mode, why)
		}
	}
}

func TestPatientDrainSpreadsTheEnds(t *testing.T) {
	const conns, grace = 20, 400 * time.Millisecond
	steadily(t, grace/8, func(r *rig) error { return drainPatiently(t, r, conns, grace) })
}

// drainPatiently says what is wrong with the ends of so many connections.
func drainPatiently(t *testing.T, r *rig, conns int, grace time.Duration) error {
	ends := make(chan time.Duration, conns+1)
	var began time.Time
	cfg := r.config(funcs{
		message: echo(t),
		close: func(c *Conn, why error) {
			if !errors.Is(why, ErrDrained) {
				t.Errorf("OnClose with %v, want ErrDrained", why)
			}
			ends <- time.Since(began)
		},
	}, true)
	cfg.Protocol = text.Protocol{}
	for range conns {
		client, _ := r.pair(cfg)
		go func() {
			expect(t, client, "served\n")
			client.Read(make([]byte, 1))
			client.Close()
		}()
		write(t, client, "served\n")
	}
	done := make(chan struct{})
	r.do(func() {
		began = time.Now()
		r.set.Drain(DrainPatient, grace, func() { close(done) })
	})
	late, _ := r.pair(cfg) // accepted during the drain
	go func() {
		late.Read(make([]byte, 1))
		late.Close()
	}()
	wait(t, done)
	close(ends)
	var first, last time.Duration
	inLastQuarter := 0
	n := 0
	for at := range ends {
		if n++; n == 1 {
			first = at
		}
		last = at
		if at > grace*3/4 {
			inLastQuarter++
		}
	}
	if n != conns+1 {
		return fmt.Errorf("%d ended, want %d", n, conns+1)
	}
	if first < grace/2 || last < grace*3/4 {
		return fmt.Errorf("ends from %v to %v, want them in the second half of %v", first, last, grace)
	}
	if inLastQuarter == n {
		return fmt.Errorf("all %d ended in the last quarter of the grace", n)
	}
	return nil
}

func TestLaterDrainReplacesTheFirst(t *testing.T) {
	r := newRig(t)
	client, c := r.pair(r.config(funcs{}, true))
	dones := make(chan string, 3)
	r.do(func() {
		r.set.Drain(DrainPatient, time.Hour, func() { dones <- "patient" })
		r.set.Drain(DrainPatient, 2*time.Hour, nil)
	})
	if c.State() != Open {
		t.Errorf("state %v, want open", c.State())
	}
	r.do(func() { r.set.Drain(DrainPrompt, time.Hour, func() { dones <- "prompt" }) })
	client.Close()
	for _, want := range []string{"patient", "prompt"} {
		if got := receive(t, dones); got != want {
			t.Errorf("done of %s, want of %s", got, want)
		}
	}
	again := make(chan struct{})
	r.do(func() { r.set.Drain(DrainPatient, time.Hour, func() { close(again) }) })
	wait(t, again) // nothing to wait for
	r.do(func() {
		if got := r.loop.Timers(); got != 0 {
			t.Errorf("%d timers after the drain, want 0", got)
		}
	})
}
