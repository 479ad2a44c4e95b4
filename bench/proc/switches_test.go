package proc

import (
	"os"
	"testing"
)

func TestSleepsAreCountedForEachThread(t *testing.T) {
	n, err := parseSwitches([]byte("Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n"))
	if err != nil || n != 150 {
		t.Errorf("got %d, %v, want 150", n, err)
	}
	if _, err := parseSwitches([]byte("nonvoluntary_ctxt_switches:\t545\n")); err == nil {
		t.Error("no voluntary switches: got no error")
	}
	if got := (Switches{1: 12, 3: 5}).Since(Switches{1: 10, 2: 7}); got != 7 {
		t.Errorf("got %d, want 2 of thread 1 and 5 of thread 3", got)
	}
	if s, err := SwitchesOf(os.Getpid()); err != nil || len(s) == 0 {
		t.Errorf("of this process: %v, %v", s, err)
	}
}
