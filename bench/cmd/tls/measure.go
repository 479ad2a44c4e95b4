package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
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

	markHandshakes = 1 // CPU time of one over that of net/http
)

// result is the whole of what was measured, as JSON.
type result struct {
	Machine    report.Machine `json:"machine"`
	Idle       int            `json:"idle_connections"`
	Echo       []rates        `json:"echo,omitempty"`
	Handshakes []rates        `json:"handshakes,omitempty"`
	Memory     []memory       `json:"idle,omitempty"`
	Handoff    *handoff       `json:"handoff,omitempty"`
	Marks      []report.Mark  `json:"marks"`
}

// rates is what servers did a second of their CPU time.
type rates struct {
	Connections int    `json:"connections,omitempty"`
	Size        int    `json:"size,omitempty"`  // of messages
	Depth       int    `json:"depth,omitempty"` // messages in flight on each
	What        string `json:"what,omitempty"`  // of handshakes: full or resumed
	Servers     []rate `json:"servers"`         // the first is what the others are held against
}

type rate struct {
	Name   string          `json:"name"`
	Rate   stats.Quartiles `json:"per_cpu_second"`
	OfBase stats.Quartiles `json:"of_first"`     // paired
	Busy   stats.Quartiles `json:"server_cores"` // CPU time over time
	bursts map[int]float64
	cores  []float64
}

// burst is what one was: what was counted, and the CPU time of the server for
// it, in how much time.
type burst struct {
	n        int
	cpu, all time.Duration
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

// bursts has servers take turns and returns what they did in their bursts.
func (f *field) bursts(servers []*server, one func(*server) (burst, error)) (*rates, error) {
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
			b, err := one(servers[i])
			if err != nil {
				return nil, fmt.Errorf("tls: %s: %w", servers[i].name, err)
			}
			if s := &r.Servers[i]; cycle > 0 { // the first one warms up
				s.bursts[cycle] = float64(b.n) / b.cpu.Seconds()
				s.cores = append(s.cores, b.cpu.Seconds()/b.all.Seconds())
			}
		}
	}
	for i := range r.Servers {
		s := &r.Servers[i]
		s.Rate = stats.Of(slices.Collect(maps.Values(s.bursts)))
		s.OfBase, s.Busy = stats.Paired(s.bursts, r.Servers[0].bursts), stats.Of(s.cores)
	}
	return r, nil
}

// during counts in a burst.
func (f *field) during(ctx context.Context, s *server, count func() (int, error)) (b burst, err error) {
	pids, err := s.pids()
	if err != nil {
		return b, err
	}
	if err := pause(ctx, f.burst/4); err != nil {
		return b, err
	}
	before, err := proc.UsageOf(pids)
	if err != nil {
		return b, err
	}
	begin := time.Now()
	from, err := count()
	if err != nil {
		return b, err
	}
	if err := pause(ctx, f.burst); err != nil {
		return b, err
	}
	after, err := proc.UsageOf(pids)
	if err != nil {
		return b, err
	}
	b.all = time.Since(begin)
	to, err := count()
	if err != nil {
		return b, err
	}
	b.n, b.cpu = to-from, after.Since(before).Total
	return b, nil
}

func (f *field) echo(ctx context.Context, res *result) error {
	for _, n := range f.connections {
		if err := f.echoOf(ctx, res, n); err != nil {
			return err
		}
	}
	return nil
}

// echoOf measures with n connections to each server, which are idle while it is
// not its turn.
func (f *field) echoOf(ctx context.Context, res *result, n int) (err error) {
	servers := f.of(append([]string{cryptoTLS, mainstay, nginx}, f.custom...)...)
	crowds := map[*server]*crowd{}
	defer func() {
		for _, c := range crowds {
			err = errors.Join(err, c.close())
		}
	}()
	for _, s := range servers {
		if crowds[s], err = openCrowd(ctx, s.addr, f.client(), n); err != nil {
			delete(crowds, s)
			return fmt.Errorf("tls: %s: %w", s.name, err)
		}
	}
	for _, size := range f.sizes {
		for _, depth := range f.pipeline {
			r, err := f.bursts(servers, func(s *server) (burst, error) {
				c := crowds[s]
				if err := c.start(size, depth); err != nil {
					return burst{}, err
				}
				b, err := f.during(ctx, s, c.count)
				return b, errors.Join(err, c.stop(ctx))
			})
			if err != nil {
				return err
			}
			r.Connections, r.Size, r.Depth = n, size, depth
			res.Echo = append(res.Echo, *r)
		}
	}
	return nil
}

// together is how many handshakes are under way at a time.
const together = 8

func (f *field) handshakes(ctx context.Context, res *result) error {
	for _, what := range []string{"full", "resumed"} {
		r, err := f.bursts(f.of(append([]string{netHTTP, mainstay}, f.custom...)...), func(s *server) (burst, error) {
			return f.handshaking(ctx, s, what == "resumed")
		})
		if err != nil {
			return err
		}
		r.What = what
		res.Handshakes = append(res.Handshakes, *r)
	}
	return nil
}

// handshaking is a burst of handshakes.
func (f *field) handshaking(ctx context.Context, s *server, resume bool) (burst, error) {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	var done atomic.Int64
	errs := make(chan error, together)
	for range together {
		clients.Go(func() {
			cfg := f.client()
			if resume {
				cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			for first := true; ctx.Err() == nil; first = false {
				if err := shakeHands(s.addr, cfg, resume && !first); err != nil {
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
}

// shakeHands connects, and ends the connection when both know that the
// handshake is done.
func shakeHands(addr string, cfg *tls.Config, resumed bool) error {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	if got := c.ConnectionState().DidResume; got != resumed {
		return fmt.Errorf("resumed: %v, want %v", got, resumed)
	}
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
	warm, err := openCrowd(ctx, s.addr, f.client(), max(f.idle/10, 1))
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
	c, err := openCrowd(ctx, s.addr, f.client(), f.idle)
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
	c, err := openCrowd(ctx, s.addr, f.client(), f.connections[0])
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
				r.Marks = append(r.Marks, report.NewMark(fmt.Sprintf("CPU time of %s over that of %s", e.load(), e.Servers[0].Name), 1/s.OfBase.Median, markEcho))
			}
		}
	}
	for _, h := range r.Handshakes {
		for _, s := range h.Servers {
			if s.Name == mainstay {
				r.Marks = append(r.Marks, report.NewMark(fmt.Sprintf("CPU time of %s handshakes over that of %s", h.What, h.Servers[0].Name), 1/s.OfBase.Median, markHandshakes))
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
		fmt.Fprintf(t, "\n%s\tmsg/CPU s\tCPU µs/msg\tof %s\tserver's cores\t\n", e.load(), e.Servers[0].Name)
		e.print(t)
	}
	for _, h := range r.Handshakes {
		fmt.Fprintf(t, "\n%s handshakes\t/CPU s\tCPU µs each\tof %s\tserver's cores\t\n", h.What, h.Servers[0].Name)
		h.print(t)
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

// load says with what an echo was loaded.
func (r *rates) load() string {
	return fmt.Sprintf("%d B x %d on %d connections", r.Size, r.Depth, r.Connections)
}

func (r *rates) print(w io.Writer) {
	for _, s := range r.Servers {
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%s\t%.2f\t\n", s.Name, s.Rate.Median, 1e6/s.Rate.Median, s.OfBase, s.Busy.Median)
	}
}
