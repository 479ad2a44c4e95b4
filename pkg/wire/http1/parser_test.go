package http1

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// streams is the table of the tests and the seed of the fuzz targets. want is
// what transcript makes of what was found; status is that of the error behind
// it, 0: none.
var streams = []struct {
	name   string
	limits Limits
	in     string
	want   string
	rest   string
	status int
}{
	{name: "nothing"},
	{name: "the smallest request", in: "GET / HTTP/1.1\r\nHost:\r\n\r\n", want: "GET / "},
	{name: "HTTP/1.0 without anything", in: "GET / HTTP/1.0\r\n\r\n", want: "GET / close "},
	{name: "HTTP/1.0 that stays", in: "GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", want: "GET / "},
	{name: "HTTP/1.0 that stays and goes", in: "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", want: "GET / close "},
	{name: "two requests", in: "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", want: "GET /1 HEAD /2 close "},
	{name: "incomplete", in: "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nAcc", want: "GET /1 ", rest: "GET /2 HTTP/1.1\r\nHost: a\r\nAcc"},
	{name: "spaces around values", in: "GET / HTTP/1.1\r\nHost: \t a \t\r\nX:y\r\nEmpty:   \r\n\r\n", want: "GET / "},
	{name: "length", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n", want: "POST / [hello] GET / "},
	{name: "length zero", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", want: "POST / GET / "},
	{name: "chunked", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", want: "POST / [hello0123456789] GET / "},
	{name: "chunked with trailers", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n", want: "POST / [x] {X-Sum=1 Y=} "},
	{name: "chunked then length", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", want: "POST / [] POST / [x] "},
	{name: "a body cut", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello", want: "POST / [hello"},
	{name: "expect", in: "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", want: "PUT / expect=100-continue ["},
	{name: "upgrade", in: "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", want: "GET / upgrade "},
	{name: "upgrade in HTTP/1.0", in: "GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", want: "GET / close "},
	{name: "absolute form", in: "GET http://a/b?c HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET http://a/b?c "},
	{name: "authority form", in: "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", want: "CONNECT a:80 "},
	{name: "asterisk form", in: "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", want: "OPTIONS * "},
	{name: "escapes and odd characters", in: "GET /a%20b/%ff|{}\xc3\xa9//?q=%zz?&{}| HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", want: "GET /a%20b/%ff|{}\xc3\xa9//?q=%zz?&{}| "},
	{name: "bytes beyond ASCII in a value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n", want: "GET / "},

	{name: "both lengths", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", status: 400},
	{name: "both lengths the other way", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", status: 400},
	{name: "two equal lengths", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", status: 400},
	{name: "two different lengths", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\nhello", status: 400},
	{name: "a list of lengths", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", status: 400},
	{name: "a length with a sign", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", status: 400},
	{name: "a negative length", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", status: 400},
	{name: "an empty length", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello", status: 400},
	{name: "a length in hexadecimal", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", status: 400},
	{name: "a length beyond 63 bits", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\nhello", status: 400},
	{name: "the longest length", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\nhello", want: "POST / [hello"},
	{name: "another coding", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", status: 501},
	{name: "identity", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", status: 501},
	{name: "chunked twice in a list", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", status: 501},
	{name: "chunked twice", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", status: 501},
	{name: "chunked after a vertical tab", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \vchunked\r\n\r\n", status: 400},
	{name: "quoted chunked", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", status: 501},
	{name: "coding in HTTP/1.0", in: "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", status: 400},
	{name: "space before the colon", in: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n", status: 400},
	{name: "tab before the colon", in: "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", status: 400},
	{name: "no colon", in: "GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n", status: 400},
	{name: "no name", in: "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", status: 400},
	{name: "fold", in: "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", status: 400},
	{name: "fold of the first line", in: "GET / HTTP/1.1\r\n Host: a\r\n\r\n", status: 400},
	{name: "bare line feed in the request line", in: "GET / HTTP/1.1\nHost: a\r\n\r\n", status: 400},
	{name: "bare line feed behind a field", in: "GET / HTTP/1.1\r\nHost: a\n\r\n", status: 400},
	{name: "bare line feed at the end", in: "GET / HTTP/1.1\r\nHost: a\r\n\n", status: 400},
	{name: "bare carriage return in a value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", status: 400},
	{name: "two carriage returns", in: "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", status: 400},
	{name: "NUL in a value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", status: 400},
	{name: "control character in a value", in: "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", status: 400},
	{name: "control character in the target", in: "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "control character in the query", in: "GET /?\x7f HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "no Host", in: "GET / HTTP/1.1\r\n\r\n", status: 400},
	{name: "two Hosts", in: "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", status: 400},
	{name: "two Hosts, both empty", in: "GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", status: 400},
	{name: "a Host with a slash", in: "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", status: 400},
	{name: "a Host with a name of somebody", in: "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", status: 400},
	{name: "version 2.0", in: "GET / HTTP/2.0\r\nHost: a\r\n\r\n", status: 505},
	{name: "preface of HTTP/2", in: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status: 505},
	{name: "version 1.2", in: "GET / HTTP/1.2\r\nHost: a\r\n\r\n", status: 505},
	{name: "version 0.9", in: "GET / HTTP/0.9\r\n\r\n", status: 505},
	{name: "no version", in: "GET /\r\n\r\n", status: 400},
	{name: "a version in lower case", in: "GET / http/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a long version", in: "GET / HTTP/1.10\r\nHost: a\r\n\r\n", status: 400},
	{name: "two spaces", in: "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a space at the end", in: "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", status: 400},
	{name: "a tab between", in: "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "an empty line first", in: "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "TLS", in: "\x16\x03\x01\x02\x00\x01", status: 400},
	{name: "a method that is none", in: "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a relative target", in: "GET a HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a fragment", in: "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a broken escape", in: "GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "an escape that is none", in: "GET /%4g HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "another scheme", in: "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "a target with a user", in: "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "asterisk for another method", in: "GET * HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},
	{name: "CONNECT without a port", in: "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", status: 400},

	{name: "target as long as allowed", limits: Limits{Target: 5}, in: "GET /1234 HTTP/1.1\r\nHost: a\r\n\r\n", want: "GET /1234 "},
	{name: "target too long", limits: Limits{Target: 5}, in: "GET /12345 HTTP/1.1\r\nHost: a\r\n\r\n", status: 414},
	{name: "target without an end", limits: Limits{Target: 50}, in: "GET /" + strings.Repeat("x", 300), status: 414},
	{name: "target too long in a line with a bare line feed", limits: Limits{Target: 50}, in: "GET /" + strings.Repeat("x", 300) + "\n", status: 414},
	{name: "head as long as allowed", limits: Limits{Head: 27}, in: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", want: "GET / "},
	{name: "head too long", limits: Limits{Head: 26}, in: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", status: 431},
	{name: "head too long in one field", limits: Limits{Head: 40}, in: "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 40) + "\n", status: 431},
	{name: "fields without an end", limits: Limits{Head: 100}, in: "GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", 30), status: 431},
	{name: "as many fields as allowed", limits: Limits{Fields: 2}, in: "GET / HTTP/1.1\r\nHost: a\r\na: b\r\n\r\n", want: "GET / "},
	{name: "too many fields", limits: Limits{Fields: 2}, in: "GET / HTTP/1.1\r\nHost: a\r\na: b\r\na: c\r\n\r\n", status: 431},

	{name: "chunk size missing", in: chunkedHead + "\r\n", want: "POST / [", status: 400},
	{name: "chunk size with a space", in: chunkedHead + "5 \r\nhello\r\n", want: "POST / [", status: 400},
	{name: "chunk size with a prefix", in: chunkedHead + "0x5\r\nhello\r\n", want: "POST / [", status: 400},
	{name: "chunk size with a sign", in: chunkedHead + "+5\r\nhello\r\n", want: "POST / [", status: 400},
	{name: "chunk size too long", in: chunkedHead + "1000000000000000\r\n", want: "POST / [", status: 413},
	{name: "chunk size with a bare line feed", in: chunkedHead + "5\nhello\r\n", want: "POST / [", status: 400},
	{name: "chunk size with two carriage returns", in: chunkedHead + "5\r\r\nhello\r\n", want: "POST / [", status: 400},
	{name: "chunk longer than its size", in: chunkedHead + "4\r\nhello\r\n", want: "POST / [hell", status: 400},
	{name: "chunk that ends with a bare line feed", in: chunkedHead + "5\r\nhello\n0\r\n\r\n", want: "POST / [hello", status: 400},
	{name: "bare line feed in an extension", in: chunkedHead + "5;a\nb\r\nhello\r\n", want: "POST / [", status: 400},
	{name: "an extension without an end", in: chunkedHead + "5;" + strings.Repeat("x", maxChunkLine), want: "POST / [", status: 400},
	{name: "extensions without an end", in: chunkedHead + strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\nx\r\n", 20), want: "POST / [" + strings.Repeat("x", 16), status: 400},
	{name: "one byte a chunk", in: chunkedHead + strings.Repeat("1\r\nx\r\n", 2000) + "0\r\n\r\n", want: "POST / [" + strings.Repeat("x", 2000) + "] "},
	{name: "trailer with a bare line feed", in: chunkedHead + "0\r\nX: 1\n\r\n", want: "POST / [", status: 400},
	{name: "trailer that frames", in: chunkedHead + "0\r\nContent-Length: 1\r\n\r\n", want: "POST / [", status: 400},
	{name: "trailer that routes", in: chunkedHead + "0\r\nHost: a\r\n\r\n", want: "POST / [", status: 400},
	{name: "trailer announced that frames", in: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x, Content-Length\r\n\r\n", status: 400},
	{name: "trailers without an end", limits: Limits{Trailer: 20}, in: chunkedHead + "0\r\nX: 123456789012345678901234567890", want: "POST / [", status: 431},
	{name: "too many trailers", limits: Limits{Fields: 2}, in: chunkedHead + "0\r\na: 1\r\na: 2\r\na: 3\r\n\r\n", want: "POST / [", status: 431},
}

const chunkedHead = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

// feed gives in to a parser as it comes, the length of each read as step says,
// with the state carried from one parser to the next by its written form if
// moved is set. It returns what was found, in words.
func feed(l Limits, in []byte, step func() int, moved bool) (transcript string, rest []byte, err error) {
	var p Parser
	var h Head
	var out strings.Builder
	var pending []byte
	inBody := false
	for len(in) > 0 {
		n := min(step(), len(in))
		// A copy: whatever is kept of earlier input shows.
		pending = append(bytes.Clone(pending), in[:n]...)
		in = in[n:]
		for {
			if moved {
				var q Parser
				if err := q.RestoreState(p.AppendState(nil)); err != nil {
					return out.String(), nil, err
				}
				p = q
			}
			advance, kind, data, err := p.Next(&l, &h, pending)
			if err != nil {
				return out.String(), append(pending, in...), err
			}
			pending = pending[advance:]
			switch kind {
			case RequestHead:
				fmt.Fprintf(&out, "%s %s ", h.Method, h.Target)
				if h.Close {
					out.WriteString("close ")
				}
				if h.Upgrade {
					out.WriteString("upgrade ")
				}
				if h.Expect != nil {
					fmt.Fprintf(&out, "expect=%s ", h.Expect)
				}
				if inBody = h.HasBody(); inBody {
					out.WriteString("[")
				}
			case BodyPart:
				if len(data) == 0 {
					return "", nil, errors.New("a part without data")
				}
				out.Write(data)
			case BodyEnd:
				inBody = false
				out.WriteString("] ")
				if fields := Trailer(nil, data); len(fields) > 0 {
					sep := "{"
					for _, f := range fields {
						fmt.Fprintf(&out, "%s%s=%s", sep, f.Name, f.Value)
						sep = " "
					}
					out.WriteString("} ")
				}
			case More:
			}
			if kind == More {
				break
			}
		}
	}
	return out.String(), pending, nil
}

func always(n int) func() int { return func() int { return n } }

// statusOf returns the status of an error, 0 of none.
func statusOf(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return -1
}

func TestStreamMeansTheSameHoweverItArrives(t *testing.T) {
	for _, tt := range streams {
		t.Run(tt.name, func(t *testing.T) {
			steps := []int{1, 2, 3, 7, 1 << 20}
			if len(tt.in) > 5000 {
				steps = []int{1, 1 << 20}
			}
			for _, moved := range []bool{false, true} {
				for _, step := range steps {
					got, rest, err := feed(tt.limits, []byte(tt.in), always(step), moved)
					if got != tt.want || statusOf(err) != tt.status {
						t.Errorf("step %d, moved %v: got %.300q, %v, want %.300q, status %d", step, moved, got, err, tt.want, tt.status)
					}
					if tt.status == 0 && string(rest) != tt.rest {
						t.Errorf("step %d, moved %v: rest %q, want %q", step, moved, rest, tt.rest)
					}
				}
			}
		})
	}
}

func TestStreamMeansTheSameWhereverItIsCut(t *testing.T) {
	for _, tt := range streams {
		if len(tt.in) > 1000 {
			continue // byte by byte above
		}
		for cut := 1; cut < len(tt.in); cut++ {
			first := true
			got, _, err := feed(tt.limits, []byte(tt.in), func() int {
				if first {
					first = false
					return cut
				}
				return len(tt.in)
			}, cut%2 == 0)
			if got != tt.want || statusOf(err) != tt.status {
				t.Errorf("%s: cut at %d: got %q, %v, want %q, status %d", tt.name, cut, got, err, tt.want, tt.status)
			}
		}
	}
}

func TestErrorComesAgain(t *testing.T) {
	var p Parser
	var h Head
	l := &Limits{}
	if _, _, _, err := p.Next(l, &h, []byte("\x00")); statusOf(err) != 400 {
		t.Fatalf("got %v", err)
	}
	if _, _, _, err := p.Next(l, &h, []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")); statusOf(err) != 400 {
		t.Errorf("got %v, want the stream refused for good", err)
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	in := []byte("POST /a/b?c=d HTTP/1.1\r\nHost: example.com\r\nUser-Agent: x\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	var p Parser
	var h Head
	l := &Limits{}
	got := testing.AllocsPerRun(100, func() {
		for rest := in; ; {
			advance, kind, _, err := p.Next(l, &h, rest)
			if err != nil || kind == More {
				t.Fatal(kind, err)
			}
			if rest = rest[advance:]; kind == BodyEnd {
				return
			}
		}
	})
	if got != 0 {
		t.Errorf("%v allocations a request, want 0", got)
	}
}

func TestForeignStateIsRefused(t *testing.T) {
	good := (&Parser{state: inChunkExt, left: 5, digits: 1, length: 3}).AppendState(nil)
	for _, tt := range []struct {
		name  string
		state []byte
		fails bool
	}{
		{name: "written by us", state: good},
		{name: "the start", state: (&Parser{}).AppendState(nil)},
		{name: "nothing", fails: true},
		{name: "another version", state: append([]byte{2}, good[1:]...), fails: true},
		{name: "cut", state: good[:len(good)-1], fails: true},
		{name: "more behind it", state: append(bytes.Clone(good), 0), fails: true},
		{name: "a state that is none", state: []byte{1, byte(numStates), 0, 0, 0, 0}, fails: true},
		{name: "bytes to come between two requests", state: []byte{1, byte(inHead), 0, 5, 0, 0}, fails: true},
		{name: "a chunk of nothing", state: []byte{1, byte(inChunk), 1, 0, 0, 1}, fails: true},
		{name: "a size larger than its digits", state: []byte{1, byte(inChunkSize), 1, 16, 0, 1}, fails: true},
		{name: "a number not in its shortest form", state: []byte{1, byte(inBody), 0, 0x85, 0x00, 0, 0}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Parser{left: 7}
			err := p.RestoreState(tt.state)
			if tt.fails != (err != nil) || err != nil && !errors.Is(err, ErrState) {
				t.Errorf("got %v, want failure %v", err, tt.fails)
			}
			if err != nil && p != (Parser{left: 7}) {
				t.Errorf("a state that was refused has changed the parser to %+v", p)
			}
		})
	}
}

func FuzzStreamMeansTheSameHoweverItArrives(f *testing.F) {
	for i, tt := range streams {
		if len(tt.in) < 1000 {
			f.Add([]byte(tt.in), uint64(i), tt.limits.Fields)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, fields int) {
		l := Limits{Head: 2000, Target: 500, Trailer: 200, Fields: fields % 64}
		want, wantRest, wantErr := feed(l, in, always(len(in)), false)
		for _, moved := range []bool{false, true} {
			random := rand.New(rand.NewPCG(seed, 1))
			for _, step := range []func() int{always(1), func() int { return 1 + random.IntN(20) }} {
				got, rest, err := feed(l, in, step, moved)
				if got != want || statusOf(err) != statusOf(wantErr) || err == nil && !bytes.Equal(rest, wantRest) {
					t.Fatalf("moved %v: got %q, %q, %v, want as in one piece %q, %q, %v", moved, got, rest, err, want, wantRest, wantErr)
				}
			}
		}
	})
}

func FuzzRestoredStateIsOneThatIsWritten(f *testing.F) {
	f.Add([]byte{1, byte(inChunkExt), 1, 5, 0, 3}, []byte("x\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte{1, byte(inBody), 0, 5, 0, 0}, []byte("helloGET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, state, in []byte) {
		var p Parser
		if p.RestoreState(state) != nil {
			return
		}
		if got := p.AppendState(nil); !bytes.Equal(got, state) {
			t.Fatalf("written % x, want % x as read", got, state)
		}
		var h Head
		for range 100 {
			advance, kind, _, err := p.Next(&Limits{}, &h, in)
			if err != nil || kind == More {
				return
			}
			in = in[advance:]
		}
	})
}
