package rows

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Part is a part of a row's slab.
type Part uint8

// The parts of a slab. Of the halves the protocol's bits in the row say which
// one counts, so that the other can be written; the annex is for what does not
// change.
const (
	FirstHalf Part = iota
	SecondHalf
	Annex

	parts
)

// The sizes of the parts, in bytes.
const (
	SlabHalf  = 512
	SlabAnnex = 4096
)

// chunkRows is the number of rows whose slabs are mapped at a time, 32 MiB of
// addresses, or 128 MiB of annexes. A whole table's could be many times its
// rows, and most services use few.
const chunkRows = 64 * blockRows

// region is where the same parts of all rows lie.
type region struct {
	at     int64 // in the table
	stride int64 // bytes of a row's
	chunks []atomic.Pointer[[]byte]
}

// slabs are the slabs that are mapped.
type slabs struct {
	halves, annexes region
	mu              sync.Mutex // of who maps one
}

const (
	halvesStride = 2 * SlabHalf
	slabSize     = halvesStride + SlabAnnex
)

func newSlabs(rows int) slabs {
	chunks := (rows + chunkRows - 1) / chunkRows
	return slabs{
		halves:  region{slabsAt(rows), halvesStride, make([]atomic.Pointer[[]byte], chunks)},
		annexes: region{slabsAt(rows) + int64(rows)*halvesStride, SlabAnnex, make([]atomic.Pointer[[]byte], chunks)},
	}
}

// Slab returns a part of a connection's slab: SlabHalf or SlabAnnex bytes that
// all processes share. It is for reading; only the connection's owner reads
// it, or who may look at its journal. It fails if the table has no such row,
// or if the kernel refuses mmap(2).
func (t *Table) Slab(id ID, part Part) ([]byte, error) {
	index := int64(id.index())
	if index >= int64(len(t.rows)) || part >= parts {
		return nil, fmt.Errorf("rows: part %d of the slab of row %d, want one of %d, of %d", part, index, parts, len(t.rows))
	}
	r, at, size := &t.slabs.halves, int64(0), int64(SlabHalf)
	switch part {
	case SecondHalf:
		at = SlabHalf
	case Annex:
		r, size = &t.slabs.annexes, SlabAnnex
	}
	chunk, err := t.chunk(r, index/chunkRows)
	if err != nil {
		return nil, err
	}
	at += index % chunkRows * r.stride
	return chunk[at : at+size : at+size], nil
}

// OwnSlab is Slab for writing, by the connection's owner alone. What it writes
// is overwritten with zeros when the row is freed, by whomever.
func (t *Table) OwnSlab(id ID, part Part) ([]byte, error) {
	slab, err := t.Slab(id, part)
	if err != nil {
		return nil, err
	}
	if written := &t.rows[id.index()].written; written.Load()&(1<<part) == 0 {
		written.Or(1 << part)
	}
	return slab, nil
}

// wipe overwrites with zeros what was written to a row's slab, which is the
// caller's. Where that fails, for want of addresses, who frees the row next
// tries again.
func (t *Table) wipe(id ID) {
	written := &t.rows[id.index()].written
	for part := range parts {
		if written.Load()&(1<<part) == 0 {
			continue
		}
		if slab, err := t.Slab(id, part); err == nil {
			clear(slab)
			written.And(^uint32(1 << part))
		}
	}
}

// chunk returns a chunk of a region, which is mapped if it was not.
func (t *Table) chunk(r *region, i int64) ([]byte, error) {
	if mem := r.chunks[i].Load(); mem != nil {
		return *mem, nil
	}
	t.slabs.mu.Lock()
	defer t.slabs.mu.Unlock()
	if mem := r.chunks[i].Load(); mem != nil {
		return *mem, nil
	}
	n := min(chunkRows, int64(len(t.rows))-i*chunkRows) * r.stride
	mem, err := unix.Mmap(t.fd, r.at+i*chunkRows*r.stride, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("rows: slabs: %w", os.NewSyscallError("mmap", err))
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	r.chunks[i].Store(&mem)
	return mem, nil
}

func (s *slabs) close() error {
	var errs []error
	for _, chunks := range [][]atomic.Pointer[[]byte]{s.halves.chunks, s.annexes.chunks} {
		for i := range chunks {
			if mem := chunks[i].Swap(nil); mem != nil {
				errs = append(errs, unix.Munmap(*mem))
			}
		}
	}
	return errors.Join(errs...)
}
