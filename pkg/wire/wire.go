// Package wire says what a protocol is: a pure function over bytes that cuts
// a stream into messages, and its reverse. A protocol knows no descriptor, no
// connection and no clock, so it can be tried on bytes alone, and fuzzed.
//
// A protocol that has to remember something of a connection is a Session, of
// which each connection has its own.
//
// Invariants: Split never keeps a reference to its input and changes none of
// it but, for itself, what it has advanced over; the messages it finds do not
// depend on how the stream was cut into reads. Each protocol lives in a package
// below this one; start at Protocol.
package wire

import "errors"

// ErrTooLong says that a message is longer than its protocol or its
// connection allows.
var ErrTooLong = errors.New("wire: message too long")

// Protocol is a framing. Its methods must be safe for concurrent use, which
// is free as long as they are pure functions: they must not block, and they
// must not call the connection whose bytes they are given.
type Protocol interface {
	// Split looks for the first message at the start of in, as a
	// bufio.SplitFunc does.
	//
	// It returns by how many bytes the input is to be advanced and, if ok,
	// the message, which may be empty and which aliases in. With ok a
	// positive advance is required; without ok, advance 0 means that more
	// input is wanted, and a positive one skips bytes that belong to no
	// message. With atEOF nothing will follow in. An error ends the
	// connection.
	Split(in []byte, atEOF bool) (advance int, msg []byte, ok bool, err error)

	// Append appends the encoding of msg to dst and returns the result, as
	// the builtin append does. It returns an error, and nothing is sent, if
	// msg has no encoding; ErrTooLong if it is too long for one.
	Append(dst, msg []byte) ([]byte, error)
}

// Raw is no framing: whatever one read brought is one message.
type Raw struct{}

// Split returns all of in as one message.
func (Raw) Split(in []byte, _ bool) (advance int, msg []byte, ok bool, err error) {
	return len(in), in, len(in) > 0, nil
}

// Append appends msg as it is. It never fails.
func (Raw) Append(dst, msg []byte) ([]byte, error) { return append(dst, msg...), nil }

// Releaser is a Session that keeps the message it has returned. Release is
// called when the callbacks of a read have returned; that message is not valid
// any more then. It is called by the connection's loop.
type Releaser interface{ Release() }

// Session is the protocol of one connection, for protocols that must remember
// something of it from one message to the next. Split is called by the
// connection's loop only, Append by one goroutine at a time, but beside Split:
// what both use needs a lock. The others are called while neither runs.
type Session interface {
	Protocol

	// Buffered returns how many bytes of messages that are not complete the
	// session keeps; they count against the longest message. Only Split
	// changes it.
	Buffered() int

	// AppendState appends what another process needs to go on with the
	// connection, or returns an error if it cannot be taken away now.
	AppendState(dst []byte) ([]byte, error)

	// RestoreState makes a new session one from which AppendState took b. b
	// may come from a program of another version: what is not understood is
	// an error.
	RestoreState(b []byte) error
}
