package worker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	appmetrics "github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

func dial(t *testing.T, s activation.Socket) net.Conn {
	t.Helper()
	address := strings.TrimPrefix(s.Address, s.Network+"://")
	dialer := net.Dialer{}
	if s.Network == "unixgram" {
		dialer.LocalAddr = &net.UnixAddr{Name: t.TempDir() + "/c", Net: s.Network} // what is answered has a path
	}
	c, err := dialer.Dial(s.Network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func ask(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

// awaitEOF waits for the other side's end and ends this one.
func awaitEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %d bytes, %v, want the end", n, err)
	}
	c.Close()
}

func TestWorkerAcceptsWhenItIsToldTo(t *testing.T) {
	s := listen(t)
	p := spawn(t, "", 0, s)
	c := dial(t, s)
	expect[link.Ready](p)
	p.awaitState(link.StateReady)
	await(t, "heartbeat", func() bool { return p.seat.Heartbeat.Load() > 0 })
	if n := p.seat.Accepts.Load(); n != 0 {
		t.Fatalf("%d connections accepted before Accept", n)
	}
	p.tell(link.Accept{})
	ask(t, c, "hello")
	await(t, "counters", func() bool {
		return p.seat.Accepts.Load() == 1 && p.seat.Connections.Load() == 1 && p.seat.Messages.Load() == 1
	})
}

func TestSeatTellsHowLongThePoolsCallbacksRun(t *testing.T) {
	s := listen(t)
	p := serving(t, "pool", 0, s)
	good, hung := dial(t, s), dial(t, s)
	ask(t, good, "before")
	await(t, "none runs", func() bool { return p.seat.PoolRunning.Load() == 0 && p.seat.PoolOldest.Load() == 0 })
	before := p.seat.Heartbeat.Load()
	io.WriteString(hung, "hang")
	await(t, "it hangs", func() bool { return p.seat.PoolRunning.Load() == 1 })
	since := p.seat.PoolOldest.Load()
	if since < before {
		t.Errorf("since %d, want not before %d", since, before)
	}
	ask(t, good, "others are served")
	await(t, "the loop lives", func() bool { return p.seat.Heartbeat.Load() > since+int64(300*time.Millisecond) })
	if got := p.seat.PoolOldest.Load(); got != since {
		t.Errorf("since %d, then since %d", since, got)
	}
}

func TestSeatTellsHowLongAHandlerOfNetHTTPHasNotAnswered(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	oldest := func() int64 { return p.seat.PoolOldest.Load() }
	c := dial(t, s)
	fmt.Fprint(c, "POST /late HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
	await(t, "it waits for the rest of the body", func() bool { return oldest() > 0 })
	since := oldest()
	fmt.Fprint(c, "1\r\nb\r\n")
	await(t, "its time starts anew", func() bool { return oldest() > since })
	fmt.Fprint(c, lastChunk)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); string(body) != "ab" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
	await(t, "it has answered", func() bool { return oldest() == 0 })
	// One that has begun to answer may take its time.
	streaming := dial(t, s)
	request(t, streaming, "/", "1\r\na\r\n")
	at := p.seat.Heartbeat.Load()
	await(t, "the seat was stamped since", func() bool { return p.seat.Heartbeat.Load() > at+int64(2*scoreboard.PoolAge) })
	if got := oldest(); got != 0 {
		t.Errorf("a handler that answers is judged since %d", got)
	}
}

func TestWorkingCallbackIsNotOld(t *testing.T) {
	s := listen(t)
	p := serving(t, "pool", 0, s)
	c, other := dial(t, s), dial(t, s)
	io.WriteString(c, "work") // for ten seconds
	moved, last := 0, int64(0)
	await(t, "its time starts anew", func() bool {
		ask(t, other, "turn") // so that the loop turns
		if since := p.seat.PoolOldest.Load(); since != last {
			moved, last = moved+1, since
		}
		return moved >= 3
	})
}

func TestSeatHasTheRuntimesFigures(t *testing.T) {
	p := serving(t, "", 0)
	await(t, "figures", func() bool {
		return p.seat.Goroutines.Load() > 3 && p.seat.HeapBytes.Load() > 100_000 && p.seat.SysBytes.Load() > p.seat.HeapBytes.Load()
	})
}

func TestEverySampleIsOneOfTheRuntimes(t *testing.T) {
	w := &Worker{seat: scoreboard.NewSeat()}
	runtime.GC()
	w.stampRuntime()
	for i, s := range w.evidence.samples {
		if s.Value.Kind() == metrics.KindBad {
			t.Errorf("the runtime has no %s", samples[i])
		}
	}
	if cycles, pause := w.seat.GCCycles.Load(), w.seat.GCPauseNS.Load(); cycles == 0 || pause == 0 || pause > uint64(time.Minute) {
		t.Errorf("%d collections and %d ns of pauses after a collection", cycles, pause)
	}
}

func TestMemoryLimitIsBelowTheSoftOne(t *testing.T) {
	for _, tt := range []struct{ env, want string }{
		{"", fmt.Sprintf("limit %d procs 2\n", int64(1<<30)/10*9)},
		{"512MiB", fmt.Sprintf("limit %d procs 2\n", 512<<20)},
	} {
		t.Run("GOMEMLIMIT="+tt.env, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", tt.env)
			t.Setenv("GOMAXPROCS", "")
			serving(t, "memory", 0).wrote(tt.want)
		})
	}
}

func TestWorkerIsNamedInItsProcess(t *testing.T) {
	p := spawn(t, "", 3)
	expect[link.Ready](p)
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.cmd.Process.Pid))
	if err != nil || string(comm) != "test/3\n" {
		t.Fatalf("comm is %q, %v, want test/3", comm, err)
	}
}

func TestFailedStartIsReportedWithItsReason(t *testing.T) {
	for _, tt := range []struct{ helper, want string }{
		{"fails", "no database"},
		{"panics", "OnWorkerStart panicked: no database"},
	} {
		t.Run(tt.helper, func(t *testing.T) {
			p := spawn(t, tt.helper, 0)
			if f := expect[link.Failed](p); !strings.Contains(f.Reason, tt.want) {
				t.Errorf("reason is %q, want %q in it", f.Reason, tt.want)
			}
			p.awaitExit(1)
		})
	}
}

func TestSocketWithoutListenerIsAFailedStart(t *testing.T) {
	s := listen(t)
	s.Name = "other"
	w := &Worker{conf: Config{Metrics: appmetrics.NewRegistry(), Listeners: []Listener{{Name: "main"}}}}
	in := &link.Inherited{Sockets: []int{s.FD}}
	in.Identity.Listeners = []link.Listener{{Name: "other"}}
	if err := w.makeListeners(in); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Fatalf("got %v, want an error that names the listener", err)
	}
}

func TestOutputLeadsToTheServiceOnceTheWorkerIsReady(t *testing.T) {
	p := serving(t, "prints", 0)
	await(t, "first output", func() bool { return strings.Contains(p.output.String(), "before ready") })
	p.tell(link.Drain{Grace: time.Second})
	p.wrote("after ready")
	p.awaitExit(0)
	if strings.Contains(p.output.String(), "after ready") {
		t.Error("the pipe got output of a worker that is ready")
	}
}

func TestCallbacksComeInOrder(t *testing.T) {
	for _, helper := range []string{"inline", "pool"} {
		t.Run(helper, func(t *testing.T) {
			s := listen(t)
			p := serving(t, helper, 0, s)
			c := dial(t, s)
			ask(t, c, "hello")
			c.Close()
			p.wrote("OnConnect\nOnClose: conn: closed by the peer\n")
		})
	}
}

func TestPanicCostsOneConnection(t *testing.T) {
	for _, helper := range []string{"inline", "pool"} {
		t.Run(helper, func(t *testing.T) {
			s := listen(t)
			p := serving(t, helper, 0, s)
			bad, good := dial(t, s), dial(t, s)
			ask(t, good, "before")
			io.WriteString(bad, "panic")
			awaitEOF(t, bad)
			ask(t, good, "after")
			await(t, "the count", func() bool { return p.seat.Panics.Load() == 1 })
			p.wrote("callback panicked")
		})
	}
}

func TestPatientDrainServesOnUntilThePeerLeaves(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	p.tell(link.Drain{Grace: time.Hour})
	if d := expect[link.Draining](p); d.Connections != 1 {
		t.Errorf("draining with %d connections, want 1", d.Connections)
	}
	late := dial(t, s)
	ask(t, c, "after")
	c.Close()
	p.awaitExit(0)
	p.wrote("OnWorkerDrain\n")
	p.wrote("OnWorkerStop\n")
	if n := p.seat.Accepts.Load(); n != 1 {
		t.Errorf("%d connections accepted, want 1", n)
	}
	// Whoever comes next finds the late connection.
	serving(t, "", 1, s)
	ask(t, late, "late")
}

func TestPromptDrainClosesIdleConnections(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	awaitEOF(t, c)
	p.awaitExit(0)
	p.wrote("OnClose: conn: drained")
}

func TestSecondDrainReplacesTheTerms(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	p.tell(link.Drain{Grace: time.Hour})
	expect[link.Draining](p)
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	awaitEOF(t, c)
	p.awaitExit(0)
}

func TestBackgroundEndsAfterTheConnectionsAndBeforeStop(t *testing.T) {
	s := listen(t)
	p := serving(t, "background", 0, s)
	p.wrote("background function panicked: in the background")
	c := dial(t, s)
	ask(t, c, "before")
	p.tell(link.Drain{Grace: time.Hour})
	expect[link.Draining](p)
	p.wrote("OnWorkerDrain\n")
	ask(t, c, "after")
	c.Close()
	p.awaitExit(0)
	p.wrote("background ends, connections: 0 more: false\nOnWorkerStop\n")
}

func TestBackgroundThatHangsEndsWithTheGrace(t *testing.T) {
	p := serving(t, "background hangs", 0)
	p.tell(link.Drain{Grace: 50 * time.Millisecond})
	expect[link.Draining](p)
	p.wrote("OnWorkerStop\n")
	p.wrote("worker gives up what still runs")
	p.awaitExit(1)
}

func TestStopEndsTheGrace(t *testing.T) {
	s := listen(t)
	p := serving(t, "drain waits", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	p.tell(link.Drain{Grace: time.Hour})
	expect[link.Draining](p)
	p.tell(link.Stop{})
	awaitEOF(t, c)
	p.wrote("OnWorkerDrain: context canceled")
	p.awaitExit(0)
}

func TestHungHandlerDoesNotKeepTheWorker(t *testing.T) {
	for _, helper := range []string{"inline", "pool"} {
		t.Run(helper, func(t *testing.T) {
			s := listen(t)
			p := serving(t, helper, 0, s)
			c := dial(t, s)
			ask(t, c, "before")
			io.WriteString(c, "hang")
			await(t, "the message", func() bool { return p.seat.Messages.Load() >= 2 || helper == "inline" && hung(p) })
			p.tell(link.Drain{Prompt: true, Grace: 50 * time.Millisecond})
			p.awaitExit(1)
			p.wrote("worker gives up what still runs")
			p.wrote(ErrOverdue.Error())
			if helper == "pool" {
				p.wrote("OnWorkerStop\n")
			}
		})
	}
}

func hung(p *proc) bool {
	_, _, _, ok := p.seat.Handler()
	return ok
}

func TestFirstSIGTERMDrainsAndTheSecondStops(t *testing.T) {
	s := listen(t)
	p := serving(t, "drain waits", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2} {
		p.signal(sig)
	}
	ask(t, c, "still there")
	p.signal(unix.SIGTERM)
	expect[link.Draining](p)
	awaitEOF(t, c)
	p.signal(unix.SIGTERM)
	p.awaitExit(0)
}

func TestSIGTERMEndsAStartThatWaits(t *testing.T) {
	p := spawn(t, "slow start", 0)
	p.signal(unix.SIGTERM)
	expect[link.Draining](p)
	p.awaitExit(0)
}

func TestOrphanDrainsAndLeaves(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 0, s) // with a grace of 300 ms
	c := dial(t, s)
	ask(t, c, "before")
	p.channel.Close()
	awaitEOF(t, c)
	p.awaitExit(0)
	p.wrote("supervisor is gone")
}

func TestWorkerWithoutASupervisorServesOnUntilItsTimeIsOver(t *testing.T) {
	s := listen(t)
	p := serving(t, "orphan", 0, s) // for 500 ms
	c := dial(t, s)
	ask(t, c, "before")
	beat := func() {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		p.cluster.board.SupervisorBeat().Store(now.Nano())
	}
	// The control socket has no end, for somebody keeps it.
	for began := time.Now(); time.Since(began) < time.Second; {
		beat()
		ask(t, c, "there is a supervisor")
	}
	beat()
	awaitEOF(t, c)
	p.awaitExit(0)
	p.wrote("supervisor is gone")
}

func TestWorkerObeysTheSupervisorThatAdoptsItAndNoOther(t *testing.T) {
	s := listen(t)
	p := serving(t, "", 0, s)
	c := dial(t, s)
	ask(t, c, "before")
	fd, err := p.channel.Dup()
	if err != nil {
		t.Fatal(err)
	}
	next, err := link.InheritChannel(fd, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Send(link.Adopt{Living: []uint64{p.incarnation}}); err != nil {
		t.Fatal(err)
	}
	if m := expect[link.Hello](p); m.Incarnation != p.incarnation || m.Contract != link.Contract {
		t.Errorf("it says %+v", m)
	}
	ask(t, c, "after")
	if err := next.Send(link.Drain{Prompt: true, Grace: time.Second}); err != nil {
		t.Fatal(err)
	}
	expect[link.Draining](p)
	awaitEOF(t, c)
	p.awaitExit(0)
}

func TestTimersRunOnTheLoop(t *testing.T) {
	p := serving(t, "timers", 0)
	p.wrote("tick\ntick\n")
	p.wrote("timer panicked: in a timer")
	await(t, "the gauge", func() bool { return p.seat.Timers.Load() == 1 })
	if strings.Contains(p.stderr.String(), "never") {
		t.Error("a stopped timer was called")
	}
}

func TestWorkersShareConnections(t *testing.T) {
	s := listen(t)
	a, b := serving(t, "", 0, s), serving(t, "", 1, s)
	const total = 60
	for range total {
		ask(t, dial(t, s), "x")
	}
	fromA, fromB := a.seat.Accepts.Load(), b.seat.Accepts.Load()
	if fromA+fromB != total || fromA < total/6 || fromB < total/6 {
		t.Errorf("accepted %d and %d of %d", fromA, fromB, total)
	}
}

func TestRearmFindsAConnectionThatAStoppedWorkerWasWokenFor(t *testing.T) {
	s := listen(t)
	a, b := serving(t, "", 0, s), serving(t, "", 1, s)
	a.signal(unix.SIGSTOP)
	// Not before all of its threads have stopped.
	if err := unix.Waitid(unix.P_PID, a.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		c := dial(t, s)
		b.tell(link.Rearm{})
		ask(t, c, "x")
	}
	if n := b.seat.Accepts.Load(); n != 4 {
		t.Errorf("%d connections accepted, want 4", n)
	}
	a.signal(unix.SIGCONT)
}

func TestWorkerOutOfDescriptorsServesOnAndAcceptsLater(t *testing.T) {
	s := listen(t)
	p := serving(t, "few descriptors", 0, s)
	const total = 8 // four fit
	var open []net.Conn
	for range total {
		open = append(open, dial(t, s))
	}
	if paused := expect[link.Paused](p); paused.Listener != "main" || paused.Reason != unix.EMFILE.Error() {
		t.Errorf("paused is %+v", paused)
	}
	p.wrote("accepting paused")
	ask(t, open[0], "still served")
	for _, c := range open {
		ask(t, c, "served in the end")
		c.Close()
	}
	ask(t, dial(t, s), "room again")
	p.wrote("accepting again")
	if n := strings.Count(p.stderr.String(), "accepting paused"); n > 2 {
		t.Errorf("reported %d times", n)
	}
	if n := len(p.said); n > 2 {
		t.Errorf("the supervisor was told %d times more", n)
	}
}

// request sends the head of a request and returns the answer's head.
func request(t *testing.T, c net.Conn, path, body string) (*http.Response, *bufio.Reader) {
	t.Helper()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s", path, body)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp, r
}

const lastChunk = "0\r\n\r\n"

func TestHTTPIsServedAndCounted(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	c := dial(t, s)
	for range 3 {
		resp, _ := request(t, c, "/", "5\r\nhello\r\n"+lastChunk)
		if got, err := io.ReadAll(resp.Body); string(got) != "hello" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if a, m := p.seat.Accepts.Load(), p.seat.Messages.Load(); a != 1 || m != 3 {
		t.Errorf("counted %d connections and %d requests, want 1 and 3", a, m)
	}
	c.Close()
	await(t, "the gauge", func() bool { return p.seat.Connections.Load() == 0 })
}

func TestHTTPPanicCostsOneConnection(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	bad := dial(t, s)
	fmt.Fprint(bad, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
	awaitEOF(t, bad)
	request(t, dial(t, s), "/", lastChunk)
	if n := p.seat.Panics.Load(); n != 1 {
		t.Errorf("%d panics counted, want 1", n)
	}
}

func TestPromptDrainFinishesARequest(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	idle, busy := dial(t, s), dial(t, s)
	resp, _ := request(t, idle, "/", lastChunk)
	io.Copy(io.Discard, resp.Body)
	resp, _ = request(t, busy, "/", "")
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	awaitEOF(t, idle)
	fmt.Fprint(busy, "5\r\nhello\r\n"+lastChunk)
	if got, err := io.ReadAll(resp.Body); string(got) != "hello" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	awaitEOF(t, busy)
	p.awaitExit(0)
}

func TestPatientDrainAnswersTheNextRequestWithAGoodbye(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	c := dial(t, s)
	resp, _ := request(t, c, "/", lastChunk)
	io.Copy(io.Discard, resp.Body)
	p.tell(link.Drain{Grace: time.Hour})
	expect[link.Draining](p)
	resp, _ = request(t, c, "/", lastChunk)
	if !resp.Close {
		t.Error("no Connection: close in the answer")
	}
	io.Copy(io.Discard, resp.Body)
	awaitEOF(t, c)
	p.awaitExit(0)
}

func TestEndlessRequestEndsWithTheGrace(t *testing.T) {
	s := listen(t)
	p := serving(t, "http", 0, s)
	request(t, dial(t, s), "/", "")
	p.tell(link.Drain{Prompt: true, Grace: 50 * time.Millisecond})
	p.awaitExit(0)
}

func TestDatagramsAreServedAndHandedOver(t *testing.T) {
	t.Run("UDP", func(t *testing.T) { datagramsAreHandedOver(t, "udp://127.0.0.1:0") })
	t.Run("unix", func(t *testing.T) { datagramsAreHandedOver(t, "unixgram://"+t.TempDir()+"/s") })
}

func datagramsAreHandedOver(t *testing.T, address string) {
	s := listenOn(t, address)
	old := serving(t, "packets", 0, s)
	c := dial(t, s)
	answer := func() string {
		t.Helper()
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	io.WriteString(c, "panic")
	io.WriteString(c, "hello")
	if got := answer(); got != "hello from 0" {
		t.Fatalf("got %q", got)
	}
	old.wrote("callback panicked")
	await(t, "the counters", func() bool { return old.seat.Datagrams.Load() == 2 && old.seat.Panics.Load() == 1 })

	// The new one reads before the old one leaves: whatever is sent meanwhile
	// is answered by one of them.
	next := serving(t, "packets", 1, s)
	for i := range 200 {
		switch i {
		case 50:
			old.tell(link.Drain{Grace: time.Hour})
		case 100:
			expect[link.Draining](old)
			next.tell(link.Rearm{})
			old.awaitExit(0)
		}
		fmt.Fprint(c, i)
		got := answer()
		if want := fmt.Sprint(i); got != want+" from 1" && (got != want+" from 0" || i >= 100) {
			t.Fatalf("datagram %d: got %q", i, got)
		}
	}
}

func TestSocketOfTheWrongKindIsAFailedStart(t *testing.T) {
	for _, tt := range []struct {
		url      string
		listener Listener
		want     string
	}{
		{"udp://127.0.0.1:0", Listener{Name: "main", Conn: &conn.Config{}}, "is a datagram socket, but what is served on it wants a stream one"},
		{"unixgram://" + t.TempDir() + "/s", Listener{Name: "main", Conn: &conn.Config{}}, "is a datagram socket, but what is served on it wants a stream one"},
		{"unixpacket://" + t.TempDir() + "/s", Listener{Name: "main", Packet: &conn.PacketConfig{}}, "is a stream socket, but what is served on it wants a datagram one"},
		{"unixpacket://" + t.TempDir() + "/s", Listener{Name: "main", HTTP: http.NotFoundHandler()}, "is a seqpacket socket: HTTP, want a stream socket"},
		{"unixpacket://" + t.TempDir() + "/s", Listener{Name: "main", Conn: &conn.Config{Protocol: text.Protocol{}}}, "is a seqpacket socket: a protocol, want none"},
		{"tcp://127.0.0.1:0", Listener{Name: "main", Packet: &conn.PacketConfig{}}, "is a stream socket, but what is served on it wants a datagram one"},
	} {
		s := listenOn(t, tt.url)
		w := &Worker{conf: Config{Metrics: appmetrics.NewRegistry(), Listeners: []Listener{tt.listener}}}
		in := &link.Inherited{Sockets: []int{s.FD}}
		in.Identity.Listeners = []link.Listener{{Name: "main", Address: s.Address}}
		if err := w.makeListeners(in); err == nil || !strings.Contains(err.Error(), `listener "main": `+s.Address+" "+tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestAcceptFaultsAreClassed(t *testing.T) {
	for _, tt := range []struct {
		errno error
		want  faultClass
	}{
		{errFull, faultFull},
		{unix.EAGAIN, faultEmpty},
		{unix.EINTR, faultPassing},
		{unix.ECONNABORTED, faultPassing},
		{unix.EPERM, faultPassing},
		{unix.EMFILE, faultExhausted},
		{unix.ENFILE, faultExhausted},
		{unix.ENOBUFS, faultExhausted},
		{unix.ENOMEM, faultExhausted},
		{unix.EBADF, faultFatal},
		{unix.EINVAL, faultFatal},
		{unix.ENOTSOCK, faultFatal},
	} {
		if got := fault(tt.errno); got != tt.want {
			t.Errorf("%v: got class %d, want %d", tt.errno, got, tt.want)
		}
	}
}

func TestHTTPConnectionThatIsResetAtOnceHurtsNobody(t *testing.T) {
	s := listen(t)
	reset := func() {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.Address, "tcp://"))
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	reset() // before anybody accepts: accept(2) has a peer, getpeername(2) none
	p := serving(t, "http", 0, s)
	for range 500 {
		reset()
	}
	await(t, "all are taken and gone", func() bool { return p.seat.Accepts.Load() > 0 && p.seat.Connections.Load() == 0 })
	select {
	case code := <-p.exited:
		t.Fatalf("the worker exited with %d: %s", code, p.stderr.String())
	default:
	}
}

func TestAcceptedConnectionsInheritTheirOptions(t *testing.T) {
	s := listen(t)
	(&listener{fd: s.FD, isTCP: true}).prepare()
	c := dial(t, s)
	defer c.Close()
	await(t, "a connection", func() bool {
		fd, _, err := unix.Accept4(s.FD, unix.SOCK_CLOEXEC)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		for _, o := range []struct {
			name                string
			level, option, want int
		}{
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
			{"SO_OOBINLINE", unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		} {
			if got, err := unix.GetsockoptInt(fd, o.level, o.option); err != nil || got != o.want {
				t.Errorf("%s is %d, %v, want %d", o.name, got, err, o.want)
			}
		}
		return true
	})
}
