package rows

import (
	"fmt"
	"sync/atomic"
)

// Row is what all processes know of a connection: 128 bytes, every word an
// atomic but those of the journal. Only its owner writes to it, the owner word aside. A Row is never
// copied.
type Row struct {
	owner atomic.Uint64

	// Cookie is the socket's SO_COOKIE, by which a descriptor is known to be
	// this connection's.
	Cookie atomic.Uint64

	// Local is the owner's own: where it finds the connection.
	Local atomic.Uint64

	// Where is packed by the owner: the descriptor's number there in the low
	// 32 bits, by which listener it came in the others.
	Where atomic.Uint64

	// What is the owner's: of what kind the connection is.
	What atomic.Uint64

	// Opened is when the connection was accepted, CLOCK_MONOTONIC in ns.
	Opened atomic.Int64

	// The journal: what was read and written when the connection was last
	// settled, twice, so that one of them is whole at any time.
	current uint64 // its lowest bit tells which half
	halves  [2]half

	// written has a bit for each part of the slab that is not zero.
	written atomic.Uint32

	_ [128 - 7*8 - 2*halfSize - 4]byte
}

const halfSize = 24

// half and current are written with plain stores, which cost a fraction of
// atomic ones: who reads them comes after the owner. What a process has stored
// before its death is there, in the order of the program.
type half struct{ rx, tx, bits uint64 }

// Owner is the owner word, taken apart.
type Owner struct {
	Generation  uint16 // of the row
	Incarnation uint64 // who owns it; 0: it is free
	Offered     uint64 // to whom; 0: nobody
}

// MaxIncarnation is the largest incarnation that can own a row.
const MaxIncarnation = 1<<24 - 1

// word puts the owner word together. It panics if an incarnation is over
// MaxIncarnation.
func (o Owner) word() uint64 {
	if o.Incarnation > MaxIncarnation || o.Offered > MaxIncarnation {
		panic(fmt.Sprintf("rows: incarnations %d and %d, want at most %d", o.Incarnation, o.Offered, MaxIncarnation))
	}
	return uint64(o.Generation)<<48 | o.Incarnation<<24 | o.Offered
}

// Owner returns the owner word. Anyone may call it.
func (r *Row) Owner() Owner {
	w := r.owner.Load()
	return Owner{Generation: uint16(w >> 48), Incarnation: w >> 24 & MaxIncarnation, Offered: w & MaxIncarnation}
}

func (r *Row) swap(from, to Owner) bool { return r.owner.CompareAndSwap(from.word(), to.word()) }

// Offer offers the connection, which me owns, to another incarnation. It
// returns false if me does not own it or has offered it already.
func (r *Row) Offer(id ID, me, to uint64) bool {
	return r.swap(Owner{id.generation(), me, 0}, Owner{id.generation(), me, to})
}

// TakeBack undoes Offer. It returns false if that incarnation has become the
// owner: the connection is not me's any more.
func (r *Row) TakeBack(id ID, me, from uint64) bool {
	return r.swap(Owner{id.generation(), me, from}, Owner{id.generation(), me, 0})
}

// Commit makes me the owner of what giver has offered to it. It returns false
// if the offer was taken back, or was never made: nothing of the connection
// may be touched then.
func (r *Row) Commit(id ID, giver, me uint64) bool {
	return r.swap(Owner{id.generation(), giver, me}, Owner{id.generation(), me, 0})
}

// Move makes to the owner of what me has, in one step and unasked: for the
// second connection of a pair whose first was committed. It returns false if
// me does not own it.
func (r *Row) Move(id ID, me, to uint64) bool {
	for {
		o := r.Owner()
		if o.Generation != id.generation() || o.Incarnation != me {
			return false
		}
		if r.swap(o, Owner{id.generation(), to, 0}) {
			return true
		}
	}
}

// free makes a row free, whomever it is offered to, and what was written to
// its slab zero. It returns false if it is not me's.
func (t *Table) free(id ID, me uint64) bool {
	r := &t.rows[id.index()]
	for {
		o := r.Owner()
		if o.Generation != id.generation() || o.Incarnation != me {
			return false
		}
		// Nobody may have it when its slab is wiped, nor before that is done.
		mine := Owner{Generation: id.generation(), Incarnation: me}
		if o.Offered != 0 && !r.swap(o, mine) {
			continue
		}
		if r.written.Load() != 0 {
			t.wipe(id)
		}
		if r.swap(mine, Owner{Generation: id.generation()}) {
			return true
		}
	}
}

// Publish notes how many bytes were read and written, and the protocol's
// bits: all three or, if the process dies meanwhile, none. Only the owner's
// loop calls it, before the write that makes it true.
func (r *Row) Publish(rx, tx, bits uint64) {
	n := r.current
	next := half{rx, tx, bits}
	if r.halves[n&1] == next {
		return
	}
	r.halves[(n+1)&1] = next
	r.current = n + 1
}

// Published returns what Publish noted last. Only the owner calls it, or who
// has become it, or any process once the owner is dead.
func (r *Row) Published() (rx, tx, bits uint64) {
	h := &r.halves[r.current&1]
	return h.rx, h.tx, h.bits
}

// clear makes a row that was just taken like a new one.
func (r *Row) clear() {
	r.Cookie.Store(0)
	r.Local.Store(0)
	r.Where.Store(0)
	r.What.Store(0)
	r.Opened.Store(0)
	r.Publish(0, 0, 0)
}
