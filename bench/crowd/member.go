package crowd

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Member does what a process of a crowd does, and exits, if this is one;
// otherwise it returns at once. main calls it before anything else, and so
// does TestMain.
func Member() {
	if os.Getenv(environment) == "" {
		return
	}
	if err := attend(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// attend does one task, tells what came of it, and holds the connections until
// in ends. The kernel closes them with the process.
func attend(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it lives for seconds, and is not to pause
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return fmt.Errorf("crowd: %w", err)
	}
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return nil // called off
	}
	var t task
	if err == nil {
		err = json.Unmarshal(line, &t)
	}
	if err != nil {
		return fmt.Errorf("crowd: %w", err)
	}
	o, err := t.do()
	if err != nil {
		return fmt.Errorf("crowd: %w", err)
	}
	if err := json.NewEncoder(out).Encode(o); err != nil {
		return fmt.Errorf("crowd: %w", err)
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// client is a connection, seen from the member.
type client struct {
	fd       int
	open     time.Duration
	answered time.Duration // 0: not yet
	failed   bool
}

// work is a task that is being done.
type work struct {
	task
	ep      int
	server  unix.Sockaddr
	clients []client
	waiting int
	events  [256]unix.EpollEvent
	outcome
}

// do opens connections as they are due and takes their answers.
func (t task) do() (*outcome, error) {
	if err := growTable(t.Connections + spareFiles); err != nil {
		return nil, err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	w := &work{task: t, ep: ep, server: &unix.SockaddrInet4{Port: t.Port, Addr: [4]byte{127, 0, 0, 1}}, clients: make([]client, 0, t.Connections)}
	for len(w.clients) < t.Connections || w.waiting > 0 {
		now := monotonic()
		if now > t.Until {
			break
		}
		wait := t.Until - now
		if n := len(w.clients); n < t.Connections && w.waiting < t.Waiting {
			due := t.Begin + time.Duration(n)*t.Interval
			if wait = due - now; wait <= 0 {
				if t.Interval > 0 {
					w.Late = max(w.Late, -wait)
				}
				w.connect()
				wait = 0
			}
		}
		if err := w.take(wait); err != nil {
			return nil, err
		}
	}
	w.tell()
	return &w.outcome, nil
}

// growTable makes the kernel's table of our descriptors as large as it will
// be. It would grow at powers of two otherwise, which takes a process with
// several threads 10 to 20 ms each time (an RCU grace period), in which no
// answer is taken: it would look like the server's delay.
func growTable(n int) error {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, n)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return unix.Close(fd)
}

// connect opens the next connection and sends its byte. A connect that waits
// is one that the kernel's row of the listener has no room for.
func (w *work) connect() {
	i := len(w.clients)
	w.clients = append(w.clients, client{fd: -1})
	c := &w.clients[i]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.fail(c, os.NewSyscallError("socket", err))
		return
	}
	c.fd = fd
	err = errors.Join(
		// The port is chosen for the four of addresses and ports, not to be
		// free for this source altogether: ip(7).
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: connectTimeout}),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: w.Source})),
	)
	if err == nil {
		if err = unix.Connect(fd, w.server); err == unix.EINTR { // the Go runtime's own signals
			err = connected(fd)
		}
		err = os.NewSyscallError("connect", err)
	}
	c.open = monotonic()
	if err == nil {
		_, err = unix.Write(fd, []byte(cmp.Or(w.Ask, ".")))
	}
	if err == nil {
		err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(w.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}))
	}
	if err != nil {
		w.fail(c, err)
		return
	}
	w.waiting++
}

// connected waits for the end of a connect that a signal has interrupted: it
// goes on meanwhile, connect(2).
func connected(fd int) error {
	until := monotonic() + connectTimeout*time.Second
	for {
		ts := unix.NsecToTimespec(int64(max(until-monotonic(), 0)))
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, &ts, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.ETIMEDOUT
		}
		errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || errno == 0 {
			return err
		}
		return unix.Errno(errno)
	}
}

// connectTimeout bounds a connect, in seconds.
const connectTimeout = 5

// take takes the answers that come within wait; zero: those that are there.
func (w *work) take(wait time.Duration) error {
	if wait > 0 {
		// epoll_wait(2) knows milliseconds only.
		ts := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll([]unix.PollFd{{Fd: int32(w.ep), Events: unix.POLLIN}}, &ts, nil); err != nil && err != unix.EINTR {
			return os.NewSyscallError("ppoll", err)
		}
	}
	n, err := unix.EpollWait(w.ep, w.events[:], 0)
	if err != nil && err != unix.EINTR {
		return os.NewSyscallError("epoll_wait", err)
	}
	for i := range max(n, 0) {
		w.hear(&w.clients[w.events[i].Fd])
	}
	return nil
}

// hear takes what has come for c: its byte, or the end.
func (w *work) hear(c *client) {
	var b [1024]byte
	n, _, err := unix.Recvfrom(c.fd, b[:], unix.MSG_DONTWAIT)
	now := monotonic()
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case err != nil:
		w.lose(c, os.NewSyscallError("recv", err))
	case n == 0:
		w.lose(c, errors.New("the server has closed a connection"))
	case w.Ask != "" && c.answered > 0: // the rest of the answer
	case w.Ask == "" && (n != 1 || b[0] != '.' || c.answered > 0):
		w.lose(c, fmt.Errorf("%q came back, one byte was sent", b[:n]))
	default:
		c.answered = now
		w.waiting--
	}
}

// lose fails c, which is open.
func (w *work) lose(c *client, err error) {
	if c.answered == 0 {
		w.waiting--
	}
	w.fail(c, err)
}

func (w *work) fail(c *client, err error) {
	c.failed = true
	w.Failed++
	if w.FirstError == "" {
		w.FirstError = err.Error()
	}
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// tell fills in the outcome.
func (w *work) tell() {
	if missing := w.Connections - len(w.clients) + w.waiting; missing > 0 {
		w.Failed += missing
		if w.FirstError == "" {
			w.FirstError = "not answered in time"
		}
	}
	for _, c := range w.clients {
		if c.failed || c.answered == 0 {
			continue
		}
		name, err := unix.Getsockname(c.fd)
		own, ok := name.(*unix.SockaddrInet4)
		if err != nil || !ok {
			w.fail(&c, fmt.Errorf("getsockname: %v, %v", name, err))
			continue
		}
		w.Ports = append(w.Ports, uint16(own.Port))
		w.Open = append(w.Open, c.open)
		w.Answered = append(w.Answered, c.answered)
	}
}
