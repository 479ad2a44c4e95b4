package conn

import (
	"fmt"
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"golang.org/x/sys/unix"
)

// An outgoing connection of UDP is a Conn whose messages are datagrams: what
// is sent leaves datagram by datagram, there is no end of the stream, and what
// the network says of a datagram is no end either.

// passing says whether an error of a connected datagram socket is about a
// datagram that was sent, and not about the socket (udp(7), icmp(7)).
func passing(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.EMSGSIZE,
		unix.EPERM, unix.EACCES, unix.ENOBUFS, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// flushPackets writes a batch of what waits. A datagram that cannot be sent is
// lost, as on the way. Loop only.
func (c *Conn) flushPackets() {
	for range packetBatch {
		c.mu.Lock()
		head := c.out.head
		c.mu.Unlock()
		if head == nil || c.blocked {
			break
		}
		// Only the loop takes datagrams out, and Send only adds behind them.
		n, errno := reactor.Write(int(c.fd), head.bytes())
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			c.written(0, true)
			return
		case passing(errno):
			c.cfg.Seat.SendFailures.Add(1)
			c.tellDropped(os.NewSyscallError("write", errno))
			n = 0
		case errno != 0:
			c.broken("write", errno)
			return
		}
		c.mu.Lock()
		c.extra.Load().packets--
		c.takeLocked(len(head.bytes()) - n)
		c.mu.Unlock()
		c.written(n, false)
	}
	c.mu.Lock()
	queued := c.queuedLocked()
	c.mu.Unlock()
	c.count(queued)
}

// packetDropped takes note of a datagram that is not delivered: an empty one,
// or one that is longer than the limit.
func (c *Conn) packetDropped(n int) {
	addTo(&c.rx, n)
	c.lastIn = ticksAt(c.set.loop.Now())
	if n > 0 {
		c.tellDropped(fmt.Errorf("datagram of %d bytes, want at most %d: %w", n, c.cfg.Limits.MaxMessage, ErrTooLong))
	}
}

// tellDropped has it logged that a datagram was lost here, now and then.
func (c *Conn) tellDropped(why error) {
	s, now := c.cfg, c.set.loop.Now()
	s.dropped++
	if s.Event == nil || s.droppedTold != 0 && now-s.droppedTold < dropsEvery {
		return
	}
	s.Event(Event{Kind: DatagramsDropped, Listener: s.Listener, Conn: c, Peer: c.peer, Skipped: s.dropped - 1, Err: why})
	s.droppedTold, s.dropped = max(now, time.Duration(1)), 0
}
