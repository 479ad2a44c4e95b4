package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// talk is a handshake with a proxy whose answers are known.
type talk struct {
	name   string
	socks  bool
	host   string // default example.com
	as     Credentials
	answer string
	sent   string // all that the client says; empty: not looked at
	rest   string // what is left for the connection
	done   bool
	err    error
	says   string // in the error
}

const (
	ip4Reply = "\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34"
	okHead   = "HTTP/1.1 200 Connection established\r\n\r\n"
)

var (
	someone = Credentials{User: "me", Password: "secret"}
	zero16  = strings.Repeat("\x00", 16)
)

var talks = []talk{
	{name: "SOCKS5 to a name", socks: true, answer: "\x05\x00" + ip4Reply, done: true,
		sent: "\x05\x01\x00" + "\x05\x01\x00\x03\x0bexample.com\x01\xbb"},
	{name: "SOCKS5 to an address", socks: true, host: "192.0.2.1", answer: "\x05\x00" + ip4Reply, done: true,
		sent: "\x05\x01\x00" + "\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"},
	{name: "SOCKS5 to an address of IPv6", socks: true, host: "::1", answer: "\x05\x00\x05\x00\x00\x04" + zero16 + "\x00\x00", done: true,
		sent: "\x05\x01\x00" + "\x05\x01\x00\x04" + zero16[:15] + "\x01\x01\xbb"},
	{name: "SOCKS5 with credentials", socks: true, as: someone, answer: "\x05\x02\x01\x00" + ip4Reply, done: true,
		sent: "\x05\x02\x00\x02" + "\x01\x02me\x06secret" + "\x05\x01\x00\x03\x0bexample.com\x01\xbb"},
	{name: "SOCKS5 that does not want the credentials", socks: true, as: someone, answer: "\x05\x00" + ip4Reply, done: true,
		sent: "\x05\x02\x00\x02" + "\x05\x01\x00\x03\x0bexample.com\x01\xbb"},
	{name: "SOCKS5 with a name in the reply, and the far end's first words", socks: true, answer: "\x05\x00\x05\x00\x00\x03\x02ab\x00\x00220 hello", rest: "220 hello", done: true},
	{name: "SOCKS5 with an empty name in the reply", socks: true, answer: "\x05\x00\x05\x00\x00\x03\x00\x00\x00x", rest: "x", done: true},
	{name: "SOCKS5 of which half has come", socks: true, answer: "\x05\x00\x05\x00\x00"},
	{name: "SOCKS4", socks: true, answer: "\x00\x5a", err: ErrMalformed, says: "version 0"},
	{name: "HTTP where SOCKS5 was expected", socks: true, answer: "HTTP/1.1 400 Bad Request\r\n\r\n", err: ErrMalformed, says: "version 72"},
	{name: "SOCKS5 that wants credentials", socks: true, answer: "\x05\xff", err: ErrCredentials},
	{name: "SOCKS5 that chooses what was not offered", socks: true, answer: "\x05\x02", err: ErrMalformed, says: "method 2"},
	{name: "SOCKS5 that chooses what nobody has", socks: true, as: someone, answer: "\x05\x01", err: ErrMalformed, says: "method 1"},
	{name: "SOCKS5 that does not know the user", socks: true, as: someone, answer: "\x05\x02\x01\x01", err: ErrCredentials, says: `user "me"`},
	{name: "SOCKS5 with the wrong version of RFC 1929", socks: true, as: someone, answer: "\x05\x02\x05\x00", err: ErrMalformed, says: "version 5, want 1"},
	{name: "SOCKS5 that is refused by the far end", socks: true, answer: "\x05\x00\x05\x05", err: &Refused{}, says: "refused with 5: connection refused"},
	{name: "SOCKS5 that forbids it", socks: true, answer: "\x05\x00\x05\x02\x00\x01", err: &Refused{}, says: "with 2: not allowed"},
	{name: "SOCKS5 with a code of its own", socks: true, answer: "\x05\x00\x05\xc8", err: &Refused{}, says: "with 200"},
	{name: "SOCKS5 with an address of no kind", socks: true, answer: "\x05\x00\x05\x00\x00\x02", err: ErrMalformed, says: "type 2"},

	{name: "HTTP to a name", answer: okHead + "220 hello", rest: "220 hello", done: true,
		sent: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"},
	{name: "HTTP to an address of IPv6", host: "2001:db8::1", answer: "HTTP/1.0 200\r\n\r\n", done: true,
		sent: "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"},
	{name: "HTTP with credentials", as: someone, answer: okHead, done: true,
		sent: "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: Basic " +
			base64.StdEncoding.EncodeToString([]byte("me:secret")) + "\r\n\r\n"},
	{name: "HTTP with an interim answer", answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 \r\nContent-Length: 5\r\n\r\nabc", rest: "abc", done: true},
	{name: "HTTP of which half has come", answer: "HTTP/1.1 200 OK\r\nA: b\r\n"},
	{name: "HTTP that wants credentials", answer: "HTTP/1.1 407 Who Are You\r\n\r\n", err: ErrCredentials, says: `refused with 407: "Who Are You"`},
	{name: "HTTP that forbids it", answer: "HTTP/1.1 403 \x80\xff\r\nA: b\r\n\r\n", err: &Refused{}, says: `with 403: "\x80\xff"`},
	{name: "HTTP that redirects", answer: "HTTP/1.1 302\r\n\r\n", err: &Refused{}, says: "with 302: Found"},
	{name: "SOCKS5 where HTTP was expected", answer: "\x05", err: ErrMalformed, says: "begins with"},
	{name: "SSH where HTTP was expected", answer: "HTTP/2", err: ErrMalformed, says: "begins with"},
	{name: "HTTP 1.2", answer: "HTTP/1.2 200 OK\r\n", err: ErrMalformed, says: "status line"},
	{name: "HTTP with a status of two digits", answer: "HTTP/1.1 20 OK\r\n", err: ErrMalformed, says: "status line"},
	{name: "HTTP with a status of four digits", answer: "HTTP/1.1 2000\r\n", err: ErrMalformed, says: "status line"},
	{name: "HTTP with a status that is none", answer: "HTTP/1.1 600 x\r\n", err: ErrMalformed, says: "status line"},
	{name: "HTTP with 101", answer: "HTTP/1.1 101 x\r\n\r\n", err: ErrMalformed, says: "101"},
	{name: "HTTP with bare newlines", answer: "HTTP/1.1 200 OK\n\n", err: ErrMalformed, says: "carriage return"},
	{name: "HTTP with a carriage return inside", answer: "HTTP/1.1 200 O\rK", err: ErrMalformed, says: "carriage return inside"},
	{name: "HTTP with a NUL", answer: "HTTP/1.1 200 \x00", err: ErrMalformed, says: "control character"},
	{name: "HTTP with a header that is none", answer: "HTTP/1.1 200 OK\r\nwhat is this\r\n", err: ErrMalformed, says: "header"},
	{name: "HTTP with a folded header", answer: "HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\n", err: ErrMalformed, says: "header"},
	{name: "HTTP without an end", answer: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", MaxHead), err: ErrMalformed, says: "more than 8192 bytes"},
	{name: "HTTP with interim answers without an end", answer: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", MaxHead/20), err: ErrMalformed, says: "more than 8192 bytes"},
}

func (tt talk) start(t testing.TB) Handshake {
	host := tt.host
	if host == "" {
		host = "example.com"
	}
	var h Handshake
	var err error
	if tt.socks {
		h, err = NewSOCKS5(host, 443, tt.as)
	} else {
		h, err = NewConnect(host, 443, tt.as)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// run gives a handshake the answer in pieces of a size.
func run(h Handshake, answer []byte, size int) (sent, rest []byte, done bool, err error) {
	sent = h.Start(nil)
	for len(answer) > 0 && !done && err == nil {
		piece := answer[:min(size, len(answer))]
		var used int
		used, sent, done, err = h.Next(sent, piece)
		if used < 0 || used > len(piece) || used < len(piece) && !done && err == nil {
			return sent, nil, done, fmt.Errorf("used %d of %d bytes", used, len(piece))
		}
		answer = answer[used:]
	}
	return sent, answer, done, err
}

func TestHandshakeIsTheSameHoweverTheAnswerIsCut(t *testing.T) {
	for _, tt := range talks {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, 1 << 20} {
				sent, rest, done, err := run(tt.start(t), []byte(tt.answer), size)
				if tt.sent != "" && string(sent) != tt.sent {
					t.Errorf("pieces of %d: sent %q, want %q", size, sent, tt.sent)
				}
				if done != tt.done || done && string(rest) != tt.rest {
					t.Errorf("pieces of %d: done %v, left %q, want %v, %q", size, done, rest, tt.done, tt.rest)
				}
				if _, refusal := tt.err.(*Refused); refusal {
					if _, ok := errors.AsType[*Refused](err); !ok || errors.Is(err, ErrCredentials) {
						t.Errorf("pieces of %d: error %v, want a refusal", size, err)
					}
				} else if !errors.Is(err, tt.err) {
					t.Errorf("pieces of %d: error %v, want %v", size, err, tt.err)
				}
				if err != nil && (!strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "secret")) {
					t.Errorf("pieces of %d: error %q, want one with %q", size, err, tt.says)
				}
			}
		})
	}
}

func TestWhatCannotBeAskedForIsAnError(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, tt := range []struct {
		name string
		host string
		port int
		as   Credentials
		http bool // only there
	}{
		{name: "no host", port: 1},
		{name: "long host", host: long, port: 1},
		{name: "line in the host", host: "a\r\nb", port: 1},
		{name: "space in the host", host: "a b", port: 1},
		{name: "name that is not ASCII", host: "münchen.example", port: 1},
		{name: "zone", host: "fe80::1%eth0", port: 1},
		{name: "port 0", host: "a"},
		{name: "port beyond", host: "a", port: 65536},
		{name: "long user", host: "a", port: 1, as: Credentials{User: long}},
		{name: "long password", host: "a", port: 1, as: Credentials{User: "a", Password: long}},
		{name: "password alone", host: "a", port: 1, as: Credentials{Password: "a"}},
		{name: "colon in the user", host: "a", port: 1, as: Credentials{User: "a:b"}, http: true},
		{name: "line in the password", host: "a", port: 1, as: Credentials{User: "a", Password: "a\n"}, http: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewConnect(tt.host, tt.port, tt.as); !errors.Is(err, ErrTarget) {
				t.Errorf("HTTP: %v", err)
			}
			if _, err := NewSOCKS5(tt.host, tt.port, tt.as); errors.Is(err, ErrTarget) == tt.http {
				t.Errorf("SOCKS5: %v", err)
			}
		})
	}
	if got := fmt.Sprintf("%v %+v %#v", someone, someone, someone); strings.Contains(got, "secret") {
		t.Errorf("credentials are printed as %s", got)
	}
}

// FuzzHandshake has proxies answer anything: it ends without a panic, and in
// the same way however it is cut.
func FuzzHandshake(f *testing.F) {
	for _, tt := range talks {
		f.Add([]byte(tt.answer), tt.socks, tt.as.User, 3)
	}
	f.Fuzz(func(t *testing.T, answer []byte, socks bool, user string, size int) {
		tt := talk{socks: socks}
		if user != "" {
			tt.as = someone
		}
		sent, rest, done, err := run(tt.start(t), answer, len(answer)+1)
		again, restAgain, doneAgain, errAgain := run(tt.start(t), answer, 1+max(0, size)%512)
		if !bytes.Equal(sent, again) || done != doneAgain || (err == nil) != (errAgain == nil) ||
			done && !bytes.Equal(rest, restAgain) || err != nil && err.Error() != errAgain.Error() {
			t.Errorf("whole: sent %q, left %q, done %v, %v; cut: %q, %q, %v, %v", sent, rest, done, err, again, restAgain, doneAgain, errAgain)
		}
		if done && err != nil || err != nil && !errors.Is(err, ErrMalformed) && !errors.As(err, new(*Refused)) {
			t.Errorf("done %v, %v", done, err)
		}
		if used := len(answer) - len(rest); done && used > MaxHead {
			t.Errorf("%d bytes of answer were taken", used)
		}
		if done && !socks {
			if head := answer[:len(answer)-len(rest)]; !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
				t.Errorf("the answer ends with %q", head)
			}
		}
	})
}

// FuzzTarget asks for anything: what can be asked for is one request.
func FuzzTarget(f *testing.F) {
	f.Add("example.com", 443, "me", "secret")
	f.Add("2001:db8::1", 1, "", "")
	f.Add("a\r\nb: c", 1, "a\r\nb", "c")
	f.Fuzz(func(t *testing.T, host string, port int, user, password string) {
		as := Credentials{user, password}
		if h, err := NewConnect(host, port, as); err == nil {
			want := 2
			if user != "" {
				want++
			}
			text := string(h.Start(nil))
			if lines := strings.Split(text, "\r\n"); len(lines) != want+2 || strings.Count(text, "\n") != len(lines)-1 || strings.Count(text, " HTTP/1.1\r\n") != 1 {
				t.Errorf("request is %q", text)
			}
		}
		if h, err := NewSOCKS5(host, port, as); err == nil {
			sent, _, done, err := run(h, []byte("\x05\x00"+ip4Reply), 1)
			if !done || err != nil || len(sent) > 512 {
				t.Errorf("sent %q, %v, %v", sent, done, err)
			}
		}
	})
}

// TestRealProxyUnderstands talks to microsocks, if it is installed.
func TestRealProxyUnderstands(t *testing.T) {
	program, err := exec.LookPath("microsocks")
	if err != nil {
		t.Skip("microsocks is not installed")
	}
	for _, tt := range []struct {
		name string
		args []string
		as   Credentials
		err  error
	}{
		{name: "open"},
		{name: "with credentials", args: []string{"-u", "me", "-P", "secret"}, as: someone},
		{name: "with the wrong credentials", args: []string{"-u", "me", "-P", "secret"}, as: Credentials{"me", "guess"}, err: ErrCredentials},
		{name: "without credentials", args: []string{"-u", "me", "-P", "secret"}, err: ErrCredentials},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			go func() {
				if c, err := far.Accept(); err == nil {
					fmt.Fprint(c, "hello")
					c.Close()
				}
			}()
			c := through(t, program, tt.args)
			defer c.Close()
			h, err := NewSOCKS5("localhost", far.Addr().(*net.TCPAddr).Port, tt.as)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			out, done, err := h.Start(nil), false, error(nil)
			for buf := make([]byte, 1024); !done && err == nil; {
				var n, used int
				c.Write(out)
				if n, err = c.Read(buf); err != nil {
					t.Fatal(err)
				}
				used, out, done, err = h.Next(nil, buf[:n])
				got = append(got, buf[used:n]...)
			}
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if tt.err != nil {
				return
			}
			rest := make([]byte, 16)
			n, _ := c.Read(rest)
			if got := string(got) + string(rest[:n]); got != "hello" {
				t.Errorf("got %q of the far end", got)
			}
		})
	}
}

// through starts the proxy on a free port and returns a connection to it.
func through(t *testing.T, program string, args []string) net.Conn {
	t.Helper()
	for range 20 { // the port may be taken meanwhile
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
		ln.Close()
		cmd := exec.Command(program, append([]string{"-i", "127.0.0.1", "-p", port}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); cmd.Wait() }()
		t.Cleanup(func() { cmd.Process.Kill(); <-ended })
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range 1000 {
			if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
				c.SetDeadline(time.Now().Add(20 * time.Second))
				return c
			}
			select {
			case <-ended:
			case <-tick.C:
				continue
			}
			break
		}
	}
	t.Fatal("the proxy does not come up")
	return nil
}

func ExampleSOCKS5() {
	h, err := NewSOCKS5("example.com", 80, Credentials{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("to the proxy: %q\n", h.Start(nil))
	_, out, _, _ := h.Next(nil, []byte("\x05\x00"))
	fmt.Printf("to the proxy: %q\n", out)
	used, _, done, err := h.Next(nil, []byte("\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50hello"))
	fmt.Println(used, done, err)
	// Output:
	// to the proxy: "\x05\x01\x00"
	// to the proxy: "\x05\x01\x00\x03\vexample.com\x00P"
	// 10 true <nil>
}

func ExampleConnect() {
	h, err := NewConnect("example.com", 80, Credentials{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%q\n", h.Start(nil))
	_, _, _, err = h.Next(nil, []byte("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"))
	fmt.Println(err, errors.Is(err, ErrCredentials))
	// Output:
	// "CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\n"
	// proxy: refused with 407: "Proxy Authentication Required" true
}
