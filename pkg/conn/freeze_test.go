package conn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// two is two rigs as two processes have them: with one table of rows.
type two struct {
	t    testing.TB
	a, b *rig
}

func newTwo(t testing.TB) *two {
	t.Helper()
	before := descriptors(t)
	table, err := rows.Create(1 << 12)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, inc := range []uint64{1, 2} {
			table.Owned(inc, func(id rows.ID, _ *rows.Row) { t.Errorf("row %d is left to %d", id, inc) })
		}
		if err := table.Close(); err != nil {
			t.Error(err)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors are open, want %d as before", after, before)
		}
	})
	return &two{t: t, a: newRigOn(t, table.Allocator(1)), b: newRigOn(t, table.Allocator(2))}
}

// descriptors counts this process's.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// freeze freezes c, which rig r has.
func freeze(r *rig, c *Conn) (*Frozen, error) {
	r.t.Helper()
	type result struct {
		f   *Frozen
		err error
	}
	told := make(chan result, 2)
	r.do(func() { r.set.Freeze(c, func(f *Frozen, err error) { told <- result{f, err} }) })
	got := receive(r.t, told)
	return got.f, got.err
}

func (w *two) freeze(c *Conn) *Frozen {
	w.t.Helper()
	f, err := freeze(w.a, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// freezeUnsent freezes c with messages that the kernel has not taken.
func (w *two) freezeUnsent(c *Conn, messages ...string) *Frozen {
	w.t.Helper()
	frozen := make(chan *Frozen, 1)
	w.a.do(func() {
		c.blocked = true // until the next turn's events, but then it is frozen
		for _, m := range messages {
			if err := c.Send([]byte(m)); err != nil {
				w.t.Error(err)
			}
		}
		c.settle()
		w.a.set.Freeze(c, func(f *Frozen, err error) {
			if err != nil {
				w.t.Error(err)
			}
			frozen <- f
		})
	})
	return receive(w.t, frozen)
}

func (w *two) capture(f *Frozen) (body []byte) {
	w.t.Helper()
	w.a.do(func() {
		var err error
		if body, err = f.Capture(nil); err != nil {
			w.t.Errorf("Capture: %v", err)
		}
	})
	return body
}

// adopt rebuilds in b what a has captured.
func (w *two) adopt(f *Frozen, cfg *Config) *Adopted {
	w.t.Helper()
	ad, err := w.tryAdopt(f, cfg, w.capture(f))
	if err != nil {
		w.t.Fatal(err)
	}
	return ad
}

func (w *two) tryAdopt(f *Frozen, cfg *Config, body []byte) (ad *Adopted, err error) {
	w.t.Helper()
	fd, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.b.do(func() {
		cookie, e := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if e != nil || cookie != f.Row().Cookie.Load() {
			w.t.Errorf("cookie %d, %v, want %d", cookie, e, f.Row().Cookie.Load())
		}
		ad, err = w.b.set.Adopt(fd, f.ID(), f.Row(), func(name string) *Config {
			if cfg == nil || name != cfg.Listener {
				return nil
			}
			return cfg
		}, body)
	})
	if err != nil {
		unix.Close(fd)
	}
	return ad, err
}

// commit makes b the owner of what a has frozen.
func (w *two) commit(f *Frozen) {
	w.t.Helper()
	from, to := w.a.set.alloc.Incarnation(), w.b.set.alloc.Incarnation()
	if !f.Row().Offer(f.ID(), from, to) || !f.Row().Commit(f.ID(), from, to) {
		w.t.Error("not committed")
	}
}

// finish does all that follows the commit.
func (w *two) finish(f *Frozen, ad *Adopted) *Conn {
	w.t.Helper()
	w.commit(f)
	w.b.do(func() { ad.Serve(Move, true) })
	var tail []byte
	w.a.do(func() { tail = f.Left(7) })
	w.b.do(func() {
		if err := ad.Tail(tail); err != nil {
			w.t.Errorf("Tail: %v", err)
		}
	})
	return ad.Conn()
}

// move does the whole of it.
func (w *two) move(c *Conn, cfg *Config) *Conn {
	w.t.Helper()
	f := w.freeze(c)
	return w.finish(f, w.adopt(f, cfg))
}

// configs returns the same configuration for both rigs.
func (w *two) configs(h Handler, inline bool, change func(*Config)) (a, b *Config) {
	a, b = w.a.config(h, inline), w.b.config(h, inline)
	for _, c := range []*Config{a, b} {
		c.Protocol = text.Protocol{MaxLine: 1 << 20}
		c.ProtocolName = "text"
		if change != nil {
			change(c)
		}
	}
	return a, b
}

func TestConnIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Conn{}); size > 240 {
		t.Errorf("a Conn has %d bytes, want at most 240: a size class of the allocator, and the next one is 256", size)
	}
}

// Each connection is moved there and back, so the giver was a taker once.
func TestConnectionTravelsInEveryState(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		inline bool // not on the Pool
		// before brings the connection into the state, after shows that it is
		// still in it; adopted is what OnAdopt does.
		before  func(w *two, client *net.TCPConn, c *Conn)
		adopted func(c *Conn)
		after   func(w *two, client *net.TCPConn, c *Conn, told *journal)
	}{
		{
			name:   "idle",
			before: func(w *two, client *net.TCPConn, c *Conn) {},
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) {
				write(w.t, client, "hello\n")
				expect(w.t, client, "hello\n")
				w.b.do(func() {
					if c.extra.Load() != nil || c.in != nil || c.out.head != nil {
						w.t.Error("an idle connection that has moved keeps more than one that has not")
					}
				})
			},
		},
		{
			name: "half a message",
			before: func(w *two, client *net.TCPConn, c *Conn) {
				write(w.t, client, "hel")
				w.a.until("it is read", func() bool { return c.BytesIn() == 3 })
			},
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) {
				write(w.t, client, "lo\nand")
				expect(w.t, client, "hello\n")
				if c.BytesIn() < 6 {
					w.t.Errorf("%d bytes in, want those of before as well", c.BytesIn())
				}
			},
		},
		{
			name:   "complete messages that are held by Pause",
			inline: true, // on the Pool the loop may be quicker than Pause
			before: func(w *two, client *net.TCPConn, c *Conn) {
				write(w.t, client, "pause\ntwo\nthr")
				w.a.until("it is held", func() bool { return c.held && c.has(flagPaused) })
			},
			after: func(w *two, client *net.TCPConn, c *Conn, told *journal) {
				write(w.t, client, "ee\n")
				if got := fmt.Sprint(told.all()); strings.Contains(got, "two") {
					w.t.Errorf("it is not paused any more: %s", got)
				}
				c.Resume()
				expect(w.t, client, "two\nthree\n")
			},
		},
		{
			name: "paused, with the peer's end behind it",
			before: func(w *two, client *net.TCPConn, c *Conn) {
				c.Pause()
				w.a.until("it is paused", func() bool { return c.watched&watchInput == 0 })
				write(w.t, client, "one\ntwo\n")
				client.CloseWrite()
				w.a.until("the end is noticed", func() bool { return c.peerGone })
			},
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) {
				c.Resume()
				if got := expectEnd(w.t, client); got != "one\ntwo\n" {
					w.t.Errorf("got %q", got)
				}
			},
		},
		{
			name:   "held, and the peer's end was read",
			change: func(c *Config) { c.Limits.QueueDepth = 1 },
			before: func(w *two, client *net.TCPConn, c *Conn) {
				write(w.t, client, "one\npau")
				w.a.until("it is read", func() bool { return c.BytesIn() == 7 })
				w.a.do(func() {
					c.in = c.in.add([]byte("se\nthree\nfour\n"))
					c.held = true
					c.eof = true
					c.endLater(ErrPeerClosed)
					c.Pause()
				})
				client.CloseWrite()
			},
			after: func(w *two, client *net.TCPConn, c *Conn, told *journal) {
				c.Resume()
				w.b.until("it pauses", func() bool { return c.has(flagPaused) && c.held })
				c.Resume()
				if got := expectEnd(w.t, client); got != "one\nthree\nfour\n" {
					w.t.Errorf("got %q", got)
				}
			},
		},
		{
			name: "half-closed by the peer, not paused, a reply unsent",
			before: func(w *two, client *net.TCPConn, c *Conn) {
				w.a.do(func() { c.blocked = true }) // the kernel takes nothing, until epoll says otherwise
				if err := c.Send([]byte("late")); err != nil {
					w.t.Error(err)
				}
			},
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) {
				client.CloseWrite()
				if got := expectEnd(w.t, client); got != "late\n" {
					w.t.Errorf("got %q", got)
				}
			},
		},
		{
			name:   "megabytes unsent",
			change: func(c *Config) { c.Limits = Limits{SendHigh: 1 << 20, SendHard: 64 << 20} },
			before: func(w *two, client *net.TCPConn, c *Conn) {
				for i := range 200 {
					if err := c.Send(line(i, 100<<10)); err != nil {
						w.t.Fatal(err)
					}
				}
				w.a.until("the peer is behind", func() bool { return c.blocked && c.Queued() > 10<<20 })
			},
			after: func(w *two, client *net.TCPConn, c *Conn, told *journal) {
				if err := c.Send([]byte("behind")); err != nil {
					w.t.Error(err)
				}
				var want bytes.Buffer
				for i := range 200 {
					want.Write(line(i, 100<<10))
					want.WriteByte('\n')
				}
				want.WriteString("behind\n")
				client.SetReadDeadline(time.Now().Add(patience))
				got := make([]byte, want.Len())
				if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want.Bytes()) {
					w.t.Errorf("other bytes came than were sent: %v", err)
				}
				marks := func() string {
					return strings.Join(slices.DeleteFunc(told.all(), func(s string) bool { return s != "full" && s != "drain" }), " ")
				}
				w.b.until("OnBufferDrain", func() bool { return c.Queued() == 0 && strings.HasSuffix(marks(), "drain") })
				if got := marks(); got != strings.TrimSpace(strings.Repeat("full drain ", len(got)/10)) {
					w.t.Errorf("got %s, want a drain behind each full", got)
				}
			},
		},
		{
			name: "an authenticated one",
			change: func(c *Config) {
				c.Limits.Auth = 250 * time.Millisecond
			},
			before: func(w *two, client *net.TCPConn, c *Conn) { c.Authenticated() },
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) {
				w.b.until("the time is over", func() bool { return c.opened.until(w.b.loop.Now()) > 300*time.Millisecond })
				write(w.t, client, "still here\n")
				expect(w.t, client, "still here\n")
			},
		},
		{
			name: "a timer and a value",
			before: func(w *two, client *net.TCPConn, c *Conn) {
				c.SetTimer("hello", 100*time.Millisecond)
				c.SetValue("me")
			},
			after: func(w *two, client *net.TCPConn, c *Conn, told *journal) {
				w.b.until("OnTimer", func() bool { return strings.Contains(fmt.Sprint(told.all()), "timer hello of me") })
			},
		},
		{
			name:   "replies to be sent in OnAdopt",
			inline: true, // as above
			before: func(w *two, client *net.TCPConn, c *Conn) {
				write(w.t, client, "pause\none\n")
				w.a.until("it is held", func() bool { return c.held && c.has(flagPaused) })
			},
			adopted: func(c *Conn) {
				_ = c.Send([]byte("again"))
				c.Resume()
			},
			after: func(w *two, client *net.TCPConn, c *Conn, _ *journal) { expect(w.t, client, "again\none\n") },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				if tt.inline && !inline {
					return
				}
				w := newTwo(t)
				told := new(journal)
				h := funcs{
					adopt: func(c *Conn, why Reason) {
						told.add("adopt " + why.String())
						if tt.adopted != nil {
							tt.adopted(c)
						}
					},
					message: func(c *Conn, m []byte) {
						told.add("message " + string(m[:min(len(m), 20)]))
						if string(m) == "pause" {
							c.Pause()
							return
						}
						echo(t)(c, m)
					},
					timer: func(c *Conn, name string) { told.add(fmt.Sprint("timer ", name, " of ", c.Value())) },
					full:  func(c *Conn) { told.add("full") },
					drain: func(c *Conn) { told.add("drain") },
				}
				a, b := w.configs(h, inline, func(c *Config) {
					c.EncodeValue = func(c *Conn) ([]byte, error) {
						s, _ := c.Value().(string)
						return []byte(s), nil
					}
					c.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
					if tt.change != nil {
						tt.change(c)
					}
				})
				client, c := w.a.tcp(a)
				id, peer, opened := c.ID(), c.Peer(), c.opened
				tt.before(w, client, c)
				there := w.move(c, b)
				back := &two{t: t, a: w.b, b: w.a}
				f := back.freeze(there)
				body := back.capture(f)
				home, err := back.tryAdopt(f, a, body)
				if err != nil {
					t.Fatal(err)
				}
				w.a.do(func() { home.Drop() }) // nothing comes of the way back
				w.b.do(f.Thaw)
				tt.after(w, client, there, told)
				if there.ID() != id || there.Peer() != peer {
					t.Errorf("ID %d, peer %s, want %d, %s", there.ID(), there.Peer(), id, peer)
				}
				w.b.do(func() {
					if d := int32(there.opened - opened); d < -50 || d > 300 {
						t.Errorf("opened %d hundredths of a second later than it was", d)
					}
					if got := w.b.set.Get(id); got != there && there.state != Closed {
						t.Errorf("Get: %p, want %p", got, there)
					}
				})
				w.a.do(func() {
					if w.a.set.Get(id) != nil || w.a.set.Len() != 0 {
						t.Errorf("the giver has %p, and %d connections", w.a.set.Get(id), w.a.set.Len())
					}
				})
				if lines := told.all(); !strings.Contains(fmt.Sprint(lines), "adopt move") {
					t.Errorf("no OnAdopt: %s", lines)
				}
			})
		})
	}
}

// line is message i, with pseudo-random bytes and no newline in it.
func line(i, size int) []byte {
	random := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)})
	b := make([]byte, size)
	random.Read(b)
	for j := range b {
		b[j] |= 0x80
	}
	return b
}

func TestDeadlinesGoOnWithWhatIsLeftOfThem(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits Limits
		before string
		want   error
	}{
		{"first byte", Limits{FirstByte: 600 * time.Millisecond}, "", ErrFirstByte},
		{"message", Limits{Message: 600 * time.Millisecond}, "half", ErrMessageDeadline},
		{"idle", Limits{Idle: 600 * time.Millisecond, Message: -1}, "x\n", ErrIdle},
		{"read idle", Limits{ReadIdle: 600 * time.Millisecond, Message: -1}, "half", ErrIdle},
		{"write idle", Limits{WriteIdle: 600 * time.Millisecond, Message: -1}, "half", ErrIdle},
		{"authentication", Limits{Auth: 600 * time.Millisecond}, "x\n", ErrUnauthenticated},
		{"stall", Limits{WriteStall: 600 * time.Millisecond}, "", ErrStalled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			over := make(chan error, 1)
			a, b := w.configs(funcs{close: func(_ *Conn, why error) { over <- why }}, true, func(c *Config) { c.Limits = tt.limits })
			client, c := w.a.tcp(a)
			start := time.Now()
			write(t, client, tt.before)
			w.a.until("it is read", func() bool { return c.BytesIn() == uint64(len(tt.before)) })
			if tt.want == ErrStalled {
				for i := range 8 {
					if err := c.Send(line(i, 1<<20-1)); err != nil {
						t.Fatal(err)
					}
				}
				w.a.until("the peer is behind", func() bool { return c.blocked })
				w.a.do(func() {
					now := w.a.loop.Clock()
					start = time.Now().Add(c.progress.at(now) - now) // since when it is, which may have been noticed late
				})
			}
			// Several moves, each of which would start it anew if it were not told.
			from, to, cfg := w.a, w.b, b
			moves := 0
			for end := start.Add(400 * time.Millisecond); time.Now().Before(end); moves++ {
				c = (&two{t, from, to}).moveAs(c, cfg)
				from, to = to, from
				if cfg == b {
					cfg = a
				} else {
					cfg = b
				}
				turns := 0
				from.until("some turns", func() bool { turns++; return turns == 20 })
			}
			if why := receive(t, over); !errors.Is(why, tt.want) {
				t.Errorf("OnClose with %v, want %v", why, tt.want)
			}
			if took := time.Since(start); took < 600*time.Millisecond || took > 5*time.Second {
				t.Errorf("after %v and %d moves, want 600ms", took, moves)
			}
		})
	}
}

// moveAs is move between any two.
func (w *two) moveAs(c *Conn, cfg *Config) *Conn {
	w.t.Helper()
	f := w.freeze(c)
	ad := w.adopt(f, cfg)
	giver, taker := w.a.set.alloc.Incarnation(), w.b.set.alloc.Incarnation()
	if !f.Row().Offer(f.ID(), giver, taker) || !f.Row().Commit(f.ID(), giver, taker) {
		w.t.Error("not committed")
	}
	w.b.do(func() { ad.Serve(Reload, false) })
	w.a.do(func() {
		if tail := f.Left(0); tail != nil {
			w.t.Errorf("a tail of %d bytes", len(tail))
		}
	})
	return ad.Conn()
}

func TestTimersTravelWithWhatIsLeftOfThem(t *testing.T) {
	w := newTwo(t)
	told := make(chan string, 10)
	a, b := w.configs(funcs{timer: func(_ *Conn, name string) { told <- name }}, true, nil)
	_, c := w.a.tcp(a)
	start := time.Now()
	c.SetTimer("later", 500*time.Millisecond)
	c.SetTimer("sooner", 200*time.Millisecond)
	c.SetTimer("never", time.Hour)
	c.SetTimer("stopped", 300*time.Millisecond)
	c.StopTimer("stopped")
	c.SetTimer("stopped late", 300*time.Millisecond)
	c.SetTimer("set anew late", time.Hour)
	c.SetTimer("set anew there", time.Hour)
	f := w.freeze(c)
	ad := w.adopt(f, b)
	// Between capture and the end: it goes with the tail.
	c.StopTimer("stopped late")
	c.SetTimer("set anew late", time.Millisecond)
	c.SetTimer("set anew there", time.Millisecond)
	c.SetTimer("late", 10*time.Millisecond)
	w.commit(f)
	w.b.do(func() { ad.Serve(Move, true) })
	ad.Conn().SetTimer("set anew there", 2*time.Hour)
	w.b.do(func() {}) // it is armed
	var tail []byte
	w.a.do(func() { tail = f.Left(0) })
	w.b.do(func() {
		if err := ad.Tail(tail); err != nil {
			t.Error(err)
		}
	})
	got := map[string]time.Duration{}
	for range 4 {
		got[receive(t, told)] = time.Since(start)
	}
	for name, least := range map[string]time.Duration{"later": 500 * time.Millisecond, "sooner": 200 * time.Millisecond, "late": 10 * time.Millisecond, "set anew late": 0} {
		if at, ok := got[name]; !ok || at < least {
			t.Errorf("timer %q after %v (%v), want at least %v", name, at, ok, least)
		}
	}
	w.b.do(func() {
		if n := len(ad.Conn().timersLocked()); n != 2 {
			t.Errorf("%d timers are left, want never and set anew there", n)
		}
		if n := w.b.loop.Timers(); n != 2 {
			t.Errorf("%d timers on the loop, want 2", n)
		}
	})
	w.a.do(func() {
		if n := w.a.loop.Timers(); n != 0 {
			t.Errorf("%d timers on the giver's loop, want none", n)
		}
	})
}

func TestPeerThatClosesDuringTheFreezeIsNoticedAfterwards(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("thaw ", back), func(t *testing.T) {
			w := newTwo(t)
			over := make(chan error, 1)
			a, b := w.configs(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, false, nil)
			client, c := w.a.tcp(a)
			f := w.freeze(c)
			write(t, client, "last words\n")
			client.CloseWrite()
			if back {
				w.a.do(f.Thaw)
			} else {
				w.finish(f, w.adopt(f, b))
			}
			if got := expectEnd(t, client); got != "last words\n" {
				t.Errorf("got %q", got)
			}
			client.Close()
			if why := receive(t, over); why != ErrPeerClosed {
				t.Errorf("OnClose with %v, want ErrPeerClosed", why)
			}
		})
	}
}

func TestPipeMovesAsAWhole(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		w := newTwo(t)
		over := make(chan error, 2)
		a, b := w.configs(funcs{close: func(_ *Conn, why error) { over <- why }}, inline, func(c *Config) {
			c.Limits = Limits{SendHigh: 256 << 10, SendHard: 1 << 20}
		})
		one, other, c, d := w.a.piped(a, a)
		// One way is clogged when it moves.
		const count, size = 200, 50 << 10
		go func() {
			for i := range count {
				write(t, one, string(line(i, size))+"\n")
			}
		}()
		w.a.until("the pipe is full", func() bool { return c.has(flagClogged) && d.blocked })
		f := w.freeze(d) // either end will do
		if f.Partner() == nil || f.Partner().Conn() != c || f.Partner().Partner() != f {
			t.Fatal("the other end is not frozen with it")
		}
		if _, err := freeze(w.a, c); err != ErrFrozen {
			t.Errorf("Freeze of the other end: %v, want ErrFrozen", err)
		}
		ads := [2]*Adopted{w.adopt(f, b), w.adopt(f.Partner(), b)}
		w.b.do(func() { ads[0].Join(ads[1]) })
		w.finish(f, ads[0])
		w.finish(f.Partner(), ads[1])
		other.SetReadDeadline(time.Now().Add(patience))
		for i := range count {
			got := make([]byte, size+1)
			if _, err := io.ReadFull(other, got); err != nil || !bytes.Equal(got[:size], line(i, size)) {
				t.Fatalf("message %d is another one, %v", i, err)
			}
		}
		write(t, other, "back\n")
		expect(t, one, "back\n")
		one.Close()
		if got := expectEnd(t, other); got != "" {
			t.Errorf("got %q behind the end", got)
		}
		other.Close()
		for range 2 {
			if why := receive(t, over); !errors.Is(why, ErrPeerClosed) && !errors.Is(why, ErrReset) {
				t.Errorf("OnClose with %v", why)
			}
		}
	})
}

func TestEndOfAPipeThatComesAloneIsClosed(t *testing.T) {
	w := newTwo(t)
	over := make(chan error, 2)
	a, b := w.configs(funcs{close: func(_ *Conn, why error) { over <- why }}, true, nil)
	one, _, c, _ := w.a.piped(a, a)
	f := w.freeze(c)
	w.finish(f, w.adopt(f, b))
	if got := expectEnd(t, one); got != "" {
		t.Errorf("got %q", got)
	}
	one.Close()
	if why := receive(t, over); why != ErrClosed {
		t.Errorf("OnClose with %v, want ErrClosed", why)
	}
	w.a.do(f.Partner().Thaw)
}

func TestPipeIsNotMadeOfAFrozenConnection(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	_, a := r.tcp(cfg)
	_, b := r.tcp(cfg)
	f, err := freeze(r, a)
	if err != nil {
		t.Fatal(err)
	}
	if err := Pipe(a, b); err != ErrFrozen {
		t.Errorf("Pipe: %v, want ErrFrozen", err)
	}
	r.do(f.Thaw)
	if err := Pipe(a, b); err != nil {
		t.Error(err)
	}
}

// A callback pipes two connections that are about to be frozen, each by
// itself.
func TestPipeThatIsMadeBeforeTheFreezeIsFrozenAsAWhole(t *testing.T) {
	r := newRig(t)
	started, release := make(chan struct{}), make(chan struct{})
	var other *Conn
	cfg := r.config(funcs{message: func(c *Conn, _ []byte) {
		close(started)
		<-release
		if err := Pipe(c, other); err != nil {
			t.Errorf("Pipe: %v", err)
		}
	}}, false)
	client, c := r.tcp(cfg)
	_, other = r.tcp(cfg)
	write(t, client, "x")
	wait(t, started)
	type result struct {
		f   *Frozen
		err error
	}
	of := make(chan result, 2)
	if err := other.Hold(); err != nil {
		t.Fatal(err)
	}
	r.do(func() {
		r.set.Freeze(c, func(f *Frozen, err error) { of <- result{f, err} })
		r.set.Freeze(other, func(f *Frozen, err error) { of <- result{f, err} })
	})
	close(release)
	r.until("the callback is over", func() bool { return !c.has(flagRunning) })
	other.Release()
	first, second := receive(t, of), receive(t, of)
	if first.err == nil {
		first, second = second, first
	}
	if second.f == nil || second.f.Partner() == nil || first.err != ErrFrozen {
		t.Fatalf("%v, %v and %v, %v: want one with a partner and ErrFrozen", first.f, first.err, second.f, second.err)
	}
	r.do(func() { p := second.f.Partner(); second.f.Thaw(); p.Thaw() })
}

func TestFreezeSaysWhyNot(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	pinned := r.config(funcs{}, true)
	pinned.Pinned = true
	client, c := r.tcp(cfg)
	_, p := r.tcp(pinned)
	if _, err := freeze(r, p); err != ErrPinned {
		t.Errorf("pinned: %v, want ErrPinned", err)
	}
	if err := p.MoveTo(1); err != ErrPinned {
		t.Errorf("MoveTo: %v, want ErrPinned", err)
	}
	f, err := freeze(r, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := freeze(r, c); err != ErrFrozen {
		t.Errorf("frozen: %v, want ErrFrozen", err)
	}
	r.do(func() {
		if got := c.Info().State; got != "frozen" {
			t.Errorf("state %q, want frozen", got)
		}
		if now := r.loop.Now(); f.Since() > now || f.Since() < now-time.Minute || f.ID() != rows.ID(c.ID()) {
			t.Errorf("since %v at %v, ID %d", f.Since(), now, f.ID())
		}
		f.Thaw()
	})
	write(t, client, "x")
	expect(t, client, "x")
	_, d := r.tcp(cfg)
	if err := Pipe(d, p); err != nil {
		t.Fatal(err)
	}
	if _, err := freeze(r, d); err != ErrPinned {
		t.Errorf("the pipe's other end is pinned: %v, want ErrPinned", err)
	}
	c.CloseNow(nil)
	if _, err := freeze(r, c); err != ErrClosed {
		t.Errorf("closing: %v, want ErrClosed", err)
	}
	r.until("closed", func() bool { return c.state == Closed })
	if _, err := freeze(r, c); err != ErrClosed {
		t.Errorf("closed: %v, want ErrClosed", err)
	}
}

// Freeze is told in no callback and at a turn's end, though it could be done
// at once.
func TestFreezeIsToldLater(t *testing.T) {
	r := newRig(t)
	_, c := r.tcp(r.config(funcs{}, true))
	told := make(chan struct{})
	r.do(func() {
		within := true
		r.set.Freeze(c, func(f *Frozen, err error) {
			if within || err != nil {
				t.Errorf("told within Freeze: %v, %v", within, err)
			}
			f.Thaw()
			close(told)
		})
		within = false
	})
	wait(t, told)
}

func TestFreezeWaitsForCallbacksAndHolds(t *testing.T) {
	r := newRig(t)
	started, release := make(chan struct{}), make(chan struct{})
	var done atomic.Int32
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			if done.Add(1) == 1 {
				if err := c.Hold(); err != nil {
					t.Errorf("Hold in a callback: %v", err)
				}
				c.SetTimer("not now", 0)
				close(started)
				<-release
			}
		},
		timer: func(*Conn, string) { done.Add(100) },
	}, false)
	cfg.Protocol = text.Protocol{}
	client, c := r.tcp(cfg)
	write(t, client, "1\n2\n3\n")
	wait(t, started)
	told := make(chan *Frozen, 1)
	r.do(func() {
		r.set.Freeze(c, func(f *Frozen, err error) {
			if err != nil {
				t.Error(err)
			}
			told <- f
		})
	})
	write(t, client, "4\n")
	for range 20 {
		r.do(func() {})
	}
	if len(told) > 0 || done.Load() != 1 {
		t.Fatal("it is frozen while a callback runs")
	}
	close(release)
	r.until("the callbacks are over", func() bool { return !c.has(flagRunning) })
	for range 20 {
		r.do(func() {})
	}
	if n := done.Load(); len(told) > 0 || n < 3 || n > 100 && n != 103 {
		t.Fatalf("frozen %v, %d callbacks, want 3 of what was read, and it is held", len(told) > 0, n)
	}
	c.Release()
	f := receive(t, told)
	if err := c.Hold(); err != ErrFrozen {
		t.Errorf("Hold: %v, want ErrFrozen", err)
	}
	n := done.Load()
	for range 20 {
		r.do(func() {})
	}
	if done.Load() != n {
		t.Error("a callback runs on a frozen connection")
	}
	r.do(f.Thaw)
	r.until("the rest", func() bool { return done.Load() == 104 })
	defer func() {
		if recover() == nil {
			t.Error("Release without Hold did not panic")
		}
	}()
	c.Release()
}

func TestUnfreezeGoesOn(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t), timer: func(c *Conn, name string) { echo(t)(c, []byte(name)) }}, false)
	client, c := r.tcp(cfg)
	if err := c.Hold(); err != nil {
		t.Fatal(err)
	}
	r.do(func() { r.set.Freeze(c, func(*Frozen, error) { t.Error("told although it was given up") }) })
	c.SetTimer("<timer>", 0)
	r.until("the timer is over and waits", func() bool { return r.loop.Timers() == 0 && c.timersLocked()["<timer>"] != nil && c.has(flagFreezing) })
	write(t, client, "x")
	for range 20 {
		r.do(func() {})
	}
	if c.BytesIn() != 0 {
		t.Error("it is read while it is to be frozen")
	}
	r.do(func() { r.set.Unfreeze(c); r.set.Unfreeze(c) })
	got := make([]byte, 8)
	client.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(client, got); err != nil || !strings.Contains(string(got), "x") || !strings.Contains(string(got), "<timer>") {
		t.Errorf("got %q, %v", got, err)
	}
	c.Release()
	f, err := freeze(r, c)
	if err != nil {
		t.Fatal(err)
	}
	r.do(func() { r.set.Unfreeze(c); f.Thaw() })
	write(t, client, "y")
	expect(t, client, "y")
}

// A client that never stops, and an application with a timer that is always
// due: the freeze gets there within what was read before.
func TestFreezeOfAChattyClientIsBounded(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		var handled atomic.Int64
		cfg := r.config(funcs{
			connect: func(c *Conn) { c.SetTimer("again", 0) },
			timer:   func(c *Conn, _ string) { c.SetTimer("again", 0) },
			message: func(c *Conn, m []byte) { handled.Add(1); _ = c.Send(m) },
			full:    func(c *Conn) { _ = c.Send([]byte("full")) },
			drain:   func(c *Conn) { _ = c.Send(make([]byte, 3000)) },
		}, inline)
		cfg.Protocol = text.Protocol{}
		cfg.Limits = Limits{SendHigh: 2000, SendLow: 1000, SendHard: 8 << 20}
		client, c := r.tcp(cfg)
		var both sync.WaitGroup
		both.Go(func() { io.Copy(io.Discard, client) })
		both.Go(func() {
			for {
				if _, err := client.Write([]byte("chatter\nchatter\nchat")); err != nil {
					return
				}
			}
		})
		for range 20 {
			r.until("it talks", func() bool { return handled.Load() > 100 })
			var before int64
			told := make(chan *Frozen, 1)
			r.do(func() {
				before = handled.Load()
				r.set.Freeze(c, func(f *Frozen, err error) {
					if err != nil {
						t.Error(err)
					}
					told <- f
				})
			})
			f := receive(t, told)
			if n := handled.Load() - before; n > int64(cfg.Limits.QueueDepth+DefaultQueueDepth+turnMessages) {
				t.Errorf("%d messages were handled before the freeze", n)
			}
			handled.Store(0)
			r.do(f.Thaw)
		}
		client.Close()
		both.Wait()
	})
}

// Numbered messages of many goroutines, while the connection is frozen,
// thawed and moved all the time: each goroutine goes on where the connection
// is.
func TestSendRacesWithEveryStep(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{}, true, func(c *Config) { c.Limits.SendHard = 1 << 20 })
	client, c := w.a.tcp(a)
	var now atomic.Pointer[Conn]
	now.Store(c)
	const senders, each = 8, 4000
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for i := 0; i < each; {
				m := fmt.Appendf(nil, "%d %d", s, i)
				at := now.Load()
				switch err := at.Send(m); {
				case err == nil:
					i++
				case errors.Is(err, ErrMoved):
					if moved, ok := errors.AsType[*MovedError](err); !ok || moved.Slot != 7 {
						t.Errorf("%v, want slot 7", err)
					}
					for now.Load() == at && !t.Failed() {
						w.a.do(func() {})
					}
				case errors.Is(err, ErrFull):
					w.a.do(func() {})
				default:
					t.Errorf("Send: %v", err)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	go func() { all.Wait(); close(stop) }()
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		from, to, cfg, other := w.a, w.b, b, a
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			c := now.Load()
			f, err := freeze(from, c)
			if err != nil {
				t.Error(err)
				return
			}
			pair := &two{t, from, to}
			ad := pair.adopt(f, cfg)
			if n%3 == 0 {
				to.do(ad.Drop)
				from.do(f.Thaw)
				continue
			}
			giver, taker := from.set.alloc.Incarnation(), to.set.alloc.Incarnation()
			if !f.Row().Offer(f.ID(), giver, taker) || !f.Row().Commit(f.ID(), giver, taker) {
				t.Error("not committed")
			}
			to.do(func() { ad.Serve(Move, true) })
			now.Store(ad.Conn()) // own sends there race with late ones here
			var tail []byte
			from.do(func() { tail = f.Left(7) })
			to.do(func() {
				if err := ad.Tail(tail); err != nil {
					t.Error(err)
				}
			})
			from, to, cfg, other = to, from, other, cfg
		}
	}()
	client.SetReadDeadline(time.Now().Add(3 * patience))
	var next [senders]int
	var got strings.Builder
	buf := make([]byte, 64<<10)
	for left := senders * each; left > 0; {
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:n])
		text := got.String()
		end := strings.LastIndexByte(text, '\n') + 1
		got.Reset()
		got.WriteString(text[end:])
		for l := range strings.Lines(text[:end]) {
			var s, i int
			if _, err := fmt.Sscanf(l, "%d %d\n", &s, &i); err != nil || i != next[s] {
				t.Fatalf("got %q, %v, want %d of %d", l, err, next[s], s)
			}
			next[s]++
			left--
		}
	}
	wait(t, moved)
}

func TestWhatIsSentLateLeavesBeforeWhatIsSentHere(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{adopt: func(c *Conn, _ Reason) {
		if err := c.Send([]byte("4 own, from OnAdopt")); err != nil {
			t.Error(err)
		}
	}}, true, nil)
	client, c := w.a.tcp(a)
	send := func(c *Conn, m string) {
		if err := c.Send([]byte(m)); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	f := w.freezeUnsent(c, "1 unsent")
	send(c, "2 late, before the capture")
	ad := w.adopt(f, b)
	send(c, "3 late")
	if n := c.Queued(); n != len("1 unsent\n2 late, before the capture\n3 late\n") {
		t.Errorf("%d bytes queued", n)
	}
	w.commit(f)
	w.b.do(func() { ad.Serve(Move, true) })
	there := ad.Conn()
	send(there, "5 own")
	expect(t, client, "1 unsent\n") // which waits for nobody
	w.b.until("all but the tail is done", func() bool { return there.out.bytes == 0 && there.Queued() > 0 })
	told := make(chan *Frozen, 1)
	w.b.do(func() { w.b.set.Freeze(there, func(f *Frozen, _ error) { told <- f }) })
	w.b.do(func() {})
	if len(told) > 0 {
		t.Error("frozen while the tail is awaited")
	}
	var tail []byte
	w.a.do(func() { tail = f.Left(7) })
	w.b.do(func() {
		if err := ad.Tail(tail); err != nil {
			t.Error(err)
		}
		if err := ad.Tail(nil); err == nil {
			t.Error("a second tail was taken")
		}
	})
	if f := receive(t, told); f == nil {
		t.Error("not frozen although the tail has come")
	} else {
		w.b.do(f.Thaw)
	}
	expect(t, client, "2 late, before the capture\n3 late\n4 own, from OnAdopt\n5 own\n")
}

func TestCloseDuringTheFreezeCountsAfterwards(t *testing.T) {
	why := errors.New("enough")
	for _, tt := range []struct {
		name  string
		close func(c *Conn)
		// what OnClose is told at home, and what in the other process
		home, there error
		last        string
	}{
		{"Close", func(c *Conn) { c.Close(nil, []byte("bye")) }, nil, nil, "late\nbye\n"},
		{"Close with a reason", func(c *Conn) { c.Close(why, []byte("bye")) }, why, ErrClosedBefore, "late\nbye\n"},
		{"CloseNow", func(c *Conn) { c.CloseNow(why) }, why, ErrClosedBefore, ""},
	} {
		for _, back := range []bool{true, false} {
			t.Run(fmt.Sprint(tt.name, ", thaw ", back), func(t *testing.T) {
				w := newTwo(t)
				over := make(chan error, 2)
				var order journal
				a, b := w.configs(funcs{
					adopt: func(*Conn, Reason) { order.add("adopt") },
					close: func(_ *Conn, why error) { order.add("close"); over <- why },
				}, true, nil)
				client, c := w.a.tcp(a)
				f := w.freeze(c)
				if err := c.Send([]byte("late")); err != nil {
					t.Error(err)
				}
				tt.close(c)
				if err := c.Send([]byte("too late")); err != ErrClosed {
					t.Errorf("Send after Close: %v", err)
				}
				want := tt.home
				if back {
					w.a.do(f.Thaw)
				} else {
					want = tt.there
					w.finish(f, w.adopt(f, b))
					if err := c.Close(nil, []byte("x")); !errors.Is(err, ErrMoved) {
						t.Errorf("Close: %v, want ErrMoved", err)
					}
				}
				client.SetReadDeadline(time.Now().Add(patience))
				got, err := io.ReadAll(client)
				if string(got) != tt.last || tt.last != "" && err != nil {
					t.Errorf("got %q, %v, want %q", got, err, tt.last)
				}
				client.Close()
				if why := receive(t, over); !errors.Is(why, want) || want == ErrClosedBefore && !strings.Contains(why.Error(), "enough") {
					t.Errorf("OnClose with %v, want %v", why, want)
				}
				if got := fmt.Sprint(order.all()); !back && got != "[adopt close]" {
					t.Errorf("callbacks %s", got)
				}
			})
		}
	}
}

func TestPauseAndTheLikeDuringTheFreezeTravelToo(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, nil)
	client, c := w.a.tcp(a)
	f := w.freeze(c)
	ad := w.adopt(f, b)
	c.Pause()
	c.Authenticated()
	there := w.finish(f, ad)
	if !there.has(flagPaused) || !there.has(flagAuthenticated) {
		t.Error("neither paused nor authenticated")
	}
	back := &two{t, w.b, w.a}
	f = back.freeze(there)
	ad, err := back.tryAdopt(f, a, back.capture(f))
	if err != nil {
		t.Fatal(err)
	}
	there.Resume()
	if !f.Row().Offer(f.ID(), 2, 1) || !f.Row().Commit(f.ID(), 2, 1) {
		t.Error("not committed")
	}
	var tail []byte
	w.b.do(func() { tail = f.Left(0) })
	w.a.do(func() {
		if err := ad.Tail(tail); err == nil {
			t.Error("a tail before Serve was taken")
		}
		ad.Serve(Restart, true)
		if err := ad.Tail(tail); err != nil {
			t.Error(err)
		}
	})
	write(t, client, "x\n")
	expect(t, client, "x\n")
}

func TestWhatHasMovedSaysWhereItIs(t *testing.T) {
	w := newTwo(t)
	var c, other *Conn
	a, b := w.configs(funcs{close: func(over *Conn, _ error) {
		if over == c {
			t.Error("OnClose in the giver")
		}
	}}, true, func(c *Config) { c.Move = func(*Conn, int) {} })
	var released []*Conn
	a.Released = func(c *Conn) { released = append(released, c) }
	_, c = w.a.tcp(a)
	_, other = w.a.tcp(a)
	w.move(c, b)
	for name, err := range map[string]error{
		"Send":   c.Send([]byte("x")),
		"Close":  c.Close(nil, []byte("x")),
		"MoveTo": c.MoveTo(3),
		"Hold":   c.Hold(),
		"Pipe":   Pipe(other, c),
	} {
		moved, ok := errors.AsType[*MovedError](err)
		if !ok || moved.Slot != 7 || !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "slot 7") {
			t.Errorf("%s: %v, want a MovedError to slot 7", name, err)
		}
	}
	if _, err := freeze(w.a, c); !errors.Is(err, ErrMoved) {
		t.Errorf("Freeze: %v, want a MovedError", err)
	}
	c.Pause()
	c.SetTimer("x", 0)
	c.CloseNow(nil)
	if c.State() != Closed || c.Local() != "" || c.Queued() != 0 {
		t.Errorf("state %v, local %q, queued %d", c.State(), c.Local(), c.Queued())
	}
	w.a.do(func() {
		if len(released) != 1 || released[0] != c {
			t.Errorf("released %v, want the connection once", released)
		}
	})
	for _, r := range []*rig{w.a, w.b} {
		r.until("gauges", func() bool { return int(r.seat.Connections.Load()) == r.set.Len() })
	}
}

func TestMoveToIsToldAfterTheCallback(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		var within atomic.Bool
		told := make(chan int, 10)
		cfg := r.config(funcs{message: func(c *Conn, m []byte) {
			within.Store(true)
			if err := c.MoveTo(9); err != nil {
				t.Error(err)
			}
			if err := c.MoveTo(int(m[0] - '0')); err != nil {
				t.Error(err)
			}
			within.Store(false)
		}}, inline)
		cfg.Move = func(c *Conn, slot int) {
			if inline && within.Load() {
				t.Error("told within the callback")
			}
			if slot != 9 || inline {
				told <- slot
			}
		}
		client, c := r.tcp(cfg)
		if err := c.MoveTo(-1); err == nil {
			t.Error("a negative slot was taken")
		}
		write(t, client, "4")
		if got := receive(t, told); got != 4 {
			t.Errorf("told %d, want 4", got)
		}
		// What is marked while it is frozen is told when it stays.
		f, err := freeze(r, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.MoveTo(5); err != nil {
			t.Error(err)
		}
		for range 5 {
			r.do(func() {})
		}
		if len(told) != 0 {
			t.Errorf("told %d while it is frozen", <-told)
		}
		r.do(f.Thaw)
		if got := receive(t, told); got != 5 {
			t.Errorf("told %d, want 5", got)
		}
		c.CloseNow(nil)
		if err := c.MoveTo(5); err != ErrClosed {
			t.Errorf("MoveTo: %v, want ErrClosed", err)
		}
	})
}

func TestLateSendsKeepToTheLimit(t *testing.T) {
	w := newTwo(t)
	a, _ := w.configs(funcs{}, true, func(c *Config) { c.Limits.SendHard = 100 })
	client, c := w.a.tcp(a)
	ten := []byte("123456789")
	f := w.freezeUnsent(c, slices.Repeat([]string{string(ten)}, 4)...)
	for range 6 {
		if err := c.Send(ten); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Send(nil); !errors.Is(err, ErrFull) || c.Queued() != 100 {
		t.Errorf("%v with %d bytes queued, want ErrFull at 100", err, c.Queued())
	}
	w.a.do(f.Thaw)
	expect(t, client, strings.Repeat("123456789\n", 10))
}

func TestDrainLetsAFrozenConnectionBe(t *testing.T) {
	w := newTwo(t)
	over := make(chan error, 1)
	a, b := w.configs(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, true, nil)
	client, c := w.a.tcp(a)
	_, stays := w.a.tcp(a)
	f, g := w.freeze(c), w.freeze(stays)
	drained := make(chan struct{})
	w.a.do(func() { w.a.set.Drain(DrainPrompt, 0, func() { close(drained) }) })
	for range 5 {
		w.a.do(func() {})
	}
	w.finish(f, w.adopt(f, b))
	write(t, client, "x\n")
	expect(t, client, "x\n")
	w.a.do(g.Thaw)
	if why := receive(t, over); !errors.Is(why, ErrDrained) {
		t.Errorf("OnClose with %v, want ErrDrained", why)
	}
	wait(t, drained)
}

func TestHeldConnectionIsNotDrainedBeforeRelease(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	_, c := r.tcp(r.config(funcs{close: func(_ *Conn, why error) { over <- why }}, true))
	if err := c.Hold(); err != nil {
		t.Fatal(err)
	}
	r.do(func() { r.set.Drain(DrainPrompt, time.Hour, nil) })
	for range 5 {
		r.do(func() {})
	}
	if len(over) > 0 {
		t.Error("it was drained")
	}
	c.Release()
	if why := receive(t, over); !errors.Is(why, ErrDrained) {
		t.Errorf("OnClose with %v, want ErrDrained", why)
	}
}

func TestDroppedConnectionLeavesNoTrace(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{
		message: echo(t),
		adopt:   func(*Conn, Reason) { t.Error("OnAdopt") },
		close: func(c *Conn, _ error) {
			if c.set == w.b.set {
				t.Error("OnClose in the taker")
			}
		},
	}, true, nil)
	client, c := w.a.tcp(a)
	c.SetTimer("x", time.Hour)
	f := w.freezeUnsent(c, "unsent")
	ad := w.adopt(f, b)
	w.b.do(func() {
		ad.Drop()
		ad.Drop()
		ad.Serve(Move, false)
		if err := ad.Tail(nil); err != nil {
			t.Error(err)
		}
		if w.b.set.Len() != 0 || w.b.seat.Connections.Load() != 0 || w.b.seat.QueueBytes.Load() != 0 || w.b.loop.Timers() != 0 {
			t.Errorf("%d connections are left, %d timers", w.b.set.Len(), w.b.loop.Timers())
		}
	})
	if err := ad.Conn().Send(nil); err != ErrClosed {
		t.Errorf("Send: %v, want ErrClosed", err)
	}
	w.a.do(f.Thaw)
	expect(t, client, "unsent\n")
	write(t, client, "x\n")
	expect(t, client, "x\n")
}

func TestDeclinedConnectionLeavesItsDescriptorToTheCaller(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, nil)
	client, c := w.a.tcp(a)
	f := w.freezeUnsent(c, "unsent")
	ad := w.adopt(f, b)
	w.b.do(func() {
		fd := int(ad.Conn().fd)
		ad.Decline()
		ad.Drop()
		if err := unix.Close(fd); err != nil {
			t.Errorf("closing the descriptor: %v", err)
		}
		if w.b.set.Len() != 0 || w.b.seat.QueueBytes.Load() != 0 {
			t.Errorf("%d connections are left", w.b.set.Len())
		}
	})
	w.a.do(f.Thaw)
	expect(t, client, "unsent\n")
}

// BenchmarkMove moves idle connections from one set to another, both on one
// loop: everything but the messages between the processes.
func BenchmarkMove(b *testing.B) {
	table, err := rows.Create(1 << 12)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { table.Close() })
	r := newRigOn(b, table.Allocator(1))
	taker := NewSet(r.loop, table.Allocator(2))
	b.Cleanup(func() {
		done := make(chan struct{})
		r.do(func() { taker.Drain(DrainPrompt, 0, func() { close(done) }) })
		wait(b, done)
	})
	cfg := r.config(echoHandler{}, true)
	const batch = 256
	conns := make([]*Conn, batch)
	for i := range conns {
		_, conns[i] = r.rawPair(cfg)
	}
	from, to := r.set, taker
	frozen := make([]*Frozen, 0, batch)
	var body []byte
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch {
		done := make(chan struct{})
		r.do(func() {
			frozen = frozen[:0]
			for _, c := range conns {
				from.Freeze(c, func(f *Frozen, err error) {
					if err != nil {
						b.Error(err)
					}
					if frozen = append(frozen, f); len(frozen) == batch {
						close(done)
					}
				})
			}
		})
		wait(b, done)
		giver, me := from.alloc.Incarnation(), to.alloc.Incarnation()
		r.do(func() {
			for i, f := range frozen {
				body, _ = f.Capture(body[:0])
				fd, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					b.Error(err)
					return
				}
				f.Row().Offer(f.ID(), giver, me)
				ad, err := to.Adopt(fd, f.ID(), f.Row(), only(cfg), body)
				if err != nil {
					b.Error(err)
					return
				}
				f.Row().Commit(f.ID(), giver, me)
				ad.Serve(Move, true)
				if err := ad.Tail(f.Left(0)); err != nil {
					b.Error(err)
				}
				conns[i] = ad.Conn()
			}
		})
		from, to = to, from
	}
}

func TestFreezeFailsIfWhatItWaitsForEndsOtherwise(t *testing.T) {
	for _, tt := range []struct {
		name string
		// meanwhile c is held and is to be frozen.
		meanwhile func(r *rig, c, other *Conn)
		want      error
	}{
		{"Close", func(_ *rig, c, _ *Conn) { c.Close(nil) }, ErrClosed},
		{"CloseNow", func(_ *rig, c, _ *Conn) { c.CloseNow(nil) }, ErrClosed},
		{"the system breaks it", func(r *rig, c, _ *Conn) { r.do(func() { c.release(ErrReset) }) }, ErrClosed},
		{"piped with one that ends", func(r *rig, c, other *Conn) {
			if err := Pipe(c, other); err != nil {
				r.t.Error(err)
			}
			r.until("both are to be frozen", func() bool { c.mark(0, 0); return other.has(flagFreezing) })
			other.CloseNow(nil)
		}, ErrClosed},
		{"piped with one that does not move", func(r *rig, c, other *Conn) {
			other.cfg.Pinned = true
			if err := Pipe(c, other); err != nil {
				r.t.Error(err)
			}
			c.Release()
			_ = c.Hold()
		}, ErrPinned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			_, c := r.tcp(r.config(funcs{}, true))
			_, other := r.tcp(r.config(funcs{}, true))
			if err := c.Hold(); err != nil {
				t.Fatal(err)
			}
			told := make(chan error, 2)
			r.do(func() { r.set.Freeze(c, func(_ *Frozen, err error) { told <- err }) })
			tt.meanwhile(r, c, other)
			if err := receive(t, told); err != tt.want {
				t.Errorf("told %v, want %v", err, tt.want)
			}
			r.do(func() {})
			if len(told) > 0 {
				t.Error("told twice")
			}
		})
	}
}

// Somebody calls Hold on the other end of a pipe after it was found to stand
// still, and before it is frozen.
func TestHalfFrozenPipeIsTakenBack(t *testing.T) {
	r := newRig(t)
	_, _, a, b := r.piped(r.config(funcs{}, true), r.config(funcs{}, true))
	told := make(chan *Frozen, 2)
	r.do(func() {
		r.set.Freeze(a, func(f *Frozen, err error) {
			if err != nil {
				t.Error(err)
			}
			told <- f
		})
		f := a.extra.Load().frozen
		if !f.include(b) {
			t.Error("the other end is not included")
		}
		if err := b.Hold(); err != nil {
			t.Error(err)
		}
		if f.stop() || a.has(flagFrozen|flagLate) || !a.has(flagFreezing) {
			t.Error("one end is frozen and the other is not")
		}
	})
	r.do(func() {})
	if len(told) > 0 {
		t.Fatal("it is frozen though it is held")
	}
	b.Release()
	f := receive(t, told)
	r.do(func() { p := f.Partner(); f.Thaw(); p.Thaw() })
}

func TestMarksOfAFullQueueFitTheLimitsThere(t *testing.T) {
	for _, tt := range []struct {
		name        string
		here, there Limits
		want        string
	}{
		{"full there only", Limits{SendHigh: 100}, Limits{SendHigh: 5}, "[adopt full]"},
		{"full here only", Limits{SendHigh: 5}, Limits{SendHigh: 1000, SendLow: 500}, "[full adopt drain]"},
		{"full in both", Limits{SendHigh: 5}, Limits{SendHigh: 6, SendLow: 1}, "[full adopt]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			var told journal
			a, b := w.configs(funcs{
				adopt: func(*Conn, Reason) { told.add("adopt") },
				full:  func(*Conn) { told.add("full") },
				drain: func(*Conn) { told.add("drain") },
			}, true, nil)
			a.Limits, b.Limits = tt.here, tt.there
			_, c := w.a.tcp(a)
			f := w.freezeUnsent(c, "123456789")
			ad := w.adopt(f, b)
			w.commit(f)
			w.b.do(func() {
				ad.Serve(Move, false)
				ad.Conn().settle()
				if got := fmt.Sprint(told.all()); got != tt.want {
					t.Errorf("told %s, want %s", got, tt.want)
				}
			})
			w.a.do(func() { f.Left(0) })
		})
	}
}
