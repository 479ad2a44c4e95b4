package conn

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// proxied makes cfg one behind a proxy on this machine.
func proxied(cfg *Config) *Config {
	cfg.Proxy = &proxyproto.Trusted{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	return cfg
}

func header(t testing.TB, h proxyproto.Header) string {
	t.Helper()
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestProxyHeaderTellsWhoIsThere(t *testing.T) {
	source, destination := netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("198.51.100.1:443")
	for _, tt := range []struct {
		name        string
		header      string
		peer, local string // empty: the connection's own
		proxy       proxyproto.Header
	}{
		{
			name: "version 1", header: "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\n", peer: source.String(), local: destination.String(),
			proxy: proxyproto.Header{Version: 1, Transport: proxyproto.TCP4, Source: source, Destination: destination},
		},
		{
			name:   "version 2",
			header: header(t, proxyproto.Header{Version: 2, Transport: proxyproto.TCP4, Source: source, Destination: destination, Authority: "example.org"}),
			peer:   source.String(), local: destination.String(),
			proxy: proxyproto.Header{Version: 2, Transport: proxyproto.TCP4, Source: source, Destination: destination, Authority: "example.org"},
		},
		{
			name:   "a unix socket",
			header: header(t, proxyproto.Header{Version: 2, Transport: proxyproto.UnixStream, DestinationPath: "/run/x"}), peer: "unix", local: "/run/x",
			proxy: proxyproto.Header{Version: 2, Transport: proxyproto.UnixStream, DestinationPath: "/run/x"},
		},
		{name: "nobody", header: "PROXY UNKNOWN\r\n", proxy: proxyproto.Header{Version: 1}},
		{
			name: "the proxy itself", header: header(t, proxyproto.Header{Version: 2, Local: true}),
			proxy: proxyproto.Header{Version: 2, Local: true},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, way := range []string{"alone", "with what follows", "in single bytes"} {
				for _, secure := range []bool{false, true} {
					t.Run(way+map[bool]string{true: ", and TLS"}[secure], func(t *testing.T) {
						w := newTwo(t)
						peers := make(chan string, 3)
						a, b := w.configs(funcs{
							message: echo(t), connect: func(c *Conn) { peers <- c.Peer() }, adopt: func(c *Conn, _ Reason) { peers <- c.Peer() },
						}, true, func(c *Config) {
							proxied(c)
							c.Identified = func(c *Conn) error {
								if !c.Identified() {
									t.Error("it is not identified")
								}
								peers <- c.Peer()
								return nil
							}
							if secure {
								secured(t, c)
							}
						})
						nc, c := w.a.tcp(a)
						nc.SetNoDelay(true)
						begin := &together{Conn: nc}
						switch way {
						case "alone":
							write(t, nc, tt.header)
						case "with what follows":
							write(t, begin, tt.header)
						default:
							for i := range tt.header {
								write(t, nc, tt.header[i:i+1])
								w.a.until("it is read", func() bool { return c.BytesIn() == uint64(i)+1 })
							}
						}
						var client net.Conn = begin
						if secure {
							client = handshaken(t, begin, clientTLS(tls.VersionTLS13))
						}
						write(t, client, "hello\n")
						expect(t, client, "hello\n")
						peer, local := nc.LocalAddr().String(), nc.RemoteAddr().String()
						if tt.peer != "" {
							peer, local = tt.peer, tt.local
						}
						for range 2 {
							if got := receive(t, peers); got != peer {
								t.Errorf("peer %q, want %q", got, peer)
							}
						}
						there := w.move(c, b)
						if got := receive(t, peers); got != peer {
							t.Errorf("peer %q after the move, want %q", got, peer)
						}
						if got := there.Local(); got != local {
							t.Errorf("local %q, want %q", got, local)
						}
						if got, ok := there.Proxy(); !ok || got != tt.proxy {
							t.Errorf("the header is %+v, %v", got, ok)
						}
						write(t, client, "there\n")
						expect(t, client, "there\n")
					})
				}
			}
		})
	}
}

func TestConnectionWithoutItsProxyHeaderIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		sent string
		want error
	}{
		{"another protocol", "GET / HTTP/1.1\r\n\r\n", proxyproto.ErrNoHeader},
		{"a broken one", "PROXY TCP4 192.0.2.1 198.51.100.1 1000\r\n", proxyproto.ErrMalformed},
		{"half of it, and no more", "PROXY TCP4", ErrHandshake},
		{"of somebody who is not welcome", "PROXY TCP4 192.0.2.66 198.51.100.1 1000 443\r\n", errNotMine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			told := make(chan error, 1)
			cfg := proxied(r.config(funcs{
				connect: func(*Conn) { t.Error("OnConnect") },
				close:   func(*Conn, error) { t.Error("OnClose") },
			}, true))
			cfg.Limits.Handshake = 200 * time.Millisecond
			cfg.Event = func(e Event) { told <- e.Err }
			cfg.Identified = func(c *Conn) error {
				if strings.HasPrefix(c.Peer(), "192.0.2.66:") {
					return errNotMine
				}
				return nil
			}
			nc, _ := r.tcp(cfg)
			write(t, nc, tt.sent)
			if err := receive(t, told); !errors.Is(err, tt.want) {
				t.Errorf("told of %v, want %v", err, tt.want)
			}
			if got := expectEndOrReset(t, nc); got != "" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestOnlyTrustedProxiesMaySpeak(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	cfg.Proxy = &proxyproto.Trusted{Unix: true}
	_, fd, peer := tcpPair(t, "tcp4", "127.0.0.1:0")
	r.do(func() {
		if _, err := r.set.Accepted(fd, peer, cfg); !errors.Is(err, ErrUntrusted) || r.set.Len() != 0 {
			t.Errorf("Accepted: %v", err)
		}
	})
	client, c := r.pair(cfg)
	write(t, client, "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\nhello")
	expect(t, client, "hello")
	if c.Peer() != "192.0.2.1:1000" {
		t.Errorf("peer %q", c.Peer())
	}
	for _, peer := range []unix.Sockaddr{nil, &unix.SockaddrInet6{}, &unix.SockaddrInet4{}} {
		if trusts(cfg.Proxy, peer) {
			t.Errorf("%#v is trusted", peer)
		}
	}
}

func TestConnectionMovesBeforeItsProxyHeader(t *testing.T) {
	w := newTwo(t)
	a, b := w.configs(funcs{message: echo(t)}, true, func(c *Config) { proxied(c); c.Protocol = text.Protocol{} })
	nc, c := w.a.tcp(a)
	write(t, nc, "PROXY TCP4 192.0.2.1 ")
	w.a.until("it is read", func() bool { return c.BytesIn() == 21 })
	w.a.do(func() {
		if c.Identified() || c.Info().State != "opening" || c.Info().Buffered != 21 {
			t.Errorf("%+v", c.Info())
		}
	})
	there := w.move(c, b)
	write(t, nc, "198.51.100.1 1000 443\r\nhello\n")
	expect(t, nc, "hello\n")
	if there.Peer() != "192.0.2.1:1000" {
		t.Errorf("peer %q", there.Peer())
	}
}
