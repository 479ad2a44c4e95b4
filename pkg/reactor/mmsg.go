package reactor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Datagram is struct mmsghdr of recvmmsg(2) and sendmmsg(2): one datagram of
// several in one call. What it points to is the caller's.
type Datagram struct {
	Header unix.Msghdr
	Len    uint32 // bytes that were received or sent
	_      uint32
}

// Recvmmsg is recvmmsg(2) on a non-blocking descriptor, without telling the
// Go scheduler of it. It returns how many of msgs, which must not be empty,
// were filled; EAGAIN if there is no datagram.
func Recvmmsg(fd int, msgs []Datagram) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Sendmmsg is sendmmsg(2) on a non-blocking descriptor, without telling the
// Go scheduler of it. It returns how many of msgs, which must not be empty,
// were sent; an error is that of the first one.
func Sendmmsg(fd int, msgs []Datagram) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
