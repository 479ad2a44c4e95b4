package http1

import "testing"

func TestValuesAreLookedAtEightBytesAtATime(t *testing.T) {
	const value = "\x80 visible \xff\tvalues"
	for at := range len(value) {
		for c := range 256 {
			b := []byte(value)
			b[at] = byte(c)
			if got, want := allValue(b), all(b, isValue); got != want {
				t.Errorf("%q: got %v, want %v", b, got, want)
			}
		}
	}
}
