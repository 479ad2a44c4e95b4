package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// bare is either of the two bare processes. The one has accepted connections
// from its listener, descriptor 3, and stands for the dead worker and its
// keeper; the other gets them through descriptor 3 and adds them to an epoll
// instance.
type bare struct {
	commands chan func()
	epoll    int
	conns    []int
}

func (b *bare) post(f func()) { b.commands <- f }

func (b *bare) run() error {
	for f := range b.commands {
		f()
	}
	return nil
}

// bareBatch is how many descriptors go by one message.
const bareBatch = 64

func (b *bare) do(words []string, answer func(answer)) {
	switch words[0] {
	case "accept":
		a, err := b.accept(words[1])
		if err != nil {
			a = failed(err)
		}
		answer(a)
	case "take":
		a, err := b.take(words[1])
		if err != nil {
			a = failed(err)
		}
		answer(a)
	default:
		answer(failed(fmt.Errorf("no command %q", words[0])))
	}
}

// accept accepts n connections and tells all descriptors that it has.
func (b *bare) accept(n string) (answer, error) {
	more, err := strconv.Atoi(n)
	if err != nil {
		return answer{}, err
	}
	for range more {
		for {
			p := []unix.PollFd{{Fd: 3, Events: unix.POLLIN}}
			if _, err := unix.Poll(p, int(patience.Milliseconds())); err != nil && err != unix.EINTR {
				return answer{}, os.NewSyscallError("poll", err)
			}
			fd, _, err := unix.Accept4(3, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err == unix.EAGAIN || err == unix.EINTR {
				continue
			}
			if err != nil {
				return answer{}, os.NewSyscallError("accept4", err)
			}
			b.conns = append(b.conns, fd)
			break
		}
	}
	return answer{Count: len(b.conns), FDs: b.conns}, nil
}

// take receives n descriptors, adds them to an epoll instance, and tells when
// the last was there. Then it closes them.
func (b *bare) take(n string) (a answer, err error) {
	wanted, err := strconv.Atoi(n)
	if err != nil {
		return a, err
	}
	if b.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return a, os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(b.epoll)
	var taken []int
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	m, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*bareBatch))
	for len(taken) < wanted {
		n, oobn, flags, _, err := unix.Recvmsg(3, m, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 || flags&unix.MSG_CTRUNC != 0 {
			return a, fmt.Errorf("received %d bytes with flags %#x: %w", n, flags, os.NewSyscallError("recvmsg", err))
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			return a, fmt.Errorf("%d control messages, %w", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return a, err
		}
		for _, fd := range fds {
			if err := unix.EpollCtl(b.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}); err != nil {
				return a, os.NewSyscallError("epoll_ctl", err)
			}
			taken = append(taken, fd)
		}
	}
	return answer{At: clock(), Count: len(taken)}, nil
}

// floor is the bare processes and the clients of the first, which say nothing.
type floor struct {
	dead, taker *child
	pidfd, end  int // of the dead; our end of the pair whose other the taker has
	fds         []int
	clients     []net.Conn
}

// startFloor starts the bare processes with n connections.
func startFloor(n int) (_ *floor, err error) {
	f := &floor{pidfd: -1, end: -1}
	defer func() {
		if err != nil {
			f.stop()
			err = fmt.Errorf("survival: bare: %w", err)
		}
	}()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if f.dead, err = startChild("bare", file); err != nil {
		return nil, err
	}
	for len(f.clients) < n {
		step := min(n-len(f.clients), 500) // fits into the backlog
		for range step {
			c, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				return nil, err
			}
			f.clients = append(f.clients, c)
		}
		a, err := f.dead.ask("accept %d", step)
		if err != nil {
			return nil, err
		}
		f.fds = a.FDs
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	f.end = pair[0]
	other := os.NewFile(uintptr(pair[1]), "pair")
	defer other.Close()
	if f.taker, err = startChild("bare", other); err != nil {
		return nil, err
	}
	f.pidfd, err = unix.PidfdOpen(f.dead.cmd.Process.Pid, 0)
	return f, os.NewSyscallError("pidfd_open", err)
}

// round takes every connection once out of the first process and gives it to
// the second, and returns how long that took. The first keeps its own.
func (f *floor) round() (time.Duration, error) {
	type taken struct {
		answer
		err error
	}
	done := make(chan taken, 1)
	go func() {
		a, err := f.taker.ask("take %d", len(f.fds))
		done <- taken{a, err}
	}()
	<-time.After(20 * time.Millisecond) // for the taker to wait
	began := clock()
	batch := make([]int, 0, bareBatch)
	for i, fd := range f.fds {
		got, err := unix.PidfdGetfd(f.pidfd, fd, 0)
		if err != nil {
			return 0, fmt.Errorf("survival: bare: %w", os.NewSyscallError("pidfd_getfd", err))
		}
		if batch = append(batch, got); len(batch) < bareBatch && i < len(f.fds)-1 {
			continue
		}
		for {
			err = unix.Sendmsg(f.end, []byte{1}, unix.UnixRights(batch...), nil, unix.MSG_NOSIGNAL)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		for _, fd := range batch {
			unix.Close(fd)
		}
		if err != nil {
			return 0, fmt.Errorf("survival: bare: %w", os.NewSyscallError("sendmsg", err))
		}
		batch = batch[:0]
	}
	a := <-done
	return a.At - began, a.err
}

// stop ends the processes, and drops the connections by a reset, which leaves
// no port behind in TIME_WAIT.
func (f *floor) stop() {
	for _, c := range f.clients {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	for _, c := range []*child{f.dead, f.taker} {
		if c != nil {
			c.stop()
		}
	}
	for _, fd := range []int{f.pidfd, f.end} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
