package web

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

const (
	// bodyHigh is how much of a body waits for the handler before reading
	// pauses, until bodyLow is left. One read may go beyond it.
	bodyHigh = 256 << 10
	bodyLow  = 64 << 10

	// maxLeft is how much of a body that the handler has left is read for the
	// next request's sake.
	maxLeft = 256 << 10
)

var (
	errBodyLeft = errors.New("web: too much of a body was left by the handler")

	// errCut is what reading a body ends with that does not come.
	errCut = io.ErrUnexpectedEOF
)

// body is the body of a request on its way to the handler, which reads while
// the loop puts in.
type body struct {
	p       *peer
	request *http.Request
	ready   chan struct{} // told when there is something new for Read
	runner  *runner       // that has the request answered; set before the handler runs

	// Guarded by mu.

	mu       sync.Mutex
	buf      []byte
	off      int   // in buf: what was read
	left     int64 // to come, -1: nobody knows
	got      int64
	skipped  int // of what nobody wants
	full     bool
	complete bool
	expected bool // the peer waits to be told to go on
	closed   bool // by the handler, or for it
	err      error
	trailer  []byte
	deadline time.Time
}

func newBody(p *peer, r *http.Request, length int64, expected bool) *body {
	return &body{p: p, request: r, ready: make(chan struct{}, 1), left: length, expected: expected}
}

// tell wakes Read.
func (b *body) tell() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// put puts data in. An error says that the rest of the body is not read.
// Loop only.
func (b *body) put(data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.tell()
	b.got += int64(len(data))
	if b.left >= 0 {
		b.left -= int64(len(data))
	}
	b.expected = false
	if b.closed {
		if b.skipped += len(data); b.skipped > maxLeft {
			return errBodyLeft
		}
		return nil
	}
	if limit := b.p.h.limits.Body; b.got > limit {
		b.err = &http.MaxBytesError{Limit: limit}
		return b.err
	}
	if b.off > 0 && b.off >= len(b.buf)/2 {
		b.buf = b.buf[:copy(b.buf, b.buf[b.off:])]
		b.off = 0
	}
	b.buf = append(b.buf, data...)
	b.full = len(b.buf)-b.off >= bodyHigh
	return nil
}

// end says that all was put in. Loop only.
func (b *body) end(trailer []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complete, b.left = true, 0
	b.trailer = append([]byte(nil), trailer...)
	b.tell()
}

// fail ends the body early. What was put in before is read.
func (b *body) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	b.tell()
}

// failure returns why no more of the body comes, nil if there is no fault.
func (b *body) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// isFull says whether nothing more is to be put in for now. b may be nil.
func (b *body) isFull() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.full
}

// Read reads what has come, and waits if that is nothing. It fails with
// io.ErrUnexpectedEOF or the reason why no more comes, *http.MaxBytesError
// beyond Limits.Body, os.ErrDeadlineExceeded, http.ErrBodyReadAfterClose.
func (b *body) Read(p []byte) (int, error) {
	for {
		n, wait, err := b.take(p)
		if n > 0 {
			b.runner.progressed(b.p.h.clock())
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if err := await(b.ready, wait); err != nil { // without a deadline, too: a connection always ends
			return 0, err
		}
	}
}

// take takes what is there, or says by when something must be.
func (b *body) take(p []byte) (n int, deadline time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return 0, deadline, http.ErrBodyReadAfterClose
	case b.off < len(b.buf):
		n = copy(p, b.buf[b.off:])
		if b.off += n; b.off == len(b.buf) {
			b.buf, b.off = b.buf[:0], 0
		}
		if b.full && len(b.buf)-b.off <= bodyLow {
			b.full = false
			b.p.wake()
		}
		return n, deadline, nil
	case b.complete:
		b.buf = nil
		if len(b.trailer) > 0 {
			http1.FillTrailer(b.request, b.trailer)
			b.trailer = nil
		}
		return 0, deadline, io.EOF
	case b.err != nil:
		return 0, deadline, b.err
	}
	if b.expected {
		b.expected = false
		if err := b.p.c.Send([]byte(http1.Continue)); err != nil {
			b.err = err
			return 0, deadline, err
		}
	}
	return 0, b.deadline, nil
}

// Close says that the handler wants no more of it. It never fails.
func (b *body) Close() error {
	b.abandon()
	return nil
}

func (b *body) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	b.skipped = len(b.buf) - b.off
	b.buf, b.off = nil, 0
	if b.full {
		b.full = false
		b.p.wake()
	}
	b.tell() // another goroutine may be in Read
}

// answered says that the head of the answer is about to leave: what would come
// before it, 100 Continue, is not sent any more.
func (b *body) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = false
}

// setDeadline bounds Read, also one that waits.
func (b *body) setDeadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deadline = t
	b.tell()
}

// unread says whether the connection is to be closed because of what is left
// of the body: the peer was not told to send it, or it is too much.
func (b *body) unread() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.complete && (b.expected || b.err != nil || b.left > maxLeft)
}
