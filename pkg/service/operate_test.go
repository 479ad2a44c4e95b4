package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// operated is a service that runs only for the command line.
type operated struct {
	mu       sync.Mutex
	status   control.Status
	looks    int
	asked    control.ConnectionsRequest
	listed   control.Connections
	slots    []string
	refusal  error
	happened []control.Event
	reload   []string // steps
	handed   []control.Handover
	moved    control.Moved
	balanced control.Rebalanced
}

func (o *operated) Status(context.Context) (control.Status, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks++
	st := o.status
	if len(st.Pools) > 0 {
		p := st.Pools[0]
		w := p.Workers[0]
		w.Messages += uint64(o.looks) * 1000
		p.Workers = []control.Worker{w}
		st.Pools = []control.Pool{p}
	}
	return st, nil
}

func (o *operated) Reload(_ context.Context, _ control.ReloadRequest, step func(string)) error {
	for _, s := range o.reload {
		step(s)
	}
	return o.refusal
}
func (o *operated) Scale(context.Context, control.ScaleRequest) ([]control.Handover, error) {
	return o.handed, o.refusal
}
func (o *operated) Stop(context.Context) error { return o.refusal }

func (o *operated) Connections(_ context.Context, r control.ConnectionsRequest) (control.Connections, error) {
	o.asked = r
	return o.listed, nil
}

func (o *operated) slot(what string, r control.SlotRequest) error {
	o.slots = append(o.slots, fmt.Sprintf("%s %q %d", what, r.Pool, r.Slot))
	return o.refusal
}
func (o *operated) Recycle(_ context.Context, r control.SlotRequest) ([]control.Handover, error) {
	return o.handed, o.slot("recycle", r)
}
func (o *operated) Drain(_ context.Context, r control.SlotRequest) ([]control.Handover, error) {
	return o.handed, o.slot("drain", r)
}
func (o *operated) Resume(_ context.Context, r control.SlotRequest) error { return o.slot("resume", r) }

func (o *operated) Move(_ context.Context, r control.MoveRequest) (control.Moved, error) {
	o.slots = append(o.slots, fmt.Sprintf("move %d %q %d", r.Conn, r.Pool, r.Slot))
	return o.moved, o.refusal
}

func (o *operated) Rebalance(context.Context, control.RebalanceRequest) (control.Rebalanced, error) {
	return o.balanced, o.refusal
}

func (o *operated) Events(ctx context.Context, follow bool, tell func(control.Event)) error {
	for _, e := range o.happened {
		tell(e)
	}
	if !follow {
		return nil
	}
	<-ctx.Done()
	return nil
}

// operate serves o and returns what the command line makes of arguments: its
// output, and what it fails with.
func operate(t *testing.T, o *operated) func(ctx context.Context, args ...string) (string, error) {
	t.Helper()
	address := "unix://" + filepath.Join(t.TempDir(), "c.sock")
	l, err := control.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	server := control.NewServer(o)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(server.Close(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context, args ...string) (string, error) {
		root := New("app").commands()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(append(args, "--control", address))
		err := root.ExecuteContext(ctx)
		if e, ok := errors.AsType[*exitError](err); ok && e.code != exitFailed {
			t.Errorf("%q: exit code %d", args, e.code)
		}
		return out.String(), err
	}
}

func TestConnectionsAreShownInColumns(t *testing.T) {
	o := &operated{listed: control.Connections{Matching: 9, Connections: []control.Connection{
		{Slot: 0, PID: 101, ID: 4294967301, Listener: "echo", State: "open", AgeMS: 65_000, IdleMS: 1500, BytesIn: 2048, BytesOut: 5 << 20, Local: "127.0.0.1:7007", Peer: "127.0.0.1:5000"},
		{Slot: 1, PID: 102, ID: 7, Listener: "lines", State: "full", AgeMS: 3, Queued: 1 << 20, Buffered: 12, Messages: 4, Local: "/run/l.sock", Peer: "unix"},
	}}}
	run := operate(t, o)
	got, err := run(t.Context(), "connections", "--listener", "echo", "--peer", "127.0.0.0/8", "--limit", "2", "--sort", "idle")
	if err != nil {
		t.Fatal(err)
	}
	const want = `  slot  pid          id  listener  state    age  idle  recv  send  wait    in   out           local            peer
     0  101  4294967301      echo   open  1m05s  1.5s     0     0     0  2.0K  5.0M  127.0.0.1:7007  127.0.0.1:5000
     1  102           7     lines   full    3ms    0s    12  1.0M     4     0     0     /run/l.sock            unix
2 of 9 connections
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if want := (control.ConnectionsRequest{Listener: "echo", Peer: "127.0.0.0/8", Limit: 2, Sort: "idle"}); o.asked != want {
		t.Errorf("asked for %+v, want %+v", o.asked, want)
	}
}

func TestConnectionsOfAWorkerThatHangsAreNotSilentlyMissing(t *testing.T) {
	run := operate(t, &operated{listed: control.Connections{
		Matching: 1, Connections: []control.Connection{{ID: 1}},
		Silent: []control.Silent{{Slot: 3, PID: 42, Connections: 17, Reason: "worker 3 (pid 42) does not answer"}},
	}})
	got, err := run(t.Context(), "connections")
	if err == nil || !strings.Contains(err.Error(), "17 connections of worker 3 (pid 42) are not listed") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(got, "1 of 1 connections") {
		t.Errorf("the others are not listed: %s", got)
	}
	if got, err = run(t.Context(), "connections", "--json"); err == nil || !strings.Contains(got, `"silent":[{"pool":"","slot":3,"pid":42,"connections":17,`) {
		t.Errorf("as JSON: %s, %v", got, err)
	}
}

func TestSlotCommandsSayWhatWasDone(t *testing.T) {
	o := &operated{}
	run := operate(t, o)
	for _, tt := range []struct {
		args    []string
		want    string
		refusal error
	}{
		{[]string{"recycle", "1"}, "recycled worker 1\n", nil},
		{[]string{"drain", "worker", "2"}, "worker 2 is drained\n", nil},
		{[]string{"resume", "0"}, "worker 0 is resumed\n", nil},
		{[]string{"drain", "0"}, "", errors.New("it is the last one")},
	} {
		o.refusal = tt.refusal
		got, err := run(t.Context(), tt.args...)
		if got != tt.want || (err == nil) != (tt.refusal == nil) || err != nil && !strings.Contains(err.Error(), tt.refusal.Error()) {
			t.Errorf("%q: %q, %v, want %q, %v", tt.args, got, err, tt.want, tt.refusal)
		}
	}
	want := []string{`recycle "" 1`, `drain "worker" 2`, `resume "" 0`, `drain "" 0`}
	if diff := cmp.Diff(want, o.slots); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWhatHasBecomeOfConnectionsIsShown(t *testing.T) {
	o := &operated{
		handed: []control.Handover{
			{Slot: 2, PID: 42, State: control.HandoverOver, Moved: 498, Left: 2, LongestStallUS: 12_345},
			{Slot: 3, PID: 43, State: control.HandoverGoesOn, Moved: 7, Left: 3},
			{Slot: 4, PID: 44, State: control.HandoverCut, Moved: 1, Left: 9},
			{Slot: 5, PID: 45, State: control.HandoverNone, Left: 6},
			{Slot: 6, PID: 46, State: control.HandoverOver},
		},
	}
	const gone = `worker 2 (pid 42): 498 connections moved, 2 left, longest stall 12ms
worker 3 (pid 43): 7 connections moved so far, 3 still there
worker 4 (pid 44): 1 connections moved, 9 lost with it
worker 5 (pid 45): 6 connections drain
`
	run := operate(t, o)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"scale", "2"}, gone + "scaled to 2\n"},
		{[]string{"recycle", "2"}, gone + "recycled worker 2\n"},
		{[]string{"drain", "2"}, gone + "worker 2 is drained\n"},
	} {
		got, err := run(t.Context(), tt.args...)
		if err != nil || got != tt.want {
			t.Errorf("%q: %v\n%s\nwant\n%s", tt.args, err, got, tt.want)
		}
	}
}

func TestConnectionsAreMovedFromTheCommandLine(t *testing.T) {
	o := &operated{moved: control.Moved{Conn: 4294967301, From: 0, To: 2, LongestStallUS: 800}}
	run := operate(t, o)
	got, err := run(t.Context(), "move", "4294967301", "2")
	if want := "connection 4294967301 moved from worker 0 to worker 2, it stood still for 800µs\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	o.moved.From = 2
	got, err = run(t.Context(), "move", "4294967301", "worker", "2")
	if want := "connection 4294967301 is with worker 2 already\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if want := []string{`move 4294967301 "" 2`, `move 4294967301 "worker" 2`}; !cmp.Equal(want, o.slots) {
		t.Errorf("asked for %q, want %q", o.slots, want)
	}
	o.refusal = errors.New("connection 7 stays: its callback has not returned")
	if _, err = run(t.Context(), "move", "7", "2"); err == nil || !strings.Contains(err.Error(), "has not returned") {
		t.Errorf("refused: %v", err)
	}
	for _, wrong := range [][]string{{"move", "7"}, {"move", "x", "2"}, {"move", "7", "-1"}, {"move", "7", "a", "b", "2"}, {"rebalance", "2"}} {
		_, err := run(t.Context(), wrong...)
		if _, failed := errors.AsType[*exitError](err); err == nil || failed {
			t.Errorf("%q: %v, want it to be wrong usage", wrong, err)
		}
	}
}

func TestRebalancingTellsWhoGaveHowMany(t *testing.T) {
	o := &operated{}
	run := operate(t, o)
	got, err := run(t.Context(), "rebalance")
	if want := "nothing to move: all workers have as many\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	o.balanced = control.Rebalanced{Moved: 15, Givers: []control.Giver{
		{Slot: 0, PID: 40, Excess: 10, Moved: 10, LongestStallUS: 2000},
		{Slot: 1, PID: 41, Excess: 9, Moved: 5, Refused: 3, LongestStallUS: 1000, Error: "4 of 9 that it was asked for stay"},
	}}
	got, err = run(t.Context(), "rebalance")
	want := `worker 0 (pid 40): 10 of 10 connections moved, longest stall 2ms
worker 1 (pid 41): 5 of 9 connections moved, 3 refused, longest stall 1ms
`
	if got != want || err == nil || !strings.Contains(err.Error(), "worker 1 (pid 41): 4 of 9") {
		t.Errorf("%s%v\nwant\n%s", got, err, want)
	}
}

func TestEventsAreShownInALine(t *testing.T) {
	run := operate(t, &operated{happened: []control.Event{
		{At: "2026-01-02T03:04:05.678901234Z", Kind: "worker_died", Pool: "worker", Slot: 2, Generation: 3, PID: 42, Message: "worker died", Fields: map[string]string{"signal": "killed", "class": "oom"}},
		{At: "2026-01-02T03:04:06Z", Kind: "service_ready", Slot: -1, Message: "service ready"},
	}})
	got, err := run(t.Context(), "events")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^2026-01-0\d \d\d:\d\d:05\.678  worker_died  worker 2  generation 3  pid 42: worker died  class="oom" signal="killed"
2026-01-0\d \d\d:\d\d:06\.000  service_ready: service ready
$`)
	if !want.MatchString(got) {
		t.Errorf("got %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got, err = run(ctx, "events", "-f", "--json"); err != nil || strings.Count(got, "\n") != 2 || !strings.Contains(got, `"kind":"worker_died"`) {
		t.Errorf("followed as JSON: %q, %v", got, err)
	}
}

func TestWatchedStatusShowsRatesUntilItIsInterrupted(t *testing.T) {
	run := operate(t, &operated{status: control.Status{Service: "app", Pools: []control.Pool{{Name: "worker", Workers: []control.Worker{{PID: 7, Incarnation: 1, State: "ready"}}}}}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	got, err := run(ctx, "status", "--watch", "--interval", "10ms")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got, "\x1b") {
		t.Errorf("terminal sequences where there is no terminal: %q", got)
	}
	looks := strings.Split(got, "\n\napp is ")
	if len(looks) < 2 || !strings.Contains(looks[0], "msg/s") || !regexp.MustCompile(`(?m) [1-9]\d*  +0  +0  +0$`).MatchString(looks[1]) {
		t.Errorf("no rates in: %s", got)
	}
}

func TestRatesAreThoseOfTheSameProcess(t *testing.T) {
	at := time.Now()
	of := func(d time.Duration, workers ...control.Worker) look {
		return look{at.Add(d), control.Status{Pools: []control.Pool{{Workers: workers}}}}
	}
	before := of(0, control.Worker{Incarnation: 1, Messages: 100, BytesIn: 10, CPUMS: 1000}, control.Worker{Slot: 1, State: "backing off"})
	after := of(2*time.Second, control.Worker{Incarnation: 1, Messages: 150, BytesIn: 10, Accepts: 4, CPUMS: 1500}, control.Worker{Incarnation: 2, Messages: 1000}, control.Worker{Slot: 1})
	want := rates{1: {known: true, accepts: 2, messages: 25, cpu: 0.25}}
	if diff := cmp.Diff(want, after.since(before), cmp.AllowUnexported(rate{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := after.since(look{}); len(got) != 0 {
		t.Errorf("rates %v without an earlier look", got)
	}
}

func TestDeathBySignalOfAStopIsToldFromEveryOtherEnd(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		result, code, status string
		want                 bool
	}{
		{name: "a stop before the supervisor could take it", result: "success", code: "killed", status: "TERM", want: true},
		{name: "ctrl-c", result: "success", code: "killed", status: "INT", want: true},
		{name: "hang-up", result: "success", code: "killed", status: "HUP", want: true},
		{name: "a restart before Go could take it", result: "signal", code: "killed", status: "RTMIN+1"},
		{name: "that as a clean end", result: "success", code: "killed", status: "RTMIN+1"},
		{name: "kill -9", result: "signal", code: "killed", status: "KILL"},
		{name: "watchdog", result: "watchdog", code: "dumped", status: "ABRT"},
		{name: "start timeout", result: "timeout", code: "killed", status: "TERM"},
		{name: "orderly end", result: "success", code: "exited", status: "0"},
		{name: "no systemd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{"SERVICE_RESULT": tt.result, "EXIT_CODE": tt.code, "EXIT_STATUS": tt.status}
			if got := diedOfStop(func(name string) string { return env[name] }); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
