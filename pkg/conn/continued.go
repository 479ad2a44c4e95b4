package conn

import (
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// Begun is what has been said on a connection before a Set takes it over. Its
// parts are the connection's then.
type Begun struct {
	Input   []byte       // read, plain, and not handled; it is copied
	In, Out uint64       // bytes that were read from the descriptor, and that the kernel has taken
	Session wire.Session // how far the protocol is; nil: a new one is made
	Value   any          // the first of Conn.Value, which OnConnect finds

	Header []byte // a trusted proxy's PROXY header; nil: there was none

	// With TLS one of these two, which have opened all that has come but Record,
	// and Info.

	TLS    *tlsrec.Conn
	Legacy *tlsrec.Legacy // with no output
	Record []byte         // the beginning of a record for TLS; it is copied
	Info   *tlsrec.Info
}

// Continued is Accepted for a connection on which something else has talked
// until now: the Input is what cfg's protocol gets first. Nothing else has the
// connection any more, nor another descriptor of it that it reads or writes. The counts have
// to be right, or it does not outlive this process. cfg has neither TLS nor
// Proxy: both have done their part. With an error fd is the caller's, and so is
// what begun has. Loop only, and not in a callback.
func (s *Set) Continued(fd int, cfg *Config, begun Begun) (*Conn, error) {
	var said *origin
	if len(begun.Header) > 0 {
		_, h, err := headerParser.Parse(begun.Header)
		if err != nil {
			return nil, err
		}
		said = originOf(begun.Header, h)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		peer = nil // it is gone already, which the first read tells
	}
	c, err := s.open(fd, peer, cfg)
	if err != nil {
		return nil, err
	}
	c.rx.Store(begun.In)
	c.tx.Store(begun.Out)
	if begun.In > 0 {
		c.partial = 0 // the deadline of the first byte does not hold
	}
	c.mu.Lock()
	if x := c.extraLocked(); begun.Session != nil {
		x.session = begun.Session
	}
	c.mu.Unlock()
	if said != nil {
		c.extra.Load().origin.Store(said)
	}
	if begun.Info != nil {
		c.continueSecured(&begun)
	}
	if begun.Value != nil {
		c.SetValue(begun.Value)
	}
	if len(begun.Input) > 0 {
		c.in = getBuffer(len(begun.Input)).add(begun.Input)
		c.held = true
	}
	if l := c.layered(); l != nil {
		c.unfinished(l)
	}
	c.greet()
	c.note()
	c.mark(0, 0) // to go on with the input
	return c, nil
}

// continueSecured takes over what stands between descriptor and messages.
func (c *Conn) continueSecured(begun *Begun) {
	l := &layer{stage: stageOpen, tls: begun.TLS, legacy: begun.Legacy, info: begun.Info}
	l.toKernel = c.cfg.KernelTLS && l.tls != nil
	l.keep(begun.Record)
	c.mu.Lock()
	c.extra.Load().layer = l
	c.mu.Unlock()
	if l.legacy != nil {
		c.flags.Or(flagStays)
	}
}
