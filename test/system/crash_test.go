package system

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/talk"
)

func killedWorkerIsRespawnedAndTheOthersAreUntouched(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 3\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(3))
	inode := m.listenInode(t, s.port("app.socket"))
	for victim := range 3 {
		before := workers(st)
		s.kill(t, "KILL", before[victim].PID)
		st = s.awaitStatus(10*time.Second, func(st control.Status) error {
			if err := allReady(3)(st); err != nil {
				return err
			}
			if pid := workers(st)[victim].PID; pid == before[victim].PID {
				return fmt.Errorf("worker %d is still pid %d", victim, pid)
			}
			return nil
		})
		for slot, w := range workers(st) {
			switch {
			case slot == victim:
				if w.Respawns != before[slot].Respawns+1 || !strings.Contains(w.LastDeath, "SIGKILL") {
					t.Errorf("worker %d: %d respawns, last death %q", slot, w.Respawns, w.LastDeath)
				}
			case w.PID != before[slot].PID || w.Respawns != before[slot].Respawns:
				t.Errorf("worker %d was killed, and worker %d was %+v and is %+v", victim, slot, before[slot], w)
			}
		}
		eventually(t, 5*time.Second, func() error {
			if got := s.text(); !strings.Contains(got, "3/3 ready") {
				return fmt.Errorf("STATUS is %q", got)
			}
			return nil
		})
		if err := s.echoed("app.socket", "after a death"); err != nil {
			t.Error(err)
		}
	}
	if got := m.listenInode(t, s.port("app.socket")); got != inode {
		t.Errorf("the listening socket was inode %s and is %s", inode, got)
	}
	s.onlyTheseRemain(st)
}

func connectionsAtABoundaryOutliveTheKillOfTheirWorker(t *testing.T, m *machine) {
	clients, kills := 2000, 20
	if testing.Short() {
		clients, kills = 300, 6
	}
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 3\n[respawn]\nfirst = \"10ms\"\nmax = \"200ms\"\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allProtected(3))
	g := s.talkers(talk.Options{Clients: clients, Pause: time.Hour}) // each has said one line, and is silent
	busy := s.talkers(talk.Options{Clients: 50, Pause: 20 * time.Millisecond, Limit: 10 * time.Second})
	for range kills {
		victim := workers(st)[rand.IntN(3)]
		s.kill(t, "KILL", victim.PID)
		st = s.awaitStatus(10*time.Second, func(st control.Status) error {
			for _, w := range workers(st) {
				if w.PID == victim.PID {
					return fmt.Errorf("worker %d is still pid %d", w.Slot, w.PID)
				}
			}
			return allProtected(3)(st)
		})
	}
	if st.Connections < int64(clients) {
		t.Errorf("%d connections are open, want at least %d", st.Connections, clients)
	}
	// Those that were silent are served by workers that have not accepted them.
	g.Wake()
	report := g.Stop()
	t.Logf("silent: %v", report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Changes < clients/3 {
		t.Errorf("%d connections were answered by another worker than before, want most of %d", report.Changes, clients)
	}
	report = busy.Stop()
	t.Logf("busy: %v", report)
	if report.Wrong > 0 || errors.Is(report.First, os.ErrDeadlineExceeded) {
		t.Errorf("busy clients: %v", report)
	}
	s.onlyTheseRemain(st)
}

// allProtected is allReady, and each has its keeper.
func allProtected(n int) func(control.Status) error {
	return func(st control.Status) error {
		if err := allReady(n)(st); err != nil {
			return err
		}
		for _, w := range workers(st) {
			if w.Protection != "protected" {
				return fmt.Errorf("worker %d is %q", w.Slot, w.Protection)
			}
		}
		return nil
	}
}

func workerThatDiesAtOnceIsBackedOffFrom(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\n[respawn]\nfirst = \"200ms\"\nmax = \"2s\"\n")
	s.start()
	before := workers(s.awaitStatus(10*time.Second, allReady(2)))
	starts := s.starts()

	const watched = 4 * time.Second
	began := time.Now()
	s.behave("exit")
	s.kill(t, "KILL", before[1].PID)
	s.awaitStatus(10*time.Second, func(st control.Status) error {
		if st.State != control.StateDegraded {
			return fmt.Errorf("state is %q, want %q", st.State, control.StateDegraded)
		}
		if !strings.Contains(st.Reason, lastWord) { // at first it is the kill
			return fmt.Errorf("the reason is %q, want the last word", st.Reason)
		}
		return nil
	})
	if got := s.text(); !strings.Contains(got, "degraded") || !strings.Contains(got, "1/2 ready") || !strings.Contains(got, lastWord) {
		t.Errorf("STATUS is %q", got)
	}
	if got := s.run(t, "systemctl", "status", "--no-pager", "--full", s.unit).stdout; !strings.Contains(got, "degraded") {
		t.Errorf("systemctl status does not say degraded:\n%s", got)
	}
	// At once, then after 0.2, 0.4, 0.8, 1.6 and 2 s, or half of that.
	eventually(t, 2*watched, func() error {
		if time.Since(began) < watched {
			return errors.New("still counting")
		}
		return nil
	})
	if got := s.starts() - starts; got < 3 || got > 8 {
		t.Errorf("%d starts within %v, want a few", got, time.Since(began))
	}
	if now := workers(s.status())[0]; now.PID != before[0].PID {
		t.Errorf("worker 0 was pid %d and is pid %d: nothing was wrong with it", before[0].PID, now.PID)
	}
	if err := s.echoed("app.socket", "degraded, but there"); err != nil {
		t.Error(err)
	}

	s.behave("")
	s.awaitStatus(10*time.Second, allReady(2))
	if got := s.text(); strings.Contains(got, "degraded") {
		t.Errorf("all is well again, and STATUS is %q", got)
	}
}

func connectionsMadeWhileNobodyAcceptsAreServedAfterwards(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.start()
	before := workers(s.awaitStatus(10*time.Second, allReady(2)))
	for _, w := range before {
		s.kill(t, "STOP", w.PID)
	}
	waiting := s.connect(50)
	for _, w := range before {
		s.kill(t, "KILL", w.PID)
	}
	waiting()
}

// A listener that several wait for wakes one of them (epoll(7), EPOLLEXCLUSIVE),
// and a worker that is dead by then took the wake-up with it.
func connectionsThatWokeDeadWorkerAreServedByTheOthers(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\n[respawn]\nfirst = \"30s\"\nmax = \"30s\"\n")
	s.start()
	before := workers(s.awaitStatus(10*time.Second, allReady(2)))
	s.behave("exit") // its successor is no help
	s.kill(t, "STOP", before[0].PID)
	waiting := s.connect(50)
	s.kill(t, "KILL", before[0].PID)
	waiting()
	if now := workers(s.status()); len(now) != 1 || now[1].PID != before[1].PID {
		t.Errorf("want worker 1 alone, pid %d, got %+v", before[1].PID, now)
	}
}

// connect opens connections to the echo socket. The returned function wants
// each of them served.
func (s *service) connect(n int) (served func()) {
	s.t.Helper()
	network, address := s.address("app.socket")
	conns := make([]net.Conn, n)
	for i := range conns {
		conn, err := s.dial(network, address)
		if err != nil {
			s.t.Fatalf("connection %d: %v", i, err)
		}
		s.t.Cleanup(func() { conn.Close() })
		conns[i] = conn
	}
	return func() {
		s.t.Helper()
		for i, conn := range conns {
			if err := echo(conn, fmt.Sprintf("client %d", i)); err != nil {
				s.t.Errorf("connection %d: %v", i, err)
			}
		}
	}
}

func killedSupervisorIsFollowedByAnotherAndNobodyIsLost(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	inode := m.listenInode(t, s.port("app.socket"))
	open, err := s.dial(s.address("app.socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := echo(open, "before"); err != nil {
		t.Fatal(err)
	}
	stop := s.hammer("app.socket")
	s.kill(t, "KILL", before.PID)
	if err := echo(open, "its worker serves on"); err != nil {
		t.Errorf("an open connection died with the supervisor: %v", err)
	}
	after := s.awaitStatus(10*time.Second, func(st control.Status) error {
		if st.PID == before.PID {
			return errors.New("the same supervisor")
		}
		return allReady(2)(st)
	})
	expectNoneLost(t, stop())
	for slot, w := range workers(after) {
		if w.PID != workers(before)[slot].PID {
			t.Errorf("worker %d was pid %d and is pid %d, and nothing was wrong with it", slot, workers(before)[slot].PID, w.PID)
		}
	}
	if err := echo(open, "after"); err != nil {
		t.Errorf("an open connection died after its worker was adopted: %v", err)
	}
	if got := m.listenInode(t, s.port("app.socket")); got != inode {
		t.Errorf("the listening socket was inode %s and is %s", inode, got)
	}
	if got := s.show(t, s.unit, "NRestarts"); got != "1" {
		t.Errorf("NRestarts is %s, want 1", got)
	}
	s.onlyTheseRemain(after)
}

// systemd does nothing about the death of the main process as long as the
// command of ExecReload= runs: so that must not wait for the dead.
func supervisorKilledDuringAReloadIsFollowedAtOnce(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\nstart_timeout = \"60s\"\ngrace = \"2s\"\n")
	s.dropIn("app.service", "30-watchdog.conf", "[Service]\nWatchdogSec=0\n") // it is not to help
	s.daemonReload()
	s.start()
	before := s.awaitStatus(10*time.Second, allProtected(2))
	s.replace(probe(t, "2", "hang"))
	s.must(t, "systemctl", "--no-block", "reload", s.unit)
	s.awaitStatus(10*time.Second, func(st control.Status) error {
		if st.State != control.StateReloading {
			return fmt.Errorf("it is %s", st.State)
		}
		return nil
	})
	if pid := s.show(t, s.unit, "ControlPID"); pid == "0" {
		t.Error("no command of ExecReload= waits")
	}
	s.replace(probe(t, "1", ""))
	stop := s.hammer("app.socket")
	s.kill(t, "KILL", before.PID)
	begun := time.Now()
	after := s.awaitStatus(30*time.Second, successor(before, 2))
	expectNoneLost(t, stop())
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("there is another supervisor after %v", took)
	}
	sameWorkers(t, before, after)
	s.onlyTheseRemain(after)
}

func supervisorThatHangsIsReplacedByTheWatchdog(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure(reloadable)
	s.dropIn("app.service", "30-watchdog.conf", "[Service]\nWatchdogSec=1s\n")
	s.daemonReload()
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	// Longer than the watchdog's time: an idle supervisor is not a hung one.
	eventually(t, 10*time.Second, func() error {
		if st := s.status(); st.UptimeMS < 2500 {
			return fmt.Errorf("up for %d ms", st.UptimeMS)
		}
		return nil
	})
	if got := s.status().PID; got != before.PID {
		t.Fatalf("the supervisor was pid %d and is pid %d, and nothing was wrong with it", before.PID, got)
	}
	stop := s.hammer("app.socket")
	s.kill(t, "STOP", before.PID)
	eventually(t, 10*time.Second, func() error {
		if got := s.show(t, s.unit, "NRestarts"); got != "1" {
			return fmt.Errorf("NRestarts is %s, want 1", got)
		}
		return nil
	})
	s.awaitStatus(10*time.Second, allReady(2))
	expectNoneLost(t, stop())
	// Not by its result: that is the one of the run that followed.
	if entries := s.journal(); !says(entries, "atchdog timeout") {
		t.Errorf("the journal does not speak of the watchdog: %v", messages(entries))
	}
}
