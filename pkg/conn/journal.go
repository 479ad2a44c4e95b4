package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
	"golang.org/x/sys/unix"
)

// The journal of a connection is what its row says of it, so that it can be
// taken up by another process when this one is killed. It is written when the
// connection is at rest: all input is handled and all is sent that follows
// from it, or is about to be. It is written before that write and says what
// the counts of bytes will be after it. So the kernel's own counts agree with
// it exactly while the connection is at rest, and nothing need be written when
// it is not. What the kernel does not count, such as a unix socket, has its
// note taken back before each read and write and made again afterwards.
//
// A connection with TLS, and one that a PROXY header has begun or is to begin,
// is never noted as at rest: for the keys of the one there is no place that
// other processes do not see, and for the header of the other there is none.
// Nor is an outgoing connection, whose Client is in no row. None of them
// outlives a process that is killed; all move as others do.
//
// A session's state of up to six bytes stands in the bits:
//
//	bits 0-5    flags
//	bits 8-10   length of the session's state, 0: it is not here
//	bits 16-63  the state
//
// What a row has no room for lies in the half of its slab that the bits name,
// which costs memory that most connections can do without:
//
//	2 B  length of the session's state, little endian
//	2 B  length of the application's, and one; 0: there is none
//	  -  the session's state
//	  -  the application's

// The bits of a note.
const (
	noteAtRest        = 1 << iota
	noteSlab          // the slab has state
	noteHalf          // in its second half
	noteNew           // OnConnect was not called
	notePaused        // as Conn.Pause
	noteAuthenticated // as Conn.Authenticated

	noteSlabs = noteSlab | noteHalf
)

const (
	noteLengthAt = 8
	noteLength   = 7 << noteLengthAt
	noteStateAt  = 16
	maxNoted     = (64 - noteStateAt) / 8 // bytes of a session's state in the bits
)

// noteSession returns the bits of a session's state, which has 1 to maxNoted
// bytes.
func noteSession(state []byte) uint64 {
	bits := uint64(len(state)) << noteLengthAt
	for i, b := range state {
		bits |= uint64(b) << (noteStateAt + 8*i)
	}
	return bits
}

// notedSession is the reverse; nil: it is not in the bits.
func notedSession(bits uint64) []byte {
	n := int(bits & noteLength >> noteLengthAt)
	if n == 0 || n > maxNoted {
		return nil
	}
	state := make([]byte, n)
	for i := range state {
		state[i] = byte(bits >> (noteStateAt + 8*i))
	}
	return state
}

const (
	slabHeader = 4

	// MaxSaved is the most bytes of an application's state that Conn.Save
	// keeps.
	MaxSaved = 256

	// whatCounted, in Row.What, says that the kernel counts the bytes.
	whatCounted = 1
)

// ErrNotSaved says that nobody knows how to save a connection's state: its
// Config has no EncodeValue.
var ErrNotSaved = errors.New("conn: state has no encoding")

// ListenerKey is what a row says of the listener by which its connection came.
func ListenerKey(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	return h.Sum32()
}

// Save keeps what EncodeValue makes of the connection now, up to MaxSaved
// bytes, where it outlives this process: should that be killed, the process
// that takes up the connection has it given to DecodeValue. It holds from the
// next time on that the connection is at rest, all input handled and answered,
// and until the next Save; what changes in between, and is not saved, is not
// kept. It is called in a callback, or where else the state does not change
// meanwhile. It returns ErrNotSaved without an EncodeValue, ErrTooLong if
// there are more bytes, EncodeValue's error or panic, and as Send ErrClosed or
// a *MovedError.
func (c *Conn) Save() error {
	encode := c.cfg.EncodeValue
	if encode == nil {
		return ErrNotSaved
	}
	var b []byte
	if err := guard(func() (err error) { b, err = encode(c); return err }); err != nil {
		return fmt.Errorf("conn: state of the application: %w", err)
	}
	if len(b) > MaxSaved {
		return fmt.Errorf("conn: state of the application: %d bytes, want at most %d: %w", len(b), MaxSaved, ErrTooLong)
	}
	c.mu.Lock()
	if c.has(flagsEnded) {
		defer c.mu.Unlock()
		return c.goneLocked()
	}
	c.extraLocked().saved = append(make([]byte, 0, len(b)), b...) // not nil
	first := c.dirtyLocked()
	c.mu.Unlock()
	if first && !c.set.settleLater(c) {
		return ErrClosed
	}
	return nil
}

// row returns the row of c, which is this process's.
func (c *Conn) row() *rows.Row { return c.set.alloc.Table().Own(c.id) }

// note is noteLocked for who does not have mu.
func (c *Conn) note() {
	c.mu.Lock()
	c.noteLocked()
	c.mu.Unlock()
}

// noteLocked brings the journal up to date. It needs mu, and comes before the
// write. Loop only, and in no callback.
func (c *Conn) noteLocked() {
	if c.state == Closed {
		return
	}
	row := c.row()
	rx, tx := c.rx.Load(), c.tx.Load()
	notedRx, notedTx, noted := row.Published()
	bits, rests := c.restLocked(noted)
	switch {
	case rests:
		row.Publish(rx, tx+uint64(c.out.bytes), bits)
	case noted&noteAtRest != 0 && notedRx == rx && notedTx == tx:
		row.Publish(rx, tx, noted&^noteAtRest)
	}
}

// disturb takes the note back: before a read or a write of what the kernel
// does not count, and before callbacks that begin with no input. Loop only.
func (c *Conn) disturb() {
	row := c.row()
	if rx, tx, bits := row.Published(); bits&noteAtRest != 0 {
		row.Publish(rx, tx, bits&^noteAtRest)
	}
}

// restLocked says whether c is at rest but for what is queued, and with which
// bits that is to be noted. It needs mu.
func (c *Conn) restLocked(noted uint64) (bits uint64, rests bool) {
	flags := c.flags.Load()
	if flags&flagRunning != 0 {
		c.flags.Or(flagUnsettled) // it is settled again afterwards
		return 0, false
	}
	if c.state != Open || flags&flagsEnded != 0 || c.in != nil || c.held || c.ending || c.cfg.Pinned || c.cfg.dialer != nil || !c.tcp && c.out.bytes > 0 {
		return 0, false
	}
	bits = noted&noteSlabs | noteAtRest
	if flags&flagNew != 0 {
		bits |= noteNew
	}
	if flags&flagPaused != 0 {
		bits |= notePaused
	}
	if flags&flagAuthenticated != 0 {
		bits |= noteAuthenticated
	}
	x := c.extra.Load()
	if x == nil {
		return bits, true
	}
	if x.layer != nil || x.origin.Load() != nil {
		return 0, false // keys, and whose it is, are in no row
	}
	if x.holds > 0 || x.pipe.Load() != nil || x.late.bytes > 0 {
		return 0, false
	}
	if x.session == nil && x.saved == nil {
		return bits, true
	}
	return c.slabLocked(x, bits)
}

// slabLocked puts the states of session and application into the bits or the
// slab, if they are not there, and returns the bits that say so. It needs mu.
func (c *Conn) slabLocked(x *extra, bits uint64) (_ uint64, rests bool) {
	s := c.set
	session := s.scratch[:0]
	if x.session != nil {
		if x.session.Buffered() > 0 {
			return 0, false
		}
		err := guard(func() (err error) { session, err = x.session.AppendState(session); return err })
		if err != nil {
			return 0, false
		}
		s.scratch = session
	}
	if x.saved == nil && bits&noteSlab == 0 && len(session) > 0 && len(session) <= maxNoted {
		return bits | noteSession(session), true
	}
	table := s.alloc.Table()
	value, hasValue := x.saved, x.saved != nil
	if bits&noteSlab != 0 {
		old, err := table.Slab(c.id, halfOf(bits))
		if err != nil {
			return 0, false
		}
		oldSession, oldValue, ok := parseSlab(old)
		if ok && !hasValue {
			if bytes.Equal(session, oldSession) {
				return bits, true
			}
			value, hasValue = oldValue, oldValue != nil
		}
	}
	bits, err := c.writeSlab(bits, session, value, hasValue)
	if err != nil {
		return 0, false
	}
	x.saved = nil
	return bits, true
}

// writeSlab fills the half of the slab that is not in use, and returns the bits
// that say that it is.
func (c *Conn) writeSlab(bits uint64, session, value []byte, hasValue bool) (uint64, error) {
	if n := slabHeader + len(session) + len(value); n > rows.SlabHalf {
		return 0, fmt.Errorf("conn: state of %d bytes, want at most %d: %w", n, rows.SlabHalf, ErrTooLong)
	}
	bits = (bits ^ noteHalf) | noteSlab
	slab, err := c.set.alloc.Table().Slab(c.id, halfOf(bits))
	if err != nil {
		return 0, fmt.Errorf("conn: %w", err)
	}
	binary.LittleEndian.PutUint16(slab, uint16(len(session)))
	n := 0
	if hasValue {
		n = len(value) + 1
	}
	binary.LittleEndian.PutUint16(slab[2:], uint16(n))
	copy(slab[slabHeader:], session)
	copy(slab[slabHeader+len(session):], value)
	return bits, nil
}

// passSavedLocked puts into the slab what Save has left to be put there when
// the connection is at rest: it is to move before that, and who takes it takes
// what is in the slab for what was saved last. Whether it is at rest stays as
// it is. It needs mu.
func (c *Conn) passSavedLocked() error {
	x := c.extra.Load()
	if x.saved == nil {
		return nil
	}
	row := c.row()
	rx, tx, bits := row.Published()
	session := notedSession(bits)
	if bits&noteSlab != 0 {
		old, err := c.set.alloc.Table().Slab(c.id, halfOf(bits))
		if err != nil {
			return fmt.Errorf("conn: %w", err)
		}
		session, _, _ = parseSlab(old)
	}
	bits, err := c.writeSlab(bits, session, x.saved, true)
	if err != nil {
		return err
	}
	row.Publish(rx, tx, bits&(1<<noteLengthAt-1))
	x.saved = nil
	return nil
}

func halfOf(bits uint64) int {
	if bits&noteHalf != 0 {
		return 1
	}
	return 0
}

// parseSlab takes a half of a slab apart. value is nil if there is none.
func parseSlab(b []byte) (session, value []byte, ok bool) {
	n := int(binary.LittleEndian.Uint16(b))
	m := int(binary.LittleEndian.Uint16(b[2:]))
	b = b[slabHeader:]
	if n+max(m-1, 0) > len(b) {
		return nil, nil, false
	}
	session = b[:n:n]
	if m > 0 {
		value = b[n : n+m-1 : n+m-1]
	}
	return session, value, true
}

// tellRow notes where this process has c, and what it is. Of its journal what
// was saved stays, and nothing else: callbacks are to come.
func (c *Conn) tellRow(row *rows.Row) {
	what := uint64(c.cfg.kind) << 32
	if c.tcp {
		what |= whatCounted
	}
	row.What.Store(what)
	now := c.set.loop.Now()
	row.Opened.Store(int64(now - c.opened.until(now)))
	row.Where.Store(uint64(c.cfg.key)<<32 | uint64(uint32(c.fd)))
	row.Local.Store(uint64(c.token))
	_, _, bits := row.Published()
	row.Publish(c.rx.Load(), c.tx.Load(), bits&noteSlabs)
}

// Noted is what the journal of a connection says.
type Noted struct {
	FD       int    // its descriptor in the process that owns it
	Listener uint32 // ListenerKey of its listener

	// AtRest: it was at rest when Read bytes were read and Written ones
	// written. If Counted is set this is to be compared with what the kernel
	// says; otherwise AtRest alone tells.
	AtRest        bool
	Counted       bool
	Read, Written uint64
}

// NotedIn reads the journal of a connection whose owner is dead, or cannot go
// on.
func NotedIn(row *rows.Row) Noted {
	where, what := row.Where.Load(), row.What.Load()
	rx, tx, bits := row.Published()
	return Noted{
		FD: int(int32(uint32(where))), Listener: uint32(where >> 32),
		AtRest: bits&noteAtRest != 0, Counted: what&whatCounted != 0,
		Read: rx, Written: tx,
	}
}

// Resting appends to dst what Frozen.Capture would have for a connection that
// was at rest when its process died, and to which nothing was done since: fd
// is its descriptor, listener the name of its listener, now the time by
// CLOCK_MONOTONIC. Deadlines of silence begin anew, named timers are gone. The
// application's state is the one that was saved last. It fails with
// ErrNotAtRest, with ErrState if the slab is not understood, or if the kernel
// has forgotten the peer. Any goroutine may call it.
func Resting(dst []byte, table *rows.Table, id rows.ID, row *rows.Row, fd int, listener string, now time.Duration) ([]byte, error) {
	rx, tx, bits := row.Published()
	if bits&noteAtRest == 0 {
		return dst, ErrNotAtRest
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return dst, fmt.Errorf("conn: descriptor %d: %w", fd, os.NewSyscallError("getpeername", err))
	}
	var protocol [4]byte
	binary.LittleEndian.PutUint32(protocol[:], uint32(row.What.Load()>>32))
	s := state{
		flags: stateResting, listener: listener, protocol: string(protocol[:]), peer: address(peer),
		opened: max(now-time.Duration(row.Opened.Load()), 0), rx: rx, tx: tx,
	}
	if rx == 0 {
		s.partial = max(s.opened, 1) // the deadline of the first byte goes on
	}
	if bits&notePaused == 0 {
		s.flags |= stateReading
	} else {
		s.flags |= statePaused
	}
	if bits&noteAuthenticated != 0 {
		s.flags |= stateAuthenticated
	}
	if bits&noteNew != 0 {
		s.flags |= stateNew
	}
	s.session = notedSession(bits)
	if bits&noteSlab != 0 {
		slab, err := table.Slab(id, halfOf(bits))
		if err != nil {
			return dst, fmt.Errorf("conn: %w", err)
		}
		var ok bool
		if s.session, s.value, ok = parseSlab(slab); !ok {
			return dst, fmt.Errorf("%w: slab of row %d", ErrState, id)
		}
		if s.value != nil {
			s.flags |= stateHasValue
		}
	}
	return s.append(dst, new(queue)), nil
}

// ErrNotAtRest says that a connection was not at rest when its process died.
var ErrNotAtRest = errors.New("conn: not at rest")
