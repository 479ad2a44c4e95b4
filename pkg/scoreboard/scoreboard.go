// Package scoreboard is the page of shared memory on which every worker
// writes how it is, and from which anyone who has the descriptor may read it.
//
// The page is a memfd, sealed against resizing, so a reader never gets
// SIGBUS. It starts with a header of one cache-line pair; then follow the
// seats, 512 bytes each. A seat belongs to one incarnation of a worker from
// its spawn to its reaping, and only that process writes it (the supervisor
// prepares it before the spawn and clears it after the reaping). Every field
// is one atomic word, so a reader needs no help from the writer: the numbers
// of a worker that hangs, or that was stopped, can still be read, and its
// heartbeat tells how old they are.
//
//	offset  size  header
//	     0     8  magic "MAINSTAY"
//	     8     4  version of the layout
//	    12     4  size of a seat
//	    16     8  number of seats
//	    24     8  epoch: counts supervisors
//	    32     8  supervisor's heartbeat, CLOCK_MONOTONIC in ns
//	    40    88  zero
//	   128   512  seat 0, then the others
//
// Start reading at Create (the supervisor's side), Open (the worker's), Look (anybody's) and
// Seat.
package scoreboard

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic   = 0x594154534e49414d // "MAINSTAY", little endian
	version = 4
)

// MaxSeats is the largest number of seats a board may have.
const MaxSeats = 1 << 16

type header struct {
	magic    uint64
	version  uint32
	seatSize uint32
	seats    uint64
	epoch    atomic.Uint64
	beat     atomic.Int64
	_        [88]byte
}

// Board is a mapped scoreboard. Its methods may be called from any goroutine.
type Board struct {
	fd    int
	mem   []byte
	head  *header
	seats []Seat
}

// Create makes a board with the given number of seats, all vacant. The
// caller owns the Board and ends it by Close. It fails if seats is not in
// 1..MaxSeats, or if the kernel refuses memfd_create(2) or mmap(2).
func Create(seats int) (*Board, error) {
	if seats < 1 || seats > MaxSeats {
		return nil, fmt.Errorf("scoreboard: %d seats, want 1 to %d", seats, MaxSeats)
	}
	fd, err := unix.MemfdCreate("mainstay-stats", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("scoreboard: %w", os.NewSyscallError("memfd_create", err))
	}
	b, err := create(fd, seats)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return b, nil
}

func create(fd, seats int) (*Board, error) {
	if err := unix.Ftruncate(fd, size(seats)); err != nil {
		return nil, fmt.Errorf("scoreboard: %w", os.NewSyscallError("ftruncate", err))
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("scoreboard: %w", os.NewSyscallError("fcntl F_ADD_SEALS", err))
	}
	b, err := mapBoard(fd, seats, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	b.head.magic = magic
	b.head.version = version
	b.head.seatSize = uint32(unsafe.Sizeof(Seat{}))
	b.head.seats = uint64(seats)
	return b, nil
}

// Open maps the board behind fd, which it takes over only on success. It
// fails if fd is no memfd sealed against resizing, or if its header is not
// that of a board of this version.
func Open(fd int) (*Board, error) { return open(fd, unix.PROT_READ|unix.PROT_WRITE) }

// Look is Open for a descriptor that may only be read: nothing of the Board may
// be written.
func Look(fd int) (*Board, error) { return open(fd, unix.PROT_READ) }

func open(fd, protection int) (*Board, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("scoreboard: fd %d: %w", fd, os.NewSyscallError("fcntl F_GET_SEALS", err))
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("scoreboard: fd %d: not sealed against shrinking", fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("scoreboard: fd %d: %w", fd, os.NewSyscallError("fstat", err))
	}
	if st.Size < int64(unsafe.Sizeof(header{})) {
		return nil, fmt.Errorf("scoreboard: fd %d: %d bytes, too short for a header", fd, st.Size)
	}
	seats := (st.Size - int64(unsafe.Sizeof(header{}))) / int64(unsafe.Sizeof(Seat{}))
	if seats > MaxSeats {
		return nil, fmt.Errorf("scoreboard: fd %d: %d bytes, want at most %d seats", fd, st.Size, MaxSeats)
	}
	b, err := mapBoard(fd, int(seats), protection)
	if err != nil {
		return nil, err
	}
	if err := b.check(int(seats)); err != nil {
		unix.Munmap(b.mem)
		return nil, fmt.Errorf("scoreboard: fd %d: %w", fd, err)
	}
	return b, nil
}

func (b *Board) check(seats int) error {
	switch h := b.head; {
	case h.magic != magic:
		return errors.New("not a scoreboard")
	case h.version != version:
		return fmt.Errorf("layout version %d, want %d", h.version, version)
	case uintptr(h.seatSize) != unsafe.Sizeof(Seat{}):
		return fmt.Errorf("seats of %d bytes, want %d", h.seatSize, unsafe.Sizeof(Seat{}))
	case h.seats != uint64(seats):
		return fmt.Errorf("header says %d seats, room for %d", h.seats, seats)
	}
	return nil
}

func mapBoard(fd, seats, protection int) (*Board, error) {
	mem, err := unix.Mmap(fd, 0, int(size(seats)), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("scoreboard: %w", os.NewSyscallError("mmap", err))
	}
	head := (*header)(unsafe.Pointer(&mem[0]))
	var table []Seat
	if seats > 0 {
		table = unsafe.Slice((*Seat)(unsafe.Pointer(&mem[unsafe.Sizeof(header{})])), seats)
	}
	return &Board{fd: fd, mem: mem, head: head, seats: table}, nil
}

func size(seats int) int64 {
	return int64(unsafe.Sizeof(header{})) + int64(seats)*int64(unsafe.Sizeof(Seat{}))
}

// FD returns the board's descriptor, which stays the board's.
func (b *Board) FD() int { return b.fd }

// Seats returns the number of seats.
func (b *Board) Seats() int { return len(b.seats) }

// Seat returns seat i, which is valid until Close. It panics unless
// 0 <= i < Seats().
func (b *Board) Seat(i int) *Seat { return &b.seats[i] }

// Epoch counts the supervisors that have had this board.
func (b *Board) Epoch() *atomic.Uint64 { return &b.head.epoch }

// SupervisorBeat is the supervisor's heartbeat: CLOCK_MONOTONIC in
// nanoseconds, written every ten seconds and before a worker is spawned.
func (b *Board) SupervisorBeat() *atomic.Int64 { return &b.head.beat }

// Close unmaps the board and closes its descriptor. Seats must not be used
// any more.
func (b *Board) Close() error {
	err := unix.Munmap(b.mem)
	b.mem, b.head, b.seats = nil, nil, nil
	return errors.Join(err, unix.Close(b.fd))
}
