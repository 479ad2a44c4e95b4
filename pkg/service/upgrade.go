package service

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// ErrNotServed is Upgrade's answer to a request that has come by no listener of
// HTTP, such as one of Web or of httptest.
var ErrNotServed = worker.ErrNotServed

// Upgrade makes the connection of a request a WebSocket, in the handler of an
// HTTP listener, after whatever the application wants to check before: name
// says which one of HTTP.WebSockets, state is the State that it begins with.
//
//	err := service.Upgrade(w, r, "chat", guest{Name: user})
//
// When it returns nil the worker's loop has the connection, with what the
// client has sent behind its request already, and OnConnect is called or about
// to be, though perhaps not before Upgrade has returned. From then on it is a WebSocket like
// any other: it moves at a reload, and outlives its worker. With TLS 1.2 it does
// not, as the state of that cannot be had. The handler should return: what it does with w and r is of no
// effect on the connection, a panic included.
//
// The answer has the fields of w.Header, such as cookies, but for those that are the
// handshake's own. Origins and Subprotocols are the WebSocket's.
//
// With an error the client has been answered, so the handler should only
// return. It is a *Refusal with the status of the answer, and the reason: 400,
// 405, 426 or 505 if the request asks for no WebSocket of RFC 6455, or by HTTP/2;
// 403 for its origin; 503 with ErrDrained while the worker leaves, when
// the next attempt comes to another one, or if the loop has no room for it; 500
// with http.ErrNotSupported if a middleware has put another ResponseWriter in the place of
// w and that has neither Hijack nor Unwrap (http.ResponseController), with
// ErrNotServed, if HTTP.WebSockets has no such name or T is not its
// State's type, and if fields of w.Header cannot be sent.
func Upgrade[T any](w http.ResponseWriter, r *http.Request, name string, state T) error {
	u, err := worker.NewUpgrade(r, name)
	switch {
	case errors.Is(err, ErrDrained):
		return refuse(w, &Refusal{Status: http.StatusServiceUnavailable, Err: err})
	case err != nil:
		return refuse(w, &Refusal{Status: http.StatusInternalServerError, Err: err})
	}
	h, ok := u.Handler().(*web[T])
	if !ok {
		err := fmt.Errorf("service: WebSocket %q has another State than %T", name, state)
		return refuse(w, &Refusal{Status: http.StatusInternalServerError, Err: err})
	}
	answer, err := h.accept(w.Header(), r)
	if err != nil {
		return refuse(w, asRefusal(err))
	}
	unavailable := &Refusal{Status: http.StatusServiceUnavailable}
	m, err := unavailable.Message()
	if err != nil {
		return refuse(w, asRefusal(err))
	}
	hijacked, err := u.Move(w, websocket.NewRequested(h.session), &granted[T]{state, answer}, m[1:])
	switch {
	case err == nil:
		return nil
	case !hijacked:
		return refuse(w, asRefusal(err))
	}
	unavailable.Err = err
	return unavailable
}

// granted is the Value of a connection whose request Upgrade has taken.
type granted[T any] struct {
	state  T
	answer []byte // for Session.Append
}

// hooked says whether the WebSocket itself decides on requests.
func (h *web[T]) hooked() bool { return h.OnUpgrade != nil || h.Header != nil }

// accept returns the answer to a request, with fields of the application's.
func (h *web[T]) accept(fields http.Header, r *http.Request) ([]byte, error) {
	if r.ContentLength != 0 {
		return nil, &Refusal{Status: http.StatusBadRequest, Err: fmt.Errorf("request with a body of %d bytes", r.ContentLength)}
	}
	request, err := websocket.ParseRequest(headOf(r))
	if err != nil {
		return nil, err
	}
	answer, _, _, err := websocket.Accept(request, &websocket.AcceptOptions{
		Origins: h.Origins, Subprotocols: h.Subprotocols, Deflate: h.CompressAbove > 0, Header: answerFields(fields),
	})
	return answer, err
}

// headOf writes the head of a request down again.
func headOf(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Proto, r.Host)
	_ = r.Header.Write(&b) // into memory
	b.WriteString("\r\n")
	return b.Bytes()
}

// answerFields are those that have a meaning in an answer without a body. Those
// of the handshake are ours.
func answerFields(fields http.Header) http.Header {
	fields = maps.Clone(fields)
	maps.DeleteFunc(fields, func(name string, _ []string) bool {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Connection", "Content-Length", "Content-Type", "Host", "Trailer", "Transfer-Encoding", "Upgrade":
			return true
		}
		return strings.HasPrefix(name, "Sec-Websocket-")
	})
	return fields
}

// asRefusal is err, or what a fault of this side is for the client.
func asRefusal(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return &Refusal{Status: http.StatusInternalServerError, Err: err}
}

// refuse answers by net/http, and returns the reason.
func refuse(w http.ResponseWriter, why *Refusal) error {
	switch why.Status {
	case http.StatusUpgradeRequired: // RFC 9110 15.5.22, RFC 6455 4.4
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodGet)
	}
	http.Error(w, http.StatusText(why.Status), why.Status)
	return why
}
