package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/stats"
)

func TestMain(m *testing.M) {
	crowd.Member()
	goleak.VerifyTestMain(m)
}

func ramp(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestServersAreRampedUpAndEnded(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("c-floor is compiled by gcc, which is not here")
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	file := filepath.Join(tmp, "out.json")
	code, stdout, stderr := ramp(t, "--peers", "c-floor,go-net", "--connections", "1100", "--rate", "10000", "--rounds", "2", "--max-others", "1000", "--json", file)
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
	if len(r.Samples) != 8 || len(r.Figures) != 4 || len(r.Marks) != 0 {
		t.Fatalf("got %s, want 2 servers in 2 ways and 2 rounds, and no mark without Mainstay", b)
	}
	for _, s := range r.Samples {
		if s.Rate <= 0 || s.PerCPU <= 0 || s.P50 <= 0 || s.Max < s.P999 || s.Near <= 0 || s.NearFD < 1022 || s.NearFD > 1026 || s.MaxFD == 0 || s.Failed > 0 {
			t.Errorf("got %+v, want a rate, times, descriptors around 1024 and none failed", s)
		}
	}
	tree, err := proc.Tree(os.Getpid())
	if err != nil || len(tree) != 1 {
		t.Errorf("processes %v are left, %v, want none but this one", tree, err)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "mainstay-bench-*")); left != nil {
		t.Errorf("%v is left", left)
	}
}

func TestDescriptorsNearAPowerOfTwoAreFound(t *testing.T) {
	for fd, want := range map[int]bool{510: false, 512: false, 1021: false, 1022: true, 1024: true, 1026: true, 1027: false, 2046: true, 8194: true, 8195: false, 3000: false} {
		if got := nearPower(fd, 2); got != want {
			t.Errorf("%d: got %v, want %v", fd, got, want)
		}
	}
	if !nearPower(4096, 0) || nearPower(4097, 0) {
		t.Error("with 0: want the power of two alone")
	}
}

func TestAQuantileIsOneOfThoseMeasured(t *testing.T) {
	var v []time.Duration
	for i := range 1000 {
		v = append(v, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 500, 0.99: 990, 0.999: 999, 1: 1000} {
		if got := quantile(v, q); got != want {
			t.Errorf("%v: got %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of none: got %d", got)
	}
}

func TestASampleKnowsTheDescriptorOfTheSlowest(t *testing.T) {
	at := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	}
	c := &crowd.Crowd{Late: 7 * time.Microsecond}
	fds := map[netip.AddrPort]int{}
	for i := range 10 {
		c.Connections = append(c.Connections, crowd.Connection{From: at(uint16(100 + i)), Open: time.Second, Answered: time.Second + time.Duration(10+i)*time.Microsecond})
		fds[at(uint16(100+i))] = 1015 + i // the last is 1024
	}
	c.Connections[2].Answered += time.Millisecond
	delete(fds, at(105))
	s := (&plan{near: 2}).sample(c, fds)
	if s.MaxFD != 1017 || s.Max != 1012 || s.NearFD != 1024 || s.Near != 19 || s.P50 != 15 || s.P999 != 1012 || s.Late != 7 {
		t.Errorf("got %+v", s)
	}
}

func TestRatiosAreTakenInsideARound(t *testing.T) {
	var samples []*sample
	for round, slow := range []float64{1, 3, 2} { // the machine's own slowness
		samples = append(samples,
			&sample{Round: round, Peer: "mainstay", Way: rush, P999: 12 * slow, PerCPU: 90 / slow, Near: 6 * slow},
			&sample{Round: round, Peer: "c-floor", Way: rush, P999: 10 * slow, PerCPU: 100 / slow},
			&sample{Round: round, Peer: "mainstay", Way: paced, P999: 1, Failed: 2})
	}
	samples = append(samples, &sample{Round: 3, Peer: "mainstay", Way: rush, P999: 1e6, LeftOut: "others"}, &sample{Round: 3, Peer: "c-floor", Way: rush, P999: 1})
	f := figuresOf(samples, "mainstay", rush)
	if apart(f.P999Ratio, 1.2) || apart(f.CPURatio, 0.9) || apart(f.NearRatio, 0.5) || f.P999.Median != 24 || f.Failed != 0 || f.LeftOut != 1 {
		t.Errorf("got %+v, want ratios of 1.2, 0.9 and 0.5", f)
	}
	if f := figuresOf(samples, "mainstay", paced); f.P999Ratio.N != 0 || f.Near.N != 0 || f.Failed != 6 {
		t.Errorf("without a floor: got %+v, want no ratio", f)
	}
	m := marks([]figures{f, {Peer: "c-floor", P999Ratio: stats.Of([]float64{9})}})
	if len(m) != 2 || !m[0].Met || !m[1].Met || m[0].Most != 1.5 || m[1].Most != 1 {
		t.Errorf("marks %+v, want two that are met", m)
	}
}

// apart says that q is anything but three times want.
func apart(q stats.Quartiles, want float64) bool {
	return q.N != 3 || q.Q1 < want-1e-9 || q.Q3 > want+1e-9
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "What is measured"},
		{[]string{"--speed"}, 2, "not defined"},
		{[]string{"extra"}, 2, "want no arguments"},
		{[]string{"--rounds", "0"}, 2, "see ramp --help"},
		{[]string{"--rate", "0"}, 2, "see ramp --help"},
		{[]string{"--clients", "3", "--connections", "2"}, 2, "see ramp --help"},
		{[]string{"--server", "/nonexistent/server"}, 1, "build it"},
		{[]string{"--peers", "nginx"}, 1, `peer "nginx"`},
	} {
		if code, out, errs := ramp(t, tt.args...); code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%q: exit code %d, %s%s, want %d and %q", tt.args, code, out, errs, tt.code, tt.want)
		}
	}
}
