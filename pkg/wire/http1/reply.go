package http1

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// AppendStatusLine appends the first line of a response (RFC 9112 4). minor is
// that of the request's version.
func AppendStatusLine(dst []byte, minor, status int) []byte {
	if minor == 1 && status == http.StatusOK {
		return append(dst, "HTTP/1.1 200 OK\r\n"...)
	}
	if minor == 0 {
		dst = append(dst, "HTTP/1.0 "...)
	} else {
		dst = append(dst, "HTTP/1.1 "...)
	}
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if text := http.StatusText(status); text != "" {
		dst = append(dst, text...)
	} else {
		dst = append(dst, "status code "...)
		dst = strconv.AppendInt(dst, int64(status), 10)
	}
	return append(dst, "\r\n"...)
}

// AppendField appends a field. A carriage return or line feed in the value
// becomes a space, and any other white space at its ends is left out: no value
// can add a line. A name that is no token is left out with its value.
func AppendField(dst []byte, name, value string) []byte {
	if !IsToken(name) {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	for len(value) > 0 && isSpace(value[0]) {
		value = value[1:]
	}
	for len(value) > 0 && isSpace(value[len(value)-1]) {
		value = value[:len(value)-1]
	}
	start := len(dst)
	dst = append(dst, value...)
	if strings.IndexByte(value, '\n') >= 0 || strings.IndexByte(value, '\r') >= 0 {
		for i := start; i < len(dst); i++ {
			if dst[i] == '\r' || dst[i] == '\n' {
				dst[i] = ' '
			}
		}
	}
	return append(dst, "\r\n"...)
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// IsToken says whether s may be a method or the name of a field.
func IsToken(s string) bool {
	for i := range len(s) {
		if class[s[i]]&isToken == 0 {
			return false
		}
	}
	return s != ""
}

// HasToken says whether the values of a field, each a comma-separated list,
// hold a word, which is given in lower case.
func HasToken(values []string, word string) bool {
	for _, v := range values {
		if hasToken([]byte(v), word) {
			return true
		}
	}
	return false
}

// AppendFields appends the fields in h for which keep says true, sorted by
// name.
func AppendFields(dst []byte, h http.Header, keep func(name string) bool) []byte {
	var room [16]string
	names := room[:0]
	for name := range h {
		if keep(name) {
			names = append(names, name)
		}
	}
	return AppendNamed(dst, h, names)
}

// AppendNamed appends the fields of h that have these names, which it sorts.
func AppendNamed(dst []byte, h http.Header, names []string) []byte {
	if len(names) > 1 {
		slices.Sort(names)
	}
	for _, name := range names {
		for _, v := range h[name] {
			dst = AppendField(dst, name, v)
		}
	}
	return dst
}

// date is a Date field and the second that it is of.
type date struct {
	second int64
	text   string
}

var dates atomic.Pointer[date]

// AppendDate appends the field Date (RFC 9110 6.6.1) for now, which it writes
// out once a second.
func AppendDate(dst []byte, now time.Time) []byte {
	d := dates.Load()
	if second := now.Unix(); d == nil || d.second != second {
		d = &date{second, "Date: " + now.UTC().Format(http.TimeFormat) + "\r\n"}
		dates.Store(d)
	}
	return append(dst, d.text...)
}

// AppendChunk appends data as a chunk (RFC 9112 7.1). No data is no chunk:
// one of length zero would end the body.
func AppendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = strconv.AppendInt(dst, int64(len(data)), 16)
	dst = append(dst, "\r\n"...)
	dst = append(dst, data...)
	return append(dst, "\r\n"...)
}

// AppendLastChunk appends the end of a chunked body with its trailers, which
// may be nil.
func AppendLastChunk(dst []byte, trailers http.Header) []byte {
	dst = append(dst, "0\r\n"...)
	dst = AppendFields(dst, trailers, func(string) bool { return true })
	return append(dst, "\r\n"...)
}

// Continue is the interim response that asks for a body which the request has
// announced by Expect: 100-continue (RFC 9110 10.1.1).
const Continue = "HTTP/1.1 100 Continue\r\n\r\n"

// BodyAllowed says whether a response of this status can have a body (RFC
// 9110 6.4.1).
func BodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Framing is how the end of a response is found.
type Framing uint8

// The framings.
const (
	NoBody  Framing = iota // by its status, or the request's method HEAD
	Length                 // by Content-Length
	Chunked                // by its last chunk
	ToClose                // by the end of the connection
)

// Frame decides how a response is framed (RFC 9112 6.3). length is the body's,
// -1 if it is not known; head says that the method was HEAD.
func Frame(minor, status int, head bool, length int64) Framing {
	switch {
	case head || !BodyAllowed(status):
		return NoBody
	case length >= 0:
		return Length
	case minor == 1:
		return Chunked
	default:
		return ToClose
	}
}

// AppendError appends a whole response, behind which the connection is
// closed: status, and its text as the body, with reason if there is one.
func AppendError(dst []byte, status int, reason string, now time.Time) []byte {
	text := strconv.Itoa(status) + " " + http.StatusText(status)
	if reason != "" {
		text += ": " + reason
	}
	dst = AppendStatusLine(dst, 1, status)
	dst = AppendDate(dst, now)
	dst = AppendField(dst, "Content-Type", "text/plain; charset=utf-8")
	dst = AppendField(dst, "Content-Length", strconv.Itoa(len(text)+1))
	dst = AppendField(dst, "Connection", "close")
	dst = append(dst, "\r\n"...)
	dst = append(dst, text...)
	return append(dst, '\n')
}
