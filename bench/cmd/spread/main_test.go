package main

import (
	"bytes"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/crowd"
)

func TestMain(m *testing.M) {
	crowd.Member()
	goleak.VerifyTestMain(m)
}

func TestTheFarthestFromItsShareCounts(t *testing.T) {
	for _, tt := range []struct {
		counts []int64
		want   float64
	}{
		{nil, 0},
		{[]int64{0, 0}, 0},
		{[]int64{500, 500}, 0},
		{[]int64{1000}, 0},
		{[]int64{525, 475}, 5},
		{[]int64{1000, 0}, 100},
		{[]int64{250, 250, 300, 200}, 20},
		{[]int64{1000, 0, 0, 0}, 300},
	} {
		if got := off(tt.counts); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%v: got %v, want %v", tt.counts, got, tt.want)
		}
	}
}

func TestFiguresAreOfOneNumberOfWorkers(t *testing.T) {
	samples := []sample{
		{Workers: 2, Counts: []int64{6, 4}, Off: 20},
		{Workers: 4, Counts: []int64{10, 0, 0, 0}, Off: 300},
		{Workers: 2, Counts: []int64{9, 1}, Off: 80},
		{Workers: 2, Counts: []int64{5, 5}, Off: 0},
	}
	f := figuresOf(samples, 2)
	if f.Off.N != 3 || f.Off.Median != 20 || !slices.Equal(f.Worst, []int64{9, 1}) {
		t.Errorf("got %+v, want a median of 20 and 9 to 1 as the worst", f)
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
		{[]string{"--workers", "0"}, 2, "see spread --help"},
		{[]string{"--workers", "two"}, 2, "see spread --help"},
		{[]string{"--workers", "4", "--connections", "3"}, 2, "see spread --help"},
		{[]string{"--rate", "0"}, 2, "see spread --help"},
		{[]string{"--server", "/nonexistent/server"}, 1, "build it"},
	} {
		var out bytes.Buffer
		if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: exit code %d, %s, want %d and %q", tt.args, code, &out, tt.code, tt.want)
		}
	}
}
