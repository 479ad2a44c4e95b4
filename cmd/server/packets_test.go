package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

// killStopped kills the workers of a service where they stand, after meanwhile,
// in which they do nothing, and waits for their successors.
func killStopped(t *testing.T, s *servicetest.Service, meanwhile func()) {
	t.Helper()
	well := func(st control.Status) bool {
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || w.Protection != "protected" {
				return false
			}
		}
		return len(st.Pools[0].Workers) == st.Pools[0].Want
	}
	dead := map[uint64]int{}
	for _, w := range s.Await("all are protected", well).Pools[0].Workers {
		stop(t, w.PID)
		dead[w.Incarnation] = w.PID
	}
	meanwhile()
	for _, pid := range dead {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.Await("they have successors", func(st control.Status) bool {
		for _, w := range st.Pools[0].Workers {
			if dead[w.Incarnation] != 0 {
				return false
			}
		}
		return well(st)
	})
}

// A connection of packets that is at rest when its worker is killed goes on,
// and what its client sends meanwhile stays in packets.
func TestConnectionsOfPacketsOutliveTheirWorkers(t *testing.T) {
	path := t.TempDir() + "/s"
	s := servicetest.Start(t, servicetest.Options{
		Workers: 2, Config: "reload.bake = \"10ms\"\nrespawn.first = \"10ms\"\n", Args: []string{"--listen", "echo=unixpacket://" + path},
	})
	clients := make([]net.Conn, 20)
	for i := range clients {
		clients[i] = s.Dial("echo")
		clients[i].SetDeadline(time.Now().Add(4 * servicetest.Patience))
	}
	packets := func(round string) []string {
		return []string{round + " short", round + strings.Repeat(" long", 2000), round}
	}
	send := func(round string) {
		t.Helper()
		for i, c := range clients {
			for _, p := range packets(round) {
				if _, err := c.Write([]byte(p)); err != nil {
					t.Fatalf("%s: client %d: %v", round, i, err)
				}
			}
		}
	}
	want := func(round string) {
		t.Helper()
		b := make([]byte, 64<<10)
		for i, c := range clients {
			for _, p := range packets(round) {
				if n, err := c.Read(b); err != nil || string(b[:n]) != p {
					t.Fatalf("%s: client %d: %d bytes, %.20q, %v, want %d, %.20q", round, i, n, b[:n], err, len(p), p)
				}
			}
		}
	}
	send("begin")
	want("begin")
	for i := range 3 {
		round := fmt.Sprint("death ", i)
		killStopped(t, s, func() { send(round) })
		want(round)
	}
	send("before the reload")
	s.Reload()
	want("before the reload")
	st := s.Await("all are counted", func(st control.Status) bool { return st.Kept+st.Torn >= uint64(3*len(clients)) })
	if st.Torn != 0 || st.Connections != int64(len(clients)) {
		t.Errorf("status has %d kept, %d torn, %d open, want %d, 0, %d", st.Kept, st.Torn, st.Connections, 3*len(clients), len(clients))
	}
}

// A datagram that no worker has read when they are killed is answered by the
// next.
func TestDatagramsThatWaitAreAnsweredAfterTheDeathOfTheWorkers(t *testing.T) {
	dir := t.TempDir()
	s := servicetest.Start(t, servicetest.Options{
		Workers: 2, Config: "respawn.first = \"10ms\"\n", Args: []string{"--listen", "udp-echo=unixgram://" + dir + "/s"},
	})
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/c", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(4 * servicetest.Patience))
	const waiting = 5 // less than net.unix.max_dgram_qlen
	for round := range 3 {
		killStopped(t, s, func() {
			for i := range waiting {
				if _, err := c.WriteTo(fmt.Appendf(nil, "%d of %d", i, round), &net.UnixAddr{Name: dir + "/s", Net: "unixgram"}); err != nil {
					t.Fatal(err)
				}
			}
		})
		missing := map[string]bool{} // two workers answer in any order
		for i := range waiting {
			missing[fmt.Sprintf("%d of %d", i, round)] = true
		}
		b := make([]byte, 100)
		for len(missing) > 0 {
			n, err := c.Read(b)
			if err != nil || !missing[string(b[:n])] {
				t.Fatalf("round %d: got %q, %v, want one of %v", round, b[:n], err, missing)
			}
			delete(missing, string(b[:n]))
		}
	}
}
