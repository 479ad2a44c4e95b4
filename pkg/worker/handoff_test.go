package worker

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/test/talk"
)

// talker answers a line with the worker's slot and generation, and the line.
type talker struct {
	conn.NopHandler
	name string
}

func (h talker) OnMessage(c *conn.Conn, m []byte) {
	switch line := string(m); {
	case strings.HasPrefix(line, "to "):
		var slot int
		fmt.Sscanf(line, "to %d", &slot)
		c.MoveTo(slot)
	case strings.HasPrefix(line, "bind "):
		var room uint64
		fmt.Sscanf(line, "bind %d", &room)
		c.Bind(room)
		c.Send([]byte("bound"))
	case line == "wait":
		c.Send([]byte("waiting"))
		<-time.After(300 * time.Millisecond)
		c.Send([]byte("waited"))
	case line == "id":
		c.Send(fmt.Append(nil, c.ID()))
	case line == "unblock":
		unblock <- struct{}{}
		c.Send([]byte("done"))
	case strings.HasPrefix(line, "block "):
		c.Send([]byte("blocked"))
		<-unblock
		h.OnMessage(c, []byte(strings.TrimPrefix(line, "block ")))
	default:
		c.Send(fmt.Appendf(nil, "%s %s", h.name, m))
	}
}

// unblock lets a message "block" go on.
var unblock = make(chan struct{}, 1)

// polished is a talker that says goodbye with the answers of a drain, as HTTP
// does.
type polished struct {
	talker
	draining *atomic.Bool
}

func (h polished) Serving(func(conn.Event), *scoreboard.Seat) {}

func (h polished) Longest() time.Duration { return 0 }

func (h polished) Drain() { h.draining.Store(true) }
func (h polished) Close() {}

func (h polished) OnMessage(c *conn.Conn, m []byte) {
	h.talker.OnMessage(c, m)
	if h.draining.Load() {
		c.Send([]byte("goodbye"))
		c.Close(nil)
	}
}

// reasoner tells why it has a connection that was another's.
type reasoner struct{ conn.NopHandler }

func (reasoner) OnMessage(c *conn.Conn, m []byte)      { c.Send(m) }
func (reasoner) OnAdopt(c *conn.Conn, why conn.Reason) { c.Send([]byte(why.String())) }

func TestTakerIsToldWhy(t *testing.T) {
	for _, tt := range []struct {
		name       string
		generation uint64 // of the taker
		restart    bool
		want       string
	}{
		{name: "new code", generation: 2, want: "reload"},
		{name: "a restart of the service", generation: 2, restart: true, want: "restart"},
		{name: "another worker of the same", generation: 1, want: "move"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := listen(t)
			cl := newCluster(t)
			old := cl.spawn("reasoner", 0, 1, s).serve()
			c, err := dialSocket(s)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			exchange(t, c, "there?\n", "there?\n")
			next := cl.spawn("reasoner", 1, tt.generation, s).serve()
			old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation, Restart: tt.restart})
			exchange(t, c, "", tt.want+"\n")
			old.awaitExit(0)
			exchange(t, c, "still?\n", "still?\n")
		})
	}
}

// talkTo has clients talk to a socket.
func talkTo(t *testing.T, s activation.Socket, clients int) *talk.Group {
	t.Helper()
	g, err := talk.Start(func() (net.Conn, error) { return dialSocket(s) }, talk.Options{Clients: clients, Pause: 10 * time.Millisecond, Limit: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Stop() })
	return g
}

func dialSocket(s activation.Socket) (net.Conn, error) {
	return net.Dial("tcp", strings.TrimPrefix(s.Address, "tcp://"))
}

// nobodyLost ends the talk and the test if a client has lost anything.
func nobodyLost(t *testing.T, g *talk.Group) talk.Report {
	t.Helper()
	r := g.Stop()
	t.Log(r)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDrainHandsOverToTheSuccessor(t *testing.T) {
	for _, name := range []string{"talker", "talker on the pool"} {
		t.Run(name, func(t *testing.T) {
			s := listen(t)
			cl := newCluster(t)
			old := cl.spawn(name, 0, 1, s).serve()
			g := talkTo(t, s, 200)
			next := cl.spawn(name, 0, 2, s).serve()
			old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
			expect[link.Draining](old)
			handed := expect[link.Handed](old)
			if handed.Given != 200 || handed.Left != 0 || handed.Longest <= 0 {
				t.Errorf("handed over: %+v, want all 200", handed)
			}
			old.awaitExit(0)
			await(t, "all to be served by the successor", func() bool { return g.Report().Servers["0/2"] > 400 })
			if given, taken := old.seat.HandoffsGiven.Load(), next.seat.HandoffsTaken.Load(); given != 200 || taken != 200 {
				t.Errorf("given %d, taken %d, want 200", given, taken)
			}
			if n := next.seat.Connections.Load(); n != 200 {
				t.Errorf("the successor counts %d connections, want 200", n)
			}
			if r := nobodyLost(t, g); r.Changes != 200 {
				t.Errorf("%d clients have changed their server, want 200", r.Changes)
			}
		})
	}
}

func TestConnectionsOfPacketsAreHandedOver(t *testing.T) {
	s := listenOn(t, "unixpacket://"+t.TempDir()+"/s")
	cl := newCluster(t)
	old := cl.spawn("packet talker", 0, 1, s).serve()
	var clients []net.Conn
	for range 20 {
		clients = append(clients, dial(t, s))
	}
	buf := make([]byte, 100)
	say := func(server string) {
		t.Helper()
		for _, c := range clients {
			for _, m := range []string{"one", "and another", "x"} {
				if _, err := io.WriteString(c, m); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range []string{"one", "and another", "x"} {
				n, err := c.Read(buf)
				if got, want := string(buf[:n]), server+" "+m; err != nil || got != want {
					t.Fatalf("got %q, %v, want the packet %q", got, err, want)
				}
			}
		}
	}
	say("0/1")
	next := cl.spawn("packet talker", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != len(clients) || handed.Left != 0 {
		t.Errorf("handed over: %+v, want all %d", handed, len(clients))
	}
	old.awaitExit(0)
	say("0/2")
}

func TestConnectionsGoRoundAndRoundAndNobodyIsLost(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	workers := []*proc{cl.spawn("talker on the pool", 0, 1, s).serve(), cl.spawn("talker", 1, 1, s).serve(), cl.spawn("talker", 2, 1, s).serve()}
	g := talkTo(t, s, 100)
	rounds, changes := 30, 100
	if testing.Short() {
		rounds, changes = 5, 1 // it is over before most clients say a second line
	}
	for round := range rounds {
		from, to := workers[round%3], workers[(round+1)%3]
		arg, _ := json.Marshal(link.GiveRequest{Count: 1000, To: []uint64{to.incarnation}})
		from.tell(link.Gather{ID: uint64(round) + 1, What: "give", Arg: arg})
		a := from.answer()
		var r link.GiveResult
		if err := json.Unmarshal(a.text, &r); err != nil || a.Error != "" {
			t.Fatalf("round %d: %v %q %q", round, err, a.Error, a.text)
		}
	}
	if r := nobodyLost(t, g); r.Changes < changes {
		t.Errorf("clients have changed their server %d times", r.Changes)
	}
	open := int64(0)
	for _, w := range workers {
		open += w.seat.Connections.Load()
	}
	if open > 100 {
		t.Errorf("the workers count %d connections, want at most 100", open)
	}
}

func TestApplicationMovesAConnection(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	cl.spawn("talker", 0, 1, s).serve()
	c, err := dialSocket(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, "here?\n", "0/1 here?\n")
	cl.spawn("talker", 1, 1, s).serve()
	await(t, "the other worker to have it", func() bool {
		if _, err := io.WriteString(c, "to 1\n"); err != nil {
			t.Fatal(err)
		}
		return reply(t, c, "there?") == "1/1 there?"
	})
	// To a slot where nobody is it does not go.
	exchange(t, c, "to 7\nstill?\n", "1/1 still?\n")
}

func TestConnectionInACallbackIsHandedOverWhenThatHasReturned(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("talker on the pool", 0, 1, s).serve()
	c, err := dialSocket(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, "here?\n", "0/1 here?\n")
	exchange(t, c, "wait\nand who?\n", "waiting\n")
	next := cl.spawn("talker", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if got := nextLine(t, c); got != "waited" {
		t.Fatalf("got %q", got)
	}
	if got := nextLine(t, c); got != "0/1 and who?" && got != "0/2 and who?" {
		t.Fatalf("got %q", got)
	}
	if handed := expect[link.Handed](old); handed.Given != 1 {
		t.Errorf("handed over: %+v", handed)
	}
	exchange(t, c, "here?\n", "0/2 here?\n")
	old.awaitExit(0)
}

func TestGoodbyeIsNotForThoseThatAreHandedOver(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("polished talker", 0, 1, s).serve()
	c, err := dialSocket(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, "wait\n", "waiting\n")
	next := cl.spawn("polished talker", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	exchange(t, c, "here?\n", "waited\n")
	// It may be read before the connection is frozen, or by the next worker.
	if got := nextLine(t, c); got != "0/1 here?" && got != "0/2 here?" {
		t.Fatalf("got %q", got)
	}
	await(t, "the next worker to have it", func() bool { return reply(t, c, "here?") == "0/2 here?" })
	old.awaitExit(0)

	next.tell(link.Drain{Grace: patience})
	expect[link.Draining](next)
	exchange(t, c, "here?\n", "0/2 here?\ngoodbye\n")
}

func TestPinnedConnectionsAreDrainedAndOthersMove(t *testing.T) {
	s, pinned := listen(t), listenOn(t, "tcp://127.0.0.1:0")
	pinned.Name = "pinned"
	cl := newCluster(t)
	old := cl.spawn("talker", 0, 1, s, pinned).serve()
	c, err := dialSocket(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := dialSocket(pinned)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	exchange(t, c, "here?\n", "0/1 here?\n")
	exchange(t, p, "here?\n", "0/1 here?\n")
	next := cl.spawn("talker", 0, 2, s, pinned).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 1 || handed.Left != 1 {
		t.Errorf("handed over: %+v, want one of two", handed)
	}
	exchange(t, c, "here?\n", "0/2 here?\n")
	exchange(t, p, "here?\n", "0/1 here?\n")
	p.Close()
	old.awaitExit(0)
}

func TestNewcomersAreDispatched(t *testing.T) {
	for _, tt := range []struct {
		mode Dispatch
		want func(n [3]int64) bool
	}{
		{DispatchRoundRobin, func(n [3]int64) bool { return n[0] >= 25 && n[1] >= 25 && n[2] >= 25 }},
		{DispatchLeastConnections, func(n [3]int64) bool { return n[0] >= 25 && n[1] >= 25 && n[2] >= 25 }},
		{DispatchHashIP, func(n [3]int64) bool { return n[0] == 90 || n[1] == 90 || n[2] == 90 }},
	} {
		t.Run(string(tt.mode), func(t *testing.T) {
			s := listen(t)
			cl := newCluster(t)
			var workers []*proc
			for slot := range 3 {
				workers = append(workers, cl.spawn("dispatch "+string(tt.mode), slot, 1, s).serve())
			}
			g := talkTo(t, s, 90)
			var n [3]int64
			count := func() int64 {
				for i, w := range workers {
					n[i] = w.seat.Connections.Load()
				}
				return n[0] + n[1] + n[2]
			}
			await(t, "all to be counted", func() bool { return count() == 90 })
			if !tt.want(n) {
				t.Errorf("the workers have %v connections", n)
			}
			// Those that one would get which takes no more go to the others.
			workers[1].tell(link.Drain{Grace: patience})
			for _, w := range []*proc{workers[0], workers[2]} {
				w.tell(link.Peer{Incarnation: workers[1].incarnation, Pool: "worker", Slot: 1, Generation: 1, Seat: int(workers[1].incarnation) - 1})
			}
			expect[link.Draining](workers[1])
			had := workers[1].seat.Connections.Load()
			more := talkTo(t, s, 30)
			if has := workers[1].seat.Connections.Load(); has > had {
				t.Errorf("a worker that drains has %d connections and had %d", has, had)
			}
			nobodyLost(t, g)
			nobodyLost(t, more)
		})
	}
}

func TestApplicationBindsConnectionsToAnID(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	for slot := range 3 {
		cl.spawn("dispatch hash-id", slot, 1, s).serve()
	}
	servers := make(map[string]bool)
	for room := range uint64(20) {
		home := 0
		for slot := range 3 {
			if score(room, slot) > score(room, home) {
				home = slot
			}
		}
		want := fmt.Sprintf("%d/1 who?", home)
		for range 4 {
			c, err := dialSocket(s)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			exchange(t, c, fmt.Sprintf("bind %d\n", room), "bound\n")
			await(t, "a connection to be with the others of its room", func() bool { return reply(t, c, "who?") == want })
		}
		servers[want] = true
	}
	if len(servers) != 3 {
		t.Errorf("20 rooms are in %d workers, want all 3", len(servers))
	}
}

// stop stops a worker, and waits until it has.
func (p *proc) stop() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	await(p.t, "the worker to be stopped", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err == nil && !strings.Contains(string(b), ") T ") {
				return false
			}
		}
		return true
	})
}

// reply sends a line and returns the one that comes.
func reply(t *testing.T, c net.Conn, line string) string {
	t.Helper()
	if _, err := fmt.Fprintln(c, line); err != nil {
		t.Fatal(err)
	}
	return nextLine(t, c)
}

// nextLine reads no more than a line.
func nextLine(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// exchange sends a text and wants an answer, byte by byte.
func exchange(t *testing.T, c net.Conn, text, want string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("to %q: got %q, %v, want %q", text, got, err, want)
	}
}

func TestStoppedSuccessorGetsTheRestWhenItGoesOn(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("talker", 0, 1, s).serve()
	g := talkTo(t, s, 50)
	next := cl.spawn("talker", 0, 2, s).serve()
	next.stop()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 0 || handed.Left != 50 {
		t.Fatalf("handed over: %+v, want none of 50", handed)
	}
	next.signal(syscall.SIGCONT)
	if handed := expect[link.Handed](old); handed.Given != 50 || handed.Left != 0 {
		t.Fatalf("handed over, later: %+v, want all 50", handed)
	}
	old.awaitExit(0)
	nobodyLost(t, g)
}

func TestConnectionThatIsHeldUpOnItsWayIsHandedOverAfterwards(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("talker", 0, 1, s).serve()
	g := talkTo(t, s, 1)
	stopped := cl.spawn("talker", 1, 1, s).serve()
	stopped.stop()
	arg, _ := json.Marshal(link.GiveRequest{Count: 1, To: []uint64{stopped.incarnation}})
	old.tell(link.Gather{ID: 1, What: "give", Arg: arg})
	next := cl.spawn("talker", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	await(t, "the connection to be the successor's", func() bool { return g.Report().Servers["0/2"] > 0 })
	old.awaitExit(0)
	nobodyLost(t, g)
}

func TestPromptDrainHandsOverBeforeItCloses(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("talker", 0, 2, s).serve()
	g := talkTo(t, s, 2*window)
	heir := cl.spawn("talker", 0, 1, s).serve()
	old.tell(link.Drain{Prompt: true, Grace: patience, Hand: true, To: heir.incarnation})
	expect[link.Draining](old)
	old.awaitExit(0)
	await(t, "all to be served by the heir", func() bool { return g.Report().Servers["0/1"] > 50 })
	nobodyLost(t, g)
}

func TestReloadKeepsMoreConnectionsThanOneWorkerAccepts(t *testing.T) {
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("talker with limits", 0, 1, s).serve()
	g := talkTo(t, s, 5)
	next := cl.spawn("talker with limits", 0, 2, s).serve()
	old.stop()
	more := talkTo(t, s, 5)
	old.signal(syscall.SIGCONT)
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 5 {
		t.Errorf("handed over: %+v, want all 5", handed)
	}
	old.awaitExit(0)
	nobodyLost(t, g)
	nobodyLost(t, more)
}

// ask asks a worker a question.
func (p *proc) ask(id uint64, what string, question any) {
	p.t.Helper()
	arg, err := json.Marshal(question)
	if err != nil {
		p.t.Fatal(err)
	}
	p.tell(link.Gather{ID: id, What: what, Arg: arg})
}

// listenTwice returns the sockets of a listener and of one whose connections
// do not move.
func listenTwice(t *testing.T) []activation.Socket {
	t.Helper()
	s, pinned := listen(t), listenOn(t, "tcp://127.0.0.1:0")
	pinned.Name = "pinned"
	return []activation.Socket{s, pinned}
}

// dialed is a connection that is closed with the test.
func dialed(t *testing.T, s activation.Socket) net.Conn {
	t.Helper()
	c, err := dialSocket(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestMoveThatACallbackHoldsUpIsCalledOff(t *testing.T) {
	s := listenTwice(t)
	cl := newCluster(t)
	old := cl.spawn("talker on the pool", 0, 1, s...).serve()
	c, other := dialed(t, s[0]), dialed(t, s[1])
	exchange(t, other, "here?\n", "0/1 here?\n")
	id, err := strconv.ParseUint(reply(t, c, "id"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	next := cl.spawn("talker", 1, 1, s...).serve()
	move := link.MoveRequest{Conn: id, To: next.incarnation}

	exchange(t, c, "block here?\n", "blocked\n")
	want := fmt.Sprintf("connection %d stays: %v", id, errHeldUp)
	old.ask(1, "move", move)
	if a := expect[link.Gathered](old); a.Error != want {
		t.Errorf("move: %q, want %q", a.Error, want)
	}
	var r link.GiveResult
	old.ask(2, "give", link.GiveRequest{Count: 10, To: []uint64{next.incarnation}})
	if err := json.Unmarshal(old.answer().text, &r); err != nil || r.Given != 0 || r.Thawed != 1 {
		t.Errorf("give: %+v, %v, want none of one", r, err)
	}
	// What was said to stay does not move later.
	exchange(t, other, "unblock\n", "done\n")
	exchange(t, c, "here?\n", "0/1 here?\n0/1 here?\n")
	old.ask(3, "move", move)
	old.answer()
	exchange(t, c, "here?\n", "1/1 here?\n")
}

func TestMoveThatIsAskedForOnTheWayIsMadeFromThere(t *testing.T) {
	room := uint64(0)
	for score(room, 1) < score(room, 0) {
		room++
	}
	for _, tt := range []struct{ name, wish string }{
		{"MoveTo", "to 1"},
		{"Bind", fmt.Sprintf("bind %d", room)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := listenTwice(t)
			cl := newCluster(t)
			const name = "dispatch hash-id on the pool"
			old := cl.spawn(name, 0, 1, s...).serve()
			c, other := dialed(t, s[0]), dialed(t, s[1])
			exchange(t, other, "here?\n", "0/1 here?\n")
			exchange(t, c, "block "+tt.wish+"\n", "blocked\n")
			cl.spawn(name, 1, 1, s...).serve()
			next := cl.spawn(name, 0, 2, s...).serve() // knows the other before it has anything
			old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
			expect[link.Draining](old)
			// The drain waits for the callback, in which the wish is uttered.
			exchange(t, other, "unblock\n", "done\n")
			if tt.name == "Bind" {
				exchange(t, c, "", "bound\n")
			}
			await(t, "the connection to be where it was asked to go", func() bool { return reply(t, c, "here?") == "1/1 here?" })
			other.Close()
			old.awaitExit(0)
		})
	}
}
