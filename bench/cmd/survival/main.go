// Command survival measures what clients notice of the deaths of workers and
// supervisors, and what it takes to be ready for them. See survival --help.
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
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/report"
	"github.com/mainstay-go/mainstay/bench/stats"
)

const usage = `survival kills workers and supervisors of a service (an echo) and measures what
becomes of the connections. It plays systemd's part: it has the listening socket
and the store of descriptors, and starts the next supervisor 100 ms after one has
died, as RestartSec= does if nobody has set it.

Parts:
  harvest   A worker has --connections connections, two others have none; it
            is killed by SIGKILL. Time from the signal to the event that the
            last connection is another worker's; then every client is heard.
            In turn with that, a bare loop does as little as can be done: it
            takes as many descriptors out of a process by pidfd_getfd, whose
            numbers it knows, and passes them by SCM_RIGHTS, 64 at a time, to
            another, which adds them to an epoll instance. Nobody dies, and
            nothing is verified, owned or rebuilt.
            Mark: 3 times the bare loop in the same round.
  memory    Three workers with --each idle connections each: resident memory of
            the supervisor and of the largest keeper (Rss of
            /proc/PID/smaps_rollup), and the CPU time of them all in --watch.
            Marks: 20 MiB, 1.5 MiB; 1 ms of CPU time a second.
  survivors A worker has 10 000 idle connections, or 2000 of which each has a
            message under way at any time, and is killed by SIGKILL. Every
            client is heard afterwards; those that are closed are lost.
  stall     300 clients of three workers send 3000 messages a second together.
            The longest time for which one of them waits for its answer while a
            worker, the supervisor, or both at once are killed, or a worker is
            stopped by SIGSTOP until the supervisor kills it (hang_timeout is 2 s),
            or the service is restarted as by systemctl restart: the next
            supervisor adopts the workers and replaces each.
  adopt     Three workers with 10 000 connections. The supervisor is killed by
            SIGKILL; time from the start of the next one to READY=1, and until
            its status shows every worker as it was.

usage:
  survival [flags]

flags:
`

const exits = `
exit codes: 0 measured, whether the marks are met or not; 1 something failed, or
an idle connection was lost; 2 the command line is wrong.
`

// The main goroutine stays on the main thread: see manager.
func init() { runtime.LockOSThread() }

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role, os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// plan is what is to be measured.
type plan struct {
	server      string
	parts       []string
	rounds      int
	connections int
	each        int
	idle, busy  int
	watch       time.Duration
}

// parts are all parts, in the order in which they are measured.
var parts = []string{"harvest", "memory", "survivors", "stall", "adopt"}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	p := plan{}
	f := flag.NewFlagSet("survival", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&p.server, "server", "../bin/server", "`path` of Mainstay's server binary")
	chosen := f.String("parts", strings.Join(parts, ","), "`parts` that are measured")
	f.IntVar(&p.rounds, "rounds", 9, "`rounds` of each part that are counted")
	f.IntVar(&p.connections, "connections", 5000, "`connections` of the worker in harvest")
	f.IntVar(&p.each, "each", 18_000, "`connections` of each worker in memory")
	f.IntVar(&p.idle, "idle", 10_000, "idle `connections` in survivors and adopt")
	f.IntVar(&p.busy, "busy", 2000, "busy `connections` in survivors")
	f.DurationVar(&p.watch, "watch", 20*time.Second, "`time` for which CPU time is counted in memory")
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
	p.parts = strings.Split(*chosen, ",")
	unknown := slices.ContainsFunc(p.parts, func(part string) bool { return !slices.Contains(parts, part) })
	if f.NArg() > 0 || unknown || p.rounds < 1 || p.watch <= 0 || min(p.connections, p.each, p.idle, p.busy) < 1 || max(p.connections, p.each, p.idle, p.busy) > mostEach {
		fmt.Fprintf(stderr, "survival: want no arguments; parts out of %s; a round, some time, and 1 to %d connections: see survival --help\n", strings.Join(parts, ","), mostEach)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	lost, err := p.measure(ctx, *jsonFile, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	if err != nil || lost {
		return 1
	}
	return 0
}

// result is all that was measured, as JSON. Times are in milliseconds.
type result struct {
	Machine   report.Machine `json:"machine"`
	Harvest   *harvest       `json:"harvest,omitempty"`
	Memory    *memory        `json:"memory,omitempty"`
	Survivors []*survivors   `json:"survivors,omitempty"`
	Stalls    []*stall       `json:"stall,omitempty"`
	Adopt     *adoption      `json:"adopt,omitempty"`
	Marks     []report.Mark  `json:"marks"`
}

// measure measures the parts and reports. lost: an idle connection was lost.
func (p *plan) measure(ctx context.Context, jsonFile string, stdout, stderr io.Writer) (lost bool, err error) {
	r := result{Machine: report.ThisMachine()}
	w := report.Tables(jsonFile, stdout)
	fmt.Fprintf(w, "%s\nmedian [quartiles] of the rounds; times in ms\n", r.Machine)
	for _, part := range parts {
		if !slices.Contains(p.parts, part) {
			continue
		}
		began := time.Now()
		switch part {
		case "harvest":
			r.Harvest, err = p.harvest(ctx)
		case "memory":
			r.Memory, err = p.memory(ctx)
		case "survivors":
			r.Survivors, err = p.survivors(ctx)
		case "stall":
			r.Stalls, err = p.stalls(ctx)
		case "adopt":
			r.Adopt, err = p.adopt(ctx)
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", part, err)
		}
		lost = r.print(w, part) || lost
		fmt.Fprintf(stderr, "survival: %s took %v\n", part, time.Since(began).Round(time.Second))
	}
	for _, m := range r.Marks {
		fmt.Fprintln(w, "  "+m.String())
	}
	return lost, report.Write(r, jsonFile, stdout)
}

// figure returns quartiles, and leaves the values in their order.
func figure(v []float64) stats.Quartiles { return stats.Of(slices.Clone(v)) }

// ms is what is told of a duration.
func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// print writes the table of a part and adds its marks. It says whether an idle
// connection was lost.
func (r *result) print(w io.Writer, part string) (lost bool) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	switch part {
	case "harvest":
		h := r.Harvest
		ratio := figure(h.ratios())
		fmt.Fprintf(t, "harvest of %d connections, %d rounds\n", h.Connections, len(h.Ours))
		fmt.Fprintf(t, "  SIGKILL to the last one served\t%s\n", figure(h.Ours))
		fmt.Fprintf(t, "  of them, the longest stall by the event\t%s\n", figure(h.Longest))
		fmt.Fprintf(t, "  bare loop\t%s\n", figure(h.Bare))
		fmt.Fprintf(t, "  times the bare loop\t%s\n", ratio)
		fmt.Fprintf(t, "  lost\t%d\n", h.Lost)
		r.Marks = append(r.Marks, report.NewMark("harvest, times the bare loop", ratio.Median, 3))
		lost = h.Lost > 0
	case "memory":
		m := r.Memory
		fmt.Fprintf(t, "memory with %d connections (workers have %v), one service\n", m.Connections, m.Workers)
		fmt.Fprintf(t, "  supervisor, MiB resident\t%.2f\t(with none: %.2f)\n", m.Supervisor, m.Before)
		fmt.Fprintf(t, "  keepers, MiB resident\t%.2f\n", m.Keepers)
		fmt.Fprintf(t, "  CPU time a second, supervisor\t%.3f\n", m.CPU)
		fmt.Fprintf(t, "  CPU time a second, all keepers\t%.3f\n", m.KeeperCPU)
		r.Marks = append(r.Marks,
			report.NewMark("supervisor, MiB resident", m.Supervisor, 20),
			report.NewMark("largest keeper, MiB resident", slices.Max(m.Keepers), 1.5),
			report.NewMark("idle supervisor, ms of CPU time a second", m.CPU, 1),
			report.NewMark("idle keepers, ms of CPU time a second", m.KeeperCPU, 0))
	case "survivors":
		fmt.Fprintln(t, "survivors of a worker's SIGKILL\trounds\tconnections in all\tsurvived\tlost\tlost in the worst round\tlongest stall")
		for _, s := range r.Survivors {
			total, gone := s.Connections*len(s.Lost), 0
			for _, n := range s.Lost {
				gone += n
			}
			fmt.Fprintf(t, "  %s\t%d\t%d\t%d (%.4g %%)\t%d\t%d\t%s\n", s.Kind, len(s.Lost), total, total-gone, 100*float64(total-gone)/float64(total), gone, slices.Max(s.Lost), figure(s.Longest))
			lost = lost || s.Kind == "idle" && gone > 0
		}
	case "stall":
		fmt.Fprintln(t, "longest wait of a client\trounds\tmedian [quartiles]\tlongest of all\tthe same before, quiet\tlost in all")
		for _, s := range r.Stalls {
			fmt.Fprintf(t, "  %s\t%d\t%s\t%.2f\t%s\t%d\n", s.Kind, len(s.Longest), figure(s.Longest), slices.Max(s.Longest), figure(s.Quiet), s.Lost)
		}
	case "adopt":
		a := r.Adopt
		fmt.Fprintf(t, "adoption of %d workers with %d connections, %d rounds\n", a.Workers, a.Connections, len(a.Ready))
		fmt.Fprintf(t, "  start to READY=1\t%s\n", figure(a.Ready))
		fmt.Fprintf(t, "  start to a status that shows all\t%s\n", figure(a.Adopted))
		fmt.Fprintf(t, "  lost\t%d\n", a.Lost)
		lost = a.Lost > 0
	}
	return lost
}
