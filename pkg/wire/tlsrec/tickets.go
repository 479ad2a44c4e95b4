package tlsrec

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
)

// maxTickets is how much of a connection is looked through for session tickets.
const maxTickets = 32 << 10

// Tickets takes a server's session tickets of TLS 1.3, which come behind the
// handshake, to Config.ClientSessionCache: the tls.Conn that has made the
// handshake opens the first records as well. It is not needed for anything
// else, and does not travel. Its methods must not be called concurrently.
type Tickets struct {
	tls  *tls.Conn
	tr   *transport
	left int // bytes
}

// Feed is given what Conn.Open will be, before that, and takes a copy of the
// records at its start that are whole; so what is left is to be at the start
// of the next. It returns false when no more is wanted: application data has
// come, behind which tickets are not waited for, or too much, or what is no
// record.
func (t *Tickets) Feed(in []byte) (more bool) {
	n := 0
	for len(in)-n >= headerSize {
		size := headerSize + (int(in[n+3])<<8 | int(in[n+4]))
		if size > MaxRecord || size > len(in)-n {
			break
		}
		n += size
	}
	if n == 0 {
		return true
	}
	if t.left -= n; t.left < 0 {
		return false
	}
	t.tr.in = append(t.tr.in, in[:n]...)
	var data [1]byte
	got, err := t.tls.Read(data[:])
	t.tr.out = nil // an answer to a KeyUpdate, which Conn gives as well
	return got == 0 && errors.Is(err, ErrWantInput)
}

// Format prints that there is one, whatever the verb: a tls.Conn has secrets
// that fmt would find.
func (t Tickets) Format(s fmt.State, _ rune) { io.WriteString(s, "tlsrec.Tickets{}") }
