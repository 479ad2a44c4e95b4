package conn

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/test/certs"
)

// certificate is the one of all tests, for localhost.
var certificate = sync.OnceValue(func() tls.Certificate {
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		panic(err)
	}
	pair, err := c.Pair()
	if err != nil {
		panic(err)
	}
	return pair
})

func pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(certificate().Leaf)
	return p
}

// serverTLS is what a server of the tests has; all have the same ticket keys.
func serverTLS() *tls.Config {
	c := &tls.Config{Certificates: []tls.Certificate{certificate()}, MinVersion: tls.VersionTLS12}
	c.SetSessionTicketKeys([][32]byte{{1}})
	return c
}

func clientTLS(version uint16) *tls.Config {
	return &tls.Config{RootCAs: pool(), ServerName: "localhost", MinVersion: version, MaxVersion: version}
}

// secured makes cfg one with TLS.
func secured(t testing.TB, cfg *Config) *Config {
	cfg.TLS, cfg.Handshakes = serverTLS(), NewHandshakes(0)
	cfg.KernelTLS = kernelTLS() == nil // in the machine of test/ktls all of this is about the kernel's
	t.Cleanup(cfg.Handshakes.Close)
	return cfg
}

// versions runs a test with each version of TLS.
func versions(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(v), func(t *testing.T) { f(t, v) })
	}
}

// handshaken is the client of a connection over TCP, after the handshake.
func handshaken(t testing.TB, nc net.Conn, cfg *tls.Config) *tls.Conn {
	t.Helper()
	c := tls.Client(nc, cfg)
	c.SetDeadline(time.Now().Add(patience))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTLSEchoesEveryByte(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		bothWays(t, func(t *testing.T, inline bool) {
			r := newRig(t)
			over := make(chan error, 1)
			cfg := secured(t, r.config(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, inline))
			cfg.Limits = Limits{SendHard: 64 << 20}
			nc, c := r.tcp(cfg)
			client := handshaken(t, nc, clientTLS(version))
			sent := make([]byte, 5<<20)
			rand.Read(sent)
			go func() {
				for rest, n := sent, 1; len(rest) > 0; n = n*3%50000 + 1 {
					n = min(n, len(rest))
					if _, err := client.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			}()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("other bytes came back: %v", err)
			}
			r.until("more bytes are counted than the plaintext has", func() bool { // what is sent is counted behind the write
				return c.BytesIn() > uint64(len(sent)) && c.BytesOut() > uint64(len(sent))
			})
			if cs := c.TLS(); cs == nil || cs.Version != version {
				t.Errorf("TLS says %+v", cs)
			}
			client.Close()
			if why := receive(t, over); !errors.Is(why, ErrPeerClosed) || errors.Is(why, ErrTruncated) {
				t.Errorf("OnClose with %v", why)
			}
		})
	})
}

// recorder notes the types of the records that the peer sends.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	seen []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, p[:n]...)
	return n, err
}

// records returns the lengths of the records that came since the last call.
func (r *recorder) records() (lengths []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.seen) >= 5 {
		n := int(binary.BigEndian.Uint16(r.seen[3:]))
		lengths = append(lengths, n)
		r.seen = r.seen[5+n:]
	}
	return lengths
}

func TestRepliesOfATurnShareRecords(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Protocol = text.Protocol{MaxLine: 1 << 20}
	nc, _ := r.tcp(cfg)
	rec := &recorder{Conn: nc}
	client := handshaken(t, rec, clientTLS(tls.VersionTLS13))
	rec.records()
	lines := strings.Repeat("hello, world\n", 200)
	write(t, client, lines)
	expect(t, client, lines)
	if got := slices.DeleteFunc(rec.records(), func(n int) bool { return n < 20 }); len(got) > 3 { // a session ticket may be among them
		t.Errorf("200 replies came in records of %d bytes", got)
	}
}

// lastLine takes what stands behind the last newline for a message, too.
type lastLine struct{ text.Protocol }

func (p lastLine) Split(in []byte, atEOF bool) (int, []byte, bool, error) {
	advance, m, ok, err := p.Protocol.Split(in, atEOF)
	if err == nil && advance == 0 && atEOF && len(in) > 0 {
		return len(in), in, true, nil
	}
	return advance, m, ok, err
}

func TestEndsAreToldWithinTLS(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		for _, tt := range []struct {
			name      string
			end       func(t *testing.T, client *tls.Conn, nc *net.TCPConn)
			want      string // what the client gets
			truncated bool
			messages  string
		}{
			{
				name: "the server closes",
				end: func(t *testing.T, client *tls.Conn, nc *net.TCPConn) {
					write(t, client, "bye\n")
				},
				want: "bye\n", messages: "bye",
			},
			{
				name: "the client has sent all, and reads on",
				end: func(t *testing.T, client *tls.Conn, nc *net.TCPConn) {
					write(t, client, "one\ntwo")
					if err := client.CloseWrite(); err != nil {
						t.Error(err)
					}
				},
				want: "one\ntwo\n", messages: "one two",
			},
			{
				name: "the stream ends",
				end: func(t *testing.T, client *tls.Conn, nc *net.TCPConn) {
					write(t, client, "one\ntwo")
					nc.CloseWrite()
				},
				want: "one\n", truncated: true, messages: "one",
			},
		} {
			t.Run(tt.name, func(t *testing.T) {
				bothWays(t, func(t *testing.T, inline bool) {
					r := newRig(t)
					over := make(chan error, 1)
					told := new(journal)
					cfg := secured(t, r.config(funcs{message: func(c *Conn, m []byte) {
						told.add(string(m))
						echo(t)(c, m)
						if string(m) == "bye" {
							c.Close(nil)
						}
					}, close: func(_ *Conn, why error) { over <- why }}, inline))
					cfg.Protocol = lastLine{}
					nc, _ := r.tcp(cfg)
					client := handshaken(t, nc, clientTLS(version))
					tt.end(t, client, nc)
					if got := expectEnd(t, client); got != tt.want { // io.ErrUnexpectedEOF without close_notify
						t.Errorf("got %q, want %q", got, tt.want)
					}
					client.Close()
					why := receive(t, over)
					if errors.Is(why, ErrTruncated) != tt.truncated {
						t.Errorf("OnClose with %v", why)
					}
					if got := strings.Join(told.all(), " "); got != tt.messages {
						t.Errorf("messages %q, want %q", got, tt.messages)
					}
				})
			})
		}
	})
}

func TestPeerThatBreaksTLSGetsAnAlert(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	cfg := secured(t, r.config(funcs{close: func(_ *Conn, why error) { over <- why }}, true))
	nc, _ := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, nc, "\x17\x03\x03\x00\x20"+strings.Repeat("x", 32))
	if _, err := client.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("the client reads %v", err)
	}
	nc.Close()
	var protocol *ProtocolError
	if why := receive(t, over); !errors.As(why, &protocol) {
		t.Errorf("OnClose with %v", why)
	}
}

func TestWhatIsNoHandshakeDoesNotOpen(t *testing.T) {
	for _, tt := range []struct {
		name string
		peer func(t *testing.T, nc *net.TCPConn)
		want string // of the event; empty: none
	}{
		{"plain HTTP", func(t *testing.T, nc *net.TCPConn) { write(t, nc, "GET / HTTP/1.1\r\n\r\n") }, "first record does not look like a TLS handshake"},
		{"another name", func(t *testing.T, nc *net.TCPConn) {
			cfg := clientTLS(tls.VersionTLS13)
			cfg.ServerName = "example.org"
			if err := tls.Client(nc, cfg).Handshake(); err == nil {
				t.Error("it shook hands")
			}
			nc.CloseWrite()
		}, "bad certificate"},
		{"an old version", func(t *testing.T, nc *net.TCPConn) {
			err := tls.Client(nc, clientTLS(tls.VersionTLS11)).Handshake()
			if err == nil || !strings.Contains(err.Error(), "protocol version") {
				t.Errorf("the client says %v", err)
			}
		}, "unsupported versions"},
		{"nothing", func(t *testing.T, nc *net.TCPConn) { nc.CloseWrite() }, ""},
		{"half a record", func(t *testing.T, nc *net.TCPConn) { write(t, nc, "\x16\x03\x01\x02\x00\x01"); nc.CloseWrite() }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			told := make(chan Event, 8)
			over := make(chan struct{})
			cfg := secured(t, r.config(funcs{
				connect: func(*Conn) { t.Error("OnConnect") },
				close:   func(*Conn, error) { t.Error("OnClose") },
			}, true))
			cfg.Event = func(e Event) { told <- e }
			cfg.Released = func(*Conn) { close(over) }
			nc, _ := r.tcp(cfg)
			tt.peer(t, nc)
			expectEndOrReset(t, nc)
			nc.Close()
			wait(t, over)
			select {
			case e := <-told:
				if e.Kind != NotOpened || tt.want == "" || !strings.Contains(e.Err.Error(), tt.want) {
					t.Errorf("told of %v: %v", e.Kind, e.Err)
				}
			default:
				if tt.want != "" {
					t.Error("nothing was told")
				}
			}
			if f := cfg.Handshakes.Figures(); f.Running+f.Waiting != 0 || f.Done != 0 {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestSlowHandshakesAreClosedAtTheirDeadline(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begin func(t *testing.T, nc *net.TCPConn)
	}{
		{"half a record", func(t *testing.T, nc *net.TCPConn) { write(t, nc, "\x16\x03\x01\x02\x00\x01") }},
		{"no answer to our flight", func(t *testing.T, nc *net.TCPConn) { write(t, nc, hello(t)) }},
		{"a byte now and then", func(t *testing.T, nc *net.TCPConn) {
			go func() {
				for _, b := range []byte(hello(t)) {
					if _, err := nc.Write([]byte{b}); err != nil {
						return
					}
					<-time.After(20 * time.Millisecond)
				}
			}()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			over := make(chan struct{})
			cfg := secured(t, r.config(funcs{connect: func(*Conn) { t.Error("OnConnect") }}, true))
			cfg.Limits.Handshake = 200 * time.Millisecond
			told := make(chan error, 1)
			cfg.Event = func(e Event) { told <- e.Err }
			cfg.Released = func(*Conn) { close(over) }
			nc, _ := r.tcp(cfg)
			tt.begin(t, nc)
			wait(t, over)
			if err := receive(t, told); !errors.Is(err, ErrHandshake) {
				t.Errorf("told of %v", err)
			}
			nc.Close()
			if f := cfg.Handshakes.Figures(); f.Running+f.Waiting != 0 || f.Failed != 1 {
				t.Errorf("%+v", f)
			}
		})
	}
}

// hello returns a ClientHello.
func hello(t testing.TB) string {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		_ = tls.Client(theirs, clientTLS(tls.VersionTLS13)).Handshake()
		theirs.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Error(err)
	}
	return string(b[:n])
}

func TestFloodOfHandshakesIsBounded(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Handshakes = NewHandshakes(4)
	cfg.Limits.Handshake = 500 * time.Millisecond
	begin := hello(t)
	for range 50 { // that do not go on
		nc, _ := r.tcp(cfg)
		write(t, nc, begin)
	}
	r.until("all places to be taken", func() bool {
		f := cfg.Handshakes.Figures()
		if f.Running > 4 {
			t.Errorf("%d run", f.Running)
		}
		return f.Running == 4 && f.Waiting == 46
	})
	r.until("all to be over", func() bool {
		f := cfg.Handshakes.Figures()
		return r.set.Len() == 0 && f.Running+f.Waiting == 0
	})
	nc, _ := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "hello")
	expect(t, client, "hello")
}

func TestThoseWhoGoBeforeTheirTurnAreForgotten(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Handshakes = NewHandshakes(1)
	cfg.Limits.Handshake = time.Minute
	begin := hello(t)
	slow, _ := r.tcp(cfg)
	write(t, slow, begin)
	r.until("the place to be taken", func() bool { return cfg.Handshakes.Figures().Running == 1 })
	most := 0
	for range 3 * minSweep {
		nc, _ := r.tcp(cfg)
		write(t, nc, begin)
		r.until("it to wait", func() bool { return r.set.Len() == 2 })
		if err := nc.SetLinger(0); err != nil { // a reset, which is noticed at once
			t.Fatal(err)
		}
		nc.Close()
		r.until("it to be gone", func() bool { return r.set.Len() == 1 })
		most = max(most, cfg.Handshakes.Figures().Waiting)
	}
	if most < 2 || most > minSweep {
		t.Errorf("%d wait at most, though all have gone: want %d at most, and some", most, minSweep)
	}
	slow.Close()
	r.until("nobody to be kept", func() bool {
		f := cfg.Handshakes.Figures()
		return r.set.Len() == 0 && f.Running+f.Waiting == 0
	})
}

func TestHandshakesThatWaitHaveTheirTurn(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Handshakes = NewHandshakes(2)
	var clients sync.WaitGroup
	for range 40 {
		nc, _ := r.tcp(cfg)
		clients.Go(func() {
			c := tls.Client(nc, clientTLS(tls.VersionTLS13))
			if err := c.Handshake(); err != nil {
				t.Error(err)
				return
			}
			write(t, c, "hello")
			expect(t, c, "hello")
			c.Close()
		})
	}
	clients.Wait()
	if f := cfg.Handshakes.Figures(); f.Done != 40 || f.Failed != 0 || f.Running+f.Waiting != 0 {
		t.Errorf("%+v", f)
	}
}

func TestWhatIsAgreedOnIsKnownInOnConnect(t *testing.T) {
	w := newTwo(t)
	seen := make(chan *tls.ConnectionState, 2)
	a, b := w.configs(funcs{connect: func(c *Conn) { seen <- c.TLS() }, adopt: func(c *Conn, _ Reason) { seen <- c.TLS() }}, false, func(c *Config) {
		secured(t, c)
		c.TLS.NextProtos = []string{"h9", "chat"}
		c.TLS.ClientAuth, c.TLS.ClientCAs = tls.RequireAndVerifyClientCert, pool()
	})
	nc, c := w.a.tcp(a)
	cfg := clientTLS(tls.VersionTLS13)
	cfg.NextProtos, cfg.Certificates = []string{"chat"}, []tls.Certificate{certificate()}
	handshaken(t, nc, cfg)
	for _, where := range []string{"OnConnect", "OnAdopt"} {
		cs := receive(t, seen)
		if cs == nil || cs.ServerName != "localhost" || cs.NegotiatedProtocol != "chat" || len(cs.PeerCertificates) != 1 ||
			cs.PeerCertificates[0].Subject.CommonName != "localhost" {
			t.Errorf("%s: %+v", where, cs)
		}
		if where == "OnConnect" {
			w.move(c, b)
		}
	}
}

// Data that comes in one piece with the end of the handshake is not lost.
func TestDataRightBehindTheHandshakeIsDelivered(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		bothWays(t, func(t *testing.T, inline bool) {
			r := newRig(t)
			cfg := secured(t, r.config(funcs{message: echo(t)}, inline))
			cfg.Protocol = text.Protocol{}
			nc, _ := r.tcp(cfg)
			late := &together{Conn: nc}
			client := tls.Client(late, clientTLS(version))
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			write(t, client, "hello\nand a")
			late.flush(t)
			write(t, client, " half\n")
			late.flush(t)
			expect(t, client, "hello\nand a half\n")
		})
	})
}

// together keeps what is written behind the first piece until flush, or until
// somebody reads.
type together struct {
	net.Conn
	mu   sync.Mutex
	kept []byte
	n    int
}

func (c *together) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	c.kept = append(c.kept, p...)
	return len(p), nil
}

func (c *together) Read(p []byte) (int, error) {
	c.flush(nil)
	return c.Conn.Read(p)
}

func (c *together) flush(t testing.TB) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.Conn.Write(c.kept); err != nil && t != nil {
		t.Error(err)
	}
	c.kept = nil
}

func TestTLSConnectionTravels(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inline bool // only: a pool would have all that is held
		change func(*Config)
		before func(w *two, client *tls.Conn, wire *splitter, c *Conn)
		after  func(w *two, client *tls.Conn, wire *splitter, c *Conn)
	}{
		{
			name:   "idle",
			before: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {},
			after:  func(w *two, client *tls.Conn, wire *splitter, c *Conn) {},
		},
		{
			name: "in the middle of a record, and of a message",
			before: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				n := c.BytesIn()
				write(w.t, client, "half a ")
				wire.hold(9)
				write(w.t, client, "message\nand another\n")
				w.a.until("it is read", func() bool { return c.BytesIn() == n+5+7+17+9 })
			},
			after: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				wire.release(w.t)
				expect(w.t, client, "half a message\nand another\n")
			},
		},
		{
			name:   "megabytes unsent, some of them sealed",
			change: func(c *Config) { c.Limits = Limits{SendHigh: 1 << 20, SendHard: 64 << 20} },
			before: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				for i := range 100 {
					if err := c.Send(line(i, 100<<10)); err != nil {
						w.t.Fatal(err)
					}
				}
				w.a.until("the peer is behind", func() bool {
					return c.blocked && (c.layered().sealed.bytes > 0 || c.layered().kernel) && c.Queued() > 1<<20
				})
			},
			after: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				for i := range 100 {
					expect(w.t, client, string(line(i, 100<<10))+"\n")
				}
				w.b.until("all to be sent", func() bool { return c.Queued() == 0 })
			},
		},
		{
			name: "messages held by Pause", inline: true,
			before: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				write(w.t, client, "pause\none\ntwo\n")
				w.a.until("it is held", func() bool { return c.held && c.has(flagPaused) })
			},
			after: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				c.Resume()
				expect(w.t, client, "one\ntwo\n")
			},
		},
		{
			name: "half-closed within TLS, and paused", inline: true,
			before: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				write(w.t, client, "pause\none\n")
				w.a.until("it is held", func() bool { return c.has(flagPaused) })
				if err := client.CloseWrite(); err != nil {
					w.t.Error(err)
				}
			},
			after: func(w *two, client *tls.Conn, wire *splitter, c *Conn) {
				c.Resume()
				if got := expectEnd(w.t, client); got != "one\n" {
					w.t.Errorf("got %q", got)
				}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				if tt.inline && !inline {
					return
				}
				w := newTwo(t)
				h := funcs{message: func(c *Conn, m []byte) {
					if string(m) == "pause" {
						c.Pause()
						return
					}
					echo(t)(c, m)
				}}
				a, b := w.configs(h, inline, func(c *Config) {
					secured(t, c)
					if tt.change != nil {
						tt.change(c)
					}
				})
				nc, c := w.a.tcp(a)
				wire := &splitter{Conn: nc}
				client := handshaken(t, wire, clientTLS(tls.VersionTLS13))
				write(t, client, "hello\n")
				expect(t, client, "hello\n")
				tt.before(w, client, wire, c)
				f := w.freeze(c)
				late := "late"
				if err := c.Send([]byte(late)); err != nil {
					late = ""
				}
				ad := w.adopt(f, b)
				if late != "" {
					if err := c.Send([]byte("later")); err != nil {
						t.Error(err)
					}
				}
				there := w.finish(f, ad)
				// And back, where nothing comes of it the first time.
				back := &two{t: t, a: w.b, b: w.a}
				f = back.freeze(there)
				ad = back.adopt(f, a)
				w.a.do(ad.Drop)
				w.b.do(f.Thaw)
				if tt.name == "half-closed within TLS, and paused" {
					there.Resume()
					if got := expectEnd(t, client); got != "late\nlater\none\n" {
						t.Errorf("got %q", got)
					}
					return
				}
				if strings.HasPrefix(tt.name, "megabytes") {
					tt.after(w, client, wire, there)
					expect(t, client, "late\nlater\n")
				} else {
					expect(t, client, "late\nlater\n")
					tt.after(w, client, wire, there)
				}
				write(t, client, "done\n")
				expect(t, client, "done\n")
				there.Close(nil)
				if got := expectEnd(t, client); got != "" {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

// splitter can hold back a part of what is written.
type splitter struct {
	net.Conn
	mu   sync.Mutex
	left int
	on   bool
	kept []byte
}

// hold lets n more bytes pass.
func (s *splitter) hold(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.on = n, true
}

func (s *splitter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return s.Conn.Write(p)
	}
	n := min(s.left, len(p))
	s.left -= n
	s.kept = append(s.kept, p[n:]...)
	if _, err := s.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *splitter) release(t testing.TB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Conn.Write(s.kept); err != nil {
		t.Error(err)
	}
	s.kept, s.on = nil, false
}

// A connection goes to and fro while its client talks.
func TestTLSConnectionGoesRoundAndRoundWhileItsClientTalks(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, false, func(c *Config) { secured(t, c) })
	nc, c := w.a.tcp(a)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	var stop atomic.Bool
	talked := make(chan int, 1)
	go func() {
		in := bufio.NewReader(client)
		n := 0
		for ; !stop.Load(); n++ {
			m := string(line(n, 1+n*977%40000)) + "\n"
			client.SetDeadline(time.Now().Add(patience))
			go io.WriteString(client, m)
			if got, err := in.ReadString('\n'); err != nil || got != m {
				t.Errorf("line %d: %d bytes, %v", n, len(got), err)
				break
			}
		}
		talked <- n
	}()
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		c = w.move(c, b)
		w.a, w.b, a, b = w.b, w.a, b, a
	}
	stop.Store(true)
	if n := receive(t, talked); n == 0 {
		t.Error("nothing was said")
	}
}

func TestTLS12StaysAndIsDrainedWithAGoodbye(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	cfg := secured(t, r.config(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, true))
	cfg.Move = func(*Conn, int) { t.Error("Move") }
	nc, c := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS12))
	write(t, client, "hello")
	expect(t, client, "hello")
	if err := c.MoveTo(1); !errors.Is(err, ErrPinned) {
		t.Errorf("MoveTo: %v", err)
	}
	if _, err := freeze(r, c); !errors.Is(err, ErrPinned) {
		t.Errorf("Freeze: %v", err)
	}
	r.do(func() { r.set.Drain(DrainPrompt, patience, nil) })
	if got := expectEnd(t, client); got != "" { // io.ErrUnexpectedEOF without close_notify
		t.Errorf("got %q", got)
	}
	client.Close()
	if why := receive(t, over); !errors.Is(why, ErrDrained) {
		t.Errorf("OnClose with %v", why)
	}
}

func TestOpeningConnectionsMoveBeforeOrAfterTheirHandshake(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before int // bytes of the ClientHello
	}{
		{"nothing has come", 0},
		{"a part of the first record", 100},
		{"the handshake has begun", 1 << 20}, // who says OnConnect depends on what comes first
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newTwo(t)
			where := make(chan *rig, 2)
			a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { secured(t, c) })
			a.Handler = funcs{message: echo(t), connect: func(*Conn) { where <- w.a }}
			b.Handler = funcs{message: echo(t), connect: func(*Conn) { where <- w.b }}
			nc, c := w.a.tcp(a)
			wire := &splitter{Conn: nc}
			wire.hold(tt.before)
			client := tls.Client(wire, clientTLS(tls.VersionTLS13))
			client.SetDeadline(time.Now().Add(patience))
			shaken := make(chan error, 1)
			go func() { shaken <- client.Handshake() }()
			if tt.before > 1000 {
				w.a.until("it has begun", func() bool { return c.handshaking() || !c.has(flagOpening) })
			} else {
				w.a.until("it is read", func() bool { return c.BytesIn() == uint64(tt.before) })
			}
			there := w.move(c, b)
			wire.release(t)
			if err := receive(t, shaken); err != nil {
				t.Fatal(err)
			}
			write(t, client, "hello\n")
			expect(t, client, "hello\n")
			if got := receive(t, where); tt.before < 1000 && got != w.b {
				t.Error("OnConnect came in the other process")
			}
			if there.TLS() == nil {
				t.Error("no TLS is told")
			}
			select {
			case <-where:
				t.Error("OnConnect came twice")
			default:
			}
		})
	}
}

func TestArrivedConnectionShakesHandsWhereItIsServed(t *testing.T) {
	w := newTwo(t)
	where := make(chan string, 2)
	a, b := w.configs(funcs{}, true, func(c *Config) { secured(t, c) })
	a.Handler = funcs{connect: func(*Conn) { where <- "a" }}
	b.Handler = funcs{connect: func(*Conn) { where <- "b" }, message: echo(t)}
	nc, fd, peer := tcpPair(t, "tcp4", "127.0.0.1:0")
	told := make(chan *Frozen, 1)
	w.a.do(func() {
		if err := w.a.set.Arrived(fd, peer, a, func(f *Frozen, err error) { told <- f }); err != nil {
			t.Error(err)
		}
	})
	f := receive(t, told)
	w.finish(f, w.adopt(f, b))
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "hello\n")
	expect(t, client, "hello\n")
	if got := receive(t, where); got != "b" {
		t.Errorf("OnConnect in %s", got)
	}
}

func TestStateOfTLSIsInNoText(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { secured(t, c) })
	nc, c := w.a.tcp(a)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "hello\n")
	expect(t, client, "hello\n")
	f := w.freeze(c)
	body := w.capture(f)
	w.a.do(func() {
		keys, err := c.layered().tls.AppendState(nil)
		if err != nil {
			t.Error(err)
			return
		}
		secret := keys[len(keys)-32:]
		text := fmt.Sprintf("%v %+v %#v %v %+v", c.layered().tls, c.layered(), c.layered(), c.Info(), f)
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), fmt.Sprint(secret), fmt.Sprintf("%#v", secret)} {
			if strings.Contains(text, strings.Trim(form, "[]{}")) {
				t.Error("a secret is printed")
			}
		}
		if !bytes.Contains(body, secret) {
			t.Error("the state has another secret than is looked for")
		}
	})
	for n := range len(body) {
		flipped := append([]byte(nil), body...)
		flipped[n] ^= 0x40
		ad, err := w.tryAdopt(f, b, resealed(flipped))
		if err == nil {
			w.b.do(ad.Drop)
			continue
		}
		if strings.ContainsFunc(err.Error(), func(r rune) bool { return r == '\uFFFD' }) {
			t.Errorf("error with bytes of the state: %q", err)
		}
	}
	w.a.do(f.Thaw)
	write(t, client, "still\n")
	expect(t, client, "still\n")
}

func TestPlaintextThatARawMessageCannotHoldIsCut(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Limits.MaxMessage = 1000
	nc, _ := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	m := strings.Repeat("0123456789", 3000)
	write(t, client, m)
	expect(t, client, m)
}

func TestUnfinishedRecordIsAnUnfinishedMessage(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	cfg := secured(t, r.config(funcs{message: echo(t), close: func(_ *Conn, why error) { over <- why }}, true))
	cfg.Limits.Message = 200 * time.Millisecond
	nc, _ := r.tcp(cfg)
	wire := &splitter{Conn: nc}
	client := handshaken(t, wire, clientTLS(tls.VersionTLS13))
	write(t, client, "hello")
	expect(t, client, "hello")
	wire.hold(10)
	write(t, client, "half of it")
	if why := receive(t, over); !errors.Is(why, ErrMessageDeadline) {
		t.Errorf("OnClose with %v", why)
	}
}

func TestPeerThatIsSilentAfterTheHandshakeIsClosed(t *testing.T) {
	r := newRig(t)
	over := make(chan error, 1)
	cfg := secured(t, r.config(funcs{close: func(_ *Conn, why error) { over <- why }}, true))
	cfg.Limits.FirstByte = 200 * time.Millisecond
	nc, _ := r.tcp(cfg)
	handshaken(t, nc, clientTLS(tls.VersionTLS13))
	if why := receive(t, over); !errors.Is(why, ErrFirstByte) {
		t.Errorf("OnClose with %v", why)
	}
}

func TestSessionIsResumedInAnotherProcess(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		w := newTwo(t)
		a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { secured(t, c) })
		cfg := clientTLS(version)
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for i, r := range []*rig{w.a, w.b} {
			nc, _ := r.tcp([]*Config{a, b}[i])
			client := handshaken(t, nc, cfg)
			write(t, client, "hello\n")
			expect(t, client, "hello\n") // the ticket is there, too
			if got := client.ConnectionState().DidResume; got != (i == 1) {
				t.Errorf("in process %d: resumed %v", i, got)
			}
			client.Close()
		}
		if f := b.Handshakes.Figures(); f.Resumed != 1 {
			t.Errorf("%+v", f)
		}
	})
}
