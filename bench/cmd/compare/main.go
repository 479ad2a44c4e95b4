// Command compare measures Mainstay's echo beside a bare C epoll loop and a
// Go server with a goroutine a connection. The README of this module has the
// method and how to read the figures; compare --help has the flags.
//
// Invariants. All servers of a table are up at once and are loaded in turn,
// in bursts. What is ended is what was started here, by the process ids we
// hold; nothing is left running, also after Ctrl-C. Start reading at plan.run
// in bench.go.
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
	"time"

	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
)

const usage = `compare loads echo servers in turn, in short bursts, and prints what each
message costs them beside a bare epoll loop in C.

usage:
  compare [flags]

examples:
  compare --server ../bin/server
  compare --peers c-floor,go-net --cycles 4 --tables one-core
  compare --connections 100,1000 --json result.json
  compare --peer 'mine=/path/to/echo --port {port} --workers {workers}'

flags:
`

const exits = `
exit codes: 0 measured; 1 something failed, or a server made errors;
2 the command line is wrong.
`

// The main goroutine stays on the main thread: see peers.Start.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var p plan
	var custom list
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.SetOutput(stderr)
	server := f.String("server", "../bin/server", "`path` of Mainstay's server binary")
	names := f.String("peers", "mainstay,mainstay-pool,c-floor,go-net", "comma-separated `names` of the servers to compare")
	f.Var(&custom, "peer", "one more server, `NAME=COMMAND`, with {port} and {workers} in the command; may be repeated")
	tables := f.String("tables", "one-core,unpinned", "`names` of the tables: one-core (server on one CPU, generator on another), unpinned")
	workers := f.Int("workers", 2, "`number` of workers in the table unpinned")
	cycles := f.Int("cycles", 0, "undisturbed `cycles` wanted of a scenario, one burst a server in each (0: 14 on one core, 10 unpinned);\nat most three times as many are run")
	sizes := f.String("sizes", "64,4096", "`bytes` of a message, comma-separated")
	pipelines := f.String("pipelines", "1,16", "`messages` in flight on each connection, comma-separated")
	connections := f.String("connections", "100", "`numbers` of connections, comma-separated")
	f.DurationVar(&p.burst, "burst", 500*time.Millisecond, "`time` that is counted of a burst")
	f.DurationVar(&p.warmup, "warmup", 120*time.Millisecond, "`time` before that")
	f.Float64Var(&p.maxOthers, "max-others", 0.15, "leave bursts out in which other programs used more `cores`; a large number keeps all")
	jsonFile := f.String("json", "", "write all figures and bursts to this `file` as JSON; - writes them to standard output instead of the tables")
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
	wrong := func(err error) int {
		fmt.Fprintln(stderr, err)
		return 2
	}
	if f.NArg() > 0 {
		return wrong(fmt.Errorf("compare: %q: want flags only: see compare --help", f.Arg(0)))
	}
	if p.burst <= 0 || p.warmup < 0 {
		return wrong(fmt.Errorf("compare: burst %v, warm-up %v: want more than zero, and zero or more", p.burst, p.warmup))
	}
	var err error
	for _, n := range []struct {
		flag string
		in   string
		to   *[]int
		min  int
	}{
		{"sizes", *sizes, &p.sizes, 16},
		{"pipelines", *pipelines, &p.pipelines, 1},
		{"connections", *connections, &p.connections, max(1, *workers)},
	} {
		if *n.to, err = numbers(n.flag, n.in, n.min); err != nil {
			return wrong(err)
		}
	}
	cpus, err := proc.Allowed()
	if err != nil {
		return wrong(err)
	}
	if p.tables, err = makeTables(*tables, *workers, *cycles, cpus); err != nil {
		return wrong(err)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := p.measure(ctx, *server, split(*names), custom, *jsonFile, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// measure builds the peers, runs the plan and reports.
func (p *plan) measure(ctx context.Context, server string, names, custom []string, jsonFile string, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if p.peers, err = peers.Make(ctx, dir, server, names, custom); err != nil {
		return err
	}
	rep := result{Machine: report.ThisMachine(), Burst: p.burst.Seconds(), Warmup: p.warmup.Seconds(), MaxOthers: p.maxOthers}
	tables := report.Tables(jsonFile, stdout)
	fmt.Fprintf(tables, "%s\n\n", rep.Machine)
	var failures uint64
	err = p.run(ctx, dir, stderr, func(s *scenario) {
		rep.Scenarios = append(rep.Scenarios, s)
		s.print(tables)
		for _, f := range s.Figures {
			failures += f.Errors
		}
	})
	if err == nil && failures > 0 {
		err = fmt.Errorf("compare: %d errors: see the tables", failures)
	}
	// What was measured is written even if the rest could not be.
	return errors.Join(err, report.Write(rep, jsonFile, stdout))
}

// makeTables returns the tables called names. cycles is zero for the default
// of each.
func makeTables(names string, workers, cycles int, cpus []int) ([]table, error) {
	if workers < 1 || cycles < 0 {
		return nil, fmt.Errorf("compare: %d workers, %d cycles: want one at least, and zero or more", workers, cycles)
	}
	var tables []table
	for _, name := range split(names) {
		var t table
		switch name {
		case "one-core":
			if len(cpus) < 2 {
				return nil, fmt.Errorf("compare: table one-core: %d CPU, want two: one for the server, one for the generator", len(cpus))
			}
			t = table{Name: fmt.Sprintf("one core (server on CPU %d, generator on CPU %d)", cpus[0], cpus[1]),
				Workers: 1, Cycles: 14, server: cpus[:1], load: cpus[1:2], threads: 1}
		case "unpinned":
			t = table{Name: fmt.Sprintf("%d workers, nothing pinned, generator with %d threads", workers, workers),
				Workers: workers, Cycles: 10, server: cpus, load: cpus, threads: workers}
		default:
			return nil, fmt.Errorf("compare: table %q: want one-core or unpinned", name)
		}
		if cycles > 0 {
			t.Cycles = cycles
		}
		tables = append(tables, t)
	}
	if len(tables) == 0 {
		return nil, errors.New("compare: no tables")
	}
	return tables, nil
}

// split reads a comma-separated list; empty is none.
func split(s string) []string {
	var list []string
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			list = append(list, v)
		}
	}
	return list
}

// numbers reads a comma-separated list of numbers, one at least.
func numbers(flag, s string, least int) ([]int, error) {
	var list []int
	for _, v := range split(s) {
		n, err := strconv.Atoi(v)
		if err != nil || n < least {
			return nil, fmt.Errorf("compare: --%s: %q: want a number of %d or more", flag, v, least)
		}
		list = append(list, n)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("compare: --%s: empty", flag)
	}
	return list, nil
}
