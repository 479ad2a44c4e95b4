package conn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/wire/proxy"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// dialRig is a rig whose outgoing connections end with the test, with nothing
// left behind.
func dialRig(t *testing.T) *rig {
	t.Helper()
	before := sockets(t)
	t.Cleanup(func() {
		// Those of the test's own servers may still be on their way out.
		for end := time.Now().Add(patience); sockets(t) > before; {
			if time.Now().After(end) {
				t.Fatalf("%d sockets are open, want %d as before", sockets(t), before)
			}
			<-time.After(time.Millisecond)
		}
	})
	r := newRig(t)
	t.Cleanup(func() {
		done := make(chan struct{})
		r.do(func() { r.set.DrainOutgoing(DrainPrompt, 0, func() { close(done) }) })
		wait(t, done)
	})
	return r
}

// sockets counts the sockets that this process has.
func sockets(t testing.TB) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// down is what OnDown was told.
type down struct {
	cl   *Client
	why  error
	next time.Duration
}

// dialer returns a Dialer that notes what OnDown is told.
func (r *rig) dialer(h Handler, inline bool, change func(*DialConfig)) (*Dialer, chan down) {
	r.t.Helper()
	downs := make(chan down, 1024)
	cfg := DialConfig{
		Config: *r.config(h, inline), Timeout: 300 * time.Millisecond,
		Backoff: backoff.Policy{First: 10 * time.Millisecond, Max: 80 * time.Millisecond, Jitter: -1},
		OnDown:  func(cl *Client, why error, next time.Duration) { downs <- down{cl, why, next} },
	}
	cfg.Listener = "dial:test"
	if change != nil {
		change(&cfg)
	}
	d, err := r.set.NewDialer(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return d, downs
}

func (r *rig) dial(d *Dialer, address string) *Client {
	r.t.Helper()
	cl, err := d.Dial(address, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return cl
}

// server has each connection to a port of its own served by f, and then
// closed, and returns its address.
func server(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, c)
			mu.Unlock()
			wg.Go(func() { f(c); c.Close() })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range all {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "tcp://" + ln.Addr().String()
}

// echoBack sends back what comes. It hides what c is, so that package net does
// not keep pipes for splice(2), which are closed at some time by the collector.
func echoBack(c net.Conn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

// closedPort returns an address on which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return "tcp://" + ln.Addr().String()
}

// fullBacklog returns a socket whose backlog is full: whoever connects waits.
func fullBacklog(t *testing.T, sa unix.Sockaddr) (fd int, where string) {
	t.Helper()
	family := unix.AF_INET
	if _, ok := sa.(*unix.SockaddrUnix); ok {
		family = unix.AF_UNIX
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	if sa, err = unix.Getsockname(fd); err != nil {
		t.Fatal(err)
	}
	for { // fill it
		c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(c) })
		err = unix.Connect(c, sa)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.EINPROGRESS) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}, 200)
			if n == 0 && err == nil {
				break
			}
		} else if err != nil {
			t.Fatal(err)
		}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return fd, "unix://" + sa.Name
	default:
		return fd, "tcp://" + address(sa)
	}
}

func TestOutgoingConnectionHasTheCallbacksOfAnyOther(t *testing.T) {
	path := t.TempDir() + "/socket"
	local, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := local.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { echoBack(c); c.Close() })
		}
	})
	defer serving.Wait()
	defer local.Close()
	far := server(t, echoBack)
	for _, address := range []string{far, "unix://" + path, strings.Replace(far, "127.0.0.1", "localhost", 1)} {
		t.Run(strings.SplitN(address, ":", 2)[0]+strconv.Itoa(len(address)), func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := dialRig(t)
				var j journal
				closed := make(chan error, 1)
				d, downs := r.dialer(funcs{
					connect: func(c *Conn) { j.add("connect " + c.Listener()); c.Send([]byte("hello")) },
					message: func(c *Conn, m []byte) {
						j.add(string(m))
						if string(m) == "again" {
							c.SetTimer("later", time.Millisecond)
						}
					},
					timer: func(c *Conn, name string) { j.add(name); c.Client().Close(errTest) },
					close: func(c *Conn, why error) { j.add("close"); closed <- why },
				}, inline, func(c *DialConfig) { c.Protocol = text.Protocol{}; c.Timeout = patience })
				cl := r.dial(d, address)
				if err := cl.Send([]byte("again")); err != nil { // perhaps before it is connected
					t.Error(err)
				}
				if why := receive(t, closed); why != errTest {
					t.Errorf("OnClose: %v", why)
				}
				if got, want := strings.Join(j.all(), ", "), "connect dial:test, hello, again, later, close"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				if dn := receive(t, downs); dn.cl != cl || dn.why != errTest || dn.next >= 0 {
					t.Errorf("OnDown: %+v", dn)
				}
				if err := cl.Send(nil); err != ErrClosed {
					t.Errorf("Send after the end: %v", err)
				}
				if err := cl.Close(nil, []byte("x")); err != ErrClosed || cl.Conn() != nil {
					t.Errorf("Close after the end: %v, %v", err, cl.Conn())
				}
			})
		})
	}
}

var errTest = errors.New("enough")

func TestFailureToConnectSaysWhereAndWhy(t *testing.T) {
	refuse := func(answer string) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, answer); io.Copy(io.Discard, c) }
	}
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	_, blackHole := fullBacklog(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	_, fullUnix := fullBacklog(t, &unix.SockaddrUnix{Name: t.TempDir() + "/full"})
	hung := dnsServer(t, nil)
	unknown := dnsServer(t, func(string) ([]string, bool) { return nil, true })
	for _, tt := range []struct {
		name    string
		address string
		proxy   string
		dns     *net.Resolver
		step    ConnectStep
		at      string // in the address; empty: not looked at
		err     error
		late    bool
	}{
		{name: "nobody listens", address: closedPort(t), step: Reaching, at: "127.0.0.1:", err: unix.ECONNREFUSED},
		{name: "no such socket", address: "unix:///nowhere/at/all", step: Reaching, at: "/nowhere/at/all", err: unix.ENOENT},
		{name: "no network", address: "tcp://224.0.0.1:80", step: Reaching, at: "224.0.0.1:80", err: unix.ENETUNREACH},
		{name: "no answer", address: blackHole, step: Reaching, at: strings.TrimPrefix(blackHole, "tcp://"), err: os.ErrDeadlineExceeded, late: true},
		{name: "no room", address: fullUnix, step: Reaching, err: os.ErrDeadlineExceeded, late: true},
		{name: "DNS that hangs", address: "tcp://hangs.test:80", dns: hung, step: Resolving, at: "hangs.test", err: os.ErrDeadlineExceeded, late: true},
		{name: "no such name", address: "tcp://nobody.test:80", dns: unknown, step: Resolving, at: "nobody.test", err: new(net.DNSError)},
		{name: "no such zone", address: "tcp://[fe80::1%nowhere]:80", step: Resolving, at: "fe80::1%nowhere", err: new(net.OpError)},
		{name: "SOCKS5 that is silent", proxy: "socks5://" + host(server(t, silent)), step: Proxying, err: os.ErrDeadlineExceeded, late: true},
		{name: "SOCKS5 that hangs up", proxy: "socks5://" + host(server(t, func(c net.Conn) { c.Close() })), step: Proxying},
		{name: "SOCKS5 that resets", proxy: "socks5://" + host(server(t, reset)), err: unix.ECONNRESET},
		{name: "SOCKS5 that refuses", proxy: "socks5://" + host(server(t, refuse("\x05\x00\x05\x02"))), step: Proxying, err: new(proxy.Refused)},
		{name: "SOCKS5 that wants credentials", proxy: "socks5h://" + host(server(t, refuse("\x05\xff"))), step: Proxying, err: proxy.ErrCredentials},
		{name: "SOCKS5 that lies", proxy: "socks5://" + host(server(t, refuse("\x05\x00\x05\x00\x00\x07"))), step: Proxying, err: proxy.ErrMalformed},
		{name: "SOCKS5 that answers before it is asked", proxy: "socks5://" + host(server(t, refuse("\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"))), step: Proxying, err: proxy.ErrMalformed},
		{name: "SOCKS5 that never ends", proxy: "socks5://" + host(server(t, drip("\x05\x00\x05\x00\x00\x03\xff", time.Millisecond))), step: Proxying, err: os.ErrDeadlineExceeded, late: true},
		{name: "HTTP that is silent", proxy: "http://" + host(server(t, silent)), step: Proxying, err: os.ErrDeadlineExceeded, late: true},
		{name: "HTTP that refuses", proxy: "http://" + host(server(t, refuse("HTTP/1.1 403 no\r\n\r\n"))), step: Proxying, err: new(proxy.Refused)},
		{name: "HTTP that wants credentials", proxy: "http://" + host(server(t, refuse("HTTP/1.1 407 who\r\n\r\n"))), step: Proxying, err: proxy.ErrCredentials},
		{name: "HTTP that lies", proxy: "http://" + host(server(t, refuse("220 smtp\r\n"))), step: Proxying, err: proxy.ErrMalformed},
		{name: "HTTP with a head without an end", proxy: "http://" + host(server(t, func(c net.Conn) {
			for line := "HTTP/1.1 200 OK\r\n"; ; line = "A: b\r\n" {
				if _, err := io.WriteString(c, line); err != nil {
					return
				}
			}
		})), step: Proxying, err: proxy.ErrMalformed},
		{name: "proxy that nobody has", proxy: "http://" + host(closedPort(t)), step: Reaching, err: unix.ECONNREFUSED},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRig(t)
			if tt.address == "" {
				tt.address = "tcp://far.test:443"
			}
			d, downs := r.dialer(funcs{connect: func(*Conn) { t.Error("OnConnect") }}, true, func(c *DialConfig) {
				c.Proxy, c.Resolver = tt.proxy, tt.dns
				if !tt.late {
					c.Timeout = patience
				}
			})
			start := time.Now()
			var before int
			r.do(func() { before = r.turns })
			r.dial(d, tt.address)
			if tt.late {
				// The loop turns on meanwhile: each question is a turn.
				for range 20 {
					r.do(func() {})
				}
			}
			dn := receive(t, downs)
			took := time.Since(start)
			e, ok := errors.AsType[*ConnectError](dn.why)
			if !ok || dn.next >= 0 {
				t.Fatalf("OnDown: %v, %v", dn.why, dn.next)
			}
			if tt.step != 0 && e.Step != tt.step || !strings.Contains(e.Address, tt.at) || e.Target != tt.address {
				t.Errorf("%v at %q for %q, want %v at %q", e.Step, e.Address, e.Target, tt.step, tt.at)
			}
			switch want := tt.err.(type) {
			case nil:
			case *proxy.Refused, *net.DNSError, *net.OpError:
				if got := fmt.Sprintf("%T", e.Err); got != fmt.Sprintf("%T", want) && tt.at != "fe80::1%nowhere" {
					t.Errorf("error %v of type %s, want %T", e.Err, got, want)
				}
			default:
				if !errors.Is(dn.why, tt.err) {
					t.Errorf("error %v, want %v", dn.why, tt.err)
				}
			}
			if tt.late != (e.After > 0) || tt.late && (took < 300*time.Millisecond || took > 300*time.Millisecond+5*time.Second) {
				t.Errorf("%v after %v, deadline %v", e, took, e.After)
			}
			var after int
			r.do(func() { after = r.turns })
			if tt.late && after-before < 20 {
				t.Errorf("the loop has turned %d times", after-before)
			}
			r.do(func() {
				if n := r.loop.Watched() + r.loop.Timers(); n != 0 {
					t.Errorf("%d descriptors and timers are left", n)
				}
			})
			t.Log(dn.why)
		})
	}
}

func host(address string) string { return strings.TrimPrefix(address, "tcp://") }

// reset breaks a connection.
func reset(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// drip answers byte by byte, and then for ever with zeroes if that is wanted.
func drip(answer string, pause time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		for _, b := range []byte(answer) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			<-time.After(pause)
		}
		echoBack(c)
	}
}

// dnsServer answers on loopback what addresses of IPv4 a name has: f's second
// word is whether there is an answer at all. A nil f never answers.
func dnsServer(t *testing.T, f func(name string) (ips []string, ok bool)) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	wg.Go(func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if f == nil || n < 12 {
				continue
			}
			q := buf[12:n]
			var labels []string
			at := 0
			for q[at] != 0 {
				labels = append(labels, string(q[at+1:at+1+int(q[at])]))
				at += 1 + int(q[at])
			}
			kind := binary.BigEndian.Uint16(q[at+1:])
			q = q[:at+5]
			ips, ok := f(strings.Join(labels, "."))
			if !ok {
				continue
			}
			if kind != 1 { // not A
				ips = ips[:0:0]
			}
			reply := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, byte(len(ips)), 0, 0, 0, 0}, q...)
			if ips == nil && kind == 1 {
				reply[3] = 0x83 // NXDOMAIN
			}
			for _, ip := range ips {
				reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
				reply = append(reply, net.ParseIP(ip).To4()...)
			}
			pc.WriteTo(reply, from)
		}
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

func TestAddressesAreTriedOneAfterTheOther(t *testing.T) {
	_, blackHole := fullBacklog(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	_, port, _ := net.SplitHostPort(host(blackHole))
	ln, err := net.Listen("tcp", "127.0.0.3:"+port)
	if err != nil {
		t.Skipf("port %s of 127.0.0.3 is taken: %v", port, err)
	}
	defer ln.Close()
	dns := dnsServer(t, func(name string) ([]string, bool) {
		switch {
		case strings.HasPrefix(name, "good"):
			return []string{"127.0.0.2", "127.0.0.1", "127.0.0.3"}, true // refused, silent, good
		default:
			return []string{"127.0.0.2", "127.0.0.1"}, true
		}
	})
	r := dialRig(t)
	peers := make(chan string, 1)
	d, downs := r.dialer(funcs{connect: func(c *Conn) { peers <- c.Peer() }}, true, func(c *DialConfig) {
		c.Resolver, c.Timeout = dns, 2*time.Second
	})
	r.dial(d, "tcp://good.test:"+port)
	if got := receive(t, peers); got != "127.0.0.3:"+port {
		t.Errorf("connected to %s", got)
	}
	start := time.Now()
	r.dial(d, "tcp://bad.test:"+port)
	dn := receive(t, downs)
	both, ok := dn.why.(interface{ Unwrap() []error })
	if !ok || len(both.Unwrap()) != 2 || !errors.Is(dn.why, unix.ECONNREFUSED) || !errors.Is(dn.why, os.ErrDeadlineExceeded) {
		t.Errorf("OnDown: %v, want both addresses", dn.why)
	}
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("given up after %v, want all of 2 s", took)
	}
}

func TestNamesThatHangDoNotHoldUpTheOthersForLongerThanTheirDeadline(t *testing.T) {
	r := dialRig(t)
	d, downs := r.dialer(funcs{}, true, func(c *DialConfig) { c.Resolver = dnsServer(t, nil) })
	const n = 3 * maxLookups
	start := time.Now()
	for i := range n {
		r.dial(d, fmt.Sprintf("tcp://hangs%d.test:80", i))
	}
	for range n {
		if dn := receive(t, downs); !errors.Is(dn.why, os.ErrDeadlineExceeded) {
			t.Errorf("OnDown: %v", dn.why)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("all deadlines of 300 ms were over after %v", took)
	}
	// And an address needs no lookup at all.
	peers := make(chan string, 1)
	d, _ = r.dialer(funcs{connect: func(c *Conn) { peers <- c.Peer() }}, true, nil)
	r.dial(d, "tcp://hangs.test:80").Close(nil)
	far := server(t, echoBack)
	r.dial(d, far)
	if got := receive(t, peers); got != host(far) {
		t.Errorf("connected to %s, want %s", got, far)
	}
}

func TestPeerThatAcceptsLateIsWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		name string
		sa   unix.Sockaddr
	}{
		{"tcp", &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}},
		{"unix", &unix.SockaddrUnix{Name: t.TempDir() + "/late"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, address := fullBacklog(t, tt.sa)
			r := dialRig(t)
			connected := make(chan *Conn, 1)
			d, _ := r.dialer(funcs{connect: func(c *Conn) { connected <- c }}, true, func(c *DialConfig) { c.Timeout = patience })
			r.dial(d, address)
			for range 50 { // it is under way, and the loop turns
				r.do(func() {})
			}
			select {
			case <-connected:
				t.Fatal("connected, with a full backlog")
			default:
			}
			// All that wait are taken from now on.
			taken := make(chan int, 1024)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					if c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
						taken <- c
					}
				}
			})
			receive(t, connected)
			close(stop)
			wg.Wait()
			close(taken)
			for c := range taken {
				unix.Close(c)
			}
		})
	}
}

func TestProxyLeadsToTheFarEnd(t *testing.T) {
	const ok5 = "\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"
	answer := func(text string, request int) func(net.Conn) {
		return func(c net.Conn) {
			io.ReadFull(c, make([]byte, request))
			drip(text, time.Millisecond)(c)
		}
	}
	slowly5 := func(c net.Conn) {
		io.ReadFull(c, make([]byte, 3))
		for _, b := range []byte(ok5[:2]) {
			c.Write([]byte{b})
			<-time.After(5 * time.Millisecond)
		}
		answer(ok5[2:]+"hello\n", 15)(c)
	}
	long := "HTTP/1.1 200 OK\r\n" + strings.Repeat("Via: a long way\r\n", 400) + "\r\n"
	httpRequest := len("CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n")
	for _, tt := range []struct {
		name  string
		proxy string
		sends []byte // the far end, first
		tx    uint64
		rx    int
	}{
		{name: "SOCKS5, slowly", proxy: "socks5://" + host(server(t, slowly5)), tx: 3 + 15, rx: len(ok5)},
		{name: "SOCKS5, all at once", proxy: "socks5://" + host(server(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 3))
			io.WriteString(c, ok5[:2])
			io.ReadFull(c, make([]byte, 15))
			io.WriteString(c, ok5[2:]+"hello\n")
			echoBack(c)
		})), tx: 3 + 15, rx: len(ok5)},
		{name: "HTTP, slowly", proxy: "http://" + host(server(t, answer("HTTP/1.1 200 OK\r\n\r\nhello\n", httpRequest))), tx: uint64(httpRequest), rx: len("HTTP/1.1 200 OK\r\n\r\n")},
		{name: "HTTP with a long answer", proxy: "http://" + host(server(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, httpRequest))
			io.WriteString(c, long+"hello\n")
			echoBack(c)
		})), tx: uint64(httpRequest), rx: len(long)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRig(t)
			messages := make(chan string, 16)
			d, _ := r.dialer(funcs{message: func(c *Conn, m []byte) { messages <- string(m) }}, true, func(c *DialConfig) {
				c.Proxy, c.Protocol, c.Timeout = tt.proxy, text.Protocol{}, patience
			})
			cl := r.dial(d, "tcp://far.test:443")
			if got := receive(t, messages); got != "hello" {
				t.Errorf("the far end says %q", got)
			}
			c := cl.Conn()
			if rx, want := c.BytesIn(), uint64(tt.rx+len("hello\n")); rx != want {
				t.Errorf("%d bytes were read, want %d", rx, want)
			}
			if tx, want := c.BytesOut(), tt.tx+1; tx != want { // and the SYN
				t.Errorf("%d bytes were written, want %d", tx, want)
			}
			if info, err := unix.GetsockoptTCPInfo(int(c.fd), unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Bytes_received != c.BytesIn() || info.Bytes_acked > c.BytesOut() {
				t.Errorf("the kernel says %+v, %v", info, err)
			}
			if c.Peer() != host(strings.SplitN(tt.proxy, "//", 2)[1]) {
				t.Errorf("peer is %s", c.Peer())
			}
		})
	}
}

// TestRealProxyLeadsToTheFarEnd talks through microsocks, if it is installed.
func TestRealProxyLeadsToTheFarEnd(t *testing.T) {
	program, err := exec.LookPath("microsocks")
	if err != nil {
		t.Skip("microsocks is not installed")
	}
	port := host(closedPort(t))
	_, number, _ := net.SplitHostPort(port)
	cmd := exec.Command(program, "-i", "127.0.0.1", "-p", number, "-u", "me", "-P", "secret")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	far := server(t, echoBack)
	r := dialRig(t)
	messages := make(chan string, 16)
	d, _ := r.dialer(funcs{message: func(c *Conn, m []byte) { messages <- string(m) }}, true, func(c *DialConfig) {
		c.Proxy, c.Protocol, c.Timeout, c.Reconnect = "socks5://me:secret@"+port, text.Protocol{}, patience, true // until it is up
	})
	cl := r.dial(d, strings.Replace(far, "127.0.0.1", "localhost", 1))
	cl.Send([]byte("through"))
	if got := receive(t, messages); got != "through" {
		t.Errorf("got %q", got)
	}
}

func TestConnectionToItselfIsNone(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if toItself(fd) {
		t.Error("a socket that is not connected is connected to itself")
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		t.Fatal(err)
	}
	if !toItself(fd) {
		t.Error("it is not noticed")
	}
}

func TestAddressesAndProxiesAreChecked(t *testing.T) {
	r := dialRig(t)
	for _, tt := range []struct {
		name           string
		address, proxy string
		want           string // in the error; empty: it is right
	}{
		{name: "tcp", address: "tcp://example.com:80"},
		{name: "IPv6", address: "tcp://[::1]:80"},
		{name: "path", address: "unix:///run/x"},
		{name: "abstract", address: "unix://@x"},
		{name: "proxy", address: "tcp://example.com:80", proxy: "socks5://u:p@proxy.test:1080"},
		{name: "proxy to nowhere yet", proxy: "http://proxy.test:3128/"},
		{name: "no scheme", address: "example.com:80", want: "want tcp://HOST:PORT"},
		{name: "another scheme", address: "quic://example.com:80", want: "want tcp://HOST:PORT"},
		{name: "no port", address: "tcp://example.com", want: "want tcp://HOST:PORT"},
		{name: "port 0", address: "tcp://example.com:0", want: `port "0"`},
		{name: "port with a name", address: "tcp://example.com:http", want: `port "http"`},
		{name: "no host", address: "tcp://:80", want: "want tcp://HOST:PORT"},
		{name: "relative path", address: "unix://x/y", want: "want tcp://HOST:PORT"},
		{name: "long path", address: "unix:///" + strings.Repeat("x", 200), want: "path of 201 bytes"},
		{name: "unix by proxy", address: "unix:///run/x", proxy: "http://proxy.test:3128", want: "only tcp://"},
		{name: "udp by proxy", address: "udp://example.com:53", proxy: "socks5://proxy.test:1080", want: "only tcp://"},
		{name: "host that no proxy takes", address: "tcp://münchen.example:80", proxy: "http://proxy.test:3128", want: "cannot be asked for"},
		{name: "proxy of another kind", proxy: "https://me:secret@proxy.test:443", want: "proxy: want socks5://"},
		{name: "proxy without a port", proxy: "http://me:secret@proxy.test", want: "proxy: want socks5://"},
		{name: "proxy with a path", proxy: "http://me:secret@proxy.test:80/x", want: "proxy: want socks5://"},
		{name: "proxy that is no URL", proxy: "http://me:secret@proxy.test:port", want: "proxy: want socks5://"},
		{name: "user with a colon", address: "tcp://a:1", proxy: "http://m%3ae:secret@proxy.test:80", want: "no colon in the user"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := DialConfig{Config: *r.config(funcs{}, true), Address: tt.address, Proxy: tt.proxy}
			_, err := r.set.NewDialer(cfg)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := r.set.NewDialer(DialConfig{}); err == nil {
		t.Error("no Handler is no error")
	}
	if _, err := r.set.NewDialer(DialConfig{Config: Config{Handler: funcs{}, Inline: true, Protocol: text.Protocol{}}, Address: "udp://127.0.0.1:1"}); err == nil {
		t.Error("lines in datagrams are no error")
	}
	d, _ := r.dialer(funcs{}, true, nil)
	for _, address := range []string{"", "udp://127.0.0.1:1", "nonsense"} {
		if _, err := d.Dial(address, nil); err == nil {
			t.Errorf("Dial(%q) is no error", address)
		}
	}
}

func TestDialerRefusesWhatIsOfAcceptedConnections(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
	}{
		{"a PROXY header", func(c *Config) { proxied(c) }},
		{"what they become", func(c *Config) { c.Becomes = []*Config{{ProtocolName: "other"}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := DialConfig{Config: *r.config(NopHandler{}, true), Address: "tcp://127.0.0.1:1"}
			tt.change(&cfg.Config)
			if _, err := r.set.NewDialer(cfg); err == nil {
				t.Error("NewDialer takes it")
			}
		})
	}
}
