package main

import (
	"math"
	"slices"
	"testing"

	"github.com/mainstay-go/mainstay/bench/load"
)

func close2(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestQuartilesInterpolateBetweenNeighbours(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     []float64
		q1, m  float64
		q3     float64
		number int
	}{
		{"none", nil, 0, 0, 0, 0},
		{"one", []float64{4}, 4, 4, 4, 1},
		{"two", []float64{4, 2}, 2.5, 3, 3.5, 2},
		{"three", []float64{3, 1, 2}, 1.5, 2, 2.5, 3},
		{"five", []float64{5, 1, 4, 2, 3}, 2, 3, 4, 5},
		{"an outlier", []float64{1, 1, 1, 1, 1000}, 1, 1, 1, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := quartilesOf(c.in)
			if !close2(got.Q1, c.q1) || !close2(got.Median, c.m) || !close2(got.Q3, c.q3) || got.N != c.number {
				t.Errorf("got %+v, want %v %v %v of %d", got, c.q1, c.m, c.q3, c.number)
			}
		})
	}
}

func TestRatiosArePairedInsideACycle(t *testing.T) {
	floor := map[int]float64{0: 100, 1: 50, 2: 200, 4: 100, 5: 0}
	peer := map[int]float64{0: 80, 1: 40, 2: 160, 3: 1, 5: 9}
	got := paired(peer, floor)
	// The machine was twice as slow in cycle 1 and twice as fast in cycle 2;
	// cycles 3 and 4 lack one of the two.
	if !close2(got.Q1, 0.8) || !close2(got.Median, 0.8) || !close2(got.Q3, 0.8) || got.N != 3 {
		t.Errorf("got %+v, want 0.8 throughout, of 3", got)
	}
	if got := paired(peer, nil); got != (quartiles{}) {
		t.Errorf("no baseline: got %+v, want none", got)
	}
	if got := paired(floor, floor); got.Median != 1 || got.N != 4 {
		t.Errorf("the baseline over itself: got %+v, want 1 of 4", got)
	}
}

func TestEveryPeerTakesEveryPlaceInTurn(t *testing.T) {
	peers := []string{"a", "b", "c"}
	for cycle, want := range [][]string{{"a", "b", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"a", "b", "c"}} {
		if got := order(peers, cycle); !slices.Equal(got, want) {
			t.Errorf("cycle %d: got %v, want %v", cycle, got, want)
		}
	}
	if !slices.Equal(peers, []string{"a", "b", "c"}) {
		t.Errorf("order changed its argument to %v", peers)
	}
}

func TestRemarksTellEachReasonOnce(t *testing.T) {
	s := &scenario{Bursts: []*burst{
		{Peer: "x", LeftOut: "errors", Errors: load.Errors{Samples: []string{"read: reset"}}},
		{Peer: "x", LeftOut: "errors", Errors: load.Errors{Samples: []string{"read: reset"}}},
		{Peer: "y"},
	}}
	got := s.remarks()
	if want := []string{"left out: 2 of 3 bursts: errors", "x: read: reset"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFiguresLeaveDisturbedBurstsOut(t *testing.T) {
	b := func(cycle int, peer string, messages, cpu float64, leftOut string) *burst {
		return &burst{Cycle: cycle, Peer: peer, Messages: uint64(messages), Seconds: 1, CPUSeconds: cpu, LeftOut: leftOut}
	}
	s := &scenario{Bursts: []*burst{
		b(0, "c-floor", 1000, 0.5, ""), b(0, "x", 900, 0.9, ""),
		b(1, "x", 10, 0.9, "others"), b(1, "c-floor", 1000, 0.5, ""),
		b(2, "c-floor", 500, 0.5, ""), b(2, "x", 450, 0.9, ""),
		b(3, "c-floor", 1, 0.5, "others"), b(3, "x", 900, 0.9, ""),
	}}
	s.figure([]string{"x", "c-floor"})
	x := s.Figures[0]
	if x.Peer != "x" || x.Bursts != 3 || x.LeftOut != 1 {
		t.Errorf("got %+v, want 3 bursts of x and 1 left out", x)
	}
	if !close2(x.PerCPU, 1000) || !close2(x.MicrosPerMessage, 1000) || !close2(x.Rate, 900) {
		t.Errorf("got %v messages a CPU second, %v µs a message, %v a second, want 1000, 1000, 900", x.PerCPU, x.MicrosPerMessage, x.Rate)
	}
	if !close2(x.RatioCPU.Median, 0.5) || x.RatioCPU.N != 2 || !close2(x.RatioRate.Median, 0.9) {
		t.Errorf("got ratios %+v and %+v, want 0.5 and 0.9 of 2", x.RatioCPU, x.RatioRate)
	}
	if f := s.Figures[1]; !close2(f.RatioCPU.Median, 1) || f.RatioCPU.N != 3 {
		t.Errorf("the floor over itself: got %+v, want 1 of 3", f.RatioCPU)
	}
}
