//go:build !race

package conn

// raceEnabled says that the race detector adds memory and allocations.
const raceEnabled = false
