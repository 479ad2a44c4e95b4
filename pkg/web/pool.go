package web

import "sync"

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
	defer func() {
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
			more = q.run(runLength)
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
