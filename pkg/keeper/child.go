package keeper

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What stands in this file runs between clone(2) and exit(2) in a copy of the
// process in which the Go runtime does not run: every function is nosplit (the
// stack cannot grow), norace and nocheckptr (nothing is reported to the race
// detector), allocates nothing, writes no pointer to where the garbage
// collector looks, and makes system calls by syscall.RawSyscall6, which is
// itself such a function. Words that others write are read plainly: after a
// call the compiler reads memory anew, and an aligned word is read whole.
//
// What no directive keeps out are the counters of go test -cover. They do no
// harm, unless -race makes calls of them: a keeper of a program that was built
// with both, and with this package among those that are covered, crashes.

// span is a range of addresses.
type span struct{ start, end uintptr }

// signals are all signals, and those that were blocked before, as
// rt_sigprocmask(2) has them.
type signals struct{ all, old uint64 }

// maxSpans is as many mappings as are given back. A program has some dozens,
// one under the race detector some hundreds.
const maxSpans = 4000

// plan is all that a keeper knows. It lies in pages of its own, of which only
// those that are used exist.
type plan struct {
	name     [MaxName + 1]byte
	args     span // of the worker's arguments, which ps shows; may be empty
	released *atomic.Uint32
	beat     *atomic.Int64
	ttl      int64 // ns
	pageSize uintptr

	mask  signals
	pidfd int32 // the keeper's, written by clone(2)

	// Written by the keeper's system calls.

	worker unix.PollFd
	now    unix.Timespec
	nap    unix.Timespec

	spans   int // in private
	private [maxSpans]span
}

// spawn clones the keeper, in which it does not return. All signals are
// blocked meanwhile, and stay so in the keeper.
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func spawn(p *plan) (pid int, errno syscall.Errno) {
	const setMask = 2 // SIG_SETMASK
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&p.mask.all)), uintptr(unsafe.Pointer(&p.mask.old)), 8, 0, 0)
	// The exit signal is the caller's own, whatever is asked for: CLONE_PARENT.
	// clone, not clone3, which many a filter does not know. The architectures
	// differ in the order of its last two arguments, which are 0.
	r, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|unix.CLONE_PARENT|unix.CLONE_PIDFD, 0, uintptr(unsafe.Pointer(&p.pidfd)), 0, 0, 0)
	if r == 0 && errno == 0 {
		keep(p)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&p.mask.old)), 0, 8, 0, 0)
	return int(r), errno
}

// keep is the life of a keeper. It does not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func keep(p *plan) {
	giveBack(p)
	rename(p)
	syscall.RawSyscall6(unix.SYS_SETSID, 0, 0, 0, 0, 0, 0)
	// After the supervisor's death the next one is no ancestor of ours, and
	// would need this where Yama's ptrace_scope is 1; any process of the same
	// user may reach in then. Without Yama it is refused, and of no use.
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PTRACER, ^uintptr(0) /* PR_SET_PTRACER_ANY */, 0, 0, 0, 0)

	// Whatever ends the wait but a signal, which cannot come (EINTR is for
	// SIGSTOP and tracers), ends it for good: if the worker has closed the
	// pidfd, the words alone decide from here on.
	for {
		_, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p.worker)), 1, 0, 0, 0, 0)
		if errno != unix.EINTR {
			break
		}
	}
	for {
		if *(*uint32)(unsafe.Pointer(p.released)) != 0 {
			exit(ExitReleased)
		}
		if _, _, errno := syscall.RawSyscall6(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&p.now)), 0, 0, 0, 0); errno != 0 {
			exit(ExitStuck)
		}
		if p.now.Sec*1e9+p.now.Nsec-*(*int64)(unsafe.Pointer(p.beat)) > p.ttl {
			exit(ExitOrphaned)
		}
		p.nap.Sec, p.nap.Nsec = 1, 0 // ppoll(2) writes to it
		_, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, uintptr(unsafe.Pointer(&p.nap)), 0, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			exit(ExitStuck) // else it would turn in a circle
		}
	}
}

// giveBack returns the copies of the worker's memory to the kernel, save the
// stack this runs on: the page of its own frame and its neighbours, more than
// functions that are nosplit can use. The mappings stay: glibc, in a program
// with cgo, has told the kernel of a place in one of them to which the kernel
// writes (rseq(2)).
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func giveBack(p *plan) {
	var here byte
	low := uintptr(unsafe.Pointer(&here))&^(p.pageSize-1) - p.pageSize
	high := low + 3*p.pageSize
	for i := 0; i < p.spans; i++ {
		s := (*span)(unsafe.Add(unsafe.Pointer(&p.private), uintptr(i)*unsafe.Sizeof(span{})))
		if s.end <= low || high <= s.start {
			giveBackSpan(s.start, s.end)
			continue
		}
		if s.start < low {
			giveBackSpan(s.start, low)
		}
		if high < s.end {
			giveBackSpan(high, s.end)
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func giveBackSpan(start, end uintptr) {
	syscall.RawSyscall6(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED, 0, 0, 0)
}

// rename gives the keeper its own name, and its own command line in place of
// the worker's. /proc/pid/cmdline is read from where the kernel laid the
// arguments at exec; this process has a copy of that page.
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func rename(p *plan) {
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&p.name)), 0, 0, 0, 0)
	for at := p.args.start; at < p.args.end; at++ {
		c := byte(0)
		if i := at - p.args.start; i < MaxName {
			c = *(*byte)(unsafe.Add(unsafe.Pointer(&p.name), i))
		}
		*(*byte)(unsafe.Add(nil, at)) = c
	}
}

// trial is a system call that a short-lived child makes in place of this
// process: a filter may end who makes it.
type trial struct {
	call       uintptr
	a, b, c    uintptr
	undumpable bool // no core dump if the child is ended
	mortal     bool // the child is killed when the thread that made it ends

	mask  signals
	pidfd int32 // the child's, written by clone(2)
}

// spawnTrial clones a child that makes t's call and exits with its error
// number, 0 if there is none. It shares the descriptor table, so that it
// keeps nothing open that this process closes, sends no signal at its end,
// and must be waited for with __WALL (wait(2)).
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func spawnTrial(t *trial) (pid int, errno syscall.Errno) {
	const setMask = 2 // SIG_SETMASK
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&t.mask.all)), uintptr(unsafe.Pointer(&t.mask.old)), 8, 0, 0)
	r, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|unix.CLONE_PIDFD, 0, uintptr(unsafe.Pointer(&t.pidfd)), 0, 0, 0)
	if r == 0 && errno == 0 {
		if t.undumpable {
			syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0)
		}
		if t.mortal {
			syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
		}
		_, _, errno := syscall.RawSyscall6(t.call, t.a, t.b, t.c, 0, 0, 0)
		exit(uintptr(errno))
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&t.mask.old)), 0, 8, 0, 0)
	return int(r), errno
}

//go:nosplit
//go:norace
//go:nocheckptr
func exit(code uintptr) {
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
