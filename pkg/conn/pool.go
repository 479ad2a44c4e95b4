package conn

import "sync"

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
	workers int
	idle    int // waiting for work and not called yet
	closed  bool
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
	case p.workers < p.max && !p.closed:
		p.workers++
		p.wg.Go(p.run)
	}
}

func (p *Pool) run() {
	// A callback that ends its goroutine (runtime.Goexit) gets another one
	// for those that wait.
	defer p.left()
	for c := p.take(); c != nil; c = p.take() {
		more := true
		func() {
			defer func() {
				if more {
					p.submit(c)
				}
			}()
			more = c.runEvents(runLength)
		}()
	}
}

func (p *Pool) left() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers--
	if len(p.queue) > p.head && p.workers < p.max {
		p.workers++
		p.wg.Go(p.run)
	}
}

// take returns the next connection, or nil if the caller is not needed any
// more.
func (p *Pool) take() *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
		if p.closed || p.idle >= keepIdle {
			return nil
		}
		p.idle++
		p.work.Wait()
	}
	c := p.queue[p.head]
	p.queue[p.head] = nil
	p.head++
	if p.head >= 1024 && p.head*2 >= len(p.queue) {
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	return c
}
