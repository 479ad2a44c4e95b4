package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

// TestMain makes the test binary the program itself where a script, or a
// supervisor that a script has started, runs it.
func TestMain(m *testing.M) {
	if suite := os.Getenv(withSuite); suite != "" {
		haveSuite(suite)
	}
	if os.Getenv(withTrap) != "" {
		trapMain()
	}
	if os.Getenv(withMortals) != "" {
		mortalMain()
	}
	if servicetest.IsService() {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"server": main})
}

// patience is after what time a script gives up.
const patience = 30 * time.Second

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			path := filepath.Join(env.WorkDir, "c.sock")
			env.Setenv("SOCK", path)
			env.Setenv("CONTROL", "unix://"+path)
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values[heldKey{}] = new(net.Conn)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":   cmdAwait,
			"exits":   cmdExits,
			"echo":    cmdEcho,
			"hold":    cmdHold,
			"held":    cmdHeld,
			"kill9":   cmdKill,
			"program": cmdProgram,
			"fetch":   cmdFetch,

			"certificate": cmdCertificate,
			"tls":         cmdTLS,
			"holdtls":     cmdHoldTLS,
			"port":        cmdPort,
			"sclient":     cmdSClient,
			"proxied":     cmdProxied,
			"holdhttp":    cmdHoldHTTP,
			"stopped":     cmdStopped,
			"continued":   cmdContinued,
			"askers":      cmdAskers,
			"interrupted": cmdInterrupted,
		},
	})
}

func client(ts *testscript.TestScript) *control.Client {
	c, err := control.NewClient(ts.Getenv("CONTROL"))
	ts.Check(err)
	return c
}

// status asks until cond holds.
func status(ts *testscript.TestScript, what string, cond func(control.Status) bool) control.Status {
	c := client(ts)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last control.Status
	for {
		st, err := c.Status(ctx)
		if err == nil {
			if cond(st) {
				return st
			}
			last = st
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("waited in vain for %s; last error %v, last status %+v", what, err, last)
		}
	}
}

// cmdAwait waits until the service has a state, and as many ready workers of
// a generation: await STATE [READY [GENERATION]].
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	number := func(i int) uint64 {
		if len(args) <= i {
			return 0
		}
		n, err := strconv.ParseUint(args[i], 10, 64)
		ts.Check(err)
		return n
	}
	ready, generation := number(1), number(2)
	status(ts, strings.Join(args, " "), func(st control.Status) bool {
		if st.State != args[0] || generation != 0 && st.Generation != generation {
			return false
		}
		var n uint64
		for _, w := range st.Pools[0].Workers {
			if w.State == "ready" {
				n++
			}
		}
		return ready == 0 || n == ready
	})
}

func dial(ts *testscript.TestScript, listener string) net.Conn {
	st := status(ts, "listener "+listener, func(control.Status) bool { return true })
	for _, l := range st.Listeners {
		if l.Name == listener {
			network, address, _ := strings.Cut(l.Address, "://")
			c, err := net.Dial(network, address)
			ts.Check(err)
			c.SetDeadline(time.Now().Add(patience))
			return c
		}
	}
	ts.Fatalf("no listener %q in %+v", listener, st.Listeners)
	return nil
}

// cmdExits runs a program and wants an exit code: exits CODE PROGRAM ARG...
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != code {
		ts.Fatalf("exit code %d, want %d", got, code)
	}
}

// cmdEcho connects to a listener, sends a text and wants it back: echo
// LISTENER TEXT. Escapes as in Go.
func cmdEcho(ts *testscript.TestScript, neg bool, args []string) {
	c := dial(ts, args[0])
	defer c.Close()
	roundTrip(ts, c, args[1])
}

func roundTrip(ts *testscript.TestScript, c net.Conn, text string) {
	text, err := strconv.Unquote(`"` + text + `"`)
	ts.Check(err)
	_, err = io.WriteString(c, text)
	ts.Check(err)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		ts.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

// cmdHold opens a connection and keeps it for held: hold LISTENER.
func cmdHold(ts *testscript.TestScript, neg bool, args []string) {
	c := dial(ts, args[0])
	ts.Defer(func() { c.Close() })
	roundTrip(ts, c, "held")
	*ts.Value(heldKey{}).(*net.Conn) = c
}

// heldKey is where a script keeps its connection.
type heldKey struct{}

// cmdHeld uses the held connection, or with ! wants it to end: held TEXT.
func cmdHeld(ts *testscript.TestScript, neg bool, args []string) {
	c := *ts.Value(heldKey{}).(*net.Conn)
	if neg {
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			ts.Fatalf("got %d bytes, %v, want the end", n, err)
		}
		c.Close()
		return
	}
	if args[0] == "close" {
		c.Close()
		return
	}
	roundTrip(ts, c, args[0])
}

// cmdFetch asks for a page until its status is CODE, and writes the body to a
// file: fetch control|LISTENER PATH CODE FILE.
func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	network, address := "unix", ts.Getenv("SOCK")
	if args[0] != "control" {
		st := status(ts, "listener "+args[0], func(control.Status) bool { return true })
		for _, l := range st.Listeners {
			if l.Name == args[0] {
				network, address, _ = strings.Cut(l.Address, "://")
			}
		}
	}
	var d net.Dialer
	c := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, address) },
	}}
	code, err := strconv.Atoi(args[2])
	ts.Check(err)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		resp, err := c.Get("http://service" + args[1])
		if err == nil {
			body, failed := io.ReadAll(resp.Body)
			ts.Check(failed)
			resp.Body.Close()
			if resp.StatusCode == code {
				ts.Check(os.WriteFile(ts.MkAbs(args[3]), body, 0o644))
				return
			}
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		if time.Now().After(deadline) {
			ts.Fatalf("fetch %s %s: want %d, last %v", args[0], args[1], code, err)
		}
	}
}

// cmdKill kills the worker of a slot and waits for its successor: kill9 SLOT.
func cmdKill(ts *testscript.TestScript, neg bool, args []string) {
	slot, err := strconv.Atoi(args[0])
	ts.Check(err)
	st := status(ts, "worker "+args[0], func(st control.Status) bool { return len(st.Pools[0].Workers) > slot })
	pid := st.Pools[0].Workers[slot].PID
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Kill())
	status(ts, "successor of "+args[0], func(st control.Status) bool {
		w := st.Pools[0].Workers[slot]
		return w.PID != pid && w.State == "ready"
	})
}

// cmdProgram puts a program in place: program PATH, a copy of server, or
// program PATH LINE..., a shell script. It replaces the file as an upgrade
// does, by a rename. Another process writes it: a file that is open for
// writing here could be inherited by what another script starts just then, and
// cannot be executed as long as that has it.
func cmdProgram(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	cmd := exec.Command("sh", "-c", `cat > "$0" && chmod 755 "$0"`, path+".new")
	cmd.Stdin = strings.NewReader("#!/bin/sh\n" + strings.Join(args[1:], "\n") + "\n")
	if len(args) == 1 {
		self, err := os.Executable()
		ts.Check(err)
		program, err := os.Open(self)
		ts.Check(err)
		defer program.Close()
		cmd.Stdin = program
	}
	ts.Check(cmd.Run())
	ts.Check(os.Rename(path+".new", path))
}
