package supervisor

import (
	"slices"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

func TestReloadTellsWhatHasBecomeOfEachSlot(t *testing.T) {
	settings := quick
	settings.Bake = 1500 * time.Millisecond // longer than a drain, so that none is under way at the end
	supervise(t, settings, serve, func(r *rig) {
		r.expect(control.StateServing, 1, 1)
		r.incarnations[1].seat.Connections.Store(12)
		r.incarnations[2].seat.Connections.Store(1)
		r.settings.Workers = 3
		r.settings.Notes = []string{"only a restart changes the rest"}
		var steps []string
		if err := r.Reload(r.t.Context(), control.ReloadRequest{}, func(s string) { steps = append(steps, s) }); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"only a restart changes the rest",
			"generation 2: replacing 3 workers",
			"worker 0: pid 100000001 -> 100000003, generation 2 serves after 1.5s, 12 connections drain",
			"worker 1: pid 100000002 -> 100000004, generation 2 serves after 1.5s, 1 connections drain",
			"worker 2: pid 100000005, generation 2 serves after 1.5s",
		}
		if !slices.Equal(steps, want) {
			t.Errorf("steps\n%q\nwant\n%q", steps, want)
		}
	})
}

func TestDescriptorsGrowWithWhatIsOpen(t *testing.T) {
	small := Descriptors(1, Settings{Workers: 1, MaxOld: 2, Parallel: 1})
	if small <= highFD || small > 600 {
		t.Errorf("%d for one worker", small)
	}
	if large := Descriptors(20, Settings{Workers: MaxWorkers, MaxOld: 2, Parallel: 1}); large < 2*MaxWorkers*descriptorsPerWorker {
		t.Errorf("%d for %d workers", large, MaxWorkers)
	}
}
