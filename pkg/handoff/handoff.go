// Package handoff is the protocol by which open connections go from one
// process to another while their clients notice nothing. It knows descriptors,
// rows and opaque states; it does not know what a connection is.
//
// # The protocol
//
// Every process has an inbox, one end of a SOCK_SEQPACKET socket pair, whose
// other end all its peers have. The giver puts connections that stand still
// into a batch; the taker rebuilds them; one compare-and-swap per connection
// decides.
//
//	giver                                   taker
//	capture, Row.Offer each
//	        ── offer: states and descriptors ──>
//	                                        check rows and cookies, Adopt each
//	                                        Row.Commit each; not won: Drop
//	        <── answer: taken, or refused and why ──
//	                                        Serve each; own sends wait
//	Row.TakeBack each; won: Thaw
//	not won: Left, it is the taker's
//	        ── tails: late sends, that is all ──>
//	                                        Tail each; own sends leave
//
// Invariants:
//
//   - The owner word of a connection's row says whose it is, at any time and
//     whatever has died. Nothing else does: an answer that is late, lost,
//     doubled or wrong, and a deadline, only make the giver look, and it looks
//     by TakeBack. Who fails closes its copy and nothing more.
//   - The giver keeps descriptor and connection until it knows.
//   - The taker touches nothing of a connection before it has committed, and
//     it commits when it has rebuilt the whole batch: a state that kills the
//     taker costs no connection.
//   - A connection is never offered to a peer that may still have an earlier
//     offer of it unread, since the word could not tell the two apart. So a
//     peer that owes an answer after the deadline is late, and gets nothing
//     more until it has answered. A peer answers in the order of the offers.
//   - What was sent while a connection moved is never lost in silence: a tail
//     that comes when the connection has gone on without it closes it. Only
//     a death of the giver takes its last words along, as any crash does.
//   - Two connections that are piped move as one: only the first is offered,
//     the word of the second follows. If its owner is declared dead just
//     between the two steps, both are closed, as by a crash.
//   - Bounded: Window batches a peer are unanswered, of BatchConnections
//     connections each, and their memfds hold less than 128 MiB together. One
//     offer a peer waits for room in its inbox, until the deadline; answers
//     and tails wait as long as the peer lives, and no offer overtakes them.
//
// # Messages
//
// All little endian. The header is the same in all versions, so that a
// message of another version can be refused.
//
//	offset size
//	     0    4  magic "MSHO"
//	     4    2  version
//	     6    1  kind: 1 offer, 2 answer, 3 tails
//	     7    1  flags; bit 0, of an offer: the first descriptor is a memfd with bodies;
//	             of an answer: its one code is for all; of tails: that is all
//	     8    8  incarnation of the sender
//	    16    8  batch, counted by the giver
//	    24    4  count of what follows
//	    28    4  length of the whole message
//
// An offer has for each connection, in the order of the descriptors:
//
//	 0    8  ID
//	 8    8  when it was stopped, CLOCK_MONOTONIC in nanoseconds
//	16    4  length of the body
//	20    1  why it moves
//	21    1  flags; bit 0: the body lies in the memfd, 8 bytes say where;
//	         bit 1: it is the other end of a pipe with the one before
//	22    2  zero
//	24    -  the body, or its 8 bytes of offset
//
// An answer has one byte for each connection: zero, it is taken, or a Refusal.
// Tails have for each connection that has a tail, and for each piece of one
// that is longer than a message:
//
//	0    2  place in the batch
//	2    2  bit 0: more of it follows
//	4    4  length
//	8    -  the tail
//
// Start reading at Endpoint, then give.go and take.go.
package handoff

import (
	"errors"
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

const (
	// BatchConnections is the largest number of connections in a batch.
	BatchConnections = 64

	// Window is how many batches a peer may have unanswered. More wait.
	Window = 4

	// DefaultDeadline is the Deadline of Options that name none.
	DefaultDeadline = 2 * time.Second

	// DefaultTailWait is the TailWait of Options that name none.
	DefaultTailWait = 10 * time.Second
)

// Reasons why a connection stayed where it was, in Outcome.Err. A Refusal and
// what Capture returned are others.
var (
	ErrUnknownPeer = errors.New("handoff: peer is not known")
	ErrPeerGone    = errors.New("handoff: peer is dead")
	ErrPeerLate    = errors.New("handoff: peer has not answered in time")
	ErrInboxFull   = errors.New("handoff: peer's inbox is full")
	ErrNotOwned    = errors.New("handoff: connection is another's, or offered already")
	ErrTooLarge    = errors.New("handoff: state is too large")
	ErrClosed      = errors.New("handoff: endpoint is closed")
)

// Refusal is why a taker did not take a connection, as it stands in an
// answer. Options.Adopt returns one, alone or wrapped.
type Refusal uint8

// The refusals. None of them is zero.
const (
	UnknownListener Refusal = iota + 1 // it came by a listener that the taker does not have
	Version                            // the message, or the state, is of a version that the taker does not know
	Malformed                          // the state cannot be understood, or the descriptor is another connection's
	NoRoom                             // the taker can open no more descriptors
	Full                               // the taker has as many connections as it may
	NotServing                         // the taker does not serve, or drains
	TakenBack                          // the taker was too late
	Refused                            // for another reason
)

// Error tells the refusal.
func (r Refusal) Error() string {
	switch r {
	case UnknownListener:
		return "handoff: refused: the listener is not known there"
	case Version:
		return "handoff: refused: the version is not known there"
	case Malformed:
		return "handoff: refused: the state is malformed"
	case NoRoom:
		return "handoff: refused: no descriptor is free there"
	case Full:
		return "handoff: refused: too many connections there"
	case NotServing:
		return "handoff: refused: it does not serve"
	case TakenBack:
		return "handoff: refused: the offer was read too late"
	case Refused:
		return "handoff: refused"
	}
	return fmt.Sprintf("handoff: refused: code %d", uint8(r))
}

// Outgoing is a connection that stands still and is to be given. Its methods
// are called on the loop. Exactly one of Thaw and Left is called, once, and
// nothing afterwards.
type Outgoing interface {
	// ID returns the connection's ID, and Row its row.
	ID() rows.ID
	Row() *rows.Row

	// FD returns the connection's descriptor, which stays the connection's.
	FD() int

	// Since returns when the connection was stopped, as Options.Now tells time.
	Since() time.Duration

	// Capture appends the state of the connection to dst. It may be called
	// again, if what it returned did not fit. On error the connection stays.
	Capture(dst []byte) ([]byte, error)

	// Thaw says that it stays and goes on.
	Thaw()

	// Left says that it belongs to the process in that slot now: this copy of
	// the descriptor is closed, with no effect on the connection. It returns
	// what was sent since Capture, at most 64 MiB, which is passed on unread;
	// the slice is used before the next call of anything.
	Left(slot int) (tail []byte)
}

// Unit is what moves as one.
type Unit struct {
	First Outgoing

	// Second is the other end of a pipe, or nil. First's row decides for both.
	Second Outgoing
}

// Offer is a connection that another process offers.
type Offer struct {
	From uint64 // incarnation of the giver
	Why  uint8  // as it was given to Give
	ID   rows.ID
	Row  *rows.Row

	// FD is the connection's descriptor, close-on-exec. The cookies of a
	// batch's first and last were compared with their rows', and if one was
	// another, all. It is the adopter's if Adopt succeeds.
	FD int

	// Since is when the connection was stopped, as the giver's Options.Now
	// told it.
	Since time.Duration

	// Body is the state that Outgoing.Capture returned. It is valid until
	// Adopt returns.
	Body []byte
}

// Incoming is a connection that was rebuilt. Its methods are called on the
// loop: Drop and nothing else, or Serve and then Tail, and then perhaps Lost,
// once each.
type Incoming interface {
	// Serve says that the connection is this process's. With waitForTail it
	// writes nothing of what is sent here before Tail.
	Serve(waitForTail bool)

	// Tail brings what was sent while the connection moved, nil for nothing:
	// it goes before what was sent here. The slice is valid until Tail
	// returns. An error goes to Options.Trouble.
	Tail(tail []byte) error

	// Lost says that there is a tail after all, too late, after Tail with nil:
	// what was sent there has no place in the stream any more, and the
	// connection, if it is still there, is to be closed at once.
	Lost()

	// Drop says that the connection is another's: this copy of the descriptor
	// is closed, with no effect on the connection.
	Drop()
}

// Outcome is what has become of the connections of one call of Give. Two that
// are piped count as two.
type Outcome struct {
	Given   int // the taker has them
	Refused int // by the taker; they stay
	Thawed  int // they stay for another reason

	// Longest is the longest time for which one of them stood still before
	// its fate was known here, from Outgoing.Since on.
	Longest time.Duration

	// Err is why the first that stayed did so. Nil: all were given.
	Err error
}

// Options are the settings of an Endpoint. All but the durations must be set.
type Options struct {
	// Self is this process's incarnation, and Table the table of all
	// connections, which stays the caller's.
	Self  uint64
	Table *rows.Table

	// Inbox is the receiving end of Pair, which the Endpoint takes over. The
	// caller watches it and calls Readable.
	Inbox int

	// Adopt rebuilds a connection that is offered. Until Serve it does nothing
	// with the descriptor but read its properties, and watches it nowhere. On
	// error the descriptor stays the Endpoint's, and the giver is told the
	// Refusal in the error, or Refused.
	Adopt func(Offer) (Incoming, error)

	// Join makes a pipe of two connections that were adopted.
	Join func(first, second Incoming)

	// Free frees a row that this process owns and has no connection for; it is
	// rows.Allocator.Free.
	Free func(rows.ID) bool

	// Trouble is told what nobody can be told as a result: a message that
	// cannot be understood, a refusal and its reason (the first of a batch), a
	// tail that never came. It must not call the Endpoint.
	Trouble func(error)

	// Deadline is how long the giver waits for the window, and then for the
	// answer, until it looks whose a connection is. Zero means DefaultDeadline.
	Deadline time.Duration

	// TailWait is how long the taker waits for tails from a giver that seems
	// alive; then its connections go on, and those of which a tail comes after
	// all are told by Incoming.Lost. Zero means DefaultTailWait.
	TailWait time.Duration

	// Now is the time as CLOCK_MONOTONIC has it, in all processes the same.
	Now func() time.Duration

	// After calls f on the loop once, when d has passed, unless stop is called
	// before.
	After func(d time.Duration, f func()) (stop func())
}
