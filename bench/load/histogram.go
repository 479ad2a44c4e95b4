package load

import (
	"math"
	"math/bits"
	"time"
)

// A histogram counts durations in buckets whose width grows with the value,
// as HdrHistogram does: below 128 ns every nanosecond has its bucket, above
// that every power of two is cut into 128, so a value is known to 1/128 of
// itself (0.8 %).
//
//	bucket  0 ..  255   0 ns .. 255 ns, 1 ns wide
//	bucket 256 ..  383  256 ns .. 511 ns, 2 ns wide
//	bucket 384 ..  511  512 ns .. 1023 ns, 4 ns wide, and so on
const (
	subBits = 7
	sub     = 1 << subBits
	maxBits = 37 // what does not fit into 137 s is counted in the last bucket
	buckets = (maxBits - subBits + 1) * sub
)

// Histogram is a distribution of durations. The zero value is empty and
// ready. It is not safe for concurrent use: each thread has its own, and they
// are merged when the threads have ended.
type Histogram struct {
	counts [buckets]uint64
	count  uint64
	sum    float64
	max    time.Duration
}

// bucketOf returns the bucket that counts d.
func bucketOf(d time.Duration) int {
	if d < 0 {
		d = 0
	}
	v := uint64(d)
	if v >= 1<<maxBits {
		return buckets - 1
	}
	shift := max(bits.Len64(v)-1-subBits, 0)
	return shift*sub + int(v>>shift)
}

// bucketTop returns the largest duration that bucket i counts.
func bucketTop(i int) time.Duration {
	if i < 2*sub {
		return time.Duration(i)
	}
	shift := i/sub - 1
	return time.Duration((i-shift*sub+1)<<shift - 1)
}

// Record counts d once. A negative d counts as zero.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.count++
	h.sum += float64(d)
	h.max = max(h.max, d)
}

// Merge adds everything o has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.count += o.count
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.count }

// Quantile returns a duration that the fraction q (0 to 1) of what was
// recorded does not pass: at most 0.8 % above the true one, never above the
// largest. It is zero for an empty histogram.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := max(uint64(math.Ceil(q*float64(h.count))), 1)
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			if i == buckets-1 {
				return h.max
			}
			return min(bucketTop(i), h.max)
		}
	}
	return h.max
}

// Summary is what is printed of a Histogram. Durations are in microseconds.
type Summary struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	Max   float64 `json:"max_us"`
}

// Summary returns the percentiles of what was recorded, all zero if nothing
// was.
func (h *Histogram) Summary() Summary {
	if h.count == 0 {
		return Summary{}
	}
	return Summary{
		Count: h.count,
		Mean:  h.sum / float64(h.count) / 1e3,
		P50:   micros(h.Quantile(0.5)),
		P90:   micros(h.Quantile(0.9)),
		P99:   micros(h.Quantile(0.99)),
		P999:  micros(h.Quantile(0.999)),
		Max:   micros(h.max),
	}
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }
