package conn

import (
	"errors"
	"sync"
)

var errGoexit = errors.New("the callback has ended its goroutine by runtime.Goexit")

// inbox is what waits for the Pool, in order. A connection has one only while
// something waits.
type inbox struct {
	events   []event
	head     int
	messages int // of the events
	bytes    int // of these messages
}

var inboxes = sync.Pool{New: func() any { return new(inbox) }}

// push puts an event behind those that wait for the Pool, and puts the
// connection on the Pool's list if it is not there. Loop only.
func (c *Conn) push(ev event) {
	c.mu.Lock()
	if c.inbox == nil {
		c.inbox = inboxes.Get().(*inbox)
	}
	c.inbox.events = append(c.inbox.events, ev)
	var settle bool
	if ev.kind == message {
		box := c.inbox
		box.messages++
		box.bytes += len(ev.message.bytes())
		l := &c.cfg.Limits
		if (box.messages >= l.QueueDepth || box.bytes >= l.MaxMessage) && !c.has(flagThrottled) {
			c.flags.Or(flagThrottled)
			settle = c.dirtyLocked()
		}
	}
	start := !c.has(flagRunning)
	c.flags.Or(flagRunning)
	c.mu.Unlock()
	if settle {
		c.set.settleLater(c)
	}
	if start {
		c.cfg.Pool.submit(c)
		c.set.loop.Yield()
	}
}

// pop takes the next event; ok is false if there is none, and then the
// connection is not running any more.
func (c *Conn) pop() (ev event, ok bool) {
	c.mu.Lock()
	settle := false
	if box := c.inbox; box != nil {
		ev, ok = box.events[box.head], true
		box.events[box.head] = event{}
		box.head++
		if ev.kind == message {
			box.messages--
			box.bytes -= len(ev.message.bytes())
			l := &c.cfg.Limits
			if c.has(flagThrottled) && box.messages <= l.QueueDepth/2 && box.bytes <= l.MaxMessage/2 {
				c.flags.And(^flagThrottled)
				settle = c.dirtyLocked()
			}
		}
		if box.head == len(box.events) {
			c.inbox = nil
			box.events, box.head = box.events[:0], 0
			inboxes.Put(box)
		}
	} else {
		if c.has(flagAwaited | flagUnsettled) {
			settle = c.dirtyLocked()
		}
		c.flags.And(^(flagRunning | flagAwaited | flagUnsettled))
	}
	c.mu.Unlock()
	if settle {
		c.set.settleLater(c)
	}
	return ev, ok
}

// inboxLenLocked returns how many messages wait for the Pool. It needs mu.
func (c *Conn) inboxLenLocked() int {
	if c.inbox == nil {
		return 0
	}
	return c.inbox.messages
}

// running says whether callbacks run on the Pool or wait for it. If so, the
// connection is settled again when that is over. Loop only.
func (c *Conn) running() bool {
	if !c.has(flagRunning) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.has(flagRunning) {
		return false
	}
	c.flags.Or(flagAwaited)
	return true
}

// runEvents calls up to n callbacks and says whether there may be more. r is
// the goroutine.
func (c *Conn) runEvents(r *runner, n int) bool {
	defer r.since.Store(0) // a callback may end its goroutine
	for range n {
		ev, ok := c.pop()
		if !ok {
			return false
		}
		r.since.Store(int64(c.set.loop.Clock()))
		c.runEvent(ev)
		r.since.Store(0) // before pop, after which it may be another runner's
	}
	return true
}

func (c *Conn) runEvent(ev event) {
	returned := false
	defer func() {
		if ev.message != nil {
			ev.message.free()
		}
		if v := recover(); v != nil {
			c.panicked(v)
		} else if !returned {
			c.panicked(errGoexit)
		}
	}()
	// After Close the application wants no more than to hear of the end.
	if ev.kind == closed || ev.kind == left || !c.has(flagGoodbye|flagCloseNow) {
		c.call(ev)
	}
	returned = true
}
