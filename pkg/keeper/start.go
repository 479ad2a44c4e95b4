package keeper

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a keeper exits when nobody kills it.
const (
	ExitReleased = 0 // the worker is gone and had set Options.Released
	ExitOrphaned = 1 // the worker is gone, and so was the supervisor, for Options.OrphanTTL
	ExitStuck    = 2 // the kernel, or a filter, refuses to let it wait
)

// MaxName is the largest length of Options.Name in bytes, prctl(2)
// PR_SET_NAME's.
const MaxName = 15

// Options of a keeper. All are needed.
type Options struct {
	// Name is what ps and top show instead of the worker's name and command
	// line: 1 to MaxName bytes, none of them zero.
	Name string

	// Released and SupervisorBeat lie in memory that is mapped MAP_SHARED.
	// Until the keeper is reaped they mean nothing else.

	// Released is not 0 once the worker's connections need nobody any more.
	// The worker sets it last of all before it ends by itself; the keeper
	// looks when the worker is gone, and once a second after that.
	Released *atomic.Uint32

	// SupervisorBeat is when a supervisor was last seen, CLOCK_MONOTONIC in
	// ns. It must be fresh when the worker is started.
	SupervisorBeat *atomic.Int64

	// OrphanTTL is how long the keeper of a worker that is gone waits for
	// another supervisor, counted from SupervisorBeat.
	OrphanTTL time.Duration
}

// Keeper is a keeper that was started.
type Keeper struct {
	PID int

	// PIDFD names the keeper for good, unlike PID. The caller owns it, and
	// passes it on to the supervisor, which reaps the keeper.
	PIDFD int
}

// Start makes the keeper of this process; it is its parent's child. Call it
// once, right after exec, before the first accept and with a small heap: the
// package's doc says why. It may be called from any goroutine.
//
// The error is an *UnprotectedError if the kernel or the environment refuses,
// and another one if an option is wrong. In neither case was a keeper started.
func Start(o Options) (*Keeper, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	memory, err := readMemory()
	if err != nil {
		return nil, &UnprotectedError{Reason: Unsupported, Err: err}
	}
	for _, word := range []struct {
		name string
		at   uintptr
	}{
		{"Released", uintptr(unsafe.Pointer(o.Released))},
		{"SupervisorBeat", uintptr(unsafe.Pointer(o.SupervisorBeat))},
	} {
		if !memory.isShared(word.at) {
			return nil, fmt.Errorf("keeper: %s lies at %#x, which is not shared memory", word.name, word.at)
		}
	}

	// The plan is shared memory too: so it is not among what the keeper gives
	// back, and does not become the worker's again while the keeper reads it.
	plan, free, err := newPlan()
	if err != nil {
		return nil, refused("mmap", err)
	}
	defer free()
	plan.set(o, memory)

	// It stays open as long as this process lives: the keeper waits on it.
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, refused("pidfd_open", err)
	}
	plan.worker = unix.PollFd{Fd: int32(self), Events: unix.POLLIN}

	pid, errno := clone(plan)
	if errno != 0 {
		unix.Close(self)
		e := refused("clone", errno)
		if errno == unix.EINVAL && os.Getpid() == 1 {
			e.Reason = NamespaceInit
		}
		return nil, e
	}
	return &Keeper{PID: pid, PIDFD: int(plan.pidfd)}, nil
}

func (o *Options) check() error {
	switch {
	case o.Name == "" || len(o.Name) > MaxName || strings.ContainsRune(o.Name, 0):
		return fmt.Errorf("keeper: name %q, want 1 to %d bytes, none of them zero", o.Name, MaxName)
	case o.Released == nil:
		return fmt.Errorf("keeper: %q has no Released", o.Name)
	case o.SupervisorBeat == nil:
		return fmt.Errorf("keeper: %q has no SupervisorBeat", o.Name)
	case o.OrphanTTL <= 0:
		return fmt.Errorf("keeper: OrphanTTL %v of %q, want more than 0", o.OrphanTTL, o.Name)
	}
	return nil
}

// clone calls spawn with the runtime at rest. ForkLock keeps another fork of
// this process, and with it signal handlers and masks as they are between
// fork and exec, out of ours; the thread is locked because the signal mask,
// which spawn sets and restores, is a thread's.
func clone(p *plan) (pid int, errno syscall.Errno) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return spawn(p)
}

// newPlan maps an empty plan. free takes the caller's view of it away.
func newPlan() (p *plan, free func(), err error) {
	mem, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(plan{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	return (*plan)(unsafe.Pointer(unsafe.SliceData(mem))), func() { unix.Munmap(mem) }, nil
}

func (p *plan) set(o Options, m *memory) {
	p.mask.all = ^uint64(0)
	copy(p.name[:MaxName], o.Name)
	p.released, p.beat, p.ttl = o.Released, o.SupervisorBeat, int64(o.OrphanTTL)
	p.pageSize = uintptr(os.Getpagesize())
	p.args = m.args
	p.spans = copy(p.private[:], m.private)
}
