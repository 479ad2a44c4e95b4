package handoff

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// The process tests: workers are real processes, each with a loop, that serve
// clients over TCP by answering numbered messages with the number and their
// own incarnation. A worker is killed or stopped at a given step; clients see
// to it that no byte is lost, doubled or out of order, and that everybody is
// served, or closed if the process that owned the connection has died.

// roleEnv makes the test binary a worker. Its descriptors are the table, its
// inbox, the sending ends of all inboxes (of incarnation 1 first), and the
// listener.
const roleEnv = "HANDOFF_TEST_WORKER"

const (
	workers     = 2
	messageSize = 8

	// patience is how long a test waits for what must happen.
	patience = 30 * time.Second
)

// worker is the helper process.
type worker struct {
	*Endpoint
	self     uint64
	loop     *reactor.Loop
	alloc    *rows.Allocator
	conns    map[rows.ID]*echo
	listener int
	buffer   [4096]byte
}

// echo is a connection of a worker.
type echo struct {
	w     *worker
	id    rows.ID
	row   *rows.Row
	fd    int
	token reactor.Token
	in    []byte // an incomplete message
	since time.Duration
}

// play is the worker's main. role is "incarnation deadline tailwait signal
// point occurrence", the times in milliseconds.
func play(role string) int {
	if err := work(role); err != nil {
		fmt.Println("failed", err)
		return 1
	}
	return 0
}

func work(role string) error {
	w := &worker{conns: make(map[rows.ID]*echo), listener: 5 + workers}
	var deadline, tailWait, signal, at, nth int
	if _, err := fmt.Sscan(role, &w.self, &deadline, &tailWait, &signal, &at, &nth); err != nil {
		return err
	}
	table, err := rows.Open(3)
	if err != nil {
		return err
	}
	w.alloc = table.Allocator(w.self)
	if w.loop, err = reactor.New(reactor.Options{}); err != nil {
		return err
	}
	w.Endpoint, err = New(Options{
		Self: w.self, Table: table, Inbox: 4,
		Deadline: time.Duration(deadline) * time.Millisecond, TailWait: time.Duration(tailWait) * time.Millisecond,
		Adopt: w.adopt, Join: func(Incoming, Incoming) {}, Free: w.alloc.Free,
		Trouble: func(err error) { fmt.Println("trouble", err) },
		Now:     w.loop.Clock,
		After: func(d time.Duration, f func()) func() {
			t := w.loop.After(d, f)
			return func() { t.Stop() }
		},
	})
	if err != nil {
		return err
	}
	if signal != 0 {
		w.step = func(p point) {
			if p == point(at) {
				if nth--; nth == 0 {
					// To this very thread, which then goes no further.
					runtime.LockOSThread()
					unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.Signal(signal))
					runtime.UnlockOSThread()
				}
			}
		}
	}
	for i := range workers {
		if uint64(i+1) != w.self {
			w.Peer(uint64(i+1), i+1, 5+i)
		}
	}
	for fd := 3; fd <= w.listener; fd++ {
		unix.CloseOnExec(fd)
	}
	if _, err := w.loop.Add(4, reactor.Readable, ready(func() {
		if err := w.Readable(); err != nil {
			fmt.Println("trouble", err)
		}
	})); err != nil {
		return err
	}
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			words := strings.Fields(in.Text())
			_ = w.loop.Post(func() { w.command(words) })
		}
		w.loop.Stop() // the test is over
	}()
	fmt.Println("ready")
	return w.loop.Run()
}

type ready func()

func (f ready) OnReady(reactor.Events) { f() }

// command does what the test wants; each is answered by one line.
func (w *worker) command(words []string) {
	number := func(i int) uint64 {
		n, _ := strconv.ParseUint(words[i], 10, 64)
		return n
	}
	switch words[0] {
	case "accept":
		for range number(1) {
			if err := w.accept(); err != nil {
				fmt.Println("failed", err)
				return
			}
		}
		fmt.Println("accepted")
	case "give":
		var units []Unit
		for _, c := range w.conns {
			c.freeze()
			units = append(units, Unit{First: c})
		}
		w.Give(number(1), 0, units, func(o Outcome) {
			fmt.Println("given", o.Given, o.Refused, o.Thawed, o.Err)
		})
	case "gone":
		w.Gone(number(1))
		fmt.Println("so")
	case "count":
		fmt.Println("serves", len(w.conns))
	case "limit": // so many descriptors more
		fds, err := os.ReadDir("/proc/self/fd")
		if err == nil {
			n := uint64(len(fds)) + number(1)
			err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n})
		}
		fmt.Println("limited", err)
	}
}

func (w *worker) accept() error {
	fd, _, err := unix.Accept4(w.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	id, row, err := w.alloc.Take()
	if err != nil {
		return err
	}
	cookie, err := new(system).cookie(fd)
	if err != nil {
		return err
	}
	row.Cookie.Store(cookie)
	c := &echo{w: w, id: id, row: row, fd: fd}
	c.serve()
	return nil
}

func (w *worker) adopt(o Offer) (Incoming, error) {
	return &echo{w: w, id: o.ID, row: o.Row, fd: o.FD, in: append([]byte(nil), o.Body...)}, nil
}

func (c *echo) serve() {
	var err error
	if c.token, err = c.w.loop.Add(c.fd, reactor.Readable, c); err != nil {
		fmt.Println("failed", err)
	}
	c.w.conns[c.id] = c
}

func (c *echo) freeze() {
	c.since = c.w.loop.Clock()
	_ = c.w.loop.Remove(c.token)
}

func (c *echo) OnReady(reactor.Events) {
	n, errno := reactor.Read(c.fd, c.w.buffer[:])
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0 || n == 0:
		_ = c.w.loop.Remove(c.token)
		delete(c.w.conns, c.id)
		c.w.alloc.Free(c.id)
		unix.Close(c.fd)
		return
	}
	c.in = append(c.in, c.w.buffer[:n]...)
	var out []byte
	for ; len(c.in) >= messageSize; c.in = c.in[messageSize:] {
		out = append(out, c.in[:messageSize/2]...)
		out = binary.LittleEndian.AppendUint32(out, uint32(c.w.self))
	}
	if len(out) > 0 {
		if n, errno := reactor.Write(c.fd, out); n != len(out) {
			fmt.Println("failed", n, errno)
		}
	}
}

func (c *echo) ID() rows.ID                        { return c.id }
func (c *echo) Row() *rows.Row                     { return c.row }
func (c *echo) FD() int                            { return c.fd }
func (c *echo) Since() time.Duration               { return c.since }
func (c *echo) Capture(dst []byte) ([]byte, error) { return append(dst, c.in...), nil }
func (c *echo) Thaw()                              { c.serve() }
func (c *echo) Left(int) []byte {
	unix.Close(c.fd)
	delete(c.w.conns, c.id)
	return nil
}
func (c *echo) Serve(bool)        { c.serve() }
func (c *echo) Tail([]byte) error { return nil }
func (c *echo) Lost()             {}
func (c *echo) Drop()             { unix.Close(c.fd) }

// stage is the test's side: two workers and their clients.
type stage struct {
	t       *testing.T
	table   *rows.Table
	workers [workers + 1]*player
	address string
	clients []*client
}

// player is a worker process.
type player struct {
	t     *testing.T
	name  uint64
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed when it has ended
	alive bool
}

// fault is what a worker does to itself at a step.
type fault struct {
	signal unix.Signal
	at     point
	nth    int
}

func newStage(t *testing.T, deadline, tailWait time.Duration, faults map[uint64]fault) *stage {
	t.Helper()
	s := &stage{t: t, table: newTable(t, 2048)}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.address = l.Addr().String()
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dup := func(fd int) *os.File {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "")
	}
	var inboxes, senders [workers]*os.File
	for i := range workers {
		receiving, sending, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		inboxes[i], senders[i] = os.NewFile(uintptr(receiving), ""), os.NewFile(uintptr(sending), "")
		defer inboxes[i].Close()
		defer senders[i].Close()
	}
	table := dup(s.table.FD())
	defer table.Close()
	for i := range workers {
		name := uint64(i + 1)
		f := faults[name]
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", fmt.Sprintf("%s=%d %d %d %d %d %d", roleEnv, name, deadline.Milliseconds(), tailWait.Milliseconds(), f.signal, f.at, f.nth))
		cmd.ExtraFiles = append([]*os.File{table, inboxes[i]}, append(senders[:], listener)...)
		cmd.Stderr = os.Stderr
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
		p := &player{t: t, name: name, cmd: cmd, in: in, lines: make(chan string, 100), alive: true}
		s.workers[name] = p
		go func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				p.lines <- lines.Text()
			}
			_ = cmd.Wait()
			close(p.lines)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Signal(unix.SIGCONT)
			in.Close()
			for line := range p.lines {
				p.judge(line)
			}
		})
		p.expect("ready")
	}
	return s
}

// judge fails the test for what a worker must not say.
func (p *player) judge(line string) {
	if strings.HasPrefix(line, "failed") {
		p.t.Errorf("worker %d: %s", p.name, line)
	}
}

func (p *player) say(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for a line that begins so and returns its words. Without one,
// the worker has ended.
func (p *player) expect(prefix string) []string {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.alive = false
				return nil
			}
			p.judge(line)
			if strings.HasPrefix(line, prefix) {
				return strings.Fields(line)
			}
		case <-timeout:
			p.t.Fatalf("worker %d does not say %q", p.name, prefix)
		}
	}
}

func (p *player) ask(prefix, format string, args ...any) []string {
	p.t.Helper()
	p.say(format, args...)
	return p.expect(prefix)
}

// given is what comes after "given" in an answer.
func (p *player) given(words []string) (given, refused, thawed int) {
	p.t.Helper()
	if len(words) < 4 {
		p.t.Fatalf("worker %d says %q", p.name, words)
	}
	for i, n := range []*int{&given, &refused, &thawed} {
		*n, _ = strconv.Atoi(words[i+1])
	}
	return given, refused, thawed
}

// client sends numbered messages, each in two parts, and checks the answers.
type client struct {
	conn net.Conn
	stop chan struct{}
	over chan struct{} // closed when it has ended
	mu   sync.Mutex
	sent uint32 // and answered
	by   uint32 // who has answered last
	err  error  // io.EOF: it was closed
}

// connect makes clients of worker 1.
func (s *stage) connect(n int) {
	s.t.Helper()
	for range n {
		nc, err := net.Dial("tcp4", s.address)
		if err != nil {
			s.t.Fatal(err)
		}
		c := &client{conn: nc, stop: make(chan struct{}), over: make(chan struct{})}
		s.clients = append(s.clients, c)
		go c.run()
	}
	s.t.Cleanup(func() {
		for _, c := range s.clients {
			close(c.stop)
			c.conn.Close()
			<-c.over
		}
	})
	if s.workers[1].ask("accepted", "accept %d", n) == nil {
		s.t.Fatal("worker 1 has ended")
	}
	s.answered()
}

func (c *client) run() {
	defer close(c.over)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := uint32(1); ; n++ {
		by, err := c.converse(n)
		c.mu.Lock()
		if err == nil {
			c.sent, c.by = n, by
		} else {
			c.err = err
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-c.stop:
			return
		}
	}
}

func (c *client) converse(n uint32) (by uint32, err error) {
	m := binary.LittleEndian.AppendUint64(nil, uint64(n))
	for _, part := range [][]byte{m[:3], m[3:]} {
		if _, err := c.conn.Write(part); err != nil {
			return 0, io.EOF
		}
	}
	if _, err := io.ReadFull(c.conn, m); err != nil {
		return 0, io.EOF
	}
	if got := binary.LittleEndian.Uint32(m); got != n {
		return 0, fmt.Errorf("the answer to %d is one to %d", n, got)
	}
	return binary.LittleEndian.Uint32(m[4:]), nil
}

func (c *client) state() (sent, by uint32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.by, c.err
}

// answered waits until every client has got an answer to something it says
// from now on, or was closed, and returns how many were closed.
func (s *stage) answered() (closed int) {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for i, c := range s.clients {
		first, _, _ := c.state()
		for {
			sent, by, err := c.state()
			if errors.Is(err, io.EOF) {
				closed++
				break
			}
			if err != nil {
				s.t.Fatalf("client %d: %v", i, err)
			}
			if sent > first+1 { // what is under way may be one from before
				break
			}
			if time.Now().After(end) {
				s.t.Fatalf("client %d is not served: it has %d answers, the last from %d", i, sent, by)
			}
			<-tick.C
		}
	}
	return closed
}

// buried waits for the death of a worker and does what a supervisor does.
func (s *stage) buried(name uint64) {
	s.t.Helper()
	p := s.workers[name]
	for p.alive {
		p.expect("nothing that it says")
	}
	s.workers[3-name].ask("so", "gone %d", name)
	s.table.Reclaim(name)
}

// settled checks that those who are served are the survivors', and nobody
// else is there.
func (s *stage) settled(closed int) {
	s.t.Helper()
	want := len(s.clients) - closed
	got := 0
	for _, p := range s.workers[1:] {
		if !p.alive {
			continue
		}
		owned := 0
		s.table.Owned(p.name, func(rows.ID, *rows.Row) { owned++ })
		serves, err := strconv.Atoi(p.ask("serves", "count")[1])
		if err != nil || serves != owned {
			s.t.Errorf("worker %d serves %d connections and owns %d rows", p.name, serves, owned)
		}
		got += serves
	}
	if got != want {
		s.t.Errorf("%d connections are served, %d clients are", got, want)
	}
}

var pointNames = map[point]string{
	pointOffer: "before a row is offered", pointSend: "before the offer is sent", pointSent: "after the offer was sent",
	pointDecide: "before a row is looked at", pointLeft: "after a connection has left", pointTails: "before the tails are sent",
	pointTold: "after the tails were sent", pointRead: "after the offer was read", pointCommit: "before a commit",
	pointCommitted: "after a commit", pointAnswer: "before the answer", pointAnswered: "after the answer", pointServed: "after all are served",
}

func TestDeathAtEachStepLeavesEveryConnectionServedOnceOrClosed(t *testing.T) {
	const clients = 100
	for p := pointOffer; p < points; p++ {
		if p == pointHalf {
			continue // these connections have no pairs; the model has
		}
		t.Run(pointNames[p], func(t *testing.T) {
			t.Parallel()
			dies, survives := uint64(1), uint64(2)
			if p >= pointRead {
				dies, survives = 2, 1
			}
			nth := 1
			switch p {
			case pointOffer, pointDecide, pointLeft, pointCommit, pointCommitted:
				nth = 40 // in the middle of the first batch
			}
			s := newStage(t, 2*time.Second, 10*time.Second, map[uint64]fault{dies: {unix.SIGKILL, p, nth}})
			s.connect(clients)
			s.workers[1].say("give 2")
			s.buried(dies)
			closed := s.answered()
			s.settled(closed)
			t.Logf("%d of %d closed with worker %d, the others served by %d", closed, clients, dies, survives)
			switch p {
			case pointOffer, pointSend: // nothing was sent
				if closed != clients {
					t.Errorf("%d were closed, want all", closed)
				}
			case pointRead, pointCommit: // pointCommit: 39 are committed
				if want := map[point]int{pointRead: 0, pointCommit: 39}[p]; closed != want {
					t.Errorf("%d were closed, want %d", closed, want)
				}
			case pointCommitted:
				if closed != 40 {
					t.Errorf("%d were closed, want 40", closed)
				}
			case pointAnswer, pointAnswered, pointServed:
				if closed < BatchConnections {
					t.Errorf("%d were closed, want at least the first batch", closed)
				}
			}
		})
	}
}

func TestTakerThatHangsCostsNothing(t *testing.T) {
	const clients = 100
	for _, tt := range []struct {
		at     point
		nth    int
		served int // by the taker in the end
	}{
		{pointRead, 1, 0},
		{pointCommit, 40, 39},
		{pointCommitted, 40, 40},
		{pointAnswer, 1, BatchConnections},
	} {
		t.Run(pointNames[tt.at], func(t *testing.T) {
			t.Parallel()
			s := newStage(t, 300*time.Millisecond, 10*time.Second, map[uint64]fault{2: {unix.SIGSTOP, tt.at, tt.nth}})
			s.connect(clients)
			given, refused, thawed := s.workers[1].given(s.workers[1].ask("given", "give 2"))
			if given != tt.served || refused != 0 || thawed != clients-tt.served {
				t.Errorf("%d given, %d refused, %d thawed, want %d, 0, %d", given, refused, thawed, tt.served, clients-tt.served)
			}
			// It is late, and gets nothing more; then it wakes up.
			if given, _, _ := s.workers[1].given(s.workers[1].ask("given", "give 2")); given != 0 {
				t.Errorf("%d given to a worker that is late", given)
			}
			if err := s.workers[2].cmd.Process.Signal(unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if closed := s.answered(); closed != 0 {
				t.Errorf("%d were closed", closed)
			}
			s.settled(0)
			// It has answered meanwhile, or will: then it gets the rest.
			for end := time.Now().Add(patience); given < clients && time.Now().Before(end); {
				n, _, _ := s.workers[1].given(s.workers[1].ask("given", "give 2"))
				given += n
			}
			s.answered()
			s.settled(0)
			if given != clients {
				t.Errorf("%d were given in the end, want all", given)
			}
		})
	}
}

func TestGiverThatHangsAfterTheCommitHoldsUpNobody(t *testing.T) {
	t.Parallel()
	const clients = 50
	s := newStage(t, 2*time.Second, 200*time.Millisecond, map[uint64]fault{1: {unix.SIGSTOP, pointDecide, 1}})
	s.connect(clients)
	s.workers[1].say("give 2")
	if closed := s.answered(); closed != 0 {
		t.Errorf("%d were closed", closed)
	}
	s.workers[2].expect("trouble") // no tails
	for _, c := range s.clients {
		if _, by, _ := c.state(); by != 2 {
			t.Errorf("a client is served by %d", by)
		}
	}
	if err := s.workers[1].cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if given, _, _ := s.workers[1].given(s.workers[1].expect("given")); given != clients {
		t.Errorf("%d given, want all", given)
	}
	s.answered()
	s.settled(0)
}

func TestTakerWithoutDescriptorsRefuses(t *testing.T) {
	t.Parallel()
	const clients, room = 200, 90
	s := newStage(t, 2*time.Second, 10*time.Second, nil)
	s.connect(clients)
	if words := s.workers[2].ask("limited", "limit %d", room); words[1] != "<nil>" {
		t.Fatal(words)
	}
	given, refused, thawed := s.workers[1].given(s.workers[1].ask("given", "give 2"))
	// A few are open while the limit is counted.
	if given < room-5 || given > room+5 || refused != clients-given || thawed != 0 {
		t.Errorf("%d given, %d refused, %d thawed, want about %d given", given, refused, thawed, room)
	}
	if closed := s.answered(); closed != 0 {
		t.Errorf("%d were closed", closed)
	}
	s.settled(0)
}

func TestConnectionsGoToAndFroUnderTraffic(t *testing.T) {
	t.Parallel()
	const clients = 300
	s := newStage(t, 2*time.Second, 10*time.Second, nil)
	s.connect(clients)
	for round := range 10 {
		from := uint64(round%2 + 1)
		given, refused, thawed := s.workers[from].given(s.workers[from].ask("given", "give %d", 3-from))
		if given != clients {
			t.Errorf("round %d: %d given, %d refused, %d thawed", round, given, refused, thawed)
		}
	}
	if closed := s.answered(); closed != 0 {
		t.Errorf("%d were closed", closed)
	}
	s.settled(0)
}
