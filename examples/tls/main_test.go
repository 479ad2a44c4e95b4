package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/certs"
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

func TestGuestsAreGreetedByWhatWasAgreedOn(t *testing.T) {
	dir := t.TempDir()
	server, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	friend, err := certs.Make(time.Hour, "a friend")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cert": server.Cert, "key": server.Key, "ca": friend.Cert} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	socket := "unix://" + filepath.Join(dir, "control.sock")
	run := command(t, "run", "--workers", "1", "--listen", "line=tcp://127.0.0.1:0", "--control", socket)
	for key, value := range map[string]string{"CERT": dir + "/cert", "KEY": dir + "/key", "CLIENT_CA": dir + "/ca", "CLIENT_AUTH": "request"} {
		run.Env = append(run.Env, "SECRET_LISTENER_LINE_TLS_"+key+"="+value)
	}
	var log strings.Builder
	run.Stderr = &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	address := serving(t, socket)
	pair, err := friend.Pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		certificates []tls.Certificate
		want         []string
	}{
		{"without a certificate", nil, []string{"hello somebody, by TLS 1.3 at localhost", "somebody: here"}},
		{"with one", []tls.Certificate{pair}, []string{"hello a friend, by TLS 1.3 at localhost", "a friend: here"}},
	} {
		c, err := tls.Dial("tcp", address, &tls.Config{ServerName: "localhost", RootCAs: server.Pool(), Certificates: tt.certificates})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(c, "here")
		in := bufio.NewScanner(c)
		for _, want := range tt.want {
			if !in.Scan() || in.Text() != want {
				t.Errorf("%s: got %q %v, want %q", tt.name, in.Text(), in.Err(), want)
			}
		}
		c.Close() // or the service would wait for this peer's goodbye
	}
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
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		out, err := command(t, "status", "--json", "--control", socket).Output()
		var st control.Status
		if err == nil && json.Unmarshal(out, &st) == nil && st.State == control.StateServing {
			return strings.TrimPrefix(st.Listeners[0].Address, "tcp://")
		}
		if time.Now().After(deadline) {
			t.Fatalf("not serving within 20 s: %s, %v", out, err)
		}
	}
}
