package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Switches counts how often threads have gone to sleep: each wakes up once
// for it.
type Switches map[int]uint64 // by thread id

// SwitchesOf reads the voluntary context switches of every thread of a
// process.
func SwitchesOf(pid int) (Switches, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	s := Switches{}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		path := filepath.Join(dir, e.Name(), "status")
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("proc: %w", err)
		}
		if s[tid], err = parseSwitches(b); err != nil {
			return nil, fmt.Errorf("proc: %s: %w", path, err)
		}
	}
	return s, nil
}

// parseSwitches finds the line "voluntary_ctxt_switches: 1234".
func parseSwitches(b []byte) (uint64, error) {
	for line := range bytes.Lines(b) {
		if n, ok := bytes.CutPrefix(line, []byte("voluntary_ctxt_switches:")); ok {
			return strconv.ParseUint(string(bytes.TrimSpace(n)), 10, 64)
		}
	}
	return 0, errors.New("no line voluntary_ctxt_switches")
}

// Since returns how many there were from earlier to s. Threads that are new
// count from their begin; of one that has ended what it did last is missing.
func (s Switches) Since(earlier Switches) uint64 {
	var n uint64
	for tid, now := range s {
		n += now - earlier[tid]
	}
	return n
}
