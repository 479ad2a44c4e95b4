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
				if len(r.set.warm) != 1 || c.layered().warm != 0 || r.set.cooling == nil {
					t.Errorf("%d connections are warm, this one is number %d, want another one", len(r.set.warm), c.layered().warm)
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

func TestConnectionsThatAreOverAreNotKeptWarm(t *testing.T) {
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	var clients []*tls.Conn
	for range 5 {
		c := handshaken(t, r.client(cfg), clientTLS(tls.VersionTLS13))
		write(t, c, "hello")
		expect(t, c, "hello")
		clients = append(clients, c)
	}
	for i, next := range []int{2, 0, 4, 3, 1} { // from within, the first, the last
		clients[next].Close()
		left := len(clients) - i - 1
		r.until("the closed connection is forgotten", func() bool { return len(r.set.warm) == left })
		r.do(func() {
			for i, c := range r.set.warm {
				if c.state == Closed || c.layered().warm != int32(i)+1 {
					t.Errorf("place %d has a connection that is %v and says %d", i, c.state, c.layered().warm-1)
				}
			}
			if left > 0 {
				return
			}
			r.set.cool()
			if r.set.cooling != nil {
				t.Error("a timer is left for nobody")
			}
		})
	}
}
