package system

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/test/talk"
)

func rollbackReturnsToTheProgramOfBeforeWhateverDiedMeanwhile(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	first := s.awaitStatus(10*time.Second, allProtected(2))
	if r := s.ctl("rollback"); r.code != 1 || !strings.Contains(r.stderr, "no earlier release") {
		t.Errorf("rollback of the first release: %v", r)
	}
	g := s.talkers(talk.Options{Clients: 100, Pause: 200 * time.Millisecond})
	s.replace(probe(t, "2", ""))
	s.must(t, "systemctl", "reload", s.unit)
	second := s.awaitStatus(10*time.Second, renewed(2))
	s.kill(t, "KILL", second.PID)
	s.awaitStatus(20*time.Second, successor(second, 2))
	if r := s.ctl("status"); !strings.Contains(r.stdout, "last good: generation 1, ") || !strings.Contains(r.stdout, "(the file has been replaced)") {
		t.Errorf("status: %v", r)
	}
	r := s.ctl("rollback")
	if r.code != 0 || !strings.Contains(r.stdout, "worker 1: pid ") || !strings.HasSuffix(r.stdout, "rolled back\n") {
		t.Fatalf("rollback: %v", r)
	}
	if got := s.versionOf(); got != "1" {
		t.Errorf("after the rollback the version is %q, want 1", got)
	}
	after := s.awaitStatus(10*time.Second, renewed(2))
	if after.Generation != first.Generation || after.LastGood != nil || !after.LastReload.Back {
		t.Errorf("status %+v", after)
	}
	s.onlyTheseRemain(after)
	s.storesOnly(2)
	if got := s.journal("MESSAGE_ID=" + journal.RolledBack); len(got) != 1 {
		t.Errorf("the journal has %d entries of the rollback: %v", len(got), messages(got))
	}
	if r := s.ctl("rollback"); r.code != 1 {
		t.Errorf("a second rollback: %v", r)
	}
	s.must(t, "systemctl", "reload", s.unit)
	if got := s.versionOf(); got != "2" {
		t.Errorf("after the next reload the version is %q, want 2", got)
	}
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
}

// examination is what doctor says.
type examination struct {
	Running  bool
	Errors   int
	Checked  []string
	Findings []struct{ Level, What, Why, Do string }
}

func (s *service) doctor(program string) (x examination) {
	s.t.Helper()
	r := s.run(s.t, program, "doctor", "--json", "--control", s.controlURL)
	if err := json.Unmarshal([]byte(r.stdout), &x); err != nil {
		s.t.Fatalf("doctor: %v: %v", err, r)
	}
	if r.code > 1 || (r.code == 1) != (x.Errors > 0) {
		s.t.Errorf("doctor has %d errors and exits with %d", x.Errors, r.code)
	}
	return x
}

func (x examination) has(level, what string) bool {
	for _, f := range x.Findings {
		if f.Level == level && strings.Contains(f.What, what) {
			return true
		}
	}
	return false
}

func statusTellsOfWorkersThatHaveNoSupervisor(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\ngrace = \"10s\"\n")
	s.start()
	before := s.awaitStatus(10*time.Second, allProtected(2))
	g := s.talkers(talk.Options{Clients: 50, Pause: 200 * time.Millisecond})

	tool := s.rename("/usr/bin/app-tool") // the operator's, which can be executed
	s.write(t, tool, readFile(t, probe(t, "1", "")), 0o755)
	t.Cleanup(func() { s.quietly("rm", "-f", tool) })
	s.write(t, s.program, []byte("this is no program"), 0o755)
	s.quietly("systemctl", "--no-block", "restart", s.unit)
	eventually(t, 20*time.Second, func() error {
		got := s.show(t, s.unit, "NRestarts")
		if n, err := strconv.Atoi(got); err != nil || n < 2 {
			return fmt.Errorf("%q attempts", got)
		}
		return nil
	})
	r := s.run(t, tool, "status", "--json", "--control", s.controlURL)
	var st control.Status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	if r.code != 1 || st.State != control.StateOrphaned || st.Connections < 50 || len(st.Pools[0].Workers) != 2 {
		t.Errorf("status exits with %d: %+v", r.code, st)
	}
	for _, w := range st.Pools[0].Workers {
		if was := workers(before)[w.Slot]; w.PID != was.PID || w.KeeperPID != was.KeeperPID || w.State != "serving" {
			t.Errorf("worker %+v, was %+v", w, was)
		}
	}
	r = s.run(t, tool, "status", "--control", s.controlURL)
	for _, want := range []string{"is orphaned", "for a supervisor, which adopts them", "systemd: " + s.unit + " is ", "to do: see why"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("status does not say %q: %v", want, r)
		}
	}
	if x := s.doctor(tool); !x.has("error", "without a supervisor") {
		t.Errorf("doctor: %+v", x)
	}
	s.replace(probe(t, "2", ""))
	s.awaitStatus(30*time.Second, renewed(2))
	report := g.Stop()
	t.Log(report)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
}

func doctorFindsNothingWrongAndWhatIs(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.start()
	s.awaitStatus(10*time.Second, allProtected(2))
	if x := s.doctor(s.program); x.Errors > 0 || !x.Running {
		t.Errorf("of the units as they are: %+v", x)
	} else if !slices.ContainsFunc(x.Checked, func(c string) bool { return strings.Contains(c, "16 of 16 connections came back") }) {
		t.Errorf("no worker was tried under the filter of the unit: %+v", x)
	}
	s.dropIn("app.service", "40-wrong.conf", "[Service]\nNonBlocking=no\nLimitNOFILE=70000:524288\nFileDescriptorStoreMax=80000\nSystemCallFilter=~pidfd_getfd\n")
	s.configure("workers = 3\n")
	s.daemonReload()
	s.must(t, "systemctl", "restart", s.unit)
	s.awaitStatus(20*time.Second, func(st control.Status) error { return allReady(3)(st) })
	told := []string{"was handed over blocking"}
	if s.version >= 254 { // before, systemd does not tell a service how much it stores
		told = append(told, "more descriptors than it may be started with")
	}
	for _, want := range told {
		if !says(s.journal("PRIORITY=3"), want) {
			t.Errorf("the journal does not say %q", want)
		}
	}
	s.configure("wokers = 3\n")
	x := s.doctor(s.program)
	for _, want := range []string{
		"Service.NonBlocking", "Service.LimitNOFILE", "Service.SystemCallFilter", // by the units
		"was handed over blocking", "80000 descriptors may be stored", "cannot reach into its workers", "is unprotected", "cannot be used", // by the supervisor
	} {
		if !x.has("error", want) {
			t.Errorf("doctor does not find %q: %+v", want, x)
		}
	}

	// Without a filter the Go runtime raises its soft limit; systemd does not.
	s.dropIn("app.service", "40-wrong.conf", "[Service]\nLimitNOFILE=70000:524288\nFileDescriptorStoreMax=80000\nSystemCallFilter=\n")
	s.configure("workers = 3\n")
	s.daemonReload()
	s.must(t, "systemctl", "restart", s.unit)
	s.awaitStatus(20*time.Second, renewed(3))
	if x := s.doctor(s.program); !x.has("error", "80000 descriptors may be stored") {
		t.Errorf("doctor does not see the limit of the next start: %+v", x)
	}
}

func strangerIsNamedAndDoesNotOutliveTheStop(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	s.start()
	st := s.awaitStatus(10*time.Second, allReady(2))
	// Somebody has left a process there: what a worker that died had started.
	out := s.must(t, "sh", "-c", `u=$(stat -c %u /proc/$2); setpriv --reuid $u --regid $(stat -c %g /proc/$2) --clear-groups sleep 600 >/dev/null 2>&1 </dev/null & p=$!
for d in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
	if [ -e "$d$1/cgroup.procs" ]; then echo $p >"$d$1/cgroup.procs"; fi
done
echo $p`, "sh", s.show(t, s.unit, "ControlGroup"), strconv.Itoa(st.PID))
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	s.awaitStatus(40*time.Second, func(st control.Status) error {
		if len(st.Strangers) != 1 || st.Strangers[0].PID != pid || st.Strangers[0].Kind != "other" || st.Strangers[0].Name != "sleep" {
			return fmt.Errorf("strangers %+v, want pid %d", st.Strangers, pid)
		}
		return nil
	})
	if x := s.doctor(s.program); !x.has("warning", "stranger") {
		t.Errorf("doctor: %+v", x)
	}
	if !says(s.journal("PRIORITY=4"), "a stranger in the unit's cgroup") {
		t.Errorf("the journal does not say so")
	}
	s.must(t, "systemctl", "stop", s.unit)
	s.nothingRuns(st)
	if s.alive(pid) {
		t.Errorf("process %d outlives the stop", pid)
	}
}
