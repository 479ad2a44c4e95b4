package conn

import (
	"testing"
	"time"
)

func TestPoolTellsHowLongItsCallbacksRun(t *testing.T) {
	r := newRig(t)
	hold := make(chan struct{})
	began := make(chan struct{}, 2)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		began <- struct{}{}
		<-hold
	}}, false)
	if n, oldest := cfg.Pool.Running(); n != 0 || oldest != 0 {
		t.Errorf("%d callbacks since %v before there are any", n, oldest)
	}
	before := r.loop.Clock()
	a, first := r.pair(cfg)
	write(t, a, "x")
	receive(t, began)
	between := r.loop.Clock()
	b, _ := r.pair(cfg)
	write(t, b, "x")
	receive(t, began)
	if n, oldest := cfg.Pool.Running(); n != 2 || oldest < before || oldest > between {
		t.Errorf("%d callbacks since %v, want 2 since %v to %v", n, oldest, before, between)
	}
	first.Working()
	if n, oldest := cfg.Pool.Running(); n != 2 || oldest < between {
		t.Errorf("%d callbacks since %v after Working, want 2 since %v", n, oldest, between)
	}
	close(hold)
	r.until("both have returned", func() bool { n, oldest := cfg.Pool.Running(); return n == 0 && oldest == 0 })
	first.Working()
	if n, oldest := cfg.Pool.Running(); n != 0 || oldest != 0 {
		t.Errorf("%d callbacks since %v after Working of one that has returned", n, oldest)
	}
}

func TestWorkingOfAnInlineCallbackDoesNothing(t *testing.T) {
	r := newRig(t)
	client, _ := r.pair(r.config(funcs{message: func(c *Conn, m []byte) {
		c.Working()
		echo(t)(c, m)
	}}, true))
	write(t, client, "x")
	expect(t, client, "x")
}

func TestLastMessagesLeaveBeforeTheEnd(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := r.config(funcs{message: func(c *Conn, m []byte) {
			echo(t)(c, m)
			if err := c.Close(nil, []byte(" and"), []byte(" goodbye")); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := c.Send([]byte("too late")); err != ErrClosed {
				t.Errorf("Send after Close: %v", err)
			}
			if err := c.Close(nil); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if err := c.Close(nil, []byte("too late")); err != ErrClosed {
				t.Errorf("second Close with a message: %v, want ErrClosed", err)
			}
		}}, inline)
		client, _ := r.tcp(cfg)
		write(t, client, "hello")
		if got, want := expectEnd(t, client), "hello and goodbye"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if n := r.seat.SendFailures.Load(); n != 2 {
			t.Errorf("%d refused messages counted, want 2", n)
		}
	})
}

func TestLastMessageThatIsRefusedDoesNotKeepTheConnection(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	cfg := r.config(funcs{close: func(c *Conn, why error) { closed <- why }}, true)
	cfg.Limits = Limits{SendHigh: 4, SendHard: 10}
	client, c := r.tcp(cfg)
	if err := c.Close(nil, []byte("longer than ten"), []byte("bye")); err == nil {
		t.Error("Close: nil, want the refusal")
	}
	if got := expectEnd(t, client); got != "bye" {
		t.Errorf("got %q, want what fits", got)
	}
	client.Close()
	if why := receive(t, closed); why != nil {
		t.Errorf("OnClose with %v", why)
	}
}

// A peer that goes on sending does not get a reset, which would destroy the
// last message on its way.
func TestCloseLingersWhileThePeerSends(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) { c.Close(nil, []byte("enough")) }}, true)
	client, c := r.tcp(cfg)
	write(t, client, "x")
	expect(t, client, "enough")
	r.until("half-closed", func() bool { return c.shut })
	block := make([]byte, 64<<10)
	for range 64 {
		if _, err := client.Write(block); err != nil {
			t.Fatalf("while the other side lingers: %v", err)
		}
	}
	if got := expectEnd(t, client); got != "" {
		t.Errorf("got %q, want the end", got)
	}
	began := time.Now()
	client.Close()
	r.until("closed", func() bool { return c.State() == Closed })
	if took := time.Since(began); took >= DefaultClose {
		t.Errorf("the end took %v after the peer's", took)
	}
}
