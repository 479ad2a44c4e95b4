package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// launcher starts processes; tests put another in its place.
type launcher interface {
	// launch starts a worker. What it says and its exit are passed to the
	// hooks, from goroutines of the process; exited is the last call.
	launch(order order) (process, error)
	// adopt makes one of a worker that an earlier supervisor has started, and
	// takes over r; the hooks are as launch's.
	adopt(order order, pid int, r remains) (process, error)
}

// process is a running worker, or one that is not reaped yet. Its methods
// may be called from any goroutine and never wait.
type process interface {
	PID() int
	Send(link.Body) error
	SendFile(body link.Body, fd int) error // fd stays the caller's
	Signal(unix.Signal) error
}

// order says what to launch.
type order struct {
	release  *release
	identity link.Identity
	sockets  []activation.Socket
	stats    int
	rows     int
	greeted  func(h link.Hello, inbox int) // takes over inbox; -1: none
	kept     func(k link.Kept, pidfd int)  // takes over pidfd; -1: none
	said     func(link.Body)
	answered func(g link.Gathered, fd int) // takes over fd; -1: none
	unknown  func(error)                   // a message could not be understood
	exited   func(Exit)
	keep     func(kind string, fd int) // has a descriptor stored for the next supervisor; fd stays the process's
}

// osLauncher starts real processes.
type osLauncher struct {
	args   []string
	stderr *os.File
	log    *zap.Logger
	null   *os.File
}

// worker is a process that the kernel knows.
type worker struct {
	pid     int
	pidfd   *os.File
	channel *link.Channel
	crash   *os.File
	output  *output // nil: it was ready when it was adopted
	foreign bool    // not our child
	order   order
	log     *zap.Logger
}

func (l *osLauncher) launch(o order) (process, error) {
	w := &worker{order: o, log: l.log}
	channel, far, err := link.Pair(o.identity.Epoch)
	if err != nil {
		return nil, err
	}
	defer unix.Close(far)
	w.channel = channel
	crash, err := unix.MemfdCreate("mainstay-crash", unix.MFD_CLOEXEC)
	if err != nil {
		channel.Close()
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("memfd_create", err))
	}
	w.crash = os.NewFile(uintptr(crash), "crash")
	r, p, err := os.Pipe()
	if err != nil {
		channel.Close()
		w.crash.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	defer p.Close()
	files := link.Files{
		Null: int(l.null.Fd()), Output: int(p.Fd()), Control: far, Stats: o.stats,
		Config: int(o.release.config.Fd()), Stderr: int(l.stderr.Fd()), Crash: crash, Rows: o.rows,
	}
	for _, s := range o.sockets {
		files.Listeners = append(files.Listeners, s.FD)
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Env:   o.identity.Environ(os.Environ()),
		Files: files.Table(),
		// Its own process group: a terminal's Ctrl-C reaches the supervisor only.
		Sys: &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
	}
	title := fmt.Sprintf("%s: %s %d", o.identity.Service, o.identity.Pool, o.identity.Slot)
	w.pid, err = syscall.ForkExec(o.release.exe.name(), append([]string{title}, l.args...), attr)
	if err == nil && pidfd < 0 {
		syscall.Kill(w.pid, syscall.SIGKILL) // our own child, not reaped yet
		syscall.Wait4(w.pid, nil, 0, nil)
		err = errors.New("the kernel gives no pidfd")
	}
	if err != nil {
		channel.Close()
		w.crash.Close()
		r.Close()
		return nil, fmt.Errorf("supervisor: start %s: %w", o.release.exe.path, err)
	}
	raiseOOMScore(w.pid)
	// A pidfd in the runtime's poller: no thread waits for a worker.
	unix.SetNonblock(pidfd, true)
	w.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	w.output = &output{pipe: r, log: l.log.With(zap.Int("worker", o.identity.Slot), zap.Int("worker_pid", w.pid))}
	w.keep()
	go w.attend()
	return w, nil
}

// keep stores what the next supervisor needs to be the worker's.
func (w *worker) keep() {
	if fd, err := w.channel.Dup(); err != nil {
		w.log.Warn("control socket of a worker not stored", zap.Error(err))
	} else {
		w.order.keep(storedControl, fd)
		unix.Close(fd)
	}
	for kind, f := range map[string]*os.File{storedPidfd: w.pidfd, storedCrash: w.crash} {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { w.order.keep(kind, int(fd)) })
		}
		if err != nil {
			w.log.Warn("descriptor of a worker not stored", zap.String("kind", kind), zap.Error(err))
		}
	}
}

func (l *osLauncher) adopt(o order, pid int, r remains) (process, error) {
	channel, err := link.InheritChannel(r.control, o.identity.Epoch)
	if err != nil {
		return nil, fmt.Errorf("supervisor: process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(r.pidfd, true); err != nil {
		channel.Close()
		return nil, fmt.Errorf("supervisor: process %d: pidfd: %w", pid, os.NewSyscallError("fcntl", err))
	}
	w := &worker{
		order: o, log: l.log, pid: pid, foreign: true, channel: channel,
		pidfd: os.NewFile(uintptr(r.pidfd), "pidfd"),
	}
	if r.crash >= 0 {
		w.crash = os.NewFile(uintptr(r.crash), "crash")
	}
	go w.attend()
	return w, nil
}

// raiseOOMScore makes a worker a likelier victim of the kernel than the
// supervisor. Where it cannot, the two are as likely.
func raiseOOMScore(pid int) {
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		return
	}
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(min(score+100, 1000))), 0)
}

func (w *worker) PID() int                  { return w.pid }
func (w *worker) Send(body link.Body) error { return w.channel.Send(body) }

func (w *worker) SendFile(body link.Body, fd int) error { return w.channel.SendFile(body, fd) }

// Signal sends by pidfd: it never reaches a stranger.
func (w *worker) Signal(sig unix.Signal) error {
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("supervisor: pidfd: %w", err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("supervisor: pidfd: %w", err)
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("supervisor: %w", os.NewSyscallError("pidfd_send_signal", sent))
	}
	return nil
}

// attend passes on what the process says until it is dead, reaps it, and
// tells how it ended.
func (w *worker) attend() {
	var listening sync.WaitGroup
	listening.Go(w.listen)
	if w.output != nil {
		listening.Go(w.output.read)
	}
	exit := w.wait()
	// Its descriptors may have gone on to another process, so there may be no
	// EOF: what it left behind is taken, and that is the end.
	w.channel.Interrupt()
	if w.output != nil {
		w.output.interrupt()
	}
	listening.Wait()
	var reason string
	for {
		m, ok, err := w.channel.TryRecv()
		if err != nil || !ok {
			break
		}
		if f, ok := m.Body.(link.Failed); ok {
			reason = f.Reason
		}
		w.pass(m)
	}
	exit.Dump = w.crashed()
	exit.Words = lastWords(reason, exit.Dump, w.output.tail())
	w.channel.Close()
	w.pidfd.Close()
	if w.crash != nil {
		w.crash.Close()
	}
	w.order.exited(exit)
}

func (w *worker) listen() {
	for {
		m, err := w.channel.Recv()
		switch {
		case err == nil:
			w.pass(m)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF):
			return
		default:
			w.order.unknown(err)
			return
		}
	}
}

// pass hands on what the worker said.
func (w *worker) pass(m link.Message) {
	switch b := m.Body.(type) {
	case link.Gathered:
		w.order.answered(b, m.FD)
		return
	case link.Hello:
		w.order.greeted(b, m.FD)
		return
	case link.Kept:
		w.order.kept(b, m.FD)
		return
	}
	if m.FD >= 0 {
		unix.Close(m.FD) // nothing else comes with one
	}
	w.order.said(m.Body)
}

// wait waits for the death and reaps.
func (w *worker) wait() Exit {
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return Exit{Err: fmt.Errorf("supervisor: pidfd: %w", err)}
	}
	var status unix.WaitStatus
	var usage unix.Rusage
	var waited error
	if w.foreign {
		var exit Exit
		err = raw.Read(func(fd uintptr) bool {
			if !isDead(int(fd)) {
				return false
			}
			exit = foreignExit(int(fd))
			return true
		})
		if err != nil {
			return Exit{Err: fmt.Errorf("supervisor: pidfd: %w", err)}
		}
		return exit
	}
	err = raw.Read(func(uintptr) bool {
		var pid int
		for {
			// By number: the process is ours and not reaped, so the number
			// is still its.
			pid, waited = unix.Wait4(w.pid, &status, unix.WNOHANG, &usage)
			if !errors.Is(waited, unix.EINTR) {
				return pid != 0 || waited != nil
			}
		}
	})
	if err = errors.Join(err, waited); err != nil {
		return Exit{Err: fmt.Errorf("supervisor: wait for %d: %w", w.pid, err)}
	}
	if status.Signaled() {
		return Exit{Signal: status.Signal(), Core: status.CoreDump(), CPU: usedCPU(&usage)}
	}
	return Exit{Code: status.ExitStatus(), CPU: usedCPU(&usage)}
}

// maxCrash is how much of a crash report is looked at, in bytes.
const maxCrash = 64 << 10

// crashed returns what the Go runtime wrote when the process crashed.
func (w *worker) crashed() string {
	if w.crash == nil {
		return ""
	}
	buf := make([]byte, maxCrash)
	n, err := w.crash.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(buf[:n])
}

// maxWords bounds the last words, in bytes.
const maxWords = 600

// lastWords chooses, from what a process left behind, what tells most: its
// own reason, else the head of a crash report and where it happened, else
// the last lines of its output.
func lastWords(reason, crash, tail string) string {
	words := tail
	switch {
	case reason != "":
		words = reason
	case crash != "":
		words = crashSummary(crash)
	}
	words = strings.ToValidUTF8(strings.TrimSpace(words), "?")
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + "..."
	}
	return words
}

// crashSummary returns the message of a crash report and the first place in
// it that is not the runtime's.
func crashSummary(report string) string {
	head, trace, _ := strings.Cut(report, "\n\ngoroutine ")
	lines := strings.Split(trace, "\n")
	for i, line := range lines {
		place, ok := strings.CutPrefix(line, "\t")
		if !ok || i == 0 {
			continue
		}
		fn := lines[i-1]
		if strings.HasPrefix(fn, "runtime.") || strings.HasPrefix(fn, "panic(") || strings.HasPrefix(fn, "runtime/") {
			continue
		}
		place, _, _ = strings.Cut(place, " +0x")
		return head + " at " + place
	}
	return head
}

// output reads what a worker writes before it is ready: the lines go to the
// log, the last ones are kept.
type output struct {
	pipe *os.File
	log  *zap.Logger

	mu    sync.Mutex
	kept  []string
	lines int
}

const (
	maxLine  = 2 << 10 // bytes of a line that are looked at
	maxKept  = 10      // lines kept
	maxLines = 500     // lines passed on to the log; more of a start is a flood
)

func (o *output) read() {
	defer o.pipe.Close()
	buf := make([]byte, 0, 2*maxLine)
	for {
		n, err := o.pipe.Read(buf[len(buf) : len(buf)+maxLine])
		buf = buf[:len(buf)+n]
		for {
			i := bytes.IndexByte(buf, '\n')
			if i < 0 && len(buf) < maxLine {
				break
			}
			if i < 0 {
				o.line(string(buf[:maxLine]))
				buf = buf[:copy(buf, buf[maxLine:])]
				continue
			}
			o.line(string(buf[:min(i, maxLine)]))
			buf = buf[:copy(buf, buf[i+1:])]
		}
		if err != nil {
			if len(buf) > 0 {
				o.line(string(buf))
			}
			return
		}
	}
}

func (o *output) line(s string) {
	s = strings.TrimRight(s, "\r")
	o.mu.Lock()
	o.kept = append(o.kept, s)
	if len(o.kept) > maxKept {
		o.kept = o.kept[1:]
	}
	o.lines++
	n := o.lines
	o.mu.Unlock()
	switch {
	case n < maxLines:
		o.log.Info("worker wrote", zap.String("line", s))
	case n == maxLines:
		o.log.Warn("worker writes too much, the rest of its start is not logged", zap.Int("lines", n))
	}
}

// interrupt ends read once what is in the pipe has been read: the process is
// dead, but another may still hold the pipe.
func (o *output) interrupt() { o.pipe.SetReadDeadline(time.Now().Add(outputMargin)) }

// outputMargin is how long a dead worker's pipe is still read when somebody
// else holds its other end.
const outputMargin = 50 * time.Millisecond

func (o *output) tail() string {
	if o == nil {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.kept, "\n")
}
