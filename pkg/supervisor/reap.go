package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reap ends what an orderly stop has left in the service's cgroup: it is
// what the unit runs after the supervisor has exited (ExecStopPost=). If the
// supervisor has left its mark in runtimeDir, Reap kills every process of its
// own cgroup but itself, waits until they are gone, removes the mark and
// returns their number. Without the mark, that is after a crash or before a
// restart, it leaves the workers alone and returns 0; unless stopped says that
// it was a stop all the same, by a signal that came before the supervisor could
// leave a mark. It fails if the cgroup cannot be read or if a process cannot be
// killed.
func Reap(runtimeDir string, stopped bool) (killed int, err error) {
	mark := filepath.Join(runtimeDir, markName)
	switch _, err := os.Stat(mark); {
	case errors.Is(err, os.ErrNotExist):
		if !stopped {
			return 0, nil
		}
	case err != nil:
		return 0, fmt.Errorf("supervisor: reap: %w", err)
	}
	dir, err := ownCgroup()
	if err != nil {
		return 0, fmt.Errorf("supervisor: reap: %w", err)
	}
	if killed, err = killCgroup(dir); err != nil {
		return killed, fmt.Errorf("supervisor: reap: %w", err)
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		return killed, fmt.Errorf("supervisor: reap: %w", err)
	}
	return killed, nil
}

// reapTimeout bounds how long Reap waits for what it has killed.
const reapTimeout = 5 * time.Second

// killCgroup kills, by pidfd, the members of the cgroup but this process,
// and again those that were forked meanwhile.
func killCgroup(dir string) (killed int, err error) {
	deadline := time.Now().Add(reapTimeout)
	for {
		pids, err := members(dir)
		if err != nil || len(pids) == 0 {
			return killed, err
		}
		if time.Now().After(deadline) {
			return killed, fmt.Errorf("%d processes of %s do not die", len(pids), dir)
		}
		for _, pid := range pids {
			ok, err := killMember(dir, pid, deadline)
			if err != nil {
				return killed, err
			}
			if ok {
				killed++
			}
		}
	}
}

// killMember kills a process and waits for its death. Between reading the
// number and opening it, it may have become a stranger's: so it is looked
// for in the cgroup once more when the pidfd is there.
func killMember(dir string, pid int, deadline time.Time) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	defer unix.Close(fd)
	pids, err := members(dir)
	if err != nil {
		return false, err
	}
	found := false
	for _, p := range pids {
		found = found || p == pid
	}
	if !found {
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_send_signal", err))
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("poll", err))
		case n == 0:
			return false, fmt.Errorf("process %d: still alive after SIGKILL", pid)
		default:
			return true, nil
		}
	}
}

// members returns the processes of a cgroup, this one left out. Zombies have
// no command line, so that they are not waited for.
func members(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %q: not a number", dir, f)
		}
		if pid != os.Getpid() && !isZombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func isZombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	// Behind the name, which may hold anything (proc_pid_stat(5)).
	return strings.HasPrefix(string(text[bytes.LastIndexByte(text, ')')+1:]), " Z")
}

// ownCgroup returns the folder of this process' cgroup: that of version 2,
// which a hybrid set-up has beside version 1 under "unified".
func ownCgroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			dir := filepath.Join(root, path)
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
				return dir, nil
			}
		}
		return "", fmt.Errorf("cgroup %q is not mounted", path)
	}
	return "", errors.New("/proc/self/cgroup: no cgroup of version 2")
}
