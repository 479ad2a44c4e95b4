package load

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsFollowOneAnotherWithoutGapOrOverlap(t *testing.T) {
	for i := range buckets - 1 {
		top := bucketTop(i)
		if got := bucketOf(top); got != i {
			t.Fatalf("bucketOf(%d) = %d, want %d", top, got, i)
		}
		if got := bucketOf(top + 1); got != i+1 {
			t.Fatalf("bucketOf(%d) = %d, want %d", top+1, got, i+1)
		}
	}
}

func TestDurationsBeyondTheScaleAreCountedInTheLastBucket(t *testing.T) {
	for _, d := range []time.Duration{1 << maxBits, math.MaxInt64} {
		if got := bucketOf(d); got != buckets-1 {
			t.Errorf("bucketOf(%d) = %d, want %d", d, got, buckets-1)
		}
	}
	if got := bucketOf(-1); got != 0 {
		t.Errorf("bucketOf(-1) = %d, want 0", got)
	}
	var h Histogram
	h.Record(time.Hour)
	if got := h.Quantile(0.5); got != time.Hour {
		t.Errorf("Quantile(0.5) = %v, want 1h0m0s", got)
	}
}

func TestQuantilesAreWithinOnePartIn128OfTheTrueOnes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		next func() time.Duration
	}{
		{"uniform", func() time.Duration { return time.Duration(rnd.Int64N(1_000_000)) }},
		{"log-uniform", func() time.Duration { return time.Duration(math.Exp(rnd.Float64() * 24)) }},
		{"constant", func() time.Duration { return 12345 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Histogram
			all := make([]time.Duration, 10_000)
			for i := range all {
				all[i] = c.next()
				h.Record(all[i])
			}
			slices.Sort(all)
			for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
				want := all[max(int(math.Ceil(q*float64(len(all))))-1, 0)]
				got := h.Quantile(q)
				if got < want || float64(got) > float64(want)*(1+1.0/sub)+1 {
					t.Errorf("Quantile(%v) = %d, want %d to %d", q, got, want, want+want/sub)
				}
			}
			if got, want := h.Quantile(1), all[len(all)-1]; got != want {
				t.Errorf("Quantile(1) = %d, want the largest, %d", got, want)
			}
		})
	}
}

func TestMergedHistogramsAreAsIfOneHadRecordedAll(t *testing.T) {
	var a, b, all Histogram
	for i := range 1000 {
		d := time.Duration(i * i)
		all.Record(d)
		if i%3 == 0 {
			a.Record(d)
		} else {
			b.Record(d)
		}
	}
	a.Merge(&b)
	if a != all {
		t.Errorf("merged summary is %+v, want %+v", a.Summary(), all.Summary())
	}
}

func TestAnEmptyHistogramIsAllZero(t *testing.T) {
	var h Histogram
	if got := h.Summary(); got != (Summary{}) {
		t.Errorf("Summary() = %+v, want zeros", got)
	}
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("Quantile(0.5) = %v, want 0", got)
	}
}
