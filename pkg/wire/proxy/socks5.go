package proxy

import (
	"fmt"
	"net/netip"
)

const (
	version5      = 5 // of SOCKS
	versionAuth   = 1 // of RFC 1929
	methodNone    = 0
	methodAuth    = 2
	methodRefused = 0xff
	connect       = 1
	typeIP4       = 1
	typeName      = 3
	typeIP6       = 4

	// maxReply is the longest reply: four bytes, a name behind its length, a
	// port.
	maxReply = 4 + 1 + 255 + 2
)

// replies are the reasons of RFC 1928 6, by code.
var replies = [...]string{
	1: "general failure", 2: "not allowed by its rules", 3: "network unreachable", 4: "host unreachable",
	5: "connection refused", 6: "TTL expired", 7: "command not supported", 8: "kind of address not supported",
}

// SOCKS5 is the Handshake with a SOCKS5 proxy, made by NewSOCKS5:
//
//	client   5, number of methods, methods
//	proxy    5, method
//	client   1, length, user, length, password      if that is the method
//	proxy    1, 0
//	client   5, 1, 0, type, address, port
//	proxy    5, 0, 0, type, address, port
type SOCKS5 struct {
	host  string
	ip    netip.Addr // invalid: host is a name
	port  uint16
	as    Credentials
	stage stage
	got   [maxReply]byte // of the message that is coming
	n     int            // bytes of it
}

// stage is what a SOCKS5 waits for.
type stage uint8

const (
	chosen   stage = iota // method
	believed              // the proxy's word on the credentials
	replied
	over
)

// NewSOCKS5 asks for host, which is an IP address or a name that the proxy
// resolves, and port. With credentials the proxy may choose whether it wants
// them. The error is ErrTarget.
func NewSOCKS5(host string, port int, as Credentials) (*SOCKS5, error) {
	ip, err := checkTarget(host, port)
	if err != nil {
		return nil, err
	}
	if len(as.User) > 255 || len(as.Password) > 255 || as.User == "" && as.Password != "" {
		return nil, fmt.Errorf("%w: user of %d bytes, password of %d: want at most 255, and no password without a user", ErrTarget, len(as.User), len(as.Password))
	}
	return &SOCKS5{host: host, ip: ip, port: uint16(port), as: as}, nil
}

// Start appends the methods that the client knows.
func (s *SOCKS5) Start(dst []byte) []byte {
	if s.as.User == "" {
		return append(dst, version5, 1, methodNone)
	}
	return append(dst, version5, 2, methodNone, methodAuth)
}

// Next is Handshake's.
func (s *SOCKS5) Next(dst, in []byte) (used int, out []byte, done bool, err error) {
	for _, b := range in {
		if s.stage == over {
			break
		}
		used++
		s.got[s.n] = b
		s.n++
		if dst, err = s.take(dst); err != nil {
			return used, dst, false, err
		}
	}
	return used, dst, s.stage == over, nil
}

// take looks at the message that is coming, of which one more byte is there.
func (s *SOCKS5) take(dst []byte) ([]byte, error) {
	m := s.got[:s.n]
	want := byte(version5)
	if s.stage == believed {
		want = versionAuth
	}
	if m[0] != want {
		return dst, malformed("version %d, want %d", m[0], want)
	}
	if len(m) < 2 {
		return dst, nil
	}
	switch s.stage {
	case chosen:
		switch {
		case m[1] == methodNone:
			dst = s.request(dst)
		case m[1] == methodAuth && s.as.User != "":
			dst = s.tell(dst)
		case m[1] == methodRefused:
			return dst, &Refused{Reason: "it wants another way to know its client", credentials: true}
		default:
			return dst, malformed("it has chosen method %d, which was not offered", m[1])
		}
	case believed:
		if m[1] != 0 {
			return dst, &Refused{Reason: fmt.Sprintf("user %.80q or the password is not known there", s.as.User), credentials: true}
		}
		dst = s.request(dst)
	case replied:
		if m[1] != 0 {
			return dst, refusedBy5(m[1])
		}
		size, err := replySize(m)
		if err == nil && len(m) == size {
			s.stage, s.n = over, 0
		}
		return dst, err
	}
	return dst, nil
}

// refusedBy5 is a reply other than 0.
func refusedBy5(code byte) error {
	reason := "a code that RFC 1928 does not have"
	if int(code) < len(replies) {
		reason = replies[code]
	}
	return &Refused{Code: int(code), Reason: reason}
}

// replySize returns how long a reply is of which m has come; more than that
// if it cannot be known yet.
func replySize(m []byte) (int, error) {
	const fixed = 4 + 2
	if len(m) < 5 && (len(m) < 4 || m[3] == typeName) {
		return maxReply, nil
	}
	switch m[3] {
	case typeIP4:
		return fixed + 4, nil
	case typeIP6:
		return fixed + 16, nil
	case typeName:
		return fixed + 1 + int(m[4]), nil
	}
	return 0, malformed("address of type %d", m[3])
}

// tell appends the credentials.
func (s *SOCKS5) tell(dst []byte) []byte {
	s.stage, s.n = believed, 0
	dst = append(dst, versionAuth, byte(len(s.as.User)))
	dst = append(dst, s.as.User...)
	dst = append(dst, byte(len(s.as.Password)))
	return append(dst, s.as.Password...)
}

// request appends what the proxy is asked for.
func (s *SOCKS5) request(dst []byte) []byte {
	s.stage, s.n = replied, 0
	dst = append(dst, version5, connect, 0)
	switch {
	case !s.ip.IsValid():
		dst = append(dst, typeName, byte(len(s.host)))
		dst = append(dst, s.host...)
	case s.ip.Is4():
		dst = append(dst, typeIP4)
		dst = append(dst, s.ip.AsSlice()...)
	default:
		dst = append(dst, typeIP6)
		dst = append(dst, s.ip.AsSlice()...)
	}
	return append(dst, byte(s.port>>8), byte(s.port))
}
