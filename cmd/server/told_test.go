package main

import (
	"bufio"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

var (
	toldHarvest = regexp.MustCompile(`connections of a dead worker .*incarnation=(\d+) .*ended=(\d+) torn=(\d+)`)
	toldLost    = regexp.MustCompile(`connections lost with a worker .*incarnation=(\d+) .*connections=(\d+)()`)
)

// losses is how many connections the log says to have ended with dead workers,
// and how many of them were torn. A supervisor tells again, and all of it, what
// the one before may not have come to tell.
func (m *manager) losses() (all, torn int) {
	m.t.Helper()
	text, err := os.ReadFile(m.dir + "/log")
	if err != nil {
		m.t.Fatal(err)
	}
	last := make(map[string][2]int)
	for line := range strings.Lines(string(text)) {
		for _, of := range []*regexp.Regexp{toldHarvest, toldLost} {
			if match := of.FindStringSubmatch(line); match != nil {
				others, _ := strconv.Atoi(match[2])
				torn, _ := strconv.Atoi(match[3])
				last[of.String()+match[1]] = [2]int{others, torn}
			}
		}
	}
	for _, n := range last {
		all, torn = all+n[0]+n[1], torn+n[1]
	}
	return all, torn
}

// A worker dies, and its supervisor at any moment of the harvest that follows.
func TestEveryLossIsToldWhoeverDiesMeanwhile(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	m := startManager(t, 3)
	lost, torn := 0, 0
	for i := range rounds {
		st := m.well()
		var clients []*talker
		for range 90 {
			conn, err := m.dial("mortal")
			if err != nil {
				t.Fatal(err)
			}
			c := &talker{conn, bufio.NewReader(conn)}
			if _, _, err = c.ask("who"); err == nil {
				_, err = conn.Write([]byte("wh")) // a message is under way
			}
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		victims := pidsOf(st)[:1+i%2]
		m.kill(victims)
		<-time.After(time.Duration(rand.IntN(8000)) * time.Microsecond)
		m.die(unix.SIGKILL)
		m.start()
		m.await("others serve", func(st control.Status) bool {
			if st.State != control.StateServing || len(st.Pools[0].Workers) != m.workers {
				return false
			}
			for _, w := range st.Pools[0].Workers {
				for _, pid := range victims {
					if w.PID == pid {
						return false
					}
				}
			}
			return true
		})
		for _, c := range clients {
			if _, _, err := c.ask("o"); err != nil {
				lost++
			}
			c.conn.Close()
		}
		var told int
		for end := time.Now().Add(patience); ; {
			if told, torn = m.losses(); told == lost {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("round %d: %d were lost so far, %d are told", i, lost, told)
			}
			<-time.After(10 * time.Millisecond)
		}
		t.Logf("round %d: %d lost so far", i, lost)
	}
	if lost == 0 {
		t.Error("nothing was lost: the clients were not busy")
	}
	sum := 0.0
	for key, n := range m.sums() {
		if strings.HasPrefix(key, "mainstay_connections_torn_total") {
			sum += n
		}
	}
	if int(sum) != torn {
		t.Errorf("%d were lost, %d of them torn, and %v are in the books", lost, torn, sum)
	}
}
