package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

func TestEachWaitHasItsDeadline(t *testing.T) {
	const limit = 60 * time.Millisecond
	never := Limits{FirstByte: -1, Message: -1, WriteStall: -1, Close: -1}
	with := func(set func(*Limits)) Limits {
		l := never
		set(&l)
		return l
	}
	big := make([]byte, 6<<20)
	for _, tt := range []struct {
		name   string
		limits Limits
		client func(t *testing.T, w interface{ Write([]byte) (int, error) }) // what the client does
		server func(t *testing.T, c *Conn)                                   // what the server does
		want   error
	}{
		{
			name:   "first byte",
			limits: with(func(l *Limits) { l.FirstByte = limit }),
			server: func(t *testing.T, c *Conn) {
				// What we send does not count.
				if err := c.Send([]byte("hello")); err != nil {
					t.Error(err)
				}
			},
			want: ErrFirstByte,
		},
		{
			name:   "message",
			limits: with(func(l *Limits) { l.Message = limit }),
			client: func(t *testing.T, w interface{ Write([]byte) (int, error) }) {
				// Dribbling does not help.
				tick := time.NewTicker(limit / 20)
				defer tick.Stop()
				for range 1000 {
					if _, err := w.Write([]byte("x")); err != nil {
						return
					}
					<-tick.C
				}
				t.Error("the dribbler was never cut off")
			},
			want: ErrMessageDeadline,
		},
		{
			name:   "second message",
			limits: with(func(l *Limits) { l.Message = limit }),
			client: func(t *testing.T, w interface{ Write([]byte) (int, error) }) {
				w.Write([]byte("whole\nhalf"))
			},
			want: ErrMessageDeadline,
		},
		{
			name:   "idle",
			limits: with(func(l *Limits) { l.Idle = limit }),
			client: func(t *testing.T, w interface{ Write([]byte) (int, error) }) {
				w.Write([]byte("whole\n"))
			},
			want: ErrIdle,
		},
		{
			name:   "idle before the first byte",
			limits: with(func(l *Limits) { l.Idle = limit }),
			want:   ErrIdle,
		},
		{
			name:   "authentication",
			limits: with(func(l *Limits) { l.Auth = limit }),
			client: func(t *testing.T, w interface{ Write([]byte) (int, error) }) {
				w.Write([]byte("whole\n"))
			},
			want: ErrUnauthenticated,
		},
		{
			name:   "idle after authentication",
			limits: with(func(l *Limits) { l.Auth, l.Idle = limit/2, limit }),
			server: func(t *testing.T, c *Conn) { c.Authenticated() },
			want:   ErrIdle,
		},
		{
			name:   "reading is idle while writing is not",
			limits: with(func(l *Limits) { l.ReadIdle = limit }),
			server: func(t *testing.T, c *Conn) { sendOften(c, limit/20) },
			want:   ErrIdle,
		},
		{
			name:   "writing is idle while reading is not",
			limits: with(func(l *Limits) { l.WriteIdle = limit }),
			client: func(t *testing.T, w interface{ Write([]byte) (int, error) }) {
				tick := time.NewTicker(limit / 20)
				defer tick.Stop()
				for range 1000 {
					if _, err := w.Write([]byte("x\n")); err != nil {
						return
					}
					<-tick.C
				}
				t.Error("the connection was never closed")
			},
			want: ErrIdle,
		},
		{
			name:   "write stall",
			limits: with(func(l *Limits) { l.WriteStall = limit }),
			server: func(t *testing.T, c *Conn) {
				if err := c.Send(big); err != nil {
					t.Error(err)
				}
			},
			want: ErrStalled,
		},
		{
			name:   "close with a peer that does not read",
			limits: with(func(l *Limits) { l.Close = limit }),
			server: func(t *testing.T, c *Conn) {
				if err := c.Send(big); err != nil {
					t.Error(err)
				}
				c.Close(nil)
			},
			want: ErrStalled,
		},
		{
			name:   "close with a reason and a peer that does not read",
			limits: with(func(l *Limits) { l.Close = limit }),
			server: func(t *testing.T, c *Conn) {
				if err := c.Send(big); err != nil {
					t.Error(err)
				}
				c.Close(errors.New("with a reason"))
			},
			want: ErrStalled,
		},
		{
			name:   "close with a peer that does not close",
			limits: with(func(l *Limits) { l.Close = limit }),
			server: func(t *testing.T, c *Conn) { c.Close(nil) },
			want:   nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			closed := make(chan error, 1)
			cfg := r.config(funcs{
				connect: func(c *Conn) { // before any deadline can be over
					if tt.server != nil {
						tt.server(t, c)
					}
				},
				close: func(c *Conn, why error) { closed <- why },
			}, true)
			cfg.Protocol = text.Protocol{MaxLine: -1}
			cfg.Limits = tt.limits
			began := time.Now()
			client, _ := r.tcp(cfg)
			if tt.client != nil {
				tt.client(t, client)
			}
			why := receive(t, closed)
			if took := time.Since(began); took < limit {
				t.Errorf("ended after %v, want not before %v", took, limit)
			}
			if !errors.Is(why, tt.want) || tt.want == nil && why != nil {
				t.Errorf("OnClose with %v, want %v", why, tt.want)
			}
			if strings.Contains(tt.name, "reason") && !strings.Contains(why.Error(), "with a reason") {
				t.Errorf("OnClose with %v, want the reason in it", why)
			}
		})
	}
}

// sendOften sends until the connection is over.
func sendOften(c *Conn, every time.Duration) {
	_ = c.set.loop.Post(func() {
		var t *reactor.Timer
		t = c.set.loop.Every(every, func() {
			if c.Send([]byte("x")) != nil {
				t.Stop()
			}
		})
	})
}

func TestDeadlinesArePushedBackByWhatMoves(t *testing.T) {
	const limit = 100 * time.Millisecond
	steadily(t, limit/2, func(r *rig) error {
		done, closed := make(chan struct{}), make(chan error, 1)
		ticks := 0
		cfg := r.config(funcs{
			connect: func(c *Conn) { c.SetTimer("tick", limit/4) },
			timer: func(c *Conn, name string) {
				if ticks++; ticks == 12 { // three times the limit
					close(done)
					return
				}
				if err := c.Send([]byte("ping")); err != nil {
					t.Errorf("tick %d: %v", ticks, err)
				}
				c.SetTimer("tick", limit/4)
			},
			message: func(c *Conn, m []byte) {},
			close:   func(c *Conn, why error) { closed <- why },
		}, true)
		cfg.Protocol = text.Protocol{}
		cfg.Limits = Limits{Idle: limit, Message: limit, FirstByte: -1}
		client, _ := r.pair(cfg)
		io.WriteString(client, "x\n") // if it is closed already, that is told
		select {
		case <-done:
			return nil
		case why := <-closed:
			return fmt.Errorf("closed after %d ticks: %v", ticks, why)
		case <-time.After(patience):
			return errors.New("it did not happen")
		}
	})
}

func TestDeadlinesOfReadingStandStillWhilePaused(t *testing.T) {
	const limit = 50 * time.Millisecond
	for _, first := range []string{"", "half a message"} {
		t.Run(fmt.Sprintf("after %q", first), func(t *testing.T) {
			steadily(t, limit/2, func(r *rig) error {
				fired, closed := make(chan struct{}), make(chan error, 1)
				cfg := r.config(funcs{
					timer: func(*Conn, string) { close(fired) },
					close: func(c *Conn, why error) { closed <- why },
				}, true)
				cfg.Protocol = text.Protocol{}
				cfg.Limits = Limits{FirstByte: limit, Message: limit, Idle: 3 * limit}
				client, c := r.pair(cfg)
				io.WriteString(client, first) // if it is closed already, that is told
				if first != "" {
					r.until("it is read", func() bool { return c.BytesIn() > 0 || c.State() == Closed })
				}
				c.Pause()
				c.SetTimer("long after", 6*limit)
				select {
				case <-fired:
				case why := <-closed:
					return fmt.Errorf("closed before or while it was paused: %v", why)
				case <-time.After(patience):
					return errors.New("the timer did not fire")
				}
				if c.State() != Open {
					return fmt.Errorf("state %v while paused, want open", c.State())
				}
				resumed := time.Now()
				c.Resume()
				why := receive(t, closed)
				if took := time.Since(resumed); took < limit {
					t.Errorf("ended %v after Resume, want not before %v", took, limit)
				}
				if why != ErrFirstByte && why != ErrMessageDeadline {
					return fmt.Errorf("OnClose with %v", why)
				}
				return nil
			})
		})
	}
}

func TestBusyHandlerIsNotIdle(t *testing.T) {
	r := newRig(t)
	const limit = 40 * time.Millisecond
	fired := make(chan struct{})
	closed := make(chan error, 1)
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			<-fired
			if c.State() != Open {
				t.Errorf("state %v while the handler runs, want open", c.State())
			}
		},
		close: func(c *Conn, why error) { closed <- why },
	}, false)
	cfg.Limits.Idle = limit
	client, _ := r.pair(cfg)
	r.do(func() { r.loop.After(5*limit, func() { close(fired) }) })
	write(t, client, "x")
	if why := receive(t, closed); why != ErrIdle {
		t.Errorf("OnClose with %v, want ErrIdle", why)
	}
}

func TestTimersAreNamed(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		fired := make(chan string, 10)
		_, c := r.pair(r.config(funcs{timer: func(c *Conn, name string) { fired <- name }}, inline))
		r.do(func() {
			c.SetTimer("second", 20*time.Millisecond)
			c.SetTimer("first", time.Millisecond)
			c.SetTimer("stopped", 0)
			c.StopTimer("stopped")
			c.StopTimer("unknown")
			c.SetTimer("moved", 0)
			c.SetTimer("moved", 40*time.Millisecond)
		})
		for _, want := range []string{"first", "second", "moved"} {
			if got := receive(t, fired); got != want {
				t.Errorf("timer %q, want %q", got, want)
			}
		}
		c.SetTimer("never", time.Hour)
		r.until("it is armed", func() bool { return r.loop.Timers() == 1 })
		c.SetTimer("never", 2*time.Hour)
		r.do(func() {
			if got := r.loop.Timers(); got != 1 {
				t.Errorf("%d timers, want 1", got)
			}
		})
		c.CloseNow(nil)
		r.until("closed", func() bool { return c.State() == Closed })
		c.SetTimer("too late", 0)
		r.do(func() {
			if r.loop.Timers() != 0 || len(fired) != 0 {
				t.Errorf("%d timers, %d fired after the end", r.loop.Timers(), len(fired))
			}
		})
	})
}

func TestSlowInlineCallbackIsTold(t *testing.T) {
	r := newRig(t)
	events := make(chan Event, 10)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		<-time.After(2 * slow)
		listener, conn, since, ok := r.seat.Handler()
		if listener != "test" || conn != c.ID() || since == 0 || !ok {
			t.Errorf("seat says %q, %d, %d, %v while a callback of %d runs", listener, conn, since, ok, c.ID())
		}
		echo(t)(c, m)
	}}, true)
	cfg.Event = func(e Event) { events <- e }
	client, c := r.pair(cfg)
	for range 3 {
		write(t, client, "x")
		expect(t, client, "x")
	}
	e := receive(t, events)
	if e.Kind != SlowCallback || e.Conn != c || e.Took < 2*slow || e.Took > patience {
		t.Errorf("event %+v, want a slow callback of this connection", e)
	}
	if len(events) != 0 {
		t.Errorf("told again within a second: %+v", <-events)
	}
	r.do(func() {
		cfg := r.set.settings[cfg]
		if cfg.slowSkipped == 0 {
			t.Error("what was not told is not counted")
		}
		if _, _, _, ok := r.seat.Handler(); ok {
			t.Error("seat says that a callback runs")
		}
	})
}

func TestSlowCallbackAmongOthersIsToldAndThenByName(t *testing.T) {
	r := newRig(t)
	events := make(chan Event, 10)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		if string(m) == "slow" {
			<-time.After(2 * slow)
		}
		echo(t)(c, m)
	}}, true)
	cfg.Event = func(e Event) { events <- e }
	var clients [3]net.Conn
	var conns [3]*Conn
	for i := range clients {
		clients[i], conns[i] = r.pair(cfg)
	}
	// All that is written while the loop stands comes in one turn.
	oneTurn := func(words ...string) {
		r.do(func() {
			for i, w := range words {
				write(t, clients[i], w)
			}
		})
		for i, w := range words {
			expect(t, clients[i], w)
		}
	}
	// On a machine that is busy other callbacks look slow too: what is told of
	// them is not looked at.
	told := func(wary bool) Event {
		t.Helper()
		r.do(func() {
			r.set.settings[cfg].slowTold = -slowEvery // it may be told
			r.set.waryUntil = 0
			if wary {
				r.set.waryUntil = r.loop.Clock() + time.Hour
			}
			for len(events) > 0 {
				<-events
			}
		})
		oneTurn("x", "slow", "x")
		return receive(t, events)
	}
	for _, tt := range []struct {
		name string
		wary bool
		of   *Conn
		peer string
	}{
		{name: "first", of: nil},
		{name: "while it is wary", wary: true, of: conns[1], peer: conns[1].Peer()},
	} {
		var e Event
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if e = told(tt.wary); e.Took >= 2*slow && e.Conn == tt.of {
				break
			}
		}
		if e.Kind != SlowCallback || e.Listener != "test" || e.Conn != tt.of || e.Peer != tt.peer || e.Took < 2*slow {
			t.Errorf("%s: event %+v, want a slow callback of %v", tt.name, e, tt.of)
		}
	}
}

func TestInputThatWaitsPutsNoOtherDeadlineOff(t *testing.T) {
	for _, tt := range []struct {
		name  string
		funcs funcs
		set   func(*Limits)
		flood bool
		want  error
	}{
		{"authentication, of one that floods", funcs{}, func(l *Limits) { l.Auth = 50 * time.Millisecond }, true, ErrUnauthenticated},
		{"authentication, of one that is paused", funcs{connect: func(c *Conn) { c.Pause() }},
			func(l *Limits) { l.Auth = 50 * time.Millisecond }, false, ErrUnauthenticated},
		{"writing, of one that floods", funcs{}, func(l *Limits) { l.WriteIdle = 50 * time.Millisecond }, true, ErrIdle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			why := make(chan error, 1)
			tt.funcs.close = func(_ *Conn, err error) { why <- err }
			cfg := r.config(tt.funcs, true)
			tt.set(&cfg.Limits)
			client, _ := r.tcp(cfg)
			write(t, client, "hello")
			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				for b := make([]byte, 1<<20); tt.flood; {
					if _, err := client.Write(b); err != nil {
						return
					}
				}
			}()
			if err := receive(t, why); !errors.Is(err, tt.want) {
				t.Errorf("ended by %v, want %v", err, tt.want)
			}
			client.Close()
			<-flooded
		})
	}
}
