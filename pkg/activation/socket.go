package activation

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Socket is a listening stream or seqpacket socket, or a bound datagram one of
// UDP or AF_UNIX, close-on-exec and non-blocking. It is a plain value: copies name the
// same fd, and one of them is closed, once.
type Socket struct {
	Name      string // printable ASCII without a colon, unique in the process
	FD        int    // owned by whoever holds the Socket
	Network   string // "tcp", "udp", "unix", "unixgram" or "unixpacket"
	Address   string // the bound address as a URL: "tcp://127.0.0.1:80", "tcp://[::]:80", "udp://127.0.0.1:53", "unix:///run/x.sock", "unixgram://@abstract"
	Inherited bool   // handed over; false: bound by Listen
	Blocking  bool   // it was blocking when it was handed over, for all who share it

	file socketFile
}

// socketFile is the file that Listen made for a unix socket; the zero value
// is none.
type socketFile struct {
	path     string
	dev, ino uint64
}

// Close closes the fd. The file of a unix socket that [Listen] bound in this
// process is unlinked first, unless another file has taken its place. It never
// calls shutdown(2), which would end the socket for all processes that have
// it. An error wraps that of unlink or close; the fd is closed in any case.
func (s Socket) Close() error {
	err := errors.Join(s.file.unlink(), os.NewSyscallError("close", unix.Close(s.FD)))
	if err != nil {
		return fmt.Errorf("activation: socket %q: close: %w", s.Name, err)
	}
	return nil
}

func (f socketFile) unlink() error {
	if f.path == "" {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(f.path, &st)
	if errors.Is(err, unix.ENOENT) || err == nil && (uint64(st.Dev) != f.dev || st.Ino != f.ino) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("lstat", err)
	}
	return os.NewSyscallError("unlink", unix.Unlink(f.path))
}

// inherit makes a Socket of a handed-over fd. What kind of socket it is the
// kernel says: a wrong one would fail much later, in accept, and then
// each time.
func inherit(fd int, name string) (Socket, error) {
	fail := func(err error) (Socket, error) {
		return Socket{}, fmt.Errorf("activation: fd %d (%q): %w", fd, name, err)
	}
	network, err := checkListener(fd)
	if err != nil {
		return fail(err)
	}
	address, err := boundAddress(network, fd)
	if err != nil {
		return fail(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NONBLOCK)
	}
	if err != nil {
		return fail(os.NewSyscallError("fcntl", err))
	}
	if network == "tcp" || network == "unix" {
		if err := inlineUrgent(fd); err != nil {
			return fail(err)
		}
	}
	return Socket{Name: name, FD: fd, Network: network, Address: address, Inherited: true, Blocking: flags&unix.O_NONBLOCK == 0}, nil
}

// checkListener returns the network of a listening stream socket or of a bound
// datagram one, or what fd is instead.
func checkListener(fd int) (network string, err error) {
	get := func(option int) int {
		if err != nil {
			return -1
		}
		var v int
		v, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		return v
	}
	kind, domain, protocol, listens := get(unix.SO_TYPE), get(unix.SO_DOMAIN), get(unix.SO_PROTOCOL), get(unix.SO_ACCEPTCONN)
	switch {
	case errors.Is(err, unix.ENOTSOCK):
		return "", errors.New("not a socket, want a listening stream socket or a datagram socket")
	case err != nil:
		return "", os.NewSyscallError("getsockopt", err)
	case kind == unix.SOCK_DGRAM && (domain == unix.AF_INET || domain == unix.AF_INET6) && protocol == unix.IPPROTO_UDP:
		return "udp", checkDatagram(fd)
	case kind == unix.SOCK_DGRAM && domain == unix.AF_UNIX:
		return "unixgram", checkDatagram(fd)
	case kind == unix.SOCK_DGRAM:
		return "", fmt.Errorf("a datagram socket of address family %d and protocol %d, want UDP or AF_UNIX", domain, protocol)
	case kind == unix.SOCK_SEQPACKET && domain == unix.AF_UNIX && listens == 0:
		return "", errors.New("a seqpacket socket that does not listen, want a listening one (Accept=no in the socket unit)")
	case kind == unix.SOCK_SEQPACKET && domain == unix.AF_UNIX:
		return "unixpacket", nil
	case kind != unix.SOCK_STREAM:
		return "", fmt.Errorf("a socket of type %s, want a listening stream socket or a datagram socket", typeName(kind))
	case listens == 0:
		return "", errors.New("a stream socket that does not listen, want a listening one (Accept=no in the socket unit)")
	case domain == unix.AF_UNIX:
		return "unix", nil
	case domain != unix.AF_INET && domain != unix.AF_INET6:
		return "", fmt.Errorf("a socket of address family %d, want AF_INET, AF_INET6 or AF_UNIX", domain)
	case protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP:
		return "", fmt.Errorf("a stream socket of IP protocol %d, want TCP", protocol)
	}
	return "tcp", nil
}

// checkDatagram wants a datagram socket that is bound and not connected.
func checkDatagram(fd int) error {
	if _, err := unix.Getpeername(fd); err == nil {
		return errors.New("a connected datagram socket, want one that is only bound")
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	bound := false
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		bound = sa.Port != 0
	case *unix.SockaddrInet6:
		bound = sa.Port != 0
	case *unix.SockaddrUnix:
		bound = sa.Name != "" && sa.Name != "@" // which x/sys makes of no name, now and then
	}
	if !bound {
		return errors.New("a datagram socket that is not bound")
	}
	return nil
}

func typeName(kind int) string {
	switch kind {
	case unix.SOCK_SEQPACKET:
		return "seqpacket"
	case unix.SOCK_RAW:
		return "raw"
	}
	return fmt.Sprint(kind)
}

// boundAddress is the URL of the address that fd is bound to.
func boundAddress(network string, fd int) (string, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	return formatURL(network, sa), nil
}

// inlineUrgent leaves urgent bytes in the stream of the connections that the
// listener accepts; otherwise the kernel takes them out and the byte counts
// disagree.
func inlineUrgent(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}
