package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/talk"
)

// kernelTLS says whether the kernel seals, and if not, why. Where it does, as in
// the machine of test/ktls, the tests of the deaths of workers are with that, too.
var kernelTLS = sync.OnceValue(conn.ProbeKernelTLS)

// kernelSeals is the number of sockets in this network for which the kernel
// seals, Documentation/networking/tls.rst of Linux.
func kernelSeals(t *testing.T) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/net/tls_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(stat)) {
		if words := strings.Fields(line); words[0] == "TlsCurrTxSw" {
			n, err := strconv.Atoi(words[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no TlsCurrTxSw:\n%s", stat)
	return 0
}

// The key that seals stays with the socket, whoever has that: a client notices
// neither that its connection is given away nor that its worker is killed.
func TestKernelGoesOnSealingOverReloadsMovesAndDeaths(t *testing.T) {
	if err := kernelTLS(); err != nil {
		t.Skip(err)
	}
	const clients = 20
	s := startSurvival(t, 2)
	s.well()
	// Each at rest when its worker is killed: those are not to be lost.
	g, err := talk.Start(func() (net.Conn, error) { return s.dial("sealed") }, talk.Options{Clients: clients, Pause: time.Hour, Size: 3000})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Stop()
	sealed := func(after string) {
		t.Helper()
		if n := kernelSeals(t); n < clients {
			t.Errorf("after %s the kernel seals for %d, want %d", after, n, clients)
		}
	}
	sealed("the handshakes")
	mover := s.connect("sealed")
	ask := func(after string) (pid int) {
		t.Helper()
		line := "after " + after
		pid, answer, err := mover.ask(line)
		if err != nil || answer != line {
			t.Fatalf("%q, %v", answer, err)
		}
		sealed(after)
		return pid
	}
	ask("a word")
	for range 2 {
		if err := s.client.Reload(t.Context(), control.ReloadRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		ask("a reload")
		list, err := s.client.Connections(t.Context(), control.ConnectionsRequest{Peer: mover.conn.LocalAddr().String()})
		if err != nil || len(list.Connections) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		victim := 0
		for slot := range 2 {
			if _, err := s.client.Move(t.Context(), control.MoveRequest{Conn: list.Connections[0].ID, Slot: slot}); err != nil {
				t.Fatal(err)
			}
			victim = ask(fmt.Sprint("a move to ", slot))
		}
		if err := unix.Kill(victim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if pid := ask("a death"); pid == victim {
			t.Errorf("%d has answered, which was killed", pid)
		}
		s.well()
	}
	g.Wake()
	r := g.Stop()
	t.Log(r)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if st := s.well(); st.Torn != 0 || st.Kept == 0 {
		t.Errorf("status has %d kept, %d torn, want none torn", st.Kept, st.Torn)
	}
}
