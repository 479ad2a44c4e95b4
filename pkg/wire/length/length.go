// Package length is the protocol of messages that say their length, at a
// place and in a way that can be chosen: what Swoole calls open_length_check,
// and most binary protocols are of this kind.
//
// A package, on the wire, is
//
//	Offset bytes   of any meaning
//	Size bytes     the length, counted from byte BodyOffset of the package on
//	the rest
//
// Invariants: where a package ends is known from its first Offset + Size
// bytes, and a length that cannot be is an error as soon as they are there, so
// nothing is kept in expectation of it. What is not a whole package when the
// stream ends is not a message.
package length

import (
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

const (
	// DefaultMaxMessage is the limit of a Protocol whose MaxMessage is 0.
	DefaultMaxMessage = 1 << 20

	// DefaultSize is the size of the length of a Protocol whose Size is 0.
	DefaultSize = 4

	// maxPackage is what no package is longer than: it fits an int
	// everywhere, and so does what is added to it.
	maxPackage = 1<<31 - 1

	maxOffset = 1 << 16
)

// Protocol cuts a stream into packages. The zero value is usable: four bytes,
// big endian, that count themselves, and the package as the message.
//
// In Swoole's words, Size and LittleEndian are package_length_type (C 1; n 2
// and N 4; v 2 and V 4 little endian), Offset is package_length_offset,
// BodyOffset package_body_offset, MaxMessage package_max_length.
type Protocol struct {
	// Size is how many bytes the length has, 1 to 8. Zero means four.
	Size int

	// LittleEndian says that its lowest byte comes first.
	LittleEndian bool

	// Offset is how many bytes there are before the length, at most 65536.
	Offset int

	// BodyOffset is from which byte of the package on the length counts: 0
	// for a length of all, Offset + Size for one of what follows it. At most
	// 65536. If it is beyond the length, there are bytes that never count.
	BodyOffset int

	// Body makes what follows the length the message, and not the whole
	// package. It needs Offset to be 0: what is there could not be sent.
	Body bool

	// MaxMessage is the largest length of a message in bytes, the length's
	// own counted if the message is the package. Zero means
	// DefaultMaxMessage, a negative one what can be said at all, 2 GiB less
	// one byte at most.
	MaxMessage int
}

var _ wire.Protocol = Protocol{}

var errProtocol = errors.New("length: not a protocol")

// Validate returns what is wrong with the settings; Split and Append then fail
// with it, too.
func (p Protocol) Validate() error {
	switch {
	case p.Size < 0 || p.Size > 8:
		return fmt.Errorf("%w: length of %d bytes, want 1 to 8", errProtocol, p.Size)
	case p.Offset < 0 || p.Offset > maxOffset:
		return fmt.Errorf("%w: offset %d, want 0 to %d", errProtocol, p.Offset, maxOffset)
	case p.BodyOffset < 0 || p.BodyOffset > maxOffset:
		return fmt.Errorf("%w: body offset %d, want 0 to %d", errProtocol, p.BodyOffset, maxOffset)
	case p.Body && p.Offset > 0:
		return fmt.Errorf("%w: offset %d, but messages without what is there", errProtocol, p.Offset)
	}
	return nil
}

// Split returns the message of the first package of in. It fails as soon as
// the length is there and cannot be: with wire.ErrTooLong if the message would
// be longer than MaxMessage, otherwise if the package would end before its
// length does.
func (p Protocol) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	if err := p.Validate(); err != nil {
		return 0, nil, false, err
	}
	header := p.Offset + p.size()
	if len(in) < header {
		return 0, nil, false, nil
	}
	said, skipped := p.length(in[p.Offset:header]), 0
	if p.Body {
		skipped = header
	}
	limit := p.limit()
	// Compared before anything is added: eight bytes can say any number.
	if said > uint64(limit+skipped) || int(said)+p.BodyOffset-skipped > limit {
		return 0, nil, false, fmt.Errorf("length: length %d, counted from byte %d, want messages of at most %d: %w", said, p.BodyOffset, limit, wire.ErrTooLong)
	}
	n := int(said) + p.BodyOffset
	if n < header {
		return 0, nil, false, fmt.Errorf("length: package of %d bytes, want at least %d", n, header)
	}
	if len(in) < n {
		return 0, nil, false, nil
	}
	return n, in[skipped:n], true, nil
}

// Append appends the package of msg. If the message is the package, its length
// is set right, whatever msg has in that place, so that a message from Split
// comes out as it came in.
//
// It fails with wire.ErrTooLong if msg is longer than MaxMessage or than the
// length can say, and if msg is too short for its header.
func (p Protocol) Append(dst, msg []byte) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return dst, err
	}
	if limit := p.limit(); len(msg) > limit {
		return dst, fmt.Errorf("length: message of %d bytes, want at most %d: %w", len(msg), limit, wire.ErrTooLong)
	}
	header, n := p.Offset+p.size(), len(msg)
	if p.Body {
		n += header
	}
	least := max(header, p.BodyOffset)
	if n < least {
		return dst, fmt.Errorf("length: package of %d bytes, want at least %d", n, least)
	}
	said := uint64(n - p.BodyOffset)
	if bits := 8 * p.size(); bits < 64 && said>>bits != 0 {
		return dst, fmt.Errorf("length: length %d does not fit %d bytes: %w", said, p.size(), wire.ErrTooLong)
	}
	at := len(dst)
	if p.Body {
		var room [8]byte
		dst = append(dst, room[:header]...)
	}
	dst = append(dst, msg...)
	p.setLength(dst[at+p.Offset:at+header], said)
	return dst, nil
}

func (p Protocol) size() int {
	if p.Size == 0 {
		return DefaultSize
	}
	return p.Size
}

func (p Protocol) limit() int {
	// Without the header of a Body, which is at most eight bytes.
	const most = maxPackage - 8
	switch {
	case p.MaxMessage == 0:
		return DefaultMaxMessage
	case p.MaxMessage < 0:
		return most
	}
	return min(p.MaxMessage, most)
}

// length reads a length of any size.
func (p Protocol) length(b []byte) uint64 {
	var n uint64
	for i := range b {
		if p.LittleEndian {
			n = n<<8 | uint64(b[len(b)-1-i])
		} else {
			n = n<<8 | uint64(b[i])
		}
	}
	return n
}

// setLength writes n over b.
func (p Protocol) setLength(b []byte, n uint64) {
	for i := range b {
		if p.LittleEndian {
			b[i] = byte(n)
		} else {
			b[len(b)-1-i] = byte(n)
		}
		n >>= 8
	}
}
