package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
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
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); cmd.ProcessState == nil {
		m.t.Fatal(e)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
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
	if st.State != control.StateOrphaned || st.PID != 0 || st.Generation != 1 || st.Connections != 5 || len(st.Pools[0].Workers) != 2 || len(st.Listeners) != 2 {
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
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("exits with %d: %s", cmd.ProcessState.ExitCode(), out)
	}
}
