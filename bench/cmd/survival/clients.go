package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// clients are connections that send numbered messages and want them back.
type clients struct {
	loop     *reactor.Loop
	conns    []*client
	living   int
	waiting  int // for answers
	lost     int
	wrong    int
	busy     bool            // the next message follows an answer at once
	times    []time.Duration // of answers, since the last "window"
	pace     *reactor.Timer  // sends messages at a rate
	next     int
	checked  int // how many connections a check has had say something
	checking func(answer)

	// While connecting.

	server    unix.Sockaddr
	source    [4]byte
	wanted    int
	connected func(answer)
}

// client is one connection.
type client struct {
	all   *clients
	fd    int
	token reactor.Token
	seq   uint64
	sent  time.Duration // 0: no message is under way
	got   int           // bytes of the answer
	buf   [8]byte
	over  bool
}

func newClients() (*clients, error) {
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		return nil, err
	}
	return &clients{loop: loop}, nil
}

func (c *clients) run() error    { return c.loop.Run() }
func (c *clients) post(f func()) { _ = c.loop.Post(f) } // it stops with the process only

// do does one of
//
//	connect PORT LAST N   N connections to 127.0.0.1:PORT from 127.0.0.LAST, each of which has its first answer
//	pace N                N messages a second of all together; 0: no more
//	busy yes|no           every connection always has a message under way
//	window                what was seen since the last one
//	check                 has every connection answer
//	close                 all connections
func (c *clients) do(words []string, answer func(answer)) {
	number := func(i int) int { n, _ := strconv.Atoi(words[i]); return n }
	switch words[0] {
	case "connect":
		c.server = &unix.SockaddrInet4{Port: number(1), Addr: [4]byte{127, 0, 0, 1}}
		c.source = [4]byte{127, 0, 0, byte(number(2))}
		c.wanted, c.connected = len(c.conns)+number(3), answer
		c.connect()
	case "pace":
		c.setPace(number(1))
		answer(c.seen())
	case "busy":
		if c.busy = words[1] == "yes"; c.busy {
			for _, x := range c.conns {
				x.say()
			}
		}
		answer(c.seen())
	case "window":
		answer(c.seen())
	case "check":
		c.busy = false
		c.setPace(0)
		c.checking, c.checked = answer, 0
		c.check()
	case "close":
		for _, x := range c.conns {
			x.shut()
		}
		*c = clients{loop: c.loop}
		answer(c.seen())
	default:
		answer(failed(fmt.Errorf("no command %q", words[0])))
	}
}

// seen tells what was seen since the last time. Who still waits for an answer
// counts with what it has waited.
func (c *clients) seen() answer {
	now := c.loop.Clock()
	for _, x := range c.conns {
		if x.sent != 0 {
			c.times = append(c.times, now-x.sent)
		}
	}
	slices.Sort(c.times)
	a := answer{At: clock(), Count: c.living, Lost: c.lost, Wrong: c.wrong}
	if n := len(c.times); n > 0 {
		a.Longest, a.P99 = c.times[n-1], c.times[n*99/100]
	}
	c.times = c.times[:0]
	return a
}

// setPace has so many messages sent a second: few often, not many seldom.
func (c *clients) setPace(rate int) {
	if c.pace != nil {
		c.pace.Stop()
		c.pace = nil
	}
	if rate == 0 {
		return
	}
	const ticks = 500
	debt := 0
	c.pace = c.loop.Every(time.Second/ticks, func() {
		for debt += rate; debt >= ticks; debt -= ticks {
			c.next = (c.next + 1) % max(1, len(c.conns))
			c.conns[c.next].say()
		}
	})
}

// connectAtOnce is how many connect before all of them have had an answer.
const connectAtOnce = 200

// connect goes on connecting.
func (c *clients) connect() {
	if c.connected == nil || c.waiting > 0 {
		return
	}
	if len(c.conns) >= c.wanted {
		answer := c.connected
		c.connected = nil
		answer(c.seen())
		return
	}
	for range min(connectAtOnce, c.wanted-len(c.conns)) {
		x, err := c.dial()
		if err != nil {
			answer := c.connected
			c.connected = nil
			answer(failed(err))
			return
		}
		x.say()
	}
}

func (c *clients) dial() (*client, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		// The port is chosen for the four of addresses and ports, not to be
		// free for this source altogether: ip(7).
		{"setsockopt", func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) }},
		// A reset leaves no port behind in TIME_WAIT.
		{"setsockopt", func() error {
			return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}},
		{"bind", func() error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: c.source}) }},
		{"connect", func() error { return unix.Connect(fd, c.server) }},
		{"fcntl", func() error { return unix.SetNonblock(fd, true) }},
	} {
		if err := step.do(); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError(step.what, err)
		}
	}
	x := &client{all: c, fd: fd}
	if x.token, err = c.loop.Add(fd, reactor.Readable, x); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.conns = append(c.conns, x)
	c.living++
	return x, nil
}

// say sends the next message, unless one is under way.
func (x *client) say() {
	if x.sent != 0 || x.over {
		return
	}
	x.seq++
	var m [8]byte
	binary.LittleEndian.PutUint64(m[:], x.seq)
	x.sent, x.got = x.all.loop.Clock(), 0
	x.all.waiting++
	if n, _ := reactor.Write(x.fd, m[:]); n != len(m) {
		x.end()
	}
}

// OnReady takes an answer.
func (x *client) OnReady(reactor.Events) {
	if x.over {
		return
	}
	if x.sent == 0 { // nothing is waited for: it is the end
		x.end()
		return
	}
	n, errno := reactor.Read(x.fd, x.buf[x.got:])
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n == 0 {
		x.end()
		return
	}
	if x.got += n; x.got < len(x.buf) {
		return
	}
	if binary.LittleEndian.Uint64(x.buf[:]) != x.seq {
		x.all.wrong++
		x.end()
		return
	}
	x.all.times = append(x.all.times, x.all.loop.Clock()-x.sent)
	x.answered()
	if x.all.busy {
		x.say()
	}
}

func (x *client) answered() {
	x.sent = 0
	x.all.waiting--
	x.all.connect()
	x.all.check()
}

// end takes note of a connection that was lost.
func (x *client) end() {
	x.shut()
	x.all.lost++
	x.all.living--
	if x.sent != 0 {
		x.answered()
	}
}

func (x *client) shut() {
	if !x.over {
		x.over = true
		_ = x.all.loop.Remove(x.token) // it was added
		unix.Close(x.fd)
	}
}

// check has every connection say something, some at a time, and answers when
// all were answered or lost.
func (c *clients) check() {
	const atOnce = 64
	for c.checking != nil && c.waiting < atOnce && c.checked < len(c.conns) {
		x := c.conns[c.checked]
		c.checked++
		x.say()
	}
	if c.checking != nil && c.checked == len(c.conns) && c.waiting == 0 {
		answer := c.checking
		c.checking = nil
		answer(c.seen())
	}
}
