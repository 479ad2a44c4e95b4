package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const roleVariable = "KEEPER_TEST_ROLE"

// roles are what the test binary can be instead. The tests are the
// supervisor; what calls Start is always another process, so that the keeper
// is a child of the tests and of nobody who started them.
var roles = map[string]func(){
	"worker":     playWorker,
	"supervisor": playSupervisor,
	"sleeper":    func() { say("asleep"); io.Copy(io.Discard, os.Stdin) },
	"starter":    playStarter,
	"prober":     playProber,
	"filtered":   playFiltered,
	"fastopen":   playFastOpen,
}

// TestMain fails the package if a goroutine or a child is left.
func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleVariable)]; ok {
		role()
		return
	}
	// Orphans of a supervisor that a test has killed become ours.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "prctl PR_SET_CHILD_SUBREAPER:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); !errors.Is(err, unix.ECHILD) {
			fmt.Fprintf(os.Stderr, "children are left: wait4 says %d, %v\n", pid, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// eventually waits for a condition that nobody signals.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		<-time.After(time.Millisecond)
	}
}

// page is what supervisor, worker and keeper share.
type page struct {
	released atomic.Uint32
	_        uint32
	beat     atomic.Int64
	rows     [4096]row
}

// row is what a worker has noted of a connection.
type row struct {
	fd       atomic.Int64
	consumed atomic.Uint64
	written  atomic.Uint64
	cookie   atomic.Uint64 // 0: no connection
}

func (r *row) noted() Position {
	return Position{Consumed: r.consumed.Load(), Written: r.written.Load()}
}

func mapPage(fd int) (*page, []byte, error) {
	mem, err := unix.Mmap(fd, 0, int(unsafe.Sizeof(page{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return (*page)(unsafe.Pointer(unsafe.SliceData(mem))), mem, nil
}

func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return now.Nano()
}

// ------------------------------------------------------------- the worker

const pageFD = 3 // a worker's first descriptor that was passed on

func say(format string, a ...any) { fmt.Printf(format+"\n", a...) }

// start is Start with what the environment says.
func start(p *page) (*Keeper, error) {
	ttl, err := time.ParseDuration(os.Getenv("KEEPER_TEST_TTL"))
	if err != nil {
		return nil, err
	}
	return Start(Options{Name: "app/3 keeper", Released: &p.released, SupervisorBeat: &p.beat, OrphanTTL: ttl})
}

// playWorker starts a keeper, echoes, and does what its standard input says.
func playWorker() {
	p, _, err := mapPage(pageFD)
	if err != nil {
		say("error %v", err)
		os.Exit(1)
	}
	mib, _ := strconv.Atoi(os.Getenv("KEEPER_TEST_BALLAST"))
	ballast := bytes.Repeat([]byte{1}, mib<<20) // a heap that was not small
	k, err := start(p)
	if err != nil {
		say("error %v", err)
		os.Exit(1)
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		say("error %v", err)
		os.Exit(1)
	}
	say("keeper %d %d", os.Getpid(), k.PID)
	say("listening %s", l.Addr())

	go echo(p, l)
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		verb, arg, _ := strings.Cut(commands.Text(), " ")
		number, _ := strconv.Atoi(arg)
		switch verb {
		case "grow":
			for i := 0; i < len(ballast); i += os.Getpagesize() {
				ballast[i]++
			}
			ballast = append(ballast, make([]byte, number<<20)...)
		case "exec":
			os.Setenv(roleVariable, "sleeper")
			say("exec: %v", syscall.Exec("/proc/self/exe", []string{"sleeper"}, os.Environ()))
		case "exit":
			os.Exit(number)
		case "release":
			p.released.Store(1)
		case "panic":
			go func() { panic("as asked") }()
			select {}
		case "fatal": // a fatal error of the runtime, which nothing recovers
			m := map[int]int{}
			for range 8 {
				go func() {
					for i := 0; ; i++ {
						m[i%8] = i
					}
				}()
			}
			select {}
		}
		say("done %s %d", verb, len(ballast))
	}
	select {} // its supervisor is dead; it serves on
}

// echo serves all connections of l. A line "give N" is answered by N bytes,
// "close" by the end; all else comes back.
func echo(p *page, l net.Listener) {
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			say("error %v", err)
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			r := &p.rows[i]
			raw, _ := c.(*net.TCPConn).SyscallConn()
			raw.Control(func(fd uintptr) {
				cookie, err := Cookie(int(fd))
				if err != nil {
					panic(err)
				}
				r.fd.Store(int64(fd))
				r.cookie.Store(cookie)
			})
			defer r.cookie.Store(0)
			buf := make([]byte, 256)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				reply := buf[:n]
				verb, arg, _ := strings.Cut(strings.TrimSpace(string(reply)), " ")
				switch verb {
				case "close":
					return
				case "give":
					size, _ := strconv.Atoi(arg)
					reply = make([]byte, size)
				}
				r.consumed.Add(uint64(n))
				r.written.Add(uint64(len(reply)))
				if _, err := c.Write(reply); err != nil {
					return
				}
			}
		}()
	}
}

// --------------------------------------------------- what a supervisor does

// process is a worker and its keeper, as the tests, their supervisor, have them.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd // of the worker, or of the supervisor between
	page *page

	in  io.Writer
	out *bufio.Scanner

	worker   int // PID
	keeper   int // PID
	keeperFD int // pidfd
	address  string

	cmdReaped, keeperReaped bool
}

// launch starts a helper with a fresh page as descriptor 3.
func launch(t testing.TB, role string, env ...string) *process {
	t.Helper()
	fd, err := unix.MemfdCreate("page", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "page")
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(int64(unsafe.Sizeof(page{}))); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, keeperFD: -1}
	var mem []byte
	if p.page, mem, err = mapPage(fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	p.page.beat.Store(monotonic())

	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Args = []string{"worker", "--slot", "3"}
	p.cmd.Env = append(os.Environ(), roleVariable+"="+role, "KEEPER_TEST_TTL=1h", "GORACE=atexit_sleep_ms=0")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.ExtraFiles = []*os.File{file}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return p
}

// run starts the helper and reads from it.
func (p *process) run() error {
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.in, p.out = in, bufio.NewScanner(out)
	p.t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.reap()
	})
	return nil
}

// startWorker starts a worker with its keeper, and ends both with the test.
func startWorker(t testing.TB, env ...string) *process {
	t.Helper()
	p := launch(t, "worker", env...)
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	p.meet()
	return p
}

// meet reads who the worker and its keeper are.
func (p *process) meet() {
	p.t.Helper()
	p.expect("keeper %d %d", &p.worker, &p.keeper)
	p.expect("listening %s", &p.address)
	fd, err := unix.PidfdOpen(p.keeper, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.keeperFD = fd
	worker, err := unix.PidfdOpen(p.worker, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		unix.PidfdSendSignal(worker, unix.SIGKILL, nil, 0)
		unix.Close(worker)
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		p.reapKeeper()
		unix.Close(fd)
	})
}

func (p *process) expect(format string, a ...any) {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatalf("the helper has ended, want a line %q", format)
	}
	if _, err := fmt.Sscanf(p.out.Text(), format, a...); err != nil {
		p.t.Fatalf("the helper says %q, want %q", p.out.Text(), format)
	}
}

func (p *process) tell(command string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, command); err != nil {
		p.t.Fatal(err)
	}
}

// do tells and waits until it is done.
func (p *process) do(command string) {
	p.t.Helper()
	p.tell(command)
	var verb string
	var size int
	p.expect("done %s %d", &verb, &size)
}

// reap waits for the helper.
func (p *process) reap() {
	if !p.cmdReaped {
		p.cmdReaped = true
		p.cmd.Wait()
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.reap()
}

// keeperLives asks its pidfd.
func (p *process) keeperLives() bool {
	p.t.Helper()
	poll := []unix.PollFd{{Fd: int32(p.keeperFD), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		p.t.Fatal(err)
	}
	return n <= 0
}

// keeperEnds waits for the end of the keeper.
func (p *process) keeperEnds() unix.WaitStatus {
	p.t.Helper()
	eventually(p.t, "the keeper's end", func() bool { return !p.keeperLives() })
	return p.reapKeeper()
}

// settle waits until the keeper is in its one long wait, which it is when it
// has given back what it can: proc_pid_syscall(5).
func (p *process) settle() {
	p.t.Helper()
	eventually(p.t, "the keeper's wait", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.keeper))
		if err != nil {
			p.t.Fatal(err)
		}
		return strings.HasPrefix(string(text), fmt.Sprintf("%d ", unix.SYS_PPOLL))
	})
}

func (p *process) killKeeper() {
	p.t.Helper()
	if err := unix.PidfdSendSignal(p.keeperFD, unix.SIGKILL, nil, 0); err != nil {
		p.t.Fatal(err)
	}
	if status := p.reapKeeper(); status.Signal() != unix.SIGKILL {
		p.t.Errorf("the keeper ended with status %#x, want killed", status)
	}
}

func (p *process) reapKeeper() unix.WaitStatus {
	p.t.Helper()
	if p.keeperReaped {
		return 0
	}
	p.keeperReaped = true
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(p.keeper, &status, 0, nil)
		if err == nil {
			return status
		}
		if !errors.Is(err, unix.EINTR) {
			p.t.Errorf("reaping the keeper: %v", err)
			return 0
		}
	}
}

// dial opens n connections to the worker, each known to it by a row.
func (p *process) dial(n int) []*net.TCPConn {
	p.t.Helper()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		c, err := dialer.Dial("tcp", p.address)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.TCPConn)
	}
	for i, c := range conns {
		ask(p.t, c, fmt.Sprintf("hello %d\n", i))
	}
	return conns
}

// ask sends a line and wants it back.
func ask(t testing.TB, c net.Conn, line string) {
	t.Helper()
	write(t, c, line)
	answered(t, c, line)
}

func write(t testing.TB, c net.Conn, line string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
}

func answered(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("answer %q, %v; want %q", got, err, want)
	}
}

// salvaged is a connection out of a keeper.
type salvaged struct {
	fd     int
	noted  Position
	kernel Kernel
}

// harvest takes what has a row out of the keeper and puts it by cookie.
func (p *process) harvest() map[uint64]salvaged {
	p.t.Helper()
	all := map[uint64]salvaged{}
	for i := range p.page.rows {
		r := &p.page.rows[i]
		cookie := r.cookie.Load()
		if cookie == 0 {
			continue
		}
		fd, err := Reach(p.keeperFD, int(r.fd.Load()))
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { unix.Close(fd) })
		if got, err := Cookie(fd); err != nil || got != cookie {
			p.t.Fatalf("descriptor %d has cookie %d, %v; want %d", fd, got, err, cookie)
		}
		kernel, err := Counts(fd)
		if err != nil {
			p.t.Fatal(err)
		}
		all[cookie] = salvaged{fd: fd, noted: r.noted(), kernel: kernel}
	}
	return all
}

// answerAll echoes what has come for the connections that were salvaged.
func answerAll(t testing.TB, all map[uint64]salvaged) {
	t.Helper()
	buf := make([]byte, 256)
	for _, s := range all {
		n, err := unix.Read(s.fd, buf)
		if err != nil || n == 0 {
			t.Fatalf("read from a connection of a dead worker: %d, %v", n, err)
		}
		if _, err := unix.Write(s.fd, buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
}

// status reads a line of /proc/pid/status.
func status(t testing.TB, pid int, name string) string {
	t.Helper()
	return procLine(t, fmt.Sprintf("/proc/%d/status", pid), name)
}

func procLine(t testing.TB, file, name string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return ""
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// ------------------------------------------------------------ other helpers

// playSupervisor starts a worker that speaks in its place.
func playSupervisor() {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=worker")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.ExtraFiles = []*os.File{os.NewFile(pageFD, "page")}
	if err := cmd.Start(); err != nil {
		say("error %v", err)
		os.Exit(1)
	}
	select {}
}

// report says how a call has ended.
func report(err error) {
	var unprotected *UnprotectedError
	switch {
	case err == nil:
		say("ok")
	case errors.As(err, &unprotected):
		say("unprotected %s %v", unprotected.Reason, errors.Unwrap(unprotected))
	default:
		say("error %v", err)
	}
}

// playStarter tells how Start ends and, if a keeper was started, its PID.
func playStarter() {
	p, _, err := mapPage(pageFD)
	if err != nil {
		report(err)
		return
	}
	k, err := start(p)
	report(err)
	if err == nil {
		say("keeper %d %d", os.Getpid(), k.PID)
		say("listening nowhere")
		io.Copy(io.Discard, os.Stdin)
	}
}

// playProber is an ordinary user whose processes may not be traced.
func playProber() {
	if os.Getuid() == 0 {
		if err := syscall.Setuid(65534); err != nil {
			report(err)
			return
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		report(err)
		return
	}
	report(Probe())
}

// playFiltered calls Start or Probe under a seccomp filter.
func playFiltered() {
	action, err := strconv.ParseUint(os.Getenv("KEEPER_TEST_ACTION"), 0, 32)
	if err != nil {
		report(err)
		return
	}
	call, err := strconv.ParseUint(os.Getenv("KEEPER_TEST_CALL"), 0, 32)
	if err != nil {
		report(err)
		return
	}
	if err := filter(uint32(call), uint32(action)); err != nil {
		report(err)
		return
	}
	if call == unix.SYS_PIDFD_GETFD {
		report(Probe())
		return
	}
	playStarter()
}

// filter answers a system call by a seccomp(2) action, clone only where it
// does not make a thread.
func filter(call, action uint32) error {
	const argument = 16 // offsetof(struct seccomp_data, args[0])
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: argument},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: threadFlag(call), Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: action},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	runtime.LockOSThread() // the first of the two is a thread's, TSYNC spreads it
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

// threadFlag are bits in the first argument that let a call pass the filter.
func threadFlag(call uint32) uint32 {
	if call == unix.SYS_CLONE {
		return unix.CLONE_THREAD
	}
	return 0
}

type rawConn interface {
	SyscallConn() (syscall.RawConn, error)
}

func openDescriptorNumbers(t testing.TB) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[int]bool{}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			numbers[n] = true
		}
	}
	return numbers
}
