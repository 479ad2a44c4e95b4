// Package tlsrec carries TLS 1.3 connections that can move between processes.
// crypto/tls, unmodified, does the handshake; from there on this package
// protects the records itself, with the traffic secrets that crypto/tls tells
// Config.KeyLogWriter. The state of a connection is then a hundred bytes that
// can be written down, where that of a tls.Conn cannot be had at all.
//
// The life of a connection, with the file of each step:
//
//	handshake  handshake.go  Server or Client, Feed and Step until done: bytes in, bytes out
//	           transport.go  what crypto/tls sees as its net.Conn: which bytes it took, which records it sent
//	           legacy.go     TLS 1.2 cannot be taken over: tls.Conn goes on, without a goroutine
//	           info.go       what the handshake agreed on, in a form that travels
//	           tickets.go    a client's session tickets, on the way to its cache
//	           ticket.go     session ticket keys that all processes derive alike
//	take over  secret.go     RFC 8446 7: from a traffic secret to key, IV and the next secret
//	serve      conn.go       Conn: Open one record in place, Seal a message into records
//	           message.go    the handshake messages that may come later: KeyUpdate, NewSessionTicket
//	           alert.go      alerts and the errors that carry them
//	move       state.go      Conn to bytes and back
//	survive    keys.go       the part of them that seldom changes, and the numbers that change with each record
//
// Invariants: everything is a function over bytes that are given, nothing
// here knows a descriptor or reads a clock, and the record layer starts no
// goroutine. A record is opened once and in place, or the connection has
// failed for good. Whatever a peer declares, no more is kept of it than the
// bytes of one record, and those are the caller's. No secret is in any text
// that this package makes: not in errors, not in what fmt prints.
//
// Start reading at Conn.
package tlsrec
