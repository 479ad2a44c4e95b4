package conn

import (
	"crypto/tls"
	"testing"
)

func TestKeysOfIdleConnectionsAreCooledAndMadeAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := newRig(t)
		cfg := secured(t, r.config(funcs{message: echo(t)}, inline))
		told := make(chan int, 16)
		cfg.Handshakes.OnCooled(func(n int) { told <- n })
		nc, c := r.tcp(cfg)
		client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
		idle := handshaken(t, r.client(cfg), clientTLS(tls.VersionTLS13))
		for range 3 {
			for _, nc := range []*tls.Conn{client, idle} {
				write(t, nc, "hello")
				expect(t, nc, "hello")
			}
			r.do(func() {
				if len(r.set.warm) != 2 || r.set.cooling == nil {
					t.Errorf("%d connections are warm, timer %v, want 2 and one", len(r.set.warm), r.set.cooling)
				}
				c.lastIn -= ticksAt(coolAfter)
				c.lastOut -= ticksAt(coolAfter)
				r.set.cool()
				if len(r.set.warm) != 1 || c.layered().warm || r.set.cooling == nil {
					t.Errorf("%d connections are warm, this one %v, want another one", len(r.set.warm), c.layered().warm)
				}
				r.set.warm[0].lastIn -= ticksAt(coolAfter)
				r.set.warm[0].lastOut -= ticksAt(coolAfter)
				r.set.cool()
				if len(r.set.warm) != 0 || r.set.cooling != nil {
					t.Errorf("%d connections are warm, timer %v, want none", len(r.set.warm), r.set.cooling)
				}
			})
			for range 2 {
				if n := receive(t, told); n != 1 {
					t.Errorf("told of %d, want 1", n)
				}
			}
		}
	})
}
