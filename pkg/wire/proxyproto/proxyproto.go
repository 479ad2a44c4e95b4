// Package proxyproto is the PROXY protocol, versions 1 and 2: the line or
// block that a load balancer sends before anything else, to tell whose
// connection it passes on. The source is HAProxy's doc/proxy-protocol.txt.
//
// Invariants: whether a connection starts with a header is a matter of
// configuration and of who sends it (see Trusted), never guessed from its
// bytes; a header is used as a whole or the connection is refused; as soon as
// a byte shows that there is no header, or none that is allowed, that is an
// error, so no more than Parser.MaxHeader bytes are ever waited for.
//
// Start at Parser.Parse (parse.go) and Header.Append (append.go).
package proxyproto

import (
	"errors"
	"net/netip"
)

// The signatures that versions 1 and 2 start with.
const (
	signature1 = "PROXY "
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
)

const (
	// DefaultMaxHeader is the limit of a Parser whose MaxHeader is 0: room
	// for every TLV there is, and for a long name in a client's certificate.
	DefaultMaxHeader = 2048

	// maxLine is the longest line of version 1, its ending included.
	maxLine = 107

	// headerSize is the fixed part of version 2:
	//
	//	signature          12
	//	version, command    1   4 bits each
	//	family, protocol    1   4 bits each
	//	length              2   of addresses and TLVs, big endian
	headerSize = len(signature2) + 4

	maxUniqueID  = 128
	maxUnixPath  = 108
	tlvHeader    = 3 // type 1, length 2
	checksumSize = 4
)

// Transport says what kind of connection is passed on, as version 2 does:
// family and protocol in four bits each.
type Transport uint8

// The transports. Version 1 has TCP and Unspecified, which it calls UNKNOWN.
const (
	Unspecified Transport = 0x00 // the addresses are those of the connection itself
	TCP4        Transport = 0x11
	UDP4        Transport = 0x12
	TCP6        Transport = 0x21
	UDP6        Transport = 0x22
	UnixStream  Transport = 0x31
	UnixDgram   Transport = 0x32
)

// String returns the name that version 1 has, or would have.
func (t Transport) String() string {
	switch t {
	case TCP4:
		return "TCP4"
	case UDP4:
		return "UDP4"
	case TCP6:
		return "TCP6"
	case UDP6:
		return "UDP6"
	case UnixStream:
		return "UNIX_STREAM"
	case UnixDgram:
		return "UNIX_DGRAM"
	}
	return "UNKNOWN"
}

// addressSize is how many bytes the addresses have in version 2.
func (t Transport) addressSize() int {
	switch t {
	case TCP4, UDP4:
		return 2*4 + 2*2
	case TCP6, UDP6:
		return 2*16 + 2*2
	case UnixStream, UnixDgram:
		return 2 * maxUnixPath
	}
	return 0
}

// Header is what a proxy tells of a connection.
type Header struct {
	Version int // 1 or 2

	// Local says that the proxy speaks for itself, as for a health check.
	// Transport is then Unspecified. Version 2 only.
	Local bool

	// Transport is Unspecified if the connection's own addresses hold.
	// Otherwise these are in place of them: Source and Destination, or the
	// paths, where a leading @ stands for the abstract namespace and an
	// unnamed socket has none.
	Transport                   Transport
	Source, Destination         netip.AddrPort
	SourcePath, DestinationPath string

	// What version 2 may add, as bytes that the proxy vouches for and nobody
	// has looked at; empty: not told.
	ALPN      string // the protocol that was negotiated
	Authority string // the host the client asked for, as by SNI
	UniqueID  string // of the connection, at most 128 bytes
	Namespace string // of the network
	TLS       *TLS   // nil: not told
}

// TLS tells of TLS between the client and the proxy.
type TLS struct {
	Flags  TLSFlags
	Verify uint32 // 0 if a certificate was presented, and verified

	// Empty: not told.
	Version            string // as TLSv1.3
	CommonName         string // of the client's certificate
	Cipher             string
	SignatureAlgorithm string // of the proxy's certificate
	KeyAlgorithm       string // of the proxy's certificate
}

// TLSFlags says which elements of TLS there were.
type TLSFlags uint8

// The elements.
const (
	OverTLS            TLSFlags = 1 << iota // the client came over TLS
	CertificateConn                         // it has presented a certificate,
	CertificateSession                      // or had when the session began
)

// Verified reports whether the client has shown a certificate that the proxy
// has verified. Verify alone does not say it: it is 0 too where no certificate
// was asked for.
func (t *TLS) Verified() bool {
	return t != nil && t.Flags&(CertificateConn|CertificateSession) != 0 && t.Verify == 0
}

var (
	// ErrNoHeader says that the bytes are of something else: the peer does
	// not speak the PROXY protocol.
	ErrNoHeader = errors.New("proxyproto: no PROXY header")

	// ErrMalformed says that a header is there, but not as it must be, or
	// that a Header cannot be encoded.
	ErrMalformed = errors.New("proxyproto: malformed header")
)
