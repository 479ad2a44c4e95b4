package websocket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The state of a session:
//
//	1 byte   stateVersion
//	1 byte   1 on a client
//	1 byte   phase
//	1 byte   flags
//	1 byte   kind of the message that has begun, 0: none
//	1 byte   1 fin, 2 packed
//	4 bytes  mask
//	uvarint  rest
//	string   what has come of the message, without its kind
//	string   subprotocol
//	string   offer
//
// A string is a uvarint, its length, and its bytes. What is checked of text
// follows from its bytes; what has been searched of a head is searched again.
// If all is zero behind the flags, as between two messages, nothing follows
// them: a connection at rest has little to be kept.
const (
	stateVersion = 1
	shortState   = 4
)

// AppendState appends to dst what another session needs to go on, and returns
// the result. The input that Split has not advanced over is not part of it, nor
// is a message that Split has returned. The session is not changed. It
// never fails.
func (s *Session) AppendState(dst []byte) ([]byte, error) {
	start := len(dst)
	dst = s.appendState(dst)
	for _, b := range dst[start+shortState:] {
		if b != 0 {
			return dst, nil
		}
	}
	return dst[:start+shortState], nil
}

// appendState is AppendState in its long form.
func (s *Session) appendState(dst []byte) []byte {
	var message []byte
	if s.message != nil && !s.spent {
		message = s.message.b[1:]
	}
	rest := s.rest
	if s.phase == phaseHead {
		rest = 0
	}
	var offer string
	if s.offer != nil {
		offer = *s.offer
	}
	dst = append(dst, stateVersion, oneIf(s.client, 1), byte(s.phase), byte(s.flags.Load()), byte(s.kind), oneIf(s.fin, 1)|oneIf(s.packed, 2))
	dst = append(dst, s.mask[:]...)
	dst = binary.AppendUvarint(dst, rest)
	dst = binary.AppendUvarint(dst, uint64(len(message)))
	dst = append(dst, message...)
	dst = binary.AppendUvarint(dst, uint64(len(s.subprotocol)))
	dst = append(dst, s.subprotocol...)
	dst = binary.AppendUvarint(dst, uint64(len(offer)))
	return append(dst, offer...)
}

func oneIf(b bool, bit byte) byte {
	if b {
		return bit
	}
	return 0
}

var errState = errors.New("websocket: malformed state")

// RestoreState makes a new session what the captured one was. A message that
// has begun and is longer than this session's MaxMessage fails at the next
// Split, as it does for any peer. b is not kept.
//
// It returns an error, and the session stays new, if b is not what AppendState
// makes, is of another version, or of the other side of a connection.
func (s *Session) RestoreState(b []byte) error {
	const fixed = 10
	if len(b) == 0 || b[0] != stateVersion {
		return fmt.Errorf("websocket: state %.1x, want version %d", b, stateVersion)
	}
	if len(b) == shortState {
		b = append(b[:len(b):len(b)], make([]byte, fixed+4-shortState)...)
	}
	if len(b) < fixed {
		return fmt.Errorf("%w: %d bytes", errState, len(b))
	}
	if b[1] != oneIf(s.client, 1) {
		return fmt.Errorf("websocket: state of the other side, %d", b[1])
	}
	r := Session{
		config: s.config,
		client: s.client,
		phase:  phase(b[2]),
		kind:   Kind(b[4]),
		fin:    b[5]&1 != 0,
		packed: b[5]&2 != 0,
		mask:   [4]byte(b[6:]),
	}
	flags := uint32(b[3])
	rest, n := binary.Uvarint(b[fixed:])
	if n <= 0 {
		return fmt.Errorf("%w: bytes to come", errState)
	}
	r.rest = rest
	strings := b[fixed+n:]
	var message, subprotocol, offer []byte
	for _, to := range []*[]byte{&message, &subprotocol, &offer} {
		length, n := binary.Uvarint(strings)
		if n <= 0 || length > uint64(len(strings)-n) {
			return fmt.Errorf("%w: string of %d bytes in %d", errState, length, len(strings))
		}
		*to = strings[n : n+int(length)]
		strings = strings[n+int(length):]
	}
	r.subprotocol = string(subprotocol)
	if len(offer) > 0 {
		offer := string(offer)
		r.offer = &offer
	}
	if len(message) > 0 {
		r.message = newBuffer(r.kind, len(message))
		r.message.b = append(r.message.b, message...)
	}
	r.flags.Store(flags)
	if err := r.check(); err != nil {
		return err
	}
	if again := r.appendState(nil); !bytes.Equal(again, b) {
		return fmt.Errorf("%w: not in its shortest form", errState)
	}
	s.drop()
	s.message, s.rest, s.mask, s.phase, s.kind, s.fin, s.packed = r.message, r.rest, r.mask, r.phase, r.kind, r.fin, r.packed
	s.subprotocol, s.offer = r.subprotocol, r.offer
	s.flags.Store(flags)
	return nil
}

// check returns an error if no sequence of calls could have led to this state.
func (s *Session) check() error {
	flags := s.flags.Load()
	has := func(f uint32) bool { return flags&f != 0 }
	begun := s.kind != 0
	var wrong string
	switch {
	case s.phase > phaseOver:
		wrong = "phase"
	case flags&^flagsAll != 0,
		has(flagOpen) && has(flagRefused),
		has(flagDeflate|flagCloseSent) && !has(flagOpen),
		has(flagAsked) && !s.client,
		has(flagRefused) && s.client,
		s.client && has(flagOpen) && (!has(flagAsked) || s.phase == phaseHead),
		s.client && s.phase == phaseFrames && !has(flagOpen),
		has(flagCloseReceived) && s.phase != phaseOver:
		wrong = "flags"
	case begun && (s.kind != Text && s.kind != Binary || s.phase != phaseFrames):
		wrong = "kind"
	case !begun && (s.message != nil || s.rest != 0 || s.packed),
		s.rest == 0 && (s.fin || s.mask != [4]byte{}),
		s.rest>>62 != 0,
		s.client && s.mask != [4]byte{},
		s.packed && !has(flagDeflate):
		wrong = "frame"
	case s.message != nil && s.kind == Text && !s.packed && !s.message.checkText():
		wrong = "text"
	case s.subprotocol != "" && (!has(flagOpen) || !isName(s.subprotocol)):
		wrong = "subprotocol"
	case s.offer != nil && (!has(flagAsked) || has(flagOpen)),
		s.offer == nil && s.phase == phaseHead && has(flagAsked):
		wrong = "offer"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s", errState, wrong)
}
