package websocket

import (
	"math/bits"
	"sync"
	"unicode/utf8"
)

// buffer is a message that is being assembled, its kind in front.
type buffer struct {
	b       []byte
	checked int // bytes of b that are known to be whole, valid UTF-8
	class   int // in buffers; -1: not from there
}

const (
	minBuffer     = 512
	bufferClasses = 12 // 512 B to 1 MiB
)

var buffers [bufferClasses]sync.Pool

// newBuffer returns a buffer for a message of that kind with room for n bytes
// of it.
func newBuffer(kind Kind, n int) *buffer {
	b := getBuffer(1 + n)
	b.b = append(b.b, byte(kind))
	b.checked = 1
	return b
}

func getBuffer(n int) *buffer {
	class := max(bits.Len(uint(n-1)), bits.Len(minBuffer-1)) - bits.Len(minBuffer-1)
	if class >= bufferClasses {
		return &buffer{b: make([]byte, 0, n), class: -1}
	}
	if b, ok := buffers[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, minBuffer<<class), class: class}
}

// free gives b back; nobody may hold a part of it any more.
func (b *buffer) free() {
	if b.class < 0 {
		return
	}
	b.b = b.b[:0]
	buffers[b.class].Put(b)
}

// grow returns b, or a larger buffer in its place, with room for n more bytes.
// It doubles, so that many small pieces cost no more than one large one.
func (b *buffer) grow(n int) *buffer {
	if cap(b.b)-len(b.b) >= n {
		return b
	}
	larger := getBuffer(max(2*cap(b.b), len(b.b)+n))
	larger.b = append(larger.b, b.b...)
	larger.checked = b.checked
	b.free()
	return larger
}

// checkText reports whether what has come so far can be the beginning of
// valid UTF-8. It looks at each byte once, save the at most three of a rune that is
// not whole yet.
func (b *buffer) checkText() bool {
	rest := b.b[b.checked:]
	whole := len(rest)
	for i := 1; i <= min(utf8.UTFMax-1, len(rest)); i++ {
		if last := rest[len(rest)-i:]; utf8.RuneStart(last[0]) {
			// FullRune is false only for what some continuation makes
			// valid: it knows of overlong forms, surrogates and U+10FFFF.
			if !utf8.FullRune(last) {
				whole -= i
			}
			break
		}
	}
	if !utf8.Valid(rest[:whole]) {
		return false
	}
	b.checked += whole
	return true
}
