// Package activation gives the process its listening sockets: those that the
// service manager opened and handed over (sd_listen_fds(3)), or, when the
// program is started by hand, those that it binds itself.
//
// Invariants:
//   - Sockets are known by name, never by position: the order in which the
//     manager hands over the sockets of several units is random, and changes
//     when the manager is re-executed.
//   - What can not be used is an error that names the variable or the fd; no
//     socket is skipped in silence.
//   - Every [Socket] is a stream or seqpacket socket that listens or a datagram
//     socket that is bound, is close-on-exec and does not block. Whether what is served on it
//     wants connections or datagrams is not known here.
//   - An inherited socket is never shut down and its file never unlinked: it
//     belongs to the manager, and to the next process that it starts.
//   - No socket goes through net.Listener or os.File: both touch O_NONBLOCK on
//     the description that all processes share.
//   - What is in the manager's store is told from sockets by a prefix of its
//     name, and is nobody's to look at here.
//
// Start reading at [Inherited] and [Listen].
package activation

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstFD is the first handed-over fd: SD_LISTEN_FDS_START of sd-daemon.h.
const firstFD = 3

// maxName is the longest name of a socket: systemd.socket(5),
// FileDescriptorName=.
const maxName = 255

// Inherited returns the sockets that the service manager handed over to this
// process, in the order it gave them, and takes LISTEN_PID, LISTEN_FDS,
// LISTEN_FDNAMES and LISTEN_PIDFDID out of the environment, whatever it
// returns. The caller owns the sockets.
//
// It returns nil, nil when the process was not activated: LISTEN_PID is not
// set or names another process.
//
// An error begins "activation: " and tells the variable or the fd, its value
// and what was expected: LISTEN_PID or LISTEN_FDS is no positive number,
// LISTEN_FDS is missing or more than RLIMIT_NOFILE admits, LISTEN_FDNAMES
// has not one name for each fd, a name is empty, too long or there twice, an
// fd is closed, is not a socket, or is a socket other than a listening stream
// socket over TCP or AF_UNIX, a listening seqpacket one, or a bound datagram one of UDP or AF_UNIX. After an error the fds stay open, close-on-exec
// so far as they exist: the process is expected to end.
//
// Call it once, first thing in main, before anything opens files or starts
// processes.
func Inherited() ([]Socket, error) {
	sockets, _, err := InheritedAndStored("")
	return sockets, err
}

// Stored is a descriptor that an earlier process of the service has put into
// the manager's store: of any kind, close-on-exec, and owned by whoever holds
// the Stored.
type Stored struct {
	Name string // several may have the same
	FD   int
}

// InheritedAndStored is Inherited for a service that puts descriptors into the
// manager's store (sd_pid_notify_with_fds(3), FDSTORE=1): those whose names
// begin with prefix are returned aside, in the order in which they came, and
// are not looked at. An empty prefix is nobody's. No socket unit's default name
// has a slash in it.
func InheritedAndStored(prefix string) ([]Socket, []Stored, error) {
	env := takeEnvironment()
	limit, err := fileLimit()
	if err != nil {
		return nil, nil, err
	}
	n, err := env.count(os.Getpid(), limit)
	if n == 0 || err != nil {
		return nil, nil, err
	}
	// Before all else, so that no process started meanwhile inherits one.
	if err := closeOnExec(n); err != nil {
		return nil, nil, err
	}
	names, err := env.names(n, prefix)
	if err != nil {
		return nil, nil, err
	}
	var sockets []Socket
	var stored []Stored
	for i, name := range names {
		if isStored(name, prefix) {
			stored = append(stored, Stored{name, firstFD + i})
			continue
		}
		socket, err := inherit(firstFD+i, name)
		if err != nil {
			return nil, nil, err
		}
		sockets = append(sockets, socket)
	}
	return sockets, stored, nil
}

func isStored(name, prefix string) bool { return prefix != "" && strings.HasPrefix(name, prefix) }

// environment holds what the service manager set; nil: not set.
type environment struct {
	listenPID     *string
	listenFDs     *string
	listenFDNames *string
}

// takeEnvironment reads the variables and unsets them.
func takeEnvironment() environment {
	take := func(name string) *string {
		value, ok := os.LookupEnv(name)
		os.Unsetenv(name) // fails for names that can not be set only
		if !ok {
			return nil
		}
		return &value
	}
	// LISTEN_PIDFDID tells a process from a later one of the same pid; the pid
	// is enough for variables that are read once and then unset.
	take("LISTEN_PIDFDID")
	return environment{listenPID: take("LISTEN_PID"), listenFDs: take("LISTEN_FDS"), listenFDNames: take("LISTEN_FDNAMES")}
}

// count returns how many fds were handed over to process self, which can have
// limit open ones; zero: it was not activated.
func (e environment) count(self int, limit uint64) (int, error) {
	if e.listenPID == nil {
		return 0, nil
	}
	pid, err := strconv.ParseUint(*e.listenPID, 10, 31)
	if err != nil || pid == 0 {
		return 0, fmt.Errorf("activation: LISTEN_PID=%q: not a process id", *e.listenPID)
	}
	if int(pid) != self {
		return 0, nil
	}
	if e.listenFDs == nil {
		return 0, fmt.Errorf("activation: LISTEN_PID=%d is set, LISTEN_FDS is not: want the number of sockets", pid)
	}
	n, err := strconv.ParseUint(*e.listenFDs, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("activation: LISTEN_FDS=%q: not a positive number", *e.listenFDs)
	}
	if n+firstFD > limit {
		return 0, fmt.Errorf("activation: LISTEN_FDS=%d: more than RLIMIT_NOFILE=%d admits", n, limit)
	}
	return int(n), nil
}

// names returns the names of n fds. Those that begin with prefix may be there
// more than once.
func (e environment) names(n int, prefix string) ([]string, error) {
	if e.listenFDNames == nil {
		return nil, fmt.Errorf("activation: LISTEN_FDNAMES is not set: want %d names (FileDescriptorName= in the socket unit)", n)
	}
	names := strings.Split(*e.listenFDNames, ":")
	if len(names) != n {
		return nil, fmt.Errorf("activation: LISTEN_FDNAMES=%q: %d names for LISTEN_FDS=%d", *e.listenFDNames, len(names), n)
	}
	seen := make(map[string]int, n)
	for i, name := range names {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("activation: LISTEN_FDNAMES=%q: fd %d: %w", *e.listenFDNames, firstFD+i, err)
		}
		if first, ok := seen[name]; ok && !isStored(name, prefix) {
			return nil, fmt.Errorf("activation: LISTEN_FDNAMES=%q: fd %d and fd %d are both named %q: want one FileDescriptorName= for each socket",
				*e.listenFDNames, first, firstFD+i, name)
		}
		seen[name] = firstFD + i
	}
	return names, nil
}

// checkName says what is wrong with the name of a socket. The rule is
// sd_pid_notify_with_fds(3)'s for FDNAME=.
func checkName(name string) error {
	if name == "" {
		return errors.New("an empty name")
	}
	if len(name) > maxName {
		return fmt.Errorf("a name of %d bytes, want at most %d", len(name), maxName)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' || c == ':' {
			return fmt.Errorf("name %q: has %q, want printable ASCII without a colon", name, c)
		}
	}
	return nil
}

// fileLimit is the number of fds that this process can have open.
func fileLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("activation: RLIMIT_NOFILE: %w", os.NewSyscallError("getrlimit", err))
	}
	return limit.Cur, nil
}

// closeOnExec sets close-on-exec on n fds. The manager hands them over
// without. It returns the first error, after it has seen to all of them.
func closeOnExec(n int) error {
	var first error
	for fd := firstFD; fd < firstFD+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil && first == nil {
			first = fmt.Errorf("activation: LISTEN_FDS=%d: fd %d: %w", n, fd, os.NewSyscallError("fcntl", err))
		}
	}
	return first
}
