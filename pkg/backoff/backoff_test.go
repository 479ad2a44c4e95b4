package backoff

import (
	"math"
	"testing"
	"time"
)

// exact is a policy without jitter.
var exact = Policy{First: 100 * time.Millisecond, Max: time.Second, Jitter: -1, Healthy: 10 * time.Second}

// delays calls Next once for each healthy time.
func delays(b *Backoff, healthy ...time.Duration) []time.Duration {
	var got []time.Duration
	for _, h := range healthy {
		got = append(got, b.Next(h).Round(time.Millisecond))
	}
	return got
}

func TestDelaysFollowThePolicy(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name    string
		policy  Policy
		healthy []time.Duration
		want    []time.Duration
	}{
		{
			name: "the defaults double from 200 ms to 30 s", policy: Policy{Jitter: -1},
			healthy: make([]time.Duration, 11),
			want: []time.Duration{0, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms,
				30 * time.Second, 30 * time.Second},
		},
		{
			name: "a failure after long health is answered at once each time", policy: exact,
			healthy: []time.Duration{0, time.Hour, time.Hour, time.Hour},
			want:    []time.Duration{0, 0, 0, 0},
		},
		{
			name: "healthy time halves what is remembered", policy: exact,
			healthy: []time.Duration{0, 0, 0, 0, 10 * time.Second},
			want:    []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 200 * ms},
		},
		{
			name: "five spells of health are enough after any number of failures", policy: exact,
			healthy: append(make([]time.Duration, 50), 50*time.Second),
			want: append(append([]time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms}, repeat(time.Second, 45)...),
				0),
		},
		{
			name: "less than no health is none", policy: exact,
			healthy: []time.Duration{-time.Hour, -time.Hour, -time.Hour},
			want:    []time.Duration{0, 100 * ms, 200 * ms},
		},
		{
			name: "a first delay above the maximum is the maximum", policy: Policy{First: time.Minute, Max: time.Second, Jitter: -1},
			healthy: make([]time.Duration, 3),
			want:    []time.Duration{0, time.Second, time.Second},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := delays(&Backoff{Policy: tt.policy}, tt.healthy...)
			for i := range tt.want {
				if got[i] != tt.want[i] {
					t.Errorf("failure %d: delay %v, want %v (all: %v)", i+1, got[i], tt.want[i], got)
				}
			}
		})
	}
}

func repeat(d time.Duration, n int) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = d
	}
	return all
}

func TestJitterOnlyShortens(t *testing.T) {
	tests := []struct {
		name   string
		jitter float64
		draw   float64
		want   time.Duration // of a delay of 100 ms
	}{
		{name: "the least that can be drawn", jitter: 0.25, draw: 0, want: 100 * time.Millisecond},
		{name: "nearly the most that can be drawn", jitter: 0.25, draw: 0.999999, want: 75 * time.Millisecond},
		{name: "the default", jitter: 0, draw: 0.5, want: 75 * time.Millisecond},
		{name: "none", jitter: -1, draw: 0.5, want: 100 * time.Millisecond},
		{name: "more than all", jitter: 7, draw: 0.5, want: 50 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := Backoff{Policy: Policy{First: 100 * time.Millisecond, Jitter: tt.jitter}, Rand: func() float64 { return tt.draw }}
			if got := delays(&b, 0, 0)[1]; got != tt.want {
				t.Errorf("delay %v, want %v", got, tt.want)
			}
		})
	}
}

func TestZeroBackoffDrawsItsOwnJitter(t *testing.T) {
	var b Backoff
	if got := b.Next(0); got != 0 {
		t.Errorf("first delay %v, want 0", got)
	}
	if got := b.Next(0); got < DefaultFirst/2 || got > DefaultFirst {
		t.Errorf("second delay %v, want %v to %v", got, DefaultFirst/2, DefaultFirst)
	}
}

func TestResetForgetsAllFailures(t *testing.T) {
	b := Backoff{Policy: exact}
	delays(&b, 0, 0, 0)
	b.Reset()
	if got := b.Next(0); got != 0 {
		t.Errorf("delay after Reset %v, want 0", got)
	}
}

func TestDelaysDoNotOverflow(t *testing.T) {
	b := Backoff{Policy: Policy{First: 1, Max: math.MaxInt64, Jitter: -1}}
	for i := range 200 {
		if got := b.Next(0); got < 0 {
			t.Fatalf("failure %d: delay %v", i+1, got)
		}
	}
	if got := b.Next(0); got != math.MaxInt64 {
		t.Errorf("delay %v in the end, want the maximum", got)
	}
}
