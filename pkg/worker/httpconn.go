package worker

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
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

	active  atomic.Int64 // last byte in or out, Unix time in ns
	in, out atomic.Uint64
}

func newHTTPConn(s *httpServer, c net.Conn, peer netip.Addr) *httpConn {
	h := &httpConn{Conn: c, peer: peer, server: s, id: s.lastConn.Add(1), opened: time.Now()}
	h.active.Store(h.opened.UnixNano())
	return h
}

// RemoteAddr is never nil: net's is, if the peer has reset the connection.
func (c *httpConn) RemoteAddr() net.Addr {
	if a := c.Conn.RemoteAddr(); a != nil {
		return a
	}
	return &net.TCPAddr{IP: c.peer.AsSlice()}
}

func (c *httpConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.in.Add(uint64(n))
		c.server.worker.seat.BytesIn.Add(uint64(n))
		c.active.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *httpConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.wrote(int64(n))
	return n, err
}

func (c *httpConn) wrote(n int64) {
	if n > 0 {
		c.out.Add(uint64(n))
		c.server.worker.seat.BytesOut.Add(uint64(n))
		c.active.Store(time.Now().UnixNano())
	}
}

// peerless: the peer is a unix socket without a name.
func (c *httpConn) peerless() bool {
	a, ok := c.RemoteAddr().(*net.UnixAddr)
	return ok && (a == nil || a.Name == "" || a.Name == "@")
}
