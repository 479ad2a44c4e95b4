package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/talk"
)

// manager stands in for systemd: it has the listening sockets and the store of
// descriptors, starts the supervisor with them, and is the parent of workers
// whose supervisor is dead.
type manager struct {
	*survival
	dir       string
	program   string
	listeners []int // by the names; an os.File would make them blocking, for all who share them
	names     []string
	ports     map[string]int
	socket    int // where it is notified
	notify    string
	reaping   sync.WaitGroup
	quit      chan struct{}
	heard     chan struct{} // it has read all that was sent before

	mu    sync.Mutex
	store []stored     // newest first
	own   map[int]bool // processes that somebody waits for
}

type stored struct {
	name string
	fd   int
}

func startManager(t *testing.T, workers int) *manager {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startManagerOf(t, workers, self)
}

// startManagerOf has a manager start a program that is this one, built in
// another way.
func startManagerOf(t *testing.T, workers int, program string) *manager {
	t.Helper()
	dir := t.TempDir()
	m := &manager{dir: dir, program: program, notify: dir + "/notify.sock", quit: make(chan struct{}), heard: make(chan struct{}), ports: make(map[string]int), own: make(map[int]bool)}
	m.survival = &survival{&chaos{t: t, workers: workers}}
	var err error
	if m.client, err = control.NewClient("unix://" + dir + "/c.sock"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mortal", "inline", "secure"} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 4096)); err != nil {
			t.Fatal(err)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		m.ports[name] = sa.(*unix.SockaddrInet4).Port
		m.listeners, m.names = append(m.listeners, fd), append(m.names, name)
	}
	m.configure("")
	if m.socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(m.socket, &unix.SockaddrUnix{Name: m.notify}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	m.reaping.Go(m.listen)
	m.reaping.Go(m.reap)
	t.Cleanup(m.close)
	m.start()
	m.well()
	return m
}

func (m *manager) configure(first string) {
	m.t.Helper()
	text := first + fmt.Sprintf(`
workers = %d
control = "unix://%s/c.sock"
grace = "5s"
stop_grace = "2s"
hang_timeout = "3s"
respawn.first = "10ms"
respawn.max = "200ms"
log.level = "info"
[listener.mortal]
[listener.inline]
serve = "mortal-inline"
[listener.secure]
serve = "mortal"
`, m.workers, m.dir) + withTLS(m.t, m.dir, "secure")
	if err := os.WriteFile(m.dir+"/app.toml", []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// start starts a supervisor with the sockets and with what is stored.
func (m *manager) start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	log, err := os.OpenFile(m.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		m.t.Fatal(err)
	}
	defer null.Close()
	files := []uintptr{null.Fd(), log.Fd(), log.Fd()}
	names := slices.Clone(m.names)
	for _, fd := range m.listeners {
		files = append(files, uintptr(fd))
	}
	for _, s := range m.store {
		names, files = append(names, s.name), append(files, uintptr(s.fd))
	}
	env := append(os.Environ(), withMortals+"=1", "GORACE=atexit_sleep_ms=0", "NOTIFY_SOCKET="+m.notify, "FDSTORE=512", "MAINSTAY_TEST_DIR="+m.dir,
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, m.program, "run", "--config", m.dir + "/app.toml"},
		&syscall.ProcAttr{Env: env, Files: files})
	if err != nil {
		m.t.Fatal(err)
	}
	m.run = &exec.Cmd{}
	if m.run.Process, err = os.FindProcess(pid); err != nil {
		m.t.Fatal(err)
	}
	m.own[pid] = true
}

// output runs a command, which nobody else waits for, and returns what it has
// written and its exit code.
func (m *manager) output(cmd *exec.Cmd) (code int, stdout, stderr string) {
	m.t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	m.mu.Lock()
	e := cmd.Start()
	if e == nil {
		m.own[cmd.Process.Pid] = true
	}
	m.mu.Unlock()
	if e != nil {
		m.t.Fatal(e)
	}
	if e := cmd.Wait(); cmd.ProcessState == nil {
		m.t.Fatal(e)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

// die ends the supervisor by a signal and returns when it is gone.
func (m *manager) die(sig unix.Signal) {
	m.t.Helper()
	if err := unix.Kill(m.run.Process.Pid, sig); err != nil {
		m.t.Fatal(err)
	}
	_, _ = m.run.Process.Wait() // however it ends
	m.hear()
}

// kill ends workers, all before the supervisor can act on the first.
func (m *manager) kill(pids []int) {
	m.t.Helper()
	signal := func(pid int, sig unix.Signal) {
		if err := unix.Kill(pid, sig); err != nil {
			m.t.Fatal(err)
		}
	}
	own := m.run.Process.Pid
	signal(own, unix.SIGSTOP)
	var status unix.WaitStatus
	if _, err := unix.Wait4(own, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		m.t.Fatalf("the supervisor is not stopped: %v, %v", status, err)
	}
	for _, pid := range pids {
		signal(pid, unix.SIGKILL)
	}
	signal(own, unix.SIGCONT)
}

// hear returns when all that the dead have said is acted on: systemd reads what
// it is told before it looks who has died.
func (m *manager) hear() {
	m.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("HEARD=1"), 0, &unix.SockaddrUnix{Name: m.notify}); err != nil {
		m.t.Fatal(err)
	}
	<-m.heard
}

// listen is the manager's side of the notify socket.
func (m *manager) listen() {
	buf, oob := make([]byte, 8192), make([]byte, unix.CmsgSpace(4*16))
	for {
		p := []unix.PollFd{{Fd: int32(m.socket), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 20); err != nil && !errors.Is(err, unix.EINTR) {
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
	m.mu.Lock()
	defer m.mu.Unlock()
	says := map[string]string{}
	for line := range strings.Lines(message) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		says[k] = v
	}
	switch {
	case says["FDSTORE"] == "1":
		for _, fd := range fds {
			m.store = slices.Insert(m.store, 0, stored{says["FDNAME"], fd})
		}
		return
	case says["FDSTOREREMOVE"] == "1":
		m.store = slices.DeleteFunc(m.store, func(s stored) bool {
			if s.name == says["FDNAME"] {
				unix.Close(s.fd)
			}
			return s.name == says["FDNAME"]
		})
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	if says["HEARD"] == "1" {
		m.heard <- struct{}{}
	}
}

// reap reaps what has lost its parent.
func (m *manager) reap() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-tick.C:
		}
		tasks, _ := filepath.Glob("/proc/self/task/*/children")
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			for _, f := range strings.Fields(string(text)) {
				pid, _ := strconv.Atoi(f)
				m.mu.Lock()
				own := m.own[pid]
				m.mu.Unlock()
				if !own {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
				}
			}
		}
	}
}

func (m *manager) close() {
	m.run.Process.Signal(unix.SIGTERM)
	m.run.Process.Wait()
	// Keepers that a supervisor had not yet told the manager of when it was
	// killed end a moment after it.
	var left []int
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if left = m.family(); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		for _, pid := range left {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			m.t.Errorf("after the stop there is still process %d: %.60s", pid, stat)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	close(m.quit)
	m.reaping.Wait()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		m.t.Error(err)
	}
	if n := len(m.stored()); n > 0 {
		m.t.Errorf("after the stop %d descriptors are stored: %v", n, m.stored())
	}
	for _, s := range m.store {
		unix.Close(s.fd)
	}
	for _, f := range m.listeners {
		unix.Close(f)
	}
	unix.Close(m.socket)
	if m.t.Failed() {
		log, _ := os.ReadFile(m.dir + "/log")
		m.t.Logf("%s", log)
	}
}

// family lists the living processes of the service, but for the supervisor.
func (m *manager) family() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		text, err := os.ReadFile(path)
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		if err == nil && bytes.Contains(text, []byte("MAINSTAY_TEST_DIR="+m.dir)) && pid != m.run.Process.Pid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stored are the names of what is in the store, sorted.
func (m *manager) stored() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.store {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

// talkers has clients talk to the listeners mortal and secure.
func (m *manager) talkers(n int, pause time.Duration) *talk.Group {
	m.t.Helper()
	var dialed atomic.Int64
	dial := func() (net.Conn, error) {
		name := []string{"mortal", "secure"}[dialed.Add(1)%2]
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.ports[name]))
		if err != nil {
			return nil, err
		}
		return greet(conn, name)
	}
	g, err := talk.Start(dial, talk.Options{Clients: n, Pause: pause})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { g.Stop() })
	return g
}

// restartSignal is SIGRTMIN+1, by which systemd tells a restart from a stop.
const restartSignal = unix.Signal(35)

func pidsOf(st control.Status) (pids []int) {
	for _, w := range st.Pools[0].Workers {
		pids = append(pids, w.PID)
	}
	return pids
}

func TestWorkersAreAdoptedByTheNextSupervisorAndNobodyIsLost(t *testing.T) {
	m := startManager(t, 3)
	before := m.well()
	g := m.talkers(200, 50*time.Millisecond)
	for range 3 {
		m.die(unix.SIGKILL)
		m.start()
		after := m.well()
		if got, want := pidsOf(after), pidsOf(before); !slices.Equal(got, want) {
			t.Fatalf("the workers were %v and are %v", want, got)
		}
	}
	m.everyVerbWorks()
	if r := g.Stop(); r.Err() != nil {
		t.Error(r)
	} else {
		t.Log(r)
	}
	m.wantStored()
}

// everyVerbWorks operates the service as it is.
func (m *manager) everyVerbWorks() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := m.client
	check := func(what string, err error) {
		m.t.Helper()
		if err != nil {
			m.t.Errorf("%s: %v", what, err)
		}
		m.well()
	}
	_, err := c.Recycle(ctx, control.SlotRequest{Slot: 0})
	check("recycle", err)
	if _, err = c.Drain(ctx, control.SlotRequest{Slot: 1}); err == nil {
		_, err = c.Resume(ctx, control.SlotRequest{Slot: 1})
	}
	check("drain, resume", err)
	if _, err = c.Scale(ctx, control.ScaleRequest{N: m.workers + 1}); err == nil {
		_, err = c.Scale(ctx, control.ScaleRequest{N: m.workers})
	}
	check("scale", err)
	check("reload", c.Reload(ctx, control.ReloadRequest{}, func(string) {}))
}

// wantStored waits until the store has what it is to have, and nothing else.
func (m *manager) wantStored() {
	m.t.Helper()
	want := 3 + 1 + 2 + 5*m.workers
	if st, err := m.status(); err != nil {
		m.t.Error(err)
	} else if st.LastGood != nil {
		want += 2
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		got := m.stored()
		if len(got) == want {
			return
		}
		if time.Now().After(deadline) {
			m.t.Errorf("%d descriptors are stored, want %d: %v", len(got), want, got)
			return
		}
	}
}

// talked ends the talk and wants nobody to have lost anything.
func talked(t *testing.T, g *talk.Group) {
	t.Helper()
	r := g.Stop()
	t.Log(r)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

func TestRestartsInARowLoseNobodyAndBringInNewWorkers(t *testing.T) {
	m := startManager(t, 3)
	before := m.well()
	g := m.talkers(200, 50*time.Millisecond)
	for i := range 10 {
		m.die(restartSignal)
		m.start()
		if i%2 == 1 { // otherwise in the middle of the reload
			m.renewed()
		} else {
			m.await("it is there", func(st control.Status) bool { return st.PID == m.run.Process.Pid && st.State == control.StateReloading })
		}
	}
	after := m.renewed()
	for _, pid := range pidsOf(after) {
		if slices.Contains(pidsOf(before), pid) {
			t.Errorf("worker %d is from before the restarts", pid)
		}
	}
	talked(t, g)
	m.wantStored()
}

// sums are the counters that outlive a supervisor, by name and labels.
func (m *manager) sums() map[string]float64 {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	page, err := m.client.Metrics(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	sums := make(map[string]float64)
	for line := range strings.Lines(string(page)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(key, "{")
		if !strings.HasSuffix(name, "_total") || strings.HasPrefix(name, "mainstay_supervisor_") || name == "mainstay_worker_cpu_seconds_total" {
			continue
		}
		if sums[key], err = strconv.ParseFloat(value, 64); err != nil {
			m.t.Fatalf("%q: %v", line, err)
		}
	}
	return sums
}

func TestSumsAndEventsOutliveTheSupervisor(t *testing.T) {
	m := startManager(t, 2)
	c := m.connect("inline")
	pid, _, err := c.ask("name keeps")
	if err != nil {
		t.Fatal(err)
	}
	m.kill(pidsOf(m.well()))
	m.await("both workers are new", func(st control.Status) bool {
		return st.State == control.StateServing && len(st.Pools[0].Workers) == 2 && !slices.Contains(pidsOf(st), pid) && st.Kept == 1
	})
	if _, _, err := c.ask("who"); err != nil {
		t.Fatal(err)
	}
	m.wantStored()
	events := func() (all []control.Event) {
		t.Helper()
		if err := m.client.Events(t.Context(), false, func(e control.Event) { all = append(all, e) }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before, told := m.sums(), events()
	deaths := 0.0
	for key, n := range before {
		if strings.HasPrefix(key, "mainstay_worker_respawns_total") {
			deaths += n
		}
	}
	if deaths != 2 || before["mainstay_connections_kept_total"] != 1 {
		t.Errorf("two workers died, and the sums are %v", before)
	}
	for _, sig := range []unix.Signal{unix.SIGKILL, restartSignal} {
		m.die(sig)
		m.start()
		m.well()
		if sig == restartSignal {
			m.renewed()
		}
		after, now := m.sums(), events()
		for key, was := range before {
			if is, ok := after[key]; !ok || is < was {
				t.Errorf("after %v %s was %v and is %v (there: %v)", sig, key, was, is, ok)
			}
		}
		if len(now) <= len(told) {
			t.Fatalf("after %v there are %d events, before there were %d", sig, len(now), len(told))
		}
		for i, e := range told {
			if now[i].At != e.At || now[i].Kind != e.Kind || now[i].Message != e.Message {
				t.Errorf("after %v event %d is %+v, was %+v", sig, i, now[i], e)
			}
		}
		before, told = after, now
	}
}

// renewed waits until all workers are of the generation that serves, the last
// reload being done.
func (m *manager) renewed() control.Status {
	m.t.Helper()
	return m.await("all workers are of one generation", func(st control.Status) bool {
		if st.State != control.StateServing || len(st.Pools[0].Workers) != m.workers || st.LastReload == nil || !st.LastReload.OK {
			return false
		}
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || w.Generation != st.Generation {
				return false
			}
		}
		return st.LastReload.Generation == st.Generation
	})
}

func TestReloadWhoseSupervisorDiesIsRolledBack(t *testing.T) {
	m := startManager(t, 3)
	g := m.talkers(100, 50*time.Millisecond)
	m.configure("reload.bake = \"700ms\"\n")
	for _, old := range []int{3, 2, 1} { // workers that are not replaced yet
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := m.client.Reload(ctx, control.ReloadRequest{Detach: true}, nil); err != nil {
			t.Fatal(err)
		}
		cancel()
		was := uint64(0)
		m.await(fmt.Sprintf("a reload with %d old workers", old), func(st control.Status) bool {
			was = st.Generation
			n, fresh := 0, 0
			for _, w := range st.Pools[0].Workers {
				switch {
				case w.State == "ready" && w.Generation == was:
					n++
				case w.State == "ready":
					fresh++
				}
			}
			return st.State == control.StateReloading && n == old && fresh > 0
		})
		m.die(unix.SIGKILL)
		m.start()
		st := m.await("the reload is rolled back", func(st control.Status) bool {
			return st.State == control.StateServing && len(st.Pools[0].Workers) == m.workers && st.LastReload != nil && !st.LastReload.OK
		})
		if st.Generation != was || !strings.Contains(st.LastReload.Reason, "supervisor died") {
			t.Errorf("generation %d, want %d; last reload %+v", st.Generation, was, st.LastReload)
		}
		for _, w := range st.Pools[0].Workers {
			if w.Generation != was {
				t.Errorf("worker %+v, want one of generation %d", w, was)
			}
		}
	}
	talked(t, g)
	m.wantStored()
}

func TestWorkerThatDiesWhileThereIsNoSupervisorIsHarvestedByTheNext(t *testing.T) {
	m := startManager(t, 3)
	before := m.well()
	var clients []*talker
	for i := range 60 {
		c := m.connect([]string{"mortal", "secure"}[i%2])
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	m.die(unix.SIGKILL)
	dead := before.Pools[0].Workers[1].PID
	if err := unix.Kill(dead, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.start()
	after := m.await("a successor serves", func(st control.Status) bool {
		return st.State == control.StateServing && len(st.Pools[0].Workers) == m.workers && !slices.Contains(pidsOf(st), dead)
	})
	for i, c := range clients {
		pid, answer, err := c.ask("who")
		if err != nil || !strings.HasPrefix(answer, fmt.Sprintf("n%d ", i)) || pid == dead {
			t.Errorf("client %d: %q by %d, %v", i, answer, pid, err)
		}
	}
	if w := after.Pools[0].Workers[1]; !strings.Contains(w.LastDeath, "SIGKILL") && !strings.Contains(w.LastDeath, "unknown") {
		t.Errorf("the last death is %q", w.LastDeath)
	}
	m.well()
	m.wantStored()
}

func TestRestartIntoABrokenConfigurationLeavesTheWorkersAlone(t *testing.T) {
	m := startManager(t, 2)
	before := m.well()
	g := m.talkers(50, 50*time.Millisecond)
	m.configure("wokers = 3\n")
	for range 2 {
		m.die(restartSignal)
		m.start()
		st := m.await("what is wrong is told", func(st control.Status) bool {
			return st.PID == m.run.Process.Pid && st.State == control.StateServing && st.LastReload != nil && !st.LastReload.OK
		})
		if !strings.Contains(st.LastReload.Reason, "wokers") || !slices.Equal(pidsOf(st), pidsOf(before)) {
			t.Errorf("the workers were %v and are %v, last reload %+v", pidsOf(before), pidsOf(st), st.LastReload)
		}
	}
	m.configure("")
	m.die(restartSignal)
	m.start()
	m.renewed()
	talked(t, g)
	m.wantStored()
}

func TestSupervisorThatDiesDuringAHarvestLeavesItToTheNext(t *testing.T) {
	m := startManager(t, 3)
	var clients []*talker
	for i := range 300 {
		c := m.connect("mortal")
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	lost := 0
	for round := range rounds {
		st := m.well()
		// One, two, or all: then nobody is left to take them.
		var victims []int
		for i := range round%3 + 1 {
			victims = append(victims, st.Pools[0].Workers[(round+i)%3].PID)
		}
		m.kill(victims)
		<-time.After(time.Duration(round) * 700 * time.Microsecond) // somewhere in the harvest
		m.die(unix.SIGKILL)
		if round%4 == 3 { // the next one dies as well, before or in its harvest
			m.start()
			<-time.After(time.Duration(50+10*round) * time.Millisecond)
			m.die(unix.SIGKILL)
		}
		m.start()
		m.await("a successor serves", func(st control.Status) bool {
			return st.State == control.StateServing && len(st.Pools[0].Workers) == m.workers && !slices.ContainsFunc(victims, func(pid int) bool { return slices.Contains(pidsOf(st), pid) })
		})
		kept := clients[:0]
		for i, c := range clients {
			if _, _, err := c.ask("who"); err != nil {
				lost++
				t.Errorf("round %d: client %d, workers %d killed: %v", round, i, victims, err)
				continue
			}
			kept = append(kept, c)
		}
		clients = kept
	}
	if lost > 0 {
		t.Errorf("%d of 300 connections are lost", lost)
	}
	m.well()
	m.wantStored()
}

func TestRestartDuringAHarvestLeavesItToTheNext(t *testing.T) {
	m := startManager(t, 3)
	var clients []*talker
	for i := range 300 {
		c := m.connect("mortal")
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	for round := range 3 {
		victims := pidsOf(m.well())
		m.kill(victims)
		<-time.After(time.Duration(round) * 7 * time.Millisecond) // somewhere in the harvest
		m.die(restartSignal)
		m.start()
		m.await("successors serve", func(st control.Status) bool {
			return st.State == control.StateServing && len(st.Pools[0].Workers) == m.workers && !slices.ContainsFunc(victims, func(pid int) bool { return slices.Contains(pidsOf(st), pid) })
		})
		for i, c := range clients {
			if _, answer, err := c.ask("who"); err != nil || !strings.HasPrefix(answer, fmt.Sprintf("n%d ", i)) {
				t.Errorf("round %d: client %d: %q, %v", round, i, answer, err)
			}
		}
	}
	m.well()
	m.wantStored()
}
