package main

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/proc"
)

func TestMain(m *testing.M) {
	crowd.Member()
	goleak.VerifyTestMain(m)
}

func TestAConnectionsPartIsTheDifferenceDivided(t *testing.T) {
	s := &sample{
		Before: proc.Memory{PSS: 4_000_000, Anon: 3_000_000, Shared: 100_000},
		After:  proc.Memory{PSS: 9_000_000, Anon: 7_000_000, Shared: 1_380_000},
	}
	s.divide(10_000)
	if s.Each != 500 || s.Anon != 400 || s.Shared != 128 {
		t.Errorf("got %+v, want 500, of them 400 and 128", s)
	}
	s.After = proc.Memory{PSS: 3_000_000}
	if s.divide(10_000); s.Each != -100 {
		t.Errorf("after it has shrunk: got %v, want -100", s.Each)
	}
}

func TestFiguresAreMediansHeldAgainstTheMarks(t *testing.T) {
	r := &result{Connections: 10, Watch: 20, Samples: []*sample{
		{Each: 400, Anon: 300, Supervisor: proc.Memory{RSS: 14 << 20}, Wakeups: 0},
		{Each: 900, Anon: 300, Supervisor: proc.Memory{RSS: 16 << 20}, Wakeups: 1},
		{Each: 500, Anon: 300, Supervisor: proc.Memory{RSS: 15 << 20}, Wakeups: 2},
	}}
	r.figure()
	met := []bool{true, true, false}
	got := []float64{500, 15, 1}
	for i, m := range r.Marks {
		if m.Met != met[i] || m.Got != got[i] {
			t.Errorf("mark %+v, want %v and %v", m, got[i], met[i])
		}
	}
	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{"500 [450 700]", "15.0 [14.5 15.5]", "1.00 [0.50 1.50]", "MISSED"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the table:\n%s", want, &out)
		}
	}
}

func TestConnectionsFitTheDescriptors(t *testing.T) {
	for limit, want := range map[uint64]int{20_000: 18_000, 1 << 63: 18_000, 19_000: 18_000, 5000: 4000, 100: 2} {
		if got := mostConnections(limit); got != want {
			t.Errorf("%d: got %d, want %d", limit, got, want)
		}
	}
}

func TestWakeUpsOfAProcessAreCounted(t *testing.T) {
	ended := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	var s sample
	err := s.watch(t.Context(), os.Getpid(), 200*time.Millisecond)
	close(stop)
	<-ended
	if err != nil || s.Wakeups <= 0 {
		t.Errorf("got %v a second, %v, want some", s.Wakeups, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.watch(ctx, os.Getpid(), time.Hour); err == nil {
		t.Error("called off: got no error")
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "What is measured"},
		{[]string{"--speed"}, 2, "not defined"},
		{[]string{"extra"}, 2, "want no arguments"},
		{[]string{"--clients", "0"}, 2, "see idle --help"},
		{[]string{"--watch", "0"}, 2, "see idle --help"},
		{[]string{"--peer", "c-floor"}, 2, "see idle --help"},
		{[]string{"--server", "/nonexistent/server"}, 1, "build it"},
	} {
		var out bytes.Buffer
		if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: exit code %d, %s, want %d and %q", tt.args, code, &out, tt.code, tt.want)
		}
	}
}
