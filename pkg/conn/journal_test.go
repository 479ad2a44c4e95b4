package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// atRest judges a connection as is done after the death of its process.
func atRest(t testing.TB, r *rig, c *Conn) (rests bool) {
	t.Helper()
	r.do(func() {
		if c.state == Closed {
			return
		}
		n := NotedIn(c.row())
		if n.FD != int(c.fd) || n.Listener != ListenerKey("test") {
			t.Errorf("the row says descriptor %d, listener %#x, want %d, %#x", n.FD, n.Listener, c.fd, ListenerKey("test"))
		}
		if !n.Counted {
			rests = n.AtRest
			return
		}
		k, err := keeper.Counts(int(c.fd))
		if err != nil {
			t.Error(err)
			return
		}
		rests = n.AtRest && keeper.AtBoundary(keeper.Position{Consumed: n.Read, Written: n.Written}, k)
	})
	return rests
}

// untilRest waits until a connection is at rest, or is not.
func untilRest(t testing.TB, r *rig, c *Conn, want bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if atRest(t, r, c) == want {
			return
		}
	}
	t.Fatalf("at rest: %t, want %t", !want, want)
}

// dies has b take up a connection as if a had died.
func (w *two) dies(c *Conn, cfg *Config) *Conn {
	w.t.Helper()
	f := w.freeze(c)
	body, err := Resting(nil, w.a.set.alloc.Table(), f.ID(), f.Row(), f.FD(), "test", w.a.loop.Clock())
	if err != nil {
		w.t.Fatal(err)
	}
	ad, err := w.tryAdopt(f, cfg, body)
	if err != nil {
		w.t.Fatal(err)
	}
	from, to := w.a.set.alloc.Incarnation(), w.b.set.alloc.Incarnation()
	if !f.Row().Move(f.ID(), from, to) {
		w.t.Error("the row is not moved")
	}
	w.b.do(func() { ad.Serve(Crash, true) })
	w.b.do(func() {
		if err := ad.Tail(nil); err != nil {
			w.t.Error(err)
		}
	})
	w.a.do(func() { f.Left(0) })
	return ad.Conn()
}

func TestConnectionIsAtRestBetweenMessages(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		bothWays(t, func(t *testing.T, inline bool) {
			r := newRig(t)
			hold := make(chan struct{})
			cfg := r.config(funcs{message: func(c *Conn, m []byte) {
				switch string(m) {
				case "silent":
				case "hold":
					if err := c.Hold(); err != nil {
						t.Error(err)
					}
				case "wait":
					<-hold
				case "pause":
					c.Pause()
				default:
					echo(t)(c, m)
				}
			}}, inline)
			cfg.Protocol = text.Protocol{}
			var client net.Conn
			var c *Conn
			if network == "tcp" {
				client, c = r.tcp(cfg)
			} else {
				client, c = r.pair(cfg)
			}
			untilRest(t, r, c, true)
			for range 20 {
				write(t, client, "one\ntwo\n")
				expect(t, client, "one\ntwo\n")
				untilRest(t, r, c, true)
			}
			write(t, client, "silent\n")
			r.until("it is read", func() bool { return c.BytesIn() == 20*8+7 })
			untilRest(t, r, c, true)
			write(t, client, "hal")
			untilRest(t, r, c, false)
			write(t, client, "f\n")
			expect(t, client, "half\n")
			untilRest(t, r, c, true)
			if !inline {
				write(t, client, "wait\n")
				untilRest(t, r, c, false)
				hold <- struct{}{}
				untilRest(t, r, c, true)
			}
			write(t, client, "hold\n")
			r.until("it is held", func() bool { return c.onHold() && !c.has(flagRunning) })
			untilRest(t, r, c, false)
			c.Release()
			untilRest(t, r, c, true)
			if err := c.Send([]byte("from elsewhere")); err != nil {
				t.Fatal(err)
			}
			expect(t, client, "from elsewhere\n")
			untilRest(t, r, c, true)
			if !inline {
				return
			}
			write(t, client, "pause\nheld\n")
			r.until("it is held", func() bool { return c.held })
			if atRest(t, r, c) {
				t.Error("it is at rest with a message that waits")
			}
			c.Resume()
			expect(t, client, "held\n")
			untilRest(t, r, c, true)
		})
	}
}

func TestConnectionIsNotAtRest(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(r *rig, client *net.TCPConn, c *Conn)
	}{
		{"with bytes that the kernel has not taken", func(r *rig, client *net.TCPConn, c *Conn) {
			if err := c.Send(make([]byte, 7<<20)); err != nil {
				r.t.Error(err)
			}
			r.until("the peer is behind", func() bool { return c.blocked })
		}},
		{"in a pipe", func(r *rig, _ *net.TCPConn, c *Conn) {
			_, other := r.tcp(r.config(NopHandler{}, true))
			if err := Pipe(c, other); err != nil {
				r.t.Error(err)
			}
		}},
		{"closing", func(r *rig, _ *net.TCPConn, c *Conn) { _ = c.Close(nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config(funcs{message: echo(t)}, true)
			cfg.Protocol = text.Protocol{MaxLine: 8 << 20}
			client, c := r.tcp(cfg)
			untilRest(t, r, c, true)
			tt.before(r, client, c)
			r.do(func() {}) // a turn
			untilRest(t, r, c, false)
		})
	}
}

func TestConnectionIsNotAtRestBeforeItsFirstCallbackHasReturned(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		t.Run(fmt.Sprintf("adopted %t", adopted), func(t *testing.T) {
			w := newTwo(t)
			hold, began := make(chan struct{}), make(chan struct{}, 1)
			first := func() { began <- struct{}{}; <-hold }
			a, b := w.configs(funcs{
				connect: func(*Conn) {
					if !adopted {
						first()
					}
				},
				adopt: func(*Conn, Reason) { first() },
			}, false, nil)
			client, c := w.a.tcp(a)
			r := w.a
			if adopted {
				untilRest(t, w.a, c, true)
				c = w.dies(c, b)
				r = w.b
			}
			receive(t, began)
			if atRest(t, r, c) {
				t.Error("it is at rest in its first callback")
			}
			close(hold)
			untilRest(t, r, c, true)
			client.Close()
		})
	}
}

func TestConnectionThatRestsIsTakenUp(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		bothWays(t, func(t *testing.T, inline bool) {
			w := newTwo(t)
			told := new(journal)
			a, b := w.configs(funcs{
				message: func(c *Conn, m []byte) {
					if v, ok := strings.CutPrefix(string(m), "save "); ok {
						c.SetValue(v)
						if err := c.Save(); err != nil {
							t.Error(err)
						}
					}
					echo(t)(c, m)
				},
				adopt: func(c *Conn, why Reason) { told.add(fmt.Sprint(why, " ", c.Value())) },
			}, inline, func(c *Config) {
				c.EncodeValue = func(c *Conn) ([]byte, error) { return fmt.Appendf(nil, "%v", c.Value()), nil }
				c.DecodeValue = func(c *Conn, b []byte) error {
					if b != nil {
						c.SetValue(string(b))
					}
					return nil
				}
			})
			var client net.Conn
			var c *Conn
			if network == "tcp" {
				client, c = w.a.tcp(a)
			} else {
				client, c = w.a.pair(a)
			}
			peer := c.Peer()
			say := func(m string) { write(t, client, m+"\n"); expect(t, client, m+"\n") }
			say("hello")
			c.Authenticated()
			c.mark(0, 0)
			untilRest(t, w.a, c, true)
			w.a.until("it is noted", func() bool { _, _, bits := c.row().Published(); return bits&noteAuthenticated != 0 })
			c = w.dies(c, b)
			if c.Peer() != peer || !c.has(flagAuthenticated) || c.BytesIn() != 6 || c.BytesOut() != 6 {
				t.Errorf("it has come with peer %q, %d bytes in and %d out, authenticated %t", c.Peer(), c.BytesIn(), c.BytesOut(), c.has(flagAuthenticated))
			}
			say("again")
			// And back, with what is saved.
			say("save one")
			say("save two")
			untilRest(t, w.b, c, true)
			c = (&two{t: t, a: w.b, b: w.a}).dies(c, a)
			say("and again")
			if c.Value() != "two" {
				t.Errorf("it has come with %v, want what was saved last", c.Value())
			}
			untilRest(t, w.a, c, true)
			// What was saved there is still saved.
			c = w.dies(c, b)
			say("once more")
			if got, want := fmt.Sprint(told.all()), "[crash <nil> crash two crash two]"; got != want {
				t.Errorf("OnAdopt was told %s, want %s", got, want)
			}
			client.Close()
			w.b.until("it is closed", func() bool { return c.State() == Closed })
		})
	}
}

func TestWhatIsSavedBeforeTheTailHasComeIsSaved(t *testing.T) {
	w := newTwo(t)
	saved := make(chan struct{}, 2)
	a, b := w.configs(funcs{
		message: func(c *Conn, m []byte) {
			c.SetValue(string(m))
			if err := c.Save(); err != nil {
				t.Error(err)
			}
			echo(t)(c, m)
			saved <- struct{}{}
		},
		adopt: func(*Conn, Reason) {},
	}, true, func(c *Config) {
		c.EncodeValue = func(c *Conn) ([]byte, error) { return []byte(c.Value().(string)), nil }
		c.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
	})
	client, c := w.a.tcp(a)
	write(t, client, "one\n")
	expect(t, client, "one\n")
	receive(t, saved)
	f := w.freeze(c)
	ad := w.adopt(f, b)
	w.commit(f)
	w.b.do(func() { ad.Serve(Move, true) })
	w.a.do(func() { f.Left(7) })
	write(t, client, "two\n")
	receive(t, saved)
	w.b.do(func() {
		if err := ad.Tail(nil); err != nil {
			t.Error(err)
		}
	})
	expect(t, client, "two\n")
	c = ad.Conn()
	untilRest(t, w.b, c, true)
	c = (&two{t: t, a: w.b, b: w.a}).dies(c, a)
	untilRest(t, w.a, c, true)
	if c.Value() != "two" {
		t.Errorf("after a death its state is %q, want what was saved last", c.Value())
	}
	client.Close()
	w.a.until("it is closed", func() bool { return c.State() == Closed })
}

// silent has nothing to do in OnAdopt.
type silent struct{ funcs }

func (silent) AdoptsSilently() bool { return true }

func TestConnectionThatHasMovedIsAtRestAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name    string
		inline  bool
		handler func(funcs) Handler
	}{
		{"inline", true, func(f funcs) Handler { return f }},
		{"by the pool, without OnAdopt", false, func(f funcs) Handler { return silent{f} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			a, b := w.configs(tt.handler(funcs{message: echo(t), adopt: func(*Conn, Reason) {}}), tt.inline, nil)
			client, c := w.a.tcp(a)
			write(t, client, "hello\n")
			expect(t, client, "hello\n")
			f := w.freeze(c)
			ad := w.adopt(f, b)
			w.commit(f)
			w.b.do(func() {
				ad.Serve(Move, true)
				if !NotedIn(f.Row()).AtRest {
					t.Error("it is not at rest before the end of the turn")
				}
			})
			w.a.do(func() { f.Left(7) })
			w.b.do(func() {
				if err := ad.Tail(nil); err != nil {
					t.Error(err)
				}
			})
			write(t, client, "again\n")
			expect(t, client, "again\n")
			client.Close()
			w.b.until("it is closed", func() bool { return ad.Conn().State() == Closed })
		})
	}
}

// A connection that is to move when its callback has returned moves before it
// is at rest.
func TestWhatWasSavedRightBeforeAMoveIsSavedWhereItWent(t *testing.T) {
	w := newTwo(t)
	saved, goOn := make(chan struct{}, 1), make(chan struct{})
	a, b := w.configs(funcs{
		message: func(c *Conn, m []byte) {
			c.SetValue(string(m))
			if err := c.Save(); err != nil {
				t.Error(err)
			}
			echo(t)(c, m)
			if string(m) == "two" {
				saved <- struct{}{}
				<-goOn
			}
		},
		adopt: func(*Conn, Reason) {},
	}, false, func(c *Config) {
		c.EncodeValue = func(c *Conn) ([]byte, error) { return []byte(c.Value().(string)), nil }
		c.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
	})
	client, c := w.a.tcp(a)
	write(t, client, "one\n")
	expect(t, client, "one\n")
	untilRest(t, w.a, c, true)
	write(t, client, "two\n")
	receive(t, saved)
	frozen := make(chan *Frozen, 1)
	w.a.do(func() {
		w.a.set.Freeze(c, func(f *Frozen, err error) {
			if err != nil {
				t.Error(err)
			}
			frozen <- f
		})
		close(goOn)
		for end := time.Now().Add(patience); c.running() && time.Now().Before(end); { // so that it is settled in a later turn
			runtime.Gosched()
		}
	})
	f := receive(t, frozen)
	c = w.finish(f, w.adopt(f, b))
	expect(t, client, "two\n")
	untilRest(t, w.b, c, true)
	c = (&two{t: t, a: w.b, b: w.a}).dies(c, a)
	untilRest(t, w.a, c, true)
	if c.Value() != "two" {
		t.Errorf("after a death its state is %q, want what was saved last", c.Value())
	}
	client.Close()
	w.a.until("it is closed", func() bool { return c.State() == Closed })
}

func TestConnectionOfWhichNobodyWasToldIsGreetedElsewhere(t *testing.T) {
	w := newTwo(t)
	told := new(journal)
	a, b := w.configs(funcs{
		connect: func(*Conn) { told.add("connect") },
		adopt:   func(*Conn, Reason) { told.add("adopt") },
		message: echo(t),
	}, true, nil)
	client, fd, peer := tcpPair(t, "tcp4", "127.0.0.1:0")
	frozen := make(chan *Frozen, 1)
	w.a.do(func() {
		err := w.a.set.Arrived(fd, peer, a, func(f *Frozen, err error) {
			if err != nil {
				t.Error(err)
			}
			frozen <- f
		})
		if err != nil {
			t.Error(err)
		}
	})
	f := receive(t, frozen)
	if !atRest(t, w.a, f.Conn()) {
		t.Error("it is not at rest")
	}
	body, err := Resting(nil, w.a.set.alloc.Table(), f.ID(), f.Row(), f.FD(), "test", w.a.loop.Clock())
	if err != nil {
		t.Fatal(err)
	}
	ad, err := w.tryAdopt(f, b, body)
	if err != nil {
		t.Fatal(err)
	}
	w.finish(f, ad)
	write(t, client, "hello\n")
	expect(t, client, "hello\n")
	if got := fmt.Sprint(told.all()); got != "[connect]" {
		t.Errorf("callbacks %s, want OnConnect once", got)
	}
}

func TestSessionThatRestsIsTakenUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		short bool // its state has room in the row
		save  string
		slab  bool // the slab is used, which costs memory
	}{
		{name: "short", short: true},
		{name: "long", slab: true},
		{name: "short, and something is saved", short: true, save: "all", slab: true},
		{name: "short, and something is saved only later", short: true, save: "second", slab: true},
		{name: "short, and what is saved moves before it is put into the slab", short: true, save: "move", slab: true},
		{name: "long, and what is saved moves before it is put into the slab", save: "move", slab: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			var saves atomic.Bool
			a, b := w.configs(funcs{
				message: func(c *Conn, m []byte) {
					if saves.Load() {
						c.SetValue("saved")
						if err := c.Save(); err != nil {
							t.Error(err)
						}
					}
					echo(t)(c, m)
				},
				adopt: func(*Conn, Reason) {},
			}, true, func(c *Config) {
				c.Protocol = nil
				c.NewSession = func() wire.Session {
					if tt.short {
						return new(brief)
					}
					return new(lengthy)
				}
				c.EncodeValue = func(c *Conn) ([]byte, error) { return []byte(c.Value().(string)), nil }
				c.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
			})
			client, c := w.a.tcp(a)
			saves.Store(tt.save == "all")
			write(t, client, "x\n")
			expect(t, client, "1:x\n")
			untilRest(t, w.a, c, true)
			if tt.save == "second" {
				saves.Store(true)
				write(t, client, "x\n")
				expect(t, client, "2:x\n")
				untilRest(t, w.a, c, true)
			}
			if tt.save == "move" {
				f := w.freeze(c)
				f.Conn().extra.Load().saved = []byte("saved") // as Save leaves it
				w.a.do(func() {
					f.Conn().mu.Lock()
					defer f.Conn().mu.Unlock()
					if err := f.Conn().passSavedLocked(); err != nil {
						t.Error(err)
					}
				})
				w.a.do(f.Thaw)
			}
			if _, _, bits := c.row().Published(); (bits&noteSlab != 0) != tt.slab || tt.slab == (notedSession(bits) != nil) {
				t.Errorf("bits %x, want a slab %v", bits, tt.slab)
			}
			c = w.dies(c, b)
			write(t, client, "x\n")
			want := "2:x\n"
			if tt.save == "second" {
				want = "3:x\n"
			}
			expect(t, client, want)
			if got := c.Value(); tt.save != "" && got != "saved" || tt.save == "" && got != "" {
				t.Errorf("its value is %q after %q was saved", got, tt.save)
			}
			untilRest(t, w.b, c, true)
		})
	}
}

// lengthy is a session whose state has no room in a row.
type lengthy struct{ counting }

func (p *lengthy) AppendState(dst []byte) ([]byte, error) {
	return fmt.Appendf(dst, "%08d", p.sent), nil
}
func (p *lengthy) RestoreState(b []byte) (err error) {
	p.sent, err = strconv.Atoi(string(b))
	return err
}

// brief is a session whose state is a byte.
type brief struct{ counting }

func (p *brief) AppendState(dst []byte) ([]byte, error) { return append(dst, byte(p.sent)), nil }
func (p *brief) RestoreState(b []byte) error {
	if len(b) != 1 {
		return fmt.Errorf("state of %d bytes", len(b))
	}
	p.sent = int(b[0])
	return nil
}

// read reads what comes.
func read(t testing.TB, nc net.Conn) string {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, err := nc.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestSaveSaysWhyNot(t *testing.T) {
	wrong := errors.New("wrong")
	for _, tt := range []struct {
		name   string
		encode func(*Conn) ([]byte, error)
		closed bool
		want   error
	}{
		{name: "no encoding", want: ErrNotSaved},
		{name: "its error", encode: func(*Conn) ([]byte, error) { return nil, wrong }, want: wrong},
		{name: "too long", encode: func(*Conn) ([]byte, error) { return make([]byte, MaxSaved+1), nil }, want: ErrTooLong},
		{name: "as long as may be", encode: func(*Conn) ([]byte, error) { return make([]byte, MaxSaved), nil }},
		{name: "nothing", encode: func(*Conn) ([]byte, error) { return nil, nil }},
		{name: "closed", encode: func(*Conn) ([]byte, error) { return nil, nil }, closed: true, want: ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config(NopHandler{}, true)
			cfg.EncodeValue = tt.encode
			_, c := r.tcp(cfg)
			if tt.closed {
				_ = c.Close(nil)
			}
			if err := c.Save(); !errors.Is(err, tt.want) {
				t.Errorf("Save: %v, want %v", err, tt.want)
			}
			if tt.want == nil {
				r.until("it is saved", func() bool { _, _, bits := c.row().Published(); return bits&noteSlab != 0 })
			}
		})
	}
}

func TestRestingSaysWhyNot(t *testing.T) {
	w := newTwo(t)
	a, _ := w.configs(NopHandler{}, true, nil)
	client, c := w.a.tcp(a)
	untilRest(t, w.a, c, true)
	table := w.a.set.alloc.Table()
	resting := func(fd int) error {
		_, err := Resting(nil, table, c.id, c.row(), fd, "test", time.Second)
		return err
	}
	w.a.do(func() {
		if err := resting(int(c.fd)); err != nil {
			t.Error(err)
		}
		if err := resting(-1); !errors.Is(err, unix.EBADF) {
			t.Errorf("without a descriptor: %v", err)
		}
		rx, tx, bits := c.row().Published()
		slab, err := table.OwnSlab(c.id, rows.FirstHalf)
		if err != nil {
			t.Error(err)
		}
		copy(slab, bytes.Repeat([]byte{0xff}, rows.SlabHalf))
		c.row().Publish(rx, tx, bits|noteSlab)
		if err := resting(int(c.fd)); !errors.Is(err, ErrState) {
			t.Errorf("a slab of ones: %v, want ErrState", err)
		}
		c.row().Publish(rx, tx, 0)
		if err := resting(int(c.fd)); !errors.Is(err, ErrNotAtRest) {
			t.Errorf("not at rest: %v, want ErrNotAtRest", err)
		}
	})
	client.Close()
}

func TestJournalOfASessionCostsNoAllocation(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.NewSession = func() wire.Session { return new(still) }
	client, c := r.tcp(cfg)
	untilRest(t, r, c, true)
	var got float64
	r.do(func() { got = testing.AllocsPerRun(100, c.note) })
	if got > 0 && !raceEnabled {
		t.Errorf("%v allocations, want none", got)
	}
	client.Close()
}

// still is a session with a state that stays.
type still struct{ wire.Raw }

func (*still) Buffered() int                          { return 0 }
func (*still) AppendState(dst []byte) ([]byte, error) { return append(dst, "state"...), nil }
func (*still) RestoreState([]byte) error              { return nil }

func BenchmarkNote(b *testing.B) {
	for _, bb := range []struct {
		name         string
		session, tls bool
	}{{name: "plain"}, {name: "session", session: true}, {name: "TLS", tls: true}, {name: "session over TLS", session: true, tls: true}} {
		b.Run(bb.name, func(b *testing.B) {
			r := newRig(b)
			cfg := r.config(funcs{message: func(*Conn, []byte) {}}, true)
			if bb.session {
				cfg.NewSession = func() wire.Session { return new(still) }
			}
			if bb.tls {
				secured(b, cfg)
			}
			nc, c := r.tcp(cfg)
			if bb.tls {
				handshaken(b, nc, clientTLS(tls.VersionTLS13))
				r.until("it is noted", func() bool { return !c.has(flagOpening) && NotedIn(c.row()).AtRest })
			}
			r.do(func() {
				for b.Loop() {
					c.rx.Add(1)
					c.note()
				}
				if !NotedIn(c.row()).AtRest {
					b.Error("it was not noted")
				}
			})
		})
	}
}

func FuzzSlab(f *testing.F) {
	f.Add([]byte{}, []byte{}, false)
	whole := make([]byte, rows.SlabHalf)
	(&slab{session: []byte("ss"), value: []byte("vv"), origin: []byte("oo"), info: []byte("ii")}).put(whole, nil, false)
	f.Add(whole, []byte{}, false)
	apart := make([]byte, rows.SlabHalf)
	(&slab{session: []byte("ss"), origin: []byte("oo"), info: []byte("ii")}).put(apart, make([]byte, rows.SlabAnnex), false)
	f.Add(apart, []byte("ooii"), true)
	f.Add(bytes.Repeat([]byte{0xff}, rows.SlabHalf), []byte{}, false)
	f.Fuzz(func(t *testing.T, b, more []byte, hasAnnex bool) {
		half := make([]byte, rows.SlabHalf)
		copy(half, b)
		var annex []byte
		if hasAnnex {
			annex = make([]byte, rows.SlabAnnex)
			copy(annex, more)
		}
		s, ok := parseSlab(half, annex)
		if !ok {
			return
		}
		if n := s.size(half[slabKeysLen] > 0); n > rows.SlabHalf+rows.SlabAnnex || !hasAnnex && n > rows.SlabHalf {
			t.Errorf("%d bytes out of %d and %d", n, len(half), len(annex))
		}
		if half[slabKeysLen] > 0 {
			return // which put takes from elsewhere
		}
		if half[slabApart] == 0 {
			annex = nil
		}
		again := make([]byte, rows.SlabHalf)
		s.put(again, annex, false)
		s2, ok := parseSlab(again, annex)
		if same := bytes.Equal(s.session, s2.session) && bytes.Equal(s.value, s2.value) && bytes.Equal(s.origin, s2.origin) && bytes.Equal(s.info, s2.info); !ok || !same || (s.value == nil) != (s2.value == nil) {
			t.Errorf("%+v is written as %+v", s, s2)
		}
	})
}
