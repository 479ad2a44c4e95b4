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
