package main

import (
	"math"
	"slices"
)

// quartiles describe a set of numbers. All are zero if N is.
type quartiles struct {
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
	N      int     `json:"n"`
}

// quartilesOf sorts v. Between two numbers it interpolates linearly: the
// median of an even count is the mean of the middle two.
func quartilesOf(v []float64) quartiles {
	if len(v) == 0 {
		return quartiles{}
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
	return quartiles{Q1: at(0.25), Median: at(0.5), Q3: at(0.75), N: len(v)}
}

// paired returns the quartiles of a peer's value over the baseline's, each
// ratio taken inside one cycle: what slows the machine for seconds slows both
// and falls out. The maps are by cycle; a cycle that only one of them has,
// or in which the baseline is zero, gives no ratio.
func paired(peer, baseline map[int]float64) quartiles {
	var ratios []float64
	for cycle, v := range peer {
		if b, ok := baseline[cycle]; ok && b > 0 {
			ratios = append(ratios, v/b)
		}
	}
	return quartilesOf(ratios)
}

// order returns who runs in a cycle, one after the other: A B C in cycle 0, B
// C A in cycle 1 and so on, so that none always follows the same one.
func order[T any](peers []T, cycle int) []T {
	k := cycle % len(peers)
	return slices.Concat(peers[k:], peers[:k])
}
