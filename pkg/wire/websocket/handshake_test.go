package websocket

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

// requestWith is a good request with lines changed: "-Name" takes one away,
// "Name: value" replaces it, "+Name: value" adds one; a line without a colon is the request line.
func requestWith(changes ...string) string {
	lines := []string{
		"GET /chat?room=1 HTTP/1.1", "Host: example.com", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
	}
	return headWith(lines, changes)
}

func responseWith(changes ...string) string {
	lines := []string{
		"HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
	}
	return headWith(lines, changes)
}

func headWith(lines, changes []string) string {
	for _, c := range changes {
		if added, ok := strings.CutPrefix(c, "+"); ok {
			lines = append(lines, added)
			continue
		}
		name, _, isField := strings.Cut(strings.TrimPrefix(c, "-"), ":")
		if (!isField || !isName(name)) && !strings.HasPrefix(c, "-") {
			lines[0] = c
			continue
		}
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
		if i < 0 {
			lines = append(lines, c)
		} else if strings.HasPrefix(c, "-") {
			lines = slices.Delete(lines, i, i+1)
		} else {
			lines[i] = c
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

var requests = []struct {
	name   string
	head   string
	status int // 0: accepted
}{
	{name: "good", head: requestWith()},
	{name: "lists in any case", head: requestWith("Upgrade: h2c, WebSocket", "Connection: keep-alive, UPGRADE", "-Host", "+hOST: a:80")},
	{name: "lists over several lines", head: requestWith("+Connection: close", "+Upgrade: h2c")},
	{name: "value between spaces and tabs", head: requestWith("Sec-WebSocket-Version: \t 13 \t")},
	{name: "bytes above ASCII in a field", head: requestWith("+X-Name: f\u00fcr")},
	{name: "absolute target", head: requestWith("GET http://example.com/chat HTTP/1.1")},
	{name: "IPv6 host", head: requestWith("Host: [::1]:8080")},
	{name: "declared to have no body", head: requestWith("+Content-Length: 0")},
	{name: "protocols", head: requestWith("+Sec-WebSocket-Protocol: a, b", "+Sec-WebSocket-Protocol: c,,")},
	{name: "POST", head: requestWith("POST / HTTP/1.1"), status: 405},
	{name: "get", head: requestWith("get / HTTP/1.1"), status: 405},
	{name: "HTTP/1.0", head: requestWith("GET / HTTP/1.0"), status: 505},
	{name: "HTTP/2.0", head: requestWith("GET / HTTP/2.0"), status: 505},
	{name: "no version", head: requestWith("GET /"), status: 400},
	{name: "two spaces", head: requestWith("GET  / HTTP/1.1"), status: 400},
	{name: "space behind", head: requestWith("GET / HTTP/1.1 "), status: 505},
	{name: "space in the target", head: requestWith("GET /a b HTTP/1.1"), status: 400},
	{name: "bytes above ASCII in the target", head: requestWith("GET /f\u00fcr HTTP/1.1"), status: 400},
	{name: "method that is no token", head: requestWith("G(T / HTTP/1.1"), status: 400},
	{name: "no host", head: requestWith("-Host:"), status: 400},
	{name: "empty host", head: requestWith("Host: "), status: 400},
	{name: "two hosts", head: requestWith("+Host: example.com"), status: 400},
	{name: "host with a path", head: requestWith("Host: example.com/chat"), status: 400},
	{name: "host with a user", head: requestWith("Host: a@example.com"), status: 400},
	{name: "no upgrade", head: requestWith("-Upgrade:"), status: 426},
	{name: "upgrade to something else", head: requestWith("Upgrade: websocket2"), status: 426},
	{name: "no connection", head: requestWith("-Connection:"), status: 426},
	{name: "connection without upgrade", head: requestWith("Connection: keep-alive"), status: 426},
	{name: "no version of websocket", head: requestWith("-Sec-WebSocket-Version:"), status: 426},
	{name: "version 8", head: requestWith("Sec-WebSocket-Version: 8"), status: 426},
	{name: "version 13 and another", head: requestWith("Sec-WebSocket-Version: 13, 8"), status: 426},
	{name: "version twice", head: requestWith("+Sec-WebSocket-Version: 13"), status: 400},
	{name: "no key", head: requestWith("-Sec-WebSocket-Key:"), status: 400},
	{name: "two keys", head: requestWith("+Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), status: 400},
	{name: "key of 15 bytes", head: requestWith("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"), status: 400},
	{name: "key of 17 bytes", head: requestWith("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE="), status: 400},
	{name: "key that is not base64", head: requestWith("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ**"), status: 400},
	{name: "key with bits left over", head: requestWith("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="), status: 400},
	{name: "body", head: requestWith("+Content-Length: 5"), status: 400},
	{name: "two lengths", head: requestWith("+Content-Length: 0", "+Content-Length: 0"), status: 400},
	{name: "chunked body", head: requestWith("+Transfer-Encoding: chunked"), status: 400},
	{name: "two origins", head: requestWith("+Origin: http://a", "+Origin: http://b"), status: 400},
	{name: "protocol twice", head: requestWith("+Sec-WebSocket-Protocol: a, b, a"), status: 400},
	{name: "protocol that is no token", head: requestWith("+Sec-WebSocket-Protocol: a b"), status: 400},
	{name: "malformed extensions", head: requestWith("+Sec-WebSocket-Extensions: a; =b"), status: 400},
	{name: "space before the colon", head: requestWith("+X-A : b"), status: 400},
	{name: "field without a name", head: requestWith("+: b"), status: 400},
	{name: "line without a colon", head: requestWith("+X-A"), status: 400},
	{name: "folded line", head: requestWith("+X-A: b\r\n c"), status: 400},
	{name: "control character in a field", head: requestWith("+X-A: b\x00c"), status: 400},
	{name: "bare CR in a field", head: requestWith("+X-A: b\rc"), status: 400},
	{name: "delete character in the request line", head: requestWith("GET /\x7f HTTP/1.1"), status: 400},
	{name: "bare LF", head: strings.Replace(requestWith(), "\r\nHost", "\nHost", 1), status: 400},
	{name: "bare LF at the end", head: strings.TrimSuffix(requestWith(), "\r\n") + "\n", status: 400},
	{name: "empty line first", head: "\r\n" + requestWith(), status: 400},
	{name: "TLS", head: "\x16\x03\x01\x02\x00", status: 400},
}

func TestOnlyRequestsInOrderAreAccepted(t *testing.T) {
	for _, tt := range requests {
		for _, step := range []int{1, len(tt.head)} {
			s := NewServer(&Config{})
			err := splitRequest(s, []byte(tt.head), step)
			if tt.status == 0 {
				if err != nil {
					t.Errorf("%s: %v", tt.name, err)
				}
				continue
			}
			r, ok := errors.AsType[*Refusal](err)
			if !ok || r.Status != tt.status {
				t.Errorf("%s: %v, want status %d", tt.name, err, tt.status)
				continue
			}
			msg, err := r.Message()
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			out, err := s.Append(nil, msg)
			if err != nil || !bytes.Equal(out, msg[1:]) {
				t.Errorf("%s: sent %q, %v, want %q", tt.name, out, err, msg[1:])
			}
			head, isVersion := string(out), strings.Contains(string(out), "\r\nSec-WebSocket-Version: 13\r\n")
			if !strings.Contains(head, "\r\nConnection: close") || isVersion != (tt.status == 426) {
				t.Errorf("%s: response %q", tt.name, head)
			}
		}
	}
}

// splitRequest gives head to a server's session, step bytes at a time, and has the
// request parsed.
func splitRequest(s *Session, head []byte, step int) error {
	for end := step; ; end += step {
		n, msg, ok, err := s.Split(slices.Clone(head[:min(end, len(head))]), false)
		switch {
		case err != nil:
			return err
		case ok && (n != len(head) || Kind(msg[0]) != Request || !bytes.Equal(msg[1:], head)):
			return errors.New("request is not what was sent")
		case ok:
			r, err := ParseRequest(msg[1:])
			if err == nil {
				_, err = r.HTTP()
			}
			return err
		case end >= len(head):
			return errors.New("no request")
		}
	}
}

func TestEndlessHeadIsRefusedAtTheLimit(t *testing.T) {
	head := []byte("GET / HTTP/1.1\r\nHost: a\r\n")
	for len(head) < 4096 {
		head = append(head, "X-A: b\r\n"...)
	}
	s := NewServer(&Config{MaxHead: 1000})
	for i := range head {
		_, _, _, err := s.Split(head[:i+1], false)
		if i+1 <= 1000 {
			if err != nil {
				t.Fatalf("%d bytes: %v", i+1, err)
			}
			continue
		}
		if r, ok := errors.AsType[*Refusal](err); !ok || r.Status != 431 || !errors.Is(err, wire.ErrTooLong) {
			t.Fatalf("%d bytes: %v", i+1, err)
		}
		break
	}
	if _, _, _, err := NewServer(&Config{MaxHead: 100}).Split([]byte(requestWith()), false); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("whole head: %v, want wire.ErrTooLong", err)
	}
	s = NewServer(&Config{MaxHead: len(requestWith())})
	if _, _, ok, err := s.Split(append([]byte(requestWith()), encode([]frame{text("early")}, true)...), false); !ok || err != nil {
		t.Errorf("head of exactly the limit: %v, %v", ok, err)
	}
}

func TestRequestBecomesARequestOfNetHTTP(t *testing.T) {
	r, err := ParseRequest([]byte(requestWith("+Cookie: a=b", "+X-Twice: 1", "+X-Twice: 2")))
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.HTTP()
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Cookie("a")
	if err != nil || c.Value != "b" || h.Host != "example.com" || h.URL.Query().Get("room") != "1" || len(h.Header["X-Twice"]) != 2 {
		t.Errorf("request %+v, cookie %v, %v", h, c, err)
	}
}

func TestAcceptAnswersByItsTerms(t *testing.T) {
	for _, tt := range []struct {
		name     string
		request  []string
		opts     AcceptOptions
		protocol string
		deflate  bool
		status   int
		fails    bool
		has      string
	}{
		{name: "nothing asked", has: "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"},
		{name: "same origin", request: []string{"+Origin: https://EXAMPLE.com"}},
		{name: "same host, other port", request: []string{"+Origin: https://example.com:81"}, status: 403},
		{name: "other origin", request: []string{"+Origin: https://evil.com"}, status: 403},
		{name: "null origin", request: []string{"+Origin: null"}, status: 403},
		{name: "origin without a host", request: []string{"+Origin: /"}, status: 403},
		{name: "origin in the list", request: []string{"+Origin: https://www.other.com"}, opts: AcceptOptions{Origins: []string{"https://a.com", "https://*.Other.com"}}},
		{name: "same origin, not in the list", request: []string{"+Origin: https://example.com"}, opts: AcceptOptions{Origins: []string{"https://a.com"}}, status: 403},
		{name: "star does not reach over a slash", request: []string{"+Origin: https://evil.com/.other.com"}, opts: AcceptOptions{Origins: []string{"https://*.other.com"}}, status: 403},
		{name: "any origin", request: []string{"+Origin: null"}, opts: AcceptOptions{Origins: []string{"*"}}},
		{name: "bad pattern", request: []string{"+Origin: a"}, opts: AcceptOptions{Origins: []string{"["}}, fails: true},
		{name: "server's preference", request: []string{"+Sec-WebSocket-Protocol: a, b"}, opts: AcceptOptions{Subprotocols: []string{"c", "b", "a"}}, protocol: "b", has: "\r\nSec-WebSocket-Protocol: b\r\n"},
		{name: "no common protocol", request: []string{"+Sec-WebSocket-Protocol: a"}, opts: AcceptOptions{Subprotocols: []string{"A"}}},
		{name: "bad protocol", opts: AcceptOptions{Subprotocols: []string{"a b"}}, fails: true},
		{name: "deflate", request: []string{"+Sec-WebSocket-Extensions: permessage-deflate"}, opts: AcceptOptions{Deflate: true}, deflate: true, has: "\r\n" + testExtension},
		{name: "deflate not wanted", request: []string{"+Sec-WebSocket-Extensions: permessage-deflate"}},
		{name: "deflate not offered", opts: AcceptOptions{Deflate: true}},
		{name: "header", opts: AcceptOptions{Header: http.Header{"X-B": {"2"}, "Set-Cookie": {"a", "b"}}}, has: "\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-B: 2\r\n\r\n"},
		{name: "header with a line end", opts: AcceptOptions{Header: http.Header{"X-B": {"2\r\nX-C: 3"}}}, fails: true},
		{name: "header of the handshake", opts: AcceptOptions{Header: http.Header{"sec-websocket-accept": {"2"}}}, fails: true},
		{name: "header of framing", opts: AcceptOptions{Header: http.Header{"Content-Length": {"2"}}}, fails: true},
		{name: "header that is no token", opts: AcceptOptions{Header: http.Header{"X B": {"2"}}}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseRequest([]byte(requestWith(tt.request...)))
			if err != nil {
				t.Fatal(err)
			}
			msg, protocol, deflate, err := Accept(r, &tt.opts)
			refusal, refused := errors.AsType[*Refusal](err)
			if (err != nil) != (tt.fails || tt.status != 0) || refused != (tt.status != 0) || refused && refusal.Status != tt.status {
				t.Fatalf("error %v, want status %d, failure %v", err, tt.status, tt.fails)
			}
			if err != nil {
				return
			}
			if protocol != tt.protocol || deflate != tt.deflate || !strings.Contains(string(msg), tt.has) {
				t.Errorf("%q, protocol %q, deflate %v", msg, protocol, deflate)
			}
			s := NewServer(&Config{})
			if _, err := s.Append(nil, msg); err != nil || s.Subprotocol() != protocol || s.Compressed() != deflate {
				t.Errorf("session has protocol %q, deflate %v, error %v", s.Subprotocol(), s.Compressed(), err)
			}
		})
	}
}

var offers = []struct {
	name   string
	offer  string
	answer string // empty: declined
	fails  bool
}{
	{name: "bare", offer: "permessage-deflate", answer: deflateTerms},
	{name: "13.1 as browsers do", offer: "permessage-deflate; client_max_window_bits", answer: deflateTerms},
	{name: "13.2 no takeover", offer: "permessage-deflate; server_no_context_takeover; client_no_context_takeover", answer: deflateTerms},
	{name: "13.3 window of 9", offer: "permessage-deflate; server_max_window_bits=9"},
	{name: "13.4 window of 15", offer: "permessage-deflate; server_max_window_bits=15", answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "13.5 no takeover, window of 9", offer: "permessage-deflate; server_no_context_takeover; server_max_window_bits=9"},
	{name: "13.6 no takeover, window of 15", offer: "permessage-deflate; server_no_context_takeover; server_max_window_bits=15", answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "13.7 the first that holds", offer: "permessage-deflate; server_no_context_takeover; server_max_window_bits=9, permessage-deflate; server_no_context_takeover, permessage-deflate", answer: deflateTerms},
	{name: "window of the client", offer: "permessage-deflate; client_max_window_bits=8", answer: deflateTerms},
	{name: "quoted value", offer: `permessage-deflate; server_max_window_bits="15"`, answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "spaces", offer: "  permessage-deflate ;\tserver_max_window_bits = 15 , ", answer: deflateTerms + "; server_max_window_bits=15"},
	{name: "beside another extension", offer: "x-webkit-deflate-frame, permessage-deflate", answer: deflateTerms},
	{name: "another extension", offer: "x-webkit-deflate-frame"},
	{name: "unknown parameter", offer: "permessage-deflate; fast"},
	{name: "parameter twice", offer: "permessage-deflate; client_max_window_bits; client_max_window_bits"},
	{name: "flag twice", offer: "permessage-deflate; server_no_context_takeover; server_no_context_takeover"},
	{name: "flag with a value", offer: "permessage-deflate; server_no_context_takeover=1"},
	{name: "window without a value", offer: "permessage-deflate; server_max_window_bits"},
	{name: "window of 7", offer: "permessage-deflate; client_max_window_bits=7"},
	{name: "window of 16", offer: "permessage-deflate; client_max_window_bits=16"},
	{name: "window with a zero in front", offer: "permessage-deflate; server_max_window_bits=015"},
	{name: "window that overflows", offer: "permessage-deflate; server_max_window_bits=18446744073709551631"},
	{name: "no name", offer: "; server_no_context_takeover", fails: true},
	{name: "no parameter", offer: "permessage-deflate;", fails: true},
	{name: "no value", offer: "permessage-deflate; server_max_window_bits=", fails: true},
	{name: "value that is no token", offer: `permessage-deflate; a="b c"`, fails: true},
	{name: "unclosed quote", offer: `permessage-deflate; a="b`, fails: true},
	{name: "name with a value", offer: "permessage-deflate=1", fails: true},
}

func TestOffersAreAcceptedOnlyOnTermsThatHold(t *testing.T) {
	for _, tt := range offers {
		list, err := appendExtensions(nil, tt.offer)
		if (err != nil) != tt.fails {
			t.Errorf("%s: error %v, want failure %v", tt.name, err, tt.fails)
		}
		if answer, ok := chooseOffer(list); answer != tt.answer || ok != (tt.answer != "") {
			t.Errorf("%s: answer %q, %v, want %q", tt.name, answer, ok, tt.answer)
		}
	}
}

func TestRefusalSaysWhatTheHookWants(t *testing.T) {
	r := &Refusal{Status: 401, Header: http.Header{"Www-Authenticate": {"Bearer"}}, Body: "no token"}
	msg, err := r.Message()
	want := string(rune(Response)) + "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nWww-Authenticate: Bearer\r\n" +
		"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 8\r\n\r\nno token"
	if string(msg) != want || err != nil {
		t.Errorf("message %q, %v, want %q", msg, err, want)
	}
	for _, r := range []*Refusal{{Status: 101}, {Status: 200}, {Status: 600}, {Status: 400, Header: http.Header{"A": {"\n"}}}} {
		if msg, err := r.Message(); err == nil {
			t.Errorf("%v: message %q", r, msg)
		}
	}
}

func TestRefusedSessionThrowsAwayWhatFollows(t *testing.T) {
	s := NewServer(&Config{})
	in := []byte(requestWith("-Upgrade:") + "GET / HTTP/1.1\r\n")
	n, _, ok, err := s.Split(in, false)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	msg, err := (&Refusal{Status: 426}).Message()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(nil, msg); err != nil {
		t.Fatal(err)
	}
	if n, _, ok, err := s.Split(in[n:], false); n == 0 || ok || err != nil {
		t.Errorf("split %d, %v, %v", n, ok, err)
	}
	if _, err := s.Append(nil, []byte("\x01hello")); !errors.Is(err, ErrNotOpen) {
		t.Errorf("error %v, want ErrNotOpen", err)
	}
	if _, err := s.Append(nil, msg); err == nil {
		t.Error("a second answer was sent")
	}
}

func TestFramesBeforeTheAnswerAreSplit(t *testing.T) {
	s := NewServer(&Config{})
	in := append([]byte(requestWith()), encode([]frame{text("early")}, true)...)
	n, _, _, err := s.Split(in, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, msg, ok, err := s.Split(in[n:], false); string(msg) != "\x01early" || !ok || err != nil {
		t.Errorf("message %q, %v, %v", msg, ok, err)
	}
	if _, err := s.Append(nil, []byte("\x01hello")); !errors.Is(err, ErrNotOpen) {
		t.Errorf("error %v, want ErrNotOpen", err)
	}
}

func TestRequestIsWhatTheOptionsSay(t *testing.T) {
	for _, tt := range []struct {
		name    string
		address string
		opts    RequestOptions
		has     []string
		fails   bool
	}{
		{name: "plain", address: "ws://example.com", has: []string{"GET / HTTP/1.1\r\nHost: example.com\r\n"}},
		{name: "query and port", address: "wss://[::1]:8443/a%20b?c=d", has: []string{"GET /a%20b?c=d HTTP/1.1\r\nHost: [::1]:8443\r\n"}},
		{name: "user", address: "ws://u:p@a/", has: []string{"\r\nHost: a\r\n", "\r\nAuthorization: Basic dTpw\r\n"}},
		{name: "everything", address: "http://a/", opts: RequestOptions{Subprotocols: []string{"x", "y"}, Header: http.Header{"Origin": {"http://a"}}, Deflate: true},
			has: []string{"\r\nSec-WebSocket-Protocol: x, y\r\n", "\r\nOrigin: http://a\r\n", "\r\n" + testExtension}},
		{name: "other scheme", address: "ftp://a/", fails: true},
		{name: "no host", address: "ws:///a", fails: true},
		{name: "fragment", address: "ws://a/#b", fails: true},
		{name: "no URL", address: "ws://a b/", fails: true},
		{name: "protocol twice", address: "ws://a", opts: RequestOptions{Subprotocols: []string{"x", "x"}}, fails: true},
		{name: "protocol that is no token", address: "ws://a", opts: RequestOptions{Subprotocols: []string{"x y"}}, fails: true},
		{name: "host in the header", address: "ws://a", opts: RequestOptions{Header: http.Header{"Host": {"b"}}}, fails: true},
		{name: "line end in the header", address: "ws://a", opts: RequestOptions{Header: http.Header{"X": {"b\nc"}}}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg, err := NewRequest(tt.address, &tt.opts)
			if (err != nil) != tt.fails {
				t.Fatalf("error %v, want failure %v", err, tt.fails)
			}
			if err != nil {
				return
			}
			for _, has := range tt.has {
				if !strings.Contains(string(msg), has) {
					t.Errorf("request %q, want %q in it", msg, has)
				}
			}
			if _, err := ParseRequest(msg[1:]); err != nil {
				t.Error(err)
			}
			other, err := NewRequest(tt.address, &tt.opts)
			if err != nil || bytes.Equal(msg, other) {
				t.Errorf("two requests have one key, or %v", err)
			}
		})
	}
}

var responses = []struct {
	name   string
	asked  []string // more of the request
	head   string
	status int // of the Unaccepted
	fails  bool
}{
	{name: "good", head: responseWith()},
	{name: "no reason", head: responseWith("HTTP/1.1 101")},
	{name: "case", head: responseWith("Upgrade: WebSocket", "Connection: a, upgrade")},
	{name: "protocol", asked: []string{"+Sec-WebSocket-Protocol: a, b"}, head: responseWith("+Sec-WebSocket-Protocol: b")},
	{name: "no protocol", asked: []string{"+Sec-WebSocket-Protocol: a, b"}, head: responseWith()},
	{name: "deflate", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith("+" + testExtension[:len(testExtension)-2])},
	{name: "deflate declined", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith()},
	{name: "deflate with a smaller window", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith("+Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; server_max_window_bits=9")},
	{name: "deflate with takeover", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith("+Sec-WebSocket-Extensions: permessage-deflate"), status: 101, fails: true},
	{name: "deflate with a window for us", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith("+" + testExtension[:len(testExtension)-2] + "; client_max_window_bits=9"), status: 101, fails: true},
	{name: "deflate twice", asked: []string{"+" + testExtension[:len(testExtension)-2]}, head: responseWith("+"+testExtension[:len(testExtension)-2], "+"+testExtension[:len(testExtension)-2]), status: 101, fails: true},
	{name: "deflate without an offer", head: responseWith("+" + testExtension[:len(testExtension)-2]), status: 101, fails: true},
	{name: "protocol without an offer", head: responseWith("+Sec-WebSocket-Protocol: b"), status: 101, fails: true},
	{name: "empty protocol", head: responseWith("+Sec-WebSocket-Protocol: "), status: 101, fails: true},
	{name: "other protocol", asked: []string{"+Sec-WebSocket-Protocol: a"}, head: responseWith("+Sec-WebSocket-Protocol: b"), status: 101, fails: true},
	{name: "two protocols", asked: []string{"+Sec-WebSocket-Protocol: a"}, head: responseWith("+Sec-WebSocket-Protocol: a", "+Sec-WebSocket-Protocol: a"), fails: true},
	{name: "wrong proof", head: responseWith("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOp="), status: 101, fails: true},
	{name: "no proof", head: responseWith("-Sec-WebSocket-Accept:"), status: 101, fails: true},
	{name: "no upgrade", head: responseWith("-Upgrade:"), status: 101, fails: true},
	{name: "no connection", head: responseWith("-Connection:"), status: 101, fails: true},
	{name: "HTTP/1.0", head: responseWith("HTTP/1.0 101 a"), status: 101, fails: true},
	{name: "refused", head: responseWith("HTTP/1.1 403 Forbidden"), status: 403},
	{name: "moved", head: responseWith("HTTP/1.0 301 Moved"), status: 301},
	{name: "no HTTP", head: "SSH-2.0-OpenSSH\r\n\r\n", fails: true},
	{name: "status that is no number", head: responseWith("HTTP/1.1 1o1 a"), fails: true},
	{name: "bare LF", head: "HTTP/1.1 101 a\n", fails: true},
}

func TestOnlyTheResponseToTheRequestIsAccepted(t *testing.T) {
	for _, tt := range responses {
		for _, moving := range []bool{false, true} {
			e := endpoint{s: NewClient(&Config{})}
			if _, err := e.s.Append(nil, append([]byte{byte(Request)}, requestWith(tt.asked...)...)); err != nil {
				t.Fatal(err)
			}
			if n := e.s.Buffered(); n != len(requestWith(tt.asked...)) {
				t.Errorf("%s: buffered %d", tt.name, n)
			}
			if moving {
				for _, c := range []byte(tt.head) {
					e.feed([]byte{c})
					e.move(t)
				}
			} else {
				e.feed([]byte(tt.head))
			}
			failed, ok := errors.AsType[*Unaccepted](e.err)
			switch {
			case !tt.fails && tt.status == 0:
				if e.err != nil || e.s.Buffered() != 0 {
					t.Errorf("%s: %v", tt.name, e.err)
				}
				e.send([]byte("\x01hello"))
				if got := decode(t, e.out, true); !slices.Equal(got, []string{"text hello"}) {
					t.Errorf("%s: sent %q", tt.name, got)
				}
			case !ok || failed.Status != tt.status || (failed.Err != nil) != tt.fails || tt.status != 0 && string(failed.Head) != tt.head:
				t.Errorf("%s: %v, want status %d, failure %v", tt.name, e.err, tt.status, tt.fails)
			}
		}
	}
}

func TestClientTakesNothingBeforeItsRequest(t *testing.T) {
	if _, _, ok, err := NewClient(&Config{}).Split([]byte("H"), false); ok || err == nil {
		t.Errorf("split %v, %v", ok, err)
	}
}

func FuzzRequest(f *testing.F) {
	for _, tt := range requests {
		f.Add([]byte(tt.head))
	}
	for _, tt := range offers {
		f.Add([]byte(requestWith("+Sec-WebSocket-Extensions: " + tt.offer)))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		r, err := ParseRequest(head)
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Fatalf("error %v is no *Refusal", err)
			}
			return
		}
		// Whatever this package takes, net/http reads as the same request.
		h, err := r.HTTP()
		if err != nil {
			return
		}
		if h.Method != "GET" || h.RequestURI != r.Target || h.ContentLength != 0 || h.Header.Get("Origin") != r.Origin || h.Header.Get("Sec-WebSocket-Key") != r.key {
			t.Errorf("request %+v, want %+v", h, r)
		}
		if h.URL.Host == "" && h.Host != r.Host {
			t.Errorf("host %q, want %q", h.Host, r.Host)
		}
		msg, subprotocol, deflate, err := Accept(r, &AcceptOptions{Origins: []string{"*"}, Subprotocols: []string{"a"}, Deflate: true})
		if err != nil {
			t.Fatal(err)
		}
		// A client that has asked so takes the answer, or asked for what
		// this package's own would not.
		status, accepted, _, err := checkResponse(r, string(msg[1:]))
		if status != http.StatusSwitchingProtocols || err != nil && !deflate || err == nil && accepted != subprotocol {
			t.Errorf("status %d, subprotocol %q, %v", status, accepted, err)
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, tt := range responses {
		f.Add([]byte(tt.head))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		s := NewClient(&Config{})
		if _, err := s.Append(nil, append([]byte{byte(Request)}, requestWith("+"+testExtension[:len(testExtension)-2], "+Sec-WebSocket-Protocol: a, b")...)); err != nil {
			t.Fatal(err)
		}
		n, msg, ok, err := s.Split(slices.Clone(head), false)
		switch {
		case err != nil:
			if _, isOne := errors.AsType[*Unaccepted](err); !isOne || ok {
				t.Fatalf("error %v is no *Unaccepted", err)
			}
		case ok && (Kind(msg[0]) != Response || n != len(msg)-1 || !bytes.HasPrefix(head, msg[1:])):
			t.Fatalf("response %q of %d bytes", msg, n)
		case ok && !slices.Contains([]string{"", "a", "b"}, s.Subprotocol()):
			t.Fatalf("subprotocol %q", s.Subprotocol())
		}
	})
}

func TestSessionWhoseRequestIsReadElsewhereWantsTheResponse(t *testing.T) {
	s := NewRequested(&Config{})
	if _, err := s.Append(nil, []byte{byte(Text), 'a'}); !errors.Is(err, ErrNotOpen) {
		t.Errorf("a message before the response: %v", err)
	}
	answer := "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n"
	out, err := s.Append(nil, append([]byte{byte(Response)}, answer...))
	if err != nil || string(out) != answer {
		t.Fatalf("%q, %v", out, err)
	}
	if !s.Open() || s.Subprotocol() != "chat" || !s.Compressed() {
		t.Errorf("open %v, %q, compressed %v", s.Open(), s.Subprotocol(), s.Compressed())
	}
	state, err := s.AppendState(nil)
	if err != nil {
		t.Fatal(err)
	}
	there := NewServer(&Config{})
	if err := there.RestoreState(state); err != nil {
		t.Fatal(err)
	}
	n, m, ok, err := there.Split([]byte("\x81\x82\x00\x00\x00\x00ab"), false)
	if n != 8 || string(m) != "\x01ab" || !ok || err != nil {
		t.Errorf("%d, %q, %v, %v", n, m, ok, err)
	}
}
