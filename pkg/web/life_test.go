package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
)

const get = "GET / HTTP/1.1\r\n" + host + "\r\n"

func TestEventsAreSentAsTheyComeUp(t *testing.T) {
	each(t, []way{pooled, netHTTP}, func(t *testing.T, how way) {
		next := make(chan string)
		gone := make(chan error, 1)
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			flush(w)
			for {
				select {
				case text := <-next:
					fmt.Fprintf(w, "data: %s\n\n", text)
					flush(w)
				case <-r.Context().Done():
					gone <- r.Context().Err()
					return
				}
			}
		}))
		c.send(get)
		r, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"one", "two"} {
			next <- text
			want := "data: " + text + "\n\n"
			got := make([]byte, len(want))
			if _, err := io.ReadFull(r.Body, got); string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
		c.Close()
		if err := receive(t, gone); !errors.Is(err, context.Canceled) {
			t.Errorf("context: %v", err)
		}
	})
}

func TestClientThatGoesEndsTheContext(t *testing.T) {
	for _, reset := range []bool{false, true} {
		t.Run(fmt.Sprintf("reset %v", reset), func(t *testing.T) {
			each(t, []way{pooled, netHTTP}, func(t *testing.T, how way) {
				running, gone := make(chan int), make(chan error)
				c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
					ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
					defer cancel()
					running <- 1
					<-ctx.Done()
					gone <- ctx.Err()
				}))
				c.send(get)
				receive(t, running)
				if reset {
					c.SetLinger(0)
				}
				c.Close()
				if err := receive(t, gone); !errors.Is(err, context.Canceled) {
					t.Errorf("context: %v", err)
				}
			})
		})
	}
}

func TestPeerThatSendsNoMoreGetsItsAnswer(t *testing.T) {
	each(t, all, func(t *testing.T, how way) {
		seen := make(chan int)
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			if how == pooled || how == netHTTP { // not on the loop
				<-r.Context().Done()
				<-seen
			}
			echoPath(w, r)
		}))
		c.send("GET /late HTTP/1.1\r\n" + host + "\r\n")
		c.CloseWrite()
		if how == pooled || how == netHTTP { // not on the loop
			seen <- 1
		}
		if a := c.response("GET"); a.body != "/late" {
			t.Errorf("got %q", a.body)
		}
		c.end()
	})
}

// numbers is a body of n bytes that can be checked.
type numbers struct{ at, n int }

func (r *numbers) Read(p []byte) (int, error) {
	if r.at == r.n {
		return 0, io.EOF
	}
	p = p[:min(len(p), r.n-r.at)]
	for i := range p {
		p[i] = byte((r.at + i) % 251)
	}
	r.at += len(p)
	return len(p), nil
}

// check reads a body of numbers and returns how many there are.
func check(r io.Reader) (n int, err error) {
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf)
		for i, b := range buf[:k] {
			if b != byte((n+i)%251) {
				return n + i, errors.New("a wrong byte")
			}
		}
		n += k
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func TestLargeBodiesPassBothWays(t *testing.T) {
	const size = 20 << 20
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprintf("chunked %v", chunked), func(t *testing.T) {
			addr := serve(t, pooled, func(w http.ResponseWriter, r *http.Request) {
				if !chunked {
					w.Header().Set("Content-Length", fmt.Sprint(size))
				}
				if n, err := io.Copy(w, r.Body); n != size || err != nil {
					t.Errorf("copied %d bytes, %v", n, err)
				}
			})
			var body io.Reader = &numbers{n: size}
			r, _ := http.NewRequest("POST", "http://"+addr+"/", body)
			if !chunked {
				r.ContentLength = size
			}
			a, err := httpClient(t).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			if n, err := check(a.Body); n != size || err != nil {
				t.Errorf("%d bytes, %v, want %d", n, err, size)
			}
		})
	}
}

func TestHandlerThatDoesNotReadHoldsUpThePeer(t *testing.T) {
	const size = 32 << 20
	entered, read := make(chan int), make(chan int)
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- 1
		<-read
		n, err := check(r.Body)
		fmt.Fprint(w, n, err)
	})}, conn.Limits{})
	c := dial(t, s.addr)
	go func() {
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", host, size))
		io.Copy(c.TCPConn, &numbers{n: size})
	}()
	receive(t, entered)
	var k *conn.Conn = receive(t, s.conns)
	s.until("the connection pauses", func() bool { return k.Info().State == "paused" })
	if got := k.BytesIn(); got > bodyHigh+128<<10 {
		t.Errorf("%d bytes of the body were read, though nobody reads it", got)
	}
	read <- 1
	if a := c.response("POST"); a.body != fmt.Sprint(size, nil) {
		t.Errorf("the handler read %s", a.body)
	}
}

func TestPeerThatDoesNotReadHoldsUpTheHandler(t *testing.T) {
	const size = 64 << 20
	var written atomic.Int64
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := &numbers{n: size}
		buf := make([]byte, 1<<20)
		for {
			n, err := body.Read(buf)
			if err != nil {
				return
			}
			if _, err := w.Write(buf[:n]); err != nil {
				t.Errorf("Write: %v", err)
				return
			}
			written.Add(int64(n))
		}
	})}, conn.Limits{})
	c := dial(t, s.addr)
	c.SetReadBuffer(64 << 10)
	c.send(get)
	k := receive(t, s.conns)
	s.until("the send queue is full", func() bool { return k.Info().State == "full" })
	if got := k.Queued(); got > DefaultSendHigh+2*sendStep {
		t.Errorf("%d bytes wait to be sent, want at most a step beyond %d", got, DefaultSendHigh)
	}
	if got := written.Load(); got > 32<<20 {
		t.Errorf("the handler could write %d bytes to a peer that does not read", got)
	}
	r, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := check(r.Body); n != size || err != nil {
		t.Errorf("%d bytes, %v, want %d", n, err, size)
	}
}

func TestInlineAnswersToAPeerThatDoesNotReadAreBounded(t *testing.T) {
	page := bytes.Repeat([]byte("x"), 100<<10)
	var answered atomic.Int64
	s := start(t, Config{Inline: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answered.Add(1)
		w.Write(page)
	})}, conn.Limits{})
	c := dial(t, s.addr)
	const n = 300
	go c.send(strings.Repeat(get, n))
	k := receive(t, s.conns)
	s.until("the connection pauses", func() bool { return k.Info().State != "open" })
	if got := k.Queued(); got > DefaultSendHigh+len(page)+outHigh {
		t.Errorf("%d bytes wait to be sent", got)
	}
	for range n {
		if a := c.response("GET"); len(a.body) != len(page) {
			t.Fatalf("got %d bytes, want %d", len(a.body), len(page))
		}
	}
	if got := answered.Load(); got != n {
		t.Errorf("%d requests were answered, want %d", got, n)
	}
}

func TestSmallSendLimitsAreKept(t *testing.T) {
	const size = 1 << 20
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(w, &numbers{n: size}); n != size || err != nil {
			t.Errorf("copied %d bytes, %v", n, err)
		}
	})}, conn.Limits{SendHigh: 8 << 10, SendHard: 24 << 10})
	a := dial(t, s.addr).ask(get)
	if n, err := check(strings.NewReader(a.body)); n != size || err != nil || a.err != nil {
		t.Errorf("%d bytes, %v, %v", n, err, a.err)
	}
}

func TestPeerThatEndsInTheMiddleIsClosed(t *testing.T) {
	for _, tt := range []struct{ name, sent string }{
		{name: "of a head", sent: "GET / HT"},
		{name: "of a body", sent: "POST / HTTP/1.1\r\n" + host + "Content-Length: 10\r\n\r\nhello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, ours, func(t *testing.T, how way) {
				s := start(t, Config{Inline: how == inline, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.ReadAll(r.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("the handler reads %v", err)
					}
				})}, conn.Limits{})
				c := dial(t, s.addr)
				c.send(tt.sent)
				c.CloseWrite()
				if why := receive(t, s.ends); !errors.Is(why, conn.ErrPeerClosed) && !strings.Contains(fmt.Sprint(why), "unexpected EOF") {
					t.Errorf("ended with %v", why)
				}
			})
		})
	}
}

func TestWriteDeadlineEndsAWriteThatWaits(t *testing.T) {
	errs := make(chan error, 1)
	c := dial(t, serve(t, pooled, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		var err error
		for buf := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(buf)
		}
		errs <- err
	}))
	c.SetReadBuffer(64 << 10)
	c.send(get)
	if err := receive(t, errs); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write: %v", err)
	}
}

func TestReadDeadlineEndsAReadThatWaits(t *testing.T) {
	each(t, []way{pooled, netHTTP}, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			ctl := http.NewResponseController(w)
			if err := ctl.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Error(err)
			}
			_, err := io.ReadAll(r.Body)
			fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
		}))
		if a := c.ask("POST / HTTP/1.1\r\n" + host + "Content-Length: 10\r\n\r\nhello"); a.body != "true" {
			t.Errorf("the handler says %s", a.body)
		}
	})
}

func TestResponseControllerIsServed(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			ctl := http.NewResponseController(w)
			if err := ctl.EnableFullDuplex(); err != nil {
				t.Errorf("EnableFullDuplex: %v", err)
			}
			_, _, err := ctl.Hijack()
			if !errors.Is(err, ErrNoHijack) || !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Hijack: %v", err)
			}
			if Conn(r.Context()) == nil || Conn(t.Context()) != nil {
				t.Error("Conn does not find the connection, or one that is none")
			}
			if a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr); a == nil || a.String() != r.Host {
				t.Errorf("local address %v, want %s", a, r.Host)
			}
		}))
		c.ask("GET / HTTP/1.1\r\nHost: " + c.RemoteAddr().String() + "\r\n\r\n")
	})
}

func TestPanicCostsItsConnectionOnly(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		status  int  // 0: nothing is answered
		told    bool // to the application's operator
	}{
		{name: "before anything was sent", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "a"); panic("no") }, status: 500, told: true},
		{name: "behind a part", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "a"); flush(w); panic("no") }, status: 200, told: true},
		{name: "on purpose", handler: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }},
		{name: "end of the goroutine", handler: func(w http.ResponseWriter, r *http.Request) { runtime.Goexit() }, status: 500, told: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, ours, func(t *testing.T, how way) {
				if how == inline && strings.HasPrefix(tt.name, "end") {
					return // that would be the end of the loop
				}
				s := start(t, Config{Inline: how == inline, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/bad" {
						tt.handler(w, r)
					}
				})}, conn.Limits{})
				other := dial(t, s.addr)
				other.ask(get)
				c := dial(t, s.addr)
				c.send(get + "GET /bad HTTP/1.1\r\n" + host + "\r\n" + get)
				c.response("GET")
				switch {
				case tt.status == 0:
				case tt.status == 200:
					if a := c.response("GET"); a.err == nil {
						t.Errorf("got %q, want it cut", a.body)
					}
				default:
					if a := c.response("GET"); a.StatusCode != tt.status || !a.Close {
						t.Errorf("got %d, close %v", a.StatusCode, a.Close)
					}
				}
				c.end()
				other.ask(get)
				s.mu.Lock()
				defer s.mu.Unlock()
				if told := len(s.told) == 1 && s.seat.Panics.Load() == 1; told != tt.told || len(s.told) > 1 {
					t.Errorf("told %d times, counted %d, want %v", len(s.told), s.seat.Panics.Load(), tt.told)
				}
			})
		})
	}
}

func TestMoreRequestsThanAllowedAreToldToComeLater(t *testing.T) {
	entered, leave := make(chan int, 10), make(chan int)
	s := start(t, Config{Limits: Limits{Running: 1, Waiting: 1}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- 1
		<-leave
	})}, conn.Limits{})
	clients := []*client{dial(t, s.addr), dial(t, s.addr), dial(t, s.addr)}
	clients[0].send(get)
	receive(t, entered)
	clients[1].send(get)
	s.until("one waits", func() bool { _, waiting := s.web.Running(); return waiting == 1 })
	a := clients[2].ask(get)
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.Close {
		t.Errorf("got %d, Retry-After %q, close %v, want 503", a.StatusCode, a.Header.Get("Retry-After"), a.Close)
	}
	leave <- 1
	leave <- 1
	for _, c := range clients[:2] {
		if a := c.response("GET"); a.StatusCode != 200 {
			t.Errorf("got %d, want 200", a.StatusCode)
		}
	}
	go func() { leave <- 1 }()
	if a := clients[2].ask(get); a.StatusCode != 200 {
		t.Errorf("later: got %d, want 200", a.StatusCode)
	}
}

func TestHandlerIsJudgedUntilItBeginsToAnswer(t *testing.T) {
	entered, begin, leave := make(chan int, 1), make(chan int), make(chan int)
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- 1
		<-begin
		w.Write([]byte("here"))
		w.(http.Flusher).Flush()
		entered <- 1
		<-leave
	})}, conn.Limits{})
	if d := s.web.Longest(); d != 0 {
		t.Errorf("with no request: %v", d)
	}
	c := dial(t, s.addr)
	c.send(get)
	receive(t, entered)
	s.until("it is at work", func() bool { return s.web.Longest() > 0 })
	first := s.web.Longest()
	s.until("it goes on", func() bool { return s.web.Longest() > first })
	begin <- 1
	receive(t, entered)
	if d := s.web.Longest(); d != 0 {
		t.Errorf("while it answers: %v", d)
	}
	leave <- 1
	if a := c.response("GET"); a.StatusCode != 200 {
		t.Errorf("got %d, want 200", a.StatusCode)
	}
	s.until("it has returned", func() bool { return s.web.Longest() == 0 })
}

func TestSlowPeersAreEnded(t *testing.T) {
	limits := Limits{HeadTimeout: 60 * time.Millisecond, BodyTimeout: 60 * time.Millisecond, IdleTimeout: 60 * time.Millisecond}
	const post = "POST / HTTP/1.1\r\n" + host + "Content-Length: 10\r\n\r\n"
	for _, tt := range []struct {
		name   string
		send   string
		status []int
		want   error
	}{
		{name: "between two requests", send: get, status: []int{200}, want: conn.ErrIdle},
		{name: "in a head", send: "GET / HT", status: []int{408}},
		{name: "in the second head", send: get + "GET", status: []int{200, 408}},
		{name: "in a body", send: post + "hello", status: []int{408}},
		{name: "in a body that nobody reads", send: strings.Replace(post, "/", "/skip", 1) + "hello", status: []int{408}},
		{name: "in a chunk's size", send: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1", status: []int{408}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, ours, func(t *testing.T, how way) {
				s := start(t, Config{Inline: how == inline, Limits: limits, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/skip" {
						return
					}
					if _, err := io.ReadAll(r.Body); err != nil {
						w.WriteHeader(408)
					}
				})}, conn.Limits{})
				c := dial(t, s.addr)
				c.send(tt.send)
				want := slices.Clone(tt.status)
				if how == pooled && strings.Contains(tt.name, "nobody") {
					want[0] = 200 // the answer was there before
				}
				for _, status := range want {
					if a := c.response("GET"); a.StatusCode != status {
						t.Errorf("got %d, want %d", a.StatusCode, status)
					}
				}
				c.end()
				c.Close()
				if why := receive(t, s.ends); why == nil || tt.want != nil && !errors.Is(why, tt.want) {
					t.Errorf("ended with %v, want %v", why, tt.want)
				}
			})
		})
	}
}

func TestPeerThatKeepsTheRateIsNotSlow(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		// A byte is worth a second here, so some of them are worth any pause.
		s := start(t, Config{Inline: how == inline, Limits: Limits{BodyTimeout: 500 * time.Millisecond, BodyRate: 1}, Handler: http.HandlerFunc(echoBody)}, conn.Limits{})
		c := dial(t, s.addr)
		c.send("POST / HTTP/1.1\r\n" + host + "Content-Length: 25\r\n\r\n")
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for range 25 {
			<-tick.C
			c.send("x")
		}
		if a := c.response("POST"); a.StatusCode != 200 || len(a.body) != 25 {
			t.Errorf("got %d, %d bytes", a.StatusCode, len(a.body))
		}
	})
}

func TestBodyBeyondTheLimitIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, request string }{
		{name: "announced", request: "POST / HTTP/1.1\r\n" + host + "Content-Length: 11\r\n\r\n"},
		{name: "announced and asked for", request: "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 11\r\n\r\n"},
		{name: "chunked", request: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n6\r\nhello,\r\n5\r\nworld\r\n"},
		{name: "one chunk", request: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nhello, world"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, ours, func(t *testing.T, how way) {
				s := start(t, Config{Inline: how == inline, Limits: Limits{Body: 10}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, err := io.ReadAll(r.Body)
					if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
						w.WriteHeader(413)
					}
				})}, conn.Limits{})
				c := dial(t, s.addr)
				if a := c.ask(tt.request); a.StatusCode != 413 || !a.Close {
					t.Errorf("got %d, close %v, want 413", a.StatusCode, a.Close)
				}
				c.end()
			})
		})
	}
}

func TestTooMuchOfABodyThatNobodyReadsEndsTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name, head string
		close      bool // is told
	}{
		{name: "announced", head: fmt.Sprintf("Content-Length: %d", 1<<30), close: true},
		{name: "chunked", head: "Transfer-Encoding: chunked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Config{Handler: http.HandlerFunc(echoPath)}, conn.Limits{Close: 100 * time.Millisecond})
			c := dial(t, s.addr)
			a := c.ask("POST /a HTTP/1.1\r\n" + host + tt.head + "\r\n\r\n40000000\r\n")
			if a.body != "/a" || a.Close != tt.close {
				t.Errorf("got %q, close %v", a.body, a.Close)
			}
			// Until the server ends it; what is on its way then may be reset.
			for buf := make([]byte, 64<<10); ; {
				if _, err := c.Write(buf); err != nil {
					break
				}
			}
			receive(t, s.ends)
		})
	}
}

func TestDrainSaysGoodbye(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		s := start(t, Config{Inline: how == inline, Handler: http.HandlerFunc(echoPath)}, conn.Limits{})
		c, idle := dial(t, s.addr), dial(t, s.addr)
		c.ask(get)
		idle.ask(get)
		s.web.Drain()
		if a := c.ask(get); !a.Close || a.body != "/" {
			t.Errorf("got %q, close %v", a.body, a.Close)
		}
		c.end()
		s.do(func() { s.set.Drain(conn.DrainPrompt, patience, nil) })
		idle.end()
	})
}

func TestDrainWaitsForARequest(t *testing.T) {
	entered, leave := make(chan int), make(chan int)
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- 1
		<-leave
		echoBody(w, r)
	})}, conn.Limits{})
	for _, tt := range []struct{ name, first, rest string }{
		{name: "answered", first: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello"},
		{name: "on its way", first: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhe", rest: "llo"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, s.addr)
			c.send(tt.first)
			receive(t, entered)
			s.web.Drain()
			drained := make(chan int)
			s.do(func() { s.set.Drain(conn.DrainPrompt, patience, func() { close(drained) }) })
			c.send(tt.rest)
			leave <- 1
			if a := c.response("POST"); a.body != "hello" || !a.Close {
				t.Errorf("got %q, close %v", a.body, a.Close)
			}
			c.end()
			c.Close()
			receive(t, drained)
		})
	}
}

// lines is a protocol that a connection turns into.
type lines struct {
	conn.NopHandler
	heard chan string
}

func (l lines) OnConnect(c *conn.Conn) { c.Send([]byte(c.Value().(string))) }
func (l lines) OnMessage(c *conn.Conn, m []byte) {
	select {
	case l.heard <- string(m):
	default:
	}
	c.Send(append([]byte("heard "), m...))
}

func TestConnectionTurnsIntoAStream(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		l := lines{heard: make(chan string, 10)}
		s := start(t, Config{
			Inline: how == inline, Handler: http.HandlerFunc(echoPath),
			Streams: map[string]Stream{
				"/lines": {Upgrade: true, Conn: &conn.Config{Handler: l, Inline: true, ProtocolName: "lines"},
					Begin: func(c *conn.Conn, r *http.Request) { c.SetValue("welcome to " + r.RequestURI + "\n") }},
				"/raw": {Conn: &conn.Config{Handler: polite{}, Inline: true, ProtocolName: "raw"}},
			},
		}, conn.Limits{})
		s.do(func() {
			for _, c := range s.conf.Becomes {
				c.Listener, c.Seat = s.conf.Listener, s.seat
			}
		})
		const upgrade = " HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: lines\r\n\r\n"
		c := dial(t, s.addr)
		c.send("GET /other" + upgrade + get + "GET /lines HTTP/1.1\r\n" + host + "\r\n" + "POST /lines" + strings.Replace(upgrade, "\r\n\r\n", "\r\nContent-Length: 1\r\n\r\n1", 1) +
			"GET /lines?a=b" + upgrade + "not HTTP\n")
		for _, want := range []string{"/other", "/", "/lines", "/lines"} {
			if a := c.response("GET"); a.body != want {
				t.Errorf("got %q, want %q", a.body, want)
			}
		}
		c.expect("welcome to /lines?a=b\nheard not HTTP\n")
		c.send("more\n")
		c.expect("heard more\n")
		s.until("it is none of HTTP's", func() bool { return s.web.conns.Load() == 0 })
		raw := dial(t, s.addr)
		request := "GET /raw HTTP/1.1\r\n" + host + "\r\n"
		raw.send(get + request + "and more")
		if a := raw.response("GET"); a.body != "/" {
			t.Errorf("got %q", a.body)
		}
		raw.expect(request + "and more")
	})
}

// polite sends everything back.
type polite struct{ conn.NopHandler }

func (polite) OnMessage(c *conn.Conn, m []byte) { c.Send(m) }

func TestSwitchThatNobodyTakesEndsTheConnection(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(101) }))
		if a := c.ask(get); a.StatusCode != 101 {
			t.Errorf("got %d", a.StatusCode)
		}
		c.end()
	})
}

// adopter restores each connection from a state in the place of OnConnect.
type adopter struct {
	observer
	state []byte
	errs  chan error
}

func (a adopter) OnConnect(c *conn.Conn) {
	err := a.Handler.Restore(c, a.state)
	if err == nil {
		a.Handler.OnAdopt(c, conn.Reload)
	}
	a.errs <- err
}

func TestStreamGoesOnElsewhere(t *testing.T) {
	requests := "GET /1 HTTP/1.1\r\n" + host + "\r\nPOST /2 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x\r\n, moon\r\n0\r\nX: y\r\n\r\nGET /3 HTTP/1.1\r\n" + host + "\r\n"
	handler := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %v", r.URL.Path, b, r.Trailer)
	}
	want := []string{"/1  map[]", "/2 hello, moon map[X:[y]]", "/3  map[]"}
	for cut := 0; cut <= len(requests); cut++ {
		old := start(t, Config{Inline: true, Handler: http.HandlerFunc(handler)}, conn.Limits{})
		c := dial(t, old.addr)
		c.send(requests[:cut])
		k := receive(t, old.conns)
		old.until("all was read", func() bool { return k.BytesIn() == uint64(cut) })
		var state []byte
		var err error
		old.do(func() { state, err = old.web.Capture(k) })
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		var got []string
		for range strings.Count(requests[:cut], "\r\n\r\nPOST") + strings.Count(requests[:cut], "y\r\n\r\n") + strings.Count(requests[:cut], "GET /3 HTTP/1.1\r\n"+host+"\r\n") {
			got = append(got, c.response("GET").body)
		}
		if len(got) == 0 && strings.Contains(requests[:cut], "\r\n\r\n") {
			got = append(got, c.response("GET").body)
		}
		next := start(t, Config{Inline: cut%2 == 0, Handler: http.HandlerFunc(handler)}, conn.Limits{}) // a reload may change that
		errs := make(chan error, 1)
		next.do(func() { next.conf.Handler = adopter{observer{next.web, next}, state, errs} })
		c = dial(t, next.addr)
		if err := receive(t, errs); err != nil {
			t.Fatalf("cut at %d: Restore: %v", cut, err)
		}
		c.send(requests[cut:])
		for len(got) < len(want) {
			got = append(got, c.response("GET").body)
		}
		if !slices.Equal(got, want) {
			t.Errorf("cut at %d: got %q, want %q", cut, got, want)
		}
	}
}

func TestConnectionWithARequestIsNotGivenAway(t *testing.T) {
	entered, leave := make(chan int), make(chan int)
	s := start(t, Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- 1
		<-leave
	})}, conn.Limits{})
	c := dial(t, s.addr)
	k := receive(t, s.conns)
	busy := func() (busy bool, err error) {
		s.do(func() { busy = s.web.Busy(k); _, err = s.web.Capture(k) })
		return busy, err
	}
	if b, err := busy(); b || err != nil {
		t.Errorf("idle: busy %v, %v", b, err)
	}
	c.send(get)
	receive(t, entered)
	if b, err := busy(); !b || !errors.Is(err, ErrBusy) {
		t.Errorf("in a request: busy %v, %v", b, err)
	}
	leave <- 1
	c.response("GET")
	s.until("it is idle", func() bool { return !s.web.Busy(k) })
}

func TestForeignStateIsRefused(t *testing.T) {
	s := start(t, Config{Inline: true}, conn.Limits{})
	for _, state := range [][]byte{{}, {2}, {1}, {1, 5, 1}, {1, 6, 1, 2, 0, 5, 0, 0, 0, 0, 0, 0}, {1, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0}, {1, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9}} {
		errs := make(chan error, 1)
		s.do(func() {
			s.conf = s.web.ConnConfig(conn.Limits{})
			s.conf.Handler = adopter{observer{s.web, s}, state, errs}
		})
		dial(t, s.addr)
		if err := receive(t, errs); !errors.Is(err, ErrState) {
			t.Errorf("% x: got %v", state, err)
		}
	}
}

func FuzzRestoreTakesAnything(f *testing.F) {
	var servers [2]*server // the handlers' goroutines, the loop
	for i := range servers {
		for _, state := range []string{
			"\x01\x06\x01\x00\x00\x00\x00\x00\x03GET\x00\x00\x07",
			"\x01\x06\x01\x01\x00\x02\x00\x00\x00\x03GET\x01x\x00",
			"\x01\x06\x01\x01\x00\x02\x00\x00\x00\x32POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\x01x\x00",
		} {
			f.Add([]byte(state), i)
		}
		servers[i] = start(f, Config{Inline: i == 1, Handler: http.HandlerFunc(echoBody)}, conn.Limits{})
	}
	f.Fuzz(func(t *testing.T, state []byte, which int) {
		s := servers[which&1]
		errs := make(chan error, 1)
		s.loop.Post(func() {
			s.conf = s.web.ConnConfig(conn.Limits{})
			s.conf.Handler = adopter{observer{s.web, s}, state, errs}
		})
		c := dial(t, s.addr)
		if err := receive(t, errs); err == nil {
			c.send(get)
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			c.r.ReadByte()
		}
		c.Close()
	})
}

func TestCurlIsServed(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	each(t, all, func(t *testing.T, how way) {
		addr := serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintln(w, r.Method, r.URL.Path, n, err, r.ContentLength)
		})
		for _, tt := range []struct {
			name  string
			args  []string
			stdin io.Reader
			want  string
		}{
			{name: "two on one connection", args: []string{"http://" + addr + "/a", "http://" + addr + "/b"}, want: "GET /a 0 <nil> 0\nGET /b 0 <nil> 0\n"},
			{name: "form", args: []string{"-d", "a=b", "http://" + addr + "/"}, want: "POST / 3 <nil> 3\n"},
			{name: "chunked upload", args: []string{"-T", "-", "http://" + addr + "/up"}, stdin: &numbers{n: 300000}, want: "PUT /up 300000 <nil> -1\n"},
			{name: "expect", args: []string{"-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-", "http://" + addr + "/"}, stdin: &numbers{n: 500000}, want: "POST / 500000 <nil> 500000\n"},
			{name: "HTTP/1.0", args: []string{"-0", "http://" + addr + "/"}, want: "GET / 0 <nil> 0\n"},
		} {
			cmd := exec.CommandContext(t.Context(), curl, append([]string{"-sS", "--max-time", "20", "--noproxy", "*"}, tt.args...)...)
			cmd.Stdin = tt.stdin
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("%s: %q, %v, want %q", tt.name, out, err, tt.want)
			}
		}
	})
}

func TestInlineKeepsUpWithManyConnections(t *testing.T) {
	s := start(t, Config{Inline: true, Handler: http.HandlerFunc(echoPath)}, conn.Limits{})
	var clients []*client
	for range 200 {
		clients = append(clients, dial(t, s.addr))
	}
	for round := range 3 {
		for _, c := range clients {
			c.send(get)
		}
		for i, c := range clients {
			if a := c.response("GET"); a.body != "/" {
				t.Fatalf("round %d, client %d: %q", round, i, a.body)
			}
		}
	}
	s.do(func() {}) // behind the turn that counts them
	if got, want := s.seat.Messages.Load(), uint64(600); got != want {
		t.Errorf("%d requests counted, want %d", got, want)
	}
}

func TestDeadlineThatComesLaterEndsAWriteThatWaits(t *testing.T) {
	each(t, []way{pooled, netHTTP}, func(t *testing.T, how way) {
		errs := make(chan error, 1)
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			ctl := http.NewResponseController(w)
			timer := time.AfterFunc(50*time.Millisecond, func() { ctl.SetWriteDeadline(time.Unix(1, 0)) })
			defer timer.Stop()
			var err error
			for buf := make([]byte, 1<<20); err == nil; {
				_, err = w.Write(buf)
			}
			errs <- err
		}))
		c.SetReadBuffer(64 << 10)
		c.send(get)
		if err := receive(t, errs); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
	})
}
