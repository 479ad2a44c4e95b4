package web

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// ErrBusy is Capture's answer while a request is being answered.
var ErrBusy = errors.New("web: a request is being answered")

// ErrState says that bytes are no state that Capture has made here.
var ErrState = errors.New("web: not a state of a connection")

// stateVersion is the first byte of a state.
const stateVersion = 1

// Busy says whether a request of c is being answered, waits to be, or comes in
// for a handler on a goroutine: c can be given away as soon as that is over.
// Loop only.
func (h *Handler) Busy(c *conn.Conn) bool {
	p, ok := c.Value().(*peer)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.queue.empty() || p.flags.has(flagPooled)
}

// Capture writes down where the stream of c stands, with the bytes that have
// come and were not answered, for Restore in another process. It changes
// nothing. Between two requests it is a few bytes; in the middle of a head, or with Inline
// of a body, it holds what is there of it. It returns ErrBusy while a
// request is being answered, and an error that is ErrState if c is not h's.
// Loop only, and not in a callback of c.
//
//	1 byte  version, 1
//	varint  length, and the state of the parser
//	varint  length, and input that was not parsed
//	varint  length, and the head of the request whose body is collected; empty: none is
//	varint  length, and what is there of that body
//	varint  milliseconds that are left for what is awaited, and one; 0: for ever
func (h *Handler) Capture(c *conn.Conn) ([]byte, error) {
	p, ok := c.Value().(*peer)
	if !ok {
		return nil, fmt.Errorf("%w: the connection is not served by HTTP", ErrState)
	}
	if h.Busy(c) || p.loop.has(loopOver) {
		return nil, ErrBusy
	}
	in := p.inline
	if in == nil {
		in = new(inlineBody)
	}
	out := []byte{stateVersion}
	for _, b := range [][]byte{p.parser.AppendState(nil), p.tail, in.head, in.body} {
		out = binary.AppendUvarint(out, uint64(len(b)))
		out = append(out, b...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := uint64(0)
	if p.waits != waitNothing {
		if at := p.alarm.at.time(); at != never {
			left = uint64(max(at-h.clock(), 0)/time.Millisecond) + 1
		}
	}
	return binary.AppendUvarint(out, left), nil
}

// restored is the value of a connection that another process has served,
// until OnAdopt.
type restored struct {
	parser http1.Parser
	inline *inlineBody // nil: no body is collected
	tail   []byte
	left   time.Duration // for what is awaited; 0: as long as at its start
}

// Restore takes up a connection that another process has served up to state,
// which Capture made there, or nil for one between two requests; OnAdopt then takes the place of OnConnect, and
// goes on with what state holds the rest of. It fails with an error that is
// ErrState if state is no such thing, or more than the limits allow. Loop only,
// before c's first callback.
func (h *Handler) Restore(c *conn.Conn, state []byte) error {
	if state == nil { // nothing is known but that it was between two requests
		c.SetValue(new(restored))
		return nil
	}
	if len(state) == 0 || state[0] != stateVersion {
		return fmt.Errorf("%w: %d bytes, want version %d", ErrState, len(state), stateVersion)
	}
	var parts [4][]byte
	rest := state[1:]
	for i := range parts {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			return fmt.Errorf("%w: part %d is cut", ErrState, i)
		}
		parts[i] = append([]byte(nil), rest[size:size+int(n)]...)
		rest = rest[size+int(n):]
	}
	left, size := binary.Uvarint(rest)
	if size != len(rest) || size <= 0 || left > maxLeftTime {
		return fmt.Errorf("%w: its end", ErrState)
	}
	r := &restored{tail: parts[1], left: time.Duration(left) * time.Millisecond}
	if err := r.parser.RestoreState(parts[0]); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	inBody := !r.parser.InHead()
	if inBody != (len(parts[2]) > 0) || int64(len(parts[3])) > h.limits.Body {
		return fmt.Errorf("%w: it has a body of %d bytes that does not fit", ErrState, len(parts[3]))
	}
	if inBody {
		r.inline = &inlineBody{head: parts[2], body: parts[3]}
	}
	c.SetValue(r)
	return nil
}

// maxLeftTime is in milliseconds; nobody waits for so long.
const maxLeftTime = 1 << 40

// OnAdopt goes on with a connection that another process has served.
func (h *Handler) OnAdopt(c *conn.Conn, _ conn.Reason) {
	r, ok := c.Value().(*restored)
	if !ok {
		r = new(restored) // at a boundary, with nothing to be told
	}
	p := h.attach(c)
	p.reading = &reading{parser: r.parser}
	p.loop.set(loopFull, c.Queued() > h.sendHigh) // OnBufferDrain follows
	c.Resume()                                    // it may have been held up for a reason that is none here
	now := h.clock()
	if in := r.inline; in != nil {
		p.by = later(now, h.limits.BodyTimeout)
		if h.config.Inline {
			p.inline = in
		} else if !p.handOut(in) {
			c.CloseNow(ErrState)
			return
		}
	} else if len(r.tail) > 0 {
		p.by = later(now, h.limits.HeadTimeout)
	}
	if r.left > 0 && p.by != 0 {
		p.by = min(p.by, now+r.left)
	}
	p.receive(r.tail)
	if r.left == 0 || p.by != 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waits == waitRequest {
		h.sweep.set(p, min(p.alarm.at.time(), now+r.left))
	}
}

// handOut has a request answered by a goroutine of which a process has
// collected the body that served the connection on its loop.
func (p *peer) handOut(in *inlineBody) bool {
	t := p.h.newTurn()
	defer t.free()
	x := newExchangeOf(p, t, in, nil)
	if x == nil {
		return false
	}
	x.body = newBody(p, x.request, x.request.ContentLength, false)
	x.request.Body = x.body
	p.incoming = x.body
	if err := x.body.put(in.body); err != nil {
		return false
	}
	p.enqueue(t, x)
	return t.flush(p) == nil
}
