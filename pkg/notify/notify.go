// Package notify tells the service manager how the service is: sd_notify(3).
//
// Invariants:
//   - A message is one datagram on a socket of its own: opened, sent, closed.
//     So nothing is kept open, and messages may be sent from any goroutine.
//   - No call waits longer than a second for the manager to take the message
//     ([Notifier.Barrier]: a second and its timeout).
//   - NOTIFY_SOCKET leaves the environment when it is read. With
//     NotifyAccess=main the manager ignores what a child would send, and logs
//     it, so children must not inherit the address.
//
// Without a service manager [FromEnv] returns nil, and a nil [*Notifier] does
// nothing and returns no error: callers need no branch.
//
// Start reading at [FromEnv].
package notify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// maxMessage is how long a message may be. The manager ignores longer ones:
// NOTIFY_BUFFER_MAX in systemd's src/basic/constants.h.
const maxMessage = 4096

// sendTimeout is how long a message waits for room in the manager's queue.
const sendTimeout = time.Second

// Notifier sends messages to the service manager. A nil Notifier sends none.
// Its methods may be called from any goroutine.
//
// The text of a status is one line: control characters, line ends among them,
// become spaces, bytes that are no UTF-8 become U+FFFD, and what does not fit
// into the message is cut at a rune's boundary.
//
// Every method that sends returns nil or an error that begins "notify: ",
// names the message, and wraps the error of the system call: ENOENT and
// ECONNREFUSED when nobody listens at the address, os.ErrDeadlineExceeded when
// the manager did not take the message within a second.
type Notifier struct {
	addr     *unix.SockaddrUnix
	watchdog time.Duration
}

// FromEnv returns the Notifier for this process, as the service manager
// described it in NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and takes
// these variables out of the environment, whatever it returns.
//
// It returns nil, nil when NOTIFY_SOCKET is not set or empty. An error names
// the variable: NOTIFY_SOCKET is neither an absolute path nor an abstract
// address ("@name") or is too long, WATCHDOG_USEC is no positive number of
// microseconds, WATCHDOG_PID is no process id.
//
// Call it from main before other goroutines read the environment.
func FromEnv() (*Notifier, error) {
	socket := os.Getenv("NOTIFY_SOCKET")
	usec := os.Getenv("WATCHDOG_USEC")
	pid := os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name) // fails for names that can not be set only
	}
	if socket == "" {
		return nil, nil
	}
	addr, err := parseAddress(socket)
	if err != nil {
		return nil, err
	}
	interval, err := parseWatchdog(usec, pid, os.Getpid())
	if err != nil {
		return nil, err
	}
	return &Notifier{addr: addr, watchdog: interval}, nil
}

// parseAddress reads NOTIFY_SOCKET. A leading @ stands for the NUL of an
// abstract address, in systemd's notation as in x/sys's.
func parseAddress(s string) (*unix.SockaddrUnix, error) {
	switch {
	case s[0] != '/' && s[0] != '@', s == "@", s == "/":
		return nil, fmt.Errorf("notify: NOTIFY_SOCKET=%q: want an absolute path or @ and a name", s)
	case strings.IndexByte(s, 0) >= 0:
		return nil, fmt.Errorf("notify: NOTIFY_SOCKET=%q: a NUL byte in it", s)
	case len(s) > maxPath:
		return nil, fmt.Errorf("notify: NOTIFY_SOCKET=%q: %d bytes, want at most %d", s, len(s), maxPath)
	}
	return &unix.SockaddrUnix{Name: s}, nil
}

// maxPath is what fits into sun_path with its final NUL: unix(7).
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// parseWatchdog reads WATCHDOG_USEC and WATCHDOG_PID for the process self:
// sd_watchdog_enabled(3). Zero: no watchdog, or another process's.
func parseWatchdog(usec, pid string, self int) (time.Duration, error) {
	if usec == "" {
		return 0, nil
	}
	if pid != "" {
		n, err := strconv.ParseUint(pid, 10, 31)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("notify: WATCHDOG_PID=%q: not a process id", pid)
		}
		if int(n) != self {
			return 0, nil
		}
	}
	n, err := strconv.ParseUint(usec, 10, 63)
	if err != nil || n == 0 || n > uint64(maxDuration/time.Microsecond) {
		return 0, fmt.Errorf("notify: WATCHDOG_USEC=%q: not a positive number of microseconds", usec)
	}
	return time.Duration(n) * time.Microsecond, nil
}

const maxDuration = time.Duration(1<<63 - 1)

// WatchdogInterval is the time within which the manager wants to hear
// [Notifier.Watchdog], WatchdogSec= in the unit; send it at least twice as
// often. Zero: there is no watchdog.
func (n *Notifier) WatchdogInterval() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Ready says that the start, or a reload, is over and how the service is. An
// empty status leaves the last one.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", status) }

// Reloading says that a reload has begun; [Notifier.Ready] ends it. An empty
// status leaves the last one.
func (n *Notifier) Reloading(status string) error {
	if n == nil {
		return nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("notify: RELOADING=1: %w", os.NewSyscallError("clock_gettime", err))
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000), status)
}

// Stopping says that the service has begun to end. From systemd 259 on this is
// final: who does not end is killed after the stop timeout. An empty status
// leaves the last one.
func (n *Notifier) Stopping(status string) error { return n.send("STOPPING=1", status) }

// Status says how the service is, for `systemctl status`. An empty status
// takes the last one away.
func (n *Notifier) Status(status string) error {
	if status == "" {
		return n.send("STATUS=", "")
	}
	return n.send("", status)
}

// Watchdog says that the service is alive.
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1", "") }

// ExtendTimeout asks for d more, from now on, before the manager gives up the
// start, reload or stop that is going on. The first one must come before the
// unit's own timeout is over, each next one within the d of the last. d is
// rounded up to a microsecond; zero or less is an error.
func (n *Notifier) ExtendTimeout(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("notify: EXTEND_TIMEOUT_USEC: extended by %v, want more than zero", d)
	}
	usec := (d-1)/time.Microsecond + 1
	return n.send("EXTEND_TIMEOUT_USEC="+strconv.FormatInt(int64(usec), 10), "")
}

// Failed says why the service fails; it has no effect on the result of the
// job, so the process must exit with a status of its own, too. An errno of 0
// and an empty status are left out; with both nothing is sent.
func (n *Notifier) Failed(errno syscall.Errno, status string) error {
	if errno == 0 {
		if status == "" {
			return nil
		}
		return n.send("", status)
	}
	return n.send("ERRNO="+strconv.Itoa(int(errno)), status)
}

// Store puts a copy of fd into the manager's store, from where the next process
// of the service gets it, by name, beside its listening sockets
// (FileDescriptorStoreMax=): FDSTORE=1 in sd_pid_notify_with_fds(3). It stays
// there, whatever becomes of its other end, until Unstore or until the service
// is stopped. fd stays the caller's. name has 1 to 255 printable ASCII
// characters and no colon. Whether the manager keeps it is not told: it drops
// what is over its maximum.
func (n *Notifier) Store(name string, fd int) error {
	if n == nil {
		return nil
	}
	return n.sendMessage("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fd))
}

// Unstore takes all descriptors with a name out of the manager's store. It is
// no error if there are none.
func (n *Notifier) Unstore(name string) error { return n.send("FDSTOREREMOVE=1\nFDNAME="+name, "") }

// Barrier waits until the manager has acted on all messages that this process
// sent before, for at most timeout: sd_notify_barrier(3). An error wraps
// os.ErrDeadlineExceeded when the timeout was over first.
func (n *Notifier) Barrier(timeout time.Duration) error {
	if n == nil {
		return nil
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("notify: BARRIER=1: %w", os.NewSyscallError("pipe2", err))
	}
	defer unix.Close(pipe[0])
	err := n.sendMessage("BARRIER=1", unix.UnixRights(pipe[1]))
	// The manager's copy must be the last: its close is the answer.
	unix.Close(pipe[1])
	if err != nil {
		return err
	}
	if err := wait(pipe[0], 0, time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("notify: BARRIER=1: no answer within %v: %w", timeout, err)
	}
	return nil
}

// send sends the assignments and, if it is not empty, the status.
func (n *Notifier) send(assignments, status string) error {
	if n == nil {
		return nil
	}
	return n.sendMessage(message(assignments, status), nil)
}

// message joins the assignments and STATUS=, cut so that all fits.
func message(assignments, status string) string {
	if status == "" {
		return assignments
	}
	if assignments != "" {
		assignments += "\n"
	}
	assignments += "STATUS="
	return assignments + oneLine(status, maxMessage-len(assignments))
}

// oneLine is s as one line of valid UTF-8 of at most size bytes.
func oneLine(s string, size int) string {
	// strings.Map gives, and so writes, U+FFFD for what is no UTF-8.
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s))
	if len(s) <= size {
		return s
	}
	for size > 0 && !utf8.RuneStart(s[size]) {
		size--
	}
	return s[:size]
}

func (n *Notifier) sendMessage(msg string, rights []byte) error {
	if err := n.sendDatagram([]byte(msg), rights); err != nil {
		name, _, _ := strings.Cut(msg, "\n")
		return fmt.Errorf("notify: %q to %s: %w", name, n.addr.Name, err)
	}
	return nil
}

func (n *Notifier) sendDatagram(msg, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// Only on a connected socket does poll wait for room at the receiver. Connect
	// writes to the address it is given, and several goroutines may be here.
	addr := unix.SockaddrUnix{Name: n.addr.Name}
	if err := unix.Connect(fd, &addr); err != nil {
		return os.NewSyscallError("connect", err)
	}
	deadline := time.Now().Add(sendTimeout)
	for {
		_, err := unix.SendmsgN(fd, msg, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := wait(fd, unix.POLLOUT, deadline); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// wait waits for an event, a hang-up or an error on fd. It returns
// os.ErrDeadlineExceeded when there is none by the deadline.
func wait(fd int, events int16, deadline time.Time) error {
	for {
		// Rounded up, so that the last fraction of a millisecond is slept too.
		left := (time.Until(deadline) + time.Millisecond - 1) / time.Millisecond
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(min(max(left, 0), 1<<30)))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0:
			return nil
		case time.Until(deadline) <= 0:
			return os.ErrDeadlineExceeded
		}
	}
}
