package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// webOffences are what must not be said by HTTP, with the status that ends the
// connection. What comes in front of it is answered by 200.
var webOffences = []struct {
	name     string
	listener string // empty: loop-web
	before   int    // requests that are right and answered before
	send     string
	status   int
}{
	{name: "both lengths", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + request, status: 400},
	{name: "two lengths", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", status: 400},
	{name: "a list of lengths", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!", status: 400},
	{name: "a length with a sign", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", status: 400},
	{name: "a length beyond 64 bits", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", status: 400},
	{name: "another coding", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", status: 501},
	{name: "chunked, twice", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", status: 501},
	{name: "chunked by HTTP/1.0", send: "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", status: 400},
	{name: "a blank before the colon", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", status: 400},
	{name: "a bare line feed", send: "GET / HTTP/1.1\nHost: a\n\n", status: 400},
	{name: "a bare carriage return", send: "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", status: 400},
	{name: "a folded field", send: "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", status: 400},
	{name: "a zero byte in a field", send: "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", status: 400},
	{name: "a control byte in a name", send: "GET / HTTP/1.1\r\nHost: a\r\nX\x01: a\r\n\r\n", status: 400},
	{name: "a field without a colon", send: "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", status: 400},
	{name: "no host", send: "GET / HTTP/1.1\r\n\r\n", status: 400},
	{name: "two hosts", send: "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", status: 400},
	{name: "another version", send: "GET / HTTP/2.0\r\nHost: a\r\n\r\n", status: 505},
	{name: "no version", send: "GET /\r\n\r\n", status: 400},
	{name: "TLS", send: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", status: 400},
	{name: "an expectation that nobody knows", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: miracles\r\n\r\n", status: 417},
	{name: "a body that is too long", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", status: 413},
	{name: "a body that grows too long", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n" + strings.Repeat("x", 20000), status: 413},
	{name: "a chunk of a size that is none", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", status: 400},
	{name: "a chunk beyond 64 bits", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n", status: 413},
	{name: "a chunk without its end", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", status: 400},
	{name: "endless trailers", send: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100), status: 431},
	{name: "something behind what is right", before: 3, send: "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n" + request, status: 400},
	{name: "something behind a body by chunks, then one by length", before: 1,
		send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", status: 400},

	{name: "a handshake without a key", listener: "ws", send: strings.ReplaceAll(upgrade, "Sec-WebSocket-Key", "X"), status: 400},
	{name: "a handshake with a key that is none", listener: "ws", send: strings.ReplaceAll(upgrade, "AAAAAAAAAAAAAAAAAAAAAA==", "AAAA"), status: 400},
	{name: "a handshake of another version", listener: "ws", send: strings.ReplaceAll(upgrade, "Version: 13", "Version: 8"), status: 426},
	{name: "a handshake by POST", listener: "ws", send: strings.Replace(upgrade, "GET", "POST", 1), status: 405},
	{name: "a handshake from another page's origin", listener: "ws", send: strings.Replace(upgrade, "Host: a", "Host: a\r\nOrigin: https://evil.example", 1), status: 403},
	{name: "a request that is no handshake", listener: "ws", send: request, status: 426},
}

// frameOffences are what must not be said on a WebSocket, with the code that
// ends the connection. All masks are zeros.
var frameOffences = []struct {
	name string
	send string
	code uint16
}{
	{name: "a reserved bit", send: "\xa1\x80\x00\x00\x00\x00", code: 1002},
	{name: "the bit of compression in a control frame", send: "\xc9\x80\x00\x00\x00\x00", code: 1002},
	{name: "a reserved opcode", send: "\x83\x80\x00\x00\x00\x00", code: 1002},
	{name: "a reserved opcode of control", send: "\x8b\x80\x00\x00\x00\x00", code: 1002},
	{name: "a frame without a mask", send: "\x81\x02hi", code: 1002},
	{name: "a control frame that is too long", send: "\x89\xfe\x00\x7e\x00\x00\x00\x00" + strings.Repeat("x", 126), code: 1002},
	{name: "a control frame in parts", send: "\x09\x80\x00\x00\x00\x00", code: 1002},
	{name: "a continuation of nothing", send: "\x80\x80\x00\x00\x00\x00", code: 1002},
	{name: "a message within another", send: "\x01\x81\x00\x00\x00\x00a\x81\x81\x00\x00\x00\x00b", code: 1002},
	{name: "a length of a sign", send: "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", code: 1002},
	{name: "a length that is longer than it has to be", send: "\x82\xfe\x00\x01\x00\x00\x00\x00x", code: 1002},
	{name: "text that is not UTF-8, early", send: "\x01\x82\x00\x00\x00\x00\xc0\x80", code: 1007},
	{name: "text that ends within a character", send: "\x81\x81\x00\x00\x00\x00\xe2", code: 1007},
	{name: "a message that is too long", send: "\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00", code: 1009},
	{name: "fragments that grow too long", send: "\x02\xfe\x3f\xff\x00\x00\x00\x00" + strings.Repeat("x", 0x3fff) + "\x00\x82\x00\x00\x00\x00yy", code: 1009},
	{name: "compressed bytes that are none", send: "\xc2\x84\x00\x00\x00\x00\xff\xff\xff\xff", code: 1007},
	{name: "a close of one byte", send: "\x88\x81\x00\x00\x00\x00\x03", code: 1002},
	{name: "a close with a code that may not be sent", send: "\x88\x82\x00\x00\x00\x00\x03\xed", code: 1002},
	{name: "a close with a reason that is not UTF-8", send: "\x88\x83\x00\x00\x00\x00\x03\xe8\xff", code: 1007},
}

// offend sends what must not be said, and wants the answers to what is right,
// the status, and the end.
func (v *visit) offend(before int, send string, status int) error {
	v.SetDeadline(time.Now().Add(patience))
	sent := make(chan error, 1)
	go func() {
		// The end may come while there is something left to be sent.
		_, err := io.WriteString(v, strings.Repeat(request, before)+send)
		sent <- err
	}()
	in := bufio.NewReader(v)
	for i := range before + 1 {
		want := http.StatusOK
		if i == before {
			want = status
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return fmt.Errorf("answer %d: %w", i, err)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return fmt.Errorf("body of answer %d: %w", i, err)
		}
		if r.StatusCode != want || r.Close != (i == before) {
			return fmt.Errorf("answer %d: got %s, the last one: %v, want %d", i, r.Status, r.Close, want)
		}
	}
	if b, err := in.ReadByte(); err == nil || err != io.EOF && !isGone(err) {
		return fmt.Errorf("behind it: got %q, %w, want the end", b, err)
	}
	if err := <-sent; err != nil && !isGone(err) {
		return err
	}
	return nil
}

// TestOffencesEndTheirOwnConnectionOnly sends all that must not be said to a
// worker on which others talk, who have to notice nothing: each keeps its
// connection, and every answer is right.
func TestOffencesEndTheirOwnConnectionOnly(t *testing.T) {
	s := besiege(t)
	s.befriend(t, 10) // the test fails if one of these is disturbed
	for _, listener := range []string{"ws", "ws", "loop-web", "loop-web"} {
		s.befriendWeb(t, listener)
	}
	for _, o := range webOffences {
		listener := "loop-web"
		if o.listener != "" {
			listener = o.listener
		}
		t.Run("http/"+o.name, func(t *testing.T) {
			v, err := s.visit(listener)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if err := v.offend(o.before, o.send, o.status); err != nil {
				t.Error(err)
			}
		})
	}
	for _, o := range frameOffences {
		t.Run("websocket/"+o.name, func(t *testing.T) {
			v, err := s.visit("ws")
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			v.SetDeadline(time.Now().Add(patience))
			if err := v.breakWebSocket(o.send, o.code); err != nil {
				t.Error(err)
			}
		})
	}
	s.isWell(t)
}

// befriendWeb has a good client talk on a listener of the web until the test's
// end.
func (s *siege) befriendWeb(t *testing.T, listener string) {
	t.Helper()
	_, address, _ := strings.Cut(s.addresses[listener], "://")
	var c webClient
	var err error
	if listener == "ws" {
		c, err = dialEcho(address, websocket.CompressionNoContextTakeover)
	} else {
		c, err = dialHello(address)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.good.Add(1)
	stop, over := make(chan struct{}), make(chan int)
	t.Cleanup(func() {
		close(stop)
		if <-over == 0 {
			t.Errorf("a good client of %s has never been answered", listener)
		}
	})
	go func() {
		n := 0
		defer func() { over <- n }()
		defer s.good.Add(-1)
		defer c.Close()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := c.ask(n); err != nil {
				t.Errorf("a good client of %s, turn %d: %v", listener, n, err)
				return
			}
			n++
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
}
