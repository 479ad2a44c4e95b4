package tlsrec

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The state of a connection, version 1, integers big endian:
//
//	version   1
//	flags     1
//	useless   1
//	headLen   1
//	head      5   of which headLen are meant, the others are 0
//	skip      4
//	suite     2
//	in.seq    8
//	out.seq   8
//	in        32 or 48, by the suite
//	out       32 or 48
const (
	stateVersion = 1
	stateSuite   = 1 + 1 + 1 + 1 + keyUpdateSize + 4 // where the suite stands
	stateIn      = stateSuite + 2
	stateOut     = stateIn + 8
	stateHeader  = stateOut + 8

	// MaxState is the length of the longest state, in bytes.
	MaxState = stateHeader + 2*maxSecret
)

// ErrState says that bytes are not a state that RestoreState knows: of
// another version, cut, or damaged.
var ErrState = errors.New("tlsrec: state is not valid")

// AppendState appends all there is to know about the connection, at most
// MaxState bytes: it can be taken between any two calls, and whoever restores
// it goes on with the next byte of input after the last advance. The state
// holds secrets. Two that go on from one state would use nonces twice, which
// betrays what they protect: only one may.
//
// It fails, and appends nothing, if the connection has failed or was dropped:
// an alert that is owed must be sent by who has found the fault.
func (c *Conn) AppendState(dst []byte) ([]byte, error) {
	if c.err != nil {
		return dst, fmt.Errorf("tlsrec: no state after a failure: %w", c.err)
	}
	n := c.in.suite.secret
	dst = append(dst, stateVersion, byte(c.flags), c.useless, c.headLen)
	head := c.head
	clear(head[c.headLen:])
	dst = append(dst, head[:]...)
	dst = binary.BigEndian.AppendUint32(dst, c.skip)
	dst = binary.BigEndian.AppendUint16(dst, c.in.suite.id)
	dst = binary.BigEndian.AppendUint64(dst, c.in.seq)
	dst = binary.BigEndian.AppendUint64(dst, c.out.seq)
	dst = append(dst, c.in.keys.secret[:n]...)
	return append(dst, c.out.keys.secret[:n]...), nil
}

// RestoreState makes a connection of a state that AppendState has made, all
// of it and nothing more. It keeps no reference to it; who no longer needs the
// bytes clears them. It fails with ErrState.
func RestoreState(state []byte) (*Conn, error) {
	if len(state) < stateHeader {
		return nil, fmt.Errorf("%w: %d bytes, want at least %d", ErrState, len(state), stateHeader)
	}
	if state[0] != stateVersion {
		return nil, fmt.Errorf("%w: version %d, want %d", ErrState, state[0], stateVersion)
	}
	c := &Conn{flags: flags(state[1]), useless: state[2], headLen: state[3]}
	copy(c.head[:], state[4:])
	rest := state[4+keyUpdateSize:]
	c.skip = binary.BigEndian.Uint32(rest)
	s := suiteOf(binary.BigEndian.Uint16(rest[4:]))
	inSeq, outSeq := binary.BigEndian.Uint64(rest[6:]), binary.BigEndian.Uint64(rest[14:])
	secrets := rest[22:]
	if s == nil {
		return nil, fmt.Errorf("%w: suite %#04x", ErrState, binary.BigEndian.Uint16(rest[4:]))
	}
	if len(secrets) != 2*s.secret {
		return nil, fmt.Errorf("%w: %d bytes of secrets, want %d", ErrState, len(secrets), 2*s.secret)
	}
	if err := c.checkState(outSeq); err != nil {
		return nil, err
	}
	var err error
	if c.in, err = newHalf(s, secrets[:s.secret], inSeq); err != nil {
		return nil, err
	}
	if c.out, err = newHalf(s, secrets[s.secret:], outSeq); err != nil {
		return nil, err
	}
	return c, nil
}

// checkState refuses what no connection can come to.
func (c *Conn) checkState(outSeq uint64) error {
	switch {
	case c.flags&^flagsOfState != 0:
		return fmt.Errorf("%w: flags %#x", ErrState, uint8(c.flags))
	case c.flags&flagAsk != 0 && c.flags&(flagUpdateDue|flagAsked) != flagUpdateDue|flagAsked:
		return fmt.Errorf("%w: flags %#x: asks without an update", ErrState, uint8(c.flags))
	case c.useless > maxUseless:
		return fmt.Errorf("%w: %d records without data", ErrState, c.useless)
	case c.midMessage() && c.useless == 0:
		return fmt.Errorf("%w: a message that no record has brought", ErrState)
	case outSeq > rekeyAt+1: // close_notify may be one more
		return fmt.Errorf("%w: %d records under one key", ErrState, outSeq)
	case c.skip > maxTicket || c.skip > 0 && (c.headLen > 0 || c.flags&flagClient == 0):
		return fmt.Errorf("%w: %d bytes of a ticket to skip", ErrState, c.skip)
	case c.headLen > messageHeader:
		return fmt.Errorf("%w: %d bytes of a message's head", ErrState, c.headLen)
	}
	for _, b := range c.head[c.headLen:] {
		if b != 0 {
			return fmt.Errorf("%w: bytes behind a message's head", ErrState)
		}
	}
	if c.headLen == messageHeader && c.head != [keyUpdateSize]byte{messageKeyUpdate, 0, 0, 1} {
		return fmt.Errorf("%w: head of a message that is not kept", ErrState)
	}
	return nil
}
