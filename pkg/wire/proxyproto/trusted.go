package proxyproto

import (
	"fmt"
	"net/netip"
)

// Trusted says from whom a header is believed. Whoever else sends one could
// make himself appear as anybody. The zero value trusts nobody.
type Trusted struct {
	Prefixes []netip.Prefix
	Unix     bool // peers on unix sockets, whom the socket's mode has let in
}

// ParseTrusted reads a list of addresses, prefixes as 10.0.0.0/8, and the word
// unix. It fails if an entry is none of these, or a prefix has bits set behind
// its length.
func ParseTrusted(list []string) (Trusted, error) {
	var t Trusted
	for _, entry := range list {
		if entry == "unix" {
			t.Unix = true
			continue
		}
		if addr, err := netip.ParseAddr(entry); err == nil && addr.Zone() == "" {
			addr = addr.Unmap()
			t.Prefixes = append(t.Prefixes, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(entry)
		switch {
		case err != nil:
			return Trusted{}, fmt.Errorf("proxyproto: trusted %q: not an address, a prefix, or unix", entry)
		case prefix != prefix.Masked():
			return Trusted{}, fmt.Errorf("proxyproto: trusted %q: bits behind the prefix, did you mean %v", entry, prefix.Masked())
		case prefix.Addr().Is4In6():
			return Trusted{}, fmt.Errorf("proxyproto: trusted %q: write IPv4 as such", entry)
		}
		t.Prefixes = append(t.Prefixes, prefix)
	}
	return t, nil
}

// Contains reports whether the peer with the address is trusted. An IPv4
// address within IPv6 counts as IPv4, a zone does not count.
func (t Trusted) Contains(peer netip.Addr) bool {
	peer = peer.Unmap().WithZone("")
	for _, prefix := range t.Prefixes {
		if prefix.Contains(peer) {
			return true
		}
	}
	return false
}
