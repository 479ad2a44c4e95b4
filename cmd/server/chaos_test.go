package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
)

// withTrap makes the test binary a service with one kind more: trap, whose
// callback never ends and so holds the loop.
const withTrap = "SERVICE_WITH_TRAP"

func trapMain() {
	s := newService()
	s.Kind("trap", service.Raw[none]{Inline: true, OnMessage: func(*service.Conn[none], []byte) { select {} }})
	s.Main()
}

// chaos is a service under attack from within.
type chaos struct {
	t       *testing.T
	client  *control.Client
	run     *exec.Cmd
	log     strings.Builder
	echo    string
	trap    string
	workers int
}

func startChaos(t *testing.T, workers int) *chaos {
	t.Helper()
	return startService(t, workers, withTrap, `hang_timeout = "500ms"`, `
[listener.trap]
address = "unix://%s/trap.sock"
`)
}

// startService starts the service that the test binary is with the variable
// set. first and more are added to the configuration, more with the folder of
// the sockets.
func startService(t *testing.T, workers int, variable, first, more string) *chaos {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "app.toml")
	text := first + fmt.Sprintf(`
workers = %d
control = "unix://%s/c.sock"
stop_grace = "2s"
respawn.first = "10ms"
respawn.max = "200ms"
log.level = "error"
[listener.echo]
address = "unix://%[2]s/echo.sock"
`, workers, dir) + fmt.Sprintf(more, dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &chaos{t: t, workers: workers, echo: dir + "/echo.sock", trap: dir + "/trap.sock"}
	if c.client, err = control.NewClient("unix://" + dir + "/c.sock"); err != nil {
		t.Fatal(err)
	}
	c.run = exec.Command(self, "run", "--config", file)
	c.run.Env = append(os.Environ(), variable+"=1", "GORACE=atexit_sleep_ms=0")
	c.run.Stderr = &c.log
	if err := c.run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.run.Process.Signal(unix.SIGTERM)
		c.run.Wait()
		if t.Failed() {
			t.Log(c.log.String())
		}
	})
	c.await("all workers are ready", func(st control.Status) bool { return st.State == control.StateServing })
	return c
}

// await asks for the status until cond holds, and returns it.
func (c *chaos) await(what string, cond func(control.Status) bool) control.Status {
	c.t.Helper()
	var st control.Status
	for deadline := time.Now().Add(60 * time.Second); ; {
		var err error
		if st, err = c.status(); err == nil && cond(st) {
			return st
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within a minute; last: %+v, %v, children %v, %d descriptors", what, st, err, c.children(), c.descriptors())
		}
		time.Sleep(10 * time.Millisecond) // between two looks at the condition
	}
}

func TestIdleWorkerIsNotTakenForHungByAShortTimeout(t *testing.T) {
	c := startService(t, 1, withTrap, `hang_timeout = "50ms"`, `
[listener.trap]
address = "unix://%s/trap.sock"
`)
	first := c.await("the worker serves", func(s control.Status) bool { return s.Pools[0].Ready == 1 }).Pools[0].Workers[0]
	last := c.await("nobody has asked it anything for a while", func(s control.Status) bool {
		w := s.Pools[0].Workers[0]
		return w.PID != first.PID || w.UptimeMS > first.UptimeMS+2500
	}).Pools[0].Workers[0]
	if last.PID != first.PID {
		t.Errorf("worker %d is followed by %d", first.PID, last.PID)
	}
}

func (c *chaos) status() (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.client.Status(ctx)
}

// descriptors counts the supervisor's.
func (c *chaos) descriptors() int {
	c.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.run.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	return len(entries)
}

// children lists the supervisor's children as "pid state".
func (c *chaos) children() (all []string) {
	c.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.run.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, task := range tasks {
		pids, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for _, pid := range strings.Fields(string(pids)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(stat), ") ")
			all = append(all, pid+" "+rest[:1])
		}
	}
	return all
}

// talk echoes on new connections until done is closed, and counts what came
// back. A connection may die with its worker; a new one must be served.
func (c *chaos) talk(done <-chan struct{}, echoed *atomic.Int64) error {
	failures := 0
	for {
		select {
		case <-done:
			return nil
		default:
		}
		if err := exchange(c.echo); err != nil {
			if failures++; failures > 50 {
				return fmt.Errorf("50 connections in a row failed, at last: %w", err)
			}
			continue
		}
		failures = 0
		echoed.Add(1)
	}
}

func exchange(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != "hello" {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// strike does something terrible to a worker.
func (c *chaos) strike(w control.Worker) error {
	signal := func(sig unix.Signal) error {
		if err := unix.Kill(w.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		return nil
	}
	switch rand.IntN(4) {
	case 0:
		return signal(unix.SIGKILL)
	case 1:
		return signal(unix.SIGSEGV)
	case 2:
		return signal(unix.SIGSTOP)
	}
	// Whichever worker takes it hangs.
	conn, err := net.Dial("unix", c.trap)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	return err
}

func TestWorkersAreRestoredWhateverIsDoneToThem(t *testing.T) {
	const workers = 6
	strikes := 200
	if testing.Short() {
		strikes = 40
	}
	c := startChaos(t, workers)
	before := c.descriptors()

	done := make(chan struct{})
	var echoed atomic.Int64
	var talkers sync.WaitGroup
	for range 4 {
		talkers.Go(func() {
			if err := c.talk(done, &echoed); err != nil {
				t.Error(err)
			}
		})
	}
	struck := map[uint64]bool{} // incarnations
	for n := 0; n < strikes; {
		st := c.await("half of the workers are ready", func(st control.Status) bool { return st.Pools[0].Ready > workers/2 })
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || struck[w.Incarnation] || n == strikes {
				continue
			}
			struck[w.Incarnation] = true
			if err := c.strike(w); err != nil {
				t.Fatal(err)
			}
			n++
			break
		}
	}
	// Until the last of those that were struck is dead, reaped and replaced
	// it may still look well, so all of it has to hold at once. Each has a keeper.
	st := c.await("all workers are ready again, without a zombie or a descriptor too many", func(st control.Status) bool {
		for _, w := range st.Pools[0].Workers {
			if struck[w.Incarnation] && w.State == "ready" && w.HeartbeatAgeMS > 400 {
				return false // it hangs, which is not known yet
			}
		}
		children := c.children()
		zombie := func(child string) bool { return strings.HasSuffix(child, " Z") }
		return st.State == control.StateServing && st.Pools[0].Ready == workers && len(st.Pools[0].Workers) == workers &&
			len(children) == 2*workers && !slices.ContainsFunc(children, zombie) && c.descriptors() <= before+4
	})
	close(done)
	talkers.Wait()

	last := uint64(0)
	for _, w := range st.Pools[0].Workers {
		last = max(last, w.Incarnation)
	}
	// A trap takes another worker than the one it was meant for, and each
	// strike costs one process at most.
	if most := uint64(workers + strikes + strikes/10); last > most {
		t.Errorf("%d processes were started for %d strikes, want at most %d", last, strikes, most)
	}
	t.Logf("%d strikes, %d processes, %d connections answered meanwhile", strikes, last, echoed.Load())
}
