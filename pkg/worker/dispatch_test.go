package worker

import (
	"net/netip"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// among returns a worker in slot 0 that knows one peer in each of the slots 1
// to n-1, all of which serve.
func among(t *testing.T, n int) *Worker {
	t.Helper()
	board, err := scoreboard.Create(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { board.Close() })
	w := &Worker{board: board, seat: board.Seat(0), phase: link.StateServing}
	w.id.Incarnation, w.id.Pool = 1, "worker"
	w.peers = peers{w: w, all: make(map[uint64]*peer)}
	for slot := range n {
		seat := board.Seat(slot)
		seat.Incarnation.Store(uint64(slot) + 1)
		seat.State.Store(uint32(link.StateServing))
		if slot > 0 {
			m := link.Peer{Incarnation: uint64(slot) + 1, Pool: "worker", Slot: slot, Seat: slot, Serving: true}
			w.peers.all[m.Incarnation] = &peer{Peer: m, seat: seat}
		}
	}
	w.peers.sort()
	return w
}

// slotOf is the slot of a target, of which nil is the worker itself.
func slotOf(p *peer) int {
	if p == nil {
		return 0
	}
	return p.Slot
}

func TestWhoTakesNothingIsPassedOver(t *testing.T) {
	leaves := []struct {
		name string
		does func(w *Worker, p *peer)
	}{
		{"the supervisor says so", func(w *Worker, p *peer) { p.Serving = false }},
		{"it drains", func(w *Worker, p *peer) { p.seat.State.Store(uint32(link.StateDraining)) }},
		{"it is unready", func(w *Worker, p *peer) { p.seat.Unready.Store(1) }},
		{"its seat is another's", func(w *Worker, p *peer) { p.seat.Incarnation.Store(99) }},
	}
	for _, tt := range leaves {
		t.Run(tt.name, func(t *testing.T) {
			w := among(t, 4)
			away := w.peers.at(2)
			tt.does(w, away)
			for _, mode := range []Dispatch{DispatchRoundRobin, DispatchLeastConnections, DispatchHashIP} {
				d := &dispatcher{w: w, mode: mode}
				seen := make(map[int]bool)
				for i := range 200 {
					w.seat.Connections.Store(int64(10 + i%2))
					w.peers.at(1).seat.Connections.Store(int64(i % 3))
					w.peers.at(3).seat.Connections.Store(int64((i + 1) % 3))
					seen[slotOf(d.target(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})))] = true
				}
				if seen[2] || !seen[1] || !seen[3] {
					t.Errorf("%s: connections go to %v", mode, seen)
				}
			}
			if w.peers.at(2) != nil || w.peers.of(away.Incarnation) != nil {
				t.Error("it is still given some by name")
			}
		})
	}
}

func TestRoundRobinGivesEachAsMany(t *testing.T) {
	w := among(t, 3)
	d := &dispatcher{w: w, mode: DispatchRoundRobin}
	var n [3]int
	for range 300 {
		n[slotOf(d.target(netip.Addr{}))]++
	}
	if n != [3]int{100, 100, 100} {
		t.Errorf("the workers get %v", n)
	}
}

func TestLeastConnectionsCountsThoseOnTheirWay(t *testing.T) {
	w := among(t, 3)
	w.onTheWay = make(map[uint64]int)
	d := &dispatcher{w: w, mode: DispatchLeastConnections}
	var n [3]int
	for range 30 { // accepted in one turn
		to := d.target(netip.Addr{})
		n[slotOf(to)]++
		w.seat.Connections.Add(1)
		if to != nil {
			w.onTheWay[to.Incarnation]++
		}
	}
	if n != [3]int{10, 10, 10} {
		t.Errorf("the workers get %v", n)
	}
}

func TestEndOfAWorkerMovesOnlyWhatItHad(t *testing.T) {
	w := among(t, 4)
	const keys = 4000
	var had [keys]int
	var n [4]int
	for key := range had {
		had[key] = slotOf(w.peers.byHash(uint64(key)))
		n[had[key]]++
	}
	for slot, n := range n {
		if n < keys/4*9/10 || n > keys/4*11/10 {
			t.Errorf("slot %d has %d of %d keys", slot, n, keys)
		}
	}
	w.peers.at(2).Serving = false
	for key, before := range had {
		if now := slotOf(w.peers.byHash(uint64(key))); now != before && before != 2 {
			t.Fatalf("key %d goes from slot %d to %d", key, before, now)
		}
	}
}

func TestAddressesOfOneNetworkGoToOneWorker(t *testing.T) {
	w := among(t, 4)
	d := &dispatcher{w: w, mode: DispatchHashIP}
	for _, same := range [][]string{
		{"2001:db8::1", "2001:db8::ffff:1"},
		{"192.0.2.7", "::ffff:192.0.2.7"},
		{"fe80::1%eth0", "fe80::2%lo"},
	} {
		if a, b := d.target(netip.MustParseAddr(same[0])), d.target(netip.MustParseAddr(same[1])); a != b {
			t.Errorf("%s goes to slot %d, %s to %d", same[0], slotOf(a), same[1], slotOf(b))
		}
	}
	if p := d.target(netip.Addr{}); p != nil {
		t.Errorf("a peer without an address goes to slot %d", p.Slot)
	}
}
