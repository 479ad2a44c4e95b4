package system

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

func stopLeavesNoProcess(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\nstop_grace = \"1s\"\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(2))
	open, err := s.dial(s.address("app.socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := echo(open, "hello"); err != nil {
		t.Fatal(err)
	}
	s.kill(t, "STOP", workers(st)[1].PID) // one that does not listen

	began := time.Now()
	s.must(t, "systemctl", "stop", s.unit)
	// TimeoutStopSec= is 30 s, and needing that would be a failure as well.
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if got := s.show(t, s.unit, "Result"); got != "success" {
		t.Errorf("the result is %s", got)
	}
	s.nothingRuns(st)
}

func stopTakesWorkersOfAnEarlierSupervisorAlong(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	s.connect(16)() // whoever drains has something to wait for
	s.kill(t, "KILL", before.PID)
	after := s.awaitStatus(10*time.Second, func(st control.Status) error {
		if st.PID == before.PID {
			return fmt.Errorf("still supervisor %d", st.PID)
		}
		return allReady(2)(st)
	})
	var stopped int
	for _, w := range workers(before) {
		if s.alive(w.PID) {
			s.kill(t, "STOP", w.PID) // nothing but SIGKILL ends it now
			stopped++
		}
	}
	if stopped == 0 {
		t.Fatal("no worker of the earlier supervisor serves its connections on")
	}
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(before)
	s.nothingRuns(after)
}

func stopByTheCommandLineStaysStopped(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.start()
	st := s.status()
	if r := s.ctl("stop"); r.code != 0 {
		t.Fatalf("stop: %v", r)
	}
	eventually(t, 20*time.Second, func() error {
		// A restart that is pending would be "activating".
		if got := s.show(t, s.unit, "ActiveState"); got != "inactive" {
			return fmt.Errorf("the service is %s", got)
		}
		return nil
	})
	if got := s.show(t, s.unit, "NRestarts"); got != "0" {
		t.Errorf("it was started again %s times", got)
	}
	s.nothingRuns(st)
	if r := s.ctl("status"); r.code != 3 {
		t.Errorf("status: %v, want exit 3", r)
	}
}

func stopOfTheTargetClosesThePorts(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.must(t, "systemctl", "start", s.rename("app.target"))
	if err := s.echoed("app.socket", "hello"); err != nil {
		t.Fatal(err)
	}
	network, address := s.address("app.socket")
	s.must(t, "systemctl", "stop", s.rename("app.target"))
	eventually(t, 20*time.Second, func() error {
		if conn, err := s.dial(network, address); err == nil {
			conn.Close()
			return fmt.Errorf("%s still takes connections", address)
		}
		return nil
	})
	if got := s.show(t, s.unit, "ActiveState"); got != "inactive" {
		t.Errorf("the service is %s", got)
	}
}

func failureForGoodLeavesNoProcess(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.dropIn("app.service", "30-once.conf", "[Unit]\nStartLimitBurst=1\n")
	s.daemonReload()
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(2))
	s.connect(16)() // whoever drains has something to wait for
	s.kill(t, "KILL", st.PID)
	for _, w := range workers(st) {
		s.run(t, "kill", "-s", "STOP", strconv.Itoa(w.PID)) // if it is still there
	}
	eventually(t, 20*time.Second, func() error {
		if got := s.show(t, s.unit, "ActiveState"); got != "failed" {
			return fmt.Errorf("the service is %s", got)
		}
		return nil
	})
	s.nothingRuns(st)
}

// storeThatOutlivesAStopDoesNoHarm: with FileDescriptorStorePreserve=yes the
// manager keeps what is stored over stop and start, too.
func storeThatOutlivesAStopDoesNoHarm(t *testing.T, m *machine) {
	if m.version < 254 {
		t.Skip("systemd before 254 has no FileDescriptorStorePreserve=")
	}
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.dropIn("app.service", "30-preserve.conf", "[Unit]\nStartLimitBurst=1\n[Service]\nFileDescriptorStorePreserve=yes\n")
	s.daemonReload()
	serves := func() control.Status {
		t.Helper()
		s.quietly("systemctl", "reset-failed", s.unit) // of one that never ran there is nothing to reset
		s.start()
		st := s.awaitStatus(20*time.Second, allProtected(2))
		if err := s.echoed("app.socket", "hello"); err != nil {
			t.Error(err)
		}
		s.storesOnly(2)
		return st
	}

	first := serves()
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(first)
	if got := s.show(t, s.unit, "NFileDescriptorStore"); got != "0" {
		t.Errorf("after an orderly stop %s descriptors are stored", got)
	}

	// Here all die, and the store tells of them to whoever starts next.
	second := serves()
	s.connect(16)()
	s.kill(t, "KILL", second.PID)
	eventually(t, 20*time.Second, func() error {
		if got := s.show(t, s.unit, "ActiveState"); got != "failed" {
			return fmt.Errorf("the service is %s", got)
		}
		return nil
	})
	s.nothingRuns(second)
	if got := s.show(t, s.unit, "NFileDescriptorStore"); got == "0" {
		t.Error("nothing is stored after a failure: this shows nothing")
	}
	third := serves()
	for slot, w := range workers(third) {
		if w.PID == workers(second)[slot].PID {
			t.Errorf("worker %d is still %d", slot, w.PID)
		}
	}
	s.must(t, "systemctl", "reload", s.unit)
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(third)
}

// nothingRuns waits until the processes of a status are gone and the control
// group is empty.
func (s *service) nothingRuns(st control.Status) {
	s.t.Helper()
	pids := []int{st.PID}
	for _, w := range workers(st) {
		pids = append(pids, w.PID)
	}
	eventually(s.t, 5*time.Second, func() error {
		if left := s.processes(s.t, s.unit); len(left) > 0 {
			return fmt.Errorf("in the control group are %v", left)
		}
		for _, pid := range pids {
			if s.alive(pid) {
				return fmt.Errorf("pid %d lives", pid)
			}
		}
		return nil
	})
}
