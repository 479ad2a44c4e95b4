package websocket

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// headError is a handshake's head that is not as it has to be, with the
// status of the answer.
type headError struct {
	status int
	err    error
}

func (e *headError) Error() string { return e.err.Error() }
func (e *headError) Unwrap() error { return e.err }

func badHead(format string, args ...any) error {
	return &headError{status: 400, err: fmt.Errorf(format, args...)}
}

// findHead returns how long the head at the start of in is, 0 if it has no
// end yet, and how far it has looked. Nothing ends in the first from bytes.
func findHead(in []byte, from int) (n, searched int, err error) {
	if len(in) > 0 && !isToken(in[0]) {
		return 0, 0, badHead("first byte %#x", in[0])
	}
	for from < len(in) {
		i := bytes.IndexByte(in[from:], '\n')
		if i < 0 {
			break
		}
		i += from
		from = i + 1
		// Who takes a bare LF for the end of a line and who does not
		// disagree on where a message ends (RFC 9112 11.1 and 11.2).
		if in[i-1] != '\r' {
			return 0, 0, badHead("line that ends without CR")
		}
		if bytes.HasSuffix(in[:i], []byte("\r\n\r")) {
			return i + 1, i + 1, nil
		}
	}
	return 0, len(in), nil
}

// parseHead checks the form of a whole head (RFC 9112, without what it lets a
// recipient tolerate) and calls field for each field line, in order, with its value
// trimmed.
func parseHead(head string, field func(name, value string) error) (first string, err error) {
	head, ok := strings.CutSuffix(head, "\r\n\r\n")
	if !ok {
		return "", badHead("head without an end")
	}
	first, rest, more := strings.Cut(head, "\r\n")
	if !isText(first) {
		return "", badHead("control character in %q", first)
	}
	for more {
		var line string
		line, rest, more = strings.Cut(rest, "\r\n")
		name, value, ok := strings.Cut(line, ":")
		switch {
		case !ok || !isName(name): // a folded line too: it starts with a space
			return "", badHead("field line %q", line)
		case !isText(value):
			return "", badHead("control character in field %s: %q", name, value)
		}
		if err := field(name, strings.Trim(value, " \t")); err != nil {
			return "", err
		}
	}
	return first, nil
}

// isText reports whether s has no control characters but tabs.
func isText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// isToken reports whether c may stand in a token (RFC 9110 5.6.2).
func isToken(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isName(s string) bool {
	for i := range len(s) {
		if !isToken(s[i]) {
			return false
		}
	}
	return s != ""
}

// appendList appends the elements of a list of tokens (RFC 9110 5.6.1). Empty
// elements count for nothing. ok is false if something is no token.
func appendList(list []string, value string) (_ []string, ok bool) {
	for element := range strings.SplitSeq(value, ",") {
		element = strings.Trim(element, " \t")
		if element == "" {
			continue
		}
		if !isName(element) {
			return list, false
		}
		list = append(list, element)
	}
	return list, true
}

// hasToken reports whether a list of tokens, or of protocols with versions,
// has token in it, in whatever case.
func hasToken(value, token string) bool {
	for element := range strings.SplitSeq(value, ",") {
		if strings.EqualFold(strings.Trim(element, " \t"), token) {
			return true
		}
	}
	return false
}

// once sets a field of a head that may come only once.
func once(to *string, seen *bool, name, value string) error {
	if *seen {
		return badHead("field %s more than once", name)
	}
	*to, *seen = value, true
	return nil
}

// extension is one element of a Sec-WebSocket-Extensions field.
type extension struct {
	name   string
	params []param
}

type param struct {
	name, value string
	hasValue    bool
}

var errExtensions = errors.New("malformed list of extensions")

// appendExtensions appends what the value of a Sec-WebSocket-Extensions field lists
// (RFC 6455 9.1). A quoted value has to be a token too, so quotes hide nothing.
func appendExtensions(list []extension, value string) ([]extension, error) {
	for element := range strings.SplitSeq(value, ",") {
		var e extension
		for i, part := range strings.Split(element, ";") {
			name, value, hasValue := strings.Cut(strings.Trim(part, " \t"), "=")
			name, value = strings.TrimRight(name, " \t"), strings.TrimLeft(value, " \t")
			if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			switch {
			case i == 0 && name == "" && !hasValue && !strings.Contains(element, ";"):
				continue // an empty element
			case !isName(name) || hasValue && (i == 0 || !isName(value)):
				return nil, fmt.Errorf("%w: %q", errExtensions, element)
			case i == 0:
				e.name = name
			default:
				e.params = append(e.params, param{name, value, hasValue})
			}
		}
		if e.name != "" {
			list = append(list, e)
		}
	}
	return list, nil
}
