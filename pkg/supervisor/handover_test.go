package supervisor

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// beSlow has workers say nothing by themselves when they are to hand over.
func (w *town) beSlow(slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = slow
}

// steps runs a reload and returns what it tells, and its verdict.
func (w *town) steps() (all []string, err error) {
	err = w.Reload(w.t.Context(), control.ReloadRequest{}, func(s string) { all = append(all, s) })
	return all, err
}

// begin runs a reload beside the test.
func (w *town) begin() <-chan error {
	verdict := make(chan error, 1)
	go func() { verdict <- w.reload() }()
	synctest.Wait()
	return verdict
}

// kinds are the messages of the events of some kinds.
func (w *town) kinds(want ...string) (all []string) {
	err := w.Events(w.t.Context(), false, func(e control.Event) {
		if slices.Contains(want, e.Kind) {
			all = append(all, e.Kind+": "+e.Message)
		}
	})
	if err != nil {
		w.t.Error(err)
	}
	return all
}

// process returns the nth that was started, from 1: its incarnation.
func (w *town) process(n int) *fake { return w.fakes.every()[n-1] }

// expectDrain fails unless a worker's last order is this.
func (w *town) expectDrain(p *fake, hand bool, to uint64) {
	w.t.Helper()
	if d := w.lastWord(p); d.Hand != hand || d.To != to {
		w.t.Errorf("pid %d was told %+v, want hand %t, to %d", p.pid, d, hand, to)
	}
}

func TestReloadHasEveryConnectionHandedToTheSuccessor(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.connect(w.process(1), 500)
		w.connect(w.process(2), 1)
		steps, err := w.steps()
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"generation 2: replacing 2 workers",
			"worker 0: pid 100000001 -> 100000003, generation 2 serves after 1s, 500 connections moved, 0 left, longest stall 3ms",
			"worker 1: pid 100000002 -> 100000004, generation 2 serves after 1s, 1 connections moved, 0 left, longest stall 3ms",
		}
		if !slices.Equal(steps, want) {
			t.Errorf("steps\n%q\nwant\n%q", steps, want)
		}
		w.expectDrain(w.process(1), true, 3)
		w.expectDrain(w.process(2), true, 4)
		if d := w.lastWord(w.process(1)); d.Prompt || d.Grace != quick.Grace {
			t.Errorf("told %+v, want the grace of a patient drain", d)
		}
		if r := w.status().LastReload; r.Moved != 501 || r.Left != 0 || r.Lost != 0 || r.LongestStallUS != 3000 {
			t.Errorf("last reload %+v", r)
		}
		events := w.kinds(EventHandingOver, EventHandedOver)
		wantEvents := []string{
			"handing-over: 500 connections to pid 100000003", "handed-over: 500 connections moved, 0 left, longest stall 3ms",
			"handing-over: 1 connections to pid 100000004", "handed-over: 1 connections moved, 0 left, longest stall 3ms",
		}
		if !slices.Equal(events, wantEvents) {
			t.Errorf("events\n%q\nwant\n%q", events, wantEvents)
		}
		w.wantSamples(map[string]float64{
			`mainstay_handoffs_given_total{pool="worker",worker="0"}`: 500,
			`mainstay_handoffs_taken_total{pool="worker",worker="0"}`: 500,
		})
		time.Sleep(time.Minute) // the old ones have gone
		w.wantSamples(map[string]float64{
			`mainstay_handoffs_given_total{pool="worker",worker="0"}`: 500,
			`mainstay_handoffs_taken_total{pool="worker",worker="1"}`: 1,
		})
	})
}

func TestHandoversOfStatusAndMetricsAreTheWorkersOwn(t *testing.T) {
	settle(t, quick, func(w *town) {
		seat := w.seatOf(w.process(1))
		seat.HandoffsGiven.Store(1)
		seat.HandoffsTaken.Store(2)
		seat.HandoffsRefused.Store(3)
		seat.HandoffsThawed.Store(4)
		seat.HandoffMaxNS.Store(5_000_000)
		k := w.status().Pools[0].Workers[0]
		if k.Given != 1 || k.Taken != 2 || k.Refused != 3 || k.Thawed != 4 || k.LongestStallUS != 5000 {
			t.Errorf("status %+v", k)
		}
		want := map[string]float64{
			`mainstay_handoffs_given_total{pool="worker",worker="0"}`:          1,
			`mainstay_handoffs_taken_total{pool="worker",worker="0"}`:          2,
			`mainstay_handoffs_refused_total{pool="worker",worker="0"}`:        3,
			`mainstay_handoffs_thawed_total{pool="worker",worker="0"}`:         4,
			`mainstay_handoff_stall_longest_seconds{pool="worker",worker="0"}`: 0.005,
		}
		w.wantSamples(want)
		w.process(1).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		w.expect(control.StateServing, 1, 1)
		w.wantSamples(want)
	})
}

func TestReloadGoesOnWhenAHandoverLasts(t *testing.T) {
	settings := quick
	settings.Workers = 1
	settle(t, settings, func(w *town) {
		w.beSlow(true)
		w.connect(w.process(1), 10)
		began := time.Now()
		verdict := make(chan error, 1)
		var steps []string
		go func() {
			var err error
			steps, err = w.steps()
			verdict <- err
		}()
		time.Sleep(quick.Bake + time.Second)
		w.connect(w.process(1), 3)
		w.seatOf(w.process(1)).HandoffsGiven.Store(7)
		if err := <-verdict; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != quick.Bake+handWait {
			t.Errorf("took %v, want %v", took, quick.Bake+handWait)
		}
		if want := "worker 0: pid 100000001 -> 100000002, generation 2 serves after 1s, 7 connections moved so far, 3 still there"; steps[1] != want {
			t.Errorf("steps %q, want %q", steps, want)
		}
		if r := w.status().LastReload; r.Moved != 7 || r.Left != 3 {
			t.Errorf("last reload %+v", r)
		}
		// What comes later is in the status.
		before := w.status()
		w.process(1).order.said(link.Handed{Given: 9, Left: 1, Longest: 40 * time.Millisecond})
		synctest.Wait()
		if r := w.status().LastReload; r.Moved != 9 || r.Left != 1 || r.LongestStallUS != 40_000 {
			t.Errorf("last reload %+v", r)
		}
		if before.LastReload.Moved != 7 {
			t.Error("an answer that was given has changed")
		}
		w.process(1).exit(Exit{})
		synctest.Wait()
		if r := w.status().LastReload; r.Moved != 9 || r.Left != 1 {
			t.Errorf("last reload %+v after the end of the worker", r)
		}
	})
}

func TestWorkersWithoutASuccessorHandToAllOthers(t *testing.T) {
	settings := quick
	settings.Workers = 4
	settle(t, settings, func(w *town) {
		w.connect(w.process(3), 5)
		w.connect(w.process(4), 6)
		all, err := w.Supervisor.Scale(w.t.Context(), control.ScaleRequest{N: 2})
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || all[0].Slot != 3 || all[0].Moved != 6 || all[1].Slot != 2 || all[1].Moved != 5 || all[0].State != control.HandoverOver {
			t.Errorf("handed over: %+v", all)
		}
		for _, n := range []int{3, 4} {
			w.expectDrain(w.process(n), true, 0)
			// Neither is to choose the other.
			other := uint64(7 - n)
			known := true
			for _, b := range heardOf[link.Body](w, w.process(n)) {
				switch m := b.(type) {
				case link.Peer:
					if m.Incarnation == other {
						known = m.Serving
					}
				case link.Drain:
					if known {
						t.Errorf("process %d is told to hand over before it knows that %d leaves, too", n, other)
					}
				}
			}
		}
		w.connect(w.process(2), 9)
		all, err = w.Supervisor.Drain(w.t.Context(), control.SlotRequest{Slot: 1})
		if err != nil || len(all) != 1 || all[0].Moved != 9 || all[0].PID != 100000002 {
			t.Errorf("drained: %+v, %v", all, err)
		}
		w.expectDrain(w.process(2), true, 0)
	})
}

func TestRecycledWorkerHandsToItsSuccessor(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.connect(w.process(2), 5)
		all, err := w.Supervisor.Recycle(w.t.Context(), control.SlotRequest{Slot: 1})
		if err != nil || len(all) != 1 || all[0].Moved != 5 || all[0].PID != 100000002 || all[0].To != 100000003 || all[0].LongestStallUS != 3000 {
			t.Errorf("recycled: %+v, %v", all, err)
		}
		w.expectDrain(w.process(2), true, 3)
	})
}

func TestWorkerThatIsOldHandsToItsSuccessor(t *testing.T) {
	settings := healthy(Health{MaxMessages: 1000, HangTimeout: -1})
	settle(t, settings, func(w *town) {
		w.connect(w.process(1), 5)
		w.seatOf(w.process(1)).Messages.Store(1101)
		time.Sleep(30 * time.Second)
		w.expectDrain(w.process(1), true, 3)
		if n := w.seatOf(w.process(3)).Connections.Load(); n != 5 {
			t.Errorf("its successor has %d connections, want 5", n)
		}
	})
}

func TestEndOfTheServiceHandsNothingOver(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.connect(w.process(1), 5)
		w.Stop(w.t.Context())
		if err := <-w.ended; err != nil {
			t.Error(err)
		}
		w.expectDrain(w.process(1), false, 0)
		w.expectDrain(w.process(2), false, 0)
		if d := w.lastWord(w.process(1)); !d.Prompt || d.Stays || d.Grace != quick.StopGrace {
			t.Errorf("told %+v, want a prompt drain of a service that ends", d)
		}
	})
}

func TestEndOfTheServiceEndsAHandover(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		answered := make(chan error, 1)
		go func() { answered <- w.Drain(w.t.Context(), control.SlotRequest{Slot: 0}) }()
		synctest.Wait()
		w.expectDrain(w.process(1), true, 0)
		w.Stop(w.t.Context())
		if err := <-answered; err != nil {
			t.Errorf("drained: %v", err)
		}
		w.expectDrain(w.process(1), false, 0)
	})
}

func TestWorkerOnTrialHandsBackWhenItIsNotWantedAnyMore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		happen func(w *town)
	}{
		{"it takes itself out", func(w *town) { w.process(3).order.said(link.Readiness{Reason: "no disk"}) }},
		{"another one fails", func(w *town) { w.process(4).exit(Exit{Code: 1, Words: "no disk"}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			settings := quick
			settings.Parallel = 2
			settle(t, settings, func(w *town) {
				verdict := w.begin()
				time.Sleep(quick.Bake / 2)
				w.connect(w.process(3), 5)
				tt.happen(w)
				if err := <-verdict; err == nil || !strings.Contains(err.Error(), "no disk") {
					t.Errorf("verdict %v", err)
				}
				w.expectDrain(w.process(3), true, 1)
				if d := w.lastWord(w.process(3)); !d.Prompt || !d.Stays {
					t.Errorf("told %+v, want a prompt drain of a service that stays", d)
				}
				if n := w.seatOf(w.process(1)).Connections.Load(); n != 5 {
					t.Errorf("%d connections came back, want 5", n)
				}
				w.expect(control.StateServing, 1, 1)
			})
		})
	}
}

func TestRollbackHasTheNewWorkersHandBack(t *testing.T) {
	w := &town{}
	w.lives = map[uint64]func(*town, *fake){4: func(_ *town, p *fake) { brokenStart(p) }}
	settleIn(t, w, quick, func(w *town) {
		w.connect(w.process(1), 500)
		w.connect(w.process(2), 20)
		steps, err := w.steps()
		if err == nil || !strings.Contains(err.Error(), "worker 1 of generation 2") {
			t.Fatalf("verdict %v", err)
		}
		// 1 gave to 3 of the new generation, 3 gives to 5 of the old one.
		w.expectDrain(w.process(1), true, 3)
		w.expectDrain(w.process(3), true, 5)
		if n := w.seatOf(w.process(5)).Connections.Load(); n != 500 {
			t.Errorf("%d connections are back, want 500", n)
		}
		w.expect(control.StateServing, 1, 1)
		if r := w.status().LastReload; r.OK || r.Moved != 1000 || r.Left != 0 || r.Lost != 0 {
			t.Errorf("last reload %+v", r)
		}
		want := "worker 0: pid 100000003 -> 100000005, generation 1 serves after 1s, 500 connections moved, 0 left, longest stall 3ms"
		if !slices.Contains(steps, want) {
			t.Errorf("steps\n%q\nwant one to be\n%q", steps, want)
		}
	})
}

func TestNewWorkerThatDiesWhileItTakesConnectionsRollsTheReloadBack(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		w.connect(w.process(1), 500)
		verdict := w.begin()
		time.Sleep(quick.Bake + time.Second)
		w.expectDrain(w.process(1), true, 3)
		w.beSlow(false)
		w.process(3).exit(Exit{Code: 2, Words: "panic: at the door"})
		// The rest goes to who serves: worker 1.
		w.expectDrain(w.process(1), true, 0)
		if gone := heardOf[link.PeerGone](w, w.process(1)); len(gone) != 1 || gone[0].Incarnation != 3 {
			t.Errorf("told %+v of the dead", gone)
		}
		if d := w.lastWord(w.process(1)); d.Grace != quick.Grace-time.Second {
			t.Errorf("grace %v, want what is left of %v", d.Grace, quick.Grace)
		}
		if err := <-verdict; err == nil || !strings.Contains(err.Error(), "panic: at the door") {
			t.Errorf("verdict %v", err)
		}
		w.expect(control.StateServing, 1, 1)
	})
}

func TestGiverWhoseTakerDiesGivesTheRestToTheNextOneInTheSlot(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handed bool // the giver has noticed, and said so, before the supervisor knew
	}{{"waiting", false}, {"given up", true}} {
		t.Run(tt.name, func(t *testing.T) {
			settings := quick
			settings.Workers = 1
			settle(t, settings, func(w *town) {
				w.beSlow(true)
				w.connect(w.process(1), 500)
				verdict := w.begin()
				time.Sleep(quick.Bake + time.Second)
				w.expectDrain(w.process(1), true, 2)
				if tt.handed {
					w.process(1).order.said(link.Handed{Given: 100, Left: 400})
					synctest.Wait()
				}
				w.beSlow(false)
				w.connect(w.process(1), 400)
				w.process(2).exit(Exit{Code: 2, Words: "panic: at the door"})
				time.Sleep(time.Second)
				if want := "handing-over: 400 connections to whoever comes: nobody takes connections now"; !slices.Contains(w.kinds(EventHandingOver), want) {
					t.Errorf("events %q, want one to be %q", w.kinds(EventHandingOver), want)
				}
				// The respawned worker of the old generation.
				w.expectDrain(w.process(1), true, 3)
				if n := w.seatOf(w.process(3)).Connections.Load(); n != 400 {
					t.Errorf("%d connections saved, want 400", n)
				}
				if err := <-verdict; tt.handed && err != nil {
					// The slot had settled, and the reload with it.
					t.Errorf("verdict %v", err)
				} else if !tt.handed && (err == nil || !strings.Contains(err.Error(), "panic: at the door")) {
					t.Errorf("verdict %v", err)
				}
			})
		})
	}
}

func TestGiverGoesOnWhenItsTakerIsReplaced(t *testing.T) {
	settings := quick
	settings.Workers = 1
	settle(t, settings, func(w *town) {
		w.beSlow(true)
		if err := w.reload(); err != nil { // 1 hands to 2, and takes its time
			t.Fatal(err)
		}
		w.expectDrain(w.process(1), true, 2)
		if err := w.reload(); err != nil {
			t.Fatal(err)
		}
		w.expectDrain(w.process(2), true, 3)
		w.expectDrain(w.process(1), true, 3)
	})
}

func TestGiverThatDiesIsNotWaitedFor(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		w.connect(w.process(1), 500)
		verdict := make(chan error, 1)
		var steps []string
		go func() {
			var err error
			steps, err = w.steps()
			verdict <- err
		}()
		time.Sleep(quick.Bake + time.Second)
		w.beSlow(false)
		w.connect(w.process(1), 380)
		w.seatOf(w.process(1)).HandoffsGiven.Store(120)
		w.process(1).exit(Exit{Signal: unix.SIGKILL})
		if err := <-verdict; err != nil {
			t.Errorf("verdict %v", err)
		}
		want := "worker 0: pid 100000001 -> 100000003, generation 2 serves after 1s, 120 connections moved, 380 lost with it"
		if !slices.Contains(steps, want) {
			t.Errorf("steps\n%q\nwant one to be\n%q", steps, want)
		}
		if r := w.status().LastReload; !r.OK || r.Moved != 120 || r.Lost != 380 || r.Left != 0 {
			t.Errorf("last reload %+v", r)
		}
		w.expect(control.StateServing, 2, 2)
	})
}

func TestGiverAndTakerThatBothDieAreReplaced(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		verdict := w.begin()
		time.Sleep(quick.Bake + time.Second)
		w.beSlow(false)
		w.process(1).exit(Exit{Signal: unix.SIGKILL})
		w.process(3).exit(Exit{Code: 2, Words: "panic: both"})
		// Whose death is heard first decides whether the slot was done.
		if err := <-verdict; err == nil || !strings.Contains(err.Error(), "panic: both") {
			t.Errorf("verdict %v", err)
		}
		time.Sleep(time.Minute)
		w.expect(control.StateServing, 1, 1)
		if n := len(w.status().Pools[0].Workers); n != 2 {
			t.Errorf("%d workers, want 2", n)
		}
	})
}

func TestWhoAskedForALongHandoverIsAnsweredInTime(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		w.connect(w.process(1), 8)
		began := time.Now()
		all, err := w.Supervisor.Drain(w.t.Context(), control.SlotRequest{Slot: 0})
		if err != nil || len(all) != 1 || all[0].State != control.HandoverGoesOn || all[0].Left != 8 {
			t.Errorf("drained: %+v, %v", all, err)
		}
		if took := time.Since(began); took != handWait {
			t.Errorf("took %v, want %v", took, handWait)
		}
	})
}

func TestReloadWithFewerWorkersTellsWhatThoseTooManyHaveDone(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.connect(w.process(2), 4)
		w.settings.Workers = 1
		steps, err := w.steps()
		if err != nil {
			t.Fatal(err)
		}
		if want := "worker 1: pid 100000002 leaves, 4 connections moved, 0 left, longest stall 3ms"; !slices.Contains(steps, want) {
			t.Errorf("steps\n%q\nwant one to be\n%q", steps, want)
		}
		w.expectDrain(w.process(2), true, 0)
		if r := w.status().LastReload; r.Moved != 4 {
			t.Errorf("last reload %+v", r)
		}
	})
}

func TestSlotThatTakesOverMayBeDrained(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.beSlow(true)
		recycled := make(chan error, 1)
		go func() { recycled <- w.Recycle(w.t.Context(), control.SlotRequest{Slot: 0}) }()
		time.Sleep(quick.Bake + time.Second)
		w.expectDrain(w.process(1), true, 3)
		if err := w.Recycle(w.t.Context(), control.SlotRequest{Slot: 0}); err == nil || !strings.Contains(err.Error(), "handing over") {
			t.Errorf("recycled meanwhile: %v", err)
		}
		w.beSlow(false)
		if err := w.Drain(w.t.Context(), control.SlotRequest{Slot: 0}); err != nil {
			t.Error(err)
		}
		if err := <-recycled; err == nil {
			t.Error("who waits for the slot is told that it is filled")
		}
		// Both give to worker 1.
		w.expectDrain(w.process(1), true, 0)
		w.expectDrain(w.process(3), true, 0)
	})
}

func TestWordOfAHandoverThatNobodyAskedForIsIgnored(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.process(1).order.said(link.Handed{Given: 9})
		w.expect(control.StateServing, 1, 1)
		w.Stop(w.t.Context())
		w.process(1).order.said(link.Handed{Given: 9})
		<-w.ended
		if got := w.chronicle.kept; slices.ContainsFunc(got, func(e control.Event) bool { return e.Kind == EventHandedOver }) {
			t.Error("there is an event of a hand-over")
		}
	})
}
