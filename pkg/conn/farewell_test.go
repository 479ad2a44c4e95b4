package conn

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// fragments is a protocol whose messages come in parts, "(abc", "def", "g)",
// each of which it takes into itself; "!" is a message of its own, between
// parts too, and "?" is none at all.
type fragments struct {
	kept     []byte
	released bool // since the last message
}

var errFragment = errors.New("no such part")

func (f *fragments) Split(in []byte, _ bool) (int, []byte, bool, error) {
	f.released = false
	if len(in) == 0 {
		return 0, nil, false, nil
	}
	switch in[0] {
	case '!':
		return 1, in[:1], true, nil
	case '?':
		return 0, nil, false, errFragment
	}
	f.kept = append(f.kept, in[0])
	if in[0] != ')' {
		return 1, nil, false, nil
	}
	m := f.kept
	f.kept = nil
	return 1, m, true, nil
}

func (f *fragments) Append(dst, m []byte) ([]byte, error)   { return append(dst, m...), nil }
func (f *fragments) Buffered() int                          { return len(f.kept) }
func (f *fragments) AppendState(dst []byte) ([]byte, error) { return append(dst, f.kept...), nil }
func (f *fragments) RestoreState(b []byte) error            { f.kept = append([]byte{}, b...); return nil }
func (f *fragments) Release()                               { f.released = true }
func newFragments() wire.Session                            { return new(fragments) }
func goodbye(c *Conn, why error) []byte                     { return fmt.Appendf(nil, "bye: %v", why) }
func asFragments(c *Conn) *fragments                        { return c.Session().(*fragments) }
func (r *rig) fragments(h Handler, inline bool, l Limits) *Config {
	cfg := r.config(h, inline)
	cfg.NewSession, cfg.Limits = newFragments, l
	return cfg
}

func TestDeadlineOfAMessageIsNotPushedBackByItsParts(t *testing.T) {
	const limit = 100 * time.Millisecond
	for _, tt := range []struct {
		name  string
		parts string
		want  error
	}{
		{name: "parts that never end", parts: "(aaaaaaaaaaaaaaaaaaaa", want: ErrMessageDeadline},
		{name: "parts with messages between them", parts: "(a!a!a!a!a!a!a!a!a!a!", want: ErrMessageDeadline},
		{name: "whole messages", parts: "(a)(a)(a)(a)(a)(a)(a)(a)", want: ErrPeerClosed},
		{name: "small messages", parts: "!!!!!!!!!!!!!!!!!!!!!", want: ErrPeerClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := newRig(t)
				closed := make(chan error, 1)
				cfg := r.fragments(funcs{close: func(_ *Conn, why error) { closed <- why }}, inline, Limits{Message: limit})
				client, _ := r.pair(cfg)
				pause := time.NewTicker(limit / 10)
				defer pause.Stop()
				for i := range len(tt.parts) {
					<-pause.C
					if _, err := client.Write([]byte(tt.parts[i : i+1])); err != nil {
						break
					}
				}
				if tt.want == ErrPeerClosed {
					client.Close()
				}
				if why := receive(t, closed); !errors.Is(why, tt.want) {
					t.Errorf("OnClose with %v, want %v", why, tt.want)
				}
			})
		})
	}
}

func TestSessionIsToldThatItsMessageIsNotNeededAnyMore(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := r.fragments(funcs{message: echo(t)}, inline, Limits{})
		client, c := r.pair(cfg)
		write(t, client, "(message)(half")
		expect(t, client, "(message)")
		r.do(func() {
			if f := asFragments(c); !f.released || f.Buffered() != 5 || c.Info().Buffered != 5 {
				t.Errorf("released %v, %d bytes buffered, info %+v", f.released, f.Buffered(), c.Info())
			}
		})
	})
}

func TestConnectionInsideAMessageOfItsSessionIsNotAtABoundary(t *testing.T) {
	r := newRig(t)
	cfg := r.fragments(funcs{message: echo(t)}, true, Limits{})
	cfg.Farewell = goodbye
	client, c := r.pair(cfg)
	write(t, client, "(half")
	r.until("it is read", func() bool { return c.BytesIn() == 5 })
	r.do(func() { r.set.Drain(DrainStop, time.Hour, nil) })
	write(t, client, " message)")
	if got, want := expectEnd(t, client), "(half message)bye: "+ErrStopping.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFarewellIsSentBeforeAnEndThatNobodyHasAskedFor(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits Limits
		server func(r *rig, c *Conn)
		client string
		want   string // what the client gets
	}{
		{name: "broken protocol", client: "!?", want: "!bye: conn: protocol: no such part"},
		{name: "panic", client: "(panic)!", want: "bye: conn: callback panicked: asked for"},
		{name: "silence", limits: Limits{Idle: 20 * time.Millisecond}, want: "bye: conn: idle for too long"},
		{name: "half a message", limits: Limits{Message: 20 * time.Millisecond}, client: "(half", want: "bye: " + ErrMessageDeadline.Error()},
		{name: "patient drain", server: func(r *rig, _ *Conn) { r.set.Drain(DrainPatient, 50*time.Millisecond, nil) }, want: "bye: " + ErrDrained.Error()},
		{name: "patient drain that is cut short", server: func(r *rig, _ *Conn) {
			r.set.Drain(DrainPatient, time.Hour, nil)
			r.set.Drain(DrainPrompt, 0, nil)
		}, want: "bye: " + ErrDrained.Error()},
		{name: "end of the grace inside of a message", client: "(half", server: func(r *rig, _ *Conn) {
			r.set.Drain(DrainPrompt, 50*time.Millisecond, nil)
		}, want: "bye: " + ErrDrained.Error()},
		{name: "stop", server: func(r *rig, _ *Conn) { r.set.Drain(DrainStop, time.Hour, nil) }, want: "bye: " + ErrStopping.Error()},
		{name: "patient drain that becomes a stop", server: func(r *rig, _ *Conn) {
			r.set.Drain(DrainPatient, time.Hour, nil)
			r.set.Drain(DrainStop, time.Hour, nil)
		}, want: "bye: " + ErrStopping.Error()},
		{name: "stop that is hastened", client: "(half", server: func(r *rig, _ *Conn) {
			r.set.Drain(DrainStop, time.Hour, nil)
			r.set.Drain(DrainPrompt, 0, nil)
		}, want: "bye: " + ErrStopping.Error()},
		{name: "Close", server: func(_ *rig, c *Conn) { c.Close(nil) }, want: ""},
		{name: "CloseNow", server: func(_ *rig, c *Conn) { c.CloseNow(nil) }, want: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := newRig(t)
				cfg := r.fragments(funcs{message: func(c *Conn, m []byte) {
					if string(m) == "(panic)" {
						panic("asked for")
					}
					echo(t)(c, m)
				}}, inline, tt.limits)
				cfg.Farewell = goodbye
				client, c := r.pair(cfg)
				write(t, client, tt.client)
				if tt.server != nil {
					r.until("all is read", func() bool { return c.BytesIn() == uint64(len(tt.client)) })
					r.do(func() { tt.server(r, c) })
				}
				client.SetReadDeadline(time.Now().Add(patience))
				if got := expectEnd(t, client); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestSilentPeerIsAskedForASignOfLife(t *testing.T) {
	const after, wait = 40 * time.Millisecond, 40 * time.Millisecond
	r := newRig(t)
	closed := make(chan error, 1)
	cfg := r.fragments(funcs{close: func(_ *Conn, why error) { closed <- why }}, true, Limits{})
	cfg.Probe, cfg.ProbeAfter, cfg.ProbeWait = func(c *Conn) { c.Send([]byte("ping")) }, after, wait
	client, _ := r.pair(cfg)
	for range 3 {
		began := time.Now()
		expect(t, client, "ping")
		if took := time.Since(began); took < after/2 {
			t.Errorf("asked after %v, want %v", took, after)
		}
		write(t, client, "!")
	}
	expect(t, client, "ping")
	if why := receive(t, closed); why != ErrIdle {
		t.Errorf("OnClose with %v, want ErrIdle", why)
	}
}

func TestPausedConnectionIsNotAskedForASignOfLife(t *testing.T) {
	const after = 20 * time.Millisecond
	r := newRig(t)
	asked := make(chan *Conn, 100)
	cfg := r.fragments(funcs{connect: (*Conn).Pause}, true, Limits{})
	cfg.Probe, cfg.ProbeAfter, cfg.ProbeWait = func(c *Conn) { asked <- c }, after, time.Hour
	_, paused := r.pair(cfg)
	cfg = r.fragments(funcs{}, true, Limits{})
	cfg.Probe, cfg.ProbeAfter, cfg.ProbeWait = func(c *Conn) { asked <- c }, 5*after, time.Hour
	_, other := r.pair(cfg)
	if c := receive(t, asked); c != other || paused.State() != Open {
		t.Errorf("asked %v, want another", c.ID())
	}
}

func TestOpeningConnectionIsNeitherAskedNorToldFarewell(t *testing.T) {
	for _, tt := range []struct {
		name string
		sent string
		over func(r *rig)
	}{
		{name: "its time is over", sent: "\x16\x03\x01\x02\x00\x01"},
		{name: "it speaks no TLS", sent: "GET / HTTP/1.1\r\n"},
		{name: "a drain", sent: "\x16\x03\x01\x02\x00\x01", over: func(r *rig) { r.do(func() { r.set.Drain(DrainPrompt, 0, nil) }) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := secured(t, r.config(NopHandler{}, true))
			cfg.Farewell = func(*Conn, error) []byte { t.Error("Farewell"); return []byte("bye") }
			cfg.Probe = func(*Conn) { t.Error("Probe") }
			cfg.ProbeAfter, cfg.ProbeWait = 10*time.Millisecond, 10*time.Millisecond
			cfg.Limits.Handshake = 100 * time.Millisecond
			over := make(chan struct{})
			cfg.Released = func(*Conn) { close(over) }
			nc, c := r.tcp(cfg)
			write(t, nc, tt.sent)
			if tt.over != nil {
				r.until("it is read", func() bool { return c.BytesIn() > 0 })
				tt.over(r)
			}
			wait(t, over)
			b, _ := io.ReadAll(nc)
			if strings.Contains(string(b), "bye") {
				t.Errorf("the peer got %q", b)
			}
		})
	}
}
