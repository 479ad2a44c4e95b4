package web

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// keepIdle is how many goroutines wait for more work while there are
	// connections; others end.
	keepIdle = 8

	// runLength is how many requests of one connection run before others have
	// their turn.
	runLength = 16
)

// pool is a bounded number of goroutines, and a bounded queue before it.
type pool struct {
	wg sync.WaitGroup

	// Set once.

	max, maxWaiting int

	// Guarded by mu.

	mu      sync.Mutex
	work    sync.Cond // the queue grew, or resting changed
	queue   []*peer   // each at most once
	head    int       // of queue
	running int       // goroutines
	idle    int       // of these, waiting for work and not called yet
	resting bool      // there are no connections: nobody waits for work
	runners []*runner // one for each goroutine
}

// runner is a goroutine of the pool.
type runner struct {
	since atomic.Int64 // since when a handler works on a request and has not begun to answer, by the Handler's clock; 0: none does
}

// progressed says that the handler has got on, at the time now.
func (r *runner) progressed(now time.Duration) {
	if r == nil {
		return
	}
	if since := r.since.Load(); since != 0 {
		r.since.CompareAndSwap(since, int64(now)) // it may answer meanwhile
	}
}

// oldest is since when the handler works that has worked longest without
// beginning to answer; 0: none does.
func (p *pool) oldest() (oldest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.runners {
		if since := time.Duration(r.since.Load()); since != 0 && (oldest == 0 || since < oldest) {
			oldest = since
		}
	}
	return oldest
}

func (p *pool) init(max, maxWaiting int) {
	p.max, p.maxWaiting = max, maxWaiting
	p.work.L = &p.mu
	p.resting = true
}

// submit has q.run called. It refuses, unless must is set, if too many wait.
func (p *pool) submit(q *peer, must bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.idle > 0:
		p.idle--
		p.work.Signal()
	case p.running < p.max:
		p.running++
		p.wg.Go(p.run)
	case !must && len(p.queue)-p.head >= p.maxWaiting:
		return false
	}
	p.queue = append(p.queue, q)
	return true
}

func (p *pool) run() {
	// A handler that ends its goroutine (runtime.Goexit) gets another one
	// for those that wait.
	done := false
	r := new(runner)
	p.mu.Lock()
	p.runners = append(p.runners, r)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.runners = slices.DeleteFunc(p.runners, func(other *runner) bool { return other == r })
		p.mu.Unlock()
		if !done {
			p.replace()
		}
	}()
	for q := p.take(); q != nil; q = p.take() {
		func() {
			more := true
			defer func() {
				if more {
					p.submit(q, true)
				}
			}()
			more = q.run(r, runLength)
		}()
	}
	done = true
}

func (p *pool) replace() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wg.Go(p.run)
}

// take returns the next of the queue, nil if the caller is not needed any more.
func (p *pool) take() *peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
		if p.resting || p.idle >= keepIdle {
			p.running--
			return nil
		}
		p.idle++
		p.work.Wait()
	}
	q := p.queue[p.head]
	p.queue[p.head] = nil
	p.head++
	if p.head >= 1024 && p.head*2 >= len(p.queue) {
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	return q
}

// rest says whether there are connections; without, goroutines do not wait.
func (p *pool) rest(resting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = resting
	if resting && p.idle > 0 {
		p.idle = 0
		p.work.Broadcast()
	}
}
