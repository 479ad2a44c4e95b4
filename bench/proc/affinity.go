package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// Allowed returns the CPUs that the calling thread may run on, in ascending
// order.
func Allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("proc: %w", os.NewSyscallError("sched_getaffinity", err))
	}
	var cpus []int
	for i := 0; len(cpus) < set.Count(); i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

func setOf(cpus []int) *unix.CPUSet {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	return &set
}

// BindThread lets the calling thread run on the given CPUs only. What it
// starts afterwards is bound as well. The caller has locked its goroutine to
// the thread.
func BindThread(cpus []int) error {
	if err := unix.SchedSetaffinity(0, setOf(cpus)); err != nil {
		return fmt.Errorf("proc: cpus %v: %w", cpus, os.NewSyscallError("sched_setaffinity", err))
	}
	return nil
}

// BindSelf lets every thread of this process run on the given CPUs only.
// Threads made later are bound as those that make them.
func BindSelf(cpus []int) error {
	set := setOf(cpus)
	// A thread may be made while the list is read, by one that is not bound
	// yet: so again, until there is no new one.
	done := map[int]bool{}
	for {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("proc: %w", err)
		}
		news := false
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || done[tid] {
				continue
			}
			done[tid], news = true, true
			if err := unix.SchedSetaffinity(tid, set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("proc: cpus %v: thread %d: %w", cpus, tid, os.NewSyscallError("sched_setaffinity", err))
			}
		}
		if !news {
			return nil
		}
	}
}

// Start starts cmd bound to cpus, and leaves the calling thread as it was.
// The caller has locked its goroutine to the thread.
func Start(cmd *exec.Cmd, cpus []int) error {
	own, err := Allowed()
	if err != nil {
		return err
	}
	if err := BindThread(cpus); err != nil {
		return err
	}
	err = cmd.Start()
	if e := BindThread(own); e != nil {
		if err == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		err = errors.Join(err, e)
	}
	return err
}
