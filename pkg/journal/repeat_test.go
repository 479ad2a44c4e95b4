package journal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// watcher is a repeats in a bubble of fake time, and what it has reported.
type watcher struct {
	repeats
	told    sync.Mutex
	reports []string
}

func newWatcher() *watcher {
	w := &watcher{repeats: repeats{seen: make(map[repeatKey]*repeated)}}
	w.report = func(r repeated) {
		w.told.Lock()
		defer w.told.Unlock()
		w.reports = append(w.reports, fmt.Sprintf("%s %d", r.key.message, r.held))
	}
	return w
}

// say logs a line n times and returns how often it was written.
func (w *watcher) say(n int, message string, fields ...zapcore.Field) (written int) {
	key := repeatKey{level: zap.WarnLevel, message: message}.with(fields)
	for range n {
		if !w.hold(key, &core{}, time.Now()) {
			written++
		}
	}
	return written
}

func (w *watcher) wantReports(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.told.Lock()
	defer w.told.Unlock()
	slices.Sort(w.reports)
	if !slices.Equal(w.reports, want) {
		t.Errorf("reports %q, want %q", w.reports, want)
	}
	w.reports = nil
}

func TestRepeatedLineIsWrittenAFewTimesAndThenCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatcher()
		if n := w.say(100, "paused"); n != repeatBurst {
			t.Errorf("written %d times, want %d", n, repeatBurst)
		}
		time.Sleep(repeatInterval - time.Nanosecond)
		w.say(1, "paused")
		w.wantReports(t)
		time.Sleep(time.Nanosecond)
		w.wantReports(t, "paused 96")
		// The next interval begins with the next line.
		if n := w.say(repeatBurst, "paused"); n != repeatBurst {
			t.Errorf("written %d times in the next interval, want %d", n, repeatBurst)
		}
		time.Sleep(repeatInterval)
		if n := w.say(repeatBurst, "paused"); n != repeatBurst {
			t.Errorf("written %d times in the one after, want %d", n, repeatBurst)
		}
		time.Sleep(repeatInterval)
		w.wantReports(t)
	})
}

func TestLinesOfOtherListenersAndWorkersAreNoRepetitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatcher()
		for _, fields := range [][]zap.Field{
			nil, {zap.String("listener", "a")}, {zap.String("listener", "b")}, {zap.Int("worker", 0)}, {zap.Int("worker", 1)},
			{zap.Int("worker", 1), zap.String("listener", "a")},
		} {
			if n := w.say(repeatBurst, "paused", append(fields, zap.Int("pid", 7))...); n != repeatBurst {
				t.Errorf("%v: written %d times, want %d", fields, n, repeatBurst)
			}
		}
		if n := w.say(1, "paused", zap.Int("pid", 8)); n != 0 {
			t.Error("another pid makes another line")
		}
		w.close()
		w.wantReports(t, "paused 1")
		if n := w.say(3, "paused"); n != 3 {
			t.Errorf("written %d times after the end, want 3", n)
		}
	})
}

func TestDifferentLinesThatAreWatchedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatcher()
		for i := range 3 * maxRepeats {
			w.say(1, fmt.Sprint(i))
		}
		if len(w.seen) > maxRepeats {
			t.Errorf("%d lines are watched", len(w.seen))
		}
		if n := w.say(100, "another"); n != 100 {
			t.Errorf("written %d times, want all, for it is not watched", n)
		}
		time.Sleep(repeatInterval)
		if n := w.say(100, "another"); n != repeatBurst {
			t.Errorf("written %d times when there is room again, want %d", n, repeatBurst)
		}
		w.close()
	})
}

func TestRepetitionsAreToldWithTheFieldsOfTheirLine(t *testing.T) {
	stderr := newCollector(t)
	l := openLog(t, Options{Format: "text", Stderr: stderr.w, Fields: []zap.Field{zap.Int("worker", 3)}}, t.TempDir()+"/none")
	for range 20 {
		l.Logger().Error("accepting paused", zap.String("listener", "web"), zap.Error(errors.New("EMFILE")))
		l.Logger().Info("as often as it is said")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	out := stderr.all()
	if n := strings.Count(out, "accepting paused worker=3 listener=web"); n != repeatBurst {
		t.Errorf("written %d times, want %d:\n%s", n, repeatBurst, out)
	}
	if n := strings.Count(out, "as often as it is said"); n != 20 {
		t.Errorf("a line of information is written %d times, want 20", n)
	}
	if want := fmt.Sprintf("line repeated worker=3 line=\"accepting paused\" times=%d listener=web", 20-repeatBurst); strings.Count(out, want) != 1 {
		t.Errorf("want once %q in:\n%s", want, out)
	}
}
