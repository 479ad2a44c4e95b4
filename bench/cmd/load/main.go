// Command load drives an echo server and tells what came of it. See package
// load for how, and load --help for what it can be told.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/load"
)

const usage = `load drives an echo server: it keeps messages in flight on many connections,
compares every byte that comes back, and prints rate and latency.

usage:
  load [flags] TARGET

  TARGET is tcp://ADDRESS:PORT or unix:///PATH. Only loopback addresses are
  loaded unless --allow-remote says otherwise.

examples:
  load --connections 100 --duration 5s tcp://127.0.0.1:7007
  load --mode text --pipeline 16 --size 256 tcp://127.0.0.1:7008
  load --connections 18000 --ramp 5000 --pipeline 0 --duration 30s \
       --sources 127.0.0.1,127.0.0.2 tcp://127.0.0.1:7007     holds idle connections

flags:
`

const exits = `
exit codes: 0 every byte came back right; 1 something failed (see errors);
2 the command line is wrong.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var cfg load.Config
	var mode, sources string
	var asJSON bool
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&mode, "mode", "raw", "what the server echoes: `raw` bytes, or text (lines ended by \\n)")
	f.IntVar(&cfg.Connections, "connections", 100, "`number` of connections")
	f.IntVar(&cfg.Size, "size", 64, "`bytes` of a message, a line's \\n included; raw: at least 16, text: 33")
	f.IntVar(&cfg.Pipeline, "pipeline", 1, "`messages` in flight on each connection; 0 holds idle connections")
	f.IntVar(&cfg.Threads, "threads", 1, "`number` of threads, each with its own epoll")
	f.DurationVar(&cfg.Warmup, "warmup", time.Second, "`time` before counting begins, after the last connection is open")
	f.DurationVar(&cfg.Duration, "duration", 10*time.Second, "`time` that is counted")
	f.Uint64Var(&cfg.Messages, "messages", 0, "stop counting after about so `many` messages (0: by time only)")
	f.Float64Var(&cfg.Ramp, "ramp", 0, "connections opened a `second` (0: as fast as it goes)")
	f.DurationVar(&cfg.ConnectTimeout, "connect-timeout", 10*time.Second, "give connections up that are not open so `long` after the last was begun")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", 2*time.Second, "how `long` to wait for the last replies")
	f.StringVar(&sources, "sources", "", "comma-separated `addresses` connections come from in turn, such as 127.0.0.1,127.0.0.2;\none has about 28000 ports (empty: the kernel chooses)")
	f.BoolVar(&cfg.AllowRemote, "allow-remote", false, "load a target that is not on loopback")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON")
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
	if f.NArg() != 1 {
		fmt.Fprintf(stderr, "load: want one TARGET after the flags, got %d: see load --help\n", f.NArg())
		return 2
	}
	cfg.Target, cfg.Mode = f.Arg(0), load.Mode(mode)
	var err error
	if cfg.Sources, err = parseSources(sources); err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	if err := cfg.Check(); err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	res, err := load.Run(ctx, cfg)
	if res != nil {
		if asJSON {
			e := json.NewEncoder(stdout)
			e.SetIndent("", "  ")
			err = errors.Join(err, e.Encode(res))
		} else {
			table(stdout, res)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	if res.Errors.Total() > 0 {
		return 1
	}
	return 0
}

// parseSources reads a comma-separated list of addresses; empty is none.
func parseSources(s string) ([]netip.Addr, error) {
	if s == "" {
		return nil, nil
	}
	var list []netip.Addr
	for v := range strings.SplitSeq(s, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(v))
		if err != nil {
			return nil, fmt.Errorf("load: --sources: %w", err)
		}
		list = append(list, a)
	}
	return list, nil
}

// table prints r for people.
func table(w io.Writer, r *load.Result) {
	fmt.Fprintf(w, "%s  %s  %d B  pipeline %d  threads %d\n", r.Target, r.Mode, r.Size, r.Pipeline, r.Threads)
	fmt.Fprintf(w, "connections  %d of %d open after %.3f s\n", r.Connected, r.Connections, r.ConnectTime)
	fmt.Fprintf(w, "messages     %d in %.3f s, %.0f/s, %.1f MB/s each way\n", r.Messages, r.Seconds, r.Rate, r.Rate*float64(r.Size)/1e6)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "µs\tcount\tmean\tp50\tp90\tp99\tp99.9\tmax\t")
	for _, l := range []struct {
		name string
		s    load.Summary
	}{{"latency", r.Latency}, {"connect", r.Connect}, {"first reply", r.FirstReply}} {
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", l.name, l.s.Count, l.s.Mean, l.s.P50, l.s.P90, l.s.P99, l.s.P999, l.s.Max)
	}
	t.Flush()
	e := &r.Errors
	fmt.Fprintf(w, "errors       %d", e.Total())
	if e.Total() > 0 {
		fmt.Fprintf(w, ": refused %d, connect timeout %d, reset %d, short %d, wrong byte %d, unanswered %d, other %d",
			e.Refused, e.Timeout, e.Reset, e.Short, e.Wrong, e.Unanswered, e.Other)
	}
	fmt.Fprintln(w)
	for _, s := range e.Samples {
		fmt.Fprintln(w, "  "+s)
	}
}
