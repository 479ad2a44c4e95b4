// Command handoff measures how fast workers hand connections over to one
// another and for how long each connection stands still, beside a bare loop
// that passes descriptors and nothing else. See handoff --help.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

const usage = `handoff starts pairs of workers and processes of clients. In each round one worker
of every pair hands all its connections to the other, while clients send
messages and check the answers. In turn with that, pairs of bare processes
pass as many connections by SCM_RIGHTS, 64 at a time: the giver sends and
closes, the taker receives and adds to an epoll instance; no state, no answer,
no ownership.

usage:
  handoff [flags]

flags:
`

type settings struct {
	sizes  []size
	rounds int
	rate   int
	asJSON bool

	unpinned bool // the kernel chooses the CPUs
}

// size is how much a row of the table moves.
type size struct{ connections, pairs int }

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var s settings
	f := flag.NewFlagSet("handoff", flag.ContinueOnError)
	f.SetOutput(stderr)
	sizes := f.String("sizes", "1000/1,10000/1,50000/3", "`connections/pairs` of workers, for each row of the table")
	f.IntVar(&s.rounds, "rounds", 10, "`rounds` of a row that are counted, after two that are not")
	f.IntVar(&s.rate, "rate", 2000, "`messages` a second that the clients of a row send together")
	f.BoolVar(&s.unpinned, "unpinned", false, "let the kernel choose the CPUs; else the two of a pair, bare ones too, have one each")
	f.BoolVar(&s.asJSON, "json", false, "print the result as JSON")
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
		fmt.Fprint(stderr, "\nexit codes: 0 every connection was handed over and every answer was right; 1 not\nso; 2 the command line is wrong.\n")
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	var err error
	if s.sizes, err = parseSizes(*sizes); err != nil || f.NArg() > 0 || s.rounds < 1 || s.rate < 1 {
		fmt.Fprintln(stderr, "handoff: want no arguments, sizes such as 1000/1,50000/3, and at least 1 round and message:", err)
		return 2
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	var rows []*row
	for _, size := range s.sizes {
		r, err := measure(size, s, interrupted, stderr)
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		rows = append(rows, r)
	}
	if err := report(stdout, rows, s.asJSON); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	for _, r := range rows {
		if r.Errors > 0 {
			return 1
		}
	}
	return 0
}

func parseSizes(text string) (sizes []size, err error) {
	for part := range strings.SplitSeq(text, ",") {
		connections, pairs, ok := strings.Cut(part, "/")
		var s size
		var err1, err2 error
		s.connections, err1 = strconv.Atoi(connections)
		s.pairs, err2 = strconv.Atoi(pairs)
		if !ok || err1 != nil || err2 != nil || s.pairs < 1 || s.connections < s.pairs {
			return nil, fmt.Errorf("%q is no size", part)
		}
		sizes = append(sizes, s)
	}
	return sizes, nil
}

// row is what is printed of a size.
type row struct {
	Connections int       `json:"connections"`
	Pairs       int       `json:"pairs"`
	Rates       []float64 `json:"per_second"`      // of each round
	Bare        []float64 `json:"bare_per_second"` // of each round
	CPU         []CPU     `json:"cpu_us"`          // a connection, of each round
	BareCPU     []CPU     `json:"bare_cpu_us"`     // the same
	Stall       summary   `json:"stall_us"`        // of all connections in all rounds: from the stop here to the start there
	Reply       summary   `json:"reply_us"`        // of the messages that were answered meanwhile
	Quiet       summary   `json:"quiet_reply_us"`  // the same, while nothing was handed over
	GiverMiB    float64   `json:"giver_peak_mib"`  // the largest peak of a process that has given
	BeforeMiB   float64   `json:"before_mib"`      // what it had before the first hand-off
	Errors      int       `json:"errors"`          // connections that stayed, answers that were wrong
	First       string    `json:"first_error,omitempty"`
}

// CPU is CPU time in microseconds a connection.
type CPU struct {
	Giver float64 `json:"giver"`
	Taker float64 `json:"taker"`
}

// median returns the medians of both.
func median(all []CPU) string {
	var giver, taker []float64
	for _, c := range all {
		giver, taker = append(giver, c.Giver), append(taker, c.Taker)
	}
	return fmt.Sprintf("%.1f + %.1f", quantile(giver, 0.5), quantile(taker, 0.5))
}

// summary is of durations, in microseconds.
type summary struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

func summarize(all []time.Duration) summary {
	slices.Sort(all)
	at := func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[min(len(all)-1, int(q*float64(len(all))))]) / 1e3
	}
	return summary{len(all), at(0.5), at(0.99), at(1)}
}

func quantile(all []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// ratios are those of each round, whose two halves lie seconds apart at most.
func (r *row) ratios() (list []float64) {
	for i := range r.Rates {
		list = append(list, r.Rates[i]/r.Bare[i])
	}
	return list
}

func report(w io.Writer, rows []*row, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "connections\tpairs\thanded over/s\tbare/s\tof bare [quartiles]\tCPU us each\tbare\tstall ms p50\tp99\tmax\treply ms p50\tp99\tmax\tquiet p99\tMiB before\tpeak\terrors\t")
	for _, r := range rows {
		ratios := r.ratios()
		fmt.Fprintf(t, "%d\t%d\t%.0f\t%.0f\t%.2f [%.2f %.2f]\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t%d\t\n",
			r.Connections, r.Pairs, quantile(r.Rates, 0.5), quantile(r.Bare, 0.5),
			quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75),
			median(r.CPU), median(r.BareCPU),
			r.Stall.P50/1e3, r.Stall.P99/1e3, r.Stall.Max/1e3, r.Reply.P50/1e3, r.Reply.P99/1e3, r.Reply.Max/1e3, r.Quiet.P99/1e3,
			r.BeforeMiB, r.GiverMiB, r.Errors)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.First != "" {
			fmt.Fprintf(w, "%d connections: %s\n", r.Connections, r.First)
		}
	}
	return nil
}
