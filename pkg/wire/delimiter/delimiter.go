// Package delimiter is the protocol of messages that are ended by a sequence
// of bytes that can be chosen: what Swoole calls open_eof_split.
//
// Swoole's open_eof_check, which looks at the end of what one read has brought
// and hands over all before it as one message, is not here: what its messages
// are depends on how the stream was cut into reads.
//
// Invariants: a message holds no delimiter, and none begins in it; what stands
// after the last delimiter when the stream ends is not a message. A protocol
// remembers nothing between two calls, so an unfinished message is searched
// again when more of it comes, but never more than MaxMessage bytes of it: a
// peer that sends single bytes has each cost one such search at most, with the
// default 5 microseconds, or 25 if the message is made of beginnings of a
// delimiter, beside the read that brought it. That is what MaxMessage bounds,
// so it should not be larger than messages are.
package delimiter

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

const (
	// Default is the delimiter of a Protocol whose Delimiter is empty, as it
	// is Swoole's.
	Default = "\r\n\r\n"

	// DefaultMaxMessage is the limit of a Protocol whose MaxMessage is 0.
	DefaultMaxMessage = 64 << 10

	// MaxDelimiter is the longest delimiter, in bytes.
	MaxDelimiter = 16
)

// Protocol cuts a stream at its delimiters. The zero value is usable.
type Protocol struct {
	// Delimiter ends each message, at most MaxDelimiter bytes. Empty means
	// Default.
	Delimiter string

	// Keep leaves the delimiter at the end of the message that Split
	// returns, as Swoole does. Append takes messages without it in any case,
	// and with it as well if Keep is set.
	Keep bool

	// MaxMessage is the largest length of a message in bytes, its delimiter
	// not counted. Zero means DefaultMaxMessage, a negative one means that
	// only the connection's own limit holds: then single bytes can be made
	// to cost what that allows.
	MaxMessage int
}

var _ wire.Protocol = Protocol{}

// Validate returns what is wrong with the settings; Split and Append then fail
// with it, too.
func (p Protocol) Validate() error {
	if len(p.Delimiter) > MaxDelimiter {
		return fmt.Errorf("delimiter: %q has %d bytes, want at most %d", p.Delimiter, len(p.Delimiter), MaxDelimiter)
	}
	return nil
}

// Split returns the first message of in, with its delimiter if Keep is set. It
// fails with wire.ErrTooLong as soon as a message, complete or not, is longer
// than MaxMessage.
func (p Protocol) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	if err := p.Validate(); err != nil {
		return 0, nil, false, err
	}
	delimiter, limit := p.delimiter(), p.limit()
	window := in
	if limit >= 0 && len(in) > limit+len(delimiter) {
		window = in[:limit+len(delimiter)]
	}
	if n := index(window, delimiter); n >= 0 {
		end := n + len(delimiter)
		if p.Keep {
			n = end
		}
		return end, in[:n], true, nil
	}
	if limit >= 0 && len(window)-begun(window, delimiter) > limit {
		return 0, nil, false, fmt.Errorf("delimiter: message of more than %d bytes: %w", limit, wire.ErrTooLong)
	}
	return 0, nil, false, nil
}

// index returns where the delimiter is in b, -1 if it is not. It is
// bytes.Index without the conversion, which would allocate.
func index(b []byte, delimiter string) int {
	var buf [MaxDelimiter]byte
	return bytes.Index(b, buf[:copy(buf[:], delimiter)])
}

// begun returns how many bytes at the end of b may be the start of a
// delimiter.
func begun(b []byte, delimiter string) int {
	n := min(len(delimiter)-1, len(b))
	for n > 0 && string(b[len(b)-n:]) != delimiter[:n] {
		n--
	}
	return n
}

var errDelimiter = errors.New("delimiter: message would end before its end")

// Append appends msg and the delimiter. It fails, since the peer would see
// another message, if there is a delimiter in msg, or one that begins in it
// and ends in the delimiter; and with wire.ErrTooLong if msg is longer than
// MaxMessage.
func (p Protocol) Append(dst, msg []byte) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return dst, err
	}
	delimiter := p.delimiter()
	if p.Keep {
		if n := len(msg) - len(delimiter); n >= 0 && string(msg[n:]) == delimiter {
			msg = msg[:n]
		}
	}
	if limit := p.limit(); limit >= 0 && len(msg) > limit {
		return dst, fmt.Errorf("delimiter: message of %d bytes, want at most %d: %w", len(msg), limit, wire.ErrTooLong)
	}
	at := len(dst)
	out := append(append(dst, msg...), delimiter...)
	if n := index(out[at:], delimiter); n != len(msg) {
		return dst, fmt.Errorf("%w: %q at byte %d of %d", errDelimiter, delimiter, n, len(msg))
	}
	return out, nil
}

func (p Protocol) delimiter() string {
	if p.Delimiter == "" {
		return Default
	}
	return p.Delimiter
}

func (p Protocol) limit() int {
	if p.MaxMessage == 0 {
		return DefaultMaxMessage
	}
	return p.MaxMessage
}
