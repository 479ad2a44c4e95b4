package conn

import (
	"errors"
	"sync"
)

// ErrPiped is Pipe's answer if one of the connections is piped already, or if
// both are the same.
var ErrPiped = errors.New("conn: piped already")

// Pipe joins two connections: each message that comes on one is sent on the
// other, by the protocol of that one, in the place of OnMessage, from the
// message on that comes after the running callback. OnBufferFull and
// OnBufferDrain are not called any more, and Pause is undone: a connection is
// read only while no more than Limits.SendHigh bytes wait on the other. There
// is no first-byte deadline; the other ones hold, and OnTimer is still called.
//
// A pipe ends as a whole. When one connection ends, in whatever way, or is
// told to, the other is closed as by Close, with the same reason: what came
// before still leaves. So does a message that the other cannot take, with
// Send's error.
//
// It returns ErrPiped, or ErrClosed if one connection is over or being closed,
// or a *MovedError if one has moved to another process; the other is closed
// then. It returns ErrFrozen, and does nothing, if one of them is just about
// to move. Any goroutine may call it; both connections are of one Set.
func Pipe(a, b *Conn) error {
	if err := join(a, b); err != nil {
		return err
	}
	// Whoever ends from here on closes the other.
	if a.has(flagsEnded) || b.has(flagsEnded) {
		_ = a.Close(ErrClosed)
		_ = b.Close(ErrClosed)
		if a.has(flagLeft) {
			return a.gone()
		}
		return b.gone()
	}
	for _, c := range []*Conn{a, b} {
		c.mark(0, flagPaused)
	}
	return nil
}

// joining lets one goroutine at a time make pipes: no end is seen before both
// are free. Ends only let go of theirs, which needs no lock.
var joining sync.Mutex

func join(a, b *Conn) error {
	joining.Lock()
	defer joining.Unlock()
	if a == b || a.piped() != nil || b.piped() != nil {
		return ErrPiped
	}
	if a.has(flagFrozen) || b.has(flagFrozen) {
		return ErrFrozen
	}
	a.pipeTo(b)
	b.pipeTo(a)
	return nil
}

// pipeTo notes the other end of c's pipe.
func (c *Conn) pipeTo(other *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extraLocked().pipe.Store(other)
}

// message has a message handled.
func (c *Conn) message(m []byte) {
	if to := c.piped(); to != nil {
		c.pump(to, m)
		return
	}
	c.cfg.Handler.OnMessage(c, m)
}

// pump sends m to the other end of c's pipe.
func (c *Conn) pump(to *Conn, m []byte) {
	err := to.Send(m)
	if err != nil && !errors.Is(err, ErrClosed) { // its end is c's as well
		_ = c.Close(err)
		return
	}
	if to.has(flagFull) {
		c.mark(flagClogged, 0)
		if !to.has(flagFull) { // it was emptied meanwhile, by a loop that did not see the mark
			c.mark(0, flagClogged)
		}
	}
}

// unclog has the other end of c's pipe read on, if there is one.
func (c *Conn) unclog() {
	if from := c.piped(); from != nil {
		from.mark(0, flagClogged)
	}
}

// endPipe closes the other end of c's pipe, if there is one.
func (c *Conn) endPipe(why error) {
	if other := c.piped(); other != nil {
		_ = other.Close(why)
	}
}
