package activation

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultBacklog is the backlog that [Listen] asks for when the URL does not
// say; the kernel caps it at net.core.somaxconn.
const DefaultBacklog = 4096

// maxPath is what fits into sun_path with its final NUL: unix(7).
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Options is what the query of a listener's URL can say.
type Options struct {
	Backlog int         // connections the kernel keeps before accept; after ParseURL zero for datagrams only
	Mode    os.FileMode // permissions of a unix socket's file; zero: what the umask leaves of 0777
	V6Only  bool        // an IPv6 socket takes no IPv4 connections
}

// ParseURL reads a listener's URL:
//
//	tcp://HOST:PORT    HOST is an IPv4 or [IPv6] address; none, or [::], takes IPv4 and IPv6
//	tcp4://HOST:PORT   IPv4 only; no HOST is 0.0.0.0
//	tcp6://HOST:PORT   IPv6 only; no HOST is [::]
//	udp://, udp4://, udp6://  the same for datagrams
//	unix:///PATH       a file
//	unix://@NAME       an abstract address
//	unixgram:///PATH, unixgram://@NAME  the same for datagrams
//	unixpacket:///PATH, unixpacket://@NAME  the same for connections of SOCK_SEQPACKET
//
// Port 0 is any free one. A zone is written [fe80::1%25eth0]. Bytes that mean
// something in a URL are percent-encoded. The query may have backlog=N (1 to
// 2147483647; not for datagrams) and, for a file, mode=OCTAL (0001 to 0777).
//
// network is "tcp", "udp", "unix", "unixgram" or "unixpacket". Names of hosts are not looked up. An error
// begins "activation: ", quotes the URL and says what was expected.
func ParseURL(rawURL string) (network string, addr unix.Sockaddr, opts Options, err error) {
	fail := func(err error) (string, unix.Sockaddr, Options, error) {
		return "", nil, Options{}, fmt.Errorf("activation: %q: %w", rawURL, err)
	}
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		return fail(errors.New("want tcp://HOST:PORT, udp://HOST:PORT or unix:///PATH"))
	}
	rest, query, _ := strings.Cut(rest, "?")
	where, err := url.PathUnescape(rest)
	if err != nil {
		return fail(err)
	}
	switch scheme {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		network = scheme[:3]
		addr, opts.V6Only, err = parseIP(scheme, where)
	case "unix", "unixgram", "unixpacket":
		network = scheme
		addr, err = parseUnix(where)
	default:
		err = fmt.Errorf("scheme %q, want tcp, tcp4, tcp6, udp, udp4, udp6, unix, unixgram or unixpacket", scheme)
	}
	if err != nil {
		return fail(err)
	}
	if err := opts.parseQuery(query, network, where[0] == '/'); err != nil {
		return fail(err)
	}
	return network, addr, opts, nil
}

func parseIP(scheme, hostPort string) (addr unix.Sockaddr, v6only bool, err error) {
	host, portText, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, false, fmt.Errorf("address %q: want HOST:PORT", hostPort)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, false, fmt.Errorf("port %q: want a number up to 65535", portText)
	}
	only4, only6 := strings.HasSuffix(scheme, "4"), strings.HasSuffix(scheme, "6")
	ip := netip.IPv6Unspecified()
	if only4 {
		ip = netip.IPv4Unspecified()
	}
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil, false, fmt.Errorf("host %q: want an IP address, names are not looked up", host)
		}
		ip = ip.Unmap()
	}
	switch {
	case only4 && !ip.Is4():
		return nil, false, fmt.Errorf("host %q: want an IPv4 address", host)
	case only6 && !ip.Is6():
		return nil, false, fmt.Errorf("host %q: want an IPv6 address", host)
	case ip.Is4():
		return &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}, false, nil
	}
	zone, err := zoneID(ip.Zone())
	if err != nil {
		return nil, false, fmt.Errorf("host %q: %w", host, err)
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: ip.As16(), ZoneId: zone}, only6, nil
}

// zoneID is the index of the network interface that an IPv6 zone names, by
// name or by number.
func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	nic, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	}
	return uint32(nic.Index), nil
}

func parseUnix(path string) (unix.Sockaddr, error) {
	switch {
	case path == "" || path[0] != '/' && path[0] != '@':
		return nil, fmt.Errorf("path %q: want an absolute path or @ and a name", path)
	case path == "@" || path[0] == '/' && path[len(path)-1] == '/':
		return nil, fmt.Errorf("path %q: want a name at its end", path)
	case strings.IndexByte(path, 0) >= 0:
		return nil, fmt.Errorf("path %q: a NUL byte in it", path)
	case len(path) > maxPath:
		return nil, fmt.Errorf("path of %d bytes, want at most %d", len(path), maxPath)
	}
	return &unix.SockaddrUnix{Name: path}, nil
}

func (o *Options) parseQuery(query, network string, isPath bool) error {
	isFile := network != "tcp" && network != "udp" && isPath
	if !Datagrams(network) {
		o.Backlog = DefaultBacklog
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return err
	}
	for key, all := range values {
		if len(all) > 1 {
			return fmt.Errorf("%s: given %d times", key, len(all))
		}
		value := all[0]
		switch {
		case key == "backlog" && Datagrams(network):
			return fmt.Errorf("backlog=%s: only a socket that accepts connections has one", value)
		case key == "backlog":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil || n == 0 {
				return fmt.Errorf("backlog=%s: want a positive number", value)
			}
			o.Backlog = int(n)
		case key == "mode" && isFile:
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil || n == 0 || n > 0o777 {
				return fmt.Errorf("mode=%s: want an octal number from 0001 to 0777", value)
			}
			o.Mode = os.FileMode(n)
		case key == "mode":
			return fmt.Errorf("mode=%s: only the file of a unix socket has one", value)
		default:
			return fmt.Errorf("option %q: want backlog or mode", key)
		}
	}
	return nil
}

// formatURL is the URL that ParseURL reads back as sa, of that network, without
// options.
func formatURL(network string, sa unix.Sockaddr) string {
	onIP := func(ip netip.Addr, port int) string {
		return (&url.URL{Scheme: network, Host: netip.AddrPortFrom(ip, uint16(port)).String()}).String()
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return onIP(netip.AddrFrom4(sa.Addr), sa.Port)
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(zoneName(sa.ZoneId))
		}
		return onIP(ip, sa.Port)
	case *unix.SockaddrUnix:
		return network + "://" + (&url.URL{Path: sa.Name}).EscapedPath()
	}
	return fmt.Sprintf("unknown:%T", sa)
}

// zoneName is the name of the network interface, or its number if it is gone.
func zoneName(id uint32) string {
	if nic, err := net.InterfaceByIndex(int(id)); err == nil {
		return nic.Name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// Datagrams says whether a socket of that network, as [ParseURL] returns it,
// receives datagrams; others accept connections.
func Datagrams(network string) bool { return network == "udp" || network == "unixgram" }

// Listen binds a socket to the URL (see [ParseURL]) and listens, if it is not
// one for datagrams. The caller owns it. Socket.Address has the port that the kernel chose for port 0.
//
// The file of a unix socket that nobody listens on any more is replaced;
// one that somebody listens on, and a file that is no socket, is an error.
// The permissions are never wider than asked for, at no instant. Two processes
// that replace the same file at the same instant are not told apart.
//
// An error begins "activation: " and wraps that of the system call.
func Listen(name, rawURL string) (Socket, error) {
	if err := checkName(name); err != nil {
		return Socket{}, fmt.Errorf("activation: %s: %w", rawURL, err)
	}
	network, addr, opts, err := ParseURL(rawURL)
	if err != nil {
		return Socket{}, err
	}
	s := Socket{Name: name, Network: network}
	if err := s.listen(addr, opts); err != nil {
		return Socket{}, fmt.Errorf("activation: socket %q: %s: %w", name, rawURL, err)
	}
	return s, nil
}

func (s *Socket) listen(addr unix.Sockaddr, opts Options) (err error) {
	family := unix.AF_UNIX
	switch addr.(type) {
	case *unix.SockaddrInet4:
		family = unix.AF_INET
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	}
	kind := unix.SOCK_STREAM
	switch {
	case Datagrams(s.Network):
		kind = unix.SOCK_DGRAM
	case s.Network == "unixpacket":
		kind = unix.SOCK_SEQPACKET
	}
	s.FD, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.file.unlink())
			unix.Close(s.FD)
		}
	}()
	if path, ok := addr.(*unix.SockaddrUnix); ok {
		s.file, err = bindUnix(s.FD, kind, path, opts.Mode)
	} else {
		err = bindIP(s.FD, kind, family, addr, opts.V6Only)
	}
	if err != nil {
		return err
	}
	if kind == unix.SOCK_STREAM {
		if err := inlineUrgent(s.FD); err != nil {
			return err
		}
	}
	if kind != unix.SOCK_DGRAM {
		if err := unix.Listen(s.FD, opts.Backlog); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	s.Address, err = boundAddress(s.Network, s.FD)
	return err
}

func bindIP(fd, kind, family int, addr unix.Sockaddr, v6only bool) error {
	if kind == unix.SOCK_STREAM { // with datagrams it would let another process take them
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if family == unix.AF_INET6 {
		only := 0 // whatever net.ipv6.bindv6only says
		if v6only {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, addr))
}

// bindUnix binds fd and returns the file it made, if the address is one.
func bindUnix(fd, kind int, addr *unix.SockaddrUnix, mode os.FileMode) (socketFile, error) {
	if addr.Name[0] == '@' {
		return socketFile{}, os.NewSyscallError("bind", unix.Bind(fd, addr))
	}
	if mode != 0 {
		// bind makes the file with the mode of the socket's own inode, less
		// the umask: it is never open wider than asked for.
		if err := unix.Fchmod(fd, uint32(mode)); err != nil {
			return socketFile{}, os.NewSyscallError("fchmod", err)
		}
	}
	err := unix.Bind(fd, addr)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStale(kind, addr); err != nil {
			return socketFile{}, err
		}
		err = unix.Bind(fd, addr)
	}
	if err != nil {
		return socketFile{}, os.NewSyscallError("bind", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(addr.Name, &st); err != nil {
		return socketFile{}, os.NewSyscallError("lstat", err)
	}
	file := socketFile{path: addr.Name, dev: uint64(st.Dev), ino: st.Ino}
	if mode != 0 && os.FileMode(st.Mode).Perm() != mode {
		// The umask took away from it.
		if err := unix.Chmod(addr.Name, uint32(mode)); err != nil {
			return file, os.NewSyscallError("chmod", err)
		}
	}
	return file, nil
}

// removeStale unlinks the file at addr if it is a socket on which nobody
// listens. kind is that of the socket which is to take its place: connect(2)
// finds out that nobody is there before it compares the kinds.
func removeStale(kind int, addr *unix.SockaddrUnix) error {
	var st unix.Stat_t
	if err := unix.Lstat(addr.Name, &st); err != nil {
		return os.NewSyscallError("lstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("the file is there and is not a socket")
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, addr)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return os.NewSyscallError("unlink", unix.Unlink(addr.Name))
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: its backlog is full
		return fmt.Errorf("somebody listens on it: %w", os.NewSyscallError("bind", unix.EADDRINUSE))
	}
	return fmt.Errorf("cannot tell whether somebody listens on it: %w", os.NewSyscallError("connect", err))
}
