package keeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// memory is what this process has mapped, as far as a keeper needs to know.
type memory struct {
	private []span // writable and copied on write
	shared  []span // writable and shared
	args    span   // of the arguments, on the stack the process was started with; empty if they aren't there
}

// readMemory asks the kernel: proc_pid_maps(5), proc_pid_stat(5).
func readMemory() (*memory, error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	m, stack, err := parseMaps(string(maps))
	if err != nil {
		return nil, err
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return nil, err
	}
	// Who has moved its arguments elsewhere (PR_SET_MM) has its reasons.
	args, err := parseArgs(string(stat))
	if err != nil {
		return nil, err
	}
	if stack.start <= args.start && args.start < args.end && args.end <= stack.end {
		m.args = args
	}
	return m, nil
}

func (m *memory) isShared(at uintptr) bool {
	for _, s := range m.shared {
		if s.start <= at && at < s.end {
			return true
		}
	}
	return false
}

// parseMaps reads /proc/pid/maps. stack is that of the first thread, where
// arguments and environment lie; it isn't among the private spans, so that a
// keeper has its worker's environment, by which it can be told whose it is.
//
//	00400000-00452000 rw-p 00000000 08:02 173521   /usr/bin/mainstay
func parseMaps(text string) (m *memory, stack span, err error) {
	m = &memory{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 5 || len(fields[1]) != 4 {
			return nil, span{}, fmt.Errorf("/proc/self/maps: line %q", line)
		}
		s, err := parseSpan(fields[0])
		if err != nil {
			return nil, span{}, fmt.Errorf("/proc/self/maps: line %q: %w", line, err)
		}
		writable, shared := fields[1][1] == 'w', fields[1][3] == 's'
		switch {
		case len(fields) == 6 && fields[5] == "[stack]":
			stack = s
		case writable && shared:
			m.shared = append(m.shared, s)
		case writable:
			m.private = append(m.private, s)
		}
	}
	return m, stack, nil
}

func parseSpan(text string) (span, error) {
	first, last, ok := strings.Cut(text, "-")
	if !ok {
		return span{}, fmt.Errorf("%q is no range of addresses", text)
	}
	start, err := strconv.ParseUint(first, 16, 64)
	if err != nil {
		return span{}, err
	}
	end, err := strconv.ParseUint(last, 16, 64)
	if err != nil {
		return span{}, err
	}
	return span{uintptr(start), uintptr(end)}, nil
}

// parseArgs reads where the arguments lie, fields 48 and 49 of /proc/pid/stat.
// The second field is a name in parentheses that may hold anything.
func parseArgs(text string) (span, error) {
	const third, argStart, argEnd = 3, 48, 49
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) <= argEnd-third {
		return span{}, fmt.Errorf("/proc/self/stat: %d fields after the name, want more than %d", len(fields), argEnd-third)
	}
	start, err := strconv.ParseUint(fields[argStart-third], 10, 64)
	if err != nil {
		return span{}, fmt.Errorf("/proc/self/stat: arg_start: %w", err)
	}
	end, err := strconv.ParseUint(fields[argEnd-third], 10, 64)
	if err != nil {
		return span{}, fmt.Errorf("/proc/self/stat: arg_end: %w", err)
	}
	return span{uintptr(start), uintptr(end)}, nil
}
