// Command server is the reference service: listeners that serve without any
// code written, and the command line. A listener gets one of the kinds below
// by its own name, by --serve NAME=KIND, or by serve in [listener.NAME].
package main

import (
	"io"
	"net/http"

	"github.com/mainstay-go/mainstay/pkg/service"
)

// none: these connections need no state.
type none = struct{}

func main() {
	newService().Main()
}

func newService() *service.Service {
	s := service.New("app")
	s.Kind("echo", service.Raw[none]{Inline: true, OnMessage: reply, OnBufferFull: pause, OnBufferDrain: resume})
	s.Kind("discard", service.Raw[none]{Inline: true})
	s.Kind("text-echo", service.Text[none]{Inline: true, OnMessage: reply, OnBufferFull: pause, OnBufferDrain: resume})
	s.Kind("frame-echo", service.Frame[none]{Inline: true, OnMessage: reply, OnBufferFull: pause, OnBufferDrain: resume})
	s.Kind("ws-echo", service.WebSocket[none]{Inline: true, OnMessage: replyMessage, OnBufferFull: pause, OnBufferDrain: resume})
	s.Kind("udp-echo", service.Packet{OnPacket: replyPacket})
	s.Kind("http-hello", service.Web{Inline: true, Reuse: true, Handler: http.HandlerFunc(hello)})
	s.Kind("nethttp-hello", service.HTTP{Handler: http.HandlerFunc(hello)})
	return s
}

// reply sends a message back. One that cannot be sent ends the connection:
// its peer would miss a part otherwise.
func reply(c *service.Conn[none], m []byte) {
	if err := c.Send(m); err != nil {
		c.CloseNow(err)
	}
}

// replyMessage sends a message of WebSocket back, as text or as bytes.
func replyMessage(c *service.Conn[none], m service.Message) {
	if err := c.SendMessage(m); err != nil {
		c.CloseNow(err)
	}
}

// replyPacket sends a datagram back, if there is room.
func replyPacket(_ *service.Worker, p *service.Datagram) { _ = p.Reply(p.Data) }

// pause and resume hold up a peer that sends and does not read.
func pause(c *service.Conn[none])  { c.Pause() }
func resume(c *service.Conn[none]) { c.Resume() }

// plain is a header's value, in the form that leaves no garbage.
var plain = []string{"text/plain; charset=utf-8"}

func hello(w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = plain
	io.WriteString(w, "hello\n")
}
