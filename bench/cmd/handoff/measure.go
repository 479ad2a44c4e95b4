package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// patience bounds every answer of a process.
const patience = 60 * time.Second

// answer is what a process of ours says when it has done something.
type answer struct {
	Began, Ended time.Duration // CLOCK_MONOTONIC
	CPU          time.Duration
	Done         int // connections
	Times        []time.Duration
	MiB, PeakMiB float64
	Errors       int
	Error        string
}

// child is a process of ours. It ends with its standard input.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start starts a process. With cpu at least 0 it has that one only.
func start(role string, cpu int, stderr io.Writer, files ...*os.File) (*child, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GOMAXPROCS=2")
	cmd.ExtraFiles = files
	cmd.Stderr = stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startOn(cpu, cmd); err != nil {
		return nil, err
	}
	return &child{cmd, in, bufio.NewReaderSize(out, 1<<20)}, nil
}

// startOn starts a process that inherits the CPU of this thread. Left to
// itself, the kernel often has giver and taker take turns on one CPU while
// another is idle, in one round and not in the next, since each is woken by
// the other.
func startOn(cpu int, cmd *exec.Cmd) error {
	if cpu < 0 {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	one.Set(nth(&before, cpu%before.Count()))
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	err := cmd.Start()
	return errors.Join(err, os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &before)))
}

// nth returns a set's nth CPU, which it has.
func nth(set *unix.CPUSet, n int) int {
	for cpu := 0; ; cpu++ {
		if set.IsSet(cpu) {
			if n == 0 {
				return cpu
			}
			n--
		}
	}
}

func (c *child) ask(format string, args ...any) (a answer, err error) {
	what := fmt.Sprintf(format, args...)
	late := time.AfterFunc(patience, func() { c.cmd.Process.Kill() })
	defer late.Stop()
	if _, err = fmt.Fprintln(c.in, what); err == nil {
		var line []byte
		if line, err = c.out.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &a)
		}
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		err = fmt.Errorf("handoff: %q: %w", what, err)
	}
	return a, err
}

func (c *child) stop() {
	c.in.Close()
	late := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
	defer late.Stop()
	c.cmd.Wait() // how it ended does not matter any more
}

// pair is two processes of which one has all connections, and their clients.
type pair struct {
	sides   [2]*child
	clients *child
	silent  bool // the clients say nothing
	has     int  // which side has the connections
}

// setup is all processes of a row.
type setup struct {
	pairs, bare []*pair
	children    []*child
	pinned      bool
	stderr      io.Writer
}

// stop ends the last first: clients before those that serve them.
func (s *setup) stop() {
	for _, c := range slices.Backward(s.children) {
		c.stop()
	}
}

// start starts a process; cpu counts if they are pinned, and is -1 for one
// that never is.
func (s *setup) start(role string, cpu int, files ...*os.File) (*child, error) {
	if !s.pinned {
		cpu = -1
	}
	c, err := start(role, cpu, s.stderr, files...)
	if err != nil {
		return nil, fmt.Errorf("handoff: %s: %w", role, err)
	}
	s.children = append(s.children, c)
	return c, nil
}

// measure measures a row.
func measure(size size, o settings, interrupted <-chan os.Signal, stderr io.Writer) (*row, error) {
	s := &setup{stderr: stderr, pinned: !o.unpinned}
	defer s.stop()
	// Each worker takes rows by blocks.
	table, err := rows.Create(2*size.connections + 2048*size.pairs)
	if err != nil {
		return nil, err
	}
	defer table.Close()
	for i := range size.pairs {
		n := size.connections / size.pairs
		if i < size.connections%size.pairs {
			n++
		}
		p, err := s.pair(i, n, o.rate/size.pairs, table)
		if err == nil {
			s.pairs = append(s.pairs, p)
			p, err = s.barePair(i, n)
			s.bare = append(s.bare, p)
		}
		if err != nil {
			return nil, err
		}
	}
	r := &row{Connections: size.connections, Pairs: size.pairs}
	if err := s.memory(func(a answer) { r.BeforeMiB = max(r.BeforeMiB, a.MiB) }); err != nil {
		return nil, err
	}
	var stalls, replies, quiet []time.Duration
	const uncounted = 2
	for i := range uncounted + o.rounds {
		select {
		case <-interrupted:
			return nil, errors.New("handoff: interrupted")
		default:
		}
		var handed, bare round
		var err1, err2 error
		// Now this one first, now the other.
		if i%2 == 0 {
			handed, err1 = s.round(s.pairs)
		}
		bare, err2 = s.round(s.bare)
		if i%2 == 1 {
			handed, err1 = s.round(s.pairs)
		}
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		r.Errors += handed.errors + size.connections - handed.done
		if handed.first != "" && r.First == "" {
			r.First = handed.first
		}
		if i < uncounted {
			continue
		}
		r.Rates = append(r.Rates, handed.rate())
		r.Bare = append(r.Bare, bare.rate())
		r.CPU = append(r.CPU, handed.cpu())
		r.BareCPU = append(r.BareCPU, bare.cpu())
		stalls = append(stalls, handed.stalls...)
		replies = append(replies, handed.replies...)
		quiet = append(quiet, handed.quiet...)
	}
	r.Stall, r.Reply, r.Quiet = summarize(stalls), summarize(replies), summarize(quiet)
	return r, s.memory(func(a answer) { r.GiverMiB = max(r.GiverMiB, a.PeakMiB) })
}

func (s *setup) memory(f func(answer)) error {
	for _, p := range s.pairs {
		for _, c := range p.sides {
			a, err := c.ask("memory")
			if err != nil {
				return err
			}
			f(a)
		}
	}
	return nil
}

// pair starts two workers and the clients of the first.
func (s *setup) pair(i, n, rate int, table *rows.Table) (*pair, error) {
	l, listener, err := listen()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer listener.Close()
	fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	shared := os.NewFile(uintptr(fd), "rows")
	defer shared.Close()
	var receiving, sending [2]*os.File
	for side := range 2 {
		in, out, err := handoff.Pair()
		if err != nil {
			return nil, err
		}
		receiving[side], sending[side] = os.NewFile(uintptr(in), "inbox"), os.NewFile(uintptr(out), "inbox")
		defer receiving[side].Close()
		defer sending[side].Close()
	}
	p := &pair{}
	for side := range 2 {
		self, other := 2*i+side+1, 2*i+1-side+1
		p.sides[side], err = s.start(fmt.Sprintf("worker %d %d", self, other), i+side, shared, receiving[side], sending[1-side], listener)
		if err != nil {
			return nil, err
		}
	}
	return p, s.connect(p, l.Addr().String(), n, rate)
}

// barePair starts two bare processes and the clients of the first, which say
// nothing.
func (s *setup) barePair(i, n int) (*pair, error) {
	l, listener, err := listen()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer listener.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", os.NewSyscallError("socketpair", err))
	}
	p := &pair{silent: true}
	for side := range 2 {
		end := os.NewFile(uintptr(fds[side]), "pair")
		defer end.Close()
		if p.sides[side], err = s.start("bare", i+side, end, listener); err != nil {
			return nil, err
		}
	}
	return p, s.connect(p, l.Addr().String(), n, 0)
}

func listen() (*net.TCPListener, *os.File, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, fmt.Errorf("handoff: %w", err)
	}
	f, err := l.File()
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("handoff: %w", err)
	}
	return l, f, nil
}

// connect has clients connect and the first of the pair accept.
func (s *setup) connect(p *pair, address string, n, rate int) (err error) {
	if p.clients, err = s.start(fmt.Sprintf("clients %d", rate), -1); err != nil {
		return err
	}
	const step = 1000 // fits into the backlog
	for n > 0 {
		m := min(step, n)
		n -= m
		if _, err := p.clients.ask("connect %s %d", address, m); err != nil {
			return err
		}
		if _, err := p.sides[0].ask("accept %d", m); err != nil {
			return err
		}
	}
	return nil
}

// round is what came of all pairs' handing over once.
type round struct {
	began, ended           time.Duration
	giver, taker           time.Duration // CPU time
	done, errors           int
	first                  string
	stalls, replies, quiet []time.Duration
}

// cpu returns microseconds a connection.
func (r *round) cpu() CPU {
	each := func(d time.Duration) float64 { return float64(d) / 1e3 / float64(max(1, r.done)) }
	return CPU{each(r.giver), each(r.taker)}
}

func (r *round) rate() float64 { return float64(r.done) / (r.ended - r.began).Seconds() }

// quietTime is for how long messages are answered before each round.
const quietTime = 200 * time.Millisecond

// round has all pairs hand over at the same time.
func (s *setup) round(pairs []*pair) (round, error) {
	var r round
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	for _, p := range pairs {
		all.Go(func() {
			one, err := p.round()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			if r.began == 0 || one.began < r.began {
				r.began = one.began
			}
			r.ended = max(r.ended, one.ended)
			r.done += one.done
			r.giver += one.giver
			r.taker += one.taker
			r.errors += one.errors
			r.stalls = append(r.stalls, one.stalls...)
			r.replies = append(r.replies, one.replies...)
			r.quiet = append(r.quiet, one.quiet...)
			if one.first != "" {
				r.first = one.first
			}
		})
	}
	all.Wait()
	return r, errors.Join(errs...)
}

func (p *pair) round() (r round, err error) {
	quiet, err := p.watch(true)
	if err != nil {
		return r, err
	}
	giver, taker := p.sides[p.has], p.sides[1-p.has]
	p.has = 1 - p.has
	if _, err = taker.ask("ready"); err != nil {
		return r, err
	}
	given, err := giver.ask("give")
	if err != nil {
		return r, err
	}
	taken, err := taker.ask("taken %d", given.Done)
	if err != nil {
		return r, err
	}
	replies, err := p.watch(false)
	if err != nil {
		return r, err
	}
	r = round{
		giver: given.CPU, taker: taken.CPU,
		began: given.Began, ended: max(given.Ended, taken.Ended), done: given.Done, errors: replies.Errors,
		stalls: taken.Times, replies: replies.Times, quiet: quiet.Times,
	}
	if r.errors > 0 {
		r.first = "a client had a wrong answer, or was closed"
	}
	return r, nil
}

// watch returns what the clients have seen since the last time: while nothing
// happens, or until now, and then each of them is heard.
func (p *pair) watch(quiet bool) (a answer, err error) {
	if p.silent {
		return a, nil
	}
	if quiet {
		if _, err = p.clients.ask("watch"); err != nil {
			return a, err
		}
		<-time.After(quietTime)
	}
	if a, err = p.clients.ask("watch"); err != nil || quiet {
		return a, err
	}
	check, err := p.clients.ask("check")
	a.Errors += check.Errors
	return a, err
}
