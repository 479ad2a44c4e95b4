package supervisor

import (
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// field is what a harvest is tried on: the connections of a dead worker,
// incarnation 7, in a process that stands for its keeper.
type field struct {
	t       *testing.T
	h       *harvester
	table   *rows.Table
	alloc   *rows.Allocator
	files   []*os.File // of the connections
	clients []net.Conn
	ids     []rows.ID
}

const deadNumber = 7

func newField(t *testing.T) *field {
	t.Helper()
	if err := keeper.Probe(); err != nil {
		t.Skipf("this system refuses what a harvest needs: %v", err)
	}
	table, err := rows.Create(512)
	if err != nil {
		t.Fatal(err)
	}
	f := &field{t: t, table: table, alloc: table.Allocator(deadNumber)}
	if f.h, err = newHarvester(rows.MaxIncarnation, table, []string{"web"}, nil, monotonic, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.h.close()
		for _, c := range f.clients {
			c.Close()
		}
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// atRest, as pkg/conn has it.
const atRest = 1

// add makes a connection to which the worker has done what happens says, and
// of which the row says that it has read and written so many bytes.
func (f *field) add(listener string, read, written uint64, bits uint64, happens func(client net.Conn, fd int)) net.Conn {
	f.t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	served, err := ln.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	defer served.Close()
	file, err := served.(*net.TCPConn).File()
	if err != nil {
		f.t.Fatal(err)
	}
	fd := int(file.Fd())
	happens(client, fd)
	id, row, err := f.alloc.Take()
	if err != nil {
		f.t.Fatal(err)
	}
	cookie, err := keeper.Cookie(fd)
	if err != nil {
		f.t.Fatal(err)
	}
	row.Cookie.Store(cookie)
	row.What.Store(1) // the kernel counts
	row.Where.Store(uint64(conn.ListenerKey(listener))<<32 | uint64(3+len(f.files)))
	row.Publish(read, written, bits)
	f.files, f.clients, f.ids = append(f.files, file), append(f.clients, client), append(f.ids, id)
	return client
}

func nothing(net.Conn, int) {}

// answers has the worker read four bytes and answer with two.
func (f *field) answers(client net.Conn, fd int) {
	f.receives(client, fd)
	if _, err := unix.Write(fd, []byte("ok")); err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 2)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *field) receives(client net.Conn, fd int) {
	if _, err := io.WriteString(client, "work"); err != nil {
		f.t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		f.t.Fatal(err)
	}
	if _, err := unix.Read(fd, make([]byte, 4)); err != nil {
		f.t.Fatal(err)
	}
}

// dies starts the process that has the connections and nothing else has, and
// the harvest.
func (f *field) dies(patience time.Duration) harvestResult {
	f.t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = f.files
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	for _, file := range f.files {
		file.Close()
	}
	reaped, done := make(chan struct{}), make(chan harvestResult, 1)
	f.h.start(&harvest{
		number: deadNumber, keeper: &kept{pid: cmd.Process.Pid, pidfd: pidfd}, connections: true, patience: patience,
		reaped: func(int) { close(reaped) }, done: func(r harvestResult) { done <- r },
	})
	select {
	case <-reaped:
	case <-time.After(patienceForHarvest):
		f.t.Fatal("the keeper is not reaped")
	}
	if err := cmd.Wait(); !errors.Is(err, unix.ECHILD) {
		f.t.Errorf("wait for the keeper: %v, want ECHILD: it was reaped", err)
	}
	select {
	case r := <-done:
		f.table.Owned(rows.MaxIncarnation, func(id rows.ID, _ *rows.Row) { f.t.Errorf("row %d is left to the harvester", id) })
		f.table.Owned(deadNumber, func(id rows.ID, _ *rows.Row) { f.t.Errorf("row %d is left to the dead", id) })
		return r
	case <-time.After(patienceForHarvest):
		f.t.Fatal("the harvest has no end")
		panic("unreachable")
	}
}

const patienceForHarvest = 30 * time.Second

// heir is a worker that takes what it is offered.
type heir struct {
	f      *field
	number uint64
	seat   *scoreboard.Seat
	inbox  int // what the harvester is given
	refuse atomic.Bool
	taken  atomic.Int64
	work   chan func()
	ended  chan struct{}
}

func (f *field) heir(number uint64, state link.State, connections int64) *heir {
	f.t.Helper()
	receiving, sending, err := handoff.Pair()
	if err != nil {
		f.t.Fatal(err)
	}
	w := &heir{f: f, number: number, seat: scoreboard.NewSeat(), inbox: sending, work: make(chan func(), 100), ended: make(chan struct{})}
	w.seat.Incarnation.Store(number)
	w.seat.State.Store(uint32(state))
	w.seat.Connections.Store(connections)
	ends, err := handoff.New(handoff.Options{
		Self: number, Table: f.table, Inbox: receiving, Adopt: w.adopt,
		Join: func(handoff.Incoming, handoff.Incoming) {}, Free: f.table.Allocator(number).Free,
		Trouble: func(error) {}, Now: monotonic,
		After: func(d time.Duration, g func()) func() {
			t := time.AfterFunc(d, func() {
				select {
				case w.work <- g:
				case <-w.ended:
				}
			})
			return func() { t.Stop() }
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	back, err := unix.FcntlInt(uintptr(f.h.inbox), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	ends.Peer(f.h.number, -1, back)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = ends.Readable()
			case g := <-w.work:
				g()
			case <-w.ended:
				ends.Close()
				return
			}
		}
	}()
	f.t.Cleanup(func() { close(w.ended); <-stopped })
	f.h.met(link.Peer{Incarnation: number, Pool: "worker", Serving: true}, w.seat, sending)
	return w
}

func (w *heir) adopt(o handoff.Offer) (handoff.Incoming, error) {
	if conn.Reason(o.Why) != conn.Crash || len(o.Body) == 0 {
		w.f.t.Errorf("offered for %v, with %d bytes", conn.Reason(o.Why), len(o.Body))
	}
	if w.refuse.Load() {
		return nil, handoff.Full
	}
	return &inherited{w: w, o: o}, nil
}

// inherited greets the client.
type inherited struct {
	w *heir
	o handoff.Offer
}

func (i *inherited) Serve(bool) {
	i.w.taken.Add(1)
	i.w.seat.Connections.Add(1)
	if _, err := unix.Write(i.o.FD, []byte{byte(i.w.number)}); err != nil {
		i.w.f.t.Error(err)
	}
	unix.Close(i.o.FD)
	i.w.f.table.Allocator(i.w.number).Free(i.o.ID)
}
func (i *inherited) Tail([]byte) error { return nil }
func (i *inherited) Lost()             {}
func (i *inherited) Drop()             { unix.Close(i.o.FD) }

// greeted returns by whom the client is served, 0 if its connection has ended.
func greetedBy(t *testing.T, client net.Conn) byte {
	t.Helper()
	client.SetReadDeadline(time.Now().Add(patienceForHarvest))
	b := make([]byte, 1)
	_, err := client.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client reads %v, want an answer or the end", err)
	}
	return b[0]
}

func TestHarvestKeepsWhatIsAtRest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		add   func(f *field) net.Conn
		kept  bool
		ended bool
		torn  string
	}{
		{name: "without a byte", kept: true, add: func(f *field) net.Conn { return f.add("web", 0, 0, atRest, nothing) }},
		{name: "answered", kept: true, add: func(f *field) net.Conn { return f.add("web", 4, 2, atRest, f.answers) }},
		{name: "with input that nobody has read", kept: true, add: func(f *field) net.Conn {
			return f.add("web", 0, 0, atRest, func(client net.Conn, _ int) { io.WriteString(client, "work") })
		}},
		{name: "half-closed by the peer", kept: true, add: func(f *field) net.Conn {
			return f.add("web", 4, 2, atRest, func(client net.Conn, fd int) {
				f.answers(client, fd)
				client.(*net.TCPConn).CloseWrite()
			})
		}},
		{name: "with its descriptor elsewhere", kept: true, add: func(f *field) net.Conn {
			c := f.add("web", 0, 0, atRest, nothing)
			row := f.table.Row(f.ids[0])
			row.Where.Store(row.Where.Load() + 500)
			return c
		}},
		{name: "with another's descriptor number", kept: true, add: func(f *field) net.Conn {
			c := f.add("web", 0, 0, atRest, nothing)
			row := f.table.Row(f.ids[0])
			row.Where.Store(row.Where.Load() - 3) // /dev/null
			return c
		}},
		{name: "read and not answered", torn: "reading", add: func(f *field) net.Conn { return f.add("web", 0, 0, atRest, f.receives) }},
		{name: "about to be answered", torn: "writing", add: func(f *field) net.Conn { return f.add("web", 4, 2, atRest, f.receives) }},
		{name: "in a callback", torn: "busy", add: func(f *field) net.Conn { return f.add("web", 4, 2, 0, f.answers) }},
		{name: "of an unknown listener", torn: "listener", add: func(f *field) net.Conn { return f.add("other", 4, 2, atRest, f.answers) }},
		{name: "being closed", ended: true, add: func(f *field) net.Conn {
			return f.add("web", 4, 2, atRest, func(client net.Conn, fd int) {
				f.answers(client, fd)
				unix.Shutdown(fd, unix.SHUT_WR)
			})
		}},
		{name: "of which only the row is left", torn: "unreachable", add: func(f *field) net.Conn {
			c := f.add("web", 0, 0, atRest, nothing)
			f.table.Row(f.ids[0]).Cookie.Store(1)
			return c
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newField(t)
			client := tt.add(f)
			f.heir(9, link.StateServing, 0)
			r := f.dies(patienceForHarvest)
			by := greetedBy(t, client)
			want := harvestResult{Torn: map[string]int{}}
			switch {
			case tt.kept:
				want.Kept = 1
			case tt.ended:
				want.Ended = 1
			default:
				want.Torn[tt.torn] = 1
			}
			if r.Kept != want.Kept || r.Ended != want.Ended || !maps.Equal(r.Torn, want.Torn) {
				t.Errorf("%+v, want %+v", r, want)
			}
			if tt.kept != (by == 9) {
				t.Errorf("the client is served by %d", by)
			}
		})
	}
}

func TestHarvestSpreadsByLoad(t *testing.T) {
	f := newField(t)
	for range 60 {
		f.add("web", 0, 0, atRest, nothing)
	}
	few, many, leaving := f.heir(9, link.StateServing, 10), f.heir(10, link.StateServing, 40), f.heir(11, link.StateDraining, 0)
	r := f.dies(patienceForHarvest)
	for end := time.Now().Add(patienceForHarvest); few.taken.Load()+many.taken.Load() < 60 && time.Now().Before(end); {
		runtime.Gosched() // they answer before they serve
	}
	if r.Kept != 60 || few.taken.Load() != 45 || many.taken.Load() != 15 || leaving.taken.Load() != 0 {
		t.Errorf("%+v: %d to the one that had 10, %d to the one that had 40, %d to the one that leaves; want 45, 15 and 0",
			r, few.taken.Load(), many.taken.Load(), leaving.taken.Load())
	}
}

// TestLookingAheadGivesBackWhatItHolds does what a harvest does that can have no
// more descriptors: what was looked at already must not be what is in the way.
func TestLookingAheadGivesBackWhatItHolds(t *testing.T) {
	f := newField(t)
	const n = 3*handoff.BatchConnections + 1
	for range n {
		f.add("web", 0, 0, atRest, nothing)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(self)
	var all []look
	cookies := map[uint64]bool{}
	for i, id := range f.ids {
		row := f.table.Row(id)
		row.Where.Store(uint64(f.files[i].Fd()))
		cookies[row.Cookie.Load()] = true
		all = append(all, look{id: id, row: row, fd: -1})
	}
	copies := func() (found int) {
		for fd := range 16 * n {
			if cookie, err := keeper.Cookie(fd); err == nil && cookies[cookie] {
				found++
			}
		}
		return found
	}
	a := f.h.lookAhead(&harvest{keeper: &kept{pidfd: self}}, all)
	first := a.next()
	if first.fd < 0 || !first.judged || first.verdict != keeper.Boundary || first.err != nil {
		t.Errorf("the first: %+v, want one at a boundary", first)
	}
	if !a.end() || a.end() {
		t.Error("it says of nothing, or twice, that it was given back")
	}
	for range n - 1 {
		if l := a.next(); l.fd >= 0 || l.judged {
			t.Fatalf("after the end: %+v, want one that was not found", l)
		}
	}
	if got := copies(); got != n+1 { // the connections, and the one that next has returned
		t.Errorf("%d descriptors, want %d", got, n+1)
	}
	unix.Close(first.fd)
	for _, file := range f.files {
		file.Close()
	}
}

func TestHarvestWaitsForAWorker(t *testing.T) {
	f := newField(t)
	client := f.add("web", 0, 0, atRest, nothing)
	w := f.heir(9, link.StateStarting, 0)
	var watching sync.WaitGroup
	watching.Go(func() {
		// It serves once the harvester has the connection.
		for f.table.Row(f.ids[0]).Owner().Incarnation != rows.MaxIncarnation {
			runtime.Gosched()
		}
		w.seat.State.Store(uint32(link.StateServing))
	})
	if r := f.dies(patienceForHarvest); r.Kept != 1 || greetedBy(t, client) != 9 {
		t.Errorf("%+v", r)
	}
	watching.Wait()
}

func TestHarvestGivesUp(t *testing.T) {
	t.Run("if no worker comes", func(t *testing.T) {
		f := newField(t)
		client := f.add("web", 0, 0, atRest, nothing)
		if r := f.dies(50 * time.Millisecond); r.Torn[tornUnserved] != 1 || greetedBy(t, client) != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("if all refuse", func(t *testing.T) {
		f := newField(t)
		client := f.add("web", 0, 0, atRest, nothing)
		f.heir(9, link.StateServing, 0).refuse.Store(true)
		if r := f.dies(patienceForHarvest); r.Torn[tornRefused] != 1 || greetedBy(t, client) != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestHarvestTakesBackWhatWasOffered(t *testing.T) {
	f := newField(t)
	offered := f.add("web", 0, 0, atRest, nothing)
	f.add("web", 0, 0, atRest, nothing)
	w := f.heir(9, link.StateServing, 0)
	if !f.table.Row(f.ids[0]).Offer(f.ids[0], deadNumber, 9) {
		t.Fatal("not offered")
	}
	if row := f.table.Row(f.ids[1]); !row.Offer(f.ids[1], deadNumber, 9) || !row.Commit(f.ids[1], deadNumber, 9) {
		t.Fatal("not taken")
	}
	if r := f.dies(patienceForHarvest); r.Kept != 1 || greetedBy(t, offered) != 9 || w.taken.Load() != 1 {
		t.Errorf("%+v", r)
	}
	// This one was the heir's before the death.
	if f.table.Row(f.ids[1]) == nil {
		t.Error("what another has committed itself to was harvested")
	}
}
