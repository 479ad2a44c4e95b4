// Package backoff says how long to wait before trying again after a failure.
//
// The first failure is answered at once, the next ones with delays that double
// up to a maximum. What is remembered of earlier failures halves with every
// spell of healthy time, so a worker that fails once a day is always restarted
// at once, and one that lives for a second each time soon waits the maximum.
//
// The package keeps no clock and starts no timer: the caller says how long the
// thing was healthy and gets a delay. Start reading at [Backoff.Next].
package backoff

import (
	"math"
	"math/rand/v2"
	"time"
)

// The values a zero [Policy] stands for.
const (
	DefaultFirst   = 200 * time.Millisecond
	DefaultMax     = 30 * time.Second
	DefaultJitter  = 0.5
	DefaultHealthy = 30 * time.Second
)

// Policy is how delays grow and how failures are forgotten. The zero value
// holds the defaults.
type Policy struct {
	First   time.Duration // delay at the second failure; zero or less: DefaultFirst
	Max     time.Duration // no delay is longer; zero or less: DefaultMax
	Jitter  float64       // a delay is multiplied with a number drawn from (1-Jitter, 1]; zero: DefaultJitter, negative: none, at most 1
	Healthy time.Duration // healthy time that halves what is remembered of the failures; zero or less: DefaultHealthy
}

// Backoff remembers the failures of one thing. The zero value is ready for
// use with the default policy. It is not safe for concurrent use.
type Backoff struct {
	Policy

	// Rand draws a number from [0, 1) for the jitter; nil: math/rand/v2.
	Rand func() float64

	failures float64 // failures remembered, at most as many as lead to Max
}

// Next notes a failure and returns the delay before the next attempt, zero
// for at once. healthyFor is for how long the thing had been healthy before it
// failed; zero or less if it never was.
//
// Without healthy time in between the delays before the jitter are 0, First,
// 2*First, 4*First and so on to Max.
func (b *Backoff) Next(healthyFor time.Duration) time.Duration {
	p := b.Policy.withDefaults()
	if healthyFor > 0 {
		b.failures *= math.Exp2(-float64(healthyFor) / float64(p.Healthy))
	}
	// Below a half the failures are forgotten: at once, as if it were the first.
	var delay float64
	if b.failures >= 0.5 {
		delay = min(float64(p.First)*math.Exp2(b.failures-1), float64(p.Max))
	}
	// Failures that no longer lengthen the delay must not lengthen the
	// recovery either.
	most := 1 + math.Log2(max(1, float64(p.Max)/float64(p.First)))
	b.failures = min(b.failures+1, most)

	if p.Jitter > 0 {
		draw := rand.Float64
		if b.Rand != nil {
			draw = b.Rand
		}
		delay *= 1 - p.Jitter*draw()
	}
	if delay >= float64(p.Max) { // which rounds up to what overflows, for the largest
		return p.Max
	}
	return time.Duration(delay)
}

// Reset forgets all failures: the next one is answered at once.
func (b *Backoff) Reset() { b.failures = 0 }

func (p Policy) withDefaults() Policy {
	if p.First <= 0 {
		p.First = DefaultFirst
	}
	if p.Max <= 0 {
		p.Max = DefaultMax
	}
	if p.Healthy <= 0 {
		p.Healthy = DefaultHealthy
	}
	switch {
	case p.Jitter == 0:
		p.Jitter = DefaultJitter
	case p.Jitter < 0:
		p.Jitter = 0
	case p.Jitter > 1:
		p.Jitter = 1
	}
	return p
}
