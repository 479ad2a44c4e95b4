package conn

import (
	"crypto/tls"
	"time"
)

// Info is what an operator is shown of a connection.
type Info struct {
	Conn     *Conn
	State    string        // open, opening (OnConnect is still to come: PROXY header or TLS handshake), paused (by the application, or because the Pool or a pipe is behind), full (the peer takes too little), closing, frozen (being given to another process)
	Age      time.Duration // since the accept, to a hundredth of a second
	Idle     time.Duration // since the last byte in or out, to a hundredth of a second
	Buffered int           // bytes read that no callback has got
	Queued   int           // bytes that wait to be sent
	Messages int           // messages that wait for the Pool
	Mortal   string        // why it ends with its process, even between two messages, if that is killed; empty: it need not
}

// Info looks at a connection. Loop only.
func (c *Conn) Info() Info {
	now := c.set.loop.Now()
	info := Info{Conn: c, Age: c.opened.until(now), Idle: c.lastIn.later(c.lastOut).until(now)}
	info.Buffered = c.buffered()
	if c.in != nil {
		info.Buffered += len(c.in.bytes())
	}
	if l := c.layered(); l != nil && l.in != nil {
		info.Buffered += len(l.in.bytes())
	}
	c.mu.Lock()
	flags := c.flags.Load()
	info.Queued, info.Messages = c.queuedLocked(), c.inboxLenLocked()
	c.mu.Unlock()
	switch {
	case c.State() != Open:
		info.State = c.State().String()
	case flags&flagFrozen != 0:
		info.State = "frozen"
	case flags&flagOpening != 0:
		info.State = "opening"
	case flags&flagFull != 0:
		info.State = "full"
	case flags&(flagPaused|flagThrottled|flagClogged) != 0:
		info.State = "paused"
	default:
		info.State = Open.String()
	}
	info.Mortal = c.mortal()
	return info
}

// mortal says why c is never noted as at rest, empty if it may be.
func (c *Conn) mortal() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.extra.Load()
	switch {
	case x != nil && x.layer != nil && x.layer.legacy != nil:
		return tls.VersionName(x.layer.info.Version)
	case c.cfg.Pinned:
		return "it does not move"
	case x != nil && x.pipe.Load() != nil:
		return "it is piped"
	case x != nil && x.tooLarge:
		return "its state is too large"
	}
	return ""
}

// ticks is a point in the loop's time in hundredths of a second, rounded down,
// modulo 2^32: half a word, since an idle connection has several of them.
type ticks uint32

const tick = 10 * time.Millisecond

func ticksAt(t time.Duration) ticks { return ticks(t / tick) }

// someTicks is ticksAt for where 0 means none.
func someTicks(t time.Duration) ticks { return max(ticksAt(t), 1) }

// until is the time from t to now, if that is under 497 days.
func (t ticks) until(now time.Duration) time.Duration {
	return time.Duration(ticksAt(now)-t) * tick
}

// at is t as a time before now, as until has it.
func (t ticks) at(now time.Duration) time.Duration { return now.Truncate(tick) - t.until(now) }

// over is when limit has passed since t, which is before now: up to a tick
// late, and not early.
func (t ticks) over(limit, now time.Duration) time.Duration { return t.at(now) + tick + limit }

// later is the later one of two that lie less than 248 days apart.
func (t ticks) later(u ticks) ticks {
	if int32(t-u) > 0 {
		return t
	}
	return u
}

// moved is t, which is before now, later by d, but not after now; never 0.
func (t ticks) moved(d, now time.Duration) ticks {
	d = (d + tick - 1) / tick
	if left := ticksAt(now) - t; time.Duration(left) < d {
		d = time.Duration(left)
	}
	return max(t+ticks(d), 1)
}
