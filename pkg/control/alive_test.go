package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/keeper"
)

// roleVariable has the test binary be a supervisor with a keeper, which listens
// at the address that it names.
const roleVariable = "CONTROL_TEST_SUPERVISOR"

// Each wait of these tests is bounded by patience; what has to be noticed at
// once, by promptly.
const (
	patience = 30 * time.Second
	promptly = 10 * time.Second // a second, on a machine that has time for us
)

// playSupervisor serves until it is killed. It tells the number of its keeper,
// which is a child of the test, or why it has none.
func playSupervisor(address string) int {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	beat := (*atomic.Int64)(unsafe.Pointer(&page[8]))
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		fmt.Println(err)
		return 1
	}
	beat.Store(now.Nano())
	k, err := keeper.Start(keeper.Options{Name: "keeper", Released: (*atomic.Uint32)(unsafe.Pointer(&page[0])), SupervisorBeat: beat, OrphanTTL: time.Minute})
	if err != nil {
		fmt.Println("unprotected:", err)
		return 1
	}
	l, err := Listen(address)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("keeper", k.PID)
	b := &backend{reload: func(r ReloadRequest, step func(string)) error {
		step("it is heard")
		select {}
	}}
	if err := NewServer(&waiting{b}).Serve(l); err != nil {
		fmt.Println(err)
	}
	return 1
}

// waiting is a backend that does not answer who asks for its status.
type waiting struct{ *backend }

func (w *waiting) Status(ctx context.Context) (Status, error) {
	<-ctx.Done()
	return Status{}, ctx.Err()
}

// keptSupervisor is a supervisor in another process, which has a keeper.
type keptSupervisor struct {
	t       *testing.T
	client  *Client
	path    string
	process *exec.Cmd
	keeper  int // its pid
}

func startKept(t *testing.T) *keptSupervisor {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "control-") // shorter than the test's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &keptSupervisor{t: t, path: filepath.Join(dir, "control.sock")}
	if s.client, err = NewClient("unix://" + s.path); err != nil {
		t.Fatal(err)
	}
	s.process = exec.Command(exe)
	s.process.Env = append(os.Environ(), roleVariable+"=unix://"+s.path)
	s.process.Stderr = os.Stderr
	out, err := s.process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "keeper %d", &s.keeper); scanErr != nil {
		_ = s.process.Wait()
		if _, refused := strings.CutPrefix(line, "unprotected: "); refused {
			t.Skip("no keeper can be had here: " + line)
		}
		t.Fatalf("it says %q, %v", line, err)
	}
	t.Cleanup(func() {
		s.kill()
		_ = s.process.Wait() // it was killed
		if err := unix.Kill(s.keeper, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if _, err := unix.Wait4(s.keeper, nil, 0, nil); err != nil {
			t.Error(err)
		}
	})
	return s
}

// kill ends the supervisor. It is a zombie until the end of the test.
func (s *keptSupervisor) kill() {
	_ = s.process.Process.Kill() // it may be dead
	_ = unix.Waitid(unix.P_PID, s.process.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
}

// wantDead wants an error that says so, soon after begun.
func (s *keptSupervisor) wantDead(what string, begun time.Time, err error) {
	s.t.Helper()
	if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "the supervisor is dead") || !strings.Contains(err.Error(), s.path) {
		s.t.Errorf("%s: %v, want that the supervisor is dead, and %s", what, err, s.path)
	}
	if took := time.Since(begun); took > promptly {
		s.t.Errorf("%s: told after %v", what, took)
	}
}

func TestWhoAsksADeadSupervisorThatHasAKeeperIsToldAtOnce(t *testing.T) {
	for _, reaped := range []bool{false, true} {
		t.Run(fmt.Sprintf("reaped %t", reaped), func(t *testing.T) {
			s := startKept(t)
			s.kill()
			if reaped {
				_ = s.process.Wait() // it was killed
			}
			if err := unix.Kill(s.keeper, 0); err != nil {
				t.Fatalf("the keeper is gone: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begun := time.Now()
			_, err := s.client.Status(ctx)
			s.wantDead("status", begun, err)
			begun = time.Now()
			s.wantDead("reload", begun, s.client.Reload(ctx, ReloadRequest{}, func(string) {}))
			begun = time.Now()
			_, err = s.client.Metrics(ctx)
			s.wantDead("metrics", begun, err)
			begun = time.Now()
			s.wantDead("events", begun, s.client.Events(ctx, true, func(Event) {}))
			// The next one has its place, which the keeper does not take.
			l, err := Listen("unix://" + s.path)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		})
	}
}

func TestWhoWaitsForASupervisorThatDiesAndHasAKeeperIsToldAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		wait func(ctx context.Context, s *keptSupervisor, heard func()) error
	}{
		{"for the first word", func(ctx context.Context, s *keptSupervisor, heard func()) error {
			heard()
			_, err := s.client.Status(ctx)
			return err
		}},
		{"for a verdict", func(ctx context.Context, s *keptSupervisor, heard func()) error {
			return s.client.Reload(ctx, ReloadRequest{}, func(string) { heard() })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startKept(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			heard, answer := make(chan struct{}), make(chan error, 1)
			go func() { answer <- tt.wait(ctx, s, func() { close(heard) }) }()
			select {
			case <-heard:
			case err := <-answer:
				t.Fatalf("it has not waited: %v", err)
			}
			begun := time.Now()
			s.kill()
			s.wantDead("it", begun, <-answer)
		})
	}
}

// What a supervisor had said before its death is heard.
func TestLastWordsOfADeadSupervisorAreHeard(t *testing.T) {
	s := startKept(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := dialAlive(ctx, s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /no/such/thing HTTP/1.1\r\nHost: control\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	a := c.(*aliveConn)
	raw, err := a.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the answer lies there", func() bool {
		n := 0
		if err := raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	s.kill()
	until(t, "the death is noticed", a.dead.Load)
	got, err := io.ReadAll(c)
	if !strings.Contains(string(got), "no such request") || !errors.Is(err, errDead) {
		t.Errorf("read %q, %v, want the answer and %v", got, err, errDead)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
