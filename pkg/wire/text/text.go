// Package text is the protocol of lines: each message is ended by a newline.
//
// Invariants: a message holds no newline; one carriage return before the
// newline belongs to the ending, any other belongs to the message; an empty
// line is a message. What stands after the last newline when the stream ends
// is not a message.
package text

import (
	"bytes"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// DefaultMaxLine is the limit of a Protocol whose MaxLine is 0.
const DefaultMaxLine = 64 << 10

// Protocol cuts a stream into lines.
type Protocol struct {
	// MaxLine is the largest length of a message in bytes, its ending not
	// counted. Zero means DefaultMaxLine, a negative one means that only
	// the connection's own limit holds.
	MaxLine int
}

var _ wire.Protocol = Protocol{}

// Split returns the first line of in without its ending. It fails with
// wire.ErrTooLong as soon as a line, complete or not, is longer than MaxLine.
func (p Protocol) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	end := bytes.IndexByte(in, '\n')
	line := in
	if end >= 0 {
		line = in[:end]
	}
	// The last carriage return of an unfinished line may be half of its ending.
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	if limit := p.limit(); limit >= 0 && len(line) > limit {
		return 0, nil, false, fmt.Errorf("text: line of more than %d bytes: %w", limit, wire.ErrTooLong)
	}
	if end < 0 {
		return 0, nil, false, nil
	}
	return end + 1, line, true, nil
}

// Append appends msg and a newline. It fails if msg holds a newline, since
// the peer would see two messages, and with wire.ErrTooLong if msg is longer
// than MaxLine. A carriage return at the end of msg is sent as it is, but a
// peer with this protocol takes it for a part of the ending.
func (p Protocol) Append(dst, msg []byte) ([]byte, error) {
	if i := bytes.IndexByte(msg, '\n'); i >= 0 {
		return dst, fmt.Errorf("text: newline in the message at byte %d", i)
	}
	if limit := p.limit(); limit >= 0 && len(msg) > limit {
		return dst, fmt.Errorf("text: message of %d bytes, want at most %d: %w", len(msg), limit, wire.ErrTooLong)
	}
	return append(append(dst, msg...), '\n'), nil
}

func (p Protocol) limit() int {
	if p.MaxLine == 0 {
		return DefaultMaxLine
	}
	return p.MaxLine
}
