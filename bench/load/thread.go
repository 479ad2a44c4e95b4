package load

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	bufferSize    = 64 << 10 // read(2) and write(2) at most so much at once
	maxEvents     = 256
	connectsATurn = 32 // so that open connections are not forgotten while others are opened
	wakeIndex     = -1 // epoll data of the wake-up descriptor
)

type state uint8

const (
	unopened state = iota
	opening        // connect(2) is under way
	opened
	closed
)

// connection is one connection, owned by its thread.
type connection struct {
	state   state
	waiting bool // for EPOLLOUT
	due     bool // draining waits for its replies
	fd      int
	born    time.Duration // when it was begun

	id  uint64
	out place // the next byte to be written
	in  place // the next byte to come back
}

// outstanding returns how many messages have left, whole or in part, and have
// not come back.
func (c *connection) outstanding() uint64 {
	n := c.out.seq - c.in.seq
	if c.out.off > 0 {
		n++
	}
	return n
}

// thread is one epoll loop with its share of the connections. All but the
// atomics and wake is its own goroutine's.
type thread struct {
	r       *run
	to      *target
	keeper  bool // thread 0: it changes the phases
	ep      int
	eventfd int

	conns     []connection
	sentAt    []time.Duration // of the messages in flight: Pipeline a connection, by sequence number
	next      int             // the first unopened connection
	nextAt    time.Duration   // when it may be opened
	every     time.Duration   // between two of them, by Ramp
	lastBegun time.Duration
	pending   int // connections that are opening
	connected int
	settled   bool // the run was told that none is unopened or opening
	draining  bool
	due       int // connections whose replies draining waits for
	deadline  time.Duration

	in, out []byte
	events  [maxEvents]unix.EpollEvent

	counting   bool
	counted    atomic.Uint64
	latency    Histogram
	connect    Histogram
	firstReply Histogram
	errors     Errors
	kinds      uint // of errors that have their sample
}

// newThread makes thread i of r with its share of the connections, all
// unopened.
func newThread(r *run, i int) (*thread, error) {
	share := r.cfg.Connections / r.cfg.Threads
	first := i*share + min(i, r.cfg.Connections%r.cfg.Threads)
	if i < r.cfg.Connections%r.cfg.Threads {
		share++
	}
	// A Sockaddr is written to when it is used: each thread has its own.
	to, err := r.cfg.check()
	if err != nil {
		return nil, err
	}
	t := &thread{
		r:       r,
		to:      to,
		keeper:  i == 0,
		ep:      -1,
		eventfd: -1,
		conns:   make([]connection, share),
		sentAt:  make([]time.Duration, share*r.cfg.Pipeline),
		in:      make([]byte, bufferSize),
		out:     make([]byte, bufferSize),
	}
	for k := range t.conns {
		t.conns[k].fd = -1
		t.conns[k].id = r.idBase + uint64(first+k)
	}
	if r.cfg.Ramp > 0 {
		t.every = time.Duration(float64(time.Second) * float64(r.cfg.Threads) / r.cfg.Ramp)
		t.nextAt = t.every * time.Duration(i) / time.Duration(r.cfg.Threads)
	}
	if t.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("load: thread %d: %w", i, os.NewSyscallError("epoll_create1", err))
	}
	if t.eventfd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		t.close()
		return nil, fmt.Errorf("load: thread %d: %w", i, os.NewSyscallError("eventfd", err))
	}
	if err := t.watch(unix.EPOLL_CTL_ADD, t.eventfd, wakeIndex, unix.EPOLLIN); err != nil {
		t.close()
		return nil, fmt.Errorf("load: thread %d: %w", i, err)
	}
	return t, nil
}

// close gives back the descriptors. Nobody may call wake any more.
func (t *thread) close() {
	for i := range t.conns {
		if c := &t.conns[i]; c.fd >= 0 {
			unix.Close(c.fd)
			c.fd = -1
		}
	}
	for _, fd := range []int{t.ep, t.eventfd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// wake ends the thread's wait. Any goroutine may call it.
func (t *thread) wake() {
	one := [8]byte{7: 1}
	unix.Write(t.eventfd, one[:]) // EAGAIN: it is awake already
}

// run is the thread's loop, from the first connect(2) until the run is over.
// The descriptors stay for close.
func (t *thread) run() {
	for {
		p := phase(t.r.phase.Load())
		t.counting = p == measured
		now := t.r.now()
		t.openMore(now)
		if t.keeper {
			p = t.keepTime(p)
		}
		if p == draining && t.drained(now) || p == over {
			break
		}
		for _, e := range t.wait(t.timeout(now)) {
			t.ready(&e)
		}
	}
	for i := range t.conns {
		if c := &t.conns[i]; c.due {
			t.errors.Unanswered += c.outstanding()
		}
	}
	if t.errors.Unanswered > 0 {
		t.sample(kindUnanswered, fmt.Errorf("%d messages had no reply when the run was over", t.errors.Unanswered))
	}
}

// keepTime goes on to the next phase when its time has come, and returns the
// phase that the run is in.
func (t *thread) keepTime(p phase) phase {
	r := t.r
	now := r.now()
	switch p {
	case connecting:
		if r.settled.Load() < int64(r.cfg.Connections) {
			return p
		}
		r.connectedAt = now
		t.deadline = now + r.cfg.Warmup
		if r.open.Load() == 0 {
			r.enter(over)
			break
		}
		r.enter(warming)
	case warming:
		if now < t.deadline && r.open.Load() > 0 {
			return p
		}
		if r.cfg.OnStart != nil {
			r.cfg.OnStart()
		}
		r.startedAt = r.now()
		t.deadline = r.startedAt + r.cfg.Duration
		r.enter(measured)
	case measured:
		if now < t.deadline && r.open.Load() > 0 && !r.enoughMessages() {
			return p
		}
		r.stoppedAt = now
		r.enter(cooling)
		if r.cfg.OnStop != nil {
			r.cfg.OnStop()
		}
		t.deadline = r.now() + r.cfg.DrainTimeout
		r.drainUntil.Store(int64(t.deadline))
		r.enter(draining)
	case cooling, draining, over: // each thread ends by itself: see drained
	}
	p = phase(r.phase.Load())
	t.counting = p == measured
	return p
}

// enoughMessages says whether the run's limit on messages is reached.
func (r *run) enoughMessages() bool {
	if r.cfg.Messages == 0 {
		return false
	}
	var n uint64
	for _, t := range r.threads {
		n += t.counted.Load()
	}
	return n >= r.cfg.Messages
}

// drained says whether all replies of this thread are in, or the time for
// them is over.
func (t *thread) drained(now time.Duration) bool {
	if !t.draining {
		t.draining = true
		for i := range t.conns {
			if c := &t.conns[i]; c.state == opened && c.outstanding() > 0 {
				c.due = true
				t.due++
			}
		}
	}
	return t.due == 0 || now >= time.Duration(t.r.drainUntil.Load())
}

// timeout returns how long the thread may wait: negative for ever.
func (t *thread) timeout(now time.Duration) time.Duration {
	at := time.Duration(math.MaxInt64)
	if t.next < len(t.conns) {
		at = t.nextAt
	} else if t.pending > 0 {
		at = t.lastBegun + t.r.cfg.ConnectTimeout
	}
	switch p := phase(t.r.phase.Load()); {
	case p == draining:
		at = min(at, time.Duration(t.r.drainUntil.Load()))
	case t.keeper && (p == warming || p == measured):
		at = min(at, t.deadline)
	}
	if at == math.MaxInt64 {
		return -1
	}
	return max(at-now, 0)
}

// wait returns the events there are, after waiting for the first until
// timeout, for ever if that is negative.
//
// The first look is a raw system call, which the Go scheduler does not see:
// under load there always is an event, and the generator is as busy as the
// server it loads. Only when there is none does it give its processor away.
func (t *thread) wait(timeout time.Duration) []unix.EpollEvent {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(t.ep), uintptr(unsafe.Pointer(&t.events[0])), maxEvents, 0, 0, 0)
	if e == 0 && n > 0 {
		return t.events[:n]
	}
	runtime.Gosched()
	ms := -1
	if timeout >= 0 {
		ms = int(min((timeout+time.Millisecond-1)/time.Millisecond, 1000))
	}
	k, err := unix.EpollWait(t.ep, t.events[:], ms)
	if err != nil { // EINTR: the loop comes back
		return nil
	}
	return t.events[:k]
}

// ready serves one event.
func (t *thread) ready(e *unix.EpollEvent) {
	if e.Fd == wakeIndex {
		var n [8]byte
		unix.Read(t.eventfd, n[:])
		return
	}
	i := int(e.Fd)
	c := &t.conns[i]
	if c.state == opening {
		t.finishConnect(i)
		return
	}
	if c.state == opened && e.Events&^unix.EPOLLOUT != 0 {
		t.read(i)
	}
	if c.state == opened && e.Events&unix.EPOLLOUT != 0 {
		t.write(i, t.r.now())
	}
}

// openMore begins the connections whose turn it is, and gives up those that
// have been opening for too long.
func (t *thread) openMore(now time.Duration) {
	if t.settled {
		return
	}
	for n := 0; n < connectsATurn && t.next < len(t.conns) && now >= t.nextAt; n++ {
		if !t.begin(t.next, t.r.now()) {
			break
		}
		t.next++
		t.nextAt += t.every
	}
	if t.next < len(t.conns) {
		return
	}
	if t.pending > 0 && now >= t.lastBegun+t.r.cfg.ConnectTimeout {
		for i := range t.conns {
			if t.conns[i].state == opening {
				t.fail(i, unix.ETIMEDOUT, "connect")
			}
		}
	}
	if t.pending == 0 {
		t.settled = true
		if t.r.settled.Add(int64(len(t.conns))) == int64(t.r.cfg.Connections) {
			t.r.threads[0].wake()
		}
	}
}

// begin starts to open connection i. It returns false when that has to be
// tried again later.
func (t *thread) begin(i int, now time.Duration) bool {
	c := &t.conns[i]
	to := t.to
	t.lastBegun = now
	fd, err := unix.Socket(to.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.fail(i, err, "socket")
		return true
	}
	c.fd = fd
	if c.born == 0 { // else it was tried before
		c.born = now
	}
	if to.family != unix.AF_UNIX {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			t.fail(i, err, "setsockopt")
			return true
		}
	}
	if n := len(to.sources); n > 0 {
		// The port is chosen at connect(2), when the other end is known: else
		// a port could be used once only, ip(7).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			t.fail(i, err, "setsockopt")
			return true
		}
		from := to.sources[int(uint32(c.id))%n]
		if err := unix.Bind(fd, from); err != nil {
			t.fail(i, err, "bind")
			return true
		}
	}
	err = unix.Connect(fd, to.addr)
	switch {
	case err == nil, err == unix.EINPROGRESS:
	case err == unix.EAGAIN && now >= c.born+t.r.cfg.ConnectTimeout:
		t.fail(i, unix.ETIMEDOUT, "connect")
		return true
	case err == unix.EAGAIN && to.family == unix.AF_UNIX:
		// The backlog is full, connect(2): there is nothing to wait on but time.
		unix.Close(fd)
		c.fd = -1
		t.nextAt = now + time.Millisecond
		return false
	default:
		t.fail(i, err, "connect")
		return true
	}
	c.state = opening
	t.pending++
	if err := t.watch(unix.EPOLL_CTL_ADD, fd, i, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
		t.fail(i, err, "epoll_ctl")
	}
	return true
}

// finishConnect takes the outcome of connection i's connect(2), and sends its
// first messages.
func (t *thread) finishConnect(i int) {
	c := &t.conns[i]
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	if err != nil {
		t.fail(i, err, "connect")
		return
	}
	now := t.r.now()
	c.state = opened
	c.waiting = true // EPOLLOUT is still watched
	t.pending--
	t.connected++
	t.r.open.Add(1)
	t.connect.Record(now - c.born)
	t.write(i, now)
}

// read takes what connection i has, compares it, and sends as many messages
// as came back.
func (t *thread) read(i int) {
	c := &t.conns[i]
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&t.in[0])), bufferSize)
	switch {
	case e == unix.EAGAIN || e == unix.EINTR:
		return
	case e != 0:
		t.fail(i, e, "read")
		return
	case n == 0 && t.draining && c.outstanding() == 0:
		t.drop(i)
		return
	case n == 0:
		t.fail(i, errEOF, "read")
		return
	}
	now := t.r.now()
	first := c.in.seq
	err := t.r.messages.check(t.in[:n], c.id, &c.in)
	if err == nil && (c.in.seq > c.out.seq || c.in.seq == c.out.seq && c.in.off > c.out.off) {
		err = fmt.Errorf("connection %d: message %d came back before it was sent", c.id, c.in.seq)
	}
	if err != nil {
		t.fail(i, &wrongReply{err}, "read")
		return
	}
	if c.in.seq == first {
		return
	}
	if first == 0 {
		t.firstReply.Record(now - c.born)
	}
	if t.counting {
		depth := uint64(t.r.cfg.Pipeline)
		for s := first; s < c.in.seq; s++ {
			t.latency.Record(now - t.sentAt[uint64(i)*depth+s%depth])
		}
		t.counted.Store(t.counted.Load() + c.in.seq - first)
	}
	t.write(i, now)
	if c.due && c.state == opened && c.outstanding() == 0 {
		c.due = false
		t.due--
	}
}

// write sends what connection i may have in flight. now is when that was
// decided.
func (t *thread) write(i int, now time.Duration) {
	c := &t.conns[i]
	m, depth := t.r.messages, uint64(t.r.cfg.Pipeline)
	until := c.in.seq + depth
	if t.draining { // nothing new, but no half messages either
		until = c.in.seq + c.outstanding()
	}
	for c.out.seq < until {
		n := m.fill(t.out, c.id, c.out, until)
		w, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&t.out[0])), uintptr(n))
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			t.waitWritable(i, true)
			return
		case e != 0:
			t.fail(i, e, "write")
			return
		}
		was := c.out
		m.advance(&c.out, int(w))
		if was.off > 0 { // it was begun before
			was.seq++
		}
		for s := was.seq; s < c.out.seq || s == c.out.seq && c.out.off > 0; s++ {
			t.sentAt[uint64(i)*depth+s%depth] = now
		}
		if int(w) < n {
			t.waitWritable(i, true)
			return
		}
	}
	t.waitWritable(i, false)
}

// waitWritable watches for room in connection i's send buffer, or no longer.
func (t *thread) waitWritable(i int, want bool) {
	c := &t.conns[i]
	if c.waiting == want {
		return
	}
	c.waiting = want
	events := uint32(unix.EPOLLIN)
	if want {
		events |= unix.EPOLLOUT
	}
	if err := t.watch(unix.EPOLL_CTL_MOD, c.fd, i, events); err != nil {
		t.fail(i, err, "epoll_ctl")
	}
}

func (t *thread) watch(op, fd, index int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(t.ep, op, fd, &unix.EpollEvent{Events: events, Fd: int32(index)}))
}

// errEOF stands for the peer's orderly close, wrongReply for bytes that were
// not sent.
var errEOF = errors.New("the peer closed the connection while replies were due")

type wrongReply struct{ error }

// The kinds of errors, each of which is shown once.
const (
	kindRefused uint = 1 << iota
	kindTimeout
	kindReset
	kindShort
	kindWrong
	kindUnanswered
	kindOther
)

// fail ends connection i and counts why.
func (t *thread) fail(i int, err error, call string) {
	wasOpen := t.conns[i].state == opened
	t.drop(i)
	kind := kindOther
	var wrong *wrongReply
	switch {
	case errors.As(err, &wrong):
		kind = kindWrong
		t.errors.Wrong++
	case errors.Is(err, errEOF):
		kind = kindShort
		t.errors.Short++
	case errors.Is(err, unix.ECONNREFUSED):
		kind = kindRefused
		t.errors.Refused++
	case errors.Is(err, unix.ETIMEDOUT) && !wasOpen:
		kind = kindTimeout
		t.errors.Timeout++
	case errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
		kind = kindReset
		t.errors.Reset++
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = fmt.Errorf("%w: no such source address, or its ports are used up (give more sources)", err)
		t.errors.Other++
	default:
		t.errors.Other++
	}
	t.sample(kind, fmt.Errorf("%s: %w", call, err))
}

// drop closes connection i.
func (t *thread) drop(i int) {
	c := &t.conns[i]
	switch c.state {
	case opening:
		t.pending--
	case opened:
		t.r.open.Add(-1)
	}
	if c.due {
		c.due = false
		t.due--
	}
	c.state = closed
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// sample keeps the text of the first error of a kind.
func (t *thread) sample(kind uint, err error) {
	if t.kinds&kind == 0 {
		t.kinds |= kind
		t.errors.Samples = append(t.errors.Samples, err.Error())
	}
}
