package web

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const host = "Host: example.com\r\n"

// behaviours are what a handler and a request come to, which is to be the same
// with net/http.
var behaviours = []struct {
	name    string
	handler http.HandlerFunc
	request string // two responses if it holds two requests
	methods string // of the requests, "GET" if empty
	ways    []way  // all if empty
	want    string // as told by describe, one line a response; then "end" if the connection ends
}{
	{
		name:    "a small body gets its length and type",
		handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") },
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Length=5 Content-Type=text/plain; charset=utf-8 |hello|\n",
	},
	{
		name:    "nothing written",
		handler: func(w http.ResponseWriter, r *http.Request) {},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Length=0 ||\n",
	},
	{
		name:    "keep-alive is the rule",
		handler: echoPath,
		request: "GET /a HTTP/1.1\r\n" + host + "\r\nGET /b HTTP/1.1\r\n" + host + "\r\n",
		methods: "GET GET",
		want:    "HTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nHTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/b|\n",
	},
	{
		name:    "the client wants the end",
		handler: echoPath,
		request: "GET /a HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n",
		want:    "HTTP/1.1 200 Connection=close Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nend",
	},
	{
		name:    "the handler wants the end",
		handler: func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Connection", "close"); echoPath(w, r) },
		request: "GET /a HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Connection=close Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nend",
	},
	{
		name:    "HTTP/1.0 ends",
		handler: echoPath,
		request: "GET /a HTTP/1.0\r\n\r\n",
		want:    "HTTP/1.0 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nend",
	},
	{
		name:    "HTTP/1.0 that stays",
		handler: echoPath,
		request: "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
		methods: "GET GET",
		want:    "HTTP/1.0 200 Connection=keep-alive Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nHTTP/1.0 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/b|\nend",
	},
	{
		name:    "HTTP/1.0 with a body of unknown length ends",
		handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "a"); flush(w); io.WriteString(w, "b") },
		request: "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		want:    "HTTP/1.0 200 Content-Type=text/plain; charset=utf-8 |ab|\nend",
	},
	{
		name:    "HEAD has the fields and no body",
		handler: echoPath,
		request: "HEAD /a HTTP/1.1\r\n" + host + "\r\nGET /b HTTP/1.1\r\n" + host + "\r\n",
		methods: "HEAD GET",
		want:    "HTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 ||\nHTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/b|\n",
	},
	{
		name:    "HEAD that says its length",
		handler: func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "1000") },
		request: "HEAD /a HTTP/1.1\r\n" + host + "\r\n",
		methods: "HEAD",
		want:    "HTTP/1.1 200 Content-Length=1000 ||\n",
	},
	{
		name: "204 has neither length nor body",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(204)
			if _, err := io.WriteString(w, "hello"); err != http.ErrBodyNotAllowed {
				panic(err)
			}
		},
		request: "GET /a HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 204 ||\n",
	},
	{
		name: "304 has neither type, length nor body",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(304)
		},
		request: "GET /a HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 304 Etag=\"1\" ||\n",
	},
	{
		name: "a flush makes it chunked",
		handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "a")
			flush(w)
			io.WriteString(w, "b")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Type=text/plain; charset=utf-8 chunked |ab|\n",
	},
	{
		name:    "a large body is chunked",
		handler: func(w http.ResponseWriter, r *http.Request) { w.Write(bytes.Repeat([]byte("x"), 10000)) },
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Type=text/plain; charset=utf-8 chunked |" + strings.Repeat("x", 10000) + "|\n",
	},
	{
		name: "a declared length is kept",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "3")
			if n, err := io.WriteString(w, "abcdef"); n != 0 || err != http.ErrContentLength {
				panic(fmt.Sprint(n, err))
			}
			io.WriteString(w, "abc")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		ways:    ours, // net/http counts what it has refused
		want:    "HTTP/1.1 200 Content-Length=3 Content-Type=text/plain; charset=utf-8 |abc|\n",
	},
	{
		name: "fewer bytes than declared end the connection",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "abc")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Length=5 Content-Type=text/plain; charset=utf-8 |abc| unexpected EOF\nend",
	},
	{
		name: "fields are those of WriteHeader",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-A", "1\r\nX-B: 2")
			w.Header()["Date"] = nil
			w.WriteHeader(404)
			w.Header().Set("X-A", "3")
			io.WriteString(w, "no")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 404 Content-Length=2 Content-Type=text/plain; charset=utf-8 X-A=1  X-B: 2 no-date |no|\n",
	},
	{
		name: "trailers",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "abc")
			w.Header().Set("X-Sum", "6")
			w.Header().Set(http.TrailerPrefix+"X-More", "7")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Type=text/plain; charset=utf-8 chunked |abc| {X-More=7 X-Sum=6}\n",
	},
	{
		name: "a body that is encoded has no type of its own",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "<html>")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Encoding=gzip Content-Length=6 |<html>|\n",
	},
	{
		name:    "a body of known length",
		handler: echoBody,
		request: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhelloPOST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\nyo",
		methods: "POST POST",
		want:    "HTTP/1.1 200 Content-Length=5 Content-Type=text/plain; charset=utf-8 |hello|\nHTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |yo|\n",
	},
	{
		name: "a chunked body with a trailer",
		handler: func(w http.ResponseWriter, r *http.Request) {
			echoBody(w, r)
			fmt.Fprint(w, r.Trailer, r.TransferEncoding)
		},
		request: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n1;ext\r\n!\r\n0\r\nX-Sum: 1\r\n\r\nPOST / HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\nyo",
		methods: "POST POST",
		want:    "HTTP/1.1 200 Content-Length=30 Content-Type=text/plain; charset=utf-8 |hello!map[X-Sum:[1]] [chunked]|\nHTTP/1.1 200 Content-Length=10 Content-Type=text/plain; charset=utf-8 |yomap[] []|\n",
	},
	{
		name:    "a body that the handler leaves is skipped",
		handler: echoPath,
		request: "POST /a HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\n" + host + "\r\n",
		methods: "POST GET",
		want:    "HTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nHTTP/1.1 200 Content-Length=2 Content-Type=text/plain; charset=utf-8 |/b|\n",
	},
	{
		name: "what a request has",
		handler: func(w http.ResponseWriter, r *http.Request) {
			r.ParseForm()
			fmt.Fprintln(w, r.Method, r.URL, r.RequestURI, r.Host, r.Proto, r.ContentLength, r.Form, r.Header.Get("x-a"), r.Header["Host"], r.Close, r.TLS == nil, r.Context().Err())
		},
		request: "POST /p%20q?a=1&b=2 HTTP/1.1\r\nHost: h:1\r\nX-A: v\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\nc=3",
		methods: "POST",
		want:    "HTTP/1.1 200 Content-Length=95 Content-Type=text/plain; charset=utf-8 |POST /p%20q?a=1&b=2 /p%20q?a=1&b=2 h:1 HTTP/1.1 3 map[a:[1] b:[2] c:[3]] v [] false true <nil>\n|\n",
	},
	{
		name: "a body beyond the handler's own limit",
		handler: func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, 3)
			if _, err := io.ReadAll(r.Body); err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			}
		},
		request: "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello",
		methods: "POST",
		ways:    ours, // net/http closes the connection, too: it knows its own writer
		want:    "HTTP/1.1 413 Content-Length=29 Content-Type=text/plain; charset=utf-8 X-Content-Type-Options=nosniff |http: request body too large\n|\n",
	},
	{
		name: "a response before the response",
		handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(103)
			w.WriteHeader(103)
			io.WriteString(w, "a")
		},
		request: "GET / HTTP/1.1\r\n" + host + "\r\n",
		methods: "GET GET GET",
		want:    "HTTP/1.1 103 Link=</a.css> no-date ||\nHTTP/1.1 103 Link=</a.css> no-date ||\nHTTP/1.1 200 Content-Length=1 Content-Type=text/plain; charset=utf-8 Link=</a.css> |a|\n",
	},
	{
		name:    "a part of a file",
		handler: serveContent,
		request: "GET / HTTP/1.1\r\n" + host + "Range: bytes=2-4\r\n\r\nGET / HTTP/1.1\r\n" + host + "Range: bytes=100-\r\n\r\n",
		methods: "GET GET",
		want: "HTTP/1.1 206 Accept-Ranges=bytes Content-Length=3 Content-Range=bytes 2-4/10 Content-Type=text/plain; charset=utf-8 Last-Modified=Thu, 01 Jan 1970 00:00:01 GMT |234|\n" +
			"HTTP/1.1 416 Content-Length=33 Content-Range=bytes */10 Content-Type=text/plain; charset=utf-8 X-Content-Type-Options=nosniff |invalid range: failed to overlap\n|\n",
	},
	{
		name:    "a file that the client has",
		handler: serveContent,
		request: "GET / HTTP/1.1\r\n" + host + "If-Modified-Since: Thu, 01 Jan 1970 00:00:01 GMT\r\n\r\n",
		want:    "HTTP/1.1 304 Last-Modified=Thu, 01 Jan 1970 00:00:01 GMT ||\n",
	},
	{
		name:    "an expectation that is none",
		handler: echoPath,
		request: "POST / HTTP/1.1\r\n" + host + "Expect: wonders\r\nContent-Length: 1\r\n\r\n",
		ways:    ours,
		want:    "HTTP/1.1 417 Connection=close Content-Length=23 Content-Type=text/plain; charset=utf-8 |417 Expectation Failed\n|\nend",
	},
	{
		name:    "an expectation that the handler does not meet",
		handler: echoPath,
		request: "POST /a HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n",
		ways:    []way{pooled}, // net/http waits for the body
		want:    "HTTP/1.1 200 Connection=close Content-Length=2 Content-Type=text/plain; charset=utf-8 |/a|\nend",
	},
	{
		name:    "a target in absolute form",
		handler: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, " ", r.URL.Path) },
		request: "GET http://other/a HTTP/1.1\r\n" + host + "\r\n",
		want:    "HTTP/1.1 200 Content-Length=8 Content-Type=text/plain; charset=utf-8 |other /a|\n",
	},
}

func echoPath(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }

func echoBody(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	w.Write(b)
}

func flush(w http.ResponseWriter) {
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
}

func serveContent(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "a.txt", time.Unix(1, 0), strings.NewReader("0123456789"))
}

// describe tells what a response is like.
func describe(a answer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d ", a.Proto, a.StatusCode)
	if a.Close && a.ProtoAtLeast(1, 1) {
		a.Header.Set("Connection", "close") // net/http takes it out of the header
	}
	date := a.Header.Get("Date")
	a.Header.Del("Date")
	var fields bytes.Buffer
	a.Header.Write(&fields)
	for line := range strings.Lines(fields.String()) {
		b.WriteString(strings.Replace(strings.TrimSpace(line), ": ", "=", 1) + " ")
	}
	if date == "" {
		b.WriteString("no-date ")
	}
	if len(a.TransferEncoding) > 0 {
		b.WriteString(strings.Join(a.TransferEncoding, ",") + " ")
	}
	fmt.Fprintf(&b, "|%s|", a.body)
	if a.err != nil {
		fmt.Fprintf(&b, " %v", a.err)
	}
	if len(a.Trailer) > 0 {
		var trailer bytes.Buffer
		a.Trailer.Write(&trailer)
		var list []string
		for line := range strings.Lines(trailer.String()) {
			list = append(list, strings.Replace(strings.TrimSpace(line), ": ", "=", 1))
		}
		fmt.Fprintf(&b, " {%s}", strings.Join(list, " "))
	}
	return b.String() + "\n"
}

func TestHandlersBehaveAsWithNetHTTP(t *testing.T) {
	for _, tt := range behaviours {
		ways := tt.ways
		if ways == nil {
			ways = all
		}
		for _, how := range ways {
			t.Run(tt.name+"/"+string(how), func(t *testing.T) {
				t.Parallel()
				c := dial(t, serve(t, how, tt.handler))
				c.send(tt.request)
				methods := strings.Fields(tt.methods)
				if len(methods) == 0 {
					methods = []string{"GET"}
				}
				var got strings.Builder
				for _, m := range methods {
					got.WriteString(describe(c.response(m)))
				}
				if strings.HasSuffix(tt.want, "end") {
					c.end()
					got.WriteString("end")
				}
				if got.String() != tt.want {
					t.Errorf("got\n%.1000s\nwant\n%.1000s", got.String(), tt.want)
				}
			})
		}
	}
}

func TestRequestsAreTheSameByteByByte(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, echoBody))
		request := "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n"
		for i := range request {
			c.send(request[i : i+1])
		}
		if a := c.response("POST"); a.body != "hello" {
			t.Errorf("got %q", a.body)
		}
	})
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	each(t, all, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, echoPath))
		const n = 1000 // far more than are read ahead
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "GET /%d HTTP/1.1\r\n%s\r\n", i, host)
		}
		go io.WriteString(c, b.String())
		for i := range n {
			if a, want := c.response("GET"), "/"+strconv.Itoa(i); a.body != want {
				t.Fatalf("answer %d: %q, want %q", i, a.body, want)
			}
		}
	})
}

func TestBrokenRequestIsAnsweredBehindThoseBeforeIt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request string
		status  int
	}{
		{name: "malformed", request: "GET / HTTP/1.1\r\n\r\n", status: 400},
		{name: "both lengths", request: "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", status: 400},
		{name: "bare line feeds", request: "GET / HTTP/1.1\nHost: a\n\n", status: 400},
		{name: "TLS", request: "\x16\x03\x01\x02\x00\x01", status: 400},
		{name: "a long target", request: "GET /" + strings.Repeat("x", 20000), status: 414},
		{name: "a long head", request: "GET / HTTP/1.1\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 80), status: 431},
		{name: "many fields", request: "GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 200), status: 431},
		{name: "another version", request: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status: 505},
		{name: "another coding", request: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", status: 501},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, ours, func(t *testing.T, how way) {
				c := dial(t, serve(t, how, echoPath))
				c.send("GET /1 HTTP/1.1\r\n" + host + "\r\nGET /2 HTTP/1.1\r\n" + host + "\r\n" + tt.request)
				for _, want := range []string{"/1", "/2"} {
					if a := c.response("GET"); a.body != want || a.Close {
						t.Errorf("got %q, close %v, want %q", a.body, a.Close, want)
					}
				}
				if a := c.response("GET"); a.StatusCode != tt.status || !a.Close || a.err != nil {
					t.Errorf("got status %d, close %v, %v, want %d", a.StatusCode, a.Close, a.err, tt.status)
				}
				c.end()
			})
		})
	}
}

func TestExpectedContinueIsSentWhenTheBodyIsWanted(t *testing.T) {
	each(t, all, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, echoBody))
		for range 2 {
			c.send("POST / HTTP/1.1\r\n" + host + "Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
			c.expect("HTTP/1.1 100 Continue\r\n\r\n")
			c.send("hello")
			if a := c.response("POST"); a.body != "hello" || a.Close {
				t.Errorf("got %q, close %v", a.body, a.Close)
			}
		}
	})
}

func TestBodyThatBreaksEndsTheConnection(t *testing.T) {
	each(t, ours, func(t *testing.T, how way) {
		errs := make(chan error, 1)
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			errs <- err
			w.WriteHeader(422)
		}))
		c.send("POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n")
		want := 400
		if how == pooled {
			want = 422
			if err := receive(t, errs); err == nil || !strings.Contains(err.Error(), "chunk is malformed") {
				t.Errorf("the handler read %v", err)
			}
		}
		if a := c.response("POST"); a.StatusCode != want || !a.Close {
			t.Errorf("got %d, close %v, want %d", a.StatusCode, a.Close, want)
		}
		c.end()
	})
}

func TestContinueIsNotSentBehindTheHeadOfTheAnswer(t *testing.T) {
	each(t, []way{pooled, netHTTP}, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			io.WriteString(w, "first ")
			flush(w)
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(b), err)
		}))
		c.send("POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		r, err := http.ReadResponse(c.r, nil)
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("got %v, %v", r, err)
		}
		c.send("hello")
		b, err := io.ReadAll(r.Body)
		if string(b) != "first hello<nil>" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

func TestOptionsOfTheServerAreAnsweredWithoutTheHandler(t *testing.T) {
	each(t, all, func(t *testing.T, how way) {
		c := dial(t, serve(t, how, http.NewServeMux().ServeHTTP))
		for range 2 {
			if a := c.ask("OPTIONS * HTTP/1.1\r\n" + host + "\r\n"); a.StatusCode != 200 || a.body != "" || a.Close {
				t.Errorf("got %d %q, close %v", a.StatusCode, a.body, a.Close)
			}
		}
	})
}
