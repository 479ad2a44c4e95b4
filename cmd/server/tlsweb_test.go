package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
	"github.com/mainstay-go/mainstay/test/certs"
)

// startSecure starts the reference service with a listener that has TLS,
// behind a proxy if proxied, and returns the client that trusts it.
func startSecure(t *testing.T, listener string, proxied bool) (*servicetest.Service, *http.Client) {
	t.Helper()
	dir := t.TempDir()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cert": c.Cert, "key": c.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	proxies := ""
	if proxied {
		proxies = "proxy_protocol = [\"127.0.0.1/32\"]\n"
	}
	s := servicetest.Start(t, servicetest.Options{
		Listeners: []string{listener}, Workers: 2,
		Config: fmt.Sprintf("reload.bake = \"10ms\"\n[listener.%s]\n%stls.cert = %q\ntls.key = %q\n", listener, proxies, dir+"/cert", dir+"/key"),
	})
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.Pool(), ServerName: "localhost"},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil && proxied {
				_, err = io.WriteString(nc, "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\n")
			}
			return nc, err
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return s, &http.Client{Transport: transport, Timeout: servicetest.Patience}
}

// peerOf returns the peer of the one connection, as an operator sees it.
func peerOf(t *testing.T, s *servicetest.Service) string {
	t.Helper()
	list, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{})
	if err != nil || len(list.Connections) != 1 {
		t.Fatalf("%d connections, %v", len(list.Connections), err)
	}
	return list.Connections[0].Peer
}

func TestWebSocketIsServedByTLSAndBehindAProxy(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxied %t", proxied), func(t *testing.T) {
			s, client := startSecure(t, "ws-echo", proxied)
			ctx, cancel := context.WithTimeout(t.Context(), servicetest.Patience)
			defer cancel()
			// The handshake of WebSocket ends the client's own timeout.
			c, _, err := websocket.Dial(ctx, "wss://"+s.Addr("ws-echo"), &websocket.DialOptions{HTTPClient: &http.Client{Transport: client.Transport}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			if peer := peerOf(t, s); (peer == "192.0.2.1:1000") != proxied {
				t.Errorf("the peer is %s", peer)
			}
			var echoes atomic.Int64
			done, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- talkWS(ctx, c, done, &echoes) }()
			for range 2 {
				n := echoes.Load()
				s.Await("the client goes on", func(control.Status) bool { return echoes.Load() > n })
				s.Reload()
			}
			close(done)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHTTPIsServedByTLSAndBehindAProxy(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxied %t", proxied), func(t *testing.T) {
			s, client := startSecure(t, "http-hello", proxied)
			for i := range 3 {
				r, err := client.Get("https://" + s.Addr("http-hello") + "/")
				if err != nil {
					t.Fatal(err)
				}
				first, err := bufio.NewReader(r.Body).ReadString('\n')
				r.Body.Close()
				if r.StatusCode != http.StatusOK || first == "" || err != nil && err != io.EOF || r.TLS == nil {
					t.Errorf("request %d: %s, %q, %v", i, r.Status, first, err)
				}
				if peer := peerOf(t, s); (peer == "192.0.2.1:1000") != proxied {
					t.Errorf("the peer is %s", peer)
				}
				s.Reload() // the connection moves, and is used again
			}
		})
	}
}
