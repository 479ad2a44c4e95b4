package websocket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

func TestMessagesOverTheLimitFailBeforeTheyAreKept(t *testing.T) {
	zeros := string(pack(strings.Repeat("\x00", 10<<20)))
	for _, tt := range []struct {
		name    string
		deflate bool
		in      []frame
		want    []string
		keeps   int // at most
	}{
		{name: "as long as allowed", in: []frame{text(repeat("*", 1000))}, want: []string{event(Text, repeat("*", 1000))}, keeps: 1001},
		{name: "one more", in: []frame{text(repeat("*", 1001))}, want: []string{"close 1009"}},
		{name: "fragments as long as allowed", in: fragments(Text, repeat("*", 1000), 10, 0), want: []string{event(Text, repeat("*", 1000))}, keeps: 1001},
		{name: "fragments with one more", in: fragments(Text, repeat("*", 1001), 10, 0), want: []string{"close 1009"}, keeps: 1001},
		{name: "second fragment declares too much", in: []frame{begin(Text, "a"), end(repeat("*", 1000))}, want: []string{"close 1009"}, keeps: 2},
		{name: "control frames do not count", in: []frame{begin(Text, repeat("*", 999)), ping(repeat("*", 125)), end("a")},
			want: []string{event(Pong, repeat("*", 125)), event(Text, repeat("*", 999)+"a")}, keeps: 1001},
		{name: "empty fragments cost nothing", in: append(slices.Repeat([]frame{middle("")}, 5000), end("a")), want: []string{"text a"}, keeps: 2},
		{name: "decompressed as long as allowed", deflate: true, in: []frame{{op: byte(Binary), rsv: 4, payload: string(pack(repeat("\x01", 1000)))}}, want: []string{event(Binary, repeat("\x01", 1000))}, keeps: 1001},
		{name: "decompressed one more", deflate: true, in: []frame{{op: byte(Binary), rsv: 4, payload: string(pack(repeat("\x01", 1001)))}}, want: []string{"close 1009"}, keeps: 1001},
		{name: "bomb", deflate: true, in: []frame{{op: byte(Binary), rsv: 4, payload: zeros[:900]}}, want: []string{"close 1009"}, keeps: 1001},
	} {
		if tt.name == "empty fragments cost nothing" {
			tt.in[0].op = byte(Text)
		}
		for _, step := range []int{1, 64, 1 << 20} {
			in := encode(tt.in, true)
			e := endpoint{s: openSession(t, &Config{MaxMessage: 1000}, false, tt.deflate)}
			for part := range slices.Chunk(in, min(step, len(in))) {
				e.feed(part)
				if n := e.s.Buffered(); n > tt.keeps {
					t.Fatalf("%s: %d bytes buffered, want at most %d", tt.name, n, tt.keeps)
				}
			}
			if got := decode(t, e.out, false); !slices.Equal(got, tt.want) {
				t.Errorf("%s: sent %q, want %q", tt.name, got, tt.want)
			}
			if over := tt.want[0] == "close 1009"; over != errors.Is(e.err, wire.ErrTooLong) {
				t.Errorf("%s: error %v", tt.name, e.err)
			}
			if n := e.s.Buffered(); n != 0 {
				t.Errorf("%s: %d bytes buffered at the end", tt.name, n)
			}
		}
	}
}

func TestImpossibleLengthFailsWithItsHeader(t *testing.T) {
	for _, tt := range []struct {
		name string
		max  int
		in   string
		code Code
	}{
		{name: "highest bit", max: -1, in: "\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00", code: ProtocolFault},
		{name: "all bits but that", max: -1, in: "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", code: TooBig},
		{name: "4 GiB", in: "\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", code: TooBig},
	} {
		s := openSession(t, &Config{MaxMessage: tt.max}, false, false)
		_, _, ok, err := s.Split([]byte(tt.in), false)
		if e, isError := errors.AsType[*Error](err); ok || !isError || e.Code != tt.code {
			t.Errorf("%s: %v, want code %d", tt.name, err, tt.code)
		}
	}
}

func TestDeclaredLengthTakesNoMemory(t *testing.T) {
	s := openSession(t, &Config{MaxMessage: -1}, false, false)
	in := []byte("\x82\xff\x00\x00\x7f\x00\x00\x00\x00\x00\x00\x00\x00\x00*")
	if n, _, ok, err := s.Split(in, false); n != len(in) || ok || err != nil {
		t.Fatal(n, ok, err)
	}
	if n := cap(s.message.b); n > minBuffer {
		t.Errorf("%d bytes for a message of which 1 has come", n)
	}
	if n := s.Buffered(); n != 2 {
		t.Errorf("buffered %d, want 2", n)
	}
}

func TestUnencodableMessageIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		msg    string
		client bool
		want   error
	}{
		{name: "nothing", msg: ""},
		{name: "no kind", msg: "\x00hello"},
		{name: "opcode 3", msg: "\x03hello"},
		{name: "server's request", msg: string(rune(Request)) + requestWith()},
		{name: "client's response", client: true, msg: string(rune(Response)) + responseWith()},
		{name: "second response", msg: string(rune(Response)) + responseWith()},
		{name: "second request", client: true, msg: string(rune(Request)) + requestWith()},
		{name: "ping of 126", msg: string(rune(Ping)) + repeat("*", 126), want: wire.ErrTooLong},
		{name: "close with half a code", msg: "\x08\x03"},
		{name: "close with code 1005", msg: "\x08\x03\xed"},
		{name: "close with reason that is not UTF-8", msg: "\x08\x03\xe8\xff"},
	} {
		s := openSession(t, testConfig, tt.client, false)
		got, err := s.Append([]byte(">"), []byte(tt.msg))
		if string(got) != ">" || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v, want %v", tt.name, got, err, tt.want)
		}
		if got, err := s.Append(nil, []byte("\x01hello")); len(decode(t, got, tt.client)) != 1 || err != nil {
			t.Errorf("%s: message after it %q, %v", tt.name, got, err)
		}
	}
}

func TestMalformedHandshakeIsNotSent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client bool
		msg    string
	}{
		{name: "request without an end", client: true, msg: "GET / HTTP/1.1\r\n"},
		{name: "request without a key", client: true, msg: requestWith("-Sec-WebSocket-Key:")},
		{name: "response without an end", msg: "HTTP/1.1 101 a\r\n"},
		{name: "response with a bare LF", msg: "HTTP/1.1 101 a\n\n"},
		{name: "response with a field without a name", msg: responseWith("+:a")},
		{name: "101 with a body", msg: responseWith() + "a"},
		{name: "extension that is not ours", msg: responseWith("+Sec-WebSocket-Extensions: a")},
	} {
		kind := Response
		if tt.client {
			kind = Request
		}
		s := newSession(testConfig, tt.client)
		if got, err := s.Append([]byte(">"), append([]byte{byte(kind)}, tt.msg...)); string(got) != ">" || err == nil {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
		if s.flags.Load() != 0 {
			t.Errorf("%s: flags %d", tt.name, s.flags.Load())
		}
	}
}

func TestNothingFollowsAClose(t *testing.T) {
	s := openSession(t, testConfig, false, false)
	if _, err := s.Append(nil, AppendClose(nil, ServiceRestart, "reload")); err != nil {
		t.Fatal(err)
	}
	if !s.CloseSent() || s.CloseReceived() {
		t.Errorf("close sent %v, received %v", s.CloseSent(), s.CloseReceived())
	}
	for _, msg := range []string{"\x01a", "\x09", "\x08"} {
		if _, err := s.Append(nil, []byte(msg)); !errors.Is(err, ErrClosing) {
			t.Errorf("%q: %v, want ErrClosing", msg, err)
		}
	}
	// What the peer had on its way is still delivered.
	in := encode([]frame{text("late"), closeFrame(1012, "")}, true)
	n, msg, ok, err := s.Split(in, false)
	if string(msg) != "\x01late" || !ok || err != nil {
		t.Errorf("message %q, %v, %v", msg, ok, err)
	}
	if _, msg, ok, err = s.Split(in[n:], false); Kind(msg[0]) != Close || !ok || err != nil || !s.CloseReceived() {
		t.Errorf("message %q, %v, %v", msg, ok, err)
	}
}

func TestCloseReasonIsCutBetweenCharacters(t *testing.T) {
	for _, tt := range []struct{ name, reason, want string }{
		{name: "short", reason: "bye", want: "bye"},
		{name: "123 bytes", reason: repeat("*", 123), want: repeat("*", 123)},
		{name: "124 bytes", reason: repeat("*", 124), want: repeat("*", 123)},
		{name: "inside a rune", reason: repeat("*", 122) + "\u00fc", want: repeat("*", 122)},
		{name: "inside a long rune", reason: repeat("*", 120) + "\U0001f600", want: repeat("*", 120)},
	} {
		msg := AppendClose(nil, Normal, tt.reason)
		if code, reason := ParseClose(msg[1:]); code != Normal || reason != tt.want || !utf8.ValidString(reason) {
			t.Errorf("%s: %d %q, want %q", tt.name, code, reason, tt.want)
		}
		if _, err := openSession(t, testConfig, true, false).Append(nil, msg); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if msg := AppendClose(nil, NoCode, "a"); string(msg) != "\x08" {
		t.Errorf("close without a code is %q", msg)
	}
	if code, reason := ParseClose(nil); code != NoCode || reason != "" {
		t.Errorf("close without a code says %d %q", code, reason)
	}
}

func TestOnlyWhatIsLongEnoughIsCompressed(t *testing.T) {
	for _, tt := range []struct {
		name       string
		above      int
		payload    string
		compressed bool
	}{
		{name: "below the default", payload: repeat("*", 511)},
		{name: "from the default on", payload: repeat("*", 512), compressed: true},
		{name: "from the threshold on", above: 20, payload: repeat("*", 20), compressed: true},
		{name: "never", above: -1, payload: repeat("*", 5000)},
		{name: "what does not shrink", payload: noise(5000)},
		{name: "length needs two bytes less", payload: repeat("*", 3000), compressed: true},
		{name: "length needs eight bytes less", payload: repeat("*", 70000), compressed: true},
		{name: "length needs as many bytes", payload: repeat(noise(1000), 3000), compressed: true},
	} {
		for _, side := range sides {
			s := openSession(t, &Config{CompressAbove: tt.above}, side.client, true)
			got, err := s.Append([]byte(">"), append([]byte{byte(Binary)}, tt.payload...))
			if err != nil || got[0] != '>' || (got[1]&bitCompressed != 0) != tt.compressed {
				t.Errorf("%s: %s: starts with %x, %v, want compressed %v", tt.name, side.name, got[:2], err, tt.compressed)
			}
			if e := decode(t, got[1:], side.client); !slices.Equal(e, events(Binary, tt.payload)) {
				t.Errorf("%s: %s: sent %q", tt.name, side.name, e)
			}
			// The other end reads it too: lengths in their shortest form.
			other := openSession(t, &Config{}, !side.client, true)
			if _, msg, ok, err := other.Split(got[1:], false); !ok || err != nil || string(msg[1:]) != tt.payload {
				t.Errorf("%s: %s: read %d bytes, %v, %v", tt.name, side.name, len(msg), ok, err)
			}
		}
	}
}

func TestMasksAreNotUsedTwice(t *testing.T) {
	seen := make(map[[4]byte]bool)
	s := openSession(t, testConfig, true, false)
	for range 1000 {
		b, err := s.Append(nil, []byte("\x01a"))
		if err != nil {
			t.Fatal(err)
		}
		seen[[4]byte(b[2:])] = true
	}
	// Of a thousand out of 2^32, one pair in ten thousand runs is the same.
	if len(seen) < 998 {
		t.Errorf("%d masks in 1000 frames", len(seen))
	}
}

func TestWholeMessageIsNotCopied(t *testing.T) {
	for _, side := range sides {
		s := openSession(t, testConfig, side.client, false)
		in := encode([]frame{text(hello)}, !side.client)
		n, msg, ok, err := s.Split(in, false)
		if !ok || err != nil || n != len(in) || &msg[len(msg)-1] != &in[len(in)-1] {
			t.Errorf("%s: message %q is a copy; %d, %v, %v", side.name, msg, n, ok, err)
		}
	}
}

func TestEchoOfAWholeMessageAllocatesNothing(t *testing.T) {
	for _, side := range sides {
		for _, n := range []int{0, 64, 4096, 65536} {
			for _, f := range []frame{text(repeat("*", n)), binaryFrame(repeat("\xfe", n)), ping(repeat("*", n%126))} {
				s := openSession(t, testConfig, side.client, false)
				in := encode([]frame{f}, !side.client)
				read := make([]byte, len(in))
				out := make([]byte, 0, len(in)+maxHeader)
				allocs := testing.AllocsPerRun(100, func() {
					copy(read, in)
					_, msg, ok, err := s.Split(read, false)
					if !ok || err != nil {
						t.Fatal(ok, err)
					}
					if _, err := s.Append(out, msg); err != nil {
						t.Fatal(err)
					}
				})
				if allocs != 0 && !raceEnabled {
					t.Errorf("%s: %v allocations for an echo of opcode %d with %d bytes", side.name, allocs, f.op, n)
				}
			}
		}
	}
}

func TestIdleSessionIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Session{}); n > 64 {
		t.Errorf("%d bytes, want at most 64", n)
	}
	s := openSession(t, testConfig, false, true)
	e := endpoint{s: s}
	e.feed(encode(fragments(Text, repeat("*", 5000), 100, 0), true))
	if s.message != nil || s.offer != nil || s.Buffered() != 0 {
		t.Errorf("idle session keeps %v", s.message)
	}
}

// states are captured ones, and what is wrong with them.
var states = []struct {
	name   string
	client bool
	state  string
	ok     bool
}{
	{name: "new server", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ok: true},
	{name: "new client", client: true, state: "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ok: true},
	{name: "open", state: "\x01\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x04chat\x00", ok: true},
	{name: "inside a frame", state: "\x01\x00\x01\x02\x01\x01mask\x05\x02ab\x00\x00", ok: true},
	{name: "between fragments", state: "\x01\x00\x01\x02\x01\x00\x00\x00\x00\x00\x00\x02ab\x00\x00", ok: true},
	{name: "inside a rune", state: "\x01\x00\x01\x02\x01\x00\x00\x00\x00\x00\x00\x02\xe1\xbd\x00\x00", ok: true},
	{name: "client asked", client: true, state: "\x01\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01G", ok: true},
	{name: "new server, short", state: "\x01\x00\x00\x00", ok: true},
	{name: "open, short", state: "\x01\x00\x01\x02", ok: true},
	{name: "too short", state: "\x01\x00\x01"},
	{name: "neither short nor long", state: "\x01\x00\x01\x02\x00"},
	{name: "nothing", state: ""},
	{name: "version 2", state: "\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "other side", client: true, state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "cut short", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "too long", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "string longer than the state", state: "\x01\x00\x01\x02\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7fab\x00\x00"},
	{name: "number not in its shortest form", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00"},
	{name: "phase 3", state: "\x01\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "flag 128", state: "\x01\x00\x01\x82\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "open and refused", state: "\x01\x00\x01\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "compression before open", state: "\x01\x00\x01\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "close received and not over", state: "\x01\x00\x01\x22\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "kind 3", state: "\x01\x00\x01\x02\x03\x00\x00\x00\x00\x00\x00\x02ab\x00\x00"},
	{name: "message in the handshake", state: "\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ab\x00\x00"},
	{name: "message without a kind", state: "\x01\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x02ab\x00\x00"},
	{name: "flag 4 of a frame", state: "\x01\x00\x01\x02\x01\x04\x00\x00\x00\x00\x00\x02ab\x00\x00"},
	{name: "mask between frames", state: "\x01\x00\x01\x02\x01\x00mask\x00\x02ab\x00\x00"},
	{name: "masked server", client: true, state: "\x01\x01\x01\x03\x01\x01mask\x05\x02ab\x00\x00"},
	{name: "compressed without agreement", state: "\x01\x00\x01\x02\x01\x02\x00\x00\x00\x00\x00\x02ab\x00\x00"},
	{name: "text that is not UTF-8", state: "\x01\x00\x01\x02\x01\x00\x00\x00\x00\x00\x00\x02\xff\xbd\x00\x00"},
	{name: "subprotocol before open", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04chat\x00"},
	{name: "subprotocol that is no token", state: "\x01\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x02a\n\x00"},
	{name: "server that asks", state: "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01G"},
	{name: "client asked for nothing", client: true, state: "\x01\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{name: "client open without asking", client: true, state: "\x01\x01\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
}

func TestOnlyStatesThatCanBeAreRestored(t *testing.T) {
	for _, tt := range states {
		s := newSession(testConfig, tt.client)
		err := s.RestoreState([]byte(tt.state))
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, want success %v", tt.name, err, tt.ok)
		}
		want := tt.state
		if len(want) > shortState && strings.Trim(want[shortState:], "\x00") == "" {
			want = want[:shortState] // the long form is understood, and not made
		}
		if !tt.ok {
			fresh, _ := newSession(testConfig, tt.client).AppendState(nil)
			want = string(fresh)
		}
		if got, err := s.AppendState([]byte(">")); string(got) != ">"+want || err != nil {
			t.Errorf("%s: captured again %q, want %q", tt.name, got, want)
		}
	}
}

func TestStateTellsEverythingOfTheHandshake(t *testing.T) {
	e := endpoint{s: openSession(t, testConfig, false, true)}
	e.send(AppendClose(nil, GoingAway, ""))
	e.move(t)
	if e.s.Subprotocol() != "chat" || !e.s.Compressed() || !e.s.CloseSent() || e.s.CloseReceived() {
		t.Errorf("subprotocol %q, compressed %v, close sent %v, received %v", e.s.Subprotocol(), e.s.Compressed(), e.s.CloseSent(), e.s.CloseReceived())
	}
	e.feed(encode([]frame{closeFrame(1001, "")}, true))
	e.move(t)
	if !e.s.CloseReceived() {
		t.Error("close received is forgotten")
	}
}

func TestServersHandshakeMovesAtAnyByte(t *testing.T) {
	in := append([]byte(requestWith("+Sec-WebSocket-Protocol: chat")), encode([]frame{text(hello)}, true)...)
	for cut := range in {
		e := endpoint{s: NewServer(&Config{}), accept: &AcceptOptions{Subprotocols: []string{"chat"}}}
		e.feed(in[:cut])
		e.move(t)
		e.feed(in[cut:])
		_, frames, _ := bytes.Cut(e.out, []byte("\r\n\r\n"))
		if got := decode(t, frames, false); !slices.Equal(got, []string{"text " + hello}) || e.s.Subprotocol() != "chat" {
			t.Fatalf("moved at %d: sent %q, error %v", cut, e.out, e.err)
		}
	}
}

// A process with a lower limit takes over from one with a higher one.
func TestMessageOverTheNewLimitFailsAfterAMove(t *testing.T) {
	for _, cut := range []int{10, 50, 500} {
		e := endpoint{s: openSession(t, &Config{MaxMessage: 1000}, false, false)}
		in := encode([]frame{text(repeat("*", 900))}, true)
		e.feed(in[:cut])
		e.s.config = &Config{MaxMessage: 100}
		e.move(t)
		e.feed(in[cut : cut+1])
		if got := decode(t, e.out, false); !slices.Equal(got, []string{"close 1009"}) {
			t.Errorf("moved at %d: sent %q", cut, got)
		}
	}
}

// For the race detector: the answer to the handshake and messages go out while
// others come in.
func TestAppendAndSplitRunAtTheSameTime(t *testing.T) {
	s := NewServer(testConfig)
	n, msg, _, err := s.Split([]byte(requestWith()), false)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(msg[1:])
	if err != nil || n != len(requestWith()) {
		t.Fatal(err)
	}
	answer, _, _, err := Accept(r, &AcceptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := s.Append(nil, answer)
		for range 100 {
			if err == nil {
				_, err = s.Append(nil, []byte("\x01hello"))
			}
		}
		if err == nil {
			_, err = s.Append(nil, AppendClose(nil, Normal, ""))
		}
		done <- err
	}()
	in := encode([]frame{begin(Text, hello), end(hello)}, true)
	for range 100 {
		for rest := slices.Clone(in); len(rest) > 0; {
			n, _, _, err := s.Split(rest[:min(7, len(rest))], false)
			if n == 0 {
				n, _, _, err = s.Split(rest, false)
			}
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			_, _, _ = s.Subprotocol(), s.Compressed(), s.CloseSent()
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzSplitOfAServer(f *testing.F) { fuzzSplit(f, false) }
func FuzzSplitOfAClient(f *testing.F) { fuzzSplit(f, true) }

// fuzzSplit compares a session that has the whole input at once with one that
// has it in parts and moves between them, and both with what may come out.
func fuzzSplit(f *testing.F, client bool) {
	for _, tt := range autobahn() {
		if in := encode(tt.in, !client); len(in) < 2000 {
			f.Add(in, uint8(1), tt.deflate)
			f.Add(in, uint8(5), tt.deflate)
		}
	}
	config := &Config{MaxMessage: 4096, CompressAbove: 1}
	f.Fuzz(func(t *testing.T, in []byte, step uint8, deflate bool) {
		whole := endpoint{s: openSession(t, config, client, deflate)}
		whole.feed(slices.Clone(in))
		parts := endpoint{s: openSession(t, config, client, deflate)}
		for part := range slices.Chunk(in, max(1, int(step))) {
			parts.feed(part)
			if n := parts.s.Buffered(); n > config.MaxMessage+1 {
				t.Fatalf("%d bytes buffered", n)
			}
			parts.move(t)
		}
		got, want := decode(t, parts.out, client), decode(t, whole.out, client)
		if !slices.Equal(got, want) {
			t.Errorf("in parts %q, whole %q", got, want)
		}
		for _, e := range want {
			if !utf8.ValidString(e) && (strings.HasPrefix(e, "text") || strings.HasPrefix(e, "close")) {
				t.Errorf("text that is not UTF-8: %q", e)
			}
		}
		if (parts.err == nil) != (whole.err == nil) {
			t.Errorf("error in parts %v, whole %v", parts.err, whole.err)
		}
		if violation, ok := errors.AsType[*Error](whole.err); whole.err != nil && (!ok || !slices.Contains([]Code{ProtocolFault, InvalidPayload, TooBig}, violation.Code)) {
			t.Errorf("error %v", whole.err)
		}
	})
}

func FuzzRestoreState(f *testing.F) {
	for _, tt := range states {
		f.Add([]byte(tt.state), encode([]frame{end("a"), text("b")}, true), tt.client)
	}
	config := &Config{MaxMessage: 4096}
	f.Fuzz(func(t *testing.T, state, in []byte, client bool) {
		e := endpoint{s: newSession(config, client), accept: &AcceptOptions{}}
		if err := e.s.RestoreState(state); err != nil {
			return
		}
		again, err := e.s.AppendState(nil)
		if err != nil || !bytes.HasPrefix(state, again) || len(bytes.Trim(state[len(again):], "\x00")) > 0 {
			t.Fatalf("captured again %x, want %x; %v", again, state, err)
		}
		if flags := e.s.flags.Load(); flags&flagOpen != 0 || e.s.phase != phaseHead {
			e.accept = nil // a handshake that has been answered
		}
		for e.err == nil && len(in) > 0 {
			n, _, _, err := e.s.Split(in, false)
			if n < 0 || n > len(in) {
				t.Fatalf("advance %d of %d", n, len(in))
			}
			if err != nil || n == 0 {
				break
			}
			in = in[n:]
			e.move(t)
		}
	})
}

func TestHeadersAreTheShortestThatAreRight(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
		for _, masked := range []bool{false, true} {
			b := appendHeader(nil, bitFin|byte(Binary), n, masked)
			if masked {
				b = append(b, "mask"...)
			}
			if len(b) != headerSize(n, masked) {
				t.Errorf("header of %d is %x, want %d bytes", n, b, headerSize(n, masked))
			}
			h, err := readHeader(b, masked, false)
			if err != nil || h.size != len(b) || h.length != uint64(n) || h.opcode != Binary || !h.fin || masked && binary.BigEndian.Uint32(h.mask[:]) != 0x6d61736b {
				t.Errorf("header of %d is read as %+v, %v", n, h, err)
			}
			for cut := range b {
				if h, err := readHeader(b[:cut], masked, false); h.size != 0 || err != nil {
					t.Errorf("%d bytes of %x: %+v, %v", cut, b, h, err)
				}
			}
		}
	}
}

func BenchmarkEcho(b *testing.B) {
	for _, n := range []int{64, 4096} {
		for _, deflate := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d bytes, deflate %v", n, deflate), func(b *testing.B) {
				s := openSession(b, testConfig, false, deflate)
				payload, rsv := repeat("Habe nun, ach! Philosophie, Juristerei und Medizin, ", n), byte(0)
				if deflate {
					payload, rsv = string(pack(payload)), 4
				}
				in := encode([]frame{{op: byte(Text), rsv: rsv, payload: payload}}, true)
				read, out := make([]byte, len(in)), make([]byte, 0, n+maxHeader)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					copy(read, in)
					_, msg, _, err := s.Split(read, false)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := s.Append(out, msg); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
