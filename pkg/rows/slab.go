package rows

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// SlabHalf is the size of one half of a row's slab, in bytes.
const SlabHalf = 512

const (
	slabSize = 2 * SlabHalf

	// chunkRows is the number of slabs that are mapped at a time, 32 MiB of
	// addresses. A whole table's slabs could be eight times its rows, and
	// most services use few.
	chunkRows = 64 * blockRows
)

// slabs are the slabs that are mapped.
type slabs struct {
	chunks []atomic.Pointer[[]byte]
	mu     sync.Mutex // of who maps one
}

func newSlabs(rows int) slabs {
	return slabs{chunks: make([]atomic.Pointer[[]byte], (rows+chunkRows-1)/chunkRows)}
}

// Slab returns a half, 0 or 1, of a connection's slab: SlabHalf bytes that all
// processes share. Only the connection's owner writes them, and only those of
// the half that does not count. They are what was there before until they are
// written, be it another connection's. It fails if the table has no such row,
// or if the kernel refuses mmap(2).
func (t *Table) Slab(id ID, half int) ([]byte, error) {
	index := int64(id.index())
	if index >= int64(len(t.rows)) || half&^1 != 0 {
		return nil, fmt.Errorf("rows: half %d of the slab of row %d, want 0 or 1 of %d", half, index, len(t.rows))
	}
	chunk, err := t.chunk(int(index / chunkRows))
	if err != nil {
		return nil, err
	}
	at := index%chunkRows*slabSize + int64(half)*SlabHalf
	return chunk[at : at+SlabHalf : at+SlabHalf], nil
}

// chunk returns a chunk of slabs, which is mapped if it was not.
func (t *Table) chunk(i int) ([]byte, error) {
	s := &t.slabs
	if mem := s.chunks[i].Load(); mem != nil {
		return *mem, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if mem := s.chunks[i].Load(); mem != nil {
		return *mem, nil
	}
	const bytes = chunkRows * slabSize
	n := min(bytes, (int64(len(t.rows))-int64(i)*chunkRows)*slabSize)
	mem, err := unix.Mmap(t.fd, slabsAt(len(t.rows))+int64(i)*bytes, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("rows: slabs: %w", os.NewSyscallError("mmap", err))
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	s.chunks[i].Store(&mem)
	return mem, nil
}

func (s *slabs) close() error {
	var errs []error
	for i := range s.chunks {
		if mem := s.chunks[i].Swap(nil); mem != nil {
			errs = append(errs, unix.Munmap(*mem))
		}
	}
	return errors.Join(errs...)
}
