package websocket

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// autobahnCase is a case of the Autobahn test suite: what is sent to an
// endpoint that echoes, and what it has to send. Its name begins with the
// numbers that it has there, of which several are one if they differ only in
// how the bytes are cut, which is tried in every way here. What is not in the
// suite has no number.
type autobahnCase struct {
	name    string
	deflate bool
	in      []frame
	want    []string
	unpacks int // how many bytes come out of what is compressed, if that is many
}

// repeat is the suite's way to fill messages.
func repeat(s string, n int) string { return strings.Repeat(s, n/len(s)+1)[:n] }

// events are what an echo of frames that are whole messages is.
func events(kind Kind, payloads ...string) (e []string) {
	for _, p := range payloads {
		e = append(e, event(kind, p))
	}
	return e
}

// fragments cuts a payload in frames of n bytes, the last one shorter or
// empty.
func fragments(op Kind, payload string, n int, rsv byte) (f []frame) {
	for len(payload) > n {
		f = append(f, frame{more: true, payload: payload[:n]})
		payload = payload[n:]
	}
	f = append(f, frame{payload: payload})
	f[0].op, f[0].rsv = byte(op), rsv
	return f
}

// octets cuts each byte into a frame of its own.
func octets(payload string) []frame { return fragments(Text, payload, 1, 0) }

const (
	hello    = "Hello, world!"
	helloUTF = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!"
	kosme    = "\u03ba\u1f79\u03c3\u03bc\u03b5"
	fault    = "close 1002"
	notUTF8  = "close 1007"
)

// autobahn returns the cases of class 1 to 7, 10 and 12, and the small ones of 9.
func autobahn() (cases []autobahnCase) {
	add := func(name string, in []frame, want ...string) {
		cases = append(cases, autobahnCase{name: name, in: in, want: want})
	}

	// 1: framing.
	for i, n := range []int{0, 125, 126, 127, 128, 65535, 65536} {
		texts, binaries := fmt.Sprintf("1.1.%d", i+1), fmt.Sprintf("1.2.%d", i+1)
		if n == 65536 { // which the suite sends in pieces of 997 bytes, too
			texts, binaries = texts+", 1.1.8", binaries+", 1.2.8"
		}
		p := repeat("*", n)
		add(fmt.Sprintf("%s text of %d", texts, n), []frame{text(p)}, event(Text, p))
		p = repeat("\xfe", n)
		add(fmt.Sprintf("%s binary of %d", binaries, n), []frame{binaryFrame(p)}, event(Binary, p))
	}

	// 2: pings and pongs.
	add("2.1 empty ping", []frame{ping("")}, "pong")
	add("2.2 ping with text", []frame{ping(hello)}, "pong "+hello)
	add("2.3 ping with binary", []frame{ping("\x00\xff\xfe\xfd\xfc\xfb\x00\xff")}, "pong \x00\xff\xfe\xfd\xfc\xfb\x00\xff")
	add("2.4, 2.6 ping of 125", []frame{ping(repeat("\xfe", 125))}, event(Pong, repeat("\xfe", 125)))
	add("2.5 ping of 126", []frame{ping(repeat("\xfe", 126))}, fault)
	add("2.7 unsolicited empty pong", []frame{pong("")})
	add("2.8 unsolicited pong", []frame{pong("unsolicited pong payload")})
	add("2.9 unsolicited pong, then ping", []frame{pong("unsolicited pong payload"), ping("ping payload")}, "pong ping payload")
	var pings []frame
	var pongs []string
	for i := range 10 {
		pings = append(pings, ping(fmt.Sprintf("payload-%d", i)))
		pongs = append(pongs, fmt.Sprintf("pong payload-%d", i))
	}
	add("2.10, 2.11 ten pings", pings, pongs...)

	// 3: reserved bits.
	with := func(f frame, rsv byte) frame { f.rsv = rsv; return f }
	add("3.1 rsv 1", []frame{with(text(hello), 4)}, fault)
	for rsv := range byte(8) {
		if rsv != 0 {
			number := map[byte]string{2: "3.2 ", 3: "3.3 ", 4: "3.4 "}[rsv]
			add(fmt.Sprintf("%stext, then text with rsv %d, then ping", number, rsv), []frame{text(hello), with(text(hello), rsv), ping("")}, "text "+hello, fault)
			add(fmt.Sprintf("3.5 binary with rsv %d", rsv), []frame{with(binaryFrame("\x00\xff\xfe\xfd"), rsv)}, fault)
			add(fmt.Sprintf("3.6 ping with rsv %d", rsv), []frame{with(ping(hello), rsv)}, fault)
			add(fmt.Sprintf("3.7 close with rsv %d", rsv), []frame{with(closeFrame(1000, ""), rsv)}, fault)
		}
	}

	// 4: opcodes. The suite has each in one of these three forms.
	for i, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		number := fmt.Sprintf("4.%d.%d", 1+i/5, 1+i%5)
		add(fmt.Sprintf("%s opcode %d", number, op), []frame{{op: op}}, fault)
		add(fmt.Sprintf("%s opcode %d with payload", number, op), []frame{{op: op, payload: "reserved opcode payload"}}, fault)
		add(fmt.Sprintf("%s text, then opcode %d, then ping", number, op), []frame{text(hello), {op: op, payload: hello}, ping("")}, "text "+hello, fault)
		add(fmt.Sprintf("%s text, then empty opcode %d, then ping", number, op), []frame{text(hello), {op: op}, ping("")}, "text "+hello, fault)
	}

	// 5: fragmentation.
	add("5.1 ping in two fragments", []frame{begin(Ping, "fragment1"), end("fragment2")}, fault)
	add("5.2 pong in two fragments", []frame{begin(Pong, "fragment1"), end("fragment2")}, fault)
	add("5.3, 5.4, 5.5 text in two fragments", []frame{begin(Text, "fragment1"), end("fragment2")}, "text fragment1fragment2")
	add("5.6, 5.7, 5.8 ping between fragments", []frame{begin(Text, "fragment1"), ping("ping payload"), end("fragment2")}, "pong ping payload", "text fragment1fragment2")
	add("5.9, 5.10, 5.11 continuation of nothing, final", []frame{end("non-continuation payload"), text(hello)}, fault)
	add("5.12, 5.13, 5.14 continuation of nothing", []frame{middle("non-continuation payload"), text(hello)}, fault)
	add("5.15 continuation after the end", []frame{begin(Text, "fragment1"), end("fragment2"), middle("fragment3"), text("fragment4")}, "text fragment1fragment2", fault)
	add("5.16 continuation first, twice", []frame{middle("fragment1"), begin(Text, "fragment2"), end("fragment3"), middle("fragment4"), begin(Text, "fragment5"), end("fragment6")}, fault)
	add("5.17 final continuation first, twice", []frame{end("fragment1"), begin(Text, "fragment2"), end("fragment3"), end("fragment4"), begin(Text, "fragment5"), end("fragment6")}, fault)
	add("5.18 new message inside", []frame{begin(Text, "fragment1"), text("fragment2")}, fault)
	add("new binary message inside", []frame{begin(Text, "fragment1"), begin(Binary, "fragment2")}, fault)
	add("5.19, 5.20 five fragments and two pings", []frame{
		begin(Text, "fragment1"), middle("fragment2"), ping("pongme 1!"), middle("fragment3"), middle("fragment4"), ping("pongme 2!"), end("fragment5"),
	}, "pong pongme 1!", "pong pongme 2!", "text fragment1fragment2fragment3fragment4fragment5")

	// 6: UTF-8.
	add("6.1.1 empty text", []frame{text("")}, "text")
	add("6.1.2 three empty fragments", []frame{begin(Text, ""), middle(""), end("")}, "text")
	add("6.1.3 three fragments, empty but one", []frame{begin(Text, ""), middle("middle frame payload"), end("")}, "text middle frame payload")
	add("6.2.1 valid", []frame{text(helloUTF)}, "text "+helloUTF)
	add("6.2.2 valid, cut between runes", fragments(Text, helloUTF, 14, 0), "text "+helloUTF)
	add("6.2.3 valid, a byte a frame", octets(helloUTF), "text "+helloUTF)
	add("6.2.4 valid, a byte a frame", octets(kosme), "text "+kosme)
	add("6.3.1 surrogate", []frame{text(kosme + "\xed\xa0\x80edited")}, notUTF8)
	add("6.3.2 surrogate, a byte a frame", octets(kosme+"\xed\xa0\x80edited"), notUTF8)
	for i, cut := range []int{11, 12, 13, 15} {
		p := kosme + "\xf4\x90\x80\x80edited"
		add(fmt.Sprintf("6.4.%d over U+10FFFF, cut at %d", i+1, cut), []frame{begin(Text, p[:cut]), middle(p[cut:15]), end(p[15:])}, notUTF8)
	}
	for _, t := range utf8Cases() {
		want := "text " + t.payload
		if t.payload == "" {
			want = "text"
		}
		if !utf8.ValidString(t.payload) {
			want = notUTF8
		}
		add(t.name, []frame{text(t.payload)}, want)
		add(t.name+", a byte a frame", octets(t.payload), want)
	}

	// 7: close.
	add("7.1.1 message, then close", []frame{text("Hello World!"), closeFrame(1000, "")}, "text Hello World!", "close 1000")
	add("7.1.2 two closes", []frame{closeFrame(1000, ""), closeFrame(1000, "")}, "close 1000")
	add("7.1.3 ping after close", []frame{closeFrame(1000, ""), ping("")}, "close 1000")
	add("7.1.4 text after close", []frame{closeFrame(1000, ""), text("Hello World!")}, "close 1000")
	add("7.1.5 close inside a message", []frame{begin(Text, "fragment1"), closeFrame(1000, ""), end("fragment2")}, "close 1000")
	long := repeat("BAsd7&jh23", 256<<10)
	add("7.1.6 long message, close, ping", []frame{text(long), closeFrame(1000, ""), ping("")}, event(Text, long), "close 1000")
	add("7.3.1 empty close", []frame{{op: byte(Close)}}, "close")
	add("7.3.2 close of one byte", []frame{{op: byte(Close), payload: "a"}}, fault)
	add("7.3.3 close with code", []frame{closeFrame(1000, "")}, "close 1000")
	add("7.3.4 close with reason", []frame{closeFrame(1000, "Hello World!")}, "close 1000 Hello World!")
	add("7.3.5 close with reason of 123", []frame{closeFrame(1000, repeat("*", 123))}, "close 1000 "+repeat("*", 123))
	add("7.3.6 close with reason of 124", []frame{closeFrame(1000, repeat("*", 124))}, fault)
	add("7.5.1 close with reason that is not UTF-8", []frame{closeFrame(1000, kosme+"\xed\xa0\x80edited")}, notUTF8)
	for i, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		add(fmt.Sprintf("7.7.%d close with code %d", i+1, code), []frame{closeFrame(code, "")}, fmt.Sprintf("close %d", code))
	}
	for _, code := range []int{1012, 1013, 1014} { // registered since
		add(fmt.Sprintf("close with code %d", code), []frame{closeFrame(code, "")}, fmt.Sprintf("close %d", code))
	}
	for i, code := range []int{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		add(fmt.Sprintf("7.9.%d close with code %d", i+1, code), []frame{closeFrame(code, "")}, fault)
		add(fmt.Sprintf("7.9.%d close with code %d and reason", i+1, code), []frame{closeFrame(code, "reason")}, fault)
	}
	add("7.13.1 close with code 5000", []frame{closeFrame(5000, "")}, fault)
	add("7.13.2 close with code 65535", []frame{closeFrame(65535, "")}, fault)
	add("close with code 1015", []frame{closeFrame(1015, "")}, fault)

	// 9 and 10, the small ones: many messages.
	for i, n := range []int{0, 16, 64, 256, 1024, 4096} {
		var texts, binaries []frame
		var p []string
		for range 10 {
			p = append(p, repeat("*", n))
			texts, binaries = append(texts, text(p[0])), append(binaries, binaryFrame(p[0]))
		}
		add(fmt.Sprintf("9.7.%d messages of %d", i+1, n), texts, events(Text, p...)...)
		add(fmt.Sprintf("9.8.%d messages of %d", i+1, n), binaries, events(Binary, p...)...)
	}
	p := repeat("*", 65536)
	add("10.1.1 text in fragments of 1300", fragments(Text, p, 1300, 0), event(Text, p))

	// Beside the suite: lengths and masks.
	add("16 bits for a length of 125", []frame{{op: byte(Text), payload: repeat("*", 125), long: 2}}, fault)
	add("64 bits for a length of 65535", []frame{{op: byte(Text), payload: repeat("*", 65535), long: 8}}, fault)
	add("the other side's masking", []frame{{op: byte(Text), payload: hello, swapped: true}}, fault)
	add("the other side's masking in a fragment", []frame{begin(Text, hello), {payload: hello, swapped: true}}, fault)

	// 12: compression; 13 is the same behind handshakes that offer other terms.
	deflated := func(name string, in []frame, want ...string) {
		cases = append(cases, autobahnCase{name: name, deflate: true, in: in, want: want})
	}
	for i, data := range []struct{ name, payload string }{
		{"json", repeat(`{"id":1,"name":"`+kosme+`","tags":["a","b"],"nested":{"x":1.5}},`, 140000)},
		{"noise", noise(140000)},
		{"text", repeat("Habe nun, ach! Philosophie, Juristerei und Medizin, ", 140000)},
		{"html", repeat("<li class=\"entry\"><a href=\"/"+kosme+"\">"+helloUTF+"</a></li>\r\n", 140000)},
		{"zeros", strings.Repeat("\x00", 140000)},
	} {
		kind := Text
		if !utf8.ValidString(data.payload) {
			kind = Binary
		}
		for j, t := range compressedSizes {
			p := data.payload[:t.size]
			if kind == Text {
				p = wholeRunes(p)
			}
			f := compressedFrames(kind, p, t.fragment)
			f = append(f, f...)
			deflated(fmt.Sprintf("12.%d.%d %s of %d in fragments of %d", i+1, j+1, data.name, t.size, t.fragment), f, event(kind, p), event(kind, p))
			cases[len(cases)-1].unpacks = 2 * len(p)
		}
	}
	rfc := func(name, payload string, want ...string) {
		deflated("RFC 7692 7.2.3: "+name, []frame{{op: byte(Text), rsv: 4, payload: payload}}, want...)
	}
	rfc("fixed codes", "\xf2\x48\xcd\xc9\xc9\x07\x00", "text Hello")
	rfc("stored block", "\x00\x05\x00\xfa\xffHello\x00", "text Hello")
	rfc("final block", "\xf3\x48\xcd\xc9\xc9\x07\x00\x00", "text Hello")
	rfc("two blocks", "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", "text Hello")
	rfc("empty", "\x00", "text")
	rfc("data behind the final block", "\xf3\x48\xcd\xc9\xc9\x07\x00\x00\x00", notUTF8)
	rfc("nothing", "", notUTF8)
	rfc("cut short", "\xf2\x48\xcd\xc9", notUTF8)
	rfc("reserved block type", "\x07", notUTF8)
	deflated("two fragments", []frame{{op: byte(Text), rsv: 4, more: true, payload: "\xf2\x48\xcd"}, ping("now"), end("\xc9\xc9\x07\x00")}, "pong now", "text Hello")
	deflated("not compressed", []frame{text(hello)}, "text "+hello)
	deflated("not UTF-8", []frame{{op: byte(Text), rsv: 4, payload: string(pack("\xed\xa0\x80edited"))}}, notUTF8)
	deflated("ends inside a rune", fragments(Text, string(pack(kosme[:3])), 2, 4), notUTF8)
	deflated("rsv 1 on a continuation", []frame{{op: byte(Text), rsv: 4, more: true, payload: "\xf2\x48\xcd"}, {rsv: 4, payload: "\xc9\xc9\x07\x00"}}, fault)
	deflated("rsv 1 on a ping", []frame{{op: byte(Ping), rsv: 4}}, fault)
	deflated("rsv 2", []frame{{op: byte(Text), rsv: 2}}, fault)
	return cases
}

// compressedSizes are the messages of 12 and 13, and some in smaller fragments.
// A fragment of 0 is one that has all of it.
var compressedSizes = []struct{ size, fragment int }{
	{16, 0}, {64, 0}, {256, 0}, {1024, 0}, {4096, 0}, {8192, 0}, {16384, 0}, {32768, 0}, {65536, 0}, {131072, 0},
	{8192, 256}, {16384, 256}, {32768, 256}, {65536, 256}, {131072, 256}, {131072, 1024}, {131072, 4096}, {131072, 32768},
	{131072, 1300}, {8192, 1}, {131072, 65536},
}

func compressedFrames(kind Kind, payload string, fragment int) []frame {
	packed := string(pack(payload))
	if fragment == 0 {
		return []frame{{op: byte(kind), rsv: 4, payload: packed}}
	}
	return fragments(kind, packed, fragment, 4)
}

// wholeRunes is s without what is cut off at its end.
func wholeRunes(s string) string {
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// utf8Cases are 6.5 to 6.23, most from Markus Kuhn's decoder stress test.
func utf8Cases() (cases []struct{ name, payload string }) {
	add := func(class string, payloads ...string) {
		for i, p := range payloads {
			cases = append(cases, struct{ name, payload string }{fmt.Sprintf("%s.%d %+q", class, i+1, p), p})
		}
	}
	add("6.5", "hello\x24world", "hello\xc2\xa2world", "hello\xe2\x82\xacworld", "hello\xf0\xa4\xad\xa2world", kosme)
	var prefixes []string
	for i := range len(kosme) {
		prefixes = append(prefixes, kosme[:i+1])
	}
	add("6.6", prefixes...)
	add("6.7", "\x00", "\xc2\x80", "\xe0\xa0\x80", "\xf0\x90\x80\x80")
	add("6.8", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80")
	add("6.9", "\x7f", "\xdf\xbf", "\xef\xbf\xbf", "\xf4\x8f\xbf\xbf")
	add("6.10", "\xf7\xbf\xbf\xbf", "\xfb\xbf\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf\xbf")
	add("6.11", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbd", "\xf4\x8f\xbf\xbf", "\xf4\x90\x80\x80")
	add("6.12", "\x80", "\xbf", "\x80\xbf", "\x80\xbf\x80", "\x80\xbf\x80\xbf", "\x80\xbf\x80\xbf\x80", "\x80\xbf\x80\xbf\x80\xbf", string(span(0x80, 0xbf, "")))
	add("6.13", string(span(0xc0, 0xdf, " ")), string(span(0xe0, 0xef, " ")), string(span(0xf0, 0xf7, " ")), string(span(0xf8, 0xfb, " ")), "\xfc \xfd ")
	incomplete := []string{"\xc0", "\xe0\x80", "\xf0\x80\x80", "\xf8\x80\x80\x80", "\xfc\x80\x80\x80\x80", "\xdf", "\xef\xbf", "\xf7\xbf\xbf", "\xfb\xbf\xbf\xbf", "\xfd\xbf\xbf\xbf\xbf"}
	add("6.14", incomplete...)
	add("6.15", strings.Join(incomplete, ""))
	add("6.16", "\xfe", "\xff", "\xfe\xfe\xff\xff")
	add("6.17", "\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf", "\xfc\x80\x80\x80\x80\xaf")
	add("6.18", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf8\x87\xbf\xbf\xbf", "\xfc\x83\xbf\xbf\xbf\xbf")
	add("6.19", "\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf8\x80\x80\x80\x80", "\xfc\x80\x80\x80\x80\x80")
	add("6.20", "\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xaf\xbf", "\xed\xb0\x80", "\xed\xbe\x80", "\xed\xbf\xbf")
	add("6.21", "\xed\xa0\x80\xed\xb0\x80", "\xed\xa0\x80\xed\xbf\xbf", "\xed\xad\xbf\xed\xb0\x80", "\xed\xad\xbf\xed\xbf\xbf",
		"\xed\xae\x80\xed\xb0\x80", "\xed\xae\x80\xed\xbf\xbf", "\xed\xaf\xbf\xed\xb0\x80", "\xed\xaf\xbf\xed\xbf\xbf")
	var noncharacters []string
	for plane := range rune(17) {
		noncharacters = append(noncharacters, string(plane<<16|0xfffe), string(plane<<16|0xffff))
	}
	add("6.22", noncharacters...)
	add("6.23", "\xef\xbf\xb9", "\xef\xbf\xba", "\xef\xbf\xbb", "\xef\xbf\xbc", "\xef\xbf\xbd", "\xef\xbf\xbe", "\xef\xbf\xbf")
	return cases
}

// span is the bytes from first to last with sep behind each.
func span(first, last int, sep string) (b []byte) {
	for c := first; c <= last; c++ {
		b = append(append(b, byte(c)), sep...)
	}
	return b
}

// noise is what cannot be compressed.
func noise(n int) string {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	r.Read(b)
	return string(b)
}

// effort bounds what tests do with one long case, in bytes.
var effort = func() int {
	if raceEnabled { // ten times slower
		return 1 << 18
	}
	return 4 << 20
}()

func TestAutobahnCasesPassHoweverTheyArrive(t *testing.T) {
	for _, tt := range autobahn() {
		for _, side := range sides {
			in := encode(tt.in, !side.client)
			steps := []int{len(in), 1, 7, 997}
			if raceEnabled {
				steps = []int{len(in), max(1, len(in)/2000)}
			}
			for _, step := range steps {
				for _, moving := range []bool{false, true} {
					// A move costs what has been assembled so far.
					if moving && len(in)*(len(in)/step) > effort {
						continue
					}
					e := endpoint{s: openSession(t, testConfig, side.client, tt.deflate)}
					for part := range slices.Chunk(in, step) {
						e.feed(part)
						if moving {
							e.move(t)
						}
					}
					got := decode(t, e.out, side.client)
					if !slices.Equal(got, tt.want) {
						t.Errorf("%s: %s, %d bytes at a time, moving %v: sent %q, want %q; error %v", tt.name, side.name, step, moving, got, tt.want, e.err)
					}
				}
			}
		}
	}
}

func TestSessionThatMovesAtAnyByteGoesOnAsIfItHadNot(t *testing.T) {
	for _, tt := range autobahn() {
		for _, side := range sides {
			in := encode(tt.in, !side.client)
			stride := 1 + len(in)*(len(in)+4*tt.unpacks)/effort // 1 for what is short
			for cut := 0; cut <= len(in); cut += stride {
				e := endpoint{s: openSession(t, testConfig, side.client, tt.deflate)}
				e.feed(in[:cut])
				e.move(t)
				e.feed(in[cut:])
				if got := decode(t, e.out, side.client); !slices.Equal(got, tt.want) {
					t.Errorf("%s: %s moved at %d: sent %q, want %q; error %v", tt.name, side.name, cut, got, tt.want, e.err)
				}
			}
		}
	}
}

// largeCase is one of the large messages of 9.1 to 9.6.
type largeCase struct {
	name                 string
	kind                 Kind
	size, fragment, step int // bytes; fragment 0: none, step 0: all at once
}

func largeCases() (cases []largeCase) {
	const k, m = 1 << 10, 1 << 20
	for i, kind := range []Kind{Text, Binary} {
		for j, size := range []int{64 * k, 256 * k, m, 4 * m, 8 * m, 16 * m} {
			cases = append(cases, largeCase{fmt.Sprintf("9.%d.%d in one", 1+i, 1+j), kind, size, 0, 0})
		}
		for j, fragment := range []int{64, 256, k, 4 * k, 16 * k, 64 * k, 256 * k, m, 4 * m} {
			cases = append(cases, largeCase{fmt.Sprintf("9.%d.%d in fragments", 3+i, 1+j), kind, 4 * m, fragment, 0})
		}
		for j, step := range []int{64, 128, 256, 512, 1024, 2048} {
			cases = append(cases, largeCase{fmt.Sprintf("9.%d.%d in pieces", 5+i, 1+j), kind, m, 0, step})
		}
	}
	return cases
}

func TestLargeMessagesPassInLinearTime(t *testing.T) {
	for _, tt := range largeCases() {
		if raceEnabled && tt.size > 1<<20 { // there is one goroutine here
			continue
		}
		p := repeat(kosme+"*", tt.size-tt.size%12)
		f := []frame{{op: byte(tt.kind), payload: p}}
		if tt.fragment > 0 {
			f = fragments(tt.kind, p, tt.fragment, 0)
		}
		in := encode(f, true)
		// Beside the step of the case: as the kernel gives them, odd ones, and
		// byte by byte, which costs most.
		steps := map[int]bool{len(in): true, 64 << 10: true, 997: true, 1: !raceEnabled || tt.size <= 64<<10}
		if tt.step > 0 {
			steps[tt.step] = true
		}
		for step, wanted := range steps {
			if !wanted {
				continue
			}
			e := endpoint{s: openSession(t, testConfig, false, false)}
			for part := range slices.Chunk(in, step) {
				e.feed(part)
			}
			if got, want := decode(t, e.out, false), events(tt.kind, p); !slices.Equal(got, want) {
				t.Errorf("%s of %d, %d at a time: sent %q, want %q; error %v", tt.name, tt.size, step, got, want, e.err)
			}
			if n := e.s.Buffered(); n != 0 || e.s.message != nil {
				t.Errorf("%s of %d, %d at a time: idle session keeps %d bytes", tt.name, tt.size, step, n)
			}
		}
	}
}

// offerCases are the offers of 13, with what a server can hold of them: none
// has a smaller window than 32 KiB for what it sends.
var offerCases = []struct{ name, offer, answer string }{
	{name: "13.1 default", offer: "permessage-deflate; client_max_window_bits", answer: deflateTerms},
	{name: "13.2 no takeover", offer: "permessage-deflate; client_max_window_bits; server_no_context_takeover", answer: deflateTerms},
	{name: "13.3 window of 9 bits", offer: "permessage-deflate; client_max_window_bits; server_max_window_bits=9"},
	{name: "13.4 window of 15 bits", offer: "permessage-deflate; client_max_window_bits; server_max_window_bits=15", answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "13.5 no takeover, window of 9 bits", offer: "permessage-deflate; client_max_window_bits; server_no_context_takeover; server_max_window_bits=9"},
	{name: "13.6 no takeover, window of 15 bits", offer: "permessage-deflate; client_max_window_bits; server_no_context_takeover; server_max_window_bits=15", answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "13.7 three offers", offer: "permessage-deflate; client_max_window_bits; server_no_context_takeover; server_max_window_bits=9, " +
		"permessage-deflate; client_max_window_bits; server_no_context_takeover, permessage-deflate; client_max_window_bits", answer: deflateTerms},
}

func TestMessagesPassOnWhateverTermsAreOffered(t *testing.T) {
	data := repeat(`{"id":1,"name":"`+kosme+`","tags":["a","b"],"nested":{"x":1.5}},`, 140000)
	for _, tt := range offerCases {
		request := testRequest + "Sec-WebSocket-Extensions: " + tt.offer + "\r\n\r\n"
		for i, size := range compressedSizes {
			p := wholeRunes(data[:size.size])
			frames := compressedFrames(Text, p, size.fragment)
			if tt.answer == "" {
				if frames = []frame{text(p)}; size.fragment > 0 {
					frames = fragments(Text, p, size.fragment, 0)
				}
			}
			in := append([]byte(request), encode(frames, true)...)
			for _, step := range []int{len(in), 1} {
				if step == 1 && raceEnabled && size.size > 16384 {
					continue
				}
				e := endpoint{s: NewServer(testConfig), accept: &AcceptOptions{Deflate: true}}
				for part := range slices.Chunk(in, step) {
					e.feed(part)
				}
				head, echo, _ := strings.Cut(string(e.out), "\r\n\r\n")
				_, answer, _ := strings.Cut(head, "Sec-WebSocket-Extensions: ")
				if answer != tt.answer {
					t.Fatalf("%s: answer %q, want %q", tt.name, answer, tt.answer)
				}
				if got, want := decode(t, []byte(echo), false), events(Text, p); !slices.Equal(got, want) {
					t.Errorf("%s.%d, %d bytes at a time: sent %q, want %q; error %v", tt.name, i+1, step, got, want, e.err)
				}
			}
		}
	}
}

// How many cases each class of the suite has.
var autobahnCounts = map[string]int{
	"1.1": 8, "1.2": 8, "2": 11, "3": 7, "4.1": 5, "4.2": 5, "5": 20,
	"6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11, "6.7": 4, "6.8": 2, "6.9": 4, "6.10": 3, "6.11": 5, "6.12": 8, "6.13": 5,
	"6.14": 10, "6.15": 1, "6.16": 3, "6.17": 5, "6.18": 5, "6.19": 5, "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7,
	"7.1": 6, "7.3": 6, "7.5": 1, "7.7": 13, "7.9": 9, "7.13": 2,
	"9.1": 6, "9.2": 6, "9.3": 9, "9.4": 9, "9.5": 6, "9.6": 6, "9.7": 6, "9.8": 6, "10.1": 1,
	"12.1": 18, "12.2": 18, "12.3": 18, "12.4": 18, "12.5": 18,
	"13.1": 18, "13.2": 18, "13.3": 18, "13.4": 18, "13.5": 18, "13.6": 18, "13.7": 18,
}

func TestEveryCaseOfTheSuiteIsThere(t *testing.T) {
	here := map[string]bool{}
	for _, tt := range autobahn() {
		for word := range strings.FieldsSeq(tt.name) {
			if word[0] < '0' || word[0] > '9' || !strings.Contains(word, ".") {
				break
			}
			here[strings.TrimSuffix(word, ",")] = true
		}
	}
	for _, tt := range largeCases() {
		number, _, _ := strings.Cut(tt.name, " ")
		here[number] = true
	}
	for _, tt := range offerCases {
		number, _, _ := strings.Cut(tt.name, " ")
		for i := range compressedSizes {
			here[fmt.Sprintf("%s.%d", number, i+1)] = true
		}
	}
	all := 0
	for class, count := range autobahnCounts {
		for i := range count {
			all++
			if number := fmt.Sprintf("%s.%d", class, i+1); !here[number] {
				t.Errorf("case %s is not there", number)
			}
		}
	}
	if all != 517 {
		t.Errorf("the suite has %d cases here, want 517", all)
	}
}

func TestInvalidTextFailsWithTheByteThatShowsIt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    []frame
		fails int // the number of payload bytes, over all frames, with which it has to
	}{
		{name: "6.4.1 in the second fragment", in: []frame{begin(Text, kosme), middle("\xf4\x90\x80\x80"), end("edited")}, fails: 13},
		{name: "6.4.2 at the end of the first fragment", in: []frame{begin(Text, kosme+"\xf4"), middle("\x90\x80\x80"), end("edited")}, fails: 13},
		{name: "6.4.3 inside one frame", in: []frame{text(kosme + "\xf4\x90\x80\x80edited")}, fails: 13},
		{name: "6.4.4 surrogate inside one frame", in: []frame{text(kosme + "\xed\xa0\x80edited")}, fails: 13},
		{name: "overlong", in: []frame{text("ab\xe0\x80\x80" + repeat("*", 70000))}, fails: 4},
		{name: "impossible byte in a long frame", in: []frame{text(repeat("*", 300) + "\xff" + repeat("*", 70000))}, fails: 301},
		{name: "continuation byte", in: []frame{text("\x80*")}, fails: 1},
		{name: "rune that is not finished", in: []frame{text("*\xf0\x90\x80*")}, fails: 5},
	} {
		for _, side := range sides {
			t.Run(tt.name+"/"+side.name, func(t *testing.T) {
				limit, left := 0, tt.fails
				for i, f := range tt.in {
					head := len(encode(tt.in[:i+1], !side.client)) - len(encode(tt.in[:i], !side.client)) - len(f.payload)
					limit += head + min(left, len(f.payload))
					if left -= len(f.payload); left <= 0 {
						break
					}
				}
				in := encode(tt.in, !side.client)
				e := endpoint{s: openSession(t, testConfig, side.client, false)}
				for i := range limit {
					if e.err != nil {
						t.Fatalf("failed with %d bytes, want %d: %v", i, limit, e.err)
					}
					e.feed(in[i : i+1])
				}
				if e.err == nil {
					t.Errorf("no error with %d bytes", limit)
				}
			})
		}
	}
}
