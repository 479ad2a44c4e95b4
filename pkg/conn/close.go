package conn

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Close ends the connection in good order: no more messages come or are
// taken, what was sent before still leaves, then the peer is told the end
// and is given time to take note, so that no reset destroys what is on the
// way. Limits.Close bounds each step of it: the time in which nothing could be
// sent, and the wait for the peer's own end. why is what OnClose is told, nil for
// an end that needs no reason; if not all could be sent, ErrStalled is told
// with it. After the first Close or CloseNow a second Close does nothing.
//
// last are messages that are sent before the end, as by Send; nothing that
// other goroutines send comes behind them. Close returns nil or, as Send
// would, why the first of them was refused, which did not stop it from sending
// the others and from closing: ErrClosed if the connection was over before.
// Without last it returns nil.
func (c *Conn) Close(why error, last ...[]byte) error { return c.bye(flagGoodbye, why, last) }

// CloseNow ends the connection at the end of the loop's turn and drops what
// waits to be sent. why is what OnClose is told, unless Close was given a
// reason before.
func (c *Conn) CloseNow(why error) { _ = c.bye(flagCloseNow, why, nil) }

func (c *Conn) bye(flag uint32, why error, last [][]byte) (err error) {
	c.mu.Lock()
	if c.has(flagsEnded) && (flag == flagGoodbye || c.has(flagClosed)) {
		c.mu.Unlock()
		if len(last) > 0 {
			c.cfg.Seat.SendFailures.Add(uint64(len(last)))
			err = c.gone()
		}
		return err
	}
	for _, m := range last {
		if e := c.enqueueLocked(m); e != nil {
			c.cfg.Seat.SendFailures.Add(1)
			if err == nil {
				err = e
			}
		}
	}
	if why != nil && c.whyLocked() == nil {
		c.extraLocked().why = why
	}
	c.flags.Or(flag)
	first := c.dirtyLocked()
	c.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
	return err
}

// end is Close on this package's own account: it says farewell.
func (c *Conn) end(why error) {
	var last [][]byte
	if f := c.cfg.Farewell; f != nil && !c.has(flagsEnded|flagOpening) {
		if m := f(c, why); m != nil {
			last = [][]byte{m}
		}
	}
	_ = c.bye(flagGoodbye, why, last)
}

// cut is release on this package's own account: if there is something to be
// said, the peer gets it first, or what of it can be sent at once.
func (c *Conn) cut(why error) {
	if c.cfg.Farewell != nil && c.state == Open && !c.has(flagOpening) {
		c.end(why)
		c.mu.Lock()
		c.flushLocked()
	}
	c.release(why)
}

// startClosing acts on Close.
func (c *Conn) startClosing() {
	c.state = Closing
	c.dropInput()
	if l := c.layered(); l != nil {
		l.abandon(c)
	}
	c.endPipe(c.reason())
	if limit := c.cfg.Limits.Close; limit >= 0 {
		now := c.set.loop.Now()
		c.progress = ticksAt(now)
		c.expireBy(now + limit)
	}
}

// flushed goes on with a closing when all has been sent: tell the peer, then
// wait for its end. Closing the descriptor with unread bytes in it, or with
// bytes to come, would reset the connection and with it what is on its way.
func (c *Conn) flushed() {
	if !c.shut && !c.kernelSent() {
		return
	}
	if c.eof || c.cfg.packets { // datagrams have no end to wait for
		c.release(c.reason())
		return
	}
	if c.shut {
		return
	}
	if err := unix.Shutdown(int(c.fd), unix.SHUT_WR); err != nil {
		c.release(c.reason()) // ENOTCONN: it is broken, and all had been sent
		return
	}
	c.shut = true
}

// reason returns what Close was given.
func (c *Conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whyLocked()
}

func (c *Conn) whyLocked() error {
	if x := c.extra.Load(); x != nil {
		return x.why
	}
	return nil
}

// overdue is told that flush and linger took too long.
func (c *Conn) overdue() {
	why := c.reason()
	switch {
	case c.outEmpty():
	case why == nil:
		why = ErrStalled
	default:
		why = fmt.Errorf("%w, after %w", ErrStalled, why)
	}
	c.release(why)
}

// dropLocked forgets what waits to be sent and the timers, which it returns.
// It needs mu.
func (c *Conn) dropLocked() map[string]*timer {
	c.takeLocked(c.out.bytes)
	x := c.extra.Load()
	if x == nil {
		return nil
	}
	if x.layer != nil {
		x.layer.sealed.free()
	}
	x.late.free()
	timers := x.timers
	x.timers = nil
	return timers
}

// release is the one door out: it gives back all that the connection has and
// has OnClose called. Loop only, and in no callback.
func (c *Conn) release(why error) {
	if c.state == Closed {
		return
	}
	c.state = Closed
	if c.has(flagFreezing | flagLeaving) {
		c.set.freezeLater(c.extra.Load().frozen)
	}
	loop := c.set.loop
	// Before the close: epoll watches the open file, which another process
	// may hold too, not the descriptor. An error here is that of a
	// descriptor which is closed a line further down.
	_ = loop.Remove(c.token)

	c.mu.Lock()
	fd := int(c.fd)
	c.fd = -1
	c.flags.Or(flagClosed)
	cut := c.queuedLocked() > 0
	timers := c.dropLocked()
	c.mu.Unlock()

	if cut {
		// What was promised is not all sent: the peer is to see a reset, and
		// not an end in good order.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(fd)
	c.count(0)
	c.dropInput()
	if l := c.layered(); l != nil {
		l.end(c)
	}
	c.endPipe(why)
	c.unpipe()
	for _, t := range timers {
		t.stop()
	}
	c.set.remove(c)
	c.set.alloc.Free(c.id)
	if c.cfg.Released != nil {
		c.cfg.Released(c)
	}
	if !c.has(flagNew) { // nobody was told that it began
		c.deliver(event{kind: closed, why: why})
	}
	c.set.drained()
}
