package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/proc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// compare runs the command as main does, on a thread of its own.
func compare(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(procs)
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// quick are flags for a measurement that is over in a second.
func quick(args ...string) []string {
	return append([]string{"--tables", "unpinned", "--cycles", "2", "--burst", "20ms", "--warmup", "5ms",
		"--sizes", "64", "--pipelines", "1", "--connections", "4", "--max-others", "1000"}, args...)
}

func TestServersAreStartedMeasuredAndEnded(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("c-floor is compiled by gcc, which is not here")
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	file := filepath.Join(tmp, "out.json")
	code, stdout, stderr := compare(t, quick("--peers", "c-floor,go-net", "--json", file)...)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Scenarios) != 1 || len(r.Scenarios[0].Bursts) != 4 || len(r.Scenarios[0].Figures) != 2 {
		t.Fatalf("got %s, want 1 scenario of 2 peers and 4 bursts", b)
	}
	for _, b := range r.Scenarios[0].Bursts {
		if b.Messages == 0 || b.CPUSeconds <= 0 || b.Errors.Total() > 0 || b.Memory.PSS == 0 {
			t.Errorf("got burst %+v, want messages, CPU time, memory and no errors", b)
		}
	}
	for _, want := range []string{"c-floor", "go-net", "1.00 [1.00 1.00]"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in the table:\n%s", want, stdout)
		}
	}
	tree, err := proc.Tree(os.Getpid())
	if err != nil || !slices.Equal(tree, []int{os.Getpid()}) {
		t.Errorf("processes %v are left, %v, want none but this one", tree, err)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "mainstay-bench-*")); left != nil {
		t.Errorf("%v is left", left)
	}
}

func TestAServerThatCannotBeMeasuredEndsTheRun(t *testing.T) {
	for _, c := range []struct{ name, peer, say string }{
		{"ends at once", "x=/bin/sh {port}", "x: ended at its start: exit status"},
		{"is not there", "x=/no/such/server {port}", "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := compare(t, quick("--peers", "", "--peer", c.peer)...)
			if code != 1 || !strings.Contains(stderr, c.say) {
				t.Errorf("exit code %d, want 1 and %q in:\n%s", code, c.say, stderr)
			}
		})
	}
}

func TestACommandLineThatMakesNoSenseIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		say  string
	}{
		{"help", []string{"--help"}, 0, "exit codes"},
		{"argument", []string{"here"}, 2, "want flags only"},
		{"flag", []string{"--speed", "1"}, 2, "-speed"},
		{"table", []string{"--tables", "three-core"}, 2, `table "three-core"`},
		{"no table", []string{"--tables", ""}, 2, "no tables"},
		{"size", []string{"--sizes", "64,8"}, 2, `--sizes: "8"`},
		{"pipeline", []string{"--pipelines", "0"}, 2, "--pipelines"},
		{"no connections", []string{"--connections", ","}, 2, "--connections: empty"},
		{"workers", []string{"--workers", "0"}, 2, "0 workers"},
		{"burst", []string{"--burst", "0"}, 2, "burst 0s"},
		{"peer's name", quick("--peers", "nginx"), 1, `peer "nginx"`},
		{"no peer", quick("--peers", ""), 1, "no peers"},
		{"peer without a port", quick("--peers", "", "--peer", "x=true"), 1, "{port}"},
		{"peer twice", quick("--peers", "", "--peer", "x=a {port}", "--peer", "x=b {port}"), 1, "named twice"},
		{"no server", quick("--peers", "mainstay", "--server", "/no/such/server"), 1, "build it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := compare(t, c.args...)
			if code != c.code || !strings.Contains(stderr, c.say) {
				t.Errorf("exit code %d, want %d and %q in:\n%s", code, c.code, c.say, stderr)
			}
		})
	}
}
