package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// maxBatch is how many connections a worker is asked at a time to give away.
const maxBatch = 256

var errBalancing = errors.New("connections are being rebalanced already")

// balance is the rebalancing that nobody asks for. The supervisor's goroutine
// owns it.
type balance struct {
	wanted   bool // a worker has come that has no connections
	underWay bool
	ctx      context.Context // ends with Run
	running  sync.WaitGroup
}

// share is what a worker has too many, or too few.
type share struct {
	inc    *incarnation
	pid    int
	slot   int
	number uint64
	have   int64
	n      int // above the average, negative: below
}

// planned answers a balancePlan.
type planned struct {
	shares []share // of those that take connections, by slot
	err    error
}

// wantBalance notes that a slot has a worker that begins without connections.
func (s *Supervisor) wantBalance() { s.balance.wanted = s.phase == running }

// rebalanceAfterChange begins to rebalance if the configuration says so and
// nothing else is under way.
func (s *Supervisor) rebalanceAfterChange() {
	b := &s.balance
	if !b.wanted || b.underWay || s.job != nil {
		return
	}
	b.wanted = false
	settings := s.current.settings
	if !settings.Rebalance || s.phase != running {
		return
	}
	b.underWay = true
	ctx := b.ctx
	b.running.Go(func() {
		if _, err := s.rebalance(ctx, settings.RebalanceRate); err != nil && ctx.Err() == nil {
			s.log.Warn("connections not rebalanced", zap.Error(err))
		}
		s.post(balanced{})
	})
}

// Rebalance implements control.Mover: workers that have more connections than
// the average give what is above it to those that have less. Each worker is
// asked for up to 256 at a time, until nothing is left to give or a worker
// gives less than it was asked for: then some of its connections cannot move.
// It fails if the pool is unknown (control.ErrInvalid), if the service starts
// or stops, if a reload or another rebalancing is under way, and if ctx is
// done. Any goroutine may call it.
func (s *Supervisor) Rebalance(ctx context.Context, r control.RebalanceRequest) (control.Rebalanced, error) {
	if err := checkPool(r.Pool); err != nil {
		return control.Rebalanced{}, err
	}
	return s.rebalance(ctx, 0)
}

// rebalance moves rate connections a second, as many as it can if rate is 0.
func (s *Supervisor) rebalance(ctx context.Context, rate int) (control.Rebalanced, error) {
	var all control.Rebalanced
	select {
	case s.balancing <- struct{}{}:
		defer func() { <-s.balancing }()
	default:
		return all, errBalancing
	}
	m := balancePlan{reply: make(chan planned, 1)}
	if err := s.ask(ctx, m); err != nil {
		return all, err
	}
	var p planned
	select {
	case p = <-m.reply:
	case <-s.done:
		return all, errNotRunning
	}
	if p.err != nil {
		return all, p.err
	}
	batch := maxBatch
	if rate > 0 {
		batch = max(1, min(batch, rate/10))
	}
	var next time.Time // when the next batch may be given
	for _, sh := range p.shares {
		all.Counts = append(all.Counts, int(sh.have))
	}
	for i := range p.shares {
		giver := &p.shares[i]
		if giver.n <= 0 {
			continue
		}
		g := control.Giver{Slot: giver.slot, PID: giver.pid, Excess: giver.n}
		for giver.n > 0 && g.Error == "" {
			if err := pause(ctx, time.Until(next)); err != nil {
				return all, err
			}
			if rate > 0 {
				next = time.Now().Add(time.Duration(batch) * time.Second / time.Duration(rate))
			}
			if err := s.giveBatch(ctx, giver, p.shares, batch, &g); err != nil {
				return all, err
			}
		}
		all.Moved += g.Moved
		all.Givers = append(all.Givers, g)
		text := fmt.Sprintf("%d of %d connections moved to others", g.Moved, g.Excess)
		if g.Error != "" {
			text += ": " + g.Error
		}
		s.post(happened{EventRebalanced, text, giver.inc.slot})
	}
	return all, nil
}

// giveBatch has a worker give some of what it has too many. It fails if
// nothing more is to be asked of anybody.
func (s *Supervisor) giveBatch(ctx context.Context, giver *share, shares []share, batch int, g *control.Giver) error {
	to := takersOf(shares, min(batch, giver.n))
	if len(to) == 0 {
		g.Error = "nobody is left who has too few"
		return nil
	}
	answers, err := s.gather(ctx, "give", func(s *Supervisor) ([]*incarnation, any, error) {
		if s.phase != running || giver.inc.state != ready {
			return nil, nil, nil
		}
		return []*incarnation{giver.inc}, link.GiveRequest{Count: len(to), To: to}, nil
	})
	switch {
	case err != nil:
		return err
	case len(answers) == 0:
		g.Error = "it serves no more"
		return nil
	case answers[0].Err != nil:
		g.Error = answers[0].Err.Error()
		return nil
	}
	result, err := readGiven(answers[0])
	if err != nil {
		g.Error = err.Error()
		return nil
	}
	g.Moved += result.Given
	g.Refused += result.Refused
	g.LongestStallUS = longest(g.LongestStallUS, result.Longest)
	giver.n -= result.Given
	if result.Given < len(to) {
		g.Error = fmt.Sprintf("%d of %d that it was asked for stay: they cannot move, or were refused", len(to)-result.Given, len(to))
	}
	return nil
}

// takersOf chooses who gets n connections, one entry for each: those with the
// fewest first. What is given out is no longer lacking.
func takersOf(shares []share, n int) (to []uint64) {
	for range n {
		var least *share
		for i := range shares {
			if sh := &shares[i]; sh.n < 0 && (least == nil || sh.n < least.n) {
				least = sh
			}
		}
		if least == nil {
			return to
		}
		least.n++
		to = append(to, least.number)
	}
	return to
}

// pause waits for d, or until ctx is done: then it fails.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// planBalance says who has too many connections and who too few.
func (s *Supervisor) planBalance() planned {
	switch {
	case s.phase != running:
		return planned{err: errSteady}
	case s.job != nil:
		return planned{err: errors.New("a reload is under way")}
	}
	var shares []share
	total := int64(0)
	for _, sl := range s.pool.slots {
		if c := sl.current; c != nil && c.takes() && c.unready == "" {
			have := max(0, c.seat.Connections.Load())
			shares = append(shares, share{inc: c, pid: c.pid(), slot: sl.index, number: c.number, have: have})
			total += have
		}
	}
	if len(shares) == 0 {
		return planned{err: errors.New("no worker takes connections from others")}
	}
	divide(shares, total)
	return planned{shares: shares}
}

// divide says how far each is from an even share. What cannot be divided stays
// with those that have the most, so that as few as possible move.
func divide(shares []share, total int64) {
	even, rest := total/int64(len(shares)), total%int64(len(shares))
	by := make([]*share, len(shares))
	for i := range shares {
		by[i] = &shares[i]
	}
	slices.SortStableFunc(by, func(a, b *share) int { return cmp.Compare(b.have, a.have) })
	for i, sh := range by {
		want := even
		if int64(i) < rest {
			want++
		}
		sh.n = int(sh.have - want)
	}
}
