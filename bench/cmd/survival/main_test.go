package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/report"
)

// TestMain lets the test binary be the processes that a measurement needs.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Stdin, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

func TestEveryPartMeasuresASmallService(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	server := filepath.Join(t.TempDir(), "server")
	build := exec.Command("go", "build", "-o", server, "./cmd/server")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var out, errs bytes.Buffer
	args := []string{"--server", server, "--rounds", "1", "--connections", "130", "--each", "50", "--idle", "60", "--busy", "20", "--watch", "100ms", "--json", "-"}
	if code := run(args, &out, &errs); code != 0 {
		t.Fatalf("exit code %d, %s", code, &errs)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if h := r.Harvest; h == nil || h.Lost != 0 || len(h.Ours) != 1 || h.Ours[0] <= 0 || h.Bare[0] <= 0 || h.Longest[0] <= 0 || h.Longest[0] > h.Ours[0] {
		t.Errorf("harvest %+v, want a round in which nobody was lost", h)
	}
	if m := r.Memory; m == nil || m.Connections != 150 || len(m.Keepers) != 4 || m.Supervisor <= 0 {
		t.Errorf("memory %+v, want that of a supervisor and of four keepers, its own included", m)
	}
	if len(r.Survivors) != 2 || r.Survivors[0].Lost[0] != 0 || r.Survivors[0].Longest[0] <= 0 {
		t.Errorf("survivors %+v, want all of the idle", r.Survivors)
	}
	if len(r.Stalls) != 6 {
		t.Errorf("stalls %+v, want 6 kinds", r.Stalls)
	}
	for _, s := range r.Stalls {
		if len(s.Longest) != 1 || s.Longest[0] <= 0 || s.Quiet[0] <= 0 {
			t.Errorf("stall %+v, want one of each", s)
		}
	}
	if a := r.Adopt; a == nil || a.Lost != 0 || len(a.Ready) != 1 || a.Ready[0] <= 0 || a.Adopted[0] <= 0 {
		t.Errorf("adopt %+v, want a round in which nobody was lost", a)
	}
	if len(r.Marks) != 5 {
		t.Errorf("marks %+v, want 5", r.Marks)
	}
}

func TestALostIdleConnectionIsTold(t *testing.T) {
	for _, tt := range []struct {
		name, part string
		result     result
		lost       bool
		want       string
	}{
		{"none in harvest", "harvest", result{Harvest: &harvest{Connections: 10, Ours: []float64{6, 8}, Bare: []float64{2, 4}, Longest: []float64{5, 7}}}, false, "2.50 [2.25 2.75]"},
		{"one in harvest", "harvest", result{Harvest: &harvest{Ours: []float64{6}, Bare: []float64{2}, Longest: []float64{5}, Lost: 1}}, true, "lost"},
		{"a busy one", "survivors", result{Survivors: []*survivors{{"idle", 4, []int{0, 0}, []float64{1, 1}}, {"busy", 5, []int{1, 0}, []float64{1, 1}}}}, false, "9 (90 %)"},
		{"an idle one", "survivors", result{Survivors: []*survivors{{"idle", 4, []int{0, 1}, []float64{1, 1}}}}, true, "7 (87.5 %)"},
		{"one in adopt", "adopt", result{Adopt: &adoption{Ready: []float64{1}, Adopted: []float64{2}, Lost: 3}}, true, "READY=1"},
	} {
		var out bytes.Buffer
		if lost := tt.result.print(&out, tt.part); lost != tt.lost || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: lost %v, want %v and %q:\n%s", tt.name, lost, tt.lost, tt.want, &out)
		}
	}
}

func TestMarksAreHeldAgainstMedians(t *testing.T) {
	r := result{
		Harvest: &harvest{Ours: []float64{90, 6, 8}, Bare: []float64{3, 2, 4}, Longest: []float64{5, 7, 1}},
		Memory:  &memory{Supervisor: 21, Keepers: []float64{1, 1.5, 0.5}, CPU: 0.2},
	}
	r.print(&bytes.Buffer{}, "harvest")
	r.print(&bytes.Buffer{}, "memory")
	want := []report.Mark{
		report.NewMark("harvest, times the bare loop", 3, 3),
		report.NewMark("supervisor, MiB resident", 21, 20),
		report.NewMark("largest keeper, MiB resident", 1.5, 1.5),
		report.NewMark("idle supervisor, ms of CPU time a second", 0.2, 1),
		report.NewMark("idle keepers, ms of CPU time a second", 0, 0),
	}
	for i, m := range r.Marks {
		if m != want[i] {
			t.Errorf("mark %+v, want %+v", m, want[i])
		}
	}
	if len(r.Marks) != len(want) {
		t.Errorf("%d marks, want %d", len(r.Marks), len(want))
	}
}

func TestTheBareLoopTakesEveryConnectionEachRound(t *testing.T) {
	f, err := startFloor(150)
	if err != nil {
		t.Fatal(err)
	}
	defer f.stop()
	for range 2 {
		if took, err := f.round(); err != nil || took <= 0 || took > time.Minute {
			t.Errorf("%v, %v", took, err)
		}
	}
	if len(f.fds) != 150 {
		t.Errorf("%d descriptors, want 150", len(f.fds))
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "usage:"},
		{[]string{"--speed"}, 2, "not defined"},
		{[]string{"extra"}, 2, "want no arguments"},
		{[]string{"--parts", "harvest,afterlife"}, 2, "see survival --help"},
		{[]string{"--rounds", "0"}, 2, "see survival --help"},
		{[]string{"--each", "19000"}, 2, "see survival --help"},
		{[]string{"--parts", "adopt", "--server", "/nonexistent/server"}, 1, "build it"},
	} {
		var out bytes.Buffer
		if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: exit code %d, %s, want %d and %q", tt.args, code, &out, tt.code, tt.want)
		}
	}
}
