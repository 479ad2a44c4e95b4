package proxyproto

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mainstay-go/mainstay/pkg/wire"
)

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// block makes a header of version 2.
func block(command, transport byte, body string) string {
	return signature2 + string([]byte{command, transport, byte(len(body) >> 8), byte(len(body))}) + body
}

const (
	ip4 = "\xc0\x00\x02\x01\xc0\x00\x02\x02\xdc\x04\x01\xbb"
	ip6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xdc\x04\x01\xbb"
)

func path(s string) string { return s + strings.Repeat("\x00", maxUnixPath-len(s)) }

var (
	proxied4 = Header{Version: 2, Transport: TCP4, Source: addr("192.0.2.1:56324"), Destination: addr("192.0.2.2:443")}
	proxied6 = Header{Version: 2, Transport: TCP6, Source: addr("[2001:db8::1]:56324"), Destination: addr("[2001:db8::2]:443")}
	unknown2 = Header{Version: 2}
)

// with returns a header with something changed.
func with(h Header, change func(*Header)) Header {
	change(&h)
	return h
}

// headers is the table of the tests and the seed of the fuzz target. What is
// behind a header must not be looked at: each is tried with something there.
var headers = []struct {
	name string
	max  int
	in   string
	want Header
	err  error
}{
	{name: "TCP4", in: "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", want: with(proxied4, func(h *Header) { h.Version = 1 })},
	{name: "TCP6", in: "PROXY TCP6 2001:db8::1 2001:DB8:0:0::2 56324 443\r\n", want: with(proxied6, func(h *Header) { h.Version = 1 })},
	{name: "the longest TCP6", in: "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
		want: Header{Version: 1, Transport: TCP6, Source: addr("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"), Destination: addr("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")}},
	{name: "port 0", in: "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", want: Header{Version: 1, Transport: TCP4, Source: addr("0.0.0.0:0"), Destination: addr("255.255.255.255:65535")}},
	{name: "UNKNOWN", in: "PROXY UNKNOWN\r\n", want: Header{Version: 1}},
	{name: "the longest UNKNOWN", in: "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", want: Header{Version: 1}},
	{name: "UNKNOWN with anything", in: "PROXY UNKNOWN \x00 what ever\r\n", want: Header{Version: 1}},

	{name: "line without an end", in: "PROXY UNKNOWN " + strings.Repeat("x", 93), err: wire.ErrTooLong},
	{name: "line that ends too late", in: "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", err: wire.ErrTooLong},
	{name: "line feed alone", in: "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n", err: ErrMalformed},
	{name: "carriage return inside", in: "PROXY UNKNOWN \r \r\n", err: ErrMalformed},
	{name: "another protocol", in: "PROXY UDP4 192.0.2.1 192.0.2.2 56324 443\r\n", err: ErrMalformed},
	{name: "no protocol", in: "PROXY \r\n", err: ErrMalformed},
	{name: "lower case", in: "PROXY tcp4 192.0.2.1 192.0.2.2 56324 443\r\n", err: ErrMalformed},
	{name: "two blanks", in: "PROXY TCP4  192.0.2.1 192.0.2.2 56324 443\r\n", err: ErrMalformed},
	{name: "blank at the end", in: "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 \r\n", err: ErrMalformed},
	{name: "no ports", in: "PROXY TCP4 192.0.2.1 192.0.2.2\r\n", err: ErrMalformed},
	{name: "leading zero in an address", in: "PROXY TCP4 192.0.02.1 192.0.2.2 56324 443\r\n", err: ErrMalformed},
	{name: "leading zero in a port", in: "PROXY TCP4 192.0.2.1 192.0.2.2 056324 443\r\n", err: ErrMalformed},
	{name: "signed port", in: "PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n", err: ErrMalformed},
	{name: "port too large", in: "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n", err: ErrMalformed},
	{name: "IPv6 in TCP4", in: "PROXY TCP4 2001:db8::1 192.0.2.2 1 443\r\n", err: ErrMalformed},
	{name: "IPv4 in TCP6", in: "PROXY TCP6 192.0.2.1 192.0.2.2 1 443\r\n", err: ErrMalformed},
	{name: "IPv4 in IPv6", in: "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 443\r\n", err: ErrMalformed},
	{name: "zone", in: "PROXY TCP6 fe80::1%eth0 ::1 1 443\r\n", err: ErrMalformed},
	{name: "name", in: "PROXY TCP4 localhost localhost 1 443\r\n", err: ErrMalformed},
	{name: "short IPv4", in: "PROXY TCP4 127.1 127.0.0.1 1 443\r\n", err: ErrMalformed},
	{name: "HTTP", in: "GET / HTTP/1.1\r\n", err: ErrNoHeader},
	{name: "method like it", in: "PROXYX / HTTP/1.1\r\n", err: ErrNoHeader},
	{name: "TLS", in: "\x16\x03\x01", err: ErrNoHeader},
	{name: "empty line", in: "\r\n\r\nG", err: ErrNoHeader},

	{name: "v2 TCP4", in: block(0x21, 0x11, ip4), want: proxied4},
	{name: "v2 TCP6", in: block(0x21, 0x21, ip6), want: proxied6},
	{name: "v2 UDP4", in: block(0x21, 0x12, ip4), want: with(proxied4, func(h *Header) { h.Transport = UDP4 })},
	{name: "v2 UDP6", in: block(0x21, 0x22, ip6), want: with(proxied6, func(h *Header) { h.Transport = UDP6 })},
	{name: "v2 unix", in: block(0x21, 0x31, path("/run/a.sock")+path("\x00name")),
		want: Header{Version: 2, Transport: UnixStream, SourcePath: "/run/a.sock", DestinationPath: "@name"}},
	{name: "v2 unix without names", in: block(0x21, 0x32, path("")+path("")), want: Header{Version: 2, Transport: UnixDgram}},
	{name: "v2 unix, names that fill all", in: block(0x21, 0x31, strings.Repeat("p", 108)+strings.Repeat("q", 108)),
		want: Header{Version: 2, Transport: UnixStream, SourcePath: strings.Repeat("p", 108), DestinationPath: strings.Repeat("q", 108)}},
	{name: "v2 unix, name with a zero", in: block(0x21, 0x31, path("\x00a\x00b")+path("p\x00junk")),
		want: Header{Version: 2, Transport: UnixStream, SourcePath: "@a\x00b", DestinationPath: "p"}},
	{name: "v2 unix, path like a name", in: block(0x21, 0x31, path("p")+path("@a")), err: ErrMalformed},
	{name: "v2 LOCAL", in: block(0x20, 0, ""), want: Header{Version: 2, Local: true}},
	{name: "v2 LOCAL with what is to be skipped", in: block(0x20, 0x11, ip4+"\x03\x00\x04junk"), want: Header{Version: 2, Local: true}},
	{name: "v2 LOCAL of a family yet to come", in: block(0x20, 0x77, ip4), want: Header{Version: 2, Local: true}},
	{name: "v2 unspecified", in: block(0x21, 0, "what ever"), want: unknown2},
	{name: "v2 IPv4 without a protocol", in: block(0x21, 0x10, ip4), want: unknown2},
	{name: "v2 stream without a family", in: block(0x21, 0x01, ip4), want: unknown2},
	{name: "v2 with all there is", in: block(0x21, 0x11, ip4+
		"\x01\x00\x02h2"+"\x02\x00\x0bexample.org"+"\x04\x00\x03\x00\x00\x00"+"\x05\x00\x04\x00id\xff"+"\x30\x00\x02ns"+"\xe0\x00\x01x"+
		"\x20\x00\x2b\x03\x00\x00\x00\x00"+"\x21\x00\x07TLSv1.3"+"\x22\x00\x05alice"+"\x23\x00\x02C1"+"\x24\x00\x02S1"+"\x25\x00\x04K1..\x26\x00\x00"),
		want: with(proxied4, func(h *Header) {
			h.ALPN, h.Authority, h.UniqueID, h.Namespace = "h2", "example.org", "\x00id\xff", "ns"
			h.TLS = &TLS{Flags: OverTLS | CertificateConn, Version: "TLSv1.3", CommonName: "alice", Cipher: "C1", SignatureAlgorithm: "S1", KeyAlgorithm: "K1.."}
		})},
	{name: "v2 with a longest unique id", in: block(0x21, 0x11, ip4+"\x05\x00\x80"+strings.Repeat("i", 128)),
		want: with(proxied4, func(h *Header) { h.UniqueID = strings.Repeat("i", 128) })},

	{name: "v2 version 1", in: signature2 + "\x11", err: ErrMalformed},
	{name: "v2 version 3", in: signature2 + "\x31", err: ErrMalformed},
	{name: "v2 command 2", in: signature2 + "\x22", err: ErrMalformed},
	{name: "v2 family 4", in: signature2 + "\x21\x41", err: ErrMalformed},
	{name: "v2 protocol 3", in: signature2 + "\x21\x13", err: ErrMalformed},
	{name: "v2 too short for its addresses, told by the length", in: signature2 + "\x21\x11\x00\x0b", err: ErrMalformed},
	{name: "v2 too long, told by the length", in: signature2 + "\x21\x11\x07\xf1", err: wire.ErrTooLong},
	{name: "v2 LOCAL that is too long", in: signature2 + "\x20\x00\xff\xff", err: wire.ErrTooLong},
	{name: "v2 over a limit", max: 27, in: signature2 + "\x21\x11\x00\x0c", err: wire.ErrTooLong},
	{name: "v2 at the limit", max: 28, in: block(0x21, 0x11, ip4), want: proxied4},
	{name: "v2 half a TLV", in: block(0x21, 0x11, ip4+"\x01\x00"), err: ErrMalformed},
	{name: "v2 TLV beyond the end", in: block(0x21, 0x11, ip4+"\x01\x00\x03h2"), err: ErrMalformed},
	{name: "v2 unique id too long", in: block(0x21, 0x11, ip4+"\x05\x00\x81"+strings.Repeat("i", 129)), err: ErrMalformed},
	{name: "v2 wrong checksum", in: block(0x21, 0x11, ip4+"\x03\x00\x04\x00\x00\x00\x00"), err: ErrMalformed},
	{name: "v2 short checksum", in: block(0x21, 0x11, ip4+"\x03\x00\x03\x00\x00\x00"), err: ErrMalformed},
	{name: "v2 short TLS", in: block(0x21, 0x11, ip4+"\x20\x00\x04\x01\x00\x00\x00"), err: ErrMalformed},
	{name: "v2 TLV within TLS beyond its end", in: block(0x21, 0x11, ip4+"\x20\x00\x09\x01\x00\x00\x00\x00\x21\x00\x02T\x01\x00\x02h2"), err: ErrMalformed},
}

func TestHeaderIsReadHoweverItArrives(t *testing.T) {
	for _, tt := range headers {
		t.Run(tt.name, func(t *testing.T) {
			p := Parser{MaxHeader: tt.max}
			in := []byte(tt.in + "GET / HTTP/1.1\r\n\r\n")
			failed := false
			for n := range in {
				advance, h, err := p.Parse(in[:n])
				switch {
				case err != nil:
					if tt.err == nil || !errors.Is(err, tt.err) {
						t.Fatalf("%d bytes: error %v, want %v", n, err, tt.err)
					}
					failed = true
				case failed:
					t.Fatalf("%d bytes: no error, but one with fewer", n)
				case advance == 0 && tt.err == nil && n >= len(tt.in), advance != 0 && n < len(tt.in), advance != 0 && advance != len(tt.in):
					t.Fatalf("%d bytes: advance %d, want %d", n, advance, len(tt.in))
				case advance != 0:
					if diff := cmp.Diff(tt.want, h, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
						t.Fatalf("%d bytes: %s", n, diff)
					}
				}
			}
			if tt.err != nil {
				if _, _, err := p.Parse([]byte(tt.in)); !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v as soon as it can be known", err, tt.err)
				}
			}
		})
	}
}

func TestBrokenChecksumIsSeen(t *testing.T) {
	h := with(proxied6, func(h *Header) { h.Authority = "example.org" })
	good, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := (Parser{}).Parse(good); err != nil || got != h {
		t.Fatalf("got %+v, %v, want %+v", got, err, h)
	}
	// The addresses and the name: what no rule but the checksum protects.
	for at := headerSize; at < len(good); at++ {
		if at >= headerSize+36 && at < headerSize+36+tlvHeader || at >= len(good)-checksumSize-tlvHeader && at < len(good)-checksumSize {
			continue // types and lengths
		}
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		if _, _, err := (Parser{}).Parse(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("byte %d: %v, want ErrMalformed", at, err)
		}
	}
}

func TestWhatIsToldIsRead(t *testing.T) {
	full := with(proxied4, func(h *Header) {
		h.ALPN, h.Authority, h.UniqueID, h.Namespace = "h2", "example.org", "\x00id", "ns"
		h.TLS = &TLS{Flags: OverTLS | CertificateSession, Verify: 7, Version: "TLSv1.3", CommonName: "alice", Cipher: "C", SignatureAlgorithm: "S", KeyAlgorithm: "K"}
	})
	mapped := Header{Version: 1, Transport: TCP6, Source: addr("[::ffff:1.2.3.4]:1"), Destination: addr("[::]:0")}
	for _, tt := range []struct {
		name string
		h    Header
		want string // the bytes; empty: not told here
		bad  bool
	}{
		{name: "v1", h: with(proxied4, func(h *Header) { h.Version = 1 }), want: "PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"},
		{name: "v1 TCP6", h: with(proxied6, func(h *Header) { h.Version = 1 }), want: "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"},
		{name: "v1 IPv4 in IPv6", h: mapped, want: "PROXY TCP6 ::ffff:102:304 :: 1 0\r\n"},
		{name: "v1 UNKNOWN", h: Header{Version: 1}, want: "PROXY UNKNOWN\r\n"},
		{name: "v2 LOCAL", h: Header{Version: 2, Local: true}, want: block(0x20, 0, "")},
		{name: "v2 unspecified", h: unknown2, want: block(0x21, 0, "")},
		{name: "v2 TCP4", h: proxied4},
		{name: "v2 TCP6", h: proxied6},
		{name: "v2 unix", h: Header{Version: 2, Transport: UnixStream, SourcePath: "@a", DestinationPath: "/b"}},
		{name: "v2 unix unnamed", h: Header{Version: 2, Transport: UnixDgram}},
		{name: "v2 full", h: full},
		{name: "v2 TLS without words", h: with(proxied4, func(h *Header) { h.TLS = &TLS{Verify: 1} })},

		{name: "no version", h: Header{Transport: TCP4}, bad: true},
		{name: "v1 UDP", h: with(proxied4, func(h *Header) { h.Version, h.Transport = 1, UDP4 }), bad: true},
		{name: "v1 with a name", h: with(proxied4, func(h *Header) { h.Version, h.Authority = 1, "x" }), bad: true},
		{name: "v1 LOCAL", h: Header{Version: 1, Local: true}, bad: true},
		{name: "v1 no address", h: Header{Version: 1, Transport: TCP4}, bad: true},
		{name: "v2 no address", h: Header{Version: 2, Transport: TCP4}, bad: true},
		{name: "v2 IPv6 in TCP4", h: with(proxied6, func(h *Header) { h.Transport = TCP4 }), bad: true},
		{name: "v2 zone", h: with(proxied6, func(h *Header) { h.Source = addr("[fe80::1%eth0]:1") }), bad: true},
		{name: "v2 address for unix", h: with(proxied4, func(h *Header) { h.Transport = UnixStream }), bad: true},
		{name: "v2 path for TCP", h: with(proxied4, func(h *Header) { h.SourcePath = "/x" }), bad: true},
		{name: "v2 path too long", h: Header{Version: 2, Transport: UnixStream, SourcePath: strings.Repeat("x", 109)}, bad: true},
		{name: "v2 path with a zero", h: Header{Version: 2, Transport: UnixStream, SourcePath: "a\x00b"}, bad: true},
		{name: "v2 name that ends in a zero", h: Header{Version: 2, Transport: UnixStream, SourcePath: "@a\x00"}, bad: true},
		{name: "v2 path that is no name", h: Header{Version: 2, Transport: UnixStream, SourcePath: "@"}, bad: true},
		{name: "v2 unknown transport", h: Header{Version: 2, Transport: 0x13}, bad: true},
		{name: "v2 LOCAL with addresses", h: with(proxied4, func(h *Header) { h.Local = true }), bad: true},
		{name: "v2 unique id too long", h: with(proxied4, func(h *Header) { h.UniqueID = strings.Repeat("i", 129) }), bad: true},
		{name: "v2 value too long", h: with(proxied4, func(h *Header) { h.Authority = strings.Repeat("i", 1<<16) }), bad: true},
		{name: "v2 values too long", h: with(proxied4, func(h *Header) { h.Authority, h.ALPN = strings.Repeat("i", 40000), strings.Repeat("i", 40000) }), bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := tt.h.Append([]byte(">"))
			if tt.bad {
				if !errors.Is(err, ErrMalformed) || string(out) != ">" {
					t.Errorf("got %q, %v, want ErrMalformed", out, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.want != "" && string(out[1:]) != tt.want {
				t.Errorf("bytes %q, want %q", out[1:], tt.want)
			}
			advance, back, err := Parser{}.Parse(out[1:])
			if advance != len(out)-1 || err != nil || !reflect.DeepEqual(back, tt.h) {
				t.Errorf("read back %d of %d, %+v, %v, want %+v", advance, len(out)-1, back, err, tt.h)
			}
		})
	}
}

func TestVerifiedNeedsACertificate(t *testing.T) {
	for _, tt := range []struct {
		name string
		tls  *TLS
		want bool
	}{
		{name: "no TLS"},
		{name: "no certificate", tls: &TLS{Flags: OverTLS}},
		{name: "verified", tls: &TLS{Flags: OverTLS | CertificateConn}, want: true},
		{name: "verified before", tls: &TLS{Flags: OverTLS | CertificateSession}, want: true},
		{name: "not verified", tls: &TLS{Flags: OverTLS | CertificateConn, Verify: 1}},
	} {
		if got := tt.tls.Verified(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOnlyTheTrustedAreBelieved(t *testing.T) {
	trusted, err := ParseTrusted([]string{"10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:203.0.113.9", "fe80::/64"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		peer string
		want bool
	}{
		{"10.255.255.255", true}, {"11.0.0.0", false}, {"192.0.2.1", true}, {"192.0.2.2", false},
		{"::ffff:10.1.2.3", true}, {"::ffff:11.1.2.3", false}, {"2001:db8:ffff::1", true}, {"2001:db9::1", false},
		{"203.0.113.9", true}, {"fe80::1%eth0", true}, {"fe80:0:0:1::1%eth0", false},
	} {
		if got := trusted.Contains(netip.MustParseAddr(tt.peer)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.peer, got, tt.want)
		}
	}
	if trusted.Unix || trusted.Contains(netip.Addr{}) || (Trusted{}).Contains(netip.MustParseAddr("127.0.0.1")) {
		t.Error("somebody is trusted who was not named")
	}
	if u, err := ParseTrusted([]string{"unix"}); err != nil || !u.Unix || len(u.Prefixes) > 0 {
		t.Errorf("unix: %+v, %v", u, err)
	}
	for _, bad := range []string{"", "localhost", "10.0.0.0/33", "10.0.0.1/8", "fe80::1%eth0", "::ffff:10.0.0.0/104", "10.0.0.0/8 "} {
		if got, err := ParseTrusted([]string{bad}); err == nil {
			t.Errorf("%q is taken as %+v", bad, got)
		}
	}
}

func TestCurlTellsWhoItIs(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed; scripts/install-test-tools does it")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.CommandContext(t.Context(), curl, "--silent", "--show-error", "--noproxy", "*", "--haproxy-protocol", "http://"+ln.Addr().String()+"/x")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var in []byte
	buf := make([]byte, 7)
	for {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%v behind %q", err, in)
		}
		in = append(in, buf[:n]...)
		advance, h, err := Parser{}.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if advance == 0 {
			continue
		}
		want := Header{Version: 1, Transport: TCP4, Source: addr(c.RemoteAddr().String()), Destination: addr(c.LocalAddr().String())}
		if h != want {
			t.Errorf("got %+v, want %+v", h, want)
		}
		break
	}
	if _, err := io.WriteString(c, "HTTP/1.0 204 No Content\r\n\r\n"); err != nil {
		t.Error(err)
	}
	c.Close()
	// Closed before all of the request was read, curl may see a reset.
	_ = cmd.Wait()
}

func FuzzParse(f *testing.F) {
	for _, tt := range headers {
		f.Add([]byte(tt.in), tt.max)
	}
	for _, h := range []Header{proxied4, proxied6} {
		h.UniqueID, h.TLS = "id", &TLS{Version: "TLSv1.3"}
		b, err := h.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 0)
	}
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		p := Parser{MaxHeader: limit}
		advance, h, err := p.Parse(in)
		if advance < 0 || advance > len(in) || advance > p.limit() || err != nil && advance != 0 {
			t.Fatalf("advance %d of %d, %v", advance, len(in), err)
		}
		if err == nil && advance == 0 && len(in) >= p.limit() {
			t.Fatalf("wants more than %d bytes", len(in))
		}
		// The same with one byte after the other.
		for n := range min(len(in), 3000) {
			a, part, perr := p.Parse(in[:n])
			if perr != nil && err == nil || perr == nil && a != 0 && (a != advance || !reflect.DeepEqual(part, h)) {
				t.Fatalf("%d bytes: %d, %+v, %v; whole: %d, %+v, %v", n, a, part, perr, advance, h, err)
			}
		}
		if advance == 0 {
			return
		}
		out, err := h.Append(nil)
		if err != nil {
			if len(in) > 1<<15 {
				return // the checksum may be too much
			}
			t.Fatalf("%+v: %v", h, err)
		}
		_, back, err := Parser{MaxHeader: -1}.Parse(out)
		if err != nil || !reflect.DeepEqual(back, h) {
			t.Fatalf("%+v comes back as %+v, %v", h, back, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, h := range []Header{with(proxied4, func(h *Header) { h.Version = 1 }), proxied4} {
		b.Run(fmt.Sprint(h.Version), func(b *testing.B) {
			in, err := h.Append(nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := (Parser{}).Parse(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func ExampleParser_Parse() {
	in := []byte("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET /")
	advance, h, _ := Parser{}.Parse(in)
	fmt.Printf("%v %v, then %q\n", h.Transport, h.Source, in[advance:])
	// Output: TCP4 192.0.2.1:56324, then "GET /"
}
