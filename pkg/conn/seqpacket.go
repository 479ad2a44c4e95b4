package conn

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"golang.org/x/sys/unix"
)

// A connection of Config.Seqpacket is one of SOCK_SEQPACKET: a message is a
// packet. In here it is a stream as all others are, of packets behind their
// lengths: reading puts the length before what has come, writing leaves it
// out. So packets stay what they are wherever bytes wait, and when they move
// to another process.

const (
	// MaxPacket is the longest message of a connection of Config.Seqpacket.
	MaxPacket = reactor.ReadBufferSize - lengthSize - 1

	lengthSize = 4 // little endian
)

var errPacket = errors.New("packet without its length")

// packets is the protocol of the stream inside.
type packets struct{}

// Split returns the first packet. What comes from reading is complete.
func (packets) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	if len(in) < lengthSize || len(in)-lengthSize < int(binary.LittleEndian.Uint32(in)) {
		return 0, nil, false, errPacket
	}
	end := lengthSize + int(binary.LittleEndian.Uint32(in))
	return end, in[lengthSize:end:end], true, nil
}

// Append appends msg behind its length. It fails with ErrTooLong.
func (packets) Append(dst, msg []byte) ([]byte, error) {
	if len(msg) > MaxPacket {
		return dst, fmt.Errorf("packet of %d bytes, want at most %d: %w", len(msg), MaxPacket, ErrTooLong)
	}
	return append(binary.LittleEndian.AppendUint32(dst, uint32(len(msg))), msg...), nil
}

// Packetable says why the connections cannot be of Config.Seqpacket: a message is
// a packet, and there is nothing else before the descriptor. nil: they can.
func (cfg *Config) Packetable() error {
	if _, raw := cfg.protocol().(wire.Raw); !raw && cfg.protocol() != wire.Protocol(packets{}) || cfg.NewSession != nil || len(cfg.Becomes) > 0 {
		return errors.New("a protocol, want none: a message is a packet")
	}
	if cfg.TLS != nil || cfg.Proxy != nil {
		return errors.New("TLS or a PROXY header, want none: they are for streams")
	}
	return nil
}

// ofPackets has the settings serve packets.
func (s *settings) ofPackets() error {
	if err := s.Packetable(); err != nil {
		return fmt.Errorf("conn: listener %q: %w", s.Listener, err)
	}
	s.Protocol = packets{}
	s.Limits.MaxMessage = min(s.Limits.MaxMessage, MaxPacket)
	s.readMax = s.Limits.MaxMessage + 1 // so that one which is too long is known
	return nil
}

// readInto is the part of the loop's buffer that is read into.
func (c *Conn) readInto() []byte {
	buf := c.set.loop.ReadBuffer()
	if c.cfg.Seqpacket {
		return buf[lengthSize:][:c.cfg.readMax]
	}
	return buf[:c.cfg.readMax]
}

// justRead is what n bytes that were read are for the protocol.
func (c *Conn) justRead(n int) []byte {
	buf := c.set.loop.ReadBuffer()
	if c.cfg.Seqpacket {
		binary.LittleEndian.PutUint32(buf, uint32(n))
		n += lengthSize
	}
	return buf[:n]
}

// emptyPacket says whether a read of nothing was one of an empty packet, and
// not the end. recv(2) tells them not apart. An empty packet behind which the
// peer has sent no more than its end is taken for that.
func (c *Conn) emptyPacket() bool {
	polled := []unix.PollFd{{Fd: c.fd, Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(polled, 0); err != nil || n == 0 || polled[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) == 0 {
		return err == nil
	}
	waiting, err := unix.IoctlGetInt(int(c.fd), unix.SIOCINQ)
	return err == nil && waiting > 0
}

// packetTooLong ends the connection because of a packet of which the rest is
// lost.
func (c *Conn) packetTooLong() {
	c.endLater(&ProtocolError{Err: fmt.Errorf("packet of more than %d bytes: %w", c.cfg.Limits.MaxMessage, ErrTooLong)})
	c.mark(0, 0)
}

// flushSeqpackets writes a batch of what waits, packet by packet: the kernel
// takes all of one, or nothing. Loop only.
func (c *Conn) flushSeqpackets() {
	for range packetBatch {
		c.mu.Lock()
		head := c.out.head
		c.mu.Unlock()
		if head == nil || c.blocked {
			break
		}
		// Only the loop takes packets out, and Send only adds behind them. None
		// lies in two parts: it was put there as a whole, or with all others.
		_, packet, _, err := packets{}.Split(head.bytes(), false)
		if err != nil {
			c.release(fmt.Errorf("conn: send queue: %w", err))
			return
		}
		n, errno := reactor.Write(int(c.fd), packet)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			c.written(0, true)
			return
		default: // EMSGSIZE too, which means that somebody made the socket's buffer smaller than a packet
			c.broken("write", errno)
			return
		}
		c.mu.Lock()
		c.takeLocked(lengthSize + n)
		c.wroteLocked(n, false)
	}
	c.mu.Lock()
	queued := c.queuedLocked()
	c.mu.Unlock()
	c.count(queued)
}
