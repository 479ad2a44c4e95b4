package activation

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func TestSocketsAreInheritedByName(t *testing.T) {
	tcp := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, true)
	file := newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM, true)
	got := activate(t, []*os.File{tcp, file},
		"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:local", "LISTEN_PIDFDID=4711")
	want := report{Sockets: []Socket{
		{Name: "web", FD: 3, Network: "tcp", Address: addressOf(t, tcp), Inherited: true, Blocking: true},
		{Name: "local", FD: 4, Network: "unix", Address: addressOf(t, file), Inherited: true, Blocking: true},
	}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Socket{})); diff != "" {
		t.Errorf("inherited (-want +got):\n%s", diff)
	}
}

func TestWhatIsStoredIsTakenAsideWhateverItIs(t *testing.T) {
	socket := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, true)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	files := []*os.File{null, socket, null, null}
	names := "LISTEN_FDNAMES=kept/state:echo:kept/a:kept/a"
	r := activate(t, files, "LISTEN_PID=self", "LISTEN_FDS=4", names, prefixVariable+"=kept/")
	want := []Stored{{"kept/state", 3}, {"kept/a", 5}, {"kept/a", 6}}
	if r.Error != "" || !slices.Equal(r.Stored, want) || len(r.Sockets) != 1 || r.Sockets[0].Name != "echo" || r.Sockets[0].FD != 4 {
		t.Errorf("report %+v, want %v stored", r, want)
	}
	if r := activate(t, files, "LISTEN_PID=self", "LISTEN_FDS=4", names); !strings.Contains(r.Error, "both named") {
		t.Errorf("without a prefix: error %q", r.Error)
	}
}

func TestWithoutActivationThereAreNoSocketsAndNoError(t *testing.T) {
	tests := []struct {
		name      string
		variables []string
	}{
		{name: "nothing is set"},
		{name: "another process was activated", variables: []string{"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}},
		{name: "another process, and nonsense", variables: []string{"LISTEN_PID=1", "LISTEN_FDS=x"}},
		{name: "no pid", variables: []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=web"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := activate(t, []*os.File{newSocket(t, unix.AF_INET, unix.SOCK_STREAM, true)}, tt.variables...)
			if diff := cmp.Diff(report{Nil: true}, got); diff != "" {
				t.Errorf("inherited (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformedActivationIsAnErrorThatNamesTheFault(t *testing.T) {
	listener := func(t *testing.T) *os.File { return newSocket(t, unix.AF_INET, unix.SOCK_STREAM, true) }
	two := func(t *testing.T) []*os.File { return []*os.File{listener(t), listener(t)} }
	second := func(other func(*testing.T) *os.File) func(*testing.T) []*os.File {
		return func(t *testing.T) []*os.File { return []*os.File{listener(t), other(t)} }
	}
	good := []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:local"}
	with := func(variables ...string) []string { return append(slices.Clone(good), variables...) }

	tests := []struct {
		name      string
		files     func(*testing.T) []*os.File
		variables []string
		want      []string
	}{
		{"pid is no number", two, with("LISTEN_PID=me"), []string{`LISTEN_PID="me"`}},
		{"pid is empty", two, with("LISTEN_PID="), []string{`LISTEN_PID=""`}},
		{"pid is negative", two, with("LISTEN_PID=-1"), []string{`LISTEN_PID="-1"`}},
		{"pid is zero", two, with("LISTEN_PID=0"), []string{`LISTEN_PID="0"`}},
		{"pid is too large", two, with("LISTEN_PID=99999999999"), []string{`LISTEN_PID="99999999999"`}},
		{"no count", two, []string{"LISTEN_PID=self", "LISTEN_FDNAMES=web:local"}, []string{"LISTEN_FDS is not"}},
		{"count is no number", two, with("LISTEN_FDS=two"), []string{`LISTEN_FDS="two"`}},
		{"count is empty", two, with("LISTEN_FDS="), []string{`LISTEN_FDS=""`}},
		{"count is negative", two, with("LISTEN_FDS=-2"), []string{`LISTEN_FDS="-2"`}},
		{"count is zero", two, with("LISTEN_FDS=0"), []string{`LISTEN_FDS="0"`}},
		{"count has a sign", two, with("LISTEN_FDS=+2"), []string{`LISTEN_FDS="+2"`}},
		{"count is absurd", two, with("LISTEN_FDS=2000000000"), []string{"LISTEN_FDS=2000000000", "RLIMIT_NOFILE="}},
		{"count is beyond an int", two, with("LISTEN_FDS=99999999999999999999"), []string{`LISTEN_FDS="99999999999999999999"`}},
		{"no names", two, []string{"LISTEN_PID=self", "LISTEN_FDS=2"}, []string{"LISTEN_FDNAMES is not set", "2 names"}},
		{"fewer names than fds", two, with("LISTEN_FDNAMES=web"), []string{`LISTEN_FDNAMES="web"`, "1 names", "LISTEN_FDS=2"}},
		{"more names than fds", two, with("LISTEN_FDNAMES=a:b:c"), []string{`LISTEN_FDNAMES="a:b:c"`, "3 names", "LISTEN_FDS=2"}},
		{"an empty name", two, with("LISTEN_FDNAMES=web:"), []string{`LISTEN_FDNAMES="web:"`, "fd 4", "empty name"}},
		{"a control character in a name", two, with("LISTEN_FDNAMES=web:a\tb"), []string{"fd 4", `'\t'`}},
		{"a name that is too long", two, with("LISTEN_FDNAMES=web:" + strings.Repeat("x", 256)), []string{"fd 4", "256 bytes", "255"}},
		{"one name twice", two, with("LISTEN_FDNAMES=web:web"), []string{"fd 3", "fd 4", `"web"`, "FileDescriptorName="}},
		{"a closed fd", two, with("LISTEN_FDS=9", "LISTEN_FDNAMES=a:b:c:d:e:f:g:h:i"), []string{"LISTEN_FDS=9", "fd ", "bad file descriptor"}},
		{"a file", second(func(t *testing.T) *os.File {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}), good, []string{"fd 4", `"local"`, "not a socket"}},
		{"a connected UDP socket", second(func(t *testing.T) *os.File {
			f := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, false)
			if err := unix.Connect(int(f.Fd()), &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
				t.Fatal(err)
			}
			return f
		}), good, []string{"fd 4", `"local"`, "connected datagram"}},
		{"a unix datagram socket that is not bound", second(func(t *testing.T) *os.File {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "socket")
			t.Cleanup(func() { f.Close() })
			return f
		}), good, []string{"fd 4", "datagram socket that is not bound"}},
		{"a pair of unix datagram sockets", second(func(t *testing.T) *os.File {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			a, b := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
			t.Cleanup(func() { a.Close(); b.Close() })
			return a
		}), good, []string{"fd 4", "connected datagram"}},
		{"a seqpacket socket that does not listen", second(func(t *testing.T) *os.File {
			return newSocket(t, unix.AF_UNIX, unix.SOCK_SEQPACKET, false)
		}), good, []string{"fd 4", "seqpacket socket that does not listen"}},
		{"a bound stream socket that does not listen", second(func(t *testing.T) *os.File {
			return newSocket(t, unix.AF_INET, unix.SOCK_STREAM, false)
		}), good, []string{"fd 4", "does not listen"}},
		{"a connection", second(func(t *testing.T) *os.File {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			a, b := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
			t.Cleanup(func() { a.Close(); b.Close() })
			return a
		}), good, []string{"fd 4", "does not listen"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := activate(t, tt.files(t), tt.variables...)
			if len(got.Sockets) > 0 || len(got.Environment) > 0 {
				t.Errorf("got sockets %v, left in the environment %q, want neither", got.Sockets, got.Environment)
			}
			if !strings.HasPrefix(got.Error, "activation: ") {
				t.Errorf(`error %q, want it to begin "activation: "`, got.Error)
			}
			for _, want := range tt.want {
				if !strings.Contains(got.Error, want) {
					t.Errorf("error %q, want %q in it", got.Error, want)
				}
			}
		})
	}
}

func TestUDPSocketIsInherited(t *testing.T) {
	f := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, false)
	got := activate(t, []*os.File{f}, "LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=dns")
	if got.Error != "" || len(got.Sockets) != 1 {
		t.Fatalf("got %+v", got)
	}
	if s := got.Sockets[0]; s.Network != "udp" || s.Name != "dns" || !s.Inherited || !strings.HasPrefix(s.Address, "udp://127.0.0.1:") {
		t.Errorf("got %+v", s)
	}
}

func TestUnixSocketsOfPacketsAreInherited(t *testing.T) {
	for _, tt := range []struct {
		network string
		kind    int
		listen  bool
	}{
		{"unixgram", unix.SOCK_DGRAM, false},
		{"unixpacket", unix.SOCK_SEQPACKET, true},
	} {
		f := newSocket(t, unix.AF_UNIX, tt.kind, tt.listen)
		got := activate(t, []*os.File{f}, "LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=log")
		if got.Error != "" || len(got.Sockets) != 1 {
			t.Fatalf("%s: got %+v", tt.network, got)
		}
		if s := got.Sockets[0]; s.Network != tt.network || s.Name != "log" || !s.Inherited || !strings.HasPrefix(s.Address, tt.network+":///") {
			t.Errorf("got %+v", s)
		}
	}
}

func TestInheritedUnixSocketKeepsItsFileWhenClosed(t *testing.T) {
	f := newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM, true)
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := inherit(fd, "local")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(s.Address, "unix://")
	if err := dial(t, "unix://"+path); err != nil {
		t.Errorf("the manager's socket after our Close: %v, want it to listen on", err)
	}
}

func TestInheritedSocketKeepsItsDescriptorAndItsUrgentBytesInline(t *testing.T) {
	f := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, true)
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := inherit(fd, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.FD != fd {
		t.Errorf("fd %d, want the very fd %d", s.FD, fd)
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE); v != 1 || err != nil {
		t.Errorf("SO_OOBINLINE %d (%v), want 1", v, err)
	}
}

func FuzzListenVariables(f *testing.F) {
	for _, seed := range [][3]string{
		{"42", "2", "web:local"}, {"42", "1", ""}, {"42", "0", "web"}, {"42", "-1", "web"}, {"42", "+1", "web"},
		{"42", "2", "web:web"}, {"42", "3", "a:b"}, {"42", "2000000000", "a"}, {"1", "1", "a"}, {"", "", ""},
		{"042", "01", "a b"}, {"42", "1", "ä"}, {"42", "2", ":"}, {"4294967338", "1", "a"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	const self, limit = 42, 1024
	f.Fuzz(func(t *testing.T, pid, fds, fdNames string) {
		env := environment{listenPID: &pid, listenFDs: &fds, listenFDNames: &fdNames}
		n, err := env.count(self, limit)
		if n < 0 || n > limit-firstFD || err != nil && n != 0 {
			t.Fatalf("count %d, %v", n, err)
		}
		if n == 0 {
			return
		}
		names, err := env.names(n, "")
		if err != nil {
			return
		}
		if len(names) != n || strings.Join(names, ":") != fdNames {
			t.Fatalf("names %q for %d fds of %q", names, n, fdNames)
		}
		slices.Sort(names)
		if len(slices.Compact(names)) != n {
			t.Fatalf("a name is twice in %q", fdNames)
		}
		for _, name := range names {
			if err := checkName(name); err != nil {
				t.Fatal(err)
			}
		}
	})
}
