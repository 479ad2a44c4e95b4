package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// town is a rig whose workers are peers: each has an inbox, writes down what
// it is told, and gives its connections away when it is told to.
type town struct {
	*rig

	mu     sync.Mutex
	heard  map[*fake][]link.Body
	slow   bool                                       // who is to hand over says nothing by itself, and stays
	answer func(*fake, link.Gather) (any, error)      // nil: it gives all it is asked for
	lives  map[uint64]func(*town, *fake)              // by incarnation, of those that live otherwise
	beyond func(generation uint64) func(*town, *fake) // the same, by generation; may be nil
}

// settle runs body in a town.
func settle(t *testing.T, settings Settings, body func(*town)) {
	t.Helper()
	settleIn(t, &town{}, settings, body)
}

func settleIn(t *testing.T, w *town, settings Settings, body func(*town)) {
	t.Helper()
	w.heard = make(map[*fake][]link.Body)
	if w.lives == nil {
		w.lives = make(map[uint64]func(*town, *fake))
	}
	before := descriptors(t)
	superviseWith(t, settings, w.live, func(s *Supervisor) { w.rig = &rig{t: t, Supervisor: s} }, func(r *rig) {
		w.rig = r
		body(w)
	})
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors more than before", after-before)
	}
}

// descriptors counts those that are sockets: the runtime may open others.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// inbox is the sending end of one, whose other end is closed.
func inbox() int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	unix.Close(fds[0])
	return fds[1]
}

// greet says hello as a peer.
func (p *fake) greet(inbox int) {
	id := p.order.identity
	p.order.greeted(link.Hello{Contract: link.Contract, Incarnation: id.Incarnation, Generation: id.Generation, Build: "test"}, inbox)
}

func (w *town) live(p *fake) {
	w.mu.Lock()
	life := w.lives[p.order.identity.Incarnation]
	if life == nil && w.beyond != nil {
		life = w.beyond(p.order.identity.Generation)
	}
	w.mu.Unlock()
	if life != nil {
		life(w, p)
		return
	}
	p.greet(inbox())
	p.order.said(link.Ready{})
	w.reside(p)
}

// reside is the life of a worker that is ready.
func (w *town) reside(p *fake) {
	for m := range p.in {
		if !w.obey(p, m) {
			return
		}
	}
}

// obey does what a worker is told; false: it is dead.
func (w *town) obey(p *fake, m any) bool {
	if f, ok := m.(withFile); ok {
		m = f.Body
		w.note(p, file{f.Body})
	} else if b, ok := m.(link.Body); ok {
		w.note(p, b)
	}
	switch m := m.(type) {
	case link.Drain:
		p.order.said(link.Draining{})
		w.mu.Lock()
		slow := w.slow
		w.mu.Unlock()
		switch {
		case slow && m.Hand:
		case m.Hand:
			p.order.said(w.give(p, m.To))
			fallthrough
		default:
			time.AfterFunc(time.Second, func() { p.exit(Exit{}) }) // fake time
		}
	case link.Gather:
		w.respond(p, m)
	case link.Stop:
		p.exit(Exit{})
		return false
	case unix.Signal:
		if m == unix.SIGKILL {
			p.exit(Exit{Signal: m})
		} else {
			p.exit(Exit{})
		}
		return false
	}
	return true
}

// file is a message that came with a descriptor.
type file struct{ link.Body }

func (w *town) note(p *fake, b link.Body) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard[p] = append(w.heard[p], b)
}

// heardOf returns what a worker was told that keep wants.
func heardOf[B link.Body](w *town, p *fake) (all []B) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.heard[p] {
		if m, ok := b.(B); ok {
			all = append(all, m)
		}
	}
	return all
}

// lastWord returns how a worker was told to drain last.
func (w *town) lastWord(p *fake) link.Drain {
	all := heardOf[link.Drain](w, p)
	if len(all) == 0 {
		return link.Drain{}
	}
	return all[len(all)-1]
}

func (w *town) seatOf(p *fake) *scoreboard.Seat { return w.board.Seat(p.order.identity.Seat) }

// connect opens n connections.
func (w *town) connect(p *fake, n int) { w.seatOf(p).Connections.Store(int64(n)) }

// give moves all connections of a worker to another, or to the first that
// serves.
func (w *town) give(p *fake, to uint64) link.Handed {
	n := w.seatOf(p).Connections.Swap(0)
	w.seatOf(p).HandoffsGiven.Add(uint64(n))
	for _, other := range w.fakes.every() {
		if id := other.order.identity; id.Incarnation == to {
			w.seatOf(other).Connections.Add(n)
			w.seatOf(other).HandoffsTaken.Add(uint64(n))
		}
	}
	return link.Handed{Given: int(n), Longest: 3 * time.Millisecond}
}

// respond answers "move" and "give".
func (w *town) respond(p *fake, g link.Gather) {
	w.mu.Lock()
	answer := w.answer
	w.mu.Unlock()
	if answer == nil {
		return
	}
	v, err := answer(p, g)
	if errors.Is(err, errSilent) {
		return
	}
	reply(p, g.ID, v, err)
}

var errSilent = errors.New("no answer")

// peersOf is what a worker believes of the others: slot, and whether it
// serves.
func (w *town) peersOf(p *fake) string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[uint64]string{}
	var order []uint64
	for _, b := range w.heard[p] {
		switch m := b.(type) {
		case file:
			peer := m.Body.(link.Peer)
			if known[peer.Incarnation] != "" {
				w.t.Errorf("pid %d was introduced to incarnation %d twice", p.pid, peer.Incarnation)
			}
			known[peer.Incarnation] = peerWords(peer)
			order = append(order, peer.Incarnation)
		case link.Peer:
			if known[m.Incarnation] == "" {
				w.t.Errorf("pid %d was told of incarnation %d without its inbox", p.pid, m.Incarnation)
			}
			known[m.Incarnation] = peerWords(m)
		case link.PeerGone:
			if known[m.Incarnation] == "" {
				w.t.Errorf("pid %d was told of the death of incarnation %d, which it does not know", p.pid, m.Incarnation)
			}
			delete(known, m.Incarnation)
			order = slices.DeleteFunc(order, func(n uint64) bool { return n == m.Incarnation })
		}
	}
	slices.Sort(order)
	var words []string
	for _, n := range order {
		words = append(words, known[n])
	}
	return strings.Join(words, ", ")
}

func peerWords(p link.Peer) string {
	return fmt.Sprintf("%d of slot %d generation %d serving %t", p.Incarnation, p.Slot, p.Generation, p.Serving)
}

func TestWorkersAreToldOfOneAnother(t *testing.T) {
	settle(t, quick, func(w *town) {
		w.expect(control.StateServing, 1, 1)
		one, two := w.fakes.last(0), w.fakes.last(1)
		if got, want := w.peersOf(one), "2 of slot 1 generation 1 serving true"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		// One that has said hello is known before it serves.
		begin := make(chan bool)
		w.lives[3] = func(w *town, p *fake) {
			p.greet(inbox())
			<-begin
			p.order.said(link.Ready{})
			w.reside(p)
		}
		if err := w.Scale(w.t.Context(), control.ScaleRequest{N: 3}); err != nil {
			t.Fatal(err)
		}
		if got, want := w.peersOf(one), "2 of slot 1 generation 1 serving true, 3 of slot 2 generation 1 serving false"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		close(begin)
		three := w.fakes.last(2)
		if got, want := w.peersOf(three), "1 of slot 0 generation 1 serving true, 2 of slot 1 generation 1 serving true"; got != want {
			t.Errorf("worker 2 knows %q, want %q", got, want)
		}
		if got, want := w.peersOf(two), "1 of slot 0 generation 1 serving true, 3 of slot 2 generation 1 serving true"; got != want {
			t.Errorf("worker 1 knows %q, want %q", got, want)
		}
		// One that leaves is still known, one that is dead is not.
		if err := w.Drain(w.t.Context(), control.SlotRequest{Slot: 2}); err != nil {
			t.Fatal(err)
		}
		if got, want := w.peersOf(one), "2 of slot 1 generation 1 serving true, 3 of slot 2 generation 1 serving false"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		time.Sleep(2 * time.Second)
		two.exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		if got, want := w.peersOf(one), "4 of slot 1 generation 1 serving true"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		if gone := heardOf[link.PeerGone](w, one); len(gone) != 2 || gone[0].Incarnation != 3 || gone[1].Incarnation != 2 {
			t.Errorf("told %+v of the dead", gone)
		}
	})
}

func TestWorkerThatHangsIsNoTaker(t *testing.T) {
	w := &town{}
	hang := func(w *town, p *fake) { // until it is killed
		p.greet(inbox())
		p.order.said(link.Ready{})
		for m := range p.in {
			if m == any(unix.SIGKILL) {
				p.exit(Exit{Signal: unix.SIGKILL})
				return
			}
		}
	}
	w.lives = map[uint64]func(*town, *fake){2: hang}
	settings := healthy(Health{HandlerTimeout: 4 * time.Second, HangTimeout: -1})
	settleIn(t, w, settings, func(w *town) {
		w.seatOf(w.fakes.last(1)).PoolOldest.Store(int64(monotonic() - time.Hour))
		w.seatOf(w.fakes.last(1)).Heartbeat.Store(int64(monotonic()))
		time.Sleep(1500 * time.Millisecond)
		if got, want := w.peersOf(w.fakes.last(0)), "2 of slot 1 generation 1 serving false"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		time.Sleep(2 * evidenceMargin)
		if got, want := w.peersOf(w.fakes.last(0)), "3 of slot 1 generation 1 serving true"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
	})
}

func TestWorkerWithoutAnInboxIsNoPeer(t *testing.T) {
	w := &town{}
	w.lives = map[uint64]func(*town, *fake){2: func(w *town, p *fake) {
		p.greet(-1)
		p.order.said(link.Ready{})
		w.reside(p)
	}}
	settings := quick
	settings.Workers = 3
	settleIn(t, w, settings, func(w *town) {
		w.expect(control.StateServing, 1, 1, 1)
		if got, want := w.peersOf(w.fakes.last(0)), "3 of slot 2 generation 1 serving true"; got != want {
			t.Errorf("worker 0 knows %q, want %q", got, want)
		}
		old := w.fakes.last(1)
		if got := w.peersOf(old); got != "" {
			t.Errorf("the old worker was told %q", got)
		}
		w.connect(old, 7)
		all, err := w.Supervisor.Drain(w.t.Context(), control.SlotRequest{Slot: 1})
		if err != nil || len(all) != 1 || all[0].State != control.HandoverNone || all[0].Left != 7 {
			t.Errorf("drained: %+v, %v", all, err)
		}
		if d := w.lastWord(old); d.Hand {
			t.Errorf("told %+v", d)
		}
		w.connect(w.fakes.last(0), 1)
		if _, err := w.Supervisor.Rebalance(w.t.Context(), control.RebalanceRequest{}); err != nil {
			t.Error(err)
		}
	})
}

func TestHelloWithSomethingElseThanAnInboxIsRefused(t *testing.T) {
	stream := func() int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		unix.Close(fds[0])
		return fds[1]
	}
	null := func() int {
		fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		return fd
	}
	for _, tt := range []struct {
		name string
		fd   func() int
		want string
	}{
		{"a stream", stream, "its inbox is a socket of family 1 and type 1, want AF_UNIX and SOCK_SEQPACKET"},
		{"no socket", null, "its inbox: getsockopt: socket operation on non-socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &town{}
			w.lives = map[uint64]func(*town, *fake){3: func(w *town, p *fake) {
				p.greet(tt.fd())
				w.reside(p)
			}}
			settleIn(t, w, quick, func(w *town) {
				if err := w.Recycle(w.t.Context(), control.SlotRequest{Slot: 0}); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("recycled: %v, want %q", err, tt.want)
				}
				w.expect(control.StateServing, 1, 1)
			})
		})
	}
}

func TestSecondInboxIsClosed(t *testing.T) {
	settle(t, quick, func(w *town) { // counts the descriptors
		w.fakes.last(0).greet(inbox())
		w.expect(control.StateServing, 1, 1)
	})
}

func TestWorkerThatDoesNotReadIsToldLaterInTheRightOrder(t *testing.T) {
	settings := quick
	settings.Workers = 3
	settle(t, settings, func(w *town) {
		p := w.fakes.last(0)
		p.busy.Store(true)
		w.fakes.last(2).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		time.Sleep(time.Nanosecond)
		w.mu.Lock()
		w.heard[p] = nil
		w.mu.Unlock()
		drained := make(chan error)
		go func() { drained <- w.Drain(w.t.Context(), control.SlotRequest{Slot: 0}) }()
		synctest.Wait()
		time.Sleep(10 * catchUpPause)
		if got := len(heardOf[link.Body](w, p)); got != 0 {
			t.Errorf("%d messages have reached it", got)
		}
		p.busy.Store(false)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		var got []string
		for _, b := range heardOf[link.Body](w, p) {
			switch m := b.(type) {
			case file:
				got = append(got, "meets "+peerWords(m.Body.(link.Peer)))
			case link.PeerGone:
				got = append(got, fmt.Sprintf("parts with %d", m.Incarnation))
			case link.Drain:
				got = append(got, fmt.Sprintf("drains %t", m.Hand))
			case link.Rearm:
				got = append(got, "rearms")
			default:
				got = append(got, fmt.Sprintf("%T", m))
			}
		}
		want := []string{"meets 4 of slot 2 generation 1 serving true", "parts with 3", "rearms", "drains true"}
		if !slices.Equal(got, want) {
			t.Errorf("told\n%q\nwant\n%q", got, want)
		}
	})
}

func TestWhatWaitsForAWorkerThatDoesNotReadIsBounded(t *testing.T) {
	settle(t, quick, func(w *town) {
		p := w.fakes.last(0)
		p.busy.Store(true)
		for range 3 * maxOutbox {
			w.fakes.last(1).order.said(link.Paused{Listener: "echo", Reason: "EMFILE"})
		}
		synctest.Wait()
		reply := make(chan int, 1)
		w.post(verb{do: func(s *Supervisor, _ *slot, _ chan outcome) {
			inc := s.pool.slots[0].current
			for range 3 * maxOutbox {
				s.send(inc, link.LogLevel{Level: "info"})
			}
			reply <- len(inc.outbox)
		}, verdict: make(chan outcome, 1)})
		if n := <-reply; n != maxOutbox {
			t.Errorf("%d messages wait, want %d", n, maxOutbox)
		}
		p.busy.Store(false)
		time.Sleep(2 * catchUpPause)
		if n := len(heardOf[link.Rearm](w, p)); n != 1 {
			t.Errorf("told to rearm %d times, want once", n)
		}
	})
}

func TestRowsOfADeadWorkerAreFreed(t *testing.T) {
	settle(t, quick, func(w *town) {
		a := w.rows.Allocator(w.fakes.last(0).order.identity.Incarnation)
		id, _, err := a.Take()
		if err != nil {
			t.Fatal(err)
		}
		given, row, err := a.Take()
		if err != nil {
			t.Fatal(err)
		}
		row.Offer(given, 1, 2)
		row.Commit(given, 1, 2)
		w.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		if w.rows.Row(id) != nil {
			t.Error("its row is not free")
		}
		if r := w.rows.Row(given); r == nil || r.Owner().Incarnation != 2 {
			t.Error("what it has given away is gone too")
		}
	})
}
