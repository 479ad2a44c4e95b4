package web

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

const (
	// bodyRoom is how much of a body is collected before its head leaves: a
	// response that fits gets a Content-Length and leaves in one piece.
	bodyRoom = 4 << 10

	// sendStep is the most that is sent at once; between two steps the peer's
	// reading is looked at.
	sendStep = 64 << 10
)

// room is the buffers of one response.
type room struct {
	head []byte // status line and fields; later what is sent
	body []byte // what waits to be framed; cap bodyRoom
}

var rooms = sync.Pool{New: func() any { return &room{body: make([]byte, 0, bodyRoom)} }}

// ErrNoHijack is what Hijack of the reactor's responses fails with.
var ErrNoHijack = fmt.Errorf("web: the connection is the reactor's: declare a Stream, or serve the handler by net/http to hijack: %w", http.ErrNotSupported)

// response is the http.ResponseWriter of one request. As with net/http, one
// goroutine at a time may use it, and only until the handler has returned.
type response struct {
	x      *exchange
	turn   *turn // on the loop: where answers go
	header http.Header
	room   *room

	status      int // 0: WriteHeader is to come
	framing     http1.Framing
	length      int64 // declared, or known; -1: not
	written     int64
	sent        bool // the head is on its way
	ended       bool // the handler has returned
	close       bool // the connection ends with it
	toClose     bool // the handler wants the end of the connection to be that of the body
	hasDate     bool
	hasType     bool
	hasEncoding bool
	trailers    []string // that the handler has announced
	prefixed    bool     // it has trailers by http.TrailerPrefix
	connection  []string // what the handler has set
	err         error    // why nothing more can be sent

	deadline atomic.Pointer[time.Time] // of writes that wait; nil: none
}

var (
	_ http.ResponseWriter = (*response)(nil)
	_ http.Flusher        = (*response)(nil)
	_ http.Hijacker       = (*response)(nil)
	_ io.StringWriter     = (*response)(nil)
	_ io.ReaderFrom       = (*response)(nil)
)

// Header returns the fields of the head, which WriteHeader sends.
func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader sets the status and takes the fields as they are now. One below
// 200, except 101, is sent at once, as a response before the response.
func (w *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("web: WriteHeader: status %d, want 100 to 999", status))
	}
	if w.status != 0 || w.ended {
		return
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.interim(status)
		return
	}
	w.status = status
	if w.turn != nil {
		w.room = &w.turn.room
	} else {
		w.room = rooms.Get().(*room)
	}
	w.room.head = w.fields(http1.AppendStatusLine(w.room.head[:0], w.x.minor, status))
}

// interim sends a response of the class 1xx (RFC 9110 15.2).
func (w *response) interim(status int) {
	if w.x.minor == 0 {
		return
	}
	if b := w.x.body; status == http.StatusContinue && b != nil {
		b.mu.Lock()
		b.expected = false
		b.mu.Unlock()
	}
	out := http1.AppendStatusLine(nil, 1, status)
	out = http1.AppendFields(out, w.header, func(name string) bool {
		return name != "Content-Length" && name != "Transfer-Encoding"
	})
	w.send(append(out, "\r\n"...))
	if w.turn != nil && w.err == nil {
		w.err = w.turn.flush(w.x.p)
	}
}

// fields appends what the handler has set, but for what is decided when the
// head is sent.
func (w *response) fields(dst []byte) []byte {
	allowed := http1.BodyAllowed(w.status)
	for _, v := range w.header["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			w.announce(http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	var room [16]field
	fields := room[:0]
	// Most often there is a type, perhaps a length, and nothing else: that is
	// known without walking through the map.
	left := len(w.header)
	for _, name := range [...]string{"Content-Type", "Content-Length"} {
		if values, ok := w.header[name]; ok {
			fields = w.field(fields, name, values, allowed)
			left--
		}
	}
	if left > 0 {
		fields = fields[:0]
		for name, values := range w.header {
			fields = w.field(fields, name, values, allowed)
		}
		if len(fields) > 1 {
			slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
		}
	}
	for _, f := range fields {
		for _, v := range f.values {
			dst = http1.AppendField(dst, f.name, v)
		}
	}
	return dst
}

// field takes note of what the handler has set, and appends it if it is to be
// sent as it is.
func (w *response) field(fields []field, name string, values []string, allowed bool) []field {
	switch name {
	case "Content-Length":
		if len(values) == 1 && allowed {
			if n, err := strconv.ParseInt(strings.TrimSpace(values[0]), 10, 64); err == nil && n >= 0 {
				w.length = n
			}
		}
		return fields
	case "Connection":
		w.connection = slices.Clone(values)
		w.close = w.close || http1.HasToken(values, "close")
		return fields
	case "Transfer-Encoding":
		w.toClose = len(values) == 1 && values[0] == "identity"
		w.hasType = true // nothing is known of a body that is encoded
		return fields
	case "Content-Type":
		w.hasType = true
		if w.status == http.StatusNotModified {
			return fields
		}
	case "Content-Encoding":
		w.hasEncoding = len(values) > 0 && values[0] != ""
	case "Date":
		w.hasDate = true
	}
	if strings.HasPrefix(name, http.TrailerPrefix) {
		w.prefixed = true
		return fields
	}
	if slices.Contains(w.trailers, name) {
		return fields
	}
	return append(fields, field{name, values})
}

// field is one of a head.
type field struct {
	name   string
	values []string
}

// announce notes a trailer, unless it would frame the message.
func (w *response) announce(name string) {
	switch name {
	case "", "Transfer-Encoding", "Content-Length", "Trailer":
	default:
		w.trailers = append(w.trailers, name)
	}
}

// commit decides how the response is framed, and sends its head with what
// was collected of its body. done says that this is all of it.
func (w *response) commit(done bool) {
	x := w.x
	w.sent = true
	body := w.room.body
	trailers := len(w.trailers) > 0 || w.prefixed
	allowed := http1.BodyAllowed(w.status)
	if done && w.length < 0 && allowed && !trailers && !w.toClose && (!x.head || w.written > 0) {
		w.length = w.written
	}
	w.framing = http1.Frame(x.minor, w.status, x.head, w.length)
	if w.framing == http1.Chunked && w.toClose {
		w.framing = http1.ToClose
	}
	out := w.room.head
	if allowed && !w.hasType && !w.hasEncoding && len(body) > 0 {
		out = http1.AppendField(out, "Content-Type", http.DetectContentType(body))
	}
	if !w.hasDate {
		out = x.p.h.appendDate(out, w.now())
	}
	if w.length >= 0 {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, w.length, 10)
		out = append(out, "\r\n"...)
	}
	if w.framing == http1.Chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	out = w.appendConnection(out)
	if x.body != nil {
		x.body.answered()
	}
	out = append(out, "\r\n"...)
	switch {
	case w.framing == http1.NoBody:
	case w.framing == http1.Chunked:
		out = http1.AppendChunk(out, body)
	default:
		out = append(out, body...)
	}
	w.room.body = body[:0]
	if done && w.framing == http1.Chunked {
		out = w.appendEnd(out)
	}
	w.room.head = out
	w.send(out)
}

// now returns the time of the answer: on the loop, that of its turn.
func (w *response) now() time.Duration {
	if w.turn != nil {
		return w.turn.now
	}
	return w.x.p.h.clock()
}

// appendConnection decides whether the connection stays, and says so.
func (w *response) appendConnection(out []byte) []byte {
	x := w.x
	if w.status == http.StatusSwitchingProtocols {
		w.close = true // there is nobody for what would follow
		for _, v := range w.connection {
			out = http1.AppendField(out, "Connection", v)
		}
		return out
	}
	if x.close || w.framing == http1.ToClose || x.p.h.draining.Load() || x.body != nil && x.body.unread() {
		w.close = true
	}
	switch {
	case w.close && x.minor == 1:
		return append(out, "Connection: close\r\n"...)
	case w.close:
		return out
	case x.minor == 0:
		return append(out, "Connection: keep-alive\r\n"...)
	}
	for _, v := range w.connection {
		out = http1.AppendField(out, "Connection", v)
	}
	return out
}

// appendEnd appends the end of a chunked body.
func (w *response) appendEnd(out []byte) []byte {
	if len(w.trailers) == 0 && !w.hasPrefixed() {
		return append(out, "0\r\n\r\n"...)
	}
	trailers := make(http.Header)
	for _, name := range w.trailers {
		if values := w.header[name]; len(values) > 0 {
			trailers[name] = values
		}
	}
	for name, values := range w.header {
		if rest, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			for _, v := range values {
				trailers.Add(rest, v)
			}
		}
	}
	return http1.AppendLastChunk(out, trailers)
}

func (w *response) hasPrefixed() bool {
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// begin prepares for n bytes of the body, and says how many of them may be
// written and what is wrong with the others.
func (w *response) begin(n int) (int, error) {
	if w.ended {
		return 0, errors.New("web: Write after the handler has returned")
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case n == 0:
		return 0, nil
	case !http1.BodyAllowed(w.status):
		return 0, http.ErrBodyNotAllowed
	case w.length >= 0 && w.written+int64(n) > w.length:
		return int(w.length - w.written), http.ErrContentLength
	}
	return n, nil
}

// Write writes a part of the body. On a goroutine it waits while more than
// SendHigh bytes wait to be sent. It fails as net/http's does, with
// os.ErrDeadlineExceeded, or when the connection is over.
func (w *response) Write(p []byte) (int, error) {
	n, err := w.begin(len(p))
	if err != nil {
		return 0, err
	}
	w.written += int64(n)
	body := w.room.body
	switch {
	case len(body)+n <= bodyRoom:
		w.room.body = append(body, p...)
	case w.x.head:
		// Only the start of it is looked at, for its type.
		w.room.body = append(body, p[:bodyRoom-len(body)]...)
	default:
		k := 0
		if !w.sent {
			k = copy(body[len(body):bodyRoom], p) // what tells the type
			w.room.body = body[:len(body)+k]
		}
		w.flushBody()
		w.data(p[k:])
	}
	if w.err != nil {
		return 0, w.err
	}
	return n, nil
}

// WriteString is Write for a string.
func (w *response) WriteString(s string) (int, error) {
	n, err := w.begin(len(s))
	if err == nil && len(w.room.body)+n <= bodyRoom {
		w.written += int64(n)
		w.room.body = append(w.room.body, s...)
		return n, nil
	}
	if err != nil {
		return 0, err
	}
	return w.Write([]byte(s))
}

// copyRoom is where ReadFrom reads to.
var copyRoom = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// ReadFrom writes what it reads, as io.Copy would.
func (w *response) ReadFrom(r io.Reader) (n int64, err error) {
	buf := copyRoom.Get().(*[]byte)
	defer copyRoom.Put(buf)
	for {
		k, rerr := r.Read(*buf)
		if k > 0 {
			wrote, werr := w.Write((*buf)[:k])
			n += int64(wrote)
			if werr != nil {
				return n, werr
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// flushBody sends what was collected, with the head before it.
func (w *response) flushBody() {
	if !w.sent {
		w.commit(false)
		return
	}
	body := w.room.body
	w.room.body = body[:0]
	w.data(body)
}

// data frames and sends a part of the body.
func (w *response) data(p []byte) {
	for len(p) > 0 && w.err == nil {
		n := min(len(p), w.x.p.h.sendStep)
		switch w.framing {
		case http1.NoBody:
			return
		case http1.Chunked:
			w.room.head = http1.AppendChunk(w.room.head[:0], p[:n])
			w.send(w.room.head)
		default:
			w.send(p[:n])
		}
		p = p[n:]
	}
}

// send sends b, when there is room.
func (w *response) send(b []byte) {
	if w.err != nil {
		return
	}
	if t := w.turn; t != nil {
		t.out = append(t.out, b...)
		if len(t.out) >= sendStep {
			w.err = t.flush(w.x.p)
		}
		return
	}
	if r := w.x.runner; r != nil {
		r.since.Store(0) // it answers; how long that takes is bounded otherwise
	}
	if w.err = w.waitForRoom(); w.err == nil {
		w.err = w.x.p.c.Send(b)
	}
}

// waitForRoom waits until few enough bytes wait to be sent.
func (w *response) waitForRoom() error {
	p := w.x.p
	if p.c.Queued() <= p.h.sendHigh {
		return nil
	}
	drained := p.drained()
	for p.c.Queued() > p.h.sendHigh {
		if err := p.endedWith(); err != nil {
			return err
		}
		var deadline time.Time
		if at := w.deadline.Load(); at != nil {
			deadline = *at
		}
		if err := await(drained, deadline); err != nil { // nil: or the connection is over, or the deadline another
			return err
		}
	}
	return nil
}

// await waits until told has something; a deadline of zero is none.
func await(told <-chan struct{}, deadline time.Time) error {
	if deadline.IsZero() {
		<-told
		return nil
	}
	d := time.Until(deadline)
	if d <= 0 {
		return os.ErrDeadlineExceeded
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-told:
		return nil
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

// Flush sends what was written.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush that says why it could not.
func (w *response) FlushError() error {
	if w.ended {
		return errors.New("web: Flush after the handler has returned")
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sent || len(w.room.body) > 0 {
		w.flushBody()
	}
	if w.turn != nil && w.err == nil {
		w.err = w.turn.flush(w.x.p)
	}
	return w.err
}

// Hijack fails with ErrNoHijack.
func (w *response) Hijack() (c net.Conn, rw *bufio.ReadWriter, err error) {
	return nil, nil, ErrNoHijack
}

// SetReadDeadline bounds reads of the body; zero: only Limits.BodyTimeout does.
func (w *response) SetReadDeadline(t time.Time) error {
	if b := w.x.body; b != nil {
		b.setDeadline(t)
	}
	return nil
}

// SetWriteDeadline bounds how long Write and Flush wait, also one that waits
// now; zero: only conn.Limits.WriteStall does. Inline they do not wait. Any
// goroutine may call it.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.deadline.Store(&t)
	if p := w.x.p; !p.h.config.Inline {
		select {
		case p.drained() <- struct{}{}:
		default:
		}
	}
	return nil
}

// EnableFullDuplex has nothing to do: the body can be read after Write.
func (w *response) EnableFullDuplex() error { return nil }

// finish completes the response and says whether the connection ends.
func (w *response) finish() (closing bool) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case !w.sent:
		w.commit(true)
	case w.framing == http1.Chunked:
		w.room.head = http1.AppendChunk(w.room.head[:0], w.room.body)
		w.room.head = w.appendEnd(w.room.head)
		w.room.body = w.room.body[:0]
		w.send(w.room.head)
	default:
		w.flushBody()
	}
	switch {
	case w.err != nil:
		w.x.why, w.x.cut = w.err, true
		return true
	case w.framing == http1.Length && w.written != w.length:
		w.x.why = fmt.Errorf("web: handler wrote %d bytes of a body, Content-Length says %d", w.written, w.length)
		return true
	}
	return w.close
}

// over ends the use of the response.
func (w *response) over() {
	w.ended = true
	r := w.room
	if r == nil {
		return
	}
	w.room = nil
	if cap(r.head) > 2*sendStep {
		r.head = nil
	}
	r.head, r.body = r.head[:0], r.body[:0]
	if w.turn == nil {
		rooms.Put(r)
	}
}
