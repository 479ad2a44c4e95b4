package journal

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nativeSocket sends entries to journald: systemd.io/JOURNAL_NATIVE_PROTOCOL.
// It is one datagram socket for life, connected when first used and again
// after journald's own was gone. Only setDeadline may be called from another
// goroutine than send's.
type nativeSocket struct {
	file *os.File // for the runtime's poller: a full queue parks the goroutine, not a thread
	raw  syscall.RawConn
	addr *unix.SockaddrUnix
}

func newNativeSocket(path string) (*nativeSocket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), path)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &nativeSocket{file: file, raw: raw, addr: &unix.SockaddrUnix{Name: path}}, nil
}

// close waits, for at most d, until journald has read what was sent: it looks
// up the unit of a sender when it reads, and finds none of a process that has
// exited.
func (s *nativeSocket) close(d time.Duration) {
	defer s.file.Close()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		unread := 0
		err := s.raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if err != nil || unread == 0 {
			return
		}
	}
}

// setDeadline ends all waiting for journald at t.
func (s *nativeSocket) setDeadline(t time.Time) {
	// Sockets have deadlines; were it refused, Close would still be bounded.
	_ = s.file.SetWriteDeadline(t)
}

// send waits until journald has room for the entry. An error means that it did
// not get it: ENOENT or ECONNREFUSED when it is away, os.ErrDeadlineExceeded.
func (s *nativeSocket) send(entry []byte) error {
	err := s.deliver(entry, nil)
	// EMSGSIZE: more than SO_SNDBUF; ENOBUFS: no memory for it in one piece.
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return s.sendFile(entry)
	}
	return err
}

// deliver sends a datagram, and connects first if that is needed.
func (s *nativeSocket) deliver(data, rights []byte) error {
	err := s.sendmsg(data, rights)
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNREFUSED) {
		if err := s.connect(); err != nil {
			return err
		}
		err = s.sendmsg(data, rights)
	}
	return err
}

func (s *nativeSocket) connect() error {
	var err error
	if e := s.raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), s.addr) }); e != nil {
		return e
	}
	return os.NewSyscallError("connect", err)
}

func (s *nativeSocket) sendmsg(data, rights []byte) error {
	var err error
	e := s.raw.Write(func(fd uintptr) (done bool) {
		for {
			_, err = unix.SendmsgN(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if e != nil {
		return e
	}
	return os.NewSyscallError("sendmsg", err)
}

// sendFile sends an entry that is too large for a datagram as a sealed memfd,
// in an empty datagram.
func (s *nativeSocket) sendFile(entry []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "journal-entry")
	defer file.Close()
	if _, err := file.Write(entry); err != nil {
		return err
	}
	// journald maps a file only if nobody can change it under its hands.
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return s.deliver(nil, unix.UnixRights(fd))
}

// writeStderr writes all of data with write(2). os.File.Write would end the
// process by SIGPIPE when the reader of stderr is gone, unless the signal is
// ignored.
func (l *Log) writeStderr(data []byte) error {
	raw, err := l.stderr.SyscallConn()
	if err != nil {
		return err
	}
	for len(data) > 0 {
		var n int
		var err error
		e := raw.Write(func(fd uintptr) (done bool) {
			n, err = unix.Write(int(fd), data)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case e != nil:
			return e
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("write", err)
		default:
			data = data[n:]
		}
	}
	return nil
}
