// Package websocket is the WebSocket protocol (RFC 6455), server and client,
// with permessage-deflate (RFC 7692), as functions over bytes: no socket, no
// goroutine, no clock. A Session is one connection's share of it; it can be
// captured to bytes at any point between two calls and go on in another
// process.
//
// A message, as Split returns it and Append takes it, is one byte, its Kind,
// and a payload:
//
//	Request   the client's handshake, raw: server Split, client Append
//	Response  the server's answer to it, raw: server Append, client Split
//	Text      UTF-8, assembled, decompressed, unmasked
//	Binary    any bytes, likewise
//	Ping      at most 125 bytes
//	Pong      at most 125 bytes
//	Close     nothing, or a code of two bytes, big endian, and a reason
//
// What follows from a message is its receiver's business. A server answers a
// Request with what Accept or a Refusal made of it, a Ping with a Pong of the
// same payload, a Close by Append of the same Close (ErrClosing: ours has gone
// out already) and the end of the connection. An error of Split that
// is an *Error tells the Close that the peer is owed, one that is a *Refusal
// the Response.
//
// Invariants:
//
//   - What comes out does not depend on how the stream was cut into reads,
//     nor on where it was captured and restored; only errors come as early
//     as the bytes that prove them.
//   - A message of one uncompressed frame that lies whole in the input is not
//     copied: it is unmasked where it lies, and its kind takes the place of the
//     last byte of the frame's header. Everything else is assembled in a buffer
//     of the session that grows with what has really come, whatever lengths
//     are declared, in time linear in the bytes.
//   - A session that is not inside a message has no buffer.
//   - What Split has advanced over is its own: it may have changed it. What
//     it has not, it has not changed, save when it returns an error.
//   - Frames sent are whole messages; so Append is atomic, and Pings and
//     Closes never wait for the end of one.
//   - Compression keeps nothing between messages, in either direction.
//
// Start at Session (session.go); frame.go is section 5 of the RFC, message.go
// assembles, close.go is section 7, handshake.go and client.go are section 4,
// deflate.go is RFC 7692, state.go what is captured.
package websocket
