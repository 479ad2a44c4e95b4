package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is something whose PID 1 is systemd. Its methods may be called from
// any goroutine, those that take a testing.TB only from the test's own.
type machine struct {
	name    string   // for messages
	version int      // of systemd
	prefix  string   // of the units' names: "app", or one of our own on the host
	program string   // where the service's binary goes, as the machine sees it
	root    string   // the machine's file system as the test sees it; "" on the host
	proc    string   // /proc/PID of a process with the machine's network
	netns   string   // the machine's network namespace; "" on the host
	enter   []string // puts a command into the machine; nil on the host
}

// commandTimeout is for a single command; the longest is a reload that fails
// by its own time limit.
const commandTimeout = time.Minute

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
}

// try runs a command in the machine, as root. The error is for a command that
// could not be run, or that went over its time.
func (m *machine) try(args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	args = append(m.enter[:len(m.enter):len(m.enter)], args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// The test's own environment means nothing in the machine.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	r := result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	if ctx.Err() != nil {
		return r, fmt.Errorf("%s: not done after %v: %v", strings.Join(args, " "), commandTimeout, r)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return r, nil
}

// run is try for commands that have to be runnable.
func (m *machine) run(t testing.TB, args ...string) result {
	t.Helper()
	r, err := m.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// must is run for commands that have to succeed; it returns what they printed
// on standard output, without the last newline.
func (m *machine) must(t testing.TB, args ...string) string {
	t.Helper()
	r := m.run(t, args...)
	if r.code != 0 {
		t.Fatalf("%s: %v", strings.Join(args, " "), r)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// show is a property of a unit.
func (m *machine) show(t testing.TB, unit, property string) string {
	t.Helper()
	return m.must(t, "systemctl", "show", "--value", "--property="+property, unit)
}

// path is where the test finds a file of the machine.
func (m *machine) path(name string) string { return m.root + name }

// write puts a file into the machine in one step, so that nothing ever sees
// half of it, and a running program's file is replaced, not overwritten.
func (m *machine) write(t testing.TB, name string, content []byte, mode os.FileMode) {
	t.Helper()
	file := m.path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", content, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file+".new", mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// inside calls f on a thread that is in the machine's network, for its
// sockets; f must not start goroutines that open some.
func (m *machine) inside(f func() error) error {
	if m.netns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := os.Open(m.netns)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("setns %s: %w", m.netns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// dial connects to an address of the machine.
func (m *machine) dial(network, address string) (conn net.Conn, err error) {
	err = m.inside(func() error {
		conn, err = m.dialHere(network, address)
		return err
	})
	return conn, err
}

// dialHere is dial for a function that inside calls.
func (m *machine) dialHere(network, address string) (net.Conn, error) {
	if network == "unix" {
		address = m.path(address)
	}
	return net.DialTimeout(network, address, 5*time.Second)
}

// freePort is a port of the machine's loopback nobody listens on.
func (m *machine) freePort(t testing.TB, address string) int {
	t.Helper()
	var port int
	err := m.inside(func() error {
		l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			return err
		}
		port = l.Addr().(*net.TCPAddr).Port
		return l.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// listenInode is the inode of the socket that listens on an IPv4 port; it is
// another one for another socket.
func (m *machine) listenInode(t testing.TB, port int) string {
	t.Helper()
	table, err := os.ReadFile(m.proc + "/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	// proc(5): sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == "0A" {
			return f[9]
		}
	}
	t.Fatalf("nothing listens on port %d:\n%s", port, table)
	return ""
}

// processes are the pids in a unit's control group, as the machine counts
// them; none if the group is gone.
func (m *machine) processes(t testing.TB, unit string) []int {
	t.Helper()
	group := m.show(t, unit, "ControlGroup")
	if group == "" {
		return nil
	}
	// The third is where the hierarchies of version 1 and 2 are mixed.
	for _, hierarchy := range []string{"", "/unified", "/systemd"} {
		// By cat, not by the test itself, which would see pids of its own namespace.
		r := m.run(t, "cat", "/sys/fs/cgroup"+hierarchy+group+"/cgroup.procs")
		if r.code != 0 {
			continue
		}
		var pids []int
		for _, field := range strings.Fields(r.stdout) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatalf("%s: %v", unit, err)
			}
			pids = append(pids, pid)
		}
		return pids
	}
	return nil
}

// kill sends a signal to a process of the machine.
func (m *machine) kill(t testing.TB, signal string, pid int) {
	t.Helper()
	m.must(t, "kill", "-s", signal, strconv.Itoa(pid))
}

// alive tells whether there is a process of that pid in the machine.
func (m *machine) alive(pid int) bool {
	_, err := os.Stat(m.path("/proc/" + strconv.Itoa(pid)))
	return err == nil
}

// rename gives units and paths in a text the machine's prefix and program.
func (m *machine) rename(text string) string {
	text = strings.ReplaceAll(text, "/usr/bin/mainstay", m.program)
	if m.prefix == "app" {
		return text
	}
	return unitWord.ReplaceAllString(text, m.prefix)
}

// eventually waits until check returns nil, and ends the test with its last
// error when it doesn't in time.
func eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	if err := wait(limit, check); err != nil {
		t.Fatal(err)
	}
}

func wait(limit time.Duration, check func() error) error {
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}
