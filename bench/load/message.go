package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Mode is what the echo server takes for a message.
type Mode string

// The modes.
const (
	Raw  Mode = "raw"  // any bytes, as they come
	Text Mode = "text" // lines of printable characters, ended by \n
)

// Sizes of a message in bytes, a line's \n included.
const (
	MinRawSize  = 16
	MinTextSize = 33
	MaxSize     = 16 << 20
)

// A message is the same bytes whenever it is built, so what was sent need not
// be kept to compare what comes back:
//
//	raw   8 bytes  sequence number, big endian, from 0 for each connection
//	      8        connection id, big endian
//	      rest     pattern
//	text  16 bytes sequence number in hexadecimal
//	      16       connection id in hexadecimal
//	      rest     pattern, printable
//	      1        \n
//
// The pattern is a stretch of one table of random bytes and begins at another
// place for each sequence number and connection, so that neither a shifted
// stream nor another connection's bytes can pass for the right ones.
type messages struct {
	mode    Mode
	size    int
	pattern []byte // size+256 bytes
}

func newMessages(mode Mode, size int) *messages {
	m := &messages{mode: mode, size: size, pattern: make([]byte, size+256)}
	x := uint64(0x9e3779b97f4a7c15)
	for i := range m.pattern {
		x ^= x << 13 // xorshift64: the same table in every run
		x ^= x >> 7
		x ^= x << 17
		b := byte(x >> 32)
		if mode == Text {
			b = '!' + b%('~'-'!'+1)
		}
		m.pattern[i] = b
	}
	return m
}

const hexDigits = "0123456789abcdef"

func putHex(dst []byte, v uint64) {
	for i := 15; i >= 0; i-- {
		dst[i] = hexDigits[v&15]
		v >>= 4
	}
}

// head returns the length of what stands before the pattern.
func (m *messages) head() int {
	if m.mode == Text {
		return 32
	}
	return 16
}

// part returns bytes of message seq of connection id, from byte off on: at
// least one of them, and never past the message's end. They are valid until
// scratch, of 32 bytes, is used again, and must not be written to.
func (m *messages) part(scratch *[32]byte, id, seq uint64, off int) []byte {
	head := m.head()
	if off < head {
		if m.mode == Text {
			putHex(scratch[:], seq)
			putHex(scratch[16:], id)
		} else {
			binary.BigEndian.PutUint64(scratch[:], seq)
			binary.BigEndian.PutUint64(scratch[8:], id)
		}
		return scratch[off:head]
	}
	from, end := int((seq*31+id*97)&255), m.size
	if m.mode == Text {
		if end--; off == end {
			return newline
		}
	}
	return m.pattern[from+off-head : from+end-head]
}

var newline = []byte("\n")

// place is a place in the stream of one connection's messages: byte off of
// message seq.
type place struct {
	seq uint64
	off int
}

// advance moves p on by n bytes.
func (m *messages) advance(p *place, n int) {
	n += p.off
	p.seq += uint64(n / m.size)
	p.off = n % m.size
}

// fill copies the stream of connection id, from p to the end of message
// until-1, into dst as far as it goes, and returns how many bytes that were.
func (m *messages) fill(dst []byte, id uint64, p place, until uint64) int {
	var scratch [32]byte
	n := 0
	for p.seq < until && n < len(dst) {
		k := copy(dst[n:], m.part(&scratch, id, p.seq, p.off))
		n += k
		if p.off += k; p.off == m.size {
			p.seq, p.off = p.seq+1, 0
		}
	}
	return n
}

// WrongByteError says that an echoed byte is not the one that was sent. The
// connection is of no use afterwards.
type WrongByteError struct {
	Conn   uint64 // the connection's id
	Seq    uint64 // the message it was compared with
	Offset int    // the byte in that message
	Got    byte
	Want   byte
}

func (e *WrongByteError) Error() string {
	return fmt.Sprintf("connection %d: message %d: byte %d: got 0x%02x, want 0x%02x", e.Conn, e.Seq, e.Offset, e.Got, e.Want)
}

// check compares in with the stream of connection id from p on and moves p
// behind it. It returns a *WrongByteError, and leaves p where it is of no use,
// when a byte differs.
func (m *messages) check(in []byte, id uint64, p *place) error {
	var scratch [32]byte
	for len(in) > 0 {
		want := m.part(&scratch, id, p.seq, p.off)
		n := min(len(in), len(want))
		if !bytes.Equal(in[:n], want[:n]) {
			i := 0
			for in[i] == want[i] {
				i++
			}
			return &WrongByteError{Conn: id, Seq: p.seq, Offset: p.off + i, Got: in[i], Want: want[i]}
		}
		in = in[n:]
		if p.off += n; p.off == m.size {
			p.seq, p.off = p.seq+1, 0
		}
	}
	return nil
}
