//go:build !nojournal

package conn

// journaling says whether journals are written. Only a program that measures
// what that costs is built without.
const journaling = true
