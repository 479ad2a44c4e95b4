package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// side is which end of a connection a test plays.
type side struct {
	name   string
	client bool
}

var sides = []side{{"server", false}, {"client", true}}

// testConfig lets everything of the tables through and compresses whatever
// may be compressed.
var testConfig = &Config{MaxMessage: 32 << 20, CompressAbove: 1}

const (
	testRequest = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://server.example.com\r\n" +
		"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n"
	testResponse = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n"
	testExtension = "Sec-WebSocket-Extensions: " + deflateTerms + "\r\n"
)

func newSession(c *Config, client bool) *Session {
	if client {
		return NewClient(c)
	}
	return NewServer(c)
}

// openSession returns a session whose handshake is over.
func openSession(tb testing.TB, c *Config, client, deflate bool) *Session {
	tb.Helper()
	request, response := testRequest, testResponse
	if deflate {
		request, response = request+testExtension, response+testExtension
	}
	request, response = request+"\r\n", response+"\r\n"
	s := newSession(c, client)
	if client {
		if _, err := s.Append(nil, append([]byte{byte(Request)}, request...)); err != nil {
			tb.Fatal(err)
		}
		request = response
	}
	if n, _, ok, err := s.Split([]byte(request), false); n != len(request) || !ok || err != nil {
		tb.Fatalf("handshake: %d, %v, %v", n, ok, err)
	}
	s.Release()
	if !client {
		if _, err := s.Append(nil, append([]byte{byte(Response)}, response...)); err != nil {
			tb.Fatal(err)
		}
	}
	if s.Compressed() != deflate || s.Subprotocol() != "chat" {
		tb.Fatalf("compressed %v, subprotocol %q", s.Compressed(), s.Subprotocol())
	}
	return s
}

// frame is one frame of a test's input; a table's are opcode and payload, and whatever is
// unusual about them.
type frame struct {
	op      byte
	more    bool // FIN is not set
	rsv     byte
	payload string
	long    int  // length is written in so many bytes
	swapped bool // masked, if the other frames are not, and the other way round
}

func text(s string) frame           { return frame{op: byte(Text), payload: s} }
func binaryFrame(s string) frame    { return frame{op: byte(Binary), payload: s} }
func ping(s string) frame           { return frame{op: byte(Ping), payload: s} }
func pong(s string) frame           { return frame{op: byte(Pong), payload: s} }
func begin(op Kind, s string) frame { return frame{op: byte(op), more: true, payload: s} }
func middle(s string) frame         { return frame{more: true, payload: s} }
func end(s string) frame            { return frame{payload: s} }
func closeFrame(code int, reason string) frame {
	return frame{op: byte(Close), payload: string(binary.BigEndian.AppendUint16(nil, uint16(code))) + reason}
}

// encode is a second, plain writing of the frame layout.
func encode(frames []frame, masked bool) []byte {
	var b []byte
	for i, f := range frames {
		first := f.op | f.rsv<<4
		if !f.more {
			first |= 0x80
		}
		mask := masked != f.swapped
		var second byte
		if mask {
			second = 0x80
		}
		n := len(f.payload)
		b = append(b, first)
		switch {
		case f.long == 8 || f.long == 0 && n > 65535:
			b = binary.BigEndian.AppendUint64(append(b, second|127), uint64(n))
		case f.long == 2 || f.long == 0 && n > 125:
			b = binary.BigEndian.AppendUint16(append(b, second|126), uint16(n))
		default:
			b = append(b, second|byte(n))
		}
		if !mask {
			b = append(b, f.payload...)
			continue
		}
		key := []byte{byte(i) + 0x37, 0xfa, byte(i) ^ 0x21, 0x3d}
		b = append(b, key...)
		for j := range n {
			b = append(b, f.payload[j]^key[j%4])
		}
	}
	return b
}

// decode is the reverse: what a session has sent, as the events of a table.
func decode(tb testing.TB, b []byte, masked bool) (events []string) {
	tb.Helper()
	for len(b) > 0 {
		first, second := b[0], b[1]
		if (second&0x80 != 0) != masked {
			tb.Fatalf("frame masked %v, want %v", !masked, masked)
		}
		n, b2 := int(second&0x7f), b[2:]
		switch n {
		case 126:
			n, b2 = int(binary.BigEndian.Uint16(b2)), b2[2:]
		case 127:
			n, b2 = int(binary.BigEndian.Uint64(b2)), b2[8:]
		}
		var key [4]byte
		if masked {
			key, b2 = [4]byte(b2), b2[4:]
		}
		payload := make([]byte, n)
		for j := range payload {
			payload[j] = b2[j] ^ key[j%4]
		}
		b = b2[n:]
		if first&0x80 == 0 {
			tb.Fatalf("session has sent a fragment")
		}
		kind := Kind(first & 0x0f)
		if first&0x40 != 0 {
			whole, err := inflate(kind, payload, 1<<30)
			if err != nil {
				tb.Fatal(err)
			}
			payload = whole.b[1:]
		}
		events = append(events, event(kind, string(payload)))
	}
	return events
}

// event names what was sent, in full if it is short.
func event(kind Kind, payload string) string {
	name := map[Kind]string{Text: "text", Binary: "binary", Ping: "ping", Pong: "pong", Close: "close"}[kind]
	if kind == Close && len(payload) >= 2 {
		code, reason := ParseClose([]byte(payload))
		return strings.TrimSpace(fmt.Sprintf("close %d %s", code, reason))
	}
	if len(payload) > 200 {
		return fmt.Sprintf("%s of %d bytes, %x", name, len(payload), payload[len(payload)-8:])
	}
	return strings.TrimSpace(name + " " + payload)
}

// endpoint does what a service does that echoes.
type endpoint struct {
	s       *Session
	accept  *AcceptOptions // nil: the handshake is over
	pending []byte         // what Split has not advanced over
	out     []byte
	err     error
}

// feed gives the session what has come.
func (e *endpoint) feed(in []byte) {
	if e.err != nil {
		return
	}
	e.pending = append(e.pending, in...)
	data := e.pending
	for len(data) > 0 {
		n, msg, ok, err := e.s.Split(data, false)
		if err != nil {
			e.err = err
			if violation, ok := errors.AsType[*Error](err); ok {
				e.send(AppendClose(nil, violation.Code, ""))
			}
			return
		}
		if ok {
			switch Kind(msg[0]) {
			case Request:
				e.answer(msg[1:])
			case Text, Binary, Close:
				e.send(msg)
			case Ping:
				msg[0] = byte(Pong)
				e.send(msg)
			}
		}
		data = data[n:]
		if n == 0 && !ok {
			break
		}
	}
	e.pending = append(e.pending[:0], data...)
	e.s.Release()
}

// answer answers a handshake.
func (e *endpoint) answer(head []byte) {
	r, err := ParseRequest(head)
	var msg []byte
	if err == nil && e.accept != nil {
		msg, _, _, err = Accept(r, e.accept)
	}
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		msg, err = refusal.Message()
		e.err = refusal
	}
	if err != nil {
		panic(err)
	}
	if e.accept != nil {
		e.send(msg)
	}
}

func (e *endpoint) send(msg []byte) {
	out, err := e.s.Append(e.out, msg)
	if err != nil && !errors.Is(err, ErrClosing) {
		panic(err)
	}
	e.out = out
}

// move captures the session and goes on with another one.
func (e *endpoint) move(tb testing.TB) {
	tb.Helper()
	if e.err != nil {
		return
	}
	state, err := e.s.AppendState(nil)
	if err != nil {
		tb.Fatal(err)
	}
	moved := newSession(e.s.config, e.s.client)
	if err := moved.RestoreState(state); err != nil {
		tb.Fatalf("state %x: %v", state, err)
	}
	if got, want := moved.Buffered(), e.s.Buffered(); got != want {
		tb.Fatalf("buffered %d, want %d", got, want)
	}
	e.s = moved
}
