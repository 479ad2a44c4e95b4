package unit

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where a machine is looked at. The zero value of a field leaves the
// check out.
type Machine struct {
	Release string // of the kernel, as uname(2) says it: 6.1.0-18-amd64
	Kernel  string // where sysctls are read: /proc/sys
	Journal string // path of journald's socket: /run/systemd/journal/socket
	Clock   bool   // whether the clock is set by somebody is looked at
}

// ThisMachine is the machine that the process runs on.
func ThisMachine() Machine {
	m := Machine{Kernel: "/proc/sys", Journal: "/run/systemd/journal/socket", Clock: true}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Release = unix.ByteSliceToString(name.Release[:])
	}
	return m
}

// Kernels that matter, as major and minor.
var (
	kernelGetfd = version{5, 6}  // pidfd_getfd(2)
	kernelExit  = version{6, 15} // PIDFD_GET_INFO tells how another's child has died
)

type version struct{ major, minor int }

func (v version) before(o version) bool {
	return cmp.Or(cmp.Compare(v.major, o.major), cmp.Compare(v.minor, o.minor)) < 0
}

// parseVersion reads the beginning of a kernel's release.
func parseVersion(text string) (v version, ok bool) {
	major, rest, ok := strings.Cut(text, ".")
	if !ok {
		return v, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	var err, err2 error
	v.major, err = strconv.Atoi(major)
	v.minor, err2 = strconv.Atoi(rest[:end])
	return v, err == nil && err2 == nil
}

// LintMachine says what of a machine breaks the promises of a service, whatever
// its units say. The limits that depend on units are Lint's.
func LintMachine(m Machine) []Finding {
	var found []Finding
	add := func(key string, severity Severity, got, want, why string) {
		found = append(found, Finding{Unit: "machine", Key: key, Severity: severity, Got: got, Want: want, Why: why})
	}
	if v, ok := parseVersion(m.Release); ok {
		switch {
		case v.before(kernelGetfd):
			add("kernel", Error, m.Release, "5.6 or later", "it has no pidfd_getfd(2): connections end with their worker")
		case v.before(kernelExit):
			add("kernel", Warning, m.Release, "6.15 or later", "how a worker has died that outlived its supervisor is not told: its deaths are of the class unknown; nothing else depends on it")
		}
	}
	if m.Kernel != "" {
		text, err := os.ReadFile(filepath.Join(m.Kernel, "kernel/yama/ptrace_scope"))
		if scope := strings.TrimSpace(string(text)); err == nil && (scope == "2" || scope == "3") {
			add("kernel.yama.ptrace_scope", Error, scope, "0 or 1", "nobody but root reaches the connections of a worker that died: they end with it")
		}
	}
	if m.Journal != "" {
		// Without a word: that it is there is all that is asked.
		c, err := net.Dial("unixgram", m.Journal)
		if err != nil {
			add("journald", Warning, err.Error(), "its socket "+m.Journal, "what the service logs waits in its queue, and is dropped when that is full")
		} else {
			c.Close()
		}
	}
	if m.Clock {
		var t unix.Timex
		if state, err := unix.Adjtimex(&t); err == nil && (state == timeError || t.Status&unix.STA_UNSYNC != 0) {
			add("clock", Warning, fmt.Sprintf("not synchronized (error up to %v)", (time.Duration(t.Maxerror)*time.Microsecond).Round(time.Millisecond)), "one that NTP sets", "certificates, and times in the log, are judged by it; heartbeats and deadlines are not")
		}
	}
	return found
}

// timeError is adjtimex(2)'s TIME_ERROR.
const timeError = 5
