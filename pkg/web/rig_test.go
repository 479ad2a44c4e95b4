package web

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// server is a Handler on a loop with a listener of its own.
type server struct {
	t     testing.TB
	addr  string
	web   *Handler
	loop  *reactor.Loop
	set   *conn.Set
	seat  *scoreboard.Seat
	conf  *conn.Config
	mu    sync.Mutex
	told  []conn.Event
	ends  chan error // why connections ended
	conns chan *conn.Conn
}

// observer tells the test of connections.
type observer struct {
	*Handler
	s *server
}

func (o observer) OnConnect(c *conn.Conn) {
	o.Handler.OnConnect(c)
	select {
	case o.s.conns <- c:
	default:
	}
}

func (o observer) OnClose(c *conn.Conn, why error) {
	o.Handler.OnClose(c, why)
	select {
	case o.s.ends <- why:
	default:
	}
}

func start(t testing.TB, config Config, limits conn.Limits) *server {
	t.Helper()
	s := &server{t: t, web: New(config), seat: scoreboard.NewSeat(), ends: make(chan error, 100), conns: make(chan *conn.Conn, 100)}
	s.web.Serving(func(e conn.Event) { s.mu.Lock(); defer s.mu.Unlock(); s.told = append(s.told, e) }, s.seat)
	s.conf = s.web.ConnConfig(limits)
	s.conf.Handler, s.conf.Listener, s.conf.Seat = observer{s.web, s}, "test", s.seat
	var err error
	if s.loop, err = reactor.New(reactor.Options{}); err != nil {
		t.Fatal(err)
	}
	s.set = conn.NewSet(s.loop, nil)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	looped, accepted := make(chan error, 1), make(chan struct{})
	go func() { looped <- s.loop.Run() }()
	go func() { defer close(accepted); s.accept(l) }()
	t.Cleanup(func() {
		l.Close()
		<-accepted
		s.loop.Post(func() { s.set.Drain(conn.DrainPrompt, 0, s.loop.Stop) })
		if err := <-looped; err != nil {
			t.Error(err)
		}
		s.web.Close()
		s.loop.Close()
		if n := s.web.conns.Load(); n != 0 {
			t.Errorf("%d connections after the end, want none", n)
		}
	})
	return s
}

func (s *server) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		f, err := nc.(*net.TCPConn).File()
		nc.Close()
		if err != nil {
			s.t.Error(err)
			return
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		f.Close()
		if err != nil {
			s.t.Error(err)
			return
		}
		unix.SetNonblock(fd, true)
		peer, _ := unix.Getpeername(fd)
		s.loop.Post(func() {
			if _, err := s.set.Accepted(fd, peer, s.conf); err != nil {
				s.t.Error(err)
			}
		})
	}
}

// do runs f on the loop and waits for it.
func (s *server) do(f func()) {
	s.t.Helper()
	done := make(chan struct{})
	if err := s.loop.Post(func() { defer close(done); f() }); err != nil {
		s.t.Fatal(err)
	}
	receive(s.t, done)
}

// until waits until cond, which is called on the loop, is true.
func (s *server) until(what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		ok := false
		s.do(func() { ok = cond() })
		if ok {
			return
		}
	}
	s.t.Fatalf("never: %s", what)
}

// client is a connection to a server.
type client struct {
	t testing.TB
	*net.TCPConn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &client{t, nc.(*net.TCPConn), bufio.NewReader(nc)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Error(err)
	}
}

// expect reads exactly want.
func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.r, got)
	if string(got[:n]) != want {
		c.t.Errorf("read %q, %v, want %q", got[:n], err, want)
	}
}

// answer is a response and its body.
type answer struct {
	*http.Response
	body string
	err  error // of reading the body
}

// response reads the response to a request by method.
func (c *client) response(method string) answer {
	c.t.Helper()
	r, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	body, err := io.ReadAll(r.Body)
	return answer{r, string(body), err}
}

// ask sends a request and reads the response.
func (c *client) ask(request string) answer {
	c.t.Helper()
	c.send(request)
	method, _, _ := strings.Cut(request, " ")
	return c.response(method)
}

// end expects that nothing comes any more.
func (c *client) end() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if err != nil || len(rest) > 0 {
		c.t.Errorf("read %q, %v, want the end", rest, err)
	}
}

func receive[T any](t testing.TB, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return v
}

// way is how a handler is served.
type way string

const (
	inline  way = "inline"
	reused  way = "inline, reused"
	pooled  way = "pool"
	netHTTP way = "net/http" // what the others are compared with
)

// serve serves a handler in one of the ways and returns the address.
func serve(t testing.TB, how way, h http.HandlerFunc) string {
	t.Helper()
	if how != netHTTP {
		return start(t, Config{Handler: h, Inline: how != pooled, Reuse: how == reused}, conn.Limits{}).addr
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// each runs a test in the given ways.
func each(t *testing.T, ways []way, f func(t *testing.T, how way)) {
	for _, how := range ways {
		t.Run(string(how), func(t *testing.T) { f(t, how) })
	}
}

var (
	all  = []way{inline, reused, pooled, netHTTP}
	ours = []way{inline, pooled}
)

// httpClient returns a client that the test ends.
func httpClient(t testing.TB) *http.Client {
	tr := &http.Transport{ExpectContinueTimeout: patience}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}
