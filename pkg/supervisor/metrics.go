package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// figure is one word of a worker's seat, and what it is called.
type figure[T any] struct {
	name, help string
	read       func(*scoreboard.Seat) T
}

// seatCounters only grow. What a worker has counted is kept when it is dead.
var seatCounters = []figure[float64]{
	{"mainstay_connections_accepted_total", "Connections accepted.", func(s *scoreboard.Seat) float64 { return float64(s.Accepts.Load()) }},
	{"mainstay_connections_refused_total", "Connections closed at once because of a limit.", func(s *scoreboard.Seat) float64 { return float64(s.Refused.Load()) }},
	{"mainstay_messages_total", "Messages received; requests, with net/http.", func(s *scoreboard.Seat) float64 { return float64(s.Messages.Load()) }},
	{"mainstay_datagrams_received_total", "Datagrams received.", func(s *scoreboard.Seat) float64 { return float64(s.Datagrams.Load()) }},
	{"mainstay_received_bytes_total", "Bytes read from connections.", func(s *scoreboard.Seat) float64 { return float64(s.BytesIn.Load()) }},
	{"mainstay_sent_bytes_total", "Bytes written to connections.", func(s *scoreboard.Seat) float64 { return float64(s.BytesOut.Load()) }},
	{"mainstay_send_failures_total", "Messages that Send refused.", func(s *scoreboard.Seat) float64 { return float64(s.SendFailures.Load()) }},
	{"mainstay_handoffs_given_total", "Connections that another worker has taken.", func(s *scoreboard.Seat) float64 { return float64(s.HandoffsGiven.Load()) }},
	{"mainstay_handoffs_taken_total", "Connections taken from another worker.", func(s *scoreboard.Seat) float64 { return float64(s.HandoffsTaken.Load()) }},
	{"mainstay_handoffs_refused_total", "Connections offered by another worker and refused.", func(s *scoreboard.Seat) float64 { return float64(s.HandoffsRefused.Load()) }},
	{"mainstay_handoffs_thawed_total", "Connections that were offered to another worker and stayed.", func(s *scoreboard.Seat) float64 { return float64(s.HandoffsThawed.Load()) }},
	{"mainstay_callback_panics_total", "Callbacks that panicked.", func(s *scoreboard.Seat) float64 { return float64(s.Panics.Load()) }},
	{"mainstay_worker_gc_cycles_total", "Finished garbage collections.", func(s *scoreboard.Seat) float64 { return float64(s.GCCycles.Load()) }},
	{"mainstay_worker_gc_pause_seconds_total", "Time for which garbage collections stopped all goroutines.", func(s *scoreboard.Seat) float64 { return float64(s.GCPauseNS.Load()) / 1e9 }},
}

// seatGauges are summed over the processes of a slot.
var seatGauges = []figure[float64]{
	{"mainstay_connections", "Open connections.", func(s *scoreboard.Seat) float64 { return float64(s.Connections.Load()) }},
	{"mainstay_timers", "Timers that are set.", func(s *scoreboard.Seat) float64 { return float64(s.Timers.Load()) }},
	{"mainstay_send_queue_bytes", "Bytes that wait to be sent.", func(s *scoreboard.Seat) float64 { return float64(s.QueueBytes.Load()) }},
	{"mainstay_callbacks_running", "Callbacks that run on the pool.", func(s *scoreboard.Seat) float64 { return float64(s.PoolRunning.Load()) }},
	{"mainstay_worker_goroutines", "Goroutines.", func(s *scoreboard.Seat) float64 { return float64(s.Goroutines.Load()) }},
	{"mainstay_worker_heap_bytes", "Memory of objects that are alive or not collected yet.", func(s *scoreboard.Seat) float64 { return float64(s.HeapBytes.Load()) }},
	{"mainstay_worker_sys_bytes", "Memory that the Go runtime has taken from the system.", func(s *scoreboard.Seat) float64 { return float64(s.SysBytes.Load()) }},
}

// tallyKey names a place in a pool for good: slots come and go with scaling.
type tallyKey struct {
	pool string
	slot int
}

// tally is what the dead workers of a place have counted. The supervisor's
// goroutine owns it.
type tally struct {
	counters []float64         // as seatCounters
	stall    time.Duration     // the longest of a hand-off
	cpu      time.Duration     // processor time
	deaths   map[string]uint64 // by class
	app      []metrics.Family  // the application's own; never changed, only replaced
	appSaved []byte            // the same, encoded

	// Of slots that were given up; the others count for themselves.

	respawns      uint64
	startFailures uint64
}

// books are the figures that outlive workers. The supervisor's goroutine owns
// them.
type books struct {
	tallies   map[tallyKey]*tally
	reloads   map[string]uint64 // by result
	rollbacks map[string]uint64 // that somebody asked for, by result
	kept      uint64            // connections that have outlived their workers
	torn      map[string]uint64 // and those that have not, by reason
}

func (s *Supervisor) tally(sl *slot) *tally {
	key := tallyKey{sl.pool.name, sl.index}
	t := s.books.tallies[key]
	if t == nil {
		t = &tally{counters: make([]float64, len(seatCounters)), deaths: make(map[string]uint64)}
		if s.books.tallies == nil {
			s.books.tallies = make(map[tallyKey]*tally)
		}
		s.books.tallies[key] = t
	}
	return t
}

// countDead adds a dead worker's figures to its place's, before its seat is
// cleared.
func (s *Supervisor) countDead(inc *incarnation) {
	t := s.tally(inc.slot)
	if inc.seat != nil {
		for i, f := range seatCounters {
			t.counters[i] += f.read(inc.seat)
		}
		t.stall = max(t.stall, time.Duration(inc.seat.HandoffMaxNS.Load()))
	}
	t.cpu += inc.exit.CPU
	t.deaths[inc.exit.Class]++
	s.inherit(t, inc.app)
	inc.app = nil
}

// inherit adds what grows of a dead worker's own metrics. A family that the
// new code has changed begins anew.
func (s *Supervisor) inherit(t *tally, families []metrics.Family) {
	var sum metrics.Set
	for _, f := range t.app {
		sum.Add(f)
	}
	for _, f := range families {
		if f.Type == metrics.TypeGauge {
			continue
		}
		if !sum.Add(f) {
			sum.Remove(f.Name)
			sum.Add(f)
		}
	}
	t.app, t.appSaved = sum.Families(), nil
	if len(t.app) == 0 {
		return
	}
	b, err := metrics.Encode(t.app)
	if err != nil {
		s.log.Warn("metrics of dead workers do not outlive the supervisor", zap.Error(err))
		return
	}
	t.appSaved = b
}

// savedBooks are books, for the next supervisor.
type savedBooks struct {
	Tallies   []savedTally      `json:"tallies,omitempty"`
	Reloads   map[string]uint64 `json:"reloads,omitempty"`
	Rollbacks map[string]uint64 `json:"rollbacks,omitempty"`
	Kept      uint64            `json:"kept,omitempty"`
	Torn      map[string]uint64 `json:"torn,omitempty"`
}

type savedTally struct {
	Pool          string             `json:"pool"`
	Slot          int                `json:"slot"`
	Counters      map[string]float64 `json:"counters,omitempty"` // by name, without zeros
	Stall         time.Duration      `json:"stall,omitempty"`
	CPU           time.Duration      `json:"cpu,omitempty"`
	Deaths        map[string]uint64  `json:"deaths,omitempty"`
	App           json.RawMessage    `json:"app,omitempty"`
	Respawns      uint64             `json:"respawns,omitempty"`
	StartFailures uint64             `json:"start_failures,omitempty"`
}

// savedApp bounds the bytes of the dead workers' own metrics that the next
// supervisor is told of. A place that does not fit in begins anew.
const savedApp = 256 << 10

func (b *books) saved() *savedBooks {
	saved := &savedBooks{Reloads: b.reloads, Rollbacks: b.rollbacks, Kept: b.kept, Torn: b.torn}
	for key, t := range b.tallies {
		entry := savedTally{
			Pool: key.pool, Slot: key.slot, Stall: t.stall, CPU: t.cpu, Deaths: t.deaths,
			Respawns: t.respawns, StartFailures: t.startFailures, Counters: make(map[string]float64),
		}
		for i, f := range seatCounters {
			if t.counters[i] != 0 {
				entry.Counters[f.name] = t.counters[i]
			}
		}
		saved.Tallies = append(saved.Tallies, entry)
	}
	slices.SortFunc(saved.Tallies, func(a, b savedTally) int {
		return cmp.Or(strings.Compare(a.Pool, b.Pool), a.Slot-b.Slot)
	})
	room := savedApp
	for i := range saved.Tallies {
		entry := &saved.Tallies[i]
		if app := b.tallies[tallyKey{entry.Pool, entry.Slot}].appSaved; len(app) <= room {
			entry.App = app
			room -= len(app)
		}
	}
	return saved
}

// inheritBooks goes on counting where an earlier supervisor was when it saved
// its state last; nil: it saved none.
func (s *Supervisor) inheritBooks(saved *savedBooks) {
	if saved == nil {
		return
	}
	b := &s.books
	b.kept = saved.Kept
	for _, m := range []struct {
		to   *map[string]uint64
		from map[string]uint64
	}{{&b.reloads, saved.Reloads}, {&b.rollbacks, saved.Rollbacks}, {&b.torn, saved.Torn}} {
		*m.to = make(map[string]uint64)
		maps.Copy(*m.to, m.from)
	}
	b.tallies = make(map[tallyKey]*tally)
	for _, entry := range saved.Tallies {
		t := &tally{
			counters: make([]float64, len(seatCounters)), deaths: make(map[string]uint64), stall: entry.Stall, cpu: entry.CPU,
			respawns: entry.Respawns, startFailures: entry.StartFailures,
		}
		for i, f := range seatCounters {
			t.counters[i] = entry.Counters[f.name]
		}
		maps.Copy(t.deaths, entry.Deaths)
		if len(entry.App) > 0 {
			if families, err := metrics.Decode(entry.App); err == nil {
				t.app, t.appSaved = families, entry.App
			} else {
				s.log.Warn("metrics of workers that died under the supervisor before begin anew", zap.Error(err))
			}
		}
		b.tallies[tallyKey{entry.Pool, entry.Slot}] = t
	}
}

// keepCounts saves the counts of a slot that is given up.
func (s *Supervisor) keepCounts(sl *slot) {
	if s.phase == stopping || sl.place != empty {
		return
	}
	t := s.tally(sl)
	t.respawns += sl.respawns
	t.startFailures += sl.startFailures
	sl.respawns, sl.startFailures = 0, 0
}

// Results of a reload.
const (
	reloadDone       = "done"
	reloadRolledBack = "rolled_back" // new workers were started, and the old ones serve
	reloadRefused    = "refused"     // nothing was started: configuration or program cannot be used
	reloadCut        = "cut_off"     // the service was stopped meanwhile
)

var reloadResults = []string{reloadDone, reloadRolledBack, reloadRefused, reloadCut}

// rollbackResults are those of a rollback that somebody asked for: nothing has
// to be read for it, so none is refused once it has begun.
var rollbackResults = []string{reloadDone, reloadRolledBack, reloadCut}

func (s *Supervisor) countReload(r *reload, err error) {
	result := reloadRolledBack
	switch {
	case err == nil:
		result = reloadDone
	case errors.Is(err, errStopping):
		result = reloadCut
	case r.to == nil:
		result = reloadRefused
	}
	if s.books.reloads == nil {
		s.books.reloads, s.books.rollbacks = make(map[string]uint64), make(map[string]uint64)
	}
	if r.back {
		s.books.rollbacks[result]++
	} else {
		s.books.reloads[result]++
	}
}

// takeLegacy reads what a worker has left behind; fd is closed.
func (s *Supervisor) takeLegacy(inc *incarnation, fd int) {
	if fd < 0 {
		return
	}
	b, err := link.ReadAnswer(fd)
	if err == nil {
		var families []metrics.Family
		if families, err = metrics.Decode(b); err == nil {
			inc.app, inc.willed = families, true
			return
		}
	}
	s.log.Warn("last metrics of a worker not understood", append(inc.fields(), zap.Error(err))...)
}

// metricsRequest asks for all that the supervisor's goroutine knows, and
// tells it what the workers have answered, by incarnation.
type metricsRequest struct {
	known map[uint64][]metrics.Family
	reply chan figures
}

func (metricsRequest) isMessage() {}

// figures is a copy of what the supervisor's goroutine knows.
type figures struct {
	snapshot  snapshot
	places    []placeFigures // by pool and slot
	reloads   map[string]uint64
	rollbacks map[string]uint64
	kept      uint64
	torn      map[string]uint64
}

// placeFigures are those of all workers that a place has or has had.
type placeFigures struct {
	tallyKey
	wanted        bool // there is such a slot
	counters      []float64
	gauges        []float64
	deaths        map[string]uint64
	respawns      uint64
	startFailures uint64
	cpu           time.Duration // of the dead
	stall         time.Duration // the longest of a hand-off, of the dead too
	generation    uint64        // of the worker that serves; 0: none does
	accepts       bool          // it takes new connections
	began         time.Time     // its start
	heartbeat     time.Duration // of the oldest heartbeat of those that are ready, CLOCK_MONOTONIC; 0: none
	oldest        time.Duration // begin of the callback that runs for longest, CLOCK_MONOTONIC; 0: none runs
	backoff       time.Duration // until the next start
	pids          []int
	app           [][]metrics.Family // newest first
}

func (s *Supervisor) figures(m metricsRequest) figures {
	for number, families := range m.known {
		if inc := s.incarnations[number]; inc != nil && !inc.willed {
			inc.app = families
		}
	}
	f := figures{snapshot: s.snapshot(), reloads: maps.Clone(s.books.reloads), rollbacks: maps.Clone(s.books.rollbacks), kept: s.books.kept, torn: maps.Clone(s.books.torn)}
	living := slices.Collect(s.living())
	slices.Reverse(living)
	for _, sl := range s.pool.slots {
		s.tally(sl)
	}
	for _, inc := range living {
		s.tally(inc.slot)
	}
	at := make(map[tallyKey]int, len(s.books.tallies))
	for key, t := range s.books.tallies {
		f.places = append(f.places, placeFigures{
			tallyKey: key, counters: slices.Clone(t.counters), gauges: make([]float64, len(seatGauges)), deaths: maps.Clone(t.deaths),
			respawns: t.respawns, startFailures: t.startFailures, cpu: t.cpu, stall: t.stall,
		})
	}
	slices.SortFunc(f.places, func(a, b placeFigures) int {
		if a.pool != b.pool {
			return strings.Compare(a.pool, b.pool)
		}
		return a.slot - b.slot
	})
	for i := range f.places {
		at[f.places[i].tallyKey] = i
	}
	for _, inc := range living {
		f.places[at[tallyKey{inc.slot.pool.name, inc.slot.index}]].add(inc)
	}
	for _, sl := range s.pool.slots {
		p := &f.places[at[tallyKey{sl.pool.name, sl.index}]]
		p.wanted = true
		p.respawns += sl.respawns
		p.startFailures += sl.startFailures
		if sl.current != nil {
			p.generation, p.began = sl.current.release.generation, sl.current.born
			p.accepts = sl.accepts()
		}
		if sl.place == backingOff {
			p.backoff = max(0, time.Until(sl.retryAt))
		}
	}
	for i := range f.places {
		if app := s.books.tallies[f.places[i].tallyKey].app; len(app) > 0 {
			f.places[i].app = append(f.places[i].app, app)
		}
	}
	return f
}

// add adds the figures of a living worker.
func (p *placeFigures) add(inc *incarnation) {
	p.pids = append(p.pids, inc.pid())
	if len(inc.app) > 0 {
		p.app = append(p.app, inc.app)
	}
	if inc.seat == nil {
		return
	}
	for i, f := range seatCounters {
		p.counters[i] += f.read(inc.seat)
	}
	for i, f := range seatGauges {
		p.gauges[i] += f.read(inc.seat)
	}
	p.stall = max(p.stall, time.Duration(inc.seat.HandoffMaxNS.Load()))
	earliest := func(to *time.Duration, ns int64) {
		if d := time.Duration(ns); d != 0 && (*to == 0 || d < *to) {
			*to = d
		}
	}
	if inc.state == ready {
		earliest(&p.heartbeat, inc.seat.Heartbeat.Load())
	}
	earliest(&p.oldest, inc.seat.PoolOldest.Load())
	if _, _, since, ok := inc.seat.Handler(); ok {
		earliest(&p.oldest, since)
	}
}

// scraper makes one page for all who ask at a time.
type scraper struct {
	turn   chan struct{} // holds one token; who has it may use what follows
	page   []byte
	begun  time.Time // of the making of page
	cpu    map[tallyKey]float64
	lacked map[uint64]bool // workers whose answer was lacking at the last scrape
}

func newScraper() *scraper {
	c := &scraper{turn: make(chan struct{}, 1), cpu: make(map[tallyKey]float64)}
	c.turn <- struct{}{}
	return c
}

// Metrics returns all figures in Prometheus' text format: those of the
// scoreboard, the processes, and what the applications in the workers count.
// A worker that does not answer within two seconds is there with what it
// said last. It fails if the supervisor has ended or does not answer, or if
// ctx ends. Any goroutine may call it; calls at a time share an answer, which
// is not to be changed.
func (s *Supervisor) Metrics(ctx context.Context) ([]byte, error) {
	asked := time.Now()
	c := s.scraper
	select {
	case <-c.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { c.turn <- struct{}{} }()
	if c.begun.After(asked) {
		return c.page, nil
	}
	begun := time.Now()
	page, err := s.scrape(ctx)
	if err != nil {
		return nil, err
	}
	c.page, c.begun = page, begun
	return page, nil
}

func (s *Supervisor) scrape(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, gatherTimeout+statusTimeout, errors.New("the supervisor does not answer"))
	defer cancel()
	answers, err := s.Gather(ctx, "metrics", struct{}{})
	if err != nil {
		return nil, err
	}
	known := make(map[uint64][]metrics.Family, len(answers))
	lacked := make(map[uint64]bool)
	for _, a := range answers {
		families, err := []metrics.Family(nil), a.Err
		if err == nil {
			families, err = metrics.Decode(a.Data)
		}
		if err == nil {
			known[a.Incarnation] = families
			continue
		}
		lacked[a.Incarnation] = true
		if !s.scraper.lacked[a.Incarnation] {
			s.log.Warn("metrics of a worker are not to be had", zap.String("pool", a.Pool), zap.Int("worker", a.Slot), zap.Error(err))
		}
	}
	s.scraper.lacked = lacked
	m := metricsRequest{known: known, reply: make(chan figures, 1)}
	if err := s.ask(ctx, m); err != nil {
		return nil, err
	}
	select {
	case f := <-m.reply:
		return s.write(f), nil
	case <-s.done:
		return nil, errNotRunning
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// page collects families in the order in which they are written.
type page struct {
	families []*metrics.Family
	byName   map[string]*metrics.Family
}

// sample adds one sample; labels are names and values in turn.
func (p *page) sample(typ metrics.Type, name, help string, value float64, labels ...string) {
	f := p.byName[name]
	if f == nil {
		f = &metrics.Family{Name: name, Help: help, Type: typ}
		for i := 0; i < len(labels); i += 2 {
			f.Labels = append(f.Labels, labels[i])
		}
		p.byName[name] = f
		p.families = append(p.families, f)
	}
	series := metrics.Series{Value: metrics.Number(value)}
	for i := 1; i < len(labels); i += 2 {
		series.Values = append(series.Values, labels[i])
	}
	f.Series = append(f.Series, series)
}

func (p *page) gauge(name, help string, value float64, labels ...string) {
	p.sample(metrics.TypeGauge, name, help, value, labels...)
}

func (p *page) counter(name, help string, value float64, labels ...string) {
	p.sample(metrics.TypeCounter, name, help, value, labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

// write makes the page.
func (s *Supervisor) write(f figures) []byte {
	p := &page{byName: make(map[string]*metrics.Family)}
	s.writeService(p, f)
	s.writePools(p, f)
	now := monotonic()
	for i := range f.places {
		s.writePlace(p, &f.places[i], now)
	}
	families := make([]metrics.Family, 0, len(p.families))
	for _, one := range p.families {
		families = append(families, *one)
	}
	var app metrics.Set
	for _, place := range f.places {
		for _, worker := range place.app {
			for _, one := range worker {
				if p.byName[one.Name] == nil {
					app.Add(one.Labelled("pool", place.pool, "worker", strconv.Itoa(place.slot)))
				}
			}
		}
	}
	return metrics.Append(metrics.Append(nil, families), app.Families())
}

func (s *Supervisor) writeService(p *page, f figures) {
	st := f.snapshot.status
	p.gauge("mainstay_build_info", "What was built; always 1.", 1, "service", st.Service, "version", st.Version)
	p.gauge("mainstay_start_time_seconds", "When the supervisor was started, since the epoch.", unixSeconds(s.began))
	for _, state := range []string{control.StateStarting, control.StateServing, control.StateDegraded, control.StateReloading, control.StateStopping} {
		p.gauge("mainstay_state", "1 for the state the service is in.", truth(st.State == state), "state", state)
	}
	p.gauge("mainstay_generation", "The generation that serves; it counts reloads.", float64(st.Generation))
	for _, result := range reloadResults {
		p.counter("mainstay_reloads_total", "Reloads, by how they ended.", float64(f.reloads[result]), "result", result)
	}
	for _, result := range rollbackResults {
		p.counter("mainstay_rollbacks_total", "Returns to the last good release that somebody asked for, by how they ended.", float64(f.rollbacks[result]), "result", result)
	}
	p.counter("mainstay_connections_kept_total", "Connections that have outlived their worker.", float64(f.kept))
	for _, why := range tornReasons {
		p.counter("mainstay_connections_torn_total", "Connections that ended with their worker although it had a keeper, by what was under way.", float64(f.torn[why]), "reason", why)
	}
	if r := st.LastReload; r != nil {
		p.gauge("mainstay_last_reload_successful", "1 if the last reload is what serves.", truth(r.OK))
		p.gauge("mainstay_last_reload_duration_seconds", "How long the last reload took.", float64(r.TookMS)/1e3)
		if at, err := time.Parse(time.RFC3339, r.At); err == nil {
			p.gauge("mainstay_last_reload_time_seconds", "When the last reload began, since the epoch.", unixSeconds(at))
		}
	}
	hooks := s.hooks.count()
	for _, result := range hookResults {
		p.counter("mainstay_hook_runs_total", "Runs of on_worker_error, by how they ended.", float64(hooks[result]), "result", result)
	}
	if s.conf.LinesDropped != nil {
		p.counter("mainstay_supervisor_log_lines_dropped_total", "Lines of the supervisor's log that nobody got.", float64(s.conf.LinesDropped()))
	}
	own := os.Getpid()
	p.gauge("mainstay_supervisor_resident_memory_bytes", "Resident memory of the supervisor.", float64(residentBytes(own)))
	p.counter("mainstay_supervisor_cpu_seconds_total", "Processor time of the supervisor.", s.ownCPU())
	p.gauge("mainstay_supervisor_open_fds", "Open descriptors of the supervisor.", float64(openFDs(own)))
}

func (s *Supervisor) writePools(p *page, f figures) {
	for _, pool := range f.snapshot.status.Pools {
		p.gauge("mainstay_pool_workers_wanted", "Workers that the pool is to have.", float64(pool.Want), "pool", pool.Name)
		p.gauge("mainstay_pool_workers_ready", "Places of the pool whose worker takes connections.", float64(pool.Ready), "pool", pool.Name)
		in := make(map[string]int)
		for _, w := range pool.Workers {
			in[strings.ReplaceAll(w.State, " ", "_")]++
		}
		for st := range gone {
			in[st.String()] += 0
		}
		for _, pl := range []place{backingOff, held} {
			in[strings.ReplaceAll(pl.String(), " ", "_")] += 0
		}
		for _, name := range slices.Sorted(maps.Keys(in)) {
			p.gauge("mainstay_pool_workers", "Workers of the pool, by state; a place without a process has the place's.", float64(in[name]), "pool", pool.Name, "state", name)
		}
	}
}

func (s *Supervisor) writePlace(p *page, w *placeFigures, now time.Duration) {
	at := []string{"pool", w.pool, "worker", strconv.Itoa(w.slot)}
	for i, f := range seatCounters {
		p.counter(f.name, f.help, w.counters[i], at...)
	}
	classes := slices.Collect(maps.Keys(w.deaths))
	for _, class := range []string{ClassExit, ClassHung, ClassOOM, ClassOverdue, ClassRequested, ClassSignal, ClassStart, ClassUnknown} {
		if !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	slices.Sort(classes)
	for _, class := range classes {
		p.counter("mainstay_worker_deaths_total", "Ends of worker processes, by class.", float64(w.deaths[class]), append(at[:4:4], "class", class)...)
	}
	p.counter("mainstay_worker_respawns_total", "Deaths of workers that nobody asked for.", float64(w.respawns), at...)
	p.counter("mainstay_worker_start_failures_total", "Workers that died before they were ready.", float64(w.startFailures), at...)

	cpu := w.cpu.Seconds()
	var memory, fds float64
	for _, pid := range w.pids {
		cpu += cpuSeconds(pid)
		memory += float64(residentBytes(pid))
		fds += float64(openFDs(pid))
	}
	// A process that is dead and not yet counted has no time any more.
	cpu = max(cpu, s.scraper.cpu[w.tallyKey])
	s.scraper.cpu[w.tallyKey] = cpu
	p.counter("mainstay_worker_cpu_seconds_total", "Processor time of the worker processes.", cpu, at...)
	if !w.wanted && len(w.pids) == 0 {
		return // only what its workers have counted is left of it
	}
	for i, f := range seatGauges {
		p.gauge(f.name, f.help, w.gauges[i], at...)
	}
	age := func(since time.Duration) float64 {
		if since == 0 {
			return 0
		}
		return max(0, (now - since).Seconds())
	}
	p.gauge("mainstay_handoff_stall_longest_seconds", "The longest time that a connection stood still which a worker of the place gave to another.", w.stall.Seconds(), at...)
	p.gauge("mainstay_callback_oldest_seconds", "For how long the callback has been running that runs for longest.", age(w.oldest), at...)
	p.gauge("mainstay_worker_heartbeat_age_seconds", "Time since the last turn of the worker's loop.", age(w.heartbeat), at...)
	p.gauge("mainstay_worker_ready", "1 if the worker takes connections.", truth(w.accepts), at...)
	p.gauge("mainstay_worker_backoff_seconds", "Time until a worker that died again and again is started next.", w.backoff.Seconds(), at...)
	p.gauge("mainstay_worker_processes", "Processes: one that serves, others that start or drain.", float64(len(w.pids)), at...)
	p.gauge("mainstay_worker_resident_memory_bytes", "Resident memory of the worker processes.", memory, at...)
	p.gauge("mainstay_worker_open_fds", "Open descriptors of the worker processes.", fds, at...)
	if w.generation != 0 {
		p.gauge("mainstay_worker_generation", "Generation of the worker that serves.", float64(w.generation), at...)
		p.gauge("mainstay_worker_start_time_seconds", "When the worker that serves was started, since the epoch.", unixSeconds(w.began), at...)
	}
}

// ownCPU is the supervisor's processor time in seconds. That of its children
// is not in it: the workers' is counted as theirs.
func (s *Supervisor) ownCPU() float64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return usedCPU(&usage).Seconds()
}

func usedCPU(u *unix.Rusage) time.Duration {
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// clockTicks is in what parts of a second /proc counts: USER_HZ, on all
// systems that Go runs on.
const clockTicks = 100

// cpuSeconds returns the processor time of a process and of those that it
// has waited for, 0 if it is gone.
func cpuSeconds(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc_pid_stat(5): the name, in parentheses, may hold anything; utime to
	// cstime are the fields 14 to 17, the state behind the name is 3.
	_, rest, ok := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return float64(ticks) / clockTicks
}

// openFDs counts a process's descriptors, 0 if it is gone.
func openFDs(pid int) int {
	name := fmt.Sprintf("/proc/%d/fd", pid)
	// Since Linux 6.2 it is the size of the directory.
	if info, err := os.Stat(name); err == nil && info.Size() > 0 {
		return int(info.Size())
	}
	d, err := os.Open(name)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names)
}
