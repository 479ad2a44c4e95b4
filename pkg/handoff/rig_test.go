package handoff

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// TestMain lets the test binary be a process of the process tests.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

// clock is a loop's clock and timers that a test moves by hand.
type clock struct {
	now    time.Duration
	timers []*timer
}

type timer struct {
	at time.Duration
	f  func()
}

func (c *clock) after(d time.Duration, f func()) func() {
	t := &timer{c.now + d, f}
	c.timers = append(c.timers, t)
	return func() { c.timers = slices.DeleteFunc(c.timers, func(x *timer) bool { return x == t }) }
}

// pass has time pass, and the timers fire that come due, in their order.
func (c *clock) pass(d time.Duration) {
	end := c.now + d
	for {
		var next *timer
		for _, t := range c.timers {
			if t.at <= end && (next == nil || t.at < next.at) {
				next = t
			}
		}
		if next == nil {
			break
		}
		c.timers = slices.DeleteFunc(c.timers, func(x *timer) bool { return x == next })
		c.now = max(c.now, next.at)
		next.f()
	}
	c.now = end
}

// host is what a process is to the tests within one process: an Endpoint and
// connections, on sockets that are real.
type host struct {
	*Endpoint
	t         testing.TB
	clock     *clock
	alloc     *rows.Allocator
	sending   int // end of the inbox
	conns     map[rows.ID]*testConn
	troubles  []error
	log       []string          // what the connections were told
	refuse    func(Offer) error // nil: nothing is refused
	onThaw    func(*testConn)
	onCapture func(*testConn) (int, error) // size of the state
}

// testConn is a connection of a host. Its state is its text.
type testConn struct {
	host   *host
	id     rows.ID
	row    *rows.Row
	fd     int
	state  string
	tail   string // what is sent while it stands still
	frozen bool
	slot   int // where it went
	tails  int
	lost   int
}

func newTable(t testing.TB, n int) *rows.Table {
	t.Helper()
	table, err := rows.Create(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func newHost(t testing.TB, table *rows.Table, c *clock, incarnation uint64) *host {
	t.Helper()
	receiving, sending, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, clock: c, alloc: table.Allocator(incarnation), sending: sending, conns: make(map[rows.ID]*testConn)}
	h.Endpoint, err = New(Options{
		Self: incarnation, Table: table, Inbox: receiving,
		Adopt: h.adopt, Join: func(a, b Incoming) { h.note("join %s %s", a.(*testConn).state, b.(*testConn).state) },
		Free:    h.alloc.Free,
		Trouble: func(err error) { h.troubles = append(h.troubles, err) },
		Now:     func() time.Duration { return c.now },
		After:   c.after,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
		unix.Close(sending)
		for _, c := range h.conns {
			unix.Close(c.fd)
		}
	})
	return h
}

func (h *host) note(format string, args ...any) { h.log = append(h.log, fmt.Sprintf(format, args...)) }

// knows makes another host known.
func (h *host) knows(other *host) {
	h.t.Helper()
	fd, err := unix.FcntlInt(uintptr(other.sending), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Peer(other.options.Self, int(other.options.Self), fd)
}

// open opens a connection; the other end is closed with the test.
func (h *host) open(state string) *testConn {
	h.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { unix.Close(fds[1]) })
	id, row, err := h.alloc.Take()
	if err != nil {
		h.t.Fatal(err)
	}
	cookie, err := new(system).cookie(fds[0])
	if err != nil {
		h.t.Fatal(err)
	}
	row.Cookie.Store(cookie)
	c := &testConn{host: h, id: id, row: row, fd: fds[0], state: state}
	h.conns[id] = c
	return c
}

func (h *host) adopt(o Offer) (Incoming, error) {
	if h.refuse != nil {
		if err := h.refuse(o); err != nil {
			return nil, err
		}
	}
	c := &testConn{host: h, id: o.ID, row: o.Row, fd: o.FD, state: string(o.Body), frozen: true}
	h.note("adopt %s", brief(c.state))
	return c, nil
}

func brief(s string) string {
	if len(s) > 20 {
		return fmt.Sprintf("%s... (%d)", s[:20], len(s))
	}
	return s
}

func (c *testConn) ID() rows.ID          { return c.id }
func (c *testConn) Row() *rows.Row       { return c.row }
func (c *testConn) FD() int              { return c.fd }
func (c *testConn) Since() time.Duration { return 0 }

func (c *testConn) Capture(dst []byte) ([]byte, error) {
	if c.host.onCapture != nil {
		n, err := c.host.onCapture(c)
		if err != nil {
			return dst, err
		}
		return append(dst, make([]byte, n)...), nil
	}
	return append(dst, c.state...), nil
}

func (c *testConn) Thaw() {
	if !c.frozen {
		c.host.t.Errorf("%s is thawed, and is not frozen", brief(c.state))
	}
	c.frozen = false
	c.host.note("thaw %s", brief(c.state))
	if c.host.onThaw != nil {
		c.host.onThaw(c)
	}
}

func (c *testConn) Left(slot int) []byte {
	if !c.frozen {
		c.host.t.Errorf("%s has left, and was not frozen", brief(c.state))
	}
	c.frozen = false
	c.slot = slot
	unix.Close(c.fd)
	delete(c.host.conns, c.id)
	c.host.note("left %s to %d", brief(c.state), slot)
	return []byte(c.tail)
}

func (c *testConn) Serve(waitForTail bool) {
	c.frozen = false
	if c.host.conns[c.id] != nil {
		c.host.t.Errorf("%s is served already", brief(c.state))
	}
	c.host.conns[c.id] = c
	c.host.note("serve %s", brief(c.state))
}

func (c *testConn) Tail(tail []byte) error {
	if c.tails++; c.tails > 1 || c.host.conns[c.id] != c {
		c.host.t.Errorf("%s gets a tail %d times, served: %v", brief(c.state), c.tails, c.host.conns[c.id] == c)
	}
	c.tail = string(tail)
	c.host.note("tail %s %q", brief(c.state), brief(c.tail))
	return nil
}

func (c *testConn) Lost() {
	c.lost++
	c.host.note("lost %s", brief(c.state))
}

func (c *testConn) Drop() {
	unix.Close(c.fd)
	c.host.note("drop %s", brief(c.state))
}

// freeze makes units of connections.
func freeze(conns ...*testConn) (units []Unit) {
	for _, c := range conns {
		c.frozen = true
		units = append(units, Unit{First: c})
	}
	return units
}

// couple lets two hosts know each other.
func couple(a, b *host) {
	a.knows(b)
	b.knows(a)
}

// converse has hosts read their inboxes until all are empty.
func converse(t testing.TB, hosts ...*host) {
	t.Helper()
	for range 1000 {
		quiet := true
		for _, h := range hosts {
			fds := []unix.PollFd{{Fd: int32(h.options.Inbox), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); n > 0 || err != nil {
				quiet = false
				if err := h.Readable(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if quiet {
			return
		}
	}
	t.Fatal("they never come to an end")
}

// calm fails the test if a host was in trouble.
func calm(t testing.TB, hosts ...*host) {
	t.Helper()
	for _, h := range hosts {
		for _, err := range h.troubles {
			t.Errorf("host %d: %v", h.options.Self, err)
		}
	}
}
