package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	connections int
	warm        int
	clients     int
	rate        float64
	rounds      int
	settle      time.Duration
	calm        time.Duration
	watch       time.Duration
	timeout     time.Duration
}

// sample is what one round found. Bytes a connection are of PSS.
type sample struct {
	Supervisor proc.Memory `json:"supervisor"` // with no connection
	Wakeups    float64     `json:"supervisor_wakeups_per_second"`
	Before     proc.Memory `json:"before"`       // supervisor and worker
	After      proc.Memory `json:"after"`        // the same with all connections
	Worker     proc.Memory `json:"worker_after"` // its part in that
	Each       float64     `json:"bytes_per_connection"`
	Anon       float64     `json:"anonymous_bytes_per_connection"`
	Shared     float64     `json:"shared_bytes_per_connection"`
}

// one measures a service that it starts and ends.
func (p *plan) one(ctx context.Context, dir string, peer peers.Peer) (_ *sample, err error) {
	cpus, err := proc.Allowed()
	if err != nil {
		return nil, err
	}
	server, err := peers.Start(dir, peer, 1, cpus)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := server.Ready(ctx); err != nil {
		return nil, err
	}
	if err := p.crowd(ctx, server, p.warm, func() error { return nil }); err != nil {
		return nil, err
	}
	st, err := server.AwaitWorkers(ctx, 1, p.timeout)
	if err != nil {
		return nil, err
	}
	supervisor, worker := st.PID, st.Workers()[0].PID

	s := &sample{}
	if err := pause(ctx, p.calm); err != nil {
		return nil, err
	}
	if err := s.watch(ctx, supervisor, p.watch); err != nil {
		return nil, err
	}
	if s.Supervisor, err = proc.MemoryOf([]int{supervisor}); err != nil {
		return nil, err
	}
	if s.Before, err = proc.MemoryOf([]int{supervisor, worker}); err != nil {
		return nil, err
	}
	err = p.crowd(ctx, server, p.connections, func() error {
		if err := pause(ctx, p.settle); err != nil {
			return err
		}
		var err error
		if s.After, err = proc.MemoryOf([]int{supervisor, worker}); err != nil {
			return err
		}
		if s.Worker, err = proc.MemoryOf([]int{worker}); err != nil {
			return err
		}
		st, err := server.Status(ctx)
		if err != nil {
			return err
		}
		if w := st.Workers(); len(w) != 1 || w[0].PID != worker || w[0].Connections != int64(p.connections) {
			return fmt.Errorf("idle: status tells workers %+v, want %d alone with %d connections", w, worker, p.connections)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.divide(p.connections)
	return s, nil
}

// divide fills in what is a connection's.
func (s *sample) divide(connections int) {
	each := func(before, after uint64) float64 { return (float64(after) - float64(before)) / float64(connections) }
	s.Each = each(s.Before.PSS, s.After.PSS)
	s.Anon = each(s.Before.Anon, s.After.Anon)
	s.Shared = each(s.Before.Shared, s.After.Shared)
}

// crowd runs during while n connections are open and idle.
func (p *plan) crowd(ctx context.Context, server *peers.Process, n int, during func() error) (err error) {
	c, err := crowd.Open(ctx, crowd.Config{Port: server.Port, Ask: server.Ask, Connections: n, Members: p.clients, Rate: p.rate, Waiting: max(1000, p.clients),
		Timeout: p.timeout + time.Duration(float64(n)/p.rate*1e9)})
	if err != nil {
		return fmt.Errorf("idle: %w%s", err, server.LastWords())
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if c.Failed > 0 {
		return fmt.Errorf("idle: %d of %d connections failed: %s%s", c.Failed, n, c.FirstError, server.LastWords())
	}
	return during()
}

// watch counts how often a process wakes up in d.
func (s *sample) watch(ctx context.Context, pid int, d time.Duration) error {
	before, err := proc.SwitchesOf(pid)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, d); err != nil {
		return err
	}
	after, err := proc.SwitchesOf(pid)
	if err != nil {
		return err
	}
	s.Wakeups = float64(after.Since(before)) / time.Since(began).Seconds()
	return nil
}

// pause waits for d, or returns why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("idle: %w", context.Cause(ctx))
	}
}

// result is the whole of what was measured, as JSON.
type result struct {
	Peer          string          `json:"peer"`
	Machine       report.Machine  `json:"machine"`
	Connections   int             `json:"connections"`
	Watch         float64         `json:"watch_seconds"`
	Each          stats.Quartiles `json:"bytes_per_connection"`
	Anon          stats.Quartiles `json:"anonymous_bytes_per_connection"`
	Shared        stats.Quartiles `json:"shared_bytes_per_connection"`
	SupervisorRSS stats.Quartiles `json:"supervisor_rss_bytes"`
	Wakeups       stats.Quartiles `json:"supervisor_wakeups_per_second"`
	Marks         []report.Mark   `json:"marks"`
	Samples       []*sample       `json:"samples"`
}

// The marks.
const (
	markEach    = 512      // bytes
	markEachWS  = 1024     // of a WebSocket
	markRSS     = 15 << 20 // bytes
	markWakeups = 0
)

// figure computes the figures and the marks from the samples.
func (r *result) figure() {
	of := func(value func(*sample) float64) stats.Quartiles {
		var v []float64
		for _, s := range r.Samples {
			v = append(v, value(s))
		}
		return stats.Of(v)
	}
	r.Each = of(func(s *sample) float64 { return s.Each })
	r.Anon = of(func(s *sample) float64 { return s.Anon })
	r.Shared = of(func(s *sample) float64 { return s.Shared })
	r.SupervisorRSS = of(func(s *sample) float64 { return float64(s.Supervisor.RSS) })
	r.Wakeups = of(func(s *sample) float64 { return s.Wakeups })
	most := float64(markEach)
	if r.Peer == peers.MainstayWS {
		most = markEachWS
	}
	r.Marks = []report.Mark{
		report.NewMark("bytes an idle connection", r.Each.Median, most),
		report.NewMark("MiB resident in the supervisor", r.SupervisorRSS.Median/(1<<20), markRSS/(1<<20)),
		report.NewMark("wake-ups of the supervisor a second", r.Wakeups.Median, markWakeups),
	}
}

// print writes the table for people.
func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n\n%s: %d idle connections, wake-ups counted for %.0f s; median [quartiles] of %d rounds\n", r.Machine, r.Peer, r.Connections, r.Watch, r.Each.N)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "bytes a connection\t%s\n", r.Each.Format(0))
	fmt.Fprintf(t, "  of them anonymous\t%s\n", r.Anon.Format(0))
	fmt.Fprintf(t, "  of them shared\t%s\n", r.Shared.Format(0))
	rss := r.SupervisorRSS
	rss.Q1, rss.Median, rss.Q3 = rss.Q1/(1<<20), rss.Median/(1<<20), rss.Q3/(1<<20)
	fmt.Fprintf(t, "supervisor, MiB resident\t%s\n", rss.Format(1))
	fmt.Fprintf(t, "supervisor, wake-ups/s\t%s\n", r.Wakeups)
	t.Flush()
	for _, m := range r.Marks {
		fmt.Fprintln(w, "  "+m.String())
	}
}
