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
	Idle     time.Duration // since the last byte in or out
	Buffered int           // bytes read that no callback has got
	Queued   int           // bytes that wait to be sent
	Messages int           // messages that wait for the Pool
	Mortal   string        // why it ends with its process, even between two messages, if that is killed; empty: it need not
}

// Info looks at a connection. Loop only.
func (c *Conn) Info() Info {
	now := c.set.loop.Now()
	info := Info{Conn: c, Age: c.opened.until(now), Idle: max(0, now-max(c.lastIn, c.lastOut))}
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

// ticks is a point in the loop's time in hundredths of a second, modulo 2^32:
// half a word, which a Conn has to spare.
type ticks uint32

const tick = 10 * time.Millisecond

func ticksAt(t time.Duration) ticks { return ticks(t / tick) }

// until is the time from t to now, if that is under 497 days.
func (t ticks) until(now time.Duration) time.Duration {
	return time.Duration(ticksAt(now)-t) * tick
}
