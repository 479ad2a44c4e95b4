//go:build !race

package worker

// raceEnabled says that the race detector adds memory and allocations.
const raceEnabled = false
