package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// load is what clients send and want back: depth messages of so many bytes at
// a time, as binary, so that nobody has to look for UTF-8.
type load struct {
	size, depth int
	raw         bool // to a server that knows no WebSocket and sends back what came
}

// batches are what a client sends at a time, and what it has to get for it.
func (l load) batches() (request, answer []byte) {
	payload := make([]byte, l.size)
	for i := range payload {
		payload[i] = byte(i*7 + 1)
	}
	head := []byte{0x82} // RFC 6455 5.2: the last fragment, binary
	switch {
	case l.size < 126:
		head = append(head, byte(l.size))
	case l.size < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(l.size))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(l.size))
	}
	mask := [4]byte{0x12, 0x34, 0x56, 0x78}
	one := bytes.Clone(head)
	one[1] |= 0x80
	one = append(one, mask[:]...)
	for i, b := range payload {
		one = append(one, b^mask[i&3])
	}
	request = bytes.Repeat(one, l.depth)
	if l.raw {
		return request, request
	}
	return request, bytes.Repeat(append(head, payload...), l.depth)
}

// clients are connections on one epoll, without a goroutine each: what they
// cost leaves the server busy.
type clients struct {
	ep      int
	conns   []*client // by descriptor, nil: none
	request []byte
	answer  []byte
	depth   int
	buf     []byte
	events  []unix.EpollEvent
	done    int // messages that came back
}

// client is one connection.
type client struct {
	fd   int
	got  int // bytes of the answer
	left int // bytes of the request that the kernel did not take yet
	due  bool
}

const handshakeTime = 30 * time.Second

// connect opens n connections. The caller closes what it gets, with an error
// too.
func connect(addr string, n int, l load) (*clients, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	c := &clients{ep: ep, depth: l.depth, buf: make([]byte, 256<<10), events: make([]unix.EpollEvent, 512)}
	c.request, c.answer = l.batches()
	for range n {
		if err := c.open(addr, l.raw); err != nil {
			return c, err
		}
	}
	return c, nil
}

// open opens one connection.
func (c *clients) open(addr string, raw bool) error {
	nc, err := net.DialTimeout("tcp", addr, handshakeTime)
	if err != nil {
		return err
	}
	defer nc.Close()
	if !raw {
		if err := upgrade(nc, addr); err != nil {
			return err
		}
	}
	f, err := nc.(*net.TCPConn).File() // of its own, which the runtime does not poll
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	for len(c.conns) <= fd {
		c.conns = append(c.conns, nil)
	}
	c.conns[fd] = &client{fd: fd}
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(c.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
}

// upgrade does the handshake.
func upgrade(nc net.Conn, addr string) error {
	_ = nc.SetDeadline(time.Now().Add(handshakeTime))
	defer nc.SetDeadline(time.Time{})
	_, err := io.WriteString(nc, "GET /echo HTTP/1.1\r\nHost: "+addr+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return err
	}
	in := bufio.NewReader(nc)
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusSwitchingProtocols || in.Buffered() > 0 || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return fmt.Errorf("answer %s with %d bytes behind it, want an upgrade", r.Status, in.Buffered())
	}
	return nil
}

func (c *clients) close() {
	for _, one := range c.conns {
		if one != nil {
			unix.Close(one.fd)
		}
	}
	unix.Close(c.ep)
}

// begin has each connection send its first batch.
func (c *clients) begin() error {
	for _, one := range c.conns {
		if one == nil {
			continue
		}
		if err := c.send(one); err != nil {
			return err
		}
	}
	return nil
}

// run echoes for d, or until ctx ends.
func (c *clients) run(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := c.turn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until all that was sent is answered, and sends nothing more.
func (c *clients) settle(ctx context.Context) error {
	request := c.request
	c.request = nil
	defer func() { c.request = request }()
	for end := time.Now().Add(handshakeTime); ; {
		waiting := 0
		for _, one := range c.conns {
			if one != nil && one.due {
				waiting++
			}
		}
		if waiting == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d connections without an answer", waiting)
		}
		if err := c.turn(ctx); err != nil {
			return err
		}
	}
}

// turn waits for events once and handles them.
func (c *clients) turn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := unix.EpollWait(c.ep, c.events, 100)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("epoll_wait", err)
	}
	for _, ev := range c.events[:max(n, 0)] {
		one := c.conns[ev.Fd]
		if ev.Events&unix.EPOLLOUT != 0 {
			if err := c.flush(one); err != nil {
				return err
			}
		}
		if ev.Events&^unix.EPOLLOUT != 0 {
			if err := c.receive(one); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *clients) receive(one *client) error {
	n, err := unix.Read(one.fd, c.buf)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("read", err)
	case n == 0:
		return errors.New("closed by the server")
	case n > len(c.answer)-one.got || !bytes.Equal(c.buf[:n], c.answer[one.got:one.got+n]):
		return errors.New("what came back is not what was sent")
	}
	if one.got += n; one.got < len(c.answer) {
		return nil
	}
	one.got, one.due = 0, false
	c.done += c.depth
	return c.send(one)
}

func (c *clients) send(one *client) error {
	one.left, one.due = len(c.request), len(c.request) > 0
	return c.flush(one)
}

func (c *clients) flush(one *client) error {
	if one.left == 0 {
		return nil
	}
	before := one.left
	n, err := unix.Write(one.fd, c.request[len(c.request)-one.left:])
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("write", err)
	}
	one.left -= max(n, 0)
	if one.left == 0 && before == len(c.request) {
		return nil // it was never watched for
	}
	ev := uint32(unix.EPOLLIN)
	if one.left > 0 {
		ev |= unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(c.ep, unix.EPOLL_CTL_MOD, one.fd, &unix.EpollEvent{Events: ev, Fd: int32(one.fd)}))
}
