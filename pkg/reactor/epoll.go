package reactor

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Events is a set of epoll(7) events.
type Events uint32

// What a descriptor is watched for, and what is reported of it. Hangup and
// Fault are reported whether asked for or not, until the descriptor is
// watched for nothing.
const (
	Readable   Events = unix.EPOLLIN
	Writable   Events = unix.EPOLLOUT
	PeerClosed Events = unix.EPOLLRDHUP // the peer has closed, or has shut down its writing side
	Hangup     Events = unix.EPOLLHUP
	Fault      Events = unix.EPOLLERR
	Exclusive  Events = unix.EPOLLEXCLUSIVE // listeners: wake one of the processes that watch; only with Readable and Writable
)

// Token names a registration: the index of its row in the loop's table and,
// in the upper half, how often that row has been used. A token is never used
// twice within 2^32 uses of its row, so an event or a call that comes too
// late finds nothing. The zero Token is never given out.
type Token uint64

func makeToken(index, generation uint32) Token {
	return Token(generation)<<32 | Token(index)
}

func (t Token) index() uint32      { return uint32(t) }
func (t Token) generation() uint32 { return uint32(t >> 32) }

// poller is an epoll instance with an eventfd in it for waking it up.
type poller struct {
	epfd, wakefd int
	events       [maxEvents]unix.EpollEvent
}

// maxEvents bounds the events of one turn, and so the time from the read of
// the first connection to the write of its reply at the end of the turn.
const maxEvents = 128

func (p *poller) open() error {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return os.NewSyscallError("eventfd", err)
	}
	p.epfd, p.wakefd = epfd, wakefd
	// Edge-triggered, so that the counter need never be read: each write is a new edge.
	if errno := p.ctl(unix.EPOLL_CTL_ADD, wakefd, unix.EPOLLIN|unix.EPOLLET, wakeToken); errno != 0 {
		p.close()
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

func (p *poller) close() {
	unix.Close(p.wakefd)
	unix.Close(p.epfd)
}

// ctl is epoll_ctl(2); it never blocks.
func (p *poller) ctl(op, fd int, ev Events, t Token) unix.Errno {
	// The kernel's 64 bits of data are these two fields on every architecture.
	e := unix.EpollEvent{Events: uint32(ev), Fd: int32(t.index()), Pad: int32(t.generation())}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.epfd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// poll returns how many events are there now. It never blocks, so the Go
// scheduler need not know of it.
func (p *poller) poll() (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd),
		uintptr(unsafe.Pointer(&p.events[0])), maxEvents, 0, 0, 0)
	return waited(n, errno)
}

// wait waits for events, for at most ms milliseconds.
func (p *poller) wait(ms int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd),
		uintptr(unsafe.Pointer(&p.events[0])), maxEvents, uintptr(ms), 0, 0)
	return waited(n, errno)
}

func waited(n uintptr, errno unix.Errno) (int, error) {
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR: // a signal, such as the runtime's own for preemption
		return 0, nil
	default:
		return 0, fmt.Errorf("reactor: %w", os.NewSyscallError("epoll_pwait", errno))
	}
}

// event returns event i of the last wait.
func (p *poller) event(i int) (Token, Events) {
	e := &p.events[i]
	return makeToken(uint32(e.Fd), uint32(e.Pad)), Events(e.Events)
}

// wake makes a wait return. Any goroutine may call it.
func (p *poller) wake() {
	one := [8]byte{1}
	// EAGAIN means that the counter is full: an edge is there already.
	syscall.RawSyscall6(unix.SYS_WRITE, uintptr(p.wakefd), uintptr(unsafe.Pointer(&one[0])), 8, 0, 0, 0)
}

// MaxWrite is the most that Write and Writev give to the kernel at once: a
// raw system call holds up the Go scheduler, and with it a collection, for as
// long as the copying takes.
const MaxWrite = 256 << 10

// The raw calls here are package syscall's, to which x/sys/unix comes by a
// detour through the stack.

// Read is recv(2) on a non-blocking socket, without telling the Go scheduler
// of it: what read(2) does there, but for some 30 ns of what files need. It
// returns 0 at the end of the stream, and EAGAIN when there is nothing to read. p must
// not be empty.
func Read(fd int, p []byte) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Write is send(2) on a non-blocking socket, without telling the Go scheduler
// of it: what write(2) does there, for less, as with Read. It writes at most
// MaxWrite bytes. An empty p is an empty packet, where there are such.
func Write(fd int, p []byte) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), MaxWrite)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Writev is writev(2) on a non-blocking descriptor, without telling the Go
// scheduler of it. The caller sees to it that iov is not empty, holds at most
// MaxWrite bytes and at most IOV_MAX (1024) parts.
func Writev(fd int, iov []unix.Iovec) (int, unix.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// ReserveDescriptors makes this process's descriptor table large enough for
// descriptors below n. Without it the kernel stalls whoever opens descriptor
// 256, 512, 1024 ... for 7 to 24 ms in a process with threads, since it waits
// for an RCU grace period whenever the table grows. n is cut to the soft
// RLIMIT_NOFILE; a table that is large enough stays as it is. It costs 8
// bytes of kernel memory a descriptor. Any goroutine may call it; it is meant
// for the start of a process.
func ReserveDescriptors(n int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("reactor: %w", os.NewSyscallError("getrlimit", err))
	}
	if limit.Cur < uint64(n) {
		n = int(limit.Cur)
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reactor: %w", os.NewSyscallError("open /dev/null", err))
	}
	defer unix.Close(null)
	// The lowest free descriptor from n-1 on: an open one is never replaced.
	top, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, n-1)
	if err == unix.EMFILE || err == unix.EINVAL {
		return nil // all of them are open: the table is as large as it can get
	}
	if err != nil {
		return fmt.Errorf("reactor: %w", os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err))
	}
	unix.Close(top)
	return nil
}
