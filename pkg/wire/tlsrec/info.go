package tlsrec

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Info is what a handshake has agreed on, as far as it is worth carrying to
// another process. Nothing of it is secret.
type Info struct {
	Version    uint16 // tls.VersionTLS13, ...
	Suite      uint16 // tls.TLS_AES_128_GCM_SHA256, ...
	Protocol   string // by ALPN; empty: none
	ServerName string // that the client asked for; empty: none
	Resumed    bool   // from a session ticket

	// Verified says that the peer's certificates led to a trusted one.
	Verified bool

	// PeerCertificates are the peer's, in DER, its own first.
	PeerCertificates [][]byte
}

// The form in which Info travels, version 1, integers big endian:
//
//	version       1
//	flags         1   1 resumed, 2 verified
//	TLS version   2
//	suite         2
//	protocol      1 + its length
//	server name   1 + its length
//	certificates  1 count, for each 3 + its length
const (
	infoVersion  = 1
	infoHeader   = 1 + 1 + 2 + 2
	infoResumed  = 1
	infoVerified = 2

	// MaxInfo is the most that Info.Append appends, in bytes.
	MaxInfo = 64 << 10
)

// ErrInfo says that bytes are not an Info that ParseInfo knows, or that an Info
// has no form to travel in.
var ErrInfo = errors.New("tlsrec: info is not valid")

// InfoOf returns what cs says.
func InfoOf(cs *tls.ConnectionState) Info {
	i := Info{
		Version:    cs.Version,
		Suite:      cs.CipherSuite,
		Protocol:   cs.NegotiatedProtocol,
		ServerName: cs.ServerName,
		Resumed:    cs.DidResume,
		Verified:   len(cs.VerifiedChains) > 0,
	}
	for _, cert := range cs.PeerCertificates {
		i.PeerCertificates = append(i.PeerCertificates, cert.Raw)
	}
	return i
}

// ConnectionState returns the part of crypto/tls' state that has travelled.
// VerifiedChains is empty even if Verified, and keying material cannot be
// exported. It fails if a certificate cannot be parsed.
func (i Info) ConnectionState() (tls.ConnectionState, error) {
	cs := tls.ConnectionState{
		Version:            i.Version,
		HandshakeComplete:  true,
		DidResume:          i.Resumed,
		CipherSuite:        i.Suite,
		NegotiatedProtocol: i.Protocol,
		ServerName:         i.ServerName,
	}
	for n, der := range i.PeerCertificates {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return tls.ConnectionState{}, fmt.Errorf("tlsrec: certificate %d of the peer: %w", n, err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, cert)
	}
	return cs, nil
}

// Append appends i in the form that ParseInfo reads. It fails with ErrInfo,
// and appends nothing, if a name is longer than 255 bytes, there are more than
// 255 certificates, or all are more than MaxInfo bytes.
func (i Info) Append(dst []byte) ([]byte, error) {
	if len(i.Protocol) > 255 || len(i.ServerName) > 255 || len(i.PeerCertificates) > 255 {
		return dst, fmt.Errorf("%w: protocol of %d bytes, server name of %d, %d certificates: want at most 255",
			ErrInfo, len(i.Protocol), len(i.ServerName), len(i.PeerCertificates))
	}
	n := infoHeader + 1 + len(i.Protocol) + 1 + len(i.ServerName) + 1
	for _, der := range i.PeerCertificates {
		n += 3 + len(der)
	}
	if n > MaxInfo {
		return dst, fmt.Errorf("%w: %d bytes, want at most %d", ErrInfo, n, MaxInfo)
	}
	var flags byte
	if i.Resumed {
		flags |= infoResumed
	}
	if i.Verified {
		flags |= infoVerified
	}
	dst = append(slices.Grow(dst, n), infoVersion, flags)
	dst = binary.BigEndian.AppendUint16(dst, i.Version)
	dst = binary.BigEndian.AppendUint16(dst, i.Suite)
	dst = append(append(dst, byte(len(i.Protocol))), i.Protocol...)
	dst = append(append(dst, byte(len(i.ServerName))), i.ServerName...)
	dst = append(dst, byte(len(i.PeerCertificates)))
	for _, der := range i.PeerCertificates {
		dst = append(dst, byte(len(der)>>16), byte(len(der)>>8), byte(len(der)))
		dst = append(dst, der...)
	}
	return dst, nil
}

// ParseInfo reads what Append has appended, all of it and nothing more. It
// keeps no reference to b. It fails with ErrInfo.
func ParseInfo(b []byte) (Info, error) {
	switch {
	case len(b) > MaxInfo:
		return Info{}, fmt.Errorf("%w: %d bytes, want at most %d", ErrInfo, len(b), MaxInfo)
	case len(b) < infoHeader:
		return Info{}, fmt.Errorf("%w: %d bytes, want at least %d", ErrInfo, len(b), infoHeader)
	case b[0] != infoVersion:
		return Info{}, fmt.Errorf("%w: version %d, want %d", ErrInfo, b[0], infoVersion)
	case b[1]&^(infoResumed|infoVerified) != 0:
		return Info{}, fmt.Errorf("%w: flags %#x", ErrInfo, b[1])
	}
	i := Info{
		Resumed:  b[1]&infoResumed != 0,
		Verified: b[1]&infoVerified != 0,
		Version:  binary.BigEndian.Uint16(b[2:]),
		Suite:    binary.BigEndian.Uint16(b[4:]),
	}
	r := infoReader{rest: b[infoHeader:]}
	i.Protocol = string(r.bytes(1))
	i.ServerName = string(r.bytes(1))
	for range r.number(1) {
		if der := r.bytes(3); !r.short {
			i.PeerCertificates = append(i.PeerCertificates, slices.Clone(der))
		}
	}
	if r.short || len(r.rest) > 0 {
		return Info{}, fmt.Errorf("%w: cut: %v, %d bytes too many", ErrInfo, r.short, len(r.rest))
	}
	return i, nil
}

// infoReader takes pieces off the front, until one is short.
type infoReader struct {
	rest  []byte
	short bool
}

// number takes an integer of size bytes.
func (r *infoReader) number(size int) int {
	n := 0
	for _, b := range r.take(size) {
		n = n<<8 | int(b)
	}
	return n
}

// bytes takes as many as an integer of size bytes says.
func (r *infoReader) bytes(size int) []byte { return r.take(r.number(size)) }

func (r *infoReader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	p := r.rest[:n]
	r.rest = r.rest[n:]
	return p
}
