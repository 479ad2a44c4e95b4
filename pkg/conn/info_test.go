package conn

import (
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

func TestInfoSaysHowAConnectionIs(t *testing.T) {
	r := newRig(t)
	cfg := r.config(funcs{message: echo(t)}, true)
	cfg.Protocol = text.Protocol{MaxLine: 100}
	client, c := r.pair(cfg)
	write(t, client, "line\nhalf")
	expect(t, client, "line\n")
	r.until("half a line waits", func() bool { return c.Info().Buffered == 4 })
	r.do(func() {
		got := c.Info()
		if got.Conn != c || got.State != "open" || got.Queued != 0 || got.Messages != 0 || got.Age < 0 || got.Age > patience || got.Idle > patience {
			t.Errorf("%+v", got)
		}
	})
	c.Pause()
	r.do(func() {
		if got := c.Info().State; got != "paused" {
			t.Errorf("state %q, want paused", got)
		}
	})
	c.Resume()
	c.Close(nil)
	r.do(func() {
		if got := c.Info().State; got != "closing" && got != "closed" {
			t.Errorf("state %q, want closing", got)
		}
	})
	client.Close()
}

func TestAgeSurvivesTheWrapOfItsClock(t *testing.T) {
	const wrap = tick << 32
	for _, tt := range []struct{ opened, now, want time.Duration }{
		{0, 0, 0},
		{time.Second, time.Minute, 59 * time.Second},
		{wrap - time.Second, wrap + time.Second, 2 * time.Second},
		{15 * time.Millisecond, 29 * time.Millisecond, tick},
	} {
		if got := ticksAt(tt.opened).until(tt.now); got != tt.want {
			t.Errorf("from %v to %v: %v, want %v", tt.opened, tt.now, got, tt.want)
		}
	}
}

func TestDeadlineFromAStampIsNeverEarlyAndHardlyLate(t *testing.T) {
	const wrap = tick << 32
	const limit = 30 * time.Second
	for _, at := range []time.Duration{0, 1, tick - 1, tick, 3*tick/2 + 1, wrap - 1, wrap, 5*wrap + 7*time.Millisecond} {
		for _, passed := range []time.Duration{0, 1, tick, tick + 1, time.Minute} {
			over := ticksAt(at).over(limit, at+passed)
			if late := over - (at + limit); late <= 0 || late > tick {
				t.Errorf("stamp of %v, %v after it: over %v late, want up to %v", at, passed, late, tick)
			}
		}
	}
}

func TestStampIsMovedButNotPastNow(t *testing.T) {
	const wrap = tick << 32
	for _, tt := range []struct {
		name          string
		stamp, d, now time.Duration
		want          time.Duration
	}{
		{name: "by nothing", stamp: time.Second, d: 0, now: 2 * time.Second, want: time.Second},
		{name: "rounded up", stamp: time.Second, d: 1, now: 2 * time.Second, want: time.Second + tick},
		{name: "past now", stamp: time.Second, d: time.Minute, now: 2 * time.Second, want: 2 * time.Second},
		{name: "over the wrap", stamp: wrap - time.Second, d: 2 * time.Second, now: wrap + 3*time.Second, want: wrap + time.Second},
		{name: "to what means none", stamp: wrap - time.Second, d: time.Second, now: wrap, want: wrap + tick},
	} {
		if got := ticksAt(tt.stamp).moved(tt.d, tt.now); got != ticksAt(tt.want) {
			t.Errorf("%s: %d, want %d", tt.name, got, ticksAt(tt.want))
		}
	}
}

func TestTheLaterOfTwoStamps(t *testing.T) {
	for _, tt := range []struct{ a, b, want ticks }{{1, 2, 2}, {2, 1, 2}, {7, 7, 7}, {1<<32 - 1, 3, 3}, {3, 1<<32 - 1, 3}} {
		if got := tt.a.later(tt.b); got != tt.want {
			t.Errorf("of %d and %d: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
