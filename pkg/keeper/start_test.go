package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPeerSeesTheWorkersCloseAtOnce(t *testing.T) {
	p := startWorker(t)
	conns := p.dial(2)
	write(t, conns[0], "close\n")
	conns[0].SetDeadline(time.Now().Add(patience))
	if n, err := conns[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the worker's close: %d, %v; want EOF", n, err)
	}
	ask(t, conns[1], "still here\n")
}

func TestKeeperIsTheSupervisorsChildWithANameAndASessionOfItsOwn(t *testing.T) {
	p := startWorker(t)
	if got, want := status(t, p.keeper, "PPid"), fmt.Sprint(os.Getpid()); got != want {
		t.Errorf("parent %s, want %s", got, want)
	}
	p.settle()
	if got := status(t, p.keeper, "Name"); got != "app/3 keeper" {
		t.Errorf("name %q, want app/3 keeper", got)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.keeper))
	if got := strings.TrimRight(string(cmdline), "\x00"); err != nil || got != "app/3 keeper" {
		t.Errorf("command line %q, %v; want app/3 keeper", got, err)
	}
	if session, err := unix.Getsid(p.keeper); err != nil || session != p.keeper {
		t.Errorf("session %d, %v; want its own, %d", session, err, p.keeper)
	}
	if got := status(t, p.worker, "Name"); got == "app/3 keeper" {
		t.Error("the worker has the keeper's name")
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.keeper))
	if err != nil || !strings.Contains(string(environ), roleVariable+"=worker") {
		t.Errorf("environment %q, %v; want the worker's", environ, err)
	}
}

func TestKeeperIsSmallAndSleeps(t *testing.T) {
	p := startWorker(t, "KEEPER_TEST_BALLAST=64")
	p.do("grow 64") // what it had before is written again, and more
	conns := p.dial(50)
	p.settle()
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", p.keeper)
	for _, line := range []string{"Rss", "Private_Dirty"} {
		var kib int
		if _, err := fmt.Sscanf(procLine(t, rollup, line), "%d kB", &kib); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %d KiB", line, kib)
		if kib > 1024 {
			t.Errorf("%s %d KiB, want at most 1024", line, kib)
		}
	}
	before := status(t, p.keeper, "voluntary_ctxt_switches")
	for i := range 200 {
		ask(t, conns[i%len(conns)], "busy\n")
	}
	if after := status(t, p.keeper, "voluntary_ctxt_switches"); after != before {
		t.Errorf("the keeper ran while its worker did: %s context switches, before %s", after, before)
	}
}

func TestKeeperOutlivesEverySignalButSIGKILL(t *testing.T) {
	p := startWorker(t)
	conns := p.dial(1)
	for signal := unix.Signal(1); signal <= 64; signal++ {
		if signal == unix.SIGKILL || signal == unix.SIGSTOP {
			continue
		}
		if err := unix.PidfdSendSignal(p.keeperFD, signal, nil, 0); err != nil {
			t.Fatalf("signal %d: %v", signal, err)
		}
	}
	// Stopped and continued, its system call is interrupted and begins again.
	if err := unix.PidfdSendSignal(p.keeperFD, unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stop", func() bool { return strings.HasPrefix(status(t, p.keeper, "State"), "T") })
	if err := unix.PidfdSendSignal(p.keeperFD, unix.SIGCONT, nil, 0); err != nil {
		t.Fatal(err)
	}
	p.settle()
	if !p.keeperLives() {
		t.Fatal("the keeper has ended")
	}
	if shares, err := SharesFiles(p.worker, p.keeper); err != nil || !shares {
		t.Errorf("shares files: %v, %v; want true", shares, err)
	}
	p.kill()
	if got := len(p.harvest()); got != len(conns) {
		t.Errorf("%d connections, want %d", got, len(conns))
	}
	p.killKeeper() // which also says that SIGKILL does end it
}

func TestSignalToTheWorkersGroupSparesTheKeeper(t *testing.T) {
	p := startWorker(t)
	p.settle()
	if err := unix.Kill(-p.worker, unix.SIGKILL); err != nil { // launch made the group
		t.Fatal(err)
	}
	p.reap()
	if !p.keeperLives() {
		t.Error("the keeper died with the worker's group")
	}
}

func TestReleasedKeeperEndsWithItsWorkerAndNotBefore(t *testing.T) {
	p := startWorker(t)
	p.dial(3)
	p.do("release")
	if !p.keeperLives() {
		t.Fatal("the keeper left a worker that lives")
	}
	p.tell("exit 0")
	p.reap()
	if status := p.keeperEnds(); status.ExitStatus() != ExitReleased {
		t.Errorf("exit status %d, want %d", status.ExitStatus(), ExitReleased)
	}
}

func TestKeeperIsReleasedAfterItsWorkersDeathToo(t *testing.T) {
	p := startWorker(t)
	p.kill()
	if !p.keeperLives() {
		t.Fatal("the keeper did not wait for anybody")
	}
	p.page.released.Store(1)
	if status := p.keeperEnds(); status.ExitStatus() != ExitReleased {
		t.Errorf("exit status %d, want %d", status.ExitStatus(), ExitReleased)
	}
}

func TestKeeperOfADeadWorkerWaitsForASupervisorOnlySoLong(t *testing.T) {
	const ttl = 1500 * time.Millisecond
	p := startWorker(t, "KEEPER_TEST_TTL="+ttl.String())
	conns := p.dial(1)
	// A supervisor that is late is no matter while the worker lives.
	p.page.beat.Store(monotonic() - int64(time.Hour))
	ask(t, conns[0], "no supervisor\n")
	if !p.keeperLives() {
		t.Fatal("the keeper left a worker that lives")
	}
	last := monotonic()
	p.page.beat.Store(last)
	p.kill()
	if status := p.keeperEnds(); status.ExitStatus() != ExitOrphaned {
		t.Errorf("exit status %d, want %d", status.ExitStatus(), ExitOrphaned)
	}
	if waited := time.Duration(monotonic() - last); waited < ttl {
		t.Errorf("it waited %v, want at least %v", waited, ttl)
	}
	conns[0].SetDeadline(time.Now().Add(patience))
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the peer's read: %v, want the connection's end", err)
	}
}

func TestNextSupervisorFindsWhatTheDeadOnesHeld(t *testing.T) {
	p := launch(t, "supervisor", "KEEPER_TEST_TTL=1m")
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	p.meet()
	conns := p.dial(20)
	p.kill() // the supervisor, while its worker serves on
	ask(t, conns[0], "no supervisor\n")
	eventually(t, "the keeper's new parent", func() bool { return status(t, p.keeper, "PPid") == fmt.Sprint(os.Getpid()) })
	if shares, err := SharesFiles(p.worker, p.keeper); err != nil || !shares {
		t.Errorf("shares files: %v, %v; want true", shares, err)
	}
	if err := unix.Kill(p.worker, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(p.worker, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	all := p.harvest()
	if len(all) != len(conns) {
		t.Fatalf("%d connections, want %d", len(all), len(conns))
	}
	for i, c := range conns {
		write(t, c, fmt.Sprintf("again %d\n", i))
	}
	for _, s := range all {
		eventually(t, "the request", func() bool {
			k, err := Counts(s.fd)
			return err == nil && k.Unread > 0
		})
	}
	answerAll(t, all)
	for i, c := range conns {
		answered(t, c, fmt.Sprintf("again %d\n", i))
	}
	// Nobody comes for the rest: both are dead, and this one says nothing.
	p.page.beat.Store(monotonic() - int64(time.Hour))
	if status := p.keeperEnds(); status.ExitStatus() != ExitOrphaned {
		t.Errorf("exit status %d, want %d", status.ExitStatus(), ExitOrphaned)
	}
}

func TestExecInTheWorkerIsSeen(t *testing.T) {
	p := startWorker(t)
	if shares, err := SharesFiles(p.worker, p.keeper); err != nil || !shares {
		t.Fatalf("shares files: %v, %v; want true", shares, err)
	}
	p.tell("exec")
	p.expect("asleep")
	if shares, err := SharesFiles(p.worker, p.keeper); err != nil || shares {
		t.Errorf("shares files after an exec: %v, %v; want false", shares, err)
	}
	p.kill()
	p.killKeeper()
	if _, err := SharesFiles(p.worker, p.keeper); !errors.Is(err, unix.ESRCH) {
		t.Errorf("shares files of dead processes: %v, want ESRCH", err)
	}
}

func TestProcessThatMayNotCloneRunsUnprotectedAndSaysWhy(t *testing.T) {
	const clone, errno = "KEEPER_TEST_CALL=%d", "KEEPER_TEST_ACTION=%#x"
	tests := []struct {
		name  string
		call  int
		errno unix.Errno
		want  string
	}{
		{name: "systemd's filter", call: unix.SYS_CLONE, errno: unix.EPERM, want: "unprotected filtered clone: operation not permitted"},
		{name: "a filter that hides the call", call: unix.SYS_CLONE, errno: unix.ENOSYS, want: "unprotected filtered clone: function not implemented"},
		{name: "too many tasks", call: unix.SYS_CLONE, errno: unix.EAGAIN, want: "unprotected limit clone: resource temporarily unavailable"},
		{name: "no memory", call: unix.SYS_CLONE, errno: unix.ENOMEM, want: "unprotected limit clone: cannot allocate memory"},
		{name: "something else", call: unix.SYS_CLONE, errno: unix.EINVAL, want: "unprotected unsupported clone: invalid argument"},
		{name: "no pidfd", call: unix.SYS_PIDFD_OPEN, errno: unix.ENOSYS, want: "unprotected filtered pidfd_open: function not implemented"},
		{name: "no descriptor for a pidfd", call: unix.SYS_PIDFD_OPEN, errno: unix.EMFILE, want: "unprotected limit pidfd_open: too many open files"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := launch(t, "filtered", fmt.Sprintf(clone, tt.call), fmt.Sprintf(errno, unix.SECCOMP_RET_ERRNO|int(tt.errno)))
			if err := p.run(); err != nil {
				t.Fatal(err)
			}
			if !p.out.Scan() || p.out.Text() != tt.want {
				t.Errorf("got %q, want %q", p.out.Text(), tt.want)
			}
		})
	}
}

func TestFilterThatDoesNotKnowClone3IsNoMatter(t *testing.T) {
	p := launch(t, "filtered", fmt.Sprintf("KEEPER_TEST_CALL=%d", unix.SYS_CLONE3), fmt.Sprintf("KEEPER_TEST_ACTION=%#x", unix.SECCOMP_RET_ERRNO|int(unix.ENOSYS)))
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	p.expect("ok")
	p.meet()
	if shares, err := SharesFiles(p.worker, p.keeper); err != nil || !shares {
		t.Errorf("shares files: %v, %v; want true", shares, err)
	}
}

func TestInitOfAPIDNamespaceCannotHaveAKeeper(t *testing.T) {
	p := launch(t, "starter")
	p.cmd.SysProcAttr = newNamespace(unix.CLONE_NEWPID)
	if err := p.run(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("PID namespaces are not permitted here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	const want = "unprotected namespace-init clone: invalid argument"
	if !p.out.Scan() || p.out.Text() != want {
		t.Errorf("got %q, want %q", p.out.Text(), want)
	}
}

// newNamespace has a helper start in a namespace of its own.
func newNamespace(flag uintptr) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: flag}
	if os.Getuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// TestWrongOptionsAreRefused calls Start itself: no keeper comes of it.
func TestWrongOptionsAreRefused(t *testing.T) {
	p := launch(t, "none")
	good := Options{Name: "app/3 keeper", Released: &p.page.released, SupervisorBeat: &p.page.beat, OrphanTTL: time.Second}
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{name: "no name", change: func(o *Options) { o.Name = "" }, want: `name "", want 1 to 15 bytes`},
		{name: "a long name", change: func(o *Options) { o.Name = "application/3 keeper" }, want: "want 1 to 15 bytes"},
		{name: "a zero in the name", change: func(o *Options) { o.Name = "app\x00" }, want: "want 1 to 15 bytes"},
		{name: "no released word", change: func(o *Options) { o.Released = nil }, want: "has no Released"},
		{name: "no heartbeat", change: func(o *Options) { o.SupervisorBeat = nil }, want: "has no SupervisorBeat"},
		{name: "no time", change: func(o *Options) { o.OrphanTTL = 0 }, want: "OrphanTTL 0s"},
		{name: "a released word of its own", change: func(o *Options) { o.Released = new(atomic.Uint32) }, want: "Released lies at 0x"},
		{name: "a heartbeat of its own", change: func(o *Options) { o.SupervisorBeat = new(atomic.Int64) }, want: "which is not shared memory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			k, err := Start(o)
			if err == nil {
				unix.PidfdSendSignal(k.PIDFD, unix.SIGKILL, nil, 0)
				t.Fatal("a keeper was started")
			}
			var unprotected *UnprotectedError
			if !strings.Contains(err.Error(), tt.want) || errors.As(err, &unprotected) {
				t.Errorf("error %q, want one about options with %q", err, tt.want)
			}
		})
	}
}

func TestProbeFindsWhyPidfdGetfdIsRefused(t *testing.T) {
	getfd := fmt.Sprintf("KEEPER_TEST_CALL=%d", unix.SYS_PIDFD_GETFD)
	action := func(action int) string { return fmt.Sprintf("KEEPER_TEST_ACTION=%#x", action) }
	tests := []struct {
		name string
		role string
		env  []string
		want string
	}{
		{name: "a filter", role: "filtered", env: []string{getfd, action(unix.SECCOMP_RET_ERRNO | int(unix.EPERM))}, want: "unprotected filtered pidfd_getfd: operation not permitted"},
		{name: "an old kernel", role: "filtered", env: []string{getfd, action(unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS))}, want: "unprotected filtered pidfd_getfd: function not implemented"},
		{name: "a filter that kills", role: "filtered", env: []string{getfd, action(unix.SECCOMP_RET_KILL_PROCESS)}, want: "unprotected filtered pidfd_getfd: the process that called it was killed"},
		{name: "processes that are not dumpable", role: "prober", want: "unprotected ptrace pidfd_getfd: operation not permitted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := launch(t, tt.role, tt.env...)
			if err := p.run(); err != nil {
				t.Fatal(err)
			}
			if !p.out.Scan() || p.out.Text() != tt.want {
				t.Errorf("got %q, want %q", p.out.Text(), tt.want)
			}
		})
	}
}

func TestProbeLeavesNothingBehind(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skipf("keepers cannot work here: %v", err)
	}
	before := openDescriptors(t)
	for range 10 {
		if err := Probe(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	// TestMain looks for children.
}

func TestReachAndCookieSayWhatIsWrong(t *testing.T) {
	p := startWorker(t)
	if _, err := Reach(p.keeperFD, 1<<20); !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor that is not there: %v, want EBADF", err)
	}
	fd, err := Reach(p.keeperFD, pageFD)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v; want close-on-exec", flags, err)
	}
	if _, err := Cookie(fd); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("cookie of a memfd: %v, want ENOTSOCK", err)
	}
	p.kill()
	if err := unix.PidfdSendSignal(p.keeperFD, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	p.reapKeeper()
	if _, err := Reach(p.keeperFD, pageFD); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a keeper that is gone: %v, want ESRCH", err)
	}
}

func TestCookieIsTheSameInEveryProcess(t *testing.T) {
	p := startWorker(t)
	p.dial(1)
	fd, err := Reach(p.keeperFD, int(p.page.rows[0].fd.Load()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	other, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	got, err := Cookie(fd)
	if err != nil || got != p.page.rows[0].cookie.Load() {
		t.Errorf("cookie %d, %v; want the worker's %d", got, err, p.page.rows[0].cookie.Load())
	}
	if another, err := Cookie(other); err != nil || another == got {
		t.Errorf("another socket's cookie is %d, %v", another, err)
	}
}
