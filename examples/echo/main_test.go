package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// TestMain lets the test binary be the service, in all its roles.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_SERVICE") != "" {
		main()
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), "BE_THE_SERVICE=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func TestLinesAreCountedAndSentBack(t *testing.T) {
	socket := "unix://" + filepath.Join(t.TempDir(), "control.sock")
	run := command(t, "run", "--workers", "1", "--listen", "line=tcp://127.0.0.1:0", "--control", socket)
	var log strings.Builder
	run.Stderr = &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	address := serving(t, socket)

	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "hello\nworld\n")
	in := bufio.NewScanner(c)
	for _, want := range []string{"1: hello", "2: world"} {
		if !in.Scan() || in.Text() != want {
			t.Errorf("got %q %v, want %q", in.Text(), in.Err(), want)
		}
	}

	c.Close() // or the service would wait for this peer's goodbye
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("ended with %v:\n%s", err, log.String())
	}
}

// serving waits until the service serves and returns where.
func serving(t *testing.T, socket string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		out, err := command(t, "status", "--json", "--control", socket).Output()
		var st control.Status
		if err == nil && json.Unmarshal(out, &st) == nil && st.State == control.StateServing {
			return strings.TrimPrefix(st.Listeners[0].Address, "tcp://")
		}
		if time.Now().After(deadline) {
			t.Fatalf("not serving within 20 s: %s, %v", out, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the condition
	}
}
