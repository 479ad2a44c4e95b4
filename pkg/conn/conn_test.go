package conn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/frame"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

func TestMessagesAreAnsweredHoweverTheyArrive(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := r.config(funcs{message: echo(t)}, inline)
		cfg.Protocol = text.Protocol{}
		client, _ := r.tcp(cfg)
		for _, step := range []int{1, 7, 1000} {
			lines := "hello\n\n" + strings.Repeat("x", 3000) + "\nthe end\n"
			if step == 1 {
				lines = "dribble\n\nok\n"
			}
			go func() {
				for rest := lines; rest != ""; {
					n := min(step, len(rest))
					if _, err := io.WriteString(client, rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			}()
			expect(t, client, lines)
		}
	})
}

func TestLargeMessagesAreJoinedFromManyReads(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := r.config(funcs{message: echo(t)}, inline)
		cfg.Protocol = text.Protocol{MaxLine: -1}
		client, _ := r.pair(cfg)
		random := rand.New(rand.NewPCG(5, 6))
		var lines strings.Builder
		for range 60 {
			size := random.IntN(1000)
			if random.IntN(4) == 0 {
				size = random.IntN(900_000)
			}
			for range size {
				lines.WriteByte(byte('a' + random.IntN(26)))
			}
			lines.WriteByte('\n')
		}
		go write(t, client, lines.String())
		expect(t, client, lines.String())
	})
}

func TestCallbacksComeInOrderAndNeverTwoAtOnce(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		const conns, messages = 20, 300
		type state struct {
			inside atomic.Int32
			next   int
			closed bool
		}
		var ended sync.WaitGroup
		ended.Add(conns)
		enter := func(c *Conn) (*state, func()) {
			s := c.Value().(*state)
			if s.inside.Add(1) != 1 {
				t.Error("two callbacks at once")
			}
			if s.closed {
				t.Error("a callback after OnClose")
			}
			return s, func() { s.inside.Add(-1) }
		}
		cfg := r.config(funcs{
			connect: func(c *Conn) {
				if c.Value() != nil {
					t.Error("a second OnConnect")
				}
				c.SetValue(new(state))
			},
			message: func(c *Conn, m []byte) {
				s, leave := enter(c)
				defer leave()
				if want := fmt.Sprint(s.next); string(m) != want {
					t.Errorf("message %q, want %q", m, want)
				}
				s.next++
				runtime.Gosched()
				if err := c.Send(m); err != nil {
					t.Error(err)
				}
			},
			close: func(c *Conn, why error) {
				s, leave := enter(c)
				defer leave()
				if s.next != messages || !errors.Is(why, ErrPeerClosed) {
					t.Errorf("OnClose after %d messages: %v, want %d, ErrPeerClosed", s.next, why, messages)
				}
				s.closed = true
				ended.Done()
			},
		}, inline)
		cfg.Protocol = text.Protocol{}
		var all strings.Builder
		for i := range messages {
			fmt.Fprintf(&all, "%d\n", i)
		}
		for range conns {
			client, _ := r.pair(cfg)
			go func() {
				write(t, client, all.String())
				client.CloseWrite()
			}()
			ended.Go(func() { expect(t, client, all.String()) })
		}
		done := make(chan struct{})
		go func() { ended.Wait(); close(done) }()
		wait(t, done)
		if got := r.seat.Messages.Load(); got != conns*messages {
			t.Errorf("seat counts %d messages, want %d", got, conns*messages)
		}
		if in, out, want := r.seat.BytesIn.Load(), r.seat.BytesOut.Load(), uint64(conns*all.Len()); in != want || out != want {
			t.Errorf("seat counts %d bytes in, %d out, want %d", in, out, want)
		}
	})
}

func TestHalfClosedPeerStillGetsItsReplies(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		closed := make(chan error, 1)
		cfg := r.config(funcs{
			message: func(c *Conn, m []byte) {
				runtime.Gosched()
				if err := c.Send(m); err != nil {
					t.Error(err)
				}
			},
			close: func(c *Conn, why error) { closed <- why },
		}, inline)
		cfg.Protocol = text.Protocol{}
		cfg.Limits.QueueDepth = 4
		client, c := r.tcp(cfg)
		lines := strings.Repeat("one more line\n", 5000)
		go func() {
			write(t, client, lines+"not a line")
			client.CloseWrite()
		}()
		expect(t, client, lines)
		if rest := expectEnd(t, client); rest != "" {
			t.Errorf("then %q, want the end", rest)
		}
		if why := receive(t, closed); why != ErrPeerClosed {
			t.Errorf("OnClose with %v, want ErrPeerClosed", why)
		}
		if want := uint64(len(lines)); c.BytesOut() != want || c.BytesIn() != want+uint64(len("not a line")) {
			t.Errorf("%d bytes in, %d out, want %d, %d", c.BytesIn(), c.BytesOut(), want+10, want)
		}
	})
}

func TestBytesBeforeThePeersEndAreHandled(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		var got bytes.Buffer
		closed := make(chan error, 1)
		cfg := r.config(funcs{
			message: func(c *Conn, m []byte) { got.Write(m); got.WriteByte('\n') },
			close:   func(c *Conn, why error) { closed <- why },
		}, inline)
		cfg.Protocol = text.Protocol{}
		// All is there, and the peer is gone, before the loop sees any of it.
		client, fd, peer := tcpPair(t, "tcp4", "127.0.0.1:0")
		lines := strings.Repeat("a line of some length, to fill several reads\n", 5000)
		write(t, client, lines)
		client.Close()
		r.accepted(fd, peer, cfg)
		if why := receive(t, closed); why != ErrPeerClosed {
			t.Errorf("OnClose with %v, want ErrPeerClosed", why)
		}
		if got.String() != lines {
			t.Errorf("got %d bytes, want %d", got.Len(), len(lines))
		}
	})
}

func TestResetEndsTheConnection(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		for _, paused := range []bool{false, true} {
			t.Run(fmt.Sprintf("paused %v", paused), func(t *testing.T) {
				r := newRig(t)
				closed := make(chan error, 1)
				client, c := r.tcp(r.config(funcs{
					close: func(c *Conn, why error) { closed <- why },
				}, inline))
				if paused {
					c.Pause()
					r.do(func() {})
				}
				client.SetLinger(0)
				client.Close()
				if why := receive(t, closed); !errors.Is(why, ErrReset) || !errors.Is(why, unix.ECONNRESET) {
					t.Errorf("OnClose with %v, want ErrReset and ECONNRESET", why)
				}
				if err := c.Send([]byte("x")); err != ErrClosed {
					t.Errorf("Send: %v, want ErrClosed", err)
				}
				if c.State() != Closed {
					t.Errorf("state %v, want closed", c.State())
				}
			})
		}
	})
}

func TestCloseInOnConnectSendsWhatWasSent(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		closed := make(chan error, 1)
		because := errors.New("because")
		client, _ := r.pair(r.config(funcs{
			connect: func(c *Conn) {
				if err := c.Send([]byte("no room\n")); err != nil {
					t.Error(err)
				}
				c.Close(because)
				c.Close(errors.New("another reason"))
				if err := c.Send([]byte("more")); err != ErrClosed {
					t.Errorf("Send after Close: %v, want ErrClosed", err)
				}
				if c.State() != Closing {
					t.Errorf("state %v, want closing", c.State())
				}
			},
			message: func(c *Conn, m []byte) { t.Errorf("message %q after Close", m) },
			close:   func(c *Conn, why error) { closed <- why },
		}, inline))
		if got := expectEnd(t, client); got != "no room\n" {
			t.Errorf("read %q, want %q", got, "no room\n")
		}
		write(t, client, "too late")
		client.Close()
		if why := receive(t, closed); why != because {
			t.Errorf("OnClose with %v, want %v", why, because)
		}
		if got := r.seat.SendFailures.Load(); got != 1 {
			t.Errorf("seat counts %d refused messages, want 1", got)
		}
	})
}

func TestClosingDoesNotResetWhatIsOnItsWay(t *testing.T) {
	r := newRig(t)
	reply := strings.Repeat("r", 500_000)
	client, _ := r.tcp(r.config(funcs{
		message: func(c *Conn, m []byte) {
			if err := c.Send([]byte(reply)); err != nil {
				t.Error(err)
			}
			c.Close(nil)
		},
	}, true))
	write(t, client, "request")
	// What comes after the request is not read by the handler. Closing with
	// it unread would reset the connection, and the reply would be lost.
	write(t, client, strings.Repeat("x", 100_000))
	expect(t, client, reply)
	if rest := expectEnd(t, client); rest != "" {
		t.Errorf("then %q, want the end", rest)
	}
}

func TestCloseNowDropsWhatWaits(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		closed := make(chan error, 1)
		because := errors.New("because")
		client, _ := r.pair(r.config(funcs{
			message: func(c *Conn, m []byte) {
				if err := c.Send(make([]byte, 4<<20)); err != nil {
					t.Error(err)
				}
				c.CloseNow(because)
			},
			close: func(c *Conn, why error) { closed <- why },
		}, inline))
		write(t, client, "x")
		if why := receive(t, closed); why != because {
			t.Errorf("OnClose with %v, want %v", why, because)
		}
		if got, err := io.ReadAll(client); len(got) >= 4<<20 {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		r.do(func() {
			if r.set.Len() != 0 {
				t.Errorf("%d connections, want 0", r.set.Len())
			}
		})
	})
}

func TestCallbacksNeverNest(t *testing.T) {
	r := newRig(t)
	depth, most := 0, 0
	var got []string
	enter := func(name string) func() {
		depth++
		most = max(most, depth)
		got = append(got, name)
		return func() { depth-- }
	}
	var other *Conn
	done := make(chan struct{})
	cfg := r.config(funcs{
		connect: func(c *Conn) { defer enter("connect")() },
		message: func(c *Conn, m []byte) {
			defer enter("message " + string(m))()
			if err := c.Send(make([]byte, 101)); err != nil { // over SendHigh
				t.Error(err)
			}
			if string(m) == "a" {
				other.Close(nil)
				c.SetTimer("now", 0)
				c.Pause()
				c.Resume()
			} else {
				c.CloseNow(nil)
			}
		},
		full:  func(c *Conn) { defer enter("full")() },
		drain: func(c *Conn) { defer enter("drain")() },
		timer: func(c *Conn, name string) { defer enter("timer")() },
		close: func(c *Conn, why error) {
			defer enter("close")()
			if c != other {
				close(done)
			}
		},
	}, true)
	cfg.Protocol = text.Protocol{}
	cfg.Limits = Limits{SendHigh: 100, SendHard: 1000}
	otherClient, c := r.pair(cfg)
	r.do(func() { other = c })
	otherClient.CloseWrite()
	r.until("the other is gone", func() bool { return r.set.Len() == 0 })
	client, _ := r.pair(cfg)
	write(t, client, "a\n")
	expect(t, client, strings.Repeat("\x00", 101)+"\n")
	r.until("the timer has fired", func() bool { return slices.Contains(got, "timer") })
	write(t, client, "b\n")
	wait(t, done)
	if most != 1 {
		t.Errorf("callbacks nested %d deep", most)
	}
	want := []string{"connect", "close", "connect", "message a", "full", "drain", "timer", "message b", "full", "close"}
	if !slices.Equal(got, want) {
		t.Errorf("callbacks %q, want %q", got, want)
	}
}

func TestDescriptorReusedAfterCloseInACallbackStartsFresh(t *testing.T) {
	r := newRig(t)
	var conns [2]*Conn
	var freed int
	var next *Conn
	done := make(chan struct{})
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			if c != conns[0] && c != conns[1] {
				if string(m) != "for the next" {
					t.Errorf("message %q", m)
				}
				close(done)
				return
			}
			// Both are ready in this turn: close the other, whose event is
			// still to come.
			victim := conns[0]
			if c == victim {
				victim = conns[1]
			}
			if freed != 0 {
				t.Errorf("the closed connection got message %q", m)
				return
			}
			freed = int(victim.fd)
			victim.CloseNow(nil)
		},
	}, true)
	clientA, a := r.pair(cfg)
	clientB, b := r.pair(cfg)
	conns = [2]*Conn{a, b}
	r.do(func() {
		// The loop sleeps in none of this, so one wait tells of both.
		write(t, clientA, "to a")
		write(t, clientB, "to b")
	})
	r.until("one is closed", func() bool { return r.set.Len() == 1 })
	// The lowest free descriptor is the one of the victim.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if fds[0] != freed {
		t.Logf("descriptor %d instead of %d is taken", fds[0], freed)
	}
	next = r.accepted(fds[0], nil, cfg)
	if next.ID() == a.ID() || next.ID() == b.ID() {
		t.Errorf("ID %#x is used again", next.ID())
	}
	if _, err := unix.Write(fds[1], []byte("for the next")); err != nil {
		t.Fatal(err)
	}
	wait(t, done)
	r.do(func() {
		if got := r.set.Get(next.ID()); got != next {
			t.Errorf("Get(%#x) = %p, want %p", next.ID(), got, next)
		}
		if a.State() == Closed && r.set.Get(a.ID()) != nil || b.State() == Closed && r.set.Get(b.ID()) != nil {
			t.Error("Get found a closed connection")
		}
	})
}

func TestFloodDoesNotStarveOthers(t *testing.T) {
	r := newRig(t)
	flooded, seenByOther := 0, -1
	var flooder *Conn
	done := make(chan struct{})
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		if c == flooder {
			flooded++
			return
		}
		seenByOther = flooded
		close(done)
	}}, true)
	cfg.Protocol = text.Protocol{}
	clientA, a := r.pair(cfg)
	flooder = a
	clientB, _ := r.pair(cfg)
	r.do(func() {
		write(t, clientA, strings.Repeat("\n", 60_000))
		write(t, clientB, "me too\n")
	})
	wait(t, done)
	if seenByOther > 2*turnMessages {
		t.Errorf("the other's message came after %d of the flood, want at most %d", seenByOther, 2*turnMessages)
	}
	r.until("the flood is handled", func() bool { return flooded == 60_000 })
}

func TestPanicCostsOneConnection(t *testing.T) {
	boom := errors.New("boom")
	for _, in := range []string{"connect", "message", "full", "drain", "timer", "close"} {
		t.Run(in, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := newRig(t)
				closed := make(chan error, 2)
				events := make(chan Event, 2)
				var harmless atomic.Bool
				may := func(where string) {
					if in == where && !harmless.Load() {
						panic(boom)
					}
				}
				cfg := r.config(funcs{
					connect: func(c *Conn) { may("connect") },
					message: func(c *Conn, m []byte) {
						if in == "timer" {
							c.SetTimer("t", 0)
						}
						if err := c.Send(make([]byte, 200)); err != nil {
							t.Error(err)
						}
						may("message")
					},
					full:  func(c *Conn) { may("full") },
					drain: func(c *Conn) { may("drain") },
					timer: func(c *Conn, name string) { may("timer") },
					close: func(c *Conn, why error) {
						closed <- why
						may("close")
					},
				}, inline)
				cfg.Limits = Limits{SendHigh: 100, SendHard: 1000}
				cfg.Event = func(e Event) { events <- e }
				client, c := r.pair(cfg)
				client.Write([]byte("x")) // which fails if OnConnect has panicked already
				if in == "close" {
					client.CloseWrite()
				}
				why := receive(t, closed)
				ev := receive(t, events)
				if ev.Kind != CallbackPanicked || ev.Conn != c || !errors.Is(ev.Err, boom) {
					t.Errorf("event %+v, want the panic of this connection", ev)
				}
				if p, ok := errors.AsType[*PanicError](ev.Err); !ok || !bytes.Contains(p.Stack, []byte("conn_test.go")) {
					t.Errorf("no stack that leads to the handler in %+v", ev.Err)
				}
				if in != "close" && !errors.Is(why, boom) {
					t.Errorf("OnClose with %v, want the panic", why)
				}
				if got := r.seat.Panics.Load(); got != 1 {
					t.Errorf("seat counts %d panics, want 1", got)
				}
				// The process and the loop live on.
				harmless.Store(true)
				again, _ := r.pair(cfg)
				write(t, again, "x")
				expect(t, again, strings.Repeat("\x00", 200))
				again.Close()
				receive(t, closed)
			})
		})
	}
}

func TestCallbackThatEndsItsGoroutineCostsOneConnection(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			if string(m) == "exit" {
				runtime.Goexit()
			}
			echo(t)(c, m)
		},
		close: func(c *Conn, why error) { closed <- why },
	}, false)
	cfg.Pool.max = 1
	client, _ := r.pair(cfg)
	write(t, client, "exit")
	if _, ok := errors.AsType[*PanicError](receive(t, closed)); !ok {
		t.Error("OnClose without a PanicError")
	}
	again, _ := r.pair(cfg)
	write(t, again, "still here")
	expect(t, again, "still here")
}

// badProtocol fails or breaks its promises in the way its value says.
type badProtocol string

var errBad = errors.New("bad bytes")

func (p badProtocol) Split(in []byte, _ bool) (int, []byte, bool, error) {
	switch p {
	case "error":
		return 0, nil, false, errBad
	case "beyond":
		return len(in) + 1, in, true, nil
	case "back":
		return -1, nil, false, nil
	case "stuck":
		return 0, nil, true, nil
	case "skip":
		return 1, nil, false, nil
	default:
		panic(errBad)
	}
}

func (p badProtocol) Append(dst, msg []byte) ([]byte, error) {
	if p == "error" {
		return dst, errBad
	}
	return append(dst, msg...), nil
}

func TestProtocolErrorEndsTheConnection(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		for _, tt := range []struct {
			name     string
			protocol wire.Protocol
			in       string
			got      string // what the handler gets before
			want     error
		}{
			{name: "error", protocol: badProtocol("error"), in: "x", want: errBad},
			{name: "advances too far", protocol: badProtocol("beyond"), in: "x"},
			{name: "goes back", protocol: badProtocol("back"), in: "x"},
			{name: "stands still", protocol: badProtocol("stuck"), in: "x"},
			{name: "long line", protocol: text.Protocol{MaxLine: 5}, in: "ok\ntoo long\n", got: "ok\n", want: ErrTooLong},
			{name: "long message", protocol: text.Protocol{}, in: "ok\n" + strings.Repeat("x", 1001) + "\n", got: "ok\n", want: ErrTooLong},
			{name: "endless message", protocol: text.Protocol{}, in: "ok\n" + strings.Repeat("x", 1000+overhead+1), got: "ok\n", want: ErrTooLong},
			{name: "long frame", protocol: frame.Protocol{MaxMessage: 1000}, in: "\x00\x00\x00\x06ok\x00\x00\x03\xed", got: "\x00\x00\x00\x06ok", want: ErrTooLong},
			{name: "short frame", protocol: frame.Protocol{}, in: "\x00\x00\x00\x06ok\x00\x00\x00\x03", got: "\x00\x00\x00\x06ok"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := newRig(t)
				closed := make(chan error, 1)
				cfg := r.config(funcs{
					message: func(c *Conn, m []byte) {
						runtime.Gosched()
						echo(t)(c, m)
					},
					close: func(c *Conn, why error) { closed <- why },
				}, inline)
				cfg.Protocol = tt.protocol
				cfg.Limits.MaxMessage = 1000
				client, _ := r.pair(cfg)
				write(t, client, tt.in)
				if got := expectEnd(t, client); got != tt.got {
					t.Errorf("replies %q, want %q", got, tt.got)
				}
				client.Close()
				why := receive(t, closed)
				if _, ok := errors.AsType[*ProtocolError](why); !ok || tt.want != nil && !errors.Is(why, tt.want) {
					t.Errorf("OnClose with %v, want a ProtocolError with %v", why, tt.want)
				}
			})
		}
	})
}

func TestMessageAsLongAsAllowedMayDribble(t *testing.T) {
	const limit = 1000
	body := strings.Repeat("x", limit)
	for _, tt := range []struct {
		name     string
		protocol wire.Protocol
		in       string
	}{
		{name: "line", protocol: text.Protocol{MaxLine: -1}, in: body + "\r\n"},
		{name: "frame", protocol: frame.Protocol{MaxMessage: limit}, in: "\x00\x00\x03\xec" + body},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			got := make(chan string, 1)
			cfg := r.config(funcs{message: func(c *Conn, m []byte) { got <- string(m) }}, true)
			cfg.Protocol = tt.protocol
			cfg.Limits.MaxMessage = limit
			client, c := r.pair(cfg)
			for i := range len(tt.in) {
				write(t, client, tt.in[i:i+1])
				if i%100 == 0 {
					r.until("it is read", func() bool { return c.BytesIn() == uint64(i+1) })
				}
			}
			if m := receive(t, got); m != body {
				t.Errorf("message of %d bytes, want %d", len(m), len(body))
			}
		})
	}
}

func TestSkippedBytesAreNoMessage(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) { t.Errorf("message %q", m) }}, true)
	cfg.Protocol = badProtocol("skip")
	client, c := r.pair(cfg)
	write(t, client, "nothing of this")
	r.until("all is read", func() bool { return c.BytesIn() == 15 && c.in == nil })
}

func TestRawMessagesAreNoLongerThanTheLimit(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		if len(m) > 10 {
			t.Errorf("message of %d bytes, want at most 10", len(m))
		}
		echo(t)(c, m)
	}}, true)
	cfg.Limits.MaxMessage = 10
	client, _ := r.pair(cfg)
	in := strings.Repeat("0123456789abc", 100)
	write(t, client, in)
	expect(t, client, in)
}

func TestDribbledInputIsKeptInLittleMemory(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	cfg.Protocol = text.Protocol{}
	client, c := r.pair(cfg)
	for range 100 {
		write(t, client, "x")
	}
	r.until("all is read", func() bool { return c.BytesIn() == 100 })
	r.do(func() {
		if got := len(c.in.bytes()); got != 100 || cap(c.in.b) > minBuffer {
			t.Errorf("%d bytes in a buffer of %d, want 100 in one of %d", got, cap(c.in.b), minBuffer)
		}
	})
	write(t, client, "\n")
	expect(t, client, strings.Repeat("x", 100)+"\n")
	r.do(func() {
		if c.in != nil || c.out.head != nil || c.inbox != nil {
			t.Error("an idle connection keeps a buffer")
		}
	})
}

func TestValueAddressesAndNames(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	client, c := r.tcp(cfg)
	if got, want := c.Peer(), client.LocalAddr().String(); got != want {
		t.Errorf("Peer %q, want %q", got, want)
	}
	if got, want := c.Local(), client.RemoteAddr().String(); got != want {
		t.Errorf("Local %q, want %q", got, want)
	}
	if c.Listener() != "test" || c.State() != Open || c.Queued() != 0 || c.Value() != nil {
		t.Errorf("listener %q, state %v, queued %d, value %v", c.Listener(), c.State(), c.Queued(), c.Value())
	}
	c.SetValue(7)
	if c.Value() != 7 {
		t.Errorf("value %v, want 7", c.Value())
	}
	_, u := r.pair(cfg)
	if u.Peer() != "unix" || u.Local() != "unix" {
		t.Errorf("unix peer %q, local %q", u.Peer(), u.Local())
	}
	if u.ID() == c.ID() {
		t.Errorf("two connections with ID %#x", c.ID())
	}
	var seen []*Conn
	r.do(func() { r.set.Each(func(c *Conn) { seen = append(seen, c) }) })
	if len(seen) != 2 {
		t.Errorf("Each saw %d connections, want 2", len(seen))
	}
	c.CloseNow(nil)
	r.until("closed", func() bool { return c.State() == Closed })
	if c.Local() != "" || c.Peer() == "" {
		t.Errorf("local %q, peer %q after the end", c.Local(), c.Peer())
	}
}

func TestAddressesReadWell(t *testing.T) {
	for _, tt := range []struct {
		name string
		sa   unix.Sockaddr
		want string
	}{
		{"IPv4", &unix.SockaddrInet4{Port: 80, Addr: [4]byte{192, 0, 2, 1}}, "192.0.2.1:80"},
		{"IPv6", &unix.SockaddrInet6{Port: 80, Addr: [16]byte{15: 1}}, "[::1]:80"},
		{"zone", &unix.SockaddrInet6{Port: 80, ZoneId: 3, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}}, "[fe80::1%3]:80"},
		{"IPv4 on a socket for both", &unix.SockaddrInet6{Port: 80, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}}, "192.0.2.1:80"},
		{"unix", &unix.SockaddrUnix{Name: "/run/x"}, "/run/x"},
		{"abstract", &unix.SockaddrUnix{Name: "@x"}, "@x"},
		{"unnamed", &unix.SockaddrUnix{}, "unix"},
		{"unknown", nil, ""},
	} {
		if got := address(tt.sa); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestUnusableConfigIsRefusedAndTheDescriptorClosed(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no handler", Config{Inline: true}, "no Handler"},
		{"no pool", Config{Handler: NopHandler{}}, "neither Inline nor a Pool"},
		{"negative size", Config{Handler: NopHandler{}, Inline: true, Limits: Limits{MaxMessage: -1}}, "MaxMessage -1"},
		{"low over high", Config{Handler: NopHandler{}, Inline: true, Limits: Limits{SendLow: 2, SendHigh: 1}}, "in this order"},
		{"high over hard", Config{Handler: NopHandler{}, Inline: true, Limits: Limits{SendHigh: 2, SendHard: 1}}, "in this order"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := socketpair(t, unix.SOCK_STREAM)
			defer unix.Close(theirs)
			r.do(func() {
				if _, err := r.set.Accepted(ours, nil, &tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want it to say %q", err, tt.want)
				}
			})
			if n, err := unix.Read(theirs, make([]byte, 1)); n != 0 || err != nil {
				t.Errorf("read %d, %v, want the end", n, err)
			}
		})
	}
	r.do(func() {
		null, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := r.set.Accepted(null, nil, r.config(funcs{}, true)); !errors.Is(err, unix.EPERM) {
			t.Errorf("a file: %v, want EPERM", err)
		}
		if r.set.Len() != 0 {
			t.Errorf("%d connections, want 0", r.set.Len())
		}
	})
}

func TestDefaultsFollowWhatIsSet(t *testing.T) {
	for _, tt := range []struct {
		name            string
		in              Limits
		high, low, hard int
	}{
		{"none", Limits{}, 1 << 20, 256 << 10, 8 << 20},
		{"small hard limit", Limits{SendHard: 1000}, 500, 125, 1000},
		{"large high mark", Limits{SendHigh: 64 << 20}, 64 << 20, 16 << 20, 64 << 20},
		{"all", Limits{SendHigh: 3, SendLow: 2, SendHard: 4}, 3, 2, 4},
	} {
		l := tt.in
		if err := l.fill(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if l.SendHigh != tt.high || l.SendLow != tt.low || l.SendHard != tt.hard {
			t.Errorf("%s: high %d, low %d, hard %d, want %d, %d, %d", tt.name, l.SendHigh, l.SendLow, l.SendHard, tt.high, tt.low, tt.hard)
		}
	}
}

func TestKindsAndStatesHaveNames(t *testing.T) {
	for got, want := range map[string]string{
		Open.String():                             "open",
		Closing.String():                          "closing",
		Closed.String():                           "closed",
		State(9).String():                         "conn.State(9)",
		SlowCallback.String():                     "callback is slow",
		CallbackPanicked.String():                 "callback panicked",
		EventKind(9).String():                     "conn.EventKind(9)",
		(&PanicError{Value: "x"}).Error():         "conn: callback panicked: x",
		(&ProtocolError{Err: ErrTooLong}).Error(): "conn: protocol: wire: message too long",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
