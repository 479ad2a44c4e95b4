//go:build nojournal

package conn

const journaling = false
