package system

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// reloadable is a configuration by which reloads, and their failures, are
// quick.
const reloadable = "workers = 2\nstart_timeout = \"2s\"\ngrace = \"2s\"\n[reload]\nbake = \"300ms\"\n"

func reloadBringsNewCodeAndLosesNobody(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	inode := m.listenInode(t, s.port("app.socket"))
	if got := s.versionOf(); got != "1" {
		t.Fatalf("version is %q, want 1", got)
	}
	old, err := s.dial(s.address("app.socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := echo(old, "before"); err != nil {
		t.Fatal(err)
	}

	stop := s.hammer("app.socket")
	s.replace(probe(t, "2", ""))
	s.must(t, "systemctl", "reload", s.unit)
	if got := s.versionOf(); got != "2" {
		t.Errorf("after the reload the version is %q, want 2", got)
	}
	after := s.awaitStatus(10*time.Second, allReady(2))
	s.onlyTheseRemain(after)
	if err := echo(old, "by the new code"); err != nil {
		t.Errorf("an open connection is not served on by the new workers: %v", err)
	}
	expectNoneLost(t, stop())

	if before.PID != after.PID {
		t.Errorf("the supervisor was pid %d and is pid %d", before.PID, after.PID)
	}
	if after.Generation != before.Generation+1 {
		t.Errorf("the generation was %d and is %d", before.Generation, after.Generation)
	}
	if got := m.listenInode(t, s.port("app.socket")); got != inode {
		t.Errorf("the listening socket was inode %s and is %s", inode, got)
	}
	if got := s.text(); !strings.Contains(got, "2/2 ready") || !strings.Contains(got, fmt.Sprintf("generation %d", after.Generation)) {
		t.Errorf("STATUS is %q", got)
	}
}

func reloadToProgramThatExitsAtStartIsRolledBack(t *testing.T, m *machine) {
	expectNoneLost(t, reloadIsRolledBack(t, m, "exit", lastWord))
}

func reloadToProgramThatHangsAtStartIsRolledBack(t *testing.T, m *machine) {
	expectNoneLost(t, reloadIsRolledBack(t, m, "hang", "not ready within 2s"))
}

func reloadToProgramThatCrashesRightAfterReadyIsRolledBack(t *testing.T, m *machine) {
	got := reloadIsRolledBack(t, m, "crash", lastWord)
	t.Log(got)
	// It did accept, and what it had in hand when it crashed went with it: of
	// each client at most one connection, at each of the two reloads.
	if most := 2 * hammerClients; got.reset+got.unanswered > most || got.refused+got.wrong+got.other > 0 {
		t.Errorf("clients lost more than what the new program had accepted: %v", got)
	}
}

// reloadIsRolledBack reloads, twice, to a program that does not work, and
// wants the old one to serve on, and the reason everywhere. It returns what
// clients got meanwhile.
func reloadIsRolledBack(t *testing.T, m *machine, behaviour, reason string) tally {
	t.Helper()
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))

	stop := s.hammer("app.socket")
	s.replace(probe(t, "2", behaviour))
	if r := s.run(t, "systemctl", "reload", s.unit); r.code != 1 {
		t.Errorf("systemctl reload: %v, want exit 1", r)
	}
	if r := s.ctl("reload", "--wait"); r.code != 1 || !strings.Contains(r.stderr, reason) {
		t.Errorf("reload --wait: %v, want exit 1 and %q", r, reason)
	}
	after := s.awaitStatus(10*time.Second, allReady(2))
	clients := stop()

	if got := s.versionOf(); got != "1" {
		t.Errorf("version %q serves, want the old one, 1", got)
	}
	if after.Generation != before.Generation {
		t.Errorf("generation %d serves, want %d", after.Generation, before.Generation)
	}
	for slot, w := range workers(before) {
		if now := workers(after)[slot]; now.PID != w.PID {
			t.Errorf("worker %d was pid %d and is pid %d: nothing was wrong with it", slot, w.PID, now.PID)
		}
	}
	if last := after.LastReload; last == nil || last.OK || !strings.Contains(last.Reason, reason) {
		t.Errorf("status: the last reload is %+v, want a failure for %q", last, reason)
	}
	if r := s.ctl("status"); !strings.Contains(r.stdout, reason) {
		t.Errorf("status does not say %q: %v", reason, r)
	}
	if got := s.run(t, "systemctl", "status", "--no-pager", "--full", s.unit).stdout; !strings.Contains(got, reason) {
		t.Errorf("systemctl status does not say %q:\n%s", reason, got)
	}
	if got := s.show(t, s.unit, "ActiveState"); got != "active" {
		t.Errorf("the service is %s", got)
	}

	// The program is repaired: the next reload brings it in.
	s.replace(probe(t, "3", ""))
	s.must(t, "systemctl", "reload", s.unit)
	if got := s.versionOf(); got != "3" {
		t.Errorf("after the repair the version is %q, want 3", got)
	}
	return clients
}

func reloadWithBrokenConfigurationChangesNothing(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	s.configure("workers = \"many\"\n")
	where := s.config() + ":1"
	if r := s.ctl("reload", "--wait"); r.code != 1 || !strings.Contains(r.stderr, where) || !strings.Contains(r.stderr, "workers") {
		t.Errorf("reload --wait: %v, want exit 1 and %q", r, where)
	}
	if r := s.run(t, "systemctl", "reload", s.unit); r.code != 1 {
		t.Errorf("systemctl reload: %v, want exit 1", r)
	}
	after := s.awaitStatus(10*time.Second, allReady(2))
	for slot, w := range workers(before) {
		if now := workers(after)[slot]; now.PID != w.PID {
			t.Errorf("worker %d was pid %d and is pid %d", slot, w.PID, now.PID)
		}
	}
}

func restartUnderTrafficLosesNobody(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))
	inode := m.listenInode(t, s.port("app.socket"))
	stop := s.hammer("app.socket")
	s.replace(probe(t, "2", ""))
	for range 3 {
		s.must(t, "systemctl", "restart", s.unit)
	}
	after := s.awaitStatus(20*time.Second, renewed(2)) // the workers are replaced when the start is over
	expectNoneLost(t, stop())
	if before.PID == after.PID {
		t.Errorf("the supervisor is still pid %d", after.PID)
	}
	if got := s.versionOf(); got != "2" {
		t.Errorf("after the restart the version is %q, want 2", got)
	}
	if got := m.listenInode(t, s.port("app.socket")); got != inode {
		t.Errorf("the listening socket was inode %s and is %s", inode, got)
	}
	s.onlyTheseRemain(after)
}

// isKeeper tells whether a process calls itself a keeper.
func (s *service) isKeeper(pid int) bool {
	name, err := os.ReadFile(s.path(fmt.Sprintf("/proc/%d/comm", pid)))
	return err == nil && strings.HasPrefix(string(name), "keeper ")
}

// onlyTheseRemain waits until the service's control group has the supervisor
// and the ready workers, and nobody else: those of the supervisor before have
// drained.
func (s *service) onlyTheseRemain(st control.Status) {
	s.t.Helper()
	want := map[int]bool{st.PID: true}
	for _, w := range workers(st) {
		want[w.PID] = true
		if w.KeeperPID != 0 {
			want[w.KeeperPID] = true
		}
	}
	eventually(s.t, 15*time.Second, func() error {
		var missing, strange []int
		seen := make(map[int]bool)
		own := 0
		for _, pid := range s.processes(s.t, s.unit) {
			seen[pid] = true
			if !want[pid] && own == 0 && s.isKeeper(pid) { // the supervisor's
				own = pid
				continue
			}
			if !want[pid] {
				strange = append(strange, pid)
			}
		}
		for pid := range want {
			if !seen[pid] {
				missing = append(missing, pid)
			}
		}
		if len(missing)+len(strange) > 0 {
			return errors.New(fmt.Sprint("in the control group are strangers ", strange, " and missing are ", missing))
		}
		return nil
	})
}
