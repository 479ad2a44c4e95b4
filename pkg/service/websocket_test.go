package service

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
)

// patience is after what time a test gives up.
const patience = 20 * time.Second

// workers are two loops that serve the same protocol, as two processes would:
// connections move from one to the other.
type workers struct {
	t     *testing.T
	loops [2]*reactor.Loop
	sets  [2]*conn.Set
	confs [2]*conn.Config
	table *rows.Table
	has   int // which one has the connection
}

func newWorkers(t *testing.T, p Protocol, set listenerConfig) *workers {
	t.Helper()
	return workersOf(t, func(*conn.Set, *conn.Pool) *conn.Config {
		l, err := p.listener("main", set)
		if err != nil {
			t.Fatal(err)
		}
		l.Conn.Listener = "main"
		return l.Conn
	})
}

// workersOf are two loops that serve what config says.
func workersOf(t *testing.T, config func(*conn.Set, *conn.Pool) *conn.Config) *workers {
	t.Helper()
	table, err := rows.Create(1 << 10)
	if err != nil {
		t.Fatal(err)
	}
	w := &workers{t: t, table: table}
	pool := conn.NewPool(4)
	var ended [2]chan error
	for i := range w.loops {
		if w.loops[i], err = reactor.New(reactor.Options{}); err != nil {
			t.Fatal(err)
		}
		w.sets[i] = conn.NewSet(w.loops[i], table.Allocator(uint64(i)+1))
		w.confs[i] = config(w.sets[i], pool)
		w.confs[i].Pool = pool
		ended[i] = make(chan error, 1)
		go func() { ended[i] <- w.loops[i].Run() }()
	}
	t.Cleanup(func() {
		for i, loop := range w.loops {
			loop.Post(func() {
				w.sets[i].Drain(conn.DrainPrompt, 0, func() { w.sets[i].DrainOutgoing(conn.DrainPrompt, 0, loop.Stop) })
			})
			if err := <-ended[i]; err != nil {
				t.Error(err)
			}
		}
		pool.Close()
		for i, loop := range w.loops {
			loop.Close()
			if err := w.sets[i].Close(); err != nil {
				t.Error(err)
			}
		}
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// do runs f on the loop of one of them and waits for it.
func (w *workers) do(i int, f func(s *conn.Set)) {
	done := make(chan struct{})
	w.loops[i].Post(func() { defer close(done); f(w.sets[i]) })
	<-done
}

// connect returns the client's end of a new connection, which the first one
// has.
func (w *workers) connect() net.Conn {
	w.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.do(0, func(s *conn.Set) {
		if _, err := s.Accepted(fds[0], &unix.SockaddrUnix{}, w.confs[0]); err != nil {
			w.t.Error(err)
		}
	})
	f := os.NewFile(uintptr(fds[1]), "client")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	w.t.Cleanup(func() { c.Close() })
	return c
}

// only returns the one connection that there is.
func (w *workers) only() (c *conn.Conn) {
	w.do(w.has, func(s *conn.Set) { s.Each(func(one *conn.Conn) { c = one }) })
	return c
}

// read waits until n bytes have been read from the connection.
func (w *workers) read(n uint64) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if c := w.only(); c == nil || c.BytesIn() >= n {
			return
		}
	}
	w.t.Fatalf("%d bytes were not read", n)
}

// move gives the one connection to the other worker.
func (w *workers) move() {
	w.t.Helper()
	c := w.only()
	from, to := w.has, 1-w.has
	type result struct {
		f   *conn.Frozen
		err error
	}
	frozen := make(chan result, 1)
	w.do(from, func(s *conn.Set) { s.Freeze(c, func(f *conn.Frozen, err error) { frozen <- result{f, err} }) })
	r := <-frozen
	if r.err != nil {
		w.t.Fatalf("connection does not move: %v", r.err)
	}
	fd, err := unix.FcntlInt(uintptr(r.f.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var body []byte
	w.do(from, func(*conn.Set) { body, err = r.f.Capture(nil) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.do(to, func(s *conn.Set) {
		a, err := s.Adopt(fd, r.f.ID(), r.f.Row(), func(string) *conn.Config { return w.confs[to] }, body)
		if err != nil {
			w.t.Error(err)
			return
		}
		if !r.f.Row().Offer(r.f.ID(), uint64(from)+1, uint64(to)+1) || !r.f.Row().Commit(r.f.ID(), uint64(from)+1, uint64(to)+1) {
			w.t.Error("not committed")
		}
		a.Serve(Move, false)
	})
	w.do(from, func(*conn.Set) { r.f.Left(to) })
	w.has = to
}

// peer is a client of WebSocket, byte by byte.
type peer struct {
	t       *testing.T
	c       net.Conn
	s       *websocket.Session
	pending []byte
}

func (w *workers) peer() *peer {
	return &peer{t: w.t, c: w.connect(), s: websocket.NewClient(&websocket.Config{CompressAbove: 1})}
}

// open does the handshake.
func (p *peer) open(opts *websocket.RequestOptions) {
	p.t.Helper()
	p.send(request(p.t, opts))
	if m := p.receive(); websocket.Kind(m[0]) != websocket.Response {
		p.t.Fatalf("got %q, want the response", m)
	}
}

func request(t *testing.T, opts *websocket.RequestOptions) []byte {
	t.Helper()
	m, err := websocket.NewRequest("ws://example.com/chat?name=ann", opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (p *peer) encode(m []byte) []byte {
	p.t.Helper()
	b, err := p.s.Append(nil, m)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *peer) send(m []byte)            { p.t.Helper(); p.write(p.encode(m)) }
func (p *peer) text(s string)            { p.t.Helper(); p.send(append([]byte{byte(websocket.Text)}, s...)) }
func (p *peer) expect(want string)       { p.t.Helper(); p.expectKind(websocket.Text, want) }
func (p *peer) expectBinary(want []byte) { p.t.Helper(); p.expectKind(websocket.Binary, string(want)) }

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.c.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// receive returns the next message.
func (p *peer) receive() []byte {
	p.t.Helper()
	in := make([]byte, 32<<10)
	for {
		n, m, ok, err := p.s.Split(p.pending, false)
		if err != nil {
			p.t.Fatal(err)
		}
		if p.pending = p.pending[n:]; ok {
			return m
		}
		if n > 0 {
			continue
		}
		if n, err = p.c.Read(in); err != nil {
			p.t.Fatalf("got %v, want a message", err)
		}
		p.pending = append(p.pending, in[:n]...)
	}
}

func (p *peer) expectKind(kind websocket.Kind, want string) {
	p.t.Helper()
	if m := p.receive(); websocket.Kind(m[0]) != kind || string(m[1:]) != want {
		p.t.Errorf("got kind %d %.100q, want kind %d %.100q", m[0], m[1:], kind, want)
	}
}

// expectClose wants a close and then the end.
func (p *peer) expectClose(code CloseCode, reason string) {
	p.t.Helper()
	m := p.receive()
	if websocket.Kind(m[0]) != websocket.Close {
		p.t.Fatalf("got kind %d %.100q, want a close", m[0], m[1:])
	}
	if c, r := websocket.ParseClose(m[1:]); c != code || r != reason {
		p.t.Errorf("closed with %d %q, want %d %q", c, r, code, reason)
	}
	if n, err := p.c.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		p.t.Errorf("after the close: %d bytes, %v, want the end", n, err)
	}
}

type guest struct {
	Name string
	Said int
}

// hall is a WebSocket whose every callback can be seen.
func hall(told chan string, inline bool) WebSocket[guest] {
	return WebSocket[guest]{
		Inline: inline, CompressAbove: 64, Subprotocols: []string{"chat.2", "chat.1"},
		OnUpgrade: func(r *http.Request) (guest, error) { return guest{Name: r.FormValue("name")}, nil },
		Header:    func(r *http.Request) http.Header { return http.Header{"X-Path": {r.URL.Path}} },
		OnConnect: func(c *Conn[guest]) { c.Send([]byte("welcome " + c.State.Name)) },
		OnAdopt:   func(c *Conn[guest], why Reason) { c.State.Said += 1000 },
		OnMessage: func(c *Conn[guest], m Message) {
			c.State.Said++
			switch string(m.Data) {
			case "who am i":
				c.Send(fmt.Appendf(nil, "%s %d %q", c.State.Name, c.State.Said, c.Subprotocol()))
			case "panic":
				panic("asked for")
			case "bye":
				c.Close(nil, []byte("last"))
			case "bye with a code":
				c.Close(&CloseError{Code: 4007, Reason: "asked for"})
			case "bye with a code that is none":
				c.Close(&CloseError{Code: 1006})
			case "bye with a reason that is no text":
				c.Close(&CloseError{Code: 4007, Reason: "\xff"})
			case "bye for a reason":
				c.Close(errors.New("password is 1234"))
			default:
				c.SendMessage(m)
			}
		},
		OnPing:  func(c *Conn[guest], data []byte) { told <- "ping " + string(data) },
		OnPong:  func(c *Conn[guest], data []byte) { told <- "pong " + string(data) },
		OnClose: func(c *Conn[guest], why error) { told <- fmt.Sprintf("close %v", why) },
	}
}

func bothWays(t *testing.T, f func(t *testing.T, inline bool)) {
	for _, inline := range []bool{true, false} {
		t.Run(fmt.Sprintf("inline %v", inline), func(t *testing.T) { f(t, inline) })
	}
}

func TestWebSocketIsServed(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		told := make(chan string, 16)
		w := newWorkers(t, hall(told, inline), listenerConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, response, err := coder.Dial(ctx, "ws://example.com/chat?name=ann", &coder.DialOptions{
			HTTPClient: &http.Client{Transport: &http.Transport{
				DialContext: func(context.Context, string, string) (net.Conn, error) { return w.connect(), nil },
			}},
			HTTPHeader: http.Header{"Origin": {"http://example.com"}}, Subprotocols: []string{"chat.1"}, CompressionMode: coder.CompressionNoContextTakeover,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 21)
		if response.Header.Get("X-Path") != "/chat" || c.Subprotocol() != "chat.1" {
			t.Errorf("header %v, subprotocol %q", response.Header, c.Subprotocol())
		}
		expect := func(kind coder.MessageType, want string) {
			t.Helper()
			got, m, err := c.Read(ctx)
			if err != nil || got != kind || string(m) != want {
				t.Fatalf("got %v %.100q, %v, want %v %.100q", got, m, err, kind, want)
			}
		}
		expect(coder.MessageText, "welcome ann")
		for i, m := range []string{"", "hello", strings.Repeat("κόσμε ", 100), strings.Repeat("x", 1<<20)} {
			kind := []coder.MessageType{coder.MessageText, coder.MessageBinary}[i%2]
			if err := c.Write(ctx, kind, []byte(m)); err != nil {
				t.Fatal(err)
			}
			expect(kind, m)
		}
		c.Write(ctx, coder.MessageText, []byte("who am i"))
		expect(coder.MessageText, `ann 5 "chat.1"`)
		if err := c.Close(4001, "enough"); err != nil {
			t.Error(err)
		}
		if got, want := <-told, `close websocket: closed by the peer with code 4001 "enough"`; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	})
}

func TestRequestIsRefused(t *testing.T) {
	const good = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for _, tt := range []struct {
		name    string
		upgrade func(r *http.Request) (int, error)
		header  http.Header
		origins []string
		limits  Limits
		request string // empty: a good one
		status  int
		field   string
		body    string
		silent  bool // the connection is closed without an answer
	}{
		{name: "any error", upgrade: func(*http.Request) (int, error) { return 0, errors.New("password is 1234") }, status: 403, body: "Forbidden\n"},
		{name: "an error with a status", upgrade: func(*http.Request) (int, error) {
			return 0, fmt.Errorf("login: %w", &Refusal{Status: 401, Header: http.Header{"Www-Authenticate": {"Basic"}}, Body: "who are you?"})
		}, status: 401, field: "Www-Authenticate", body: "who are you?"},
		{name: "an error with a status that is none", upgrade: func(*http.Request) (int, error) { return 0, &Refusal{Status: 200} }, status: 500, body: "Internal Server Error\n"},
		{name: "panic", upgrade: func(*http.Request) (int, error) { panic("asked for") }, status: 500, body: "Internal Server Error\n"},
		{name: "header that is not to be set", header: http.Header{"Upgrade": {"x"}}, status: 500, body: "Internal Server Error\n"},
		{name: "page from elsewhere", request: "GET / HTTP/1.1\r\n" + good + "Origin: https://evil.example\r\n\r\n", status: 403, body: "Forbidden\n"},
		{name: "page from elsewhere than is allowed", origins: []string{"https://*.example"}, request: "GET / HTTP/1.1\r\n" + good + "Origin: http://a\r\n\r\n", status: 403, body: "Forbidden\n"},
		{name: "no WebSocket", request: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", status: 426, field: "Sec-Websocket-Version", body: "Upgrade Required\n"},
		{name: "another method", request: "POST / HTTP/1.1\r\n" + good + "\r\n", status: 405, field: "Allow", body: "Method Not Allowed\n"},
		{name: "bare line feed", request: "GET / HTTP/1.1\nHost: a\n\n", status: 400, body: "Bad Request\n"},
		{name: "no target", request: "GET :// HTTP/1.1\r\n" + good + "\r\n", status: 400, body: "Bad Request\n"},
		{name: "endless head", request: "GET / HTTP/1.1\r\nA: " + strings.Repeat("a", 20000), status: 431, body: "Request Header Fields Too Large\n"},
		{name: "head that never ends", limits: Limits{Message: 30 * time.Millisecond}, request: "GET / HTTP/1.1\r\nA", status: 408, body: "Request Timeout\n"},
		{name: "nobody who authenticates", limits: Limits{Auth: 30 * time.Millisecond}, request: "GET / HTTP/1.1\r\nA", status: 408, body: "Request Timeout\n"},
		{name: "nothing", limits: Limits{FirstByte: 30 * time.Millisecond}, silent: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				p := WebSocket[int]{
					Inline: inline, OnUpgrade: tt.upgrade, Origins: tt.origins, Limits: tt.limits,
					OnConnect: func(*Conn[int]) { t.Error("OnConnect was called") },
					OnMessage: func(*Conn[int], Message) { t.Error("OnMessage was called") },
					OnClose:   func(*Conn[int], error) { t.Error("OnClose was called") },
				}
				if p.OnUpgrade == nil {
					p.OnUpgrade = func(r *http.Request) (int, error) { return 0, nil }
				}
				if tt.header != nil {
					p.Header = func(*http.Request) http.Header { return tt.header }
				}
				c := newWorkers(t, p, listenerConfig{}).connect()
				send := tt.request
				if send == "" && !tt.silent {
					send = "GET / HTTP/1.1\r\n" + good + "\r\n\x81\x80\x00\x00\x00\x00" // and a message, too early
				}
				io.WriteString(c, send)
				r, err := http.ReadResponse(bufio.NewReader(c), nil)
				if tt.silent {
					if err == nil {
						t.Errorf("status %d", r.StatusCode)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(r.Body)
				if err != nil || r.StatusCode != tt.status || string(body) != tt.body || !r.Close || tt.field != "" && r.Header.Get(tt.field) == "" || r.Header.Get("Date") == "" {
					t.Errorf("status %d, body %q, %v, header %v, want %d, %q and field %q", r.StatusCode, body, err, r.Header, tt.status, tt.body, tt.field)
				}
			})
		})
	}
}

func TestWebSocketIsClosedWithACode(t *testing.T) {
	masked := func(first byte, payload string) []byte {
		return append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	}
	for _, tt := range []struct {
		name   string
		limits Limits
		ping   time.Duration
		send   string // a text
		raw    []byte // or bytes
		server func(s *conn.Set)
		first  string // a text that comes before the close
		code   CloseCode
		reason string
		told   string // in what OnClose is told
	}{
		{name: "by the application", send: "bye", first: "last", code: 1000, told: "close <nil>"},
		{name: "by the application with a code", send: "bye with a code", code: 4007, reason: "asked for", told: "code 4007"},
		{name: "by the application with a code that may not be sent", send: "bye with a code that is none", code: 1011, told: "code 1006"},
		{name: "by the application with a reason that may not be sent", send: "bye with a reason that is no text", code: 1011, told: "code 4007"},
		{name: "by the application for a reason", send: "bye for a reason", code: 1011, told: "password"},
		{name: "by the peer", raw: masked(0x88, "\x0f\xa1enough"), code: 4001, reason: "enough", told: `closed by the peer with code 4001 "enough"`},
		{name: "by the peer without a code", raw: masked(0x88, ""), code: CloseNoCode, told: "closed by the peer with code 1005"},
		{name: "panic", send: "panic", code: 1011, told: "panicked: asked for"},
		{name: "reserved opcode", raw: masked(0x83, ""), code: 1002, reason: "reserved opcode 3", told: "reserved opcode 3"},
		{name: "no mask", raw: []byte{0x81, 0}, code: 1002, reason: "client's frame is not masked", told: "not masked"},
		{name: "no text", raw: masked(0x81, "\xff"), code: 1007, reason: "text is not UTF-8", told: "not UTF-8"},
		{name: "no text, early", raw: masked(0x01, "\xff"), code: 1007, reason: "text is not UTF-8", told: "not UTF-8"},
		{name: "close with a code that is none", raw: masked(0x88, "\x03\xed"), code: 1002, reason: "close with code 1005", told: "code 1005"},
		{name: "too long", limits: Limits{MaxMessage: 100}, raw: []byte{0x82, 0x80 | 101, 0, 0, 0, 0}, code: 1009, reason: "message of at least 101 bytes, want at most 100: wire: message too long", told: "too long"},
		{name: "half a message", limits: Limits{Message: 30 * time.Millisecond}, raw: masked(0x01, "half"), code: 1008, reason: "message not completed in time", told: "not completed"},
		{name: "half a header", limits: Limits{Message: 30 * time.Millisecond}, raw: []byte{0x82}, code: 1008, reason: "message not completed in time", told: "not completed"},
		{name: "a header and nothing more", limits: Limits{Message: 30 * time.Millisecond}, raw: []byte{0x82, 0x85, 0, 0, 0, 0}, code: 1008, reason: "message not completed in time", told: "not completed"},
		{name: "not authenticated", limits: Limits{Auth: 30 * time.Millisecond}, code: 1008, reason: "not authenticated in time", told: "not authenticated"},
		{name: "reload", server: func(s *conn.Set) { s.Drain(conn.DrainPatient, 30*time.Millisecond, nil) }, code: 1012, reason: "service restarts", told: "drained"},
		{name: "worker is sent away", server: func(s *conn.Set) { s.Drain(conn.DrainPrompt, time.Hour, nil) }, code: 1012, reason: "service restarts", told: "drained"},
		{name: "stop", server: func(s *conn.Set) { s.Drain(conn.DrainStop, time.Hour, nil) }, code: 1001, reason: "service stops", told: "the service stops"},
		{name: "stop inside of a message", raw: masked(0x01, "half"), server: func(s *conn.Set) { s.Drain(conn.DrainStop, 30*time.Millisecond, nil) }, code: 1001, reason: "service stops", told: "the service stops"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				told := make(chan string, 16)
				proto := hall(told, inline)
				proto.Limits = tt.limits
				w := newWorkers(t, proto, listenerConfig{})
				p := w.peer()
				p.open(&websocket.RequestOptions{})
				p.expect("welcome ann")
				before := w.only().BytesIn()
				if tt.send != "" {
					p.text(tt.send)
				}
				p.write(tt.raw)
				if tt.server != nil {
					w.read(before + uint64(len(tt.raw)))
					w.do(0, tt.server)
				}
				if tt.first != "" {
					p.expect(tt.first)
				}
				p.expectClose(tt.code, tt.reason)
				p.c.Close()
				if got := <-told; !strings.Contains(got, tt.told) {
					t.Errorf("told %q, want %q in it", got, tt.told)
				}
			})
		})
	}
}

func TestPingsAreAnsweredBetweenFragments(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		told := make(chan string, 16)
		w := newWorkers(t, hall(told, inline), listenerConfig{})
		p := w.peer()
		p.open(&websocket.RequestOptions{})
		p.expect("welcome ann")
		p.write([]byte("\x01\x83\x00\x00\x00\x00abc\x89\x82\x00\x00\x00\x00hi"))
		p.expectKind(websocket.Pong, "hi")
		p.write([]byte("\x8a\x80\x00\x00\x00\x00\x80\x83\x00\x00\x00\x00def"))
		p.expect("abcdef")
		for _, want := range []string{"ping hi", "pong "} {
			if got := <-told; got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
	})
}

func TestSilentClientIsPinged(t *testing.T) {
	told := make(chan string, 16)
	w := newWorkers(t, hall(told, true), listenerConfig{PingInterval: 30 * time.Millisecond, PongTimeout: 30 * time.Millisecond})
	p := w.peer()
	p.open(&websocket.RequestOptions{})
	p.expect("welcome ann")
	for range 3 {
		p.expectKind(websocket.Ping, "")
		p.send([]byte{byte(websocket.Pong)})
		if got := <-told; got != "pong " {
			t.Errorf("told %q", got)
		}
	}
	p.expectKind(websocket.Ping, "")
	p.expectClose(1008, "idle for too long")
	p.c.Close()
	if got := <-told; got != "close conn: idle for too long" {
		t.Errorf("told %q", got)
	}
}

func TestMessagesAreSentAsWhatTheyAre(t *testing.T) {
	long := strings.Repeat("said once, heard by all. ", 100)
	text, binary := Prepare(Message{Data: []byte(long)}), Prepare(Message{Data: []byte{0xff}, Binary: true})
	errs := make(chan error, 16)
	p := WebSocket[int]{
		CompressAbove: 64,
		OnConnect: func(c *Conn[int]) {
			for _, err := range []error{
				c.Send([]byte("text")), c.SendMessage(Message{Data: []byte("text again")}), c.SendMessage(Message{Data: []byte{0xff}, Binary: true}),
				c.SendPrepared(text), c.SendPrepared(binary), c.SendPrepared(Prepare(Message{})), c.Ping([]byte("here?")),
				c.Send([]byte{0xff}), c.SendMessage(Message{Data: []byte{0xff}}), c.SendPrepared(Prepare(Message{Data: []byte{0xff}})),
				c.Ping(make([]byte, 126)), Pipe(c, c), c.Close(nil, []byte{0xff}, []byte("the end")),
			} {
				errs <- err
			}
		},
	}
	for _, deflate := range []bool{false, true} {
		t.Run(fmt.Sprintf("deflate %v", deflate), func(t *testing.T) {
			w := newWorkers(t, p, listenerConfig{})
			p := w.peer()
			p.open(&websocket.RequestOptions{Deflate: deflate})
			for i, want := range []error{nil, nil, nil, nil, nil, nil, nil, ErrNotText, ErrNotText, ErrNotText, ErrTooLong, ErrNoPipe, ErrNotText} {
				if err := <-errs; !errors.Is(err, want) {
					t.Errorf("call %d: %v, want %v", i, err, want)
				}
			}
			p.expect("text")
			p.expect("text again")
			p.expectBinary([]byte{0xff})
			if p.expect(long); p.s.Compressed() != deflate {
				t.Errorf("compressed %v, want %v", p.s.Compressed(), deflate)
			}
			p.expectBinary([]byte{0xff})
			p.expect("")
			p.expectKind(websocket.Ping, "here?")
			p.expect("the end")
			p.expectClose(1000, "")
		})
	}
}

func TestMessagesOfWebSocketAreMessagesElsewhereToo(t *testing.T) {
	c := serve(t, Text[int]{Inline: true, OnConnect: func(c *Conn[int]) {
		c.SendMessage(Message{Data: []byte("one"), Binary: true})
		c.SendPrepared(Prepare(Message{Data: []byte("two")}))
		c.Ping(nil)
		c.Close(nil, []byte(c.Subprotocol()+"three"))
	}})
	if got, err := io.ReadAll(c); err != nil || string(got) != "one\ntwo\nthree\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// What OnMessage was given is sent back as it came only as long as it is what
// it was.
func TestChangedMessageIsSentAsItIs(t *testing.T) {
	w := newWorkers(t, WebSocket[int]{Inline: true, OnMessage: func(c *Conn[int], m Message) {
		m.Data = m.Data[1:]
		c.SendMessage(m)
		m.Binary = true
		c.SendMessage(m)
	}}, listenerConfig{})
	p := w.peer()
	p.open(&websocket.RequestOptions{})
	p.text("abc")
	p.expect("bc")
	p.expectBinary([]byte("bc"))
}

// The connection moves after each byte that the client sends: in the middle
// of the handshake, of headers, of compressed fragments, of a close.
func TestWebSocketMovesAnywhere(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		told := make(chan string, 16)
		w := newWorkers(t, hall(told, inline), listenerConfig{})
		p := w.peer()
		sent := uint64(0)
		slowly := func(b []byte) {
			t.Helper()
			for i := range b {
				p.write(b[i : i+1])
				sent++
				w.read(sent)
				if c := w.only(); c != nil && c.State() == conn.Open {
					w.move()
				}
			}
		}
		slowly(p.encode(request(t, &websocket.RequestOptions{Subprotocols: []string{"chat.2"}, Deflate: true})))
		if m := p.receive(); websocket.Kind(m[0]) != websocket.Response || !p.s.Compressed() {
			t.Fatalf("got %q", m)
		}
		p.expect("welcome ann")
		long := strings.Repeat("a long text to be compressed, ", 10)
		slowly(p.encode(append([]byte{byte(websocket.Text)}, long...)))
		p.expect(long)
		slowly([]byte("\x01\x83\x00\x00\x00\x00abc\x89\x82\x00\x00\x00\x00hi\x00\x80\x00\x00\x00\x00\x80\x83\x00\x00\x00\x00def"))
		p.expectKind(websocket.Pong, "hi")
		p.expect("abcdef")
		moves := int(sent) // and one for each byte of the question but the last
		question := p.encode([]byte("\x01who am i"))
		slowly(question)
		// OnAdopt was told of all moves since the upgrade.
		m := p.receive()
		var name, sub string
		var said int
		if _, err := fmt.Sscanf(string(m[1:]), "%s %d %q", &name, &said, &sub); err != nil || name != "ann" || sub != "chat.2" || said%1000 != 3 || said/1000 > moves+len(question) || said < 50000 {
			t.Errorf("got %q, %v", m[1:], err)
		}
		b := p.encode(websocket.AppendClose(nil, 4001, "enough"))
		slowly(b[:len(b)-1])
		p.write(b[len(b)-1:])
		p.expectClose(4001, "enough")
		p.c.Close()
		if got := []string{<-told, <-told}; got[0] != "ping hi" || !strings.HasPrefix(got[1], "close websocket: closed by the peer") {
			t.Errorf("told %q", got)
		}
	})
}

func TestStateOfAWebSocketTravelsOrItStays(t *testing.T) {
	h := &web[guest]{}
	c := &conn.Conn{}
	if b, err := h.encode(c); b != nil || err != nil {
		t.Errorf("before the upgrade: %q, %v", b, err)
	}
	if err := h.decode(c, nil); err != nil || c.Value() != nil {
		t.Errorf("before the upgrade: %v, value %v", err, c.Value())
	}
	c.SetValue(&Conn[guest]{State: guest{Name: "bob"}})
	b, err := h.encode(c)
	if err != nil {
		t.Fatal(err)
	}
	there := &conn.Conn{}
	if err := h.decode(there, b); err != nil || h.of(there).State.Name != "bob" {
		t.Errorf("%v, %+v", err, h.of(there))
	}
	for _, b := range [][]byte{{}, {2}, bytes.TrimSuffix(b, []byte("}"))} {
		if err := h.decode(&conn.Conn{}, b); err == nil {
			t.Errorf("%q is understood", b)
		}
	}
	none := &web[struct{}]{}
	c.SetValue(&Conn[struct{}]{})
	if b, err := none.encode(c); err != nil || len(b) != 1 {
		t.Errorf("without a state: %q, %v", b, err)
	} else if there := new(conn.Conn); none.decode(there, b) != nil || none.of(there) == nil {
		t.Error("it is not upgraded any more")
	}
}

func TestUnusableWebSocketIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    Protocol
		set  listenerConfig
		want string
	}{
		{name: "origin", p: WebSocket[int]{Origins: []string{"http://["}}, want: `origin "http://["`},
		{name: "operator's origin", p: WebSocket[int]{}, set: listenerConfig{Origins: []string{"["}}, want: `origin "["`},
		{name: "subprotocol", p: WebSocket[int]{Subprotocols: []string{"a b"}}, want: `subprotocol "a b"`},
		{name: "limits", p: WebSocket[int]{Limits: Limits{SendHigh: 2, SendHard: 1}}, want: "SendHigh"},
		{name: "origins of what is none", p: Text[int]{}, set: listenerConfig{Origins: []string{"*"}}, want: "only WebSocket has this setting"},
		{name: "pings of what is none", p: Raw[int]{}, set: listenerConfig{PingInterval: 1}, want: "only WebSocket has this setting"},
		{name: "compression of HTTP", p: HTTP{}, set: listenerConfig{CompressAbove: 1}, want: "net/http has no such setting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.p.listener("main", tt.set); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
