package activation

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// dial connects to the address of a Socket, and closes.
func dial(t *testing.T, address string) error {
	t.Helper()
	network, addr, _, err := ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	family := unix.AF_UNIX
	switch addr.(type) {
	case *unix.SockaddrInet4:
		family = unix.AF_INET
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	}
	kind := unix.SOCK_STREAM
	switch {
	case Datagrams(network):
		kind = unix.SOCK_DGRAM
	case network == "unixpacket":
		kind = unix.SOCK_SEQPACKET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, addr)
}

// listen is Listen for a socket that the test's end closes.
func listen(t *testing.T, url string) Socket {
	t.Helper()
	s, err := Listen("test", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func requireIPv6(t *testing.T) {
	t.Helper()
	s, err := Listen("probe", "tcp6://[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6 loopback address: %v", err)
	}
	s.Close()
}

var urlTests = []struct {
	url     string
	network string
	addr    unix.Sockaddr
	opts    Options
}{
	{"tcp://127.0.0.1:80", "tcp", &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}}, Options{Backlog: 4096}},
	{"tcp://0.0.0.0:0", "tcp", &unix.SockaddrInet4{}, Options{Backlog: 4096}},
	{"tcp4://:80", "tcp", &unix.SockaddrInet4{Port: 80}, Options{Backlog: 4096}},
	{"tcp://[::]:8080", "tcp", &unix.SockaddrInet6{Port: 8080}, Options{Backlog: 4096}},
	{"tcp://:8080", "tcp", &unix.SockaddrInet6{Port: 8080}, Options{Backlog: 4096}},
	{"tcp6://:8080", "tcp", &unix.SockaddrInet6{Port: 8080}, Options{Backlog: 4096, V6Only: true}},
	{"tcp6://[::1]:8080?backlog=7", "tcp", &unix.SockaddrInet6{Port: 8080, Addr: [16]byte{15: 1}}, Options{Backlog: 7, V6Only: true}},
	{"tcp://[::ffff:10.0.0.1]:65535", "tcp", &unix.SockaddrInet4{Port: 65535, Addr: [4]byte{10, 0, 0, 1}}, Options{Backlog: 4096}},
	{"tcp://[fe80::1%251]:80", "tcp", &unix.SockaddrInet6{Port: 80, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}, ZoneId: 1}, Options{Backlog: 4096}},
	{"tcp://[fe80::1%25lo]:80", "tcp", &unix.SockaddrInet6{Port: 80, Addr: [16]byte{0: 0xfe, 1: 0x80, 15: 1}, ZoneId: 1}, Options{Backlog: 4096}},
	{"udp://127.0.0.1:53", "udp", &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}}, Options{}},
	{"udp://:53", "udp", &unix.SockaddrInet6{Port: 53}, Options{}},
	{"udp4://:53", "udp", &unix.SockaddrInet4{Port: 53}, Options{}},
	{"udp6://:53", "udp", &unix.SockaddrInet6{Port: 53}, Options{V6Only: true}},
	{"unix:///run/x.sock", "unix", &unix.SockaddrUnix{Name: "/run/x.sock"}, Options{Backlog: 4096}},
	{"unix:///run/x.sock?mode=0660&backlog=1", "unix", &unix.SockaddrUnix{Name: "/run/x.sock"}, Options{Backlog: 1, Mode: 0o660}},
	{"unix:///run/a%20b%3Fc%25", "unix", &unix.SockaddrUnix{Name: "/run/a b?c%"}, Options{Backlog: 4096}},
	{"unixgram:///run/x.sock?mode=0660", "unixgram", &unix.SockaddrUnix{Name: "/run/x.sock"}, Options{Mode: 0o660}},
	{"unixpacket:///run/x.sock?mode=0660&backlog=7", "unixpacket", &unix.SockaddrUnix{Name: "/run/x.sock"}, Options{Mode: 0o660, Backlog: 7}},
	{"unixpacket://@abstract/name", "unixpacket", &unix.SockaddrUnix{Name: "@abstract/name"}, Options{Backlog: 4096}},
	{"unixgram://@abstract/name", "unixgram", &unix.SockaddrUnix{Name: "@abstract/name"}, Options{}},
	{"unix://@abstract/name", "unix", &unix.SockaddrUnix{Name: "@abstract/name"}, Options{Backlog: 4096}},
}

func TestURLsAreRead(t *testing.T) {
	for _, tt := range urlTests {
		t.Run(tt.url, func(t *testing.T) {
			network, addr, opts, err := ParseURL(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			if network != tt.network || opts != tt.opts {
				t.Errorf("got %s %+v, want %s %+v", network, opts, tt.network, tt.opts)
			}
			if diff := cmp.Diff(tt.addr, addr, ignoreRaw); diff != "" {
				t.Errorf("address (-want +got):\n%s", diff)
			}
		})
	}
}

// ignoreRaw leaves out the form for the kernel, which a Sockaddr keeps inside.
var ignoreRaw = cmpopts.IgnoreUnexported(unix.SockaddrInet4{}, unix.SockaddrInet6{}, unix.SockaddrUnix{})

var badURLs = []struct{ name, url, want string }{
	{"empty", "", "want tcp://"},
	{"no scheme", "127.0.0.1:80", "want tcp://"},
	{"another scheme", "sctp://127.0.0.1:80", `scheme "sctp"`},
	{"backlog of datagrams", "udp://127.0.0.1:80?backlog=1", "backlog=1"},
	{"backlog of unix datagrams", "unixgram:///run/x?backlog=1", "backlog=1"},
	{"unix datagrams at no path", "unixgram://run/x", "absolute path"},
	{"mode of UDP", "udp://127.0.0.1:80?mode=0660", "mode=0660"},
	{"IPv6 for udp4", "udp4://[::1]:80", "want an IPv4"},
	{"no port", "tcp://127.0.0.1", "want HOST:PORT"},
	{"port too large", "tcp://127.0.0.1:65536", `port "65536"`},
	{"port by name", "tcp://127.0.0.1:http", `port "http"`},
	{"negative port", "tcp://127.0.0.1:-1", `port "-1"`},
	{"host by name", "tcp://localhost:80", "names are not looked up"},
	{"IPv6 without brackets", "tcp://::1:80", "want HOST:PORT"},
	{"IPv6 for tcp4", "tcp4://[::1]:80", "want an IPv4"},
	{"IPv4 for tcp6", "tcp6://127.0.0.1:80", "want an IPv6"},
	{"unknown zone", "tcp://[fe80::1%25no-such-nic]:80", `zone "no-such-nic"`},
	{"bad escape", "unix:///run/%zz", "%zz"},
	{"no path", "unix://", "absolute path"},
	{"relative path", "unix://run/x.sock", "absolute path"},
	{"a directory", "unix:///run/", "name at its end"},
	{"nameless abstract", "unix://@", "name at its end"},
	{"NUL in the path", "unix:///run/a%00b", "NUL"},
	{"path too long", "unix:///" + strings.Repeat("x", 107), "108 bytes, want at most 107"},
	{"unknown option", "tcp://127.0.0.1:80?reuseport=1", `option "reuseport"`},
	{"option twice", "tcp://127.0.0.1:80?backlog=1&backlog=2", "given 2 times"},
	{"backlog of zero", "tcp://127.0.0.1:80?backlog=0", "backlog=0"},
	{"mode of TCP", "tcp://127.0.0.1:80?mode=0660", "mode=0660"},
	{"mode of an abstract name", "unix://@x?mode=0660", "mode=0660"},
	{"mode that is not octal", "unix:///run/x?mode=0880", "mode=0880"},
	{"mode with setuid", "unix:///run/x?mode=4755", "mode=4755"},
	{"mode of nothing", "unix:///run/x?mode=0", "mode=0"},
}

func TestBadURLsAreErrorsThatSayWhatWasExpected(t *testing.T) {
	for _, tt := range badURLs {
		t.Run(tt.name, func(t *testing.T) {
			_, addr, _, err := ParseURL(tt.url)
			if err == nil {
				t.Fatalf("got %v, want an error with %q", addr, tt.want)
			}
			if !strings.HasPrefix(err.Error(), "activation: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf(`error %q, want it to begin "activation: " and to have %q in it`, err, tt.want)
			}
		})
	}
}

func FuzzParseURL(f *testing.F) {
	for _, tt := range urlTests {
		f.Add(tt.url)
	}
	for _, tt := range badURLs {
		f.Add(tt.url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		network, addr, opts, err := ParseURL(url)
		if err != nil {
			return
		}
		if (opts.Backlog < 1) != Datagrams(network) || opts.Mode > 0o777 {
			t.Fatalf("options %+v", opts)
		}
		// What Socket.Address shows can be given to Listen again.
		again, addr2, _, err := ParseURL(formatURL(network, addr))
		if err != nil || again != network {
			t.Fatalf("%q became %q: %s, %v", url, formatURL(network, addr), again, err)
		}
		// ::ffff:1.2.3.4 is read as IPv4, both times.
		if diff := cmp.Diff(addr, addr2, ignoreRaw); diff != "" {
			t.Fatalf("%q (-first +again):\n%s", url, diff)
		}
	})
}

func TestListenBindsUDPForOneProcess(t *testing.T) {
	s := listen(t, "udp://127.0.0.1:0")
	if s.Network != "udp" || !strings.HasPrefix(s.Address, "udp://127.0.0.1:") || strings.HasSuffix(s.Address, ":0") {
		t.Errorf("got %+v", s)
	}
	if kind, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_TYPE); kind != unix.SOCK_DGRAM || err != nil {
		t.Errorf("type %d, %v, want a datagram socket", kind, err)
	}
	if again, err := Listen("test", s.Address); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bound a second time: %+v, %v", again, err)
	}
}

func TestListenTellsThePortThatTheKernelChose(t *testing.T) {
	s := listen(t, "tcp://127.0.0.1:0")
	if s.Name != "test" || s.Network != "tcp" || s.Inherited || !strings.HasPrefix(s.Address, "tcp://127.0.0.1:") || strings.HasSuffix(s.Address, ":0") {
		t.Errorf("got %+v", s)
	}
	if err := dial(t, s.Address); err != nil {
		t.Errorf("dial %s: %v", s.Address, err)
	}
}

func TestSocketThatListenMadeIsPlainTCPAndPrivateToTheProcess(t *testing.T) {
	s := listen(t, "tcp://127.0.0.1:0")
	if v, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_PROTOCOL); v != unix.IPPROTO_TCP || err != nil {
		t.Errorf("SO_PROTOCOL %d (%v), want %d, TCP", v, err, unix.IPPROTO_TCP)
	}
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_OOBINLINE} {
		if v, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, option); v != 1 || err != nil {
			t.Errorf("option %d is %d (%v), want 1", option, v, err)
		}
	}
	if v, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0); v&unix.FD_CLOEXEC == 0 || err != nil {
		t.Errorf("fd flags %#x (%v), want close-on-exec", v, err)
	}
	if v, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0); v&unix.O_NONBLOCK == 0 || err != nil {
		t.Errorf("file flags %#x (%v), want O_NONBLOCK", v, err)
	}
}

func TestUnspecifiedAddressTakesBothFamiliesUnlessToldOtherwise(t *testing.T) {
	requireIPv6(t)
	tests := []struct {
		url        string
		ipv4, ipv6 error
	}{
		{url: "tcp://:0"},
		{url: "tcp://[::]:0"},
		{url: "tcp6://:0", ipv4: unix.ECONNREFUSED},
		{url: "tcp4://:0", ipv6: unix.ECONNREFUSED},
	}
	for _, tt := range tests {
		t.Run(tt.url, func(t *testing.T) {
			s := listen(t, tt.url)
			port := s.Address[strings.LastIndexByte(s.Address, ':'):]
			if err := dial(t, "tcp://127.0.0.1"+port); !errors.Is(err, tt.ipv4) {
				t.Errorf("over IPv4: %v, want %v", err, tt.ipv4)
			}
			if err := dial(t, "tcp://[::1]"+port); !errors.Is(err, tt.ipv6) {
				t.Errorf("over IPv6: %v, want %v", err, tt.ipv6)
			}
		})
	}
}

func TestPortInUseIsAnError(t *testing.T) {
	s := listen(t, "tcp://127.0.0.1:0")
	_, err := Listen("second", s.Address)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), `"second"`) || !strings.Contains(err.Error(), s.Address) {
		t.Errorf("got %v, want EADDRINUSE with the socket's name and address", err)
	}
}

func TestAbstractAddressIsBound(t *testing.T) {
	s := listen(t, "unix://@mainstay-activation-test-"+filepath.Base(t.TempDir())+filepath.Base(filepath.Dir(t.TempDir())))
	if err := dial(t, s.Address); err != nil {
		t.Errorf("dial %s: %v", s.Address, err)
	}
}

func TestFileOfAUnixSocketGoesWithIt(t *testing.T) {
	path := t.TempDir() + "/a b.sock"
	s, err := Listen("test", "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := dial(t, s.Address); err != nil {
		t.Errorf("dial %s: %v", s.Address, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file after Close: %v, want it gone", err)
	}
}

func TestFileThatTookThePlaceOfOursStays(t *testing.T) {
	path := t.TempDir() + "/s"
	s, err := Listen("test", "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	// Renamed, not removed: the inode number must not be used again.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	successor := listen(t, "unix://"+path)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := dial(t, successor.Address); err != nil {
		t.Errorf("the successor after our Close: %v, want it to listen on", err)
	}
}

func TestFileThatIsGoneIsNoErrorAtClose(t *testing.T) {
	path := t.TempDir() + "/s"
	s, err := Listen("test", "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestStaleSocketFileIsReplaced(t *testing.T) {
	for _, tt := range []struct{ dead, live string }{
		{"unix://", "unix://"}, {"unixgram://", "unixgram://"}, {"unix://", "unixgram://"}, {"unixgram://", "unix://"},
		{"unixpacket://", "unixpacket://"},
	} {
		t.Run(tt.dead+" by "+tt.live, func(t *testing.T) {
			path := t.TempDir() + "/s"
			dead, err := Listen("dead", tt.dead+path)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(dead.FD) // as when its process was killed: the file stays
			s := listen(t, tt.live+path)
			if err := dial(t, s.Address); err != nil {
				t.Errorf("dial %s: %v", s.Address, err)
			}
		})
	}
}

func TestLiveSocketFileOfDatagramsIsNotReplaced(t *testing.T) {
	path := t.TempDir() + "/s"
	live := listen(t, "unixgram://"+path)
	if _, err := Listen("second", "unixgram://"+path); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", err)
	}
	if _, err := Listen("second", "unix://"+path); err == nil {
		t.Error("replaced by a stream socket")
	}
	if err := dial(t, live.Address); err != nil {
		t.Errorf("the live socket: %v", err)
	}
}

func TestLiveSocketFileIsNotReplaced(t *testing.T) {
	for _, backlog := range []string{"", "?backlog=1"} {
		t.Run("backlog"+backlog, func(t *testing.T) {
			path := t.TempDir() + "/s"
			live := listen(t, "unix://"+path+backlog)
			if backlog != "" {
				fillBacklog(t, live.Address)
			}
			_, err := Listen("second", "unix://"+path)
			if !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("got %v, want EADDRINUSE", err)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("the live socket's file: %v, want it there", err)
			}
		})
	}
}

// fillBacklog connects until the listener has no room.
func fillBacklog(t *testing.T, address string) {
	t.Helper()
	_, addr, _, err := ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		err = unix.Connect(fd, addr)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileThatIsNoSocketIsNotReplaced(t *testing.T) {
	path := t.TempDir() + "/s"
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("test", "unix://"+path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v, want an error that says it is no socket", err)
	}
	if got, err := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("the file has %q (%v), want it untouched", got, err)
	}
}

func TestSocketFileHasTheModeAskedForUnderAnyUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o777} {
		for _, mode := range []os.FileMode{0o600, 0o660, 0o666} {
			path := t.TempDir() + "/s"
			old := unix.Umask(umask)
			s, err := Listen("test", "unix://"+path+fmt.Sprintf("?mode=%#o", uint32(mode)))
			unix.Umask(old)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Mode().Perm(); got != mode {
				t.Errorf("umask %#o: mode %#o, want %#o", umask, got, mode)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFailedListenLeavesNoDescriptorAndNoFile(t *testing.T) {
	dir := t.TempDir()
	busy := listen(t, "tcp://127.0.0.1:0")
	live := listen(t, "unix://"+dir+"/live")
	before := openFiles(t)
	for _, url := range []string{busy.Address, live.Address, "unix://" + dir + "/no/such/dir", "tcp://192.0.2.1:0", "nonsense"} {
		if s, err := Listen("test", url); err == nil {
			s.Close()
			t.Errorf("%s: no error", url)
		}
	}
	if _, err := Listen("a:b", "tcp://127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), `"a:b"`) {
		t.Errorf("a name with a colon: %v, want an error with the name", err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
	if entries, err := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("files %v (%v), want the live socket only", entries, err)
	}
}

func TestCloseOfAClosedSocketIsAnError(t *testing.T) {
	err := Socket{Name: "x", FD: -1}.Close()
	if !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("got %v, want EBADF with the socket's name", err)
	}
}
