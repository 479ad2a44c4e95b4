package main

import (
	"math"
	"slices"
	"testing"

	"github.com/mainstay-go/mainstay/bench/load"
)

func close2(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

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

func TestTheJournalsCostIsPairedInsideACycle(t *testing.T) {
	b := func(cycle int, peer string, cpu float64) *burst {
		return &burst{Cycle: cycle, Peer: peer, Messages: 1000, Seconds: 1, CPUSeconds: cpu}
	}
	s := &scenario{Bursts: []*burst{
		b(0, "mainstay", 1.02), b(0, "mainstay-nojournal", 1),
		b(1, "mainstay", 2.2), b(1, "mainstay-nojournal", 2),
		b(2, "mainstay", 0.99), b(2, "mainstay-nojournal", 1),
		b(3, "mainstay", 9),
	}}
	s.figure([]string{"mainstay", "mainstay-nojournal"})
	if q := s.Journal; q.N != 3 || !close2(q.Median, 2) || !close2(q.Q1, 0.5) || !close2(q.Q3, 6) {
		t.Errorf("got %+v, want 2 [0.5 6] per cent of 3 cycles", q)
	}
}
