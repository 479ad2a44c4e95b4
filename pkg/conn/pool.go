package conn

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultPool is the size of a Pool that was given none.
	DefaultPool = 256

	// keepIdle is how many goroutines wait for more work; others end.
	keepIdle = 8

	// runLength is how many callbacks of one connection run before others
	// have their turn.
	runLength = 16
)

// Pool is a bounded number of goroutines that run callbacks. Each connection
// is on at most one of them at a time, so its callbacks stay in order. A Pool
// may serve several sets and listeners.
type Pool struct {
	max int
	wg  sync.WaitGroup

	// Guarded by mu.

	mu      sync.Mutex
	work    sync.Cond // queue grew, or closed
	queue   []*Conn   // each at most once
	head    int       // of queue
	runners []*runner
	idle    int // waiting for work and not called yet
	closed  bool
}

// runner is one goroutine of a Pool.
type runner struct {
	conn  *Conn        // on whose callbacks it is, or was last; guarded by the Pool's mu
	since atomic.Int64 // since when a callback runs, by the loop's clock; 0: none
}

// NewPool makes a Pool of at most max goroutines, which are started when they
// are needed; max <= 0 means DefaultPool. The caller ends it by Close.
func NewPool(max int) *Pool {
	if max <= 0 {
		max = DefaultPool
	}
	p := &Pool{max: max}
	p.work.L = &p.mu
	return p
}

// Close waits until all callbacks that were due have returned, and ends the
// goroutines. It is to be called when the loops have ended that feed it:
// callbacks that become due later are not called. A callback must not call it.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.work.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
}

// submit puts c on the list. Any goroutine may call it.
func (p *Pool) submit(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, c)
	p.staffLocked()
}

// staffLocked sees to it that somebody comes for what is on the list.
func (p *Pool) staffLocked() {
	switch {
	case p.idle > 0:
		p.idle--
		p.work.Signal()
	case len(p.runners) < p.max && !p.closed:
		p.hireLocked()
	}
}

// hireLocked starts one more goroutine. It needs mu.
func (p *Pool) hireLocked() {
	r := new(runner)
	p.runners = append(p.runners, r)
	p.wg.Go(func() { p.run(r) })
}

// Running returns how many callbacks run, and the start of the one that has
// run for the longest time, or has last called Conn.Working, by the clock of
// its connection's loop; 0 if none runs. Any goroutine may call it.
func (p *Pool) Running() (n int, oldest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.runners {
		since := time.Duration(r.since.Load())
		if since == 0 {
			continue
		}
		if n++; n == 1 || since < oldest {
			oldest = since
		}
	}
	return n, oldest
}

// Working says that the callback which runs is well, however long it takes:
// what bounds its time, such as a worker's handler_timeout, starts anew. It
// does nothing for Inline callbacks, which hold up the loop and have no such
// time.
func (c *Conn) Working() {
	if c.cfg.Pool != nil {
		c.cfg.Pool.working(c)
	}
}

func (p *Pool) working(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.runners {
		if r.conn != c {
			continue
		}
		if since := r.since.Load(); since != 0 {
			r.since.CompareAndSwap(since, int64(c.set.loop.Clock())) // it may end meanwhile
		}
	}
}

func (p *Pool) run(r *runner) {
	// A callback that ends its goroutine (runtime.Goexit) gets another one
	// for those that wait.
	defer p.left(r)
	for c := p.take(r); c != nil; c = p.take(r) {
		more := true
		func() {
			defer func() {
				if more {
					p.submit(c)
				}
			}()
			more = c.runEvents(r, runLength)
		}()
	}
}

func (p *Pool) left(r *runner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.runners, r)
	p.runners = slices.Delete(p.runners, i, i+1)
	if len(p.queue) > p.head && len(p.runners) < p.max {
		p.hireLocked()
	}
}

// take returns the next connection, or nil if the caller is not needed any
// more.
func (p *Pool) take(r *runner) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.conn = nil
	for p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
		if p.closed || p.idle >= keepIdle {
			return nil
		}
		p.idle++
		p.work.Wait()
	}
	c := p.queue[p.head]
	r.conn = c
	p.queue[p.head] = nil
	p.head++
	if p.head >= 1024 && p.head*2 >= len(p.queue) {
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	return c
}
