package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/metrics"
)

// monitored is a backend that can be monitored.
type monitored struct {
	backend
	sick    error
	unready error
}

func (m *monitored) Metrics(context.Context) ([]byte, error) { return []byte("up 1\n"), m.sick }
func (m *monitored) Healthy(context.Context) error           { return m.sick }
func (m *monitored) Ready(context.Context) (string, error)   { return "1 of 1", m.unready }

// monitorOn serves m alone on a socket of its own and returns its address.
func monitorOn(t *testing.T, m Monitor) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewMonitor(m)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		s.Close(ctx) // connections that a test leaves open are cut off
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func get(t *testing.T, c *http.Client, method, url string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestMonitoringIsAnsweredOnBothSockets(t *testing.T) {
	for _, tt := range []struct {
		name          string
		sick, unready error
		path          string
		code          int
		body          string
	}{
		{name: "metrics", path: "/metrics", code: 200, body: "up 1\n"},
		{name: "healthy", path: "/healthz", code: 200, body: "ok\n"},
		{name: "ready", path: "/readyz", code: 200, body: "1 of 1\n"},
		{name: "no metrics", sick: errors.New("does not answer"), path: "/metrics", code: 503, body: "does not answer\n"},
		{name: "sick", sick: errors.New("does not answer"), path: "/healthz", code: 503, body: "does not answer\n"},
		{name: "not ready", unready: errors.New("the service stops"), path: "/readyz", code: 503, body: "the service stops\n"},
		{name: "starting", unready: errors.New("starting"), path: "/healthz", code: 200, body: "ok\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &monitored{sick: tt.sick, unready: tt.unready}
			operator, _ := start(t, m)
			scraper := &http.Client{Transport: &http.Transport{}}
			for _, at := range []struct {
				c    *http.Client
				base string
			}{{operator.http, "http://control"}, {scraper, "http://" + monitorOn(t, m)}} {
				code, body, header := get(t, at.c, "GET", at.base+tt.path)
				if code != tt.code || body != tt.body {
					t.Errorf("%s: %d %q, want %d %q", at.base, code, body, tt.code, tt.body)
				}
				if tt.path == "/metrics" && code == 200 && header.Get("Content-Type") != metrics.ContentType {
					t.Errorf("%s: content type %q", at.base, header.Get("Content-Type"))
				}
			}
		})
	}
}

func TestNetworkMayOnlyRead(t *testing.T) {
	address := monitorOn(t, &monitored{})
	c := &http.Client{Transport: &http.Transport{}}
	for _, tt := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/v1/status", 404}, {"POST", "/v1/stop", 404}, {"POST", "/v1/reload", 404}, {"POST", "/metrics", 405}, {"GET", "/", 404},
	} {
		if code, body, _ := get(t, c, tt.method, "http://"+address+tt.path); code != tt.code {
			t.Errorf("%s %s: %d %q, want %d", tt.method, tt.path, code, body, tt.code)
		}
	}
}

func TestSilentConnectionsToTheMonitorAreBounded(t *testing.T) {
	address := monitorOn(t, &monitored{})
	silent := make([]net.Conn, maxMonitors)
	for i := range silent {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent[i] = c
		// An answer to a broken request shows that it was accepted; here the
		// request is begun and never ended.
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\n")
	}
	late, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	fmt.Fprint(late, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	late.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := late.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("served beside %d others", maxMonitors)
	}
	silent[0].Close()
	late.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	if n, err := late.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 200") {
		t.Errorf("%q, %v after one has gone", b[:n], err)
	}
}
