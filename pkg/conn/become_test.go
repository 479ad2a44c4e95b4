package conn

import (
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

// expectText reads exactly want.
func expectText(t *testing.T, r io.Reader, want string) {
	t.Helper()
	if d, ok := r.(interface{ SetReadDeadline(time.Time) error }); ok {
		d.SetReadDeadline(time.Now().Add(patience))
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got[:n], err, want)
	}
}

// turning is a Config whose connections become "lines" with what begins with
// "lines", and its table of closes.
func turning(r *rig, inline bool, closed chan<- error) *Config {
	lines := r.config(funcs{
		connect: func(c *Conn) { c.Send([]byte("welcome")) },
		message: func(c *Conn, m []byte) { c.Send(append([]byte("line "), m...)) },
		close:   func(_ *Conn, why error) { closed <- why },
	}, inline)
	lines.Protocol, lines.ProtocolName = text.Protocol{}, "lines"
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			c.SetTimer("of before", 0)
			c.Send(append([]byte("raw "), m...))
			if err := c.Become("none", nil); !errors.Is(err, ErrProtocol) {
				r.t.Errorf("Become of none: %v", err)
			}
			if err := c.Become("lines", m); err != nil {
				r.t.Error(err)
			}
		},
		timer: func(*Conn, string) { r.t.Error("a timer of before is over") },
		close: func(*Conn, error) { r.t.Error("OnClose of before") },
	}, true)
	cfg.ProtocolName, cfg.Becomes = "raw", []*Config{lines}
	return cfg
}

func TestConnectionBecomesAnother(t *testing.T) {
	for _, inline := range []bool{true, false} {
		r := newRig(t)
		closed := make(chan error, 1)
		client, _ := r.tcp(turning(r, inline, closed))
		write(t, client, "one\ntwo\nthr")
		expectText(t, client, "raw one\ntwo\nthrwelcome\nline one\nline two\n")
		write(t, client, "ee\n")
		expectText(t, client, "line three\n")
		client.Close()
		if why := receive(t, closed); why != ErrPeerClosed {
			t.Errorf("OnClose with %v", why)
		}
	}
}

func TestWhatItHasBecomeMoves(t *testing.T) {
	w := newTwo(t)
	closed := make(chan error, 2)
	cfg := turning(w.a, true, closed)
	client, c := w.a.tcp(cfg)
	write(t, client, "one\ntw")
	expectText(t, client, "raw one\ntwwelcome\nline one\n")
	w.move(c, turning(w.b, true, closed))
	write(t, client, "o\n")
	expectText(t, client, "line two\n")
	client.Close()
	receive(t, closed)
}

// What is kept only partly moves, and is not closed between two messages.
func TestPartMovesAndIsNotAtABoundary(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	client, c := r.tcp(r.config(funcs{
		message: func(c *Conn, m []byte) { c.Partial(string(m) == "part"); c.Partial(string(m) == "part"); c.Send(m) },
		close:   func(_ *Conn, why error) { closed <- why },
	}, true))
	write(t, client, "part")
	expectText(t, client, "part")
	f, err := freeze(r, c)
	if err != nil {
		t.Fatal(err)
	}
	r.do(f.Thaw)
	r.do(func() { r.set.Drain(DrainPrompt, patience, nil) })
	for range 20 {
		r.do(func() {})
	}
	if len(closed) > 0 {
		t.Fatal("it was closed in the middle")
	}
	if err := c.Hold(); err != nil {
		t.Fatal(err)
	}
	write(t, client, "rest")
	expectText(t, client, "rest")
	c.Release()
	if rest, err := io.ReadAll(client); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v, want the end", rest, err)
	}
	client.Close()
	if why := receive(t, closed); !errors.Is(why, ErrDrained) {
		t.Errorf("OnClose with %v", why)
	}
}

// With FinishFirst the holder is served until it lets go.
func TestFreezeIsPutOffUntilRelease(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{
		message: func(c *Conn, m []byte) {
			if string(m) == "keep" {
				if err := c.Hold(); err != nil {
					t.Error(err)
				}
			}
			c.Send(m)
		},
		timer: func(c *Conn, name string) { c.Send([]byte(name)) },
	}, true)
	cfg.FinishFirst = true
	client, c := r.tcp(cfg)
	write(t, client, "keep")
	expectText(t, client, "keep")
	type result struct {
		f   *Frozen
		err error
	}
	told := make(chan result, 4)
	tell := func(f *Frozen, err error) { told <- result{f, err} }
	r.do(func() { r.set.Freeze(c, tell); r.set.Freeze(c, tell) })
	if got := receive(t, told); got.err != ErrFrozen {
		t.Errorf("second Freeze: %v", got.err)
	}
	if !c.Leaving() {
		t.Error("it is not leaving")
	}
	write(t, client, "more")
	expectText(t, client, "more")
	c.SetTimer("timer", 0)
	expectText(t, client, "timer")
	// Given up, and asked for again.
	r.do(func() { r.set.Unfreeze(c) })
	if c.Leaving() {
		t.Error("it is leaving")
	}
	r.do(func() { r.set.Freeze(c, tell) })
	for range 20 {
		r.do(func() {})
	}
	if len(told) > 0 {
		t.Fatal("told while it is held")
	}
	c.Release()
	got := receive(t, told)
	if got.err != nil || c.Leaving() {
		t.Fatalf("got %v, leaving %v", got.err, c.Leaving())
	}
	r.do(got.f.Thaw)
	// One that ends while it is waited for.
	write(t, client, "keep")
	expectText(t, client, "keep")
	r.do(func() { r.set.Freeze(c, tell) })
	c.CloseNow(nil)
	if got := receive(t, told); got.err != ErrClosed {
		t.Errorf("closed: %v", got.err)
	}
}

func TestWhatATLSConnectionBecomesSpeaksTLS(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		w := newTwo(t)
		closed := make(chan error, 2)
		nc, c := w.a.tcp(secured(t, turning(w.a, true, closed)))
		client := handshaken(t, nc, clientTLS(version))
		write(t, client, "one\ntw")
		expectText(t, client, "raw one\ntwwelcome\nline one\n")
		if version == tls.VersionTLS13 {
			c = w.move(c, secured(t, turning(w.b, true, closed)))
		}
		write(t, client, "o\n")
		expectText(t, client, "line two\n")
		if c.TLS() == nil {
			t.Error("TLS returns nil")
		}
		client.Close()
		if why := receive(t, closed); why != ErrPeerClosed {
			t.Errorf("OnClose with %v", why)
		}
	})
}
