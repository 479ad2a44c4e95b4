package conn

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/frame"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

// piped connects two clients by a pipe, and tells of both ends.
func (r *rig) piped(one, other *Config) (a, b net.Conn, ca, cb *Conn) {
	r.t.Helper()
	a, ca = r.tcp(one)
	b, cb = r.tcp(other)
	if err := Pipe(ca, cb); err != nil {
		r.t.Fatal(err)
	}
	return a, b, ca, cb
}

func TestPipePassesMessagesBothWaysThroughBothProtocols(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		lines := r.config(funcs{message: func(c *Conn, m []byte) { t.Errorf("OnMessage %q", m) }}, inline)
		lines.Protocol = text.Protocol{}
		frames := r.config(lines.Handler, inline)
		frames.Protocol = frame.Protocol{}
		a, b, _, _ := r.piped(lines, frames)
		write(t, a, "one\ntwo\n")
		expect(t, b, "\x00\x00\x00\x07one\x00\x00\x00\x07two")
		write(t, b, "\x00\x00\x00\x09three\x00\x00\x00\x04")
		expect(t, a, "three\n\n")
	})
}

func TestPipeHoldsUpTheSenderAndLosesNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := r.config(funcs{
			full:  func(*Conn) { t.Error("OnBufferFull of a pipe") },
			drain: func(*Conn) { t.Error("OnBufferDrain of a pipe") },
		}, inline)
		cfg.Limits = Limits{SendHigh: 256 << 10, SendHard: 1 << 20}
		a, b, ca, cb := r.piped(cfg, cfg)
		const total = 24 << 20
		for _, way := range []struct {
			from, to net.Conn
			in, out  *Conn
		}{{a, b, ca, cb}, {b, a, cb, ca}} {
			block := []byte(strings.Repeat("0123456789abcdef", 4096))
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for n := 0; n < total; n += len(block) {
					if _, err := way.from.Write(block); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			r.until("the sender is held up", func() bool { return way.in.has(flagClogged) && way.in.events&reactor.Readable == 0 })
			if q := way.out.Queued(); q > cfg.Limits.SendHigh+64<<10 {
				t.Errorf("%d bytes wait, want at most %d and a read", q, cfg.Limits.SendHigh)
			}
			way.to.SetReadDeadline(time.Now().Add(patience))
			buf := make([]byte, len(block))
			for n := 0; n < total; n += len(buf) {
				if _, err := io.ReadFull(way.to, buf); err != nil {
					t.Fatalf("after %d bytes: %v", n, err)
				}
				if string(buf) != string(block) {
					t.Fatalf("other bytes than were sent, in the block at %d", n)
				}
			}
			wait(t, sent)
		}
	})
}

func TestPipeEndsAsAWhole(t *testing.T) {
	why := errors.New("enough")
	for _, tt := range []struct {
		name string
		end  func(a net.Conn, ca, cb *Conn)
		got  string // by the other client
		want error  // told to the other connection
	}{
		{name: "by the peer", end: func(a net.Conn, ca, cb *Conn) { a.Close() }, got: "last words", want: ErrPeerClosed},
		{name: "by Close", end: func(a net.Conn, ca, cb *Conn) { ca.Close(why) }, got: "last words", want: why},
		{name: "by Close of the other", end: func(a net.Conn, ca, cb *Conn) { cb.Close(why) }, got: "last words", want: why},
		{name: "by CloseNow", end: func(a net.Conn, ca, cb *Conn) { ca.CloseNow(why) }, got: "last words", want: why},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := newRig(t)
				closed := make(chan error, 2)
				cfg := r.config(funcs{}, inline)
				other := r.config(funcs{close: func(c *Conn, why error) { closed <- why }}, inline)
				a, b, ca, cb := r.piped(cfg, other)
				write(t, a, tt.got)
				r.until("it is passed on", func() bool { return cb.BytesOut() == uint64(len(tt.got)) })
				tt.end(a, ca, cb)
				if got := expectEnd(t, b); got != tt.got {
					t.Errorf("other client got %q, want %q", got, tt.got)
				}
				b.Close()
				if got := receive(t, closed); !errors.Is(got, tt.want) {
					t.Errorf("OnClose with %v, want %v", got, tt.want)
				}
				a.Close()
				r.until("both are closed", func() bool { return r.set.Len() == 0 })
			})
		})
	}
}

func TestMessageThatDoesNotFitEndsThePipe(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	lines := r.config(funcs{close: func(c *Conn, why error) { closed <- why }}, true)
	lines.Protocol = text.Protocol{}
	frames := r.config(funcs{}, true)
	frames.Protocol = frame.Protocol{MaxMessage: 3}
	a, b, _, _ := r.piped(lines, frames)
	write(t, a, "abc\nabcd\nabc\n")
	if got, want := expectEnd(t, b), "\x00\x00\x00\x07abc"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b.Close()
	a.Close()
	if why := receive(t, closed); !errors.Is(why, ErrTooLong) {
		t.Errorf("OnClose with %v, want ErrTooLong", why)
	}
}

func TestPipeWithOneThatIsOverEndsTheOther(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	_, over := r.tcp(cfg)
	over.CloseNow(nil)
	r.until("closed", func() bool { return over.State() == Closed })
	b, cb := r.tcp(cfg)
	if err := Pipe(over, cb); err != ErrClosed {
		t.Errorf("Pipe with a closed connection: %v, want ErrClosed", err)
	}
	expectEnd(t, b)
	_, one := r.tcp(cfg)
	_, two := r.tcp(cfg)
	_, three := r.tcp(cfg)
	if err := Pipe(one, one); err != ErrPiped {
		t.Errorf("Pipe with itself: %v, want ErrPiped", err)
	}
	if err := Pipe(one, two); err != nil {
		t.Error(err)
	}
	if err := Pipe(three, two); err != ErrPiped {
		t.Errorf("second Pipe: %v, want ErrPiped", err)
	}
	if three.piped() != nil {
		t.Error("a refused Pipe leaves its mark")
	}
}

// Messages that wait for the Pool when a pipe begins go into it, before those
// that the loop reads.
func TestMessagesFromBeforeThePipeGoFirst(t *testing.T) {
	r := newRig(t)
	hold, first := make(chan struct{}), make(chan struct{})
	lines := r.config(funcs{message: func(c *Conn, m []byte) {
		close(first) // a second message would panic
		<-hold
	}}, false)
	lines.Protocol = text.Protocol{}
	lines.Limits.QueueDepth = 1000
	a, ca := r.tcp(lines)
	b, cb := r.tcp(r.config(funcs{}, true))
	var want strings.Builder
	send := func(upTo, n int) {
		for ; n < upTo; n++ {
			line := strings.Repeat("x", n%50)
			write(t, a, line+"\n")
			if n > 0 {
				want.WriteString(line)
			}
		}
	}
	send(100, 0)
	wait(t, first)
	r.until("they wait", func() bool { ca.mu.Lock(); defer ca.mu.Unlock(); return ca.inboxLenLocked() == 99 })
	if err := Pipe(ca, cb); err != nil {
		t.Fatal(err)
	}
	send(200, 100)
	r.until("the loop waits for the pool", func() bool { return ca.held })
	close(hold)
	expect(t, b, want.String())
}
