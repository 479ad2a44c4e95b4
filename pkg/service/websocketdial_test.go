package service

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
	"github.com/mainstay-go/mainstay/test/node"
)

// asker is a WebSocketDialer whose every callback can be seen.
func asker(told chan string, inline bool) WebSocketDialer[guest] {
	return WebSocketDialer[guest]{
		Inline: inline, CompressAbove: 64, Subprotocols: []string{"a", "b"},
		Header: func(cl Client[guest]) http.Header { return http.Header{"Origin": {"http://" + cl.State().Name}} },
		OnConnect: func(c *Conn[guest]) {
			told <- fmt.Sprintf("connected %s %q", c.State.Name, c.Subprotocol())
			c.Send([]byte("first"))
		},
		OnAdopt: func(c *Conn[guest], why Reason) { c.State.Said += 1000 },
		OnMessage: func(c *Conn[guest], m Message) {
			c.State.Said++
			told <- fmt.Sprintf("%v %d %.60q", m.Binary, len(m.Data), m.Data)
		},
		OnPing:  func(c *Conn[guest], data []byte) { told <- "ping " + string(data) },
		OnPong:  func(c *Conn[guest], data []byte) { told <- "pong " + string(data) },
		OnClose: func(c *Conn[guest], why error) { told <- fmt.Sprintf("close %v", why) },
		OnDown: func(cl Client[guest], why error, next time.Duration) {
			told <- fmt.Sprintf("down %v %v", why, next < 0)
		},
	}
}

// wants compares what is told with what is to be.
func wants(t *testing.T, told chan string, all ...string) {
	t.Helper()
	for _, want := range all {
		select {
		case got := <-told:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("got nothing, want %s", want)
		}
	}
}

// echoer is a server of another implementation that echoes, pings, and closes
// when it is asked to.
func echoer(t *testing.T, start func(*httptest.Server)) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := coder.Accept(w, r, &coder.AcceptOptions{
			Subprotocols: []string{"b"}, CompressionMode: coder.CompressionContextTakeover, OriginPatterns: []string{"ann.example.com"},
		})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, m, err := c.Read(r.Context())
			switch {
			case err != nil:
				return
			case string(m) == "bye":
				c.Close(4002, "asked for")
				return
			}
			if err := c.Write(r.Context(), kind, m); err != nil {
				return
			}
		}
	}))
	start(s)
	t.Cleanup(s.Close)
	return s
}

func TestWebSocketIsDialedOverTLS(t *testing.T) {
	s := echoer(t, (*httptest.Server).StartTLS)
	told := make(chan string, 16)
	d := asker(told, true)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	d.TLS = &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}}
	cl := dialOn[guest](t, d, "wss"+strings.TrimPrefix(s.URL, "https")+"/chat", guest{Name: "ann.example.com"})
	wants(t, told, `connected ann.example.com "b"`, `false 5 "first"`)
	if agreed := cl.Conn().TLS(); agreed == nil || agreed.NegotiatedProtocol != "http/1.1" {
		t.Errorf("TLS is %+v", agreed)
	}
	cl.Close(nil)
	wants(t, told, "close <nil>", "down <nil> true")
	// Somebody whose certificate we do not know gets no request.
	d.TLS = nil
	dialOn[guest](t, d, "wss"+strings.TrimPrefix(s.URL, "https")+"/chat", guest{})
	if got := <-told; !strings.Contains(got, "unknown authority") {
		t.Errorf("got %s", got)
	}
}

func TestWebSocketIsDialed(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		s := echoer(t, (*httptest.Server).Start)
		told := make(chan string, 16)
		cl := dialOn[guest](t, asker(told, inline), "ws"+strings.TrimPrefix(s.URL, "http")+"/chat?x=1", guest{Name: "ann.example.com"})
		if err := cl.Send([]byte("second")); err != nil { // waits
			t.Error(err)
		}
		if err := cl.Send([]byte("\xff")); err != ErrNotText {
			t.Errorf("got %v, want ErrNotText", err)
		}
		wants(t, told, `connected ann.example.com "b"`, `false 5 "first"`, `false 6 "second"`)
		long := strings.Repeat("a long text to be compressed, ", 1000)
		c := cl.Conn()
		if !cl.Up() || c == nil || c.Listener() != "dial:test" {
			t.Fatalf("up %v, connection %v", cl.Up(), c)
		}
		c.Send([]byte(long))
		c.SendMessage(Message{Data: []byte("\xff\x00"), Binary: true})
		c.SendPrepared(Prepare(Message{Data: []byte("for all")}))
		c.Ping([]byte("there?"))
		wants(t, told, fmt.Sprintf("false %d %.60q", len(long), long), `true 2 "\xff\x00"`, `false 7 "for all"`, "pong there?")
		cl.SendMessage(Message{Data: []byte("bye")})
		wants(t, told, `close websocket: closed by the peer with code 4002 "asked for"`, `down websocket: closed by the peer with code 4002 "asked for" true`)
		if err := cl.Send(nil); err != ErrClosed {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
}

func TestClientOfWebSocketIsClosedWithACode(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		for _, tt := range []struct {
			name   string
			early  bool // before there is a connection
			end    func(cl Client[guest]) error
			code   coder.StatusCode
			before string
		}{
			{name: "close", end: func(cl Client[guest]) error { return cl.Close(nil) }, code: 1000},
			{name: "close with a code", end: func(cl Client[guest]) error {
				return cl.Close(&CloseError{Code: 4003, Reason: "so"}, []byte("last"))
			}, code: 4003, before: "last"},
			{name: "close before it is there", early: true, end: func(cl Client[guest]) error { return cl.Close(nil, []byte("last")) }, code: 1000, before: "last"},
			{name: "connection's close", end: func(cl Client[guest]) error { return cl.Conn().Close(errors.New("secret")) }, code: 1011},
			{name: "drain", end: func(cl Client[guest]) error { return nil }, code: 1001},
		} {
			t.Run(tt.name, func(t *testing.T) {
				got := make(chan string, 16)
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					c, err := coder.Accept(w, r, &coder.AcceptOptions{InsecureSkipVerify: true})
					if err != nil {
						got <- err.Error()
						return
					}
					defer c.CloseNow()
					for {
						_, m, err := c.Read(r.Context())
						if err != nil {
							got <- fmt.Sprint(coder.CloseStatus(err))
							return
						}
						got <- string(m)
					}
				}))
				defer s.Close()
				told := make(chan string, 16)
				t.Run("client", func(t *testing.T) {
					d := asker(told, inline)
					if tt.early {
						d.Header = func(cl Client[guest]) http.Header {
							if err := tt.end(cl); err != nil {
								t.Error(err)
							}
							return nil
						}
					}
					cl := dialOn[guest](t, d, "ws"+strings.TrimPrefix(s.URL, "http"), guest{Name: "x"})
					wants(t, told, `connected x ""`)
					if tt.early {
						return
					}
					wants(t, got, "first")
					if err := tt.end(cl); err != nil {
						t.Error(err)
					}
				}) // and its end is a drain
				if tt.early {
					wants(t, got, "first")
				}
				if tt.before != "" {
					wants(t, got, tt.before)
				}
				wants(t, got, fmt.Sprint(tt.code))
			})
		}
	})
}

// raw serves connections one after the other with what answer writes.
func raw(t *testing.T, answer func(c net.Conn, r *http.Request)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			in := bufio.NewReader(c)
			if r, err := http.ReadRequest(in); err == nil { // or the client has ended before
				answer(c, r)
				io.Copy(io.Discard, in)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "ws://" + l.Addr().String()
}

func TestServerThatDoesNotAgreeIsAFailedAttempt(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		for _, tt := range []struct {
			name   string
			answer string
			shut   bool
			told   bool // by an Unaccepted
			status int
			is     error
			text   string
		}{
			{name: "refused", answer: "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", told: true, status: 403, text: "status 403"},
			{name: "wrong proof", answer: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", told: true, status: 101, text: "sec-websocket-accept"},
			{name: "too long", answer: "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 20<<10), told: true, text: "too long"},
			{name: "no HTTP", answer: "\r\n", told: true, text: "first byte"},
			{name: "gone", shut: true, is: ErrPeerClosed},
			{name: "silent", is: os.ErrDeadlineExceeded, text: "no answer within 50ms"},
			{name: "half an answer", answer: "HTTP/1.1 101 S", is: os.ErrDeadlineExceeded},
		} {
			t.Run(tt.name, func(t *testing.T) {
				address := raw(t, func(c net.Conn, r *http.Request) {
					io.WriteString(c, tt.answer)
					if tt.shut {
						c.Close()
					}
				})
				downs := make(chan error, 16)
				d := WebSocketDialer[int]{
					Inline: inline, Reconnect: true, Timeout: patience, Backoff: Backoff{First: time.Millisecond, Max: time.Millisecond},
					OnConnect: func(*Conn[int]) { t.Error("OnConnect") },
					OnClose:   func(*Conn[int], error) { t.Error("OnClose") },
					OnDown: func(_ Client[int], why error, next time.Duration) {
						select {
						case downs <- why:
						default:
						}
					},
				}
				if errors.Is(tt.is, os.ErrDeadlineExceeded) {
					d.Timeout = 50 * time.Millisecond
				}
				cl := dialOn[int](t, d, address, 7)
				cl.Send([]byte("waits"))
				for range 2 { // and it is tried again
					why := <-downs
					e, ok := errors.AsType[*ConnectError](why)
					for ok && e.Step == conn.Reaching && d.Timeout < patience { // it was not reached so soon
						why = <-downs
						e, ok = errors.AsType[*ConnectError](why)
					}
					if !ok || e.Step != conn.Negotiating || e.Target != address || "ws://"+e.Address != address {
						t.Fatalf("got %v, want a ConnectError", why)
					}
					if u, ok := errors.AsType[*Unaccepted](why); ok != tt.told || ok && u.Status != tt.status {
						t.Errorf("got %v, want an Unaccepted %v, status %d", why, tt.told, tt.status)
					}
					if tt.is != nil && !errors.Is(why, tt.is) || !strings.Contains(why.Error(), tt.text) {
						t.Errorf("got %v, want %v %s", why, tt.is, tt.text)
					}
				}
				if cl.Up() || cl.Conn() != nil {
					t.Error("it is up")
				}
				cl.CloseNow(nil)
			})
		}
	})
}

func TestRequestIsAsItWasAskedFor(t *testing.T) {
	got := make(chan *http.Request, 1)
	address := raw(t, func(c net.Conn, r *http.Request) { got <- r; c.Close() })
	dialOn[int](t, WebSocketDialer[int]{
		Subprotocols: []string{"x", "y"}, CompressAbove: 1,
		Header: func(cl Client[int]) http.Header {
			return http.Header{"Authorization": {fmt.Sprint("Bearer ", cl.State())}, "Origin": {"https://example.com"}}
		},
	}, address+"/a%20b?c=d", 9)
	r := <-got
	if r.RequestURI != "/a%20b?c=d" || "ws://"+r.Host != address || r.Header.Get("Authorization") != "Bearer 9" || r.Header.Get("Origin") != "https://example.com" ||
		r.Header.Get("Sec-WebSocket-Protocol") != "x, y" || r.Header.Get("Sec-WebSocket-Extensions") == "" {
		t.Errorf("got %+v", r)
	}
}

func TestRequestThatCannotBeSentIsAFailedAttempt(t *testing.T) {
	downs := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialOn[int](t, WebSocketDialer[int]{
		Header: func(Client[int]) http.Header { return http.Header{"Upgrade": {"x"}} },
		OnDown: func(_ Client[int], why error, _ time.Duration) { downs <- why },
	}, "ws://"+l.Addr().String(), 0)
	if why := <-downs; !strings.Contains(why.Error(), "field Upgrade is not for the application to set") {
		t.Errorf("got %v", why)
	}
}

func TestAddressOfAWebSocketIsItsURL(t *testing.T) {
	for _, tt := range []struct{ address, to, wrong string }{
		{address: "ws://example.com", to: "tcp://example.com:80"},
		{address: "ws://example.com:8080/a?b=c", to: "tcp://example.com:8080"},
		{address: "ws://[2001:db8::1]/", to: "tcp://[2001:db8::1]:80"},
		{address: "ws://127.0.0.1:1", to: "tcp://127.0.0.1:1"},
		{address: "wss://example.com/a", to: "tls://example.com:443"},
		{address: "wss://example.com:8443/a", to: "tls://example.com:8443"},
		{address: "tcp://example.com:80", wrong: "want ws://"},
		{address: "http://example.com", wrong: "want ws://"},
		{address: "ws://ann:secret@example.com", wrong: "without a user"},
		{address: "ws://example.com/#a", wrong: "fragment"},
		{address: "ws://", wrong: "host"},
		{address: "ws://a b/", wrong: "not a URL"},
		{address: "", wrong: "want ws://"},
	} {
		h := &webClient[int]{}
		to, err := h.route(tt.address)
		if to != tt.to || (err == nil) != (tt.wrong == "") || err != nil && (!strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: got %q, %v, want %q, %s", tt.address, to, err, tt.to, tt.wrong)
		}
	}
	if err := (WebSocketDialer[int]{Subprotocols: []string{"a b"}}).dialing("ws://a").Check(); err == nil || !strings.Contains(err.Error(), "subprotocol") {
		t.Errorf("got %v", err)
	}
}

// The connection moves after each byte that comes from the server: in the
// middle of the handshake, of headers, of compressed fragments, of a close.
func TestDialedWebSocketMovesAnywhere(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		told := make(chan string, 64)
		requests := make(chan *http.Request, 1)
		conns := make(chan net.Conn, 1)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var dialers [2]*conn.Dialer
		made := 0
		w := workersOf(t, func(s *conn.Set, pool *conn.Pool) *conn.Config {
			c := asker(told, inline).dialing("ws://" + l.Addr().String() + "/")
			c.Listener, c.Pool = "dial:test", pool
			d, err := s.NewDialer(c)
			if err != nil {
				t.Fatal(err)
			}
			dialers[made] = d
			made++
			return d.Config()
		})
		go func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				t.Error(err)
			}
			requests <- r
			conns <- c
		}()
		cl, err := dialers[0].Dial("", guest{Name: "ann.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		request, c := <-requests, <-conns
		defer c.Close()
		far := &peer{t: t, c: c, s: websocket.NewServer(&websocket.Config{CompressAbove: 1})}
		head := new(bytes.Buffer)
		fmt.Fprintf(head, "GET %s HTTP/1.1\r\nHost: %s\r\n", request.RequestURI, request.Host)
		request.Header.Write(head)
		head.WriteString("\r\n")
		if _, _, ok, err := far.s.Split(head.Bytes(), false); !ok || err != nil {
			t.Fatalf("request %q: %v", head, err)
		}
		asked, err := websocket.ParseRequest(head.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		sent := uint64(0)
		slowly := func(b []byte) {
			t.Helper()
			for i := range b {
				far.write(b[i : i+1])
				sent++
				w.read(sent)
				if c := w.only(); c != nil && c.State() == conn.Open {
					w.move()
				}
			}
		}
		answer, _, _, err := websocket.Accept(asked, &websocket.AcceptOptions{Subprotocols: []string{"b"}, Deflate: true, Origins: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		slowly(far.encode(answer))
		wants(t, told, `connected ann.example.com "b"`)
		far.expect("first")
		if err := cl.Send(nil); !errors.Is(err, conn.ErrMoved) {
			t.Errorf("the client here answers %v, want ErrMoved", err)
		}
		long := strings.Repeat("a long text to be compressed, ", 10)
		slowly(far.encode(append([]byte{byte(websocket.Text)}, long...)))
		slowly([]byte("\x01\x03abc\x89\x02hi\x00\x00\x80\x03def"))
		wants(t, told, fmt.Sprintf("false %d %.60q", len(long), long), "ping hi", `false 6 "abcdef"`)
		far.expectKind(websocket.Pong, "hi")
		typed := w.only().Value().(*Conn[guest])
		if _, ok := typed.Client(); !ok || typed.Subprotocol() != "b" {
			t.Error("it is not as it was")
		}
		w.do(w.has, func(*conn.Set) { // no callback runs
			if typed.State.Name != "ann.example.com" || typed.State.Said%1000 != 2 || typed.State.Said < 50000 {
				t.Errorf("state %+v", typed.State)
			}
		})
		b := far.encode(websocket.AppendClose(nil, 4001, "enough"))
		slowly(b[:len(b)-1])
		far.write(b[len(b)-1:])
		far.expectClose(4001, "enough")
		c.Close()
		wants(t, told, `close websocket: closed by the peer with code 4001 "enough"`)
	})
}

// nodeEchoes is what a server by ws does: it echoes.
const nodeEchoes = `(ws) => {
  ws.ping("there?");
  ws.on("message", (data, isBinary) => String(data) == "bye" ? ws.close(4002, "asked for") : ws.send(data, { binary: isBinary }));
}`

func TestNodeServerIsDialed(t *testing.T) {
	address := node.Server(t, `perMessageDeflate: { threshold: 0 }, handleProtocols: () => "b"`, nodeEchoes)
	bothWays(t, func(t *testing.T, inline bool) {
		told := make(chan string, 16)
		cl := dialOn[guest](t, asker(told, inline), "ws://"+address, guest{Name: "ann"})
		wants(t, told, `connected ann "b"`, "ping there?", `false 5 "first"`)
		long := strings.Repeat("κόσμε ", 20000)
		cl.Send([]byte(long))
		cl.SendMessage(Message{Data: []byte{0xff}, Binary: true})
		wants(t, told, fmt.Sprintf("false %d %.60q", len(long), long), `true 1 "\xff"`)
		cl.Send([]byte("bye"))
		wants(t, told, `close websocket: closed by the peer with code 4002 "asked for"`, `down websocket: closed by the peer with code 4002 "asked for" true`)
	})
}
