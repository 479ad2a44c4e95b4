package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/test/talk"
)

// Who comes to a failpoint.
const (
	aWorker     = "worker"
	aSupervisor = "supervisor"
)

// failpointTable are all failpoints: what brings a process there, which one,
// and how many of the connections that were at rest may end if it is killed
// there. If it only does not go on for a while, none may. Those with a message
// under way may end, each at once and cleanly, if a worker is killed.
var failpointTable = []struct {
	point  string
	by     func(*fragile) // what leads there
	who    string
	lost   int    // at most, of those at rest
	reason string // why any, or why it is not tried here
}{
	{point: "handoff.offer", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.send", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.sent", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.decide", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.left", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.tails", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.told", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.read", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.commit", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.half", reason: "connections in pairs are not made here; the model of pkg/handoff goes there"},
	{point: "handoff.committed", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.answer", by: (*fragile).handOver, who: aWorker},
	{point: "handoff.answered", by: (*fragile).handOver, who: aWorker},
	{
		point: "handoff.served", by: (*fragile).handOver, who: aWorker,
		lost: restingClients / 2, reason: "OnAdopt of those that are not Inline waits for the Pool, runs, or has returned and the loop has not noted it: who is in a callback may be what kills its worker",
	},
	{point: "exodus.ask", by: (*fragile).handOver, who: aWorker},
	{point: "exodus.frozen", by: (*fragile).handOver, who: aWorker},
	{point: "exodus.known", by: (*fragile).handOver, who: aWorker},
	{point: "move.handed", by: (*fragile).handOver, who: aWorker},
	{point: "take.rebuilt", by: (*fragile).handOver, who: aWorker},
	{point: "take.serve", by: (*fragile).handOver, who: aWorker},

	{point: "handoff.offer", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.send", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.sent", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.decide", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.left", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.told", by: (*fragile).killWorker, who: aSupervisor},
	{point: "handoff.read", by: (*fragile).killWorker, who: aWorker},
	{point: "handoff.committed", by: (*fragile).killWorker, who: aWorker},
	{point: "handoff.answered", by: (*fragile).killWorker, who: aWorker},
	{point: "take.serve", by: (*fragile).killWorker, who: aWorker},

	{point: "harvest.begin", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.forgotten", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.moved", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.reached", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.tear", by: (*fragile).killBusyWorker, who: aSupervisor},
	{point: "harvest.left", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.thaw", by: (*fragile).killWorkerBesideAStoppedOne, who: aSupervisor},
	{point: "harvest.collected", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.end", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.ended", by: (*fragile).killWorker, who: aSupervisor},
	{point: "harvest.done", by: (*fragile).killWorker, who: aSupervisor},

	{point: "adopt.taken", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.fenced", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.worker", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.inherit", by: (*fragile).killSupervisorInAHarvest, who: aSupervisor},
	{point: "adopt.rebuilt", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.greet", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.told", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.greeted", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "adopt.settled", by: (*fragile).killSupervisor, who: aSupervisor},
	{point: "obey.adopt", by: (*fragile).killSupervisor, who: aWorker},
	{point: "obey.retained", by: (*fragile).killSupervisor, who: aWorker},

	{point: "store.put", by: (*fragile).handOver, who: aSupervisor},
	{point: "store.kept", by: (*fragile).handOver, who: aSupervisor},
	{point: "store.remove", by: (*fragile).handOver, who: aSupervisor},
	{point: "store.removed", by: (*fragile).handOver, who: aSupervisor},
	{point: "saved.write", by: (*fragile).handOver, who: aSupervisor},
	{point: "saved.written", by: (*fragile).handOver, who: aSupervisor},
}

// Every name of a failpoint is written as a literal where the point is, or
// where pkg/handoff lists its points.
func TestEveryFailpointIsInTheTable(t *testing.T) {
	here := regexp.MustCompile(`failpoint\.Here\("([^"]*)"\)`)
	listed := regexp.MustCompile(`"(handoff\.[a-z]+)"`)
	source := make(map[string]bool)
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		for _, m := range here.FindAllSubmatch(text, -1) {
			if source[string(m[1])] {
				t.Errorf("failpoint %s is at two places", m[1])
			}
			source[string(m[1])] = true
		}
		if strings.HasSuffix(name, "pkg/handoff/endpoint.go") {
			for _, m := range listed.FindAllSubmatch(text, -1) {
				source[string(m[1])] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	table := make(map[string]bool)
	for _, row := range failpointTable {
		table[row.point] = true
		if !source[row.point] {
			t.Errorf("%s is in the table, and nowhere else", row.point)
		}
		if (row.by == nil || row.lost > 0) == (row.reason == "") {
			t.Errorf("%s: a reason is given if it is not tried, or if something may be lost, and only then", row.point)
		}
	}
	for point := range source {
		if !table[point] {
			t.Errorf("%s is not in the table", point)
		}
	}
	if len(source) < 40 {
		t.Errorf("%d failpoints found", len(source))
	}
}

// fragile is a service built with failpoints, and clients of it.
type fragile struct {
	*manager
	armed   string // the file that names the point
	clients []*talker
	busy    *talk.Group
	work    []func() // that goes on beside, and is waited for
	killed  bool     // a worker was, or has ended in a callback
}

const (
	restingClients = 60 // say nothing
	busyClients    = 20
)

func TestDeathAndStallAtEveryFailpointLeaveEveryConnectionServedOnceOrClosed(t *testing.T) {
	if os.Getenv("MAINSTAY_FAILPOINT_TESTS") != "1" {
		t.Skip("goes through all failpoints, for minutes; MAINSTAY_FAILPOINT_TESTS=1, as `make test` sets it, runs it")
	}
	program := withFailpoints(t)
	// Named before the service is started, which inherits it.
	armed := filepath.Join(t.TempDir(), "armed")
	t.Setenv(failpoint.Variable, armed)
	f := &fragile{manager: startManagerOf(t, 3, program), armed: armed}
	f.configure("reload.bake = \"50ms\"\n")
	// In the second half of the grace a drain closes one after the other: a
	// stall is not to last until then.
	text, err := os.ReadFile(f.dir + "/app.toml")
	if err == nil {
		err = os.WriteFile(f.dir+"/app.toml", bytes.Replace(text, []byte("\ngrace = \"5s\""), []byte("\ngrace = \"30s\""), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.client.Reload(t.Context(), control.ReloadRequest{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	f.busy = f.talk()
	t.Cleanup(func() {
		for _, c := range f.clients {
			c.conn.Close()
		}
	})
	failures := 0
	for _, action := range []string{"kill", "stall"} {
		for _, row := range failpointTable {
			if row.by == nil {
				continue
			}
			ok := t.Run(fmt.Sprintf("%s of the %s at %s", action, row.who, row.point), func(t *testing.T) {
				f.t = t
				lost := row.lost
				if action == "stall" {
					lost = 0
				}
				f.try(row.point, action, row.who, row.by, lost)
			})
			f.t = t
			if !ok {
				if failures++; failures == 3 {
					return // what follows would tell of these
				}
			}
		}
	}
}

// withFailpoints builds the tests' program with the tag.
func withFailpoints(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command, which builds the program with its failpoints")
	}
	file := filepath.Join(t.TempDir(), "failpoints.test")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "failpoint", "-o", file, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return file
}

func (f *fragile) talk() *talk.Group {
	f.t.Helper()
	to := fmt.Sprintf("127.0.0.1:%d", f.ports["mortal"])
	g, err := talk.Start(func() (net.Conn, error) { return net.Dial("tcp", to) }, talk.Options{
		Clients: busyClients, Pause: 100 * time.Millisecond, Limit: patience, Again: true,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { g.Stop() })
	return g
}

// How long a process does not go on: in a hand-off for longer than the giver
// waits for the taker; always for less than what is taken for hung.
const (
	stallInHandOff = "2200ms"
	stallElsewhere = "500ms"
)

// try goes to a point and looks at what has come of it.
func (f *fragile) try(point, action, who string, by func(*fragile), lost int) {
	t := f.t
	t.Helper()
	begun := time.Now()
	f.killed = action == "kill" && who == aWorker
	f.steady()
	for len(f.clients) < restingClients {
		conn, err := f.dial([]string{"mortal", "inline"}[len(f.clients)%2])
		if err != nil {
			t.Fatal(err)
		}
		c := &talker{conn, bufio.NewReader(conn)}
		if _, _, err := c.ask(fmt.Sprint("name n", len(f.clients))); err != nil {
			t.Fatal(err)
		}
		f.clients = append(f.clients, c)
	}
	words := point + " kill"
	if action == "stall" {
		words = point + " stall " + stallElsewhere
		if strings.HasPrefix(point, "handoff.") {
			words = point + " stall " + stallInHandOff
		}
	}
	if who == aSupervisor && !strings.HasPrefix(point, "adopt.") {
		words += fmt.Sprint(" ", f.supervisor())
	}
	f.arm(words)
	by(f)
	f.until("the point is reached", func() bool { _, err := os.Stat(f.armed); return errors.Is(err, os.ErrNotExist) })
	f.steady()
	for _, wait := range f.work {
		wait()
	}
	f.work = nil
	f.steady()
	f.wantStored()
	kept := f.clients[:0]
	gone := 0
	for i, c := range f.clients {
		if _, _, err := c.ask("who"); err != nil {
			gone++
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("client %d was forgotten: %v", i, err)
			}
			c.conn.Close()
			continue
		}
		kept = append(kept, c)
	}
	f.clients = kept
	if gone > lost {
		t.Errorf("%d connections at rest have ended, want at most %d", gone, lost)
	}
	r := f.busy.Report()
	if r.Wrong+r.Refused > 0 {
		t.Errorf("busy clients: %v", r)
	}
	for _, l := range r.Losses {
		if l.At.After(begun) && (!l.Busy && lost == 0 || !f.killed || errors.Is(l.Err, os.ErrDeadlineExceeded)) {
			t.Errorf("busy client: %v", l)
		}
	}
	f.everybodyIsServedOnce()
}

// arm names the point, in one step.
func (f *fragile) arm(words string) {
	f.t.Helper()
	if err := errors.Join(os.WriteFile(f.armed+".new", []byte(words), 0o600), os.Rename(f.armed+".new", f.armed)); err != nil {
		f.t.Fatal(err)
	}
}

// supervisor is the pid of the one that runs, or did.
func (f *fragile) supervisor() int { return f.manager.run.Process.Pid }

// revive starts another supervisor if the one there was is dead.
func (f *fragile) revive() {
	f.t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, f.supervisor(), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || info.Signo == 0 {
		return
	}
	_, _ = f.manager.run.Process.Wait() // however it has ended
	// Its last words count: systemd reads what it is told before it looks who
	// has died.
	for end := time.Now().Add(patience); time.Now().Before(end); {
		p := []unix.PollFd{{Fd: int32(f.socket), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 0); n == 0 && err == nil {
			break
		}
	}
	f.start()
}

// until waits for something, and starts another supervisor whenever there is
// none.
func (f *fragile) until(what string, cond func() bool) {
	f.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * patience); ; <-tick.C {
		f.revive()
		if cond() {
			return
		}
		if time.Now().After(end) {
			st, err := f.status()
			f.t.Fatalf("%s: not within %v; last: %+v, %v", what, 2*patience, st, err)
		}
	}
}

// steady waits until all is as it was.
func (f *fragile) steady() (st control.Status) {
	f.t.Helper()
	f.until("all workers serve, and nobody else", func() bool {
		var err error
		if st, err = f.status(); err != nil || st.PID != f.supervisor() || st.State != control.StateServing || len(st.Pools[0].Workers) != f.workers {
			return false
		}
		family := 1 // the supervisor's keeper
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || w.Protection != "protected" {
				return false
			}
			family += 2
		}
		return len(f.family()) == family
	})
	return st
}

// everybodyIsServedOnce wants each connection in one worker, and none besides.
func (f *fragile) everybodyIsServedOnce() {
	f.t.Helper()
	want := make(map[string]bool)
	for _, c := range f.clients {
		want[c.conn.LocalAddr().String()] = true
	}
	var wrong string
	f.until("each connection is served once", func() bool {
		ctx, cancel := context.WithTimeout(f.t.Context(), patience)
		defer cancel()
		list, err := f.client.Connections(ctx, control.ConnectionsRequest{Limit: 1000})
		if err != nil {
			return false
		}
		seen := make(map[string]int)
		for _, c := range list.Connections {
			seen[c.Peer]++
		}
		wrong = ""
		for peer, n := range seen {
			if n != 1 {
				wrong += fmt.Sprintf("%s is served by %d; ", peer, n)
			}
		}
		for peer := range want {
			if seen[peer] == 0 {
				wrong += fmt.Sprintf("%s is served by nobody; ", peer)
			}
		}
		// One that talks may be between two connections.
		return wrong == "" && len(list.Connections) <= len(want)+busyClients
	})
	if wrong != "" {
		f.t.Error(wrong)
	}
}

// beside has something done that may fail or take long, because a process that
// has a part in it is at a failpoint.
func (f *fragile) beside(do func(ctx context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	f.work = append(f.work, func() { <-done; cancel() })
}

// fullest is the worker with the most connections.
func (f *fragile) fullest() control.Worker {
	return slices.MaxFunc(f.steady().Pools[0].Workers, func(a, b control.Worker) int { return cmp.Compare(a.Connections, b.Connections) })
}

func (f *fragile) handOver() {
	slot := f.fullest().Slot
	f.beside(func(ctx context.Context) {
		_, _ = f.client.Recycle(ctx, control.SlotRequest{Slot: slot}) // its supervisor may die
	})
}

func (f *fragile) signal(pid int, sig unix.Signal) {
	f.t.Helper()
	f.killed = f.killed || sig == unix.SIGKILL && pid != f.supervisor()
	if err := unix.Kill(pid, sig); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fragile) killWorker() { f.signal(f.fullest().PID, unix.SIGKILL) }

// killBusyWorker has one end in a callback.
func (f *fragile) killBusyWorker() {
	f.killed = true
	conn, err := f.dial("mortal")
	if err == nil {
		_, err = conn.Write([]byte("exit\n"))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	c := &talker{conn, bufio.NewReader(conn)}
	f.work = append(f.work, func() {
		if err := c.ends(); err != nil {
			f.t.Errorf("the connection in whose callback a worker has ended: %v", err)
		}
		conn.Close()
	})
}

// killWorkerBesideAStoppedOne has offers made that are not answered in time.
func (f *fragile) killWorkerBesideAStoppedOne() {
	victim := f.fullest().PID
	var others []int
	for _, pid := range pidsOf(f.steady()) {
		if pid != victim {
			others = append(others, pid)
			f.signal(pid, unix.SIGSTOP)
		}
	}
	f.signal(victim, unix.SIGKILL)
	f.work = append(f.work, func() {
		for _, pid := range others {
			_ = unix.Kill(pid, unix.SIGCONT) // it may have been killed for it
		}
	})
}

func (f *fragile) killSupervisor() {
	f.signal(f.supervisor(), unix.SIGKILL)
}

// killSupervisorInAHarvest kills it at another point first.
func (f *fragile) killSupervisorInAHarvest() {
	text, err := os.ReadFile(f.armed)
	if err != nil {
		f.t.Fatal(err)
	}
	f.arm("harvest.reached kill") // when something is in its hands
	f.killWorker()
	f.t.Helper()
	for end := time.Now().Add(2 * patience); ; {
		if _, err := os.Stat(f.armed); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			f.t.Fatal("the harvest does not come to its end")
		}
	}
	f.arm(string(text)) // there is no supervisor now: until starts the next
}
