package worker

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/handoff"
)

// Dispatch says which worker serves a listener's new connections.
type Dispatch string

const (
	// DispatchShared leaves a connection with the worker that has accepted
	// it: one that waits and is woken by the kernel.
	DispatchShared Dispatch = "shared"

	// DispatchRoundRobin gives each worker one in turn.
	DispatchRoundRobin Dispatch = "round-robin"

	// DispatchLeastConnections gives it to the worker with the fewest.
	DispatchLeastConnections Dispatch = "least-connections"

	// DispatchHashIP gives all of an address, in IPv6 of a network of 64
	// bits, to one worker.
	DispatchHashIP Dispatch = "hash-ip"

	// DispatchHashID gives all that the application binds to an ID to one
	// worker, from then on.
	DispatchHashID Dispatch = "hash-id"
)

// dispatcher finds the worker for a new connection. The loop owns it.
type dispatcher struct {
	w    *Worker
	mode Dispatch
	turn int // of round-robin
}

// target returns the peer that is to serve a connection that was accepted
// here; nil: it stays.
func (d *dispatcher) target(peer netip.Addr) *peer {
	w := d.w
	if w == nil {
		return nil
	}
	switch d.mode {
	case DispatchRoundRobin:
		return d.nextInTurn()
	case DispatchLeastConnections:
		stay := w.seat.Connections.Load()
		for _, n := range w.onTheWay {
			stay -= int64(n)
		}
		if p := w.peers.idlest(w.onTheWay); p != nil && p.seat.Connections.Load()+int64(w.onTheWay[p.Incarnation]) < stay {
			return p
		}
	case DispatchHashIP:
		if peer.IsValid() {
			b := networkOf(peer).As16()
			return w.peers.byHash(binary.BigEndian.Uint64(b[:8]) ^ binary.BigEndian.Uint64(b[8:])*0x9e3779b97f4a7c15)
		}
	}
	return nil
}

// nextInTurn is the next of the workers that take connections, this one
// included, which is nil.
func (d *dispatcher) nextInTurn() *peer {
	list := d.w.peers.list
	for range list {
		d.turn = (d.turn + 1) % (len(list) + 1)
		if d.turn == len(list) {
			return nil
		}
		if p := list[d.turn]; p.takes() {
			return p
		}
	}
	return nil
}

// byHash returns the worker for a key: of all that take connections the one
// with the highest score for it, so that the end of one moves only what it
// had. nil is this worker itself.
func (p *peers) byHash(key uint64) (found *peer) {
	best := uint64(0)
	if p.w.takes() {
		best = score(key, p.w.id.Slot)
	}
	for _, other := range p.list {
		if s := score(key, other.Slot); s > best && other.takes() {
			found, best = other, s
		}
	}
	return found
}

// score is the rank of a slot for a key (rendezvous hashing). It is the same
// in all workers.
func score(key uint64, slot int) uint64 {
	x := key ^ uint64(slot+1)*0x9e3779b97f4a7c15
	// The finalizer of SplitMix64: every bit of the key changes half of the result.
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31 | 1
}

// dispatchTo gives a connection that was just accepted to a peer. If that does
// not take it, it is served here. It fails as conn.Set.Arrived does.
func (w *Worker) dispatchTo(to *peer, fd int, from unix.Sockaddr, conns *conn.Config) error {
	w.onTheWay[to.Incarnation]++
	err := w.set.Arrived(fd, from, conns, func(f *conn.Frozen, err error) {
		if err != nil { // it has ended already
			w.arrived(to.Incarnation, 1)
			return
		}
		w.dispatched[to.Incarnation] = append(w.dispatched[to.Incarnation], handoff.Unit{First: f})
		if len(w.dispatched) == 1 && len(w.dispatched[to.Incarnation]) == 1 {
			w.loop.NextTurn(w.giveDispatched)
		}
	})
	if err != nil {
		w.arrived(to.Incarnation, 1)
	}
	return err
}

// arrived says that so many are no longer on their way to a peer.
func (w *Worker) arrived(to uint64, n int) {
	if w.onTheWay[to] -= n; w.onTheWay[to] == 0 {
		delete(w.onTheWay, to)
	}
}

// giveDispatched gives what was accepted in a turn, in as few batches as can
// be.
func (w *Worker) giveDispatched() {
	for to, units := range w.dispatched {
		delete(w.dispatched, to)
		w.ends.Give(to, uint8(conn.Move), units, func(o handoff.Outcome) {
			w.arrived(to, len(units))
			w.count(o)
		})
	}
}

// bound moves a connection to the worker that has all of an ID. Loop only.
func (w *Worker) bound(c *conn.Conn, id uint64) {
	if to := w.peers.byHash(id); to != nil {
		e := w.begin([]uint64{c.ID()}, func(map[uint64]int) *peer { return w.peers.of(to.Incarnation) }, func(moved) {})
		e.again = func(c *conn.Conn) { c.Bind(id) } // as in moveTo
	}
}
