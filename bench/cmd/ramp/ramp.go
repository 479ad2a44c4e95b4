package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/crowd"
	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
	"github.com/mainstay-go/mainstay/bench/stats"
)

// plan is what is to be measured.
type plan struct {
	peers                  []peers.Peer
	connections            int
	rate                   float64
	rounds                 int
	clients                int
	waiting                int
	near                   int
	serverCPUs, clientCPUs []int
	timeout                time.Duration
	maxOthers              float64 // cores that other programs may use during a crowd
}

// The ways in which connections come.
const (
	paced = "paced"
	rush  = "rush"
)

var ways = []string{paced, rush}

// sample is what one crowd found at one server. Times are in microseconds.
type sample struct {
	Round      int     `json:"round"`
	Peer       string  `json:"peer"`
	Way        string  `json:"way"`
	Rate       float64 `json:"accepted_per_second"`
	PerCPU     float64 `json:"accepted_per_server_cpu_second"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
	P999       float64 `json:"p999_us"`
	Max        float64 `json:"max_us"`
	MaxFD      int     `json:"max_descriptor"` // the server's, of the slowest connection
	Near       float64 `json:"near_power_us"`  // the slowest near a power of two; 0: there was none
	NearFD     int     `json:"near_power_descriptor"`
	Late       float64 `json:"clients_late_us"` // the most that a client was behind its schedule
	Others     float64 `json:"other_cores"`     // what neither server nor clients used
	Failed     int     `json:"failed"`
	FirstError string  `json:"first_error,omitempty"`
	LeftOut    string  `json:"left_out,omitempty"` // why it is in no figure
}

// patience bounds the rounds, as a multiple of those wanted.
const patience = 3

// run measures every sample, each at a server that was started for it, until
// as many rounds as are wanted were not disturbed, or patience is over.
func (p *plan) run(ctx context.Context, dir string, progress io.Writer) ([]*sample, error) {
	var samples []*sample
	whole := 0
	for round := 0; whole < p.rounds && round < patience*p.rounds; round++ {
		fmt.Fprintf(progress, "ramp: round %d, %d of %d were not disturbed\n", round+1, whole, p.rounds)
		good := true
		for _, way := range ways {
			for _, peer := range stats.Order(p.peers, round) {
				s, err := p.one(ctx, dir, peer, way)
				if err != nil {
					return nil, err
				}
				s.Round = round
				if s.Others > p.maxOthers {
					s.LeftOut = "other programs were busy"
				}
				good = good && s.LeftOut == ""
				samples = append(samples, s)
			}
		}
		if good {
			whole++
		}
	}
	return samples, nil
}

// one starts a server, sends it a crowd and ends both.
func (p *plan) one(ctx context.Context, dir string, peer peers.Peer, way string) (_ *sample, err error) {
	server, err := peers.Start(dir, peer, 1, p.serverCPUs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := server.Ready(ctx); err != nil {
		return nil, err
	}
	pids, err := proc.Tree(server.PID())
	if err != nil {
		return nil, err
	}
	before, err := look(pids)
	if err != nil {
		return nil, err
	}
	cfg := crowd.Config{Port: server.Port, Connections: p.connections, Members: p.clients, Waiting: p.waiting, CPUs: p.clientCPUs, Timeout: p.timeout}
	if way == paced {
		cfg.Rate = p.rate
	}
	c, err := crowd.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("ramp: %s: %w%s", peer.Name, err, server.LastWords())
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	after, err := look(pids)
	if err != nil {
		return nil, err
	}
	clients, err := proc.UsageOf(c.PIDs())
	if err != nil {
		return nil, err
	}
	fds, err := proc.Accepted(pids, server.Port)
	if err != nil {
		return nil, err
	}
	s := p.sample(c, fds)
	s.Peer, s.Way = peer.Name, way
	spent := after.server.Since(before.server).Total
	if spent > 0 {
		s.PerCPU = float64(len(c.Connections)) / spent.Seconds()
	}
	known := spent + after.own.Since(before.own).Total + clients.Since(&proc.Usage{}).Total
	s.Others = max(0, (after.busy-before.busy-known).Seconds()/after.at.Sub(before.at).Seconds())
	return s, nil
}

// moment is what was read before and after a crowd.
type moment struct {
	at          time.Time
	busy        time.Duration
	server, own *proc.Usage
}

func look(pids []int) (m moment, err error) {
	var errs [3]error
	m.at = time.Now()
	m.busy, errs[0] = proc.Busy()
	m.own, errs[1] = proc.UsageOf([]int{os.Getpid()})
	m.server, errs[2] = proc.UsageOf(pids)
	return m, errors.Join(errs[:]...)
}

// sample computes what follows from the times of the connections and from the
// descriptors by which the server holds them.
func (p *plan) sample(c *crowd.Crowd, fds map[netip.AddrPort]int) *sample {
	s := &sample{Rate: c.Rate(), Late: micros(c.Late), Failed: c.Failed, FirstError: c.FirstError}
	delays := make([]time.Duration, 0, len(c.Connections))
	var slowest, nearest time.Duration
	for _, v := range c.Connections {
		d := v.Delay()
		delays = append(delays, d)
		fd, known := fds[v.From]
		if d > slowest {
			slowest, s.MaxFD = d, fd
		}
		if known && nearPower(fd, p.near) && d > nearest {
			nearest, s.NearFD = d, fd
		}
	}
	slices.Sort(delays)
	s.P50, s.P99, s.P999, s.Max = micros(quantile(delays, 0.5)), micros(quantile(delays, 0.99)), micros(quantile(delays, 0.999)), micros(slowest)
	s.Near = micros(nearest)
	return s
}

// nearPower says whether fd is within near of 1024, 2048, 4096 and so on.
func nearPower(fd, near int) bool {
	for power := 1024; power <= fd+near; power *= 2 {
		if fd >= power-near && fd <= power+near {
			return true
		}
	}
	return false
}

// quantile returns the smallest of the sorted durations that the fraction q
// does not pass, zero of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// figures are what the samples of one server and one way come to. Medians are
// over rounds, ratios inside a round.
type figures struct {
	Peer      string          `json:"peer"`
	Way       string          `json:"way"`
	Rate      stats.Quartiles `json:"accepted_per_second"`
	PerCPU    stats.Quartiles `json:"accepted_per_server_cpu_second"`
	CPURatio  stats.Quartiles `json:"accepted_per_server_cpu_second_to_floor"`
	P50       stats.Quartiles `json:"p50_us"`
	P99       stats.Quartiles `json:"p99_us"`
	P999      stats.Quartiles `json:"p999_us"`
	Max       stats.Quartiles `json:"max_us"`
	P999Ratio stats.Quartiles `json:"p999_to_floor"`
	Near      stats.Quartiles `json:"near_power_us"`
	NearRatio stats.Quartiles `json:"near_power_to_p999"` // of the same sample
	Failed    int             `json:"failed"`             // in all rounds
	LeftOut   int             `json:"left_out"`
}

func (p *plan) figures(samples []*sample) []figures {
	var list []figures
	for _, way := range ways {
		for _, peer := range p.peers {
			list = append(list, figuresOf(samples, peer.Name, way))
		}
	}
	return list
}

func figuresOf(all []*sample, peer, way string) figures {
	f := figures{Peer: peer, Way: way}
	var samples []*sample // those of all servers, in this way, that count
	for _, s := range all {
		if s.Way != way {
			continue
		}
		if s.Peer == peer {
			f.Failed += s.Failed
		}
		if s.LeftOut == "" {
			samples = append(samples, s)
		} else if s.Peer == peer {
			f.LeftOut++
		}
	}
	of := func(value func(*sample) float64) stats.Quartiles {
		var v []float64
		for _, s := range samples {
			if s.Peer == peer {
				v = append(v, value(s))
			}
		}
		return stats.Of(v)
	}
	byRound := func(peer string, value func(*sample) float64) map[int]float64 {
		v := map[int]float64{}
		for _, s := range samples {
			if s.Peer == peer {
				v[s.Round] = value(s)
			}
		}
		return v
	}
	ratio := func(value func(*sample) float64) stats.Quartiles {
		return stats.Paired(byRound(peer, value), byRound(peers.Baseline, value))
	}
	perCPU := func(s *sample) float64 { return s.PerCPU }
	p999 := func(s *sample) float64 { return s.P999 }
	near := func(s *sample) float64 { return s.Near }
	f.Rate, f.PerCPU, f.CPURatio = of(func(s *sample) float64 { return s.Rate }), of(perCPU), ratio(perCPU)
	f.P50, f.P99 = of(func(s *sample) float64 { return s.P50 }), of(func(s *sample) float64 { return s.P99 })
	f.P999, f.Max, f.P999Ratio = of(p999), of(func(s *sample) float64 { return s.Max }), ratio(p999)
	nears := byRound(peer, near)
	for round, v := range nears {
		if v == 0 { // fewer connections than the first power of two
			delete(nears, round)
		}
	}
	var nearest []float64
	for _, v := range nears {
		nearest = append(nearest, v)
	}
	f.Near, f.NearRatio = stats.Of(nearest), stats.Paired(nears, byRound(peer, p999))
	return f
}

// marks holds Mainstay's figures against what is asked of them.
func marks(list []figures) []report.Mark {
	var all []report.Mark
	for _, f := range list {
		if f.Peer != peers.Mainstay {
			continue
		}
		if f.P999Ratio.N > 0 {
			all = append(all, report.NewMark(f.Way+": p99.9 over that of c-floor", f.P999Ratio.Median, 1.5))
		}
		if f.NearRatio.N > 0 {
			all = append(all, report.NewMark(f.Way+": slowest near a power of two over p99.9", f.NearRatio.Median, 1))
		}
	}
	return all
}

// result is the whole of what was measured, as JSON.
type result struct {
	Machine     report.Machine `json:"machine"`
	Connections int            `json:"connections"`
	Rate        float64        `json:"paced_per_second"`
	Clients     int            `json:"clients"`
	Near        int            `json:"near"`
	Figures     []figures      `json:"figures"`
	Marks       []report.Mark  `json:"marks"`
	Samples     []*sample      `json:"samples"`
}

// print writes the tables for people.
func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n\n", r.Machine)
	fmt.Fprintf(w, "%d connections by %d clients; paced: %.0f a second; medians [quartiles] over rounds, used + left out\n", r.Connections, r.Clients, r.Rate)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\taccepts/s\tacc/CPU s\tof c-floor\tp50 µs\tp99 µs\tp99.9 µs\tof c-floor\tmax µs\twithin %d of 2^n µs\tover p99.9\trounds\tfailed\t\n", r.Near)
	for _, f := range r.Figures {
		fmt.Fprintf(t, "%s, %s\t%.0f\t%.0f\t%s\t%.0f\t%.0f\t%s\t%s\t%.0f\t%s\t%s\t%d+%d\t%d\t\n", f.Peer, f.Way, f.Rate.Median, f.PerCPU.Median, f.CPURatio,
			f.P50.Median, f.P99.Median, f.P999.Format(0), f.P999Ratio, f.Max.Median, f.Near.Format(0), f.NearRatio, f.Rate.N, f.LeftOut, f.Failed)
	}
	t.Flush()
	for _, f := range r.Figures {
		if f.Rate.N == 0 {
			fmt.Fprintln(w, "  every round was disturbed by other programs: wait until it is calm, or see --max-others")
			break
		}
	}
	for _, m := range r.Marks {
		fmt.Fprintln(w, "  "+m.String())
	}
}
