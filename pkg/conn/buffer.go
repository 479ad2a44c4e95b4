package conn

import (
	"math/bits"
	"sync"
)

// buffer holds bytes on their way through a connection: the incomplete tail
// of its input, a message waiting for the Pool, or a part of its send queue.
// It is taken by getBuffer and given back by free, so that a connection that
// has nothing to keep keeps no memory.
type buffer struct {
	next  *buffer // in a send queue
	b     []byte  // everything that was put in
	off   int     // how much of it has been taken out
	class int     // in bufferPools; -1: not from there
}

const (
	minBuffer     = 512
	bufferClasses = 12 // 512 B to 1 MiB
)

var bufferPools [bufferClasses]sync.Pool

// getBuffer returns an empty buffer with room for at least n bytes.
func getBuffer(n int) *buffer {
	class := max(bits.Len(uint(n-1)), bits.Len(minBuffer-1)) - bits.Len(minBuffer-1)
	if class >= bufferClasses {
		return &buffer{b: make([]byte, 0, n), class: -1}
	}
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, minBuffer<<class), class: class}
}

// free gives b back; nobody may hold a part of it any more.
func (b *buffer) free() {
	if b.class < 0 {
		return
	}
	b.next, b.b, b.off = nil, b.b[:0], 0
	bufferPools[b.class].Put(b)
}

// bytes returns what has not been taken out yet.
func (b *buffer) bytes() []byte { return b.b[b.off:] }

// room returns how many bytes can be put in without a new buffer.
func (b *buffer) room() int { return cap(b.b) - len(b.b) }

// add puts p in behind what is there. It returns b, or a larger buffer in its
// place.
func (b *buffer) add(p []byte) *buffer {
	if b.room() < len(p) {
		rest := b.bytes()
		larger := getBuffer(2*len(rest) + len(p))
		larger.b = append(larger.b, rest...)
		b.free()
		b = larger
	}
	b.b = append(b.b, p...)
	return b
}

// queue is bytes to be sent, in parts.
type queue struct {
	head, tail *buffer
	bytes      int
}

// put puts a part behind the others; its bytes are counted by the caller.
func (q *queue) put(b *buffer) {
	if q.tail == nil {
		q.head = b
	} else {
		q.tail.next = b
	}
	q.tail = b
}

// add copies p behind what is there.
func (q *queue) add(p []byte) {
	if len(p) == 0 {
		return
	}
	if q.tail == nil || q.tail.room() < len(p) {
		q.put(getBuffer(max(len(p), firstPart)))
	}
	q.tail.b = append(q.tail.b, p...)
	q.bytes += len(p)
}

// take takes n bytes off the front.
func (q *queue) take(n int) {
	q.bytes -= n
	q.drop(n)
}

// drop is take of bytes that the caller has counted.
func (q *queue) drop(n int) {
	for n > 0 {
		head := q.head
		taken := min(n, len(head.bytes()))
		head.off += taken
		n -= taken
		if len(head.bytes()) > 0 {
			return
		}
		q.head = head.next
		if q.head == nil {
			q.tail = nil
		}
		head.free()
	}
}

// join puts all of other, which is empty then, behind q.
func (q *queue) join(other *queue) {
	if other.head == nil {
		return
	}
	if q.tail == nil {
		q.head = other.head
	} else {
		q.tail.next = other.head
	}
	q.tail = other.tail
	q.bytes += other.bytes
	*other = queue{}
}

// appendTo appends all of q to dst.
func (q *queue) appendTo(dst []byte) []byte {
	for b := q.head; b != nil; b = b.next {
		dst = append(dst, b.bytes()...)
	}
	return dst
}

// free gives back all parts.
func (q *queue) free() {
	for b := q.head; b != nil; {
		next := b.next
		b.free()
		b = next
	}
	*q = queue{}
}
