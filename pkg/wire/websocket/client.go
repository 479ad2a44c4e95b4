package websocket

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// RequestOptions are what a client asks for beside the URL. The zero value is
// usable.
type RequestOptions struct {
	Subprotocols []string    // best first
	Header       http.Header // more of the request (Origin, Authorization, Cookie), as in AcceptOptions
	Deflate      bool        // offers permessage-deflate
}

// NewRequest returns the Request, for Session.Append, that asks for a
// WebSocket at address, an absolute URL of scheme ws, wss, http or https. Its
// user, if it has one, is sent as basic authorization. It fails if the URL or
// opts cannot be sent.
func NewRequest(address string, opts *RequestOptions) (msg []byte, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("websocket: address: %w", err)
	}
	switch {
	case !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme):
		return nil, fmt.Errorf("websocket: address %q: scheme %q, want ws or wss", u.Redacted(), u.Scheme)
	case !isHost(u.Host):
		return nil, fmt.Errorf("websocket: address %q: host %q", u.Redacted(), u.Host)
	case u.Fragment != "": // RFC 6455 3
		return nil, fmt.Errorf("websocket: address %q: has a fragment", u.Redacted())
	}
	target := u.RequestURI()
	if !isTarget(target) {
		return nil, fmt.Errorf("websocket: address %q: target %q", u.Redacted(), target)
	}
	var key [16]byte
	rand.Read(key[:]) // never fails: crypto/rand.Read
	msg = append(msg, byte(Request))
	msg = append(msg, "GET "+target+" HTTP/1.1\r\nHost: "+u.Host+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: "+version+
		"\r\nSec-WebSocket-Key: "+base64.StdEncoding.EncodeToString(key[:])+"\r\n"...)
	for i, p := range opts.Subprotocols {
		if !isName(p) || slices.Contains(opts.Subprotocols[:i], p) {
			return nil, fmt.Errorf("websocket: subprotocol %q, want tokens, each once", p)
		}
	}
	if len(opts.Subprotocols) > 0 {
		msg = append(msg, "Sec-WebSocket-Protocol: "+strings.Join(opts.Subprotocols, ", ")+"\r\n"...)
	}
	if opts.Deflate {
		// No client_max_window_bits: the server may then not ask us for a
		// smaller window, which compress/flate does not have.
		msg = append(msg, "Sec-WebSocket-Extensions: "+deflateTerms+"\r\n"...)
	}
	if u.User != nil && opts.Header.Get("Authorization") == "" {
		password, _ := u.User.Password()
		msg = append(msg, "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))+"\r\n"...)
	}
	if msg, err = appendFields(msg, opts.Header); err != nil {
		return nil, err
	}
	return append(msg, "\r\n"...), nil
}

// Unaccepted is a client's handshake that has failed: the server has answered
// by something else than 101, or by a 101 that does not fit the request.
type Unaccepted struct {
	Status int    // of the response; 0: it was none
	Head   []byte // of the response, the caller's; nil: it was none
	Err    error  // what was wrong with it; nil: it was a refusal, see Status
}

// Error tells the status and what was wrong.
func (e *Unaccepted) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("websocket: server has answered with status %d", e.Status)
	}
	return fmt.Sprintf("websocket: response of the server: %v", e.Err)
}

// Unwrap returns e.Err.
func (e *Unaccepted) Unwrap() error { return e.Err }

// appendRequest sends a client's handshake and keeps it until the answer has been
// compared with it.
func (s *Session) appendRequest(dst, payload []byte) ([]byte, error) {
	if s.flags.Load()&flagAsked != 0 {
		return dst, errors.New("websocket: request has been sent already")
	}
	offer := string(payload)
	if _, err := parseRequest(offer); err != nil {
		return dst, fmt.Errorf("websocket: request: %w", err)
	}
	s.offer = &offer
	s.flags.Or(flagAsked)
	return append(dst, payload...), nil
}

// accepted compares the server's response with the request (RFC 6455 4.1) and
// opens the session.
func (s *Session) accepted(head []byte) error {
	request, err := parseRequest(*s.offer)
	if err != nil {
		return &Unaccepted{Err: err}
	}
	status, subprotocol, deflate, err := checkResponse(request, string(head))
	if err != nil || status != http.StatusSwitchingProtocols {
		return &Unaccepted{Status: status, Head: slices.Clone(head), Err: err}
	}
	flags := uint32(flagOpen)
	if deflate {
		flags |= flagDeflate
	}
	s.offer, s.subprotocol = nil, subprotocol
	s.flags.Or(flags)
	return nil
}

// checkResponse returns what the response to a request says, and an error if
// it is malformed or a 101 that does not fit the request.
func checkResponse(request *UpgradeRequest, head string) (status int, subprotocol string, deflate bool, err error) {
	var proof string
	var upgrade, connection bool
	var seen struct{ proof, subprotocol bool }
	var extensions []extension
	first, err := parseHead(head, func(name, value string) error {
		switch strings.ToLower(name) {
		case "upgrade":
			upgrade = upgrade || hasToken(value, "websocket")
		case "connection":
			connection = connection || hasToken(value, "upgrade")
		case "sec-websocket-accept":
			return once(&proof, &seen.proof, name, value)
		case "sec-websocket-protocol":
			return once(&subprotocol, &seen.subprotocol, name, value)
		case "sec-websocket-extensions":
			var err error
			if extensions, err = appendExtensions(extensions, value); err != nil {
				return badHead("field %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return 0, "", false, err
	}
	proto, rest, _ := strings.Cut(first, " ")
	digits, _, _ := strings.Cut(rest, " ")
	if len(digits) != 3 || strings.Trim(digits, "0123456789") != "" || digits[0] == '0' || proto != "HTTP/1.1" && proto != "HTTP/1.0" {
		return 0, "", false, fmt.Errorf("status line %q", first)
	}
	status = int(digits[0]-'0')*100 + int(digits[1]-'0')*10 + int(digits[2]-'0')
	if status != http.StatusSwitchingProtocols {
		return status, "", false, nil
	}
	switch {
	case proto != "HTTP/1.1":
		err = fmt.Errorf("status line %q", first)
	case !upgrade || !connection:
		err = errors.New("upgrade to something else than websocket")
	case proof != acceptKey(request.key):
		err = fmt.Errorf("sec-websocket-accept %q, want %q", proof, acceptKey(request.key))
	case seen.subprotocol && !slices.Contains(request.Protocols, subprotocol):
		err = fmt.Errorf("subprotocol %q, want one of %q", subprotocol, request.Protocols)
	case len(extensions) > 0:
		deflate = true
		err = checkTerms(request.offers, extensions)
	}
	return status, subprotocol, deflate, err
}
