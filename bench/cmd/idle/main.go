// Command idle measures what a service takes while nothing happens: memory for
// each idle connection, and the supervisor's memory and wake-ups. See
// idle --help.
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
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/report"
)

const usage = `idle starts a service with one worker and measures what it takes while nothing
happens. In each round the service is started anew.

What is measured:
  Supervisor, with no connection open: its resident memory (Rss of
  /proc/PID/smaps_rollup), and how often its threads wake up, as the voluntary
  context switches of all of them (/proc/PID/status) in --watch. Nobody asks it
  anything meanwhile, nor for --calm before. One wake-up of a Go program, by a
  timer say, counts for several: the thread that waits, the one it hands over
  to, and the runtime's monitor, which needs that long to calm down.
  Memory of an idle connection: Pss of worker and supervisor together before
  and after --connections were opened, divided by their number. Each has had
  one byte echoed, or with --peer mainstay-http a request answered, or with
  mainstay-ws its handshake, and is quiet since --settle. What processes share is counted
  once, so the connection's row in a shared table is in it. A crowd of --warm
  connections before that has brought code and buffers into memory. The
  kernel's own memory for sockets is not in it.

Marks: 512 bytes a connection, 1024 a WebSocket; 15 MiB resident in the supervisor; no wake-ups.

usage:
  idle [flags]

flags:
`

const exits = `
exit codes: 0 measured, whether the marks are met or not; 1 something failed,
or a connection did; 2 the command line is wrong.
`

// The main goroutine stays on the main thread: see peers.Start.
func init() { runtime.LockOSThread() }

func main() {
	crowd.Member()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Fprintln(stderr, "idle:", os.NewSyscallError("getrlimit", err))
		return 1
	}
	var p plan
	f := flag.NewFlagSet("idle", flag.ContinueOnError)
	f.SetOutput(stderr)
	server := f.String("server", "../bin/server", "`path` of Mainstay's server binary")
	name := f.String("peer", peers.Mainstay, "`name` of the service: mainstay, mainstay-pool, mainstay-http or mainstay-ws")
	f.IntVar(&p.connections, "connections", mostConnections(limit.Max), "`number` of idle connections; at most the hard limit of descriptors less 1000")
	f.IntVar(&p.warm, "warm", 500, "`connections` that are opened and closed before")
	f.IntVar(&p.clients, "clients", 2, "`processes` that connect, from 127.0.0.1, 127.0.0.2, ...")
	f.Float64Var(&p.rate, "rate", 10_000, "`connections` opened a second")
	f.IntVar(&p.rounds, "rounds", 3, "`rounds`")
	f.DurationVar(&p.settle, "settle", 3*time.Second, "`time` between the last event and a measurement")
	f.DurationVar(&p.calm, "calm", 30*time.Second, "`time` before wake-ups are counted")
	f.DurationVar(&p.watch, "watch", 20*time.Second, "`time` for which wake-ups are counted")
	f.DurationVar(&p.timeout, "timeout", time.Minute, "`time` after which a crowd is given up, beyond what the rate takes")
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
	if f.NArg() > 0 || p.clients < 1 || p.connections < p.clients || p.warm < p.clients || !(p.rate > 0) || p.rounds < 1 || p.settle < 0 || p.calm < 0 || p.watch <= 0 || p.timeout <= 0 ||
		!slices.Contains([]string{peers.Mainstay, peers.MainstayPool, peers.MainstayHTTP, peers.MainstayWS}, *name) {
		fmt.Fprintln(stderr, "idle: want no arguments; a client, a rate, a round and some time at least; a connection for each client, also to warm up: see idle --help")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := p.measure(ctx, *server, *name, *jsonFile, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// mostConnections is how many connections one worker can hold with so many
// descriptors, 18 000 at most.
func mostConnections(limit uint64) int {
	const most, others = 18_000, 1000
	if limit > most+others {
		return most
	}
	return max(int(limit)-others, 2)
}

// measure runs the plan and reports.
func (p *plan) measure(ctx context.Context, server, name, jsonFile string, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("idle: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	list, err := peers.Make(ctx, dir, server, []string{name}, nil)
	if err != nil {
		return err
	}
	res := result{Peer: name, Machine: report.ThisMachine(), Connections: p.connections, Watch: p.watch.Seconds()}
	for round := range p.rounds {
		fmt.Fprintf(stderr, "idle: round %d of %d: %v or more\n", round+1, p.rounds, (p.calm + p.watch + p.settle).Round(time.Second))
		s, err := p.one(ctx, dir, list[0])
		if err != nil {
			return err
		}
		res.Samples = append(res.Samples, s)
	}
	res.figure()
	res.print(report.Tables(jsonFile, stdout))
	return report.Write(res, jsonFile, stdout)
}
