package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/signals"
)

// mostEach is how many connections a worker can hold, or a process of clients.
const mostEach = 18_000

// hanging is a setting of the service whose worker hangs: the default would
// only have everybody wait for longer. An idle worker's loop turns once a second,
// so it may not be less than that.
const hanging = "hang_timeout = \"2s\"\n"

// restartPause is RestartSec= as systemd has it if nobody sets it.
const restartPause = 100 * time.Millisecond

// service is a service with clients.
type service struct {
	*manager
	clients []*child
}

// begin starts a service and has n clients connect, from several processes if
// they are many.
func begin(ctx context.Context, server string, workers, n int, settings string) (_ *service, err error) {
	m, err := startService(ctx, server, workers, settings)
	if err != nil {
		return nil, err
	}
	s := &service{manager: m}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	s.follow(ctx)
	for n > 0 {
		c, err := startChild("clients")
		if err != nil {
			return nil, err
		}
		s.clients = append(s.clients, c)
		part := min(n, mostEach*3/4)
		n -= part
		if _, err := c.ask("connect %d %d %d", s.port, len(s.clients), part); err != nil {
			return nil, errors.Join(err, errors.New(m.lastWords()))
		}
	}
	return s, ctx.Err()
}

// end ends the clients before the service.
func (s *service) end() error {
	for _, c := range s.clients {
		c.stop()
	}
	return s.stop()
}

// full starts a service whose first worker has n connections, and gives it two
// siblings that have none.
func full(ctx context.Context, server string, n int) (_ *service, victim control.Worker, err error) {
	s, err := begin(ctx, server, 1, n, "")
	if err != nil {
		return nil, victim, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	if _, err := s.client.Scale(ctx, control.ScaleRequest{N: 3}); err != nil {
		return nil, victim, err
	}
	st, err := s.await(ctx, "three workers serve", whole(3))
	if err != nil {
		return nil, victim, err
	}
	victim = st.Pools[0].Workers[0]
	if victim.Connections != int64(n) {
		return nil, victim, fmt.Errorf("survival: the worker has %d connections, want %d", victim.Connections, n)
	}
	return s, victim, nil
}

// check has every client answer and returns how many were lost. An answer that
// is wrong is an error.
func (s *service) check() (lost int, err error) {
	for _, c := range s.clients {
		a, err := c.ask("check")
		if err == nil && a.Wrong > 0 {
			err = fmt.Errorf("survival: %d clients had an answer that was not theirs", a.Wrong)
		}
		if err != nil {
			return 0, err
		}
		lost += a.Lost
	}
	return lost, nil
}

// harvest is what was found in that part, by round.
type harvest struct {
	Connections int       `json:"connections"`
	Ours        []float64 `json:"ms"`
	Longest     []float64 `json:"longest_stall_ms"`
	Bare        []float64 `json:"bare_ms"`
	Lost        int       `json:"lost"`
}

// ratios are those of each round, whose two halves lie seconds apart at most.
func (h *harvest) ratios() (list []float64) {
	for i := range h.Ours {
		list = append(list, h.Ours[i]/h.Bare[i])
	}
	return list
}

func (p *plan) harvest(ctx context.Context) (*harvest, error) {
	h := &harvest{Connections: p.connections}
	f, err := startFloor(p.connections)
	if err != nil {
		return nil, err
	}
	defer f.stop()
	const uncounted = 1
	for i := range uncounted + p.rounds {
		bare, err := f.round()
		if err != nil {
			return nil, err
		}
		r, err := p.death(ctx)
		if err != nil {
			return nil, err
		}
		if i < uncounted {
			continue
		}
		h.Bare = append(h.Bare, ms(bare))
		h.Ours = append(h.Ours, ms(r.took))
		h.Longest = append(h.Longest, ms(r.longest))
		h.Lost += r.lost
	}
	return h, nil
}

// death is what came of one.
type death struct {
	took, longest time.Duration
	lost          int
}

var longestStall = regexp.MustCompile(`longest stall ([^ ,]+)`)

// death kills a worker whose clients are silent.
func (p *plan) death(ctx context.Context) (d death, err error) {
	s, victim, err := full(ctx, p.server, p.connections)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	<-time.After(200 * time.Millisecond) // for what has just started to be at rest
	at := time.Now()
	if err := unix.Kill(victim.PID, unix.SIGKILL); err != nil {
		return d, err
	}
	e, ended, err := s.harvested(ctx, victim.Incarnation)
	if err != nil {
		return d, err
	}
	d.took = ended.Sub(at)
	if m := longestStall.FindStringSubmatch(e.Message); m != nil {
		d.longest, err = time.ParseDuration(m[1])
	}
	if err != nil || d.longest == 0 {
		return d, fmt.Errorf("survival: event %q tells no longest stall: %w", e.Message, err)
	}
	d.lost, err = s.check()
	return d, err
}

// memory is what a service takes while nothing happens. Sizes in MiB.
type memory struct {
	Connections int       `json:"connections"`
	Workers     []int64   `json:"worker_connections"`
	Before      float64   `json:"supervisor_before_mib"`
	Supervisor  float64   `json:"supervisor_mib"`
	Keepers     []float64 `json:"keeper_mib"` // the supervisor's own included
	CPU         float64   `json:"supervisor_cpu_ms_per_second"`
	KeeperCPU   float64   `json:"keepers_cpu_ms_per_second"`
}

func (p *plan) memory(ctx context.Context) (_ *memory, err error) {
	const workers = 3
	m := &memory{Connections: workers * p.each}
	empty, err := begin(ctx, p.server, workers, 0, "")
	if err != nil {
		return nil, err
	}
	m.Before, err = resident(empty.pid)
	if err := errors.Join(err, empty.end()); err != nil {
		return nil, err
	}
	s, err := begin(ctx, p.server, workers, m.Connections, "")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s", err, s.lastWords())
		}
		err = errors.Join(err, s.end())
	}()
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	serving := []int{s.pid}
	for _, w := range st.Pools[0].Workers {
		m.Workers = append(m.Workers, w.Connections)
		serving = append(serving, w.PID)
	}
	<-time.After(3 * time.Second) // for what has just been done to be over
	tree, err := proc.Tree(s.pid)
	if err != nil {
		return nil, err
	}
	keepers := slices.DeleteFunc(append(tree, s.orphans()...), func(pid int) bool { return slices.Contains(serving, pid) })
	if want := workers + 1; len(keepers) != want {
		return nil, fmt.Errorf("survival: %d keepers, want %d", len(keepers), want)
	}
	if m.CPU, m.KeeperCPU, err = spent(ctx, s.pid, keepers, p.watch); err != nil {
		return nil, err
	}
	if m.Supervisor, err = resident(s.pid); err != nil {
		return nil, err
	}
	for _, pid := range keepers {
		size, err := resident(pid)
		if err != nil {
			return nil, err
		}
		m.Keepers = append(m.Keepers, size)
	}
	if lost, err := s.check(); err != nil || lost > 0 {
		return nil, fmt.Errorf("survival: %d connections were lost: %w", lost, err)
	}
	return m, nil
}

// resident returns a process's memory in MiB.
func resident(pid int) (float64, error) {
	m, err := proc.MemoryOf([]int{pid})
	return float64(m.RSS) / (1 << 20), err
}

// spent returns the CPU time in ms that the supervisor and the keepers use in a
// second.
func spent(ctx context.Context, supervisor int, keepers []int, watch time.Duration) (own, kept float64, err error) {
	usage := func() (a, b *proc.Usage, err error) {
		a, err1 := proc.UsageOf([]int{supervisor})
		b, err2 := proc.UsageOf(keepers)
		return a, b, errors.Join(err1, err2)
	}
	ownBefore, keptBefore, err := usage()
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-time.After(watch):
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("survival: %w", context.Cause(ctx))
	}
	ownAfter, keptAfter, err := usage()
	if err != nil {
		return 0, 0, err
	}
	return ms(ownAfter.Since(ownBefore).Total) / watch.Seconds(), ms(keptAfter.Since(keptBefore).Total) / watch.Seconds(), nil
}

// survivors is how many connections a worker's death has cost, by round.
type survivors struct {
	Kind        string    `json:"kind"`
	Connections int       `json:"connections"`
	Lost        []int     `json:"lost"`
	Longest     []float64 `json:"longest_stall_ms"` // by the event
}

func (p *plan) survivors(ctx context.Context) ([]*survivors, error) {
	list := []*survivors{{Kind: "idle", Connections: p.idle}, {Kind: "busy", Connections: p.busy}}
	for range p.rounds {
		for _, k := range list {
			lost, longest, err := p.busyDeath(ctx, k.Connections, k.Kind == "busy")
			if err != nil {
				return nil, err
			}
			k.Lost = append(k.Lost, lost)
			k.Longest = append(k.Longest, ms(longest))
		}
	}
	return list, nil
}

// busyDeath kills a worker whose clients are silent, or have messages under
// way.
func (p *plan) busyDeath(ctx context.Context, n int, busy bool) (lost int, longest time.Duration, err error) {
	s, victim, err := full(ctx, p.server, n)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if busy {
		if _, err := s.clients[0].ask("busy yes"); err != nil {
			return 0, 0, err
		}
	}
	<-time.After(300 * time.Millisecond) // of work, or of rest
	if err := unix.Kill(victim.PID, unix.SIGKILL); err != nil {
		return 0, 0, err
	}
	e, _, err := s.harvested(ctx, victim.Incarnation)
	if err != nil {
		return 0, 0, err
	}
	if m := longestStall.FindStringSubmatch(e.Message); m != nil {
		if longest, err = time.ParseDuration(m[1]); err != nil {
			return 0, 0, fmt.Errorf("survival: event %q: %w", e.Message, err)
		}
	}
	lost, err = s.check()
	return lost, longest, err
}

// stall is for how long clients wait at most around a kind of death, by round.
type stall struct {
	Kind    string    `json:"kind"`
	Longest []float64 `json:"ms"`
	Quiet   []float64 `json:"quiet_ms"` // as long before
	Lost    int       `json:"lost"`
}

func (p *plan) stalls(ctx context.Context) ([]*stall, error) {
	var list []*stall
	for _, k := range []struct {
		kind       string
		rounds     int
		worker     unix.Signal // 0: none dies
		supervisor unix.Signal // 0: it does not die
	}{
		{"worker, SIGKILL", p.rounds, unix.SIGKILL, 0},
		{"worker, SIGSEGV", p.rounds, unix.SIGSEGV, 0},
		{"worker hangs (SIGSTOP)", min(p.rounds, 3), unix.SIGSTOP, 0},
		{"supervisor, SIGKILL", p.rounds, 0, unix.SIGKILL},
		{"both, SIGKILL", p.rounds, unix.SIGKILL, unix.SIGKILL},
		{"restart: every process is replaced", p.rounds, 0, signals.Restart},
	} {
		one := &stall{Kind: k.kind}
		if err := one.measure(ctx, p.server, k.rounds, k.worker, k.supervisor); err != nil {
			return nil, fmt.Errorf("%s: %w", k.kind, err)
		}
		list = append(list, one)
	}
	return list, nil
}

// What goes on while somebody dies.
const (
	stallWorkers = 3
	stallClients = 300
	stallRate    = 3000 // messages a second
)

func (k *stall) measure(ctx context.Context, server string, rounds int, worker, supervisor unix.Signal) (err error) {
	settings := ""
	if worker == unix.SIGSTOP {
		settings = hanging
	}
	s, err := begin(ctx, server, stallWorkers, stallClients, settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	c := s.clients[0]
	if _, err := c.ask("pace %d", stallRate); err != nil {
		return err
	}
	const window = 400 * time.Millisecond
	for i := range rounds {
		st, err := s.await(ctx, "the workers serve", whole(stallWorkers))
		if err != nil {
			return err
		}
		victim := mostLoaded(st)
		if _, err := c.ask("window"); err != nil {
			return err
		}
		<-time.After(window)
		quiet, err := c.ask("window")
		if err != nil {
			return err
		}
		if worker != 0 {
			if err := unix.Kill(victim.PID, worker); err != nil {
				return err
			}
		}
		if supervisor != 0 {
			if err := s.die(supervisor); err != nil {
				return err
			}
			<-time.After(restartPause)
			if err := s.start(); err != nil {
				return err
			}
		}
		var over []int // who is not to be there any more
		switch {
		case supervisor == signals.Restart:
			over = pidsOf(st)
		case worker != 0:
			over = []int{victim.PID}
		}
		recovered := func(st control.Status) bool {
			return whole(stallWorkers)(st) && st.PID == s.pid && !slices.ContainsFunc(st.Pools[0].Workers, func(w control.Worker) bool { return slices.Contains(over, w.PID) })
		}
		if _, err := s.await(ctx, fmt.Sprintf("round %d: all is well again", i), recovered); err != nil {
			return err
		}
		<-time.After(window)
		a, err := c.ask("window")
		if err != nil {
			return err
		}
		k.Longest, k.Quiet = append(k.Longest, ms(a.Longest)), append(k.Quiet, ms(quiet.Longest))
	}
	k.Lost, err = s.check()
	return err
}

// mostLoaded returns the worker that has the most connections.
func mostLoaded(st control.Status) control.Worker {
	return slices.MaxFunc(st.Pools[0].Workers, func(a, b control.Worker) int { return int(a.Connections - b.Connections) })
}

// adoption is how long it takes a new supervisor to have its workers, by round.
type adoption struct {
	Workers     int       `json:"workers"`
	Connections int       `json:"connections"`
	Ready       []float64 `json:"ready_ms"`
	Adopted     []float64 `json:"adopted_ms"`
	Lost        int       `json:"lost"`
}

func (p *plan) adopt(ctx context.Context) (_ *adoption, err error) {
	a := &adoption{Workers: 3, Connections: p.idle}
	s, err := begin(ctx, p.server, a.Workers, p.idle, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	pids := pidsOf(st)
	for range p.rounds {
		if err := s.die(unix.SIGKILL); err != nil {
			return nil, err
		}
		<-time.After(restartPause)
		if err := s.start(); err != nil {
			return nil, err
		}
		ready, err := s.isReady(ctx)
		if err != nil {
			return nil, err
		}
		_, err = s.await(ctx, "the workers are adopted", func(st control.Status) bool {
			return st.PID == s.pid && whole(a.Workers)(st) && slices.Equal(pidsOf(st), pids)
		})
		if err != nil {
			return nil, err
		}
		a.Ready, a.Adopted = append(a.Ready, ms(ready)), append(a.Adopted, ms(time.Since(s.begun)))
	}
	a.Lost, err = s.check()
	return a, err
}

func pidsOf(st control.Status) (pids []int) {
	for _, w := range st.Pools[0].Workers {
		pids = append(pids, w.PID)
	}
	return pids
}
