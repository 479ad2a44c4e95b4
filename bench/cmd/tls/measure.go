package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
	"github.com/mainstay-go/mainstay/bench/stats"
)

// The marks.
const (
	markEcho = 1 / 1.2 // CPU time a message over that of crypto/tls
	markIdle = 2560    // bytes
)

// result is the whole of what was measured, as JSON.
type result struct {
	Machine     report.Machine `json:"machine"`
	Connections int            `json:"connections"`
	Idle        int            `json:"idle_connections"`
	Echo        []rates        `json:"echo,omitempty"`
	Handshakes  *rates         `json:"handshakes,omitempty"`
	Memory      []memory       `json:"idle,omitempty"`
	Handoff     *handoff       `json:"handoff,omitempty"`
	Marks       []report.Mark  `json:"marks"`
}

// rates is what servers did a second of their CPU time.
type rates struct {
	Size    int    `json:"size,omitempty"` // of messages
	Servers []rate `json:"servers"`        // the first is what the others are held against
}

type rate struct {
	Name   string          `json:"name"`
	Rate   stats.Quartiles `json:"per_cpu_second"`
	OfBase stats.Quartiles `json:"of_first"` // paired
	bursts map[int]float64
}

// memory is what an idle connection takes.
type memory struct {
	Name string  `json:"name"`
	Each float64 `json:"bytes_per_connection"`
	Anon float64 `json:"anonymous_bytes_per_connection"`
}

// handoff is what clients notice of a reload. Times are milliseconds.
type handoff struct {
	Quiet  times  `json:"quiet_ms"`
	Reload times  `json:"reload_ms"`
	Said   string `json:"said"` // by the command reload
}

type times struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
	N   int     `json:"n"`
}

func timesOf(sorted []time.Duration) times {
	at := func(q float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		return float64(sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]) / 1e6
	}
	return times{at(0.5), at(0.99), at(1), len(sorted)}
}

// bursts has servers take turns and returns what burst has found.
func (f *field) bursts(servers []*server, burst func(*server) (float64, error)) (*rates, error) {
	r := &rates{}
	for _, s := range servers {
		r.Servers = append(r.Servers, rate{Name: s.name, bursts: map[int]float64{}})
	}
	order := make([]int, len(servers))
	for i := range order {
		order[i] = i
	}
	for cycle := range f.cycles + 1 {
		for _, i := range stats.Order(order, cycle) {
			v, err := burst(servers[i])
			if err != nil {
				return nil, fmt.Errorf("tls: %s: %w", servers[i].name, err)
			}
			if cycle > 0 { // the first one warms up
				r.Servers[i].bursts[cycle] = v
			}
		}
	}
	for i := range r.Servers {
		s := &r.Servers[i]
		var all []float64
		for _, v := range s.bursts {
			all = append(all, v)
		}
		s.Rate, s.OfBase = stats.Of(all), stats.Paired(s.bursts, r.Servers[0].bursts)
	}
	return r, nil
}

// during returns how many of what count counts there were a second of the
// server's CPU time, in a burst.
func (f *field) during(ctx context.Context, s *server, count func() (int, error)) (float64, error) {
	pids, err := s.pids()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, f.burst/4); err != nil {
		return 0, err
	}
	before, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	from, err := count()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, f.burst); err != nil {
		return 0, err
	}
	after, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	to, err := count()
	if err != nil {
		return 0, err
	}
	return float64(to-from) / after.Since(before).Total.Seconds(), nil
}

func (f *field) echo(ctx context.Context, res *result) error {
	for _, size := range f.sizes {
		r, err := f.bursts(f.of(append([]string{cryptoTLS, mainstay, nginx}, f.custom...)...), func(s *server) (rate float64, err error) {
			c, err := openCrowd(ctx, s.addr, f.client(), f.connections, size)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, c.close()) }()
			if err := c.start(); err != nil {
				return 0, err
			}
			rate, err = f.during(ctx, s, c.count)
			return rate, errors.Join(err, c.stop())
		})
		if err != nil {
			return err
		}
		r.Size = size
		res.Echo = append(res.Echo, *r)
	}
	return nil
}

// together is how many handshakes are under way at a time.
const together = 8

func (f *field) handshakes(ctx context.Context, res *result) (err error) {
	res.Handshakes, err = f.bursts(f.of(netHTTP, mainstay), func(s *server) (float64, error) {
		ctx, cancel := context.WithCancel(ctx)
		var clients sync.WaitGroup
		defer clients.Wait()
		defer cancel()
		var done atomic.Int64
		errs := make(chan error, together)
		for range together {
			clients.Go(func() {
				for ctx.Err() == nil {
					if err := shakeHands(s.addr, f.client()); err != nil {
						errs <- err
						return
					}
					done.Add(1)
				}
			})
		}
		return f.during(ctx, s, func() (int, error) {
			select {
			case err := <-errs:
				return 0, err
			default:
				return int(done.Load()), nil
			}
		})
	})
	return err
}

// shakeHands connects, and ends the connection when both know that the
// handshake is done.
func shakeHands(addr string, cfg *tls.Config) error {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return nil
}

func (f *field) memories(ctx context.Context, res *result) error {
	for _, s := range f.of(append([]string{cryptoTLS, mainstay, nginx}, f.custom...)...) {
		m, err := f.memory(ctx, s)
		if err != nil {
			return fmt.Errorf("tls: %s: %w", s.name, err)
		}
		res.Memory = append(res.Memory, *m)
	}
	return nil
}

func (f *field) memory(ctx context.Context, s *server) (_ *memory, err error) {
	warm, err := openCrowd(ctx, s.addr, f.client(), max(f.idle/10, 1), 64)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, warm.close()) }()
	look := func() (proc.Memory, error) {
		if err := pause(ctx, f.settle); err != nil {
			return proc.Memory{}, err
		}
		pids, err := s.pids()
		if err != nil {
			return proc.Memory{}, err
		}
		return proc.MemoryOf(pids)
	}
	before, err := look()
	if err != nil {
		return nil, err
	}
	c, err := openCrowd(ctx, s.addr, f.client(), f.idle, 64)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	after, err := look()
	if err != nil {
		return nil, err
	}
	each := func(before, after uint64) float64 { return (float64(after) - float64(before)) / float64(f.idle) }
	return &memory{s.name, each(before.PSS, after.PSS), each(before.Anon, after.Anon)}, nil
}

func (f *field) handoff(ctx context.Context, res *result) (err error) {
	s := f.of(mainstay)[0]
	c, err := openCrowd(ctx, s.addr, f.client(), f.connections, 64)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	stop, err := c.pace(100 * time.Millisecond)
	if err != nil {
		return err
	}
	h := &handoff{}
	quiet := 2 * time.Second
	if err := pause(ctx, quiet); err != nil {
		return err
	}
	all, _, err := c.taken()
	if err != nil {
		return err
	}
	h.Quiet = timesOf(all)
	out, err := exec.CommandContext(ctx, f.server, "reload", "--wait", "--control", "unix://"+f.control).CombinedOutput()
	if err != nil {
		return fmt.Errorf("tls: reload: %w: %s", err, out)
	}
	h.Said = strings.TrimSpace(string(out))
	if err := pause(ctx, quiet/4); err != nil { // what is still on its way counts
		return err
	}
	all, late, err := c.taken()
	if err != nil {
		return err
	}
	if late > quiet/4 {
		return fmt.Errorf("tls: a message has no answer since %v", late)
	}
	h.Reload = timesOf(all)
	res.Handoff = h
	return stop()
}

// pause waits for d, or returns why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("tls: %w", context.Cause(ctx))
	}
}

// mark holds the figures against the marks.
func (r *result) mark() {
	for _, e := range r.Echo {
		for _, s := range e.Servers {
			if s.Name == mainstay {
				r.Marks = append(r.Marks, report.NewMark(fmt.Sprintf("CPU time of %d bytes over that of %s", e.Size, e.Servers[0].Name), 1/s.OfBase.Median, markEcho))
			}
		}
	}
	for _, m := range r.Memory {
		if m.Name == mainstay {
			r.Marks = append(r.Marks, report.NewMark("bytes an idle connection", m.Each, markIdle))
		}
	}
}

// print writes the tables for people.
func (r *result) print(w io.Writer) {
	fmt.Fprintln(w, r.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, e := range r.Echo {
		fmt.Fprintf(t, "\nmessages of %d bytes on %d connections\tmsg/CPU s\tCPU µs/msg\tof %s\t\n", e.Size, r.Connections, e.Servers[0].Name)
		e.print(t)
	}
	if r.Handshakes != nil {
		fmt.Fprintf(t, "\nfull handshakes\t/CPU s\tCPU µs each\tof %s\t\n", r.Handshakes.Servers[0].Name)
		r.Handshakes.print(t)
	}
	if len(r.Memory) > 0 {
		fmt.Fprintf(t, "\n%d idle connections\tbytes each\tanonymous\t\n", r.Idle)
		for _, m := range r.Memory {
			fmt.Fprintf(t, "%s\t%.0f\t%.0f\t\n", m.Name, m.Each, m.Anon)
		}
	}
	if h := r.Handoff; h != nil {
		fmt.Fprintf(t, "\nreplies\tp50 ms\tp99\tmax\tcount\t\n")
		for _, row := range []struct {
			name string
			times
		}{{"quiet", h.Quiet}, {"during a reload", h.Reload}} {
			fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%d\t\n", row.name, row.P50, row.P99, row.Max, row.N)
		}
	}
	t.Flush()
	if r.Handoff != nil {
		fmt.Fprintf(w, "\nreload: %s\n", r.Handoff.Said)
	}
	if len(r.Marks) > 0 {
		fmt.Fprintln(w)
	}
	for _, m := range r.Marks {
		fmt.Fprintln(w, "  "+m.String())
	}
}

func (r *rates) print(w io.Writer) {
	for _, s := range r.Servers {
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%s\t\n", s.Name, s.Rate.Median, 1e6/s.Rate.Median, s.OfBase)
	}
}
