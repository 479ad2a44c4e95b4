package supervisor

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// elder is the life of a good worker of the contract before.
func elder(p *fake) {
	id := p.order.identity
	p.order.greeted(link.Hello{Contract: link.Contract - 1, Incarnation: id.Incarnation, Generation: id.Generation, Build: "elder"}, -1)
	p.order.said(link.Ready{})
	live(p)
}

func TestWorkersOfTheContractBeforeAreAdoptedAndThenReplacedLikeAnyOther(t *testing.T) {
	succession(t, configured(quick, "one"), elder, func(*rig) {}, true, func(_ *shelf, st *savedState) {
		// As a supervisor of that contract has left it.
		st.Contract = link.Contract - 1
		for i := range st.Workers {
			st.Workers[i].Contract = 0
		}
		for i := range st.Releases {
			st.Releases[i].Contract = 0
		}
	}, func(r *rig) {
		if got := r.fakes.count(); got != 2 {
			t.Errorf("%d workers were launched, want the 2 of before", got)
		}
		for inc := range r.living() {
			if inc.contract != link.Contract-1 {
				t.Errorf("worker %d speaks contract %d", inc.number, inc.contract)
			}
		}
		// One that is missing is spoken to as its release wants it.
		r.fakes.last(0).exit(Exit{Code: 1})
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		if got := r.fakes.last(0).order.identity.Contract; got != link.Contract-1 {
			t.Errorf("the successor of the same release is spoken to in contract %d, want %d", got, link.Contract-1)
		}
		*r.settings = configured(quick, "two")
		r.fakes.set(serve)
		if err := r.Reload(context.Background(), control.ReloadRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		if got := r.fakes.last(0).order.identity.Contract; got != link.Contract {
			t.Errorf("the new release is spoken to in contract %d, want %d", got, link.Contract)
		}
		// And back to the release of then.
		r.fakes.set(elder)
		if _, err := r.rollback(); err != nil {
			t.Fatal(err)
		}
		if got := r.fakes.last(1).order.identity.Contract; got != link.Contract-1 {
			t.Errorf("after the rollback the contract is %d, want %d", got, link.Contract-1)
		}
	})
}

func TestWorkerOfAnOlderContractIsLetGoAndTheOthersAreAdopted(t *testing.T) {
	succession(t, quick, serve, func(*rig) {}, true, func(_ *shelf, st *savedState) {
		st.Workers[0].Contract = link.Contract - 3 // 0 would stand for the supervisor's
	}, func(r *rig) {
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		st := r.look()
		if st.State != control.StateServing || len(pids(st)) != 2 || r.fakes.count() != 3 {
			t.Errorf("%d workers were launched, status %+v", r.fakes.count(), st)
		}
		if !slices.ContainsFunc(r.chronicle.kept, func(e control.Event) bool { return e.Kind == EventLetGo && e.Slot == 0 }) {
			t.Errorf("the events do not tell of it: %+v", r.chronicle.kept)
		}
	})
}
