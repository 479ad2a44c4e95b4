// Package failpoint marks the steps at which tests end or stop a process.
//
// A step is named where it stands, by Here, which is nothing at all unless the
// program is built with the tag failpoint. If it is, and the environment
// variable of the name Variable has the name of a file, whoever comes to a
// step that the file names takes the file away and does what it says:
//
//	NAME kill [PID]           ends this process as kill -9 does
//	NAME stall DURATION [PID] does not go on for so long
//
// With a PID, only that process does. So a point is armed while the service
// runs, in all its processes or in one, it fails once, and that it has is seen
// by the file's absence.
//
// Invariant: without the tag, no program looks at the environment or at a file
// for this. Anybody may call Here on any goroutine, with whatever is locked.
package failpoint

// Variable names the environment variable that names the file.
const Variable = "MAINSTAY_FAILPOINT"
