package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// manager plays systemd's part for one service: it has the listening socket
// and the store of descriptors, starts the supervisor with both, hears what it
// notifies, and is the parent of workers whose supervisor is dead. Its
// methods are called by the main goroutine, which is locked to the main thread:
// the supervisor is sent SIGTERM when the thread that started it ends.
type manager struct {
	dir, server string
	listener    int // an os.File would make it blocking, for all who share it
	port        int
	notify      string
	socket      int
	client      *control.Client
	own         string // what this program is called in /proc
	quit        chan struct{}
	ended       sync.WaitGroup
	heard       chan struct{}  // all that was sent before was acted on
	ready       chan time.Time // when READY=1 came
	events      chan control.Event

	mu    sync.Mutex
	store []stored // newest first
	pid   int      // of the supervisor; its end is waited for by die
	begun time.Time
}

type stored struct {
	name string
	fd   int
}

// patience bounds every wait for the service or a process of ours.
const patience = 60 * time.Second

// startService starts a service with some more settings. The caller calls stop.
func startService(ctx context.Context, server string, workers int, settings string) (_ *manager, err error) {
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return nil, fmt.Errorf("survival: %w", err)
	}
	m := &manager{dir: dir, listener: -1, socket: -1, notify: dir + "/notify.sock", quit: make(chan struct{}),
		heard: make(chan struct{}), ready: make(chan time.Time, 16), events: make(chan control.Event, 4096)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("survival: service: %w%s", err, m.lastWords()), m.stop())
		}
	}()
	if m.server, err = filepath.Abs(server); err != nil {
		return nil, err
	}
	if _, err := os.Stat(m.server); err != nil {
		return nil, fmt.Errorf("%w: build it, or name it by --server", err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return nil, err
	}
	m.own = string(comm)
	if m.client, err = control.NewClient("unix://" + dir + "/c.sock"); err != nil {
		return nil, err
	}
	if m.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := errors.Join(unix.Bind(m.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(m.listener, 4096)); err != nil {
		return nil, err
	}
	name, err := unix.Getsockname(m.listener)
	if err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	m.port = name.(*unix.SockaddrInet4).Port
	config := fmt.Sprintf("workers = %d\ncontrol = \"unix://%s/c.sock\"\nrespawn.first = \"10ms\"\nrespawn.max = \"200ms\"\n%s[listener.echo]\n", workers, dir, settings)
	if err := os.WriteFile(dir+"/app.toml", []byte(config), 0o600); err != nil {
		return nil, err
	}
	if m.socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(m.socket, &unix.SockaddrUnix{Name: m.notify}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	m.ended.Go(m.listen)
	m.ended.Go(m.reap)
	if err := m.start(); err != nil {
		return nil, err
	}
	if _, err := m.isReady(ctx); err != nil {
		return nil, err
	}
	_, err = m.await(ctx, "the workers are ready", whole(workers))
	return m, err
}

// whole is what a service with so many ready workers looks like.
func whole(workers int) func(control.Status) bool {
	return func(st control.Status) bool {
		if st.State != control.StateServing || len(st.Pools) != 1 || len(st.Pools[0].Workers) != workers {
			return false
		}
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || w.Protection != "protected" {
				return false
			}
		}
		return true
	}
}

// start starts a supervisor with the socket and with what is stored.
func (m *manager) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	log, err := os.OpenFile(m.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	files, names := []uintptr{null.Fd(), log.Fd(), log.Fd(), uintptr(m.listener)}, []string{"echo"}
	for _, s := range m.store {
		names, files = append(names, s.name), append(files, uintptr(s.fd))
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + m.notify, "FDSTORE=512",
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	for len(m.ready) > 0 {
		<-m.ready
	}
	m.begun = time.Now()
	m.pid, err = syscall.ForkExec("/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, m.server, "run", "--config", m.dir + "/app.toml"},
		&syscall.ProcAttr{Dir: m.dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}})
	return os.NewSyscallError("fork", err)
}

// isReady waits until the supervisor has reported that it is ready, and
// returns how long that took it from its start.
func (m *manager) isReady(ctx context.Context) (time.Duration, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case at := <-m.ready:
		return at.Sub(m.begun), nil
	case <-late.C:
		return 0, fmt.Errorf("survival: the supervisor is not ready after %v%s", patience, m.lastWords())
	case <-ctx.Done():
		return 0, fmt.Errorf("survival: %w", context.Cause(ctx))
	}
}

// die ends the supervisor by a signal and returns when it is gone, and all
// that it has said is acted on.
func (m *manager) die(sig unix.Signal) error {
	if err := unix.Kill(m.pid, sig); err != nil {
		return os.NewSyscallError("kill", err)
	}
	for deadline := time.Now().Add(patience); ; {
		pid, err := unix.Wait4(m.pid, nil, unix.WNOHANG, nil)
		if pid == m.pid {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("wait4", err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("survival: the supervisor, process %d, does not end by signal %v", m.pid, sig)
		}
		<-time.After(time.Millisecond)
	}
	m.mu.Lock()
	m.pid = 0
	m.mu.Unlock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("HEARD=1"), 0, &unix.SockaddrUnix{Name: m.notify}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	<-m.heard
	return nil
}

// listen is the manager's side of the notify socket (sd_notify(3)).
func (m *manager) listen() {
	buf, oob := make([]byte, 8192), make([]byte, unix.CmsgSpace(4*16))
	for {
		p := []unix.PollFd{{Fd: int32(m.socket), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		select {
		case <-m.quit:
			return
		default:
		}
		n, oobn, _, _, err := unix.Recvmsg(m.socket, buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			continue
		}
		var fds []int
		if all, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(all) > 0 {
			fds, _ = unix.ParseUnixRights(&all[0])
		}
		m.told(string(buf[:n]), fds)
	}
}

func (m *manager) told(message string, fds []int) {
	now := time.Now()
	says := map[string]string{}
	for line := range strings.Lines(message) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		says[k] = v
	}
	switch {
	case says["FDSTORE"] == "1":
		m.mu.Lock()
		for _, fd := range fds {
			m.store = slices.Insert(m.store, 0, stored{says["FDNAME"], fd})
		}
		m.mu.Unlock()
		return
	case says["FDSTOREREMOVE"] == "1":
		m.mu.Lock()
		m.store = slices.DeleteFunc(m.store, func(s stored) bool {
			if s.name == says["FDNAME"] {
				unix.Close(s.fd)
			}
			return s.name == says["FDNAME"]
		})
		m.mu.Unlock()
	case says["READY"] == "1":
		select {
		case m.ready <- now:
		default: // nobody waits for it
		}
	case says["HEARD"] == "1":
		m.heard <- struct{}{}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// reap reaps what has lost its parent, when it dies: to look for it again and
// again would take time of what is measured.
func (m *manager) reap() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-m.quit:
			return
		case <-died:
		}
		for _, pid := range m.orphans() {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// orphans lists our children, but for those that this program has started
// itself: the supervisor, and those that are this program again.
func (m *manager) orphans() (pids []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, f := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(f)
			comm, err := os.ReadFile("/proc/" + f + "/comm")
			if err == nil && pid != m.pid && !bytes.Equal(comm, []byte(m.own)) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// status asks the supervisor.
func (m *manager) status(ctx context.Context) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return m.client.Status(ctx)
}

// await waits until the service looks as it is to look.
func (m *manager) await(ctx context.Context, what string, ok func(control.Status) bool) (control.Status, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; {
		st, err := m.status(ctx)
		if err == nil && ok(st) {
			return st, nil
		}
		if time.Now().After(deadline) {
			return st, fmt.Errorf("survival: not so after %v: %s: status %+v, %v%s", patience, what, st, err, m.lastWords())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, fmt.Errorf("survival: %w", context.Cause(ctx))
		}
	}
}

// follow has the events of the supervisor told from now on, until ctx is done
// or it dies. It returns when the first that was told before has come.
func (m *manager) follow(ctx context.Context) {
	first := make(chan struct{})
	var once sync.Once
	m.ended.Go(func() {
		_ = m.client.Events(ctx, true, func(e control.Event) {
			once.Do(func() { close(first) })
			select {
			case m.events <- e:
			default: // nobody asks for them
			}
		})
		once.Do(func() { close(first) })
	})
	<-first
}

// harvested waits for the end of the harvest of a dead worker.
func (m *manager) harvested(ctx context.Context, incarnation uint64) (control.Event, time.Time, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case e := <-m.events:
			if e.Kind != "harvested" || e.Incarnation != incarnation {
				continue
			}
			at, err := time.Parse(time.RFC3339Nano, e.At)
			if err != nil {
				err = fmt.Errorf("survival: event %+v: %w", e, err)
			}
			return e, at, err
		case <-late.C:
			return control.Event{}, time.Time{}, fmt.Errorf("survival: no worker's connections were harvested in %v%s", patience, m.lastWords())
		case <-ctx.Done():
			return control.Event{}, time.Time{}, fmt.Errorf("survival: %w", context.Cause(ctx))
		}
	}
}

// lastWords returns the end of the service's log behind a newline; empty if
// there is none.
func (m *manager) lastWords() string {
	b, err := os.ReadFile(m.dir + "/log")
	if err != nil || len(b) == 0 {
		return ""
	}
	const most = 3000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "\n" + string(b)
}

// stop ends the service and all that is left of it.
func (m *manager) stop() error {
	var errs []error
	if m.pid != 0 {
		errs = append(errs, m.die(unix.SIGTERM))
	}
	if left := m.orphans(); len(left) > 0 {
		for _, pid := range left {
			if unix.Kill(pid, unix.SIGKILL) == nil {
				_, _ = unix.Wait4(pid, nil, 0, nil)
			}
		}
	}
	close(m.quit)
	m.ended.Wait()
	for _, s := range m.store {
		unix.Close(s.fd)
	}
	for _, fd := range []int{m.listener, m.socket} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}
