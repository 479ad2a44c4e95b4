package proxyproto

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// Append appends h in the form of its Version, as the first bytes of a
// connection that a proxy makes; one write should carry it whole. Version 2
// carries a checksum, except where the transport is Unspecified: then
// everything but Local is left out, since nobody would use it.
//
// It fails with ErrMalformed, and appends nothing, if h cannot be told: an
// address that is not of its transport, a transport other than TCP or what
// only version 2 has in version 1, or a value that is too long.
func (h Header) Append(dst []byte) ([]byte, error) {
	switch h.Version {
	case 1:
		return h.appendLine(dst)
	case 2:
		return h.appendBlock(dst)
	}
	return dst, fmt.Errorf("%w: version %d", ErrMalformed, h.Version)
}

func (h Header) appendLine(dst []byte) ([]byte, error) {
	plain := Header{Version: 1, Transport: h.Transport, Source: h.Source, Destination: h.Destination}
	switch {
	case h != plain:
		return dst, fmt.Errorf("%w: more than version 1 can tell", ErrMalformed)
	case h.Transport == Unspecified:
		return append(dst, signature1+"UNKNOWN\r\n"...), nil
	case h.Transport != TCP4 && h.Transport != TCP6:
		return dst, fmt.Errorf("%w: version 1 with %v", ErrMalformed, h.Transport)
	}
	if err := h.checkAddresses(); err != nil {
		return dst, err
	}
	return fmt.Appendf(dst, "%s%v %s %s %d %d\r\n", signature1, h.Transport,
		lineHost(h.Source.Addr()), lineHost(h.Destination.Addr()), h.Source.Port(), h.Destination.Port()), nil
}

// lineHost writes an address as version 1 has it: no IPv4 within IPv6.
func lineHost(a netip.Addr) string {
	if a.Is4In6() {
		b := a.As16()
		return fmt.Sprintf("::ffff:%x:%x", binary.BigEndian.Uint16(b[12:]), binary.BigEndian.Uint16(b[14:]))
	}
	return a.String()
}

// checkAddresses fails if the addresses are not of the transport.
func (h Header) checkAddresses() error {
	for _, a := range []netip.AddrPort{h.Source, h.Destination} {
		var ok bool
		switch h.Transport {
		case TCP4, UDP4:
			ok = a.Addr().Is4()
		case TCP6, UDP6:
			ok = a.Addr().Is6() && a.Addr().Zone() == ""
		case UnixStream, UnixDgram:
			ok = a == netip.AddrPort{}
		}
		if !ok {
			return fmt.Errorf("%w: address %v for %v", ErrMalformed, a, h.Transport)
		}
	}
	unix := h.Transport == UnixStream || h.Transport == UnixDgram
	for _, path := range []string{h.SourcePath, h.DestinationPath} {
		// A name, unlike a path, may have zeros, but its end is found by them.
		name, abstract := strings.CutPrefix(path, "@")
		zero := !abstract && strings.Contains(path, "\x00") || strings.HasSuffix(path, "\x00")
		if path != "" && !unix || len(path) > maxUnixPath || abstract && name == "" || zero {
			return fmt.Errorf("%w: path %q for %v", ErrMalformed, path, h.Transport)
		}
	}
	return nil
}

func (h Header) appendBlock(dst []byte) ([]byte, error) {
	at := len(dst)
	out := append(dst, signature2...)
	if h.Transport == Unspecified {
		command := byte(0x21)
		if h.Local {
			command = 0x20
		}
		return append(out, command, 0, 0, 0), nil
	}
	if h.Local || h.Transport.addressSize() == 0 {
		return dst, fmt.Errorf("%w: transport %#02x, local %v", ErrMalformed, uint8(h.Transport), h.Local)
	}
	if err := h.checkAddresses(); err != nil {
		return dst, err
	}
	out = h.appendAddresses(append(out, 0x21, byte(h.Transport), 0, 0))
	out, err := h.appendTLVs(out)
	if err != nil {
		return dst, err
	}
	out = append(out, tlvChecksum, 0, checksumSize, 0, 0, 0, 0)
	header := out[at:]
	n := len(header) - headerSize
	if n > math.MaxUint16 {
		return dst, fmt.Errorf("%w: %d bytes, want at most %d", ErrMalformed, n, math.MaxUint16)
	}
	binary.BigEndian.PutUint16(header[headerSize-2:], uint16(n))
	sum := len(header) - checksumSize
	binary.BigEndian.PutUint32(header[sum:], checksum(header, sum))
	return out, nil
}

func (h Header) appendAddresses(dst []byte) []byte {
	if h.Transport == UnixStream || h.Transport == UnixDgram {
		return appendPath(appendPath(dst, h.SourcePath), h.DestinationPath)
	}
	dst = append(dst, h.Source.Addr().AsSlice()...)
	dst = append(dst, h.Destination.Addr().AsSlice()...)
	dst = binary.BigEndian.AppendUint16(dst, h.Source.Port())
	return binary.BigEndian.AppendUint16(dst, h.Destination.Port())
}

func appendPath(dst []byte, path string) []byte {
	var b [maxUnixPath]byte
	copy(b[:], path)
	if strings.HasPrefix(path, "@") {
		b[0] = 0
	}
	return append(dst, b[:]...)
}

// appendTLVs appends all but the checksum.
func (h Header) appendTLVs(dst []byte) ([]byte, error) {
	var err error
	dst = appendTLV(dst, tlvALPN, h.ALPN, &err)
	dst = appendTLV(dst, tlvAuthority, h.Authority, &err)
	dst = appendTLV(dst, tlvNamespace, h.Namespace, &err)
	if len(h.UniqueID) > maxUniqueID {
		return nil, fmt.Errorf("%w: unique id of %d bytes, want at most %d", ErrMalformed, len(h.UniqueID), maxUniqueID)
	}
	dst = appendTLV(dst, tlvUniqueID, h.UniqueID, &err)
	if t := h.TLS; t != nil {
		value := binary.BigEndian.AppendUint32([]byte{byte(t.Flags)}, t.Verify)
		value = appendTLV(value, tlvTLSVersion, t.Version, &err)
		value = appendTLV(value, tlvTLSName, t.CommonName, &err)
		value = appendTLV(value, tlvTLSCipher, t.Cipher, &err)
		value = appendTLV(value, tlvTLSSignature, t.SignatureAlgorithm, &err)
		value = appendTLV(value, tlvTLSKey, t.KeyAlgorithm, &err)
		dst = appendTLV(dst, tlvTLS, string(value), &err)
	}
	return dst, err
}

// appendTLV appends a TLV, unless its value is empty. It sets err if the value
// is too long for one.
func appendTLV(dst []byte, typ byte, value string, err *error) []byte {
	switch {
	case value == "":
		return dst
	case len(value) > math.MaxUint16:
		*err = fmt.Errorf("%w: TLV %#02x of %d bytes, want at most %d", ErrMalformed, typ, len(value), math.MaxUint16)
		return dst
	}
	dst = append(dst, typ, byte(len(value)>>8), byte(len(value)))
	return append(dst, value...)
}
