package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
)

// A connection goes from net/http to the loop in the middle of a handler: the
// handler hijacks it, so that net/http neither reads nor closes it any more,
// and what net/http and TLS have read and not used goes along. The loop gets a
// descriptor of its own, since the runtime's poller cannot let go of one; that
// of net/http is closed when the loop has taken the connection, which the
// client does not notice. If the loop refuses it, the client is answered by
// the old one.

// ErrNotServed says that a request has not come by a listener of HTTP of this
// worker.
var ErrNotServed = errors.New("worker: the request has come by no listener of HTTP")

// takenWithin is how long the loop may take to take over a connection. If it
// turns as slowly as that it hangs.
const takenWithin = 10 * time.Second

var errNotTaken = errors.New("worker: the loop does not turn")

// Upgrade is a request whose connection is to go on by another protocol.
type Upgrade struct {
	server *httpServer
	conn   *httpConn
	to     *conn.Config
}

// NewUpgrade looks for what the listener by which the request has come has
// among its Upgrades by that name. It returns ErrNotServed, conn.ErrDrained
// while the worker leaves, and another error if there is nothing of that name.
// Nothing happens to the connection.
func NewUpgrade(r *http.Request, name string) (*Upgrade, error) {
	c, ok := r.Context().Value(httpConnKey{}).(*httpConn)
	if !ok {
		return nil, ErrNotServed
	}
	to := c.server.upgrades[name]
	switch {
	case to == nil:
		return nil, fmt.Errorf("worker: listener %q has no upgrade %q", c.server.name, name)
	case c.server.leaving.Load():
		return nil, conn.ErrDrained
	}
	return &Upgrade{server: c.server, conn: c, to: to}, nil
}

// Handler returns that of the Config which the connection is to get.
func (u *Upgrade) Handler() conn.Handler { return u.to.Handler }

// Move gives the connection to the loop, where OnConnect is called, with value
// as the first of conn.Conn.Value and with session. It is to be called in the
// handler of the request, once, before that has written anything, and waits until the
// loop has turned. net/http has nothing to do with the connection any more
// then, whatever the handler does.
//
// If net/http does not give the connection away, as with HTTP/2 or behind a
// ResponseWriter that hides it, hijacked is false and the handler may answer.
// With another error refusal is written, and the connection is closed.
func (u *Upgrade) Move(w http.ResponseWriter, session wire.Session, value any, refusal []byte) (hijacked bool, err error) {
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false, fmt.Errorf("worker: connection not taken from net/http: %w", err)
	}
	begun := conn.Begun{Session: session, Value: value}
	if begun.Input, err = rw.Reader.Peek(rw.Reader.Buffered()); err == nil { // what net/http has not used is there in full
		err = u.move(begun)
	}
	if err != nil {
		if u.conn.legacy != nil {
			u.conn.legacy.Attach(u.conn)
		}
		_, _ = nc.Write(refusal) // it may have gone
		nc.Close()
		return true, fmt.Errorf("worker: connection not taken from net/http: %w", err)
	}
	u.conn.Conn.Close() // not that of TLS, which would tell the client
	return true, nil
}

func (u *Upgrade) move(begun conn.Begun) error {
	c := u.conn
	if err := c.takeOver(&begun); err != nil {
		return err
	}
	fd, err := duplicate(c.Conn)
	if err != nil {
		return err
	}
	if err = u.give(fd, begun); err != nil {
		unix.Close(fd)
	}
	return err
}

// give has the loop take over fd, and waits for that. With an error fd is the
// caller's.
func (u *Upgrade) give(fd int, begun conn.Begun) error {
	s, peer := u.server, u.conn.counted()
	taken := make(chan error, 1)
	var decided atomic.Bool // by the loop, or by whoever has waited for it for too long
	err := s.worker.loop.Post(func() {
		switch {
		case !decided.CompareAndSwap(false, true):
			return
		case s.worker.drain != nil:
			taken <- conn.ErrDrained
			return
		}
		s.gate.adopt(peer, true) // net/http has let go of it
		_, err := s.worker.set.Continued(fd, u.to, begun)
		if err != nil {
			s.gate.left(peer)
		}
		taken <- err
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(takenWithin)
	defer timer.Stop()
	select {
	case err = <-taken:
	case <-timer.C:
		if decided.CompareAndSwap(false, true) {
			return errNotTaken
		}
		err = <-taken
	}
	return err
}

// takeOver puts into begun what has been read behind net/http's part, plain,
// and the state of TLS. Nobody reads or writes any more.
func (c *httpConn) takeOver(begun *conn.Begun) (err error) {
	begun.In, begun.Out, begun.Header, begun.Info = c.in.Load(), c.out.Load(), c.header, c.info
	switch {
	case c.sealed != nil:
		var plain []byte
		plain, begun.Record, err = c.sealed.takeOver()
		begun.TLS, begun.Input = c.sealed.tls, append(begun.Input, plain...)
	case c.legacy != nil:
		c.legacy.Detach()
		c.legacy.Feed(c.rest)
		begun.Legacy = c.legacy
		begun.Input, err = c.drainLegacy(begun.Input)
	default:
		begun.Input = append(begun.Input, c.rest...)
	}
	return err
}

// drainLegacy appends what crypto/tls has.
func (c *httpConn) drainLegacy(to []byte) ([]byte, error) {
	b := make([]byte, tlsrec.MaxPlaintext)
	for {
		n, err := c.legacy.Read(b)
		to = append(to, b[:n]...)
		switch {
		case errors.Is(err, tlsrec.ErrWantInput):
			return to, nil
		case err == io.EOF:
			return to, conn.ErrPeerClosed
		case err != nil:
			return to, err
		}
	}
}

// duplicate returns another descriptor of c, which is the caller's.
func duplicate(c net.Conn) (fd int, err error) {
	if a, ok := c.(*answering); ok {
		c = a.Conn
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("worker: %T has no descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	var failed error
	err = raw.Control(func(own uintptr) { fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return -1, err
	}
	return fd, nil
}
