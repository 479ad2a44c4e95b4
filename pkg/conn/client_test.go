package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

func TestReconnectBacksOffUntilClose(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := dialRig(t)
		d, downs := r.dialer(funcs{}, inline, func(c *DialConfig) { c.Reconnect = true })
		cl := r.dial(d, closedPort(t))
		var got []time.Duration
		for range 7 {
			dn := receive(t, downs)
			if !errors.Is(dn.why, unix.ECONNREFUSED) {
				t.Errorf("OnDown: %v", dn.why)
			}
			got = append(got, dn.next)
		}
		const ms = time.Millisecond
		if want := []time.Duration{0, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 80 * ms, 80 * ms}; !slices.Equal(got, want) {
			t.Errorf("tried again after %v, want %v", got, want)
		}
		cl.Close(errTest)
		for dn := receive(t, downs); ; dn = receive(t, downs) {
			if dn.next < 0 {
				if dn.why != errTest && !errors.Is(dn.why, unix.ECONNREFUSED) {
					t.Errorf("OnDown at the end: %v", dn.why)
				}
				break
			}
		}
		r.do(func() {
			if len(downs) != 0 || len(r.set.clients) != 0 || r.loop.Timers() != 0 {
				t.Errorf("%d more are told, %d clients and %d timers are left", len(downs), len(r.set.clients), r.loop.Timers())
			}
		})
	})
}

func TestReconnectFollowsAPeerThatResets(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := dialRig(t)
		// It stays open until something was sent: otherwise it may not come about.
		far := server(t, func(c net.Conn) { c.Read(make([]byte, 1)); reset(c) })
		var j journal
		d, downs := r.dialer(funcs{
			connect: func(c *Conn) { j.add("connect"); c.Send([]byte("x")) },
			close:   func(c *Conn, why error) { j.add("close") },
		}, inline, func(c *DialConfig) { c.Reconnect, c.Timeout = true, patience })
		cl := r.dial(d, far)
		for i := range 4 {
			if dn := receive(t, downs); !errors.Is(dn.why, ErrReset) || dn.next < 0 {
				t.Errorf("end %d: %v, %v", i, dn.why, dn.next)
			}
		}
		cl.Close(nil)
		for dn := receive(t, downs); dn.next >= 0; dn = receive(t, downs) {
		}
		lines := j.all()
		for i, line := range lines {
			if want := []string{"connect", "close"}[i%2]; line != want {
				t.Fatalf("callbacks %q", lines)
			}
		}
		if len(lines) < 8 || len(lines)%2 != 0 {
			t.Errorf("%d callbacks", len(lines))
		}
	})
}

func TestWhatIsSentBeforeTheConnectionWaitsForIt(t *testing.T) {
	for _, session := range []bool{false, true} {
		t.Run(fmt.Sprintf("session %v", session), func(t *testing.T) {
			bothWays(t, func(t *testing.T, inline bool) {
				r := dialRig(t)
				far, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer far.Close()
				d, downs := r.dialer(funcs{
					connect: func(c *Conn) { c.Client().Send([]byte("last")); c.Send([]byte("first")) },
				}, inline, func(c *DialConfig) {
					c.Protocol, c.Timeout = text.Protocol{}, patience
					c.Limits = Limits{SendHard: 3000, SendHigh: 3000}
					if session {
						c.Protocol, c.NewSession = nil, func() wire.Session { return plainSession{} }
					}
				})
				// Nothing turns, so nothing is connected yet.
				held := make(chan struct{})
				if err := r.loop.Post(func() { <-held }); err != nil {
					t.Fatal(err)
				}
				cl := r.dial(d, "tcp://"+far.Addr().String())
				if err := cl.Send(make([]byte, 4000)); !errors.Is(err, ErrTooLong) {
					t.Errorf("Send of too much: %v", err)
				}
				n := 0
				for ; ; n++ {
					if err := cl.Send(fmt.Appendf(nil, "message %03d%s", n, strings.Repeat("x", 88))); err != nil {
						if !errors.Is(err, ErrFull) {
							t.Errorf("Send: %v", err)
						}
						break
					}
				}
				if n < 15 || n > 30 || cl.Queued() > 3000 {
					t.Errorf("%d messages, %d bytes were taken, want up to 3000", n, cl.Queued())
				}
				if err := cl.Close(errTest); err != nil { // what was taken still leaves
					t.Error(err)
				}
				if err := cl.Send([]byte("x")); err != ErrClosed {
					t.Errorf("Send after Close: %v", err)
				}
				close(held)
				nc, err := far.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				lines := strings.Split(expectEnd(t, nc), "\n")
				if len(lines) != n+2 || lines[0] != "first" || !strings.HasPrefix(lines[1], "message 000") || !strings.HasPrefix(lines[n], fmt.Sprintf("message %03d", n-1)) {
					t.Errorf("%d lines: %.40q ... want %d", len(lines), lines, n+2)
				}
				nc.Close()
				if dn := receive(t, downs); dn.why != errTest || dn.next >= 0 {
					t.Errorf("OnDown: %+v", dn)
				}
			})
		})
	}
}

// plainSession is lines, as a session.
type plainSession struct{ text.Protocol }

func (plainSession) Buffered() int                          { return 0 }
func (plainSession) AppendState(dst []byte) ([]byte, error) { return dst, nil }
func (plainSession) RestoreState([]byte) error              { return nil }
func (plainSession) Append(dst, msg []byte) ([]byte, error) {
	return append(append(dst, msg...), '\n'), nil
}

func TestMessagesWaitFromOneConnectionToTheNext(t *testing.T) {
	r := dialRig(t)
	lines := make(chan string, 64)
	far := server(t, func(c net.Conn) {
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		lines <- string(buf[:n])
		reset(c)
	})
	next := make(chan struct{})
	d, downs := r.dialer(funcs{close: func(*Conn, error) { <-next }}, false, func(c *DialConfig) {
		c.Protocol, c.Reconnect, c.Timeout = text.Protocol{}, true, patience
	})
	cl := r.dial(d, far)
	cl.Send([]byte("one"))
	if got := receive(t, lines); got != "one\n" {
		t.Errorf("got %q", got)
	}
	r.until("the connection is over, and OnClose runs", func() bool { c := cl.Conn(); return c != nil && c.State() == Closed })
	if err := cl.Send([]byte("two")); err != nil {
		t.Errorf("Send between two connections: %v", err)
	}
	close(next)
	if got := receive(t, lines); got != "two\n" {
		t.Errorf("got %q", got)
	}
	cl.CloseNow(nil)
	for dn := receive(t, downs); dn.next >= 0; dn = receive(t, downs) {
	}
}

func TestCloseEndsAnAttempt(t *testing.T) {
	_, blackHole := fullBacklog(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	for _, tt := range []struct {
		name  string
		queue bool
		close func(*Client)
	}{
		{name: "Close", close: func(cl *Client) { cl.Close(errTest) }},
		{name: "CloseNow", queue: true, close: func(cl *Client) { cl.CloseNow(errTest) }},
		{name: "Close, then CloseNow", queue: true, close: func(cl *Client) { cl.Close(errTest); cl.CloseNow(nil) }},
		{name: "drain", queue: true, close: func(cl *Client) { cl.dialer.set.loop.Post(func() { cl.dialer.set.DrainOutgoing(DrainPrompt, 0, nil) }) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := dialRig(t)
			d, downs := r.dialer(funcs{}, true, func(c *DialConfig) { c.Timeout, c.Reconnect = time.Hour, true })
			cl := r.dial(d, blackHole)
			if tt.queue {
				cl.Send([]byte("x"))
			}
			r.until("it tries", func() bool { return r.loop.Watched() == 1 })
			tt.close(cl)
			dn := receive(t, downs)
			if dn.next >= 0 || dn.why != errTest && dn.why != ErrDrained {
				t.Errorf("OnDown: %+v", dn)
			}
			if cl.Queued() != 0 || cl.Up() || cl.Send(nil) != ErrClosed {
				t.Errorf("%d bytes wait", cl.Queued())
			}
		})
	}
}

func TestDrainLeavesOutgoingConnectionsAlone(t *testing.T) {
	r := dialRig(t)
	far := server(t, echoBack)
	closed := make(chan error, 4)
	d, downs := r.dialer(funcs{close: func(_ *Conn, why error) { closed <- why }}, true, func(c *DialConfig) { c.Timeout, c.Reconnect = patience, true })
	cl := r.dial(d, far)
	r.until("it is up", cl.Up)
	client, _ := r.tcp(r.config(funcs{}, true))
	done := make(chan struct{})
	r.do(func() { r.set.Drain(DrainPrompt, patience, func() { close(done) }) })
	expectEnd(t, client)
	client.Close()
	wait(t, done)
	if !cl.Up() || cl.Send([]byte("x")) != nil {
		t.Fatal("the outgoing one is gone, too")
	}
	r.until("it is answered", func() bool { return cl.Conn().BytesIn() == 1 })
	last := make(chan struct{})
	r.do(func() { r.set.DrainOutgoing(DrainPrompt, patience, func() { close(last) }) })
	wait(t, last)
	if why := receive(t, closed); why != ErrDrained {
		t.Errorf("OnClose: %v", why)
	}
	if dn := receive(t, downs); dn.why != ErrDrained || dn.next >= 0 {
		t.Errorf("OnDown: %+v", dn)
	}
	cl = r.dial(d, far)
	if dn := receive(t, downs); dn.why != ErrDrained || dn.next >= 0 || dn.cl != cl {
		t.Errorf("Dial after the drain: %+v", dn)
	}
}

func TestPanicOfOnDownCostsNothing(t *testing.T) {
	r := dialRig(t)
	events := make(chan Event, 1)
	d, _ := r.dialer(funcs{}, true, func(c *DialConfig) {
		c.OnDown = func(*Client, error, time.Duration) { panic("in OnDown") }
		c.Event = func(e Event) { events <- e }
	})
	r.dial(d, closedPort(t))
	if e := receive(t, events); e.Kind != CallbackPanicked || e.Listener != "dial:test" {
		t.Errorf("event %+v", e)
	}
	if n := r.seat.Panics.Load(); n != 1 {
		t.Errorf("%d panics are counted", n)
	}
}

func TestPanicOfOnConnectEndsTheConnection(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := dialRig(t)
		d, downs := r.dialer(funcs{connect: func(*Conn) { panic("in OnConnect") }}, inline, func(c *DialConfig) { c.Timeout = patience })
		r.dial(d, server(t, echoBack)).Send([]byte("x"))
		if dn := receive(t, downs); !errors.As(dn.why, new(*PanicError)) || dn.next >= 0 {
			t.Errorf("OnDown: %+v", dn)
		}
	})
}

func TestSettingsOfADialerThatIsNotUsedAreForgotten(t *testing.T) {
	r := dialRig(t)
	for range 10 {
		d, downs := r.dialer(funcs{}, true, func(c *DialConfig) { c.Pinned, c.Timeout = true, patience })
		cl := r.dial(d, server(t, echoBack))
		r.until("it is up", cl.Up)
		cl.Close(nil)
		receive(t, downs)
	}
	r.do(func() {
		if n := len(r.set.settings); n != 0 {
			t.Errorf("%d settings are kept", n)
		}
	})
}

func TestDatagramsKeepTheirBounds(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		r := dialRig(t)
		far, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		messages := make(chan string, 64)
		d, downs := r.dialer(funcs{
			connect: func(c *Conn) { c.Send([]byte("hello")); c.Send([]byte("world")) },
			message: func(c *Conn, m []byte) {
				messages <- string(m)
				if string(m) == "twice" {
					c.Send(m)
					c.Send(m)
				}
			},
		}, inline, func(c *DialConfig) { c.Address, c.Limits.MaxMessage = "udp://127.0.0.1:1", 1000 })
		cl := r.dial(d, "udp://"+far.LocalAddr().String())
		cl.Send([]byte("one"))
		cl.Send([]byte("two"))
		far.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 1<<16)
		var from net.Addr
		read := func() string {
			var n int
			if n, from, err = far.ReadFrom(buf); err != nil {
				t.Fatal(err)
			}
			return string(buf[:n])
		}
		for _, want := range []string{"hello", "world", "one", "two"} {
			if got := read(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		for _, m := range []string{"", "twice", strings.Repeat("x", 1001), "end"} {
			far.WriteTo([]byte(m), from)
		}
		if got, want := receive(t, messages)+read()+read()+receive(t, messages), "twicetwicetwiceend"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := cl.Send(make([]byte, MaxDatagram+1)); !errors.Is(err, ErrTooLong) {
			t.Errorf("Send of a long datagram: %v", err)
		}
		if _, err := freeze(r, cl.Conn()); err != ErrPinned {
			t.Errorf("Freeze: %v", err)
		}
		cl.Close(nil, []byte("bye"))
		if got := read(); got != "bye" {
			t.Errorf("got %q", got)
		}
		receive(t, downs)
	})
}

func TestRefusedDatagramsEndNothing(t *testing.T) {
	r := dialRig(t)
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := far.LocalAddr().String()
	far.Close()
	messages := make(chan string, 64)
	d, _ := r.dialer(funcs{message: func(_ *Conn, m []byte) { messages <- string(m) }}, true, func(c *DialConfig) { c.Address = "udp://" + address })
	cl := r.dial(d, "")
	for range 10 { // refused by ICMP, which a later call is told of
		if err := cl.Send([]byte("x")); err != nil {
			t.Errorf("Send: %v", err)
		}
		r.do(func() {})
	}
	if far, err = net.ListenPacket("udp", address); err != nil {
		t.Skipf("the port is taken meanwhile: %v", err)
	}
	defer far.Close()
	cl.Send([]byte("now"))
	far.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	for {
		n, from, err := far.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		far.WriteTo([]byte("yes"), from)
		if string(buf[:n]) == "now" {
			break
		}
	}
	if got := receive(t, messages); got != "yes" {
		t.Errorf("got %q", got)
	}
}

func TestFullQueueOfDatagramsIsBoundedByTheirNumberToo(t *testing.T) {
	r := dialRig(t)
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	d, _ := r.dialer(funcs{}, true, func(c *DialConfig) {
		c.Address, c.Limits = "udp://"+far.LocalAddr().String(), Limits{SendHard: 10 * minBuffer}
	})
	cl := r.dial(d, "")
	r.until("it is up", cl.Up)
	r.do(func() { // nothing leaves in the middle of a turn
		sent := 0
		for cl.Send([]byte("x")) == nil && sent < 100 {
			sent++
		}
		if sent != 10 {
			t.Errorf("%d datagrams wait, want 10", sent)
		}
	})
	buf := make([]byte, 10)
	far.SetReadDeadline(time.Now().Add(patience))
	for range 10 {
		if n, _, err := far.ReadFrom(buf); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	r.until("there is room again", func() bool { return cl.Queued() == 0 && cl.Send([]byte("y")) == nil })
}

// dialTwo is two rigs with a Dialer of one name each.
func dialTwo(t *testing.T, h Handler, inline bool, change func(*DialConfig)) (w *two, a, b *Dialer, downsA, downsB chan down) {
	t.Helper()
	w = newTwo(t)
	both := func(c *DialConfig) {
		c.Protocol, c.ProtocolName, c.Timeout = text.Protocol{}, "text", patience
		if change != nil {
			change(c)
		}
	}
	a, downsA = w.a.dialer(h, inline, both)
	b, downsB = w.b.dialer(h, inline, both)
	for _, r := range []*rig{w.a, w.b} {
		t.Cleanup(func() {
			done := make(chan struct{})
			r.do(func() { r.set.DrainOutgoing(DrainPrompt, 0, func() { close(done) }) })
			wait(t, done)
		})
	}
	return w, a, b, downsA, downsB
}

func TestOutgoingConnectionMovesAndReconnectsThere(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		far := server(t, func(c net.Conn) {
			buf := make([]byte, 100)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
				if strings.Contains(string(buf[:n]), "enough") {
					return
				}
			}
		})
		var j journal
		messages := make(chan string, 16)
		adopted := make(chan *Conn, 1)
		w, a, b, downsA, downsB := dialTwo(t, funcs{
			connect: func(c *Conn) { j.add("connect"); c.Send([]byte("hello")) },
			adopt:   func(c *Conn, why Reason) { j.add("adopt"); c.Send([]byte(fmt.Sprint(c.Value()))); adopted <- c },
			message: func(c *Conn, m []byte) { messages <- string(m) },
			close:   func(*Conn, error) { j.add("close") },
		}, inline, func(c *DialConfig) {
			c.Reconnect = true
			c.EncodeValue = func(*Conn) ([]byte, error) { return []byte("state"), nil }
			c.DecodeValue = func(c *Conn, b []byte) error { c.SetValue(string(b)); return nil }
		})
		cl := w.a.dial(a, far)
		if got := receive(t, messages); got != "hello" {
			t.Errorf("got %q", got)
		}
		moved := w.move(cl.Conn(), b.Config())
		if got := receive(t, messages); got != "state" {
			t.Errorf("got %q", got)
		}
		if err := cl.Send([]byte("x")); !errors.Is(err, ErrMoved) || len(downsA) != 0 {
			t.Errorf("Send here: %v, %d times OnDown", err, len(downsA))
		}
		there := receive(t, adopted).Client()
		if there == nil || there != moved.Client() || there.Address() != far {
			t.Fatalf("client %+v there, of %s", there, far)
		}
		w.b.until("it is up there", there.Up)
		if err := there.Send([]byte("enough")); err != nil {
			t.Error(err)
		}
		if got := receive(t, messages); got != "enough" {
			t.Errorf("got %q", got)
		}
		if dn := receive(t, downsB); dn.cl != there || dn.why != ErrPeerClosed || dn.next < 0 {
			t.Errorf("OnDown there: %+v", dn)
		}
		if got := receive(t, messages); got != "hello" { // it has reconnected
			t.Errorf("got %q", got)
		}
		there.Close(nil)
		if dn := receive(t, downsB); dn.next >= 0 {
			t.Errorf("OnDown there: %+v", dn)
		}
		if got, want := strings.Join(j.all(), " "), "connect adopt close connect close"; got != want {
			t.Errorf("callbacks %s, want %s", got, want)
		}
	})
}

func TestOutgoingConnectionThatIsNotTakenStays(t *testing.T) {
	far := server(t, echoBack)
	messages := make(chan string, 16)
	w, a, b, _, downsB := dialTwo(t, funcs{message: func(_ *Conn, m []byte) { messages <- string(m) }}, true, nil)
	cl := w.a.dial(a, far)
	w.a.until("it is up", cl.Up)
	f := w.freeze(cl.Conn())
	ad := w.adopt(f, b.Config())
	if err := cl.Send([]byte("x")); err != nil {
		t.Error(err)
	}
	w.b.do(ad.Drop)
	w.a.do(f.Thaw)
	if got := receive(t, messages); got != "x" || len(downsB) != 0 {
		t.Errorf("got %q, and %d times OnDown there", got, len(downsB))
	}
	body := w.capture(w.freeze(cl.Conn()))
	w.b.do(func() {
		if _, err := w.b.set.Adopt(-1, 0, nil, func(string) *Config { return nil }, body); !errors.Is(err, ErrListener) {
			t.Errorf("Adopt where it is not declared: %v", err)
		}
	})
	cl.CloseNow(nil)
	w.a.do(func() { cl.Conn().extra.Load().frozen.Thaw() })
}

// TestPipeFromAnAcceptedToAnOutgoingConnectionMovesAsAWhole is a proxy's
// reload: bytes flow both ways all the time, and none is lost.
func TestPipeFromAnAcceptedToAnOutgoingConnectionMovesAsAWhole(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		w, a, b, _, _ := dialTwo(t, funcs{}, inline, func(c *DialConfig) { c.Protocol, c.ProtocolName = nil, "" })
		in := w.a.config(funcs{connect: func(c *Conn) {
			if _, err := a.Dial("", c); err != nil {
				t.Error(err)
			}
		}}, inline)
		inB := w.b.config(funcs{}, inline)
		far := server(t, func(c net.Conn) { // a slow echo
			for buf := make([]byte, 4<<10); ; {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				<-time.After(100 * time.Microsecond)
				c.Write(buf[:n])
			}
		})
		a.dial.Address = far
		a.dial.Handler = nil
		a.cfg.Handler = dialed{funcs{connect: func(c *Conn) {
			if err := Pipe(c.Client().Value().(*Conn), c); err != nil {
				t.Error(err)
			}
		}}}
		in.Limits = Limits{SendHigh: 16 << 10, SendHard: 1 << 20}
		inB.Limits = in.Limits
		client, accepted := w.a.tcp(in)
		// What a Pool's connection has read before Pause goes to OnMessage.
		w.a.until("the pipe is there", func() bool { return accepted.piped() != nil })
		const total = 2 << 20
		go func() {
			block := make([]byte, 8<<10)
			for sent := 0; sent < total; sent += len(block) {
				for i := range block {
					block[i] = byte((sent + i) * 7 >> 3)
				}
				if _, err := client.Write(block); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		client.SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, total)
		if _, err := io.ReadFull(client, got[:total/4]); err != nil {
			t.Fatal(err)
		}
		// Both move, in the middle of it.
		f := w.freeze(accepted)
		if f.Partner() == nil || f.Partner().Conn().Client() == nil {
			t.Fatal("the outgoing one does not move along")
		}
		config := func(c *Frozen) *Config {
			if c.Conn().Client() != nil {
				return b.Config()
			}
			return inB
		}
		one, other := w.adopt(f, config(f)), w.adopt(f.Partner(), config(f.Partner()))
		w.b.do(func() { one.Join(other) })
		p := f.Partner()
		w.finish(f, one)
		w.finish(p, other)
		if _, err := io.ReadFull(client, got[total/4:]); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != byte(i*7>>3) {
				t.Fatalf("byte %d is %d, want %d", i, got[i], byte(i*7>>3))
			}
		}
		client.Close()
	})
}

func ExampleDialer() {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer far.Close()
	go func() {
		if c, err := far.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer loop.Close()
	set := NewSet(loop, nil)
	d, err := set.NewDialer(DialConfig{
		Config: Config{
			Listener: "dial:echo", Inline: true, Protocol: text.Protocol{},
			Handler: funcs{message: func(c *Conn, m []byte) {
				fmt.Printf("%s: %s\n", c.Listener(), m)
				c.Client().Close(nil)
			}},
		},
		Address: "tcp://" + far.Addr().String(),
		OnDown: func(cl *Client, why error, next time.Duration) {
			fmt.Println("over:", why, next < 0)
			loop.Stop()
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	cl, err := d.Dial("", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	cl.Send([]byte("hello"))
	if err := loop.Run(); err != nil {
		fmt.Println(err)
	}
	if err := set.Close(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// dial:echo: hello
	// over: <nil> true
}
