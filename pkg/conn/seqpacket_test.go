package conn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// seqpacket connects a client with a new connection of packets.
func (r *rig) seqpacket(cfg *Config) (client *net.UnixConn, c *Conn) {
	r.t.Helper()
	cfg.Seqpacket = true
	ours, theirs := socketpair(r.t, unix.SOCK_SEQPACKET)
	f := os.NewFile(uintptr(theirs), "client")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return nc.(*net.UnixConn), r.accepted(ours, &unix.SockaddrUnix{}, cfg)
}

// expectPacket reads one packet.
func expectPacket(t testing.TB, nc *net.UnixConn, want string) {
	t.Helper()
	buf := make([]byte, 2*MaxPacket)
	n, err := nc.Read(buf)
	if errors.Is(err, io.EOF) && want == "" {
		return // an empty one, or the end: they are told in one way
	}
	if err != nil || string(buf[:n]) != want {
		t.Errorf("got %.100q (%d bytes), %v, want %.100q (%d bytes)", buf[:n], n, err, want, len(want))
	}
}

// sendPacket sends one packet, which may be empty.
func sendPacket(t testing.TB, nc *net.UnixConn, m string) {
	t.Helper()
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	var sent error
	if err := raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), []byte(m), unix.MSG_NOSIGNAL, nil)
		return !errors.Is(sent, unix.EAGAIN)
	}); err != nil || sent != nil {
		t.Errorf("send: %v, %v", err, sent)
	}
}

// eitherWay runs body with callbacks on the loop and on the Pool.
func eitherWay(t *testing.T, body func(t *testing.T, inline bool)) {
	for _, inline := range []bool{true, false} {
		t.Run(map[bool]string{true: "inline", false: "on the pool"}[inline], func(t *testing.T) { body(t, inline) })
	}
}

func TestMessageIsAPacketBothWays(t *testing.T) {
	eitherWay(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		closed := make(chan error, 1)
		client, c := r.seqpacket(r.config(funcs{
			message: func(c *Conn, m []byte) {
				for range 2 {
					if err := c.Send(m); err != nil {
						t.Error(err)
					}
				}
			},
			close: func(_ *Conn, why error) { closed <- why },
		}, inline))
		all := []string{"one", "two", "", "three", strings.Repeat("x", MaxPacket), "last"}
		for _, m := range all {
			sendPacket(t, client, m)
		}
		bytes := uint64(0)
		for _, m := range all {
			expectPacket(t, client, m)
			expectPacket(t, client, m)
			bytes += uint64(len(m))
		}
		r.until("all is counted", func() bool { return c.BytesIn() == bytes && c.BytesOut() == 2*bytes })
		client.CloseWrite()
		if err := receive(t, closed); !errors.Is(err, ErrPeerClosed) {
			t.Errorf("ended by %v, want the peer's end", err)
		}
		expectPacket(t, client, "") // the end
	})
}

func TestPacketThatIsTooLongEndsTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name        string
		limit, size int
	}{
		{"by one", 10, 11},
		{"by far", 10, 50000},
		{"beyond all", 1 << 20, MaxPacket + 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			closed := make(chan error, 1)
			cfg := r.config(funcs{
				message: func(c *Conn, m []byte) { c.Send(m) },
				close:   func(_ *Conn, why error) { closed <- why },
			}, true)
			cfg.Limits.MaxMessage = tt.limit
			client, c := r.seqpacket(cfg)
			fits := strings.Repeat("x", min(tt.limit, MaxPacket))
			sendPacket(t, client, fits)
			expectPacket(t, client, fits)
			if err := c.Send(make([]byte, MaxPacket+1)); !errors.Is(err, ErrTooLong) {
				t.Errorf("Send of too much: %v, want ErrTooLong", err)
			}
			sendPacket(t, client, strings.Repeat("x", tt.size))
			expectPacket(t, client, "") // the end
			client.Close()
			err := receive(t, closed)
			if _, ok := errors.AsType[*ProtocolError](err); !ok || !errors.Is(err, ErrTooLong) {
				t.Errorf("ended by %v, want a ProtocolError of ErrTooLong", err)
			}
		})
	}
}

// A packet is not cut: one that the socket's buffer does not hold would never leave.
func TestPacketThatTheSocketCannotHoldEndsTheConnection(t *testing.T) {
	r := newRig(t)
	closed := make(chan error, 1)
	client, c := r.seqpacket(r.config(funcs{close: func(_ *Conn, why error) { closed <- why }}, true))
	// After New, which may want more; the kernel has a least of its own, which is
	// less than half of this packet.
	r.do(func() {
		if err := unix.SetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
			t.Error(err)
		}
	})
	if err := c.Send([]byte("short")); err != nil {
		t.Error(err)
	}
	expectPacket(t, client, "short")
	if err := c.Send(make([]byte, 20000)); err != nil {
		t.Error(err)
	}
	if err := receive(t, closed); !errors.Is(err, ErrReset) || !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ended by %v, want ErrReset and EMSGSIZE", err)
	}
	expectPacket(t, client, "") // the end
}

// What the kernel does not take waits up to the limit, packet by packet.
func TestPacketsWaitForAPeerThatDoesNotRead(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{}, true)
	cfg.Limits.SendHard = 200000
	client, c := r.seqpacket(cfg)
	sent := 0
	message := func(i int) string { return fmt.Sprint(i, strings.Repeat("x", i%3*4000)) }
	r.until("the queue is full", func() bool {
		for {
			err := c.Send([]byte(message(sent)))
			if errors.Is(err, ErrFull) {
				return c.blocked
			}
			if err != nil {
				t.Error(err)
				return true
			}
			sent++
			if sent%20 == 0 {
				return false // the loop flushes in between
			}
		}
	})
	for i := range sent {
		expectPacket(t, client, message(i))
	}
	r.until("nothing waits", func() bool { return c.queuedLocked() == 0 })
}

func TestPacketsKeepTheirBoundsWhenTheConnectionMoves(t *testing.T) {
	eitherWay(t, func(t *testing.T, inline bool) {
		w := newTwo(t)
		echo := funcs{message: func(c *Conn, m []byte) {
			if string(m) == "pause" {
				c.Pause()
				return
			}
			c.Send(append([]byte("got "), m...))
		}}
		config := func(r *rig) *Config {
			cfg := r.config(echo, inline)
			cfg.ProtocolName, cfg.Seqpacket = "packets", true
			return cfg
		}
		from := config(w.a)
		client, c := w.a.seqpacket(from)
		// Packets that were read and not handled, replies that were not sent,
		// and those sent while it stands still.
		c.Pause()
		w.a.until("it is paused", func() bool { return c.watched&watchInput == 0 })
		w.a.do(func() {
			for _, m := range []string{"in", "", "put"} {
				framed, err := packets{}.Append(nil, []byte(m))
				if err != nil {
					t.Error(err)
				}
				if c.in == nil {
					c.in = getBuffer(len(framed))
				}
				c.in = c.in.add(framed)
			}
			c.held = true
		})
		f := w.freezeUnsent(c, "un", "", "sent")
		to := config(w.b)
		ad := w.adopt(f, to)
		for _, m := range []string{"ta", "", "il"} {
			if err := c.Send([]byte(m)); err != nil {
				t.Error(err)
			}
		}
		w.finish(f, ad).Resume()
		sendPacket(t, client, "after")
		for _, m := range []string{"un", "", "sent", "ta", "", "il", "got in", "got ", "got put", "got after"} {
			expectPacket(t, client, m)
		}
		client.Close()
		w.b.until("it is over", func() bool { return ad.conn.state == Closed })
	})
}

func TestConnectionOfPacketsOutlivesItsProcess(t *testing.T) {
	w := newTwo(t)
	echo := funcs{message: func(c *Conn, m []byte) { c.Send(m) }}
	config := func(r *rig) *Config {
		cfg := r.config(echo, true)
		cfg.ProtocolName, cfg.Seqpacket = "packets", true
		return cfg
	}
	client, c := w.a.seqpacket(config(w.a))
	sendPacket(t, client, "before")
	expectPacket(t, client, "before")
	w.a.until("it is at rest", func() bool { return NotedIn(c.row()).AtRest })
	c = w.dies(c, config(w.b))
	sendPacket(t, client, "one")
	sendPacket(t, client, "two")
	expectPacket(t, client, "one")
	expectPacket(t, client, "two")
	client.Close()
	w.b.until("it is over", func() bool { return c.state == Closed })
}

// A connection of a stream is not taken for one of packets, nor the reverse.
func TestPacketsAreNotAdoptedAsAStream(t *testing.T) {
	w := newTwo(t)
	cfg := w.a.config(funcs{}, true)
	client, c := w.a.seqpacket(cfg)
	f := w.freeze(c)
	if _, err := w.tryAdopt(f, w.b.config(funcs{}, true), w.capture(f)); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
	w.a.do(f.Thaw)
	client.Close()
	w.a.until("it is over", func() bool { return c.state == Closed })
}

func TestWhatIsNotForPacketsIsRefused(t *testing.T) {
	trusted, err := proxyproto.ParseTrusted([]string{"unix"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"a protocol", func(c *Config) { c.Protocol = text.Protocol{} }, "a message is a packet"},
		{"TLS", func(c *Config) { c.TLS, c.Handshakes = new(tls.Config), new(Handshakes) }, "for streams"},
		{"a PROXY header", func(c *Config) { c.Proxy = &trusted }, "for streams"},
		{"what becomes something else", func(c *Config) { c.Becomes = []*Config{c} }, "a message is a packet"},
	} {
		cfg := &Config{Listener: "test", Handler: funcs{}, Inline: true, Seqpacket: true}
		if _, err := cfg.settings(); err != nil {
			t.Fatal(err)
		}
		tt.change(cfg)
		if _, err := cfg.settings(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

func FuzzPackets(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x00\x00\x00\x00", "\x01\x00\x00\x00", "\x01\x00\x00\x00x", "\x01\x00\x00\x00xy", "\xff\xff\xff\xff", "\xff\xff\xff\x7fx"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		advance, m, ok, err := packets{}.Split(in, false)
		switch {
		case err != nil:
			if ok || advance != 0 || len(in) >= 4 && uint64(binary.LittleEndian.Uint32(in)) <= uint64(len(in)-4) {
				t.Fatalf("refused: %d, %v, %v", advance, ok, err)
			}
		case !ok || advance != len(m)+4 || advance > len(in):
			t.Fatalf("advance %d, %d bytes, %v", advance, len(m), ok)
		case len(m) <= MaxPacket:
			if again, err := (packets{}).Append(nil, m); err != nil || !bytes.Equal(again, in[:advance]) {
				t.Fatalf("%x became %x, %v", in[:advance], again, err)
			}
		}
	})
}
