package stats

import (
	"math"
	"slices"
	"testing"
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
			got := Of(c.in)
			if !close2(got.Q1, c.q1) || !close2(got.Median, c.m) || !close2(got.Q3, c.q3) || got.N != c.number {
				t.Errorf("got %+v, want %v %v %v of %d", got, c.q1, c.m, c.q3, c.number)
			}
		})
	}
}

func TestRatiosArePairedInsideACycle(t *testing.T) {
	floor := map[int]float64{0: 100, 1: 50, 2: 200, 4: 100, 5: 0}
	peer := map[int]float64{0: 80, 1: 40, 2: 160, 3: 1, 5: 9}
	got := Paired(peer, floor)
	// The machine was twice as slow in cycle 1 and twice as fast in cycle 2;
	// cycles 3 and 4 lack one of the two.
	if !close2(got.Q1, 0.8) || !close2(got.Median, 0.8) || !close2(got.Q3, 0.8) || got.N != 3 {
		t.Errorf("got %+v, want 0.8 throughout, of 3", got)
	}
	if got := Paired(peer, nil); got != (Quartiles{}) {
		t.Errorf("no baseline: got %+v, want none", got)
	}
	if got := Paired(floor, floor); got.Median != 1 || got.N != 4 {
		t.Errorf("the baseline over itself: got %+v, want 1 of 4", got)
	}
}

func TestEveryPeerTakesEveryPlaceInTurn(t *testing.T) {
	peers := []string{"a", "b", "c"}
	for cycle, want := range [][]string{{"a", "b", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"a", "b", "c"}} {
		if got := Order(peers, cycle); !slices.Equal(got, want) {
			t.Errorf("cycle %d: got %v, want %v", cycle, got, want)
		}
	}
	if !slices.Equal(peers, []string{"a", "b", "c"}) {
		t.Errorf("order changed its argument to %v", peers)
	}
}
