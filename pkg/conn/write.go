package conn

import (
	"fmt"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"golang.org/x/sys/unix"
)

const (
	// maxParts is the most parts of the send queue that leave in one writev(2).
	maxParts = 64

	// The parts of a send queue grow from the first size to the last.
	firstPart = 2 << 10
	lastPart  = 64 << 10

	// overhead is what an encoding may take beside the message without
	// going to a buffer of its own.
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
	defer c.mu.Unlock()
	if c.has(flagsEnded) {
		return false, ErrClosed
	}
	tail := c.outTail
	if tail == nil || tail.room() < len(m)+overhead {
		size := firstPart
		if tail != nil {
			size = min(2*cap(tail.b), lastPart)
		}
		tail = getBuffer(max(size, len(m)+overhead))
	}
	// Nothing is taken before the length is known: until then the encoding
	// lies behind the end of the tail's bytes.
	room := tail.b[len(tail.b):]
	encoded, err := c.cfg.Protocol.Append(room, m)
	n := len(encoded)
	limit := c.cfg.Limits.SendHard
	switch {
	case err != nil:
		err = fmt.Errorf("conn: %w", err)
	case n > limit:
		err = fmt.Errorf("conn: message of %d bytes, want at most %d: %w", n, limit, ErrTooLong)
	case c.queued+n > limit:
		err = fmt.Errorf("%w: %d bytes wait, %d more would pass %d", ErrFull, c.queued, n, limit)
	}
	if err != nil || n == 0 {
		if tail != c.outTail {
			tail.free()
		}
		return false, err
	}
	if unsafe.SliceData(encoded) == unsafe.SliceData(room) {
		tail.b = tail.b[:len(tail.b)+n]
	} else {
		// The encoding has outgrown the room.
		if tail != c.outTail {
			tail.free()
		}
		tail = &buffer{b: encoded, class: -1}
	}
	if tail != c.outTail {
		if c.outTail == nil {
			c.outHead = tail
		} else {
			c.outTail.next = tail
		}
		c.outTail = tail
	}
	c.queued += n
	if c.queued > c.cfg.Limits.SendHigh && !c.has(flagFull) {
		c.flags.Or(flagFull | flagTellFull)
	}
	return c.dirtyLocked(), nil
}

// takeTellFull says whether OnBufferFull is due, and that it is no more.
func (c *Conn) takeTellFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.has(flagTellFull)
	c.flags.And(^flagTellFull)
	return due
}

// flush writes once, if there is something and the kernel takes it. Loop
// only.
func (c *Conn) flush() {
	c.mu.Lock()
	queued := c.queued
	if queued == 0 || c.blocked {
		c.mu.Unlock()
		c.count(queued)
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

// gatherLocked returns the start of a send queue that is not empty: in one
// part, or in parts whose slice is the set's. It needs mu.
func (c *Conn) gatherLocked() (part []byte, parts []unix.Iovec, want int) {
	if c.outHead.next == nil {
		part = c.outHead.bytes()
		part = part[:min(len(part), reactor.MaxWrite)]
		return part, nil, len(part)
	}
	parts = c.set.iovecs[:0]
	for b := c.outHead; b != nil && len(parts) < maxParts && want < reactor.MaxWrite; b = b.next {
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
	now := c.set.loop.Now()
	c.mu.Lock()
	c.takeLocked(n)
	tellDrain := c.queued <= c.cfg.Limits.SendLow && c.has(flagFull)
	if tellDrain {
		c.flags.And(^flagFull)
	}
	left := c.queued
	c.mu.Unlock()

	if n > 0 {
		c.tx.Store(c.tx.Load() + uint64(n))
		c.cfg.Seat.BytesOut.Add(uint64(n))
		c.activity = now
		if limit := c.cfg.Limits.Close; c.state == Closing && limit >= 0 {
			c.closeBy = now + limit // a slow peer gets all of it, as long as it reads
		}
	}
	c.count(left)
	if left > 0 {
		if n > 0 || !c.blocked {
			c.progress = now
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
	if tellDrain && c.state == Open {
		c.deliver(event{kind: bufferDrain})
	}
}

// takeLocked takes n bytes out of the send queue. It needs mu.
func (c *Conn) takeLocked(n int) {
	c.queued -= n
	for n > 0 {
		head := c.outHead
		taken := min(n, len(head.bytes()))
		head.off += taken
		n -= taken
		if len(head.bytes()) > 0 {
			return
		}
		c.outHead = head.next
		if c.outHead == nil {
			c.outTail = nil
		}
		head.free()
	}
}

// outEmpty says whether nothing waits to be sent.
func (c *Conn) outEmpty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued == 0
}

// count brings the seat's QueueBytes up to date.
func (c *Conn) count(queued int) {
	if queued != c.counted {
		c.cfg.Seat.QueueBytes.Add(int64(queued - c.counted))
		c.counted = queued
	}
}
