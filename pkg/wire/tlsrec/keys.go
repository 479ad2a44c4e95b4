package tlsrec

import (
	"encoding/binary"
	"fmt"
)

// Whoever keeps the state of a connection where it outlives the process notes
// it with each record. So that this costs no more than two numbers, the state
// is had in two parts: the keys, which are in its form with the numbers 0, and
// the numbers. It is complete while Rests says so.

// Rests reports whether keys and numbers are all there is to know: nothing is
// Pending, no message of the handshake is incomplete, neither side has ended
// or failed. What else AppendState tells, whoever goes on may do without: it
// asks once more for a key that the peer was asked for, and counts anew the
// records without application data.
func (c *Conn) Rests() bool {
	return c.err == nil && c.flags&^(flagClient|flagAsked) == 0 && !c.midMessage()
}

// Numbers returns which numbers the next records have, under the present keys.
func (c *Conn) Numbers() (in, out uint64) { return c.in.seq, c.out.seq }

// Updates returns how often keys have changed since the Conn was made, of
// either direction.
func (c *Conn) Updates() uint32 { return c.updates }

// AppendKeys appends the keys, at most MaxState bytes. They are as secret as
// what AppendState appends, and only one may go on from them. The connection
// must not have been dropped.
func (c *Conn) AppendKeys(dst []byte) []byte {
	n := c.in.suite.secret
	var head [stateHeader]byte
	head[0], head[1] = stateVersion, byte(c.flags&flagClient)
	binary.BigEndian.PutUint16(head[stateSuite:], c.in.suite.id)
	dst = append(dst, head[:]...)
	dst = append(dst, c.in.keys.secret[:n]...)
	return append(dst, c.out.keys.secret[:n]...)
}

// RestoreKeys makes a connection of what AppendKeys has appended and Numbers
// has returned while it did rest. It keeps no reference to keys. It fails with
// ErrState.
func RestoreKeys(keys []byte, in, out uint64) (*Conn, error) {
	if len(keys) < stateHeader || len(keys) > MaxState {
		return nil, fmt.Errorf("%w: %d bytes of keys, want %d to %d", ErrState, len(keys), stateHeader, MaxState)
	}
	var state [MaxState]byte
	defer clear(state[:])
	copy(state[:], keys)
	binary.BigEndian.PutUint64(state[stateIn:], in)
	binary.BigEndian.PutUint64(state[stateOut:], out)
	return RestoreState(state[:len(keys)])
}
