package handoff

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// two makes a giver and a taker that know each other.
func two(t testing.TB) (giver, taker *host) {
	t.Helper()
	table, c := newTable(t, 1024), new(clock)
	giver, taker = newHost(t, table, c, 1), newHost(t, table, c, 2)
	couple(giver, taker)
	return giver, taker
}

func TestConnectionGoesToAnotherProcess(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("state")
	c.tail = "late"
	giver.clock.pass(3 * time.Second)
	var got []Outcome
	giver.Give(2, 7, freeze(c), func(o Outcome) { got = append(got, o) })
	var offer Offer
	taker.refuse = func(o Offer) error { offer = o; return nil }
	converse(t, giver, taker)
	calm(t, giver, taker)
	if want := []Outcome{{Given: 1, Longest: 3 * time.Second}}; !slices.Equal(got, want) {
		t.Errorf("outcomes %+v, want %+v", got, want)
	}
	if offer.From != 1 || offer.Why != 7 || offer.ID != c.id || offer.Row == nil || offer.Since != 0 {
		t.Errorf("offered as %+v", offer)
	}
	if want := []string{"left state to 2"}; !slices.Equal(giver.log, want) {
		t.Errorf("the giver's: %q, want %q", giver.log, want)
	}
	if want := []string{"adopt state", "serve state", `tail state "late"`}; !slices.Equal(taker.log, want) {
		t.Errorf("the taker's: %q, want %q", taker.log, want)
	}
	if owner := c.row.Owner(); owner != (rows.Owner{Generation: 1, Incarnation: 2}) {
		t.Errorf("the owner word is %+v", owner)
	}
	if len(giver.clock.timers) != 0 {
		t.Errorf("%d timers are left", len(giver.clock.timers))
	}
}

func TestPairMovesAsOne(t *testing.T) {
	giver, taker := two(t)
	a, b := giver.open("a"), giver.open("b")
	a.frozen, b.frozen, b.tail = true, true, "late"
	var got Outcome
	giver.Give(2, 0, []Unit{{First: a, Second: b}}, func(o Outcome) { got = o })
	converse(t, giver, taker)
	calm(t, giver, taker)
	if got.Given != 2 || got.Err != nil {
		t.Errorf("outcome %+v", got)
	}
	want := []string{"adopt a", "adopt b", "join a b", "serve a", "serve b", `tail b "late"`, `tail a ""`}
	if !slices.Equal(taker.log, want) {
		t.Errorf("the taker's: %q, want %q", taker.log, want)
	}
	for _, c := range []*testConn{a, b} {
		if owner := c.row.Owner(); owner.Incarnation != 2 || owner.Offered != 0 {
			t.Errorf("the owner word of %s is %+v", c.state, owner)
		}
	}
}

func TestPairIsRefusedAsOne(t *testing.T) {
	giver, taker := two(t)
	a, b := giver.open("a"), giver.open("b")
	a.frozen, b.frozen = true, true
	taker.refuse = func(o Offer) error {
		if string(o.Body) == "b" {
			return fmt.Errorf("no such listener: %w", UnknownListener)
		}
		return nil
	}
	var got Outcome
	giver.Give(2, 0, []Unit{{First: a, Second: b}}, func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got != (Outcome{Refused: 2, Err: UnknownListener}) {
		t.Errorf("outcome %+v", got)
	}
	if want := []string{"adopt a", "drop a"}; !slices.Equal(taker.log, want) {
		t.Errorf("the taker's: %q, want %q", taker.log, want)
	}
	if want := []string{"thaw a", "thaw b"}; !slices.Equal(giver.log, want) {
		t.Errorf("the giver's: %q, want %q", giver.log, want)
	}
	if len(taker.troubles) != 1 || !strings.Contains(taker.troubles[0].Error(), "no such listener") {
		t.Errorf("troubles %v", taker.troubles)
	}
}

func TestManyGoInBatchesWithinTheWindow(t *testing.T) {
	giver, taker := two(t)
	var all []*testConn
	for i := range 1000 {
		all = append(all, giver.open(fmt.Sprint(i)))
	}
	if room := giver.Room(2); room != Window*BatchConnections {
		t.Errorf("room for %d, want %d", room, Window*BatchConnections)
	}
	var got Outcome
	giver.Give(2, 0, freeze(all...), func(o Outcome) { got = o })
	if n := len(giver.peers[2].sent); n != Window {
		t.Errorf("%d batches are under way, want %d", n, Window)
	}
	if room := giver.Room(2); room != 0 {
		t.Errorf("room for %d, want 0", room)
	}
	converse(t, giver, taker)
	calm(t, giver, taker)
	if got.Given != 1000 || got.Err != nil || len(taker.conns) != 1000 || len(giver.conns) != 0 {
		t.Errorf("outcome %+v, %d and %d connections", got, len(giver.conns), len(taker.conns))
	}
	if room := giver.Room(2); room != Window*BatchConnections || giver.Room(3) != 0 {
		t.Errorf("room for %d and %d", room, giver.Room(3))
	}
}

func TestBatchesGrowWithTheWindowClosed(t *testing.T) {
	giver, taker := two(t)
	var done int
	for i := range 100 {
		giver.Give(2, 0, freeze(giver.open(fmt.Sprint(i))), func(o Outcome) { done += o.Given })
	}
	converse(t, giver, taker)
	if done != 100 || giver.batches > Window+2 {
		t.Errorf("%d given in %d batches, want 100 in %d", done, giver.batches, Window+2)
	}
}

func TestLargeStatesGoByMemfd(t *testing.T) {
	giver, taker := two(t)
	var all []*testConn
	for i := range 40 {
		all = append(all, giver.open(strings.Repeat(string(rune('a'+i%26)), 100*i*i)))
	}
	want := make(map[rows.ID]string)
	for _, c := range all {
		want[c.id] = c.state
	}
	var got Outcome
	giver.Give(2, 0, freeze(all...), func(o Outcome) { got = o })
	converse(t, giver, taker)
	calm(t, giver, taker)
	if got.Given != len(all) {
		t.Errorf("outcome %+v", got)
	}
	for id, state := range want {
		if c := taker.conns[id]; c == nil || c.state != state {
			t.Errorf("state %s came as %+v", brief(state), c)
		}
	}
}

func TestStatesBeyondTheLimitStayOrWait(t *testing.T) {
	giver, taker := two(t)
	sizes := map[string]int{"small": 10, "half": bulkLimit / 2, "more": bulkLimit/2 + 1, "huge": bulkLimit + 1, "after": 10}
	giver.onCapture = func(c *testConn) (int, error) { return sizes[c.state], nil }
	var all []*testConn
	for _, state := range []string{"small", "half", "more", "huge", "after"} {
		all = append(all, giver.open(state))
	}
	var sum int
	taker.refuse = func(o Offer) error { sum += len(o.Body); return nil }
	var got Outcome
	giver.Give(2, 0, freeze(all...), func(o Outcome) { got = o })
	converse(t, giver, taker)
	calm(t, giver, taker)
	if got.Given != 4 || got.Thawed != 1 || !errors.Is(got.Err, ErrTooLarge) || sum != bulkLimit+21 {
		t.Errorf("outcome %+v with %d bytes", got, sum)
	}
	if giver.batches != 2 {
		t.Errorf("%d batches, want 2: one memfd does not hold both", giver.batches)
	}
	if all[3].frozen || all[3].row.Owner().Offered != 0 {
		t.Error("what was too large is not as before")
	}
}

func TestCaptureThatFailsKeepsTheConnection(t *testing.T) {
	giver, taker := two(t)
	bad := errors.New("the application cannot tell its state")
	giver.onCapture = func(c *testConn) (int, error) {
		if c.state == "bad" {
			return 0, bad
		}
		return 1, nil
	}
	good, worse, bad2 := giver.open("good"), giver.open("bad"), giver.open("bad")
	good.frozen, worse.frozen = true, true
	var got Outcome
	giver.Give(2, 0, append([]Unit{{First: worse, Second: good}}, freeze(giver.open("x"), bad2, giver.open("y"))...), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Given != 2 || got.Thawed != 3 || !errors.Is(got.Err, bad) {
		t.Errorf("outcome %+v", got)
	}
}

func TestLongTailsComeInPieces(t *testing.T) {
	giver, taker := two(t)
	a, b, c := giver.open("a"), giver.open("b"), giver.open("c")
	a.tail, c.tail = strings.Repeat("a", 3*maxMessage), strings.Repeat("c", maxMessage)
	giver.Give(2, 0, freeze(a, b, c), nil)
	converse(t, giver, taker)
	calm(t, giver, taker)
	for _, x := range []*testConn{a, b, c} {
		if got := taker.conns[x.id]; got.tail != x.tail || got.tails != 1 {
			t.Errorf("%s has a tail of %d bytes, %d times; want %d, once", x.state, len(got.tail), got.tails, len(x.tail))
		}
	}
}

func TestNobodyToGiveToThaws(t *testing.T) {
	giver, taker := two(t)
	for _, tt := range []struct {
		name string
		to   uint64
		make func()
		want error
	}{
		{"unknown", 9, func() {}, ErrUnknownPeer},
		{"itself", 1, func() {}, ErrUnknownPeer},
		{"dead", 2, func() { giver.Gone(2) }, ErrUnknownPeer},
		{"closed", 2, func() { giver.Close() }, ErrClosed},
	} {
		tt.make()
		var got Outcome
		giver.Give(tt.to, 0, freeze(giver.open(tt.name)), func(o Outcome) { got = o })
		if got != (Outcome{Thawed: 1, Err: tt.want}) {
			t.Errorf("%s: outcome %+v, want %v", tt.name, got, tt.want)
		}
	}
	converse(t, taker)
	called := false
	giver.Give(2, 0, nil, func(o Outcome) { called = o == Outcome{} })
	if !called {
		t.Error("done was not called for nothing")
	}
}

func TestSilentTakerIsLateUntilItHasAnswered(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	var got []Outcome
	done := func(o Outcome) { got = append(got, o) }
	giver.Give(2, 0, freeze(c), done)
	giver.clock.pass(DefaultDeadline)
	if len(got) != 1 || got[0].Thawed != 1 || got[0].Err != ErrPeerLate || got[0].Longest != DefaultDeadline {
		t.Fatalf("outcomes %+v", got)
	}
	// The word alone could not tell a second offer from the first.
	giver.Give(2, 0, freeze(c), done)
	if len(got) != 2 || got[1].Err != ErrPeerLate || giver.Room(2) != 0 {
		t.Fatalf("outcomes %+v", got)
	}
	converse(t, taker, giver)
	if want := []string{"thaw c", "thaw c"}; !slices.Equal(giver.log, want) || len(taker.log) != 0 {
		t.Errorf("the giver's: %q, the taker's: %q", giver.log, taker.log)
	}
	giver.Give(2, 0, freeze(c), done)
	converse(t, taker, giver)
	calm(t, giver, taker)
	if len(got) != 3 || got[2].Given != 1 {
		t.Errorf("outcomes %+v", got)
	}
}

func TestTakenConnectionLeavesThoughTheAnswerIsMissing(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	c.tail = "late"
	// The taker does not know the giver, so that its answer waits.
	taker.Gone(1)
	var got Outcome
	giver.Give(2, 0, freeze(c), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Given != 0 || taker.conns[c.id] == nil {
		t.Fatalf("outcome %+v", got)
	}
	giver.clock.pass(DefaultDeadline)
	converse(t, giver, taker)
	if got.Given != 1 || got.Err != nil || taker.conns[c.id].tail != "late" {
		t.Errorf("outcome %+v, tail %q", got, taker.conns[c.id].tail)
	}
	if giver.Room(2) != 0 {
		t.Error("the taker is not late")
	}
	taker.knows(giver)
	converse(t, giver, taker)
	calm(t, giver, taker)
	if giver.Room(2) == 0 {
		t.Error("the taker is late after its answer")
	}
}

func TestFullInboxIsTriedAgain(t *testing.T) {
	giver, taker := two(t)
	filled := fill(t, taker.sending)
	c := giver.open("c")
	var got []Outcome
	giver.Give(2, 0, freeze(c), func(o Outcome) { got = append(got, o) })
	giver.clock.pass(DefaultDeadline / 2)
	if len(got) != 0 {
		t.Fatalf("outcomes %+v", got)
	}
	converse(t, taker)
	if len(taker.troubles) != filled {
		t.Errorf("%d troubles, want one for each of %d messages", len(taker.troubles), filled)
	}
	giver.clock.pass(lastRetry)
	converse(t, giver, taker)
	if len(got) != 1 || got[0].Given != 1 {
		t.Errorf("outcomes %+v", got)
	}
}

func TestInboxThatStaysFullThaws(t *testing.T) {
	giver, taker := two(t)
	fill(t, taker.sending)
	var got Outcome
	var all []*testConn
	for i := range 100 {
		all = append(all, giver.open(fmt.Sprint(i)))
	}
	giver.Give(2, 0, freeze(all...), func(o Outcome) { got = o })
	giver.clock.pass(DefaultDeadline)
	if got.Thawed != 100 || got.Err != ErrInboxFull {
		t.Errorf("outcome %+v", got)
	}
	if giver.Room(2) == 0 {
		t.Error("the taker is late, though it cannot have read anything")
	}
	converse(t, taker)
	if len(taker.log) != 0 {
		t.Errorf("the taker's: %q", taker.log)
	}
}

func TestAnswersAndTailsWaitForRoom(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	c.tail = strings.Repeat("x", 2*maxMessage)
	giver.Give(2, 0, freeze(c), nil)
	fill(t, giver.sending)
	converse(t, taker) // its answer finds no room
	fill(t, taker.sending)
	converse(t, giver)
	taker.clock.pass(lastRetry) // the answer goes
	if giver.Owes() {
		t.Error("the giver owes something before the tails")
	}
	converse(t, giver) // the tails find no room
	if !giver.Owes() {
		t.Error("the giver owes nothing though the tails have not gone")
	}
	converse(t, taker)
	if got := taker.conns[c.id]; got == nil || got.tails != 0 {
		t.Fatalf("it is %+v", got)
	}
	giver.clock.pass(lastRetry)
	if giver.Owes() {
		t.Error("the giver still owes something")
	}
	converse(t, taker)
	if got := taker.conns[c.id]; got.tail != c.tail {
		t.Errorf("a tail of %d bytes, want %d", len(got.tail), len(c.tail))
	}
}

// fill fills an inbox with messages that mean nothing and returns how many.
func fill(t testing.TB, sending int) (n int) {
	t.Helper()
	for {
		switch err := unix.Sendmsg(sending, make([]byte, 1), nil, nil, unix.MSG_DONTWAIT); err {
		case nil:
			n++
		case unix.EAGAIN:
			return n
		default:
			t.Fatal(err)
		}
	}
}

func TestDeathOfTheTaker(t *testing.T) {
	for _, tt := range []struct {
		name  string
		until point // at which it dies; 0: before it has read
		given int
	}{
		{"before it has read the offer", 0, 0},
		{"after it has read the offer", pointRead, 0},
		{"before its commit", pointCommit, 0},
		{"after its commit", pointCommitted, 1},
		{"before its answer", pointAnswer, 2},
		{"after its answer", pointAnswered, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			giver, taker := two(t)
			taker.step = func(p point) {
				if p == tt.until {
					panic(p)
				}
			}
			var got Outcome
			giver.Give(2, 0, freeze(giver.open("a"), giver.open("b")), func(o Outcome) { got = o })
			if tt.until != 0 {
				func() {
					defer func() { recover() }()
					converse(t, taker)
				}()
			}
			giver.Gone(2)
			if got.Given != tt.given || got.Thawed != 2-tt.given {
				t.Errorf("outcome %+v, want %d given", got, tt.given)
			}
			taker.step, taker.busy = nil, 0
		})
	}
}

func TestDeathOfTheGiverLetsTheTakerGoOn(t *testing.T) {
	giver, taker := two(t)
	a, b := giver.open("a"), giver.open("b")
	giver.Give(2, 0, freeze(a), nil)
	converse(t, taker)
	giver.Give(2, 0, freeze(b), nil)
	giver.step = func(point) { t.Error("the dead giver acts") }
	// The second offer is still in the inbox: it is the giver's last word.
	taker.Gone(1)
	for _, c := range []*testConn{a, b} {
		if got := taker.conns[c.id]; got == nil || got.tails != 1 {
			t.Errorf("%s is %+v, want it served and told that there is no tail", c.state, got)
		}
	}
	giver.step = nil
}

func TestTakerWaitsForTailsOnlySoLong(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	c.tail = "late"
	giver.Give(2, 0, freeze(c), nil)
	converse(t, taker)
	taker.clock.pass(DefaultTailWait) // the giver's deadline passes too: it tells now
	if got := taker.conns[c.id]; got.tails != 1 || got.tail != "" && got.tail != "late" {
		t.Errorf("it is %+v", got)
	}
	converse(t, giver, taker)
	if got := taker.conns[c.id]; got.tails != 1 {
		t.Errorf("it is %+v", got)
	}
}

func TestTailThatComesTooLateClosesItsConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		tail string
		lost int
	}{
		{"nothing was sent", "", 0},
		{"something was sent", "late", 1},
		{"in pieces", strings.Repeat("late", maxMessage), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			giver, taker := two(t)
			taker.options.TailWait = giver.options.Deadline / 2
			a, b := giver.open("a"), giver.open("b")
			a.tail = tt.tail
			giver.Give(2, 0, freeze(a, b), nil)
			converse(t, taker)
			giver.clock.pass(taker.options.TailWait)
			if got := taker.conns[a.id]; got.tails != 1 || got.tail != "" || len(taker.troubles) != 1 {
				t.Fatalf("it is %+v, troubles %v, want it to go on without", got, taker.troubles)
			}
			converse(t, giver, taker) // the answer was there all the time
			if got := taker.conns[a.id]; got.tails != 1 || got.lost != tt.lost {
				t.Errorf("it is %+v, want %d lost", got, tt.lost)
			}
			if got := taker.conns[b.id]; got.tails != 1 || got.lost != 0 {
				t.Errorf("the other one is %+v", got)
			}
			if len(taker.waits) != 0 || (len(taker.troubles) > 1) != (tt.lost > 0) {
				t.Errorf("%d batches wait for tails, troubles %v", len(taker.waits), taker.troubles)
			}
		})
	}
}

func TestDeathIsActedOnWhenTheInboxIsRead(t *testing.T) {
	giver, taker := two(t)
	for range 3 * readBudget { // from whomever
		if err := unix.Sendmsg(taker.sending, []byte("noise"), nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	c := giver.open("c")
	giver.Give(2, 0, freeze(c), nil)
	taker.Gone(1)
	if n := len(taker.troubles); n != readBudget {
		t.Errorf("%d messages are read in one turn, want %d", n, readBudget)
	}
	if taker.conns[c.id] != nil || len(taker.dead) != 1 || taker.Room(1) != 0 {
		t.Error("the death is acted on, and its last message is not read")
	}
	converse(t, taker)
	if got := taker.conns[c.id]; got == nil || got.tails != 1 || len(taker.dead) != 0 || taker.peers[1] != nil {
		t.Errorf("it is %+v, want it served and told that there is no tail", got)
	}

	// An inbox that never becomes empty puts it off for a while only.
	giver.Gone(2)
	_, taker = two(t)
	taker.dead = append(taker.dead, death{1, 2})
	for range 3 {
		if err := unix.Sendmsg(taker.sending, []byte("noise"), nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	taker.enter()
	if err := taker.read(2); err != nil || len(taker.dead) != 0 || taker.peers[1] != nil {
		t.Errorf("%v: the dead are %v", err, taker.dead)
	}
	taker.leave()
}

func TestDeathIsActedOnWhenItsBudgetHasEmptiedTheInbox(t *testing.T) {
	for _, tt := range []struct {
		name     string
		messages int // in the inbox when the death is told
	}{
		{"one less than a budget", readBudget - 1},
		{"a budget", readBudget},
		{"two budgets", 2 * readBudget},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, c := newTable(t, 16), &clock{}
			a, b := newHost(t, table, c, 1), newHost(t, table, c, 2)
			b.knows(a)
			inbox := b.peers[1].inbox
			answer := begin(nil, header{version: version, kind: kindAnswer, from: 3, batch: 1}) // to nobody's offer
			seal(answer, flagForAll, 0)
			for range tt.messages {
				if err := unix.Sendto(b.sending, answer, 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			b.Gone(1)
			converse(t, b)
			c.pass(0)
			if _, err := unix.FcntlInt(uintptr(inbox), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
				t.Errorf("the dead one's inbox is still open: %v", err)
			}
			if len(b.peers) > 0 || len(c.timers) > 0 {
				t.Errorf("%d peers and %d timers are left, want none", len(b.peers), len(c.timers))
			}
		})
	}
}

func TestCloseDecidesWhatIsUnderWay(t *testing.T) {
	giver, taker := two(t)
	a, b := giver.open("a"), giver.open("b")
	var got []Outcome
	done := func(o Outcome) { got = append(got, o) }
	giver.Give(2, 0, freeze(a), done)
	converse(t, taker)
	giver.Give(2, 0, freeze(b), done)
	giver.Close()
	giver.Close()
	if len(got) != 2 || got[0].Given != 1 || got[1].Thawed != 1 {
		t.Errorf("outcomes %+v", got)
	}
	taker.Close()
	if c := taker.conns[a.id]; c == nil || c.tails != 1 {
		t.Errorf("a is %+v", c)
	}
	if len(giver.clock.timers) != 0 {
		t.Errorf("%d timers are left", len(giver.clock.timers))
	}
}

func TestClosedInboxThawsAtOnce(t *testing.T) {
	giver, taker := two(t)
	taker.Close()
	var got Outcome
	giver.Give(2, 0, freeze(giver.open("a")), func(o Outcome) { got = o })
	if got.Thawed != 1 || got.Err != ErrPeerGone || len(giver.troubles) != 1 {
		t.Errorf("outcome %+v, troubles %v", got, giver.troubles)
	}
	if giver.Give(2, 0, freeze(giver.open("b")), func(o Outcome) { got = o }); got.Err != ErrPeerGone {
		t.Errorf("outcome %+v", got)
	}
}

func TestMissingDescriptorsAreRefused(t *testing.T) {
	giver, taker := two(t)
	a, b, c := giver.open("a"), giver.open("b"), giver.open(strings.Repeat("c", 2*maxInline))
	taker.kernel = &truncating{new(system), 2} // the memfd and one connection
	var got Outcome
	giver.Give(2, 0, freeze(a, b, c), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Given != 1 || got.Refused != 2 || got.Err != NoRoom || len(taker.troubles) != 1 {
		t.Errorf("outcome %+v, troubles %v", got, taker.troubles)
	}
	taker.kernel = &truncating{new(system), 0}
	giver.Give(2, 0, freeze(c), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Refused != 1 || got.Err != NoRoom {
		t.Errorf("outcome %+v", got)
	}
}

// truncating is a kernel that has only so many descriptors for a message.
type truncating struct {
	*system
	most int
}

func (k *truncating) receive(inbox int, m []byte, fds []int) (n, nfds int, truncated bool, err error) {
	n, nfds, truncated, err = k.system.receive(inbox, m, fds)
	for nfds > k.most {
		nfds--
		unix.Close(fds[nfds])
		truncated = true
	}
	return n, nfds, truncated, err
}

func TestDescriptorOfAnotherConnectionIsRefused(t *testing.T) {
	giver, taker := two(t)
	a, b := giver.open("a"), giver.open("b")
	a.row.Cookie.Store(b.row.Cookie.Load())
	var got Outcome
	giver.Give(2, 0, freeze(a, b), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Given != 1 || got.Refused != 1 || got.Err != Malformed || len(taker.troubles) != 1 {
		t.Errorf("outcome %+v, troubles %v", got, taker.troubles)
	}
}

func TestShiftedDescriptorsAreRefused(t *testing.T) {
	giver, taker := two(t)
	giver.kernel = shifting{new(system)}
	var conns []*testConn
	for range 5 {
		conns = append(conns, giver.open("c"))
	}
	var got Outcome
	giver.Give(2, 0, freeze(conns...), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Refused != 5 || got.Err != Malformed || len(taker.log) != 0 {
		t.Errorf("outcome %+v, the taker's: %q", got, taker.log)
	}
}

// shifting is a kernel that mixes descriptors up.
type shifting struct{ *system }

func (k shifting) send(inbox int, m []byte, fds []int) error {
	return k.system.send(inbox, m, append(fds[1:len(fds):len(fds)], fds[0]))
}

func TestBatchOfAnotherVersionIsRefusedAsAWhole(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(m []byte)
		want   error
	}{
		{"newer", func(m []byte) { m[4]++ }, Version},
		{"unknown flags of a record", func(m []byte) { m[headerSize+21] |= 0x80 }, Malformed},
		{"a body that is too long", func(m []byte) { m[headerSize+16]++ }, Malformed},
		{"too many connections", func(m []byte) { m[24] = 200 }, Malformed},
		{"a second without a first", func(m []byte) { m[headerSize+21] |= recordSecond }, Malformed},
		{"fewer connections than descriptors", func(m []byte) { m[24], m[28] = 0, 0; m[28] = headerSize }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			giver, taker := two(t)
			giver.kernel = &changing{new(system), tt.change}
			var got Outcome
			giver.Give(2, 0, freeze(giver.open("a"), giver.open("b")), func(o Outcome) { got = o })
			giver.kernel = new(system)
			converse(t, giver, taker)
			giver.clock.pass(DefaultDeadline)
			if len(taker.log) != 0 || len(taker.troubles) != 1 {
				t.Errorf("the taker's: %q, troubles %v", taker.log, taker.troubles)
			}
			if tt.want != nil && got != (Outcome{Refused: 2, Err: tt.want}) || got.Refused+got.Thawed != 2 {
				t.Errorf("outcome %+v, want %v", got, tt.want)
			}
			if tt.want != nil && giver.Room(2) == 0 {
				t.Error("the taker is late after its answer")
			}
		})
	}
}

// changing is a kernel that changes messages on their way.
type changing struct {
	*system
	change func(m []byte)
}

func (k *changing) send(inbox int, m []byte, fds []int) error {
	m = slices.Clone(m)
	k.change(m)
	return k.system.send(inbox, m, fds)
}

func TestAnswersThatMeanNothingAreIgnored(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	var got []Outcome
	giver.Give(2, 0, freeze(c), func(o Outcome) { got = append(got, o) })
	say := func(h header, flags uint8, count int, rest ...byte) {
		t.Helper()
		m := append(begin(nil, h), rest...)
		seal(m, flags, count)
		if err := new(system).send(giver.sending, m, nil); err != nil {
			t.Fatal(err)
		}
	}
	answer := header{version: version, kind: kindAnswer, from: 2, batch: 1}
	say(answer, 0, 2, 0, 0)                                                           // for two
	say(answer, flagForAll, 0)                                                        // for none
	say(header{version: 9, kind: kindAnswer, from: 2, batch: 1}, 0, 1, 0)             // of another version
	say(header{version: version, kind: 77, from: 2, batch: 1}, 0, 1, 0)               // of no kind
	say(header{version: version, kind: kindAnswer, from: 1, batch: 1}, 0, 1, 0)       // from itself
	say(header{version: version, kind: kindTails, from: 2, batch: 1}, 0, 1, 0)        // cut off
	say(header{version: version, kind: kindAnswer, from: 1 << 30, batch: 1}, 0, 1, 0) // from nobody
	wrong := 7
	say(header{version: version, kind: kindAnswer, from: 3, batch: 1}, 0, 1, 0) // from a stranger
	say(header{version: version, kind: kindAnswer, from: 2, batch: 5}, 0, 1, 0) // to nothing
	converse(t, giver)
	if len(got) != 0 || len(giver.log) != 0 || len(giver.troubles) != wrong {
		t.Errorf("outcomes %+v, log %q, troubles %v", got, giver.log, giver.troubles)
	}
	// One that lies: the word is what counts.
	say(answer, 0, 1, 0)
	converse(t, giver)
	if len(got) != 1 || got[0].Refused != 1 || c.frozen {
		t.Errorf("outcomes %+v", got)
	}
	converse(t, taker)
	if len(taker.log) != 0 {
		t.Errorf("the taker's: %q", taker.log)
	}
	say(answer, 0, 1, 0) // and once more
	converse(t, giver)
	if len(got) != 1 {
		t.Errorf("outcomes %+v", got)
	}
}

func TestEverythingMayGiveAgain(t *testing.T) {
	giver, taker := two(t)
	third := newHost(t, giver.options.Table, giver.clock, 3)
	couple(giver, third)
	taker.refuse = func(Offer) error { return NotServing }
	var got []Outcome
	giver.onThaw = func(c *testConn) {
		if c.slot == 0 {
			c.slot = -1
			giver.Give(3, 0, freeze(c), func(o Outcome) { got = append(got, o) })
		}
	}
	giver.Give(2, 0, freeze(giver.open("a"), giver.open("b")), func(o Outcome) {
		got = append(got, o)
		giver.Give(3, 0, freeze(giver.open("c")), func(o Outcome) { got = append(got, o) })
	})
	converse(t, giver, taker, third)
	if len(got) != 4 || got[0].Refused != 2 || len(third.conns) != 3 {
		t.Errorf("outcomes %+v, %d connections", got, len(third.conns))
	}
}

func TestConnectionOfAnotherIsNotGiven(t *testing.T) {
	giver, taker := two(t)
	c := giver.open("c")
	c.row.Offer(c.id, 1, 9)
	var got Outcome
	giver.Give(2, 0, freeze(c, giver.open("d")), func(o Outcome) { got = o })
	converse(t, giver, taker)
	if got.Given != 1 || got.Thawed != 1 || got.Err != ErrNotOwned {
		t.Errorf("outcome %+v", got)
	}
}

func TestInboxEndsWithItsLastSender(t *testing.T) {
	_, taker := two(t)
	alone := newHost(t, taker.options.Table, taker.clock, 5)
	unix.Close(alone.sending)
	alone.sending = -1
	if err := alone.Readable(); err == nil {
		t.Error("no error")
	}
	if _, err := New(Options{Inbox: -1}); err == nil {
		t.Error("New took no descriptor for an inbox")
	}
}
