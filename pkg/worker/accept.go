package worker

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/reactor"
)

const (
	// maxAccepts bounds the connections taken at one wake-up, so that those
	// that are open have their turn, and the other workers their share.
	maxAccepts = 16

	// pauseExhausted is how long a listener rests when the system has no
	// room for another connection.
	pauseExhausted = 100 * time.Millisecond

	// pauseFull is how long a listener rests when net/http has not taken
	// what was accepted for it.
	pauseFull = 5 * time.Millisecond
)

// listener accepts on one inherited socket. The loop owns it.
//
// All workers wait for the same socket. EPOLLEXCLUSIVE wakes one of them for
// a connection, the one that was added first; so after accepting, a listener
// goes to the end of the row.
type listener struct {
	// Set once.

	worker    *Worker
	name      string
	fd        int
	isTCP     bool
	isPackets bool         // SOCK_SEQPACKET
	conns     *conn.Config // what the connections are given to: this,
	http      *httpServer  // or this
	gate      *gate        // nil: all are taken

	dispatch dispatcher
	acceptor reactor.Acceptor

	token   reactor.Token
	state   listening
	said    bool           // the supervisor knows of this pause
	trouble bool           // it was logged, and is not over
	resume  *reactor.Timer // while paused
}

// listening is how a listener is.
type listening uint8

const (
	unwatched listening = iota // not yet, or no more
	watched
	paused // for a while
)

func isTCP(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && domain != unix.AF_UNIX
}

func isPackets(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_SEQPACKET
}

// Packetable says why l cannot be served on a socket of SOCK_SEQPACKET.
func (l *Listener) Packetable() error {
	if l.Conn == nil {
		return errors.New("HTTP, want a stream socket")
	}
	c := *l.Conn
	c.TLS, c.Proxy = l.TLS, l.Proxy
	return c.Packetable()
}

const listenEvents = reactor.Readable | reactor.Exclusive

func (l *listener) watch() {
	token, err := l.worker.loop.Add(l.fd, listenEvents, l)
	if err != nil {
		l.broken(err)
		return
	}
	l.token, l.state = token, watched
}

// unwatch takes the socket out of epoll and closes this process's copy of it,
// for good. From then on no wake-up can be lost here, and a socket that is
// nobody's any more is free.
func (l *listener) unwatch() {
	l.stepOut()
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// stepOut takes the socket out of epoll; watch puts it in again.
func (l *listener) stepOut() {
	if l.state == unwatched {
		return
	}
	if l.resume != nil {
		l.resume.Stop()
	}
	l.state = unwatched
	if err := l.worker.loop.Remove(l.token); err != nil {
		l.worker.log.Warn("listener not taken out of epoll", zap.String("listener", l.name), zap.Error(err))
	}
}

// rearm watches anew: if a connection waits, this worker is told of it,
// whoever was before.
func (l *listener) rearm() {
	if l.state != watched {
		return
	}
	if err := l.worker.loop.Rearm(l.token); err != nil {
		l.broken(err)
	}
}

// OnReady accepts what waits, up to a bound.
func (l *listener) OnReady(reactor.Events) {
	accepted, err := l.acceptSome()
	switch {
	case err != nil:
		l.pause(err)
	case accepted > 0:
		l.rearm()
	}
}

// errFull says that net/http is behind.
var errFull = errors.New("connections wait for net/http")

// acceptSome accepts until nobody waits, or up to a bound. An error says why
// it cannot accept now, and perhaps later.
func (l *listener) acceptSome() (accepted int, err error) {
	for range maxAccepts {
		if l.http != nil && l.http.full() {
			return accepted, errFull
		}
		fd, peer, errno := l.acceptor.Accept(l.fd)
		switch faultOf(errno) {
		case faultNone:
			accepted++
			if !l.gate.admit(peer, l.worker.loop.Now()) {
				unix.Close(fd)
				continue
			}
			l.take(fd, peer)
		case faultEmpty:
			l.recovered(accepted)
			return accepted, nil
		case faultPassing:
		default:
			return accepted, errno
		}
	}
	l.recovered(accepted)
	return accepted, nil
}

// pause stops watching for a while, because of err. The wake-up that is not
// answered may be that of a connection that another worker could take: so the
// supervisor is told, once the socket is out of epoll.
func (l *listener) pause(err error) {
	l.state, l.said = paused, false
	if err := l.worker.loop.Modify(l.token, 0); err != nil {
		l.broken(err)
		return
	}
	if fault(err) != faultFull { // that is most likely over in a moment
		l.report(err)
	}
	l.retryLater(err)
}

// retry accepts without watching: a wake-up that would come here while there
// is still no room would be lost.
func (l *listener) retry() {
	if l.state != paused {
		return
	}
	if _, err := l.acceptSome(); err != nil {
		l.report(err)
		l.retryLater(err)
		return
	}
	l.state = watched
	if err := l.worker.loop.Modify(l.token, listenEvents); err != nil {
		l.broken(err)
	}
}

func (l *listener) retryLater(err error) {
	switch fault(err) {
	case faultFull:
		l.resume = l.worker.loop.After(pauseFull, l.retry)
	case faultExhausted:
		l.resume = l.worker.loop.After(pauseExhausted, l.retry)
	default:
		l.broken(os.NewSyscallError("accept4", err))
	}
}

// report tells the supervisor of a pause, and the log of the trouble.
func (l *listener) report(err error) {
	if !l.said {
		l.said = true
		l.worker.send(link.Paused{Listener: l.name, Reason: err.Error()})
	}
	if !l.trouble {
		l.trouble = true
		l.worker.log.Error("accepting paused", journal.ID(journal.ListenerPaused), zap.String("listener", l.name), zap.Error(err),
			zap.Int64("connections", l.worker.seat.Connections.Load()))
	}
}

// recovered ends the trouble once a connection could be accepted.
func (l *listener) recovered(accepted int) {
	if l.trouble && accepted > 0 {
		l.trouble = false
		l.worker.log.Info("accepting again", journal.ID(journal.ListenerAccepting), zap.String("listener", l.name))
	}
}

// faultClass says what came of an accept.
type faultClass int

const (
	faultNone      faultClass = iota // a connection
	faultEmpty                       // nobody waits any more
	faultPassing                     // that connection's own; the next may be well
	faultExhausted                   // of the system; the same later
	faultFull                        // net/http is behind; the same soon
	faultFatal                       // of the socket
)

// faultOf is fault of what accept4(2) has returned.
func faultOf(errno unix.Errno) faultClass {
	switch errno {
	case 0:
		return faultNone
	case unix.EAGAIN:
		return faultEmpty
	}
	return fault(errno)
}

func fault(err error) faultClass {
	switch {
	case errors.Is(err, unix.EAGAIN):
		return faultEmpty
	case errors.Is(err, errFull):
		return faultFull
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED),
		// accept(2): on Linux, errors of the network that are pending on the
		// new connection; and a firewall's refusal.
		errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EPROTO), errors.Is(err, unix.ENOPROTOOPT),
		errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.ENONET), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EPERM):
		return faultPassing
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		return faultExhausted
	}
	return faultFatal
}

// address is what an accepted peer is dispatched by.
func (l *listener) address(peer unix.Sockaddr) netip.Addr {
	if l.gate == nil {
		return addressOf(peer)
	}
	return l.gate.address(peer)
}

func (l *listener) take(fd int, peer unix.Sockaddr) {
	l.worker.seat.Accepts.Add(1)
	if l.http != nil {
		l.http.take(fd, peer)
		return
	}
	var err error
	if to := l.dispatch.target(l.address(peer)); to != nil {
		err = l.worker.dispatchTo(to, fd, peer, l.conns)
	} else {
		_, err = l.worker.set.Accepted(fd, peer, l.conns)
	}
	if err != nil {
		l.gate.left(l.gate.address(peer))
		l.worker.log.Warn("connection not taken", zap.String("listener", l.name), zap.Error(err))
	}
}

// keepAliveIdle is for how many seconds a connection is silent before the
// kernel asks whether the peer is still there.
const keepAliveIdle = 55

// prepare sets what the connections inherit from a listening TCP socket,
// which costs nothing at the accept. A socket that refuses serves as well.
func (l *listener) prepare() {
	if !l.isTCP {
		return
	}
	// A peer that vanished without a word is noticed, if idle for ever is
	// allowed.
	option(l.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	option(l.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle)
	// Urgent bytes stay in the stream, so that the kernel's count of bytes
	// and ours agree.
	option(l.fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	// The replies of a turn leave in one write: there is nothing for Nagle to join.
	option(l.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// option sets a socket's option, if the system has it.
func option(fd, level, name, value int) { _ = unix.SetsockoptInt(fd, level, name, value) }

func (l *listener) broken(err error) { l.worker.listenerBroken(l.name, err) }

// listenerBroken: the socket cannot be served any more. The worker leaves;
// whoever comes after it may find it well.
func (w *Worker) listenerBroken(name string, err error) {
	w.log.Error("listener is broken", zap.String("listener", name), zap.Error(err))
	w.failure = err
	w.send(link.Failed{Reason: "listener " + name + ": " + err.Error()})
	w.leave(terms{grace: w.conf.Grace})
}
