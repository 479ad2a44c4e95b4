package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

func TestConnectionsThatEndUnderASupervisorThatDiesAreCountedOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		die  func(a *account, id rows.ID, free func()) // how far it comes
		want harvestResult
	}{
		{name: "before its row is freed: it is harvested again", die: func(a *account, id rows.ID, _ func()) { a.ending(id, tornBusy) }, want: harvestResult{Torn: map[string]int{}}},
		{name: "before it is counted", die: func(a *account, id rows.ID, free func()) { a.ending(id, tornBusy); free() }, want: harvestResult{Torn: map[string]int{tornBusy: 1}}},
		{name: "afterwards", die: func(a *account, id rows.ID, free func()) { a.ending(id, tornBusy); free(); a.ended() }, want: harvestResult{Torn: map[string]int{tornBusy: 1}}},
		{name: "in between", want: harvestResult{Torn: map[string]int{tornBusy: 1}}, die: func(a *account, id rows.ID, free func()) {
			a.ending(id, tornBusy)
			free()
			a.ended()
			a.ledger.words[headEnding].Store(uint64(id)) // the last store has not been done
		}},
		{name: "one that ended by itself", die: func(a *account, id rows.ID, free func()) { a.ending(id, ""); free() }, want: harvestResult{Ended: 1, Torn: map[string]int{}}},
		{name: "one that was kept", die: func(a *account, _ rows.ID, _ func()) { a.kept() }, want: harvestResult{Kept: 1, Torn: map[string]int{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, err := rows.Create(1 << 10)
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			f, err := newStateFile()
			if err != nil {
				t.Fatal(err)
			}
			defer f.close()
			first, err := openLedger(f.fd)
			if err != nil {
				t.Fatal(err)
			}
			alloc := table.Allocator(7)
			id, _, err := alloc.Take()
			if err != nil {
				t.Fatal(err)
			}
			tt.die(first.open(7), id, func() { alloc.Free(id) })
			first.close()

			second, err := openLedger(f.fd)
			if err != nil {
				t.Fatal(err)
			}
			defer second.close()
			second.resolve(table)
			second.resolve(table) // that changes nothing
			if diff := cmp.Diff([]uint64{7}, second.numbers()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.want, second.find(7).result()); diff != "" {
				t.Error(diff)
			}
			second.drop(7)
			if second.find(7) != nil || len(second.numbers()) != 0 {
				t.Error("a closed account is there")
			}
		})
	}
}

func TestAccountOfTheLedgerHasRoomForEveryReason(t *testing.T) {
	if accountTorn+len(tornReasons) > accountWords {
		t.Errorf("%d reasons, room for %d", len(tornReasons), accountWords-accountTorn)
	}
	f, err := newStateFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	l, err := openLedger(f.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	n := uint64(0)
	for l.open(n+1) != nil {
		n++
	}
	if n < 4*MaxWorkers {
		t.Errorf("room for %d accounts", n)
	}
	var none *account // what has no account is not written down
	none.kept()
	none.ending(1, tornBusy)
	none.ended()
}
