package conn

import (
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"golang.org/x/sys/unix"
)

// expireBy has expired called at the time given, or earlier. A connection has
// one deadline in the reactor's wheel, for whichever of its own comes first:
// what moves them only leaves a stamp, and expired looks at the stamps.
func (c *Conn) expireBy(at time.Duration) {
	if armed, ok := c.deadline.Armed(); ok && armed <= at {
		return
	}
	c.set.loop.Arm(&c.deadline, at, (*watcher)(c))
}

// expired looks which deadline is over.
func (c *Conn) expired(now time.Duration) {
	l := &c.cfg.Limits
	if c.state == Closing {
		if l.Close >= 0 && c.check(c.progress+l.Close, now) {
			c.overdue()
		}
		return
	}
	if c.blocked && l.WriteStall >= 0 && c.check(c.progress+l.WriteStall, now) {
		c.release(ErrStalled)
		return
	}
	if c.events&reactor.Readable == 0 || c.held || c.running() {
		// The peer is not to blame for what waits for us.
		c.restamp()
	}
	due, over := c.reading(now)
	if over == nil {
		due, over = c.probing(now)
	}
	if over == nil {
		return
	}
	if c.events&reactor.Readable != 0 && c.lastIn < due && c.unread() {
		// The loop was held up, not the peer: it is judged once that was read.
		c.expireBy(now + time.Millisecond)
		return
	}
	switch {
	case c.has(flagOpening):
		c.notOpened(c.layered(), over)
		c.release(over)
	case c.cfg.Farewell != nil:
		c.end(over)
	default:
		c.release(over)
	}
}

// probing asks a silent peer for a sign of life, and says whether that was in
// vain.
func (c *Conn) probing(now time.Duration) (due time.Duration, over error) {
	cfg := c.cfg
	if cfg.Probe == nil || c.has(flagOpening) {
		return 0, nil
	}
	var probed time.Duration
	x := c.extra.Load()
	if x != nil {
		probed = x.probed
	}
	switch {
	case probed > c.lastIn:
		if at := probed + cfg.ProbeWait; c.check(at, now) {
			return at, ErrIdle
		}
	case c.check(c.lastIn+cfg.ProbeAfter, now):
		if x == nil {
			c.mu.Lock()
			x = c.extraLocked()
			c.mu.Unlock()
		}
		x.probed = now
		c.expireBy(now + cfg.ProbeWait)
		cfg.Probe(c)
	}
	return 0, nil
}

// reading says which deadline of the reading side is over, nil if none is.
func (c *Conn) reading(now time.Duration) (due time.Duration, over error) {
	if c.has(flagOpening) {
		return c.openingOver(now)
	}
	l := &c.cfg.Limits
	switch {
	case c.rx.Load() == 0 || c.quiet():
		if l.FirstByte >= 0 && c.piped() == nil && c.check(c.partial+l.FirstByte, now) {
			return now, ErrFirstByte
		}
	case c.partial != 0:
		if l.Message >= 0 && c.check(c.partial+l.Message, now) {
			return c.partial + l.Message, ErrMessageDeadline
		}
	}
	switch {
	case l.Auth >= 0 && !c.has(flagAuthenticated) && c.check(c.authBy(now), now):
		return c.authBy(now), ErrUnauthenticated
	case l.Idle >= 0 && c.check(max(c.lastIn, c.lastOut)+l.Idle, now):
		return now, ErrIdle
	case l.ReadIdle >= 0 && c.check(c.lastIn+l.ReadIdle, now):
		return now, ErrIdle
	case l.WriteIdle >= 0 && c.check(c.lastOut+l.WriteIdle, now):
		return c.lastOut + l.WriteIdle, ErrIdle
	}
	return 0, nil
}

// armDeadlines has expired called when the first deadline is over.
func (c *Conn) armDeadlines(now time.Duration) {
	if limit := c.cfg.Limits.WriteStall; c.blocked && limit >= 0 {
		c.expireBy(c.progress + limit)
	}
	if _, over := c.reading(now); over != nil {
		c.expireBy(now)
	}
	if c.cfg.Probe != nil {
		c.expireBy(max(now, c.lastIn+c.cfg.ProbeAfter))
	}
}

// authBy is when Authenticated must have been called, rounded up.
func (c *Conn) authBy(now time.Duration) time.Duration {
	return now - c.opened.until(now) + tick + c.cfg.Limits.Auth
}

// unread says whether bytes wait to be read that could have been.
func (c *Conn) unread() bool {
	n, err := unix.IoctlGetInt(int(c.fd), unix.SIOCINQ)
	return err == nil && n > 0
}

// check says whether a deadline is over; one that is not is armed again.
func (c *Conn) check(at, now time.Duration) bool {
	if at <= now {
		return true
	}
	c.expireBy(at)
	return false
}

// restamp starts the deadlines of reading anew.
func (c *Conn) restamp() {
	now := c.set.loop.Now()
	if c.has(flagOpening) {
		return // the peer has to be quick, whatever we do
	}
	c.lastIn = now
	if c.partial != 0 {
		c.partial = now
	}
}
