package worker

import (
	"cmp"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
)

// httpConn is a connection that net/http serves, with what an operator wants
// to see of it. It counts the bytes as those of the worker, too.
type httpConn struct {
	net.Conn
	server *httpServer

	// Set once.

	id     uint64
	opened time.Time
	peer   netip.Addr // as accept4(2) told
	count  netip.Addr // what the gate counts it for, as long as origin is nil

	// Of a connection behind a proxy.

	identify sync.Once
	fault    error  // the header did not come
	header   []byte // as it came
	rest     []byte // what came behind it
	origin   atomic.Pointer[origin]

	// With TLS, set before net/http is given the connection: one of the first
	// two, and info.

	sealed *sealed
	legacy *tlsrec.Legacy
	info   *tlsrec.Info

	waits   atomic.Bool  // a handler has not begun to answer
	active  atomic.Int64 // last byte in or out, Unix time in ns
	in, out atomic.Uint64
}

// origin is whose connection a proxy passes on.
type origin struct {
	address netip.Addr // zero: none that could be counted
	remote  net.Addr   // nil: the connection's own
}

func newHTTPConn(s *httpServer, c net.Conn, a accepted) *httpConn {
	h := &httpConn{Conn: c, peer: a.peer, count: a.counted, server: s, id: s.lastConn.Add(1), opened: time.Now()}
	h.active.Store(h.opened.UnixNano())
	return h
}

// counted is what the gate counts the connection for.
func (c *httpConn) counted() netip.Addr {
	if o := c.origin.Load(); o != nil {
		return o.address
	}
	return c.count
}

// shown is the peer as an operator sees it.
func (c *httpConn) shown() string {
	if o := c.origin.Load(); o != nil && o.remote != nil {
		return o.remote.String()
	}
	if c.peerless() {
		return "unix"
	}
	return c.ownAddr().String()
}

// RemoteAddr is the peer's address, that of which a PROXY header speaks where
// there is one: it waits for that, which is what net/http asks for first.
func (c *httpConn) RemoteAddr() net.Addr {
	if c.readHeader() == nil {
		if o := c.origin.Load(); o != nil && o.remote != nil {
			return o.remote
		}
	}
	return c.ownAddr()
}

// ownAddr is never nil: net's is, if the peer has reset the connection.
func (c *httpConn) ownAddr() net.Addr {
	if a := c.Conn.RemoteAddr(); a != nil {
		return a
	}
	return &net.TCPAddr{IP: c.peer.AsSlice()}
}

func (c *httpConn) Read(p []byte) (int, error) {
	if c.readHeader() != nil {
		return 0, io.EOF // which net/http has no answer to
	}
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		if c.rest = c.rest[n:]; len(c.rest) == 0 {
			c.rest = nil
		}
		return n, nil
	}
	return c.read(p)
}

func (c *httpConn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.in.Add(uint64(n))
		c.server.worker.seat.BytesIn.Add(uint64(n))
		c.active.Store(time.Now().UnixNano())
		if c.waits.Load() {
			c.server.reads(c)
		}
	}
	return n, err
}

// readHeader waits for the PROXY header, if one is to come.
func (c *httpConn) readHeader() error {
	if c.server.proxy == nil {
		return nil
	}
	c.identify.Do(func() {
		if c.fault = c.takeHeader(); c.fault != nil {
			c.server.worker.log.Info("connection not opened", zap.String("listener", c.server.name), zap.Stringer("peer", c.ownAddr()), zap.Error(c.fault))
		}
	})
	return c.fault
}

func (c *httpConn) takeHeader() error {
	if limit := c.server.header; limit > 0 {
		if err := c.Conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
	}
	in := make([]byte, 0, 512)
	for {
		advance, h, err := proxyproto.Parser{}.Parse(in)
		if err != nil {
			return err
		}
		if advance > 0 {
			c.header, c.rest = in[:advance:advance], in[advance:]
			if err := c.identified(h); err != nil {
				return err
			}
			return c.Conn.SetReadDeadline(time.Time{})
		}
		in = slices.Grow(in, 512)
		n, err := c.read(in[len(in):cap(in)])
		if in = in[:len(in)+n]; err != nil {
			return err
		}
	}
}

// identified takes in what the header tells.
func (c *httpConn) identified(h proxyproto.Header) error {
	o := &origin{address: c.peer}
	switch h.Transport {
	case proxyproto.TCP4, proxyproto.TCP6, proxyproto.UDP4, proxyproto.UDP6:
		o.address, o.remote = h.Source.Addr(), net.TCPAddrFromAddrPort(h.Source)
	case proxyproto.UnixStream, proxyproto.UnixDgram:
		o.address, o.remote = netip.Addr{}, &net.UnixAddr{Name: cmp.Or(h.SourcePath, "unix"), Net: "unix"}
	}
	c.origin.Store(o)
	return c.server.gate.identified(o.address)
}

func (c *httpConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.wrote(int64(n))
	return n, err
}

func (c *httpConn) wrote(n int64) {
	if n > 0 {
		c.server.answers(c)
		c.out.Add(uint64(n))
		c.server.worker.seat.BytesOut.Add(uint64(n))
		c.active.Store(time.Now().UnixNano())
	}
}

// peerless: the peer is a unix socket without a name.
func (c *httpConn) peerless() bool {
	a, ok := c.ownAddr().(*net.UnixAddr)
	return ok && (a == nil || a.Name == "" || a.Name == "@")
}
