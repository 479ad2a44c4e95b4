package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// Those that nobody has taken are offered again after firstPause, then after
// twice the time each, up to lastPause: who could not take them may be stopped,
// or full, and who will never take them is not to be asked too often.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 2 * time.Second
)

// handOver is the part of a drain in which the connections go to others.
func (d *drain) handOver(t terms) {
	w := d.w
	target := func(onTheWay map[uint64]int) *peer { return w.peers.idlest(onTheWay) }
	if t.to != 0 {
		target = func(onTheWay map[uint64]int) *peer {
			if w.peers.all[t.to] == nil { // it is dead, and its successor is anybody's
				return w.peers.idlest(onTheWay)
			}
			return w.peers.of(t.to)
		}
	}
	ids := d.movable()
	if d.exodus.goesOn() {
		d.exodus.target = target
		d.exodus.add(ids)
		return
	}
	d.exodus = w.begin(ids, target, func(m moved) { d.handed(t, m) })
}

// movable returns those connections that can be handed over.
func (d *drain) movable() (ids []uint64) {
	d.w.set.Each(func(c *conn.Conn) {
		if !c.Pinned() {
			ids = append(ids, c.ID())
		}
	})
	return ids
}

// handed is the end of an attempt to hand them over. Those that nobody took,
// or that somebody else had frozen, are tried again while the grace lasts.
func (d *drain) handed(t terms, m moved) {
	w := d.w
	failpoint.Here("move.handed")
	if d.pause == firstPause || m.Given > 0 {
		w.send(link.Handed{Given: m.Given, Left: w.set.Len(), Longest: m.Longest})
	}
	if t.prompt && d.pause == firstPause {
		w.set.Drain(conn.DrainPrompt, max(0, d.end-w.loop.Clock()), nil)
	}
	if d.graceful && len(d.movable()) > 0 {
		d.again = w.loop.After(d.pause, func() { d.handOver(t) })
		d.pause = min(2*d.pause, lastPause)
	}
	d.progress()
}

// moveTo is what the application has asked for by Conn.MoveTo. Loop only.
func (w *Worker) moveTo(c *conn.Conn, slot int) {
	if slot == w.id.Slot && w.drain == nil {
		return
	}
	p := w.peers.at(slot)
	if p == nil {
		w.log.Debug("connection not moved: nobody serves in that slot", zap.Uint64("conn", c.ID()), zap.Int("slot", slot))
		return
	}
	e := w.begin([]uint64{c.ID()}, func(map[uint64]int) *peer { return w.peers.of(p.Incarnation) }, func(moved) {})
	// It is on its way to somebody else: the wish goes along, or comes back
	// with the connection.
	e.again = func(c *conn.Conn) { _ = c.MoveTo(slot) } // an error says that it is over
}

// tellMove answers the question "move": it moves one connection.
func (w *Worker) tellMove(arg json.RawMessage) ([]byte, error) {
	var r link.MoveRequest
	if err := json.Unmarshal(arg, &r); err != nil {
		return nil, fmt.Errorf("worker: move: %w", err)
	}
	result, err := w.moveSome(func() ([]uint64, error) {
		if w.set.Get(r.Conn) == nil {
			return nil, fmt.Errorf("connection %d is not here", r.Conn)
		}
		return []uint64{r.Conn}, nil
	}, []uint64{r.To})
	if err != nil {
		return nil, err
	}
	switch {
	case result.Given > 0:
	case result.Err != nil:
		return nil, fmt.Errorf("connection %d stays: %w", r.Conn, result.Err)
	default:
		return nil, fmt.Errorf("connection %d has just ended", r.Conn)
	}
	return json.Marshal(link.GiveResult{Given: result.Given, Longest: result.Longest})
}

// tellGive answers the question "give": it moves so many connections to
// others.
func (w *Worker) tellGive(arg json.RawMessage) ([]byte, error) {
	var r link.GiveRequest
	if err := json.Unmarshal(arg, &r); err != nil {
		return nil, fmt.Errorf("worker: give: %w", err)
	}
	result, err := w.moveSome(func() (ids []uint64, err error) {
		w.set.Each(func(c *conn.Conn) {
			if len(ids) < r.Count && !c.Pinned() {
				ids = append(ids, c.ID())
			}
		})
		return ids, nil
	}, r.To)
	if err != nil {
		return nil, err
	}
	return json.Marshal(link.GiveResult{Given: result.Given, Thawed: result.Left, Refused: result.Refused, Longest: result.Longest})
}

// heldUpAfter is how long connections that are to move at once may be held up
// by their callbacks. Then they stay, so that whoever asked can be told.
const heldUpAfter = answerTimeout / 2

// errStillMoving says that a hand-off goes on, for which nobody waits longer.
var errStillMoving = errors.New("worker: it is not over yet: the other worker has not answered, and has a few seconds to do so")

// moveSome hands over connections that which, on the loop, finds, to the given
// incarnations in turn, and waits for the result.
func (w *Worker) moveSome(which func() ([]uint64, error), to []uint64) (moved, error) {
	done := make(chan moved, 1)
	var refused error
	err := w.OnLoop(func() {
		var ids []uint64
		if ids, refused = which(); refused != nil {
			return
		}
		next := 0
		target := func(map[uint64]int) *peer {
			for range to {
				next++
				if p := w.peers.of(to[next%len(to)]); p != nil {
					return p
				}
			}
			return nil
		}
		if len(to) == 0 {
			refused = errNobody
			return
		}
		w.begin(ids, target, func(m moved) { done <- m }).limit(heldUpAfter)
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return moved{}, err
	}
	select {
	case m := <-done:
		return m, nil
	case <-time.After(answerTimeout):
		return moved{}, errStillMoving
	}
}
