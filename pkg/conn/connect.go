package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/proxy"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// ConnectStep is how far an attempt to connect had come.
type ConnectStep uint8

const (
	// Resolving: the addresses of a name are looked up.
	Resolving ConnectStep = iota + 1

	// Reaching: connect(2).
	Reaching

	// Proxying: the proxy is reached, and is asked for the connection.
	Proxying

	// Securing: the peer is reached, and TLS is agreed on.
	Securing

	// Negotiating: the protocol's own handshake with the server.
	Negotiating
)

// String says what was being done.
func (s ConnectStep) String() string {
	switch s {
	case Resolving:
		return "look up"
	case Reaching:
		return "connect to"
	case Proxying:
		return "ask proxy"
	case Securing:
		return "speak TLS with"
	case Negotiating:
		return "negotiate with"
	default:
		return "conn.ConnectStep(" + strconv.Itoa(int(s)) + ")"
	}
}

// ConnectError says why no connection came about at one address. An attempt
// that has tried several addresses ends with all of them, as by errors.Join.
type ConnectError struct {
	Step    ConnectStep
	Address string        // what was tried: a name, HOST:PORT, or a path; the proxy's if there is one
	Target  string        // where it was to lead, as it was given to Dial
	After   time.Duration // the deadline that is over, if Err is os.ErrDeadlineExceeded, else 0
	Err     error         // such as ECONNREFUSED, a *proxy.Refused, a *net.DNSError, a *tls.CertificateVerificationError, os.ErrDeadlineExceeded
}

// Error tells all of it.
func (e *ConnectError) Error() string {
	text := fmt.Sprintf("conn: %s %s", e.Step, e.Address)
	if e.Step >= Proxying {
		text += " for " + e.Target
	}
	if e.After > 0 {
		return fmt.Sprintf("%s: not within %v: %v", text, e.After.Round(time.Millisecond), e.Err)
	}
	return fmt.Sprintf("%s: %v", text, e.Err)
}

// Unwrap returns Err.
func (e *ConnectError) Unwrap() error { return e.Err }

const (
	// DefaultConnect is the Timeout of a DialConfig that has none.
	DefaultConnect = 10 * time.Second

	// minReach is what an address gets of the time at least, if there is so
	// much: one that is only slow should not be given up for the next.
	minReach = 250 * time.Millisecond

	// knockAgain is after how long a unix socket with a full backlog is tried
	// again: there, connect(2) does not wait for room.
	knockAgain = 10 * time.Millisecond

	// proxyRead is the most that is read of a proxy's answer at a time.
	proxyRead = 4 << 10
)

// attempt is one try to get a connection: the addresses one after the other,
// each with a part of the time that is left. The loop owns it.
type attempt struct {
	set    *Set
	client *Client
	route  *route
	by     time.Duration // all of it
	cancel context.CancelFunc

	addrs []unix.Sockaddr
	next  int     // in addrs
	errs  []error // of those before
	over  bool

	// Of the address that is tried.

	step  ConnectStep
	at    string
	limit time.Duration  // how long it has
	timer *reactor.Timer // its end
	knock *reactor.Timer // unix with a full backlog: the next try
	fd    int            // -1: none
	token reactor.Token  // 0: not watched

	handshake proxy.Handshake
	securing  *securing
	out       []byte // to be written to the proxy, or to the peer in TLS
	rx, tx    uint64 // bytes of both
}

// start begins. Loop only, and not in a callback, as all of attempt.
func (a *attempt) start(timeout time.Duration, resolver *net.Resolver) {
	a.fd = -1
	a.by = a.set.loop.Clock() + timeout
	if sa, ok := a.route.fixed(); ok {
		a.addrs = []unix.Sockaddr{sa}
		a.reachNext()
		return
	}
	host, port := a.route.next()
	a.step, a.at, a.limit = Resolving, host, timeout
	a.timer = a.set.loop.After(timeout, a.tooLate)
	cancel, err := a.set.resolver.look(&lookup{by: resolver, host: host, port: port, done: func(all []unix.Sockaddr, err error) {
		// An error means that the loop turns no more.
		_ = a.set.loop.Post(func() { a.resolved(all, err) })
	}}, timeout)
	if err != nil {
		a.fail(err)
		return
	}
	a.cancel = cancel
}

func (a *attempt) resolved(all []unix.Sockaddr, err error) {
	if a.over {
		return
	}
	a.timer.Stop()
	a.cancel()
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) && a.set.loop.Clock() >= a.by {
		a.tooLate()
		return
	}
	if err != nil {
		a.fail(err)
		return
	}
	a.addrs = all
	a.reachNext()
}

// reachNext tries the next address, and those after it that fail at once.
func (a *attempt) reachNext() {
	for a.next < len(a.addrs) && !a.over {
		sa := a.addrs[a.next]
		a.next++
		left := a.by - a.set.loop.Clock()
		a.limit = min(left, max(left/time.Duration(len(a.addrs)-a.next+1), minReach))
		a.step, a.at = Reaching, address(sa)
		if left <= 0 {
			a.note(os.ErrDeadlineExceeded)
			break
		}
		a.timer = a.set.loop.After(a.limit, a.tooLate)
		err := a.reach(sa)
		if err == nil {
			return
		}
		a.give(err)
	}
	a.end(errors.Join(a.errs...))
}

// reach begins to connect to one address.
func (a *attempt) reach(sa unix.Sockaddr) error {
	family, kind := unix.AF_UNIX, unix.SOCK_STREAM
	switch sa.(type) {
	case *unix.SockaddrInet4:
		family = unix.AF_INET
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	}
	if a.route.network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	a.fd = fd
	if a.route.network == "tcp" {
		prepareTCP(fd)
	}
	return a.connect(sa)
}

// keepAliveIdle is for how many seconds a connection is silent before the
// kernel asks whether the peer is still there.
const keepAliveIdle = 55

// prepareTCP sets what accepted connections have, too. A socket that refuses
// serves as well.
func prepareTCP(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle)
	// Urgent bytes stay in the stream, so that the kernel's count of bytes
	// and ours agree.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	// What is sent in a turn leaves in one write: there is nothing for Nagle to join.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// connect calls connect(2) and goes on by what that says.
func (a *attempt) connect(sa unix.Sockaddr) error {
	err := unix.Connect(a.fd, sa)
	switch {
	case err == nil:
		return a.reached()
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EINTR): // connect(2): it goes on
		return a.watch(reactor.Writable)
	case errors.Is(err, unix.EAGAIN) && a.route.network == "unix": // its backlog is full
		a.knock = a.set.loop.After(knockAgain, func() {
			a.knock = nil
			if err := a.connect(sa); err != nil {
				a.give(err)
				a.reachNext()
			}
		})
		return nil
	}
	return os.NewSyscallError("connect", err)
}

// watch has OnReady called for ev.
func (a *attempt) watch(ev reactor.Events) (err error) {
	if a.token != 0 {
		return a.set.loop.Modify(a.token, ev)
	}
	a.token, err = a.set.loop.Add(a.fd, ev, a)
	return err
}

// OnReady is called by the reactor.
func (a *attempt) OnReady(reactor.Events) {
	var err error
	switch a.step {
	case Reaching:
		err = a.connected()
	case Proxying:
		err = a.talk()
	default:
		err = a.secureOn()
	}
	if err == nil {
		return
	}
	if _, refused := errors.AsType[*proxy.Refused](err); refused { // another address of the proxy would say the same
		a.fail(err)
		return
	}
	a.give(err)
	a.reachNext()
}

// connected looks what came of a connect(2).
func (a *attempt) connected() error {
	errno, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ERROR", err)
	}
	if errno != 0 {
		return os.NewSyscallError("connect", unix.Errno(errno))
	}
	if _, err := unix.Getpeername(a.fd); errors.Is(err, unix.ENOTCONN) {
		return nil // not yet
	}
	return a.reached()
}

// reached goes on with a socket that is connected.
func (a *attempt) reached() (err error) {
	if a.route.network == "tcp" && toItself(a.fd) {
		return os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	if a.handshake, err = a.route.handshake(); err != nil {
		return err
	}
	a.rx, a.tx, a.out = 0, 0, nil
	if a.handshake == nil {
		return a.through()
	}
	a.step = Proxying
	a.out = a.handshake.Start(nil)
	return a.tell()
}

// through goes on behind the proxy, if there is one.
func (a *attempt) through() error {
	if a.route.tls != nil {
		return a.secure()
	}
	return a.arrived()
}

// toItself says whether a socket is connected to itself: where nobody listens
// on a port that the kernel may choose for a client, TCP's simultaneous open
// makes that possible (RFC 9293 3.5).
func toItself(fd int) bool {
	here, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	there, err := unix.Getpeername(fd)
	return err == nil && address(here) == address(there)
}

// tell writes what the proxy is to be told, as far as that goes.
func (a *attempt) tell() error {
	left, err := a.write()
	switch {
	case err != nil:
		return err
	case left:
		return a.watch(reactor.Readable | reactor.Writable)
	}
	return a.watch(reactor.Readable)
}

// write writes out until the kernel takes no more, and says whether something
// is left.
func (a *attempt) write() (left bool, err error) {
	for len(a.out) > 0 {
		n, errno := reactor.Write(a.fd, a.out)
		a.tx += uint64(n)
		a.out = a.out[n:]
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			return true, nil
		default:
			return true, os.NewSyscallError("write", errno)
		}
	}
	return false, nil
}

// talk goes on with the proxy. What comes behind its answer stays in the
// kernel, for the connection: so it is only looked at, and then as much read
// as is the answer's.
func (a *attempt) talk() error {
	buffer := a.set.loop.ReadBuffer()[:proxyRead]
	n, _, err := unix.Recvfrom(a.fd, buffer, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return a.tell()
	case err != nil:
		return os.NewSyscallError("recvfrom", err)
	case n == 0:
		return fmt.Errorf("%w in the middle of the handshake", ErrPeerClosed)
	}
	used, out, done, said := a.handshake.Next(a.out, buffer[:n])
	if said != nil {
		return said
	}
	if _, errno := reactor.Read(a.fd, buffer[:used]); errno != 0 {
		return os.NewSyscallError("read", errno)
	}
	a.rx += uint64(used)
	a.out = out
	switch {
	case done && len(out) > 0:
		return fmt.Errorf("%w: it has answered before it was asked", proxy.ErrMalformed)
	case done:
		return a.through()
	}
	return a.tell()
}

// arrived hands the connection over.
func (a *attempt) arrived() error {
	fd, tx := a.fd, a.tx
	if a.route.network == "tcp" {
		tx++ // as the kernel counts: its tcpi_bytes_acked starts with our SYN
	}
	peer := a.addrs[a.next-1]
	a.stopTimers()
	a.unwatch()
	a.fd, a.over = -1, true
	var secured *tlsrec.Result
	if a.securing != nil {
		secured = a.securing.result
	}
	a.client.arrived(fd, peer, a.rx, tx, secured)
	return nil
}

// tooLate is told that the time of the step is over.
func (a *attempt) tooLate() {
	a.give(os.ErrDeadlineExceeded)
	if a.step == Resolving {
		a.end(errors.Join(a.errs...))
		return
	}
	a.reachNext()
}

// fail ends the attempt, whatever addresses are left.
func (a *attempt) fail(err error) {
	a.give(err)
	a.end(errors.Join(a.errs...))
}

// give gives up the address that is tried.
func (a *attempt) give(err error) {
	a.note(err)
	a.stopTimers()
	a.unwatch()
	a.unsecure()
	if a.fd >= 0 {
		unix.Close(a.fd)
		a.fd = -1
	}
}

func (a *attempt) note(err error) {
	e := &ConnectError{Step: a.step, Address: a.at, Target: a.route.address, Err: err}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		e.After = a.limit
	}
	a.errs = append(a.errs, e)
}

func (a *attempt) stopTimers() {
	for _, t := range []*reactor.Timer{a.timer, a.knock} {
		if t != nil {
			t.Stop()
		}
	}
	a.timer, a.knock = nil, nil
}

func (a *attempt) unwatch() {
	if a.token != 0 {
		_ = a.set.loop.Remove(a.token) // it is closed, or goes to its connection, next
		a.token = 0
	}
}

// end tells the client that there is no connection.
func (a *attempt) end(err error) {
	if a.over {
		return
	}
	a.drop()
	if len(a.errs) == 1 {
		err = a.errs[0]
	}
	a.client.failed(err)
}

// drop ends the attempt without a word.
func (a *attempt) drop() {
	if a.over {
		return
	}
	a.over = true
	a.stopTimers()
	a.unwatch()
	a.unsecure()
	if a.cancel != nil {
		a.cancel()
	}
	if a.fd >= 0 {
		unix.Close(a.fd)
		a.fd = -1
	}
}
