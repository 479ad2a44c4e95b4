package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
	"golang.org/x/sys/unix"
)

const headerOfAnother = "PROXY TCP4 192.0.2.7 198.51.100.1 1000 443\r\n"

// continuing is a Config that tells what it finds, and answers lines.
func continuing(r *rig, inline bool) *Config {
	cfg := r.config(funcs{
		connect: func(c *Conn) { c.Send(fmt.Append(nil, "taken over: ", c.Value(), " ", c.Peer())) },
		message: func(c *Conn, m []byte) { c.Send(append([]byte("line "), m...)) },
	}, inline)
	cfg.Protocol, cfg.ProtocolName = text.Protocol{}, "lines"
	cfg.EncodeValue = func(c *Conn) ([]byte, error) { return fmt.Append(nil, c.Value()), nil }
	cfg.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
	return cfg
}

func (r *rig) continued(fd int, cfg *Config, begun Begun) (c *Conn, err error) {
	r.t.Helper()
	r.do(func() { c, err = r.set.Continued(fd, cfg, begun) })
	return c, err
}

// begin is what something else does on a connection before a Set has it: it
// reads until enough says so.
func begin(t *testing.T, fd int, enough func(all []byte) bool) (all []byte) {
	t.Helper()
	for b := make([]byte, 4096); !enough(all); {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		n, errno := reactor.Read(fd, b)
		if errno == unix.EAGAIN || errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			t.Fatal(n, errno)
		}
		all = append(all, b[:n]...)
	}
	return all
}

func TestConnectionThatSomethingElseHasBegunGoesOn(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		w := newTwo(t)
		client, fd, _ := tcpPair(t, "tcp4", "127.0.0.1:0")
		write(t, client, "begun\none\ntw")
		all := begin(t, fd, func(all []byte) bool { return len(all) == 12 })
		c, err := w.a.continued(fd, continuing(w.a, inline), Begun{
			Input: all[6:], In: uint64(len(all)), Value: "value", Header: []byte(headerOfAnother),
		})
		if err != nil {
			t.Fatal(err)
		}
		expectText(t, client, "taken over: value 192.0.2.7:1000\nline one\n")
		if h, ok := c.Proxy(); !ok || h.Destination.String() != "198.51.100.1:443" {
			t.Errorf("the PROXY header is %+v, %v", h, ok)
		}
		if c.BytesIn() != 12 {
			t.Errorf("%d bytes came in, want 12", c.BytesIn())
		}
		c = w.move(c, continuing(w.b, inline))
		write(t, client, "o\n")
		expectText(t, client, "line two\n")
		if c.Peer() != "192.0.2.7:1000" || c.Value() != "value" {
			t.Errorf("%v of %s", c.Value(), c.Peer())
		}
	})
}

func TestConnectionWithTLSThatSomethingElseHasBegunGoesOn(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		w := newTwo(t)
		nc, fd, _ := tcpPair(t, "tcp4", "127.0.0.1:0")
		below := &splitter{Conn: nc}
		client := tls.Client(below, clientTLS(version))
		ready := make(chan error, 1)
		go func() { ready <- client.Handshake() }()
		var begun Begun
		h := tlsrec.Server(context.Background(), serverTLS())
		for !h.Done() {
			in := begin(t, fd, func(all []byte) bool { return len(all) > 0 })
			begun.In += uint64(len(in))
			if err := h.Feed(in); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Step(); err != nil {
				t.Fatal(err)
			}
			for out := h.Output(); len(out) > 0; {
				n, errno := reactor.Write(fd, out)
				if errno != 0 {
					t.Fatal(errno)
				}
				begun.Out += uint64(n)
				out = out[n:]
			}
		}
		r, err := h.Result()
		if err != nil || receive(t, ready) != nil {
			t.Fatal(err)
		}
		begun.Info, begun.TLS, begun.Legacy, begun.Value, begun.Input = &r.Info, r.Conn, r.Legacy, "value", []byte("read ")
		// A part of a record has come, which only TLS 1.3 gives away here.
		below.hold(10)
		write(t, client, "one\n")
		if r.Conn != nil {
			begun.Record = begin(t, fd, func(all []byte) bool { return len(all) > 0 })
			begun.In += uint64(len(begun.Record))
		}
		cfg := continuing(w.a, true)
		c, err := w.a.continued(fd, cfg, begun)
		if err != nil {
			t.Fatal(err)
		}
		below.release(t)
		expectText(t, client, "taken over: value "+nc.LocalAddr().String()+"\nline read one\n")
		if cs := c.TLS(); cs == nil || cs.Version != version {
			t.Errorf("TLS says %+v", cs)
		}
		if c.pinned() != (version == tls.VersionTLS12) {
			t.Errorf("pinned: %v", c.pinned())
		}
		if !c.pinned() {
			w.move(c, continuing(w.b, true))
		}
		write(t, client, "two\n")
		expectText(t, client, "line two\n")
		client.Close()
	})
}

func TestSessionThatIsBegunGoesOn(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{
		connect: func(c *Conn) {
			c.Send(append([]byte{byte(websocket.Response)}, "HTTP/1.1 101 Switching Protocols\r\n\r\n"...))
		},
		message: func(c *Conn, m []byte) { c.Send(m) },
	}, true)
	cfg.NewSession = func() wire.Session { return websocket.NewServer(&websocket.Config{}) }
	cfg.ProtocolName = "websocket"
	client, fd, _ := tcpPair(t, "tcp4", "127.0.0.1:0")
	if _, err := r.continued(fd, cfg, Begun{Session: websocket.NewRequested(&websocket.Config{}), Input: []byte("\x81\x82\x00\x00\x00\x00ab")}); err != nil {
		t.Fatal(err)
	}
	expectText(t, client, "HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02ab")
}

func TestConnectionThatIsNotContinuedStaysTheCallers(t *testing.T) {
	full, err := rows.Create(1)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	alloc := full.Allocator(1)
	for err == nil {
		_, _, err = alloc.Take()
	}
	for _, tt := range []struct {
		name   string
		alloc  *rows.Allocator
		header string
		want   error
	}{
		{name: "no room", alloc: alloc, want: rows.ErrFull},
		{name: "no header", header: "GET / HTTP/1.1\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRigOn(t, tt.alloc)
			client, fd, _ := tcpPair(t, "tcp4", "127.0.0.1:0")
			c, err := r.continued(fd, continuing(r, true), Begun{Header: []byte(tt.header)})
			if c != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("got %v, %v, want %v", c, err, tt.want)
			}
			if _, errno := reactor.Write(fd, []byte("sorry")); errno != 0 {
				t.Error(errno)
			}
			unix.Close(fd)
			if got := expectEnd(t, net.Conn(client)); got != "sorry" {
				t.Errorf("the client got %q", got)
			}
		})
	}
}
