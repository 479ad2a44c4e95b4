package supervisor

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alarm rings once at a time that is set. It belongs to the goroutine of Run.
type alarm interface {
	// rings is sent to when the time has come, never twice for one time.
	rings() <-chan time.Time

	// set replaces the time that was set by one from now. A ring that is under
	// way may still come, too early.
	set(d time.Duration)

	close()
}

// timerAlarm is a Timer of Go, for tests, whose time is not the kernel's.
type timerAlarm struct{ *time.Timer }

func (a timerAlarm) rings() <-chan time.Time { return a.C }
func (a timerAlarm) set(d time.Duration)     { a.Reset(d) }
func (a timerAlarm) close()                  { a.Stop() }

// kernelAlarm is timerfd_create(2). A timer of Go wakes the runtime's monitor
// as well, which then takes dozens of looks before it sleeps again: most of
// what an idle supervisor does, if it does nothing else. So do system calls
// that the Go scheduler is told of.
type kernelAlarm struct {
	file *os.File
	conn syscall.RawConn
	ring chan time.Time
	over chan struct{} // closed when nobody waits for file any more
}

// newKernelAlarm makes an alarm that is not set. It fails if the system has no
// timerfd for us: EMFILE, ENFILE, ENOMEM.
func newKernelAlarm() (*kernelAlarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("timerfd_create", err))
	}
	a := &kernelAlarm{file: os.NewFile(uintptr(fd), "alarm"), ring: make(chan time.Time, 1), over: make(chan struct{})}
	if a.conn, err = a.file.SyscallConn(); err != nil {
		a.file.Close()
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	go a.wait()
	return a, nil
}

func (a *kernelAlarm) wait() {
	defer close(a.over)
	for a.conn.Read(expired) == nil { // an error means that it is closed
		select {
		case a.ring <- time.Now():
		default: // it has rung, and nobody has listened yet
		}
	}
}

// expired says whether a timerfd has run out since it was asked last.
func expired(fd uintptr) bool {
	var times [8]byte
	_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&times[0])), uintptr(len(times)))
	return errno == 0 // else EAGAIN
}

func (a *kernelAlarm) rings() <-chan time.Time { return a.ring }

func (a *kernelAlarm) set(d time.Duration) {
	// Of zeros timerfd_settime(2) makes a timer that is not armed. It fails
	// only for what is no timer.
	in := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	_ = a.conn.Control(func(fd uintptr) {
		unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&in)), 0, 0, 0)
	})
}

func (a *kernelAlarm) close() {
	a.file.Close()
	<-a.over
}
