package conn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// rig is a loop with a set of connections, running until the test's end.
type rig struct {
	t     testing.TB
	loop  *reactor.Loop
	set   *Set
	seat  *scoreboard.Seat
	turns int // of the loop; loop only
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOn(t, nil)
}

// newRigOn is newRig with rows of a table that others have too.
func newRigOn(t testing.TB, alloc *rows.Allocator) *rig {
	t.Helper()
	r := &rig{t: t, seat: scoreboard.NewSeat()}
	var err error
	r.loop, err = reactor.New(reactor.Options{OnTurn: func(time.Duration) { r.turns++ }})
	if err != nil {
		t.Fatal(err)
	}
	r.set = NewSet(r.loop, alloc)
	ended := make(chan error, 1)
	go func() { ended <- r.loop.Run() }()
	t.Cleanup(func() {
		if err := r.loop.Post(func() { r.set.Drain(DrainPrompt, 0, r.loop.Stop) }); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.loop.Close()
		if err := r.set.Close(); err != nil {
			t.Error(err)
		}
		for name, got := range map[string]int64{
			"Connections": r.seat.Connections.Load(),
			"QueueBytes":  r.seat.QueueBytes.Load(),
			"Timers":      r.seat.Timers.Load(),
		} {
			if got != 0 {
				t.Errorf("seat has %s %d after the end, want 0", name, got)
			}
		}
	})
	return r
}

// do runs f on the loop and waits for it. f must not call t.Fatal.
func (r *rig) do(f func()) {
	r.t.Helper()
	done := make(chan struct{})
	if err := r.loop.Post(func() { defer close(done); f() }); err != nil {
		r.t.Fatal(err)
	}
	wait(r.t, done)
}

// until waits until cond, which is called on the loop, is true.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		ok := false
		r.do(func() { ok = cond() })
		if ok {
			return
		}
	}
	r.t.Fatalf("never: %s", what)
}

// steadily runs body, whose outcome depends on the loop turning in time, on a
// rig of its own. If it fails while the loop was held up for slack or longer,
// because the machine is busy, that proves nothing: then body is run again,
// ten times at most.
func steadily(t *testing.T, slack time.Duration, body func(r *rig) error) {
	t.Helper()
	for try := 1; ; try++ {
		r := newRig(t)
		var held time.Duration
		last := time.Now()
		look := func() {
			now := time.Now()
			held, last = max(held, now.Sub(last)), now
		}
		r.do(func() { r.loop.Every(time.Millisecond, look) })
		err := body(r)
		if err == nil {
			return
		}
		var most time.Duration
		r.do(func() { look(); most = held })
		if most < slack || try == 10 {
			t.Fatalf("%v; the loop was held up for %v at most", err, most)
		}
		t.Logf("again: %v; the loop was held up for %v", err, most)
	}
}

// config returns a Config for h, on the loop or on a pool of its own.
func (r *rig) config(h Handler, inline bool) *Config {
	cfg := &Config{Listener: "test", Handler: h, Inline: inline, Seat: r.seat}
	if !inline {
		cfg.Pool = NewPool(8)
		// Before the rig's own cleanup, which runs later, so that the loop
		// still turns while the pool's callbacks end.
		r.t.Cleanup(func() { r.do(func() { r.set.Drain(DrainPrompt, 0, nil) }); cfg.Pool.Close() })
	}
	return cfg
}

// pair connects a client with a new connection, over a unix socket.
func (r *rig) pair(cfg *Config) (client *net.UnixConn, c *Conn) {
	r.t.Helper()
	ours, theirs := socketpair(r.t, unix.SOCK_STREAM)
	f := os.NewFile(uintptr(theirs), "client")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	return nc.(*net.UnixConn), r.accepted(ours, &unix.SockaddrUnix{}, cfg)
}

// tcp connects a client with a new connection, over TCP.
func (r *rig) tcp(cfg *Config) (client *net.TCPConn, c *Conn) {
	r.t.Helper()
	client, fd, peer := tcpPair(r.t, "tcp4", "127.0.0.1:0")
	return client, r.accepted(fd, peer, cfg)
}

func (r *rig) accepted(fd int, peer unix.Sockaddr, cfg *Config) (c *Conn) {
	r.t.Helper()
	r.do(func() {
		var err error
		if c, err = r.set.Accepted(fd, peer, cfg); err != nil {
			r.t.Error(err)
		}
	})
	if c == nil {
		r.t.FailNow()
	}
	return c
}

// socketpair returns two connected descriptors. The caller closes both.
func socketpair(t testing.TB, kind int) (ours, theirs int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// tcpPair returns a client, which the test closes, and the accepted descriptor.
func tcpPair(t testing.TB, network, addr string) (client *net.TCPConn, fd int, peer unix.Sockaddr) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// The connection is there already: Dial has returned.
	var acceptErr error
	if err := raw.Control(func(lfd uintptr) {
		fd, peer, acceptErr = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	}); err != nil || acceptErr != nil {
		t.Fatal(err, acceptErr)
	}
	return nc.(*net.TCPConn), fd, peer
}

func wait(t testing.TB, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it did not happen")
	}
}

func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// write and expect may be called from any goroutine: they never end it.
func write(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Error(err)
	}
}

// expect reads exactly want.
func expect(t testing.TB, nc net.Conn, want string) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	n, err := io.ReadFull(nc, got)
	if string(got[:n]) != want {
		t.Errorf("read %.200q (%d bytes), %v, want %.200q (%d bytes)", got[:n], n, err, want, len(want))
	}
}

// expectEnd reads up to the end and returns what came before it.
func expectEnd(t testing.TB, nc net.Conn) string {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(nc)
	if err != nil {
		t.Fatalf("read %.200q (%d bytes), then %v, want the end", got, len(got), err)
	}
	return string(got)
}

// funcs is a Handler made of functions, of which any may be nil.
type funcs struct {
	connect func(*Conn)
	adopt   func(*Conn, Reason)
	message func(*Conn, []byte)
	full    func(*Conn)
	drain   func(*Conn)
	timer   func(*Conn, string)
	close   func(*Conn, error)
}

func (f funcs) OnConnect(c *Conn) {
	if f.connect != nil {
		f.connect(c)
	}
}

func (f funcs) OnAdopt(c *Conn, why Reason) {
	if f.adopt != nil {
		f.adopt(c, why)
	}
}

func (f funcs) OnMessage(c *Conn, m []byte) {
	if f.message != nil {
		f.message(c, m)
	}
}

func (f funcs) OnBufferFull(c *Conn) {
	if f.full != nil {
		f.full(c)
	}
}

func (f funcs) OnBufferDrain(c *Conn) {
	if f.drain != nil {
		f.drain(c)
	}
}

func (f funcs) OnTimer(c *Conn, name string) {
	if f.timer != nil {
		f.timer(c, name)
	}
}

func (f funcs) OnClose(c *Conn, why error) {
	if f.close != nil {
		f.close(c, why)
	}
}

// journal notes the callbacks of all connections that use it.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string{}, j.lines...)
}

// bothWays runs a test with callbacks on the loop and on a pool.
func bothWays(t *testing.T, f func(t *testing.T, inline bool)) {
	for _, way := range []struct {
		name   string
		inline bool
	}{{"inline", true}, {"pool", false}} {
		t.Run(way.name, func(t *testing.T) { f(t, way.inline) })
	}
}

// echo sends back each message.
func echo(t testing.TB) func(*Conn, []byte) {
	return func(c *Conn, m []byte) {
		if err := c.Send(m); err != nil {
			t.Errorf("Send: %v", err)
		}
	}
}

// expectEndOrReset is expectEnd for a connection that may be broken off.
func expectEndOrReset(t testing.TB, nc net.Conn) string {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(nc)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %.200q (%d bytes), then %v, want the end", got, len(got), err)
	}
	return string(got)
}
