package conn

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime/debug"
)

// While a connection stands still, and after a move until the other process
// has had its last word, what is sent to it goes to extra.late: encoded, or as
// messages, each behind its length, if the encoding depends on what was
// encoded before.

// postponeLocked is enqueueLocked for a session that must not encode yet. It
// needs mu.
func (c *Conn) postponeLocked(m []byte) error {
	var head [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(head[:], uint64(len(m)))
	n, queued, limit := size+len(m), c.queuedLocked(), c.cfg.Limits.SendHard
	switch {
	case len(m) > limit:
		return fmt.Errorf("conn: message of %d bytes, want at most %d: %w", len(m), limit, ErrTooLong)
	case queued+n > limit:
		return fmt.Errorf("%w: %d bytes wait, %d more would pass %d", ErrFull, queued, n, limit)
	}
	late := &c.extraLocked().late
	late.add(head[:size])
	late.add(m)
	c.markFullLocked()
	return nil
}

// lateLocked puts what was sent late behind the send queue, where it is sent
// to from now on. It needs mu.
func (c *Conn) lateLocked() {
	c.flags.And(^flagLate)
	x := c.extra.Load()
	if x == nil || x.late.head == nil {
		return
	}
	late := x.late
	x.late = queue{}
	if x.session == nil {
		c.out.join(&late)
		return
	}
	messages := late.appendTo(nil)
	late.free()
	if err := c.encodeAllLocked(messages); err != nil {
		c.failLocked(err)
	}
}

// encodeAllLocked encodes messages as postponeLocked has kept them, which has
// also seen to their limit. It needs mu.
func (c *Conn) encodeAllLocked(messages []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	for len(messages) > 0 {
		n, size := binary.Uvarint(messages)
		if size <= 0 || n > uint64(len(messages)-size) {
			return fmt.Errorf("%w: a late message ends before its end", ErrState)
		}
		end := size + int(n)
		if err := c.encodeLocked(&c.out, messages[size:end], math.MaxInt); err != nil {
			return err
		}
		messages = messages[end:]
	}
	return nil
}

// failLocked is CloseNow. It needs mu, and the connection must be settled
// afterwards.
func (c *Conn) failLocked(err error) {
	if x := c.extraLocked(); x.why == nil {
		x.why = err
	}
	c.flags.Or(flagCloseNow)
}
