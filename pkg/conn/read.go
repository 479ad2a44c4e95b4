package conn

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"golang.org/x/sys/unix"
)

// What one connection may do in one turn before the others have theirs.
const (
	turnMessages = 256
	turnTime     = time.Millisecond
	clockEvery   = 8 // messages between two looks at the clock
)

var errNoAdvance = errors.New("protocol found a message, but does not advance")

// watcher is a Conn as the reactor sees it: its methods are not for users.
type watcher Conn

// OnReady is called by the reactor.
func (w *watcher) OnReady(ev reactor.Events) { (*Conn)(w).ready(ev) }

// OnDeadline is called by the reactor.
func (w *watcher) OnDeadline(now time.Duration) { (*Conn)(w).expired(now) }

// ready is told what the descriptor is ready for.
func (c *Conn) ready(ev reactor.Events) {
	// Settled here and not at the turn's end: the replies to one read leave
	// in one write, while the socket and the replies are in the cache.
	c.flags.Or(flagDirty)
	s := c.set
	s.beginEvents()
	s.current = c
	if ev&reactor.Writable != 0 {
		c.blocked = false
	}
	switch {
	case c.has(flagCloseNow): // an event of before
	case c.watched&watchInput == 0:
		c.notReading(ev)
	case ev&^reactor.Writable != 0:
		// The end of the stream and a fault are told by read, in their place
		// behind the bytes that came before them. So is PeerClosed.
		c.readable()
	}
	c.settle()
	if len(s.direct) > 0 {
		c.keepDirect()
	}
	s.current = nil
}

// notReading takes note of what is told although nobody asks, so that it is
// not told again each turn.
func (c *Conn) notReading(ev reactor.Events) {
	if ev&reactor.Fault != 0 {
		errno, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 && !(c.cfg.packets && passing(unix.Errno(errno))) {
			c.broken("epoll_pwait", unix.Errno(errno))
			return
		}
	}
	if ev&reactor.PeerClosed != 0 {
		c.peerGone = true
	}
	if ev&(reactor.Hangup|reactor.Fault) != 0 {
		c.hup = true
		c.blocked = false // flush finds out what a write says now
	}
}

// readable reads once and delivers what is complete.
func (c *Conn) readable() {
	if c.held || c.eof || c.has(flagsHeld) && c.state == Open && !c.handshaking() {
		return
	}
	if c.has(flagOpening) {
		if l := c.layered(); l != nil && l.stepping {
			l.behind = true // until the step is done
			return
		}
	}
	loop := c.set.loop
	if !c.tcp {
		c.disturb()
	}
	n, errno := reactor.Read(int(c.fd), c.readInto())
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR || c.cfg.packets && passing(errno):
		return
	case errno != 0:
		c.broken("read", errno)
		return
	case c.cfg.packets && (n == 0 || n > c.cfg.Limits.MaxMessage):
		c.packetDropped(n)
		return
	case n == 0 && !(c.cfg.Seqpacket && c.emptyPacket()):
		c.ended()
		return
	}
	if c.rx.Load() == 0 && !c.has(flagOpening) {
		c.partial = 0 // the deadline of the first byte is over
	}
	addTo(&c.rx, n)
	c.set.countsOf(c.cfg.Seat).in += uint64(n)
	c.lastIn = ticksAt(loop.Now())
	if c.state == Closing || c.ending {
		return // nobody wants it
	}
	if l := c.layered(); l != nil {
		c.unwrap(l, n)
		return
	}
	if c.cfg.Seqpacket && n > c.cfg.Limits.MaxMessage {
		c.packetTooLong()
		return
	}
	data := c.justRead(n)
	if c.cfg.whole && c.in == nil {
		c.takeWhole(data)
		return
	}
	c.take(data)
}

// takeWhole is take of what is one message as it is.
func (c *Conn) takeWhole(data []byte) {
	c.deliverWhole(data)
	if c.has(flagsEnded) {
		c.dropInput()
		return
	}
	c.partial = 0
}

func (c *Conn) deliverWhole(data []byte) {
	s := c.set
	s.enter(c)
	defer s.leave(c)
	s.countsOf(c.cfg.Seat).messages++
	c.message(data)
	if c.has(flagTellFull) && c.takeTellFull() {
		c.call(event{kind: bufferFull})
	}
}

// take delivers what has come, which lies in the loop's buffer.
func (c *Conn) take(data []byte) {
	if c.in == nil {
		c.process(data, false)
		return
	}
	// The tail and what has just come, in one piece: the shorter is copied
	// to the longer, so dribbling into a long message stays cheap.
	loop := c.set.loop
	if tail := c.in.bytes(); len(tail) < len(data) && &data[0] == &loop.ReadBuffer()[0] {
		c.process(loop.Prepend(tail, len(data)), false)
		return
	}
	c.in = c.in.add(data)
	c.process(c.in.bytes(), true)
}

// process delivers the messages that data holds and keeps the rest. own says
// that data lies in c.in; otherwise it starts with what c.in has, but lies in
// the loop's buffer.
func (c *Conn) process(data []byte, own bool) {
	used, fresh, err := c.split(data)
	c.releaseMessage()
	if n := len(data) - used + c.buffered(); err == nil && !c.held && n > c.cfg.Limits.MaxMessage+overhead {
		err = fmt.Errorf("%d bytes and no end: %w", n, ErrTooLong)
	}
	if err != nil {
		c.endLater(&ProtocolError{Err: err})
	}
	if c.ending && !c.held || c.has(flagsEnded) {
		c.dropInput()
		c.mark(0, 0)
		return
	}
	c.keep(data[used:], used, own)
	now := c.set.loop.Now()
	switch {
	case c.held || c.in == nil && c.buffered() == 0:
		c.partial = 0
	case fresh || c.partial == 0:
		c.partial = someTicks(now)
		if limit := c.cfg.Limits.Message; limit >= 0 {
			c.expireBy(now + limit)
		}
	}
	if c.due || c.held {
		c.mark(0, 0)
	}
}

// buffered returns how many bytes the protocol itself keeps.
func (c *Conn) buffered() int {
	if c.cfg.NewSession == nil {
		return 0
	}
	return c.extra.Load().session.Buffered()
}

// releaseMessage tells a session that the messages it has returned are not
// needed any more.
func (c *Conn) releaseMessage() {
	if c.cfg.NewSession == nil {
		return
	}
	if r, ok := c.extra.Load().session.(wire.Releaser); ok {
		r.Release()
	}
}

// fresh says whether what the protocol has of an incomplete message, once it
// has returned one, has begun behind that: a ping inside of a message is none
// of its parts.
func (c *Conn) fresh() bool { return c.buffered() == 0 }

// processHeld goes on with input that was held up.
func (c *Conn) processHeld() {
	c.set.beginEvents()
	if c.state != Open || !c.held || c.has(flagsHeld) {
		return
	}
	c.held = false
	if c.in != nil {
		c.process(c.in.bytes(), true)
	}
	c.mark(0, 0)
}

// keep keeps the rest of what process was given.
func (c *Conn) keep(rest []byte, used int, own bool) {
	switch {
	case len(rest) == 0:
		if c.in != nil {
			c.in.free()
			c.in = nil
		}
	case own:
		c.in.off += used
	default:
		if c.in == nil {
			c.in = getBuffer(len(rest))
		}
		c.in.b, c.in.off = c.in.b[:0], 0
		c.in = c.in.add(rest)
	}
}

func (c *Conn) dropInput() {
	if c.in != nil {
		c.in.free()
		c.in = nil
	}
	c.held, c.partial = false, 0
}

// ended is told that the peer sends no more. What it sent is still handled
// and answered: a half-closed connection is a legitimate one.
func (c *Conn) ended() {
	c.eof = true
	why := error(ErrPeerClosed)
	if l := c.layered(); l != nil {
		why = l.endOf()
	}
	if c.state == Open && !c.ending && !c.held && c.in != nil && c.atEOF() && !c.has(flagOpening) {
		c.process(c.in.bytes(), true) // what a protocol makes of the rest
	}
	held := c.state == Open && !c.ending && c.onHold()
	c.endLater(why)
	if h, ok := c.cfg.Handler.(PeerClosedHandler); ok && held {
		h.OnPeerClosed(c)
	}
}

// broken ends the connection at once: the system says that it is no more.
func (c *Conn) broken(call string, errno unix.Errno) {
	c.release(fmt.Errorf("%w: %w", ErrReset, os.NewSyscallError(call, errno)))
}

// split delivers the messages at the start of data and returns how many bytes
// that used, and whether an incomplete message that is left has begun among
// them. It sets held if there may be more of them.
func (c *Conn) split(data []byte) (used int, fresh bool, err error) {
	switch {
	case c.cfg.Inline:
		return c.splitInline(data)
	case c.piped() == nil:
		return c.splitForPool(data)
	case c.running(): // with messages from before the pipe, which go first
		c.held = true
		return 0, false, nil
	default:
		return c.splitInline(data) // what is only passed on needs no goroutine
	}
}

// next is Protocol.Split with its promises checked.
func (c *Conn) next(data []byte) (advance int, m []byte, ok bool, err error) {
	if c.cfg.raw && len(data) > c.cfg.Limits.MaxMessage {
		data = data[:c.cfg.Limits.MaxMessage] // a record may have brought more than a read would
	}
	advance, m, ok, err = c.protocol().Split(data, c.atEOF())
	switch {
	case err != nil:
		return 0, nil, false, err
	case advance < 0 || advance > len(data):
		return 0, nil, false, fmt.Errorf("protocol advances by %d of %d bytes", advance, len(data))
	case ok && advance == 0:
		return 0, nil, false, errNoAdvance
	case len(m) > c.cfg.Limits.MaxMessage:
		return 0, nil, false, fmt.Errorf("message of %d bytes: %w", len(m), ErrTooLong)
	}
	return advance, m, ok, nil
}

// splitInline has messages handled on the loop, straight from data.
func (c *Conn) splitInline(data []byte) (used int, fresh bool, err error) {
	s := c.set
	s.enter(c)
	n := 0
	defer s.leave(c)
	for used < len(data) {
		advance, m, ok, err := c.next(data[used:])
		if err != nil {
			return used, fresh, err
		}
		used += advance
		if !ok {
			if advance == 0 {
				return used, fresh, nil
			}
			fresh = fresh || c.cfg.NewSession == nil
			continue
		}
		n++
		fresh = fresh || c.fresh()
		s.countsOf(c.cfg.Seat).messages++
		c.message(m)
		if c.has(flagsHeld | flagTellFull) {
			if c.takeTellFull() {
				c.call(event{kind: bufferFull})
			}
			if c.has(flagsHeld) {
				break
			}
		}
		if n == turnMessages || n%clockEvery == 0 && s.loop.Clock()-s.since > turnTime {
			break
		}
	}
	c.held = used < len(data)
	return used, fresh, nil
}

// splitForPool copies messages into the connection's inbox, for the Pool.
func (c *Conn) splitForPool(data []byte) (used int, fresh bool, err error) {
	n := 0
	for used < len(data) {
		advance, m, ok, err := c.next(data[used:])
		if err != nil {
			return used, fresh, err
		}
		used += advance
		if !ok {
			if advance == 0 {
				break
			}
			fresh = fresh || c.cfg.NewSession == nil
			continue
		}
		fresh = fresh || c.fresh()
		copied := getBuffer(len(m)).add(m)
		c.push(event{kind: message, message: copied})
		n++
		if n == turnMessages || c.has(flagsHeld) {
			c.held = used < len(data)
			break
		}
	}
	c.set.countsOf(c.cfg.Seat).messages += uint64(n)
	return used, fresh, nil
}
