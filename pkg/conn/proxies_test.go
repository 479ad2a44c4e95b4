package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/test/proxies"
	"golang.org/x/sys/unix"
)

// listening has what connects to a port of its own accepted with cfg.
func (r *rig) listening(cfg *Config) (address string) {
	r.t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		r.t.Fatal(err)
	}
	f, err := l.File() // which does not block
	if err != nil {
		r.t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			fd, peer, err := unix.Accept4(int(f.Fd()), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
				continue
			case err != nil:
				return // it was shut down
			}
			// One that is no connection of the test's, to see who listens, is
			// not accepted here either.
			_ = r.loop.Post(func() { _, _ = r.set.Accepted(fd, peer, cfg) })
		}
	})
	r.t.Cleanup(func() {
		_ = unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR)
		accepting.Wait()
		f.Close()
		l.Close()
	})
	return l.Addr().String()
}

func TestRealProxiesTellWhoIsThere(t *testing.T) {
	haproxy := func(word string) func(t *testing.T, to string) *proxies.Proxy {
		return func(t *testing.T, to string) *proxies.Proxy {
			return proxies.HAProxy(t, fmt.Sprintf(`
defaults
	mode tcp
	timeout connect 30s
	timeout client 30s
	timeout server 30s
listen main
	bind ADDR
	server one %s %s
`, to, word))
		}
	}
	for _, tt := range []struct {
		name    string
		proxy   func(t *testing.T, to string) *proxies.Proxy
		version int
	}{
		{"HAProxy, version 1", haproxy("send-proxy"), 1},
		{"HAProxy, version 2", haproxy("send-proxy-v2"), 2},
		{"HAProxy, version 2 with TLVs", haproxy("send-proxy-v2 proxy-v2-options crc32c,unique-id"), 2},
		{"nginx", func(t *testing.T, to string) *proxies.Proxy {
			if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err != nil {
				t.Skipf("nginx has no stream module here: %v", err)
			}
			return proxies.Nginx(t, "", fmt.Sprintf("stream { server { listen ADDR; proxy_pass %s; proxy_protocol on; } }\n", to))
		}, 1},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", tt.name, secure), func(t *testing.T) {
				r := newRig(t)
				cfg := proxied(r.config(funcs{message: func(c *Conn, m []byte) {
					h, ok := c.Proxy()
					c.Send(fmt.Appendf(nil, "%s %s %v %d", m, c.Peer(), ok, h.Version))
				}}, true))
				cfg.Protocol = text.Protocol{}
				if secure {
					secured(t, cfg)
				}
				p := tt.proxy(t, r.listening(cfg))
				nc, err := net.Dial("tcp", p.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(patience))
				want := fmt.Sprintf("hello %s true %d\n", nc.LocalAddr(), tt.version)
				if secure {
					nc = handshaken(t, nc, clientTLS(tls.VersionTLS13))
				}
				write(t, nc, "hello\n")
				expect(t, nc, want)
			})
		}
	}
}
