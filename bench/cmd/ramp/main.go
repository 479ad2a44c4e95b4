// Command ramp measures how fast servers accept, and how long a connection
// waits until it is served, while thousands of them come. See ramp --help.
//
// Start reading at plan.run in ramp.go.
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
	"strings"
	"syscall"
	"time"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
)

const usage = `ramp measures what happens while many connections are opened and held, beside
a bare epoll loop in C (c-floor). In each round each server is started anew,
with one worker, and gets a crowd of connections, in two ways: paced, at --rate
a second, and as a rush, as fast as the clients can. The servers take turns.

What is measured, for each connection:
  A client calls connect(2). When that has returned the handshake is over, and
  the listening socket is readable. The client notes the time, sends one byte,
  and notes the time when the byte is back. So the delay holds the server's
  wait for its turn, accept(2), what it does to serve the connection, one read
  and one write; it is the same for all servers.

Marks:
  p99.9 of the delay at most 1.5 times that of c-floor: median of the ratios
  inside a round. (Of 10 000 connections that is the tenth slowest, so a round
  alone says little.)
  No stall where the descriptor's number is a power of two and the kernel's
  table may have to grow: the slowest connection within --near of 1024, 2048,
  4096, 8192, over p99.9 of the same round, median, at most 1. The number is
  the server's own, looked up in /proc by the client's address.

Where there are two CPUs, servers run on the first and clients on the second.
The accept rate of a rush is the clients' where they are slower than the
server: then acc/CPU s, connections a second of the server's CPU time, is the
number to compare.

usage:
  ramp [flags]

examples:
  ramp --server ../bin/server
  ramp --connections 2000 --rounds 2        a quick look

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
	var p plan
	f := flag.NewFlagSet("ramp", flag.ContinueOnError)
	f.SetOutput(stderr)
	server := f.String("server", "../bin/server", "`path` of Mainstay's server binary")
	names := f.String("peers", peers.Mainstay+","+peers.Baseline, "comma-separated `names` of the servers: mainstay, mainstay-pool, c-floor, go-net")
	f.IntVar(&p.connections, "connections", 10_000, "`number` of connections")
	f.Float64Var(&p.rate, "rate", 5000, "`connections` a second when they are paced")
	f.IntVar(&p.rounds, "rounds", 7, "undisturbed `rounds` wanted over all servers; at most three times as many are run")
	f.IntVar(&p.clients, "clients", 1, "`processes` that connect, from 127.0.0.1, 127.0.0.2, ...; on one CPU they hold each other up,\nso more than one only where the limit of descriptors asks for it")
	f.IntVar(&p.waiting, "waiting", 1000, "`connections` that may wait for their byte at a time; below the servers' backlog")
	f.IntVar(&p.near, "near", 2, "how far from a power of two a descriptor's `number` may be")
	f.Float64Var(&p.maxOthers, "max-others", 0.15, "leave out what was measured while other programs used more `cores`; a large number keeps all")
	unpinned := f.Bool("unpinned", false, "let servers and clients run anywhere")
	f.DurationVar(&p.timeout, "timeout", time.Minute, "`time` after which a crowd is given up")
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
	if f.NArg() > 0 || p.connections < 1 || !(p.rate > 0) || p.rounds < 1 || p.clients < 1 || p.clients > p.connections || p.waiting < p.clients || p.near < 0 || p.timeout <= 0 {
		fmt.Fprintln(stderr, "ramp: want no arguments; a connection, a rate, a round and a client at least; a connection and one that may wait for each client: see ramp --help")
		return 2
	}
	cpus, err := proc.Allowed()
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	p.serverCPUs, p.clientCPUs = cpus, cpus
	if len(cpus) > 1 && !*unpinned {
		p.serverCPUs, p.clientCPUs = cpus[:1], cpus[1:2]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := p.measure(ctx, *server, strings.Split(*names, ","), *jsonFile, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// measure starts the servers, runs the plan and reports.
func (p *plan) measure(ctx context.Context, server string, names []string, jsonFile string, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("ramp: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if p.peers, err = peers.Make(ctx, dir, server, names, nil); err != nil {
		return err
	}
	samples, err := p.run(ctx, dir, stderr)
	if err != nil {
		return err
	}
	res := result{Machine: report.ThisMachine(), Connections: p.connections, Rate: p.rate, Clients: p.clients, Near: p.near,
		Figures: p.figures(samples), Samples: samples}
	res.Marks = marks(res.Figures)
	res.print(report.Tables(jsonFile, stdout))
	if err := report.Write(res, jsonFile, stdout); err != nil {
		return err
	}
	for _, s := range samples {
		if s.Failed > 0 {
			return fmt.Errorf("ramp: round %d: %s, %s: %d connections failed: %s", s.Round, s.Peer, s.Way, s.Failed, s.FirstError)
		}
	}
	return nil
}
