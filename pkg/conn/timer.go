package conn

import (
	"maps"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// timer is a named timer of a connection.
type timer struct {
	conn  *Conn
	name  string
	at    time.Duration
	armed *reactor.Timer // loop; nil: not armed
	moved bool           // it was set in the process from which the connection came
}

// SetTimer has OnTimer called with name once, when d has passed. It replaces
// the timer of the same name; after Close and at the connection's end there
// are no more timers.
func (c *Conn) SetTimer(name string, d time.Duration) {
	t := &timer{conn: c, name: name, at: c.set.loop.Clock() + d}
	c.mu.Lock()
	if c.has(flagsEnded) {
		c.mu.Unlock()
		return
	}
	x := c.extraLocked()
	if x.timers == nil {
		x.timers = make(map[string]*timer)
	}
	old := x.timers[name]
	x.timers[name] = t
	c.mu.Unlock()
	// An error means that no timer of this loop will ever be over.
	_ = c.set.loop.Post(func() {
		old.stop()
		t.start()
	})
}

// StopTimer takes back SetTimer: OnTimer is not called with name any more,
// unless it runs already. A name without a timer is no fault.
func (c *Conn) StopTimer(name string) {
	c.mu.Lock()
	timers := c.timersLocked()
	t := timers[name]
	delete(timers, name)
	c.mu.Unlock()
	if t != nil {
		_ = c.set.loop.Post(t.stop)
	}
}

// start arms t, unless it was taken back before the loop came to it. Loop only.
func (t *timer) start() {
	c := t.conn
	c.mu.Lock()
	current := c.timersLocked()[t.name] == t && !c.has(flagFrozen)
	c.mu.Unlock()
	if !current || t.armed != nil {
		return
	}
	loop := c.set.loop
	t.armed = loop.After(t.at-loop.Clock(), func() {
		t.armed = nil
		if !c.has(flagFreezing) { // else it is over once the freeze is
			c.deliver(event{kind: timerOver, timer: t})
		}
	})
}

// startTimers arms the timers that are not. Loop only.
func (c *Conn) startTimers() {
	for _, t := range c.allTimers() {
		t.start()
	}
}

// stopTimers disarms all timers, which stay what they are. Loop only.
func (c *Conn) stopTimers() {
	for _, t := range c.allTimers() {
		t.stop()
	}
}

func (c *Conn) allTimers() []*timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	timers := c.timersLocked()
	if len(timers) == 0 {
		return nil
	}
	return slices.Collect(maps.Values(timers))
}

// stop disarms t, which may be nil. Loop only.
func (t *timer) stop() {
	if t == nil || t.armed == nil {
		return
	}
	t.armed.Stop()
	t.armed = nil
}

// takeTimer says whether t is still to be told, and takes it off the list.
func (c *Conn) takeTimer(t *timer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	timers := c.timersLocked()
	if timers[t.name] != t || c.has(flagsEnded) {
		return false
	}
	delete(timers, t.name)
	if len(timers) == 0 {
		c.extra.Load().timers = nil
	}
	return true
}
