package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
)

// The handshake of TLS is made before net/http is given a connection, because
// it decides what that gets: crypto/tls, if HTTP/2 or TLS 1.2 was agreed on, as
// net/http speaks HTTP/2 on nothing else; otherwise our own record layer, with
// which the connection can go over to the loop and from there to other workers.
// Every handshake has a goroutine, as it would have in net/http.

// greetingEnds is how long a handshake may still take when nothing is accepted
// any more.
const greetingEnds = time.Second

// greetAll begins the handshakes until nothing more comes, and waits for their
// end.
func (s *httpServer) greetAll() {
	defer close(s.greeted)
	var all sync.WaitGroup
	defer all.Wait()
	for {
		h, err := s.next()
		if err != nil {
			return
		}
		all.Go(func() {
			c, err := s.greet(h)
			if err != nil {
				h.Close()
				s.left(h.counted())
				if h.in.Load() > 0 && h.fault == nil { // a fault is told already
					s.worker.log.Info("connection not opened", zap.String("listener", s.name), zap.Stringer("peer", h.ownAddr()), zap.Error(err))
				}
				return
			}
			s.ready <- c // net/http takes all until greeted is closed
		})
	}
}

// greet makes the handshake of h, and returns what net/http gets.
func (s *httpServer) greet(h *httpConn) (net.Conn, error) {
	timer := s.patience(h)
	defer s.forget(h)
	made := tlsrec.Server(context.Background(), s.tls)
	defer made.Abort()
	made.Leave("h2")
	in := make([]byte, 16<<10)
	for !made.Done() {
		n, err := h.Read(in)
		if n > 0 {
			err = made.Feed(in[:n])
		}
		if err != nil {
			return nil, fmt.Errorf("worker: TLS handshake: %w", err)
		}
		_, stepped := made.Step()
		if out := made.Output(); len(out) > 0 {
			if _, err := h.Write(out); stepped == nil && err != nil {
				return nil, fmt.Errorf("worker: TLS handshake: %w", err)
			}
		}
		if stepped != nil {
			answerPlain(h, stepped)
			return nil, stepped
		}
	}
	if !timer.Stop() {
		return nil, fmt.Errorf("worker: TLS handshake: %w", os.ErrDeadlineExceeded)
	}
	r, err := made.Result()
	if err != nil {
		return nil, err
	}
	info := r.Info // not the rest of r
	h.legacy, h.info = r.Legacy, &info
	if r.Legacy != nil {
		return r.Legacy.Attach(h), nil
	}
	h.sealed = &sealed{httpConn: h, state: r.State, tls: r.Conn, in: r.Rest}
	return h.sealed, nil
}

// answerPlain tells a client that speaks HTTP where TLS is wanted, in the words
// of net/http.
func answerPlain(h *httpConn, err error) {
	e, ok := errors.AsType[tls.RecordHeaderError](err)
	if !ok {
		return
	}
	switch string(e.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		_, _ = io.WriteString(h, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
	}
}

// patience has the descriptor of h closed when its handshake has taken too
// long, unless the timer is stopped.
func (s *httpServer) patience(h *httpConn) *time.Timer {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	limit := s.header
	if limit <= 0 {
		limit = 1<<63 - 1
	}
	if s.hurried {
		limit = greetingEnds
	}
	timer := time.AfterFunc(limit, func() { h.Conn.Close() })
	s.greeting[h] = timer
	return timer
}

func (s *httpServer) forget(h *httpConn) {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	s.greeting[h].Stop()
	delete(s.greeting, h)
}

// hurry has the handshakes end soon.
func (s *httpServer) hurry() {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	s.hurried = true
	for _, timer := range s.greeting {
		if timer.Stop() {
			timer.Reset(greetingEnds)
		}
	}
}

// sealed is a connection with TLS 1.3 and our own record layer. It behaves as a
// tls.Conn does: one reader and one writer at a time.
type sealed struct {
	*httpConn
	state tls.ConnectionState

	reading sync.Mutex // held by Read
	buffer  []byte     // where in and plain lie
	in      []byte     // records that are not open, the last one perhaps incomplete
	plain   []byte     // opened and not read
	over    error      // what comes behind plain; nil: more

	writing sync.Mutex // held by who writes records, from the sealing on
	out     []byte     // for the records, again and again
	broken  error      // why no more can be written: a part of a record was

	mu  sync.Mutex // held for each call of tls, which knows no goroutines
	tls *tlsrec.Conn
}

// closeNotifyWithin bounds how long the end of the stream may take to be told.
const closeNotifyWithin = 5 * time.Second

// NetConn returns what is below TLS.
func (c *sealed) NetConn() net.Conn { return c.httpConn }

func (c *sealed) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.plain) == 0 {
		if c.over != nil {
			return 0, c.over
		}
		if c.open() {
			continue
		}
		c.makeRoom()
		n, err := c.httpConn.Read(c.in[len(c.in):cap(c.in)])
		c.in = c.in[:len(c.in)+n]
		switch {
		case n > 0: // an error comes again
		case err == io.EOF && len(c.in) > 0:
			c.over = io.ErrUnexpectedEOF
		case err == io.EOF:
			c.over = err // as crypto/tls has it, though there was no close_notify
		case err != nil:
			return 0, err // a deadline, perhaps: what has come is kept
		}
	}
	n := copy(p, c.plain)
	c.plain = c.plain[n:]
	return n, nil
}

// readAtLeast is for how many bytes a read is worth it.
const readAtLeast = 2 << 10

// makeRoom has in at the start of the buffer, with room behind it. plain is
// empty. It needs reading.
func (c *sealed) makeRoom() {
	if len(c.buffer) < len(c.in)+readAtLeast {
		old := c.in
		c.buffer = make([]byte, min(2*len(c.in)+2*readAtLeast, tlsrec.MaxRecord+readAtLeast))
		c.in = c.buffer[:copy(c.buffer, old)]
		return
	}
	c.in = c.buffer[:copy(c.buffer, c.in)]
}

// open opens the records that are complete, and says whether that has changed
// anything. It needs reading.
func (c *sealed) open() bool {
	if len(c.in) == 0 {
		return false
	}
	c.mu.Lock()
	used, plain, err := c.tls.OpenAll(c.in)
	answer := c.tls.Pending()
	c.mu.Unlock()
	c.plain, c.over = plain, err
	c.in = c.in[used:]
	if answer {
		c.writing.Lock()
		_ = c.writeLocked(func(dst []byte) ([]byte, error) { return c.tls.AppendPending(dst), nil }) // the next Write tells
		c.writing.Unlock()
	}
	return used > 0 || err != nil
}

func (c *sealed) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for n < len(p) {
		part := p[n:min(len(p), n+4*tlsrec.MaxPlaintext)]
		if err := c.writeLocked(func(dst []byte) ([]byte, error) { return c.tls.Seal(dst, part) }); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// writeLocked writes the records that seal appends. It needs writing.
func (c *sealed) writeLocked(seal func(dst []byte) ([]byte, error)) error {
	if c.broken != nil {
		return c.broken
	}
	c.mu.Lock()
	records, err := seal(c.out[:0])
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if c.out = records; cap(records) > 2*tlsrec.MaxRecord {
		c.out = nil
	}
	if len(records) > 0 {
		// After a part of a record nothing can follow, as in crypto/tls.
		_, c.broken = c.httpConn.Write(records)
	}
	return c.broken
}

// CloseWrite tells the peer that no more comes.
func (c *sealed) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeLocked(func(dst []byte) ([]byte, error) { return c.tls.CloseNotify(dst), nil })
}

// Close is CloseWrite, if that is possible at once, and the end.
func (c *sealed) Close() error {
	if c.writing.TryLock() { // otherwise somebody is stuck in Write
		_ = c.httpConn.Conn.SetWriteDeadline(time.Now().Add(closeNotifyWithin))
		_ = c.writeLocked(func(dst []byte) ([]byte, error) { return c.tls.CloseNotify(dst), nil }) // the end is told by the stream's, too
		c.writing.Unlock()
	}
	return c.httpConn.Close()
}

// takeOver returns what has been opened and not read, and the beginning of a
// record. Nobody reads or writes any more.
func (c *sealed) takeOver() (plain, record []byte, err error) {
	c.in = append(c.in, c.rest...)
	for {
		plain = append(plain, c.plain...)
		c.plain = nil
		if c.over != nil {
			return nil, nil, c.over
		}
		if !c.open() {
			return plain, c.in, c.broken
		}
	}
}
