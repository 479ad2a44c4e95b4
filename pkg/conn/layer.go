package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// ErrTruncated is told, with ErrPeerClosed, if a peer that speaks TLS has
// ended the stream without saying so inside TLS: somebody on the way may have
// cut off what it sent last. What the protocol had not complete is no message
// then.
var ErrTruncated = tlsrec.ErrTruncated

// sealMost is how much is sealed at a time, in whole records. The rest waits as
// plaintext until the kernel has taken that.
const sealMost = 4 * tlsrec.MaxPlaintext

// layer stands between a descriptor and the messages: what comes before
// OnConnect (opening.go), and TLS from then on. A connection that needs
// neither has none.
type layer struct {
	// Owned by the loop.

	stage     stage
	handshake *tlsrec.Handshake // while stage is handshaking
	stepping  bool              // and a goroutine has it
	behind    bool              // and input has come meanwhile
	tls       *tlsrec.Conn      // once open: this
	legacy    *tlsrec.Legacy    // or this
	tickets   *tlsrec.Tickets   // of an outgoing one whose sessions are kept; nil: no more of them are wanted
	in        *buffer           // an incomplete record
	warm      int32             // its place in set.warm, and one; 0: it has none
	quiet     bool              // no byte of a message has come
	failed    bool              // there is nothing more to be sealed
	owes      bool              // legacy has something to send
	peerBye   bool              // legacy has the peer's close_notify
	truncated bool              // the stream has ended, and not within TLS
	bye       bool              // our close_notify is sealed
	toKernel  bool              // the kernel is to seal, see ktls.go
	kernel    bool              // and does
	looking   bool              // whether it has passed on all

	noted uint32 // Updates of the keys that are in the slab, if extra.noted

	info *tlsrec.Info // set once, under mu

	// Guarded by the connection's mu.

	sealed queue // before the send queue
}

// layered returns c's layer, nil if there is none. It is for the loop, or
// needs mu.
func (c *Conn) layered() *layer {
	if x := c.extra.Load(); x != nil {
		return x.layer
	}
	return nil
}

// TLS returns what the TLS handshake has agreed on, nil without TLS. It is
// made anew by each call, with what has travelled if the connection has moved:
// VerifiedChains is empty although the peer's certificates were verified, and
// keying material cannot be exported. Any goroutine may call it.
func (c *Conn) TLS() *tls.ConnectionState {
	c.mu.Lock()
	l := c.layered()
	var info *tlsrec.Info
	if l != nil {
		info = l.info
	}
	c.mu.Unlock()
	if info == nil {
		return nil
	}
	cs, err := info.ConnectionState()
	if err != nil {
		return nil // of certificates that were parsed once
	}
	return &cs
}

// pinned says whether c does not move, as is so with TLS 1.2: crypto/tls has
// it. Any goroutine may call it.
func (c *Conn) pinned() bool { return c.cfg.Pinned || c.has(flagStays) }

// unwrap is told that the loop's buffer has n bytes of the descriptor's.
func (c *Conn) unwrap(l *layer, n int) {
	loop := c.set.loop
	data := loop.ReadBuffer()[:n]
	switch {
	case l.stage != stageOpen:
		c.openOn(l, data)
	case l.legacy != nil:
		l.legacy.Feed(data)
		c.readLegacy(l)
	case l.in == nil:
		c.openRecords(l, data)
	case len(l.in.bytes()) < n:
		c.openRecords(l, loop.Prepend(l.in.bytes(), n))
	default: // dribbling into a record is cheap until that is complete
		if l.in = l.in.add(data); recordComplete(l.in.bytes()) {
			c.openRecords(l, loop.Prepend(l.in.bytes(), 0))
		} else {
			c.unfinished(l)
		}
	}
}

// recordComplete says whether in begins with a whole record, or with what will
// never be one.
func recordComplete(in []byte) bool {
	const header = 5
	if len(in) < header {
		return false
	}
	n := int(in[3])<<8 | int(in[4])
	return n > tlsrec.MaxRecord-header || len(in) >= header+n
}

// openRecords opens what is complete in data, which lies in the loop's buffer,
// and keeps the rest.
func (c *Conn) openRecords(l *layer, data []byte) {
	if l.tickets != nil && !l.tickets.Feed(data) {
		l.tickets = nil
	}
	c.warm(l)
	used, plain, err := l.tls.OpenAll(data)
	if err != nil {
		used = len(data) // what comes behind is of no meaning
	}
	l.keep(data[used:])
	c.received(l, plain)
	switch {
	case err == io.EOF:
		c.ended()
	case err != nil:
		c.tlsFailed(l, err)
	default:
		c.unfinished(l)
	}
}

// keep keeps the start of a record; what was kept before is in it.
func (l *layer) keep(rest []byte) {
	if len(rest) == 0 {
		l.freeIn()
		return
	}
	if l.in == nil {
		l.in = getBuffer(len(rest))
	}
	l.in.b, l.in.off = l.in.b[:0], 0
	l.in = l.in.add(rest)
}

func (l *layer) freeIn() {
	if l.in != nil {
		l.in.free()
		l.in = nil
	}
}

// readLegacy takes what crypto/tls has for us.
func (c *Conn) readLegacy(l *layer) {
	for {
		buf := c.set.loop.ReadBuffer()
		n, err := l.legacy.Read(buf)
		c.received(l, buf[:n])
		switch {
		case err == nil:
			continue
		case errors.Is(err, tlsrec.ErrWantInput):
		case err == io.EOF:
			l.peerBye = true
			c.ended()
		default:
			l.owes = true // perhaps an alert
			c.tlsFailed(l, err)
		}
		return
	}
}

// received has plaintext, which lies in the loop's buffer, delivered.
func (c *Conn) received(l *layer, plain []byte) {
	if len(plain) == 0 || c.ending || c.has(flagsEnded) {
		return
	}
	if l.quiet {
		l.quiet, c.partial = false, 0
	}
	if !c.held && !c.has(flagsHeld) {
		if c.cfg.whole && c.in == nil && len(plain) <= c.cfg.Limits.MaxMessage {
			c.takeWhole(plain)
		} else {
			c.take(plain)
		}
		return
	}
	if c.in == nil {
		c.in = getBuffer(len(plain))
	}
	c.in = c.in.add(plain)
	c.held, c.partial = true, 0
	c.mark(0, 0)
}

// unfinished sees to the deadline of a record that is not complete, which is
// that of a message.
func (c *Conn) unfinished(l *layer) {
	switch {
	case l.quiet || c.held || c.in != nil:
	case l.in == nil:
		c.partial = 0
	case c.partial == 0:
		now := c.set.loop.Now()
		c.partial = someTicks(now)
		if limit := c.cfg.Limits.Message; limit >= 0 {
			c.expireBy(now + limit)
		}
	}
}

// tlsFailed ends a connection in which no more can be read or written.
func (c *Conn) tlsFailed(l *layer, err error) {
	l.failed = true
	if alert, ok := errors.AsType[*tlsrec.AlertError](err); ok && alert.Remote {
		err = fmt.Errorf("%w: %w", ErrReset, err)
	} else {
		err = &ProtocolError{Err: err}
	}
	c.endLater(err)
	c.mark(0, 0)
}

// endOf says what the end of the stream means, or of the peer's part in TLS.
func (l *layer) endOf() error {
	why := error(nil)
	switch {
	case l.stage != stageOpen || l.peerBye:
	case l.tls == nil:
		why = ErrTruncated
	default:
		rest := 0
		if l.in != nil {
			rest = len(l.in.bytes())
		}
		why = l.tls.End(rest)
	}
	if why == nil {
		return ErrPeerClosed
	}
	l.truncated = true
	return fmt.Errorf("%w: %w", ErrPeerClosed, why)
}

// quiet says that a layer has brought nothing for the protocol yet.
func (c *Conn) quiet() bool {
	l := c.layered()
	return l != nil && l.quiet
}

// atEOF says whether what came was all, for the protocol to make of it what it
// can: not if somebody may have cut it.
func (c *Conn) atEOF() bool {
	if !c.eof {
		return false
	}
	l := c.layered()
	return l == nil || !l.truncated
}

// goodbye says whether close_notify is to be sent.
func (l *layer) goodbye() bool { return (l.tls != nil || l.legacy != nil) && !l.bye && !l.failed }

// pending says whether the layer itself has something to send.
func (l *layer) pending() bool { return l.owes || l.tls != nil && l.tls.Pending() }

// flushSealedLocked is flushLocked with the layer.
func (c *Conn) flushSealedLocked(l *layer) {
	plain := l.tls != nil || l.legacy != nil
	bye := c.state == Closing && !c.has(flagLate) && l.goodbye()
	if c.sealDirectLocked(l, bye) {
		return
	}
	if queued := c.queuedLocked(); c.blocked || l.sealed.bytes == 0 && !bye && !l.pending() && (!plain || c.out.bytes == 0) {
		c.noteUnsentLocked(l.sealed.bytes)
		c.mu.Unlock()
		c.count(queued)
		return
	}
	if l.sealed.bytes > 0 {
		c.noteUnsentLocked(l.sealed.bytes)
		part := l.sealed.head.bytes()
		c.mu.Unlock()
		part = part[:min(len(part), reactor.MaxWrite)]
		if n, ok := c.put(part); ok {
			c.mu.Lock()
			l.sealed.take(n)
			c.wroteLocked(n, n < len(part))
		}
		return
	}
	if l.toKernel || l.kernel {
		c.mu.Unlock()
		if l.toKernel {
			c.useKernel(l)
		}
		if l.kernel {
			c.flushKernel(l)
			return
		}
		c.mu.Lock()
	}
	text := c.plainLocked(sealMost)
	bye = bye && len(text) == c.out.bytes
	c.mu.Unlock()
	// Only the loop takes bytes out, and Send only adds behind them.
	s := c.set
	c.warm(l)
	records, err := l.seal(s.sealed[:0], text, bye)
	if err != nil && !l.failed {
		c.tlsFailed(l, err)
	}
	if s.sealed = records; cap(records) > 2*sealMost {
		s.sealed = nil // made by a long handshake, or by crypto/tls
	}
	c.mu.Lock()
	c.takeLocked(len(text))
	if l.failed {
		c.takeLocked(c.out.bytes) // nobody will get it
	}
	c.noteUnsentLocked(len(records)) // which are numbered now
	c.mu.Unlock()
	n, ok := 0, true
	if len(records) > 0 {
		n, ok = c.put(records)
	}
	if ok {
		c.mu.Lock()
		l.sealed.add(records[n:])
		c.wroteLocked(n, n < len(records))
	}
}

// put writes once, what must be of one piece: the records of a turn. ok is
// false if the connection is over.
func (c *Conn) put(b []byte) (n int, ok bool) {
	n, errno := reactor.Write(int(c.fd), b)
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		c.broken("write", errno)
		return 0, false
	}
	return n, true
}

// sealDirectLocked is flushSealedLocked in the usual case: all there is to be
// sent lies in the loop's buffer, of which nothing else is needed any more, and
// becomes one record there. Otherwise it does nothing and returns false. It needs
// mu, and lets go of it if it returns true.
func (c *Conn) sealDirectLocked(l *layer, bye bool) bool {
	s := c.set
	if s.current != c || len(s.direct) == 0 || len(s.direct) != c.out.bytes || l.sealed.bytes > 0 ||
		c.blocked || bye || l.tls == nil || l.toKernel || l.kernel || c.has(flagFull) {
		return false
	}
	record := s.loop.Around(s.direct, tlsrec.RecordHead, tlsrec.RecordTail)
	if record == nil {
		return false
	}
	c.warm(l)
	if !l.tls.SealWithin(record) {
		return false
	}
	s.direct = nil
	c.out.bytes = 0
	c.noteUnsentLocked(len(record)) // which are numbered now
	c.mu.Unlock()
	n, ok := c.put(record)
	switch {
	case !ok:
	case n == len(record):
		c.sent(n)
	default:
		c.mu.Lock()
		l.sealed.add(record[n:])
		c.wroteLocked(n, true)
	}
	return true
}

// plainLocked returns the start of the send queue, at most so many bytes, in one
// piece, so that many messages make few records. It needs mu.
func (c *Conn) plainLocked(most int) []byte {
	var direct []byte
	if c.set.current == c {
		direct = c.set.direct
	}
	head := c.out.head
	switch {
	case head == nil && direct == nil:
		return nil
	case head == nil || len(direct) >= most:
		return direct[:min(len(direct), most)]
	case len(direct) > 0:
	case head.next == nil || len(head.bytes()) >= most:
		part := head.bytes()
		return part[:min(len(part), most)]
	}
	text := append(c.set.plain[:0], direct...)
	for b := head; b != nil && len(text) < most; b = b.next {
		part := b.bytes()
		text = append(text, part[:min(len(part), most-len(text))]...)
	}
	c.set.plain = text
	return text
}

// seal appends text in records, and close_notify if bye.
func (l *layer) seal(dst, text []byte, bye bool) (records []byte, err error) {
	l.bye = l.bye || bye
	if l.legacy != nil {
		l.owes = false
		if len(text) > 0 {
			err = l.legacy.Write(text)
		}
		if bye && err == nil {
			err = l.legacy.CloseNotify()
		}
		return append(dst, l.legacy.Output()...), err
	}
	dst = l.tls.AppendPending(dst)
	dst, err = l.tls.Seal(dst, text)
	if bye {
		dst = l.tls.CloseNotify(dst)
	}
	return dst, err
}

// unsentLocked returns how many bytes the kernel has not taken, of what is not
// late. It needs mu.
func (c *Conn) unsentLocked() int {
	if l := c.layered(); l != nil {
		return c.out.bytes + l.sealed.bytes
	}
	return c.out.bytes
}

// end gives back what the layer has: secrets are overwritten. Loop only.
func (l *layer) end(c *Conn) {
	l.abandon(c)
	c.unwarm(l)
	l.freeIn()
	if l.tls != nil {
		l.tls.Drop()
	}
}
