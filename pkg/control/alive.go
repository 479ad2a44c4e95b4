package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The keeper of a dead supervisor has its descriptors until the next one has
// started: who dials its socket is connected and never accepted, and who waits
// for an answer sees no end. So it is the process that is watched, by the pidfd
// of whoever has called listen(2).

// errDead is what is read from a server whose process is dead.
var errDead = fmt.Errorf("%w: the supervisor is dead", ErrNotRunning)

// dialAlive connects to the socket at path. What it returns ends when the
// process ends that listens there, with errDead after what it had still said;
// if that has ended already, the error is errDead.
func dialAlive(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	u := c.(*net.UnixConn)
	process, err := listenerOf(u)
	switch {
	case errors.Is(err, errDead):
		c.Close()
		return nil, err
	case err != nil: // an old kernel, or one that does not tell: deadlines decide
		return c, nil
	}
	a := &aliveConn{Conn: u, process: process}
	a.watching.Go(func() { a.watch(u) })
	return a, nil
}

// aliveConn is a connection to a process that is watched.
type aliveConn struct {
	net.Conn
	process  *os.File // its pidfd
	dead     atomic.Bool
	watching sync.WaitGroup
}

// watch ends the connection when the process ends, or itself by Close.
func (a *aliveConn) watch(u *net.UnixConn) {
	raw, err := a.process.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool { return hasEnded(int(fd)) })
	}
	if err != nil {
		return
	}
	a.dead.Store(true)
	// What lies there is still read.
	_ = errors.Join(u.CloseRead(), u.CloseWrite()) // closed already, or it is now
}

func (a *aliveConn) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	return n, a.why(err)
}

func (a *aliveConn) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	return n, a.why(err)
}

func (a *aliveConn) why(err error) error {
	if err != nil && a.dead.Load() {
		return errDead
	}
	return err
}

func (a *aliveConn) Close() error {
	err := errors.Join(a.Conn.Close(), a.process.Close())
	a.watching.Wait()
	return err
}

// listenerOf returns the pidfd, which is the caller's, of the process that
// listens at the other end. The error is errDead if it has ended; any other one
// says why it is not known.
func listenerOf(c *net.UnixConn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	pidfd := -1
	if failed := raw.Control(func(fd uintptr) { pidfd, err = pidfdOfPeer(int(fd)) }); failed != nil {
		return nil, failed
	}
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL): // EINVAL: before Linux 6.16
		return nil, errDead
	case err != nil:
		return nil, err
	}
	if hasEnded(pidfd) {
		unix.Close(pidfd)
		return nil, errDead
	}
	if err := unix.SetNonblock(pidfd, true); err != nil { // for the runtime to wait on it
		unix.Close(pidfd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(pidfd), "supervisor"), nil
}

// pidfdOfPeer opens it by SO_PEERPIDFD, which is of Linux 6.5, and before that
// by the number in SO_PEERCRED: of who has called listen(2), says unix(7).
func pidfdOfPeer(fd int) (int, error) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if !errors.Is(err, unix.ENOPROTOOPT) {
		return pidfd, os.NewSyscallError("getsockopt SO_PEERPIDFD", err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if cred.Pid <= 0 {
		return -1, errors.New("the peer is of another pid namespace")
	}
	pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
	return pidfd, os.NewSyscallError("pidfd_open", err)
}

// hasEnded says whether the process of a pidfd is dead, reaped or not.
func hasEnded(pidfd int) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}
