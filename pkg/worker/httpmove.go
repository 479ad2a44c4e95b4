package worker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// stream returns what the request's connection is to become on the loop, nil
// if it stays with net/http.
func (s *httpServer) stream(r *http.Request) *conn.Config {
	if len(s.streams) == 0 || r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.ContentLength != 0 ||
		r.Header.Get("Upgrade") == "" || !http1.HasToken(r.Header["Connection"], "upgrade") {
		return nil
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return s.streams[path]
}

// move gives the request's connection to the loop, where it begins with the
// request, as if that had come there.
func (s *httpServer) move(w http.ResponseWriter, r *http.Request, c *httpConn, to *conn.Config) {
	head := headOf(r)
	hijacked, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot change its protocol", http.StatusNotImplemented)
		return
	}
	// What net/http has read and not used is there in full.
	behind, _ := rw.Reader.Peek(rw.Reader.Buffered())
	begun := conn.Begun{Input: append(append(head, behind...), c.rest...), In: c.in.Load(), Out: c.out.Load()}
	fd, err := duplicate(c.Conn)
	hijacked.Close() // the duplicate keeps the connection
	if err == nil {
		peer := c.sockaddr()
		err = s.worker.loop.Post(func() { s.continued(fd, peer, to, begun) })
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		s.notMoved(err)
	}
}

func (s *httpServer) notMoved(err error) {
	s.worker.log.Warn("connection not taken from net/http", zap.String("listener", s.name), zap.Error(err))
}

// continued takes over fd. Loop only.
func (s *httpServer) continued(fd int, peer unix.Sockaddr, to *conn.Config, begun conn.Begun) {
	s.gate.adopt(addressOf(peer), true) // net/http has let go of it
	if _, err := s.worker.set.Continued(fd, peer, to, begun); err != nil {
		s.gate.left(addressOf(peer))
		s.notMoved(err)
	}
}

// headOf writes the head of a request down again. It has no body.
func headOf(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Host)
	_ = r.Header.Write(&b) // into memory
	b.WriteString("\r\n")
	return b.Bytes()
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

// sockaddr is the peer's address as the loop is told it: of which its proxy
// speaks, if both are of TCP.
func (c *httpConn) sockaddr() unix.Sockaddr {
	at, ok := c.ownAddr().(*net.TCPAddr)
	if !ok {
		return &unix.SockaddrUnix{}
	}
	if o := c.origin.Load(); o != nil {
		if passed, ok := o.remote.(*net.TCPAddr); ok {
			at = passed
		}
	}
	ip := at.AddrPort().Addr()
	if ip = ip.Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Port: at.Port, Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: at.Port, Addr: ip.As16()}
}
