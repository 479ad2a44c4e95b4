package link

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Send when the other side has left so many messages
// unread that no more fit, and by SendFile also when too many descriptors of
// this user are on their way, unix(7). Nothing was sent.
var ErrBusy = errors.New("link: the other side does not read")

// Channel is one end of the control socket. Send may be called from any
// goroutine; Recv, TryRecv and Interrupt as they say.
type Channel struct {
	file  *os.File
	raw   syscall.RawConn
	epoch atomic.Uint64 // highest seen
	seq   atomic.Uint64

	closed atomic.Bool
	heir   bool // it hears lower epochs too
}

// Pair makes a control socket. near is the caller's end; far is a
// close-on-exec descriptor for the other process, owned by the caller, who
// closes it after the spawn.
func Pair(epoch uint64) (near *Channel, far int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("link: %w", os.NewSyscallError("socketpair", err))
	}
	near, err = NewChannel(fds[0], epoch)
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, -1, err
	}
	return near, fds[1], nil
}

// NewChannel makes a Channel of fd, which it takes over on success. epoch is
// put into what is sent, until a higher one is received. It fails if fd is
// no SOCK_SEQPACKET socket.
func NewChannel(fd int, epoch uint64) (*Channel, error) {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("link: fd %d is no control socket (SOCK_SEQPACKET)", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("link: fd %d: %w", fd, os.NewSyscallError("fcntl", err))
	}
	c := &Channel{file: os.NewFile(uintptr(fd), "control")}
	if c.raw, err = c.file.SyscallConn(); err != nil {
		return nil, fmt.Errorf("link: fd %d: %w", fd, err)
	}
	c.epoch.Store(epoch)
	return c, nil
}

// InheritChannel makes a Channel of the end that a supervisor which is dead had, for
// the one that takes over with the given, higher epoch: as NewChannel, but what
// the worker has said to the one before is heard too.
func InheritChannel(fd int, epoch uint64) (*Channel, error) {
	c, err := NewChannel(fd, epoch)
	if err == nil {
		c.heir = true
	}
	return c, err
}

// Dup returns a close-on-exec copy of the descriptor, which is the caller's.
func (c *Channel) Dup() (fd int, err error) {
	controlErr := c.raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if controlErr != nil {
		return -1, fmt.Errorf("link: %w", controlErr)
	}
	if err != nil {
		return -1, fmt.Errorf("link: %w", os.NewSyscallError("fcntl", err))
	}
	return fd, nil
}

// Send sends one message and never waits. It fails with ErrBusy if the other
// side does not read, with an error of the system if it is gone, and as
// Encode does.
func (c *Channel) Send(body Body) error { return c.send(body, nil) }

// SendFile is Send with a descriptor, of which the receiver gets a
// close-on-exec copy as Message.FD. fd stays the caller's.
func (c *Channel) SendFile(body Body, fd int) error { return c.send(body, unix.UnixRights(fd)) }

func (c *Channel) send(body Body, rights []byte) error {
	b, err := Encode(Message{Epoch: c.epoch.Load(), Seq: c.seq.Add(1), Body: body})
	if err != nil {
		return err
	}
	var sent error
	err = c.raw.Control(func(fd uintptr) {
		for {
			sent = unix.Sendmsg(int(fd), b, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if !errors.Is(sent, unix.EINTR) {
				return
			}
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("link: %T: %w", body, err)
	case errors.Is(sent, unix.EAGAIN), errors.Is(sent, unix.ETOOMANYREFS):
		return ErrBusy
	case sent != nil:
		return fmt.Errorf("link: %T: %w", body, os.NewSyscallError("send", sent))
	}
	return nil
}

// Recv waits for the next message. Messages of a lower epoch than the
// highest seen and unknown ones that may be skipped are dropped. It returns
// io.EOF when the other side is gone, os.ErrDeadlineExceeded after
// Interrupt, os.ErrClosed after Close, and Decode's errors for a message
// that cannot be understood, after which the next may be received. One
// goroutine at a time may call it.
func (c *Channel) Recv() (Message, error) {
	buf := make([]byte, MaxMessage)
	for {
		var d datagram
		err := c.raw.Read(func(fd uintptr) bool {
			d = recv(int(fd), buf)
			return !errors.Is(d.err, unix.EAGAIN)
		})
		if err != nil {
			if c.closed.Load() {
				err = os.ErrClosed // which a RawConn does not say itself
			}
			return Message{}, fmt.Errorf("link: %w", err)
		}
		if m, ok, err := c.take(d); ok || err != nil {
			return m, err
		}
	}
}

// TryRecv returns the next message that is already there; ok is false if
// there is none. It takes what a dead process has left behind. It may be
// called when no Recv is running.
func (c *Channel) TryRecv() (m Message, ok bool, err error) {
	buf := make([]byte, MaxMessage)
	for {
		var d datagram
		if err := c.raw.Control(func(fd uintptr) { d = recv(int(fd), buf) }); err != nil {
			return Message{}, false, fmt.Errorf("link: %w", err)
		}
		if errors.Is(d.err, unix.EAGAIN) {
			return Message{}, false, nil
		}
		if m, ok, err := c.take(d); ok || err != nil {
			return m, ok, err
		}
	}
}

// datagram is what one recvmsg(2) brought.
type datagram struct {
	b   []byte
	fd  int // -1: none
	err error
}

func recv(fd int, buf []byte) datagram {
	// Room for more than one descriptor, so that what should not be there is
	// seen and closed and not cut off.
	oob := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		d := datagram{b: buf[:max(n, 0)], fd: -1, err: err}
		if oobn > 0 {
			d.fd = rights(oob[:oobn])
		}
		return d
	}
}

// rights returns the first descriptor that came along and closes the others.
func rights(oob []byte) int {
	first := -1
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return first
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if first < 0 {
				first = fd
			} else {
				unix.Close(fd)
			}
		}
	}
	return first
}

// take judges what recv returned; ok is false if it is to be dropped.
func (c *Channel) take(d datagram) (m Message, ok bool, err error) {
	defer func() {
		if !ok && d.fd >= 0 {
			unix.Close(d.fd)
		}
	}()
	switch {
	case errors.Is(d.err, unix.ECONNRESET), d.err == nil && len(d.b) == 0:
		return Message{}, false, io.EOF
	case d.err != nil:
		return Message{}, false, fmt.Errorf("link: %w", os.NewSyscallError("recvmsg", d.err))
	}
	if m, err = Decode(d.b); err != nil {
		return Message{}, false, err
	}
	m.FD = d.fd
	for {
		seen := c.epoch.Load()
		if m.Epoch < seen {
			return m, c.heir && m.Body != nil, nil // an heir hears it
		}
		if m.Epoch == seen || c.epoch.CompareAndSwap(seen, m.Epoch) {
			return m, m.Body != nil, nil
		}
	}
}

// Interrupt makes a waiting and every later Recv return
// os.ErrDeadlineExceeded. Any goroutine may call it.
func (c *Channel) Interrupt() error { return c.file.SetReadDeadline(time.Unix(0, 1)) }

// Close closes the descriptor. Any goroutine may call it.
func (c *Channel) Close() error {
	c.closed.Store(true)
	return c.file.Close()
}
