package tlsrec

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

const (
	// MaxPlaintext is the most that one record carries, RFC 8446 5.1.
	MaxPlaintext = 1 << 14

	// Overhead is by how many bytes a record that Seal makes is longer than
	// what it carries: header, content type and tag.
	Overhead = RecordHead + RecordTail

	// RecordHead and RecordTail are how many bytes of it stand before and
	// behind what is carried.
	RecordHead = headerSize
	RecordTail = 1 + tagSize

	// MaxRecord is the length of the longest record that may come, header
	// included, RFC 8446 5.2: what a caller must be able to keep as input.
	MaxRecord = headerSize + maxCiphertext

	headerSize    = 5
	maxCiphertext = MaxPlaintext + 256

	// rekeyAt is the number of the last record under one key, which is the
	// KeyUpdate. RFC 8446 5.5 allows 2^24.5 of full size with AES-GCM.
	rekeyAt = 1<<24 - 1

	// maxUseless is how many records without application data may come in
	// a row, while we send none either. Each costs us more than the peer.
	maxUseless = 32
)

// contentType is ContentType of RFC 8446 5.1.
type contentType uint8

const (
	typeAlert           contentType = 21
	typeHandshake       contentType = 22
	typeApplicationData contentType = 23
)

// Conn protects one TLS 1.3 connection after its handshake. A Handshake or
// RestoreState makes it; it holds no input and no output.
//
// Its methods must not be called concurrently, reading and writing included:
// what comes in may have to be answered. A Conn that has failed stays so.
type Conn struct {
	in, out *half
	err     error // what Open says from now on; nil, or why all is over
	alert   Alert // that is owed if flagAlertDue
	flags   flags
	useless uint8 // records without application data in a row

	// A handshake message that is not complete, see message.go.
	headLen uint8
	head    [keyUpdateSize]byte
	skip    uint32 // bytes of a NewSessionTicket that are still to come

	updates uint32 // how often keys have changed
}

type flags uint8

const (
	flagClient     flags = 1 << iota // we are the client
	flagPeerClosed                   // close_notify came
	flagClosed                       // close_notify or a fatal alert was sent
	flagUpdateDue                    // a KeyUpdate is owed
	flagAsk                          // and is to ask the peer for one
	flagAsked                        // the peer was asked, and has not done it
	flagAlertDue                     // the alert of a fault of the peer's is owed
	flagsEnd                         // none beyond
	flagsOfState   = flagsEnd - 1 - flagAlertDue
)

func newConn(client bool, in, out *half) *Conn {
	c := &Conn{in: in, out: out}
	if client {
		c.flags |= flagClient
	}
	return c
}

// Open opens the first record of in, in place: its bytes are overwritten.
//
// It returns by how many bytes the input is to be advanced and what the record
// carries, which aliases in. Advance 0 without an error means that more input
// is wanted, at most MaxRecord bytes in all, and in is as it was. A positive
// advance with an empty plaintext was a record for this package alone; then, if
// Pending, something is to be sent.
//
// The error is io.EOF at the peer's close_notify, after which the rest of the
// input is of no meaning but writing goes on, and an *AlertError if the
// connection has failed: by the peer's alert, or by a fault in the record, and
// then AppendPending has the alert for the peer. An error stays.
func (c *Conn) Open(in []byte) (advance int, plaintext []byte, err error) {
	switch {
	case c.err != nil:
		return 0, nil, c.err
	case c.flags&flagPeerClosed != 0:
		return len(in), nil, io.EOF
	case len(in) < headerSize:
		return 0, nil, nil
	}
	n := int(in[3])<<8 | int(in[4])
	switch {
	case in[0] != byte(typeApplicationData):
		// After the handshake everything is protected; change_cipher_spec
		// is tolerated before the peer's Finished only, RFC 8446 5.
		return 0, nil, c.failf(AlertUnexpectedMessage, "record of type %d that is not protected", in[0])
	case in[1] != 3 || in[2] != 3:
		return 0, nil, c.failf(AlertProtocolVersion, "record version %d.%d, want 3.3", in[1], in[2])
	case n > maxCiphertext:
		return 0, nil, c.failf(AlertRecordOverflow, "record of %d bytes, want at most %d", n, maxCiphertext)
	case n < 1+tagSize:
		return 0, nil, c.failf(AlertBadRecordMAC, "record of %d bytes, want at least %d", n, 1+tagSize)
	case len(in) < headerSize+n:
		return 0, nil, nil
	case c.in.seq == math.MaxUint64:
		return 0, nil, c.failf(AlertInternalError, "sequence numbers of the peer are used up")
	}
	inner, err := c.in.open(in[:headerSize+n])
	if err != nil {
		return 0, nil, c.failf(AlertBadRecordMAC, "record %d: %w", c.in.seq, err)
	}
	plaintext, err = c.opened(inner)
	return headerSize + n, plaintext, err
}

// OpenAll opens the records of in until one is incomplete, and returns what
// they carry in one piece in in's memory, headerSize bytes or more behind its
// start, as well as by how many
// bytes the input is to be advanced. With an error, which is as Open's, there
// may be plaintext: what came before it.
func (c *Conn) OpenAll(in []byte) (advance int, plaintext []byte, err error) {
	start, end := 0, 0
	for {
		n, p, err := c.Open(in[advance:])
		if end == start && len(p) > 0 {
			start = advance + headerSize // the first stays where it is
			end = start + len(p)
		} else {
			end += copy(in[end:], p)
		}
		advance += n
		if n == 0 || err != nil {
			return advance, in[start:end:end], err
		}
	}
}

// opened looks at what was in a record: content, type, padding.
func (c *Conn) opened(inner []byte) ([]byte, error) {
	if len(inner) > MaxPlaintext+1 {
		return nil, c.failf(AlertRecordOverflow, "record with %d bytes and padding, want at most %d", len(inner)-1, MaxPlaintext)
	}
	if c.in.seq >= rekeyAt && c.flags&flagAsked == 0 {
		c.flags |= flagUpdateDue | flagAsk | flagAsked
	}
	end := len(inner) - 1
	for end >= 0 && inner[end] == 0 {
		end--
	}
	if end < 0 {
		return nil, c.failf(AlertUnexpectedMessage, "record of padding alone")
	}
	typ, content := contentType(inner[end]), inner[:end]
	if typ == typeApplicationData && len(content) > 0 && !c.midMessage() {
		c.useless = 0
		return content, nil
	}
	c.useless++
	switch {
	case c.useless > maxUseless:
		return nil, c.failf(AlertUnexpectedMessage, "%d records in a row without application data", c.useless)
	case typ != typeHandshake && c.midMessage():
		return nil, c.failf(AlertUnexpectedMessage, "record of type %d inside a handshake message", typ)
	case typ == typeApplicationData:
		return nil, nil
	case typ == typeHandshake:
		return nil, c.postHandshake(content)
	case typ == typeAlert:
		return nil, c.alerted(content)
	}
	return nil, c.failf(AlertUnexpectedMessage, "record of type %d", typ)
}

// alerted handles the peer's alert, RFC 8446 6. The level says nothing.
func (c *Conn) alerted(content []byte) error {
	if len(content) != 2 {
		return c.failf(AlertDecodeError, "alert of %d bytes, want 2", len(content))
	}
	switch alert := Alert(content[1]); alert {
	case AlertCloseNotify:
		c.flags |= flagPeerClosed
		// Nobody is there to use the key that we would ask for; and
		// crypto/tls, asked after its CloseWrite, gives up before it has
		// gone on to ours.
		c.flags &^= flagAsk
		return io.EOF
	case AlertUserCanceled: // close_notify follows, RFC 8446 6.1
		return nil
	default:
		c.flags |= flagClosed
		c.err = &AlertError{Alert: alert, Remote: true}
		return c.err
	}
}

// failf ends the connection for a fault of the peer's.
func (c *Conn) failf(alert Alert, format string, args ...any) error {
	c.err = &AlertError{Alert: alert, Err: fmt.Errorf(format, args...)}
	if c.flags&flagClosed == 0 {
		c.alert = alert
		c.flags |= flagAlertDue
	}
	return c.err
}

// Seal appends the records that carry plaintext, and before them what is
// Pending. Without plaintext it appends only that. It is free of allocations
// if dst has room: Overhead bytes for each MaxPlaintext begun, and for each
// message that is pending. plaintext must not overlap dst.
//
// It fails with ErrClosed after CloseNotify, and with the error of Open once
// that has failed; dst is then returned as it was.
func (c *Conn) Seal(dst, plaintext []byte) ([]byte, error) {
	if err := c.writable(); err != nil {
		return dst, err
	}
	at := len(dst)
	dst = slices.Grow(dst, len(plaintext)+(len(plaintext)+MaxPlaintext-1)/MaxPlaintext*Overhead)
	var err error
	if dst, err = c.appendUpdate(dst); err != nil {
		return dst[:at], err
	}
	if len(plaintext) > 0 {
		// A peer that only listens may still change keys, now and then.
		c.useless = 0
		if c.midMessage() {
			c.useless = 1
		}
	}
	for len(plaintext) > 0 {
		n := min(len(plaintext), MaxPlaintext)
		dst = c.out.seal(dst, typeApplicationData, plaintext[:n])
		plaintext = plaintext[n:]
		if dst, err = c.appendUpdate(dst); err != nil {
			return dst[:at], err
		}
	}
	return dst, nil
}

// SealWithin makes one record of b, in place: the first RecordHead bytes and
// the last RecordTail are room for it, what is between them is its plaintext.
// It is Seal without a copy, and returns false, with b as it was, if more than
// one record is due, or none.
func (c *Conn) SealWithin(b []byte) bool {
	n := len(b) - Overhead
	if n < 1 || n > MaxPlaintext || c.writable() != nil || c.flags&flagUpdateDue != 0 || c.out.seq+1 >= rekeyAt || c.midMessage() {
		return false
	}
	c.useless = 0
	c.out.sealWithin(b, typeApplicationData)
	return true
}

// writable returns why nothing may be written, nil if it may.
func (c *Conn) writable() error {
	switch {
	case c.err != nil:
		return c.err
	case c.flags&flagClosed != 0:
		return ErrClosed
	}
	return nil
}

// Pending reports whether the protocol itself has something to send: the
// answer to a KeyUpdate, or the alert for what Open has found. It can wait for
// the next Seal, but an alert has none.
func (c *Conn) Pending() bool {
	return c.flags&flagAlertDue != 0 ||
		c.flags&(flagUpdateDue|flagClosed) == flagUpdateDue && c.err == nil
}

// AppendPending appends what is Pending, if anything is.
func (c *Conn) AppendPending(dst []byte) []byte {
	if c.flags&flagAlertDue != 0 {
		return c.appendAlert(dst, c.alert)
	}
	if c.writable() != nil {
		return dst
	}
	// A failure is remembered, and the next Seal tells it.
	dst, _ = c.appendUpdate(dst)
	return dst
}

// CloseNotify appends the alert that says that we write no more, and is the
// end of writing: reading may go on. It appends nothing if writing has ended.
// If an alert for a fault is owed, it is that.
func (c *Conn) CloseNotify(dst []byte) []byte {
	switch {
	case c.flags&flagAlertDue != 0:
		return c.appendAlert(dst, c.alert)
	case c.writable() != nil:
		return dst
	}
	return c.appendAlert(dst, AlertCloseNotify)
}

// appendAlert appends the last record that we write.
func (c *Conn) appendAlert(dst []byte, alert Alert) []byte {
	c.flags &^= flagAlertDue
	c.flags |= flagClosed
	level := byte(2)
	if alert == AlertCloseNotify {
		level = 1
	}
	return c.out.seal(dst, typeAlert, []byte{level, byte(alert)})
}

// End is told that the stream has ended, with rest bytes of input that were
// not advanced over. It returns nil if the peer had said so with close_notify,
// the error of Open if there was one, and otherwise ErrTruncated.
func (c *Conn) End(rest int) error {
	switch {
	case c.err != nil:
		return c.err
	case c.flags&flagPeerClosed != 0:
		return nil
	}
	return fmt.Errorf("%w, %d bytes into a record", ErrTruncated, rest)
}

// PeerClosed reports whether the peer's close_notify has come.
func (c *Conn) PeerClosed() bool { return c.flags&flagPeerClosed != 0 }

// Cool gives up what Open and Seal make again when they are called next, in
// about a microsecond for each direction: with AES three quarters of what a Conn takes.
func (c *Conn) Cool() { c.in.aead, c.out.aead = nil, nil }

var errDropped = errors.New("tlsrec: connection was dropped")

// Drop ends the connection, for this process: its secrets are overwritten.
// Every other method then fails, or does nothing.
func (c *Conn) Drop() {
	c.in.drop()
	c.out.drop()
	c.flags = c.flags&^(flagAlertDue|flagUpdateDue) | flagClosed
	c.err = errDropped
}

// Format prints what may be known: role, suite and how many records there
// were under the present keys, whatever the verb. It is what keeps secrets out
// of logs.
func (c Conn) Format(s fmt.State, _ rune) {
	if c.in == nil || c.out == nil {
		io.WriteString(s, "tlsrec.Conn{}")
		return
	}
	role := "server"
	if c.flags&flagClient != 0 {
		role = "client"
	}
	fmt.Fprintf(s, "tlsrec.Conn{%s %#04x in:%d out:%d}", role, c.in.suite.id, c.in.seq, c.out.seq)
}
