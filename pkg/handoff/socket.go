package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inboxBuffer is how many bytes an inbox should hold; the system may allow
// less.
const inboxBuffer = 1 << 20

// Pair makes an inbox: a process receives by the one end, through
// Options.Inbox, and its peers send by the other, through Endpoint.Peer. Both
// are close-on-exec, do not block, and are the caller's. A process that keeps
// the sending end open never reads the inbox's end. It fails as socketpair(2)
// does.
func Pair() (receiving, sending int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("handoff: %w", os.NewSyscallError("socketpair", err))
	}
	// The sender's buffer is what holds messages that were not received. It
	// does as it is, if no more is allowed.
	_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, inboxBuffer)
	return fds[0], fds[1], nil
}

var (
	// errFull says that a message did not fit into an inbox.
	errFull = errors.New("handoff: inbox is full")

	// errBroken says that nobody has an inbox's receiving end any more.
	errBroken = errors.New("handoff: inbox is closed")
)

// kernel is what an Endpoint wants of the system; tests have another one.
type kernel interface {
	// limit returns the largest message that an inbox takes.
	limit(inbox int) int
	// send sends a message. It returns errFull if there is no room, and
	// errBroken if nobody will read it; other errors are for this message.
	send(inbox int, m []byte, fds []int) error
	// receive receives a message into m and its descriptors into fds, of which
	// it returns the parts that are filled. truncated says that there were more
	// descriptors. It returns EAGAIN if there is no message, and io.EOF if
	// there will be none.
	receive(inbox int, m []byte, fds []int) (n, nfds int, truncated bool, err error)
	// cookie returns SO_COOKIE.
	cookie(fd int) (uint64, error)
	close(fd int)
}

// system is the kernel that there is.
type system struct {
	oob []byte
}

func (*system) close(fd int) { unix.Close(fd) }

func (*system) limit(inbox int) int {
	size, err := unix.GetsockoptInt(inbox, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return maxMessage
	}
	// unix(7): a message and its overhead must be smaller than the buffer.
	return min(maxMessage, size-64)
}

func (s *system) send(inbox int, m []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(inbox, m, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM,
			unix.ETOOMANYREFS: // unix(7): too many descriptors of this user are under way
			return errFull
		case unix.EPIPE, unix.ECONNRESET, unix.ECONNREFUSED, unix.ENOTCONN:
			return errBroken
		default:
			return fmt.Errorf("handoff: %w", os.NewSyscallError("sendmsg", err))
		}
	}
}

func (s *system) receive(inbox int, m []byte, fds []int) (n, nfds int, truncated bool, err error) {
	if s.oob == nil {
		s.oob = make([]byte, unix.CmsgSpace(4*maxDescriptors))
	}
	for {
		n, oobn, flags, _, err := unix.Recvmsg(inbox, m, s.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, 0, false, err
		case err == unix.ECONNRESET: // some sender has closed with messages unread; others may be there
			continue
		case err != nil:
			return 0, 0, false, fmt.Errorf("handoff: %w", os.NewSyscallError("recvmsg", err))
		case n == 0 && oobn == 0:
			return 0, 0, false, io.EOF
		}
		nfds = s.rights(fds, s.oob[:oobn])
		return n, nfds, flags&unix.MSG_CTRUNC != 0, nil
	}
}

// rights puts the descriptors in oob into fds, and closes what does not fit.
func (s *system) rights(fds []int, oob []byte) int {
	n := 0
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for i := range messages {
		list, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // other than SCM_RIGHTS
		}
		for _, fd := range list {
			if n == len(fds) {
				unix.Close(fd)
				continue
			}
			fds[n] = fd
			n++
		}
	}
	return n
}

// maxDescriptors is SCM_MAX_FD, the most that one message carries.
const maxDescriptors = 253

// cookie is called for each connection and never blocks, so the Go scheduler
// need not know of it.
func (*system) cookie(fd int) (uint64, error) {
	var cookie uint64
	size := uint32(unsafe.Sizeof(cookie))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE,
		uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt SO_COOKIE", errno)
	}
	return cookie, nil
}

// bulk is a memfd that carries bodies that are too large for a message.
type bulk struct {
	fd   int // -1: there is none
	size int
}

// add appends a body and returns where it begins. It fails as the system
// calls do.
func (b *bulk) add(body []byte) (offset uint64, err error) {
	if b.fd < 0 {
		b.fd, err = unix.MemfdCreate("mainstay-handoff", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			b.fd = -1
			return 0, fmt.Errorf("handoff: %w", os.NewSyscallError("memfd_create", err))
		}
	}
	offset = uint64(b.size)
	for done := 0; done < len(body); {
		n, err := unix.Pwrite(b.fd, body[done:], int64(b.size+done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("handoff: body of %d bytes: %w", len(body), os.NewSyscallError("pwrite", err))
		}
		done += n
	}
	b.size += len(body)
	return offset, nil
}

const bulkSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// seal makes the memfd unchangeable.
func (b *bulk) seal() error {
	if b.fd < 0 {
		return nil
	}
	// What was written for a connection that did not fit lies behind.
	if err := unix.Ftruncate(b.fd, int64(b.size)); err != nil {
		return fmt.Errorf("handoff: %w", os.NewSyscallError("ftruncate", err))
	}
	if _, err := unix.FcntlInt(uintptr(b.fd), unix.F_ADD_SEALS, bulkSeals); err != nil {
		return fmt.Errorf("handoff: %w", os.NewSyscallError("fcntl F_ADD_SEALS", err))
	}
	return nil
}

// close closes the memfd; bulk is empty then.
func (b *bulk) close() {
	if b.fd >= 0 {
		unix.Close(b.fd)
	}
	*b = bulk{fd: -1}
}

// openBulk looks at a memfd that was received. It fails if it is not one that
// seal has sealed, or too large.
func openBulk(fd int) (bulk, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return bulk{}, fmt.Errorf("handoff: fd %d: %w", fd, os.NewSyscallError("fcntl F_GET_SEALS", err))
	}
	if seals&bulkSeals != bulkSeals {
		return bulk{}, fmt.Errorf("handoff: fd %d: a memfd with seals %#x, want %#x", fd, seals, bulkSeals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return bulk{}, fmt.Errorf("handoff: fd %d: %w", fd, os.NewSyscallError("fstat", err))
	}
	if st.Size > bulkLimit {
		return bulk{}, fmt.Errorf("handoff: memfd of %d bytes, want at most %d", st.Size, bulkLimit)
	}
	return bulk{fd: fd, size: int(st.Size)}, nil
}

// read returns a body, in dst if it is large enough. It fails if the body
// does not lie in the memfd.
func (b bulk) read(dst []byte, offset uint64, size uint32) ([]byte, error) {
	if offset > uint64(b.size) || uint64(size) > uint64(b.size)-offset {
		return nil, fmt.Errorf("handoff: body of %d bytes at %d, the memfd has %d", size, offset, b.size)
	}
	if cap(dst) < int(size) {
		dst = make([]byte, size)
	}
	dst = dst[:size]
	for done := 0; done < len(dst); {
		n, err := unix.Pread(b.fd, dst[done:], int64(offset)+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, fmt.Errorf("handoff: body of %d bytes at %d: %w", size, offset, os.NewSyscallError("pread", err))
		case n == 0:
			return nil, fmt.Errorf("handoff: body of %d bytes at %d: %w", size, offset, io.ErrUnexpectedEOF)
		default:
			done += n
		}
	}
	return dst, nil
}
