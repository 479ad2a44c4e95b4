package conn

import (
	"fmt"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"golang.org/x/sys/unix"
)

const (
	// maxParts is the most parts of the send queue that leave in one writev(2).
	maxParts = 64

	// The parts of a send queue grow from the first size to the last.
	firstPart = 2 << 10
	lastPart  = 64 << 10

	// overhead is what an encoding may take beside the message: on the way
	// out without going to a buffer of its own, on the way in without being
	// counted as a part of an incomplete message.
	overhead = 64
)

// Send encodes m by the listener's protocol and puts it in the send queue; m
// may be changed afterwards. What is sent in one turn of the loop leaves in
// one write. Nil means that the peer gets the message unless the connection
// ends first. Otherwise nothing of it was taken: ErrClosed after Close or the
// connection's end, ErrFull if more than Limits.SendHard bytes would wait,
// ErrTooLong if it alone is longer than that, or the protocol's own error.
// Any goroutine may call it; messages of one goroutine leave in order.
func (c *Conn) Send(m []byte) error {
	if c.borrow(m) {
		return nil // it is settled when its callbacks have returned
	}
	first, err := c.enqueue(m)
	if err == nil && first && !c.set.settleLater(c) {
		err = ErrClosed
	}
	if err != nil {
		c.cfg.Seat.SendFailures.Add(1)
	}
	return err
}

// enqueue says whether settleLater has to be called.
func (c *Conn) enqueue(m []byte) (first bool, err error) {
	c.mu.Lock()
	if c.has(flagsEnded) {
		defer c.mu.Unlock()
		return false, c.goneLocked()
	}
	defer c.mu.Unlock() // the protocol may panic
	queued := c.queuedLocked()
	if err := c.enqueueLocked(m); err != nil || c.queuedLocked() == queued {
		return false, err
	}
	return c.dirtyLocked(), nil
}

// borrow makes m the send queue, without a copy, if it lies in the loop's
// buffer and may be sent from there: nothing else waits, and c is the one whose
// callbacks that buffer is for. It stays as it is until c has been settled.
func (c *Conn) borrow(m []byte) bool {
	s := c.set
	// Nobody has a valid message in the loop's buffer but the callbacks that
	// the loop runs, and whoever they wait for: so reading current is no race.
	if !c.cfg.raw || c.cfg.packets || !s.loop.Holds(m) || s.current != c || len(m) == 0 || len(m) > c.cfg.Limits.SendHard {
		return false
	}
	c.mu.Lock()
	free := c.out.bytes == 0 && !c.has(flagsEnded|flagLate)
	if l := c.layered(); l != nil && (l.tls == nil || l.sealed.bytes != 0) {
		free = false
	}
	if free {
		s.direct = m
		c.addedLocked(len(m))
	}
	c.mu.Unlock()
	return free
}

// enqueueLocked puts m, encoded, in the send queue. It needs mu.
func (c *Conn) enqueueLocked(m []byte) error {
	q := &c.out
	if c.has(flagLate) {
		if c.cfg.NewSession != nil {
			return c.postponeLocked(m)
		}
		q = &c.extraLocked().late
	}
	return c.encodeLocked(q, m, c.cfg.Limits.SendHard)
}

// encodeLocked puts m, encoded, behind q, which is out or late, unless more
// than limit bytes would wait. It needs mu.
func (c *Conn) encodeLocked(q *queue, m []byte, limit int) error {
	tail := q.tail
	if tail == nil || tail.room() < len(m)+overhead || c.cfg.packets {
		size := firstPart
		if c.cfg.packets {
			size = minBuffer
		} else if tail != nil {
			size = min(2*cap(tail.b), lastPart)
		}
		tail = getBuffer(max(size, len(m)+overhead))
	}
	// Nothing is taken before the length is known: until then the encoding
	// lies behind the end of the tail's bytes.
	room := tail.b[len(tail.b):]
	encoded, err := c.protocol().Append(room, m)
	n, queued := len(encoded), c.queuedLocked()
	switch {
	case err != nil:
		err = fmt.Errorf("conn: %w", err)
	case n > limit:
		err = fmt.Errorf("conn: message of %d bytes, want at most %d: %w", n, limit, ErrTooLong)
	case queued+n > limit, c.cfg.packets && int(c.extra.Load().packets) >= max(1, limit/minBuffer):
		err = fmt.Errorf("%w: %d bytes wait, %d more would pass %d", ErrFull, queued, n, limit)
	case c.cfg.packets && n > MaxDatagram:
		err = fmt.Errorf("conn: datagram of %d bytes, want at most %d: %w", n, MaxDatagram, ErrTooLong)
	}
	if err != nil || n == 0 {
		if tail != q.tail {
			tail.free()
		}
		return err
	}
	if unsafe.SliceData(encoded) == unsafe.SliceData(room) {
		tail.b = tail.b[:len(tail.b)+n]
	} else {
		// The encoding has outgrown the room.
		if tail != q.tail {
			tail.free()
		}
		tail = &buffer{b: encoded, class: -1}
	}
	if tail != q.tail {
		q.put(tail)
	}
	q.bytes += n
	if c.cfg.packets {
		c.extra.Load().packets++
	}
	c.markFullLocked()
	return nil
}

// protocol returns what encodes and splits.
func (c *Conn) protocol() wire.Protocol {
	if c.cfg.NewSession != nil {
		return c.extra.Load().session
	}
	return c.cfg.Protocol
}

// queuedLocked returns how many bytes wait to be sent. It needs mu.
func (c *Conn) queuedLocked() int {
	if x := c.extra.Load(); x != nil && c.has(flagLate) {
		return c.unsentLocked() + x.late.bytes
	}
	return c.unsentLocked()
}

// addedLocked takes note of n more bytes in the send queue. It needs mu.
func (c *Conn) addedLocked(n int) {
	c.out.bytes += n
	c.markFullLocked()
}

// markFullLocked has OnBufferFull told if that is due. It needs mu.
func (c *Conn) markFullLocked() {
	if c.queuedLocked() > c.cfg.Limits.SendHigh && !c.has(flagFull) {
		c.flags.Or(flagFull | flagTellFull)
	}
}

// keepDirect copies what the kernel did not take of direct to the start of
// the send queue: the loop's buffer is needed for the next read.
func (c *Conn) keepDirect() {
	s := c.set
	c.mu.Lock()
	defer c.mu.Unlock()
	b := getBuffer(len(s.direct)).add(s.direct)
	s.direct = nil
	b.next = c.out.head
	c.out.head = b
	if c.out.tail == nil {
		c.out.tail = b
	}
}

// takeTellFull says whether OnBufferFull is due, and that it is no more.
func (c *Conn) takeTellFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.has(flagTellFull)
	c.flags.And(^flagTellFull)
	return due
}

// flushLocked brings the journal up to date, and writes once, if there is
// something and the kernel takes it. It needs mu and lets go of it. Loop only.
func (c *Conn) flushLocked() {
	if l := c.layered(); l != nil {
		c.flushSealedLocked(l)
		return
	}
	c.noteUnsentLocked(c.out.bytes)
	queued := c.out.bytes
	if c.cfg.packets {
		c.mu.Unlock()
		c.flushPackets()
		return
	}
	if c.cfg.Seqpacket {
		c.mu.Unlock()
		c.flushSeqpackets()
		return
	}
	if queued == 0 || c.blocked {
		queued = c.queuedLocked()
		c.mu.Unlock()
		c.count(queued)
		return
	}
	if s := c.set; s.current == c && len(s.direct) == queued && !c.has(flagFull) {
		// The usual case, and the cheapest: it counts as sent, and only what
		// the kernel does not take goes to the queue.
		c.out.bytes = 0
		c.mu.Unlock()
		c.writeDirect()
		return
	}
	part, parts, want := c.gatherLocked()
	c.mu.Unlock()
	// Only the loop takes bytes out, and Send only adds behind them, so they
	// may be written without mu.
	var n int
	var errno unix.Errno
	if parts != nil {
		n, errno = reactor.Writev(int(c.fd), parts)
	} else {
		n, errno = reactor.Write(int(c.fd), part)
	}
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		c.broken("write", errno)
		return
	}
	c.written(n, n < want)
}

// writeDirect writes direct, which is not counted as queued. If something is
// left, it is the start of the send queue: other goroutines may have sent
// meanwhile.
func (c *Conn) writeDirect() {
	s := c.set
	direct := s.direct
	s.direct = nil
	n, errno := reactor.Write(int(c.fd), direct)
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		c.broken("write", errno)
		return
	}
	if n == len(direct) {
		c.sent(n)
		return
	}
	c.mu.Lock()
	c.addedLocked(len(direct))
	s.direct = direct
	c.mu.Unlock()
	c.written(n, true)
}

// sent counts n bytes that the kernel has taken.
func (c *Conn) sent(n int) {
	addTo(&c.tx, n)
	if c.set.inEvents {
		c.set.countsOf(c.cfg.Seat).out += uint64(n)
	} else {
		c.cfg.Seat.BytesOut.Add(uint64(n))
	}
	c.lastOut = ticksAt(c.set.loop.Now())
}

// gatherLocked returns the start of a send queue that is not empty: in one
// part, or in parts whose slice is the set's. It needs mu.
func (c *Conn) gatherLocked() (part []byte, parts []unix.Iovec, want int) {
	var direct []byte
	if c.set.current == c {
		direct = c.set.direct
	}
	switch {
	case len(direct) > 0 && c.out.head == nil:
		part = direct
	case len(direct) == 0 && c.out.head.next == nil:
		part = c.out.head.bytes()
	}
	if part != nil {
		part = part[:min(len(part), reactor.MaxWrite)]
		return part, nil, len(part)
	}
	parts = c.set.iovecs[:0]
	if len(direct) > 0 {
		parts = append(parts, unix.Iovec{Base: unsafe.SliceData(direct)})
		parts[0].SetLen(len(direct)) // at most the loop's buffer
		want = len(direct)
	}
	for b := c.out.head; b != nil && len(parts) < maxParts && want < reactor.MaxWrite; b = b.next {
		p := b.bytes()
		p = p[:min(len(p), reactor.MaxWrite-want)]
		parts = append(parts, unix.Iovec{Base: unsafe.SliceData(p)})
		parts[len(parts)-1].SetLen(len(p))
		want += len(p)
	}
	c.set.iovecs = parts
	return nil, parts, want
}

// written takes n bytes out of the send queue; blocked says that the kernel
// takes no more now.
func (c *Conn) written(n int, blocked bool) {
	c.mu.Lock()
	c.takeLocked(n)
	c.wroteLocked(n, blocked)
}

// wroteLocked sees to what follows when the kernel has taken n bytes. It needs
// mu and lets go of it.
func (c *Conn) wroteLocked(n int, blocked bool) {
	now := c.set.loop.Now()
	left, queued := c.unsentLocked(), c.queuedLocked()
	tellDrain := queued <= c.cfg.Limits.SendLow && c.has(flagFull)
	if tellDrain {
		c.flags.And(^flagFull)
		if c.has(flagFreezing) {
			c.flags.Or(flagTellDrain)
		}
	}
	c.mu.Unlock()

	if n > 0 {
		c.sent(n)
		c.progress = ticksAt(now) // a slow peer gets all of it, as long as it reads
	}
	c.count(queued)
	if left > 0 {
		if c.state == Open && !c.blocked {
			c.progress = ticksAt(now)
		}
		c.blocked = blocked
		if blocked {
			if limit := c.cfg.Limits.WriteStall; limit >= 0 {
				c.expireBy(now + limit)
			}
		} else {
			c.mark(0, 0) // the rest in the next turn
		}
	}
	if tellDrain {
		c.unclog()
	}
	if tellDrain && c.state == Open && !c.has(flagTellDrain) {
		c.deliver(event{kind: bufferDrain})
	}
}

// takeLocked takes n bytes out of the send queue. It needs mu.
func (c *Conn) takeLocked(n int) {
	c.out.bytes -= n
	if s := c.set; s.current == c && len(s.direct) > 0 {
		taken := min(n, len(s.direct))
		s.direct = s.direct[taken:]
		n -= taken
	}
	c.out.drop(n)
}

// outEmpty says whether nothing waits to be sent, or may come from the
// process that had the connection before.
func (c *Conn) outEmpty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.layered()
	return c.unsentLocked() == 0 && !c.has(flagLate) && !(c.state == Closing && l != nil && l.goodbye())
}

// count brings the seat's QueueBytes up to date.
func (c *Conn) count(queued int) {
	if n := int32(queued); n != c.counted { // at most Limits.SendHard, and what a layer adds
		c.cfg.Seat.QueueBytes.Add(int64(n - c.counted))
		c.counted = n
	}
}
