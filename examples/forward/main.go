// Command forward is a proxy: it passes on what comes to its listener to
// another address, and back. A reload moves both ends of each connection to
// the new process, in the middle of whatever they say. Run it with
// "FORWARD_TO=tcp://127.0.0.1:7001 go run ./examples/forward run".
package main

import (
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/service"
)

// session is of both ends. It has nothing to remember once they are joined.
type session struct{ *pair }

// pair is a client that waits for the other end.
type pair struct {
	in   *service.Conn[session]
	held bool
}

// let has the client move again, if there is reason to.
func (p *pair) let() {
	if p.held {
		p.held = false
		p.in.Release()
	}
}

func main() {
	var here *service.Worker // set before anything is accepted
	s := service.New("forward")
	s.OnWorkerStart(func(w *service.Worker) error { here = w; return nil })

	s.Listen("in", "tcp://127.0.0.1:7000", service.Raw[session]{
		Inline: true,
		OnConnect: func(c *service.Conn[session]) {
			c.Pause() // until Pipe: there is nobody yet to send it to
			if err := c.Hold(); err != nil {
				c.Close(err)
				return
			}
			p := &pair{in: c, held: true}
			if _, err := service.Dial(here, "upstream", os.Getenv("FORWARD_TO"), session{p}); err != nil {
				p.let()
				c.Close(err)
			}
		},
	})

	s.Dial("upstream", "", service.Dialer[session]{
		Inline:  true,
		Timeout: 5 * time.Second,
		OnConnect: func(c *service.Conn[session]) {
			// It ends at once if the client has given up meanwhile.
			if err := service.Pipe(c.State.in, c); err != nil {
				c.Close(err)
			}
			c.State.let()
			c.State.pair = nil
		},
		OnDown: func(up service.Client[session], why error, _ time.Duration) {
			if p := up.State().pair; p != nil { // else it came from another process
				p.let()
				p.in.Close(why)
			}
		},
	})
	s.Main()
}
