package worker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/test/certs"
)

// forwarder passes on what comes, to a connection of its own for each.
type forwarder struct {
	conn.NopHandler
	dial func(c *conn.Conn) error
}

func (f forwarder) OnConnect(c *conn.Conn) {
	c.Pause()
	if err := f.dial(c); err != nil {
		c.Close(err)
	}
}

// joiner is the other end.
type joiner struct{ conn.NopHandler }

func (joiner) OnConnect(c *conn.Conn) {
	if err := conn.Pipe(c.Client().Value().(*conn.Conn), c); err != nil {
		c.Close(err)
	}
}

// forward makes a worker a proxy. Its outgoing connections are declared, or
// the worker's own; one more is there for the application.
func forward(in *link.Inherited, c *Config, upstream string, declared bool) {
	var w *Worker
	cfg := conn.DialConfig{Config: conn.Config{Handler: joiner{}, Inline: true}, Address: upstream}
	own := conn.DialConfig{Config: conn.Config{Handler: conn.NopHandler{}, Inline: true}, Address: upstream, Reconnect: true}
	if strings.HasPrefix(upstream, "tls:") {
		cfg.TLS = &tls.Config{InsecureSkipVerify: true}
		own.TLS = cfg.TLS
	}
	var client *conn.Client
	c.Grace = patience
	c.OnStart = func(here *Worker) (err error) {
		w = here
		client, err = w.DialBy("own", own, nil)
		if _, err := w.DialBy("up", own, nil); declared && err == nil {
			return fmt.Errorf("DialBy with a declared name is no error")
		}
		if _, err := w.Dial("nobody", "", nil); err == nil {
			return fmt.Errorf("Dial without a declaration is no error")
		}
		return err
	}
	c.OnDrain = func(context.Context, *Worker) {
		client.Send([]byte(fmt.Sprintf("worker %d leaves", in.Slot)))
	}
	h := forwarder{dial: func(c *conn.Conn) (err error) {
		if declared {
			_, err = w.Dial("up", "", c)
		} else {
			_, err = w.DialBy("up", cfg, c)
		}
		return err
	}}
	for i := range c.Listeners {
		c.Listeners[i].Conn = &conn.Config{Handler: h, Inline: true}
	}
	if declared {
		c.Dials = []Dial{{Name: "up", Dial: cfg}}
	}
}

// far is an upstream that sends back what comes, and remembers farewells.
type far struct {
	address string
	mu      sync.Mutex
	open    int
	total   int
	said    bytes.Buffer
}

// newFar has it speak TLS if secure.
func newFar(t *testing.T, secure bool) *far {
	t.Helper()
	var cfg *tls.Config
	scheme := "tcp"
	if secure {
		made, err := certs.Make(time.Hour, "localhost")
		if err != nil {
			t.Fatal(err)
		}
		pair, err := made.Pair()
		if err != nil {
			t.Fatal(err)
		}
		scheme, cfg = "tls", &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &far{address: scheme + "://" + ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if cfg != nil {
				c = tls.Server(c, cfg)
			}
			wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return f
}

func (f *far) serve(c net.Conn) {
	defer c.Close()
	f.add(1)
	defer f.add(-1)
	for buf := make([]byte, 64<<10); ; {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if bytes.HasSuffix(buf[:n], []byte("leaves")) {
			f.mu.Lock()
			f.said.Write(buf[:n])
			f.mu.Unlock()
			continue
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (f *far) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += n
	f.total += max(n, 0)
}

func (f *far) counts() (open, total int, said string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open, f.total, f.said.String()
}

func TestPipesOfAProxyMoveWithBothEnds(t *testing.T) {
	t.Run("plain", func(t *testing.T) { pipesMove(t, false) })
	t.Run("to an upstream with TLS", func(t *testing.T) { pipesMove(t, true) })
}

func pipesMove(t *testing.T, secure bool) {
	f := newFar(t, secure)
	t.Setenv("MAINSTAY_TEST_UPSTREAM", f.address)
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("forwarder", 0, 1, s).serve()
	const clients = 20
	g := talkThrough(t, s, clients)
	names := map[string]int{}
	for _, c := range old.connections(7, control.ConnectionsRequest{Limit: 100}).Connections {
		names[c.Listener]++
	}
	if names["main"] != clients || names["dial:up"] != clients || names["dial:own"] != 1 || len(names) != 3 {
		t.Errorf("connections by listener: %v", names)
	}
	next := cl.spawn("forwarder", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 2*clients {
		t.Errorf("handed over: %+v, want %d", handed, 2*clients)
	}
	old.awaitExit(0)
	g.goOn(t)
	names = map[string]int{}
	for _, c := range next.connections(8, control.ConnectionsRequest{Limit: 100}).Connections {
		names[c.Listener]++
	}
	if names["main"] != clients || names["dial:up"] != clients || names["dial:own"] != 1 {
		t.Errorf("connections by listener in the successor: %v", names)
	}
	// Those of the pipes are still the same, the worker's own one is new, and
	// the old one was there for the last words.
	await(t, "the old worker's own connection to end", func() bool { open, _, _ := f.counts(); return open == clients+1 })
	if _, total, said := f.counts(); total != clients+2 || said != "worker 0 leaves" {
		t.Errorf("%d connections came, and said %q", total, said)
	}
	g.end()
	next.tell(link.Drain{Grace: patience})
	expect[link.Draining](next)
	next.awaitExit(0)
	await(t, "all to end", func() bool { open, _, _ := f.counts(); return open == 0 })
}

func TestPipesThatDoNotMoveAreServedToTheirEnd(t *testing.T) {
	f := newFar(t, false)
	t.Setenv("MAINSTAY_TEST_UPSTREAM", f.address)
	s := listen(t)
	cl := newCluster(t)
	old := cl.spawn("forwarder of its own", 0, 1, s).serve()
	g := talkThrough(t, s, 5)
	next := cl.spawn("forwarder of its own", 0, 2, s).serve()
	old.tell(link.Drain{Grace: patience, Hand: true, To: next.incarnation})
	expect[link.Draining](old)
	if handed := expect[link.Handed](old); handed.Given != 0 {
		t.Errorf("handed over: %+v, want none", handed)
	}
	g.goOn(t) // by the old one
	arg, _ := json.Marshal(link.GiveRequest{Count: 100, To: []uint64{old.incarnation}})
	next.tell(link.Gather{ID: 3, What: "give", Arg: arg}) // of outgoing ones that nobody knows
	next.answer0(t)
	g.end()
	old.awaitExit(0)
	if _, _, said := f.counts(); said != "worker 0 leaves" {
		t.Errorf("said %q", said)
	}
}

// answer0 waits for an answer, whatever it is.
func (p *proc) answer0(t *testing.T) {
	t.Helper()
	select {
	case <-p.answers:
	case <-p.said:
	case <-time.After(patience):
		t.Fatal("no answer")
	}
}

// through is clients that talk through a proxy.
type through struct{ clients []net.Conn }

func talkThrough(t *testing.T, s activation.Socket, n int) *through {
	t.Helper()
	g := &through{}
	for range n {
		c, err := dialSocket(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		g.clients = append(g.clients, c)
	}
	g.goOn(t)
	return g
}

// goOn has each client send something and wait for it.
func (g *through) goOn(t *testing.T) {
	t.Helper()
	for i, c := range g.clients {
		c.SetDeadline(time.Now().Add(patience))
		want := strings.Repeat(fmt.Sprintf("client %d ", i), 1000)
		if _, err := io.WriteString(c, want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("client %d: %.40q, %v", i, got, err)
		}
	}
}

func (g *through) end() {
	for _, c := range g.clients {
		c.Close()
	}
}
