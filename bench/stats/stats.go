// Package stats computes what the measuring commands print of many bursts or
// rounds: quartiles, ratios between two servers, and whose turn it is.
package stats

import (
	"fmt"
	"math"
	"slices"
)

// Quartiles describe a set of numbers. All are zero if N is.
type Quartiles struct {
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
	N      int     `json:"n"`
}

// Of returns the quartiles of v, which it sorts. Between two numbers it interpolates linearly: the
// median of an even count is the mean of the middle two.
func Of(v []float64) Quartiles {
	if len(v) == 0 {
		return Quartiles{}
	}
	slices.Sort(v)
	at := func(q float64) float64 {
		x := q * float64(len(v)-1)
		i := int(math.Floor(x))
		if i+1 == len(v) {
			return v[i]
		}
		return v[i] + (x-float64(i))*(v[i+1]-v[i])
	}
	return Quartiles{Q1: at(0.25), Median: at(0.5), Q3: at(0.75), N: len(v)}
}

// String returns the median with the quartiles behind it, with two digits, "-"
// if there are none.
func (q Quartiles) String() string { return q.Format(2) }

// Format is String with so many digits behind the point.
func (q Quartiles) Format(digits int) string {
	if q.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f [%.*f %.*f]", digits, q.Median, digits, q.Q1, digits, q.Q3)
}

// Paired returns the quartiles of a peer's value over the baseline's, each
// ratio taken inside one cycle: what slows the machine for seconds slows both
// and falls out. The maps are by cycle; a cycle that only one of them has,
// or in which the baseline is zero, gives no ratio.
func Paired(peer, baseline map[int]float64) Quartiles {
	var ratios []float64
	for cycle, v := range peer {
		if b, ok := baseline[cycle]; ok && b > 0 {
			ratios = append(ratios, v/b)
		}
	}
	return Of(ratios)
}

// Order returns who runs in a cycle, one after the other: A B C in cycle 0, B
// C A in cycle 1 and so on, so that none always follows the same one.
func Order[T any](peers []T, cycle int) []T {
	k := cycle % len(peers)
	return slices.Concat(peers[k:], peers[:k])
}
