package proxies

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
)

func TestProxyRunsUntilTheTestEnds(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "behind "+r.Header.Get("X-By"))
	}))
	defer origin.Close()
	server := strings.TrimPrefix(origin.URL, "http://")
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: limit}
	for name, start := range map[string]func(testing.TB) *Proxy{
		"nginx": func(t testing.TB) *Proxy {
			return Nginx(t, "server { listen ADDR; location / { proxy_pass http://"+server+"; proxy_set_header X-By nginx; } }", "")
		},
		"haproxy": func(t testing.TB) *Proxy {
			return HAProxy(t, "defaults\n mode http\n timeout connect 10s\n timeout client 10s\n timeout server 10s\nfrontend front\n bind ADDR\n http-request set-header X-By haproxy\n default_backend back\nbackend back\n server a "+server+"\n")
		},
	} {
		var p *Proxy
		ran := t.Run(name, func(t *testing.T) {
			p = start(t)
			r, err := client.Get("http://" + p.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != "behind "+name {
				t.Errorf("got %q, %v", b, err)
			}
		})
		if p == nil || !ran {
			continue
		}
		if err := syscall.Kill(p.Pid, 0); err != syscall.ESRCH {
			t.Errorf("%s: process %d after the test: %v, want none", name, p.Pid, err)
		}
	}
}
