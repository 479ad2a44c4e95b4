package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	httpweb "github.com/mainstay-go/mainstay/pkg/web"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// serve runs a protocol on a loop of its own and returns the client's end of
// a connection to it.
func serve(t *testing.T, p Protocol) net.Conn {
	t.Helper()
	l, err := p.listener("main", listenerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return serveAll(t, l, 1)[0]
}

// serveAll serves n connections and returns the clients' ends.
func serveAll(t *testing.T, l worker.Listener, n int) (clients []net.Conn) {
	t.Helper()
	pool := conn.NewPool(4)
	l.Conn.Pool = pool
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	set := conn.NewSet(loop, nil)
	for range n {
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
		clients = append(clients, c)
	}
	ended := make(chan error)
	go func() { ended <- loop.Run() }()
	t.Cleanup(func() {
		for _, c := range clients {
			c.Close()
		}
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
	return clients
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

func TestWebTakesTheOperatorsSettings(t *testing.T) {
	yes := true
	for _, tt := range []struct {
		name string
		set  listenerConfig
		key  string // of the error; empty: none
	}{
		{name: "nothing"},
		{name: "what HTTP has", set: listenerConfig{Inline: &yes, MaxMessage: 10, QueueDepth: 2, MessageTimeout: time.Second, IdleTimeout: noTimeout, SendHigh: 1000}},
		{name: "what it has not", set: listenerConfig{AuthTimeout: time.Second}, key: "auth_timeout"},
		{name: "what it has not on the loop", set: listenerConfig{Inline: &yes, MaxRunning: 1}, key: "max_running"},
		{name: "nor this", set: listenerConfig{Inline: &yes, MaxWaiting: 1}, key: "max_waiting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Web{}.listener("main", tt.set)
			if tt.key != "" {
				if e, ok := errors.AsType[*settingError](err); !ok || e.key != tt.key {
					t.Errorf("got %v, want an error about %s", err, tt.key)
				}
				return
			}
			if err != nil || l.Conn == nil || !l.Conn.Inline {
				t.Fatalf("got %+v, %v", l, err)
			}
		})
	}
	c := serve(t, Web{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })})
	fmt.Fprint(c, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); string(body) != "/a" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
}

func TestOperatorBoundsTheRequestsThatAreAnsweredAtATime(t *testing.T) {
	c, err := parse("[listener.a]\nmax_running = 1\nmax_waiting = 2\n")
	if err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}, 3), make(chan struct{})
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { begun <- struct{}{}; <-release })
	l, err := Web{Handler: handler, Limits: WebLimits{Running: 3, Waiting: 1}}.listener("a", c.Listeners["a"])
	if err != nil {
		t.Fatal(err)
	}
	clients := serveAll(t, l, 4)
	released := false
	defer func() {
		if !released {
			close(release)
		}
	}()
	for i, c := range clients {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if i == 0 {
			<-begun
		}
		for late := time.Now().Add(20 * time.Second); i < 3; runtime.Gosched() {
			if _, waiting := l.Conn.Handler.(*httpweb.Handler).Running(); waiting == i {
				break
			}
			if time.Now().After(late) {
				t.Fatalf("request %d does not wait", i)
			}
		}
	}
	status := func(i, want int) {
		t.Helper()
		r, err := http.ReadResponse(bufio.NewReader(clients[i]), nil)
		if err != nil || r.StatusCode != want {
			t.Fatalf("request %d: %+v, %v, want status %d", i, r, err, want)
		}
		r.Body.Close()
	}
	status(3, 503)
	close(release)
	released = true
	for i := range 3 {
		status(i, 200)
	}
}

func TestOnlyHTTPBoundsTheRequestsThatAreAnsweredAtATime(t *testing.T) {
	for name, p := range map[string]Protocol{
		"raw": Raw[none]{}, "WebSocket": WebSocket[none]{}, "net/http": HTTP{}, "datagrams": Packet{OnPacket: func(*Worker, *Datagram) {}},
	} {
		for key, set := range map[string]listenerConfig{"max_running": {MaxRunning: 1}, "max_waiting": {MaxWaiting: 1}} {
			_, err := p.listener("a", set)
			if e, ok := errors.AsType[*settingError](err); !ok || e.key != key {
				t.Errorf("%s: got %v, want an error about %s", name, err, key)
			}
		}
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

// seat is a State that says itself how it travels.
type seat struct{ row, place byte }

func (s *seat) MarshalBinary() ([]byte, error) {
	if s.row == 0 {
		return nil, errors.New("no seat")
	}
	return []byte{s.row, s.place}, nil
}

func (s *seat) UnmarshalBinary(b []byte) error {
	if len(b) != 2 {
		return errors.New("not a seat")
	}
	s.row, s.place = b[0], b[1]
	return nil
}

// process is what a worker has to serve a protocol.
type process struct {
	set *conn.Set
	cfg *conn.Config
}

func newProcess(t *testing.T, loop *reactor.Loop, table *rows.Table, incarnation uint64, p Protocol, set listenerConfig) process {
	t.Helper()
	l, err := p.listener("main", set)
	if err != nil {
		t.Fatal(err)
	}
	l.Conn.Listener = l.Name
	l.Conn.Move = func(*conn.Conn, int) {}
	return process{conn.NewSet(loop, table.Allocator(incarnation)), l.Conn}
}

// move has a connection accepted by one and then served by another process,
// both on one loop, and returns why it was refused, where.
func move(t *testing.T, from, to Protocol, set listenerConfig) (where string, err error) {
	t.Helper()
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	table, err := rows.Create(512)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	giver, taker := newProcess(t, loop, table, 1, from, set), newProcess(t, loop, table, 2, to, set)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	end := func() {
		giver.set.Drain(conn.DrainPrompt, 0, func() { taker.set.Drain(conn.DrainPrompt, 0, loop.Stop) })
	}
	loop.Post(func() {
		c, e := giver.set.Accepted(fds[0], nil, giver.cfg)
		if e != nil {
			t.Error(e)
			loop.Stop()
			return
		}
		giver.set.Freeze(c, func(f *conn.Frozen, e error) {
			defer end()
			if e != nil {
				where, err = "freeze", e
				return
			}
			body, e := f.Capture(nil)
			if e != nil {
				where, err = "capture", e
				f.Thaw()
				return
			}
			fd, e := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if e != nil {
				t.Error(e)
			}
			a, e := taker.set.Adopt(fd, f.ID(), f.Row(), func(string) *conn.Config { return taker.cfg }, body)
			if e != nil {
				where, err = "adopt", e
				unix.Close(fd)
				f.Thaw()
				return
			}
			if !f.Row().Offer(f.ID(), 1, 2) || !f.Row().Commit(f.ID(), 1, 2) {
				t.Error("not committed")
			}
			f.Left(1)
			a.Serve(Reload, false)
		})
	})
	if e := loop.Run(); e != nil {
		t.Fatal(e)
	}
	return where, err
}

func TestStateTravelsToAnotherWorker(t *testing.T) {
	type user struct {
		Name  string
		Rooms []string
		local int
	}
	t.Run("JSON", func(t *testing.T) {
		var got user
		var why Reason
		p := Text[user]{
			Inline:    true,
			OnConnect: func(c *Conn[user]) { c.State = user{"me", []string{"a", "b"}, 3} },
			OnAdopt:   func(c *Conn[user], r Reason) { got, why = c.State, r },
		}
		if where, err := move(t, p, p, listenerConfig{}); err != nil {
			t.Fatal(where, err)
		}
		if got.Name != "me" || !slices.Equal(got.Rooms, []string{"a", "b"}) || got.local != 0 || why != Reload {
			t.Errorf("got %+v for %v", got, why)
		}
	})
	t.Run("MarshalBinary", func(t *testing.T) {
		var got seat
		p := Frame[seat]{
			Inline:    true,
			OnConnect: func(c *Conn[seat]) { c.State = seat{4, 5} },
			OnAdopt:   func(c *Conn[seat], _ Reason) { got = c.State },
		}
		if where, err := move(t, p, p, listenerConfig{}); err != nil {
			t.Fatal(where, err)
		}
		if got != (seat{4, 5}) {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("none", func(t *testing.T) {
		adopted := 0
		none := Raw[struct{}]{Inline: true, OnAdopt: func(*Conn[struct{}], Reason) { adopted++ }}
		// A newer program has a State, and gets one that is new.
		newer := Raw[user]{Inline: true, OnAdopt: func(c *Conn[user], _ Reason) {
			if c.State.Name == "" {
				adopted++
			}
		}}
		for _, to := range []Protocol{none, newer} {
			if where, err := move(t, none, to, listenerConfig{}); err != nil {
				t.Error(where, err)
			}
		}
		if adopted != 2 {
			t.Errorf("OnAdopt %d times, want 2", adopted)
		}
	})
}

func TestLeavingIsToldWithTheStateThatWasSent(t *testing.T) {
	var told []string
	begin := func(c *Conn[int]) { c.State = 4 }
	leave := func(c *Conn[int], slot int) {
		told = append(told, fmt.Sprintf("%d to slot %d", c.State, slot))
		if err := c.Send(nil); !errors.Is(err, ErrMoved) {
			t.Errorf("Send: %v, want ErrMoved", err)
		}
	}
	over := func(c *Conn[int], _ error) { told = append(told, fmt.Sprintf("%d is over", c.State)) }
	for name, p := range map[string]Protocol{
		"Raw":       Raw[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
		"Text":      Text[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
		"Frame":     Frame[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
		"Length":    Length[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
		"Delimiter": Delimiter[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
		"Framed":    Framed[int]{Inline: true, OnConnect: begin, OnLeave: leave, OnClose: over},
	} {
		t.Run(name, func(t *testing.T) {
			told = nil
			if where, err := move(t, p, p, listenerConfig{}); err != nil {
				t.Fatal(where, err)
			}
			if want := []string{"4 to slot 1", "4 is over"}; !slices.Equal(told, want) {
				t.Errorf("told %q, want %q", told, want)
			}
		})
	}
}

func TestStateThatDoesNotFitStaysWhereItIs(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		name     string
		from, to Protocol
		set      listenerConfig
		want     string
		is       error
	}{
		{name: "not encoded", from: Raw[seat]{Inline: true}, to: Raw[seat]{Inline: true}, want: "capture"},
		{name: "not decoded", from: Raw[string]{Inline: true}, to: Raw[int]{Inline: true}, want: "adopt"},
		{name: "another protocol", from: Raw[int]{Inline: true}, to: Text[int]{Inline: true}, want: "adopt", is: conn.ErrProtocol},
		{name: "pinned by the code", from: Raw[int]{Inline: true, Pinned: true}, to: Raw[int]{Inline: true}, want: "freeze", is: ErrPinned},
		{name: "pinned by the operator", from: Raw[int]{Inline: true}, to: Raw[int]{Inline: true}, set: listenerConfig{Movable: &no}, want: "freeze", is: ErrPinned},
		{name: "movable by the operator", from: Raw[int]{Inline: true, Pinned: true}, to: Raw[int]{Inline: true}, set: listenerConfig{Movable: &yes}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			where, err := move(t, tt.from, tt.to, tt.set)
			if where != tt.want || tt.is != nil && !errors.Is(err, tt.is) || (err == nil) != (tt.want == "") {
				t.Errorf("%s: %v, want %s: %v", where, err, tt.want, tt.is)
			}
		})
	}
}

func TestMoveToHoldAndReleaseReachTheConnection(t *testing.T) {
	p := Raw[int]{Inline: true, OnConnect: func(c *Conn[int]) {
		if err := errors.Join(c.MoveTo(3), c.Hold()); err != nil {
			t.Error(err)
		}
		c.Release()
	}}
	if where, err := move(t, p, p, listenerConfig{}); err != nil {
		t.Error(where, err)
	}
}
