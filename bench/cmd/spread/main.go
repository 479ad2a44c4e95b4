// Command spread measures how evenly connections that come one at a time are
// divided among workers. See spread --help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
	"github.com/mainstay-go/mainstay/bench/stats"
)

const usage = `spread opens connections at a slow pace, holds them, and counts how many each
worker has. In each round the service is started anew with each number of
workers in turn; nothing is pinned.

What is measured: the connections of each worker by "status --json" when all
are open. How far a worker is from its even share, in percent of that share,
is told for the one that is farthest.

Mark: at most 10 %, the median of the rounds.

usage:
  spread [flags]

flags:
`

const exits = `
exit codes: 0 measured, whether the mark is met or not; 1 something failed, or
a connection did; 2 the command line is wrong.
`

// The main goroutine stays on the main thread: see peers.Start.
func init() { runtime.LockOSThread() }

func main() {
	crowd.Member()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// plan is what is to be measured.
type plan struct {
	workers     []int
	connections int
	rate        float64
	rounds      int
	timeout     time.Duration
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var p plan
	f := flag.NewFlagSet("spread", flag.ContinueOnError)
	f.SetOutput(stderr)
	server := f.String("server", "../bin/server", "`path` of Mainstay's server binary")
	workers := f.String("workers", "2,4", "`numbers` of workers, comma-separated")
	f.IntVar(&p.connections, "connections", 1000, "`number` of connections")
	f.Float64Var(&p.rate, "rate", 500, "`connections` opened a second")
	f.IntVar(&p.rounds, "rounds", 5, "`rounds` over all numbers of workers")
	f.DurationVar(&p.timeout, "timeout", time.Minute, "`time` after which a round is given up, beyond what the rate takes")
	jsonFile := f.String("json", "", "write all figures to this `file` as JSON; - writes them to standard output instead of the tables")
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
		fmt.Fprint(stderr, exits)
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	wrong := f.NArg() > 0 || p.connections < 1 || !(p.rate > 0) || p.rounds < 1 || p.timeout <= 0
	for v := range strings.SplitSeq(*workers, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(v))
		wrong = wrong || err != nil || n < 1 || n > p.connections
		p.workers = append(p.workers, n)
	}
	if wrong {
		fmt.Fprintln(stderr, "spread: want no arguments; a connection, a rate and a round at least; numbers of workers from 1 to that of connections: see spread --help")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := p.measure(ctx, *server, *jsonFile, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// sample is one round with one number of workers.
type sample struct {
	Round   int     `json:"round"`
	Workers int     `json:"workers"`
	Counts  []int64 `json:"connections"` // by worker
	Off     float64 `json:"off_percent"` // the farthest from its share
}

// figures are what the samples of one number of workers come to.
type figures struct {
	Workers int             `json:"workers"`
	Off     stats.Quartiles `json:"off_percent"`
	Worst   []int64         `json:"worst"` // the counts of the round that was farthest off
}

// result is the whole of what was measured, as JSON.
type result struct {
	Machine     report.Machine `json:"machine"`
	Connections int            `json:"connections"`
	Rate        float64        `json:"connections_per_second"`
	Figures     []figures      `json:"figures"`
	Marks       []report.Mark  `json:"marks"`
	Samples     []sample       `json:"samples"`
}

// mark is how far off a worker may be, in percent.
const mark = 10

// measure runs the plan and reports.
func (p *plan) measure(ctx context.Context, server, jsonFile string, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("spread: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	list, err := peers.Make(ctx, dir, server, []string{peers.Mainstay}, nil)
	if err != nil {
		return err
	}
	cpus, err := proc.Allowed()
	if err != nil {
		return err
	}
	res := result{Machine: report.ThisMachine(), Connections: p.connections, Rate: p.rate}
	for round := range p.rounds {
		fmt.Fprintf(stderr, "spread: round %d of %d\n", round+1, p.rounds)
		for _, n := range stats.Order(p.workers, round) {
			counts, err := p.one(ctx, dir, list[0], n, cpus)
			if err != nil {
				return err
			}
			res.Samples = append(res.Samples, sample{Round: round, Workers: n, Counts: counts, Off: off(counts)})
		}
	}
	for _, n := range p.workers {
		f := figuresOf(res.Samples, n)
		res.Figures = append(res.Figures, f)
		res.Marks = append(res.Marks, report.NewMark(fmt.Sprintf("%d workers: percent off an even share", n), f.Off.Median, mark))
	}
	res.print(report.Tables(jsonFile, stdout))
	return report.Write(res, jsonFile, stdout)
}

// one starts the service, opens the connections and returns how many each
// worker has.
func (p *plan) one(ctx context.Context, dir string, peer peers.Peer, workers int, cpus []int) (_ []int64, err error) {
	s, err := peers.Start(dir, peer, workers, cpus)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if _, err := s.AwaitWorkers(ctx, workers, p.timeout); err != nil {
		return nil, err
	}
	c, err := crowd.Open(ctx, crowd.Config{Port: s.Port, Connections: p.connections, Members: 1, Rate: p.rate, Waiting: p.connections,
		Timeout: p.timeout + time.Duration(float64(p.connections)/p.rate*1e9)})
	if err != nil {
		return nil, fmt.Errorf("spread: %w%s", err, s.LastWords())
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if c.Failed > 0 {
		return nil, fmt.Errorf("spread: %d connections failed: %s", c.Failed, c.FirstError)
	}
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	var counts []int64
	sum := int64(0)
	for _, w := range st.Workers() {
		counts = append(counts, w.Connections)
		sum += w.Connections
	}
	// Each has had an answer, so each has been counted.
	if len(counts) != workers || sum != int64(p.connections) {
		return nil, fmt.Errorf("spread: status tells connections %v, want %d of %d workers", counts, p.connections, workers)
	}
	return counts, nil
}

// off returns how far the count that is farthest from an even share is from
// it, in percent of the share.
func off(counts []int64) float64 {
	var sum int64
	for _, n := range counts {
		sum += n
	}
	if sum == 0 {
		return 0
	}
	share := float64(sum) / float64(len(counts))
	most := 0.0
	for _, n := range counts {
		most = max(most, (float64(n)-share)/share, (share-float64(n))/share)
	}
	return 100 * most
}

func figuresOf(samples []sample, workers int) figures {
	f := figures{Workers: workers}
	var offs []float64
	for _, s := range samples {
		if s.Workers != workers {
			continue
		}
		if len(offs) == 0 || s.Off > off(f.Worst) {
			f.Worst = s.Counts
		}
		offs = append(offs, s.Off)
	}
	f.Off = stats.Of(offs)
	return f
}

// print writes the table for people.
func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n\n%d connections, %.0f a second; median [quartiles] over rounds\n", r.Machine, r.Connections, r.Rate)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "workers\t% off an even share\tconnections in the worst round\trounds\t\n")
	for _, f := range r.Figures {
		fmt.Fprintf(t, "%d\t%s\t%v\t%d\t\n", f.Workers, f.Off.Format(1), f.Worst, f.Off.N)
	}
	t.Flush()
	for _, m := range r.Marks {
		fmt.Fprintln(w, "  "+m.String())
	}
}
