// Package http1 is HTTP/1.1 and HTTP/1.0 as a server reads and writes them
// (RFC 9110, RFC 9112), as pure functions over bytes: it knows no descriptor
// and no connection, and no clock but for the Date field.
//
// A Parser cuts the stream of one connection into heads, parts of bodies and
// ends of bodies; start at Parser.Next. What the peer has to be told when the
// stream is refused is the Status of an *Error. AppendHead and what stands
// beside it write responses.
//
// Invariants:
//
//   - What is found does not depend on how the stream was cut into reads.
//   - Parsing allocates nothing. What a Head and Next return aliases the input.
//   - Nothing is kept of the input: as long as a head or a trailer section is
//     incomplete, the caller keeps it. Bodies and chunk headers are consumed as
//     they come.
//   - The state of a Parser can be written down at any point and read back
//     elsewhere.
//   - Every length is bounded: the head, its target, the number of its fields,
//     what is neither data nor end of a chunked body.
//
// It is stricter than net/http wherever two readers of one stream could see
// different requests in it. What net/http refuses is refused; what is accepted
// means the same to both. Refused although net/http takes it: lines that end
// without a carriage return, folded fields, a Content-Length that comes twice
// or beside a Transfer-Encoding, Transfer-Encoding in HTTP/1.0, versions other
// than 1.0 and 1.1, a target that holds a fragment or is in absolute form with a
// scheme other than http and https or with a user, a request of HTTP/1.1 without Host (CONNECT
// too), white space beside the size of a chunk, and trailers
// that would frame or route a message.
package http1
