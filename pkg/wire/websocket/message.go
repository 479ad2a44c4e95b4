package websocket

import (
	"fmt"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/mainstay-go/mainstay/pkg/wire"
)

// splitFrame takes one frame, or what has come of it.
func (s *Session) splitFrame(in []byte) (advance int, msg []byte, ok bool, err error) {
	if s.rest > 0 {
		if len(in) == 0 {
			return 0, nil, false, nil
		}
		if err := s.checkSize(s.rest); err != nil { // restored under a lower limit
			return 0, nil, false, err
		}
		n := int(min(s.rest, uint64(len(in))))
		msg, ok, err = s.collect(in[:n])
		return n, msg, ok, err
	}
	h, err := readHeader(in, !s.client, s.flags.Load()&flagDeflate != 0)
	if err != nil || h.size == 0 {
		return 0, nil, false, err
	}
	if h.opcode >= Close {
		return s.control(in, h)
	}
	switch {
	case h.opcode == continuation && s.kind == 0:
		return 0, nil, false, violation("continuation of nothing")
	case h.opcode != continuation && s.kind != 0:
		return 0, nil, false, violation("new message of opcode %d inside an unfinished one", h.opcode)
	}
	if err := s.checkSize(h.length); err != nil {
		return 0, nil, false, err
	}
	whole := h.length <= uint64(len(in)-h.size)
	if h.opcode != continuation {
		if whole && h.fin {
			return s.single(in, h)
		}
		s.kind, s.packed = h.opcode, h.compressed
	}
	s.fin, s.rest, s.mask = h.fin, h.length, h.mask
	part := in[h.size:]
	if whole {
		part = part[:h.length]
	}
	msg, ok, err = s.collect(part)
	return h.size + len(part), msg, ok, err
}

// single delivers a message of one frame that lies whole in in.
func (s *Session) single(in []byte, h header) (advance int, msg []byte, ok bool, err error) {
	end := h.size + int(h.length)
	payload := in[h.size:end]
	if !s.client {
		ws.Cipher(payload, h.mask, 0)
	}
	if h.compressed {
		s.message, err = inflate(h.opcode, payload, s.config.maxMessage())
		if err != nil {
			return 0, nil, false, err
		}
		s.spent = true
		payload, msg = s.message.b[1:], s.message.b
	} else {
		in[h.size-1] = byte(h.opcode)
		msg = in[h.size-1 : end]
	}
	if h.opcode == Text && !utf8.Valid(payload) {
		return 0, nil, false, invalidText()
	}
	return end, msg, true, nil
}

// control delivers a control frame when it is whole. Until then, it stays in the
// input: it is short, and the buffer may hold fragments of a message.
func (s *Session) control(in []byte, h header) (advance int, msg []byte, ok bool, err error) {
	end := h.size + int(h.length)
	if len(in) < end {
		return 0, nil, false, nil
	}
	payload := in[h.size:end]
	if !s.client {
		ws.Cipher(payload, h.mask, 0)
	}
	if h.opcode == Close {
		if err := checkClose(payload); err != nil {
			return 0, nil, false, err
		}
		s.drop()
		s.phase = phaseOver
		s.flags.Or(flagCloseReceived)
	}
	in[h.size-1] = byte(h.opcode)
	return end, in[h.size-1 : end], true, nil
}

// checkSize returns an error if n bytes more make the message too long.
func (s *Session) checkSize(n uint64) error {
	if s.message != nil {
		n += uint64(len(s.message.b) - 1)
	}
	if most := s.config.maxMessage(); n > most {
		return &Error{Code: TooBig, Err: fmt.Errorf("message of at least %d bytes, want at most %d: %w", n, most, wire.ErrTooLong)}
	}
	return nil
}

// collect adds the next part of the frame that has begun to its message, and
// delivers that when it is whole.
func (s *Session) collect(part []byte) (msg []byte, ok bool, err error) {
	s.rest -= uint64(len(part))
	last := s.rest == 0 && s.fin
	if s.message == nil && (len(part) > 0 || last) {
		s.message = newBuffer(s.kind, len(part))
	}
	if len(part) > 0 {
		s.message = s.message.grow(len(part))
		b := s.message
		start := len(b.b)
		b.b = append(b.b, part...)
		if !s.client {
			ws.Cipher(b.b[start:], s.mask, 0)
			s.turnMask(len(part))
		}
		if s.kind == Text && !s.packed && !b.checkText() {
			return nil, false, invalidText()
		}
	}
	if s.rest == 0 {
		s.fin, s.mask = false, [4]byte{}
	}
	if !last {
		return nil, false, nil
	}
	if s.packed {
		whole, err := inflate(s.kind, s.message.b[1:], s.config.maxMessage())
		if err != nil {
			return nil, false, err
		}
		s.message.free()
		s.message = whole
		if s.kind == Text {
			whole.checkText()
		}
	}
	// A rune that is not whole is not valid at the end.
	if s.kind == Text && s.message.checked != len(s.message.b) {
		return nil, false, invalidText()
	}
	s.kind, s.packed = 0, false
	s.spent = true
	return s.message.b, true, nil
}

// turnMask makes the mask start n bytes later.
func (s *Session) turnMask(n int) {
	m := s.mask
	for i := range m {
		s.mask[i] = m[(i+n)&3]
	}
}
