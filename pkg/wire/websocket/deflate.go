package websocket

import (
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/gobwas/ws"
	"github.com/mainstay-go/mainstay/pkg/wire"
)

// permessage-deflate (RFC 7692), on terms under which no side keeps anything
// between messages: a connection costs no memory for it and moves without a dictionary.
const (
	deflateName   = "permessage-deflate"
	deflateTerms  = deflateName + "; server_no_context_takeover; client_no_context_takeover"
	deflateWindow = 15 // bits: what compress/flate uses, whatever it is asked for
)

// terms are the parameters of one offer or acceptance of permessage-deflate.
type terms struct {
	serverNoTakeover, clientNoTakeover bool
	serverBits, clientBits             int // 0: not given; -1: given without a value
}

// parseTerms reads the parameters (RFC 7692 7.1). ok is false if one is unknown,
// comes twice or has a value that it may not have.
func parseTerms(e extension) (t terms, ok bool) {
	for _, p := range e.params {
		switch p.name {
		case "server_no_context_takeover":
			ok = !p.hasValue && !t.serverNoTakeover
			t.serverNoTakeover = true
		case "client_no_context_takeover":
			ok = !p.hasValue && !t.clientNoTakeover
			t.clientNoTakeover = true
		case "server_max_window_bits":
			ok = t.serverBits == 0 && p.hasValue
			t.serverBits = windowBits(p)
		case "client_max_window_bits":
			ok = t.clientBits == 0
			t.clientBits = windowBits(p)
		default:
			ok = false
		}
		if !ok || p.hasValue && (t.serverBits == badBits || t.clientBits == badBits) {
			return t, false
		}
	}
	return t, true
}

const badBits = -2

// windowBits returns the value of a parameter that is 8 to 15, -1 if it has none, badBits
// if it is something else.
func windowBits(p param) int {
	if !p.hasValue {
		return -1
	}
	if n, err := strconv.Atoi(p.value); err == nil && 8 <= n && n <= 15 && p.value == strconv.Itoa(n) {
		return n
	}
	return badBits
}

// chooseOffer returns a server's answer to the first of a client's offers that it
// can hold; ok is false if there is none.
func chooseOffer(offers []extension) (answer string, ok bool) {
	for _, offer := range offers {
		if offer.name != deflateName {
			continue
		}
		t, ok := parseTerms(offer)
		// Any window of the client is fine, ours cannot be made smaller.
		if !ok || t.serverBits != 0 && t.serverBits < deflateWindow {
			continue
		}
		if t.serverBits != 0 { // RFC 7692 7.1.2.1: has to be confirmed
			return deflateTerms + "; server_max_window_bits=" + strconv.Itoa(t.serverBits), true
		}
		return deflateTerms, true
	}
	return "", false
}

// checkTerms returns an error if a server's answer does not fit a client's
// offer of deflateTerms, or none at all.
func checkTerms(offers, answer []extension) error {
	if len(offers) == 0 || len(answer) != 1 || answer[0].name != deflateName {
		return fmt.Errorf("extensions %v that were not offered", answer)
	}
	t, ok := parseTerms(answer[0])
	switch {
	case !ok || t.clientBits != 0:
		return fmt.Errorf("parameters %v of %s", answer[0].params, deflateName)
	case !t.serverNoTakeover:
		return errors.New("server keeps its context between messages, against what was asked")
	}
	return nil
}

// deflater compresses messages, one after the other.
type deflater struct {
	w   *flate.Writer
	dst []byte
}

func (d *deflater) Write(p []byte) (int, error) {
	d.dst = append(d.dst, p...)
	return len(p), nil
}

// A writer is over 1 MB, so they are shared by all connections.
var deflaters = sync.Pool{New: func() any {
	d := new(deflater)
	d.w, _ = flate.NewWriter(d, flate.BestSpeed) // the level is a valid one
	return d
}}

// appendCompressed appends a message compressed, or as it is if that is
// not shorter.
func (s *Session) appendCompressed(dst []byte, kind Kind, payload []byte) []byte {
	d := deflaters.Get().(*deflater)
	start := len(dst)
	// The room that the header will need is a guess, right unless the
	// compressed length needs fewer bytes than the plain one.
	room := headerSize(len(payload), s.client)
	var nothing [maxHeader]byte
	d.dst = append(dst, nothing[:room]...)
	d.w.Reset(d)
	d.w.Write(payload) // deflater.Write never fails
	d.w.Flush()
	dst, d.dst = d.dst, nil
	deflaters.Put(d)

	// Flush ends with an empty stored block, 00 00 ff ff, that is not sent
	// (RFC 7692 7.2.1).
	dst = dst[:len(dst)-4]
	n := len(dst) - start - room
	if n >= len(payload) {
		return s.appendFrame(dst[:start], kind, payload)
	}
	size := headerSize(n, s.client)
	if size < room {
		copy(dst[start+size:], dst[start+room:])
		dst = dst[:start+size+n]
	}
	head := appendHeader(dst[:start], bitFin|bitCompressed|byte(kind), n, s.client)
	if s.client {
		mask := newMask()
		_ = append(head, mask[:]...) // into the room
		ws.Cipher(dst[start+size:], mask, 0)
	}
	return dst
}

// inflater decompresses messages, one after the other.
type inflater struct {
	r   io.ReadCloser
	src source
}

// source is a message's compressed payload with what its sender has left off:
// the end of the empty stored block; and a last block that is final, for
// flate to stop at.
type source struct {
	payload []byte
	tail    string
}

const deflateTail = "\x00\x00\xff\xff\x01\x00\x00\xff\xff"

// ReadByte is what flate uses; so it reads no byte more than it needs.
func (s *source) ReadByte() (byte, error) {
	if len(s.payload) > 0 {
		c := s.payload[0]
		s.payload = s.payload[1:]
		return c, nil
	}
	if len(s.tail) > 0 {
		c := s.tail[0]
		s.tail = s.tail[1:]
		return c, nil
	}
	return 0, io.EOF
}

// Read is used for stored blocks.
func (s *source) Read(p []byte) (int, error) {
	n := copy(p, s.payload)
	s.payload = s.payload[n:]
	m := copy(p[n:], s.tail)
	s.tail = s.tail[m:]
	if n+m == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n + m, nil
}

var inflaters = sync.Pool{New: func() any {
	f := new(inflater)
	f.r = flate.NewReader(&f.src)
	return f
}}

// inflate returns the message whose compressed payload is given. It stops as
// soon as that is longer than most bytes.
func inflate(kind Kind, payload []byte, most uint64) (*buffer, error) {
	f := inflaters.Get().(*inflater)
	defer func() {
		f.src = source{}
		inflaters.Put(f)
	}()
	f.src = source{payload, deflateTail}
	f.r.(flate.Resetter).Reset(&f.src, nil) // fails only for a dictionary that is too long
	b := newBuffer(kind, 2*len(payload))
	for {
		b = b.grow(minBuffer / 2)
		n, err := f.r.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if uint64(len(b.b)-1) > most {
			b.free()
			return nil, &Error{Code: TooBig, Err: fmt.Errorf("compressed message of more than %d bytes: %w", most, wire.ErrTooLong)}
		}
		switch {
		case err == io.EOF && f.src.done():
			return b, nil
		case err == nil:
			continue
		case err == io.EOF:
			err = errors.New("data behind its end")
		}
		b.free()
		return nil, &Error{Code: InvalidPayload, Err: fmt.Errorf("compressed message: %w", err)}
	}
}

// done reports whether what is left after the final block is nothing of the
// message. A sender that uses a final block of its own puts a zero
// byte behind it (RFC 7692 7.2.3.4).
func (s *source) done() bool {
	if s.tail != deflateTail {
		return s.tail == ""
	}
	return len(s.payload) == 0 || len(s.payload) == 1 && s.payload[0] == 0
}
