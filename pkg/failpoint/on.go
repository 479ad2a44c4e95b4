//go:build failpoint

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled says whether the program was built with the tag.
const Enabled = true

var file = os.Getenv(Variable)

// Here marks a step.
func Here(name string) {
	if file == "" {
		return
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	words := strings.Fields(string(text))
	if len(words) < 2 || words[0] != name {
		return
	}
	var rest []string
	var pause time.Duration
	switch words[1] {
	case "kill":
		rest = words[2:]
	case "stall":
		if len(words) < 3 {
			return
		}
		if pause, err = time.ParseDuration(words[2]); err != nil {
			return
		}
		rest = words[3:]
	default:
		return
	}
	if len(rest) > 0 && rest[0] != strconv.Itoa(os.Getpid()) {
		return
	}
	if os.Remove(file) != nil {
		return // another process was quicker
	}
	if words[1] == "kill" {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {} // this thread, too, goes no further
	}
	time.Sleep(pause)
}
