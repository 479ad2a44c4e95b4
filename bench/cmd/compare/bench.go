package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/bench/load"
	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/stats"
)

// plan is what is to be measured.
type plan struct {
	tables      []table
	peers       []peers.Peer
	sizes       []int
	pipelines   []int
	connections []int
	burst       time.Duration
	warmup      time.Duration
	maxOthers   float64 // cores other programs may use during a burst
}

// table is one way to divide the machine.
type table struct {
	Name    string `json:"name"`
	Workers int    `json:"workers"`
	Cycles  int    `json:"cycles"`
	server  []int  // CPUs of the servers
	load    []int  // CPUs of the generator
	threads int    // of the generator
}

// scenario is one kind of load within a table, and what came of it.
type scenario struct {
	Table       table     `json:"table"`
	Connections int       `json:"connections"`
	Size        int       `json:"size"`
	Pipeline    int       `json:"pipeline"`
	Figures     []figures `json:"figures"`

	// Journal is what the journal costs: CPU time a message over that without,
	// less one, of each cycle, in per cent.
	Journal stats.Quartiles `json:"journal_percent"`
	Bursts  []*burst        `json:"bursts"`
}

// burst is one short run against one peer.
type burst struct {
	Cycle      int          `json:"cycle"`
	Peer       string       `json:"peer"`
	Messages   uint64       `json:"messages"`
	Seconds    float64      `json:"seconds"`
	CPUSeconds float64      `json:"server_cpu_seconds"` // all threads of all its processes
	Busiest    float64      `json:"busiest_process"`    // the share of its busiest process in that
	Others     float64      `json:"other_cores"`        // what neither the server nor the generator used
	Latency    load.Summary `json:"latency"`
	Memory     proc.Memory  `json:"memory"` // at the end, connections open; zero if it could not be read
	Errors     load.Errors  `json:"errors"`
	LeftOut    string       `json:"left_out,omitempty"` // why it is in no figure
	histogram  *load.Histogram
}

// figures are what the bursts of one peer come to. Medians are over bursts,
// ratios over cycles, percentiles over all messages.
type figures struct {
	Peer             string          `json:"peer"`
	Bursts           int             `json:"bursts"`
	LeftOut          int             `json:"left_out"`
	Errors           uint64          `json:"errors"` // in all bursts
	Rate             float64         `json:"messages_per_second"`
	PerCPU           float64         `json:"messages_per_server_cpu_second"`
	MicrosPerMessage float64         `json:"server_cpu_us_per_message"`
	RatioCPU         stats.Quartiles `json:"per_cpu_second_to_floor"`
	RatioRate        stats.Quartiles `json:"rate_to_floor"`
	P50              float64         `json:"p50_us"`
	P99              float64         `json:"p99_us"`
	Busiest          float64         `json:"busiest_process"`
	RSS              float64         `json:"rss_bytes"`
	PSS              float64         `json:"pss_bytes"`
}

// run measures everything in the plan and hands each scenario to done when it
// is finished. It starts the servers of a table, all at once, and ends them
// before it returns, whatever happens. It must be called on the main
// goroutine, locked to the main thread.
func (p *plan) run(ctx context.Context, dir string, progress io.Writer, done func(*scenario)) error {
	all, err := proc.Allowed()
	if err != nil {
		return err
	}
	for _, t := range p.tables {
		if err := p.table(ctx, dir, progress, t, done); err != nil {
			return err
		}
	}
	return proc.BindSelf(all)
}

func (p *plan) table(ctx context.Context, dir string, progress io.Writer, t table, done func(*scenario)) (err error) {
	var servers []*peers.Process
	defer func() {
		for _, s := range slices.Backward(servers) {
			err = errors.Join(err, s.Stop())
		}
	}()
	if err := proc.BindSelf(t.load); err != nil {
		return err
	}
	runtime.GOMAXPROCS(t.threads)
	for _, peer := range p.peers {
		s, err := peers.Start(dir, peer, t.Workers, t.server)
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	for _, s := range servers {
		if err := s.Ready(ctx); err != nil {
			return err
		}
	}
	var names []string
	for _, s := range servers {
		names = append(names, s.Name)
	}
	for _, connections := range p.connections {
		for _, size := range p.sizes {
			for _, pipeline := range p.pipelines {
				s := &scenario{Table: t, Connections: connections, Size: size, Pipeline: pipeline}
				about := time.Duration((t.Cycles+1)*len(servers)) * (p.warmup + p.burst)
				fmt.Fprintf(progress, "compare: %s: %v or more\n", s.title(), about.Round(time.Second))
				if err := p.scenario(ctx, s, servers); err != nil {
					return err
				}
				s.figure(names)
				done(s)
			}
		}
	}
	return nil
}

// patience bounds the cycles of a scenario, as a multiple of those wanted.
const patience = 3

// scenario fills in the bursts of s: cycles until as many as are wanted were
// not disturbed, or patience is over. The first round over all servers is not
// kept: it brings workers, buffers and the kernel's tables to their size.
func (p *plan) scenario(ctx context.Context, s *scenario, servers []*peers.Process) error {
	whole := 0
	for cycle := -1; whole < s.Table.Cycles && cycle < patience*s.Table.Cycles; cycle++ {
		good := cycle >= 0
		for _, server := range stats.Order(servers, max(cycle, 0)) {
			b, err := p.one(ctx, s, server)
			if err != nil {
				return err
			}
			if b.Cycle = cycle; cycle >= 0 {
				s.Bursts = append(s.Bursts, b)
				good = good && b.LeftOut == ""
			}
		}
		if good {
			whole++
		}
	}
	return nil
}

// one runs one burst. The error ends the whole run; what only spoils this
// burst is in LeftOut.
func (p *plan) one(ctx context.Context, s *scenario, server *peers.Process) (*burst, error) {
	pids, err := proc.Tree(server.PID())
	if err != nil {
		return nil, fmt.Errorf("compare: %s: %w%s", server.Name, err, server.LastWords())
	}
	var before, after moment
	var memory proc.Memory
	r, err := load.Run(ctx, load.Config{
		Target:      fmt.Sprintf("tcp://127.0.0.1:%d", server.Port),
		Mode:        load.Raw,
		Connections: s.Connections,
		Size:        s.Size,
		Pipeline:    s.Pipeline,
		Threads:     s.Table.threads,
		Warmup:      p.warmup,
		Duration:    p.burst,
		OnStart:     func() { before.begin(pids) },
		OnStop: func() {
			after.end(pids)
			// It may be refused where the server has dropped privileges; then
			// it stays zero.
			memory, _ = proc.MemoryOf(pids)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("compare: %s: %w%s", server.Name, err, server.LastWords())
	}
	if err := errors.Join(before.err, after.err); err != nil {
		return nil, fmt.Errorf("compare: %s: %w", server.Name, err)
	}
	spent := after.server.Since(before.server)
	own := after.own.Since(before.own)
	b := &burst{
		Peer:       server.Name,
		Messages:   r.Messages,
		Seconds:    r.Seconds,
		CPUSeconds: spent.Total.Seconds(),
		Others:     max(0, (after.busy-before.busy-spent.Total-own.Total).Seconds()/after.at.Sub(before.at).Seconds()),
		Latency:    r.Latency,
		Memory:     memory,
		Errors:     r.Errors,
		histogram:  r.Histogram,
	}
	if spent.Total > 0 {
		b.Busiest = spent.Busiest.Seconds() / spent.Total.Seconds()
	}
	now, err := proc.Tree(server.PID())
	switch {
	case err != nil:
		return nil, fmt.Errorf("compare: %s: %w%s", server.Name, err, server.LastWords())
	case r.Errors.Total() > 0:
		b.LeftOut = "errors"
	case !slices.Equal(now, pids) || !spent.Complete:
		b.LeftOut = "the server's processes or threads changed"
	case b.Messages == 0 || spent.Total == 0:
		b.LeftOut = "nothing came back"
	case b.Others > p.maxOthers:
		b.LeftOut = "other programs were busy"
	}
	return b, nil
}

// moment is what was read at one edge of a burst. The server is read nearest
// to the burst.
type moment struct {
	at          time.Time
	busy        time.Duration
	server, own *proc.Usage
	err         error
}

func (m *moment) begin(pids []int) {
	m.machine()
	m.usage(pids)
}

func (m *moment) end(pids []int) {
	m.usage(pids)
	m.machine()
}

func (m *moment) machine() {
	var err, e error
	m.at = time.Now()
	m.busy, err = proc.Busy()
	m.own, e = proc.UsageOf([]int{os.Getpid()})
	m.err = errors.Join(m.err, err, e)
}

func (m *moment) usage(pids []int) {
	var err error
	m.server, err = proc.UsageOf(pids)
	m.err = errors.Join(m.err, err)
}

// figure computes the figures of the peers from the bursts.
func (s *scenario) figure(names []string) {
	perCPU, rate := map[string]map[int]float64{}, map[string]map[int]float64{}
	for _, b := range s.Bursts {
		if b.LeftOut != "" {
			continue
		}
		if perCPU[b.Peer] == nil {
			perCPU[b.Peer], rate[b.Peer] = map[int]float64{}, map[int]float64{}
		}
		perCPU[b.Peer][b.Cycle] = float64(b.Messages) / b.CPUSeconds
		rate[b.Peer][b.Cycle] = float64(b.Messages) / b.Seconds
	}
	for _, name := range names {
		f := figures{Peer: name}
		var rates, perCPUs, micros, busiest, rss, pss []float64
		var latency load.Histogram
		for _, b := range s.Bursts {
			if b.Peer != name {
				continue
			}
			f.Errors += b.Errors.Total()
			if b.LeftOut != "" {
				f.LeftOut++
				continue
			}
			f.Bursts++
			rates = append(rates, float64(b.Messages)/b.Seconds)
			perCPUs = append(perCPUs, float64(b.Messages)/b.CPUSeconds)
			micros = append(micros, b.CPUSeconds*1e6/float64(b.Messages))
			busiest = append(busiest, b.Busiest)
			if b.Memory.PSS > 0 {
				rss = append(rss, float64(b.Memory.RSS))
				pss = append(pss, float64(b.Memory.PSS))
			}
			if b.histogram != nil {
				latency.Merge(b.histogram)
			}
		}
		f.Rate, f.PerCPU = stats.Of(rates).Median, stats.Of(perCPUs).Median
		f.MicrosPerMessage, f.Busiest = stats.Of(micros).Median, stats.Of(busiest).Median
		f.RSS, f.PSS = stats.Of(rss).Median, stats.Of(pss).Median
		f.P50, f.P99 = latency.Summary().P50, latency.Summary().P99
		f.RatioCPU = stats.Paired(perCPU[name], perCPU[peers.Baseline])
		f.RatioRate = stats.Paired(rate[name], rate[peers.Baseline])
		s.Figures = append(s.Figures, f)
	}
	q := stats.Paired(perCPU[peers.NoJournal], perCPU[peers.Mainstay])
	s.Journal = stats.Quartiles{Q1: 100 * (q.Q1 - 1), Median: 100 * (q.Median - 1), Q3: 100 * (q.Q3 - 1), N: q.N}
}
