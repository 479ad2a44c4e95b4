package http1

import (
	"bytes"
	"net/url"
	"slices"
)

// Field is one field of a head or of a trailer section, as it was sent but for
// the white space around the value.
type Field struct {
	Name, Value []byte
}

// Head is what the head of a request says. Its slices lie in the input that
// Parser.Next was given, and are valid as long as that is. It may be used for
// one request after another.
type Head struct {
	Raw    []byte // all of it, the empty line at its end included
	Method []byte
	Target []byte  // as it was sent
	Minor  int     // 1 for HTTP/1.1, 0 for HTTP/1.0
	Fields []Field // in their order, Host and the framing ones included

	Host          []byte // nil: there is none, in HTTP/1.0
	ContentLength int64  // 0 without a body, -1 if it is chunked
	Chunked       bool
	Close         bool   // the connection ends with this request
	Upgrade       bool   // Connection names upgrade, and there is a field Upgrade
	Expect        []byte // nil: there is none
	PlainPath     bool   // Target is a path, perhaps with a query, in which nothing is escaped or would be
	Query         int    // where in a PlainPath target the question mark stands, -1: nowhere

	connection, hasLength, hasUpgrade, keepAlive, trailer bool
	codings                                               int
	coding                                                []byte
}

// HasBody says whether Parser.Next returns a body's end, and parts of it before.
func (h *Head) HasBody() bool { return h.ContentLength != 0 }

// reset empties h for the next head.
func (h *Head) reset() { *h = Head{Fields: h.Fields[:0], Query: -1} }

// requestLine reads the first line, without its end.
func (h *Head) requestLine(line []byte, l *Limits) *Error {
	end := bytes.IndexByte(line, ' ')
	if end <= 0 || !all(line[:end], isToken) {
		return errMethod
	}
	h.Method = line[:end]
	line = line[end+1:]
	end = bytes.IndexByte(line, ' ')
	if end < 0 {
		return errNoVersion
	}
	h.Target = line[:end]
	if len(h.Target) > l.target() {
		return errTarget
	}
	// RFC 9112 2.3
	version := line[end+1:]
	switch {
	case string(version) == "HTTP/1.1":
		h.Minor = 1
	case string(version) == "HTTP/1.0":
		h.Minor = 0
	case len(version) == 8 && string(version[:5]) == "HTTP/" && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]):
		return errVersion
	default:
		return errRequestLine
	}
	return h.checkTarget()
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// checkTarget checks the four forms of RFC 9112 3.2.
func (h *Head) checkTarget() *Error {
	t := h.Target
	if len(t) == 0 {
		return errBadTarget
	}
	if t[0] != '/' {
		return h.checkOtherTarget()
	}
	plain := true
	for i := 0; i < len(t); i++ {
		c := class[t[i]]
		switch {
		case c&isPlain != 0:
		case c&isTarget == 0:
			return errBadTarget
		case t[i] == '?':
			// A query is not looked into, but for what no target may hold.
			if !all(t[i:], isTarget) {
				return errBadTarget
			}
			h.PlainPath, h.Query = plain && i+1 < len(t), i
			return nil
		case t[i] == '%':
			if i+2 >= len(t) || class[t[i+1]]&isHex == 0 || class[t[i+2]]&isHex == 0 {
				return errBadTarget
			}
			plain = false
		default:
			plain = false
		}
	}
	h.PlainPath = plain
	return nil
}

// checkOtherTarget checks what does not begin with a slash. It is seldom
// used, and so may allocate.
func (h *Head) checkOtherTarget() *Error {
	t := string(h.Target)
	if !all(h.Target, isTarget) {
		return errBadTarget
	}
	if string(h.Method) == "CONNECT" {
		u, err := url.ParseRequestURI("http://" + t)
		if err != nil || u.Host != t || u.Port() == "" {
			return errBadTarget
		}
		return nil
	}
	if t == "*" {
		if string(h.Method) != "OPTIONS" {
			return errBadTarget
		}
		return nil
	}
	u, err := url.ParseRequestURI(t)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || !all([]byte(u.Host), isHost) {
		return errBadTarget
	}
	return nil
}

// fieldLine reads a field, without the end of its line.
func (h *Head) fieldLine(line []byte) *Error {
	if line[0] == ' ' || line[0] == '\t' {
		return errFold // RFC 9112 5.2
	}
	end := bytes.IndexByte(line, ':')
	if end <= 0 || !all(line[:end], isToken) { // RFC 9112 5.1: no space before the colon
		return errName
	}
	f := Field{line[:end], trim(line[end+1:])}
	if !all(f.Value, isValue) {
		return errValue
	}
	h.Fields = append(h.Fields, f)
	return nil
}

// known notes what a field means for the framing and the connection. It is
// asked of each field once, when the head is complete.
func (h *Head) known(f Field) *Error {
	switch len(f.Name) {
	case 4:
		if equalFold(f.Name, "host") {
			if h.Host != nil {
				return errHosts
			}
			h.Host = f.Value
			if !all(f.Value, isHost) {
				return errHost
			}
		}
	case 6:
		if equalFold(f.Name, "expect") && len(h.Expect) == 0 {
			h.Expect = f.Value
		}
	case 7:
		if equalFold(f.Name, "upgrade") {
			h.hasUpgrade = true
		} else if equalFold(f.Name, "trailer") {
			h.trailer = true
		}
	case 10:
		if equalFold(f.Name, "connection") {
			h.connection = true
			h.Close = h.Close || hasToken(f.Value, "close")
			h.keepAlive = h.keepAlive || hasToken(f.Value, "keep-alive")
			h.Upgrade = h.Upgrade || hasToken(f.Value, "upgrade")
		}
	case 14:
		if equalFold(f.Name, "content-length") {
			if h.hasLength {
				return errLengths
			}
			h.hasLength = true
			n, ok := decimal(f.Value)
			if !ok {
				return errLength
			}
			h.ContentLength = n
		}
	case 17:
		if equalFold(f.Name, "transfer-encoding") {
			h.codings++
			h.coding = f.Value
		}
	}
	return nil
}

// decimal reads a number of digits only, below 2^63.
func decimal(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0') // 19 digits pass 2^63 by less than a factor of two: it shows in the sign
		if n < 0 {
			return 0, false
		}
	}
	return n, true
}

// complete draws the conclusions when all fields are there (RFC 9112 3.2, 6.1,
// 6.3, 9.3).
func (h *Head) complete() *Error {
	for _, f := range h.Fields {
		if err := h.known(f); err != nil {
			return err
		}
	}
	switch {
	case h.Host == nil && h.Minor == 1:
		return errNoHost
	case h.codings > 0 && h.Minor == 0:
		return errOldCoding
	case h.codings > 0 && h.hasLength:
		return errBoth
	case h.codings > 1 || h.codings == 1 && !equalFold(h.coding, "chunked"):
		return errCoding
	}
	if h.codings == 1 {
		h.Chunked, h.ContentLength = true, -1
	}
	if h.Minor == 0 && !h.keepAlive {
		h.Close = true
	}
	h.Upgrade = h.Upgrade && h.hasUpgrade && h.Minor == 1
	if h.trailer && h.Chunked {
		return h.checkTrailerList()
	}
	return nil
}

// checkTrailerList refuses the announcement of a trailer that would be refused.
func (h *Head) checkTrailerList() *Error {
	for _, f := range h.Fields {
		if !equalFold(f.Name, "trailer") {
			continue
		}
		for name := range bytes.SplitSeq(f.Value, []byte(",")) {
			if forbidden(trim(name)) {
				return errTrailerList
			}
		}
	}
	return nil
}

// notTrailers are fields that say how a message is framed or where it goes
// (RFC 9110 6.5.1).
var notTrailers = []string{"transfer-encoding", "content-length", "host", "trailer", "connection", "te", "upgrade", "expect"}

func forbidden(name []byte) bool {
	return slices.ContainsFunc(notTrailers, func(s string) bool { return equalFold(name, s) })
}
