package proxy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// MaxHead is the most that an HTTP proxy's answer may have before the
// connection, interim answers included.
const MaxHead = 8 << 10

// Connect is the Handshake with an HTTP proxy, made by NewConnect.
type Connect struct {
	target string // HOST:PORT
	as     Credentials
	head   []byte // of the answer, up to the line that is coming
	line   int    // where that begins
	total  int    // bytes of all answers
	over   bool
}

// NewConnect asks for host, which is an IP address or a name that the proxy
// resolves, and port. Credentials are sent at once, as basic authentication
// (RFC 7617), so everybody on the way to the proxy can read them. The error is
// ErrTarget.
func NewConnect(host string, port int, as Credentials) (*Connect, error) {
	ip, err := checkTarget(host, port)
	if err != nil {
		return nil, err
	}
	if ip.IsValid() {
		host = ip.String()
	}
	control := func(r rune) bool { return r < ' ' || r == 0x7f } // RFC 7617 2
	if len(as.User) > 255 || len(as.Password) > 255 || as.User == "" && as.Password != "" ||
		strings.Contains(as.User, ":") || strings.ContainsFunc(as.User+as.Password, control) {
		return nil, fmt.Errorf("%w: user of %d bytes, password of %d: want at most 255 without control characters, no colon in the user, and no password without a user",
			ErrTarget, len(as.User), len(as.Password))
	}
	return &Connect{target: net.JoinHostPort(host, strconv.Itoa(port)), as: as}, nil
}

// Start appends the request.
func (c *Connect) Start(dst []byte) []byte {
	dst = append(dst, "CONNECT "+c.target+" HTTP/1.1\r\nHost: "+c.target+"\r\n"...)
	if c.as.User != "" {
		dst = append(dst, "Proxy-Authorization: Basic "...)
		dst = base64.StdEncoding.AppendEncode(dst, []byte(c.as.User+":"+c.as.Password))
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// Next is Handshake's. Nothing is to be sent after Start.
func (c *Connect) Next(dst, in []byte) (used int, out []byte, done bool, err error) {
	for used < len(in) && !c.over {
		if c.total == MaxHead {
			return used, dst, false, malformed("a head of more than %d bytes", MaxHead)
		}
		c.total++
		c.head = append(c.head, in[used])
		used++
		if err := c.take(); err != nil {
			return used, dst, false, err
		}
	}
	if c.over {
		c.head = nil
	}
	return used, dst, c.over, nil
}

// take looks at the line that is coming, of which one more byte is there.
func (c *Connect) take() error {
	const version = "HTTP/1."
	line := c.head[c.line:]
	last := line[len(line)-1]
	switch {
	case c.line == 0 && len(line) <= len(version) && last != version[len(line)-1]:
		return malformed("it begins with %q, want %q", line, version)
	case last == '\n' && !bytes.HasSuffix(line, []byte("\r\n")):
		return malformed("a line that ends without a carriage return")
	case len(line) > 1 && line[len(line)-2] == '\r' && last != '\n':
		return malformed("a carriage return inside of a line")
	case last < ' ' && last != '\t' && last != '\r' && last != '\n', last == 0x7f:
		return malformed("control character %#02x in a head", last)
	case last != '\n':
		return nil
	}
	defer func() { c.line = len(c.head) }()
	line = line[:len(line)-2]
	if c.line == 0 || len(line) > 0 {
		return c.whole(line)
	}
	return c.end()
}

// whole checks a line that is there.
func (c *Connect) whole(line []byte) error {
	if c.line == 0 {
		_, err := status(line)
		return err
	}
	name, _, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t\"(),/;<=>?@[\\]{}") {
		return malformed("header %.40q", line)
	}
	return nil
}

// end judges a head that is there.
func (c *Connect) end() error {
	line, _, _ := bytes.Cut(c.head, []byte("\r\n"))
	code, err := status(line)
	switch {
	case err != nil:
		return err
	case code == http.StatusSwitchingProtocols:
		return malformed("status 101, which was not asked for")
	case code < 200: // an interim answer (RFC 9110 15.2)
		c.head = c.head[:0]
		return nil
	case code < 300: // whatever lengths it declares (RFC 9110 9.3.6)
		c.over = true
		return nil
	}
	reason := http.StatusText(code)
	if len(line) > len("HTTP/1.1 200 ") {
		reason = fmt.Sprintf("%.80q", line[len("HTTP/1.1 200 "):])
	}
	return &Refused{Code: code, Reason: reason, credentials: code == http.StatusProxyAuthRequired}
}

// status reads a status line (RFC 9112 4).
func status(line []byte) (int, error) {
	bad := malformed("status line %.40q", line)
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[7] != '0' && line[7] != '1' || line[8] != ' ' ||
		len(line) > len("HTTP/1.1 200") && line[12] != ' ' {
		return 0, bad
	}
	code := 0
	for _, digit := range line[9:12] {
		if digit < '0' || digit > '9' {
			return 0, bad
		}
		code = 10*code + int(digit-'0')
	}
	if code < 100 || code > 599 {
		return 0, bad
	}
	return code, nil
}
