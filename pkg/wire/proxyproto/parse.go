package proxyproto

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/wire"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Parser reads headers. The zero value is usable, by any number of goroutines.
type Parser struct {
	// MaxHeader is the longest header taken, in bytes, all of it counted.
	// Zero means DefaultMaxHeader, a negative one what version 2 can say,
	// 65551 bytes; 16 is the least. Less than 232 refuses unix addresses.
	MaxHeader int
}

// Parse reads the header at the start of in, which it neither changes nor
// keeps.
//
// It returns by how many bytes the input is to be advanced, which is the
// header's length. Advance 0 without an error means that more input is wanted:
// what is there may be the start of a header. It fails with ErrNoHeader,
// ErrMalformed, or wire.ErrTooLong, as early as can be known; the connection
// is then to be closed.
func (p Parser) Parse(in []byte) (advance int, h Header, err error) {
	switch {
	case startsAs(in, signature1):
		return p.parseLine(in)
	case startsAs(in, signature2):
		return p.parseBlock(in)
	}
	return 0, Header{}, fmt.Errorf("%w: starts with %.16q", ErrNoHeader, in[:min(len(in), 16)])
}

// startsAs reports whether in has the prefix, or is the start of it.
func startsAs(in []byte, prefix string) bool {
	n := min(len(in), len(prefix))
	return string(in[:n]) == prefix[:n]
}

func (p Parser) limit() int {
	const most = headerSize + 1<<16 - 1
	switch {
	case p.MaxHeader == 0:
		return DefaultMaxHeader
	case p.MaxHeader < 0:
		return most
	}
	return max(headerSize, min(p.MaxHeader, most))
}

// parseLine reads version 1:
//
//	PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n
func (p Parser) parseLine(in []byte) (int, Header, error) {
	limit := min(maxLine, p.limit())
	window := in[:min(len(in), limit)]
	end := bytes.IndexByte(window, '\n')
	if end < 0 {
		if len(window) == limit {
			return 0, Header{}, fmt.Errorf("proxyproto: line of more than %d bytes: %w", limit, wire.ErrTooLong)
		}
		return 0, Header{}, nil
	}
	line, ended := strings.CutSuffix(string(window[:end]), "\r")
	if !ended || strings.Contains(line, "\r") {
		return 0, Header{}, fmt.Errorf("%w: %q does not end in CR LF", ErrMalformed, window[:end+1])
	}
	h, err := lineHeader(line)
	if err != nil {
		return 0, Header{}, err
	}
	return end + 1, h, nil
}

// lineHeader reads a line without its ending.
func lineHeader(line string) (Header, error) {
	h := Header{Version: 1}
	fields := strings.Split(strings.TrimPrefix(line, signature1), " ")
	switch fields[0] {
	case "UNKNOWN":
		return h, nil // whatever follows is to be ignored
	case "TCP4":
		h.Transport = TCP4
	case "TCP6":
		h.Transport = TCP6
	default:
		return Header{}, fmt.Errorf("%w: %q: transport is not TCP4, TCP6 or UNKNOWN", ErrMalformed, line)
	}
	if len(fields) != 5 {
		return Header{}, fmt.Errorf("%w: %q: %d fields, want 5 behind PROXY", ErrMalformed, line, len(fields))
	}
	var err error
	if h.Source, err = lineAddr(h.Transport, fields[1], fields[3]); err != nil {
		return Header{}, fmt.Errorf("%w: %q: source: %w", ErrMalformed, line, err)
	}
	if h.Destination, err = lineAddr(h.Transport, fields[2], fields[4]); err != nil {
		return Header{}, fmt.Errorf("%w: %q: destination: %w", ErrMalformed, line, err)
	}
	return h, nil
}

// lineAddr reads an address and a port of version 1, as narrowly as it has
// them: no zone, no IPv4 within IPv6, no sign, no leading zero.
func lineAddr(t Transport, host, port string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case t == TCP4 && !addr.Is4(), t == TCP6 && (!addr.Is6() || strings.ContainsAny(host, "%.")):
		return netip.AddrPort{}, fmt.Errorf("%q is not for %v", host, t)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("port %q", port)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// parseBlock reads version 2.
func (p Parser) parseBlock(in []byte) (int, Header, error) {
	h := Header{Version: 2}
	// Each byte is looked at as soon as it is there.
	const command, transport = len(signature2), len(signature2) + 1
	if len(in) > command {
		switch in[command] {
		case 0x20:
			h.Local = true
		case 0x21:
		default:
			return 0, Header{}, fmt.Errorf("%w: version and command %#02x", ErrMalformed, in[command])
		}
	}
	if len(in) > transport {
		t := in[transport]
		switch {
		case h.Local: // the family is ignored
		case t>>4 > 3 || t&15 > 2:
			return 0, Header{}, fmt.Errorf("%w: family and protocol %#02x", ErrMalformed, t)
		case t>>4 != 0 && t&15 != 0:
			h.Transport = Transport(t)
		}
	}
	if len(in) < headerSize {
		return 0, Header{}, nil
	}
	n := headerSize + int(binary.BigEndian.Uint16(in[headerSize-2:]))
	switch addresses := h.Transport.addressSize(); {
	case n > p.limit():
		return 0, Header{}, fmt.Errorf("proxyproto: header of %d bytes, want at most %d: %w", n, p.limit(), wire.ErrTooLong)
	case n-headerSize < addresses:
		return 0, Header{}, fmt.Errorf("%w: %d bytes for addresses of %v, want %d", ErrMalformed, n-headerSize, h.Transport, addresses)
	case len(in) < n:
		return 0, Header{}, nil
	case h.Transport == Unspecified:
		// Where its TLVs start is not defined, and nothing of them would
		// be used.
		return n, h, nil
	}
	if err := h.readAddresses(in[headerSize:]); err != nil {
		return 0, Header{}, err
	}
	if err := h.readTLVs(in[:n], headerSize+h.Transport.addressSize()); err != nil {
		return 0, Header{}, err
	}
	return n, h, nil
}

// readAddresses reads the addresses at the start of b, which is long enough.
func (h *Header) readAddresses(b []byte) error {
	switch h.Transport {
	case TCP4, UDP4:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[8:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[10:]))
	case TCP6, UDP6:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[32:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:])), binary.BigEndian.Uint16(b[34:]))
	case UnixStream, UnixDgram:
		var err error
		if h.SourcePath, err = unixPath(b[:maxUnixPath]); err != nil {
			return err
		}
		h.DestinationPath, err = unixPath(b[maxUnixPath : 2*maxUnixPath])
		return err
	}
	return nil
}

// unixPath reads sun_path, unix(7).
func unixPath(b []byte) (string, error) {
	switch b[0] {
	case 0:
		name := bytes.TrimRight(b[1:], "\x00")
		if len(name) == 0 {
			return "", nil
		}
		return "@" + string(name), nil
	case '@':
		return "", fmt.Errorf("%w: path %.16q, which would be taken for an abstract name", ErrMalformed, b)
	}
	path, _, _ := bytes.Cut(b, []byte{0})
	return string(path), nil
}

// The types of TLVs, and of those within tlvTLS.
const (
	tlvALPN      = 0x01
	tlvAuthority = 0x02
	tlvChecksum  = 0x03
	tlvUniqueID  = 0x05
	tlvTLS       = 0x20
	tlvNamespace = 0x30

	tlvTLSVersion   = 0x21
	tlvTLSName      = 0x22
	tlvTLSCipher    = 0x23
	tlvTLSSignature = 0x24
	tlvTLSKey       = 0x25
)

// readTLVs reads what stands in header from at on: type 1, length 2, value.
func (h *Header) readTLVs(header []byte, at int) error {
	checked := false
	for at < len(header) {
		typ, value, err := nextTLV(header[at:])
		if err != nil {
			return err
		}
		at += tlvHeader + len(value)
		switch typ {
		case tlvALPN:
			h.ALPN = string(value)
		case tlvAuthority:
			h.Authority = string(value)
		case tlvNamespace:
			h.Namespace = string(value)
		case tlvUniqueID:
			if len(value) > maxUniqueID {
				return fmt.Errorf("%w: unique id of %d bytes, want at most %d", ErrMalformed, len(value), maxUniqueID)
			}
			h.UniqueID = string(value)
		case tlvTLS:
			if h.TLS, err = readTLS(value); err != nil {
				return err
			}
		case tlvChecksum:
			if len(value) != checksumSize || checked {
				return fmt.Errorf("%w: checksum of %d bytes, or a second one", ErrMalformed, len(value))
			}
			checked = true
			want, got := binary.BigEndian.Uint32(value), checksum(header, at-checksumSize)
			if got != want {
				return fmt.Errorf("%w: checksum %#08x, want %#08x", ErrMalformed, got, want)
			}
		}
	}
	return nil
}

// checksum is the CRC32c of a header, with the one in it, at, taken as 0.
func checksum(header []byte, at int) uint32 {
	sum := crc32.Update(0, castagnoli, header[:at])
	sum = crc32.Update(sum, castagnoli, make([]byte, checksumSize))
	return crc32.Update(sum, castagnoli, header[at+checksumSize:])
}

// nextTLV returns the first TLV of b.
func nextTLV(b []byte) (typ byte, value []byte, err error) {
	if len(b) < tlvHeader {
		return 0, nil, fmt.Errorf("%w: %d bytes behind the last TLV", ErrMalformed, len(b))
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > len(b)-tlvHeader {
		return 0, nil, fmt.Errorf("%w: TLV %#02x of %d bytes, and %d are there", ErrMalformed, b[0], n, len(b)-tlvHeader)
	}
	return b[0], b[tlvHeader : tlvHeader+n], nil
}

// readTLS reads the value of a tlvTLS: flags 1, verify 4, TLVs.
func readTLS(value []byte) (*TLS, error) {
	if len(value) < 5 {
		return nil, fmt.Errorf("%w: TLS of %d bytes, want at least 5", ErrMalformed, len(value))
	}
	t := &TLS{Flags: TLSFlags(value[0]), Verify: binary.BigEndian.Uint32(value[1:])}
	for rest := value[5:]; len(rest) > 0; {
		typ, value, err := nextTLV(rest)
		if err != nil {
			return nil, fmt.Errorf("within TLS: %w", err)
		}
		rest = rest[tlvHeader+len(value):]
		switch typ {
		case tlvTLSVersion:
			t.Version = string(value)
		case tlvTLSName:
			t.CommonName = string(value)
		case tlvTLSCipher:
			t.Cipher = string(value)
		case tlvTLSSignature:
			t.SignatureAlgorithm = string(value)
		case tlvTLSKey:
			t.KeyAlgorithm = string(value)
		}
	}
	return t, nil
}
