package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

// webClient is a client of one of the protocols of the web.
type webClient interface {
	// ask sends something that holds n, and wants the answer to that. A
	// *wrongAnswer is another answer.
	ask(n int) error
	Close() error
}

// wrongAnswer is an answer that no client may get, whoever dies.
type wrongAnswer struct{ what string }

func (e *wrongAnswer) Error() string { return e.what }

// echoClient has a WebSocket of ws-echo.
type echoClient struct{ c *websocket.Conn }

func dialEcho(address string, mode websocket.CompressionMode) (webClient, error) {
	ctx, cancel := context.WithTimeout(context.Background(), servicetest.Patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+address, &websocket.DialOptions{CompressionMode: mode})
	if err != nil {
		return nil, err
	}
	return echoClient{c}, nil
}

func (c echoClient) Close() error { return c.c.CloseNow() }

// ask sends its message in two fragments.
func (c echoClient) ask(n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), servicetest.Patience)
	defer cancel()
	kind := []websocket.MessageType{websocket.MessageText, websocket.MessageBinary}[n%2]
	m := fmt.Sprintf("message %d %s", n, strings.Repeat("again ", n%100))
	got, echo, err := c.exchange(ctx, kind, m)
	switch {
	case err != nil && ctx.Err() != nil:
		return &wrongAnswer{fmt.Sprintf("message %d: silence: %v", n, err)}
	case err != nil:
		return err
	case got != kind || string(echo) != m:
		return &wrongAnswer{fmt.Sprintf("message %d: got %v %q, want %v %q", n, got, echo, kind, m)}
	}
	return nil
}

func (c echoClient) exchange(ctx context.Context, kind websocket.MessageType, m string) (websocket.MessageType, []byte, error) {
	w, err := c.c.Writer(ctx, kind)
	if err != nil {
		return 0, nil, err
	}
	for _, part := range []string{m[:len(m)/3], m[len(m)/3:]} {
		if _, err := io.WriteString(w, part); err != nil {
			return 0, nil, err
		}
	}
	if err := w.Close(); err != nil {
		return 0, nil, err
	}
	return c.c.Read(ctx)
}

// helloClient has a connection of http-hello that it keeps.
type helloClient struct {
	net.Conn
	in *bufio.Reader
}

func dialHello(address string) (webClient, error) {
	c, err := net.DialTimeout("tcp", address, servicetest.Patience)
	if err != nil {
		return nil, err
	}
	return helloClient{c, bufio.NewReader(c)}, nil
}

func (c helloClient) ask(n int) error {
	c.SetDeadline(time.Now().Add(servicetest.Patience))
	if _, err := fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", n); err != nil {
		return err
	}
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return &wrongAnswer{fmt.Sprintf("request %d: silence: %v", n, err)}
		}
		return err
	}
	body, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		return err
	case r.StatusCode != http.StatusOK || string(body) != "hello\n" || r.Close || c.in.Buffered() > 0:
		return &wrongAnswer{fmt.Sprintf("request %d: got %v %q, and %d bytes more", n, r, body, c.in.Buffered())}
	}
	return nil
}

func TestIdleWebSocketsAndHTTPConnectionsOutliveKillsOfTheirWorkers(t *testing.T) {
	const idle, busy, rounds, workers = 60, 8, 3, 3
	s := servicetest.Start(t, servicetest.Options{
		Listeners: []string{"ws-echo", "http-hello"}, Workers: workers,
		Config: "respawn.first = \"10ms\"\nrespawn.max = \"200ms\"\n[listener.ws-echo]\ncompress_above = 64\n",
	})
	dialers := []func() (webClient, error){
		func() (webClient, error) { return dialEcho(s.Addr("ws-echo"), websocket.CompressionDisabled) },
		func() (webClient, error) { return dialEcho(s.Addr("ws-echo"), websocket.CompressionNoContextTakeover) },
		func() (webClient, error) { return dialHello(s.Addr("http-hello")) },
	}
	var sleepers []webClient
	for i := range idle {
		c, err := dialers[i%len(dialers)]()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// Half of the WebSockets have had no message yet.
		if i%2 == 0 || i%len(dialers) == 2 {
			if err := c.ask(i); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
		sleepers = append(sleepers, c)
	}

	var answered, lost atomic.Int64
	done := make(chan struct{})
	var all sync.WaitGroup
	for i := range busy * len(dialers) {
		all.Go(func() {
			for n := 0; ; {
				c, err := dialers[i%len(dialers)]()
				for err == nil {
					select {
					case <-done:
						c.Close()
						return
					default:
					}
					if err = c.ask(n); err == nil {
						answered.Add(1)
						n++
					}
				}
				// What was in the middle of something is cut off, and comes back.
				if wrong, ok := err.(*wrongAnswer); ok {
					t.Errorf("busy client %d: %v", i, wrong)
					return
				}
				if c != nil {
					c.Close()
				}
				lost.Add(1)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range rounds {
		for slot := range workers {
			s.Kill(slot)
		}
		for i, c := range sleepers {
			if err := c.ask(1000 + i); err != nil {
				t.Errorf("idle client %d (kind %d): %v", i, i%len(dialers), err)
			}
		}
	}
	close(done)
	all.Wait()
	if answered.Load() == 0 {
		t.Error("the busy clients were never answered")
	}
	t.Logf("%d kills: all of %d idle clients go on; busy clients: %d answers, all right, %d connections cut off", rounds*workers, idle, answered.Load(), lost.Load())
}
