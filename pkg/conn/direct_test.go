package conn

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What a callback sends of its own message leaves without a copy; none of
// these may be able to tell.

func TestPartsOfAMessageLeaveInOrderAndInOneWrite(t *testing.T) {
	for _, tt := range []struct {
		name string
		send func(c *Conn, m []byte)
		want string
	}{
		{"whole", func(c *Conn, m []byte) { c.Send(m) }, "0123456789"},
		{"parts", func(c *Conn, m []byte) { c.Send(m[:3]); c.Send(m[3:7]); c.Send(m[7:]) }, "0123456789"},
		{"parts in another order", func(c *Conn, m []byte) { c.Send(m[5:]); c.Send(m[:5]) }, "5678901234"},
		{"other bytes before", func(c *Conn, m []byte) { c.Send([]byte("> ")); c.Send(m) }, "> 0123456789"},
		{"other bytes behind", func(c *Conn, m []byte) { c.Send(m); c.Send([]byte(" <")) }, "0123456789 <"},
		{"other bytes between", func(c *Conn, m []byte) { c.Send(m[:5]); c.Send([]byte("-")); c.Send(m[5:]) }, "01234-56789"},
		{"nothing of it", func(c *Conn, m []byte) { c.Send(m[:0]); c.Send([]byte("x")) }, "x"},
		{"last words", func(c *Conn, m []byte) { c.Send(m); c.Close(nil, m[:1]) }, "01234567890"},
		{"from a goroutine that is waited for", func(c *Conn, m []byte) {
			var wg sync.WaitGroup
			wg.Go(func() { c.Send(m) })
			wg.Wait()
			c.Send([]byte("."))
		}, "0123456789."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config(funcs{message: tt.send}, true)
			// A write to a seqpacket socket is one packet.
			ours, theirs := socketpair(t, unix.SOCK_SEQPACKET)
			defer unix.Close(theirs)
			if err := unix.SetNonblock(theirs, false); err != nil {
				t.Fatal(err)
			}
			c := r.accepted(ours, nil, cfg)
			for i := range 3 {
				if tt.name == "last words" && i > 0 {
					break
				}
				if _, err := unix.Write(theirs, []byte("0123456789")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				n, err := unix.Read(theirs, buf)
				if err != nil || string(buf[:n]) != tt.want {
					t.Fatalf("got %q, %v, want %q", buf[:n], err, tt.want)
				}
			}
			r.do(func() {
				if c.Queued() != 0 || len(r.set.direct) != 0 || r.set.current != nil || c.out.head != nil {
					t.Errorf("something is left: %d bytes", c.Queued())
				}
			})
		})
	}
}

func TestWhatTheKernelDoesNotTakeIsKept(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{
		message: echo(t),
		full:    func(c *Conn) { c.Pause() },
		drain:   func(c *Conn) { c.Resume() },
	}, true)
	cfg.Limits.SendHigh = 100 << 10
	client, c := r.tcp(cfg)
	const total = 8 << 20
	random := rand.NewChaCha8([32]byte{1})
	sent := make([]byte, total)
	random.Read(sent)
	go func() {
		if _, err := client.Write(sent); err != nil {
			t.Error(err)
		}
	}()
	r.until("the peer is held up", func() bool { return c.blocked && c.has(flagPaused) })
	got := make([]byte, total)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes came back than were sent")
	}
	r.until("counters", func() bool {
		return r.seat.BytesIn.Load() == total && r.seat.BytesOut.Load() == total && c.BytesOut() == total && r.seat.QueueBytes.Load() == 0
	})
}

// While the loop writes without the lock, others send: nothing is lost, and
// nothing of a message comes between the bytes of another.
func TestSendsFromElsewhereDuringAnEcho(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	cfg.Limits.SendHard = 64 << 20
	client, c := r.tcp(cfg)
	const others, blocks, size = 3000, 400, 32 << 10
	go func() {
		for range others {
			if err := c.Send([]byte("[other]")); err != nil {
				t.Error(err)
			}
		}
	}()
	go func() {
		block := bytes.Repeat([]byte("x"), size)
		for range blocks {
			if _, err := client.Write(block); err != nil {
				t.Error(err)
			}
		}
	}()
	got := make([]byte, others*len("[other]")+blocks*size)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(got, []byte("[other]")); n != others {
		t.Errorf("%d whole messages of others, want %d", n, others)
	}
	if n := bytes.Count(got, []byte("x")); n != blocks*size {
		t.Errorf("%d bytes of the echo, want %d", n, blocks*size)
	}
}

// What goes to another connection is copied: the loop's buffer is read into
// again before that one is written.
func TestMessageForAnotherConnectionIsCopied(t *testing.T) {
	r := newRig(t)
	sink, to := r.tcp(r.config(NopHandler{}, true))
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		if err := to.Send(m); err != nil {
			t.Error(err)
		}
	}}, true)
	const senders = 20
	var clients []net.Conn
	for range senders {
		c, _ := r.tcp(cfg)
		clients = append(clients, c)
	}
	hold := make(chan struct{})
	if err := r.loop.Post(func() { <-hold }); err != nil { // so that all are read in one turn
		t.Fatal(err)
	}
	want := map[string]bool{}
	for i, c := range clients {
		line := fmt.Sprintf("line of %02d %s\n", i, strings.Repeat(fmt.Sprint(i%10), 50))
		want[line] = true
		write(t, c, line)
	}
	close(hold)
	length := len("line of 00 \n") + 50
	got := make([]byte, senders*length)
	if _, err := io.ReadFull(sink, got); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(got)) {
		if !want[line] {
			t.Errorf("line %q, or twice", line)
		}
		delete(want, line)
	}
}

func TestDirectSendKeepsToTheLimits(t *testing.T) {
	r := newRig(t)
	refused := make(chan error, 1)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) {
		refused <- c.Send(m)
		c.Send([]byte("."))
	}}, true)
	cfg.Limits.SendHigh, cfg.Limits.SendHard = 4, 8
	client, _ := r.pair(cfg)
	write(t, client, "123456789")
	if err := receive(t, refused); err == nil {
		t.Error("more than SendHard was taken")
	}
	expect(t, client, ".")
	write(t, client, "12345678")
	if err := receive(t, refused); err != nil {
		t.Error(err)
	}
	expect(t, client, "12345678")
}

func TestDirectSendTellsOfFullAndDrain(t *testing.T) {
	r := newRig(t)
	var told journal
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) { c.Send(m); told.add("sent") },
		full:    func(*Conn) { told.add("full") },
		drain:   func(*Conn) { told.add("drain") },
	}, true)
	cfg.Limits.SendHigh = 4
	client, _ := r.pair(cfg)
	write(t, client, "12345")
	expect(t, client, "12345")
	r.until("all is told", func() bool { return strings.Join(told.all(), " ") == "sent full drain" })
}

func TestPanicAfterADirectSendSendsNothing(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: func(c *Conn, m []byte) { c.Send(m); panic("asked for") }}, true)
	client, _ := r.pair(cfg)
	write(t, client, "hello")
	if got := expectEnd(t, client); got != "" {
		t.Errorf("got %q", got)
	}
	r.until("released", func() bool { return r.set.Len() == 0 && len(r.set.direct) == 0 })
}
