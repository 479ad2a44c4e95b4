package service

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/test/certs"
)

// dialOn connects by a Dialer on a loop of its own, which ends with the test.
func dialOn[T any](t *testing.T, d Dialing, address string, state any) Client[T] {
	t.Helper()
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	set := conn.NewSet(loop, nil)
	c := d.dialing(address)
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	c.Listener, c.Inline, c.Handshakes = "dial:test", true, conn.NewHandshakes(0)
	pool := conn.NewPool(2)
	c.Pool = pool
	if _, raw := d.(Dialer[T]); raw {
		c.Inline = true
	}
	dialer, err := set.NewDialer(c)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := dialer.Dial("", state)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- loop.Run() }()
	t.Cleanup(func() {
		loop.Post(func() { set.DrainOutgoing(conn.DrainPrompt, 0, loop.Stop) })
		if err := <-ended; err != nil {
			t.Error(err)
		}
		c.Handshakes.Close()
		pool.Close()
		loop.Close()
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return Client[T]{cl}
}

func TestDialedConnectionBeginsWithItsState(t *testing.T) {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	type visit struct{ number int }
	told := make(chan string, 16)
	d := Dialer[visit]{
		Protocol:  text.Protocol{},
		Reconnect: true,
		Backoff:   Backoff{First: time.Millisecond, Max: time.Millisecond},
		OnConnect: func(c *Conn[visit]) { c.State.number++; c.Send(fmt.Appendf(nil, "visit %d", c.State.number)) },
		OnDown: func(cl Client[visit], why error, next time.Duration) {
			told <- fmt.Sprint(cl.State().number, " ", cl.Up(), " ", errors.Is(why, ErrPeerClosed), " ", next < 0)
		},
	}
	cl := dialOn[visit](t, d, "tcp://"+far.Addr().String(), visit{6})
	for range 2 {
		c, err := far.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 8)
		if n, err := c.Read(buf); string(buf[:n]) != "visit 7\n" {
			t.Errorf("got %q, %v", buf[:n], err)
		}
		if typed := cl.Conn(); typed == nil || typed.State.number != 7 || typed.Listener() != "dial:test" {
			t.Errorf("connection %+v", typed)
		} else if same, ok := typed.Client(); !ok || same != cl {
			t.Errorf("its client is %v, want %v", same, cl)
		}
		c.Close()
		if got := <-told; got != "6 false true false" {
			t.Errorf("OnDown: %s", got)
		}
	}
	if cl.Address() != "tcp://"+far.Addr().String() {
		t.Errorf("address %s", cl.Address())
	}
	cl.Close(nil)
	for got := <-told; !strings.HasSuffix(got, "true"); got = <-told {
	}
}

func TestDialedConnectionSpeaksTLS(t *testing.T) {
	made, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := made.Pair()
	if err != nil {
		t.Fatal(err)
	}
	far, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	go func() {
		c, err := far.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	told, over := make(chan string, 1), make(chan error, 1)
	_, port, _ := net.SplitHostPort(far.Addr().String())
	cl := dialOn[int](t, Dialer[int]{
		Protocol: text.Protocol{}, TLS: &tls.Config{RootCAs: made.Pool()},
		OnMessage: func(c *Conn[int], m []byte) { told <- c.TLS().ServerName + " " + string(m) },
		OnDown:    func(_ Client[int], why error, _ time.Duration) { over <- why },
	}, "tls://localhost:"+port, 0)
	cl.Send([]byte("hello"))
	if got := <-told; got != "localhost hello" {
		t.Errorf("got %q", got)
	}
	cl.Close(nil)
	if why := <-over; why != nil {
		t.Errorf("OnDown: %v", why)
	}
}

func TestStateOfAnotherTypeEndsTheConnection(t *testing.T) {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	told := make(chan error, 1)
	dialOn[int](t, Dialer[int]{
		OnConnect: func(*Conn[int]) { t.Error("OnConnect") },
		OnDown:    func(_ Client[int], why error, _ time.Duration) { told <- why },
	}, "tcp://"+far.Addr().String(), "text")
	if why := <-told; !errors.As(why, new(*PanicError)) || !strings.Contains(why.Error(), "state of type string, want int") {
		t.Errorf("OnDown: %v", why)
	}
}

func TestNobodyThereIsAConnectError(t *testing.T) {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	told := make(chan error, 1)
	cl := dialOn[int](t, Dialer[int]{OnDown: func(_ Client[int], why error, _ time.Duration) { told <- why }}, "tcp://"+far.Addr().String(), 0)
	why := <-told
	if e, ok := errors.AsType[*ConnectError](why); !ok || e.Step != conn.Reaching || !errors.Is(why, syscall.ECONNREFUSED) {
		t.Errorf("OnDown: %v", why)
	}
	if cl.Send(nil) != ErrClosed || cl.Conn() != nil || cl.Queued() != 0 {
		t.Error("the client is not over")
	}
}

func TestZeroClientIsOver(t *testing.T) {
	var cl Client[int]
	cl.CloseNow(nil)
	if cl.Send(nil) != ErrClosed || cl.Close(nil) != nil || cl.Close(nil, nil) != ErrClosed || cl.Up() || cl.Conn() != nil || cl.Address() != "" || cl.State() != 0 || cl.Queued() != 0 {
		t.Error("it is not")
	}
}

func TestDeclarationsThatCannotBeArePanics(t *testing.T) {
	for _, tt := range []struct {
		name    string
		declare func(*Service)
		want    string
	}{
		{name: "name", declare: func(s *Service) { s.Dial("a:b", "", Dialer[int]{}) }, want: "dial: listener"},
		{name: "twice", declare: func(s *Service) { s.Dial("a", "", Dialer[int]{}); s.Dial("a", "", Dialer[int]{}) }, want: "declared twice"},
		{name: "address", declare: func(s *Service) { s.Dial("a", "example.com:80", Dialer[int]{}) }, want: "want tcp://HOST:PORT"},
		{name: "proxy", declare: func(s *Service) { s.Dial("a", "", Dialer[int]{Proxy: "ftp://x:secret@y:1"}) }, want: "proxy: want"},
		{name: "limits", declare: func(s *Service) { s.Dial("a", "", Dialer[int]{Limits: Limits{SendLow: 2, SendHigh: 1}}) }, want: "want them in this order"},
		{name: "lines in datagrams", declare: func(s *Service) { s.Dial("a", "udp://127.0.0.1:1", Dialer[int]{Protocol: text.Protocol{}}) }, want: "want none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, tt.want) || strings.Contains(got, "secret") {
					t.Errorf("panic %s, want %s", got, tt.want)
				}
			}()
			tt.declare(New("test"))
		})
	}
}
