// Command websocket measures what an echoed message costs servers of
// WebSocket: each is a command that serves on a port, all are up at once, and
// are loaded in turn in bursts. The number to compare is that of messages a
// second of the server's CPU time; the README of this module says why. Then it
// measures what an idle connection takes of memory.
//
//	websocket --server ../bin/server
//	websocket --connections 100,1000 --sizes 64,4096 --pipelines 1,16 --idle 5000
//	websocket --idle 0 --peer 'mine=/path/server --port {port}'
//
// Peers are gws, gorilla and coder, which are this binary itself, and c-floor,
// which knows no WebSocket and sends back the bytes that came: below that no
// server can go.
//
// It ends what it has started, by the process ids it holds. Start reading at
// run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
	"github.com/mainstay-go/mainstay/bench/stats"
)

// The main goroutine stays on the main thread: see peers.Start.
func init() { runtime.LockOSThread() }

func main() {
	if played, err := playRole(os.Args[1:]); played {
		fmt.Fprintln(os.Stderr, err) // it serves until it is killed, or cannot
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, err)
		}
		stop()
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// Names of two of the servers.
const (
	mainstay = "mainstay"
	floor    = peers.Baseline
)

// plan is what is measured.
type plan struct {
	connections, sizes, pipelines []int
	cycles                        int
	burst                         time.Duration
	idle                          int // connections; 0: it is not measured
}

// server is a peer that runs.
type server struct {
	*peers.Process // nil: it does not run
	peer           peers.Peer
	addr           string
	done           map[int]float64 // messages a CPU second, by cycle
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var custom list
	var p plan
	f := flag.NewFlagSet("websocket", flag.ContinueOnError)
	f.SetOutput(stderr)
	binary := f.String("server", "../bin/server", "`path` of Mainstay's server binary, whose ws-echo takes part; empty: it does not")
	f.Var(&custom, "peer", "one more server, `NAME=COMMAND`, with {port} in the command; may be repeated")
	only := f.String("only", "", "`names` of the peers that take part, comma-separated; empty: all")
	connections := f.String("connections", "100", "`numbers` of connections, comma-separated")
	sizes := f.String("sizes", "64,4096", "`bytes` of a message, comma-separated")
	pipelines := f.String("pipelines", "1,16", "`messages` in flight on each connection, comma-separated")
	f.IntVar(&p.cycles, "cycles", 6, "bursts of each server")
	f.DurationVar(&p.burst, "burst", 500*time.Millisecond, "`time` of a burst")
	f.IntVar(&p.idle, "idle", 10_000, "idle `connections` of each server whose memory is measured; 0: it is not")
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, n := range []struct {
		text string
		to   *[]int
	}{{*connections, &p.connections}, {*sizes, &p.sizes}, {*pipelines, &p.pipelines}} {
		for word := range strings.SplitSeq(n.text, ",") {
			v, err := strconv.Atoi(word)
			if err != nil || v < 1 {
				return fmt.Errorf("websocket: %q: want numbers of one or more", n.text)
			}
			*n.to = append(*n.to, v)
		}
	}
	cpus, err := proc.Allowed()
	if err != nil {
		return err
	}
	if len(cpus) < 2 || p.cycles < 1 || p.burst <= 0 || p.idle < 0 {
		return fmt.Errorf("websocket: %d CPU, want two: one for the servers, one for the clients; and a cycle and some time at least", len(cpus))
	}
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("websocket: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	all, err := commands(ctx, dir, *binary, *only, custom)
	if err != nil {
		return err
	}
	var servers []*server
	defer func() {
		for _, s := range servers {
			if s.Process != nil {
				err = errors.Join(err, s.Stop())
			}
		}
	}()
	for _, peer := range all {
		s := &server{peer: peer}
		servers = append(servers, s)
		if err := s.start(ctx, dir, cpus); err != nil {
			return err
		}
	}
	if err := proc.BindSelf(cpus[1:2]); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proc.BindSelf(cpus)) }()
	fmt.Fprintf(stdout, "%s\n\n", report.ThisMachine())
	for _, n := range p.connections {
		for _, size := range p.sizes {
			for _, depth := range p.pipelines {
				if err := p.measure(ctx, servers, n, load{size: size, depth: depth}, stdout); err != nil {
					return err
				}
			}
		}
	}
	if p.idle > 0 {
		return p.rest(ctx, servers, dir, cpus, stdout)
	}
	return nil
}

// commands returns the peers that take part.
func commands(ctx context.Context, dir, binary, only string, custom []string) ([]peers.Peer, error) {
	wanted := func(name string) bool {
		return only == "" || strings.Contains(","+only+",", ","+name+",")
	}
	var named, roles []string
	if wanted(floor) {
		named = append(named, floor)
	}
	for _, name := range roleNames {
		if !wanted(name) {
			continue
		}
		command, err := roleCommand(name)
		if err != nil {
			return nil, err
		}
		roles = append(roles, command)
	}
	if binary != "" && wanted(mainstay) {
		path, err := filepath.Abs(binary)
		if err != nil {
			return nil, fmt.Errorf("websocket: %w", err)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("websocket: %w: build it, or name it by --server", err)
		}
		config := filepath.Join(dir, "ws.toml")
		if err := os.WriteFile(config, nil, 0o644); err != nil {
			return nil, fmt.Errorf("websocket: %w", err)
		}
		roles = append(roles, fmt.Sprintf("%s=%s run --workers 1 --config %s --control unix://%s/ws.sock --listen ws-echo=tcp://127.0.0.1:{port}", mainstay, path, config, dir))
	}
	return peers.Make(ctx, dir, "", named, append(roles, custom...))
}

// start starts the server on the first CPU.
func (s *server) start(ctx context.Context, dir string, cpus []int) (err error) {
	if s.Process, err = peers.Start(dir, s.peer, 1, cpus[:1]); err != nil {
		return err
	}
	s.addr = fmt.Sprintf("127.0.0.1:%d", s.Port)
	return s.ready(ctx)
}

// load is what the server is loaded with.
func (s *server) load(l load) load {
	l.raw = s.Name == floor
	return l
}

// ready waits until the server echoes.
func (s *server) ready(ctx context.Context) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for late := time.Now().Add(handshakeTime); ; {
		err := s.probe(ctx)
		switch {
		case err == nil:
			return nil
		case time.Now().After(late):
			return fmt.Errorf("websocket: %s: does not echo: %w%s", s.Name, err, s.LastWords())
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *server) probe(ctx context.Context) error {
	c, err := connect(s.addr, 1, s.load(load{size: 300, depth: 2}))
	if c != nil {
		defer c.close()
	}
	if err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	return c.settle(ctx)
}

// measure loads the servers in turn and prints a table.
func (p *plan) measure(ctx context.Context, servers []*server, connections int, l load, out io.Writer) error {
	for _, s := range servers {
		s.done = map[int]float64{}
	}
	for cycle := range p.cycles + 1 {
		for _, s := range stats.Order(servers, cycle) {
			rate, err := s.burst(ctx, connections, l, p.burst)
			if err != nil {
				return fmt.Errorf("websocket: %s: %w%s", s.Name, err, s.LastWords())
			}
			if cycle > 0 { // the first one warms up
				s.done[cycle] = rate
			}
		}
	}
	fmt.Fprintf(out, "%d bytes, %d connections, %d in flight on each; bursts of %v, %d of each server; median [quartiles]\n", l.size, connections, l.depth, p.burst, p.cycles)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	base := servers[0]
	fmt.Fprintf(t, "server\tmessages/CPU s\tCPU µs/message\tof %s\t\n", base.Name)
	best := ""
	for _, s := range servers {
		rate := s.rate()
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%s\t\n", s.Name, rate, 1e6/rate, stats.Paired(s.done, base.done))
		if s.Name != mainstay && s.Name != floor && (best == "" || rate > named(servers, best).rate()) {
			best = s.Name
		}
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return tellMark(servers, best, l, out)
}

// rate is the median.
func (s *server) rate() float64 {
	var all []float64
	for _, v := range s.done {
		all = append(all, v)
	}
	return stats.Of(all).Median
}

func named(servers []*server, name string) *server {
	for _, s := range servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// markOf returns against whom, and how many times its messages a CPU second,
// Mainstay is to reach with a load; nothing if there is no mark.
func markOf(l load, best string) (peer string, times float64) {
	switch {
	case l.size >= 4096 && l.depth == 1:
		return floor, 0.87 // a server in C, Swoole, needs 9.2 µs where the floor needs 8.0
	case l.depth == 1:
		return best, 1.1
	case l.depth >= 16:
		return "gws", 3
	}
	return "", 0
}

// tellMark says whether Mainstay has reached it.
func tellMark(servers []*server, best string, l load, out io.Writer) error {
	name, times := markOf(l, best)
	ours, peer := named(servers, mainstay), named(servers, name)
	if ours == nil || peer == nil {
		return nil
	}
	verdict := "reached"
	got := stats.Paired(ours.done, peer.done)
	if got.Median < times {
		verdict = "missed"
	}
	_, err := fmt.Fprintf(out, "mark: %s %s of %s, want %.2f: %s\n\n", ours.Name, got, peer.Name, times, verdict)
	return err
}

// burst answers how many messages a second of its CPU time the server has
// echoed.
func (s *server) burst(ctx context.Context, connections int, l load, d time.Duration) (float64, error) {
	pids, err := proc.Tree(s.PID())
	if err != nil {
		return 0, err
	}
	c, err := connect(s.addr, connections, s.load(l))
	if c != nil {
		defer c.close()
	}
	if err != nil {
		return 0, err
	}
	if err := c.begin(); err != nil {
		return 0, err
	}
	if err := c.run(ctx, d/4); err != nil {
		return 0, err
	}
	before, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	from := c.done
	if err := c.run(ctx, d); err != nil {
		return 0, err
	}
	after, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	spent := after.Since(before).Total.Seconds()
	if spent <= 0 {
		return 0, errors.New("no CPU time was spent")
	}
	return float64(c.done-from) / spent, nil
}

// settleTime is between the last answer and a look at the memory.
const settleTime = 3 * time.Second

// warmUp is how many connections are opened and closed before.
const warmUp = 500

// markIdle is what an idle WebSocket may take.
const markIdle = 1024

// rest measures what a connection takes that has had one message echoed. The
// servers are started anew: what the bursts have left of a heap would do for
// many connections.
func (p *plan) rest(ctx context.Context, servers []*server, dir string, cpus []int, out io.Writer) error {
	fmt.Fprintf(out, "memory (PSS) of each of %d idle connections, one message after the handshake, %v later\n", p.idle, settleTime)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "server\tbytes\t\n")
	var ours report.Mark
	for _, s := range servers {
		if err := s.Stop(); err != nil {
			return err
		}
		s.Process = nil
		if err := s.start(ctx, dir, cpus); err != nil {
			return err
		}
		each, err := s.idle(ctx, p.idle)
		if err != nil {
			return fmt.Errorf("websocket: %s: %w%s", s.Name, err, s.LastWords())
		}
		fmt.Fprintf(t, "%s\t%.0f\t\n", s.Name, each)
		if s.Name == mainstay {
			ours = report.NewMark("bytes an idle WebSocket", each, markIdle)
		}
	}
	if err := t.Flush(); err != nil || ours.Figure == "" {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s\n", ours)
	return err
}

// idle answers how many bytes a connection takes.
func (s *server) idle(ctx context.Context, n int) (float64, error) {
	pids, err := proc.Tree(s.PID())
	if err != nil {
		return 0, err
	}
	memory := func() (uint64, error) {
		if err := pause(ctx, settleTime); err != nil {
			return 0, err
		}
		m, err := proc.MemoryOf(pids)
		return m.PSS, err
	}
	// A crowd before brings code and buffers into memory.
	warm, err := connect(s.addr, warmUp, s.load(load{size: 64, depth: 1}))
	if warm != nil {
		warm.close()
	}
	if err != nil {
		return 0, err
	}
	before, err := memory()
	if err != nil {
		return 0, err
	}
	c, err := connect(s.addr, n, s.load(load{size: 64, depth: 1}))
	if c != nil {
		defer c.close()
	}
	if err != nil {
		return 0, err
	}
	if err := c.begin(); err != nil {
		return 0, err
	}
	if err := c.settle(ctx); err != nil {
		return 0, err
	}
	after, err := memory()
	if err != nil {
		return 0, err
	}
	return (float64(after) - float64(before)) / float64(n), nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
