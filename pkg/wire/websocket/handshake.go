package websocket

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

const version = "13" // RFC 6455 4.1

// UpgradeRequest is a client's handshake that is in order (RFC 6455 4.2.1).
type UpgradeRequest struct {
	Target    string   // as in the request line, not parsed
	Host      string   // not empty
	Origin    string   // empty: not from a browser
	Protocols []string // subprotocols, in the client's order of preference

	head   string
	key    string
	offers []extension
}

// ParseRequest reads the payload of a Request. It accepts nothing but a
// GET of HTTP/1.1 without a body that asks for version 13 of WebSocket.
//
// The error is a *Refusal: 405 for another method, 505 for another version of
// HTTP, 426 for a request that wants no WebSocket or another version of it,
// 400 for whatever is malformed.
func ParseRequest(head []byte) (*UpgradeRequest, error) {
	r, err := parseRequest(string(head))
	if err != nil {
		return nil, refusal(err)
	}
	return r, nil
}

func parseRequest(head string) (*UpgradeRequest, error) {
	r := &UpgradeRequest{head: head}
	var asked, length string
	var upgrade, connection bool
	var seen struct{ host, origin, key, version, length bool }
	first, err := parseHead(head, func(name, value string) error {
		switch strings.ToLower(name) {
		case "host":
			return once(&r.Host, &seen.host, name, value)
		case "origin":
			return once(&r.Origin, &seen.origin, name, value)
		case "sec-websocket-key":
			return once(&r.key, &seen.key, name, value)
		case "sec-websocket-version":
			return once(&asked, &seen.version, name, value)
		case "content-length":
			return once(&length, &seen.length, name, value)
		case "upgrade":
			upgrade = upgrade || hasToken(value, "websocket")
		case "connection":
			connection = connection || hasToken(value, "upgrade")
		case "transfer-encoding":
			return badHead("field %s: %q", name, value)
		case "sec-websocket-protocol":
			var ok bool
			if r.Protocols, ok = appendList(r.Protocols, value); !ok {
				return badHead("field %s: %q", name, value)
			}
		case "sec-websocket-extensions":
			var err error
			if r.offers, err = appendExtensions(r.offers, value); err != nil {
				return badHead("field %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	method, rest, _ := strings.Cut(first, " ")
	target, proto, _ := strings.Cut(rest, " ")
	r.Target = target
	switch {
	case !isName(method) || target == "" || !isTarget(target) || !strings.HasPrefix(proto, "HTTP/"):
		return nil, badHead("request line %q", first)
	case proto != "HTTP/1.1":
		return nil, &headError{status: 505, err: fmt.Errorf("request of %s, want HTTP/1.1", proto)}
	case !isHost(r.Host):
		return nil, badHead("host %q", r.Host)
	case seen.length && length != "0":
		return nil, badHead("request with a body, content-length %q", length)
	case method != "GET":
		return nil, &headError{status: 405, err: fmt.Errorf("method %s, want GET", method)}
	case !upgrade || !connection:
		return nil, &headError{status: 426, err: errors.New("request for something else than websocket")}
	case asked != version:
		return nil, &headError{status: 426, err: fmt.Errorf("version %q, want %s", asked, version)}
	case !isKey(r.key):
		return nil, badHead("key %q, want 16 bytes in base64", r.key)
	}
	if len(r.Protocols) > 1 {
		sorted := slices.Sorted(slices.Values(r.Protocols))
		if len(slices.Compact(sorted)) != len(r.Protocols) {
			return nil, badHead("subprotocols %q more than once", r.Protocols)
		}
	}
	return r, nil
}

func isTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// isHost reports whether s can be a host with a port (RFC 3986 3.2).
func isHost(s string) bool {
	for i := range len(s) {
		if !isToken(s[i]) && strings.IndexByte("():;=,[]", s[i]) < 0 || strings.IndexByte("#^`|", s[i]) >= 0 {
			return false
		}
	}
	return s != ""
}

func isKey(s string) bool {
	key, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil && len(key) == 16
}

// HTTP returns the request as net/http has it, for an application's hook. It is
// made anew by each call and belongs to the caller, who may set RemoteAddr and the
// like. The error is a *Refusal with 400: a target that is no URL.
func (r *UpgradeRequest) HTTP() (*http.Request, error) {
	request, err := http.ReadRequest(bufio.NewReaderSize(strings.NewReader(r.head), len(r.head)))
	if err != nil {
		return nil, refusal(badHead("%w", err))
	}
	return request, nil
}

// AcceptOptions are a server's terms. The zero value is usable.
type AcceptOptions struct {
	// Origins are those whose pages may connect: patterns of path.Match for
	// the whole origin in lower case, such as "https://*.example.com", or "*" for
	// any. None means that the origin has to have the same host and port as the
	// request. A request without Origin is accepted: it is from no browser, and
	// whoever is no browser can send any.
	Origins []string

	// Subprotocols are those the server speaks, best first. The first one that the
	// client has offered is chosen. If it has offered none of them, none is.
	Subprotocols []string

	// Header is sent with the response. It must not have fields of
	// the handshake or of framing.
	Header http.Header

	// Deflate accepts permessage-deflate, if it is offered on terms that hold:
	// without a window smaller than 32 KiB for the server's messages.
	Deflate bool
}

// Accept returns the Response to a request, for Session.Append, and what it
// agrees on.
//
// The error is a *Refusal with 403 if the origin is not allowed, and another
// error if opts are not usable: a malformed pattern, subprotocol or header.
func Accept(r *UpgradeRequest, opts *AcceptOptions) (msg []byte, subprotocol string, deflate bool, err error) {
	if err := checkOrigin(r, opts.Origins); err != nil {
		return nil, "", false, err
	}
	msg = append(make([]byte, 0, 256), byte(Response))
	msg = append(msg, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	msg = append(msg, acceptKey(r.key)...)
	msg = append(msg, "\r\n"...)
	for _, p := range opts.Subprotocols {
		if !isName(p) {
			return nil, "", false, fmt.Errorf("websocket: subprotocol %q, want a token", p)
		}
		if subprotocol == "" && slices.Contains(r.Protocols, p) {
			subprotocol = p
			msg = append(msg, "Sec-WebSocket-Protocol: "+p+"\r\n"...)
		}
	}
	if opts.Deflate {
		var terms string
		if terms, deflate = chooseOffer(r.offers); deflate {
			msg = append(msg, "Sec-WebSocket-Extensions: "+terms+"\r\n"...)
		}
	}
	msg, err = appendFields(msg, opts.Header)
	if err != nil {
		return nil, "", false, err
	}
	return append(msg, "\r\n"...), subprotocol, deflate, nil
}

// checkOrigin says whether pages of the request's origin may connect (RFC 6455
// 10.2).
func checkOrigin(r *UpgradeRequest, allowed []string) error {
	if r.Origin == "" {
		return nil
	}
	if len(allowed) == 0 {
		if u, err := url.Parse(r.Origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
			return nil
		}
	}
	origin := strings.ToLower(r.Origin)
	for _, pattern := range allowed {
		ok, err := path.Match(strings.ToLower(pattern), origin)
		if err != nil {
			return fmt.Errorf("websocket: origin pattern %q: %w", pattern, err)
		}
		if ok || pattern == "*" {
			return nil
		}
	}
	return &Refusal{Status: http.StatusForbidden, Err: fmt.Errorf("origin %q", r.Origin)}
}

// acceptKey is the proof that the request has been understood (RFC 6455 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// appendFields appends an application's fields, sorted by name.
func appendFields(dst []byte, h http.Header) ([]byte, error) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch canonical {
		case "Connection", "Content-Length", "Host", "Transfer-Encoding", "Upgrade":
			return dst, fmt.Errorf("websocket: field %s is not for the application to set", name)
		}
		if !isName(name) || strings.HasPrefix(canonical, "Sec-Websocket-") {
			return dst, fmt.Errorf("websocket: field %q is not for the application to set", name)
		}
		for _, value := range h[name] {
			if !isText(value) {
				return dst, fmt.Errorf("websocket: control character in field %s: %q", name, value)
			}
			dst = append(dst, name+": "+value+"\r\n"...)
		}
	}
	return dst, nil
}

// Refusal is a handshake that a server answers by something else than 101. An
// application's hook may return one as its error.
type Refusal struct {
	Status int         // 300 to 599
	Header http.Header // more of the response, as in AcceptOptions; nil: nothing
	Body   string      // text; empty: the status in words
	Err    error       // why, for the log; the client does not see it
}

// Error tells the status and why.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("websocket: handshake refused with %d", r.Status)
	}
	return fmt.Sprintf("websocket: handshake refused with %d: %v", r.Status, r.Err)
}

// Unwrap returns r.Err.
func (r *Refusal) Unwrap() error { return r.Err }

// Message returns the Response that tells the client, for Session.Append. The
// connection is to be closed after it. It fails if the status or the header may
// not be sent.
func (r *Refusal) Message() ([]byte, error) {
	if r.Status < 300 || r.Status > 599 {
		return nil, fmt.Errorf("websocket: refusal with status %d, want 300 to 599", r.Status)
	}
	words := http.StatusText(r.Status)
	body := r.Body
	if body == "" {
		body = words + "\n"
	}
	msg := append([]byte{byte(Response)}, "HTTP/1.1 "+strconv.Itoa(r.Status)+" "+words+"\r\n"...)
	switch r.Status {
	case http.StatusUpgradeRequired: // RFC 9110 15.5.22, RFC 6455 4.4
		msg = append(msg, "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: "+version+"\r\n"...)
	case http.StatusMethodNotAllowed:
		msg = append(msg, "Connection: close\r\nAllow: GET\r\n"...)
	default:
		msg = append(msg, "Connection: close\r\n"...)
	}
	msg, err := appendFields(msg, r.Header)
	if err != nil {
		return nil, err
	}
	if len(r.Header["Content-Type"]) == 0 {
		msg = append(msg, "Content-Type: text/plain; charset=utf-8\r\n"...)
	}
	msg = append(msg, "Content-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...)
	return append(msg, body...), nil
}

// refusal is what a server answers to a head that is not in order.
func refusal(err error) *Refusal {
	r := &Refusal{Status: http.StatusBadRequest, Err: err}
	if e, ok := errors.AsType[*headError](err); ok {
		r.Status = e.status
	}
	return r
}

// appendResponse sends a server's answer and notes what it says.
func (s *Session) appendResponse(dst, payload []byte) ([]byte, error) {
	if s.flags.Load()&(flagOpen|flagRefused) != 0 {
		return dst, errors.New("websocket: handshake has been answered already")
	}
	n, _, err := findHead(payload, 0)
	if err == nil && n == 0 {
		err = errors.New("head without an end")
	}
	if err != nil {
		return dst, fmt.Errorf("websocket: response: %w", err)
	}
	var subprotocol string
	var extensions []extension
	first, err := parseHead(string(payload[:n]), func(name, value string) error {
		switch strings.ToLower(name) {
		case "sec-websocket-protocol":
			subprotocol = value
		case "sec-websocket-extensions":
			var err error
			extensions, err = appendExtensions(extensions, value)
			return err
		}
		return nil
	})
	flags := uint32(flagOpen)
	if err == nil && len(extensions) > 0 {
		flags |= flagDeflate
		err = checkTerms(extensions, extensions)
	}
	switch {
	case err != nil:
		return dst, fmt.Errorf("websocket: response: %w", err)
	case !strings.HasPrefix(first, "HTTP/1.1 101 "):
		s.flags.Or(flagRefused)
	case n != len(payload):
		return dst, fmt.Errorf("websocket: response with %d bytes after its head", len(payload)-n)
	default:
		s.subprotocol = subprotocol
		s.flags.Or(flags)
	}
	return append(dst, payload...), nil
}
