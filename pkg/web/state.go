package web

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// ErrBusy is Capture's answer while a request is being answered.
var ErrBusy = errors.New("web: a request is being answered")

// ErrState says that bytes are no state that Capture has made here.
var ErrState = errors.New("web: not a state of a connection")

// stateVersion is the first byte of a state.
const stateVersion = 1

// Busy says whether a request of c is being answered, or waits to be: c can
// be given away as soon as that is over. Loop only.
func (h *Handler) Busy(c *conn.Conn) bool {
	p, ok := c.Value().(*peer)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) > 0 || p.running || p.upgradeLocked() != nil || p.incoming != nil
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
func (h *Handler) Capture(c *conn.Conn) ([]byte, error) {
	p, ok := c.Value().(*peer)
	if !ok {
		return nil, fmt.Errorf("%w: the connection is not served by HTTP", ErrState)
	}
	if h.Busy(c) || p.over {
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
	return out, nil
}

// restored is the value of a connection that another process has served,
// until OnAdopt.
type restored struct {
	parser http1.Parser
	inline *inlineBody // nil: no body is collected
	tail   []byte
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
	if len(rest) > 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrState, len(rest))
	}
	r := &restored{tail: parts[1]}
	if err := r.parser.RestoreState(parts[0]); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	inBody := !r.parser.InHead()
	if inBody != (len(parts[2]) > 0) || inBody && !h.config.Inline || int64(len(parts[3])) > h.limits.Body {
		return fmt.Errorf("%w: it has a body of %d bytes that does not fit", ErrState, len(parts[3]))
	}
	if inBody {
		r.inline = &inlineBody{head: parts[2], body: parts[3]}
	}
	c.SetValue(r)
	return nil
}

// OnAdopt goes on with a connection that another process has served.
func (h *Handler) OnAdopt(c *conn.Conn, _ conn.Reason) {
	r, ok := c.Value().(*restored)
	if !ok {
		r = new(restored) // at a boundary, with nothing to be told
	}
	p := h.attach(c)
	p.parser = r.parser
	if r.inline != nil {
		p.inline = r.inline
		p.by = later(h.clock(), h.limits.BodyTimeout)
	}
	p.receive(r.tail)
}
