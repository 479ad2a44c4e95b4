package system

import (
	"os"
	"regexp"
	"testing"
)

// unitWord is the name in deploy/systemd that gives way to a machine's prefix.
var unitWord = regexp.MustCompile(`\bapp\b`)

// thisHost is the host itself, whose PID 1 is systemd. The units of the tests
// have names, directories and ports of their own there.
func thisHost(t *testing.T) *machine {
	t.Helper()
	lock(t)
	m := &machine{
		name: "this host", prefix: "mainstay-test", proc: "/proc/self",
		// Not in /run, which is often mounted noexec, nor in /tmp, which the
		// service does not see.
		program: "/var/lib/mainstay-test.program/mainstay",
	}
	t.Cleanup(func() { os.RemoveAll("/var/lib/mainstay-test.program") })
	m.expectVersion(t, 0)
	return m
}
