package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Code says why a connection is closed (RFC 6455 7.4 and the IANA registry).
type Code uint16

// The codes that have a name. Applications have 4000 to 4999 for their own.
const (
	Normal          Code = 1000
	GoingAway       Code = 1001 // the server stops, the page is left
	ProtocolFault   Code = 1002
	Unsupported     Code = 1003 // a kind of message that is not accepted
	NoCode          Code = 1005 // never sent: the peer's Close had no code
	Abnormal        Code = 1006 // never sent: there was no Close
	InvalidPayload  Code = 1007 // text that is not UTF-8, corrupt compression
	PolicyViolation Code = 1008
	TooBig          Code = 1009
	MissingExt      Code = 1010 // client: the server has not accepted an extension
	InternalError   Code = 1011
	ServiceRestart  Code = 1012 // connect again, after some time
	TryAgainLater   Code = 1013
	BadGateway      Code = 1014
)

// Valid reports whether c may stand in a Close.
func (c Code) Valid() bool {
	switch c {
	case 1004, NoCode, Abnormal: // reserved
		return false
	}
	return c >= Normal && c <= BadGateway || c >= 3000 && c <= 4999
}

// maxControl is how long the payload of a Close, Ping or Pong may be (RFC 6455
// 5.5).
const maxControl = 125

// Error is a violation of the protocol by the peer. The connection is over; the
// peer is owed a Close with Code, if none has been sent.
type Error struct {
	Code Code  // 1002, 1007 or 1009
	Err  error // what was wrong; wire.ErrTooLong for 1009
}

// Error tells what was wrong and the code.
func (e *Error) Error() string { return fmt.Sprintf("websocket: %v (close code %d)", e.Err, e.Code) }

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

func violation(format string, args ...any) error {
	return &Error{Code: ProtocolFault, Err: fmt.Errorf(format, args...)}
}

var errNotUTF8 = errors.New("text is not UTF-8")

func invalidText() error { return &Error{Code: InvalidPayload, Err: errNotUTF8} }

// AppendClose appends a Close message to dst and returns the result. With
// NoCode it has neither code nor reason; else the reason is cut, between two
// characters, to what fits, 123 bytes. Whether the code and the reason may be
// sent is Session.Append's to say.
func AppendClose(dst []byte, code Code, reason string) []byte {
	dst = append(dst, byte(Close))
	if code == NoCode {
		return dst
	}
	if n := maxControl - 2; len(reason) > n {
		for !utf8.RuneStart(reason[n]) && n > maxControl-2-utf8.UTFMax {
			n--
		}
		reason = reason[:n]
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, reason...)
}

// ParseClose returns what the payload of a Close that Split has returned says.
// An empty one says NoCode.
func ParseClose(payload []byte) (code Code, reason string) {
	if len(payload) < 2 {
		return NoCode, ""
	}
	return Code(binary.BigEndian.Uint16(payload)), string(payload[2:])
}

// checkClose returns what is wrong with the payload of a Close (RFC 6455
// 5.5.1 and 7.4). Its length has been looked at.
func checkClose(payload []byte) *Error {
	switch {
	case len(payload) == 0:
		return nil
	case len(payload) == 1:
		return &Error{Code: ProtocolFault, Err: errors.New("close with half a code")}
	}
	if code := Code(binary.BigEndian.Uint16(payload)); !code.Valid() {
		return &Error{Code: ProtocolFault, Err: fmt.Errorf("close with code %d", code)}
	}
	if !utf8.Valid(payload[2:]) {
		return &Error{Code: InvalidPayload, Err: errors.New("reason of a close is not UTF-8")}
	}
	return nil
}
