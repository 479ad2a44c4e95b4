package tlsrec

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
)

// Legacy is a connection of TLS 1.2 or older, or one that Handshake.Leave speaks
// of, on the tls.Conn that has made its handshake, without a goroutine. It
// cannot be moved. Its methods must not be called concurrently.
type Legacy struct {
	tls *tls.Conn
	tr  *transport
}

// ErrWantInput says that a Legacy has given all that its input holds.
var ErrWantInput error = wantInput{}

// Feed gives what the peer has sent, of which it keeps a copy. Whoever reads
// until ErrWantInput after each Feed has at most one record kept.
func (l *Legacy) Feed(in []byte) { l.tr.in = append(l.tr.in, in...) }

// Read reads what the peer has sent into dst. It fails with ErrWantInput, with
// io.EOF after close_notify, or with what crypto/tls says.
func (l *Legacy) Read(dst []byte) (int, error) { return l.tls.Read(dst) }

// Write seals p, for Output. It fails as tls.Conn.Write, never for lack of
// room.
func (l *Legacy) Write(p []byte) error {
	_, err := l.tls.Write(p)
	return err
}

// CloseNotify seals the alert that says that we write no more.
func (l *Legacy) CloseNotify() error { return l.tls.CloseWrite() }

// Output returns what is to be sent to the peer, and forgets it: the bytes are
// the caller's.
func (l *Legacy) Output() []byte {
	out := l.tr.out
	l.tr.out = nil
	return out
}

// Attach returns the tls.Conn for somebody who wants a net.Conn of it: it reads
// nc, after what has come already, and writes to nc, until Detach. Its NetConn has
// the method NetConn, too, which returns nc. What Output had is to be sent
// before. Of the methods of a Legacy only Detach may be called then.
func (l *Legacy) Attach(nc net.Conn) *tls.Conn {
	l.tr.below = nc
	return l.tls
}

// Detach undoes Attach, while nobody reads or writes: what the tls.Conn has of
// the peer's bytes is for Read. nc stays open.
func (l *Legacy) Detach() { l.tr.below = nil }

// Format prints that there is one, whatever the verb: a tls.Conn has secrets
// that fmt would find.
func (l Legacy) Format(s fmt.State, _ rune) { io.WriteString(s, "tlsrec.Legacy{}") }
