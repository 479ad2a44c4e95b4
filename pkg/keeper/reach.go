package keeper

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reach duplicates descriptor fd of the process behind keeper, a pidfd, into
// this one: pidfd_getfd(2). The copy is close-on-exec, and the caller's. The
// keeper keeps its own: while it lives, a close of the copy reaches no peer,
// shutdown(2) does.
//
// The error wraps EBADF if the process has no such descriptor (or keeper is
// none), ESRCH if the process is gone, EMFILE or ENFILE if this one may have
// no more, EPERM as Probe has it.
func Reach(keeper, fd int) (int, error) {
	got, err := unix.PidfdGetfd(keeper, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("keeper: descriptor %d of pidfd %d: %w", fd, keeper, os.NewSyscallError("pidfd_getfd", err))
	}
	return got, nil
}

// Cookie is the kernel's name of the socket behind fd: the same for all
// descriptors of it in all processes, and never used again until the next
// boot (SO_COOKIE, socket(7)). It fails with ENOTSOCK if fd is no socket.
func Cookie(fd int) (uint64, error) {
	var cookie uint64
	if _, err := option(fd, unix.SOL_SOCKET, unix.SO_COOKIE, unsafe.Pointer(&cookie), unsafe.Sizeof(cookie)); err != nil {
		return 0, fmt.Errorf("keeper: descriptor %d: %w", fd, os.NewSyscallError("getsockopt SO_COOKIE", err))
	}
	return cookie, nil
}
