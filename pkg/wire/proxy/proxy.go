// Package proxy is how a client asks a proxy for a connection to somewhere
// else: SOCKS5 (RFC 1928, RFC 1929) and CONNECT of HTTP (RFC 9110 9.3.6). The
// proxy resolves names, so that a client need not know the addresses behind
// it.
//
// Invariants: a Handshake knows no descriptor, only bytes; what it says does
// not depend on how the proxy's answer was cut into reads; it takes no byte
// behind the proxy's answer, which is the far end's first; it keeps at most
// MaxHead bytes, whatever the proxy sends; what comes from the proxy is in an
// error only quoted and cut, what the client has as a password never.
//
// Start at Handshake; then socks5.go and connect.go.
package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Handshake is a client's part of the talk with a proxy, up to where the
// connection is the far end's. It is used by one goroutine at a time and for
// one connection.
type Handshake interface {
	// Start appends what is sent to the proxy first.
	Start(dst []byte) []byte

	// Next is given what has come from the proxy, in pieces of any size, and
	// appends to dst what is to be sent to it now. It takes all of in unless
	// done is true: then the proxy has said yes, and in[used:] is from the far
	// end. An error ends the handshake: ErrMalformed, or a *Refused.
	Next(dst, in []byte) (used int, out []byte, done bool, err error)
}

// Credentials are for a proxy that asks who its client is. The zero value is
// none.
type Credentials struct {
	User     string // up to 255 bytes, for HTTP without a colon
	Password string // up to 255 bytes
}

// String tells the user only.
func (c Credentials) String() string { return fmt.Sprintf("%q", c.User) }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

var (
	// ErrMalformed says that what has come is no answer of such a proxy.
	ErrMalformed = errors.New("proxy: malformed answer")

	// ErrCredentials is what a *Refused is, if the proxy wants to know who
	// the client is, or has not believed it.
	ErrCredentials = errors.New("proxy: credentials wanted")

	// ErrTarget says that a proxy cannot be asked for this host and port, or
	// not with these credentials.
	ErrTarget = errors.New("proxy: cannot be asked for")
)

// Refused is a proxy's answer that there is no connection.
type Refused struct {
	Code   int    // of SOCKS5's reply, 1 to 255, 0: before there was one; of HTTP, the status
	Reason string // in words; the proxy's own are quoted

	credentials bool
}

// Error tells code and reason.
func (e *Refused) Error() string {
	if e.Code == 0 {
		return "proxy: refused: " + e.Reason
	}
	return fmt.Sprintf("proxy: refused with %d: %s", e.Code, e.Reason)
}

// Is says that a refusal for want of credentials is ErrCredentials.
func (e *Refused) Is(target error) bool { return target == ErrCredentials && e.credentials }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// checkTarget returns host as an address, if it is one. A name must be one
// that can stand in a request as it is.
func checkTarget(host string, port int) (ip netip.Addr, err error) {
	if port < 1 || port > 65535 {
		return ip, fmt.Errorf("%w: port %d, want 1 to 65535", ErrTarget, port)
	}
	if ip, err = netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" {
			return ip, fmt.Errorf("%w: host %q has a zone, which only this machine knows", ErrTarget, host)
		}
		return ip.Unmap(), nil
	}
	if host == "" || len(host) > 255 || strings.IndexFunc(host, notInName) >= 0 {
		return ip, fmt.Errorf("%w: host %.80q, want an IP address, or a name of up to 255 letters, digits, dots, hyphens and underscores", ErrTarget, host)
	}
	return ip, nil
}

func notInName(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._", r))
}
