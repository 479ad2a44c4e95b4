package conn

import (
	"errors"
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// Why a connection ended, or why it refused what was asked of it.
var (
	// ErrClosed is Send's answer once Close was called or the connection is over.
	ErrClosed = errors.New("conn: closed")

	// ErrNoAddress is Reply's answer to a datagram of a unix socket that is
	// not bound: there is no address to send to.
	ErrNoAddress = errors.New("conn: sender has no address, want a unix datagram socket that is bound to one")

	// ErrFull is Send's answer to a message with which more than
	// Limits.SendHard bytes would wait.
	ErrFull = errors.New("conn: send queue is full")

	// ErrTooLong says that a message is longer than its limit: on the way in
	// Limits.MaxMessage, on the way out Limits.SendHard or the protocol's own.
	ErrTooLong = wire.ErrTooLong

	// ErrPeerClosed ends a connection whose peer has closed it in good order.
	ErrPeerClosed = errors.New("conn: closed by the peer")

	// ErrReset ends a connection that its peer, or the network, has broken.
	ErrReset = errors.New("conn: broken by the peer or the network")

	// ErrUnauthenticated ends a connection of which the application did not
	// say Authenticated within Limits.Auth.
	ErrUnauthenticated = errors.New("conn: not authenticated in time")

	// ErrIdle ends a connection on which nothing moved for Limits.Idle, or in
	// one direction for ReadIdle or WriteIdle.
	ErrIdle = errors.New("conn: idle for too long")

	// ErrFirstByte ends a connection whose peer sent nothing for Limits.FirstByte.
	ErrFirstByte = errors.New("conn: no first byte in time")

	// ErrMessageDeadline ends a connection whose peer did not complete a
	// message within Limits.Message.
	ErrMessageDeadline = errors.New("conn: message not completed in time")

	// ErrStalled ends a connection whose peer did not take what was sent:
	// nothing for Limits.WriteStall, or not all within Limits.Close after Close.
	ErrStalled = errors.New("conn: peer does not read")

	// ErrPinned says that a connection does not move to another process:
	// Config.Pinned, of this one or of the other end of its pipe.
	ErrPinned = errors.New("conn: does not move")

	// ErrFrozen says that a connection is about to move, or is being frozen
	// by somebody else.
	ErrFrozen = errors.New("conn: about to move")

	// ErrMoved is what a *MovedError is.
	ErrMoved = errors.New("conn: moved to another process")

	// ErrDrained ends a connection that Set.Drain closed.
	ErrDrained = errors.New("conn: drained")

	// ErrStopping is the ErrDrained of DrainStop: of a service that stops.
	ErrStopping = fmt.Errorf("%w: the service stops", ErrDrained)
)

// MovedError is the answer of a connection's methods once another process has
// it; errors.Is(err, ErrMoved) is true for it.
type MovedError struct {
	Slot int // of the worker that has it
}

// Error tells where it is.
func (e *MovedError) Error() string { return fmt.Sprintf("%v: to slot %d", ErrMoved, e.Slot) }

// Unwrap returns ErrMoved.
func (e *MovedError) Unwrap() error { return ErrMoved }

// PanicError ends a connection of which a callback panicked.
type PanicError struct {
	Value any    // what panic was given
	Stack []byte // of the goroutine that panicked, as debug.Stack has it
}

// Error tells the panic's value, not the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("conn: callback panicked: %v", e.Value) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// ProtocolError ends a connection whose peer sent what the protocol or a
// limit forbids.
type ProtocolError struct {
	Err error // from Protocol.Split, or ErrTooLong
}

// Error tells what was wrong.
func (e *ProtocolError) Error() string { return fmt.Sprintf("conn: protocol: %v", e.Err) }

// Unwrap returns Err.
func (e *ProtocolError) Unwrap() error { return e.Err }
