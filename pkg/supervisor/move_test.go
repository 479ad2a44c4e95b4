package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// owned takes a row for a worker and returns the connection's number.
func (w *town) owned(p *fake) uint64 {
	id, _, err := w.rows.Allocator(p.order.identity.Incarnation).Take()
	if err != nil {
		w.t.Fatal(err)
	}
	return uint64(id)
}

// answers has the workers answer questions with f.
func (w *town) answers(f func(*fake, link.Gather) (any, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

func TestOwnerIsAskedToMoveAConnection(t *testing.T) {
	settle(t, quick, func(w *town) {
		conn := w.owned(w.process(2))
		w.answers(func(p *fake, g link.Gather) (any, error) {
			var r link.MoveRequest
			if err := json.Unmarshal(g.Arg, &r); err != nil {
				return nil, err
			}
			if p != w.process(2) || g.What != "move" || r != (link.MoveRequest{Conn: conn, To: 1}) {
				return nil, fmt.Errorf("pid %d was asked for %q %+v", p.pid, g.What, r)
			}
			return link.GiveResult{Given: 1, Longest: 700 * time.Microsecond}, nil
		})
		m, err := w.Move(w.t.Context(), control.MoveRequest{Conn: conn, Slot: 0})
		if want := (control.Moved{Conn: conn, From: 1, To: 0, LongestStallUS: 700}); err != nil || m != want {
			t.Errorf("moved %+v, %v, want %+v", m, err, want)
		}
		synctest.Wait()
		if got, want := w.kinds(EventMoved), fmt.Sprintf("moved: connection %d to worker 0, it stood still for 700µs", conn); len(got) != 1 || got[0] != want {
			t.Errorf("events %q, want %q", got, want)
		}
		// Where it is already, nothing is to be done.
		if m, err := w.Move(w.t.Context(), control.MoveRequest{Conn: conn, Slot: 1}); err != nil || m.From != m.To {
			t.Errorf("moved %+v, %v", m, err)
		}
	})
}

func TestWhyAConnectionStaysIsSaid(t *testing.T) {
	settings := quick
	settings.Workers = 4
	w := &town{lives: map[uint64]func(*town, *fake){
		3: func(w *town, p *fake) { // of an older version
			p.greet(-1)
			p.order.said(link.Ready{})
			w.reside(p)
		},
	}}
	settleIn(t, w, settings, func(w *town) {
		conn := w.owned(w.process(1))
		if err := w.Drain(w.t.Context(), control.SlotRequest{Slot: 3}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		move := func(conn uint64, slot int) error {
			_, err := w.Move(w.t.Context(), control.MoveRequest{Conn: conn, Slot: slot})
			return err
		}
		answer := func(v any, err error) { w.answers(func(*fake, link.Gather) (any, error) { return v, err }) }
		for _, tt := range []struct {
			name    string
			arrange func()
			conn    uint64
			slot    int
			want    string
		}{
			{"no such connection", nil, 1<<40 | 77, 1, "no connection 1099511627853 that could move"},
			{"net/http's", nil, 5, 1, "no connection 5 that could move: it is closed, or net/http serves it"},
			{"no such slot", nil, conn, 4, "no worker 4, there are 0 to 3"},
			{"nobody is there", nil, conn, 3, "worker 3 is held: it takes no connections"},
			{"an older version", nil, conn, 2, "is of a version that takes no connections from others"},
			{"it cannot move", func() { answer(nil, errors.New("connection stays: it is held")) }, conn, 1, "connection stays: it is held"},
			{"refused", func() { answer(nil, errors.New(`connection stays: refused: unknown listener "x"`)) }, conn, 1, `unknown listener "x"`},
			{"nonsense", func() { answer("moved", nil) }, conn, 1, "answer of worker 0 (pid 1001)"},
			{"silence", func() { answer(nil, errSilent) }, conn, 1, "worker 0 (pid 1001) does not answer"},
			{"death", func() {
				w.answers(func(p *fake, _ link.Gather) (any, error) {
					p.exit(Exit{Signal: unix.SIGKILL})
					return nil, errSilent
				})
			}, conn, 1, "worker 0 (pid 1001) has died"},
			{"its worker is dead", nil, conn, 1, "no connection"},
			{"the taker wants none", func() { w.process(2).order.said(link.Readiness{Reason: "no disk"}) }, w.owned(w.fakes.last(0)), 1, "takes no connections: no disk"},
		} {
			if tt.arrange != nil {
				tt.arrange()
				synctest.Wait()
			}
			if tt.name == "the taker wants none" {
				tt.conn = w.owned(w.fakes.last(0)) // it is another one by now
			}
			if err := move(tt.conn, tt.slot); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
		if _, err := w.Move(w.t.Context(), control.MoveRequest{Pool: "nobody"}); !errors.Is(err, control.ErrInvalid) {
			t.Errorf("unknown pool: %v", err)
		}
		w.Stop(w.t.Context())
		if err := move(conn, 1); err == nil {
			t.Error("moved while the service stops")
		}
	})
}

func TestHangingOwnerIsNamed(t *testing.T) {
	w := &town{lives: map[uint64]func(*town, *fake){1: func(w *town, p *fake) {
		p.greet(inbox())
		p.order.said(link.Ready{})
		for m := range p.in {
			if m == any(unix.SIGKILL) {
				p.exit(Exit{Signal: unix.SIGKILL})
				return
			}
		}
	}}}
	settleIn(t, w, healthy(Health{HandlerTimeout: 4 * time.Second, HangTimeout: -1}), func(w *town) {
		conn := w.owned(w.process(1))
		w.seatOf(w.process(1)).PoolOldest.Store(int64(monotonic() - time.Hour))
		w.seatOf(w.process(1)).Heartbeat.Store(int64(monotonic()))
		time.Sleep(1500 * time.Millisecond)
		_, err := w.Move(w.t.Context(), control.MoveRequest{Conn: conn, Slot: 1})
		if err == nil || !strings.Contains(err.Error(), "its worker 0 (pid 1001) is hung") {
			t.Errorf("moved: %v", err)
		}
		if _, err = w.Move(w.t.Context(), control.MoveRequest{Conn: w.owned(w.process(2)), Slot: 0}); err == nil || !strings.Contains(err.Error(), "worker 0 (pid 1001) is hung: it takes no connections") {
			t.Errorf("moved there: %v", err)
		}
	})
}

// generous has the workers give what they are asked for, as far as they can;
// it returns when each was asked, and for how many.
func (w *town) generous(can func(p *fake, n int) int) *[]asked {
	all := &[]asked{}
	w.answers(func(p *fake, g link.Gather) (any, error) {
		var r link.GiveRequest
		if err := json.Unmarshal(g.Arg, &r); err != nil || g.What != "give" || r.Count != len(r.To) {
			return nil, fmt.Errorf("asked for %q %s", g.What, g.Arg)
		}
		n := r.Count
		if can != nil {
			n = can(p, n)
		}
		w.seatOf(p).Connections.Add(-int64(n))
		for i := range n {
			to := r.To[i]
			for _, other := range w.fakes.every() {
				if other.order.identity.Incarnation == to {
					w.seatOf(other).Connections.Add(1)
				}
			}
		}
		w.mu.Lock()
		*all = append(*all, asked{time.Now(), p.order.identity.Slot, r.Count})
		w.mu.Unlock()
		return link.GiveResult{Given: n, Thawed: r.Count - n, Refused: (r.Count - n) / 2, Longest: 2 * time.Millisecond}, nil
	})
	return all
}

type asked struct {
	at   time.Time
	slot int
	n    int
}

// counts are the connections of the workers that serve, by slot.
func (w *town) counts() (all []int64) {
	synctest.Wait()
	for _, k := range w.status().Pools[0].Workers {
		if k.State == "ready" {
			all = append(all, k.Connections)
		}
	}
	return all
}

func TestRebalancingMakesAllHaveAsMany(t *testing.T) {
	settings := quick
	settings.Workers = 3
	settle(t, settings, func(w *town) {
		batches := w.generous(nil)
		w.connect(w.process(1), 1000)
		w.connect(w.process(2), 1)
		b, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.counts(); !slices.Equal(got, []int64{334, 334, 333}) {
			t.Errorf("connections %v", got)
		}
		if b.Moved != 666 || len(b.Givers) != 1 || b.Givers[0] != (control.Giver{Slot: 0, PID: 1001, Excess: 666, Moved: 666, LongestStallUS: 2000}) {
			t.Errorf("rebalanced %+v", b)
		}
		if !slices.Equal(b.Counts, []int{1000, 1, 0}) {
			t.Errorf("counts before %v", b.Counts)
		}
		for _, a := range *batches {
			if a.n > maxBatch {
				t.Errorf("asked for %d at a time", a.n)
			}
		}
		if got, want := w.kinds(EventRebalanced), []string{"rebalanced: 666 of 666 connections moved to others"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
		if b, err = w.Rebalance(w.t.Context(), control.RebalanceRequest{}); err != nil || b.Moved != 0 || len(b.Givers) != 0 {
			t.Errorf("again: %+v, %v", b, err)
		}
	})
}

func TestRebalancingEndsWhereNothingMovesAnyMore(t *testing.T) {
	settings := quick
	settings.Workers = 4
	settle(t, settings, func(w *town) {
		w.connect(w.process(1), 20)
		w.connect(w.process(2), 10)
		w.generous(func(p *fake, n int) int {
			if p.order.identity.Slot == 0 {
				return n - 4 // some are held
			}
			return n
		})
		b, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{})
		if err != nil || len(b.Givers) != 2 {
			t.Fatalf("rebalanced %+v, %v", b, err)
		}
		if g := b.Givers[0]; g.Moved != g.Excess-4 || g.Refused != 2 || !strings.HasPrefix(g.Error, "4 of 12 that it was asked for stay") {
			t.Errorf("worker 0 %+v", g)
		}
		if g := b.Givers[1]; g.Moved != g.Excess || g.Error != "" {
			t.Errorf("worker 1 %+v", g)
		}
		// One that does not answer does not keep the others.
		w.connect(w.process(1), 100)
		w.answers(func(p *fake, g link.Gather) (any, error) { return nil, errSilent })
		began := time.Now()
		b, err = w.Rebalance(w.t.Context(), control.RebalanceRequest{})
		if err != nil || len(b.Givers) != 1 || b.Givers[0].Error != "worker 0 (pid 1001) does not answer" {
			t.Errorf("rebalanced %+v, %v", b, err)
		}
		if took := time.Since(began); took != gatherTimeout {
			t.Errorf("took %v, want %v", took, gatherTimeout)
		}
		w.answers(func(p *fake, g link.Gather) (any, error) { return nil, errors.New("it is not over yet") })
		if b, err = w.Rebalance(w.t.Context(), control.RebalanceRequest{}); err != nil || b.Givers[0].Error != "it is not over yet" {
			t.Errorf("rebalanced %+v, %v", b, err)
		}
		w.answers(func(p *fake, g link.Gather) (any, error) { return "all", nil })
		if b, err = w.Rebalance(w.t.Context(), control.RebalanceRequest{}); err != nil || !strings.Contains(b.Givers[0].Error, "answer of worker 0 (pid 1001)") {
			t.Errorf("rebalanced %+v, %v", b, err)
		}
	})
}

func TestRebalancingIsRefusedWhileOthersMoveConnections(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.connect(w.process(1), 100)
		w.answers(func(*fake, link.Gather) (any, error) { return nil, errSilent })
		first := make(chan error, 1)
		go func() {
			_, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{})
			first <- err
		}()
		synctest.Wait()
		if _, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{}); !errors.Is(err, errBalancing) {
			t.Errorf("a second one: %v", err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		verdict := w.begin()
		if _, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{}); err == nil || !strings.Contains(err.Error(), "a reload is under way") {
			t.Errorf("during a reload: %v", err)
		}
		if err := <-verdict; err != nil {
			t.Error(err)
		}
		if _, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{Pool: "nobody"}); !errors.Is(err, control.ErrInvalid) {
			t.Errorf("unknown pool: %v", err)
		}
		w.Stop(w.t.Context())
		if _, err := w.Rebalance(w.t.Context(), control.RebalanceRequest{}); err == nil {
			t.Error("rebalanced while the service stops")
		}
	})
}

func TestNewWorkerGetsItsShareByItselfIfThatIsWanted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *town)
		want   []int64
	}{
		{"respawn", func(w *town) { w.process(2).exit(Exit{Signal: unix.SIGKILL}) }, []int64{150, 150}},
		{"scale-up", func(w *town) {
			if err := w.Scale(w.t.Context(), control.ScaleRequest{N: 3}); err != nil {
				w.t.Fatal(err)
			}
		}, []int64{134, 133, 133}},
		{"reload with more workers", func(w *town) {
			w.settings.Workers = 4
			if err := w.reload(); err != nil {
				w.t.Fatal(err)
			}
		}, []int64{100, 100, 100, 100}},
		{"reload", func(w *town) {
			if err := w.reload(); err != nil {
				w.t.Fatal(err)
			}
		}, []int64{300, 100}},
	} {
		for _, wanted := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %t", tt.name, wanted), func(t *testing.T) {
				settings := quick
				settings.Rebalance, settings.RebalanceRate = wanted, 100
				settle(t, settings, func(w *town) {
					batches := w.generous(nil)
					w.connect(w.process(1), 300)
					w.connect(w.process(2), 100)
					tt.change(w)
					time.Sleep(time.Minute)
					if !wanted {
						if n := len(*batches); n != 0 {
							t.Errorf("workers were asked %d times to give", n)
						}
						return
					}
					if got := w.counts(); !slices.Equal(got, tt.want) {
						t.Errorf("connections %v, want %v", got, tt.want)
					}
					for i, a := range *batches {
						if a.n > 10 || i > 0 && a.at.Sub((*batches)[i-1].at) < 100*time.Millisecond {
							t.Errorf("%d asked for after %v: too fast", a.n, a.at.Sub((*batches)[max(0, i-1)].at))
						}
					}
				})
			})
		}
	}
}

func TestEndOfTheServiceEndsRebalancing(t *testing.T) {
	settings := quick
	settings.Rebalance, settings.RebalanceRate = true, 1
	settle(t, settings, func(w *town) {
		w.generous(nil)
		w.connect(w.process(1), 300)
		w.process(2).exit(Exit{Signal: unix.SIGKILL})
		time.Sleep(3500 * time.Millisecond)
		if n := w.seatOf(w.process(3)).Connections.Load(); n < 3 || n > 4 {
			t.Errorf("%d moved in 3.5 s at one a second", n)
		}
		began := time.Now()
		w.Stop(w.t.Context())
		<-w.ended
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestSharesAreEvenAndFew(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		shares := make([]share, 1+random.IntN(8))
		total := int64(0)
		for i := range shares {
			shares[i].have, shares[i].number = int64(random.IntN(100)), uint64(i)
			total += shares[i].have
		}
		divide(shares, total)
		sum, low, high, excess := 0, total, int64(0), 0
		for _, sh := range shares {
			sum += sh.n
			low, high = min(low, sh.have-int64(sh.n)), max(high, sh.have-int64(sh.n))
			excess += max(0, sh.n)
		}
		if sum != 0 || high-low > 1 {
			t.Fatalf("%+v: sum %d, from %d to %d", shares, sum, low, high)
		}
		if to := takersOf(shares, excess+5); len(to) != excess {
			t.Fatalf("%+v: %d takers for %d", shares, len(to), excess)
		}
		for _, sh := range shares {
			if sh.n < 0 {
				t.Fatalf("%+v: somebody still has too few", shares)
			}
		}
	}
}
