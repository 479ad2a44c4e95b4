package http1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// stateVersion is the first byte of a written state.
const stateVersion = 1

// ErrState says that bytes are no state that this version has written.
var ErrState = errors.New("http1: not a state of a parser")

// AppendState appends where the stream stands to dst and returns the result.
// What belongs to it are the bytes that Next has not advanced over: with them,
// a parser elsewhere goes on as this one would.
//
//	1 byte   version, 1
//	1        state: what is awaited
//	1        digits of a chunk's size so far
//	varint   bytes to come of the body or chunk, or the chunk's size so far
//	varint   overhead of the chunked body
//	varint   length of the line of a chunk's size so far
func (p *Parser) AppendState(dst []byte) []byte {
	dst = append(dst, stateVersion, byte(p.state), p.digits)
	dst = binary.AppendUvarint(dst, uint64(p.left))
	dst = binary.AppendUvarint(dst, uint64(p.overhead))
	return binary.AppendUvarint(dst, uint64(p.length))
}

// RestoreState sets where the stream stands to what AppendState has written.
// An incomplete head or trailer section is checked from its start again. It
// returns an error that is ErrState, and leaves p as it was, if b is anything
// but what AppendState writes.
func (p *Parser) RestoreState(b []byte) error {
	if len(b) < 3 || b[0] != stateVersion {
		return fmt.Errorf("%w: %d bytes, want version %d and more", ErrState, len(b), stateVersion)
	}
	q := Parser{state: state(b[1]), digits: b[2]}
	rest := b[3:]
	for _, n := range []struct {
		to  func(uint64)
		max uint64
	}{
		{func(v uint64) { q.left = int64(v) }, math.MaxInt64},
		{func(v uint64) { q.overhead = int32(v) }, maxOverhead},
		{func(v uint64) { q.length = int32(v) }, maxChunkLine},
	} {
		v, size := binary.Uvarint(rest)
		if size <= 0 || v > n.max || size > 1 && rest[size-1] == 0 {
			return fmt.Errorf("%w: % x", ErrState, b)
		}
		n.to(v)
		rest = rest[size:]
	}
	if len(rest) > 0 || !q.possible() {
		return fmt.Errorf("%w: % x", ErrState, b)
	}
	*p = q
	return nil
}

// possible says whether p is a state that a stream can lead to.
func (p *Parser) possible() bool {
	bounded := p.left < 1<<(4*maxChunkDigits) && p.digits <= maxChunkDigits && p.length <= maxChunkLine-2
	switch p.state {
	case inHead, inTrailer, refused:
		return *p == Parser{state: p.state}
	case inBody:
		return *p == Parser{state: inBody, left: p.left}
	case inChunkSize:
		return bounded && int(p.length) == int(p.digits) && p.left < 1<<(4*p.digits)
	case inChunkExt, inChunkSizeLF:
		return bounded && p.digits > 0 && p.length > int32(p.digits) && p.left < 1<<(4*p.digits)
	case inChunk:
		return bounded && p.digits > 0 && p.length > int32(p.digits) && p.left > 0
	case inChunkCR, inChunkLF:
		return bounded && p.digits > 0 && p.length > int32(p.digits) && p.left == 0
	default:
		return false
	}
}
