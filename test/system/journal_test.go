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
	"github.com/mainstay-go/mainstay/pkg/journal"
)

func journalHasFieldsByWhichWorkersAreFound(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 4\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(4))
	worker := workers(st)[3]

	// What the worker itself says, and what its supervisor says of it.
	var own, told int
	eventually(t, 10*time.Second, func() error {
		for range 4 { // the workers take turns
			if _, err := s.line("app-text.socket", "log 1"); err != nil {
				return err
			}
		}
		entries := s.journal("WORKER=3")
		own, told = 0, 0
		for _, entry := range entries {
			switch entry["_PID"] {
			case fmt.Sprint(worker.PID):
				own++
			case fmt.Sprint(st.PID):
				told++
			}
			for _, field := range []string{"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "GENERATION"} {
				if entry[field] == nil {
					t.Errorf("an entry without %s: %v", field, entry)
				}
			}
			if entry["_TRANSPORT"] != "journal" {
				t.Errorf("an entry by way of %v, want journald's own protocol: %v", entry["_TRANSPORT"], entry)
			}
		}
		if own == 0 || told == 0 {
			return fmt.Errorf("WORKER=3 finds %d entries of pid %d and %d of the supervisor: %v", own, worker.PID, told, messages(entries))
		}
		return nil
	})
	for _, entry := range s.journal("WORKER=2") {
		if entry["WORKER"] != "2" {
			t.Errorf("WORKER=2 finds %v", entry)
		}
	}
}

func journalExplainsADeathAndARolledBackReload(t *testing.T, m *machine) {
	const file = "/usr/lib/systemd/catalog/mainstay-test.catalog"
	s := install(t, m, probe(t, "1", ""))
	s.write(t, file, readFile(t, "../../deploy/journal/mainstay.catalog"), 0o644)
	t.Cleanup(func() {
		if err := os.Remove(s.path(file)); err != nil {
			t.Error(err)
		}
		s.must(t, "journalctl", "--update-catalog")
	})
	if out := s.must(t, "journalctl", "--update-catalog"); out != "" {
		t.Errorf("journalctl --update-catalog: %s", out)
	}
	s.configure(reloadable)
	s.start()
	before := workers(s.awaitStatus(10*time.Second, allReady(2)))
	s.kill(t, "KILL", before[1].PID)
	s.awaitStatus(10*time.Second, func(st control.Status) error {
		if err := allReady(2)(st); err != nil {
			return err
		}
		if workers(st)[1].PID == before[1].PID {
			return errors.New("worker 1 is still there")
		}
		return nil
	})
	s.replace(probe(t, "2", "exit"))
	if r := s.run(t, "systemctl", "reload", s.unit); r.code == 0 {
		t.Fatalf("systemctl reload: %v", r)
	}
	eventually(t, 10*time.Second, func() error {
		s.must(t, "journalctl", "--sync")
		out := s.must(t, "journalctl", "--catalog", "--no-pager", "--unit="+s.unit, s.since)
		for _, want := range []string{
			"Subject: Worker 1 of pool worker has died",
			fmt.Sprintf("process %d) has died\n", before[1].PID),
			"without having been asked to: killed by SIGKILL.",
			"has failed to start",
			"Subject: The reload to generation 2 has failed",
			lastWord,
		} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("journalctl -x does not say %q:\n%s", want, out)
			}
		}
		return nil
	})
}

// logged counts the lines that a probe wrote because it was asked for so many.
func (s *service) logged(n int) int {
	s.t.Helper()
	return len(s.journal("EVENT=asked to be logged", fmt.Sprintf("OF=%d", n)))
}

func frozenJournaldHoldsUpNobody(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 1\n")
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(1))
	journald, err := strconv.Atoi(s.show(t, "systemd-journald.service", "MainPID"))
	if err != nil {
		t.Fatal(err)
	}
	dropped := func() float64 {
		t.Helper()
		n, err := s.metric("mainstay_log_lines_dropped_total")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := dropped(); n != 0 {
		t.Fatalf("%v lines are dropped, and nothing has happened", n)
	}

	s.kill(t, "STOP", journald)
	defer s.kill(t, "CONT", journald)
	const many = 12000 // the queue has room for 8192
	began := time.Now()
	if _, err := s.line("app-text.socket", fmt.Sprintf("log %d", many)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the callback was held up for %v", took)
	}
	for i := range 20 {
		if err := s.echoed("app.socket", fmt.Sprintf("client %d", i)); err != nil {
			t.Error(err)
		}
	}
	lost := dropped()
	if lost == 0 || lost > many-8192 {
		t.Errorf("%v of %d lines are dropped", lost, many)
	}

	s.kill(t, "CONT", journald)
	eventually(t, 20*time.Second, func() error {
		got := s.logged(many)
		if got+int(lost) != many {
			return fmt.Errorf("%d lines are there and %v were dropped, want %d together", got, lost, many)
		}
		if len(s.journal("MESSAGE_ID="+journal.LinesDropped)) == 0 {
			return errors.New("nobody tells of the lines that were dropped")
		}
		return nil
	})
	if now := s.status(); workers(now)[0].PID != workers(before)[0].PID || now.PID != before.PID {
		t.Errorf("was %+v, is %+v", before, now)
	}
}

func stoppedAndRestartedJournaldHurtsNobody(t *testing.T, m *machine) {
	if m.netns == "" {
		t.Skip("stops journald, which is not done to this host's")
	}
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 1\n")
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(1))
	log := func(n int) {
		t.Helper()
		if _, err := s.line("app-text.socket", fmt.Sprintf("log %d", n)); err != nil {
			t.Fatal(err)
		}
	}
	arrive := func(n int) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if got := s.logged(n); got != n {
				return fmt.Errorf("%d lines are there, want %d", got, n)
			}
			return nil
		})
	}
	log(11)
	arrive(11)
	s.must(t, "systemctl", "restart", "systemd-journald.service")
	log(12)
	arrive(12)

	sockets := []string{"systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket"}
	s.quietly(append([]string{"systemctl", "stop", "systemd-journald.service"}, sockets...)...)
	t.Cleanup(func() {
		s.quietly("systemctl", "start", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service")
	})
	log(13)
	for i := range 20 {
		if err := s.echoed("app.socket", fmt.Sprintf("client %d", i)); err != nil {
			t.Error(err)
		}
	}
	eventually(t, 10*time.Second, func() error {
		if n, err := s.metric("mainstay_log_lines_dropped_total"); err != nil || n < 13 {
			return fmt.Errorf("%v lines are dropped, %v, want 13", n, err)
		}
		return nil
	})
	s.must(t, "systemctl", "start", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service")
	log(14)
	arrive(14)
	if now := s.status(); workers(now)[0].PID != workers(before)[0].PID || now.PID != before.PID {
		t.Errorf("was %+v, is %+v", before, now)
	}
}
