package websocket

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// Kind is the first byte of a message.
type Kind byte

// The kinds of messages; package websocket's documentation tells their
// payloads. Those that are frames have their opcode's number.
const (
	Text     Kind = 1
	Binary   Kind = 2
	Close    Kind = 8
	Ping     Kind = 9
	Pong     Kind = 10
	Request  Kind = 16
	Response Kind = 17
	Prepared Kind = 18
)

// Defaults of Config.
const (
	DefaultMaxMessage    = 1 << 20
	DefaultMaxHead       = 16 << 10
	DefaultCompressAbove = 512
)

// Config is what sessions have in common. It must not be changed while one of
// them is in use. The zero value is usable.
type Config struct {
	// MaxMessage is the largest payload of a received message in bytes: of all
	// its fragments, and if it is compressed, both before and after
	// decompression. Zero means DefaultMaxMessage, a negative one no limit,
	// which only a trusted peer may have.
	MaxMessage int

	// MaxHead is the largest handshake that is accepted, in bytes. Zero means
	// DefaultMaxHead, a negative one no limit.
	MaxHead int

	// CompressAbove is the length in bytes from which on text and binary
	// messages are compressed when the handshake has agreed on it. Zero means
	// DefaultCompressAbove, a negative one never.
	CompressAbove int
}

func (c *Config) maxMessage() uint64 { return limit(c.MaxMessage, DefaultMaxMessage) }
func (c *Config) maxHead() uint64    { return limit(c.MaxHead, DefaultMaxHead) }
func (c *Config) compress(n int) bool {
	return c.CompressAbove >= 0 && uint64(n) >= limit(c.CompressAbove, DefaultCompressAbove)
}

func limit(configured, standard int) uint64 {
	switch {
	case configured == 0:
		return uint64(standard)
	case configured < 0:
		return 1<<62 - 1
	}
	return uint64(configured)
}

// Why Append refuses a message that could be sent at another time.
var (
	// ErrNotOpen: the handshake has not been answered, or not in the
	// affirmative.
	ErrNotOpen = errors.New("websocket: not open")

	// ErrClosing: a Close has been sent, nothing may follow it.
	ErrClosing = errors.New("websocket: close already sent")
)

// Session is one connection's state: what it has of an unfinished message and
// what it knows of the handshake. It is made by NewServer, NewRequested or NewClient.
//
// Split, Buffered, Release and RestoreState are for one goroutine, the
// connection's loop. Append may be called at the same time from another
// goroutine, but not from two; the connection's lock sees to that.
// Subprotocol, Open, Compressed, CloseSent and CloseReceived may be called at any
// time. AppendState needs both Split and Append to rest.
//
// Only flags, subprotocol and offer are touched by both sides.
type Session struct {
	config *Config

	// Of Split alone.
	message *buffer // what has come of a message, or the one delivered last; nil: nothing
	rest    uint64  // bytes to come of the frame that has begun; in phaseHead: bytes that have been searched
	mask    [4]byte // of the frame that has begun, turned so that it starts at the next byte
	phase   phase
	kind    Kind // of the message that has begun; 0: none
	fin     bool // the frame that has begun is its message's last
	packed  bool // the message that has begun is compressed
	spent   bool // message has been delivered and may be freed
	client  bool // set once

	// Of both. A field is written before the flag that says so, and read after it.
	flags       atomic.Uint32
	subprotocol string  // before open: by a server's Append, by a client's Split
	offer       *string // client's Request: before asked by Append; Split takes it away before open
}

// phase is how far Split is.
type phase byte

const (
	phaseHead   phase = iota // the handshake's head
	phaseFrames              // frames
	phaseOver                // after the peer's Close or an error: nothing counts any more
)

// Flags of a session.
const (
	flagAsked   = 1 << iota // client: the Request has been sent
	flagOpen                // the handshake has succeeded
	flagRefused             // server: it has been refused
	flagDeflate             // permessage-deflate has been negotiated
	flagCloseSent
	flagCloseReceived
	flagsAll = 1<<iota - 1
)

// NewServer returns the session of an accepted connection, whose first message
// is going to be a Request.
func NewServer(c *Config) *Session { return &Session{config: c} }

// NewRequested returns the session of an accepted connection whose Request
// somebody else has read: Append is to be given the Response.
func NewRequested(c *Config) *Session { return &Session{config: c, phase: phaseFrames} }

// NewClient returns the session of an outgoing connection. The first message
// to Append is what NewRequest has returned; the first one of Split is the
// Response, when it has been found to be in order.
func NewClient(c *Config) *Session { return &Session{config: c, client: true} }

// Subprotocol returns what the handshake has agreed on, empty if on nothing
// or not yet.
func (s *Session) Subprotocol() string {
	if s.flags.Load()&flagOpen == 0 {
		return ""
	}
	return s.subprotocol
}

// Open reports whether the handshake has succeeded.
func (s *Session) Open() bool { return s.flags.Load()&flagOpen != 0 }

// Compressed reports whether the handshake has agreed on permessage-deflate.
func (s *Session) Compressed() bool { return s.flags.Load()&flagDeflate != 0 }

// CloseSent reports whether Append has encoded a Close.
func (s *Session) CloseSent() bool { return s.flags.Load()&flagCloseSent != 0 }

// CloseReceived reports whether Split has returned a Close. If both are true,
// the connection is at its proper end; the server closes it (RFC 6455 7.1.1).
func (s *Session) CloseReceived() bool { return s.flags.Load()&flagCloseReceived != 0 }

// Buffered returns how many bytes the session keeps of an unfinished message,
// its kind included: it is 0 only between two messages.
func (s *Session) Buffered() int {
	n := 0
	switch {
	case s.message != nil && !s.spent:
		n = len(s.message.b)
	case s.kind != 0:
		n = 1
	}
	if s.offer != nil && s.flags.Load()&flagAsked != 0 {
		n += len(*s.offer)
	}
	return n
}

// Release gives back the memory of the message that Split has returned last,
// which is no longer valid then. The next Split does so too; a connection that
// may be idle before that calls Release.
func (s *Session) Release() {
	if s.spent {
		s.drop()
	}
}

// drop forgets the message that was being assembled or has been delivered.
func (s *Session) drop() {
	if s.message != nil {
		s.message.free()
	}
	s.message, s.spent = nil, false
	s.kind, s.fin, s.packed = 0, false, false
	s.rest, s.mask = 0, [4]byte{}
}

// Split looks for the first message at the start of in.
//
// It returns by how many bytes the input is to be advanced and, if ok, the
// message: a Kind and its payload. The message lies in in or in the session's
// buffer and is valid, and may be changed, until the next call of Split or
// Release. With ok the advance is positive; without, 0 means that more input
// is wanted, and a positive one that these bytes have been taken into the session
// and Split is to be called with what follows. in up to the advance may have been
// changed, and all of it by an error. atEOF makes no difference: what is unfinished at the end is
// no message.
//
// A client's frames that come before the answer to its Request are split too;
// their receiver, who has the messages in order, answers the Request first.
// After the peer's Close, after an error and after a Response that refuses,
// everything is thrown away.
//
// An error is an *Error with the code of the Close that the peer is owed; or,
// in the handshake, a *Refusal on a server and an *Unaccepted on a client.
func (s *Session) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	if s.spent {
		s.drop()
	}
	switch {
	case s.phase == phaseFrames && s.flags.Load()&flagRefused == 0:
		advance, msg, ok, err = s.splitFrame(in)
	case s.phase == phaseHead:
		advance, msg, ok, err = s.splitHead(in)
	default:
		return len(in), nil, false, nil
	}
	if err != nil {
		s.drop()
		s.phase = phaseOver
		return 0, nil, false, err
	}
	return advance, msg, ok, nil
}

// splitHead looks for a whole head and makes a message of it.
func (s *Session) splitHead(in []byte) (advance int, msg []byte, ok bool, err error) {
	if s.client && s.flags.Load()&flagAsked == 0 {
		if len(in) == 0 {
			return 0, nil, false, nil
		}
		return 0, nil, false, &Unaccepted{Err: errors.New("data before the request")}
	}
	n, searched, err := findHead(in, int(min(s.rest, uint64(len(in)))))
	if most := s.config.maxHead(); err == nil && uint64(max(n, searched)) > most {
		err = &headError{status: 431, err: fmt.Errorf("head of more than %d bytes: %w", most, wire.ErrTooLong)}
	}
	kind := Request
	if s.client {
		kind = Response
	}
	switch {
	case err != nil:
		return 0, nil, false, s.handshakeError(err)
	case n == 0:
		s.rest = uint64(searched)
		return 0, nil, false, nil
	case s.client:
		if err := s.accepted(in[:n]); err != nil {
			return 0, nil, false, err
		}
	}
	s.rest = 0
	s.phase = phaseFrames
	// A head has nothing in front where its kind could stand.
	s.message = newBuffer(kind, n)
	s.message.b = append(s.message.b, in[:n]...)
	s.spent = true
	return n, s.message.b, true, nil
}

// handshakeError is err as the session's user wants it.
func (s *Session) handshakeError(err error) error {
	if s.client {
		return &Unaccepted{Err: err}
	}
	return refusal(err)
}

// Append appends the encoding of msg, a Kind and its payload, to dst and
// returns the result. msg is not changed and not kept.
//
// The text of a Text is not looked at: it must be UTF-8. A Response changes the session: to
// open with the subprotocol and the compression that its head tells, or to refused, if its
// status is not 101. A Prepared goes as it is. A Close is the last thing that is encoded.
//
// It returns an error, and dst as it was, if msg has no kind or none that this
// side sends, if a Ping or Pong is longer than 125 bytes, if the code or the
// reason of a Close may not be sent, if a head is malformed; ErrNotOpen
// before the handshake has succeeded, ErrClosing after a Close.
func (s *Session) Append(dst, msg []byte) ([]byte, error) {
	if len(msg) == 0 {
		return dst, errors.New("websocket: message without a kind")
	}
	kind, payload := Kind(msg[0]), msg[1:]
	flags := s.flags.Load()
	switch kind {
	case Text, Binary, Close, Ping, Pong, Prepared:
		switch {
		case flags&flagOpen == 0:
			return dst, ErrNotOpen
		case flags&flagCloseSent != 0:
			return dst, ErrClosing
		}
	case Request:
		if s.client {
			return s.appendRequest(dst, payload)
		}
	case Response:
		if !s.client {
			return s.appendResponse(dst, payload)
		}
	}
	switch kind {
	case Text, Binary:
		if flags&flagDeflate != 0 && s.config.compress(len(payload)) {
			return s.appendCompressed(dst, kind, payload), nil
		}
		return s.appendFrame(dst, kind, payload), nil
	case Close, Ping, Pong:
		if len(payload) > maxControl {
			return dst, fmt.Errorf("websocket: control message of kind %d with %d bytes, want at most %d: %w", kind, len(payload), maxControl, wire.ErrTooLong)
		}
		if kind == Close {
			if err := checkClose(payload); err != nil {
				return dst, fmt.Errorf("websocket: %w", err.Err)
			}
			s.flags.Or(flagCloseSent)
		}
		return s.appendFrame(dst, kind, payload), nil
	case Prepared:
		if !s.client && len(payload) > 0 && (payload[0]&bitCompressed == 0 || flags&flagDeflate != 0) {
			return append(dst, payload...), nil
		}
	}
	return dst, fmt.Errorf("websocket: message of kind %d is not for this side to send", kind)
}
