package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// roleEnv makes this program one of the processes it measures.
const roleEnv = "MAINSTAY_BENCH_HANDOFF"

// descriptors is how many a process may have to hold.
const descriptors = 20000

// player is a process: it answers each line by one, in order.
type player interface {
	// do does what a line says and answers, now or later.
	do(words []string, answer func(answer))
	// run lets it live, and calls its do through post.
	run() error
	post(f func())
}

func play(role string, in io.Reader, out io.Writer) int {
	if err := reactor.ReserveDescriptors(descriptors); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := newPlayer(strings.Fields(role))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			words := strings.Fields(lines.Text())
			answered := make(chan answer, 1)
			p.post(func() { p.do(words, func(a answer) { answered <- a }) })
			if err := json.NewEncoder(out).Encode(<-answered); err != nil {
				break
			}
		}
		os.Exit(0) // whoever has started this is done, or gone
	}()
	if err := p.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func newPlayer(role []string) (player, error) {
	number := func(i int) int { n, _ := strconv.Atoi(role[i]); return n }
	switch {
	case len(role) == 3 && role[0] == "worker":
		return newWorker(uint64(number(1)), uint64(number(2)))
	case len(role) == 1 && role[0] == "bare":
		return newBare(), nil
	case len(role) == 2 && role[0] == "clients":
		return newClients(number(1))
	}
	return nil, fmt.Errorf("handoff: no role %q", role)
}

func failed(err error) answer { return answer{Error: err.Error()} }

// memory reads what this process has and had at most.
func memory() (a answer) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return failed(err)
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(words[1], 64)
		switch words[0] {
		case "VmRSS:":
			a.MiB = kib / 1024
		case "VmHWM:":
			a.PeakMiB = kib / 1024
		}
	}
	return a
}

// clock reads CLOCK_MONOTONIC, which is the same in all processes.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // it always exists
	}
	return time.Duration(ts.Nano())
}

// spent returns the CPU time of this process.
func spent() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // there is no reason for one
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func accept(listener int) (int, unix.Sockaddr, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
			return -1, nil, os.NewSyscallError("poll", err)
		}
		fd, peer, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return fd, peer, os.NewSyscallError("accept4", err)
	}
}

// worker is a process that serves, by the packages that are measured. Its
// descriptors: 3 the table, 4 its inbox, 5 the other's, 6 the listener.
type worker struct {
	loop     *reactor.Loop
	set      *conn.Set
	config   *conn.Config
	endpoint *handoff.Endpoint
	other    uint64
	cpu      time.Duration // when the round began

	// As giver.

	move     []*conn.Conn // still to be frozen
	freezing int
	frozen   []handoff.Unit
	giving   int // calls of Give that are open
	result   answer
	answer   func(answer)

	// As taker.

	stalls []time.Duration
	last   time.Duration
	wanted int // connections, before taken is answered
	taken  func(answer)
}

// echo answers every message with itself.
type echo struct{ conn.NopHandler }

func (echo) OnMessage(c *conn.Conn, m []byte) { _ = c.Send(m) } // an error closes it, and the client sees that

func newWorker(self, other uint64) (*worker, error) {
	table, err := rows.Open(3)
	if err != nil {
		return nil, err
	}
	w := &worker{other: other}
	if w.loop, err = reactor.New(reactor.Options{}); err != nil {
		return nil, err
	}
	alloc := table.Allocator(self)
	w.set = conn.NewSet(w.loop, alloc)
	w.config = &conn.Config{
		Listener: "bench", ProtocolName: "raw", Handler: echo{}, Inline: true, Seat: scoreboard.NewSeat(),
		Limits: conn.Limits{FirstByte: -1},
	}
	w.endpoint, err = handoff.New(handoff.Options{
		Self: self, Table: table, Inbox: 4, Adopt: w.adopt, Free: alloc.Free,
		Join:    func(handoff.Incoming, handoff.Incoming) {},
		Trouble: func(err error) { fmt.Fprintln(os.Stderr, err) },
		Now:     w.loop.Clock,
		After: func(d time.Duration, f func()) func() {
			t := w.loop.After(d, f)
			return func() { t.Stop() }
		},
	})
	if err != nil {
		return nil, err
	}
	w.endpoint.Peer(other, int(other), 5)
	_, err = w.loop.Add(4, reactor.Readable, readable(func() {
		if w.endpoint.Readable() != nil {
			w.loop.Stop() // the other has ended
		}
	}))
	return w, err
}

type readable func()

func (f readable) OnReady(reactor.Events) { f() }

func (w *worker) run() error    { return w.loop.Run() }
func (w *worker) post(f func()) { _ = w.loop.Post(f) } // it stops with the process only

func (w *worker) do(words []string, answer func(answer)) {
	switch words[0] {
	case "accept":
		n, _ := strconv.Atoi(words[1])
		for range n {
			fd, peer, err := accept(6)
			if err == nil {
				_, err = w.set.Accepted(fd, peer, w.config)
			}
			if err != nil {
				answer(failed(err))
				return
			}
		}
		answer(ok)
	case "memory":
		answer(memory())
	case "ready":
		w.stalls, w.cpu = w.stalls[:0], spent()
		answer(ok)
	case "give":
		w.move = w.move[:0]
		w.set.Each(func(c *conn.Conn) { w.move = append(w.move, c) })
		w.cpu = spent()
		w.result, w.answer = answerAt(clock()), answer
		w.step()
	case "taken":
		w.wanted, _ = strconv.Atoi(words[1])
		w.taken = answer
		w.tellTaken()
	default:
		answer(failed(fmt.Errorf("no command %q", words[0])))
	}
}

var ok answer

func answerAt(began time.Duration) answer { return answer{Began: began} }

// step freezes as many as there is room for, and ends the round when nothing
// is left.
func (w *worker) step() {
	for room := w.endpoint.Room(w.other) - w.freezing; room > 0 && len(w.move) > 0; room-- {
		c := w.move[len(w.move)-1]
		w.move = w.move[:len(w.move)-1]
		w.freezing++
		w.set.Freeze(c, w.onFrozen)
	}
	if len(w.move) == 0 && w.freezing == 0 && w.giving == 0 {
		w.result.Ended, w.result.CPU = clock(), spent()-w.cpu
		w.answer(w.result)
	}
}

func (w *worker) onFrozen(f *conn.Frozen, err error) {
	w.freezing--
	if err == nil {
		w.frozen = append(w.frozen, handoff.Unit{First: f})
	}
	if len(w.frozen) == handoff.BatchConnections || w.freezing == 0 {
		w.giving++
		w.endpoint.Give(w.other, uint8(conn.Move), w.frozen, w.given)
		w.frozen = w.frozen[:0]
	}
}

func (w *worker) given(o handoff.Outcome) {
	w.giving--
	w.result.Done += o.Given
	if o.Err != nil {
		fmt.Fprintln(os.Stderr, o.Err)
	}
	w.step()
}

func (w *worker) adopt(o handoff.Offer) (handoff.Incoming, error) {
	a, err := w.set.Adopt(o.FD, o.ID, o.Row, func(string) *conn.Config { return w.config }, o.Body)
	if err != nil {
		return nil, err
	}
	return &incoming{a, w, o.Since, conn.Reason(o.Why)}, nil
}

// incoming is an adopted connection, with its reason.
type incoming struct {
	*conn.Adopted
	worker *worker
	since  time.Duration
	why    conn.Reason
}

func (i *incoming) Serve(waitForTail bool) {
	i.Adopted.Serve(i.why, waitForTail)
	w := i.worker
	w.last = w.loop.Clock()
	w.stalls = append(w.stalls, w.last-i.since)
	w.tellTaken()
}

// tellTaken answers "taken" once all are served.
func (w *worker) tellTaken() {
	if w.taken != nil && len(w.stalls) >= w.wanted {
		w.taken(answer{Ended: w.last, CPU: spent() - w.cpu, Done: len(w.stalls), Times: w.stalls})
		w.taken = nil
	}
}

// bare passes descriptors and does nothing else. Its descriptors: 3 its end of
// the pair, 4 the listener.
type bare struct {
	commands chan func()
	epoll    int
	conns    []int
	oob      []byte
	received chan struct{} // closed when what was being received is there
	last     time.Duration
	cpu      time.Duration
	err      error
}

const bareBatch = 64

func newBare() *bare {
	return &bare{commands: make(chan func()), epoll: -1, oob: make([]byte, unix.CmsgSpace(4*bareBatch))}
}

func (b *bare) post(f func()) { b.commands <- f }

func (b *bare) run() error {
	for f := range b.commands {
		f()
	}
	return nil
}

func (b *bare) do(words []string, answer func(answer)) {
	switch words[0] {
	case "accept":
		n, _ := strconv.Atoi(words[1])
		for range n {
			fd, _, err := accept(4)
			if err != nil {
				answer(failed(err))
				return
			}
			b.conns = append(b.conns, fd)
		}
		answer(ok)
	case "ready":
		var err error
		if b.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			answer(failed(os.NewSyscallError("epoll_create1", err)))
			return
		}
		b.received = make(chan struct{})
		b.cpu = spent()
		answer(ok)
		// Until the giver says that this was all.
		b.err = b.receive()
		b.cpu = spent() - b.cpu
		close(b.received)
	case "give":
		if b.epoll >= 0 {
			unix.Close(b.epoll) // a registration outlives close(2) while another has the file
			b.epoll = -1
		}
		cpu := spent()
		a := answerAt(clock())
		a.Done = len(b.conns)
		if err := b.send(); err != nil {
			answer(failed(err))
			return
		}
		a.Ended, a.CPU = clock(), spent()-cpu
		answer(a)
	case "taken":
		<-b.received
		if b.err != nil {
			answer(failed(b.err))
			return
		}
		a := answerAt(0)
		a.Ended, a.CPU, a.Done = b.last, b.cpu, len(b.conns)
		answer(a)
	default:
		answer(failed(fmt.Errorf("no command %q", words[0])))
	}
}

func (b *bare) send() error {
	for i := 0; i < len(b.conns); i += bareBatch {
		batch := b.conns[i:min(i+bareBatch, len(b.conns))]
		if err := sendmsg([]byte{1}, batch); err != nil {
			return err
		}
		for _, fd := range batch {
			unix.Close(fd)
		}
	}
	b.conns = b.conns[:0]
	return sendmsg([]byte{0}, nil)
}

func sendmsg(m []byte, fds []int) error {
	for {
		err := unix.Sendmsg(3, m, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

func (b *bare) receive() error {
	m := make([]byte, 1)
	for {
		n, oobn, flags, _, err := unix.Recvmsg(3, m, b.oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 || flags&unix.MSG_CTRUNC != 0 {
			return fmt.Errorf("received %d bytes with flags %#x: %w", n, flags, os.NewSyscallError("recvmsg", err))
		}
		if m[0] == 0 {
			b.last = clock()
			return nil
		}
		messages, err := unix.ParseSocketControlMessage(b.oob[:oobn])
		if err != nil {
			return err
		}
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return err
			}
			for _, fd := range fds {
				if err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}); err != nil {
					return os.NewSyscallError("epoll_ctl", err)
				}
				b.conns = append(b.conns, fd)
			}
		}
	}
}

// clients send messages, one after the other connection, so many a second.
type clients struct {
	loop    *reactor.Loop
	conns   []*client
	next    int
	times   []time.Duration // of answers since the last "watch"
	errors  int
	waiting int // for answers
	check   func(answer)
	asked   int // clients that a check has had say something
}

// client is one connection.
type client struct {
	all  *clients
	fd   int
	seq  uint64
	sent time.Duration // 0: no message is under way
	got  int           // bytes of the answer
	buf  [8]byte
	over bool
}

func newClients(rate int) (*clients, error) {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		return nil, err
	}
	c := &clients{loop: loop}
	if rate > 0 {
		// Few messages often, not many seldom.
		const ticks = 500
		debt := 0
		loop.Every(time.Second/ticks, func() {
			for debt += rate; debt >= ticks; debt -= ticks {
				c.sendNext()
			}
		})
	}
	return c, nil
}

func (c *clients) run() error    { return c.loop.Run() }
func (c *clients) post(f func()) { _ = c.loop.Post(f) } // it stops with the process only

func (c *clients) do(words []string, answer func(answer)) {
	switch words[0] {
	case "connect":
		n, _ := strconv.Atoi(words[2])
		for range n {
			if err := c.connect(words[1]); err != nil {
				answer(failed(err))
				return
			}
		}
		answer(ok)
	case "watch":
		answer(watched(c.times, c.errors))
		c.times, c.errors = nil, 0
	case "check":
		c.check, c.asked = answer, 0
		c.goOnChecking()
	default:
		answer(failed(fmt.Errorf("no command %q", words[0])))
	}
}

func watched(times []time.Duration, errors int) answer { return answer{Times: times, Errors: errors} }

func (c *clients) connect(address string) error {
	to, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	sa := &unix.SockaddrInet4{Port: to.Port}
	copy(sa.Addr[:], to.IP.To4())
	if err := unix.Connect(fd, sa); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	x := &client{all: c, fd: fd}
	if _, err := c.loop.Add(fd, reactor.Readable, x); err != nil {
		return err
	}
	c.conns = append(c.conns, x)
	return nil
}

// sendNext has the next client say something, unless it waits for an answer.
func (c *clients) sendNext() {
	if len(c.conns) == 0 {
		return
	}
	c.next = (c.next + 1) % len(c.conns)
	c.conns[c.next].say()
}

func (x *client) say() {
	if x.sent != 0 || x.over {
		return
	}
	x.seq++
	var m [8]byte
	binary.LittleEndian.PutUint64(m[:], x.seq)
	x.sent, x.got = x.all.loop.Clock(), 0
	x.all.waiting++
	if n, errno := reactor.Write(x.fd, m[:]); n != len(m) {
		x.end(fmt.Sprint("write: ", n, errno))
	}
}

func (x *client) OnReady(reactor.Events) {
	if x.over {
		return
	}
	n, errno := reactor.Read(x.fd, x.buf[x.got:])
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n == 0 || x.sent == 0 {
		x.end(fmt.Sprint("read: ", n, errno))
		return
	}
	if x.got += n; x.got < len(x.buf) {
		return
	}
	if got := binary.LittleEndian.Uint64(x.buf[:]); got != x.seq {
		x.end(fmt.Sprintf("the answer to %d is %d", x.seq, got))
		return
	}
	x.all.times = append(x.all.times, x.all.loop.Clock()-x.sent)
	x.answered()
}

func (x *client) answered() {
	x.sent, x.got = 0, 0
	x.all.waiting--
	x.all.goOnChecking()
}

// end counts what went wrong with a client, which says nothing more.
func (x *client) end(why string) {
	fmt.Fprintln(os.Stderr, "handoff: a client:", why)
	x.over = true
	x.all.errors++
	unix.Shutdown(x.fd, unix.SHUT_RDWR)
	if x.sent != 0 {
		x.answered()
	}
}

// goOnChecking has every client say something, some at a time, and answers
// when all have been answered.
func (c *clients) goOnChecking() {
	const atOnce = 64
	for c.check != nil && c.waiting < atOnce && c.asked < len(c.conns) {
		x := c.conns[c.asked]
		c.asked++
		x.say()
	}
	if c.check != nil && c.asked == len(c.conns) && c.waiting == 0 {
		answer := c.check
		c.check = nil
		answer(watched(nil, c.errors))
		c.errors = 0
	}
}
