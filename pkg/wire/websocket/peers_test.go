package websocket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/test/node"
)

// peerTime is how long a conversation with another implementation may take.
const peerTime = time.Minute

// serve is a server of one connection that echoes, and whose session moves
// after each read.
func serve(t *testing.T, c net.Conn, config *Config, opts *AcceptOptions) {
	defer c.Close()
	e := endpoint{s: NewServer(config), accept: opts}
	in := make([]byte, 5000)
	for {
		n, err := c.Read(in)
		if err != nil {
			return
		}
		e.feed(in[:n])
		if _, err := c.Write(e.out); err != nil {
			return
		}
		e.out = e.out[:0]
		if e.err != nil || e.s.CloseSent() && e.s.CloseReceived() {
			return
		}
		e.move(t)
	}
}

// listen starts a server that echoes and returns its address.
func listen(t *testing.T, config *Config, opts *AcceptOptions) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(peerTime))
			serve(t, c, config, opts)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// peerMessages are what is sent to a peer or by it.
func peerMessages() (messages [][]byte) {
	for _, n := range []int{0, 1, 125, 126, 127, 511, 512, 4096, 65535, 65536, 300000} {
		messages = append(messages, append([]byte{byte(Text)}, repeat("Habe nun, ach! ", n)...))
		messages = append(messages, append([]byte{byte(Binary)}, noise(n)...))
	}
	return append(messages, []byte(string(rune(Text))+kosme))
}

// converse is a client that sends messages to a server that echoes, and closes.
func converse(t *testing.T, address string, config *Config, opts *RequestOptions) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(strings.TrimSuffix(address, "/"), "ws://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(peerTime))
	s := NewClient(config)
	send := func(msg []byte) {
		t.Helper()
		out, err := s.Append(nil, msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
	}
	var pending []byte
	in := make([]byte, 5000)
	receive := func() []byte {
		t.Helper()
		for {
			n, msg, ok, err := s.Split(pending, false)
			if err != nil {
				t.Fatal(err)
			}
			if pending = pending[n:]; ok {
				return msg
			}
			if n > 0 {
				continue
			}
			n, err = c.Read(in)
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, in[:n]...)
		}
	}
	request, err := NewRequest(address, opts)
	if err != nil {
		t.Fatal(err)
	}
	send(request)
	if msg := receive(); Kind(msg[0]) != Response {
		t.Fatalf("message of kind %d, want the response", msg[0])
	}
	if s.Compressed() != opts.Deflate {
		t.Errorf("compressed %v, want %v", s.Compressed(), opts.Deflate)
	}
	for _, m := range peerMessages() {
		send(m)
		if got := receive(); !bytes.Equal(got, m) {
			t.Fatalf("echo of %d bytes is %d bytes", len(m), len(got))
		}
	}
	send([]byte(string(rune(Ping)) + "are you there"))
	if got := string(receive()); got != string(rune(Pong))+"are you there" {
		t.Fatalf("answer to a ping is %q", got)
	}
	send(AppendClose(nil, 4001, "enough"))
	msg := receive()
	if code, _ := ParseClose(msg[1:]); Kind(msg[0]) != Close || code != 4001 {
		t.Fatalf("answer to a close is %q", msg)
	}
	if _, err := c.Read(in); !errors.Is(err, io.EOF) {
		t.Errorf("server's end: %v, want EOF", err)
	}
}

func TestCoderWebsocketClientIsServed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		mode    websocket.CompressionMode
		deflate bool
	}{
		{name: "plain", mode: websocket.CompressionDisabled},
		{name: "no takeover", mode: websocket.CompressionNoContextTakeover, deflate: true},
		{name: "takeover offered", mode: websocket.CompressionContextTakeover, deflate: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := listen(t, &Config{}, &AcceptOptions{Subprotocols: []string{"b"}, Header: http.Header{"X-Served-By": {"us"}}, Deflate: true})
			ctx, cancel := context.WithTimeout(t.Context(), peerTime)
			defer cancel()
			c, response, err := websocket.Dial(ctx, "ws://"+address+"/", &websocket.DialOptions{
				HTTPHeader: http.Header{"Origin": {"http://" + address}}, Subprotocols: []string{"a", "b"}, CompressionMode: tt.mode,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			if c.Subprotocol() != "b" || response.Header.Get("X-Served-By") != "us" || (response.Header.Get("Sec-WebSocket-Extensions") != "") != tt.deflate {
				t.Errorf("subprotocol %q, header %v", c.Subprotocol(), response.Header)
			}
			c.SetReadLimit(1 << 20)
			for _, m := range peerMessages() {
				kind := websocket.MessageType(m[0]) // numbered as here
				// A writer sends fragments, of what has been flushed so far.
				w, err := c.Writer(ctx, kind)
				if err != nil {
					t.Fatal(err)
				}
				for _, part := range [][]byte{m[1 : 1+len(m)/3], m[1+len(m)/3:]} {
					if _, err := w.Write(part); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				got, echo, err := c.Read(ctx)
				if err != nil || got != kind || !bytes.Equal(echo, m[1:]) {
					t.Fatalf("echo of %d bytes is %d bytes, %v", len(m), len(echo), err)
				}
			}
			if err := c.Close(4001, "enough"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCoderWebsocketClientIsRefused(t *testing.T) {
	address := listen(t, &Config{}, &AcceptOptions{Origins: []string{"https://example.com"}})
	ctx, cancel := context.WithTimeout(t.Context(), peerTime)
	defer cancel()
	_, response, err := websocket.Dial(ctx, "ws://"+address+"/", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"http://evil.com"}}})
	if err == nil || response == nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("response %v, %v, want 403", response, err)
	}
}

func TestCoderWebsocketServerIsUnderstood(t *testing.T) {
	for _, deflate := range []bool{false, true} {
		t.Run(fmt.Sprintf("deflate %v", deflate), func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionContextTakeover})
				if err != nil {
					return
				}
				defer c.CloseNow()
				c.SetReadLimit(1 << 20)
				for {
					kind, m, err := c.Read(r.Context())
					if err != nil {
						return
					}
					if err := c.Write(r.Context(), kind, m); err != nil {
						return
					}
				}
			}))
			defer s.Close()
			converse(t, "ws"+strings.TrimPrefix(s.URL, "http")+"/", &Config{}, &RequestOptions{Deflate: deflate})
		})
	}
}

// nodeClient sends messages of many kinds and lengths, whole and in fragments with
// pings between, and compares the echoes.
const nodeClient = `
const WebSocket = require("ws");
const [address, deflate] = process.argv.slice(-2);
const ws = new WebSocket(address, ["a", "b"], { perMessageDeflate: deflate == "true" ? { threshold: 0 } : false, origin: address.replace("ws:", "http:") });
const fail = (why) => { console.error(why); process.exit(1); };
const want = [];
let pongs = 0;
const sizes = [0, 1, 125, 126, 127, 4096, 65535, 65536, 200000];
ws.on("error", (e) => fail(e.stack));
ws.on("pong", (d) => { if (String(d) != "p" + pongs++) fail("pong " + d); });
ws.on("open", () => {
  if (ws.protocol != "b") fail("protocol " + ws.protocol);
  if ((ws.extensions != "") != (deflate == "true")) fail("extensions " + ws.extensions);
  sizes.forEach((n, i) => {
    const text = "κόσμε ".repeat(n / 6 + 1).slice(0, n), bytes = Buffer.alloc(n, i + 200);
    want.push(text, bytes, text + text, bytes);
    ws.send(text);
    ws.send(bytes);
    ws.send(text, { fin: false });
    ws.ping("p" + i);
    ws.send(text, { fin: true });
    ws.send(bytes.subarray(0, n / 2), { fin: false });
    ws.send(bytes.subarray(n / 2), { fin: true });
  });
});
ws.on("message", (data, isBinary) => {
  const w = want.shift();
  if (isBinary != (typeof w != "string") || !data.equals(Buffer.from(w))) fail("echo of " + w.length + " is " + data.length);
  if (want.length == 0) ws.close(4001, "enough");
});
ws.on("close", (code, reason) => {
  if (code != 4001 || reason != "enough" || pongs != sizes.length || want.length != 0) fail("close " + code + " " + reason + " after " + pongs + " pongs");
  console.log("done");
});
`

func TestNodeClientIsServed(t *testing.T) {
	for _, deflate := range []string{"false", "true"} {
		t.Run("deflate "+deflate, func(t *testing.T) {
			address := listen(t, &Config{CompressAbove: 1}, &AcceptOptions{Subprotocols: []string{"b"}, Deflate: true})
			out, err := node.Command(t, nodeClient, "ws://"+address, deflate).CombinedOutput()
			if err != nil || string(out) != "done\n" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestNodeServerIsUnderstood(t *testing.T) {
	address := node.Server(t, `perMessageDeflate: { threshold: 0 }`, `(ws) => ws.on("message", (data, isBinary) => ws.send(data, { binary: isBinary }))`)
	for _, deflate := range []bool{false, true} {
		t.Run(fmt.Sprintf("deflate %v", deflate), func(t *testing.T) {
			converse(t, "ws://"+address+"/", &Config{CompressAbove: 1}, &RequestOptions{Deflate: deflate})
		})
	}
}
