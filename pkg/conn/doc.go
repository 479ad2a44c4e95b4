// Package conn is one connection, from the accepted descriptor to its close.
//
// The life of a connection, step by step, with the file of each step:
//
//	accept   worker       the listener is readable: accept4(2)
//	open     set.go       Set.Accepted(fd, peer, config): a row in the table of all connections, a place in the set, in the reactor, the first deadline
//	opening  opening.go   if there is a PROXY header or TLS: before OnConnect, without anybody knowing of the connection
//	         handshakes.go the handshakes of TLS, a bounded number at a time, on goroutines that are few
//	read     read.go      readable: fill the loop's buffer once, put what was left before in front of it
//	         layer.go     with TLS, from records to bytes, in place; and for write.go, once a turn, from bytes to records
//	split    wire/...     bytes in; advance, message, error out: pure, knows no descriptor
//	handle   callback.go  Inline: OnMessage on the loop, straight from the loop's buffer
//	         inbox.go     otherwise: a copy goes into the connection's inbox, which a goroutine
//	         pool.go      of the Pool empties, in order
//	reply    write.go     Send encodes into the send queue, from any goroutine; what a callback on the
//	                      loop sends of its own raw message is written from the loop's buffer
//	become   become.go    it may change its protocol, and go on as another listener's would
//	settle   conn.go      the loop acts on the marks that calls have left: it flushes with one write,
//	                      tells of full and empty queues, pauses and resumes, begins to close
//	close    close.go     the only place that closes the descriptor: flush, half-close, linger, release
//
// It may go to another process on the way, which the peer does not notice:
//
//	ask      move.go      MoveTo marks it; whoever gives and takes is told by Config.Move, or acts by itself
//	freeze   freeze.go    Set.Freeze: not read, callbacks finish, then out of epoll; what is sent waits (late.go)
//	capture  capture.go   Frozen.Capture: all of its state as bytes; the other process is offered them and the descriptor
//	adopt    adopt.go     Set.Adopt there: rebuilt, not served
//	commit   rows         the owner word says whose it is from now on; there Adopted.Serve, here Frozen.Left,
//	                      or, if it was not taken, Adopted.Drop and Frozen.Thaw
//	tail     tail.go      what was sent here since the capture follows, and goes before what was sent there: Adopted.Tail
//	                      or, if it comes when that has long gone on, closes it: Adopted.Lost. Here Config.OnLeave is told
//
// An outgoing one begins elsewhere, and then goes the same way:
//
//	dial     client.go    Dialer.Dial makes a Client, which tries until there is a connection, and then again if it is to
//	resolve  resolve.go   names, on goroutines of their own
//	connect  connect.go   one attempt: the addresses one after the other, the proxy, each within a deadline; then open
//	secure   secure.go    with tls://, as the last step of an attempt: the handshake, on the goroutines of handshakes.go
//
// Beside the walk stand route.go (addresses), continued.go (what something else
// has begun), datagram.go (an outgoing connection of UDP), pipe.go (two
// connections joined), packet.go and unixgram.go (datagrams, which have no
// connection), seqpacket.go (connections of packets), account.go (what the seat
// is told), journal.go (what outlives this process), deadline.go (what every
// wait is bounded by), timer.go (the application's timers), drain.go (ending all
// connections, gently),
// config.go (limits and defaults), buffer.go (where bytes are kept) and
// errors.go (why a connection ended).
//
// States: open, closing (said goodbye: the queue still leaves, input is thrown
// away), closed; an open one may be opening, or frozen.
//
// Invariants:
//
//   - The reactor is level-triggered. A connection is watched for input
//     unless it is paused, the Pool is behind or its pipe is full, and for output only while
//     the kernel has refused some.
//   - One read a connection and turn. Whole messages are delivered from the
//     loop's buffer without a copy; only the incomplete rest is kept, in a
//     pooled buffer that is given back when it is empty. An idle connection
//     has no buffer, no goroutine and no queue.
//   - The callbacks of a connection come in order, never two at once and
//     never one inside another. Methods of Conn only leave marks. Those that
//     the callbacks of one read leave on their own connection are acted on
//     after them, all others at the end of the turn; so the replies to one
//     read leave in one write, and so do the sends of one turn from elsewhere.
//   - At most 256 messages or 1 ms a connection and turn; the rest waits for
//     the next turn, before which the loop does not sleep.
//   - Send takes a message whole or refuses it with an error. No limit can be
//     passed by what a peer announces, only by bytes that are really there.
//   - A layer is between descriptor and bytes, and nowhere else: what is queued,
//     held, late or captured as input is plaintext, but for the records that the
//     layer itself keeps, an incomplete one that has come and those that the
//     kernel has not taken. The counts of bytes are the descriptor's. The keys
//     are advanced by what travels, so a capture is taken after the last record.
//   - The keys of TLS lie in the slab, where they outlive the process: in no
//     message that the supervisor makes, in no core dump, and nowhere once they
//     are not needed. What crypto/tls has, a handshake or TLS 1.2, ends with its
//     process if that is killed.
//   - Every wait has a deadline: handshake, first byte, rest of a message, authentication,
//     idle, a peer that does not read, close. A message's is not put off by
//     what is only a part of it, in a protocol that takes parts into itself
//     neither.
//   - Who has to end although nobody has asked for it is told why, if its
//     protocol has words for that (Config.Farewell), and if it was opened.
//   - The peer's end is no error: what it sent before is handled and
//     answered, then the connection is closed.
//   - A panic in a callback costs its connection, nothing else.
//   - A frozen connection stands still: its descriptor is neither read nor
//     written, no callback of it runs, and what is asked of it only leaves
//     marks. Only Thaw, Left, Serve and Drop end that.
//   - A connection has one row, and so one ID, for its whole life. A Set frees
//     the rows of what it closes, never of what has left.
//   - This package does not log; Config.Event is told what should be.
package conn
