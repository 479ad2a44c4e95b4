package web

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
	"github.com/mainstay-go/mainstay/test/browser"
	"github.com/mainstay-go/mainstay/test/certs"
	"github.com/mainstay-go/mainstay/test/node"
)

// visitor is the state of a WebSocket of a handler of net/http.
type visitor struct {
	Name string
	N    int
}

// netHTTP is what the service has on listeners of net/http.
func netHTTP() service.HTTP {
	mux := http.NewServeMux()
	upgrade := func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		if name == "nobody" {
			http.Error(w, "nobody", http.StatusForbidden)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "name", Value: name})
		secure := ""
		if r.TLS != nil {
			secure = " by TLS"
		}
		if err := service.Upgrade(w, r, "hall", visitor{Name: name + secure}); err != nil {
			fmt.Fprintln(os.Stderr, "not upgraded:", r.URL, err)
		}
	}
	mux.HandleFunc("/hall", upgrade)
	mux.HandleFunc("/panics", func(w http.ResponseWriter, r *http.Request) {
		upgrade(w, r)
		io.WriteString(w, "of no effect")
		panic("afterwards")
	})
	mux.HandleFunc("/unknown", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(os.Stderr, "not upgraded:", r.URL, service.Upgrade(w, r, "cellar", visitor{}))
	})
	mux.HandleFunc("/otherwise", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(os.Stderr, "not upgraded:", r.URL, service.Upgrade(w, r, "hall", 1))
	})
	mux.HandleFunc("/wrapped", func(w http.ResponseWriter, r *http.Request) { upgrade(unwrapping{w}, r) })
	mux.HandleFunc("/hidden", func(w http.ResponseWriter, r *http.Request) { upgrade(struct{ http.ResponseWriter }{w}, r) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, hallPage, r.Proto)
	})
	mux.HandleFunc("/told", func(_ http.ResponseWriter, r *http.Request) {
		text, _ := url.QueryUnescape(r.URL.RawQuery)
		fmt.Fprintln(os.Stderr, "told", text)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %d", who, r.Proto, len(b))
		if r.URL.Path == "/long" {
			w.Write(make([]byte, 1<<20))
		}
	})
	hall := service.WebSocket[visitor]{
		Inline: true,
		OnConnect: func(c *service.Conn[visitor]) {
			if err := c.Save(); err != nil {
				c.CloseNow(err)
			}
			_ = c.Send([]byte("welcome " + c.State.Name))
		},
		OnMessage: func(c *service.Conn[visitor], m service.Message) {
			c.State.N++
			_ = c.Save()
			_ = c.Send(fmt.Appendf(nil, "%s %s %d %s", who, c.State.Name, c.State.N, m.Data))
		},
	}
	return service.HTTP{Handler: mux, WebSockets: map[string]service.Stream{"hall": hall}}
}

// unwrapping is what a middleware makes of a ResponseWriter.
type unwrapping struct{ w http.ResponseWriter }

func (u unwrapping) Header() http.Header         { return u.w.Header() }
func (u unwrapping) Write(b []byte) (int, error) { return u.w.Write(b) }
func (u unwrapping) WriteHeader(status int)      { u.w.WriteHeader(status) }
func (u unwrapping) Unwrap() http.ResponseWriter { return u.w }

// The page is got by %s and keeps a WebSocket; what that says is told by its
// requests to the handler.
const hallPage = `<!DOCTYPE html><script>
let ws = new WebSocket("wss://" + location.host + "/hall?name=page-of-%s"), n = 0;
ws.onmessage = e => { fetch("/told?" + encodeURIComponent(e.data)); setTimeout(() => ws.send(++n), 20); };
ws.onclose = e => fetch("/told?closed " + e.code);
</script>`

// hall is such a service, with its certificate.
type hall struct {
	*servicetest.Service
	t    *testing.T
	cert certs.Certificate
}

var listenersOfHall = []string{"plain", "local", "secure", "passed", "both"}

func startHall(t *testing.T, workers int, grace string) *hall {
	t.Helper()
	dir, err := os.MkdirTemp("", "hall-") // a unix socket's path is to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := certs.Make(1000*time.Hour, "localhost")
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "cert"), c.Cert, 0o600), os.WriteFile(filepath.Join(dir, "key"), c.Key, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "grace = %q\nreload.bake = \"10ms\"\nrespawn.first = \"10ms\"\nrespawn.max = \"200ms\"\n", grace)
	for _, name := range listenersOfHall {
		address := "tcp://127.0.0.1:0"
		if name == "local" {
			address = "unix://" + dir + "/local.sock"
		}
		fmt.Fprintf(&text, "[listener.%s]\naddress = %q\nserve = \"net\"\ncompress_above = 100\npong_timeout = \"10s\"\n", name, address)
		if name == "passed" || name == "both" {
			text.WriteString("proxy_protocol = [\"127.0.0.0/8\"]\n")
		}
		if name == "secure" || name == "both" {
			fmt.Fprintf(&text, "[listener.%s.tls]\ncert = \"%s/cert\"\nkey = \"%s/key\"\n", name, dir, dir)
		}
	}
	return &hall{servicetest.Start(t, servicetest.Options{
		Listeners: []string{"inline", "pool"}, Workers: workers, Config: text.String(),
	}), t, c}
}

// reach connects, and does what comes before HTTP, but not TLS.
func (h *hall) reach(listener string) (net.Conn, error) {
	c := h.Dial(listener)
	if listener == "passed" || listener == "both" {
		if _, err := io.WriteString(c, "PROXY TCP4 192.0.2.7 198.51.100.1 1000 443\r\n"); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// client is one of HTTP for a listener.
func (h *hall) client(listener string, protocol uint16) *http.Client {
	transport := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return h.reach(listener) },
		TLSClientConfig: &tls.Config{RootCAs: h.cert.Pool(), ServerName: "localhost", MinVersion: protocol, MaxVersion: protocol},
	}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: servicetest.Patience}
}

func scheme(listener, plain string) string {
	if listener == "secure" || listener == "both" {
		return plain + "s"
	}
	return plain
}

// guest is somebody with a WebSocket.
type guest struct {
	*websocket.Conn
	t        *testing.T
	listener string
	name     string // as the service has it
	n        int
}

func (h *hall) enter(listener, path string, protocol uint16) *guest {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), servicetest.Patience)
	defer cancel()
	client := h.client(listener, protocol)
	client.Timeout = 0 // it would be the WebSocket's
	c, r, err := websocket.Dial(ctx, scheme(listener, "ws")+"://localhost"+path, &websocket.DialOptions{
		HTTPClient: client, CompressionMode: websocket.CompressionNoContextTakeover,
	})
	if err != nil {
		h.t.Fatalf("%s: %v", listener, err)
	}
	h.t.Cleanup(func() { c.CloseNow() })
	g := &guest{Conn: c, t: h.t, listener: listener, name: strings.TrimPrefix(r.Header.Get("Set-Cookie"), "name=")}
	if scheme(listener, "") == "s" {
		g.name += " by TLS"
	}
	if got := g.hear(); got != "welcome "+g.name {
		h.t.Fatalf("%s: got %q as %q", listener, got, g.name)
	}
	return g
}

func (g *guest) hear() string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), servicetest.Patience)
	defer cancel()
	_, m, err := g.Read(ctx)
	if err != nil {
		g.t.Fatalf("%s: %v", g.listener, err)
	}
	return string(m)
}

// talk sends something, and wants the answer to have all of the state. It
// returns who has answered.
func (g *guest) talk(text string) (by string) {
	g.t.Helper()
	g.n++
	if err := g.Write(g.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		g.t.Fatalf("%s: %v", g.listener, err)
	}
	got := g.hear()
	by, rest, _ := strings.Cut(got, " ")
	if want := fmt.Sprintf("%s %d %s", g.name, g.n, text); rest != want {
		g.t.Fatalf("%s: got %q, want %q", g.listener, rest, want)
	}
	return by
}

func TestWebSocketsOfHandlersMoveAndOutliveTheirWorker(t *testing.T) {
	h := startHall(t, 2, "20s")
	var guests []*guest
	for i := range 4 {
		for _, listener := range listenersOfHall {
			path := []string{"/hall", "/wrapped", "/panics"}[i%3]
			guests = append(guests, h.enter(listener, fmt.Sprintf("%s?name=g%d", path, i), tls.VersionTLS13))
		}
	}
	long := strings.Repeat("long ", 4000)
	talk := func(when string) {
		t.Helper()
		for _, g := range guests {
			g.talk(when)
			g.talk(long)
		}
	}
	talk("at first")
	list, err := h.Control().Connections(t.Context(), control.ConnectionsRequest{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Connections) != len(guests) {
		t.Errorf("%d connections, want %d", len(list.Connections), len(guests))
	}
	for _, c := range list.Connections {
		proxied := c.Listener == "passed" || c.Listener == "both"
		if (c.Peer == "192.0.2.7:1000") != proxied || c.Mortal != "" {
			t.Errorf("%+v", c)
		}
	}
	h.Reload()
	gone(h.Service, 2)
	talk("after a reload")
	for range 2 {
		for slot := range 2 {
			h.Kill(slot)
		}
		talk("after kills")
	}
	list, err = h.Control().Connections(t.Context(), control.ConnectionsRequest{Limit: 100, Listener: "both"})
	if err != nil || len(list.Connections) != 4 || list.Connections[0].Peer != "192.0.2.7:1000" {
		t.Errorf("%+v, %v", list.Connections, err)
	}
	for _, g := range guests {
		if err := g.Close(4000, "enough"); err != nil {
			t.Errorf("%s: %v", g.listener, err)
		}
	}
	st := h.Await("all are gone", func(st control.Status) bool { return st.Connections == 0 })
	if st.Torn != 0 {
		t.Errorf("%d connections were torn", st.Torn)
	}
}

func TestTLS12OfAHandlerStaysWithItsWorker(t *testing.T) {
	h := startHall(t, 1, "4s")
	g := h.enter("secure", "/hall?name=old", tls.VersionTLS12)
	g.talk("here")
	list, err := h.Control().Connections(t.Context(), control.ConnectionsRequest{Limit: 10})
	if err != nil || len(list.Connections) != 1 || list.Connections[0].Mortal != "TLS 1.2" {
		t.Errorf("%+v, %v", list.Connections, err)
	}
	h.Reload()
	if by := g.talk("still here"); by != "0/1" {
		t.Errorf("%s has it, want the worker that has made the handshake", by)
	}
	// The grace is over for it, with the code that says to come back.
	_, _, err = g.Read(t.Context())
	if code := websocket.CloseStatus(err); code != websocket.StatusServiceRestart {
		t.Errorf("got %v, want code 1012", err)
	}
}

// holding holds back what is written through it, if it is told to.
type holding struct {
	net.Conn
	hold bool
	held []byte
}

func (h *holding) Write(b []byte) (int, error) {
	if h.hold {
		h.held = append(h.held, b...)
		return len(b), nil
	}
	return h.Conn.Write(b)
}

// What comes behind the request at once, a part of a message or of a record
// of TLS too, goes along.
func TestWhatFollowsTheRequestIsNotLost(t *testing.T) {
	h := startHall(t, 1, "20s")
	for _, protocol := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, listener := range listenersOfHall {
			plain := h.Dial(listener)
			defer plain.Close()
			plain.SetDeadline(time.Now().Add(servicetest.Patience))
			below := &holding{Conn: plain}
			c := net.Conn(below)
			if listener == "passed" || listener == "both" {
				below.held = []byte("PROXY TCP4 192.0.2.7 198.51.100.1 1000 443\r\n")
			}
			if scheme(listener, "") == "s" {
				if _, err := plain.Write(below.held); err != nil {
					t.Fatal(err)
				}
				below.held = nil
				secure := tls.Client(below, &tls.Config{RootCAs: h.cert.Pool(), ServerName: "localhost", MaxVersion: protocol})
				if err := secure.Handshake(); err != nil {
					t.Fatal(err)
				}
				c = secure
			}
			below.hold = true
			first := get("/") + "GET /hall?name=eager HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x81\x85\x00\x00\x00\x00he"
			for _, part := range []string{first, "ll", "o"} {
				if _, err := io.WriteString(c, part); err != nil {
					t.Fatal(err)
				}
			}
			early := len(below.held) - 1
			if _, err := plain.Write(below.held[:early]); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(c)
			for _, status := range []int{200, 101} {
				r, err := http.ReadResponse(in, nil)
				if err != nil || r.StatusCode != status {
					t.Fatalf("%s: got %v, %v, want %d", listener, r, err, status)
				}
				if status == 200 {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := plain.Write(below.held[early:]); err != nil {
				t.Fatal(err)
			}
			name := "eager"
			if scheme(listener, "") == "s" {
				name += " by TLS"
			}
			for _, text := range []string{"welcome " + name, "0/1 " + name + " 1 hello"} {
				want := "\x81" + string(rune(len(text))) + text
				got := make([]byte, len(want))
				if n, err := io.ReadFull(in, got); err != nil || string(got) != want {
					t.Fatalf("%s: got %q, %v, want %q", listener, got[:n], err, want)
				}
			}
		}
	}
}

func TestHTTP2IsServedBesideWebSocketsByOneListener(t *testing.T) {
	h := startHall(t, 1, "20s")
	for _, protocol := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, two := range []bool{true, false} {
			client := h.client("secure", protocol)
			client.Transport.(*http.Transport).ForceAttemptHTTP2 = two
			want := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[two]
			var all sync.WaitGroup
			for n := range 20 {
				all.Go(func() {
					body := strings.Repeat("x", n*10_000)
					r, err := client.Post("https://localhost/long", "text/plain", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(r.Body)
					r.Body.Close()
					head := fmt.Sprintf("0/1 %s %d", want, len(body))
					if err != nil || r.Proto != want || len(b) != len(head)+1<<20 || !strings.HasPrefix(string(b), head) {
						t.Errorf("%.20q and in all %d bytes by %s, %v, want %q and 1 MiB", b, len(b), r.Proto, err, head)
					}
				})
			}
			all.Wait()
		}
	}
	h.enter("secure", "/hall?name=one", tls.VersionTLS13).talk("by HTTP/1.1")
}

func TestRequestThatCannotBeUpgradedIsAnsweredAndItsReasonTold(t *testing.T) {
	h := startHall(t, 1, "20s")
	handshake := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for _, tt := range []struct {
		name, request string
		status        int
		log           string
	}{
		{name: "no upgrade", request: "GET /hall?name=a HTTP/1.1\r\nHost: a\r\n\r\n", status: 426, log: "something else than websocket"},
		{name: "POST", request: "POST /hall?name=b HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n", status: 405, log: "method POST"},
		{name: "a body", request: "GET /hall?name=c HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + handshake + "\r\nab", status: 400, log: "with a body"},
		{name: "another origin", request: "GET /hall?name=d HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\n" + handshake + "\r\n", status: 403, log: `origin "https://b"`},
		{name: "the handler's own answer", request: "GET /hall?name=nobody HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n", status: 403},
		{name: "no such WebSocket", request: "GET /unknown HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n", status: 500, log: `has no upgrade "cellar"`},
		{name: "another state", request: "GET /otherwise HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n", status: 500, log: "another State than int"},
		{name: "a writer that hides net/http's", request: "GET /hidden?name=e HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n", status: 500, log: http.ErrNotSupported.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &client{t, h.Dial("plain"), nil}
			defer c.Close()
			c.send(tt.request)
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || r.StatusCode != tt.status {
				t.Fatalf("got %v, %v, want %d", r, err, tt.status)
			}
			r.Body.Close()
			h.Await("it is told", func(control.Status) bool { return strings.Contains(h.Log(), tt.log) })
		})
	}
	two := h.client("secure", tls.VersionTLS13)
	two.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	r, err := two.Get("https://localhost/hall?name=two")
	if err != nil || r.StatusCode != 505 || r.ProtoMajor != 2 {
		t.Fatalf("got %v, %v, want 505 by HTTP/2", r, err)
	}
	r.Body.Close()
	h.Await("it is told", func(control.Status) bool { return strings.Contains(h.Log(), "request of HTTP/2.0, want HTTP/1.1") })

	// Whoever is still connected to a worker that leaves is sent to another one.
	c := &client{t, h.Dial("plain"), nil}
	c.r = bufio.NewReader(c)
	c.send(get("/"))
	c.want("0/1 HTTP/1.1 0")
	h.Reload()
	c.send("GET /hall?name=late HTTP/1.1\r\nHost: a\r\n" + handshake + "\r\n")
	if r, err := http.ReadResponse(c.r, nil); err != nil || r.StatusCode != 503 {
		t.Errorf("got %v, %v, want 503", r, err)
	}
	h.Await("it is told", func(control.Status) bool { return strings.Contains(h.Log(), "conn: drained") })
}

func TestPlainRequestForTLSIsToldSo(t *testing.T) {
	h := startHall(t, 1, "20s")
	c := &client{t, h.Dial("secure"), nil}
	c.send(get("/"))
	b, err := io.ReadAll(c)
	if want := "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"; err != nil || string(b) != want {
		t.Errorf("got %q, %v", b, err)
	}
}

// The script says what its WebSocket is told, and sends each line it is given.
const hallScript = `
	const WebSocket = require("ws");
	const ws = new WebSocket(process.argv[1], {rejectUnauthorized: false});
	ws.on("message", m => console.log(String(m)));
	ws.on("close", code => { console.log("closed " + code); process.exit(0); });
	ws.on("error", e => { console.log("error " + e); process.exit(1); });
	require("readline").createInterface({input: process.stdin}).on("line", l => ws.send(l)).on("close", () => ws.close(4001));
`

func TestNodeNoticesNothing(t *testing.T) {
	h := startHall(t, 2, "20s")
	for _, listener := range []string{"plain", "secure"} {
		cmd := node.Command(t, hallScript, scheme(listener, "ws")+"://"+h.Addr(listener)+"/hall?name=node")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		hear := func(want string) {
			t.Helper()
			if !lines.Scan() || !strings.HasSuffix(lines.Text(), want) {
				t.Fatalf("%s: got %q, %v, want %q", listener, lines.Text(), lines.Err(), want)
			}
		}
		name := "node"
		if listener == "secure" {
			name = "node by TLS"
		}
		hear("welcome " + name)
		for n, event := range []func(){func() {}, h.Reload, func() { h.Kill(0); h.Kill(1) }} {
			event()
			fmt.Fprintln(in, "hello", n)
			hear(fmt.Sprintf(" %s %d hello %d", name, n+1, n))
		}
		in.Close()
		hear("closed 4001")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestBrowserHasItsPageByHTTP2AndKeepsItsWebSocket(t *testing.T) {
	h := startHall(t, 2, "20s")
	_, port, err := net.SplitHostPort(h.Addr("secure"))
	if err != nil {
		t.Fatal(err)
	}
	browser.Open(t, "https://localhost:"+port+"/page", "--ignore-certificate-errors")
	// heard waits until the page's WebSocket has got so many answers more.
	n := 0
	heard := func(more int) {
		t.Helper()
		n += more
		want := fmt.Sprintf("page-of-HTTP/2.0 by TLS %d ", n)
		h.Await("the page has heard "+want, func(control.Status) bool { return strings.Contains(h.Log(), want) })
	}
	heard(3)
	h.Reload()
	gone(h.Service, 2)
	heard(50)
	h.Kill(0)
	h.Kill(1)
	heard(50)
	if log := h.Log(); strings.Contains(log, "told closed") {
		t.Error("the WebSocket of the page was closed")
	}
}
