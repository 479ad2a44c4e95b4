package supervisor

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is struct pidfd_info of linux/pidfd.h, as of its first version.
type pidfdInfo struct {
	mask     uint64
	cgroup   uint64
	_        [11]uint32 // ids
	exitCode int32      // as wait(2) has it; only with pidfdInfoExit in mask
}

const (
	pidfdGetInfo  = 3<<30 | 64<<16 | 0xFF<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

var _ [64]byte = [unsafe.Sizeof(pidfdInfo{})]byte{}

// foreignExit says how a process ended that is dead and not our child: by its
// pidfd, which tells from Linux 6.15 on, once its parent has reaped it.
func foreignExit(pidfd int) Exit {
	unknown := Exit{Unknown: true}
	for attempt := range 2 {
		info := pidfdInfo{mask: pidfdInfoExit}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info))); errno != 0 && errno != unix.ESRCH {
			return unknown // an older kernel
		}
		if info.mask&pidfdInfoExit != 0 {
			status := unix.WaitStatus(info.exitCode)
			if status.Signaled() {
				return Exit{Signal: status.Signal(), Core: status.CoreDump()}
			}
			return Exit{Code: status.ExitStatus()}
		}
		if attempt == 0 && awaitPidfd(pidfd, 0, reapMargin) != nil {
			return unknown
		}
	}
	return unknown
}

// reapMargin is how long a dead process that is not our child is waited for to
// be reaped by whoever is its parent.
const reapMargin = 100 * time.Millisecond

// awaitPidfd waits for an event on a pidfd: POLLIN is the death; none of them,
// so that only POLLHUP is left, the reaping, where the kernel tells it.
func awaitPidfd(pidfd int, events int16, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		p := []unix.PollFd{{Fd: int32(pidfd), Events: events}}
		n, err := unix.Poll(p, int(max(0, (time.Until(deadline)+time.Millisecond-1)/time.Millisecond)))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("supervisor: %w", os.NewSyscallError("poll", err))
		case n > 0:
			return nil
		case time.Until(deadline) <= 0:
			return os.ErrDeadlineExceeded
		}
	}
}

// isDead reports whether the process of a pidfd has ended.
func isDead(pidfd int) bool { return awaitPidfd(pidfd, unix.POLLIN, 0) == nil }
