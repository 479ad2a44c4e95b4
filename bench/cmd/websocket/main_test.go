package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lxzan/gws"

	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) {
	if played, err := playRole(os.Args[1:]); played {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	servicetest.Main(m, serve)
}

// patience is after what time a test gives up.
const patience = time.Minute

// serve is a service that echoes on "ws", and on "dial" connects to the
// WebSocket whose URL is a line, says hello there, and tells what comes back.
func serve() {
	s := service.New("test")
	s.Listen("ws", "", service.WebSocket[struct{}]{CompressAbove: 64, OnMessage: func(c *service.Conn[struct{}], m service.Message) { c.SendMessage(m) }})
	var asker *service.Conn[struct{}]
	tell := func(text string) { asker.Send([]byte(text)) }
	s.Dial("far", "", service.WebSocketDialer[struct{}]{
		CompressAbove: 64,
		OnConnect: func(c *service.Conn[struct{}]) {
			c.Send([]byte("hello"))
			c.SendMessage(service.Message{Data: bytes.Repeat([]byte("long"), 1000), Binary: true})
		},
		OnMessage: func(c *service.Conn[struct{}], m service.Message) {
			tell(fmt.Sprintf("%v %d", m.Binary, len(m.Data)))
			if m.Binary {
				c.Close(&service.CloseError{Code: 4001, Reason: "enough"})
			}
		},
		OnDown: func(_ service.Client[struct{}], why error, _ time.Duration) { tell(fmt.Sprint("down: ", why)) },
	})
	var worker *service.Worker
	s.OnWorkerStart(func(w *service.Worker) error { worker = w; return nil })
	s.Listen("dial", "", service.Text[struct{}]{OnMessage: func(c *service.Conn[struct{}], line []byte) {
		asker = c
		if _, err := service.Dial(worker, "far", string(line), struct{}{}); err != nil {
			tell(err.Error())
		}
	}})
	s.Main()
}

// heard tells what a client of gws is told.
type heard struct {
	gws.BuiltinEventHandler
	messages chan string
}

func (h heard) OnMessage(_ *gws.Conn, m *gws.Message) {
	defer m.Close()
	h.messages <- fmt.Sprint(m.Opcode, " ", m.Data.Len())
}
func (h heard) OnPong(_ *gws.Conn, payload []byte) { h.messages <- "pong " + string(payload) }
func (h heard) OnClose(_ *gws.Conn, err error)     { h.messages <- fmt.Sprint("close ", err) }

func TestGWSClientNoticesNoReload(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"ws", "dial"}, Config: "reload.bake = \"10ms\"\n"})
	h := heard{messages: make(chan string, 16)}
	c, _, err := gws.NewClient(h, &gws.ClientOption{
		Addr: "ws://" + s.Addr("ws"), PermessageDeflate: gws.PermessageDeflate{Enabled: true, Threshold: 64},
	})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.ReadLoop()
	}()
	want := func(all ...string) {
		t.Helper()
		for _, want := range all {
			select {
			case got := <-h.messages:
				if got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			case <-time.After(patience):
				t.Fatalf("got nothing, want %s", want)
			}
		}
	}
	for n := range 4 {
		if n > 0 {
			s.Reload()
		}
		c.WriteString("hello")
		c.WriteMessage(gws.OpcodeBinary, make([]byte, 100_000))
		want("1 5", "2 100000")
		c.WritePing([]byte("there?"))
		want("pong there?")
	}
	c.WriteClose(1000, nil)
	<-over
}

func TestGWSServerIsDialed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far := gws.NewServer(gwsEcho{}, &gws.ServerOption{PermessageDeflate: gws.PermessageDeflate{Enabled: true, Threshold: 64}})
	far.OnError = func(net.Conn, error) {}
	go far.RunListener(l)
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"ws", "dial"}})
	c := s.Dial("dial")
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "ws://%s/\n", l.Addr())
	want := "false 5\ntrue 4000\ndown: websocket: closed with code 4001 \"enough\"\n"
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		if err != nil {
			t.Fatalf("got %q, %v, want %q", got[:n], err, want)
		}
		n += m
	}
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBatchesAreFrames(t *testing.T) {
	for _, tt := range []struct {
		load load
		head int
	}{
		{load{size: 64, depth: 1}, 2}, {load{size: 126, depth: 3}, 4}, {load{size: 1 << 16, depth: 2}, 10},
	} {
		request, answer := tt.load.batches()
		if len(answer) != tt.load.depth*(tt.head+tt.load.size) || len(request) != len(answer)+4*tt.load.depth {
			t.Errorf("%+v: %d and %d bytes", tt.load, len(request), len(answer))
		}
		mask := request[tt.head : tt.head+4]
		for i, b := range request[tt.head+4 : tt.head+4+tt.load.size] {
			if b^mask[i&3] != answer[tt.head+i] {
				t.Fatalf("%+v: byte %d is not the same in both", tt.load, i)
			}
		}
		if tt.head == 4 && int(binary.BigEndian.Uint16(answer[2:])) != tt.load.size {
			t.Errorf("%+v: length %d", tt.load, binary.BigEndian.Uint16(answer[2:]))
		}
		tt.load.raw = true
		if request, answer := tt.load.batches(); !bytes.Equal(request, answer) {
			t.Errorf("%+v: another answer than the request", tt.load)
		}
	}
}

func TestMarksAreWhatWasAskedFor(t *testing.T) {
	for _, tt := range []struct {
		load  load
		peer  string
		times float64
	}{
		{load{size: 64, depth: 1}, "best", 1.1}, {load{size: 64, depth: 16}, "gws", 3},
		{load{size: 4096, depth: 1}, peers.Baseline, 0.87}, {load{size: 4096, depth: 16}, "gws", 3}, {load{size: 64, depth: 4}, "", 0},
	} {
		if peer, times := markOf(tt.load, "best"); peer != tt.peer || times != tt.times {
			t.Errorf("%+v: %v of %s, want %v of %s", tt.load, times, peer, tt.times, tt.peer)
		}
	}
}

func TestPeersAreMeasured(t *testing.T) {
	runtime.LockOSThread() // servers end with the thread that has started them
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var out bytes.Buffer
	err := run(ctx, []string{"--server", "", "--only", "gws,gorilla,coder", "--connections", "3", "--sizes", "64", "--pipelines", "2", "--cycles", "1", "--burst", "20ms", "--idle", "0"}, &out, &out)
	if err != nil && strings.Contains(err.Error(), "want two") {
		t.Skip(err)
	}
	if err != nil || !strings.Contains(out.String(), "64 bytes, 3 connections, 2 in flight") || strings.Count(out.String(), "gorilla") != 1 {
		t.Errorf("%v\n%s", err, &out)
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--sizes", "0"}, "want numbers of one or more"},
		{[]string{"--cycles", "0"}, "a cycle"},
		{[]string{"--server", "/nonexistent/server", "--only", "mainstay"}, "build it"},
		{[]string{"--peer", "x=y", "--only", "x"}, "want NAME=COMMAND"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), tt.args, &out, &out); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.args, err, tt.want)
		}
	}
}
