package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)

func TestFieldNeverAddsALine(t *testing.T) {
	for _, tt := range []struct{ name, field, value, want string }{
		{name: "plain", field: "X-A", value: "b", want: "X-A: b\r\n"},
		{name: "a line more", field: "X-A", value: "b\r\nSet-Cookie: c", want: "X-A: b  Set-Cookie: c\r\n"},
		{name: "white space around", field: "X-A", value: "\r\n b \n", want: "X-A: b\r\n"},
		{name: "empty", field: "X-A", want: "X-A: \r\n"},
		{name: "a name that is none", field: "X A", value: "b"},
		{name: "a name with a line", field: "X-A: b\r\nC", value: "d"},
		{name: "no name", value: "d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(AppendField(nil, tt.field, tt.value)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStatusLineIsTheOneOfNetHTTP(t *testing.T) {
	for _, tt := range []struct {
		minor, status int
		want          string
	}{
		{1, 200, "HTTP/1.1 200 OK\r\n"},
		{0, 200, "HTTP/1.0 200 OK\r\n"},
		{1, 404, "HTTP/1.1 404 Not Found\r\n"},
		{1, 799, "HTTP/1.1 799 status code 799\r\n"},
	} {
		if got := string(AppendStatusLine(nil, tt.minor, tt.status)); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestDateIsWrittenOutOnceASecond(t *testing.T) {
	if got, want := string(AppendDate(nil, now)), "Date: Sun, 22 Nov 2026 01:02:03 GMT\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := string(AppendDate(nil, now.Add(time.Second))), "Date: Sun, 22 Nov 2026 01:02:04 GMT\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	room := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(10, func() { AppendDate(room, now) }); n > 0.5 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestFieldsAreSorted(t *testing.T) {
	h := http.Header{"B": {"1", "2"}, "A": {"3"}, "Skip": {"4"}}
	got := string(AppendFields(nil, h, func(name string) bool { return name != "Skip" }))
	if want := "A: 3\r\nB: 1\r\nB: 2\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFramingFollowsStatusMethodAndVersion(t *testing.T) {
	for _, tt := range []struct {
		name          string
		minor, status int
		head          bool
		length        int64
		want          Framing
	}{
		{name: "known length", minor: 1, status: 200, length: 5, want: Length},
		{name: "no length", minor: 1, status: 200, length: -1, want: Chunked},
		{name: "no length in HTTP/1.0", minor: 0, status: 200, length: -1, want: ToClose},
		{name: "known length in HTTP/1.0", minor: 0, status: 200, length: 0, want: Length},
		{name: "HEAD", minor: 1, status: 200, head: true, length: 5, want: NoBody},
		{name: "204", minor: 1, status: 204, length: -1, want: NoBody},
		{name: "304", minor: 1, status: 304, length: 5, want: NoBody},
		{name: "101", minor: 1, status: 101, length: -1, want: NoBody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Frame(tt.minor, tt.status, tt.head, tt.length); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestChunksAreReadByNetHTTP(t *testing.T) {
	b := []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n")
	b = AppendChunk(b, []byte("hello, "))
	b = AppendChunk(b, nil)
	b = AppendChunk(b, bytes.Repeat([]byte("x"), 300))
	b = AppendLastChunk(b, http.Header{"X": {"1"}})
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if want := "hello, " + strings.Repeat("x", 300); err != nil || string(body) != want {
		t.Errorf("got %q, %v, want %q", body, err, want)
	}
	if got := r.Trailer.Get("X"); got != "1" {
		t.Errorf("trailer %q, want 1", got)
	}
}

func TestErrorIsAWholeResponse(t *testing.T) {
	b := AppendError(nil, 431, "head is too long", now)
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if want := "431 Request Header Fields Too Large: head is too long\n"; err != nil || string(body) != want || !r.Close || r.StatusCode != 431 {
		t.Errorf("got %q, %v, close %v, status %d, want %q", body, err, r.Close, r.StatusCode, want)
	}
}
