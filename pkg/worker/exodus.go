package worker

import (
	"errors"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/handoff"
)

// window is how many connections of an exodus are under way at a time: each
// of them stands still until all before it have been taken.
const window = 256

// exodus hands over connections, a window at a time. The loop owns it.
//
// An idle connection is frozen at the end of the turn in which that was
// asked for. One in a callback is frozen when that has returned; it does not
// hold up the others.
type exodus struct {
	w      *Worker
	target func(onTheWay map[uint64]int) *peer // who gets the next one; nil: nobody can
	ended  func(moved)

	ids      []uint64       // still to be asked
	asked    int            // that are not frozen yet
	fresh    int            // of asked, those of this turn
	offered  int            // frozen, and neither taken nor thawed
	onTheWay map[uint64]int // offered, by taker
	frozen   map[uint64][]handoff.Unit
	again    func(*conn.Conn)    // told of those that somebody else has frozen; nil: nobody is
	asking   map[*conn.Conn]bool // asked and not frozen, for callOff; nil: it is not called off
	stepping bool                // step is to come
	patience time.Duration       // until when somebody to go to is waited for; 0: nobody had to be
	result   moved
}

// moved is what came of an exodus.
type moved struct {
	Given   int
	Left    int
	Refused int
	Longest time.Duration // the longest time for which one stood still
	Err     error         // why the first of those stayed that did
}

// stays takes note of connections that were not given, and of why.
func (m *moved) stays(n int, why error) {
	m.Left += n
	if m.Err == nil && n > 0 {
		m.Err = why
	}
}

var errNobody = errors.New("no worker takes connections")

// begin starts to hand over the connections with these IDs. ended is called
// once, on the loop, when nothing more is to come.
func (w *Worker) begin(ids []uint64, target func(map[uint64]int) *peer, ended func(moved)) *exodus {
	e := &exodus{
		w: w, target: target, ended: ended, ids: ids,
		onTheWay: make(map[uint64]int), frozen: make(map[uint64][]handoff.Unit),
	}
	e.later()
	return e
}

// add has more connections handed over, some of which may be under way.
func (e *exodus) add(ids []uint64) {
	e.ids = append(e.ids, ids...)
	e.later()
}

// goesOn says whether more is to come; nil is an exodus that never began.
func (e *exodus) goesOn() bool { return e != nil && e.ended != nil }

// limit has the exodus called off after d: what cannot be frozen until then,
// because a callback runs or somebody keeps it, stays, with ErrHeldUp. What
// was offered goes on.
func (e *exodus) limit(d time.Duration) {
	e.asking = make(map[*conn.Conn]bool)
	// At the end of the turn: who was asked for in this one, and is frozen by
	// somebody else, is known by then.
	e.w.loop.After(d, func() { e.w.loop.AtTurnEnd(e.callOff) })
}

func (e *exodus) callOff() {
	e.result.stays(len(e.ids), errHeldUp)
	e.ids = nil
	for c := range e.asking {
		e.w.set.Unfreeze(c)
		e.asked--
		e.result.stays(1, errHeldUp)
	}
	clear(e.asking)
	e.later()
}

var errHeldUp = errors.New("its callback has not returned in time")

// later has step called at the end of the turn.
func (e *exodus) later() {
	if !e.stepping {
		e.stepping = true
		e.w.loop.NextTurn(e.step)
	}
}

// step offers what was frozen, and asks for as many as the window has room
// for.
func (e *exodus) step() {
	e.stepping = false
	e.fresh = 0
	for to, units := range e.frozen {
		delete(e.frozen, to)
		e.offer(to, units)
	}
	if len(e.ids) > 0 && e.target(e.onTheWay) == nil && e.wait() {
		return
	}
	for len(e.ids) > 0 && e.offered+e.fresh < window {
		id := e.ids[0]
		e.ids = e.ids[1:]
		if c := e.w.set.Get(id); c != nil {
			e.ask(c)
		}
	}
	switch {
	case e.fresh > 0:
		e.later()
	case len(e.ids) == 0 && e.asked == 0 && e.offered == 0 && len(e.frozen) == 0 && e.goesOn():
		ended := e.ended
		e.ended = nil
		ended(e.result)
	}
}

// takerPatience is how long an exodus waits for somebody to go to: one who was
// told to accept needs a moment until it does.
const takerPatience = time.Second

// wait has step called a little later, unless the patience is at its end.
func (e *exodus) wait() bool {
	now := e.w.loop.Clock()
	if e.patience == 0 {
		e.patience = now + takerPatience
	}
	if now >= e.patience {
		return false
	}
	e.stepping = true
	e.w.loop.After(takerPatience/100, e.step)
	return true
}

// ask has one connection frozen.
func (e *exodus) ask(c *conn.Conn) {
	failpoint.Here("exodus.ask")
	e.asked++
	e.fresh++
	if e.asking != nil {
		e.asking[c] = true
	}
	e.w.set.Freeze(c, func(f *conn.Frozen, err error) {
		if e.asking != nil && !e.asking[c] {
			return // called off, and over since
		}
		delete(e.asking, c)
		e.asked--
		e.later()
		if err == nil {
			failpoint.Here("exodus.frozen")
			e.place(f)
			return
		}
		e.result.stays(1, err)
		if e.again != nil && errors.Is(err, conn.ErrFrozen) {
			e.again(c)
		}
	})
}

// place finds a taker for a connection.
func (e *exodus) place(f *conn.Frozen) {
	to := e.target(e.onTheWay)
	unit := handoff.Unit{First: f}
	n := 1
	if p := f.Partner(); p != nil {
		unit.Second = p
		n = 2
	}
	if to == nil {
		e.result.stays(n, errNobody)
		f.Thaw()
		if p := f.Partner(); p != nil {
			p.Thaw()
		}
		return
	}
	e.offered += n
	e.onTheWay[to.Incarnation] += n
	units := append(e.frozen[to.Incarnation], unit)
	if len(units) < handoff.BatchConnections {
		e.frozen[to.Incarnation] = units
		return
	}
	// It need not wait until all others of the turn stand still too.
	delete(e.frozen, to.Incarnation)
	e.offer(to.Incarnation, units)
}

// offer gives what was frozen to its taker, each batch by itself, so that the
// window moves on with each answer.
func (e *exodus) offer(to uint64, units []handoff.Unit) {
	for len(units) > 0 {
		n, size := 0, 0
		for n < len(units) && size < handoff.BatchConnections-1 {
			size++
			if units[n].Second != nil {
				size++
			}
			n++
		}
		e.w.ends.Give(to, uint8(e.w.reasonFor(to)), units[:n], func(o handoff.Outcome) {
			e.offered -= size
			e.onTheWay[to] -= size
			e.result.Given += o.Given
			e.result.Refused += o.Refused
			e.result.stays(o.Thawed+o.Refused, o.Err)
			e.result.Longest = max(e.result.Longest, o.Longest)
			e.w.count(o)
			failpoint.Here("exodus.known")
			e.later()
		})
		units = units[n:]
	}
}

// count tells the seat what came of an offer.
func (w *Worker) count(o handoff.Outcome) {
	w.seat.HandoffsGiven.Add(uint64(o.Given))
	w.seat.HandoffsThawed.Add(uint64(o.Thawed))
	if ns := uint64(o.Longest); ns > w.seat.HandoffMaxNS.Load() {
		w.seat.HandoffMaxNS.Store(ns)
	}
}

// reasonFor is what OnAdopt is told by the taker.
func (w *Worker) reasonFor(to uint64) conn.Reason {
	p := w.peers.all[to]
	switch {
	case p == nil || p.Generation == w.id.Generation:
		return conn.Move
	case w.drain != nil && w.drain.restart:
		return conn.Restart
	}
	return conn.Reload
}
