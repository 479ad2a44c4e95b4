// Command tls is a whole service that speaks TLS: it greets a client by what
// was agreed on and sends its lines back. A connection of TLS 1.3 lives through
// reloads, with which a new certificate comes in, too.
//
// The code says nothing of certificates; they are the operator's:
//
//	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
//		-addext subjectAltName=DNS:localhost -keyout /tmp/key.pem -out /tmp/cert.pem
//	export SECRET_LISTENER_LINE_TLS_CERT=/tmp/cert.pem SECRET_LISTENER_LINE_TLS_KEY=/tmp/key.pem
//	go run ./examples/tls run
//	openssl s_client -quiet -connect 127.0.0.1:7443 -servername localhost -CAfile /tmp/cert.pem
//
// See docs/certificates.md.
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log"

	"github.com/mainstay-go/mainstay/pkg/service"
)

// guest is what the service remembers of a connection. It travels with that.
type guest struct{ Name string }

func main() {
	s := service.New("secret")
	s.Listen("line", "tcp://127.0.0.1:7443", service.Text[guest]{
		OnConnect: greet,
		OnMessage: func(c *service.Conn[guest], line []byte) {
			c.Send(fmt.Appendf(nil, "%s: %s", c.State.Name, line))
		},
		OnClose: func(c *service.Conn[guest], why error) {
			if errors.Is(why, service.ErrTruncated) {
				log.Printf("%s may have said more than came: %v", c.Peer(), why)
			}
		},
	})
	s.Main()
}

// greet is called when the handshake is done. Who came with a certificate, which
// has been verified then, has a name.
func greet(c *service.Conn[guest]) {
	c.State.Name = "somebody"
	agreed := c.TLS()
	if agreed == nil {
		c.Close(nil, []byte("there is no TLS here: give the listener a certificate"))
		return
	}
	if len(agreed.PeerCertificates) > 0 {
		c.State.Name = agreed.PeerCertificates[0].Subject.CommonName
	}
	c.Send(fmt.Appendf(nil, "hello %s, by %s at %s", c.State.Name, tls.VersionName(agreed.Version), agreed.ServerName))
}
