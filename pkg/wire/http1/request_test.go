package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// theirs reads the requests of a stream as net/http does.
func theirs(in []byte) (all []*http.Request, bodies []string, err error) {
	r := bufio.NewReaderSize(bytes.NewReader(in), 64<<10)
	for {
		if _, err := r.Peek(1); err != nil {
			return all, bodies, nil
		}
		req, err := http.ReadRequest(r)
		if err != nil {
			return all, bodies, err
		}
		body, err := io.ReadAll(req.Body)
		all, bodies = append(all, req), append(bodies, string(body))
		if err != nil {
			return all, bodies, err
		}
	}
}

// ours reads them by a Parser. The last body may be incomplete.
func ours(t *testing.T, in []byte) (all []*http.Request, bodies []string, complete bool, err error) {
	var p Parser
	var h Head
	l := &Limits{}
	complete = true
	for {
		advance, kind, data, err := p.Next(l, &h, in)
		if err != nil || kind == More {
			return all, bodies, complete, err
		}
		in = in[advance:]
		switch kind {
		case RequestHead:
			r := new(http.Request)
			if err := h.Fill(r, new(url.URL)); err != nil {
				t.Fatalf("head %q was accepted, but Fill says %v", h.Raw, err)
			}
			all, bodies = append(all, r), append(bodies, "")
			complete = !h.HasBody()
		case BodyPart:
			bodies[len(bodies)-1] += string(data)
		case BodyEnd:
			FillTrailer(all[len(all)-1], data)
			complete = true
		case More:
		}
	}
}

// compare checks that net/http finds in a stream what we have found.
func compare(t *testing.T, in []byte) {
	t.Helper()
	got, gotBodies, complete, _ := ours(t, in)
	want, wantBodies, err := theirs(in)
	if len(want) < len(got) {
		t.Fatalf("net/http finds %d requests (%v), we %d", len(want), err, len(got))
	}
	for i, r := range got {
		if i == len(got)-1 && !complete {
			// Theirs has told the head, and what there was of the body.
			if want[i].Trailer = nil; !strings.HasPrefix(wantBodies[i], gotBodies[i]) && !strings.HasPrefix(gotBodies[i], wantBodies[i]) {
				t.Errorf("request %d: body %q, want %q", i, gotBodies[i], wantBodies[i])
			}
			r.Trailer = nil
		} else if gotBodies[i] != wantBodies[i] {
			t.Errorf("request %d: body %q, want %q", i, gotBodies[i], wantBodies[i])
		}
		want[i].Body = nil
		if diff := cmp.Diff(want[i], r, cmpopts.IgnoreUnexported(http.Request{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("request %d (-net/http +ours):\n%s", i, diff)
		}
	}
}

// more are heads whose meaning is less clear than that of the streams'.
var more = []string{
	"GET //a/b HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /? HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /?? HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a:b HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /a%2Fb/(c)! HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET https://[::1]:80?q HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET http://a HTTP/1.0\r\n\r\n",
	"CONNECT [::1]:80 HTTP/1.1\r\nHost: x\r\n\r\n",
	"CONNECT /rpc HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nPRAGMA: no-cache\r\nCache-control: a\r\n\r\n",
	"GET / HTTP/1.1\r\nhost: x\r\nx-a: 1\r\nX-A: 2\r\nx-A:\r\nX_b: 3\r\nx.y: 4\r\nDNT: 1\r\ndnt: 2\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nTrailer: a\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nConnection: a,close\r\nConnection: b\r\n\r\n",
	"GET / HTTP/1.0\r\nConnection: a\r\nConnection: keep-alive\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: a,, b-c\r\nTrailer: d\r\n\r\n1\r\nx\r\n0\r\na: 1\r\na: 2\r\nE: 3\r\n\r\nGET / HTTP/1.1\r\nHost: y\r\n\r\n",
}

func TestRequestIsTheOneThatNetHTTPReads(t *testing.T) {
	for _, in := range more {
		if got, _, _, err := ours(t, []byte(in)); err != nil || len(got) == 0 {
			t.Errorf("%q: %d requests, %v, want it accepted", in, len(got), err)
		}
		compare(t, []byte(in))
	}
	for _, tt := range streams {
		t.Run(tt.name, func(t *testing.T) { compare(t, []byte(tt.in)) })
	}
}

func FuzzRequestIsTheOneThatNetHTTPReads(f *testing.F) {
	for _, in := range more {
		f.Add([]byte(in))
	}
	for _, tt := range streams {
		if len(tt.in) < 1000 {
			f.Add([]byte(tt.in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) { compare(t, in) })
}

func TestRequestKeepsNothingOfTheInput(t *testing.T) {
	in := []byte("POST /path?q HTTP/1.1\r\nHost: host\r\nX: value\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	var p Parser
	var h Head
	if _, _, _, err := p.Next(&Limits{}, &h, in); err != nil {
		t.Fatal(err)
	}
	r := new(http.Request)
	if err := h.Fill(r, new(url.URL)); err != nil {
		t.Fatal(err)
	}
	clear(in)
	got := []string{r.Method, r.RequestURI, r.URL.Path, r.URL.RawQuery, r.Host, r.Header.Get("X"), r.Header.Get("Connection")}
	if diff := cmp.Diff([]string{"POST", "/path?q", "/path", "q", "host", "value", "close"}, got); diff != "" {
		t.Error(diff)
	}
}

var benchHead = []byte("GET /plaintext?id=42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: wrk/4.1.0\r\nAccept: */*\r\n\r\n")

func BenchmarkHead(b *testing.B) {
	var p Parser
	var h Head
	l := &Limits{}
	b.ReportAllocs()
	for b.Loop() {
		if _, kind, _, err := p.Next(l, &h, benchHead); kind != RequestHead {
			b.Fatal(err)
		}
	}
}

func BenchmarkHeadAndRequest(b *testing.B) {
	var p Parser
	var h Head
	l := &Limits{}
	b.ReportAllocs()
	for b.Loop() {
		if _, kind, _, err := p.Next(l, &h, benchHead); kind != RequestHead {
			b.Fatal(err)
		}
		var x struct {
			http.Request
			url.URL
		}
		if err := h.Fill(&x.Request, &x.URL); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadRequest(b *testing.B) {
	var in bytes.Reader
	r := bufio.NewReader(&in)
	b.ReportAllocs()
	for b.Loop() {
		in.Reset(benchHead)
		r.Reset(&in)
		if _, err := http.ReadRequest(r); err != nil {
			b.Fatal(err)
		}
	}
}
