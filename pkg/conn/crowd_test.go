package conn

import (
	"math/rand/v2"
	"testing"
)

func TestCrowdHasEverybodyOnceAndGivesItsPagesBack(t *testing.T) {
	var w crowd
	var in []*Conn
	random := rand.New(rand.NewPCG(1, 2))
	check := func() {
		t.Helper()
		if w.count != len(in) {
			t.Fatalf("%d are in it, want %d", w.count, len(in))
		}
		// One page more than needed at most.
		if needed := (w.count + crowdPage - 1) / crowdPage; len(w.pages) < needed || len(w.pages) > needed+1 {
			t.Fatalf("%d pages for %d connections", len(w.pages), w.count)
		}
		for _, c := range in {
			if int(c.index) >= w.count || w.at(int(c.index)) != c {
				t.Fatalf("one of %d is not at its index %d", w.count, c.index)
			}
		}
		for i := w.count; i < len(w.pages)*crowdPage; i++ {
			if *w.place(i) != nil {
				t.Fatalf("place %d of %d is not empty, which keeps what has gone", i, w.count)
			}
		}
	}
	check()
	for _, to := range []int{1, 0, crowdPage, crowdPage + 1, crowdPage, crowdPage - 1, 5*crowdPage + 3, 2 * crowdPage, 3 * crowdPage, 7, 0} {
		for len(in) < to {
			c := new(Conn)
			in = append(in, c)
			w.add(c)
		}
		for len(in) > to {
			i := random.IntN(len(in))
			w.remove(in[i])
			in = append(in[:i], in[i+1:]...)
		}
		check()
	}
}

func TestCrowdAtThePageBoundaryMakesNoPageAnew(t *testing.T) {
	var w crowd
	for range crowdPage {
		w.add(new(Conn))
	}
	c := new(Conn)
	w.add(c)
	last := w.pages[1]
	for range 3 {
		w.remove(c)
		if w.add(c); w.pages[1] != last {
			t.Fatal("one that comes and goes makes a page each time")
		}
	}
}
