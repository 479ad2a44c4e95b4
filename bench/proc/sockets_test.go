package proc

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestOnlyEstablishedConnectionsOfAPortAreTaken(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0100007F:1F90 0200007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 101 1 0 20 4 30 10 -1
   2: 0200007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
   3: 0100007F:1F90 0200007F:C002 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
`
	got, err := parseTCP([]byte(table), 0x1F90)
	want := map[string]netip.AddrPort{"101": netip.MustParseAddrPort("127.0.0.2:49153")}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"x\n 0: 0100007F:1F90\n", "x\n 0: 7F:1F90 0200007F:C001 01 0 0 0 0 0 0 7\n", "x\n 0: 0100007F:zz 0200007F:C001 01 0 0 0 0 0 0 7\n"} {
		if _, err := parseTCP([]byte(bad), 8080); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func TestAConnectionsDescriptorIsFoundByItsPeer(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw, err := s.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	got, err := Accepted([]int{os.Getpid()}, l.Addr().(*net.TCPAddr).Port)
	if err != nil || got[c.LocalAddr().(*net.TCPAddr).AddrPort()] != fd || len(got) != 1 {
		t.Errorf("got %v, %v, want %v at %d alone", got, err, c.LocalAddr(), fd)
	}
}
