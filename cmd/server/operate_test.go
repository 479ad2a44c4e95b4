package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// cmdHoldHTTP asks for a page and keeps the connection until the script's
// end: holdhttp LISTENER.
func cmdHoldHTTP(ts *testscript.TestScript, neg bool, args []string) {
	c := dial(ts, args[0])
	ts.Defer(func() { c.Close() })
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	ts.Check(err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	ts.Check(err)
}

// worker returns the process in a slot.
func worker(ts *testscript.TestScript, slot string) *os.Process {
	n, err := strconv.Atoi(slot)
	ts.Check(err)
	st := status(ts, "worker "+slot, func(st control.Status) bool { return len(st.Pools[0].Workers) > n })
	p, err := os.FindProcess(st.Pools[0].Workers[n].PID)
	ts.Check(err)
	return p
}

// cmdStopped stops the worker of a slot and waits until the kernel has done
// so: stopped SLOT.
func cmdStopped(ts *testscript.TestScript, neg bool, args []string) {
	p := worker(ts, args[0])
	ts.Check(p.Signal(syscall.SIGSTOP))
	ts.Defer(func() { p.Signal(syscall.SIGCONT) }) // or it would not end
	awaitState(ts, p.Pid, "T")
}

// cmdContinued lets a stopped worker go on: continued SLOT.
func cmdContinued(ts *testscript.TestScript, neg bool, args []string) {
	p := worker(ts, args[0])
	ts.Check(p.Signal(syscall.SIGCONT))
	awaitState(ts, p.Pid, "S", "R")
}

// awaitState waits until a process has one of the states of
// /proc/PID/stat.
func awaitState(ts *testscript.TestScript, pid int, states ...string) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		ts.Check(err)
		_, rest, _ := strings.Cut(string(text), ") ")
		for _, s := range states {
			if strings.HasPrefix(rest, s) {
				return
			}
		}
	}
	ts.Fatalf("process %d does not become %v", pid, states)
}

// cmdAskers asks for the status from so many callers at once, each ten times,
// and wants all answers, most of them within a second, which is less than
// anyone waits for a worker: askers N.
func cmdAskers(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	errs := make(chan error, n)
	var all sync.WaitGroup
	var slow atomic.Int64
	for range n {
		all.Go(func() {
			c := client(ts)
			for range 10 {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				began := time.Now()
				st, err := c.Status(ctx)
				cancel()
				took := time.Since(began)
				switch {
				case err != nil:
					errs <- err
					return
				case len(st.Pools) != 1 || st.Pools[0].Ready != 2:
					errs <- fmt.Errorf("status %+v", st)
					return
				case took > time.Second:
					slow.Add(1)
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		ts.Fatalf("%v", err)
	}
	if slow := int(slow.Load()); slow > 10*n/2 {
		ts.Fatalf("%d of %d answers took more than a second", slow, 10*n)
	}
}

// cmdInterrupted runs a program until a line that it writes has the text,
// interrupts it, and wants it to end in order: interrupted TEXT PROGRAM ARG...
func cmdInterrupted(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.CommandContext(ctx, path, args[2:]...)
	for _, name := range []string{"PATH", "APP_CONTROL", "GORACE"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	seen := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if !seen && strings.Contains(lines.Text(), args[0]) {
			seen = true
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	if err := cmd.Wait(); err != nil || !seen {
		ts.Fatalf("text seen: %v; ended with %v, want exit code 0", seen, err)
	}
}
