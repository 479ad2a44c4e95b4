package conn

import (
	"fmt"
	"strconv"
)

// Reason is why a connection has come from another process.
type Reason uint8

const (
	// Reload means that the service has new code or a new configuration.
	Reload Reason = iota + 1

	// Move means that somebody wanted it here: the application, the
	// operator, or the balance of the load.
	Move

	// Crash means that the process that had it is dead.
	Crash

	// Restart means that the service was restarted, and has new code or a new
	// configuration by that. All comes along that comes with a Reload.
	Restart
)

// String returns the reason in lower case.
func (r Reason) String() string {
	switch r {
	case Reload:
		return "reload"
	case Move:
		return "move"
	case Crash:
		return "crash"
	case Restart:
		return "restart"
	default:
		return "conn.Reason(" + strconv.Itoa(int(r)) + ")"
	}
}

// MoveTo asks for the connection to be given to the worker in a slot, from 0
// on; the last call counts. It only leaves a mark: Config.Move is told of it
// after the callbacks, and whether and when the connection moves is up to that.
// It returns ErrPinned if the connection does not move at all, ErrClosed after
// Close or the connection's end, a *MovedError if it has moved already.
// Any goroutine may call it.
func (c *Conn) MoveTo(slot int) error {
	if slot < 0 {
		return fmt.Errorf("conn: slot %d, want at least 0", slot)
	}
	if c.pinned() || c.cfg.Move == nil {
		return ErrPinned
	}
	c.mu.Lock()
	if c.has(flagsEnded) {
		defer c.mu.Unlock()
		return c.goneLocked()
	}
	c.extraLocked().slot = int32(slot)
	c.flags.Or(flagMove)
	first := c.dirtyLocked()
	c.mu.Unlock()
	if first && !c.set.settleLater(c) {
		return ErrClosed
	}
	return nil
}

// Pinned says whether the connection does not move: Config.Pinned. Any
// goroutine may call it.
func (c *Conn) Pinned() bool { return c.cfg.Pinned }

// Bind says that the connection belongs to id: it is for Config.Bound to
// decide what that means, such as that all of an id are to be served by one
// worker. Like MoveTo it only leaves a mark, and the last call counts. It does
// nothing without a Config.Bound, and on a connection that is over or has
// moved. Any goroutine may call it.
func (c *Conn) Bind(id uint64) {
	if c.cfg.Bound == nil {
		return
	}
	c.mu.Lock()
	if c.has(flagsEnded) {
		c.mu.Unlock()
		return
	}
	c.extraLocked().bound = id
	c.flags.Or(flagBind)
	first := c.dirtyLocked()
	c.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
}

// tellMove acts on MoveTo and Bind.
func (c *Conn) tellMove(flags uint32) {
	c.mu.Lock()
	x := c.extra.Load()
	slot, id := int(x.slot), x.bound
	c.mu.Unlock()
	if flags&flagBind != 0 {
		c.cfg.Bound(c, id)
	}
	if flags&flagMove != 0 {
		c.cfg.Move(c, slot)
	}
}

// Hold keeps the connection here until Release, as a running callback does:
// it is not frozen, and not at a message boundary. Whoever works for the
// connection outside of its callbacks, and changes what is to travel with it,
// calls Hold in the callback that starts the work and Release when it is
// done. It may be called more than once, and counts. It returns nil, or why
// the connection could not be held: ErrFrozen if it is about to move, which
// cannot be in a callback, ErrClosed if it is over, or a *MovedError. Any
// goroutine may call it.
func (c *Conn) Hold() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.has(flagClosed):
		return c.goneLocked()
	case c.has(flagFrozen):
		return ErrFrozen
	}
	c.extraLocked().holds++
	return nil
}

// Release takes back one Hold that has returned nil. It panics if there is
// none. Any goroutine may call it.
func (c *Conn) Release() {
	c.mu.Lock()
	x := c.extra.Load()
	if x == nil || !c.keptLocked() {
		c.mu.Unlock()
		panic("conn: Release without Hold")
	}
	x.holds--
	first := !c.keptLocked() && c.dirtyLocked()
	c.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
}

// Partial says whether the application keeps a part of a message, or messages
// that it has not handled, of which EncodeValue tells: then the connection is not at a
// message boundary, but it can move. The last call counts. Any goroutine may
// call it.
func (c *Conn) Partial(yes bool) {
	c.mu.Lock()
	x := c.extra.Load()
	if c.has(flagClosed) || x == nil && !yes || x != nil && x.partly == yes {
		c.mu.Unlock()
		return
	}
	x = c.extraLocked()
	x.partly = yes
	first := false
	if yes {
		x.holds++
	} else {
		x.holds--
		first = x.holds == 0 && c.dirtyLocked()
	}
	c.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
}

// Leaving says that another process is to have the connection as soon as it is
// let go of: whoever keeps it by Hold should begin nothing new with it. Any
// goroutine may call it.
func (c *Conn) Leaving() bool { return c.has(flagLeaving) }

// kept says whether somebody has called Hold, so that it cannot move. Loop
// only.
func (c *Conn) kept() bool {
	if c.extra.Load() == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keptLocked()
}

func (c *Conn) keptLocked() bool {
	x := c.extra.Load()
	return x != nil && (x.holds > 1 || x.holds == 1 && !x.partly)
}

// onHold says whether somebody has called Hold, or Partial. Loop only.
func (c *Conn) onHold() bool {
	x := c.extra.Load()
	if x == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return x.holds > 0
}

// gone says why the connection, which is over here, takes nothing.
func (c *Conn) gone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.goneLocked()
}

func (c *Conn) goneLocked() error {
	if c.has(flagLeft) {
		return &MovedError{Slot: int(c.extra.Load().slot)}
	}
	return ErrClosed
}
