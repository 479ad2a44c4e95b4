package conn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/mainstay-go/mainstay/pkg/wire/proxy"
	"golang.org/x/sys/unix"
)

// route is where an outgoing connection leads and by which way.
type route struct {
	address string // as it was given
	network string // tcp, udp, unix
	secure  bool   // TLS over it
	tls     *tls.Config
	host    string // address or name
	port    int
	path    string // of unix; "@name": abstract
	proxy   *via   // nil: straight
}

// via is a proxy.
type via struct {
	socks bool // otherwise HTTP
	host  string
	port  int
	as    proxy.Credentials
}

var errAddress = errors.New("want tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///PATH or unix://@NAME")

// parseRoute reads an address.
func parseRoute(address string, through *via) (route, error) {
	r := route{address: address, proxy: through}
	bad := func(why error) (route, error) {
		return route{}, fmt.Errorf("conn: address %q: %w", address, why)
	}
	network, where, ok := strings.Cut(address, "://")
	if !ok {
		return bad(errAddress)
	}
	if r.network = network; network == "tls" {
		r.network, r.secure = "tcp", true
	}
	switch r.network {
	case "tcp", "udp":
		var err error
		if r.host, r.port, err = hostPort(where); err != nil {
			return bad(err)
		}
	case "unix":
		r.path = where
		if len(where) < 2 || where[0] != '/' && where[0] != '@' || strings.ContainsRune(where, 0) {
			return bad(errAddress)
		}
		if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(where) > most {
			return bad(fmt.Errorf("path of %d bytes, want at most %d", len(where), most))
		}
	default:
		return bad(errAddress)
	}
	if through != nil {
		if r.network != "tcp" {
			return bad(errors.New("only tcp:// and tls:// go through a proxy"))
		}
		if _, err := r.handshake(); err != nil {
			return bad(err)
		}
	}
	return r, nil
}

func hostPort(s string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errAddress
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("port %q, want 1 to 65535", text)
	}
	if host == "" || len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", 0, errAddress
	}
	return host, port, nil
}

// parseProxy reads a proxy's URL. Errors do not quote it, as a password may
// stand in it.
func parseProxy(text string) (*via, error) {
	bad := errors.New("conn: proxy: want socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT")
	u, err := url.Parse(text)
	if err != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return nil, bad
	}
	v := &via{socks: u.Scheme == "socks5" || u.Scheme == "socks5h"}
	if !v.socks && u.Scheme != "http" {
		return nil, bad
	}
	if v.host, v.port, err = hostPort(u.Host); err != nil {
		return nil, bad
	}
	if u.User != nil {
		v.as.User = u.User.Username()
		v.as.Password, _ = u.User.Password()
	}
	return v, nil
}

// handshake returns what is talked with the proxy, nil without one.
func (r *route) handshake() (proxy.Handshake, error) {
	switch {
	case r.proxy == nil:
		return nil, nil
	case r.proxy.socks:
		return proxy.NewSOCKS5(r.host, r.port, r.proxy.as)
	default:
		return proxy.NewConnect(r.host, r.port, r.proxy.as)
	}
}

// next returns the host and port that are connected to: the proxy's, if there
// is one.
func (r *route) next() (host string, port int) {
	if r.proxy != nil {
		return r.proxy.host, r.proxy.port
	}
	return r.host, r.port
}

// fixed returns the address that is connected to, if it is not a name.
func (r *route) fixed() (unix.Sockaddr, bool) {
	if r.network == "unix" {
		return &unix.SockaddrUnix{Name: r.path}, true
	}
	host, port := r.next()
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" {
		return nil, false
	}
	sa, err := sockaddr(ip, port)
	return sa, err == nil
}

// sockaddr is ip and port for the system. An address with a zone may have to
// look for the interface of that name.
func sockaddr(ip netip.Addr, port int) (unix.Sockaddr, error) {
	ip = ip.Unmap()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: ip.As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: port, Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		n, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			nic, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, fmt.Errorf("zone %q: %w", zone, err)
			}
			n = uint64(nic.Index)
		}
		sa.ZoneId = uint32(n)
	}
	return sa, nil
}
