package tlsrec

import (
	"context"
	"crypto/tls"
	"fmt"
)

// Both ends are in this program; between processes, what Output returns goes
// through a socket, and the state through a hand-off.
func Example() {
	ctx := context.Background()
	server := Server(ctx, &tls.Config{Certificates: []tls.Certificate{certificate("localhost")}, NextProtos: []string{"chat"}})
	defer server.Abort()
	client := Client(ctx, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"chat"}})
	defer client.Abort()

	step := func(from, to *Handshake) {
		if _, err := from.Step(); err != nil {
			panic(err)
		}
		if !to.Done() {
			if err := to.Feed(from.Output()); err != nil {
				panic(err)
			}
		}
	}
	for !server.Done() {
		step(client, server)
		step(server, client)
	}
	c, _ := client.Result()
	s, _ := server.Result()

	records, _ := c.Conn.Seal(nil, []byte("hello"))
	_, plaintext, _ := s.Conn.Open(records)
	fmt.Printf("%s: %s\n", s.Info.Protocol, plaintext)

	// The server's end goes on elsewhere.
	state, _ := s.Conn.AppendState(nil)
	s.Conn.Drop()
	moved, _ := RestoreState(state)
	records, _ = moved.Seal(nil, []byte("still here"))
	_, plaintext, _ = c.Conn.Open(records)
	fmt.Printf("%d bytes of state: %s\n", len(state), plaintext)
	// Output:
	// chat: hello
	// 95 bytes of state: still here
}
