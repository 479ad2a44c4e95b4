package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// sleeper starts a process that waits to be killed, with these variables.
func sleeper(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "600")
	cmd.Env = env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// cgroupOf makes a folder that looks like the cgroup of processes.
func cgroupOf(t *testing.T, all ...*exec.Cmd) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "app.service")
	text := fmt.Sprintln(os.Getpid())
	for _, cmd := range all {
		text += fmt.Sprintln(cmd.Process.Pid)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func asWorker(t *testing.T, id link.Identity) string {
	t.Helper()
	text, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	return link.Env + "=" + string(text)
}

const address = "unix:///run/app/control.sock"

func TestStrangersAreToldApart(t *testing.T) {
	own := link.Identity{Contract: link.Contract, Service: "app", Pool: "worker", Slot: 3, Incarnation: 9, Generation: 2, Epoch: 1, Control: address}
	foreign, elsewhere := own, own
	foreign.Service, elsewhere.Control = "other", "unix:///run/other/control.sock"
	worker := sleeper(t, asWorker(t, own))
	other := sleeper(t, "HOME=/")
	another := sleeper(t, asWorker(t, foreign))
	third := sleeper(t, asWorker(t, elsewhere))
	helper := sleeper(t, "PATH=/bin", "MAINPID=17")
	known := sleeper(t)
	dir := cgroupOf(t, worker, other, another, third, helper, known)
	all, err := findStrangers(dir, "app", address, map[int]bool{known.Process.Pid: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int]sighting)
	for _, x := range all {
		got[x.pid] = x
	}
	for _, tt := range []struct {
		name string
		cmd  *exec.Cmd
		kind string // empty: no stranger
	}{
		{"a worker of a supervisor before", worker, StrangerWorker}, {"anybody", other, StrangerOther},
		{"a worker of another service", another, StrangerOther}, {"a worker of another instance", third, StrangerOther},
		{"what systemd runs beside us", helper, ""}, {"one that is known", known, ""},
	} {
		if x := got[tt.cmd.Process.Pid]; x.kind != tt.kind {
			t.Errorf("%s is seen as %q, want %q", tt.name, x.kind, tt.kind)
		}
	}
	if x := got[worker.Process.Pid]; x.identity.Slot != 3 || x.name != "sleep" {
		t.Errorf("the worker is seen as %+v", x)
	}
}

func TestWhoDescendsFromOneThatIsKnownIsNoStranger(t *testing.T) {
	child := sleeper(t)
	all, err := findStrangers(cgroupOf(t, child), "app", address, map[int]bool{os.Getpid(): true})
	if err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestWorkerThatHasOutstayedItsGraceIsEndedAndAStrangerIsLeftAlone(t *testing.T) {
	id := link.Identity{Contract: link.Contract, Service: "app", Pool: "worker", Incarnation: 1, Generation: 1, Epoch: 1, Control: address}
	worker, other := sleeper(t, asWorker(t, id)), sleeper(t)
	dir := cgroupOf(t, worker, other)
	s := &Supervisor{log: zap.NewNop(), current: &release{settings: Settings{Grace: time.Minute}}}
	all, err := findStrangers(dir, "app", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.noteStrangers(strangersSeen{all: all})
	if got := s.shownStrangers(); len(got) != 2 || !strings.Contains(got[0].Account+got[1].Account, "was not adopted") {
		t.Fatalf("strangers %+v", got)
	}
	s.noteStrangers(strangersSeen{all: all}) // once more: they are told of once
	if n := len(s.chronicle.kept); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	for _, x := range s.strangers {
		if s.outstayed(x) {
			t.Errorf("%+v has outstayed its time at once", x)
		}
		x.since = x.since.Add(-2 * time.Minute)
		if want := x.kind == StrangerWorker; s.outstayed(x) != want {
			t.Errorf("%+v has outstayed its time: %v, want %v", x, !want, want)
		}
		if s.outstayed(x) {
			if err := endStranger(dir, x.sighting); err != nil {
				t.Error(err)
			}
		}
	}
	if err := worker.Wait(); err == nil || worker.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("the worker ended by %v, want SIGKILL", err)
	}
	if isZombie(other.Process.Pid) {
		t.Error("the stranger was ended")
	}
	s.noteStrangers(strangersSeen{})
	if len(s.strangers) != 0 {
		t.Errorf("strangers %+v that are gone", s.strangers)
	}
}

func TestNumberThatAnotherProcessHasGotIsNotEnded(t *testing.T) {
	cmd := sleeper(t)
	dir := cgroupOf(t, cmd)
	if err := endStranger(dir, sighting{pid: cmd.Process.Pid, started: "1"}); err != nil {
		t.Error(err)
	}
	if isZombie(cmd.Process.Pid) {
		t.Error("it was ended")
	}
}

func TestKeeperStaysAsLongAsItsWorker(t *testing.T) {
	id := link.Identity{Incarnation: 4, Epoch: 2}
	long := time.Now().Add(-time.Hour)
	keeper := &stranger{sighting{pid: 2, kind: StrangerKeeper, identity: id}, long}
	s := &Supervisor{current: &release{settings: Settings{Grace: 2 * time.Hour}}, strangers: map[int]*stranger{
		1: {sighting{pid: 1, kind: StrangerWorker, identity: id}, long}, 2: keeper,
	}}
	if s.outstayed(keeper) {
		t.Error("the keeper of a worker that finishes its connections would be ended")
	}
	delete(s.strangers, 1)
	if !s.outstayed(keeper) {
		t.Error("the keeper of a worker that is gone stays")
	}
}
