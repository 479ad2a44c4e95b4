//go:build !failpoint

package failpoint

// Enabled says whether the program was built with the tag.
const Enabled = false

// Here marks a step.
func Here(name string) {}
