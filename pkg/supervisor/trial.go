package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// A trial shows that what a harvest needs works where the service runs, with
// its filter, its limits and its kernel: a process of the supervisor's own
// program is started as a worker is, is given connections, starts a keeper and
// is killed; then it is counted how many connections come out of the keeper
// and still carry what is sent by them. No worker of the service and none of
// its clients has a part in it.

// trialEnv is the environment variable that makes a process the worker of a
// trial.
const trialEnv = "MAINSTAY_TRIAL"

// The descriptors of a trial's worker.
const (
	trialWords   = 3 // a memfd: the words that it shares with its keeper
	trialControl = 4 // a SOCK_SEQPACKET socket, for one trialReply
	trialFirst   = 5 // its connections, from here on
)

const (
	trialConnections = 16
	trialTimeout     = 5 * time.Second // of each step
)

// trialReply is what the worker of a trial says when its keeper is there.
type trialReply struct {
	Keeper int    `json:"keeper"`          // its pid
	Error  string `json:"error,omitempty"` // why there is none
}

// IsTrial says whether this process was started for a trial: it is to call
// PlayTrial and nothing else.
func IsTrial() bool { return os.Getenv(trialEnv) != "" }

// PlayTrial is what a process does that was started for a trial: it starts its
// keeper, says so and waits to be killed, for a while. It returns the exit code
// of a process that was not.
func PlayTrial() int {
	os.Unsetenv(trialEnv)
	words, err := mapTrialWords(trialWords)
	if err != nil {
		return 1
	}
	released, beat := trialWordsIn(words)
	var reply trialReply
	made, err := keeper.Start(keeper.Options{Name: keeperName + "trial", Released: released, SupervisorBeat: beat, OrphanTTL: trialTimeout})
	if err != nil {
		reply.Error = err.Error()
	} else {
		reply.Keeper = made.PID
	}
	text, err := json.Marshal(reply)
	if err == nil {
		_, err = unix.Write(trialControl, text)
	}
	if err == nil {
		// Nothing comes: it ends here only if the supervisor could not kill it.
		p := []unix.PollFd{{Fd: trialControl, Events: unix.POLLIN}}
		_, _ = unix.Poll(p, int((4 * trialTimeout).Milliseconds()))
	}
	released.Store(1)
	return 1
}

func mapTrialWords(fd int) ([]byte, error) {
	words, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return words, os.NewSyscallError("mmap", err)
}

func trialWordsIn(words []byte) (released *atomic.Uint32, beat *atomic.Int64) {
	return (*atomic.Uint32)(unsafe.Pointer(&words[0])), (*atomic.Int64)(unsafe.Pointer(&words[8]))
}

// try runs a trial, one at a time. It returns nil if ctx ends before its turn.
func (s *Supervisor) try(ctx context.Context) *control.Trial {
	select {
	case s.trying <- struct{}{}:
		defer func() { <-s.trying }()
	case <-ctx.Done():
		return nil
	}
	began := time.Now()
	t := &control.Trial{Connections: trialConnections}
	back, err := s.runTrial()
	if err != nil {
		t.Error = err.Error()
	}
	t.Back, t.TookNS = back, time.Since(began).Nanoseconds()
	return t
}

// runTrial returns how many connections of a worker that was killed have come
// back, and what has gone wrong.
func (s *Supervisor) runTrial() (back int, err error) {
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	pair := func(kind int) (near, far int, err error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, -1, os.NewSyscallError("socketpair", err)
		}
		open = append(open, fds[0])
		return fds[0], fds[1], nil
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("open", err)
	}
	open = append(open, null)
	words, err := trialMemory(s.clock())
	if err != nil {
		return 0, err
	}
	open = append(open, words)

	// What is handed over is closed here as soon as the worker has it: then its
	// keeper alone keeps the connections open.
	var handed []int
	release := func() {
		for _, fd := range handed {
			unix.Close(fd)
		}
		handed = nil
	}
	defer release()
	said, far, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return 0, err
	}
	handed = append(handed, far)
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(words), uintptr(far)}
	var peers [trialConnections]int
	var cookies [trialConnections]uint64
	for i := range peers {
		if peers[i], far, err = pair(unix.SOCK_STREAM); err != nil {
			return 0, err
		}
		handed, files = append(handed, far), append(files, uintptr(far))
		if cookies[i], err = keeper.Cookie(far); err != nil {
			return 0, err
		}
	}

	k, err := s.startTrial(files, release, said)
	if err != nil {
		return 0, err
	}
	defer k.end(s.log)
	for i, peer := range peers {
		if err = comesBack(k, trialFirst+i, cookies[i], peer); err != nil {
			return back, err
		}
		back++
	}
	return back, nil
}

// startTrial starts a trial's worker, waits until it has a keeper, and kills and
// reaps it. The keeper is the caller's to end.
func (s *Supervisor) startTrial(files []uintptr, handed func(), said int) (*kept, error) {
	pidfd := -1
	pid, err := syscall.ForkExec("/proc/self/exe", []string{s.conf.Name + ": trial"}, &syscall.ProcAttr{
		Env: trialEnviron(os.Environ()), Files: files, Sys: &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
	})
	handed()
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	if pidfd < 0 {
		syscall.Kill(pid, syscall.SIGKILL) // our own child, not reaped yet
		syscall.Wait4(pid, nil, 0, nil)
		return nil, errors.New("the kernel gives no pidfd")
	}
	w := &kept{pid: pid, pidfd: pidfd} // it is ended as a keeper is
	late := awaitReadable(said, trialTimeout)
	w.end(s.log) // what it has said before is still there
	reply, err := readTrialReply(said)
	switch {
	case err != nil:
		return nil, errors.Join(late, err)
	case reply.Error != "":
		return nil, errors.New(reply.Error)
	}
	fd, err := unix.PidfdOpen(reply.Keeper, 0) // our child, which nobody else reaps
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &kept{pid: reply.Keeper, pidfd: fd}, nil
}

// trialMemory returns a memfd with the words that a trial's worker shares with
// its keeper, which the caller owns.
func trialMemory(now time.Duration) (int, error) {
	fd, err := unix.MemfdCreate("mainstay-trial", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, int64(os.Getpagesize())); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("ftruncate", err)
	}
	words, err := mapTrialWords(fd)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	_, beat := trialWordsIn(words)
	beat.Store(int64(now))
	return fd, os.NewSyscallError("munmap", unix.Munmap(words))
}

// trialEnviron is what a trial's worker has of this process's environment: what
// a worker has.
func trialEnviron(base []string) []string {
	env := link.Identity{}.Environ(base)
	return append(env[:len(env)-1], trialEnv+"=1") // the last one would make it a worker
}

func awaitReadable(fd int, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("nothing came within %v", limit)
		default:
			return nil
		}
	}
}

func readTrialReply(fd int) (r trialReply, err error) {
	buf := make([]byte, 4<<10)
	n, err := unix.Read(fd, buf)
	switch {
	case err != nil:
		return r, os.NewSyscallError("read", err)
	case n == 0:
		return r, errors.New("the process ended before it had a keeper")
	}
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return r, fmt.Errorf("%q: %w", buf[:n], err)
	}
	if r.Error == "" && r.Keeper <= 0 {
		return r, fmt.Errorf("%q names no keeper", buf[:n])
	}
	return r, nil
}

// comesBack takes a connection out of a keeper, and sends a byte by it.
func comesBack(k *kept, number int, cookie uint64, peer int) error {
	fd, err := keeper.Reach(k.pidfd, number)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	got, err := keeper.Cookie(fd)
	switch {
	case err != nil:
		return err
	case got != cookie:
		return fmt.Errorf("descriptor %d is another one", number)
	}
	if _, err := unix.Write(fd, []byte{'x'}); err != nil {
		return os.NewSyscallError("write", err)
	}
	var b [1]byte
	if n, err := unix.Read(peer, b[:]); err != nil || n != 1 || b[0] != 'x' {
		return fmt.Errorf("descriptor %d: what was sent by it has not come: %d bytes: %w", number, n, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return nil
}
