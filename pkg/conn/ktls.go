package conn

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// With Config.KernelTLS the kernel seals what a connection sends, linux/tls.h;
// what comes is opened here as ever. Each write is one record, so that the
// number of the next one and the count of bytes are known without asking, and
// all that is noted and captured is as without. The kernel's key stays with the
// socket: whoever gets that asks it, and does not seal.

const (
	tlsTX         = 1 // TLS_TX, linux/tls.h
	setRecordType = 1 // TLS_SET_RECORD_TYPE

	// kernelWrites is how many records are written in a turn: sealMost, a
	// KeyUpdate and close_notify.
	kernelWrites = sealMost/tlsrec.MaxPlaintext + 2

	// kernelSentEvery is how often a connection that is to be closed looks
	// whether the kernel has passed on to TCP what it has sealed.
	kernelSentEvery = 5 * time.Millisecond
)

// ErrNoKernelTLS is why Config.KernelTLS is of no use here.
var ErrNoKernelTLS = errors.New("conn: no TLS in this kernel")

// ProbeKernelTLS finds out whether the kernel can seal what connections send,
// by a connection of its own over the loopback interface. It returns nil, or
// ErrNoKernelTLS with the reason: there is no module tls (ENOENT), it must not
// be loaded or used here (EPERM), or the kernel cannot change the key of a
// connection (EBUSY, before Linux 6.14), as a peer may ask for at any time. Any
// goroutine may call it; it takes some microseconds, unless the module has to be loaded.
func ProbeKernelTLS() error {
	if err := probeKernelTLS(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoKernelTLS, err)
	}
	return nil
}

func probeKernelTLS() error {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return os.NewSyscallError("listen", err)
	}
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, addr); err != nil && err != unix.EINPROGRESS {
		return os.NewSyscallError("connect", err)
	}
	const soon = 1000 // ms; over the loopback interface it is there when connect returns
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, soon); n != 1 {
		return fmt.Errorf("connection to 127.0.0.1: %w", errors.Join(err, os.ErrDeadlineExceeded))
	}
	key := tlsrec.AppendKernelProbe(nil)
	if err := kernelULP(fd); err != nil {
		return err
	}
	if err := kernelKey(fd, key); err != nil {
		return err
	}
	if err := kernelKey(fd, key); err != nil {
		return fmt.Errorf("a second key: %w", err)
	}
	return nil
}

func kernelULP(fd int) error {
	return os.NewSyscallError("setsockopt TCP_ULP", unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"))
}

func kernelKey(fd int, key []byte) error {
	// unix has nothing that does it without a copy of the key.
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_TLS, tlsTX, uintptr(unsafe.Pointer(unsafe.SliceData(key))), uintptr(len(key)), 0)
	if errno != 0 {
		return os.NewSyscallError("setsockopt TLS_TX", errno)
	}
	return nil
}

// kernelHas returns what the kernel seals with, in b, which has room for
// MaxKernelKey bytes, and nil if it does not seal for this socket.
func kernelHas(fd int, b []byte) ([]byte, error) {
	ask := func(b []byte) (int, unix.Errno) {
		n := uint32(len(b))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, tlsTX, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
		return int(n), errno
	}
	switch _, errno := ask(b[:4]); errno {
	case 0:
	case unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EBUSY:
		return nil, nil
	default:
		return nil, os.NewSyscallError("getsockopt TLS_TX", errno)
	}
	n := tlsrec.KernelKeySize(b)
	if n == 0 || n > len(b) {
		return nil, fmt.Errorf("%w: the kernel seals with an unknown cipher", ErrState)
	}
	if _, errno := ask(b[:n]); errno != 0 {
		return nil, os.NewSyscallError("getsockopt TLS_TX", errno)
	}
	return b[:n], nil
}

// useKernel has the kernel seal from now on, if it can. Nothing may wait that
// is sealed already. Loop only.
func (c *Conn) useKernel(l *layer) {
	l.toKernel = false
	if !c.tcp || l.tls == nil || l.failed || kernelULP(int(c.fd)) != nil {
		return // it goes on as it is
	}
	l.kernel = c.giveKey(l) == nil
}

// giveKey gives the kernel the key of the next record.
func (c *Conn) giveKey(l *layer) error {
	var b [tlsrec.MaxKernelKey]byte
	key := l.tls.AppendKernelKey(b[:0])
	defer clear(key)
	return kernelKey(int(c.fd), key)
}

// findKernel has a connection that has come from another process go on with
// the kernel if it did so there.
func (c *Conn) findKernel(l *layer, told bool) error {
	var b [tlsrec.MaxKernelKey]byte
	defer clear(b[:])
	key, err := kernelHas(int(c.fd), b[:])
	switch {
	case err != nil:
		return fmt.Errorf("conn: descriptor %d: %w", c.fd, err)
	case key == nil && told:
		return fmt.Errorf("%w: the kernel does not seal for the socket", ErrState)
	case key == nil:
		return nil
	}
	if err := l.tls.CheckKernelKey(key); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	l.kernel = true
	return nil
}

// flushKernel is flushSealedLocked where the kernel seals. Loop only.
func (c *Conn) flushKernel(l *layer) {
	for range kernelWrites {
		c.mu.Lock()
		if l.failed {
			c.takeLocked(c.out.bytes) // nobody will get it
		}
		bye := c.state == Closing && !c.has(flagLate) && l.goodbye() && c.out.bytes == 0
		text := c.plainLocked(tlsrec.MaxPlaintext)
		typ, content := l.tls.Owed(bye)
		if c.state == Closed || c.blocked || typ == 0 && len(text) == 0 {
			c.noteUnsentLocked(0)
			c.mu.Unlock()
			break
		}
		var ok bool
		if typ != 0 {
			c.mu.Unlock()
			ok = c.writeControl(l, typ, content)
		} else {
			ok = c.writeRecordLocked(l, text)
		}
		if !ok {
			return
		}
	}
	c.mu.Lock()
	queued := c.queuedLocked()
	c.mu.Unlock()
	c.count(queued)
}

// writeRecordLocked has one record of the start of the send queue sealed and
// written, as a whole or not at all. It needs mu and lets go of it. ok is false
// if the connection is over.
func (c *Conn) writeRecordLocked(l *layer, text []byte) (ok bool) {
	n := len(text)
	// What is noted is how it is behind the write.
	l.tls.Sealed()
	c.out.bytes -= n
	c.noteUnsentLocked(n + tlsrec.Overhead)
	c.out.bytes += n
	c.mu.Unlock()
	wrote, errno := reactor.Write(int(c.fd), text)
	switch {
	case wrote == n:
		c.mu.Lock()
		c.takeLocked(n)
		c.wroteLocked(n+tlsrec.Overhead, false)
		return true
	case wrote > 0: // how many records are that?
		c.broken("write of a record", unix.EMSGSIZE)
		return false
	case errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR:
		c.broken("write", errno)
		return false
	}
	l.tls.Unsealed()
	c.disturb()
	c.mu.Lock()
	c.wroteLocked(0, true)
	return true
}

// writeControl has a record sealed and written that is none of data.
func (c *Conn) writeControl(l *layer, typ tlsrec.RecordType, content []byte) (ok bool) {
	oob := make([]byte, unix.CmsgSpace(1))
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(oob)))
	h.Level, h.Type = unix.SOL_TLS, setRecordType
	h.SetLen(unix.CmsgLen(1))
	oob[unix.CmsgLen(0)] = byte(typ)
	n, err := unix.SendmsgN(int(c.fd), content, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		// The send queue may be empty, and yet the connection is to go on.
		now := c.set.loop.Now()
		if c.state == Open && !c.blocked {
			c.progress = ticksAt(now)
		}
		if limit := c.cfg.Limits.WriteStall; limit >= 0 {
			c.expireBy(now + limit)
		}
		c.blocked = true
		return true
	case err != nil:
		c.release(fmt.Errorf("%w: %w", ErrReset, os.NewSyscallError("sendmsg", err)))
		return false
	case n < len(content):
		c.broken("sendmsg of a record", unix.EMSGSIZE)
		return false
	}
	l.bye = l.bye || typ == tlsrec.RecordAlert
	if err := l.tls.Told(typ); err != nil {
		c.tlsFailed(l, err)
	} else if typ == tlsrec.RecordKeyUpdate {
		if err := c.giveKey(l); err != nil {
			c.release(fmt.Errorf("%w: the next key: %w", ErrReset, err))
			return false
		}
	}
	c.mu.Lock()
	c.wroteLocked(n+tlsrec.Overhead, false)
	return true
}

// kernelSent says whether the kernel has passed on to TCP all that it has
// sealed: the end of the stream must not come before that, and what it has
// sealed would be lost at the end of the socket. If not, it is looked at again soon.
func (c *Conn) kernelSent() bool {
	l := c.layered()
	if l == nil || !l.kernel {
		return true
	}
	// What is acknowledged in between counts too little, not too much.
	info, err := unix.GetsockoptTCPInfo(int(c.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return true // it is no connection any more
	}
	unacked, err := unix.IoctlGetInt(int(c.fd), unix.SIOCOUTQ)
	if err != nil || info.Bytes_acked+uint64(unacked) >= c.tx.Load() {
		return true
	}
	if !l.looking {
		l.looking = true
		c.set.loop.After(kernelSentEvery, func() {
			l.looking = false
			if c.state != Closed {
				c.mark(0, 0)
			}
		})
	}
	return false
}
