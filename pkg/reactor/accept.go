package reactor

import (
	"bytes"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Acceptor is accept4(2) without garbage: thousands of connections that come
// at once would otherwise leave as much of it as they keep. The zero Acceptor
// is ready. One goroutine at a time may use it.
type Acceptor struct {
	raw  unix.RawSockaddrAny
	ip4  unix.SockaddrInet4
	ip6  unix.SockaddrInet6
	path unix.SockaddrUnix
}

// Accept takes a connection from the non-blocking listening socket, without
// telling the Go scheduler of it. The descriptor is non-blocking and
// close-on-exec, and the caller's. peer is the other end's address, nil for a
// family other than IPv4, IPv6 and unix; it is valid until the next call.
// errno is that of the system call, EAGAIN if nobody waits.
func (a *Acceptor) Accept(socket int) (fd int, peer unix.Sockaddr, errno unix.Errno) {
	size := uint32(unsafe.Sizeof(a.raw))
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(socket), uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, nil, errno
	}
	return int(n), a.peer(size), 0
}

// peer returns the address that the kernel has written, size bytes of it.
func (a *Acceptor) peer(size uint32) unix.Sockaddr {
	switch a.raw.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		a.ip4.Port, a.ip4.Addr = port(in.Port), in.Addr
		return &a.ip4
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw))
		a.ip6.Port, a.ip6.Addr, a.ip6.ZoneId = port(in.Port), in.Addr, in.Scope_id
		return &a.ip6
	case unix.AF_UNIX:
		in := (*unix.RawSockaddrUnix)(unsafe.Pointer(&a.raw))
		a.path.Name = UnixName(in, int(size)-int(unsafe.Offsetof(in.Path)))
		return &a.path
	}
	return nil
}

// port turns a port from the order of the network.
func port(p uint16) int {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return int(b[0])<<8 | int(b[1])
}

// UnixName returns the path of a unix socket whose address the kernel has
// written, n bytes of it behind the family; "@name" for an abstract one, "" for
// one without a name: unix(7).
func UnixName(in *unix.RawSockaddrUnix, n int) string {
	if n <= 0 {
		return ""
	}
	path := unsafe.Slice((*byte)(unsafe.Pointer(&in.Path[0])), min(n, len(in.Path)))
	if path[0] == 0 {
		return "@" + string(path[1:])
	}
	if end := bytes.IndexByte(path, 0); end >= 0 {
		path = path[:end]
	}
	return string(path)
}
