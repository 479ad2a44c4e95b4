// Package web tries HTTP on the reactor with processes that come and go: what
// clients see of it, which is to be nothing.
package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, main) }

const config = "reload.bake = \"10ms\"\ngrace = \"20s\"\n"

var who string

// counted is the state of a stream.
type counted struct{ N int }

// main is a service whose answers begin with who gives them.
func main() {
	s := service.New("test")
	s.OnWorkerStart(func(w *service.Worker) error {
		who = fmt.Sprintf("%d/%d", w.Slot(), w.Generation())
		return nil
	})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, page)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %d", who, r.URL.Path, len(b))
	})
	streams := map[string]service.Stream{
		"/events": service.Events[counted]{
			OnRequest: func(r *http.Request) (counted, error) {
				if r.URL.RawQuery == "no" {
					return counted{}, &service.Refusal{Status: 404, Header: http.Header{"X-Why": {"no"}}}
				}
				n, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
				return counted{n + 1}, nil
			},
			OnConnect: func(c *service.EventStream[counted]) { c.SetTimer("next", 0) },
			OnTimer: func(c *service.EventStream[counted], _ string) {
				if c.Send(service.Event{ID: strconv.Itoa(c.State.N), Name: "n", Data: []byte(who + "\nx")}) == nil {
					c.State.N++
					c.SetTimer("next", 5*time.Millisecond)
				}
			},
		},
		"/ws": service.WebSocket[counted]{OnMessage: func(c *service.Conn[counted], m service.Message) {
			c.State.N++
			c.Send(fmt.Appendf(nil, "%s %s %d", who, m.Data, c.State.N))
		}},
	}
	slow := http.NewServeMux()
	slow.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, who+" ")
		w.(http.Flusher).Flush()
		io.Copy(w, r.Body)
	})
	slow.HandleFunc("/much", func(w http.ResponseWriter, r *http.Request) {
		for range 256 {
			w.Write(make([]byte, 64<<10))
		}
	})
	slow.Handle("/", handler)
	s.Listen("inline", "", service.Web{Inline: true, Reuse: true, Handler: handler, Streams: streams})
	s.Listen("pool", "", service.Web{Handler: slow, Streams: streams})
	s.Kind("net", netHTTP())
	s.Main()
}

// client is a connection whose peer must not change in any way that shows.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, s *servicetest.Service, listener string) *client {
	t.Helper()
	c := s.Dial(listener)
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Error(err)
	}
}

// answer reads a response, which must not say goodbye, and returns its body.
func (c *client) answer() string {
	c.t.Helper()
	r, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 || r.Close {
		c.t.Errorf("got %d, close %v, %q, %v", r.StatusCode, r.Close, body, err)
	}
	return string(body)
}

func (c *client) want(answers ...string) {
	c.t.Helper()
	for _, want := range answers {
		if got := c.answer(); got != want {
			c.t.Errorf("got %q, want %q", got, want)
		}
	}
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n" }

func start(t *testing.T, workers int) *servicetest.Service {
	t.Helper()
	return servicetest.Start(t, servicetest.Options{Listeners: []string{"inline", "pool"}, Workers: workers, Config: config})
}

// gone waits until only a generation is left.
func gone(s *servicetest.Service, generation uint64) {
	s.Await("the old ones are gone", func(st control.Status) bool {
		for _, w := range st.Pools[0].Workers {
			if w.Generation != generation {
				return false
			}
		}
		return true
	})
}

func TestNoClientNoticesAReload(t *testing.T) {
	s := start(t, 1)
	for _, listener := range []string{"inline", "pool"} {
		// In the table, "|" is where the reload comes; what is awaited before
		// it comes from the first generation.
		generation := s.Status().Generation
		old, next := fmt.Sprintf("0/%d ", generation), fmt.Sprintf("0/%d ", generation+1)
		upload := "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
		chunks := "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x\r\nabcd\r\n3"
		who := next
		if listener == "pool" {
			who = old // whoever has begun to answer ends it
		}
		tests := []struct {
			name          string
			before, after string
			first, rest   []string
		}{
			{name: "idle", before: get("/a"), first: []string{old + "/a 0"}, after: get("/b"), rest: []string{next + "/b 0"}},
			{name: "nothing asked yet", after: get("/b"), rest: []string{next + "/b 0"}},
			{name: "pipelined", before: get("/a") + get("/b") + "GET /c", first: []string{old + "/a 0", old + "/b 0"}, after: " HTTP/1.1\r\nHost: a\r\n\r\n" + get("/d"), rest: []string{next + "/c 0", next + "/d 0"}},
			{name: "in a head", before: "GET /a HTTP/1.1\r\nHo", after: "st: a\r\nX: y\r\n\r\n" + get("/b"), rest: []string{next + "/a 0", next + "/b 0"}},
			{name: "in an upload", before: upload + "hello", after: "moons" + get("/b"), rest: []string{who + "/up 10", next + "/b 0"}},
			{name: "before an upload", before: upload, after: "hellomoons" + get("/b"), rest: []string{who + "/up 10", next + "/b 0"}},
			{name: "in a chunk's size", before: chunks, after: "\r\nabc\r\n0\r\nX: y\r\n\r\n" + get("/b"), rest: []string{who + "/up 7", next + "/b 0"}},
			{name: "behind an upload", before: upload + "hellomoonsGET /b HT", first: []string{old + "/up 10"}, after: "TP/1.1\r\nHost: a\r\n\r\n", rest: []string{next + "/b 0"}},
		}
		clients := make([]*client, len(tests))
		for i, tt := range tests {
			clients[i] = dial(t, s, listener)
			clients[i].send(tt.before)
			clients[i].want(tt.first...)
		}
		// All that was sent has come.
		s.Await("all is read", func(control.Status) bool {
			all, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{Listener: listener})
			if err != nil {
				return false
			}
			read := make(map[string]uint64)
			for _, c := range all.Connections {
				read[c.Peer] = c.BytesIn
			}
			for i, tt := range tests {
				if read[clients[i].LocalAddr().String()] < uint64(len(tt.before)) {
					return false
				}
			}
			return true
		})
		s.Reload()
		for i, tt := range tests {
			t.Run(listener+", "+tt.name, func(t *testing.T) {
				c := clients[i]
				c.t = t
				// Half of them wait for the move, the others send at once.
				if tt.name == "idle" || tt.name == "in a head" {
					s.Await("it has moved", func(st control.Status) bool {
						all, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{Peer: c.LocalAddr().String()})
						return err == nil && len(all.Connections) == 1 && all.Connections[0].Generation == generation+1
					})
					c.send(tt.after)
					c.want(tt.rest...)
					return
				}
				c.send(tt.after)
				for _, want := range tt.rest {
					if got := c.answer(); got != want && got != strings.Replace(want, next, old, 1) {
						t.Errorf("got %q, want %q", got, want)
					}
				}
			})
		}
		gone(s, generation+1)
		for _, c := range clients {
			c.t = t
			c.send(get("/end"))
			c.want(next + "/end 0")
		}
	}
}

func TestHandlersThatRunAreWaitedFor(t *testing.T) {
	s := start(t, 1)
	slow, much := dial(t, s, "pool"), dial(t, s, "pool")
	slow.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
	if line, err := slow.r.ReadString('\n'); err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	much.send(get("/much")) // more than the kernel takes: the handler waits
	s.Await("it waits", func(control.Status) bool {
		all, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{Peer: much.LocalAddr().String()})
		return err == nil && len(all.Connections) == 1 && all.Connections[0].Queued > 0
	})
	s.Reload()
	slow.send("moons" + get("/b"))
	text := ""
	for !strings.HasSuffix(text, "\r\n0\r\n\r\n") {
		line, err := slow.r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
		text += line
	}
	if strings.Contains(text, "close") || !strings.Contains(text, "0/1 ") {
		t.Errorf("got %q", text)
	}
	slow.want("0/2 /b 0")
	if got := much.answer(); len(got) != 16<<20 {
		t.Errorf("got %d bytes, want all", len(got))
	}
	much.send(get("/b"))
	much.want("0/2 /b 0")
	gone(s, 2)
}

func TestStreamsGoOnOverReloads(t *testing.T) {
	s := start(t, 2)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, listener := range []string{"inline", "pool"} {
		for _, stream := range []func(*client, context.Context) string{readEvents, talk} {
			c := dial(t, s, listener)
			c.send(get("/before"))
			c.answer() // on the same connection
			wg.Go(func() {
				if problem := stream(c, ctx); problem != "" {
					t.Errorf("%s: %s", listener, problem)
				}
			})
		}
	}
	for range 3 {
		s.Reload()
	}
	gone(s, 4)
}

// readEvents reads numbered events until ctx ends, and until they come from the last
// generation.
func readEvents(c *client, ctx context.Context) string {
	if _, err := io.WriteString(c, "GET /events HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 41\r\n\r\n"); err != nil {
		return err.Error()
	}
	r, err := http.ReadResponse(c.r, nil)
	if err != nil || r.Header.Get("Content-Type") != "text/event-stream" {
		return fmt.Sprintf("%v, %v", r, err)
	}
	in := bufio.NewReader(r.Body)
	for n, last := 42, false; ctx.Err() == nil || !last; n++ {
		text := ""
		for !strings.HasSuffix(text, "\n\n") {
			line, err := in.ReadString('\n')
			if err != nil {
				return fmt.Sprintf("event %d: %q, %v", n, text, err)
			}
			text += line
		}
		if !strings.HasPrefix(text, fmt.Sprintf("id: %d\nevent: n\ndata: ", n)) || !strings.HasSuffix(text, "\ndata: x\n\n") {
			return fmt.Sprintf("got %q, want number %d", text, n)
		}
		last = strings.Contains(text, "/4\n")
	}
	return ""
}

// talk talks by WebSocket, in fragments.
func talk(c *client, ctx context.Context) string {
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"); err != nil {
		return err.Error()
	}
	r, err := http.ReadResponse(c.r, nil)
	if err != nil || r.StatusCode != 101 {
		return fmt.Sprintf("%v, %v", r, err)
	}
	for n, last := 1, false; ctx.Err() == nil || !last; n++ {
		// "he" and "y", masked with zeros.
		if _, err := c.Write([]byte{0x01, 0x82, 0, 0, 0, 0, 'h', 'e'}); err != nil {
			return err.Error()
		}
		select {
		case <-time.After(2 * time.Millisecond): // or there would be no moves in between
		case <-ctx.Done():
		}
		if _, err := c.Write([]byte{0x80, 0x81, 0, 0, 0, 0, 'y'}); err != nil {
			return err.Error()
		}
		head, err := c.r.Peek(2)
		if err != nil || head[0] != 0x81 {
			return fmt.Sprintf("message %d: % x, %v", n, head, err)
		}
		frame := make([]byte, 2+int(head[1]))
		if _, err := io.ReadFull(c.r, frame); err != nil {
			return err.Error()
		}
		if got, want := string(frame[2:]), fmt.Sprintf(" hey %d", n); !strings.HasSuffix(got, want) {
			return fmt.Sprintf("got %q, want %q", got, want)
		}
		last = strings.Contains(string(frame), "/4 ")
	}
	return ""
}

func TestRequestForEventsMayBeRefused(t *testing.T) {
	s := start(t, 1)
	for _, listener := range []string{"inline", "pool"} {
		c := dial(t, s, listener)
		c.send(get("/a") + get("/events?no"))
		c.want("0/1 /a 0")
		r, err := http.ReadResponse(c.r, nil)
		if err != nil || r.StatusCode != 404 || r.Header.Get("X-Why") != "no" || !r.Close {
			t.Errorf("%s: got %v, %v", listener, r, err)
		}
		// A HEAD and a POST are the handler's, as is what asks for no WebSocket.
		c = dial(t, s, listener)
		c.send("POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" + get("/ws"))
		c.want("0/1 /events 2", "0/1 /ws 0")
	}
}
