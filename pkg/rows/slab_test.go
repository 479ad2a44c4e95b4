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
	fill := func(n int, part Part) byte { return byte(int(parts)*n + int(part) + 1) }
	for n, index := range indices {
		for part := range parts {
			slab, err := table.OwnSlab(makeID(index, 1), part)
			if err != nil {
				t.Fatal(err)
			}
			copy(slab, bytes.Repeat([]byte{fill(n, part)}, len(slab)))
		}
	}
	for n, index := range indices {
		for part := range parts {
			slab, err := other.Slab(makeID(index, 1), part)
			if err != nil {
				t.Fatal(err)
			}
			if want := bytes.Repeat([]byte{fill(n, part)}, []int{SlabHalf, SlabHalf, SlabAnnex}[part]); !bytes.Equal(slab, want) {
				t.Errorf("part %d of row %d has %x, %d bytes, want %x, %d bytes", part, index, slab[:4], len(slab), want[:4], len(want))
			}
		}
	}
}

func TestSlabOfNoRowIsAnError(t *testing.T) {
	table := newTable(t, 512)
	for _, tt := range []struct {
		name string
		id   ID
		part Part
	}{
		{"beyond the last row", makeID(512, 1), FirstHalf},
		{"an annex beyond the last row", makeID(512, 1), Annex},
		{"a part that is none", makeID(0, 1), parts},
	} {
		if _, err := table.Slab(tt.id, tt.part); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
}

// TestFreedRowLeavesNothingInItsSlab has each of those who free a row do it,
// also while it is offered to somebody.
func TestFreedRowLeavesNothingInItsSlab(t *testing.T) {
	for _, tt := range []struct {
		name    string
		offered bool
		free    func(*testing.T, *Table, *Allocator, ID)
	}{
		{"by its owner", false, func(t *testing.T, _ *Table, a *Allocator, id ID) {
			if !a.Free(id) {
				t.Error("it was not freed")
			}
		}},
		{"by its owner, who had offered it", true, func(t *testing.T, _ *Table, a *Allocator, id ID) {
			if !a.Free(id) {
				t.Error("it was not freed")
			}
		}},
		{"after its owner's death", true, func(t *testing.T, table *Table, a *Allocator, id ID) {
			if n := table.Reclaim(a.Incarnation()); n != 1 {
				t.Errorf("%d rows were freed, want 1", n)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := newTable(t, 512)
			a := table.Allocator(1)
			id, r := take(t, a)
			secret := []byte("secret")
			for part := range parts {
				slab, err := table.OwnSlab(id, part)
				if err != nil {
					t.Fatal(err)
				}
				copy(slab[len(slab)-len(secret):], secret)
			}
			if tt.offered && !r.Offer(id, 1, 2) {
				t.Fatal("it is not offered")
			}
			tt.free(t, table, a, id)
			if r.Commit(id, 1, 2) {
				t.Error("it was taken when it was free")
			}
			mem := make([]byte, size(table.Rows()))
			if _, err := unix.Pread(table.FD(), mem, 0); err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(mem, secret) {
				t.Error("the secret is still there")
			}
		})
	}
}

func TestRowThatIsAnothersKeepsItsSlab(t *testing.T) {
	table := newTable(t, 512)
	a := table.Allocator(1)
	id, r := take(t, a)
	slab, err := table.OwnSlab(id, FirstHalf)
	if err != nil {
		t.Fatal(err)
	}
	slab[0] = 1
	if !r.Offer(id, 1, 2) || !r.Commit(id, 1, 2) {
		t.Fatal("it is not the other's")
	}
	if a.Free(id) || table.Reclaim(1) != 0 {
		t.Error("it was freed by who had it before")
	}
	if slab[0] != 1 {
		t.Error("its slab was wiped by who had it before")
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
