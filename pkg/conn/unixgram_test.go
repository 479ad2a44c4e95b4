package conn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unixgram makes a bound unix datagram socket that does not block, and its
// path. An empty path is a file of the test's.
func unixgram(t testing.TB, path string) (int, string) {
	t.Helper()
	if path == "" {
		path = t.TempDir() + "/s"
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	return fd, path
}

// dialUnixgram connects to that path, from one of its own if from is not empty.
func dialUnixgram(t testing.TB, from, to string) *net.UnixConn {
	t.Helper()
	var local *net.UnixAddr
	if from != "" {
		local = &net.UnixAddr{Name: from, Net: "unixgram"}
	}
	c, err := net.DialUnix("unixgram", local, &net.UnixAddr{Name: to, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// listenUnixgram is dialUnixgram without connecting: of a receiver that is
// connected to the sender the kernel counts what waits in another way.
func listenUnixgram(t testing.TB, to string) (c *net.UnixConn, send func(string)) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: t.TempDir() + "/c", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, func(m string) {
		t.Helper()
		if _, err := c.WriteTo([]byte(m), &net.UnixAddr{Name: to, Net: "unixgram"}); err != nil {
			t.Fatal(err)
		}
	}
}

// abstract is a name that no other test has.
func abstract(t testing.TB, name string) string {
	return "@" + strings.ReplaceAll(t.TempDir(), "/", "-") + name
}

func TestUnixDatagramsAreAnsweredToThePathOfTheirSender(t *testing.T) {
	for _, tt := range []struct{ name, server, client string }{
		{"files", t.TempDir() + "/s", t.TempDir() + "/c"},
		{"abstract names", abstract(t, "s"), abstract(t, "c")},
		{"a longest path", "", longestPath(t)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			fd, path := unixgram(t, tt.server)
			senders := make(chan string, 8)
			r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) {
				senders <- d.Path()
				if d.Peer.IsValid() {
					t.Errorf("peer %v, want none", d.Peer)
				}
				if err := d.Reply(d.Data); err != nil {
					t.Error(err)
				}
			}})
			c := dialUnixgram(t, tt.client, path)
			buf := make([]byte, 64<<10)
			for _, m := range []string{"hello", "", strings.Repeat("x", 60000)} {
				if _, err := c.Write([]byte(m)); err != nil {
					t.Fatal(err)
				}
				n, err := c.Read(buf)
				if err != nil || string(buf[:n]) != m {
					t.Fatalf("got %d bytes, %v, want %d", n, err, len(m))
				}
				if got := receive(t, senders); got != tt.client {
					t.Errorf("from %q, want %q", got, tt.client)
				}
			}
			r.until("counters", func() bool {
				return r.seat.Datagrams.Load() == 3 && r.seat.BytesIn.Load() == 60005 && r.seat.BytesOut.Load() == 60005
			})
		})
	}
}

// longestPath has as many bytes as sun_path, without a NUL at the end.
func longestPath(t testing.TB) string {
	dir := t.TempDir()
	return dir + "/" + strings.Repeat("c", len(unix.RawSockaddrUnix{}.Path)-1-len(dir)-1)
}

func TestUnboundSenderCannotBeAnsweredAndIsHeard(t *testing.T) {
	r := newRig(t)
	fd, path := unixgram(t, "")
	errs := make(chan error, 8)
	events := make(chan Event, 8)
	p := r.packets(fd, PacketConfig{
		OnPacket: func(d *Datagram) {
			if d.Path() != "" {
				t.Errorf("from %q", d.Path())
			}
			errs <- d.Reply(d.Data)
			panic("asked for")
		},
		Event: func(e Event) { events <- e },
	})
	if _, err := dialUnixgram(t, "", path).Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, errs); !errors.Is(err, ErrNoAddress) {
		t.Errorf("got %v, want ErrNoAddress", err)
	}
	if e := receive(t, events); e.Kind != CallbackPanicked || e.Peer != "unix" {
		t.Errorf("event %+v, want the panic of a datagram from nowhere", e)
	}
	if n := r.seat.SendFailures.Load(); n != 1 {
		t.Errorf("%d refused replies counted, want 1", n)
	}
	r.do(func() {
		if len(p.queue) != 0 {
			t.Errorf("%d replies wait", len(p.queue))
		}
	})
}

// A receiver that reads nothing gets its replies later, in their order; those
// of the others do not wait for it, and the loop does not spin.
func TestReceiverThatReadsNothingHoldsUpNobodyElse(t *testing.T) {
	r := newRig(t)
	fd, path := unixgram(t, "")
	const limit = 8000
	refused := 0
	p := r.packets(fd, PacketConfig{SendLimit: limit, OnPacket: func(d *Datagram) {
		if string(d.Data) == "once" {
			if err := d.Reply(d.Data); err != nil {
				t.Error(err)
			}
			return
		}
		for i := range 10000 { // more than net.unix.max_dgram_qlen is anywhere, and than the limit
			if err := d.Reply(fmt.Append(nil, i)); err != nil {
				if !errors.Is(err, ErrFull) {
					t.Error(err)
				}
				refused = i
				return
			}
		}
	}})
	busy := dialUnixgram(t, t.TempDir()+"/busy", path)
	idle, send := listenUnixgram(t, path)
	send("many")
	r.until("one is full", func() bool { return len(p.queue) > 0 && refused > 0 })
	r.do(func() {
		if n := p.waiting + len(p.queue)*replyCost; n > limit/fullShare {
			t.Errorf("%d bytes wait for who reads nothing, want at most %d", n, limit/fullShare)
		}
		if p.blocked || p.full.retry == nil {
			t.Errorf("blocked %v, timer %v, want a timer only", p.blocked, p.full.retry)
		}
	})
	buf := make([]byte, 100)
	for range 20 {
		if _, err := busy.Write([]byte("once")); err != nil {
			t.Fatal(err)
		}
		if n, err := busy.Read(buf); err != nil || string(buf[:n]) != "once" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	drained := make(chan struct{})
	r.do(func() {
		for i := range p.queue {
			p.queue[i].since = p.set.loop.Now() // however slow this machine was
		}
		if err := p.Drain(func() { close(drained) }); err != nil {
			t.Error(err)
		}
	})
	for i := range refused {
		if n, err := idle.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint(i) {
			t.Fatalf("got %q, %v, want %d", buf[:n], err, i)
		}
	}
	wait(t, drained)
	if n := r.seat.QueueBytes.Load(); n != 0 {
		t.Errorf("%d bytes counted as waiting, want none", n)
	}
}

func TestReplyThatNobodyTakesIsDroppedAndTold(t *testing.T) {
	for _, tt := range []struct {
		name      string
		connected bool
		gone      bool
		buffer    int // SO_SNDBUF; 0: as it is
		size      int
		want      error
	}{
		{"reads nothing", false, false, 0, 1, unix.EAGAIN},
		{"reads nothing and is connected", true, false, 0, MaxDatagram, unix.EAGAIN},
		{"is gone", true, true, 0, 1, unix.ECONNREFUSED},
		{"could not get as much", true, false, 1, MaxDatagram, unix.EMSGSIZE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			fd, path := unixgram(t, "")
			if tt.buffer > 0 {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, tt.buffer); err != nil {
					t.Fatal(err)
				}
			}
			events := make(chan Event, 100)
			replies := datagramQueue(t) + 10
			come, hold := make(chan struct{}), make(chan struct{})
			p := r.packets(fd, PacketConfig{
				SendLimit: 1 << 30,
				OnPacket: func(d *Datagram) {
					close(come)
					<-hold
					for range replies {
						if err := d.Reply(make([]byte, tt.size)); err != nil {
							t.Error(err)
						}
					}
				},
				Event: func(e Event) {
					if e.Kind == DatagramsDropped { // and not that the callback was slow
						events <- e
					}
				},
			})
			c, send := listenUnixgram(t, path)
			if tt.connected {
				c = dialUnixgram(t, t.TempDir()+"/c", path)
				send = func(m string) { write(t, c, m) }
			}
			send("hello")
			wait(t, come)
			if tt.gone {
				c.Close()
			}
			close(hold)
			e := receive(t, events)
			if e.Kind != DatagramsDropped || !errors.Is(e.Err, tt.want) {
				t.Errorf("event %+v, want dropped datagrams because of %v", e, tt.want)
			}
			r.until("none waits", func() bool { return len(p.queue) == 0 && p.waiting == 0 && r.seat.QueueBytes.Load() == 0 })
			if r.seat.SendFailures.Load() < 2 {
				t.Error("not counted")
			}
		})
	}
}

// datagramQueue is how many datagrams wait in a unix socket.
func datagramQueue(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUnixPacketsCostNoAllocation(t *testing.T) {
	r := newRig(t)
	fd, path := unixgram(t, "")
	r.packets(fd, PacketConfig{OnPacket: func(d *Datagram) { _ = d.Reply(d.Data) }})
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := unix.Bind(c, &unix.SockaddrUnix{Name: t.TempDir() + "/c"}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(c, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	m, buf := []byte("hello"), make([]byte, 100)
	got := testing.AllocsPerRun(2000, func() { roundTrip(t, c, m, buf) })
	if got >= 0.1 && !raceEnabled {
		t.Errorf("%v allocations a datagram, want none", got)
	}
}
