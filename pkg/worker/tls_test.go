package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/test/talk"
)

// dialTLS connects with a version of TLS to a worker whose certificate nobody
// knows.
func dialTLS(s activation.Socket, version uint16) (*tls.Conn, error) {
	nc, err := dialSocket(s)
	if err != nil {
		return nil, err
	}
	c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
	if err := c.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func talkTLS(t *testing.T, s activation.Socket, clients int) *talk.Group {
	t.Helper()
	dial := func() (net.Conn, error) { return dialTLS(s, tls.VersionTLS13) }
	g, err := talk.Start(dial, talk.Options{Clients: clients, Pause: 10 * time.Millisecond, Limit: patience, Size: 3000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Stop() })
	return g
}

func TestTLSConnectionsAreHandedOverAndNobodyIsLost(t *testing.T) {
	for _, name := range []string{"talker", "talker on the pool"} {
		t.Run(name, func(t *testing.T) {
			s := listen(t)
			cl := newCluster(t)
			old := cl.spawn("tls "+name, 0, 1, s).serve()
			g := talkTLS(t, s, 50)
			for generation := uint64(2); generation < 5; generation++ {
				next := cl.spawn("tls "+name, 0, generation, s).serve()
				old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
				expect[link.Draining](old)
				if handed := expect[link.Handed](old); handed.Given != 50 || handed.Left != 0 {
					t.Errorf("handed over: %+v, want all 50", handed)
				}
				old.awaitExit(0)
				cl.procs = cl.procs[1:]
				at := fmt.Sprintf("0/%d", generation)
				await(t, "all to be served by the successor", func() bool { return g.Report().Servers[at] > 100 })
				old = next
			}
			if r := nobodyLost(t, g); r.Changes != 150 {
				t.Errorf("clients have changed their server %d times, want 150", r.Changes)
			}
		})
	}
}

func TestTLS12IsDrainedWithAGoodbye(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("tls talker", 0, 1, s).serve()
	c, err := dialTLS(s, tls.VersionTLS12)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, "here?\n", "0/1 here?\n")
	next := cl.spawn("tls talker", 0, 2, s).serve()
	old.tell(link.Drain{Grace: time.Second, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 0 || handed.Left != 1 {
		t.Errorf("handed over: %+v, want none", handed)
	}
	exchange(t, c, "still?\n", "0/1 still?\n")
	c.SetReadDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 { // io.ErrUnexpectedEOF without close_notify
		t.Errorf("read %q, %v, want the end", b, err)
	}
	c.Close()
	old.awaitExit(0)
}

func TestSessionIsResumedByAnotherWorker(t *testing.T) {
	cache := tls.NewLRUClientSessionCache(1)
	for slot, want := range []bool{false, true} {
		s := listen(t)
		w := serving(t, "tls talker", slot, s)
		nc, err := dialSocket(s)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache, ServerName: "localhost"})
		exchange(t, c, "here?\n", fmt.Sprintf("%d/7 here?\n", slot))
		if got := c.ConnectionState().DidResume; got != want {
			t.Errorf("slot %d: resumed %v, want %v", slot, got, want)
		}
		w.tell(link.Gather{ID: 1, What: "metrics"})
		families, err := metrics.Decode(w.answer().text)
		if err != nil {
			t.Fatal(err)
		}
		text := string(metrics.Append(nil, families))
		for _, line := range []string{"mainstay_tls_handshakes_total 1\n", fmt.Sprintf("mainstay_tls_handshakes_resumed_total %d\n", slot), "mainstay_tls_handshakes_failed_total 0\n"} {
			if !strings.Contains(text, line) {
				t.Errorf("no %q in the metrics:\n%s", line, text)
			}
		}
	}
}

func TestHTTPIsServedOverTLS(t *testing.T) {
	s := listen(t)
	w := serving(t, "tls http", 0, s)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: proto == "HTTP/2.0"}
		client := &http.Client{Transport: transport}
		resp, err := client.Post("https://"+strings.TrimPrefix(s.Address, "tcp://")+"/", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "hello" || resp.Proto != proto {
			t.Errorf("%s: %q by %s, %v", proto, b, resp.Proto, err)
		}
		transport.CloseIdleConnections()
	}
	await(t, "the connections to be gone", func() bool { return w.seat.Connections.Load() == 0 })
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	resp, err := client.Get("https://" + strings.TrimPrefix(s.Address, "tcp://") + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	w.tell(link.Drain{Prompt: true, Grace: patience})
	expect[link.Draining](w)
	w.awaitExit(0) // an idle HTTP/2 connection is told to go away
}

func TestConnectionsBehindAProxyAreShownAndCountedByTheirRealAddress(t *testing.T) {
	for _, name := range []string{"proxied limits", "proxied http limits", "tls proxied http limits"} {
		t.Run(name, func(t *testing.T) {
			s := listen(t)
			w := serving(t, name, 0, s)
			dial := func(source string) (net.Conn, error) {
				nc, err := dialSocket(s)
				if err != nil {
					return nil, err
				}
				t.Cleanup(func() { nc.Close() })
				h := proxyproto.Header{Version: 2, Transport: proxyproto.TCP4, Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort("198.51.100.1:443")}
				b, err := h.Append(nil)
				if err != nil {
					return nil, err
				}
				if _, err := nc.Write(b); err != nil {
					return nil, err
				}
				if strings.HasPrefix(name, "tls ") {
					nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
				}
				return nc, nil
			}
			talk := func(c net.Conn) error {
				c.SetDeadline(time.Now().Add(patience))
				text := "hello\n"
				if strings.Contains(name, "http") {
					text = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
				}
				if _, err := io.WriteString(c, text); err != nil {
					return err
				}
				_, err := io.ReadFull(c, make([]byte, 5))
				return err
			}
			// Two from one address, and two from another, but no third.
			for _, source := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.2:2"} {
				c, err := dial(source)
				if err != nil {
					t.Fatal(err)
				}
				if err := talk(c); err != nil {
					t.Fatalf("%s: %v", source, err)
				}
			}
			third, err := dial("192.0.2.1:3")
			if err == nil {
				err = talk(third)
			}
			if err == nil {
				t.Error("a third connection of one address was taken")
			}
			peers := map[string]bool{}
			for _, c := range w.connections(1, control.ConnectionsRequest{Limit: 10}).Connections {
				peers[c.Peer] = true
			}
			for _, want := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.2:2"} {
				if !peers[want] {
					t.Errorf("%s is not among the connections: %v", want, peers)
				}
			}
			if n := w.seat.Refused.Load(); n != 1 {
				t.Errorf("%d were refused, want 1", n)
			}
		})
	}
}

func TestWhoeverIsNoTrustedProxyIsRefused(t *testing.T) {
	for _, name := range []string{"proxied talker", "proxied http"} {
		t.Run(name, func(t *testing.T) {
			s := listen(t)
			w := serving(t, name, 0, s)
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
			nc, err := d.Dial("tcp", strings.TrimPrefix(s.Address, "tcp://"))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			io.WriteString(nc, "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\nhello\n")
			nc.SetReadDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(nc); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read %q, %v", b, err)
			}
			w.wrote("connection refused")
			if n := w.seat.Refused.Load(); n != 1 {
				t.Errorf("%d were refused, want 1", n)
			}
			// Who is one, but sends no header, is refused as well.
			nc, err = dialSocket(s)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			nc.SetReadDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(nc); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read %q, %v", b, err)
			}
			w.wrote("connection not opened")
		})
	}
}
