package handoff

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

const (
	magic   = 0x4f48534d // "MSHO", little endian
	version = 1

	headerSize = 32
	recordSize = 24 // of a connection in an offer
	pieceSize  = 8  // of a tail

	// maxMessage bounds every message: two connections whose bodies are just
	// small enough not to go to the memfd fit several times.
	maxMessage = 64 << 10

	// maxInline is the largest body that travels in the message itself.
	maxInline = 4 << 10

	// bulkLimit bounds the memfd of a batch, and the tails of one.
	bulkLimit = 64 << 20
)

type kind uint8

const (
	kindOffer kind = iota + 1
	kindAnswer
	kindTails
)

const (
	flagBulk   = 1 << 0 // of an offer
	flagForAll = 1 << 0 // of an answer
	flagEnd    = 1 << 0 // of tails

	recordInBulk = 1 << 0
	recordSecond = 1 << 1

	pieceMore = 1 << 0
)

// header is what stands at the beginning of every message of every version.
type header struct {
	version uint16
	kind    kind
	flags   uint8
	from    uint64
	batch   uint64
	count   int
}

// begin appends a header, which seal completes.
func begin(dst []byte, h header) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	dst = binary.LittleEndian.AppendUint16(dst, h.version)
	dst = append(dst, byte(h.kind), h.flags)
	dst = binary.LittleEndian.AppendUint64(dst, h.from)
	dst = binary.LittleEndian.AppendUint64(dst, h.batch)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.count))
	return binary.LittleEndian.AppendUint32(dst, 0)
}

// seal writes what is known at the end into a message: flags, count, length.
func seal(m []byte, flags uint8, count int) {
	m[7] = flags
	binary.LittleEndian.PutUint32(m[24:], uint32(count))
	binary.LittleEndian.PutUint32(m[28:], uint32(len(m)))
}

// parse takes a message apart into its header and the rest. It fails if this
// is no message, or not the whole of it; of its version and kind it demands
// nothing.
func parse(m []byte) (h header, rest []byte, err error) {
	if len(m) < headerSize {
		return h, nil, fmt.Errorf("handoff: message of %d bytes, want at least %d", len(m), headerSize)
	}
	if got := binary.LittleEndian.Uint32(m); got != magic {
		return h, nil, fmt.Errorf("handoff: message begins with %#x, want %#x", got, magic)
	}
	h = header{
		version: binary.LittleEndian.Uint16(m[4:]),
		kind:    kind(m[6]),
		flags:   m[7],
		from:    binary.LittleEndian.Uint64(m[8:]),
		batch:   binary.LittleEndian.Uint64(m[16:]),
		count:   int(binary.LittleEndian.Uint32(m[24:])),
	}
	if n := binary.LittleEndian.Uint32(m[28:]); uint64(n) != uint64(len(m)) {
		return h, nil, fmt.Errorf("handoff: message of %d bytes, header says %d", len(m), n)
	}
	if h.from == 0 || h.from > rows.MaxIncarnation {
		return h, nil, fmt.Errorf("handoff: message from incarnation %d, want 1 to %d", h.from, rows.MaxIncarnation)
	}
	return h, m[headerSize:], nil
}

// record is a connection in an offer.
type record struct {
	id     rows.ID
	since  time.Duration
	why    uint8
	second bool   // of a pair with the one before
	inBulk bool   // body lies in the memfd, size bytes at offset
	body   []byte // else
	size   uint32
	offset uint64
}

// beginRecord appends a record whose body is to follow; endRecord completes
// it.
func beginRecord(dst []byte, r record) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.id))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.since))
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	flags := byte(0)
	if r.second {
		flags |= recordSecond
	}
	return append(dst, r.why, flags, 0, 0)
}

// endRecord takes all that follows the record at start as its body.
func endRecord(m []byte, start int) {
	binary.LittleEndian.PutUint32(m[start+16:], uint32(len(m)-start-recordSize))
}

// endRecordInBulk replaces the body of the record at start by the place in the
// memfd to which it was written.
func endRecordInBulk(m []byte, start int, offset uint64) []byte {
	endRecord(m, start)
	m[start+21] |= recordInBulk
	return binary.LittleEndian.AppendUint64(m[:start+recordSize], offset)
}

// parseOffer appends the records of an offer to dst. Their bodies are parts of
// rest. It fails, having appended an unknown number, if there are not as many
// as the header says, if anything is left over, or if a pair is none.
func parseOffer(dst []record, h header, rest []byte) ([]record, error) {
	if h.count > BatchConnections {
		return dst, fmt.Errorf("handoff: offer of %d connections, want at most %d", h.count, BatchConnections)
	}
	afterFirst := false
	for i := range h.count {
		if len(rest) < recordSize {
			return dst, fmt.Errorf("handoff: offer: connection %d of %d: %d bytes, want %d", i, h.count, len(rest), recordSize)
		}
		flags := rest[21]
		r := record{
			id:     rows.ID(binary.LittleEndian.Uint64(rest)),
			since:  time.Duration(binary.LittleEndian.Uint64(rest[8:])),
			size:   binary.LittleEndian.Uint32(rest[16:]),
			why:    rest[20],
			second: flags&recordSecond != 0,
			inBulk: flags&recordInBulk != 0,
		}
		if flags&^(recordInBulk|recordSecond) != 0 || rest[22] != 0 || rest[23] != 0 {
			return dst, fmt.Errorf("handoff: offer: connection %d of %d: flags % x", i, h.count, rest[21:recordSize])
		}
		if r.second && !afterFirst {
			return dst, fmt.Errorf("handoff: offer: connection %d of %d: second of a pair without a first", i, h.count)
		}
		if r.inBulk && h.flags&flagBulk == 0 {
			return dst, fmt.Errorf("handoff: offer: connection %d of %d: body in a memfd, but there is none", i, h.count)
		}
		afterFirst = !r.second
		rest = rest[recordSize:]
		want := uint64(r.size)
		if r.inBulk {
			want = 8
		}
		if uint64(len(rest)) < want {
			return dst, fmt.Errorf("handoff: offer: connection %d of %d: body of %d bytes, %d are there", i, h.count, want, len(rest))
		}
		if r.inBulk {
			r.offset = binary.LittleEndian.Uint64(rest)
		} else {
			r.body = rest[:want:want]
		}
		rest = rest[want:]
		dst = append(dst, r)
	}
	if len(rest) > 0 {
		return dst, fmt.Errorf("handoff: offer of %d connections: %d bytes too many", h.count, len(rest))
	}
	return dst, nil
}

// parseAnswer returns the codes of an answer to a batch of so many
// connections, parts of rest; if they are for all, there is one. It fails if
// their number is another.
func parseAnswer(h header, rest []byte, connections int) ([]byte, error) {
	want := connections
	if h.flags&flagForAll != 0 {
		want = 1
	}
	if len(rest) != want || h.count != want {
		return nil, fmt.Errorf("handoff: answer with %d of %d codes, want %d", len(rest), h.count, want)
	}
	return rest, nil
}

// parseTails calls f for each piece of a tail, a part of rest. It fails if
// there are not as many as the header says, or if anything is left over, and
// calls nothing then.
func parseTails(h header, rest []byte, f func(place int, piece []byte, more bool)) error {
	for check := true; ; check = false {
		left := rest
		for i := range h.count {
			if len(left) < pieceSize {
				return fmt.Errorf("handoff: tails: piece %d of %d: %d bytes, want %d", i, h.count, len(left), pieceSize)
			}
			place, flags, size := binary.LittleEndian.Uint16(left), binary.LittleEndian.Uint16(left[2:]), binary.LittleEndian.Uint32(left[4:])
			left = left[pieceSize:]
			if uint64(size) > uint64(len(left)) || flags&^pieceMore != 0 {
				return fmt.Errorf("handoff: tails: piece %d of %d: %d bytes with flags %#x, %d are there", i, h.count, size, flags, len(left))
			}
			if !check {
				f(int(place), left[:size:size], flags&pieceMore != 0)
			}
			left = left[size:]
		}
		if len(left) > 0 {
			return fmt.Errorf("handoff: tails of %d pieces: %d bytes too many", h.count, len(left))
		}
		if !check {
			return nil
		}
	}
}

// appendPiece appends a piece of a tail.
func appendPiece(dst []byte, place int, piece []byte, more bool) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(place))
	flags := uint16(0)
	if more {
		flags = pieceMore
	}
	dst = binary.LittleEndian.AppendUint16(dst, flags)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(piece)))
	return append(dst, piece...)
}
