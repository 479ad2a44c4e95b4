package journal

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// native opens a Log that writes to a journald of its own.
func native(t *testing.T, o Options) (*journald, *Log, *collector) {
	t.Helper()
	j := startJournald(t, t.TempDir()+"/socket")
	stderr := newCollector(t)
	o.Format, o.Stderr = "journal", stderr.w
	return j, openLog(t, o, j.path), stderr
}

func TestLineBecomesAnEntryWithItsFields(t *testing.T) {
	j, l, _ := native(t, Options{Identifier: "app", Fields: []zap.Field{zap.Int("worker", 3)}})
	l.Logger().Named("supervisor").With(zap.Uint64("generation", 7)).Warn("worker exited",
		zap.String("peer", "127.0.0.1:80"), zap.Duration("delay", 250*time.Millisecond), zap.Error(errTest))
	e, inFile := j.next(t)
	if inFile {
		t.Error("a small entry came in a file")
	}
	for name, want := range map[string]string{
		"MESSAGE":           `supervisor: worker exited worker=3 generation=7 peer=127.0.0.1:80 delay=250ms error="connection reset"`,
		"EVENT":             "worker exited",
		"PRIORITY":          "4",
		"SYSLOG_IDENTIFIER": "app",
		"LOGGER":            "supervisor",
		"WORKER":            "3",
		"GENERATION":        "7",
		"PEER":              "127.0.0.1:80",
		"DELAY":             "0.25",
		"ERROR":             "connection reset",
		"CODE_FUNC":         "github.com/mainstay-go/mainstay/pkg/journal.TestLineBecomesAnEntryWithItsFields",
	} {
		if got := e.one(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := filepath.Base(e.one(t, "CODE_FILE")); got != "journal_test.go" {
		t.Errorf("CODE_FILE is %q, want this file", got)
	}
	if got := e.one(t, "CODE_LINE"); !regexp.MustCompile(`^[1-9][0-9]*$`).MatchString(got) {
		t.Errorf("CODE_LINE is %q, want a number", got)
	}
}

func TestLevelsBecomePriorities(t *testing.T) {
	level := zap.NewAtomicLevelAt(zap.DebugLevel)
	j, l, _ := native(t, Options{Level: &level})
	for level, want := range map[zapcore.Level]string{
		zap.DebugLevel: "7", zap.InfoLevel: "6", zap.WarnLevel: "4", zap.ErrorLevel: "3", zap.DPanicLevel: "2",
	} {
		l.Logger().Log(level, "x")
		e, _ := j.next(t)
		if got := e.one(t, "PRIORITY"); got != want {
			t.Errorf("level %v has priority %s, want %s", level, got, want)
		}
	}
}

func TestLevelCanBeChangedWhileRunning(t *testing.T) {
	level := zap.NewAtomicLevel()
	j, l, _ := native(t, Options{Level: &level})
	l.Logger().Debug("one")
	level.SetLevel(zap.DebugLevel)
	l.Logger().Debug("two")
	if e, _ := j.next(t); e.one(t, "EVENT") != "two" {
		t.Errorf("got %q, want only the second line", e)
	}
}

func TestValueOfSeveralLinesIsOneField(t *testing.T) {
	j, l, _ := native(t, Options{})
	const dump = "goroutine 1 [running]:\nmain.main()\n"
	l.Logger().Info("worker hung", zap.String("dump", dump), zap.Int("slot", 1))
	e, _ := j.next(t)
	if got := e.one(t, "DUMP"); got != dump {
		t.Errorf("DUMP is %q, want %q", got, dump)
	}
	const want = "worker hung slot=1\n    dump:\n      goroutine 1 [running]:\n      main.main()"
	if got := e.one(t, "MESSAGE"); got != want {
		t.Errorf("MESSAGE is %q, want %q", got, want)
	}
}

func TestMessageIDGoesToTheCatalogNotToPeople(t *testing.T) {
	j, l, _ := native(t, Options{})
	const id = "f7739e5b9fca4a2c9c6cbb4c6a3f3c52"
	l.Logger().Info("reload failed", zap.String("message_id", id))
	e, _ := j.next(t)
	if got := e.one(t, "MESSAGE_ID"); got != id {
		t.Errorf("MESSAGE_ID is %q, want %q", got, id)
	}
	if got := e.one(t, "MESSAGE"); got != "reload failed" {
		t.Errorf("MESSAGE is %q, want no id in it", got)
	}
}

func TestStackTraceIsAField(t *testing.T) {
	j, l, _ := native(t, Options{})
	l.Logger().WithOptions(zap.AddStacktrace(zap.WarnLevel)).With(zap.Namespace("request")).Warn("panic in a callback")
	e, _ := j.next(t)
	if got := e.one(t, "STACKTRACE"); !strings.Contains(got, "TestStackTraceIsAField") {
		t.Errorf("STACKTRACE is %q, want this function in it", got)
	}
}

func TestLargeEntryComesInASealedFile(t *testing.T) {
	j, l, _ := native(t, Options{})
	large := strings.Repeat("0123456789abcde\n", 1<<20/16*4) // above any SO_SNDBUF by default
	l.Logger().Info("dump", zap.String("text", large))
	l.Logger().Info("after")
	e, inFile := j.next(t)
	if got := e.one(t, "TEXT"); !inFile || got != large {
		t.Errorf("in a file: %v, %d bytes; want a file and %d bytes", inFile, len(got), len(large))
	}
	if e, inFile := j.next(t); inFile || e.one(t, "EVENT") != "after" {
		t.Errorf("next entry %q, in a file: %v", e, inFile)
	}
}

func TestFrozenJournaldDelaysNobodyAndLostLinesAreCountedAndReported(t *testing.T) {
	const queue, lines = 16, 2000
	j, l, _ := native(t, Options{Queue: queue})
	for i := range lines {
		l.Logger().Info("line", zap.Int("number", i)) // nobody reads: this must return
	}
	dropped := l.Dropped()
	if dropped == 0 || dropped >= lines {
		t.Fatalf("%d of %d lines dropped, want some", dropped, lines)
	}

	// Thawed: what was in the queue arrives, in order, then the report.
	arrived, last := 0, -1
	for {
		e, _ := j.next(t)
		if e.one(t, "EVENT") == "log lines dropped" {
			if e.one(t, "DROPPED") == fmt.Sprint(dropped) {
				break
			}
			continue // of a pause in the middle
		}
		var number int
		if _, err := fmt.Sscan(e.one(t, "NUMBER"), &number); err != nil || number <= last {
			t.Fatalf("line %d after line %d (%v)", number, last, err)
		}
		last = number
		arrived++
	}
	if uint64(arrived)+dropped != lines || arrived < queue {
		t.Errorf("%d arrived and %d dropped of %d", arrived, dropped, lines)
	}
	if l.Dropped() != dropped {
		t.Errorf("%d dropped in the end, %d before", l.Dropped(), dropped)
	}
}

func TestBytesInTheQueueAreBounded(t *testing.T) {
	t.Parallel() // it waits
	j, l, _ := native(t, Options{})
	large := strings.Repeat("x", maxQueueBytes/10)
	for range 100 {
		l.Logger().Info("large", zap.String("text", large))
		if waiting := l.waiting.Load(); waiting > maxQueueBytes {
			t.Fatalf("%d bytes wait, want at most %d", waiting, maxQueueBytes)
		}
		if l.Dropped() > 0 {
			break
		}
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
	j.conn.Close() // Close need not wait
}

func TestCloseIsBoundedWhenJournaldIsFrozenAndErrorsReachStderr(t *testing.T) {
	t.Parallel() // it waits
	_, l, stderr := native(t, Options{})
	for i := range 1000 {
		l.Logger().Info("line", zap.Int("number", i))
	}
	l.Logger().Error("the last words")
	start := time.Now()
	err := l.Close()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "not written") {
		t.Errorf("Close: %v, want an error about lines not written", err)
	}
	if got := stderr.all(); got != "<3>the last words\n" {
		t.Errorf("stderr has %q, want the error", got)
	}
}

func TestWhileJournaldIsAwayErrorsGoToStderrAndOthersAreCounted(t *testing.T) {
	stderr := newCollector(t)
	path := t.TempDir() + "/socket"
	l := openLog(t, Options{Format: "journal", Stderr: stderr.w}, path)

	// Never there: ENOENT.
	l.Logger().Info("one")
	l.Logger().Error("two", zap.String("dump", "a\nb"))
	if err := l.Logger().Sync(); err != nil {
		t.Fatal(err)
	}
	if got := l.Dropped(); got != 1 {
		t.Errorf("%d lines dropped, want 1: an error is not lost", got)
	}

	// There at last.
	j := startJournald(t, path)
	l.Logger().Info("three")
	if e, _ := j.next(t); e.one(t, "EVENT") != "three" {
		t.Errorf("got %q, want the third line", e)
	}
	if e, _ := j.next(t); e.one(t, "EVENT") != "log lines dropped" || e.one(t, "DROPPED") != "1" {
		t.Errorf("got %q, want the report of one line", e)
	}

	// Gone: ECONNREFUSED, and the file stays.
	j.conn.Close()
	l.Logger().Warn("four")
	l.Logger().DPanic("five")
	if err := l.Logger().Sync(); err != nil {
		t.Fatal(err)
	}
	if got := l.Dropped(); got != 2 {
		t.Errorf("%d lines dropped, want 2", got)
	}

	// Back.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	j = startJournald(t, path)
	l.Logger().Info("six")
	if e, _ := j.next(t); e.one(t, "EVENT") != "six" {
		t.Errorf("got %q, want the sixth line", e)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	const want = "<3>two\n<3>    dump:\n<3>      a\n<3>      b\n<2>five\n"
	if got := stderr.all(); got != want {
		t.Errorf("stderr has %q, want %q", got, want)
	}
}

func TestTextIsForPeople(t *testing.T) {
	stderr := newCollector(t)
	l := openLog(t, Options{Format: "text", Stderr: stderr.w, Fields: []zap.Field{zap.Int("worker", 1)}}, "")
	l.Logger().Named("worker").Info("listener paused", zap.String("listener", "web"), zap.Duration("delay", 1500*time.Millisecond))
	l.Logger().Error("worker exited\nand said:", zap.String("words", "panic: a\x1b[31mb\n"), zap.String("empty", ""),
		zap.String("quoted", "a b"), zap.String("hostile", "\x1b[2J"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} INFO  worker: listener paused worker=1 listener=web delay=1.5s
\d\d:\d\d:\d\d\.\d{3} ERROR worker exited worker=1 empty="" quoted="a b" hostile="\\x1b\[2J"
    and said:
    words:
      panic: a` + "\uFFFD" + `\[31mb
$`)
	if got := stderr.all(); !want.MatchString(got) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	stderr := newCollector(t)
	l := openLog(t, Options{Format: "json", Stderr: stderr.w, Fields: []zap.Field{zap.Int("worker", 1)}}, "")
	l.Logger().Named("worker").Info("listener paused", zap.Duration("delay", 1500*time.Millisecond))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(stderr.all()), &got); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(got["time"])); err != nil {
		t.Error(err)
	}
	for key, want := range map[string]any{"level": "info", "logger": "worker", "message": "listener paused", "worker": 1.0, "delay": 1.5} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestUnknownFormatIsAnError(t *testing.T) {
	if _, err := Open(Options{Format: "xml"}); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Errorf("got %v, want an error with the value", err)
	}
}

func TestAutoMeansTheJournalOnlyIfStderrIsItsStream(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Fstat(2, &st); err != nil {
		t.Fatal(err)
	}
	ours := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	tests := []struct {
		name, format, stream string
		want                 bool
	}{
		{name: "our stderr", format: "auto", stream: ours, want: true},
		{name: "our stderr, by default", stream: ours, want: true},
		{name: "another file", format: "auto", stream: "1:1"},
		{name: "not set", format: "auto"},
		{name: "nonsense", format: "auto", stream: "journal"},
		{name: "text wins", format: "text", stream: ours},
		{name: "journal wins", format: "journal", want: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("JOURNAL_STREAM", tt.stream)
			l := openLog(t, Options{Format: tt.format}, t.TempDir()+"/socket")
			if got := l.native != nil; got != tt.want {
				t.Errorf("writes to the journal: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestClosedLogDropsAndCounts(t *testing.T) {
	_, l, _ := native(t, Options{})
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l.Logger().Info("late")
	l.Logger().DPanic("very late") // must not wait for a goroutine that has ended
	if got := l.Dropped(); got != 2 {
		t.Errorf("%d lines dropped, want 2", got)
	}
}

func TestCloseWritesWhatWaits(t *testing.T) {
	j, l, _ := native(t, Options{})
	const lines = 500
	for range lines {
		l.Logger().Info("line")
	}
	closed := make(chan error)
	go func() { closed <- l.Close() }()
	for range lines {
		j.next(t)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if got := l.Dropped(); got != 0 {
		t.Errorf("%d lines dropped, want none", got)
	}
}

func TestPanicIsWrittenBeforeItHappens(t *testing.T) {
	j, l, _ := native(t, Options{})
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		if queued(t, j) == 0 {
			t.Error("nothing was sent before the panic")
		}
	}()
	l.Logger().Panic("broken")
}

// queued is the number of bytes of the first entry that lies in the socket.
func queued(t *testing.T, j *journald) (n int) {
	t.Helper()
	raw, err := j.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return n
}

func TestStderrThatNobodyReadsDoesNotHoldUpClose(t *testing.T) {
	t.Parallel() // it waits
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := openLog(t, Options{Format: "text", Stderr: w}, "")
	large := strings.Repeat("x", 1<<20) // more than a pipe holds
	l.Logger().Info("large", zap.String("text", large))
	l.Logger().Info("next")
	eventually(t, "the goroutine writes", func() bool { return len(l.queue) < 2 })
	err = l.Close()
	if err == nil || !strings.Contains(err.Error(), "2 lines or more not written") {
		t.Errorf("Close: %v, want an error with the number of lines", err)
	}
	r.Close() // ends the write, and with it the goroutine
	<-l.finished
	w.Close()
	if got := l.Dropped(); got != 2 {
		t.Errorf("%d lines dropped, want 2", got)
	}
}
