package signals

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestMain looks first whether this package had the signal of a restart before
// anybody called it: what it is sent here it must be told later.
func TestMain(m *testing.M) {
	if err := syscall.Kill(os.Getpid(), Restart); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func receive(t *testing.T, c <-chan os.Signal) os.Signal {
	t.Helper()
	select {
	case sig := <-c:
		return sig
	case <-time.After(30 * time.Second):
		t.Fatal("no signal within 30 s")
	}
	return nil
}

func TestSignalsAreCollectedBeforeSomebodyReceivesThem(t *testing.T) {
	c := Watch()
	defer Unwatch()
	if got := receive(t, c); got != Restart {
		t.Errorf("received %v, want the signal that was sent before Watch", got)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU, Restart} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, Watch()); got != sig {
			t.Errorf("received %v, want %v", got, sig)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGPIPE); err != nil { // must not kill
		t.Fatal(err)
	}
}
