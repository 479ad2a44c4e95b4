package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

func TestSendsOfOneTurnLeaveInOneWrite(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		got := make(chan struct{}, 1)
		cfg := r.config(funcs{message: func(c *Conn, m []byte) {
			// The loop is held, so that the Pool's sends are of one turn too.
			hold := make(chan struct{})
			if !inline {
				held := make(chan struct{})
				if err := r.loop.Post(func() { close(held); <-hold }); err != nil {
					t.Error(err)
				}
				wait(t, held)
			}
			for range 100 {
				if err := c.Send(bytes.Repeat([]byte("x"), 100)); err != nil {
					t.Error(err)
				}
			}
			close(hold)
			got <- struct{}{}
		}}, inline)
		// A write to a seqpacket socket is one packet.
		ours, theirs := socketpair(t, unix.SOCK_SEQPACKET)
		defer unix.Close(theirs)
		if err := unix.SetNonblock(theirs, false); err != nil {
			t.Fatal(err)
		}
		r.accepted(ours, nil, cfg)
		if _, err := unix.Write(theirs, []byte("go")); err != nil {
			t.Fatal(err)
		}
		receive(t, got)
		n, err := unix.Read(theirs, make([]byte, 64<<10))
		if n != 100*100 || err != nil {
			t.Errorf("the first write was %d bytes, %v, want %d", n, err, 100*100)
		}
	})
}

func TestSendsOfManyGoroutinesArriveWhole(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.Protocol = text.Protocol{}
	cfg.Limits.SendHard = 64 << 20
	client, c := r.tcp(cfg)
	const senders, each = 8, 2000
	var wg sync.WaitGroup
	for g := range senders {
		wg.Go(func() {
			for i := range each {
				if err := c.Send(fmt.Appendf(nil, "%d %d %s", g, i, strings.Repeat("x", i%300))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); c.Close(nil) }()
	var next [senders]int
	for line := range strings.Lines(expectEnd(t, client)) {
		var g, i int
		var rest string
		if _, err := fmt.Sscanf(line, "%d %d %s", &g, &i, &rest); err != nil && i%300 != 0 {
			t.Fatalf("line %q: %v", line, err)
		}
		if i != next[g] || len(rest) != i%300 {
			t.Fatalf("sender %d: message %d with %d bytes, want %d", g, i, len(rest), next[g])
		}
		next[g]++
	}
	for g, n := range next {
		if n != each {
			t.Errorf("sender %d: %d messages, want %d", g, n, each)
		}
	}
}

func TestPeerThatDoesNotReadIsHeldUpNotCheated(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		var events journal
		cfg := r.config(funcs{
			full:  func(c *Conn) { events.add("full") },
			drain: func(c *Conn) { events.add("drain") },
		}, inline)
		const size = 128 << 10
		cfg.Limits = Limits{SendHigh: 1 << 20, SendLow: 256 << 10, SendHard: 4 << 20}
		client, c := r.tcp(cfg)
		message := make([]byte, size)
		taken := uint64(0)
		for {
			binary.BigEndian.PutUint64(message, taken)
			err := c.Send(message)
			if c.Queued() > cfg.Limits.SendHard {
				t.Fatalf("%d bytes wait, limit %d", c.Queued(), cfg.Limits.SendHard)
			}
			if err != nil {
				if !errors.Is(err, ErrFull) {
					t.Fatalf("Send: %v, want ErrFull", err)
				}
				break
			}
			taken++
		}
		r.until("it is full", func() bool { return slices.Contains(events.all(), "full") })
		// A smaller one still fits, and the refused one has left no trace.
		small := make([]byte, 16)
		binary.BigEndian.PutUint64(small, 1<<63)
		var accepted bool
		if c.Queued()+len(small) <= cfg.Limits.SendHard {
			accepted = c.Send(small) == nil
		}
		received := uint64(0)
		for received < taken {
			if _, err := io.ReadFull(client, message); err != nil {
				t.Fatal(err)
			}
			if got := binary.BigEndian.Uint64(message); got != received {
				t.Fatalf("message %d, want %d: one is missing", got, received)
			}
			received++
		}
		if accepted {
			if _, err := io.ReadFull(client, small); err != nil || binary.BigEndian.Uint64(small) != 1<<63 {
				t.Errorf("last message %x, %v", small, err)
			}
		}
		r.until("the queue is empty", func() bool { return c.Queued() == 0 && r.seat.QueueBytes.Load() == 0 })
		// The kernel's buffers may have let it drain once before.
		r.until("it is drained", func() bool { return len(events.all())%2 == 0 })
		for i, got := range events.all() {
			if want := []string{"full", "drain"}[i%2]; got != want {
				t.Errorf("event %d is %s, want %s", i, got, want)
			}
		}
		if got := r.seat.SendFailures.Load(); got != 1 {
			t.Errorf("seat counts %d refused messages, want 1", got)
		}
		if err := c.Send([]byte("on we go")); err != nil {
			t.Errorf("Send: %v", err)
		}
		expect(t, client, "on we go")
	})
}

func TestMessageThatCannotBeSentIsRefused(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.Protocol = text.Protocol{MaxLine: 100_000}
	cfg.Limits.SendHard = 1000
	client, c := r.pair(cfg)
	for _, tt := range []struct {
		name, m string
		want    error
	}{
		{"as long as the limit", strings.Repeat("x", 1000), ErrTooLong}, // and its newline
		{"longer than the protocol's", strings.Repeat("x", 100_001), wire.ErrTooLong},
		{"not encodable", "a\nb", nil},
	} {
		err := c.Send([]byte(tt.m))
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := c.Send(bytes.Repeat([]byte("x"), 999)); err != nil {
		t.Error(err)
	}
	expect(t, client, strings.Repeat("x", 999)+"\n")
	if got := r.seat.SendFailures.Load(); got != 3 {
		t.Errorf("seat counts %d refused messages, want 3", got)
	}
}

// growing encodes a message as three of it, more than Send expects.
type growing struct{ wire.Raw }

func (growing) Append(dst, msg []byte) ([]byte, error) {
	return append(append(append(dst, msg...), msg...), msg...), nil
}

func TestEncodingLongerThanExpectedIsSentWhole(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.Protocol = growing{}
	client, c := r.pair(cfg)
	var want strings.Builder
	for _, size := range []int{1, 700, 5000, 3, 100_000, 10} {
		m := strings.Repeat(fmt.Sprint(size%10), size)
		if err := c.Send([]byte(m)); err != nil {
			t.Error(err)
		}
		want.WriteString(m + m + m)
	}
	expect(t, client, want.String())
}

func TestEmptyRawMessageIsNothingToSend(t *testing.T) {
	r := newRig(t)
	client, c := r.pair(r.config(funcs{}, true))
	if err := c.Send(nil); err != nil || c.Queued() != 0 {
		t.Errorf("Send(nil): %v, %d queued", err, c.Queued())
	}
	if err := c.Send([]byte("x")); err != nil {
		t.Error(err)
	}
	expect(t, client, "x")
}

func TestSendAfterTheLoopHasStoppedIsRefused(t *testing.T) {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	set := NewSet(loop, nil)
	ours, theirs := socketpair(t, unix.SOCK_STREAM)
	defer unix.Close(ours)
	defer unix.Close(theirs)
	c, err := set.Accepted(ours, nil, &Config{Handler: NopHandler{}, Inline: true})
	if err != nil {
		t.Fatal(err)
	}
	loop.Stop()
	if err := loop.Run(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Send([]byte("x")); err != ErrClosed {
			t.Errorf("Send: %v, want ErrClosed", err)
		}
	}
	c.SetTimer("never", 0)
	c.Close(nil)
}

func TestReadingStopsWhileThePoolIsBehind(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	started := make(chan struct{}, 1)
	var got []string
	done := make(chan struct{})
	const lines = 100_000
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		if len(got) == 0 {
			started <- struct{}{}
			<-release
		}
		if got = append(got, string(m)); len(got) == lines {
			close(done)
		}
	}}, false)
	cfg.Protocol = text.Protocol{}
	cfg.Limits.QueueDepth = 10
	client, c := r.pair(cfg)
	go func() {
		var all strings.Builder
		for i := range lines {
			fmt.Fprintf(&all, "%d\n", i)
		}
		write(t, client, all.String())
	}()
	receive(t, started)
	r.until("reading has stopped", func() bool { return c.events == 0 || c.events&unix.EPOLLIN == 0 })
	before := c.BytesIn()
	for range 20 {
		r.do(func() {})
	}
	if c.BytesIn() != before || before > 64<<10 {
		t.Errorf("%d bytes read, then %d, while nothing is handled", before, c.BytesIn())
	}
	c.mu.Lock()
	if n := c.inboxLenLocked(); n > cfg.Limits.QueueDepth {
		t.Errorf("%d messages wait, want at most %d", n, cfg.Limits.QueueDepth)
	}
	c.mu.Unlock()
	close(release)
	wait(t, done)
	for i, m := range got {
		if m != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, m)
		}
	}
}

func TestPausedConnectionReadsNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		got := make(chan string, 10)
		cfg := r.config(funcs{message: func(c *Conn, m []byte) {
			got <- string(m)
			if string(m) == "pause" && inline {
				c.Pause()
			}
		}}, inline)
		cfg.Protocol = text.Protocol{}
		client, c := r.pair(cfg)
		if !inline {
			c.Pause()
		}
		r.do(func() {})
		write(t, client, "pause\nafter\nunfin")
		if inline {
			// The rest of what was read with it waits too.
			if m := receive(t, got); m != "pause" {
				t.Errorf("message %q, want pause", m)
			}
		}
		for range 10 {
			r.do(func() {})
		}
		if len(got) != 0 {
			t.Errorf("message %q while paused", <-got)
		}
		write(t, client, "ished\n")
		c.Resume()
		want := []string{"pause", "after", "unfinished"}
		if inline {
			want = want[1:]
		}
		for _, want := range want {
			if m := receive(t, got); m != want {
				t.Errorf("message %q, want %q", m, want)
			}
		}
	})
}

func TestPeerGoneWhilePausedDoesNotSpinTheLoop(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, end := range []string{"half", "whole"} {
			t.Run(network+" "+end, func(t *testing.T) {
				r := newRig(t)
				var got bytes.Buffer
				closed := make(chan error, 1)
				timer := make(chan struct{})
				cfg := r.config(funcs{
					message: func(c *Conn, m []byte) { got.Write(m) },
					timer:   func(*Conn, string) { close(timer) },
					close:   func(c *Conn, why error) { closed <- why },
				}, true)
				var client interface {
					io.WriteCloser
					CloseWrite() error
				}
				var c *Conn
				if network == "unix" {
					client, c = r.pair(cfg)
				} else {
					client, c = r.tcp(cfg)
				}
				c.Pause()
				r.do(func() {})
				write(t, client, "last words")
				if end == "half" {
					client.CloseWrite()
				} else {
					client.Close()
				}
				r.until("the end is noticed", func() bool { return c.peerGone })
				before := 0
				r.do(func() { before = r.turns })
				c.SetTimer("some time later", 50_000_000)
				wait(t, timer)
				r.do(func() {
					if turns := r.turns - before; turns > 10 {
						t.Errorf("%d turns while nothing happened", turns)
					}
				})
				c.Resume()
				if why := receive(t, closed); !errors.Is(why, ErrPeerClosed) && !errors.Is(why, ErrReset) {
					t.Errorf("OnClose with %v", why)
				}
				if got.String() != "last words" {
					t.Errorf("got %q, want what came before the end", got.String())
				}
			})
		}
	}
}

func TestWriteToAGonePeerEndsTheConnection(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	client, c := r.pair(r.config(funcs{close: func(c *Conn, why error) { closed <- why }}, true))
	c.Pause()
	r.do(func() {})
	client.Close()
	if err := c.Send([]byte("x")); err != nil {
		t.Error(err)
	}
	if why := receive(t, closed); !errors.Is(why, ErrReset) || !errors.Is(why, unix.EPIPE) {
		t.Errorf("OnClose with %v, want ErrReset and EPIPE", why)
	}
}
