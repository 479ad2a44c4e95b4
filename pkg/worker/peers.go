package worker

import (
	"cmp"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// peer is another worker of the service, as the supervisor has told of it.
type peer struct {
	link.Peer
	seat *scoreboard.Seat
}

// peers are the other workers. The loop owns it.
type peers struct {
	w    *Worker
	all  map[uint64]*peer // by incarnation
	list []*peer          // of this worker's pool, by slot and age

	harvester uint64 // the supervisor's; 0: none
}

// told takes note of a peer; fd is the sending end of its inbox, -1 if it was
// told before.
func (p *peers) told(m link.Peer, fd int) {
	w := p.w
	if m.Pool == "" && m.Incarnation != w.id.Incarnation {
		// The harvester: it gives, and takes nothing.
		p.harvester = m.Incarnation
		w.ends.Peer(m.Incarnation, m.Slot, fd)
		return
	}
	known := p.all[m.Incarnation]
	switch {
	case known == nil && (fd < 0 || m.Seat < 0 || m.Seat >= w.board.Seats() || m.Incarnation == w.id.Incarnation):
		w.log.Error("peer not understood", zap.Uint64("peer_incarnation", m.Incarnation), zap.Int("seat", m.Seat))
		if fd >= 0 {
			unix.Close(fd)
		}
		return
	case known == nil:
		known = &peer{seat: w.board.Seat(m.Seat)}
		p.all[m.Incarnation] = known
	}
	known.Peer = m
	if fd >= 0 {
		w.ends.Peer(m.Incarnation, m.Slot, fd)
	}
	p.sort()
}

// gone forgets a peer that is dead.
func (p *peers) gone(incarnation uint64) {
	delete(p.all, incarnation)
	p.sort()
	p.w.ends.Gone(incarnation)
}

func (p *peers) sort() {
	p.list = p.list[:0]
	for _, other := range p.all {
		if other.Pool == p.w.id.Pool {
			p.list = append(p.list, other)
		}
	}
	slices.SortFunc(p.list, func(a, b *peer) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Incarnation, b.Incarnation))
	})
}

// takes says whether a peer may be given connections now, by the supervisor's
// word and by its own.
func (p *peer) takes() bool {
	return p.Serving && p.seat.Incarnation.Load() == p.Incarnation &&
		link.State(p.seat.State.Load()) == link.StateServing && p.seat.Unready.Load() == 0
}

// of returns the peer with an incarnation if it takes connections, else nil.
func (p *peers) of(incarnation uint64) *peer {
	if other := p.all[incarnation]; other != nil && other.takes() {
		return other
	}
	return nil
}

// leaves says whether a worker is on its way out, so that what it has would
// end with it. One that nobody has told of is no exception.
func (p *peers) leaves(incarnation uint64) bool {
	other := p.all[incarnation]
	return other != nil && other.seat.Incarnation.Load() == incarnation && link.State(other.seat.State.Load()) == link.StateDraining
}

// at returns the peer of this pool in a slot that takes connections, the
// youngest if there are several; nil if there is none.
func (p *peers) at(slot int) (found *peer) {
	for _, other := range p.list {
		if other.Slot == slot && other.takes() {
			found = other
		}
	}
	return found
}

// idlest returns the peer of this pool that takes connections and has the
// fewest, those counted that are on their way to it; nil if there is none.
func (p *peers) idlest(onTheWay map[uint64]int) (found *peer) {
	var least int64
	for _, other := range p.list {
		if !other.takes() {
			continue
		}
		if n := other.seat.Connections.Load() + int64(onTheWay[other.Incarnation]); found == nil || n < least {
			found, least = other, n
		}
	}
	return found
}
