package metrics_test

import (
	"os"

	"github.com/mainstay-go/mainstay/pkg/metrics"
)

func ExampleRegistry() {
	r := metrics.NewRegistry()
	lines := r.CounterVec("chat_lines_total", "Lines relayed.", "room")
	took := r.Histogram("chat_lookup_seconds", "Time of a lookup.", []float64{0.01, 0.1})

	lines.With("lobby").Inc()
	lines.With("lobby").Inc()
	took.Observe(0.05)

	os.Stdout.Write(metrics.Append(nil, r.Gather()))
	// Output:
	// # HELP chat_lines_total Lines relayed.
	// # TYPE chat_lines_total counter
	// chat_lines_total{room="lobby"} 2
	// # HELP chat_lookup_seconds Time of a lookup.
	// # TYPE chat_lookup_seconds histogram
	// chat_lookup_seconds_bucket{le="0.01"} 0
	// chat_lookup_seconds_bucket{le="0.1"} 1
	// chat_lookup_seconds_bucket{le="+Inf"} 1
	// chat_lookup_seconds_sum 0.05
	// chat_lookup_seconds_count 1
}
