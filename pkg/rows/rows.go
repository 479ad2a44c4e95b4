// Package rows is the table of all connections of a service, in memory that
// all its processes share.
//
// A connection has one row from its accept to its close, whichever processes
// serve it meanwhile. The row's index and generation are the connection's ID.
// What matters most in it is the owner word:
//
//	{generation of the row, incarnation that owns it, incarnation it is offered to}
//
// Whoever is named as owner, and nobody else, may read and write the
// connection. The word is changed by compare-and-swap only, so of two who
// want it one wins, and who is right can be read from it at any time,
// whatever died in between:
//
//	Take      free               -> {g+1, me, nobody}   accept
//	Offer     {g, me, nobody}    -> {g, me, other}      the giver asks
//	Commit    {g, giver, me}     -> {g, me, nobody}     the taker has it
//	TakeBack  {g, me, other}     -> {g, me, nobody}     the giver keeps it
//	Free      {g, me, anybody}   -> free                close
//
// The table is a memfd, sealed against resizing and as sparse as it is
// unused: a header, one word for each block of rows, the rows. An incarnation
// claims whole blocks and hands out their rows to its connections; a
// connection that moves keeps its row, so a block may hold rows of others.
//
//	offset  size  header
//	     0     8  magic "MAINROWS"
//	     8     4  version of the layout
//	    12     4  size of a row
//	    16     8  number of rows
//	    24  4072  zero
//	  4096     8  block 0: incarnation that claims it, 0: none; bit 63: it was ever used
//	     ...      the other blocks, up to the end of a page
//	     ...  128 row 0, then the others, up to the end of a page
//	     ... 1024 slab of row 0: its halves, then the others'
//	     ... 4096 slab of row 0: its annex, then the others'
//
// A slab is room for more state than a row has: two halves, of which the
// protocol's bits in the row say which one counts, and an annex for what has
// no room there and does not change. Each is mapped, and costs memory, from
// its first use on. It may hold secrets: it is in no core dump, and overwritten
// with zeros when the row is freed.
//
// Start reading at Row, then Allocator.
package rows

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic   = 0x53574f524e49414d // "MAINROWS", little endian
	version = 3
	page    = 4096

	// blockRows is the number of rows in a block: 64 KiB of them.
	blockRows = 512

	// blockUsed is set in a block's word for ever once it was claimed.
	blockUsed = 1 << 63
)

// MaxRows is the largest number of rows a table may have.
const MaxRows = 1 << 31

// ErrFull says that all rows of the table are taken.
var ErrFull = errors.New("rows: all rows of the table are taken")

// ID names a connection: the index of its row in the low 32 bits, the row's
// generation in the 16 above. No connection has the ID 0, and none has one
// over 1<<48, so that every reader of JSON can hold it.
type ID uint64

func makeID(index uint32, generation uint16) ID { return ID(generation)<<32 | ID(index) }

func (id ID) index() uint32      { return uint32(id) }
func (id ID) generation() uint16 { return uint16(id >> 32) }

type header struct {
	magic   uint64
	version uint32
	rowSize uint32
	rows    uint64
}

// Table is a mapped table. Its methods may be called from any goroutine.
type Table struct {
	fd     int
	mem    []byte
	blocks []atomic.Uint64
	rows   []Row
	slabs  slabs
}

// Create makes a table of at least the given number of rows, all free. The
// caller owns it and ends it by Close. It fails if rows is not in 1..MaxRows,
// or if the kernel refuses memfd_create(2) or mmap(2). Rows cost memory from
// their first use on.
func Create(rows int) (*Table, error) {
	if rows < 1 || rows > MaxRows {
		return nil, fmt.Errorf("rows: %d rows, want 1 to %d", rows, MaxRows)
	}
	rows = (rows + blockRows - 1) / blockRows * blockRows
	fd, err := unix.MemfdCreate("mainstay-rows", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("rows: %w", os.NewSyscallError("memfd_create", err))
	}
	t, err := create(fd, rows)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

func create(fd, rows int) (*Table, error) {
	if err := unix.Ftruncate(fd, size(rows)); err != nil {
		return nil, fmt.Errorf("rows: %w", os.NewSyscallError("ftruncate", err))
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("rows: %w", os.NewSyscallError("fcntl F_ADD_SEALS", err))
	}
	t, err := mapTable(fd, rows)
	if err != nil {
		return nil, err
	}
	*t.head() = header{magic: magic, version: version, rowSize: uint32(unsafe.Sizeof(Row{})), rows: uint64(rows)}
	return t, nil
}

// Open maps the table behind fd, which it takes over only on success. It
// fails if fd is no memfd sealed against resizing, or if its header is not
// that of a table of this version.
func Open(fd int) (*Table, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("rows: fd %d: %w", fd, os.NewSyscallError("fcntl F_GET_SEALS", err))
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("rows: fd %d: not sealed against shrinking", fd)
	}
	var head [unsafe.Sizeof(header{})]byte
	if n, err := unix.Pread(fd, head[:], 0); err != nil || n < len(head) {
		return nil, fmt.Errorf("rows: fd %d: header of %d bytes, want %d: %w", fd, n, len(head), os.NewSyscallError("pread", err))
	}
	h := (*header)(unsafe.Pointer(&head))
	switch {
	case h.magic != magic:
		return nil, fmt.Errorf("rows: fd %d: not a table of rows", fd)
	case h.version != version:
		return nil, fmt.Errorf("rows: fd %d: layout version %d, want %d", fd, h.version, version)
	case uintptr(h.rowSize) != unsafe.Sizeof(Row{}):
		return nil, fmt.Errorf("rows: fd %d: rows of %d bytes, want %d", fd, h.rowSize, unsafe.Sizeof(Row{}))
	case h.rows == 0 || h.rows > MaxRows || h.rows%blockRows != 0:
		return nil, fmt.Errorf("rows: fd %d: %d rows, want a multiple of %d up to %d", fd, h.rows, blockRows, MaxRows)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("rows: fd %d: %w", fd, os.NewSyscallError("fstat", err))
	}
	if want := size(int(h.rows)); st.Size != want {
		return nil, fmt.Errorf("rows: fd %d: %d bytes, want %d for %d rows", fd, st.Size, want, h.rows)
	}
	return mapTable(fd, int(h.rows))
}

func mapTable(fd, rows int) (*Table, error) {
	mem, err := unix.Mmap(fd, 0, int(slabsAt(rows)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("rows: %w", os.NewSyscallError("mmap", err))
	}
	// A core dump that goes through a pipe would have all of it, holes as
	// zeros. An old kernel that does not know this has them.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	return &Table{
		fd:     fd,
		mem:    mem,
		blocks: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[page])), rows/blockRows),
		rows:   unsafe.Slice((*Row)(unsafe.Pointer(&mem[rowsAt(rows)])), rows),
		slabs:  newSlabs(rows),
	}, nil
}

func rowsAt(rows int) int64 { return page + (int64(rows)/blockRows*8+page-1)/page*page }

// slabsAt is where the slabs begin, and what is mapped at once ends. A block
// of rows is a whole number of pages, and so is one of slabs.
func slabsAt(rows int) int64 { return rowsAt(rows) + int64(rows)*int64(unsafe.Sizeof(Row{})) }

func size(rows int) int64 { return slabsAt(rows) + int64(rows)*slabSize }

func (t *Table) head() *header { return (*header)(unsafe.Pointer(&t.mem[0])) }

// FD returns the table's descriptor, which stays the table's.
func (t *Table) FD() int { return t.fd }

// Rows returns how many rows there are.
func (t *Table) Rows() int { return len(t.rows) }

// Close unmaps the table and closes its descriptor. Rows must not be used any
// more.
func (t *Table) Close() error {
	err := errors.Join(unix.Munmap(t.mem), t.slabs.close())
	t.mem, t.blocks, t.rows = nil, nil, nil
	return errors.Join(err, unix.Close(t.fd))
}

// Row returns the row of a connection, or nil if no such row is there or if
// it has gone to another connection since, or to none. The row may be freed
// the moment after.
func (t *Table) Row(id ID) *Row {
	if int64(id.index()) >= int64(len(t.rows)) || id>>48 != 0 || !t.used(id.index()) {
		return nil
	}
	r := &t.rows[id.index()]
	if o := r.Owner(); o.Incarnation == 0 || o.Generation != id.generation() {
		return nil
	}
	return r
}

// Own returns the row of a connection that is the caller's: it is not looked
// whether it is.
func (t *Table) Own(id ID) *Row { return &t.rows[id.index()] }

// used says whether a row's block was ever claimed: only then it has memory.
func (t *Table) used(index uint32) bool { return t.blocks[index/blockRows].Load()&blockUsed != 0 }

// Owned calls f for each row that the incarnation owns. Others may take and
// free rows meanwhile.
func (t *Table) Owned(incarnation uint64, f func(ID, *Row)) {
	for b := range t.blocks {
		if t.blocks[b].Load()&blockUsed == 0 {
			continue
		}
		for i := b * blockRows; i < (b+1)*blockRows; i++ {
			if o := t.rows[i].Owner(); o.Incarnation == incarnation {
				f(makeID(uint32(i), o.Generation), &t.rows[i])
			}
		}
	}
}

// Reclaim frees all rows that a dead incarnation still owns, whomever they
// were offered to, and gives up its blocks; a taker that commits first keeps
// its row. It returns how many were freed. Only the supervisor calls it, once
// the process is gone.
func (t *Table) Reclaim(incarnation uint64) (freed int) {
	t.Owned(incarnation, func(id ID, r *Row) {
		if t.free(id, incarnation) {
			freed++
		}
	})
	for b := range t.blocks {
		t.blocks[b].CompareAndSwap(incarnation|blockUsed, blockUsed)
	}
	return freed
}
