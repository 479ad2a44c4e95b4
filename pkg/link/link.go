// Package link is the contract between the supervisor and a worker: what a
// worker finds in its environment and in its descriptor table when it is
// started, and the messages the two exchange afterwards.
//
// # Environment
//
// One variable, MAINSTAY_WORKER, holds the worker's Identity as JSON. A
// process that has it is a worker; it takes the variable out of its
// environment, so that what it starts in turn is none.
//
// # Descriptors
//
//	0        /dev/null
//	1, 2     a pipe to the supervisor, which passes the lines on and keeps
//	         the last ones; a worker that is ready puts FDStderr in its place
//	3        FDControl: a SOCK_SEQPACKET socket, the Channel
//	4        FDStats: the scoreboard
//	5        FDConfig: the configuration of this generation, sealed
//	6        FDStderr: the service's own standard error
//	7        FDCrash: a memfd for the runtime's last words
//	8        FDRows: the table of all connections
//	9...     FDListeners: the listening and datagram sockets, in Identity's order
//
// All of them but 0 to 2 are close-on-exec once Inherit has returned.
//
// # Messages
//
// A message is one datagram on the control socket: 24 bytes of header, all
// little endian, then the body as JSON.
//
//	offset size
//	     0    2  kind
//	     2    2  flags; bit 0: whoever does not know the kind may skip it
//	     4    4  length of the body
//	     8    8  epoch of the supervisor that speaks or is spoken to
//	    16    8  sequence number, counted by the sender from 1
//	    24    -  body
//
//	worker to supervisor     supervisor to worker
//	Hello    I have started, Accept   take connections
//	         with my inbox   Rearm    watch the listeners anew
//	Ready    I could serve   Drain    accept no more, hand over, finish, exit
//	Draining I accept        Stop     exit now, in order
//	         no more         LogLevel log from this level on
//	Kept     my keeper, or
//	         why I have none
//	Handed   the hand-off    Gather   tell me this, or do it and tell me
//	         of a drain is   Peer     another worker, with its inbox,
//	         over                     or how it is now
//	Paused   I accept no     PeerGone it is dead
//	         more for now
//	Gathered this is it
//	Readiness the application
//	         wants no new
//	         connections, or
//	         does again
//	Failed   why I give up   Adopt    obey me from now on: the one before is
//	                                  dead; say Hello again
//
// A worker obeys the highest epoch it has seen and drops what comes from a
// lower one. Start reading at Identity, Inherit, Channel and Body.
package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Contract is the version of this contract. Neighbours understand one another:
// a supervisor has workers of its own version and of the one before, so that a
// restart into new code adopts those that serve, and a worker serves a supervisor
// of its own version and of the one before, so that a reload brings new code
// under an old supervisor. What is said between them is the lower of the two,
// Identity.Contract, which the worker repeats in Hello.
//
// So a version that only adds counts one up: fields in messages and in the
// Identity, which the other side skips, words at the end of a seat of the
// scoreboard, messages that may be skipped. Whatever else changes (the table of
// descriptors, the layout of a shared table, a message that must be understood)
// counts two up, and no worker is adopted then.
//
// A field that was added late to a version that is out already is skipped in the
// same way by those who do not know it, since bodies are JSON objects and nothing
// is said of fields that are unknown. So it needs no version of its own if what it
// asks for may be left undone and its absence means what was meant before, as with
// Drain.Restart: a worker without it tells OnAdopt Reload where it would tell
// Restart. A field without which the other side would do wrong needs one.
//
//	1  the first
//	2  Identity.Control, Drain.Restart
const Contract = 2

// OrphanGrace is how long a worker serves on without a supervisor before it
// finishes its connections and exits: longer than any restart, and than a look
// with a debugger.
const OrphanGrace = 120 * time.Second

// Speaks says whether this side understands another one of that contract.
func Speaks(contract int) bool { return contract == Contract || contract == Contract-1 }

// Env is the environment variable that makes a process a worker.
const Env = "MAINSTAY_WORKER"

// The worker's descriptors; see the table above.
const (
	FDControl   = 3
	FDStats     = 4
	FDConfig    = 5
	FDStderr    = 6
	FDCrash     = 7
	FDRows      = 8
	FDListeners = 9
)

// MaxConfig is the largest configuration that is handed to a worker, in
// bytes.
const MaxConfig = 1 << 20

// Identity says which worker a process is.
type Identity struct {
	Contract    int    `json:"contract"`    // that is spoken
	Service     string `json:"service"`     // name of the service
	Pool        string `json:"pool"`        // name of the pool
	Slot        int    `json:"slot"`        // place in the pool, from 0
	Incarnation uint64 `json:"incarnation"` // number of this process, never reused
	Generation  uint64 `json:"generation"`  // counts reloads, from 1
	Epoch       uint64 `json:"epoch"`       // counts supervisors, from 1
	Seat        int    `json:"seat"`        // its seat on the scoreboard
	// Keeper says that the worker is to start a keeper, and to tell of it by
	// Kept: the supervisor can take sockets out of it.
	Keeper bool `json:"keeper"`
	// Listeners are the sockets from FDListeners on.
	Listeners []Listener `json:"listeners"`
	// Control is where the supervisor is asked, a URL: by it the workers of a
	// service are found that has no supervisor any more.
	Control string `json:"control,omitempty"`
	// Predecessor says how the process died that had the slot before; nil if
	// there was none or if it was asked to leave.
	Predecessor *Death `json:"predecessor,omitempty"`
}

// Listener describes an inherited listening socket.
type Listener struct {
	Name    string `json:"name"`
	Address string `json:"address"` // as a URL: tcp://127.0.0.1:80, unix:///run/x.sock
}

// Death says how a worker died.
type Death struct {
	PID    int    `json:"pid"`
	Class  string `json:"class"` // as supervisor.Exit's class
	Detail string `json:"detail"`
}

// Environ returns base with id in Env and without what must not reach a
// worker: the variables by which systemd speaks to the supervisor.
func (id Identity) Environ(base []string) []string {
	text, err := json.Marshal(id)
	if err != nil {
		panic(err) // an Identity has no field that could fail
	}
	env := make([]string, 0, len(base)+1)
	for _, v := range base {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case Env, "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES",
			"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "MAINPID", "FDSTORE":
		default:
			env = append(env, v)
		}
	}
	return append(env, Env+"="+string(text))
}

// ParseIdentity reads what Environ wrote. It fails on anything but an
// Identity of a contract that this package speaks.
func ParseIdentity(text string) (Identity, error) {
	var id Identity
	if err := json.Unmarshal([]byte(text), &id); err != nil {
		return Identity{}, fmt.Errorf("link: %s=%q: %w", Env, text, err)
	}
	switch {
	case !Speaks(id.Contract):
		return Identity{}, fmt.Errorf("link: %s: contract %d, want %d or %d", Env, id.Contract, Contract-1, Contract)
	case id.Pool == "" || id.Slot < 0 || id.Incarnation == 0 || id.Generation == 0 || id.Epoch == 0 || id.Seat < 0:
		return Identity{}, fmt.Errorf("link: %s=%q: incomplete", Env, text)
	}
	return id, nil
}

// maxEnviron is how much of a process' environment is read, in bytes.
const maxEnviron = 1 << 20

// IdentityOf returns the Identity with which the process of this number was
// started. A worker's keeper has its worker's. The error matches fs.ErrNotExist
// if there is no such process, or if it is no worker, and fs.ErrPermission if it
// may not be looked at. The contract is whatever it says.
func IdentityOf(pid int) (Identity, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return Identity{}, fmt.Errorf("link: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEnviron))
	if err != nil {
		return Identity{}, fmt.Errorf("link: %w", err) // gone since, or not ours
	}
	for v := range bytes.SplitSeq(text, []byte{0}) {
		value, ok := bytes.CutPrefix(v, []byte(Env+"="))
		if !ok {
			continue
		}
		var id Identity
		if err := json.Unmarshal(value, &id); err != nil {
			return Identity{}, fmt.Errorf("link: process %d: %s: %w", pid, Env, err)
		}
		return id, nil
	}
	return Identity{}, fmt.Errorf("link: process %d: no worker: %w", pid, fs.ErrNotExist)
}

// Files is what a worker's descriptors are to be made from.
type Files struct {
	Null      int // 0
	Output    int // 1 and 2
	Control   int
	Stats     int
	Config    int
	Stderr    int
	Crash     int
	Rows      int
	Listeners []int
}

// Table returns the descriptors in the order of the worker's numbers, as
// syscall.ProcAttr wants them.
func (f Files) Table() []uintptr {
	t := []int{f.Null, f.Output, f.Output, f.Control, f.Stats, f.Config, f.Stderr, f.Crash, f.Rows}
	t = append(t, f.Listeners...)
	out := make([]uintptr, len(t))
	for i, fd := range t {
		out[i] = uintptr(fd)
	}
	return out
}

// Inherited is what a worker was started with. It owns the descriptors.
type Inherited struct {
	Identity
	Control *Channel
	Stats   int    // for scoreboard.Open
	Config  []byte // configuration of the generation
	Stderr  int
	Crash   int
	Rows    int   // for rows.Open
	Sockets []int // listening sockets, as Identity.Listeners
}

// IsWorker reports whether this process was started as a worker.
func IsWorker() bool { return os.Getenv(Env) != "" }

// Inherit takes over what the supervisor handed to this process: it reads
// and removes Env, makes the descriptors close-on-exec and checks each. It
// is called once, before anything else opens a descriptor. It fails if Env
// is absent or not understood, or if a descriptor is not what the table of
// this package says; the error names the descriptor.
func Inherit() (*Inherited, error) {
	text, ok := os.LookupEnv(Env)
	if !ok {
		return nil, fmt.Errorf("link: %s is not set: not started by a supervisor", Env)
	}
	os.Unsetenv(Env)
	id, err := ParseIdentity(text)
	if err != nil {
		return nil, err
	}
	in := &Inherited{Identity: id, Stats: FDStats, Stderr: FDStderr, Crash: FDCrash, Rows: FDRows}
	for fd := FDControl; fd < FDListeners+len(id.Listeners); fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("link: %s: fd %d: %w", Env, fd, os.NewSyscallError("fcntl", err))
		}
	}
	for i, l := range id.Listeners {
		fd := FDListeners + i
		if !listens(fd) {
			return nil, fmt.Errorf("link: listener %q: fd %d is no listening and no datagram socket", l.Name, fd)
		}
		// Another process may have cleared O_NONBLOCK of the shared socket.
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("link: listener %q: fd %d: %w", l.Name, fd, os.NewSyscallError("fcntl", err))
		}
		in.Sockets = append(in.Sockets, fd)
	}
	if in.Config, err = readAll("configuration", FDConfig, MaxConfig); err != nil {
		return nil, err
	}
	if in.Control, err = NewChannel(FDControl, id.Epoch); err != nil {
		return nil, err
	}
	return in, nil
}

// listens says whether fd is a socket on which a worker can serve.
func listens(fd int) bool {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_DGRAM {
		return true
	}
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && v != 0
}

// ConfigFile returns a sealed memfd that holds config, for Files.Config. The
// caller owns it. It fails if config is over MaxConfig or the kernel refuses.
func ConfigFile(config []byte) (*os.File, error) {
	if len(config) > MaxConfig {
		return nil, fmt.Errorf("link: configuration of %d bytes, want at most %d", len(config), MaxConfig)
	}
	return sealed("mainstay-config", config)
}

// AnswerFile returns a sealed memfd that holds the answer to a Gather. The
// caller owns it. It fails if the answer is over MaxAnswer or the kernel
// refuses.
func AnswerFile(answer []byte) (*os.File, error) {
	if len(answer) > MaxAnswer {
		return nil, fmt.Errorf("link: answer of %d bytes, want at most %d", len(answer), MaxAnswer)
	}
	return sealed("mainstay-answer", answer)
}

// MaxAnswer is the largest answer to a Gather, in bytes.
const MaxAnswer = 64 << 20

// ReadAnswer reads the answer that came along with a Gathered, and closes fd.
// It fails if it is over MaxAnswer or cannot be read.
func ReadAnswer(fd int) ([]byte, error) { return readAll("answer", fd, MaxAnswer) }

// sealed returns a memfd that holds content and cannot be changed.
func sealed(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("link: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, fmt.Errorf("link: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("link: %w", os.NewSyscallError("fcntl F_ADD_SEALS", err))
	}
	return f, nil
}

// readAll reads a descriptor to its end and closes it. It reads by offset:
// the position in a configuration is shared by all workers of a generation.
func readAll(what string, fd, limit int) ([]byte, error) {
	defer unix.Close(fd)
	buf := make([]byte, 0, 4096)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Pread(fd, buf[len(buf):cap(buf)], int64(len(buf)))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("link: %s: fd %d: %w", what, fd, os.NewSyscallError("pread", err))
		case n == 0:
			return buf, nil
		case len(buf)+n > limit:
			return nil, fmt.Errorf("link: %s: fd %d: over %d bytes", what, fd, limit)
		default:
			buf = buf[:len(buf)+n]
		}
	}
}
