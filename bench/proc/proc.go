// Package proc reads from /proc what a measurement needs: the processes of a
// server, their CPU time and memory, and what the whole machine is doing; and
// it binds processes to CPUs.
//
// CPU time comes from schedstat, in nanoseconds and by thread, because the
// time of a burst is short beside the ticks of /proc/PID/stat. A process is
// named by its PID; the caller sees to it that it lives. Start reading at
// Tree and Usage. The formats are those of proc(5).
package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Tree returns the PIDs of root and of all its descendants, root first, then
// in ascending order. The error is that /proc cannot be read, or that there
// is no root.
func Tree(root int) ([]int, error) {
	children := map[int][]int{}
	found := false
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil { // it has ended
			continue
		}
		parent, err := parseParent(stat)
		if err != nil {
			return nil, fmt.Errorf("proc: /proc/%d/stat: %w", pid, err)
		}
		children[parent] = append(children[parent], pid)
		found = found || pid == root
	}
	if !found {
		return nil, fmt.Errorf("proc: process %d: %w", root, os.ErrProcessDone)
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	slices.Sort(tree[1:])
	return tree, nil
}

// parseParent returns field 4 of a stat line. The name in field 2 may hold
// blanks and parentheses.
func parseParent(stat []byte) (int, error) {
	_, rest, ok := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(") "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 2 {
		return 0, fmt.Errorf("%q: want a name in parentheses, a state and a parent", stat)
	}
	return strconv.Atoi(string(f[1]))
}

// Usage is the CPU time that threads had used at one moment.
type Usage struct {
	threads map[int]time.Duration // by thread id
	byPID   map[int][]int         // thread ids
}

// UsageOf reads the CPU time of every thread of the processes. A process that
// has ended has no threads.
func UsageOf(pids []int) (*Usage, error) {
	u := &Usage{threads: map[int]time.Duration{}, byPID: map[int][]int{}}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("proc: %w", err)
		}
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			path := filepath.Join(dir, e.Name(), "schedstat")
			b, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("proc: %w", err)
			}
			if u.threads[tid], err = parseSchedstat(b); err != nil {
				return nil, fmt.Errorf("proc: %s: %w", path, err)
			}
			u.byPID[pid] = append(u.byPID[pid], tid)
		}
	}
	return u, nil
}

// parseSchedstat returns the first field: the time spent on a CPU, in ns.
func parseSchedstat(b []byte) (time.Duration, error) {
	f := bytes.Fields(b)
	if len(f) != 3 {
		return 0, fmt.Errorf("%q: want three numbers", b)
	}
	n, err := strconv.ParseInt(string(f[0]), 10, 64)
	return time.Duration(n), err
}

// Spent is the CPU time used between two moments.
type Spent struct {
	Total time.Duration
	// Busiest is what the process that used most of it used.
	Busiest time.Duration
	// Complete is false if a thread ended in between: what it used last is
	// not in Total.
	Complete bool
}

// Since returns what was used from earlier to u. Threads that are new count
// from their begin.
func (u *Usage) Since(earlier *Usage) Spent {
	s := Spent{Complete: true}
	for _, tids := range u.byPID {
		var d time.Duration
		for _, tid := range tids {
			d += u.threads[tid] - earlier.threads[tid]
		}
		s.Total += d
		s.Busiest = max(s.Busiest, d)
	}
	for tid := range earlier.threads {
		if _, ok := u.threads[tid]; !ok {
			s.Complete = false
		}
	}
	return s
}

// Memory is what processes occupy together, in bytes.
type Memory struct {
	RSS uint64 `json:"rss_bytes"` // pages that several of them share count for each
	PSS uint64 `json:"pss_bytes"` // and here once, divided among all who share them

	// Parts of PSS: heap and stacks, what is mapped from files, memory that
	// processes share.
	Anon   uint64 `json:"pss_anon_bytes"`
	File   uint64 `json:"pss_file_bytes"`
	Shared uint64 `json:"pss_shmem_bytes"`
}

// MemoryOf adds up smaps_rollup of the processes. It takes the kernel about a
// millisecond for each.
func MemoryOf(pids []int) (Memory, error) {
	var sum Memory
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		b, err := os.ReadFile(path)
		if err != nil {
			return Memory{}, fmt.Errorf("proc: %w", err)
		}
		m, err := parseRollup(b)
		if err != nil {
			return Memory{}, fmt.Errorf("proc: %s: %w", path, err)
		}
		sum.RSS += m.RSS
		sum.PSS += m.PSS
		sum.Anon += m.Anon
		sum.File += m.File
		sum.Shared += m.Shared
	}
	return sum, nil
}

// parseRollup finds the lines "Rss: 1234 kB", "Pss: 1234 kB", and those of
// Pss's parts, which Linux tells since 5.10.
func parseRollup(b []byte) (Memory, error) {
	var m Memory
	of := map[string]*uint64{"Rss:": &m.RSS, "Pss:": &m.PSS, "Pss_Anon:": &m.Anon, "Pss_File:": &m.File, "Pss_Shmem:": &m.Shared}
	found := 0
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) != 3 || f[2] != "kB" || of[f[0]] == nil {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return Memory{}, err
		}
		*of[f[0]] = n << 10
		if f[0] == "Rss:" || f[0] == "Pss:" {
			found++
		}
	}
	if found != 2 {
		return Memory{}, fmt.Errorf("%d lines Rss and Pss, want 2", found)
	}
	return m, nil
}

// Busy returns the time that all CPUs together have spent on anything since
// the machine started: in programs, in the kernel and in interrupts, but not
// what the host gave to others (steal). It goes in ticks of 10 ms.
func Busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("proc: %w", err)
	}
	d, err := parseBusy(b)
	if err != nil {
		return 0, fmt.Errorf("proc: /proc/stat: %w", err)
	}
	return d, nil
}

// tick is a unit of /proc/stat: USER_HZ is 100 on amd64 and arm64.
const tick = 10 * time.Millisecond

// parseBusy reads the first line:
//
//	cpu  user nice system idle iowait irq softirq steal guest guest_nice
//
// guest is a part of user.
func parseBusy(b []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("%q: want cpu and seven numbers at least", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}
