package supervisor

import (
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Classes of a worker's death.
const (
	ClassRequested = "requested" // it was asked to leave, and left with 0
	ClassExit      = "exit"      // exited by itself, with any status
	ClassSignal    = "signal"    // killed by a signal that we did not send
	ClassOOM       = "oom"       // killed by the kernel for want of memory
	ClassStart     = "start"     // died before it was ready, however
	ClassHung      = "hung"      // killed by us: it hung, or had too much memory
	ClassUnknown   = "unknown"   // it was not our child, and the kernel does not tell
	ClassOverdue   = "overdue"   // killed by us: not ready in time, or its drain did not end
)

// Exit says how a process ended.
type Exit struct {
	Class   string
	Unknown bool          // how is not known
	Code    int           // exit status, if Signal is 0
	Signal  unix.Signal   // what killed it, else 0
	Core    bool          // dumped core
	Words   string        // the last it said: its reason, a panic, or the end of its output
	Dump    string        // what the Go runtime wrote down of it, as far as it was kept
	Err     error         // it could not be started at all
	CPU     time.Duration // processor time that it and those it has waited for have used
}

// String tells the exit without the last words.
func (e Exit) String() string {
	switch {
	case e.Err != nil:
		return e.Err.Error()
	case e.Unknown:
		return "exit status unknown"
	case e.Class == ClassOOM:
		return "killed by the kernel: out of memory"
	case e.Signal != 0 && e.Core:
		return fmt.Sprintf("killed by %s, core dumped", unix.SignalName(e.Signal))
	case e.Signal != 0:
		return "killed by " + unix.SignalName(e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

func (e Exit) fields() []zap.Field {
	f := []zap.Field{zap.String("class", e.Class), zap.String("status", e.String())}
	if e.Words != "" {
		f = append(f, zap.String("last_words", e.Words))
	}
	return f
}

// classify gives the exit its class: the same status means another thing in
// another state.
func (e *Exit) classify(in state, oom bool) {
	switch {
	case in == spawned || in == unready:
		e.Class = ClassStart
	case in == late || in == overdue:
		e.Class = ClassOverdue
	case in == hung:
		e.Class = ClassHung
	case e.Unknown:
		e.Class = ClassUnknown
	case oom:
		e.Class = ClassOOM
	case in == draining && (e.Signal == unix.SIGTERM || e.Signal == 0 && e.Code == 0):
		e.Class = ClassRequested // by the signal itself, if it could not read messages yet
	case e.Signal != 0:
		e.Class = ClassSignal
	default:
		e.Class = ClassExit
	}
}
