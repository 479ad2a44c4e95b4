package worker

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
)

// SIGWINCH and SIGPWR tell the helper to be ready, and not.
const (
	beReady   = unix.SIGWINCH
	beUnready = unix.SIGPWR
)

func TestWorkerThatIsNotReadyLeavesItsConnectionsToOthers(t *testing.T) {
	s := listen(t)
	p := serving(t, "unready", 0, s)
	open := dial(t, s)
	ask(t, open, "before")
	p.signal(beUnready)
	if r := expect[link.Readiness](p); r.Ready || r.Reason != "no database" {
		t.Fatalf("said %+v", r)
	}
	if p.seat.Unready.Load() != 1 {
		t.Error("its seat says that it is ready")
	}
	ask(t, open, "open connections are served on")
	late := dial(t, s)
	if _, err := io.WriteString(late, "late"); err != nil {
		t.Fatal(err)
	}
	ask(t, open, "and still")
	if n := p.seat.Accepts.Load(); n != 1 {
		t.Fatalf("%d connections accepted, want 1", n)
	}
	p.tell(link.Rearm{}) // is no reason to accept
	ask(t, open, "and still")
	p.signal(beReady)
	if r := expect[link.Readiness](p); !r.Ready {
		t.Fatalf("said %+v", r)
	}
	got := make([]byte, len("late"))
	if _, err := io.ReadFull(late, got); err != nil {
		t.Fatalf("got %q, %v: who waited is not served", got, err)
	}
	if p.seat.Unready.Load() != 0 {
		t.Error("its seat says that it is not ready")
	}
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	p.awaitExit(0)
}

func TestWorkerThatIsNotReadyCanBeDrained(t *testing.T) {
	p := serving(t, "unready", 0, listen(t))
	p.signal(beUnready)
	expect[link.Readiness](p)
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	// Too late: it may be gone already.
	if err := p.cmd.Process.Signal(beReady); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	p.awaitExit(0)
}

func TestStartWaitsForTheApplicationsReadiness(t *testing.T) {
	s := listen(t)
	p := spawn(t, "not ready at first", 0, s)
	p.wrote("started, and not ready yet")
	p.signal(beReady)
	expect[link.Ready](p)
	p.tell(link.Accept{})
	ask(t, dial(t, s), "hello")
}

func TestWorkerTellsItsMetricsWhenAskedAndAtItsEnd(t *testing.T) {
	p := serving(t, "counts", 0, listen(t))
	want := func(g gathered, id uint64, total metrics.Number) {
		t.Helper()
		families, err := metrics.Decode(g.text)
		if err != nil || g.ID != id || g.Error != "" {
			t.Fatalf("answer %+v, %v", g, err)
		}
		got := make(map[string]metrics.Number)
		for _, f := range families {
			got[f.Name] = f.Series[0].Value
		}
		if got["test_total"] != total || got["test_open"] != 3 {
			t.Errorf("told %v, want test_total %v and test_open 3", got, total)
		}
	}
	p.tell(link.Gather{ID: 5, What: "metrics"})
	want(p.answer(), 5, 1)
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	want(p.answer(), link.Legacy, 11)
	p.awaitExit(0)
}

func TestMetricsThatHangDoNotKeepTheWorker(t *testing.T) {
	p := serving(t, "counts and hangs", 0, listen(t))
	p.tell(link.Drain{Prompt: true, Grace: time.Hour})
	expect[link.Draining](p)
	p.awaitExit(0)
	p.wrote("last metrics not left behind")
}

func TestQuestionThatNobodyAnswersIsRefused(t *testing.T) {
	p := serving(t, "", 0, listen(t))
	p.tell(link.Gather{ID: 6, What: "weather"})
	if g := expect[link.Gathered](p); g.ID != 6 || g.Error != `this worker cannot tell "weather"` {
		t.Errorf("answer %+v", g)
	}
}
