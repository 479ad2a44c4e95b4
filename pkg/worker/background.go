package worker

import (
	"context"
	"sync"
)

// background is what Worker.Go has started.
type background struct {
	ctx    context.Context // set once
	cancel context.CancelFunc
	done   chan struct{} // closed when it is over and nothing runs

	// Guarded by mu.

	mu      sync.Mutex
	running int
	over    bool // nothing more is started
}

func (b *background) init() {
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.done = make(chan struct{})
}

// Go runs f on a goroutine of its own, for work that is not of one
// connection. When the worker's connections are gone, or its grace is over,
// ctx ends, and the worker waits for f until the grace is over, but at least
// half a second, before it calls OnStop. A panic in f is logged and counted,
// and costs nothing else. Go returns false, and f is not called, when ctx
// would have ended already. Any goroutine may call it.
func (w *Worker) Go(f func(ctx context.Context)) bool {
	b := &w.background
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return false
	}
	b.running++
	go func() {
		defer w.backgroundReturned() // also of one that ends by runtime.Goexit
		w.guarded("background function", func() { f(b.ctx) })
	}()
	return true
}

func (w *Worker) backgroundReturned() {
	b := &w.background
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running--; b.running == 0 && b.over {
		close(b.done)
		w.post(func() { w.drain.progress() })
	}
}

// end ends the context and says whether nothing runs any more. From then on
// nothing is started.
func (b *background) end() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.over = true
		b.cancel()
		if b.running == 0 {
			close(b.done)
		}
	}
	return b.running == 0
}
