package rows

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSlabsAreSharedAndApart(t *testing.T) {
	table := newTable(t, 2*chunkRows+blockRows)
	fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	indices := []uint32{0, 1, blockRows, chunkRows - 1, chunkRows, 2 * chunkRows, uint32(table.Rows()) - 1}
	for n, index := range indices {
		for half := range 2 {
			slab, err := table.Slab(makeID(index, 1), half)
			if err != nil {
				t.Fatal(err)
			}
			copy(slab, bytes.Repeat([]byte{byte(2*n + half + 1)}, SlabHalf))
		}
	}
	for n, index := range indices {
		for half := range 2 {
			slab, err := other.Slab(makeID(index, 1), half)
			if err != nil {
				t.Fatal(err)
			}
			if want := bytes.Repeat([]byte{byte(2*n + half + 1)}, SlabHalf); !bytes.Equal(slab, want) {
				t.Errorf("half %d of row %d has %x, want %x", half, index, slab[:4], want[:4])
			}
		}
	}
}

func TestSlabOfNoRowIsAnError(t *testing.T) {
	table := newTable(t, 512)
	for _, tt := range []struct {
		name string
		id   ID
		half int
	}{
		{"beyond the last row", makeID(512, 1), 0},
		{"a third half", makeID(0, 1), 2},
		{"a half below the first", makeID(0, 1), -1},
	} {
		if _, err := table.Slab(tt.id, tt.half); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
}

func TestPublishNotesAllOrNothing(t *testing.T) {
	table := newTable(t, 512)
	_, r := take(t, table.Allocator(1))
	for _, n := range [][3]uint64{{1, 2, 3}, {1, 2, 3}, {1, 4, 3}, {2, 4, 3}, {2, 4, 0}, {1, 2, 3}} {
		r.Publish(n[0], n[1], n[2])
		if rx, tx, bits := r.Published(); rx != n[0] || tx != n[1] || bits != n[2] {
			t.Errorf("published %d, read %d %d %d", n, rx, tx, bits)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	table, err := Create(512)
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	_, r, err := table.Allocator(1).Take()
	if err != nil {
		b.Fatal(err)
	}
	n := uint64(0)
	for b.Loop() {
		n += 64
		r.Publish(n, n, 1)
	}
}
