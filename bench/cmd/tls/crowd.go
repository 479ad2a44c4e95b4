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
	depth   int             // messages that each has in flight; 0: it says no more
	replies int             // that have come
	times   []time.Duration // of them, if they are wanted
	timed   bool
	err     error
	up      int
	ready   chan struct{} // closed when all have had a reply
	talking int           // of a crowd that is to stop: who still waits for replies
	silent  chan struct{} // closed when nobody does
}

// client is one connection.
type client struct {
	crowd  *crowd
	conn   *conn.Conn
	number int
	size   int    // of a message
	text   []byte // a message, again and again: one more than may be on their way
	got    int    // bytes that have come of the first of those
	flying int    // messages that are on their way
	sent   time.Duration
	once   bool // it had a reply
}

// openCrowd connects n clients, each of which has had one reply then.
func openCrowd(ctx context.Context, addr string, cfg *tls.Config, n int) (*crowd, error) {
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
				x := &client{crowd: c, number: began}
				x.set(64, 1)
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
		err = c.await(ctx, c.ready, "clients have a reply each")
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// await waits until done is closed, which means what.
func (c *crowd) await(ctx context.Context, done chan struct{}, what string) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-done:
		return c.failure()
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		up, talking := 0, 0
		_ = c.do(func() { up, talking = c.up, c.talking })
		return fmt.Errorf("tls: not in %v: %s: of %d %d have had a reply, %d wait for one", patience, what, c.n, up, talking)
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
		if c.talking > 0 {
			c.talking = 0
			close(c.silent)
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
	x.say(1, nil)
}

// set has the client say from now on messages of that size, so many at a time.
func (x *client) set(size, depth int) {
	x.size = size
	x.text = make([]byte, size*(depth+1))
	for i := range x.text {
		x.text[i] = byte(i % size)
		if k := i % size; k < 2 {
			x.text[i] = byte(x.number >> (8 * k))
		}
	}
}

// say sends n messages. What has come, if it is just these, may be sent back
// from where it lies, as it is cheaper.
func (x *client) say(n int, same []byte) {
	if x.conn == nil {
		return
	}
	if x.flying += n; x.crowd.timed {
		x.sent = x.crowd.loop.Clock()
	}
	if len(same) != n*x.size {
		same = x.text[:n*x.size]
	}
	if err := x.conn.Send(same); err != nil {
		x.crowd.fail(err)
	}
}

// OnMessage is given what has come of replies.
func (c *crowd) OnMessage(cn *conn.Conn, m []byte) {
	x := cn.Value().(*client)
	if end := x.got + len(m); end > x.flying*x.size || !bytes.Equal(m, x.text[x.got:end]) {
		c.fail(errors.New("other bytes came back than were sent"))
		return
	}
	same := m
	if x.got > 0 {
		same = nil
	}
	ended := (x.got + len(m)) / x.size
	x.got = (x.got + len(m)) % x.size
	if ended == 0 {
		return
	}
	x.flying -= ended
	c.replies += ended
	if c.timed {
		c.times = append(c.times, c.loop.Clock()-x.sent)
	}
	if !x.once {
		x.once = true
		if c.up++; c.up == c.n {
			close(c.ready)
		}
	}
	if c.depth == 0 {
		c.settle(x)
		return
	}
	x.say(ended, same)
}

// settle is told that a client has a reply and says no more.
func (c *crowd) settle(x *client) {
	if x.flying == 0 && c.talking > 0 {
		if c.talking--; c.talking == 0 {
			close(c.silent)
		}
	}
}

// start has each client keep so many messages of that size in flight, until stop.
func (c *crowd) start(size, depth int) error {
	return c.do(func() {
		c.depth = depth
		for _, x := range c.all {
			x.set(size, depth)
			x.say(depth, nil)
		}
	})
}

// stop ends that, and waits for the replies that are still to come.
func (c *crowd) stop(ctx context.Context) error {
	silent := make(chan struct{})
	err := c.do(func() {
		c.depth, c.talking, c.silent = 0, len(c.all), silent
		if c.err != nil {
			c.talking = 0
			close(silent)
			return
		}
		for _, x := range c.all {
			c.settle(x)
		}
	})
	if err != nil {
		return err
	}
	return c.await(ctx, silent, "clients have all their replies")
}

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
			if x := c.all[next]; x.flying == 0 {
				x.say(1, nil)
			}
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
			if x.flying > 0 {
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
