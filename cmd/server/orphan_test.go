package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// says runs a command of the service's command line.
func (m *manager) says(args ...string) (code int, stdout, stderr string) {
	m.t.Helper()
	cmd := exec.Command(m.program, append(args, "--control", "unix://"+m.dir+"/c.sock")...)
	cmd.Env = append(os.Environ(), withMortals+"=1", "GORACE=atexit_sleep_ms=0")
	return m.output(cmd)
}

func TestStatusWithoutASupervisorTellsOfTheWorkersThatAreLeft(t *testing.T) {
	m := startManager(t, 2)
	before := m.well()
	for range 5 {
		c := m.connect("mortal")
		if _, _, err := c.ask("who"); err != nil {
			t.Fatal(err)
		}
	}
	m.die(unix.SIGKILL)
	var st control.Status
	deadline := time.Now().Add(30 * time.Second)
	for {
		code, stdout, stderr := m.says("status", "--json")
		if code != 1 || !strings.Contains(stderr, "no supervisor: 2 workers") {
			t.Fatalf("status exits with %d: %s%s", code, stdout, stderr)
		}
		if err := json.Unmarshal([]byte(stdout), &st); err != nil {
			t.Fatal(err)
		}
		if st.Connections == 5 || time.Now().After(deadline) {
			break
		}
	}
	if st.State != control.StateOrphaned || st.PID != 0 || st.Generation != 1 || st.Connections != 5 || len(st.Pools[0].Workers) != 2 || len(st.Listeners) != len(before.Listeners) {
		t.Errorf("status %+v", st)
	}
	for i, w := range st.Pools[0].Workers {
		if was := before.Pools[0].Workers[i]; w.PID != was.PID || w.State != "serving" || w.KeeperPID != was.KeeperPID || w.Protection != was.Protection || w.RSSBytes == 0 || w.HeartbeatAgeMS < 0 {
			t.Errorf("worker %+v, was %+v", w, was)
		}
	}
	_, stdout, _ := m.says("status")
	for _, want := range []string{"app is orphaned: generation 1, 5 connections\n", "reason: the supervisor is gone", "\nnext: ", "\nto do: "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("status lacks %q:\n%s", want, stdout)
		}
	}
	// Others are not its workers.
	if code, _, stderr := m.says("reload"); code != 3 {
		t.Errorf("reload exits with %d: %s", code, stderr)
	}
	m.start()
	m.well()
	m.wantStored()
	if code, stdout, stderr := m.says("status"); code != 0 || !strings.Contains(stdout, "cpu") {
		t.Errorf("status exits with %d: %s%s", code, stdout, stderr)
	}
}

func TestStatusOfAnotherAddressIsNotRunning(t *testing.T) {
	m := startManager(t, 1)
	cmd := exec.Command(m.program, "status", "--control", "unix://"+m.dir+"/other.sock")
	cmd.Env = append(os.Environ(), withMortals+"=1")
	if code, stdout, stderr := m.output(cmd); code != 3 {
		t.Errorf("exits with %d: %s%s", code, stdout, stderr)
	}
}

func TestDoctorSeesWhatOnlyTheSupervisorCanSee(t *testing.T) {
	m := startManager(t, 2)
	m.well()
	type report struct {
		Running  bool
		Errors   int
		Checked  []string
		Findings []struct{ Level, What, Why, Do string }
	}
	examine := func() (code int, r report) {
		t.Helper()
		code, stdout, stderr := m.says("doctor", "--json")
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Fatalf("%v: %s%s", err, stdout, stderr)
		}
		if (code == 1) != (r.Errors > 0) || code > 1 {
			t.Errorf("doctor exits with %d and has %d errors", code, r.Errors)
		}
		return code, r
	}
	found := func(r report, level, what string) bool {
		for _, f := range r.Findings {
			if f.Level == level && strings.Contains(f.What, what) && f.Why != "" && f.Do != "" {
				return true
			}
		}
		return false
	}
	const differs, broken = "not the one that runs", "cannot be used"
	_, r := examine()
	if !r.Running || found(r, "note", differs) || found(r, "error", broken) || found(r, "error", "unprotected") {
		t.Errorf("of a service that is well: %+v", r)
	}
	if !slices.ContainsFunc(r.Checked, func(c string) bool { return strings.Contains(c, "16 of 16 connections came back") }) {
		t.Errorf("no worker was tried: %+v", r)
	}
	m.configure("max_old = 3\n")
	if _, r = examine(); !found(r, "note", differs) {
		t.Errorf("with another configuration on disk: %+v", r)
	}
	m.configure("wokers = 3\n")
	if code, r := examine(); code != 1 || !found(r, "error", broken) {
		t.Errorf("with a broken configuration on disk: exit %d, %+v", code, r)
	}
	m.configure("")
	m.die(unix.SIGKILL)
	if code, r := examine(); code != 1 || r.Running || !found(r, "error", "2 workers serve 0 connections without a supervisor") {
		t.Errorf("without a supervisor: exit %d, %+v", code, r)
	}
	m.start()
	m.well()
}
