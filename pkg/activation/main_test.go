package activation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// roleVariable makes the test binary play a helper.
const roleVariable = "ACTIVATION_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "exec":
		becomeActivated()
	case "inherit":
		reportInherited()
	default:
		fmt.Fprintf(os.Stderr, "role %q: not known\n", role)
		os.Exit(2)
	}
}

// becomeActivated does what the service manager does between fork and exec:
// LISTEN_PID must be the pid of the very process that inherits.
func becomeActivated() {
	if os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	os.Setenv(roleVariable, "inherit")
	err := syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	fmt.Fprintln(os.Stderr, "exec:", err)
	os.Exit(2)
}

// prefixVariable has the prefix of the names of what is stored.
const prefixVariable = "ACTIVATION_TEST_PREFIX"

// report is what the helper found, as JSON on its standard output.
type report struct {
	Sockets     []Socket
	Stored      []Stored
	Nil         bool
	Error       string
	Environment []string // LISTEN_ variables that are left
	Blocking    []int    // fds that block
	Leaking     []int    // fds that a child would inherit
}

func reportInherited() {
	sockets, stored, err := InheritedAndStored(os.Getenv(prefixVariable))
	r := report{Sockets: sockets, Nil: sockets == nil, Stored: stored}
	if err != nil {
		r.Error = err.Error()
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LISTEN_") {
			r.Environment = append(r.Environment, v)
		}
	}
	for _, s := range sockets {
		if flags, _ := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
			r.Blocking = append(r.Blocking, s.FD)
		}
		if flags, _ := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			r.Leaking = append(r.Leaking, s.FD)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(0)
}

// activate runs a process that gets the files as fds 3, 4, ... and the
// variables, and returns what Inherited told it.
func activate(t *testing.T, files []*os.File, variables ...string) report {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=exec", "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, variables...)
	cmd.ExtraFiles = files
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helper: %v: %s", err, stderr.Bytes())
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("helper wrote %q: %v", out, err)
	}
	return r
}

// newSocket returns a socket of the given kind, bound to an address of its
// own and, if it can, listening.
func newSocket(t *testing.T, family, kind int, listen bool) *os.File {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	var addr unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_UNIX {
		addr = &unix.SockaddrUnix{Name: t.TempDir() + "/s"}
	}
	if err := unix.Bind(fd, addr); err != nil {
		t.Fatal(err)
	}
	if listen {
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// addressOf is the URL f is bound to.
func addressOf(t *testing.T, f *os.File) string {
	t.Helper()
	network, err := checkListener(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	address, err := boundAddress(network, int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// openFiles counts the fds of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
