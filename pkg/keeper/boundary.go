package keeper

import "fmt"

// Verdict is what Judge finds.
type Verdict uint8

const (
	// Boundary: nothing was under way; whoever has the socket and the state
	// that was noted can go on as if nothing had happened.
	Boundary Verdict = iota

	// Reading: the process had read something of which it has noted nothing.
	Reading

	// Writing: the process had noted a write that was not, or not fully, done.
	Writing

	// Ending: our side has shut the connection down.
	Ending

	// Broken: the peer or the network has reset the connection, or it timed out.
	Broken

	// Opening: the handshake is not complete, or it is no connection.
	Opening

	// Uncertain: the peer's data came with its SYN and it has ended. Where
	// its FIN was in the SYN too the kernel has not counted it, and that
	// cannot be told.
	Uncertain
)

var verdictNames = [...]string{
	Boundary:  "boundary",
	Reading:   "reading",
	Writing:   "writing",
	Ending:    "ending",
	Broken:    "broken",
	Opening:   "opening",
	Uncertain: "uncertain",
}

// String is the verdict's name in lower case.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// Judge compares what a process had noted, always before the write to which
// it belongs, with what the kernel says after the process's death. Bytes that
// the process has not read, and bytes that the peer has not acknowledged, are
// safe with the kernel and no obstacle; nor is the peer's FIN, which is read
// again by who comes next. A connection of which both directions differ is
// Reading.
func Judge(noted Position, kernel Kernel) Verdict {
	switch kernel.State {
	case Established, CloseWait:
	case FinWait1, FinWait2, Closing, LastAck, TimeWait:
		return Ending
	case Closed:
		return Broken
	default:
		return Opening
	}
	switch {
	case kernel.FastOpen && kernel.State == CloseWait:
		return Uncertain
	case noted.Consumed != kernel.Consumed:
		return Reading
	case noted.Written != kernel.Written:
		return Writing
	}
	return Boundary
}

// AtBoundary says whether Judge finds Boundary.
func AtBoundary(noted Position, kernel Kernel) bool { return Judge(noted, kernel) == Boundary }
