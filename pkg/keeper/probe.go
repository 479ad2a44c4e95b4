package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Probe tells whether a supervisor that is this process can take descriptors
// out of a keeper: nil, or an *UnprotectedError. A filter that would end this
// process for trying ends a child of it instead. It takes about a millisecond,
// leaves nothing behind, and may be called from any goroutine; the answer is
// good for the life of the process.
//
// What it does not tell is whether a worker can start a keeper: Start does.
func Probe() error {
	// A descriptor that is none: the filter, if there is one, comes first.
	err := try(&trial{call: unix.SYS_PIDFD_GETFD, a: ^uintptr(0), undumpable: true})
	switch {
	case err == nil || errors.Is(err, unix.EBADF):
	case errors.Is(err, errKilled):
		return &UnprotectedError{Reason: Filtered, Err: os.NewSyscallError("pidfd_getfd", err)}
	default:
		return refused("pidfd_getfd", err)
	}
	return tryReach()
}

// tryReach takes a descriptor out of a child as it would be taken out of a
// keeper. The child sleeps until it is killed, or this process is; 10 seconds at
// most.
func tryReach() error {
	runtime.LockOSThread() // the child is not to outlive the thread
	defer runtime.UnlockOSThread()
	t := &trial{call: unix.SYS_PPOLL, mortal: true}
	limit := &unix.Timespec{Sec: 10}
	t.c = uintptr(unsafe.Pointer(limit))
	var pinned runtime.Pinner // the address is a number from here on
	pinned.Pin(limit)
	defer pinned.Unpin()
	pid, errno := startTrial(t)
	if errno != 0 {
		return refused("clone", errno)
	}
	child := int(t.pidfd)
	fd, err := Reach(child, child)
	unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0)
	wait(pid)
	unix.Close(child)
	switch {
	case err == nil:
		unix.Close(fd)
		return nil
	case errors.Is(err, unix.EPERM):
		return &UnprotectedError{Reason: Ptrace, Err: os.NewSyscallError("pidfd_getfd", unix.EPERM)}
	default:
		return &UnprotectedError{Reason: reasonOf(err), Err: err}
	}
}

var errKilled = errors.New("the process that called it was killed")

// try has a child make t's call: nil, the call's error number, or errKilled.
func try(t *trial) error {
	pid, errno := startTrial(t)
	if errno != 0 {
		return fmt.Errorf("clone: %w", errno)
	}
	unix.Close(int(t.pidfd))
	status, err := wait(pid)
	switch {
	case err != nil:
		return err
	case !status.Exited():
		return errKilled
	case status.ExitStatus() != 0:
		return syscall.Errno(status.ExitStatus())
	}
	return nil
}

// startTrial calls spawnTrial as clone calls spawn.
func startTrial(t *trial) (pid int, errno syscall.Errno) {
	t.mask.all = ^uint64(0)
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return spawnTrial(t)
}

// wait reaps a child of spawnTrial.
func wait(pid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		if err == nil {
			return status, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("keeper: process %d: %w", pid, os.NewSyscallError("wait4", err))
		}
	}
}

// SharesFiles tells whether worker and keeper still share one descriptor
// table; after an exec in the worker they do not. Both must live, and must
// not be reaped while it is asked, so that the PIDs are theirs: who is not
// their parent asks their pidfds afterwards. It fails with ESRCH if one is
// gone or going, with EPERM where the caller may not ptrace(2) them, and with ENOSYS
// where the kernel is built without kcmp(2).
func SharesFiles(worker, keeper int) (bool, error) {
	const kcmpFiles = 2 // KCMP_FILES
	// It does not sleep, so the Go scheduler need not be told of it.
	order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(worker), uintptr(keeper), kcmpFiles, 0, 0, 0)
	if errno != 0 {
		return false, fmt.Errorf("keeper: processes %d and %d: %w", worker, keeper, os.NewSyscallError("kcmp", errno))
	}
	if order == 0 {
		return true, nil
	}
	// One that is being killed leaves the table before anyone can know.
	for _, pid := range []int{worker, keeper} {
		if isExiting(pid) {
			return false, fmt.Errorf("keeper: process %d ends: %w", pid, unix.ESRCH)
		}
	}
	return false, nil
}

// isExiting says whether a process has begun to exit, or is gone: PF_EXITING
// of the flags in proc_pid_stat(5).
func isExiting(pid int) bool {
	const pfExiting, flags = 0x4, 6
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, rest, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) <= flags {
		return false
	}
	n, err := strconv.ParseUint(fields[flags], 10, 64)
	return err == nil && n&pfExiting != 0
}
