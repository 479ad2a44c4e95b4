// Package web serves HTTP/1.1 and HTTP/1.0 on the reactor, with an
// http.Handler as net/http has it.
//
// The life of a request:
//
//	receive   peer.go      OnMessage: what a read brought, behind what was left of the last one
//	parse     wire/http1   heads, parts of bodies, ends of bodies
//	queue     peer.go      the requests of a connection wait in order; too many, and reading pauses
//	run       pool.go      Inline: on the loop, at once; otherwise one goroutine a connection, of so many
//	body      body.go      what the handler reads: bounded, and reading pauses while it is full
//	respond   response.go  what the handler writes: buffered, framed, held up while the peer does not read
//	settle    peer.go      the next request, or the end of the connection
//
// Beside it stand exchange.go (a request, its response and its context), sweep.go
// (deadlines), state.go (hand-off) and config.go.
//
// Invariants:
//
//   - Requests of one connection are answered in their order, never two at once.
//   - The loop alone parses. What handlers and the loop share is guarded by
//     peer.mu, or by the body's own.
//   - Nothing that a handler has been given is used again: not the request, not
//     its header, not the response's.
//   - Everything a peer can make grow is bounded: head, body in memory, requests
//     that wait on a connection, requests that run, connections that wait for
//     a goroutine, bytes that wait to be sent.
//   - Every wait has a deadline. A body may be slow, but not slower than
//     Limits.BodyRate.
//   - What cannot be parsed is answered by a status and the end of the
//     connection, behind the answers to what came before.
//   - An idle connection has no buffer and no goroutine.
//   - This package does not log.
package web
