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
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
)

// HTTPLimits bound what net/http waits for. A zero field means its default,
// a negative duration that there is no such deadline.
type HTTPLimits struct {
	Header    time.Duration // from the first byte of a request to the end of its head; default 10 s
	Idle      time.Duration // between two requests; default 75 s
	MaxHeader int           // bytes of a request's head; default 64 KiB

	// Stall bounds each wait for a part of a request's body, and for the peer
	// to take a part of an answer; default 60 s.
	Stall time.Duration
}

const (
	defaultHeader    = 10 * time.Second
	defaultIdle      = 75 * time.Second
	defaultMaxHeader = 64 << 10
	defaultStall     = 60 * time.Second
)

// queueLength is how many accepted connections may wait for net/http.
const queueLength = 256

// httpServer serves HTTP by net/http. It does not accept for itself: the
// loop does, as for all listeners, so connections are shared fairly, and the
// O_NONBLOCK of the shared socket is never touched, which net.FileListener
// could not promise.
type httpServer struct {
	// Set once.

	worker   *Worker
	name     string
	server   *http.Server
	stall    time.Duration // negative: no such deadline
	header   time.Duration // for a PROXY header; negative: no such deadline
	gate     *gate
	tls      *tls.Config             // nil: none
	upgrades map[string]*conn.Config // by name, what connections become on the loop
	proxy    *proxyproto.Trusted     // nil: none
	queue    chan accepted           // that net/http has not taken
	closed   chan struct{}           // closed when nothing more comes into the queue
	ready    chan net.Conn           // with TLS, whose handshake is over
	greeted  chan struct{}           // with TLS, closed when nothing more gets ready
	empty    chan struct{}           // told when the last connection has gone

	open     atomic.Int64 // connections, those in the queue included
	lastConn atomic.Uint64
	leaving  atomic.Bool

	connsMu sync.Mutex
	conns   map[*httpConn]http.ConnState // that net/http has; guarded by connsMu

	greeting map[*httpConn]*time.Timer // in their handshake, with what ends that; guarded by connsMu
	hurried  bool                      // these are to end soon; guarded by connsMu

	waitingMu sync.Mutex
	waiting   map[*httpConn]time.Duration // since when a handler works on its request without having begun to answer; guarded by waitingMu

	closing, ending sync.Once

	// Owned by the loop.

	serving   bool
	supersede context.CancelFunc // ends the drain on earlier terms
	drained   func()             // told once, from any goroutine, when all has ended
}

// accepted is a connection for net/http.
type accepted struct {
	fd      int
	peer    netip.Addr
	counted netip.Addr // what the gate counts it for
}

func newHTTPServer(w *Worker, l *Listener, g *gate) *httpServer {
	s := &httpServer{
		worker: w, name: l.Name, gate: g, tls: l.TLS, proxy: l.Proxy,
		queue:  make(chan accepted, queueLength),
		closed: make(chan struct{}),
		empty:  make(chan struct{}, 1),
		conns:  make(map[*httpConn]http.ConnState),

		ready:    make(chan net.Conn),
		greeted:  make(chan struct{}),
		greeting: make(map[*httpConn]*time.Timer),

		waiting: make(map[*httpConn]time.Duration),
	}
	limits := l.HTTPLimits.withDefaults()
	s.stall, s.header = limits.Stall, limits.Header
	log, err := zap.NewStdLogAt(w.log.With(zap.String("listener", l.Name)), zap.WarnLevel)
	if err != nil {
		panic(err) // only a level that does not exist fails
	}
	s.server = &http.Server{
		Handler:           s.wrap(l.HTTP),
		ReadHeaderTimeout: limits.Header,
		IdleTimeout:       limits.Idle,
		MaxHeaderBytes:    limits.MaxHeader,
		ConnState:         s.changed,
		ConnContext:       withConn,
		ErrorLog:          log,
	}
	if s.tls != nil {
		s.server.TLSConfig = s.tls.Clone() // for HTTP/2; net/http writes into it
	}
	return s
}

func (l HTTPLimits) withDefaults() HTTPLimits {
	if l.Header == 0 {
		l.Header = defaultHeader
	}
	if l.Idle == 0 {
		l.Idle = defaultIdle
	}
	if l.MaxHeader <= 0 {
		l.MaxHeader = defaultMaxHeader
	}
	if l.Stall == 0 {
		l.Stall = defaultStall
	}
	return l
}

// start begins to serve what is taken. Loop only.
func (s *httpServer) start() {
	s.serving = true
	if s.tls != nil {
		go s.greetAll()
	}
	go func() {
		if err := s.server.Serve(intake{s}); !errors.Is(err, http.ErrServerClosed) {
			s.worker.log.Error("HTTP server ended", zap.String("listener", s.name), zap.Error(err))
		}
	}()
}

// full says that net/http is behind. Loop only.
func (s *httpServer) full() bool { return len(s.queue) == cap(s.queue) }

// take passes an accepted descriptor on; full was asked before. Loop only.
func (s *httpServer) take(fd int, peer unix.Sockaddr) {
	s.open.Add(1)
	s.worker.seat.Connections.Add(1)
	s.queue <- accepted{fd, addressOf(peer), s.gate.address(peer)}
	s.worker.loop.Yield()
}

// left notes the end of a connection.
func (s *httpServer) left(peer netip.Addr) {
	s.gate.left(peer)
	s.worker.seat.Connections.Add(-1)
	if s.open.Add(-1) == 0 && s.leaving.Load() {
		select {
		case s.empty <- struct{}{}:
		default:
		}
	}
}

func (s *httpServer) changed(c net.Conn, state http.ConnState) {
	// A hijacked connection is the application's: nobody tells of its end.
	over := state == http.StateClosed || state == http.StateHijacked
	h := httpConnOf(c)
	s.connsMu.Lock()
	if over {
		delete(s.conns, h)
	} else {
		s.conns[h] = state
	}
	s.connsMu.Unlock()
	if over {
		s.left(h.counted())
	}
}

// httpConnKey is the key of a request's connection in its context.
type httpConnKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, httpConnKey{}, httpConnOf(c))
}

// httpConnOf looks below TLS.
func httpConnOf(c net.Conn) *httpConn {
	for {
		above, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c.(*httpConn)
		}
		c = above.NetConn()
	}
}

// begins notes that a handler works on a request. It is judged until it begins to
// answer: from then on it may take its time, as one that sends events does, and
// what it waits for is bounded by deadlines.
func (s *httpServer) begins(c *httpConn) {
	now := s.worker.loop.Clock()
	s.waitingMu.Lock()
	s.waiting[c] = now
	s.waitingMu.Unlock()
	c.waits.Store(true)
}

// answers notes that the first byte of the answer has left, or that there is
// none to come.
func (s *httpServer) answers(c *httpConn) {
	if !c.waits.Swap(false) {
		return
	}
	s.waitingMu.Lock()
	delete(s.waiting, c)
	s.waitingMu.Unlock()
}

// reads notes that a part of the body has come: whoever reads one gets on.
func (s *httpServer) reads(c *httpConn) {
	now := s.worker.loop.Clock()
	s.waitingMu.Lock()
	if _, ok := s.waiting[c]; ok {
		s.waiting[c] = now
	}
	s.waitingMu.Unlock()
}

// oldest is since when that request waits for the beginning of its answer which
// has waited longest; zero: there is none.
func (s *httpServer) oldest() (oldest time.Duration) {
	s.waitingMu.Lock()
	defer s.waitingMu.Unlock()
	for _, since := range s.waiting {
		if oldest == 0 || since < oldest {
			oldest = since
		}
	}
	return oldest
}

// wrap counts requests and panics, and says goodbye while the worker leaves.
func (s *httpServer) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.worker.seat.Messages.Add(1)
		if c, ok := r.Context().Value(httpConnKey{}).(*httpConn); ok {
			s.begins(c)
			defer s.answers(c)
			if c.sealed != nil {
				r.TLS = &c.sealed.state
			}
		}
		if s.leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v != http.ErrAbortHandler {
				s.worker.seat.Panics.Add(1)
				s.worker.log.Error("callback panicked", zap.String("listener", s.name), zap.String("peer", r.RemoteAddr),
					zap.Error(fmt.Errorf("%v", v)), zap.ByteString("stack", debug.Stack()))
			}
			panic(http.ErrAbortHandler) // ends the connection without another report
		}()
		if s.stall > 0 && r.Body != http.NoBody {
			ctl := http.NewResponseController(w)
			r.Body = &body{ReadCloser: r.Body, ctl: ctl, stall: s.stall}
			// net/http reads what the handler has left of the body, before the
			// answer's head or behind its end.
			_ = ctl.SetReadDeadline(time.Now().Add(s.stall))
			defer func() { _ = ctl.SetReadDeadline(time.Now().Add(s.stall)) }()
		}
		h.ServeHTTP(w, r)
	})
}

// drain ends the server within the grace, and tells drained. A patient drain
// answers those who are connected for half of the grace, with a goodbye, so
// that a client's next request is not lost in a closing connection; then, as
// a prompt one does at once, it closes what is idle and waits for requests
// that are being answered. Called again, it goes on on the new terms. Loop
// only.
func (s *httpServer) drain(prompt bool, grace time.Duration) {
	if !s.serving {
		s.ending.Do(s.drained)
		return
	}
	if s.supersede != nil {
		s.supersede()
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	s.supersede = cancel
	go func() {
		defer cancel()
		if !prompt {
			s.serveOn(ctx, grace/2)
		}
		err := s.server.Shutdown(ctx)
		if errors.Is(ctx.Err(), context.Canceled) {
			return // other terms
		}
		if err != nil {
			s.server.Close()
		}
		s.ending.Do(s.drained)
	}()
}

// serveOn waits until nobody is connected, for at most d.
func (s *httpServer) serveOn(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for s.open.Load() > 0 {
		select {
		case <-s.empty:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// body gives each part of a request's body a deadline.
type body struct {
	io.ReadCloser
	ctl   *http.ResponseController
	stall time.Duration
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctl.SetReadDeadline(time.Now().Add(b.stall)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	// A handler may take its time between two reads.
	if gone := b.ctl.SetReadDeadline(time.Time{}); err == nil {
		err = gone
	}
	return n, err
}

// answering gives each write a deadline, unless the application has set one
// of its own.
type answering struct {
	net.Conn
	stall time.Duration
	own   atomic.Bool
}

func (c *answering) Write(p []byte) (int, error) {
	if !c.own.Load() {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

func (c *answering) SetWriteDeadline(t time.Time) error {
	c.own.Store(!t.IsZero())
	return c.Conn.SetWriteDeadline(t)
}

// intake is the queue as the listener that net/http asks for.
type intake struct{ s *httpServer }

// Accept returns the next connection of the queue, with TLS the next of which
// the handshake is over; net.ErrClosed when there is nothing more to come.
func (in intake) Accept() (net.Conn, error) {
	if in.s.tls == nil {
		c, err := in.s.next()
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	select {
	case c := <-in.s.ready:
		return c, nil
	case <-in.s.greeted:
		return nil, net.ErrClosed
	}
}

// next returns the next connection of the queue, net.ErrClosed when that is
// closed and empty.
func (s *httpServer) next() (*httpConn, error) {
	for {
		a, err := s.dequeue()
		if err != nil {
			return nil, err
		}
		c, err := s.connection(a.fd)
		if err == nil {
			return newHTTPConn(s, c, a), nil
		}
		s.left(a.counted)
		s.worker.log.Warn("connection not taken", zap.String("listener", s.name), zap.Error(err))
	}
}

func (s *httpServer) dequeue() (accepted, error) {
	select {
	case a := <-s.queue:
		return a, nil
	default:
	}
	select {
	case a := <-s.queue:
		return a, nil
	case <-s.closed:
	}
	select {
	case a := <-s.queue: // put in before the end
		return a, nil
	default:
		return accepted{}, net.ErrClosed
	}
}

// Close ends the queue: what is in it is still served.
func (in intake) Close() error {
	in.s.closing.Do(func() {
		close(in.s.closed)
		in.s.hurry()
	})
	return nil
}

// Addr returns an address without meaning; net/http puts it into contexts.
func (in intake) Addr() net.Addr { return &net.UnixAddr{Name: in.s.name, Net: "mainstay"} }

// pauseDuplicate is how long to wait for a free descriptor.
const pauseDuplicate = 10 * time.Millisecond

// connection makes fd, which it takes over, a net.Conn. net.FileConn needs
// another descriptor for a moment; if there is none, the connection waits for
// it.
func (s *httpServer) connection(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), s.name)
	defer f.Close()
	deadline := time.Now().Add(defaultHeader)
	for {
		c, err := net.FileConn(f)
		if err == nil && s.stall > 0 {
			c = &answering{Conn: c, stall: s.stall}
		}
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) || time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(pauseDuplicate)
	}
}
