//go:build race

package websocket

// Under the race detector a sync.Pool forgets what it was given, at random.
const raceEnabled = true
