// Package crowd opens many connections to an echo server on loopback, from
// processes of its own, and tells when each was open and when it had its
// first answer.
//
// A process has a limit of descriptors and an address of ports, so a crowd is
// divided among several processes, from 127.0.0.1, 127.0.0.2 and so on. Each
// is this program again: its main calls Member before anything else.
//
// For each connection a member calls connect(2), notes the time when that has
// returned, sends one byte, and notes the time when that byte has come back.
// When connect has returned the handshake is over, and on loopback the
// server's listening socket is readable by then; so the time between the two
// holds the server's wait for its turn, accept(2), what it does to serve the
// connection, one read and one write. All servers are treated alike.
//
// Invariants. Times are CLOCK_MONOTONIC, which all processes share. The
// schedule is fixed at the begin: a member that is late does not shift what
// follows. Connections are reset when they are closed, so that they leave no
// port behind in TIME_WAIT. A member ends when its standard input does. Every
// wait is bounded by Config.Timeout. Start reading at Open, then member.go.
package crowd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/bench/proc"
)

// Config says what a crowd does. Where no zero is explained a value is needed.
type Config struct {
	Port        int // of 127.0.0.1, where bytes are echoed
	Connections int
	Members     int           // processes, not more than connections
	Rate        float64       // connections a second, of all together; zero: as fast as they can
	Waiting     int           // connections without an answer at a time, of all together; a member waits with the next beyond that
	CPUs        []int         // where the members run; none: where this process may
	Timeout     time.Duration // for all of it

	// Ask is what each connection sends, of which the first part of the answer
	// counts, whatever it is; empty: a byte, which has to come back.
	Ask string
}

// Connection is one that was answered.
type Connection struct {
	From     netip.AddrPort
	Open     time.Duration // when connect had returned, CLOCK_MONOTONIC
	Answered time.Duration // when its byte was back
}

// Delay is the time from one to the other.
func (c Connection) Delay() time.Duration { return c.Answered - c.Open }

// Crowd is connections that are held open. Close ends it.
type Crowd struct {
	Connections []Connection  // those that were answered, in the order of Open
	Failed      int           // those that were refused, broken off or not answered in time
	FirstError  string        // of those
	Late        time.Duration // the most that a connect began behind its schedule

	members []*member
}

// member is a process of the crowd, seen from here.
type member struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	cancel context.CancelFunc
}

// environment marks a process as a member.
const environment = "MAINSTAY_BENCH_CROWD"

// task is what a member is told, as a line of JSON.
type task struct {
	Source      [4]byte       `json:"source"`
	Port        int           `json:"port"`
	Connections int           `json:"connections"`
	Begin       time.Duration `json:"begin"`    // when the first is due
	Interval    time.Duration `json:"interval"` // from one to the next; zero: none
	Waiting     int           `json:"waiting"`
	Until       time.Duration `json:"until"` // when all has to be over
	Ask         string        `json:"ask"`
}

// outcome is what it answers.
type outcome struct {
	Ports      []uint16        `json:"ports"` // of those that were answered
	Open       []time.Duration `json:"open"`
	Answered   []time.Duration `json:"answered"`
	Failed     int             `json:"failed"`
	FirstError string          `json:"first_error"`
	Late       time.Duration   `json:"late"`
}

func (c *Config) check() error {
	for _, v := range []struct {
		name          string
		got, min, max int
	}{
		{"port", c.Port, 1, 65535},
		{"connections", c.Connections, 1, 1 << 20},
		{"members", c.Members, 1, min(c.Connections, 200)},
		{"waiting", c.Waiting, c.Members, 1 << 20},
	} {
		if v.got < v.min || v.got > v.max {
			return fmt.Errorf("crowd: %s: got %d, want %d to %d", v.name, v.got, v.min, v.max)
		}
	}
	if !(c.Rate >= 0) || c.Timeout <= 0 {
		return fmt.Errorf("crowd: rate %v, timeout %v: want zero or more, and more than zero", c.Rate, c.Timeout)
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("crowd: %w", os.NewSyscallError("getrlimit", err))
	}
	return c.fits(l.Max)
}

// fits says whether the members manage with so many descriptors each.
func (c *Config) fits(limit uint64) error {
	if need := uint64((c.Connections+c.Members-1)/c.Members + spareFiles); need >= limit {
		return fmt.Errorf("crowd: %d descriptors are needed in each of %d processes, the limit is %d: divide the connections among more", need, c.Members, limit)
	}
	return nil
}

// spareFiles are left to the rest of a process.
const spareFiles = 64

// tasks divides c among its members: they take turns in the schedule.
func (c *Config) tasks(now time.Duration) []task {
	var list []task
	begin := now
	interval := time.Duration(0)
	if c.Rate > 0 {
		interval = time.Duration(float64(c.Members) / c.Rate * 1e9)
	}
	for i := range c.Members {
		n := c.Connections / c.Members
		if i < c.Connections%c.Members {
			n++
		}
		list = append(list, task{
			Source:      [4]byte{127, 0, 0, byte(1 + i)},
			Port:        c.Port,
			Connections: n,
			Begin:       begin + interval*time.Duration(i)/time.Duration(c.Members),
			Interval:    interval,
			Waiting:     max(c.Waiting/c.Members, 1),
			Until:       now + c.Timeout,
			Ask:         c.Ask,
		})
	}
	return list
}

// Open opens the connections and returns when each has its answer or has
// failed. It must be called on the main goroutine, locked to the main thread:
// the members end with the thread that started them. The error is that cfg
// asks for something impossible, that a process could not be started or has
// broken down, or ctx; then nothing is left. Otherwise the caller must call
// Close.
func Open(ctx context.Context, cfg Config) (_ *Crowd, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout+startTimeout)
	defer cancel()
	c := &Crowd{}
	defer func() {
		if err != nil {
			err = errors.Join(err, ctx.Err(), c.end())
		}
	}()
	cpus := cfg.CPUs
	if len(cpus) == 0 {
		if cpus, err = proc.Allowed(); err != nil {
			return nil, err
		}
	}
	for range cfg.Members {
		m, err := start(cpus)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
	}
	// What ends the wait for a member is its own end.
	stop := context.AfterFunc(ctx, func() {
		for _, m := range c.members {
			m.cancel()
		}
	})
	defer stop()
	for _, m := range c.members {
		if _, err := m.out.ReadString('\n'); err != nil {
			return nil, fmt.Errorf("crowd: a process does not begin: %w", err)
		}
	}
	// A moment for all to have read what they have to do.
	for i, t := range cfg.tasks(monotonic() + 20*time.Millisecond) {
		if err := json.NewEncoder(c.members[i].in).Encode(t); err != nil {
			return nil, fmt.Errorf("crowd: %w", err)
		}
	}
	for i, m := range c.members {
		var o outcome
		if err := json.NewDecoder(m.out).Decode(&o); err != nil {
			return nil, fmt.Errorf("crowd: process %d has broken down: %w", m.cmd.Process.Pid, err)
		}
		c.add(o, netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}))
	}
	c.sort()
	return c, nil
}

// startTimeout is how long the processes may take until they begin.
const startTimeout = 10 * time.Second

func (c *Crowd) add(o outcome, from netip.Addr) {
	for i, port := range o.Ports {
		c.Connections = append(c.Connections, Connection{From: netip.AddrPortFrom(from, port), Open: o.Open[i], Answered: o.Answered[i]})
	}
	c.Failed += o.Failed
	if c.FirstError == "" {
		c.FirstError = o.FirstError
	}
	c.Late = max(c.Late, o.Late)
}

func (c *Crowd) sort() {
	slices.SortFunc(c.Connections, func(a, b Connection) int { return int(a.Open - b.Open) })
}

// Rate returns connections a second, from the first that was open to the last
// answer.
func (c *Crowd) Rate() float64 {
	if len(c.Connections) == 0 {
		return 0
	}
	last := time.Duration(0)
	for _, v := range c.Connections {
		last = max(last, v.Answered)
	}
	return float64(len(c.Connections)) / (last - c.Connections[0].Open).Seconds()
}

// PIDs returns the processes of the crowd.
func (c *Crowd) PIDs() []int {
	var pids []int
	for _, m := range c.members {
		pids = append(pids, m.cmd.Process.Pid)
	}
	return pids
}

// Close resets the connections and ends the processes.
func (c *Crowd) Close() error { return c.end() }

func (c *Crowd) end() error {
	var errs []error
	for _, m := range c.members {
		m.in.Close()
	}
	for _, m := range c.members {
		late := time.AfterFunc(endTimeout, m.cancel)
		err := m.cmd.Wait()
		late.Stop()
		m.cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("crowd: process %d: %w", m.cmd.Process.Pid, err))
		}
	}
	c.members = nil
	return errors.Join(errs...)
}

// endTimeout is how long a process may take to close what it holds.
const endTimeout = 10 * time.Second

func start(cpus []int) (*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("crowd: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), environment+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	// A Ctrl-C is for us, and they end with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m := &member{cmd: cmd, cancel: cancel}
	out, err := cmd.StdoutPipe()
	if err == nil {
		m.out = bufio.NewReader(out)
		m.in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = proc.Start(cmd, cpus)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("crowd: %w", err)
	}
	return m, nil
}

// monotonic returns CLOCK_MONOTONIC.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(os.NewSyscallError("clock_gettime", err)) // clock_gettime(2): only for a clock that does not exist
	}
	return time.Duration(ts.Nano())
}
