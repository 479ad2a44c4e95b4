package conn

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// securing is the TLS handshake of an attempt with one address. The loop owns
// it, but for the Handshake while that steps.
type securing struct {
	attempt  *attempt
	h        *tlsrec.Handshake // nil: it has no place yet
	stepping bool              // a goroutine has h
	over     bool              // nobody wants it any more
	result   *tlsrec.Result    // once it is done
}

// secure begins the handshake, once there is a place for it. The socket is not
// read until then.
func (a *attempt) secure() error {
	a.step = Securing
	a.securing = &securing{attempt: a}
	if a.token != 0 {
		if err := a.watch(0); err != nil {
			return err
		}
	}
	if a.client.dialer.cfg.Handshakes.enter(a.securing) {
		a.securing.begin()
	}
	return nil
}

// waits says that a place is of use. One that is not wanted any more is given
// on by placeFree, which knows.
func (s *securing) waits() bool { return true }

func (s *securing) post(f func()) error { return s.attempt.set.loop.Post(f) }

// placeFree is told on the loop that the handshake may begin.
func (s *securing) placeFree() {
	if s.over {
		s.places().leave()
		return
	}
	s.begin()
}

func (s *securing) places() *Handshakes { return s.attempt.client.dialer.cfg.Handshakes }

func (s *securing) begin() {
	s.h = tlsrec.Client(context.Background(), s.attempt.client.route.tls)
	s.step()
}

// step has the handshake go on. The socket is not watched meanwhile.
func (s *securing) step() {
	s.stepping = true
	h, places, loop := s.h, s.places(), s.attempt.set.loop
	places.compute(func() {
		_, _ = h.Step() // Result tells it
		if loop.Post(s.stepped) != nil {
			h.Abort()
			places.leave()
		}
	})
	loop.Yield()
}

// stepped goes on behind step.
func (s *securing) stepped() {
	s.stepping = false
	if s.over {
		s.abandon()
		return
	}
	a := s.attempt
	a.out = append(a.out, s.h.Output()...)
	if err := s.concluded(); err != nil {
		_, _ = a.write() // an alert, that nobody need get
		a.give(err)
		a.reachNext()
		return
	}
	if err := a.goOnSecuring(); err != nil {
		a.give(err)
		a.reachNext()
	}
}

// concluded takes the result of a handshake that is over.
func (s *securing) concluded() error {
	if !s.h.Done() {
		return nil
	}
	result, err := s.h.Result()
	s.h = nil
	places := s.places()
	places.leave()
	if err != nil {
		places.failed.Add(1)
		return err
	}
	places.done.Add(1)
	if result.Info.Resumed {
		places.resumed.Add(1)
	}
	s.result = &result
	return nil
}

// goOnSecuring writes what the handshake has for the peer, and then waits for
// what comes, or hands the connection over.
func (a *attempt) goOnSecuring() error {
	left, err := a.write()
	switch {
	case err != nil:
		return err
	case left:
		return a.watch(reactor.Writable)
	case a.securing.result != nil:
		return a.arrived()
	}
	return a.watch(reactor.Readable)
}

// secureOn is told that the socket is ready.
func (a *attempt) secureOn() error {
	s := a.securing
	if len(a.out) > 0 {
		return a.goOnSecuring()
	}
	buffer := a.set.loop.ReadBuffer()
	n, errno := reactor.Read(a.fd, buffer)
	switch {
	case errno == unix.EAGAIN, errno == unix.EINTR:
		return nil
	case errno != 0:
		return os.NewSyscallError("read", errno)
	case n == 0:
		return fmt.Errorf("%w in the middle of the handshake", ErrPeerClosed)
	}
	a.rx += uint64(n)
	if err := s.h.Feed(buffer[:n]); err != nil {
		return err
	}
	if err := a.watch(0); err != nil {
		return err
	}
	s.step()
	return nil
}

// abandon ends a handshake that nobody waits for any more. One that is being
// computed ends when that has returned, one that has no place when it gets it.
func (s *securing) abandon() {
	s.over = true
	switch {
	case s.h != nil && !s.stepping:
		s.h.Abort()
		s.h = nil
		s.places().failed.Add(1)
		s.places().leave()
	case s.result != nil && s.result.Conn != nil:
		s.result.Conn.Drop()
	}
}

// unsecure gives up the handshake of an attempt, if there is one.
func (a *attempt) unsecure() {
	if a.securing != nil {
		a.securing.abandon()
		a.securing = nil
	}
}

// tlsTo returns the settings of TLS connections to host: cfg's, which is
// not changed and may be nil.
func tlsTo(cfg *tls.Config, host string) *tls.Config {
	own := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg != nil {
		own = cfg.Clone()
	}
	if own.ServerName == "" {
		own.ServerName, _, _ = strings.Cut(host, "%") // a zone is of this machine
	}
	return own
}

// beginSecured has c go on with the keys of its handshake, which is over. What came
// behind that is handled.
func (c *Conn) beginSecured(r *tlsrec.Result) {
	info := r.Info // not the rest of r
	l := &layer{stage: stageOpen, tls: r.Conn, legacy: r.Legacy, tickets: r.Tickets, quiet: true, info: &info}
	c.mu.Lock()
	c.extraLocked().layer = l
	c.mu.Unlock()
	if l.legacy != nil {
		c.flags.Or(flagStays)
	}
	c.greet()
	switch {
	case l.legacy != nil:
		c.readLegacy(l)
	case len(r.Rest) > 0:
		c.openRecords(l, c.set.loop.Prepend(r.Rest, 0))
	}
	c.mark(0, 0)
}
