package system

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/talk"
)

// renewed wants as many workers, all of the generation that serves, after a
// reload that is done.
func renewed(n int) func(control.Status) error {
	return func(st control.Status) error {
		if err := allReady(n)(st); err != nil {
			return err
		}
		if st.State != control.StateServing || st.LastReload == nil || !st.LastReload.OK || st.LastReload.Generation != st.Generation {
			return fmt.Errorf("%s, last reload %+v", st.State, st.LastReload)
		}
		for slot, w := range workers(st) {
			if w.Generation != st.Generation {
				return fmt.Errorf("worker %d is of generation %d, not %d", slot, w.Generation, st.Generation)
			}
		}
		return nil
	}
}

// successor wants another supervisor than the one of before, and as many ready
// workers.
func successor(before control.Status, n int) func(control.Status) error {
	return func(st control.Status) error {
		if st.PID == before.PID {
			return errors.New("the same supervisor")
		}
		return allProtected(n)(st)
	}
}

func sameWorkers(t *testing.T, before, after control.Status) {
	t.Helper()
	for slot, w := range workers(after) {
		if w.PID != workers(before)[slot].PID {
			t.Errorf("worker %d was pid %d and is pid %d", slot, workers(before)[slot].PID, w.PID)
		}
	}
}

// storesOnly wants the manager to keep what a service of n workers stores at
// rest, and nothing of workers that are gone.
func (s *service) storesOnly(n int) {
	s.t.Helper()
	releases := 1
	if s.status().LastGood != nil {
		releases = 2
	}
	// The table, the figures, the state and the supervisor's keeper; executable
	// and configuration; five of each worker.
	want := strconv.Itoa(4 + 2*releases + 5*n)
	eventually(s.t, 15*time.Second, func() error {
		if got := s.show(s.t, s.unit, "NFileDescriptorStore"); got != want {
			return fmt.Errorf("%s descriptors are stored, want %s", got, want)
		}
		return nil
	})
}

func openConnectionsOutliveTheDeathOfTheSupervisor(t *testing.T, m *machine) {
	clients := 1000
	if testing.Short() {
		clients = 200
	}
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 3\ngrace = \"10s\"\n[reload]\nbake = \"200ms\"\n")
	s.dropIn("app.service", "30-watchdog.conf", "[Service]\nWatchdogSec=2s\n")
	s.daemonReload()
	s.start()
	before := s.awaitStatus(10*time.Second, allProtected(3))
	g := s.talkers(talk.Options{Clients: clients, Pause: 500 * time.Millisecond})
	st := before
	for _, signal := range []string{"KILL", "SEGV", "STOP", "KILL"} { // STOP: the watchdog ends it
		s.kill(t, signal, st.PID)
		st = s.awaitStatus(20*time.Second, successor(st, 3))
		sameWorkers(t, before, st)
	}
	s.storesOnly(3)
	// Whoever was adopted is operated like any other.
	for _, args := range [][]string{{"recycle", "0"}, {"drain", "1"}, {"resume", "1"}, {"scale", "4"}, {"rebalance"}, {"scale", "3"}} {
		if r := s.ctl(args...); r.code != 0 {
			t.Errorf("%v: %v", args, r)
		}
	}
	s.replace(probe(t, "2", ""))
	s.must(t, "systemctl", "reload", s.unit)
	st = s.awaitStatus(10*time.Second, renewed(3))
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	s.onlyTheseRemain(st)
	s.storesOnly(3)
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(before)
	s.nothingRuns(st)
}

func openConnectionsOutliveRestartsInARow(t *testing.T, m *machine) {
	clients := 1000
	if testing.Short() {
		clients = 200
	}
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 3\ngrace = \"10s\"\n[reload]\nbake = \"100ms\"\n")
	s.start()
	s.awaitStatus(10*time.Second, allProtected(3))
	g := s.talkers(talk.Options{Clients: clients, Pause: 500 * time.Millisecond})
	for i := range 10 {
		s.replace(probe(t, strconv.Itoa(1+i%2), ""))
		s.must(t, "systemctl", "restart", s.unit)
		if i%3 == 0 { // otherwise in the middle of what the one before has begun
			s.awaitStatus(20*time.Second, renewed(3))
		}
	}
	st := s.awaitStatus(20*time.Second, renewed(3))
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if got := s.versionOf(); got != "2" {
		t.Errorf("after the restarts the version is %q, want 2", got)
	}
	s.onlyTheseRemain(st)
	s.storesOnly(3)
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(st)
}

func restartIntoSomethingBrokenLeavesTheWorkersAlone(t *testing.T, m *machine) {
	const good = "workers = 2\ngrace = \"10s\"\n"
	s := install(t, m, probe(t, "1", ""))
	s.configure(good)
	s.start()
	before := s.awaitStatus(10*time.Second, allProtected(2))
	g := s.talkers(talk.Options{Clients: 200, Pause: 200 * time.Millisecond})

	// A program that cannot be executed.
	s.write(t, s.program, []byte("this is no program"), 0o755)
	s.quietly("systemctl", "--no-block", "restart", s.unit)
	eventually(t, 10*time.Second, func() error {
		got := s.show(t, s.unit, "NRestarts")
		if n, err := strconv.Atoi(got); err != nil || n < 3 {
			return fmt.Errorf("%q attempts", got)
		}
		return nil
	})
	for _, w := range workers(before) {
		if !s.alive(w.PID) {
			t.Errorf("worker %d is dead", w.PID)
		}
	}
	s.replace(probe(t, "2", ""))
	st := s.awaitStatus(20*time.Second, renewed(2))

	// A configuration that cannot be read: what was serves on, and says so.
	s.configure("wokers = 3\n")
	s.quietly("systemctl", "restart", s.unit)
	s.awaitStatus(10*time.Second, successor(st, 2))
	eventually(t, 10*time.Second, func() error {
		if got := s.text(); !strings.Contains(got, "wokers") {
			return fmt.Errorf("STATUS is %q", got)
		}
		return nil
	})
	s.configure(good)
	s.must(t, "systemctl", "restart", s.unit)
	st = s.awaitStatus(20*time.Second, renewed(2))
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	s.onlyTheseRemain(st)
	s.storesOnly(2)
}

// A program takes over its signals a moment after it has been executed: before
// that its runtime has, which drops the one of a restart, and before that the
// kernel, which kills for it. A shell that is executed first makes either moment
// long enough.
func restartThatComesTooEarlyForTheProgramLosesNobody(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\nstart_timeout = \"5s\"\ngrace = \"10s\"\n[reload]\nbake = \"100ms\"\n")
	// Root needs no bus, nor a name there, to ask systemd what it has missed.
	s.dropIn("app.service", "20-root.conf", "[Service]\nDynamicUser=no\n")
	s.daemonReload()
	s.start()
	s.awaitStatus(10*time.Second, allProtected(2))
	g := s.talkers(talk.Options{Clients: 200, Pause: 200 * time.Millisecond})
	for i, early := range []struct {
		name, first, unit string
		limit             time.Duration
	}{
		{"killed", "", "", 15 * time.Second},
		// As the runtime does, the shell takes the signal and does nothing.
		{"dropped", "trap '' 35; ", "", 15 * time.Second},
		{"dropped, and nobody can be asked", "trap '' 35; PATH=/nowhere; ", "TimeoutStopSec=3s\n", 80 * time.Second},
	} {
		before := s.show(t, s.unit, "MainPID")
		s.dropIn("app.service", "30-early.conf", "[Service]\n"+early.unit+"ExecStart=\nExecStart=/bin/sh -c \"/bin/sleep 1; "+early.first+"/bin/sleep 1; exec /usr/bin/mainstay run --config /etc/app/app.toml --control unix://%t/app/control.sock\"\n")
		s.daemonReload()
		s.replace(probe(t, strconv.Itoa(2-i%2), ""))
		s.must(t, "systemctl", "--no-block", "restart", s.unit)
		eventually(t, 10*time.Second, func() error {
			shell := s.show(t, s.unit, "MainPID")
			if shell == before || shell == "0" {
				return fmt.Errorf("the main process was %s and is %s", before, shell)
			}
			stat, err := os.ReadFile(s.path("/proc/" + shell + "/status"))
			if err != nil || !strings.Contains(string(stat), "Name:\tsh\n") {
				return fmt.Errorf("the main process is no shell: %v: %s", err, stat)
			}
			// The bit of signal 35.
			if ignores := strings.Contains(string(stat), "SigIgn:\t00000004"); ignores != (early.first != "") {
				return fmt.Errorf("the shell does not wait yet: %s", stat)
			}
			return nil
		})
		s.dropIn("app.service", "30-early.conf", "[Service]\n"+early.unit)
		s.daemonReload()
		begun := time.Now()
		s.must(t, "systemctl", "restart", s.unit)
		if took := time.Since(begun); took > early.limit {
			t.Errorf("%s: the restart took %v", early.name, took)
		} else {
			t.Logf("%s: the restart took %v", early.name, took)
		}
		s.awaitStatus(20*time.Second, renewed(2))
		if got, want := s.versionOf(), strconv.Itoa(2-i%2); got != want {
			t.Errorf("%s: the version is %q, want %q", early.name, got, want)
		}
		if r := g.Report(); r.Err() != nil {
			t.Fatalf("%s: %v", early.name, r)
		}
	}
	if err := os.Remove(s.path(unitDir + "/" + s.rename("app.service.d/30-early.conf"))); err != nil {
		t.Fatal(err)
	}
	s.daemonReload()
	// As early as can be had from outside.
	for i := range 20 {
		for range 3 {
			s.must(t, "systemctl", "--no-block", "restart", s.unit)
			<-time.After(time.Duration(i) * time.Millisecond)
		}
	}
	s.must(t, "systemctl", "restart", s.unit)
	st := s.awaitStatus(20*time.Second, renewed(2))
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	s.onlyTheseRemain(st)
	s.storesOnly(2)
}
