package conn

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"github.com/mainstay-go/mainstay/test/certs"
)

// tlsServer is server with TLS. Its address has the name of the certificate.
func tlsServer(t *testing.T, cfg *tls.Config, f func(*tls.Conn)) string {
	t.Helper()
	address := server(t, func(c net.Conn) {
		s := tls.Server(c, cfg)
		if s.Handshake() == nil {
			f(s)
		}
	})
	return named(address)
}

// named is the address of a server with TLS.
func named(address string) string {
	return strings.Replace(address, "tcp://127.0.0.1", "tls://localhost", 1)
}

func tlsEcho(c *tls.Conn) {
	echoBack(c)
	_ = c.CloseWrite()
}

// tlsDialer is dialer with TLS, whose places are all given back at the end.
func (r *rig) tlsDialer(h Handler, inline bool, change func(*DialConfig)) (*Dialer, chan down) {
	r.t.Helper()
	places := NewHandshakes(0)
	r.t.Cleanup(func() {
		for end := time.Now().Add(patience); places.Figures().Running > 0; {
			if time.Now().After(end) {
				r.t.Errorf("%d handshakes are under way", places.Figures().Running)
				return
			}
			<-time.After(time.Millisecond)
		}
		places.Close()
	})
	return r.dialer(h, inline, func(c *DialConfig) {
		c.Handshakes, c.Timeout, c.Protocol, c.ProtocolName = places, patience, text.Protocol{}, "text"
		c.TLS = &tls.Config{RootCAs: pool()}
		if change != nil {
			change(c)
		}
	})
}

func TestOutgoingTLSEchoesEveryByte(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		bothWays(t, func(t *testing.T, inline bool) {
			r := dialRig(t)
			seen := make(chan tls.ConnectionState, 1)
			server := serverTLS()
			server.ClientAuth, server.ClientCAs, server.NextProtos = tls.RequireAndVerifyClientCert, pool(), []string{"text"}
			address := tlsServer(t, server, func(c *tls.Conn) { seen <- c.ConnectionState(); tlsEcho(c) })
			got := make(chan []byte, 64)
			agreed := make(chan *tls.ConnectionState, 1)
			d, downs := r.tlsDialer(funcs{
				connect: func(c *Conn) { agreed <- c.TLS() },
				message: func(c *Conn, m []byte) { got <- bytes.Clone(m) },
			}, inline, func(c *DialConfig) {
				c.TLS.MaxVersion, c.TLS.Certificates, c.TLS.NextProtos = version, []tls.Certificate{certificate()}, []string{"other", "text"}
			})
			cl := r.dial(d, address)
			var want [][]byte
			for i := range 20 {
				m := make([]byte, 1+i*3000)
				rand.Read(m)
				m = bytes.ReplaceAll(m, []byte("\n"), []byte("."))
				m = bytes.TrimSuffix(m, []byte("\r"))
				m[0] = 'x'
				want = append(want, m)
				if err := cl.Send(m); err != nil {
					t.Fatal(err)
				}
			}
			for i, m := range want {
				if g := receive(t, got); !bytes.Equal(g, m) {
					t.Fatalf("message %d: %d bytes, want %d others", i, len(g), len(m))
				}
			}
			if s := receive(t, seen); s.Version != version || s.ServerName != "localhost" || len(s.PeerCertificates) != 1 || s.NegotiatedProtocol != "text" {
				t.Errorf("the server has seen %+v", s)
			}
			if s := receive(t, agreed); s == nil || s.Version != version || s.NegotiatedProtocol != "text" || len(s.PeerCertificates) != 1 || s.ServerName != "localhost" {
				t.Errorf("TLS is %+v", s)
			}
			if err := cl.Close(nil); err != nil {
				t.Error(err)
			}
			if dn := receive(t, downs); dn.why != nil || dn.next >= 0 {
				t.Errorf("OnDown: %+v", dn)
			}
			if f := d.cfg.Handshakes.Figures(); f.Done != 1 || f.Failed != 0 {
				t.Errorf("figures %+v", f)
			}
		})
	})
}

func TestOutgoingTLSThatFailsSaysWhy(t *testing.T) {
	strangers, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	// The peer's word comes before it closes, and neither side's bytes are lost.
	withAlert := func(change func(*tls.Config)) func(t *testing.T) string {
		return func(t *testing.T) string {
			c := serverTLS()
			change(c)
			return tlsServer(t, c, tlsEcho)
		}
	}
	ordinary := withAlert(func(*tls.Config) {})
	plain := func(f func(net.Conn)) func(t *testing.T) string {
		return func(t *testing.T) string { return named(server(t, f)) }
	}
	for _, tt := range []struct {
		name    string
		address func(t *testing.T) string
		change  func(*testing.T, *DialConfig)
		step    ConnectStep
		is      error
		text    string
	}{
		{
			name: "a certificate of nobody we know", address: ordinary, step: Securing, text: "certificate signed by unknown authority",
			change: func(t *testing.T, c *DialConfig) { c.TLS.RootCAs = strangers.Pool() },
		},
		{
			name: "a certificate for another name", address: ordinary, step: Securing, text: "not example.org",
			change: func(t *testing.T, c *DialConfig) { c.TLS.ServerName = "example.org" },
		},
		{
			name: "a certificate without the address", step: Securing, text: "127.0.0.1",
			address: func(t *testing.T) string { return strings.Replace(ordinary(t), "localhost", "127.0.0.1", 1) },
		},
		{
			name: "no settings, so the system's authorities", address: ordinary, step: Securing, text: "certificate signed by unknown authority",
			change: func(t *testing.T, c *DialConfig) { c.TLS = nil },
		},
		{
			name: "no version in common", step: Securing, text: "protocol version not supported",
			address: withAlert(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
			change:  func(t *testing.T, c *DialConfig) { c.TLS.MinVersion = tls.VersionTLS13 },
		},
		{
			name: "no protocol in common", step: Securing, text: "no application protocol",
			address: withAlert(func(c *tls.Config) { c.NextProtos = []string{"one"} }),
			change:  func(t *testing.T, c *DialConfig) { c.TLS.NextProtos = []string{"another"} },
		},
		{
			name: "a server that does not speak TLS", step: Securing, text: "first record does not look like a TLS handshake",
			address: plain(func(c net.Conn) { io.WriteString(c, "220 welcome to this server of mail\r\n"); io.Copy(io.Discard, c) }),
		},
		{
			name: "a server that is silent", step: Securing, is: os.ErrDeadlineExceeded, text: "not within",
			address: plain(func(c net.Conn) { io.Copy(io.Discard, c) }),
			change:  func(t *testing.T, c *DialConfig) { c.Timeout = 100 * time.Millisecond },
		},
		{
			name: "a server that is endlessly slow", step: Securing, is: os.ErrDeadlineExceeded,
			address: plain(drip("\x16\x03\x03\x20\x00"+strings.Repeat("\x02", 8000), time.Millisecond)),
			change:  func(t *testing.T, c *DialConfig) { c.Timeout = 100 * time.Millisecond },
		},
		{
			name: "a server that closes", step: Securing, is: ErrPeerClosed,
			address: plain(func(c net.Conn) { c.Read(make([]byte, 64<<10)) }),
		},
		{
			name: "a server that resets", step: Securing, is: syscall.ECONNRESET,
			address: plain(func(c net.Conn) { c.Read(make([]byte, 1)); reset(c) }),
		},
		{
			name: "a proxy that closes when it has accepted", step: Securing, is: ErrPeerClosed,
			address: func(*testing.T) string { return "tls://localhost:443" },
			change: func(t *testing.T, c *DialConfig) {
				c.Proxy = "http://" + host(server(t, func(c net.Conn) {
					http.ReadRequest(bufio.NewReader(c))
					io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
					c.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, c)
				}))
			},
		},
		{
			name: "a proxy that refuses", step: Proxying, text: "403",
			address: func(*testing.T) string { return "tls://localhost:443" },
			change: func(t *testing.T, c *DialConfig) {
				c.Proxy = "http://" + host(server(t, func(c net.Conn) {
					http.ReadRequest(bufio.NewReader(c))
					io.WriteString(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
				}))
			},
		},
		{
			name: "nobody there", step: Reaching, is: syscall.ECONNREFUSED,
			address: func(t *testing.T) string { return "tls://" + host(closedPort(t)) },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRig(t)
			d, downs := r.tlsDialer(funcs{connect: func(c *Conn) { t.Error("OnConnect") }}, true, func(c *DialConfig) {
				if tt.change != nil {
					tt.change(t, c)
				}
			})
			address := tt.address(t)
			r.dial(d, address)
			dn := receive(t, downs)
			e, ok := errors.AsType[*ConnectError](dn.why)
			if !ok || e.Step != tt.step || e.Target != address || dn.next >= 0 {
				t.Fatalf("OnDown: %v, next %v", dn.why, dn.next)
			}
			if tt.is != nil && !errors.Is(dn.why, tt.is) || !strings.Contains(dn.why.Error(), tt.text) {
				t.Errorf("OnDown: %v, want %v with %q", dn.why, tt.is, tt.text)
			}
		})
	}
}

func TestServerThatWantsACertificateSaysSoWithinTheConnection(t *testing.T) {
	r := dialRig(t)
	server := serverTLS()
	server.ClientAuth = tls.RequireAnyClientCert
	closed := make(chan error, 1)
	d, downs := r.tlsDialer(funcs{close: func(c *Conn, why error) { closed <- why }}, true, nil)
	r.dial(d, tlsServer(t, server, tlsEcho))
	// A client of TLS 1.3 is done before the server has seen that there is none.
	why := receive(t, closed)
	if alert, ok := errors.AsType[*tlsrec.AlertError](why); !ok || !alert.Remote || !errors.Is(why, ErrReset) {
		t.Errorf("OnClose: %v", why)
	}
	if dn := receive(t, downs); dn.next >= 0 {
		t.Errorf("OnDown: %+v", dn)
	}
}

func TestHandshakeOfAnAttemptIsGivenUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		giver func(r *rig, cl *Client)
		why   error
	}{
		{"by Close", func(r *rig, cl *Client) { cl.Close(io.ErrShortWrite) }, io.ErrShortWrite},
		{"by CloseNow", func(r *rig, cl *Client) { cl.Send([]byte("x")); cl.CloseNow(nil) }, nil},
		{"by a drain", func(r *rig, cl *Client) { r.do(func() { r.set.DrainOutgoing(DrainPrompt, 0, nil) }) }, ErrDrained},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRig(t)
			begun := make(chan bool, 1)
			d, downs := r.tlsDialer(NopHandler{}, true, nil)
			cl := r.dial(d, named(server(t, func(c net.Conn) {
				c.Read(make([]byte, 1))
				begun <- true
				io.Copy(io.Discard, c)
			})))
			receive(t, begun)
			tt.giver(r, cl)
			if dn := receive(t, downs); dn.why != tt.why || dn.next >= 0 {
				t.Errorf("OnDown: %+v", dn)
			}
		})
	}
}

func TestHandshakesOfAttemptsWaitForTheirTurn(t *testing.T) {
	r := dialRig(t)
	places := NewHandshakes(1)
	t.Cleanup(places.Close)
	got := make(chan string, 4)
	d, downs := r.tlsDialer(funcs{message: func(c *Conn, m []byte) { got <- string(m) }}, true, func(c *DialConfig) { c.Handshakes = places })
	begun := make(chan bool, 1)
	silent := r.dial(d, named(server(t, func(c net.Conn) { begun <- true; io.Copy(io.Discard, c) })))
	receive(t, begun)
	r.until("it shakes hands", func() bool { return places.Figures().Running == 1 })
	address := tlsServer(t, serverTLS(), tlsEcho)
	forgotten := r.dial(d, address)
	second := r.dial(d, address)
	second.Send([]byte("my turn"))
	r.until("they wait", func() bool { return places.Figures().Waiting == 2 })
	forgotten.Close(nil)
	receive(t, downs)
	silent.Close(nil)
	receive(t, downs)
	if m := receive(t, got); m != "my turn" {
		t.Errorf("got %q", m)
	}
	r.until("the places are free", func() bool { return places.Figures().Running == 0 })
}

func TestNextAddressIsTriedIfThereIsNoTLSAtOne(t *testing.T) {
	r := dialRig(t)
	address := tlsServer(t, serverTLS(), tlsEcho)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(address, "tls://"))
	other, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Skipf("a second address on the same port: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if c, err := other.Accept(); err == nil {
			c.Read(make([]byte, 1))
			c.Close()
		}
	})
	defer wg.Wait()
	defer other.Close()
	got := make(chan string, 1)
	d, _ := r.tlsDialer(funcs{message: func(c *Conn, m []byte) { got <- string(m) }}, true, func(c *DialConfig) {
		c.Resolver = dnsServer(t, func(string) ([]string, bool) { return []string{"127.0.0.2", "127.0.0.1"}, true })
		c.TLS.ServerName = "localhost"
	})
	r.dial(d, "tls://two.test:"+port).Send([]byte("here"))
	if m := receive(t, got); m != "here" {
		t.Errorf("got %q", m)
	}
}

func TestOutgoingTLSMovesAndReconnectsThere(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		address := tlsServer(t, serverTLS(), func(c *tls.Conn) {
			in := bufio.NewReader(c)
			for {
				line, err := in.ReadString('\n')
				io.WriteString(c, line)
				if err != nil || line == "enough\n" {
					c.CloseWrite()
					return
				}
			}
		})
		messages := make(chan string, 16)
		adopted := make(chan *Conn, 1)
		places := NewHandshakes(0)
		t.Cleanup(places.Close)
		w, a, b, _, downsB := dialTwo(t, funcs{
			connect: func(c *Conn) { c.Send([]byte("hello")) },
			adopt:   func(c *Conn, why Reason) { adopted <- c },
			message: func(c *Conn, m []byte) { messages <- string(m) },
		}, inline, func(c *DialConfig) {
			c.Reconnect, c.TLS, c.Handshakes = true, &tls.Config{RootCAs: pool()}, places
		})
		cl := w.a.dial(a, address)
		if got := receive(t, messages); got != "hello" {
			t.Errorf("got %q", got)
		}
		w.move(cl.Conn(), b.Config())
		c := receive(t, adopted)
		there := c.Client()
		w.b.until("it is up there", there.Up)
		for _, line := range []string{"one", "two", "enough"} {
			if err := there.Send([]byte(line)); err != nil {
				t.Error(err)
			}
			if got := receive(t, messages); got != line {
				t.Errorf("got %q, want %q", got, line)
			}
		}
		if s := c.TLS(); s == nil || s.Version != tls.VersionTLS13 || s.ServerName != "localhost" {
			t.Errorf("TLS there: %+v", s)
		}
		if dn := receive(t, downsB); dn.cl != there || dn.why != ErrPeerClosed || dn.next < 0 {
			t.Errorf("OnDown there: %+v", dn)
		}
		if got := receive(t, messages); got != "hello" { // it has reconnected
			t.Errorf("got %q", got)
		}
		there.Close(nil)
		receive(t, downsB)
	})
}

func TestOutgoingTLS12Stays(t *testing.T) {
	r := dialRig(t)
	up := make(chan *Conn, 1)
	d, _ := r.tlsDialer(funcs{connect: func(c *Conn) { up <- c }}, true, func(c *DialConfig) { c.TLS.MaxVersion = tls.VersionTLS12 })
	r.dial(d, tlsServer(t, serverTLS(), tlsEcho))
	told := make(chan error, 1)
	c := receive(t, up)
	r.do(func() { r.set.Freeze(c, func(f *Frozen, err error) { told <- err }) })
	if err := receive(t, told); !errors.Is(err, ErrPinned) {
		t.Errorf("Freeze: %v", err)
	}
}

func TestSessionsOfOutgoingConnectionsAreResumed(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		r := dialRig(t)
		resumed := make(chan bool, 16)
		address := tlsServer(t, serverTLS(), func(c *tls.Conn) {
			resumed <- c.ConnectionState().DidResume
			c.Write([]byte("hello\n"))
			c.CloseWrite()
			io.Copy(io.Discard, c)
		})
		got := make(chan string, 16)
		d, _ := r.tlsDialer(funcs{message: func(c *Conn, m []byte) { got <- fmt.Sprint(string(m), c.TLS().DidResume) }}, true, func(c *DialConfig) {
			c.Reconnect = true
			c.TLS.MaxVersion, c.TLS.ClientSessionCache = version, tls.NewLRUClientSessionCache(4)
		})
		cl := r.dial(d, address)
		for i, want := range []bool{false, true, true} {
			if there, here := receive(t, resumed), receive(t, got); there != want || here != fmt.Sprint("hello", want) {
				t.Errorf("connection %d: resumed %v, here %q, want %v", i+1, there, here, want)
			}
		}
		cl.CloseNow(nil)
		if f := d.cfg.Handshakes.Figures(); f.Resumed < 2 {
			t.Errorf("figures %+v", f)
		}
	})
}

// tunnel is a proxy of HTTP's CONNECT and of SOCKS5 that knows one place.
func tunnel(t *testing.T, to string) (http, socks string) {
	t.Helper()
	join := func(c net.Conn, in io.Reader) {
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(struct{ io.Writer }{far}, in)
			far.(*net.TCPConn).CloseWrite()
		})
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{far})
		c.(*net.TCPConn).CloseWrite()
		wg.Wait()
		far.Close()
	}
	http = "http://" + host(server(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for line := "x"; line != "" && line != "\r\n"; {
			line, _ = in.ReadString('\n')
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		join(c, in)
	}))
	socks = "socks5://" + host(server(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, 3))
		io.WriteString(c, "\x05\x00")
		head := make([]byte, 5)
		io.ReadFull(c, head)
		io.ReadFull(c, make([]byte, int(head[4])+2))
		io.WriteString(c, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		join(c, struct{ io.Reader }{c})
	}))
	return http, socks
}

func TestTLSIsSpokenThroughProxies(t *testing.T) {
	far := tlsServer(t, serverTLS(), tlsEcho)
	overHTTP, overSOCKS := tunnel(t, strings.TrimPrefix(far, "tls://"))
	for name, proxy := range map[string]string{"HTTP": overHTTP, "SOCKS5": overSOCKS} {
		t.Run(name, func(t *testing.T) {
			r := dialRig(t)
			got := make(chan string, 1)
			d, downs := r.tlsDialer(funcs{message: func(c *Conn, m []byte) { got <- string(m) }}, true, func(c *DialConfig) { c.Proxy = proxy })
			cl := r.dial(d, far)
			cl.Send([]byte("through"))
			if m := receive(t, got); m != "through" {
				t.Errorf("got %q", m)
			}
			cl.Close(nil)
			if dn := receive(t, downs); dn.why != nil {
				t.Errorf("OnDown: %v", dn.why)
			}
		})
	}
}

func TestAddressesWithTLSAreChecked(t *testing.T) {
	r := newRig(t)
	plain := DialConfig{Config: *r.config(NopHandler{}, true)}
	withTLS := plain
	withTLS.TLS, withTLS.Handshakes = &tls.Config{}, NewHandshakes(0)
	for _, tt := range []struct {
		name, address string
		cfg           DialConfig
		want          string
	}{
		{"settings, and no TLS", "tcp://127.0.0.1:1", withTLS, "would not be encrypted"},
		{"settings, and a unix socket", "unix:///x", withTLS, "would not be encrypted"},
		{"no port", "tls://localhost", withTLS, "want tcp://"},
		{"no Handshakes", "tls://localhost:1", plain, "without Handshakes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := r.set.NewDialer(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Dial(tt.address, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

// TestOpenSSLServerIsSpokenToOverEverySuite has openssl s_server on the other
// side, with its own KeyUpdates.
func TestOpenSSLServerIsSpokenToOverEverySuite(t *testing.T) {
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed; scripts/install-test-tools does it")
	}
	pair, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, pem := range map[string][]byte{cert: pair.Cert, key: pair.Key} {
		if err := os.WriteFile(name, pem, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS 1.2"} {
		t.Run(suite, func(t *testing.T) {
			args := []string{"s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", cert, "-key", key, "-tls1_3", "-ciphersuites", suite}
			if suite == "TLS 1.2" {
				args = append(args[:len(args)-3], "-tls1_2")
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			limit := time.AfterFunc(patience, func() { cmd.Process.Kill() })
			t.Cleanup(func() { limit.Stop(); cmd.Process.Kill(); cmd.Wait() })
			said := bufio.NewReader(stdout)
			until := func(what string) string {
				t.Helper()
				for {
					line, err := said.ReadString('\n')
					if strings.Contains(line, what) {
						return line
					}
					if err != nil {
						t.Fatalf("s_server has not said %q: %v", what, err)
					}
				}
			}
			port := strings.TrimSpace(strings.TrimPrefix(until("ACCEPT"), "ACCEPT 127.0.0.1:"))
			r := dialRig(t)
			up, got := make(chan *Conn, 1), make(chan string, 16)
			d, downs := r.tlsDialer(funcs{
				connect: func(c *Conn) { up <- c },
				message: func(c *Conn, m []byte) { got <- string(m) },
			}, true, func(c *DialConfig) { c.TLS.RootCAs = pair.Pool() })
			cl := r.dial(d, "tls://localhost:"+port)
			c := receive(t, up)
			if s := c.TLS(); suite != "TLS 1.2" && tls.CipherSuiteName(s.CipherSuite) != suite {
				t.Errorf("suite is %s", tls.CipherSuiteName(s.CipherSuite))
			}
			talk := func(word string) {
				t.Helper()
				cl.Send([]byte("to " + word))
				until("to " + word)
				io.WriteString(stdin, "from "+word+"\n")
				if m := receive(t, got); m != "from "+word {
					t.Errorf("got %q", m)
				}
			}
			talk("begin")
			if suite != "TLS 1.2" {
				io.WriteString(stdin, "k\n") // a KeyUpdate
				talk("update")
				io.WriteString(stdin, "K\n") // and one that asks for ours
				talk("update both")
			}
			io.WriteString(stdin, "q\n") // ends without close_notify
			if dn := receive(t, downs); !errors.Is(dn.why, ErrPeerClosed) || !errors.Is(dn.why, ErrTruncated) {
				t.Errorf("OnDown: %v", dn.why)
			}
		})
	}
}
