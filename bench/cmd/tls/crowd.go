package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// patience is how long anything that must happen may take.
const patience = 60 * time.Second

// crowd is clients of one server, on one loop. What is theirs is the loop's.
type crowd struct {
	conn.NopHandler
	loop    *reactor.Loop
	set     *conn.Set
	places  *conn.Handshakes
	ended   chan error
	all     []*client
	n       int             // that are wanted
	closed  bool            // each has a message in flight
	replies int             // that have come
	times   []time.Duration // of them, if they are wanted
	timed   bool
	err     error
	up      int
	ready   chan struct{} // closed when all have had a reply
}

// client is one connection.
type client struct {
	crowd *crowd
	conn  *conn.Conn
	want  []byte // what is on its way, and is to come back
	got   int    // of want
	sent  time.Duration
	busy  bool
	once  bool // it had a reply
}

// openCrowd connects n clients, each of which has had one reply then.
func openCrowd(ctx context.Context, addr string, cfg *tls.Config, n, size int) (*crowd, error) {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		return nil, err
	}
	if err := reactor.ReserveDescriptors(n + 200); err != nil {
		return nil, err
	}
	c := &crowd{loop: loop, set: conn.NewSet(loop, nil), places: conn.NewHandshakes(0), ended: make(chan error, 1), n: n, ready: make(chan struct{})}
	d, err := c.set.NewDialer(conn.DialConfig{
		Config:  conn.Config{Listener: "bench", Handler: c, Inline: true, TLS: cfg, Handshakes: c.places},
		Timeout: patience, Backoff: backoff.Policy{},
		OnDown: func(_ *conn.Client, why error, _ time.Duration) {
			if !errors.Is(why, conn.ErrDrained) {
				c.fail(fmt.Errorf("a connection is down: %w", why))
			}
		},
	})
	if err != nil {
		return nil, err
	}
	go func() { c.ended <- loop.Run() }()
	// Not all at once: the server's backlog is bounded.
	err = c.do(func() {
		var more func()
		began := 0
		more = func() {
			for ; began < n && began < c.up+100; began++ {
				x := &client{crowd: c, want: bytes.Repeat([]byte{byte(began), byte(began >> 8), 'a', '\n'}, size/4+1)[:size]}
				c.all = append(c.all, x)
				if _, err := d.Dial("tls://"+addr, x); err != nil {
					c.fail(err)
					return
				}
			}
			if began < n && c.err == nil {
				loop.After(5*time.Millisecond, more)
			}
		}
		more()
	})
	if err == nil {
		err = c.await(ctx, c.ready, n)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// await waits until n clients have had a reply.
func (c *crowd) await(ctx context.Context, ready chan struct{}, n int) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-ready:
		return c.failure()
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		up := 0
		_ = c.do(func() { up = c.up })
		return fmt.Errorf("tls: %d of %d clients have had a reply in %v", up, n, patience)
	}
}

// do has f called on the loop, and waits for it.
func (c *crowd) do(f func()) error {
	done := make(chan struct{})
	if err := c.loop.Post(func() { defer close(done); f() }); err != nil {
		return err
	}
	<-done
	return nil
}

func (c *crowd) fail(err error) {
	if c.err == nil {
		c.err = err
		if c.up < c.n {
			c.up = c.n
			close(c.ready)
		}
	}
}

func (c *crowd) failure() (err error) {
	if e := c.do(func() { err = c.err }); e != nil {
		return e
	}
	return err
}

// OnConnect sends the first message.
func (c *crowd) OnConnect(cn *conn.Conn) {
	x := cn.Client().Value().(*client)
	x.conn = cn
	cn.SetValue(x)
	x.say()
}

func (x *client) say() {
	if x.busy || x.conn == nil {
		return
	}
	x.busy, x.got, x.sent = true, 0, x.crowd.loop.Clock()
	if err := x.conn.Send(x.want); err != nil {
		x.crowd.fail(err)
	}
}

// OnMessage is given what has come of a reply.
func (c *crowd) OnMessage(cn *conn.Conn, m []byte) {
	x := cn.Value().(*client)
	if !x.busy || len(m) > len(x.want)-x.got || !bytes.Equal(m, x.want[x.got:x.got+len(m)]) {
		c.fail(fmt.Errorf("other bytes came back than were sent"))
		return
	}
	if x.got += len(m); x.got < len(x.want) {
		return
	}
	x.busy = false
	c.replies++
	if c.timed {
		c.times = append(c.times, c.loop.Clock()-x.sent)
	}
	if !x.once {
		x.once = true
		if c.up++; c.up == c.n {
			close(c.ready)
		}
	}
	if c.closed {
		x.say()
	}
}

// start has each client send its next message when a reply is in, until stop.
func (c *crowd) start() error {
	return c.do(func() {
		c.closed = true
		for _, x := range c.all {
			x.say()
		}
	})
}

func (c *crowd) stop() error { return c.do(func() { c.closed = false }) }

// count returns how many replies have come.
func (c *crowd) count() (n int, err error) {
	if e := c.do(func() { n, err = c.replies, c.err }); e != nil {
		return 0, e
	}
	return n, err
}

// pace has each client send a message every so often, spread evenly, and
// returns what ends that.
func (c *crowd) pace(every time.Duration) (stop func() error, err error) {
	var t *reactor.Timer
	err = c.do(func() {
		next := 0
		t = c.loop.Every(max(every/time.Duration(len(c.all)), time.Millisecond), func() {
			c.all[next].say()
			next = (next + 1) % len(c.all)
		})
		c.timed = true
	})
	return func() error { return c.do(func() { t.Stop() }) }, err
}

// taken returns the times of replies since it was called last, ascending, and
// how long the longest that is still to come has been on its way.
func (c *crowd) taken() (times []time.Duration, late time.Duration, err error) {
	e := c.do(func() {
		times, c.times, err = c.times, nil, c.err
		for _, x := range c.all {
			if x.busy {
				late = max(late, c.loop.Clock()-x.sent)
			}
		}
	})
	slices.Sort(times)
	return times, late, errors.Join(e, err)
}

// close ends the connections, in good order.
func (c *crowd) close() error {
	if err := c.loop.Post(func() { c.set.DrainOutgoing(conn.DrainPrompt, 10*time.Second, c.loop.Stop) }); err != nil {
		return err
	}
	err := <-c.ended
	c.places.Close()
	c.loop.Close()
	return errors.Join(err, c.set.Close())
}
