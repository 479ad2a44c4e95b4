package system

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/talk"
)

// talkers has clients talk to the service's text socket until the test ends.
func (s *service) talkers(o talk.Options) *talk.Group {
	s.t.Helper()
	network, address := s.address("app-text.socket")
	var g *talk.Group
	err := s.inside(func() (err error) {
		g, err = talk.Start(func() (net.Conn, error) { return s.dialHere(network, address) }, o)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { g.Stop() })
	return g
}

// aConnection returns the ID of some connection of the text socket.
func (s *service) aConnection() uint64 {
	s.t.Helper()
	var c control.Connections
	r := s.ctl("connections", "--json", "--limit", "50")
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil || len(c.Connections) == 0 {
		s.t.Fatalf("connections: %v: %v", err, r)
	}
	return c.Connections[rand.IntN(len(c.Connections))].ID
}

func openConnectionsLiveThroughReloadMoveAndScale(t *testing.T, m *machine) {
	clients, lasting := 5000, time.Minute
	if testing.Short() {
		clients, lasting = 500, 10*time.Second
	}
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\ngrace = \"10s\"\n[reload]\nbake = \"200ms\"\n")
	s.start()
	s.awaitStatus(10*time.Second, allReady(2))
	g := s.talkers(talk.Options{Clients: clients, Pause: 2 * time.Second})

	version := 1
	operations := []struct {
		name string
		run  func() result
	}{
		{"reload", func() result {
			version++
			s.replace(probe(t, strconv.Itoa(1+version%2), ""))
			return s.run(t, "systemctl", "reload", s.unit)
		}},
		{"scale up", func() result { return s.ctl("scale", "3") }},
		{"rebalance", func() result { return s.ctl("rebalance") }},
		{"scale down", func() result { return s.ctl("scale", "2") }},
		{"move", func() result {
			// What is moved may have moved by itself, or its slot may be gone:
			// then it is refused, and that is no loss.
			s.ctl("move", fmt.Sprint(s.aConnection()), "0")
			s.ctl("move", fmt.Sprint(s.aConnection()), "1")
			return result{}
		}},
		{"recycle", func() result { return s.ctl("recycle", "0") }},
	}
	count := make(map[string]int)
	for deadline := time.Now().Add(lasting); time.Now().Before(deadline); {
		for _, op := range operations {
			if r := op.run(); r.code != 0 {
				t.Errorf("%s: %v", op.name, r)
			}
			count[op.name]++
		}
		if err := g.Report().Err(); err != nil {
			break
		}
	}
	report := g.Stop()
	t.Logf("%v; %v", report, count)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Changes < clients {
		t.Errorf("connections have changed their worker %d times, want each of %d at least once", report.Changes, clients)
	}
	s.onlyTheseRemain(s.awaitStatus(15*time.Second, allReady(2)))
}
