package service

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
)

// serve runs a protocol on a loop of its own and returns the client's end of
// a connection to it.
func serve(t *testing.T, p Protocol) net.Conn {
	t.Helper()
	l, err := p.listener("main", listenerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	pool := conn.NewPool(4)
	l.Conn.Pool = pool
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	set := conn.NewSet(loop, nil)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	loop.Post(func() {
		if _, err := set.Accepted(fds[0], nil, l.Conn); err != nil {
			t.Error(err)
		}
	})
	f := os.NewFile(uintptr(fds[1]), "client")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	ended := make(chan error)
	go func() { ended <- loop.Run() }()
	t.Cleanup(func() {
		c.Close()
		loop.Post(func() { set.Drain(conn.DrainPrompt, time.Second, loop.Stop) })
		if err := <-ended; err != nil {
			t.Error(err)
		}
		pool.Close()
		loop.Close()
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestStateTravelsWithTheConnection(t *testing.T) {
	type visitor struct{ lines int }
	closed := make(chan string, 1)
	for _, inline := range []bool{true, false} {
		t.Run(fmt.Sprintf("inline %v", inline), func(t *testing.T) {
			c := serve(t, Text[visitor]{
				Inline:    inline,
				OnConnect: func(c *Conn[visitor]) { c.State.lines = 10; c.SetTimer("greeting", time.Millisecond) },
				OnTimer:   func(c *Conn[visitor], name string) { c.Send([]byte(name)) },
				OnMessage: func(c *Conn[visitor], line []byte) {
					c.State.lines++
					c.Send(fmt.Appendf(nil, "%s %d", line, c.State.lines))
				},
				OnClose: func(c *Conn[visitor], why error) { closed <- fmt.Sprint(c.State.lines, " ", why) },
			})
			r := bufio.NewReader(c)
			want := []string{"greeting\n", "a 11\n", "b 12\n"}
			for i, text := range []string{"", "a\n", "b\r\n"} {
				fmt.Fprint(c, text)
				if got, err := r.ReadString('\n'); got != want[i] {
					t.Errorf("got %q, %v, want %q", got, err, want[i])
				}
			}
			c.Close()
			if got, want := <-closed, "12 conn: closed by the peer"; got != want {
				t.Errorf("OnClose: got %s, want %s", got, want)
			}
		})
	}
}

func TestCallbacksMayBeLeftOut(t *testing.T) {
	c := serve(t, Raw[int]{})
	if _, err := c.Write([]byte("nobody listens")); err != nil {
		t.Error(err)
	}
}

func TestBufferCallbacksTellOfASlowReader(t *testing.T) {
	told := make(chan string, 16)
	c := serve(t, Raw[struct{}]{
		Inline:        true,
		Limits:        Limits{SendHigh: 1 << 20, SendLow: 1 << 10, SendHard: 8 << 20},
		OnMessage:     func(c *Conn[struct{}], _ []byte) { c.Send(make([]byte, 4<<20)) },
		OnBufferFull:  func(c *Conn[struct{}]) { told <- fmt.Sprint("full ", c.Queued() > 1<<20) },
		OnBufferDrain: func(c *Conn[struct{}]) { told <- fmt.Sprint("drain ", c.Queued() <= 1<<10) },
	})
	c.Write([]byte("x"))
	if got := <-told; got != "full true" {
		t.Errorf("got %s", got)
	}
	buf := make([]byte, 64<<10)
	for n := 0; n < 4<<20; {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if got := <-told; got != "drain true" {
		t.Errorf("got %s", got)
	}
}

func Example() {
	type user struct{ Lines int }

	s := New("chat")
	s.Listen("line", "tcp://127.0.0.1:8080", Text[user]{
		OnMessage: func(c *Conn[user], line []byte) {
			c.State.Lines++
			c.Send(line)
		},
	})
	s.OnWorkerStart(func(w *Worker) error {
		w.Every(30*time.Second, func() { w.Log().Debug("still here") })
		return nil
	})
	// main would call s.Main() now.
	fmt.Println(s.Run([]string{"scale", "--help"}) == 0)
	// Output:
	// Set the number of workers, until the next reload. Those that leave hand their
	// connections over to the others first; the command waits for that, for five
	// seconds at most, and tells how many have moved. New ones begin without
	// connections: see rebalance.
	//
	// Usage:
	//   service.test scale [POOL] N [flags]
	//
	// Flags:
	//       --control URL   URL of the control socket; default $CHAT_CONTROL, the key control of /etc/chat/chat.toml, unix:///run/chat/control.sock
	//   -h, --help          help for scale
	// true
}
