package rows

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newTable(t *testing.T, rows int) *Table {
	t.Helper()
	table, err := Create(rows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func take(t *testing.T, a *Allocator) (ID, *Row) {
	t.Helper()
	id, r, err := a.Take()
	if err != nil {
		t.Fatal(err)
	}
	return id, r
}

func TestRowHasTheSizeOfTheLayout(t *testing.T) {
	if size := unsafe.Sizeof(Row{}); size != 128 {
		t.Errorf("a row has %d bytes, want 128", size)
	}
	if size := unsafe.Sizeof(half{}); size != halfSize {
		t.Errorf("a half has %d bytes, want %d", size, halfSize)
	}
}

func TestAnotherProcessSeesTheSameRows(t *testing.T) {
	table := newTable(t, 1000)
	fd, err := unix.FcntlInt(uintptr(table.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Rows() != 1024 {
		t.Errorf("%d rows, want 1024: the next multiple of a block", other.Rows())
	}
	id, r := take(t, table.Allocator(7))
	r.Cookie.Store(42)
	seen := other.Row(id)
	if seen == nil || seen.Cookie.Load() != 42 || seen.Owner() != (Owner{Generation: 1, Incarnation: 7}) {
		t.Fatalf("the other mapping has %+v", seen)
	}
}

func TestOpenRefusesWhatIsNoTable(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T) int
	}{
		{"a descriptor that is no memfd", func(t *testing.T) int { return 0 }},
		{"a memfd without seals", func(t *testing.T) int { return memfd(t, 4096, 0) }},
		{"a memfd of zeros", func(t *testing.T) int { return memfd(t, 1<<20, unix.F_SEAL_SHRINK) }},
		{"a memfd that is too short", func(t *testing.T) int { return memfd(t, 3, unix.F_SEAL_SHRINK) }},
		{"a table whose header says too much", func(t *testing.T) int {
			table := newTable(t, 512)
			table.head().rows = 1024
			return table.FD()
		}},
		{"a table of another version", func(t *testing.T) int {
			table := newTable(t, 512)
			table.head().version++
			return table.FD()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if table, err := Open(tt.make(t)); err == nil {
				table.Close()
				t.Error("it was opened")
			}
		})
	}
}

func memfd(t *testing.T, size int64, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestRowIsFoundByItsIDOnlyWhileItIsTaken(t *testing.T) {
	table := newTable(t, 512)
	a := table.Allocator(1)
	if table.Row(5) != nil || table.Row(1<<40) != nil || table.Row(1<<50) != nil || table.Row(0) != nil {
		t.Error("a row was found in an empty table")
	}
	first, r := take(t, a)
	if table.Row(first) != r {
		t.Error("the row that was taken is not found")
	}
	if !a.Free(first) {
		t.Error("a row of its own was not freed")
	}
	if a.Free(first) {
		t.Error("it was freed twice")
	}
	second, again := take(t, a)
	if again != r || second == first {
		t.Errorf("taken again: %d after %d, want the same row by another ID", second, first)
	}
	if table.Row(first) != nil {
		t.Error("the old ID finds the row's new connection")
	}
}

func TestOnlyOneOfTwoWinsTheOwnerWord(t *testing.T) {
	table := newTable(t, 512)
	id, r := take(t, table.Allocator(1))
	const giver, taker, other = 1, 2, 3
	steps := []struct {
		what string
		done bool
		want bool
		then Owner
	}{
		{"commit without an offer", r.Commit(id, giver, taker), false, Owner{1, giver, 0}},
		{"offer by another", r.Offer(id, other, taker), false, Owner{1, giver, 0}},
		{"offer", r.Offer(id, giver, taker), true, Owner{1, giver, taker}},
		{"second offer", r.Offer(id, giver, other), false, Owner{1, giver, taker}},
		{"commit by another", r.Commit(id, giver, other), false, Owner{1, giver, taker}},
		{"take back", r.TakeBack(id, giver, taker), true, Owner{1, giver, 0}},
		{"commit after that", r.Commit(id, giver, taker), false, Owner{1, giver, 0}},
	}
	for _, s := range steps {
		if s.done != s.want {
			t.Errorf("%s: %v, want %v", s.what, s.done, s.want)
		}
	}
	r.Offer(id, giver, taker)
	if !r.Commit(id, giver, taker) || r.TakeBack(id, giver, taker) || r.Owner() != (Owner{1, taker, 0}) {
		t.Errorf("after a commit the owner is %+v", r.Owner())
	}
	if !r.Move(id, taker, other) || r.Move(id, taker, giver) || r.Owner() != (Owner{1, other, 0}) {
		t.Errorf("after a move the owner is %+v", r.Owner())
	}
}

func TestCommitAndTakeBackRaceAndOneWins(t *testing.T) {
	table := newTable(t, 512)
	a := table.Allocator(1)
	for range 2000 {
		id, r := take(t, a)
		r.Offer(id, 1, 2)
		var committed, takenBack atomic.Bool
		var both sync.WaitGroup
		both.Go(func() { committed.Store(r.Commit(id, 1, 2)) })
		both.Go(func() { takenBack.Store(r.TakeBack(id, 1, 2)) })
		both.Wait()
		if committed.Load() == takenBack.Load() {
			t.Fatalf("committed: %v, taken back: %v", committed.Load(), takenBack.Load())
		}
		if owner := r.Owner().Incarnation; !table.free(id, owner) {
			t.Fatal("not freed")
		}
	}
}

func TestManyAllocatorsNeverShareARow(t *testing.T) {
	table := newTable(t, 4*blockRows)
	var all sync.Map
	var workers sync.WaitGroup
	for inc := uint64(1); inc <= 4; inc++ {
		workers.Go(func() {
			a := table.Allocator(inc)
			var mine []ID
			for i := range 5000 {
				if i%3 == 2 && len(mine) > 0 {
					id := mine[0]
					mine = mine[1:]
					all.Delete(id.index())
					if !a.Free(id) {
						t.Errorf("row %d was not %d's", id, inc)
					}
				}
				if len(mine) == blockRows {
					continue
				}
				id, _, err := a.Take()
				if err != nil {
					t.Error(err)
					return
				}
				if _, taken := all.LoadOrStore(id.index(), inc); taken {
					t.Errorf("row %d was taken twice", id)
				}
				mine = append(mine, id)
			}
		})
	}
	workers.Wait()
}

func TestRowsThatOthersFreeAreFoundAgain(t *testing.T) {
	table := newTable(t, 2*blockRows)
	a, b := table.Allocator(1), table.Allocator(2)
	var ids []ID
	for {
		id, _, err := a.Take()
		if errors.Is(err, ErrFull) {
			break
		}
		ids = append(ids, id)
	}
	if len(ids) != 2*blockRows {
		t.Fatalf("%d rows were taken, want %d", len(ids), 2*blockRows)
	}
	if _, _, err := b.Take(); !errors.Is(err, ErrFull) {
		t.Fatalf("from a full table: %v, want ErrFull", err)
	}
	r := table.Row(ids[700])
	if r.Offer(ids[700], 1, 2); !r.Commit(ids[700], 1, 2) || !b.Free(ids[700]) {
		t.Fatal("the row could not be moved and freed")
	}
	if id, _ := take(t, a); id.index() != ids[700].index() {
		t.Errorf("row %d was taken, want %d", id.index(), ids[700].index())
	}
}

func TestReclaimFreesWhatTheDeadOneHadAndNotWhatOthersHave(t *testing.T) {
	table := newTable(t, 2*blockRows)
	a := table.Allocator(1)
	kept, r := take(t, a)
	offered, o := take(t, a)
	lost, _ := take(t, a)
	if !r.Offer(kept, 1, 2) || !r.Commit(kept, 1, 2) || !o.Offer(offered, 1, 2) {
		t.Fatal("not offered")
	}
	if freed := table.Reclaim(1); freed != 2 {
		t.Errorf("%d rows were freed, want 2", freed)
	}
	if o.Commit(offered, 1, 2) {
		t.Error("what was freed was committed")
	}
	if table.Row(kept) == nil || table.Row(offered) != nil || table.Row(lost) != nil {
		t.Error("the wrong rows are free")
	}
	left := 0
	table.Owned(2, func(ID, *Row) { left++ })
	if left != 1 {
		t.Errorf("the other has %d rows, want 1", left)
	}
	// The block is for whoever comes next.
	b := table.Allocator(3)
	for range 2*blockRows - 1 {
		take(t, b)
	}
}

func TestJournalHasTheLastWord(t *testing.T) {
	table := newTable(t, 512)
	_, r := take(t, table.Allocator(1))
	for i := uint64(1); i < 5; i++ {
		r.Publish(i, 2*i, 3*i)
		if rx, tx, bits := r.Published(); rx != i || tx != 2*i || bits != 3*i {
			t.Errorf("published %d, %d, %d, want %d, %d, %d", rx, tx, bits, i, 2*i, 3*i)
		}
	}
}
