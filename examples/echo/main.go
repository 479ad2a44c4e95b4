// Command echo is a whole service: it counts the lines of each connection
// and sends them back. Run it with "go run ./examples/echo run" and talk to
// it with "nc 127.0.0.1 7000".
package main

import (
	"fmt"

	"github.com/mainstay-go/mainstay/pkg/service"
)

// session is what the service remembers of a connection, wherever that moves.
type session struct{ Lines int }

func main() {
	s := service.New("echo")
	s.Listen("line", "tcp://127.0.0.1:7000", service.Text[session]{
		OnMessage: func(c *service.Conn[session], line []byte) {
			c.State.Lines++
			c.Send(fmt.Appendf(nil, "%d: %s", c.State.Lines, line))
		},
	})
	s.Main()
}
