package rows

// Allocator hands out the rows of a table to one incarnation. Only one
// goroutine at a time may use it.
type Allocator struct {
	table       *Table
	incarnation uint64
	blocks      []uint32 // claimed
	free        []uint32 // rows that are likely to be free
	scanned     int      // of blocks: where the next look for free rows begins
	cursor      int      // where the next look for an unclaimed block begins
}

// scanAtMost is how many blocks are searched for rows that others have freed
// before a new block is claimed.
const scanAtMost = 4

// Allocator returns an allocator for an incarnation, from 1 to
// MaxIncarnation. Each incarnation has one at most.
func (t *Table) Allocator(incarnation uint64) *Allocator {
	_ = Owner{Incarnation: incarnation}.word() // panics if it is too large
	// Those who start elsewhere do not meet at the same blocks.
	const stride = 61
	return &Allocator{table: t, incarnation: incarnation, cursor: int(incarnation * stride % uint64(len(t.blocks)))}
}

// Table returns the table.
func (a *Allocator) Table() *Table { return a.table }

// Incarnation returns whom the rows are for.
func (a *Allocator) Incarnation() uint64 { return a.incarnation }

// Take makes a free row this incarnation's and returns it. It returns ErrFull
// if none is free.
func (a *Allocator) Take() (ID, *Row, error) {
	for {
		for len(a.free) > 0 {
			index := a.free[len(a.free)-1]
			a.free = a.free[:len(a.free)-1]
			r := &a.table.rows[index]
			o := r.Owner()
			if o.Incarnation != 0 {
				continue
			}
			next := Owner{Generation: max(o.Generation+1, 1), Incarnation: a.incarnation}
			if r.swap(o, next) {
				r.clear()
				return makeID(index, next.Generation), r, nil
			}
		}
		if !a.refill() {
			return 0, nil, ErrFull
		}
	}
}

// Free gives back a row that this incarnation owns: the connection is closed.
// It returns false if it owns it no more, for another has committed.
func (a *Allocator) Free(id ID) bool {
	index := id.index()
	if !a.table.free(id, a.incarnation) {
		return false
	}
	if a.table.blocks[index/blockRows].Load()&^blockUsed == a.incarnation {
		a.free = append(a.free, index)
	}
	return true
}

// refill finds free rows: in a few of the own blocks, else in a new one, else
// in all of the own.
func (a *Allocator) refill() bool {
	return a.scan(min(scanAtMost, len(a.blocks))) || a.claim() || a.scan(len(a.blocks))
}

// scan looks into the next n blocks, until one has free rows.
func (a *Allocator) scan(n int) bool {
	for range n {
		a.scanned = (a.scanned + 1) % len(a.blocks)
		if a.list(a.blocks[a.scanned]) {
			return true
		}
	}
	return false
}

// list notes the free rows of a block and says whether there are any.
func (a *Allocator) list(block uint32) bool {
	first := block * blockRows
	for i := first + blockRows; i > first; i-- {
		if a.table.rows[i-1].Owner().Incarnation == 0 {
			a.free = append(a.free, i-1)
		}
	}
	return len(a.free) > 0
}

// claim takes a block that is nobody's and has a free row.
func (a *Allocator) claim() bool {
	blocks := a.table.blocks
	for i := range blocks {
		b := (a.cursor + i) % len(blocks)
		word := blocks[b].Load()
		if word&^blockUsed != 0 || !blocks[b].CompareAndSwap(word, a.incarnation|blockUsed) {
			continue
		}
		a.blocks = append(a.blocks, uint32(b))
		if a.list(uint32(b)) {
			a.cursor = b + 1
			return true
		}
	}
	return false
}
