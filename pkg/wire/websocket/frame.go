package websocket

import (
	"crypto/rand"
	"encoding/binary"
	"sync"

	"github.com/gobwas/ws"
)

// A frame (RFC 6455 5.2):
//
//	1 bit    FIN: the last one of its message
//	3 bits   RSV1 (RFC 7692: the message is compressed), RSV2, RSV3
//	4 bits   opcode: 0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong
//	1 bit    masked: by clients always, by servers never
//	7 bits   length, 126: 16 bits follow, 127: 64 bits follow
//	4 bytes  mask, if masked
const (
	bitFin        = 0x80
	bitCompressed = 0x40
	bitsReserved  = 0x30
	bitsOpcode    = 0x0f
	bitMasked     = 0x80
	bitsLength    = 0x7f

	continuation = 0 // the opcode that is no Kind

	maxHeader = 14
)

// header is what stands in front of a payload.
type header struct {
	size       int    // its own length in bytes; 0: not all of it is there yet
	length     uint64 // of the payload
	mask       [4]byte
	opcode     Kind // or continuation
	fin        bool
	compressed bool
}

// readHeader reads the header at the start of in and checks what can be
// checked without knowing what came before. masked says what the peer's frames
// have to be, deflate whether they may be compressed.
func readHeader(in []byte, masked, deflate bool) (h header, err error) {
	if len(in) < 2 {
		return h, nil
	}
	h.opcode = Kind(in[0] & bitsOpcode)
	h.fin = in[0]&bitFin != 0
	h.compressed = in[0]&bitCompressed != 0
	n := in[1] & bitsLength
	switch {
	case in[0]&bitsReserved != 0:
		return h, violation("reserved bits %#x", in[0]&(bitCompressed|bitsReserved))
	case h.compressed && (!deflate || h.opcode != Text && h.opcode != Binary):
		return h, violation("frame of opcode %d marked as compressed", h.opcode)
	case h.opcode > Binary && h.opcode < Close || h.opcode > Pong:
		return h, violation("reserved opcode %d", h.opcode)
	case in[1]&bitMasked != 0 != masked:
		if masked {
			return h, violation("client's frame is not masked")
		}
		return h, violation("server's frame is masked")
	case h.opcode >= Close && !h.fin:
		return h, violation("fragmented control frame of opcode %d", h.opcode)
	case h.opcode >= Close && n > maxControl:
		return h, violation("control frame of opcode %d with more than %d bytes", h.opcode, maxControl)
	}
	size := 2
	h.length = uint64(n)
	switch n {
	case 126:
		if size = 4; len(in) < size {
			return h, nil
		}
		h.length = uint64(binary.BigEndian.Uint16(in[2:]))
		if h.length < 126 {
			return h, violation("length %d in 16 bits", h.length)
		}
	case 127:
		if size = 10; len(in) < size {
			return h, nil
		}
		h.length = binary.BigEndian.Uint64(in[2:])
		switch {
		case h.length>>63 != 0:
			return h, violation("length %#x with its highest bit set", h.length)
		case h.length < 1<<16:
			return h, violation("length %d in 64 bits", h.length)
		}
	}
	if masked {
		if len(in) < size+4 {
			return h, nil
		}
		h.mask = [4]byte(in[size:])
		size += 4
	}
	h.size = size
	return h, nil
}

// headerSize returns how long the header of a frame is that is sent.
func headerSize(length int, masked bool) int {
	size := 2
	switch {
	case length >= 1<<16:
		size = 10
	case length >= 126:
		size = 4
	}
	if masked {
		size += 4
	}
	return size
}

// appendHeader appends the header of a whole message's frame, without a mask's
// value.
func appendHeader(dst []byte, first byte, length int, masked bool) []byte {
	dst = append(dst, first)
	var bit byte
	if masked {
		bit = bitMasked
	}
	switch {
	case length >= 1<<16:
		dst = append(dst, bit|127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(length))
	case length >= 126:
		dst = append(dst, bit|126, byte(length>>8), byte(length))
	default:
		dst = append(dst, bit|byte(length))
	}
	return dst
}

// appendFrame appends a frame that is a whole message.
func (s *Session) appendFrame(dst []byte, kind Kind, payload []byte) []byte {
	dst = appendHeader(dst, bitFin|byte(kind), len(payload), s.client)
	if !s.client {
		return append(dst, payload...)
	}
	mask := newMask()
	dst = append(dst, mask[:]...)
	start := len(dst)
	dst = append(dst, payload...)
	ws.Cipher(dst[start:], mask, 0)
	return dst
}

// masks are random bytes that no frame has been masked with yet. A mask must
// not be guessed by whoever chooses the payload (RFC 6455 5.3, 10.3), so it comes from
// crypto/rand, many at a time because of the price of a call.
type masks struct {
	unused []byte
	random [512]byte
}

var maskPool = sync.Pool{New: func() any { return new(masks) }}

func newMask() (mask [4]byte) {
	m := maskPool.Get().(*masks)
	if len(m.unused) == 0 {
		rand.Read(m.random[:]) // never fails: crypto/rand.Read
		m.unused = m.random[:]
	}
	mask = [4]byte(m.unused)
	m.unused = m.unused[4:]
	maskPool.Put(m)
	return mask
}
