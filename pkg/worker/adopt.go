package worker

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// openRows opens the table of connections and the inbox. It returns the
// sending end of the inbox, which stays open here too: so it has no end.
func (w *Worker) openRows(in *link.Inherited) (sending int, err error) {
	table, err := rows.Open(in.Rows)
	if err != nil {
		return -1, fmt.Errorf("worker: %w", err)
	}
	// It is never closed: whatever still runs when the process exits may look
	// at the rows.
	alloc := table.Allocator(in.Incarnation)
	w.set = conn.NewSet(w.loop, alloc)
	receiving, sending, err := handoff.Pair()
	if err != nil {
		return -1, fmt.Errorf("worker: %w", err)
	}
	w.dispatched, w.onTheWay = make(map[uint64][]handoff.Unit), make(map[uint64]int)
	w.peers = peers{w: w, all: make(map[uint64]*peer)}
	w.ends, err = handoff.New(handoff.Options{
		Self: in.Incarnation, Table: table, Inbox: receiving,
		Adopt: w.adopt, Join: func(a, b handoff.Incoming) { a.(*adopted).Join(b.(*adopted).Adopted) },
		Free: alloc.Free, Trouble: w.handoffTrouble,
		Now: w.loop.Clock,
		After: func(d time.Duration, f func()) func() {
			t := w.loop.After(d, f)
			return func() { t.Stop() }
		},
	})
	if err != nil {
		return -1, fmt.Errorf("worker: %w", err)
	}
	i := &inbox{w: w}
	if i.token, err = w.loop.Add(receiving, reactor.Readable, i); err != nil {
		return -1, fmt.Errorf("worker: inbox: %w", err)
	}
	return sending, nil
}

// inbox is where the other workers' messages come in.
type inbox struct {
	w     *Worker
	token reactor.Token
}

// OnReady reads what they have sent.
func (i *inbox) OnReady(reactor.Events) {
	if err := i.w.ends.Readable(); err != nil {
		i.w.log.Error("inbox is broken: no connections come from other workers any more", zap.Error(err))
		_ = i.w.loop.Remove(i.token) // it is not read any more, whatever comes of it
	}
}

func (w *Worker) handoffTrouble(err error) { w.log.Warn("hand-off", zap.Error(err)) }

// takes says whether this worker takes connections of others.
func (w *Worker) takes() bool {
	return w.phase == link.StateServing && w.drain == nil && !w.readiness.withdrawn
}

// adopted is a connection that came from another worker.
type adopted struct {
	*conn.Adopted
	w   *Worker
	why conn.Reason
}

// Serve has the connection served from here on.
func (a *adopted) Serve(waitForTail bool) {
	a.w.seat.HandoffsTaken.Add(1)
	failpoint.Here("take.serve")
	a.Adopted.Serve(a.why, waitForTail)
}

// Drop forgets a connection that has stayed where it was.
func (a *adopted) Drop() {
	a.w.gates[a.Conn().Listener()].left(peerOf(a.Conn()))
	a.Adopted.Drop()
}

// adopt rebuilds a connection that another worker offers.
func (w *Worker) adopt(o handoff.Offer) (handoff.Incoming, error) {
	a, err := w.tryAdopt(o)
	if err != nil {
		w.seat.HandoffsRefused.Add(1)
		return nil, err
	}
	return a, nil
}

func (w *Worker) tryAdopt(o handoff.Offer) (*adopted, error) {
	if !w.takes() {
		return nil, handoff.NotServing
	}
	a, err := w.set.Adopt(o.FD, o.ID, o.Row, w.connsOf, o.Body)
	switch {
	case errors.Is(err, conn.ErrListener):
		return nil, fmt.Errorf("%w: %w", handoff.UnknownListener, err)
	case errors.Is(err, conn.ErrStateVersion):
		return nil, fmt.Errorf("%w: %w", handoff.Version, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", handoff.Malformed, err)
	}
	failpoint.Here("take.rebuilt")
	c := a.Conn()
	if !w.gates[c.Listener()].adopt(peerOf(c), w.peers.leaves(o.From)) {
		a.Decline()
		return nil, handoff.Full
	}
	return &adopted{Adopted: a, w: w, why: conn.Reason(o.Why)}, nil
}

// connsOf returns how a listener's connections are served, nil if there is no
// such listener here.
func (w *Worker) connsOf(name string) *conn.Config {
	for _, l := range w.listeners {
		if l.name == name {
			return l.conns
		}
	}
	return w.dialOf(name)
}
