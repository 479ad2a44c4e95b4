package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
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

const patience = 30 * time.Second

// service is a running one.
type running struct {
	t       *testing.T
	to      string
	socket  string
	address string
	run     *exec.Cmd
	log     bytes.Buffer
}

func (r *running) command(args ...string) *exec.Cmd {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.CommandContext(r.t.Context(), self, args...)
	cmd.Env = append(os.Environ(), "BE_THE_SERVICE=1", "GORACE=atexit_sleep_ms=0", "FORWARD_TO="+r.to)
	return cmd
}

// start runs the service before an address.
func start(t *testing.T, to string) *running {
	t.Helper()
	r := &running{t: t, to: to, socket: "unix://" + filepath.Join(t.TempDir(), "control.sock")}
	r.run = r.command("run", "--workers", "1", "--listen", "in=tcp://127.0.0.1:0", "--control", r.socket)
	r.run.Stderr = &r.log
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service wrote:\n%s", r.log.String())
		}
	})
	if err := r.run.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		out, err := r.command("status", "--json", "--control", r.socket).Output()
		var st control.Status
		if err == nil && json.Unmarshal(out, &st) == nil && st.State == control.StateServing {
			r.address = strings.TrimPrefix(st.Listeners[0].Address, "tcp://")
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("not serving in time: %s, %v", out, err)
		}
	}
}

// stop ends it in good order.
func (r *running) stop() {
	r.t.Helper()
	if err := r.run.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
	if err := r.run.Wait(); err != nil {
		r.t.Errorf("ended with %v:\n%s", err, r.log.String())
	}
}

func (r *running) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// upstream sends back what comes, or what else serve does.
func upstream(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { serve(c); c.Close() }()
		}
	}()
	return "tcp://" + ln.Addr().String()
}

func echo(c net.Conn) { io.Copy(c, c) }

func TestReloadInTheMiddleOfItLosesNothing(t *testing.T) {
	r := start(t, upstream(t, echo))
	c := r.dial()
	const total = 64 << 20
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	sent, halfway := make(chan error, 1), make(chan struct{})
	go func() {
		for n := 0; n < total; n += len(block) {
			if n == total/2 {
				close(halfway)
			}
			if _, err := c.Write(block); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	reloaded := make(chan error, 1)
	go func() {
		<-halfway
		out, err := r.command("reload", "--wait", "--control", r.socket).CombinedOutput()
		t.Logf("reload: %s", out)
		reloaded <- err
	}()
	got := make([]byte, len(block))
	for n := 0; n < total; n += len(block) {
		if n == total*3/4 {
			if err := <-reloaded; err != nil {
				t.Errorf("reload: %v", err)
			}
		}
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	out, err := r.command("connections", "--json", "--control", r.socket).Output()
	var all control.Connections
	if err != nil || json.Unmarshal(out, &all) != nil || len(all.Connections) != 2 {
		t.Fatalf("connections: %s, %v", out, err)
	}
	names := map[string]bool{}
	for _, one := range all.Connections {
		names[one.Listener] = true
	}
	if !names["in"] || !names["dial:upstream"] {
		t.Errorf("connections of %v", names)
	}
	c.Close()
	r.stop()
}

func TestSlowPeersAreHeldUpAndLoseNothing(t *testing.T) {
	// Nobody reads at first: what is under way is bounded by queues and buffers.
	const total = 32 << 20
	begin := make(chan struct{})
	r := start(t, upstream(t, func(c net.Conn) { <-begin; echo(c) }))
	c := r.dial()
	block := bytes.Repeat([]byte("fedcba9876543210"), 4<<10)
	n := 0
	for ; n < total; n += len(block) {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		k, err := c.Write(block)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			n += k
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n >= total {
		t.Fatal("nobody was held up")
	}
	close(begin)
	got := make([]byte, n)
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != block[i%len(block)] {
			t.Fatalf("byte %d is another one", i)
		}
	}
	c.Close()
	r.stop()
}

func TestClientLearnsThatNobodyIsThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := "tcp://" + ln.Addr().String()
	ln.Close()
	r := start(t, to)
	if got, err := io.ReadAll(r.dial()); len(got) > 0 || err != nil {
		t.Errorf("got %q, %v, want the end", got, err)
	}
	r.stop()
}
