package system

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packages are what a tree needs beyond Debian's smallest.
const packages = "systemd,systemd-sysv,dbus,iproute2,procps"

// boot starts a container of a Debian release and ends it with the test.
func boot(t *testing.T, suite string, version int) *machine {
	t.Helper()
	lock(t)
	tree := rootfs(t, suite)

	name := fmt.Sprintf("mainstay-%s-%d", suite, os.Getpid())
	args := []string{
		"--quiet", "--directory=" + tree, "--machine=" + name, "--register=no",
		"--volatile=overlay",               // the tree stays as it was made
		"--private-network",                // nothing but loopback
		"--console=pipe",                   // no terminal
		"--kill-signal=SIGRTMIN+4",         // SIGTERM to nspawn is an orderly power-off
		"--system-call-filter=pidfd_getfd", // refused by default
	}
	if !hostIsSystemd() {
		args = append(args, "--keep-unit") // there is nobody to ask for a scope
	}
	cmd := exec.Command("systemd-nspawn", append(args, "--boot")...)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	// From 256 on the mixed hierarchy is on its way out, before it is the host's choice.
	cmd.Env = os.Environ()
	if version >= 256 {
		cmd.Env = append(cmd.Env, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	}
	// A test that is killed takes the container along. The signal comes when
	// the thread ends that forked, hence the thread of its own (prctl(2)).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = time.Second
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is of no interest, only that it did
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	var leader int
	t.Cleanup(func() {
		powerOff(t, cmd.Process, leader, ended)
		// nspawn leaves this one where /run is no tmpfs.
		_ = os.Remove(filepath.Join("/run/systemd/nspawn/propagate", name))
		if t.Failed() {
			t.Logf("console of %s:\n%s", name, console.Bytes())
		}
	})

	m := &machine{name: name, version: version, prefix: "app", program: "/usr/bin/mainstay"}
	eventually(t, time.Minute, func() error {
		select {
		case <-ended:
			t.Fatalf("%s ended at once:\n%s", name, console.Bytes())
		default:
		}
		if leader == 0 {
			if leader = initOf(cmd.Process.Pid); leader == 0 {
				return fmt.Errorf("%s: no init process", name)
			}
			m.proc = fmt.Sprintf("/proc/%d", leader)
			m.root, m.netns = m.proc+"/root", m.proc+"/ns/net"
			m.enter = []string{"nsenter", "--target=" + strconv.Itoa(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"}
		}
		r, err := m.try("systemctl", "is-system-running")
		if err != nil {
			return err
		}
		if state := strings.TrimSpace(r.stdout); state != "running" && state != "degraded" {
			return fmt.Errorf("%s: system is %q", name, state)
		}
		return nil
	})
	m.expectVersion(t, version)
	return m
}

// powerOff ends a container and waits until it is gone.
func powerOff(t testing.TB, nspawn *os.Process, leader int, ended <-chan struct{}) {
	t.Helper()
	for _, end := range []func() error{
		func() error { return nspawn.Signal(unix.SIGTERM) },
		func() error { // takes every process of the container along
			if leader == 0 {
				return nil
			}
			return unix.Kill(leader, unix.SIGKILL) // cannot be another's pid yet: nspawn has not reaped it
		},
		nspawn.Kill,
	} {
		if err := end(); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, unix.ESRCH) {
			t.Errorf("power-off: %v", err)
		}
		select {
		case <-ended:
			return
		case <-time.After(10 * time.Second):
		}
	}
	t.Errorf("power-off: systemd-nspawn, pid %d, is still there", nspawn.Pid)
}

// initOf is the child of nspawn that is PID 1 of its namespace; 0: none yet.
func initOf(nspawn int) int {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	if err != nil {
		return 0
	}
	for _, child := range strings.Fields(string(children)) {
		status, err := os.ReadFile("/proc/" + child + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if ids := strings.Fields(line); len(ids) > 2 && ids[0] == "NSpid:" && ids[len(ids)-1] == "1" {
				pid, _ := strconv.Atoi(child)
				return pid
			}
		}
	}
	return 0
}

// expectVersion ends the test if the machine's systemd is another one; 0: any.
func (m *machine) expectVersion(t testing.TB, want int) {
	t.Helper()
	first, _, _ := strings.Cut(m.must(t, "systemctl", "--version"), "\n")
	fields := strings.Fields(first)
	if len(fields) < 2 {
		t.Fatalf("systemctl --version: %q", first)
	}
	got, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatalf("systemctl --version: %q: %v", first, err)
	}
	if want != 0 && got != want {
		t.Fatalf("%s has systemd %d, want %d; remove its tree for a new one", m.name, got, want)
	}
	m.version = got
}

// lock makes sure that one container runs at a time on this host: two that
// keep their unit would share a control group.
func lock(t testing.TB) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "mainstay-system-tests.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	eventually(t, 15*time.Minute, func() error {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			return fmt.Errorf("another run of these tests holds %s: %w", file.Name(), err)
		}
		return nil
	})
}

// rootfs is the tree of a Debian release; it is made when it isn't there.
func rootfs(t testing.TB, suite string) string {
	t.Helper()
	dir := os.Getenv("MAINSTAY_ROOTFS_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "mainstay")
	}
	tree := filepath.Join(dir, "rootfs-"+suite)
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unfinished, err := os.MkdirTemp(dir, "unfinished-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(unfinished)
	if err := os.Chmod(unfinished, 0o755); err != nil {
		t.Fatal(err)
	}
	what := []string{"--variant=minbase", "--include=" + packages, suite, unfinished}
	if mirror := hostMirror(); mirror != "" {
		what = append(what, mirror)
	}
	cmd := exec.Command("mmdebstrap", append([]string{"--quiet"}, what...)...)
	if _, err := exec.LookPath(cmd.Path); err != nil {
		cmd = exec.Command("debootstrap", what...)
	}
	t.Logf("making the tree of %s, once", suite)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s of %s: %v\n%s", cmd.Args[0], suite, err, out)
	}
	if err := os.Rename(unfinished, tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// hostMirror is the mirror the host itself installs from, if it is a Debian;
// otherwise it is empty, and the tool takes the one it knows.
func hostMirror() string {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil || !slices.Contains(strings.Split(string(release), "\n"), "ID=debian") {
		return ""
	}
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		// A release without a suffix: neither -security nor -updates, which are
		// no mirrors of the whole.
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "main" && strings.HasPrefix(f[0], "http") && strings.HasSuffix(strings.TrimSuffix(f[0], "/"), "/debian") && !strings.Contains(f[1], "-") {
			return f[0]
		}
	}
	return ""
}

// hostIsSystemd tells whether the host was booted by systemd (sd_booted(3)).
func hostIsSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}
