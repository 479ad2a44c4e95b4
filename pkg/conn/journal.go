package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"time"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
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
// With TLS what is noted are the numbers of the records, too, after those that
// are about to be written: they share a word with the bits. The keys, which
// change seldom, are in the slab. So who comes next goes on with the record
// that nobody has sealed or opened yet; what the dead process has sealed and
// not written is nowhere. A connection is at rest whose PROXY header, or first
// record, is still to come as a whole, and again when its handshake is over; of
// that in between crypto/tls has the state. So it is with TLS 1.2, which is
// never noted as at rest.
//
// Without TLS a session's state of up to six bytes stands there, in the place
// of the numbers: three bits of length, and from bit 16 on the state. It is all
// that most have. What a row has no room for lies in the half of its slab that
// the bits name, which costs memory:
//
//	2 B  length of the session's state, little endian
//	2 B  length of the application's, and one; 0: there is none
//	2 B  length of the PROXY header, of an outgoing connection of its listener's name
//	2 B  length of what TLS has agreed on
//	1 B  length of TLS' keys, see tlsrec.Conn.AppendKeys; 0: there are none
//	1 B  1: header and what TLS has agreed on are in the annex, otherwise at the end
//	127  TLS' keys, then zeros; or not there
//	  -  the session's state
//	  -  the application's
//	  -  header, and what TLS has agreed on
//
// Whoever takes up the connection reads the keys there: they are in no message,
// and nobody else's memory.

// The bits of a note.
const (
	noteAtRest        = 1 << iota
	noteSlab          // the slab has state
	noteHalf          // in its second half
	noteNew           // OnConnect was not called
	notePaused        // as Conn.Pause
	noteAuthenticated // as Conn.Authenticated
	noteOpening       // what comes first, TLS' first record or, with noteHeader, the PROXY header, has not come
	noteHeader
	noteQuiet   // nothing for the protocol has come since the handshake of TLS
	noteSession // the state of the session stands above, and no numbers

	noteSlabs = noteSlab | noteHalf

	// The numbers of the next records stand above the bits.
	noteIn     = 10
	noteInMax  = 1<<30 - 1 // the peer was asked for another key long before
	noteOut    = noteIn + 30
	noteOutMax = 1<<24 - 1 // there is another key then

	noteLength = 10
	noteState  = 16
	maxNoted   = (64 - noteState) / 8 // bytes of a session's state
)

// noteOf returns the bits of a session's state, which has 1 to maxNoted bytes.
func noteOf(state []byte) uint64 {
	bits := noteSession | uint64(len(state))<<noteLength
	for i, b := range state {
		bits |= uint64(b) << (noteState + 8*i)
	}
	return bits
}

// notedSession is the reverse; nil: it is not there.
func notedSession(bits uint64) []byte {
	n := int(bits >> noteLength & 7)
	if bits&noteSession == 0 || n > maxNoted {
		return nil
	}
	state := make([]byte, n)
	for i := range state {
		state[i] = byte(bits >> (noteState + 8*i))
	}
	return state
}

const (
	slabHeader = 10
	slabKeys   = tlsrec.MaxState

	// MaxSaved is the most bytes of an application's state that Conn.Save
	// keeps.
	MaxSaved = 256

	// In Row.What.
	whatCounted = 1 // the kernel counts the bytes
	whatDialed  = 2 // it is an outgoing connection
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
	if n := len(b) - c.cfg.dialer.overhead(c); n > MaxSaved {
		return fmt.Errorf("conn: state of the application: %d bytes, want at most %d: %w", n, MaxSaved, ErrTooLong)
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
	if l := c.layered(); l != nil {
		c.noteUnsentLocked(l.sealed.bytes)
		return
	}
	c.noteUnsentLocked(c.out.bytes)
}

// noteUnsentLocked is noteLocked if all that is to be written, as it goes to
// the kernel, is unsent bytes.
func (c *Conn) noteUnsentLocked(unsent int) {
	if !journaling || c.state == Closed {
		return
	}
	row := c.row()
	rx, tx := c.rx.Load(), c.tx.Load()
	notedRx, notedTx, noted := row.Published()
	bits, rests := c.restLocked(noted, unsent)
	switch {
	case rests:
		row.Publish(rx, tx+uint64(unsent), bits)
		if noted&noteSlab != 0 && (noted^bits)&noteHalf != 0 {
			c.forgetKeys(noted)
		}
	case noted&noteAtRest != 0 && notedRx == rx && notedTx == tx:
		row.Publish(rx, tx, noted&^noteAtRest)
	}
}

// forgetKeys overwrites what keys the half of the slab has that bits names, and
// that counts no more: with those of before a KeyUpdate, what was sent before
// can be read.
func (c *Conn) forgetKeys(bits uint64) {
	slab, err := c.set.alloc.Table().OwnSlab(c.id, partOf(bits))
	if err == nil && slab[slabKeysLen] != 0 {
		clear(slab[slabHeader : slabHeader+slabKeys])
	}
}

// disturb takes the note back: before a read or a write of what the kernel
// does not count, and before callbacks that begin with no input. Loop only.
func (c *Conn) disturb() {
	if !journaling {
		return
	}
	row := c.row()
	if rx, tx, bits := row.Published(); bits&noteAtRest != 0 {
		row.Publish(rx, tx, bits&^noteAtRest)
	}
}

// restLocked says whether c is at rest but for what is queued, unsent bytes as
// they go to the kernel, and with which bits that is to be noted. It needs mu.
func (c *Conn) restLocked(noted uint64, unsent int) (bits uint64, rests bool) {
	flags := c.flags.Load()
	if flags&flagRunning != 0 {
		c.flags.Or(flagUnsettled) // it is settled again afterwards
		return 0, false
	}
	if c.state != Open || flags&flagsEnded != 0 || c.in != nil || c.held || c.ending || c.cfg.Pinned || !c.tcp && unsent > 0 {
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
	if c.cfg.dialer != nil && (x == nil || x.client == nil || flags&flagNew != 0) {
		return 0, false
	}
	if x == nil {
		return bits, true
	}
	if x.holds > 0 || x.pipe.Load() != nil || x.late.bytes > 0 {
		return 0, false
	}
	if l := x.layer; l != nil {
		layerBits, rests := l.rests()
		if !rests || c.out.bytes > 0 { // which has no length yet
			return 0, false
		}
		bits |= layerBits
	}
	if x.session == nil && x.saved == nil && !c.keepsLocked(x) {
		return bits, true
	}
	return c.slabLocked(x, bits)
}

// rests says whether the layer is at rest, and which bits and numbers tell
// how. It needs the connection's mu.
func (l *layer) rests() (bits uint64, rests bool) {
	switch {
	case l.stage == stageProxy:
		return noteOpening | noteHeader, true
	case l.stage == stageHello:
		return noteOpening, true
	case l.tls == nil || l.in != nil || l.failed || l.bye || l.truncated || !l.tls.Rests():
		return 0, false
	}
	in, out := l.tls.Numbers()
	if in > noteInMax || out > noteOutMax {
		return 0, false
	}
	if l.quiet {
		bits = noteQuiet
	}
	return bits | in<<noteIn | out<<noteOut, true
}

// keepsLocked says whether there is something to be kept in the slab that
// neither session nor application has. It needs mu.
func (c *Conn) keepsLocked(x *extra) bool {
	return x.layer != nil && x.layer.tls != nil || x.origin.Load() != nil || c.cfg.dialer != nil
}

// slabLocked puts what the row has no room for into the slab, unless it is
// there, and returns the bits that say so. It needs mu.
func (c *Conn) slabLocked(x *extra, bits uint64) (_ uint64, rests bool) {
	s := c.set
	next := slab{value: x.saved}
	buf := s.scratch[:0]
	if x.session != nil {
		if x.session.Buffered() > 0 {
			return 0, false
		}
		err := guard(func() (err error) { buf, err = x.session.AppendState(buf); return err })
		if err != nil {
			return 0, false
		}
		s.scratch = buf
	}
	n := len(buf)
	if bits&noteSlab == 0 && next.value == nil && n > 0 && n <= maxNoted && x.layer == nil && !c.keepsLocked(x) {
		return bits | noteOf(buf), true
	}
	next.session = buf[:n:n]
	var keys *tlsrec.Conn
	if x.layer != nil {
		keys = x.layer.tls
	}
	table := s.alloc.Table()
	if bits&noteSlab != 0 {
		noted := x.noted && next.value == nil && (keys == nil || x.layer.noted == keys.Updates())
		if noted && x.session == nil {
			return bits, true
		}
		half, err := table.Slab(c.id, partOf(bits))
		if err != nil {
			return 0, false
		}
		if old, ok := parseSlab(half, nil); ok && next.value == nil {
			if noted && bytes.Equal(next.session, old.session) {
				return bits, true
			}
			next.value = old.value
		}
	}
	if d := c.cfg.dialer; d != nil {
		if next.origin = []byte(c.cfg.Listener); next.value == nil {
			next.value = d.appendAddress(nil, c)
		}
	} else if o := x.origin.Load(); o != nil {
		next.origin = o.header
	}
	if keys != nil {
		var err error
		if buf, err = x.layer.info.Append(buf); err != nil {
			x.tooLarge = true
			return 0, false
		}
		s.scratch = buf
		next.info = buf[n:]
	}
	bits, half, err := c.writeSlab(bits, &next, keys != nil)
	if err != nil {
		x.tooLarge = errors.Is(err, ErrTooLong)
		return 0, false
	}
	x.saved, x.noted, x.tooLarge = nil, true, false
	if keys != nil {
		half[slabKeysLen] = byte(len(keys.AppendKeys(half[slabHeader:slabHeader])))
		x.layer.noted = keys.Updates()
	}
	return bits, true
}

// writeSlab fills the half of the slab that is not in use, but for the keys,
// for which it leaves room, and returns it with the bits that say that it is.
func (c *Conn) writeSlab(bits uint64, s *slab, keys bool) (_ uint64, half []byte, err error) {
	table := c.set.alloc.Table()
	apart := s.size(keys) > rows.SlabHalf
	if apart {
		own, rest := s.sizes(keys)
		if own > rows.SlabHalf || rest > rows.SlabAnnex {
			return 0, nil, fmt.Errorf("conn: state of %d bytes and %d that stay as they are, want at most %d and %d: %w", own, rest, rows.SlabHalf, rows.SlabAnnex, ErrTooLong)
		}
	}
	bits = (bits ^ noteHalf) | noteSlab
	if half, err = table.OwnSlab(c.id, partOf(bits)); err != nil {
		return 0, nil, fmt.Errorf("conn: %w", err)
	}
	var annex []byte
	if apart {
		if annex, err = table.OwnSlab(c.id, rows.Annex); err != nil {
			return 0, nil, fmt.Errorf("conn: %w", err)
		}
	}
	s.put(half, annex, keys)
	return bits, half, nil
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
	rx, tx, noted := row.Published()
	var s slab
	var keys []byte
	var err error
	if noted&noteSlab != 0 {
		if s, keys, err = readSlab(c.set.alloc.Table(), c.id, noted); err != nil {
			return err
		}
	}
	if noted&noteSession != 0 {
		s.session = notedSession(noted)
		noted &= noteSession - 1
	}
	s.value = x.saved
	bits, half, err := c.writeSlab(noted, &s, len(keys) > 0)
	if err != nil {
		return err
	}
	half[slabKeysLen] = byte(copy(half[slabHeader:], keys))
	row.Publish(rx, tx, bits)
	if len(keys) > 0 {
		c.forgetKeys(noted)
	}
	x.saved = nil
	return nil
}

// slab is what a slab has, but for the keys.
type slab struct {
	session, value []byte // value is nil if there is none
	origin, info   []byte
}

// size is how much of a half it takes.
func (s *slab) size(keys bool) int {
	own, rest := s.sizes(keys)
	return own + rest
}

// sizes tells apart what may go to the annex.
func (s *slab) sizes(keys bool) (own, rest int) {
	own = slabHeader + len(s.session) + len(s.value)
	if keys {
		own += slabKeys
	}
	return own, len(s.origin) + len(s.info)
}

// put writes it into a half, with room for keys, and with the rest in the annex
// unless that is nil. What the annex has may be what s has.
func (s *slab) put(half, annex []byte, keys bool) {
	binary.LittleEndian.PutUint16(half, uint16(len(s.session)))
	n := 0
	if s.value != nil {
		n = len(s.value) + 1
	}
	binary.LittleEndian.PutUint16(half[2:], uint16(n))
	binary.LittleEndian.PutUint16(half[4:], uint16(len(s.origin)))
	binary.LittleEndian.PutUint16(half[6:], uint16(len(s.info)))
	half[slabKeysLen], half[slabApart] = 0, 0
	rest := half[slabHeader:]
	if keys {
		clear(rest[:slabKeys])
		rest = rest[slabKeys:]
	}
	rest = rest[copy(rest, s.session):]
	rest = rest[copy(rest, s.value):]
	if annex != nil {
		half[slabApart] = 1
		rest = annex
	}
	copy(rest[copy(rest, s.origin):], s.info)
}

// Where in a half stand a length and a mark.
const (
	slabKeysLen = 8
	slabApart   = 9
)

func partOf(bits uint64) rows.Part {
	if bits&noteHalf != 0 {
		return rows.SecondHalf
	}
	return rows.FirstHalf
}

// parseSlab takes a half of a slab apart. Without the annex origin and info may
// be missing.
func parseSlab(half, annex []byte) (s slab, ok bool) {
	b := half[slabHeader:]
	if half[slabKeysLen] > 0 {
		b = b[slabKeys:]
	}
	take := func(n int) (part []byte) {
		if ok = ok && n <= len(b); ok {
			part, b = b[:n:n], b[n:]
		}
		return part
	}
	ok = half[slabKeysLen] <= slabKeys && half[slabApart] <= 1
	length := func(at int) int { return int(binary.LittleEndian.Uint16(half[at:])) }
	s.session = take(length(0))
	if n := length(2); n > 0 {
		s.value = take(n - 1)
	}
	if half[slabApart] == 1 {
		if b = annex; annex == nil {
			return s, ok
		}
	}
	s.origin, s.info = take(length(4)), take(length(6))
	return s, ok
}

// readSlab reads what the slab has of a connection whose note has bits.
func readSlab(table *rows.Table, id rows.ID, bits uint64) (s slab, keys []byte, err error) {
	half, err := table.Slab(id, partOf(bits))
	if err != nil {
		return s, nil, fmt.Errorf("conn: %w", err)
	}
	var annex []byte
	if half[slabApart] == 1 {
		if annex, err = table.Slab(id, rows.Annex); err != nil {
			return s, nil, fmt.Errorf("conn: %w", err)
		}
	}
	s, ok := parseSlab(half, annex)
	if !ok {
		return s, nil, fmt.Errorf("%w: slab of row %d", ErrState, id)
	}
	return s, half[slabHeader : slabHeader+int(half[slabKeysLen])], nil
}

// notedKeys returns the keys that the slab has of a connection that was at rest.
func notedKeys(table *rows.Table, id rows.ID, row *rows.Row) (*tlsrec.Conn, error) {
	_, _, bits := row.Published()
	if bits&(noteAtRest|noteSlab) != noteAtRest|noteSlab {
		return nil, fmt.Errorf("%w: no keys in the slab of row %d", ErrState, id)
	}
	_, keys, err := readSlab(table, id, bits)
	if err != nil {
		return nil, err
	}
	c, err := tlsrec.RestoreKeys(keys, bits>>noteIn&noteInMax, bits>>noteOut)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return c, nil
}

// tellRow notes where this process has c, and what it is. Of its journal what
// was saved stays, and nothing else, for callbacks are to come; if none are,
// all of it stays, until it is brought up to date: who had it before has left
// it as it was when nothing was under way, or not at rest.
func (c *Conn) tellRow(row *rows.Row, quiet bool) {
	what := uint64(c.cfg.kind) << 32
	if c.tcp {
		what |= whatCounted
	}
	if c.cfg.dialer != nil {
		what |= whatDialed
	}
	row.What.Store(what)
	now := c.set.loop.Now()
	row.Opened.Store(int64(now - c.opened.until(now)))
	row.Where.Store(uint64(c.cfg.key)<<32 | uint64(uint32(c.fd)))
	row.Local.Store(uint64(c.token))
	if quiet {
		return
	}
	_, _, bits := row.Published()
	row.Publish(c.rx.Load(), c.tx.Load(), bits&noteSlabs)
}

// Noted is what the journal of a connection says.
type Noted struct {
	FD       int    // its descriptor in the process that owns it
	Listener uint32 // ListenerKey of its listener
	Dialed   bool   // it is an outgoing one: Resting knows its listener's name

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
		FD: int(int32(uint32(where))), Listener: uint32(where >> 32), Dialed: what&whatDialed != 0,
		AtRest: bits&noteAtRest != 0, Counted: what&whatCounted != 0,
		Read: rx, Written: tx,
	}
}

// NoteFD writes down that the connection, whose owner the caller has become,
// has that descriptor here: what NotedIn returns from now on.
func NoteFD(row *rows.Row, fd int) {
	row.Where.Store(row.Where.Load()&^math.MaxUint32 | uint64(uint32(fd)))
}

// Resting appends to dst what Frozen.Capture would have for a connection that
// was at rest when its process died, and to which nothing was done since: fd
// is its descriptor, listener the name of its listener, which matters only for an
// accepted one, now the time by CLOCK_MONOTONIC. Deadlines of silence begin
// anew, named timers are gone. The application's state is the one that was
// saved last. Keys of TLS are not told: Set.Adopt reads them in the slab. It
// fails with ErrNotAtRest, with ErrState if the slab is not understood, or if
// the kernel has forgotten the peer. Any goroutine may call it.
func Resting(dst []byte, table *rows.Table, id rows.ID, row *rows.Row, fd int, listener string, now time.Duration) ([]byte, error) {
	rx, tx, bits := row.Published()
	if bits&noteAtRest == 0 {
		return dst, ErrNotAtRest
	}
	peer, err := peerOf(fd)
	if err != nil {
		return dst, fmt.Errorf("conn: descriptor %d: %w", fd, os.NewSyscallError("getpeername", err))
	}
	what := row.What.Load()
	var protocol [4]byte
	binary.LittleEndian.PutUint32(protocol[:], uint32(what>>32))
	s := state{
		flags: stateResting, listener: listener, protocol: string(protocol[:]), peer: peer,
		opened: max(now-time.Duration(row.Opened.Load()), 0), rx: rx, tx: tx,
	}
	set := func(bit uint64, when bool) {
		if when {
			s.flags |= bit
		}
	}
	set(stateReading, bits&notePaused == 0)
	set(statePaused, bits&notePaused != 0)
	set(stateAuthenticated, bits&noteAuthenticated != 0)
	set(stateNew, bits&noteNew != 0)
	s.session = notedSession(bits)
	if bits&noteSlab != 0 {
		slab, keys, err := readSlab(table, id, bits)
		if err != nil {
			return dst, err
		}
		s.session, s.value = slab.session, slab.value
		set(stateHasValue, s.value != nil)
		if what&whatDialed != 0 {
			s.listener = string(slab.origin)
		} else {
			s.header = slab.origin
		}
		if len(keys) > 0 {
			s.layer = &layerState{flags: layerNoted, info: slab.info}
		}
	}
	switch {
	case bits&noteOpening != 0:
		s.layer = new(layerState)
		if bits&noteHeader != 0 {
			s.layer.flags = layerProxy
		}
		s.partial = max(s.opened, 1) // the deadline of opening goes on
	case bits&noteQuiet != 0 && s.layer != nil:
		s.layer.flags |= layerQuiet
		s.partial = 1
	case rx == 0:
		s.partial = max(s.opened, 1) // the deadline of the first byte goes on
	}
	return s.append(dst, new(queue)), nil
}

// ErrNotAtRest says that a connection was not at rest when its process died.
var ErrNotAtRest = errors.New("conn: not at rest")

// peerOf is address of what getpeername(2) says of fd. The one of x/sys asks
// for the protocol, too, and allocates.
func peerOf(fd int) (string, error) {
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	if _, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return "", errno
	}
	if sa.Family == unix.AF_INET || sa.Family == unix.AF_INET6 {
		return peerAddress(&sa).String(), nil
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return "", err
	}
	return address(peer), nil
}
