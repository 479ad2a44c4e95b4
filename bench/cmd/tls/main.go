// Command tls measures what TLS 1.3 costs a server: messages and handshakes a
// second of its CPU time, memory of an idle connection, and how long one stands
// still at a reload. See tls --help.
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
)

const usage = `tls measures what TLS 1.3 costs servers that echo: Mainstay's listener echo with
one worker; crypto/tls with a goroutine a connection, which is this program
itself; and nginx, where it is installed, whose stream block takes TLS off and
passes what is in it to an echo on a unix socket, whose CPU time is not counted:
nginx has two writes and two reads more for each message. All have the same
certificate (ECDSA P-256) and one CPU, the clients another.

What is measured:
  echo: replies a second of the server's CPU time (schedstat of all its threads
  and processes), with each number of --connections, each of --sizes, and each of
  --pipeline messages in flight on each connection. Servers take turns by bursts
  of --burst; ratios are those of bursts of one cycle. Every byte is compared.
  idle: Pss of the server's processes before and after --idle connections were
  opened, divided by their number. Each has had one message echoed and is quiet
  for --settle. A tenth as many are open and quiet before. The kernel's own
  memory is not counted.
  handshakes: full ones, and such as resume a session by its ticket, a
  connection each, a second of the server's CPU time, beside net/http instead of
  the echo of crypto/tls.
  handoff: how long a message is on its way, on the first of --connections each
  of which sends one every 100 ms, while nothing happens and while the service
  reloads, and what reload says of the longest time that one stood still.

Marks: 1.2 times the messages of crypto/tls; the handshakes of net/http; 2560
bytes an idle connection.

usage:
  tls [flags]

flags:
`

const exits = `
exit codes: 0 measured, whether the marks are met or not; 1 something failed;
2 the command line is wrong.
`

// plan is what is to be measured.
type plan struct {
	server      string
	parts       []string
	peers       []string // NAME=COMMAND
	sizes       []int
	connections []int
	pipeline    []int
	idle        int
	cycles      int
	burst       time.Duration
	settle      time.Duration
	jsonFile    string
}

// parts in the order in which they are measured.
var allParts = []string{"echo", "handshakes", "handoff", "idle"}

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleArgument {
		fmt.Fprintln(os.Stderr, play(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	p := plan{sizes: []int{64, 4096}, connections: []int{100, 1000}, pipeline: []int{1, 16}}
	f := flag.NewFlagSet("tls", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&p.server, "server", "../bin/server", "`path` of Mainstay's server binary")
	parts := f.String("parts", strings.Join(allParts, ","), "`parts` to measure, comma-separated")
	f.Func("peer", "one more server for all but handoff, `NAME=COMMAND`, with {port}, {cert} and {key} in the command; may be repeated", func(s string) error {
		p.peers = append(p.peers, s)
		return nil
	})
	f.Func("sizes", "`bytes` of a message, comma-separated, 8 or more each (default 64,4096)", numbers(&p.sizes, 8, 1<<20))
	f.Func("connections", "`numbers` of connections of echo and handoff, comma-separated (default 100,1000)", numbers(&p.connections, 1, 10_000))
	f.Func("pipeline", "`numbers` of messages in flight on each, comma-separated (default 1,16)", numbers(&p.pipeline, 1, 1000))
	f.IntVar(&p.idle, "idle", 2000, "`number` of idle connections")
	f.IntVar(&p.cycles, "cycles", 8, "`bursts` of each server")
	f.DurationVar(&p.burst, "burst", 500*time.Millisecond, "`time` of a burst")
	f.DurationVar(&p.settle, "settle", 15*time.Second, "`time` of quiet before memory is measured")
	f.StringVar(&p.jsonFile, "json", "", "write all figures to this `file` as JSON; - writes them to standard output instead of the tables")
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
	err := p.parse(*parts)
	if err != nil || f.NArg() > 0 || p.idle < 1 || p.cycles < 1 || p.burst <= 0 || p.settle < 0 {
		fmt.Fprintln(stderr, "tls: want no arguments, parts there are, and an idle connection, a cycle and some time at least: see tls --help", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := p.measure(ctx, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// numbers reads a list of them into to, each within the bounds.
func numbers(to *[]int, least, most int) func(string) error {
	return func(text string) error {
		*to = nil
		for s := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(s)
			if err != nil || n < least || n > most {
				return fmt.Errorf("%q, want numbers from %d to %d", s, least, most)
			}
			*to = append(*to, n)
		}
		return nil
	}
}

func (p *plan) parse(parts string) error {
	for part := range strings.SplitSeq(parts, ",") {
		if !slices.Contains(allParts, part) {
			return fmt.Errorf("part %q", part)
		}
		p.parts = append(p.parts, part)
	}
	return nil
}

// measure starts what is needed, measures and reports.
func (p *plan) measure(ctx context.Context, stdout, stderr io.Writer) (err error) {
	cpus, err := proc.Allowed()
	if err != nil {
		return err
	}
	if len(cpus) < 2 {
		return fmt.Errorf("tls: %d CPU, want two: one for the servers, one for the clients", len(cpus))
	}
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// What is started is bound as this process is: first the servers' CPU.
	if err := proc.BindSelf(cpus[:1]); err != nil {
		return err
	}
	f, err := open(ctx, p, dir, stderr)
	if err != nil {
		return err
	}
	defer f.close()
	if err := proc.BindSelf(cpus[1:2]); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	res := result{Machine: report.ThisMachine(), Idle: p.idle}
	for _, part := range p.parts {
		fmt.Fprintf(stderr, "tls: %s\n", part)
		var err error
		switch part {
		case "echo":
			err = f.echo(ctx, &res)
		case "handshakes":
			err = f.handshakes(ctx, &res)
		case "handoff":
			err = f.handoff(ctx, &res)
		case "idle":
			err = f.memories(ctx, &res)
		}
		if err != nil {
			return err
		}
	}
	res.mark()
	res.print(report.Tables(p.jsonFile, stdout))
	return report.Write(res, p.jsonFile, stdout)
}
