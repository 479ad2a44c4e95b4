package reactor

import (
	"net"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAcceptTellsThePeerAsTheKernelDoes wants of each address what getpeername
// of x/sys makes of it.
func TestAcceptTellsThePeerAsTheKernelDoes(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, network, address string
		local                  net.Addr // of the client; nil: any
	}{
		{"IPv4", "tcp4", "127.0.0.1:0", nil},
		{"IPv6", "tcp6", "[::1]:0", nil},
		{"a unix socket without a name", "unix", filepath.Join(dir, "a"), nil},
		{"a unix socket with a path", "unix", filepath.Join(dir, "b"), &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "client")}},
		{"an abstract unix socket", "unix", filepath.Join(dir, "c"), &net.UnixAddr{Net: "unix", Name: "@mainstay-accept-test"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen(tt.network, tt.address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			raw, err := l.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			c, err := (&net.Dialer{LocalAddr: tt.local}).Dial(tt.network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var a Acceptor
			err = raw.Control(func(socket uintptr) {
				fd, peer, errno := a.Accept(int(socket))
				if errno != 0 {
					t.Fatal(errno)
				}
				defer unix.Close(fd)
				want, err := unix.Getpeername(fd)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := plain(peer), plain(want); !reflect.DeepEqual(got, want) {
					t.Errorf("peer is %+v, want %+v", got, want)
				}
				if _, _, errno := a.Accept(int(socket)); errno != unix.EAGAIN {
					t.Errorf("when nobody waits: %v, want EAGAIN", errno)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// plain is an address without what x/sys keeps in it for itself. getpeername
// there calls a socket without a name "@".
func plain(sa unix.Sockaddr) any {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return [2]any{sa.Addr, sa.Port}
	case *unix.SockaddrInet6:
		return [3]any{sa.Addr, sa.Port, sa.ZoneId}
	case *unix.SockaddrUnix:
		if sa.Name == "@" {
			return ""
		}
		return sa.Name
	}
	return sa
}

func TestAcceptLeavesNoGarbage(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	a := new(Acceptor)
	err = raw.Control(func(socket uintptr) {
		if n := testing.AllocsPerRun(100, func() { a.Accept(int(socket)) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
