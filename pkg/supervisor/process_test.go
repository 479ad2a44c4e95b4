package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/notify"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// TestMain lets the test binary be a worker: what kind is said by the
// configuration it is handed.
func TestMain(m *testing.M) {
	if link.IsWorker() {
		os.Exit(work())
	}
	if IsTrial() {
		os.Exit(PlayTrial())
	}
	goleak.VerifyTestMain(m)
}

func work() int {
	in, err := link.Inherit()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	crash := os.NewFile(uintptr(in.Crash), "crash")
	debug.SetCrashOutput(crash, debug.CrashOptions{})
	board, err := scoreboard.Open(in.Stats)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	seat := board.Seat(in.Seat)
	hello := link.Hello{Contract: link.Contract, Incarnation: in.Incarnation, Generation: in.Generation, Build: "test"}
	mail := -1 // the receiving end of the inbox
	if string(in.Config) == "is a peer" {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		in.Control.SendFile(hello, fds[1])
		unix.Close(fds[1])
		mail = fds[0]
	} else {
		in.Control.Send(hello)
	}
	switch string(in.Config) {
	case "says why":
		in.Control.Send(link.Failed{Reason: "the database is away"})
		return 1
	case "writes why":
		fmt.Fprintf(os.Stderr, "reading settings\nno licence found\n")
		return 4
	case "panics":
		panics(nil)
	case "hangs":
		select {}
	case "leaves a child":
		// The child has the pipe, so the pipe has no end.
		exec.Command("sleep", "2").Start()
		c := exec.Command("sleep", "2")
		c.Stderr = os.Stderr
		c.Start()
		fmt.Fprintln(os.Stderr, "a child lives on")
		return 5
	}
	seat.Connections.Store(int64(in.Slot) + 7)
	if string(in.Config) == "beats" {
		go func() {
			for range time.Tick(50 * time.Millisecond) {
				seat.Heartbeat.Store(int64(monotonic()))
			}
		}()
	}
	unix.Dup3(in.Stderr, 2, 0)
	in.Control.Send(link.Ready{})
	for {
		m, err := in.Control.Recv()
		if err != nil {
			return 0
		}
		switch m.Body.(type) {
		case link.Accept:
			go greet(in)
		case link.Gather:
			gathered(in, m.Body.(link.Gather), mail)
		case link.Peer:
			if m.FD >= 0 {
				unix.Write(m.FD, fmt.Appendf(nil, "from %d", in.Incarnation))
				unix.Close(m.FD)
			}
		case link.Drain, link.Stop:
			in.Control.Send(link.Draining{})
			return 0
		}
	}
}

// gathered answers with the question, or as it says.
func gathered(in *link.Inherited, g link.Gather, mail int) {
	switch g.What {
	case "mail":
		text := make([]byte, 100)
		n, err := unix.Read(mail, text)
		if err != nil {
			in.Control.Send(link.Gathered{ID: g.ID, Error: err.Error()})
			return
		}
		f, err := link.AnswerFile(text[:n])
		if err != nil {
			return
		}
		defer f.Close()
		in.Control.SendFile(link.Gathered{ID: g.ID}, int(f.Fd()))
	case "silence":
	case "error":
		in.Control.Send(link.Gathered{ID: g.ID, Error: "does not know"})
	case "death":
		os.Exit(3)
	default:
		f, err := link.AnswerFile(append([]byte(fmt.Sprint(in.Slot)), g.Arg...))
		if err != nil {
			return
		}
		defer f.Close()
		in.Control.SendFile(link.Gathered{ID: g.ID}, int(f.Fd()))
	}
}

func panics(m map[string]int) { m["x"] = 1 }

// greet answers every connection with the process id.
func greet(in *link.Inherited) {
	l, err := net.FileListener(os.NewFile(uintptr(in.Sockets[0]), in.Listeners[0].Name))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(c, os.Getpid())
		c.Close()
	}
}

// real is a supervisor of real processes.
type real struct {
	*Supervisor
	settings Settings
	address  string
	dir      string
	ended    chan error
}

func startReal(t *testing.T, behave string, change ...func(*Config, *Settings)) *real {
	t.Helper()
	sock, err := activation.Listen("greet", "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &real{
		settings: Settings{Workers: 2, StartAttempts: 1, StopGrace: 5 * time.Second, Bake: 10 * time.Millisecond, StartTimeout: 20 * time.Second, Worker: []byte(behave)},
		address:  strings.TrimPrefix(sock.Address, "tcp://"), dir: t.TempDir(), ended: make(chan error, 1),
	}
	conf := Config{
		Name: "test", Sockets: []activation.Socket{sock}, Executable: exe, RuntimeDir: r.dir,
		Load: func(map[string]string) (Settings, error) { return r.settings, nil },
		Log:  zap.NewNop(),
	}
	for _, f := range change {
		f(&conf, &r.settings)
	}
	r.Supervisor, err = New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		r.ended <- r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		sock.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// await waits until ok says so; what is told when it never does.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at the condition
	}
}

func (r *real) workers(t *testing.T) []control.Worker {
	t.Helper()
	st, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Pools[0].Workers
}

func (r *real) awaitServing(t *testing.T) {
	t.Helper()
	await(t, "serving", func() bool {
		st, err := r.Status(t.Context())
		return err == nil && st.State == control.StateServing
	})
}

func (r *real) ask(t *testing.T) string {
	t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(answer))
}

func TestRealWorkersServeTheInheritedSocket(t *testing.T) {
	r := startReal(t, "")
	r.awaitServing(t)
	workers := r.workers(t)
	pid := r.ask(t)
	known := false
	for i, w := range workers {
		known = known || fmt.Sprint(w.PID) == pid
		if w.Connections != int64(i)+7 || w.RSSBytes == 0 || w.Build != "test" {
			t.Errorf("worker %d is %+v", i, w)
		}
		if got, err := unix.Getpgid(w.PID); err != nil || got != w.PID {
			t.Errorf("worker %d is in process group %d (%v), want its own", i, got, err)
		}
	}
	if !known {
		t.Errorf("pid %s answered, want one of %+v", pid, workers)
	}
}

func TestRealWorkerThatIsKilledIsReapedAndRespawned(t *testing.T) {
	r := startReal(t, "")
	r.awaitServing(t)
	before := r.workers(t)
	unix.Kill(before[0].PID, unix.SIGKILL)
	await(t, "respawn", func() bool {
		w := r.workers(t)
		return w[0].PID != before[0].PID && w[0].State == "ready"
	})
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", before[0].PID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pid %d is still there: %v", before[0].PID, err)
	}
	if after := r.workers(t); after[1].PID != before[1].PID || after[0].Respawns != 1 || !strings.Contains(after[0].LastDeath, "SIGKILL") {
		t.Errorf("workers %+v, before %+v", after, before)
	}
}

func TestLastWordsOfARealWorker(t *testing.T) {
	for _, tt := range []struct {
		behave, want string
	}{
		{"says why", "the database is away"},
		{"writes why", "no licence found"},
		{"panics", "assignment to entry in nil map"},
		{"leaves a child", "a child lives on"},
	} {
		t.Run(tt.behave, func(t *testing.T) {
			r := startReal(t, tt.behave)
			err := <-r.ended
			var start *StartError
			if !errors.As(err, &start) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ended with %v, want %q in it", err, tt.want)
			}
			if tt.behave == "panics" && !strings.Contains(err.Error(), "process_test.go") {
				t.Errorf("%v does not tell where", err)
			}
		})
	}
}

func TestReloadOfRealWorkersKeepsTheSocket(t *testing.T) {
	r := startReal(t, "")
	r.awaitServing(t)
	before := r.workers(t)
	if err := r.Reload(t.Context(), control.ReloadRequest{}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	for _, w := range r.workers(t) {
		old := w.PID == before[0].PID || w.PID == before[1].PID
		if want := map[bool]string{true: "draining", false: "ready"}[old]; w.State != want || old == (w.Generation == 2) {
			t.Errorf("worker %+v after the reload, want it %s", w, want)
		}
	}
	r.ask(t)
	r.settings.Worker = []byte("says why")
	if err := r.Reload(t.Context(), control.ReloadRequest{}, func(string) {}); err == nil || !strings.Contains(err.Error(), "the database is away") {
		t.Errorf("verdict %v", err)
	}
	r.ask(t)
}

func TestOldExecutableIsStartedAfterItsFileWasReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "program")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := openExecutable(path)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if e.name() != path {
		t.Errorf("executes %s, want %s", e.name(), path)
	}
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\nexit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(e.name())
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%s is not the old program: %d bytes, %v", e.name(), len(got), err)
	}
}

func TestWhatIsNoExecutableIsRefused(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "absent"), plain, dir} {
		if e, err := openExecutable(path); err == nil {
			e.close()
			t.Errorf("%s was opened", path)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("error %q does not name %s", err, path)
		}
	}
}

func TestRealWorkersGetOneAnothersInboxes(t *testing.T) {
	r := startReal(t, "is a peer")
	r.awaitServing(t)
	got := map[int]string{}
	await(t, "mail for both", func() bool {
		answers, err := r.Gather(t.Context(), "mail", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range answers {
			if a.Err == nil {
				got[a.Slot] = string(a.Data)
			}
		}
		return len(got) == 2
	})
	if got[0] != "from 2" || got[1] != "from 1" {
		t.Errorf("mail %v", got)
	}
}

func TestEveryWorkerIsAsked(t *testing.T) {
	r := startReal(t, "")
	r.awaitServing(t)
	for _, tt := range []struct {
		what string
		data bool
		err  string
	}{
		{what: "echo", data: true},
		{what: "error", err: "does not know"},
		{what: "silence", err: "does not answer"},
		{what: "death", err: "has died"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			answers, err := r.Gather(t.Context(), tt.what, []int{4})
			if err != nil || len(answers) != 2 {
				t.Fatalf("%d answers, %v", len(answers), err)
			}
			for i, a := range answers {
				if want := fmt.Sprintf("%d[4]", i); tt.data && (string(a.Data) != want || a.Err != nil) {
					t.Errorf("worker %d says %q %v, want %q", i, a.Data, a.Err, want)
				}
				if !tt.data && (a.Err == nil || !strings.Contains(a.Err.Error(), tt.err)) {
					t.Errorf("worker %d: %v, want %q", i, a.Err, tt.err)
				}
			}
		})
	}
}

func TestRealWorkerThatHangsLeavesItsGoroutinesInTheLog(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	r := startReal(t, "", func(c *Config, settings *Settings) {
		c.Log = zap.New(core)
		settings.Health.HangTimeout = 300 * time.Millisecond // these workers have no heartbeat
	})
	await(t, "a death by hanging", func() bool {
		st, err := r.Status(t.Context())
		return err == nil && st.Pools[0].Respawns > 0
	})
	await(t, "the dump", func() bool { return logs.FilterMessage("goroutines of a hung worker").Len() > 0 })
	dump := logs.FilterMessage("goroutines of a hung worker").All()[0].ContextMap()["dump"].(string)
	if !strings.Contains(dump, "SIGQUIT") || !strings.Contains(dump, "supervisor.work()") {
		t.Errorf("the dump does not show what the worker did:\n%s", dump)
	}
}

func TestStoppedRealWorkerIsKilledAndReplaced(t *testing.T) {
	r := startReal(t, "beats", func(_ *Config, settings *Settings) { settings.Health.HangTimeout = time.Second })
	r.awaitServing(t)
	before := r.workers(t)
	unix.Kill(before[1].PID, unix.SIGSTOP)
	await(t, "replacement", func() bool {
		w := r.workers(t)
		return w[1].PID != before[1].PID && w[1].State == "ready"
	})
	if after := r.workers(t); after[0].PID != before[0].PID || !strings.Contains(after[1].LastDeath, "has not turned") {
		t.Errorf("workers %+v, before %+v", after, before)
	}
}

func TestReapWithoutAMarkKillsNobody(t *testing.T) {
	if n, err := Reap(t.TempDir(), false); n != 0 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
}

func TestOrderlyStopLeavesItsMarkAndTheNextStartTakesItAway(t *testing.T) {
	r := startReal(t, "")
	r.awaitServing(t)
	mark := filepath.Join(r.dir, markName)
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
	r.unmark()
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
}

func TestCrashSummaryTellsMessageAndPlace(t *testing.T) {
	report := "panic: boom\n\ngoroutine 1 [running]:\npanic({0x1, 0x2})\n\t/go/src/runtime/panic.go:1 +0x1\nmain.handle(...)\n\t/src/app/main.go:42 +0x1d\nmain.main()\n\t/src/app/main.go:9 +0x1\n"
	if got, want := crashSummary(report), "panic: boom at /src/app/main.go:42"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := crashSummary("fatal error: all is lost"); got != "fatal error: all is lost" {
		t.Errorf("got %q", got)
	}
}

func TestOutputIsCutIntoBoundedLines(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{pipe: r, log: zap.NewNop()}
	read := make(chan struct{})
	go func() { o.read(); close(read) }()
	w.WriteString(strings.Repeat("x", 5*maxLine) + "\n")
	for i := range 2 * maxKept {
		fmt.Fprintf(w, "line %d\r\n", i)
	}
	w.WriteString("no newline")
	w.Close()
	<-read
	if len(o.kept) != maxKept || o.kept[maxKept-1] != "no newline" || o.kept[maxKept-2] != fmt.Sprintf("line %d", 2*maxKept-1) {
		t.Errorf("kept %q", o.kept)
	}
	for _, l := range o.kept {
		if len(l) > maxLine {
			t.Errorf("a line of %d bytes", len(l))
		}
	}
}

// A reload that systemd runs it knows of, and told of it it would not look
// whether the main process lives when its command is over.
func TestSystemdIsToldOfReloadsThatOthersBegin(t *testing.T) {
	// Not t.TempDir, which is too long for a socket.
	dir, err := os.MkdirTemp("", "notify-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	notes := make(chan string, 1000)
	go func() { // at once: few messages fit into the socket
		defer close(notes)
		b := make([]byte, 4096)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			notes <- string(b[:n])
		}
	}()
	t.Cleanup(func() {
		socket.Close()
		for range notes {
		}
	})
	t.Setenv("NOTIFY_SOCKET", path)
	n, err := notify.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	// told returns what is said up to the word that it is ready.
	told := func() (all []string) {
		t.Helper()
		for limit := time.After(30 * time.Second); ; {
			select {
			case note := <-notes:
				if all = append(all, note); strings.HasPrefix(note, "READY=1") {
					return all
				}
			case <-limit:
				t.Fatalf("told %q, want READY=1", all)
			}
		}
	}
	r := startReal(t, "beats", func(c *Config, _ *Settings) { c.Notify = n })
	told()
	for _, tt := range []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"by somebody", nil, true},
		{"by systemd", map[string]string{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := r.Reload(t.Context(), control.ReloadRequest{Env: tt.env}, func(string) {}); err != nil {
				t.Fatal(err)
			}
			all := told()
			if got := slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, "RELOADING=1") }); got != tt.want {
				t.Errorf("told of the reload: %t, want %t: %q", got, tt.want, all)
			}
		})
	}
}
