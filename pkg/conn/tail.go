package conn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrClosedBefore ends a connection that was told to close in the process it
// came from, while it was on its way.
var ErrClosedBefore = errors.New("conn: closed before it moved")

// ErrTailLost ends a connection that went on before it was known what was sent
// to it in the process it came from: that has no place in the stream any more.
var ErrTailLost = errors.New("conn: what was sent before it moved has come too late")

// A tail is what was asked of a connection between Capture and Left, and what
// was asked before but not acted on:
//
//	2 B     version, little endian
//	1..10   flags
//	string  why it was closed, as text
//	1..10   number of timers, then of each
//	        string  name
//	        1..10   0: stopped; otherwise nanoseconds until it is over, and 1
//	string  what was sent: encoded, or of a session the messages, each a string
//	1..10   slot of MoveTo
//	1..10   ID of Bind
//	4 B     CRC-32C of all before it, little endian
//
// Version 1 ends with what was sent. It is still written where it can tell
// all, so that programs that know no other are content.
const (
	tailVersion    = 2
	tailVersionOld = 1
)

const (
	tailClose = 1 << iota
	tailCloseNow
	tailPaused  // Pause was called
	tailResumed // Resume was called
	tailAuthenticated
	tailMessages // what was sent is messages
	tailMove     // MoveTo was called
	tailBind     // Bind was called

	tailKnown = 1<<iota - 1
	tailsMove = tailMove | tailBind // version 2
)

// maxReason bounds the text of why a connection was closed.
const maxReason = 1 << 10

type tail struct {
	flags  uint64
	why    string
	timers []tailTimer
	sent   []byte
	slot   uint64 // of tailMove
	bound  uint64 // of tailBind
}

type tailTimer struct {
	name    string
	stopped bool
	left    time.Duration
}

// tailLocked returns what came since Capture, nil if nothing did. It needs
// mu.
func (f *Frozen) tailLocked() []byte {
	c := f.conn
	x := c.extra.Load()
	now := c.flags.Load()
	var t tail
	set := func(bit uint64, when bool) {
		if when {
			t.flags |= bit
		}
	}
	set(tailClose, now&flagGoodbye != 0)
	set(tailCloseNow, now&flagCloseNow != 0)
	set(tailPaused, now&^f.flags&flagPaused != 0)
	set(tailResumed, f.flags&^now&flagPaused != 0)
	set(tailAuthenticated, now&^f.flags&flagAuthenticated != 0)
	set(tailMove, now&flagMove != 0)
	set(tailBind, now&flagBind != 0)
	t.slot, t.bound = uint64(x.slot), x.bound
	clock := c.set.loop.Clock()
	for name, timer := range x.timers {
		if f.timers[name] != timer {
			t.timers = append(t.timers, tailTimer{name: name, left: max(timer.at-clock, 0)})
		}
	}
	for name := range f.timers {
		if x.timers[name] == nil {
			t.timers = append(t.timers, tailTimer{name: name, stopped: true})
		}
	}
	if t.flags == 0 && len(t.timers) == 0 && x.late.bytes == 0 {
		return nil
	}
	set(tailMessages, x.session != nil)
	if x.why != nil {
		t.why = x.why.Error()
		t.why = t.why[:min(len(t.why), maxReason)]
	}
	return t.append(nil, &x.late)
}

// append appends the tail with the bytes of sent.
func (t *tail) append(dst []byte, sent *queue) []byte {
	start := len(dst)
	version := uint16(tailVersionOld)
	if t.flags&tailsMove != 0 {
		version = tailVersion
	}
	b := binary.LittleEndian.AppendUint16(dst, version)
	b = binary.AppendUvarint(b, t.flags)
	b = appendString(b, t.why)
	b = binary.AppendUvarint(b, uint64(len(t.timers)))
	for _, timer := range t.timers {
		b = appendString(b, timer.name)
		if timer.stopped {
			b = appendTime(b, 0)
		} else {
			b = appendTime(b, timer.left+1)
		}
	}
	b = binary.AppendUvarint(b, uint64(sent.bytes))
	b = sent.appendTo(b)
	if version > tailVersionOld {
		b = binary.AppendUvarint(b, t.slot)
		b = binary.AppendUvarint(b, t.bound)
	}
	return seal(b, start)
}

// parse takes a tail apart; an empty one is one that asks for nothing.
func (t *tail) parse(b []byte) error {
	*t = tail{}
	if len(b) == 0 {
		return nil
	}
	p, version, err := unseal(b, tailVersionOld, tailVersion)
	if err != nil {
		return err
	}
	t.flags = p.number()
	if t.flags&^tailKnown != 0 {
		p.fail("unknown flags")
	}
	t.why = string(p.bytes())
	for n := p.number(); n > 0 && p.err == nil; n-- {
		timer := tailTimer{name: string(p.bytes())}
		left := p.time()
		timer.stopped, timer.left = left == 0, left-1
		t.timers = append(t.timers, timer)
	}
	t.sent = p.bytes()
	if version > tailVersionOld {
		t.slot, t.bound = p.number(), p.number()
	}
	if t.flags&tailsMove != 0 && version == tailVersionOld || t.slot > math.MaxInt32 {
		p.fail("a move that cannot be")
	}
	return p.end()
}

// reason is why the connection was closed.
func (t *tail) reason() error {
	if t.why == "" {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrClosedBefore, t.why)
}
