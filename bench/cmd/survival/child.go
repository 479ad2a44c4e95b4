package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// roleEnv makes this program one of the processes that a measurement needs.
const roleEnv = "MAINSTAY_BENCH_SURVIVAL"

// descriptors is how many such a process may have to hold.
const descriptors = 20_000

// answer is what a process of ours says when it has done something.
type answer struct {
	At      time.Duration `json:"at"` // CLOCK_MONOTONIC
	Count   int           `json:"count"`
	Longest time.Duration `json:"longest"`
	P99     time.Duration `json:"p99"`
	Lost    int           `json:"lost"`  // connections that have ended, ever
	Wrong   int           `json:"wrong"` // answers that were not what was sent, ever
	FDs     []int         `json:"fds"`
	Error   string        `json:"error"`
}

// player is a process: it answers each line by one, in order.
type player interface {
	do(words []string, answer func(answer)) // now or later
	run() error                             // lets it live, and calls its do
	post(f func())
}

func failed(err error) answer { return answer{Error: err.Error()} }

// play is main of a process of ours.
func play(role string, in io.Reader, out io.Writer) int {
	if err := reactor.ReserveDescriptors(descriptors); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var p player
	var err error
	switch role {
	case "clients":
		p, err = newClients()
	case "bare":
		p = &bare{commands: make(chan func()), epoll: -1}
	default:
		err = fmt.Errorf("survival: no role %q", role)
	}
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

// clock reads CLOCK_MONOTONIC, which is the same in all processes.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // it always exists
	}
	return time.Duration(ts.Nano())
}

// child is a process of ours, seen from here. It ends with its standard input.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startChild starts a process, which gets files from descriptor 3 on.
func startChild(role string, files ...*os.File) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("survival: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GOMAXPROCS=2", "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c := &child{cmd: cmd}
	if c.in, err = cmd.StdinPipe(); err == nil {
		var out io.ReadCloser
		if out, err = cmd.StdoutPipe(); err == nil {
			c.out = bufio.NewReaderSize(out, 1<<16)
			err = cmd.Start()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("survival: %s: %w", role, err)
	}
	return c, nil
}

// ask has the process do something. One that takes too long is killed.
func (c *child) ask(format string, args ...any) (a answer, err error) {
	what := fmt.Sprintf(format, args...)
	late := time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() })
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
		err = fmt.Errorf("survival: %q: %w", what, err)
	}
	return a, err
}

func (c *child) stop() {
	c.in.Close()
	late := time.AfterFunc(5*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer late.Stop()
	_ = c.cmd.Wait() // how it ended does not matter any more
}
