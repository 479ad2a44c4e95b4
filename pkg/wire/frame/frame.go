// Package frame is the protocol of length-prefixed messages: four bytes, big
// endian, that say how long the frame is, themselves included, then the
// message. It is the protocol that Workerman calls frame.
//
// Invariants: an empty message is a frame of four bytes; a declared length
// that cannot be, below four or above the limit, is an error as soon as the
// four bytes are there, so nothing is kept in expectation of it. What is not
// a whole frame when the stream ends is not a message.
package frame

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

const (
	// DefaultMaxMessage is the limit of a Protocol whose MaxMessage is 0.
	DefaultMaxMessage = 1 << 20

	// headerSize is the length of the length.
	headerSize = 4
)

// Protocol cuts a stream into frames. The zero value is usable.
type Protocol struct {
	// MaxMessage is the largest length of a message in bytes, the four of
	// its length not counted. Zero means DefaultMaxMessage, a negative one
	// what four bytes can say, 4294967291.
	MaxMessage int
}

var _ wire.Protocol = Protocol{}

// Split returns the message of the first frame of in. It fails as soon as the
// length is there and cannot be: with wire.ErrTooLong if the message would be
// longer than MaxMessage, otherwise if it is below four.
func (p Protocol) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	if len(in) < headerSize {
		return 0, nil, false, nil
	}
	n := int(binary.BigEndian.Uint32(in))
	if n < headerSize {
		return 0, nil, false, fmt.Errorf("frame: length %d, want at least %d", n, headerSize)
	}
	if limit := p.limit(); n-headerSize > limit {
		return 0, nil, false, fmt.Errorf("frame: message of %d bytes, want at most %d: %w", n-headerSize, limit, wire.ErrTooLong)
	}
	if len(in) < n {
		return 0, nil, false, nil
	}
	return n, in[headerSize:n], true, nil
}

// Append appends the length and msg. It fails with wire.ErrTooLong if msg is
// longer than MaxMessage.
func (p Protocol) Append(dst, msg []byte) ([]byte, error) {
	if limit := p.limit(); len(msg) > limit {
		return dst, fmt.Errorf("frame: message of %d bytes, want at most %d: %w", len(msg), limit, wire.ErrTooLong)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(headerSize+len(msg)))
	return append(dst, msg...), nil
}

func (p Protocol) limit() int {
	const most = math.MaxUint32 - headerSize
	switch {
	case p.MaxMessage == 0:
		return DefaultMaxMessage
	case p.MaxMessage < 0:
		return most
	}
	return min(p.MaxMessage, most)
}
