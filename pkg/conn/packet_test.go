package conn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// udp makes a bound socket that does not block, and its address.
func udp(t testing.TB, where string) (fd int, addr netip.AddrPort) {
	t.Helper()
	addr = netip.MustParseAddrPort(where)
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this machine has no sockets of this family: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sa); err != nil {
		t.Skipf("this machine has no address %s: %v", where, err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(addr.Addr(), netip.MustParseAddrPort(address(bound)).Port())
}

// packets serves fd until the test's end.
func (r *rig) packets(fd int, cfg PacketConfig) (p *Packets) {
	r.t.Helper()
	cfg.Listener, cfg.Seat = "test", r.seat
	r.do(func() {
		var err error
		if p, err = r.set.Packets(fd, cfg); err == nil {
			err = p.Watch()
		}
		if err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(func() {
		r.do(func() {
			if err := p.Unwatch(); err != nil {
				r.t.Error(err)
			}
		})
	})
	return p
}

func dialUDP(t testing.TB, network string, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP(network, nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestDatagramsAreAnsweredFromWhereTheyWereSentTo(t *testing.T) {
	for _, tt := range []struct{ name, bind, network, to string }{
		{"one address", "127.0.0.1:0", "udp4", "127.0.0.1"},
		{"any address", "0.0.0.0:0", "udp4", "127.0.0.1"},
		{"another of any address", "0.0.0.0:0", "udp4", "127.0.0.2"},
		{"one of IPv6", "[::1]:0", "udp6", "::1"},
		{"any of IPv6", "[::]:0", "udp6", "::1"},
		{"IPv4 at a socket of IPv6", "[::]:0", "udp4", "127.0.0.2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			fd, addr := udp(t, tt.bind)
			peers := make(chan netip.AddrPort, 8)
			r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) {
				peers <- d.Peer
				if err := d.Reply(d.Data); err != nil {
					t.Error(err)
				}
			}})
			// A connected client sees only what comes from the address it has sent to.
			c := dialUDP(t, tt.network, netip.AddrPortFrom(netip.MustParseAddr(tt.to), addr.Port()))
			buf := make([]byte, 64<<10)
			for _, m := range []string{"hello", "", strings.Repeat("x", 60000)} {
				if _, err := c.Write([]byte(m)); err != nil {
					t.Fatal(err)
				}
				n, err := c.Read(buf)
				if err != nil || string(buf[:n]) != m {
					t.Fatalf("got %d bytes, %v, want %d", n, err, len(m))
				}
				if got, want := receive(t, peers), netip.MustParseAddrPort(c.LocalAddr().String()); got != want {
					t.Errorf("peer %v, want %v", got, want)
				}
			}
			r.until("counters", func() bool {
				return r.seat.Datagrams.Load() == 3 && r.seat.BytesIn.Load() == 60005 && r.seat.BytesOut.Load() == 60005
			})
		})
	}
}

func TestManyDatagramsAreAnsweredEachToItsPeer(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "127.0.0.1:0")
	r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) {
		for i := range 2 {
			if err := d.Reply(fmt.Appendf(nil, "%s %d", d.Data, i)); err != nil {
				t.Error(err)
			}
		}
	}})
	const clients, each = 5, 40
	hold := make(chan struct{})
	if err := r.loop.Post(func() { <-hold }); err != nil { // so that they come together
		t.Fatal(err)
	}
	var all []*net.UDPConn
	for i := range clients {
		c := dialUDP(t, "udp4", addr)
		all = append(all, c)
		for n := range each {
			if _, err := fmt.Fprintf(c, "%d %d", i, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(hold)
	buf := make([]byte, 100)
	for i, c := range all {
		for n := range each {
			for k := range 2 {
				got, err := c.Read(buf)
				if want := fmt.Sprintf("%d %d %d", i, n, k); err != nil || string(buf[:got]) != want {
					t.Fatalf("got %q, %v, want %q", buf[:got], err, want)
				}
			}
		}
	}
}

func TestDatagramsOutsideOfTheLimitsAreDroppedAndTold(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "127.0.0.1:0")
	events := make(chan Event, 100)
	errs := make(chan error, 100)
	r.packets(fd, PacketConfig{
		MaxMessage: 10, SendLimit: 4,
		OnPacket: func(d *Datagram) { errs <- d.Reply(d.Data) },
		Event:    func(e Event) { events <- e },
	})
	c := dialUDP(t, "udp4", addr)
	for _, m := range []string{"eleven bytes", "12345", "1234"} {
		if _, err := c.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "1234" {
		t.Errorf("got %q, %v, want what fits", buf[:n], err)
	}
	if err := receive(t, errs); !errors.Is(err, ErrFull) {
		t.Errorf("Reply over the limit: %v, want ErrFull", err)
	}
	if err := receive(t, errs); err != nil {
		t.Errorf("Reply within the limit: %v", err)
	}
	if e := receive(t, events); e.Kind != DatagramsDropped || !errors.Is(e.Err, ErrTooLong) || e.Listener != "test" {
		t.Errorf("event %+v, want dropped datagrams", e)
	}
	if n := len(events); n != 0 {
		t.Errorf("%d more events within a second", n)
	}
	if n := r.seat.SendFailures.Load(); n != 1 {
		t.Errorf("%d refused replies counted, want 1", n)
	}
}

func TestReplyOfAnImpossibleLengthIsRefused(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "127.0.0.1:0")
	errs := make(chan error, 1)
	r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) { errs <- d.Reply(make([]byte, MaxDatagram+1)) }})
	c := dialUDP(t, "udp4", addr)
	if _, err := c.Write(nil); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, errs); !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v, want ErrTooLong", err)
	}
}

func TestPanicCostsOneDatagram(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "127.0.0.1:0")
	events := make(chan Event, 1)
	r.packets(fd, PacketConfig{
		OnPacket: func(d *Datagram) {
			if string(d.Data) == "panic" {
				panic("asked for")
			}
			d.Reply(d.Data)
		},
		Event: func(e Event) { events <- e },
	})
	c := dialUDP(t, "udp4", addr)
	for _, m := range []string{"panic", "hello"} {
		if _, err := c.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	e := receive(t, events)
	if p, ok := errors.AsType[*PanicError](e.Err); e.Kind != CallbackPanicked || !ok || p.Value != "asked for" || e.Peer != c.LocalAddr().String() {
		t.Errorf("event %+v, want the panic", e)
	}
	if n := r.seat.Panics.Load(); n != 1 {
		t.Errorf("%d panics counted, want 1", n)
	}
}

// What the kernel does not take waits, up to the limit, and leaves later; a
// unix socket stands in, since UDP over loopback never blocks.
func TestRepliesThatTheKernelDoesNotTakeWait(t *testing.T) {
	r := newRig(t)
	message := strings.Repeat("x", 20)
	ours, theirs := socketpair(t, unix.SOCK_DGRAM)
	t.Cleanup(func() { unix.Close(ours); unix.Close(theirs) })
	drained := make(chan struct{})
	var p *Packets
	r.do(func() {
		r.set.arena = newArena()
		p = &Packets{set: r.set, fd: ours, cfg: PacketConfig{Listener: "test", Seat: r.seat, MaxMessage: MaxDatagram, SendLimit: 1000, OnPacket: func(d *Datagram) {
			for {
				if err := d.Reply(d.Data); err != nil {
					return
				}
			}
		}}}
		if err := p.Watch(); err != nil {
			t.Error(err)
		}
	})
	if _, err := unix.Write(theirs, []byte(message)); err != nil {
		t.Fatal(err)
	}
	r.until("the kernel is full", func() bool { return p.blocked && len(p.queue) == 50 && r.seat.QueueBytes.Load() == 1000 })
	r.do(func() {
		if err := p.Drain(func() { close(drained) }); err != nil {
			t.Error(err)
		}
		if p.events == 0 {
			t.Error("nobody waits for room")
		}
	})
	buf := make([]byte, 100)
	got := 0
	r.until("all has left", func() bool {
		for {
			n, err := unix.Read(theirs, buf)
			if err != nil {
				break
			}
			if string(buf[:n]) != message {
				t.Errorf("got %q", buf[:n])
			}
			got++
		}
		return len(p.queue) == 0
	})
	wait(t, drained)
	if out := r.seat.BytesOut.Load(); uint64(got*len(message)) > out || out < 1000 {
		t.Errorf("%d datagrams read, %d bytes counted", got, out)
	}
}

// While one process leaves, the other reads what is there.
func TestDatagramsGoToWhoStillReads(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "127.0.0.1:0")
	old := r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) { d.Reply([]byte("old")) }})
	c := dialUDP(t, "udp4", addr)
	ask := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
		}
	}
	ask("old")
	drained := make(chan struct{})
	r.do(func() {
		if err := old.Drain(func() { close(drained) }); err != nil {
			t.Error(err)
		}
	})
	wait(t, drained)
	if _, err := c.Write([]byte("waits")); err != nil {
		t.Fatal(err)
	}
	r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) { d.Reply(append([]byte("new "), d.Data...)) }})
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "new waits" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	ask("new x")
}

func TestPacketsCostNoAllocation(t *testing.T) {
	r := newRig(t)
	fd, addr := udp(t, "0.0.0.0:0")
	r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) { _ = d.Reply(d.Data) }})
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := unix.Connect(c, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	m, buf := []byte("hello"), make([]byte, 100)
	got := testing.AllocsPerRun(2000, func() { roundTrip(t, c, m, buf) })
	if got >= 0.1 && !raceEnabled {
		t.Errorf("%v allocations a datagram, want none", got)
	}
}
