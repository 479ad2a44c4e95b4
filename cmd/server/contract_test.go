package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// edits are changes to the sources of pkg/link, by file: each pair's first text,
// which is there once, becomes its second.
type edits map[string][][2]string

// speaking are the edits that make a build of another contract.
func speaking(contract int) edits {
	return edits{"link.go": {{fmt.Sprintf("const Contract = %d\n", link.Contract), fmt.Sprintf("const Contract = %d\n", contract)}}}
}

// elder are the edits that make a build of the contract before, which neither
// says nor hears what came with this one.
func elder() edits {
	e := speaking(link.Contract - 1)
	e["link.go"] = append(e["link.go"], [2]string{"`json:\"control,omitempty\"`", "`json:\"-\"`"})
	e["message.go"] = [][2]string{{"`json:\"restart,omitempty\"`", "`json:\"-\"`"}}
	return e
}

// builtAs builds the tests' program with edits, which the sources themselves do
// not see.
func builtAs(t *testing.T, name string, changes edits) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go command, which builds the program in another contract")
	}
	dir := t.TempDir()
	replace := make(map[string]string)
	for file, pairs := range changes {
		path, err := filepath.Abs(filepath.Join("../../pkg/link", file))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pairs {
			if n := bytes.Count(text, []byte(p[0])); n != 1 {
				t.Fatalf("%s has %q %d times, want it once", path, p[0], n)
			}
			text = bytes.Replace(text, []byte(p[0]), []byte(p[1]), 1)
		}
		replace[path] = filepath.Join(dir, file)
		if err := os.WriteFile(replace[path], text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, name)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// No symbols: that is the most of what it takes.
	build := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags", "-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return program
}

// own is the program that the tests are.
func own(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// events are what the service has told so far.
func (m *manager) events() (all []control.Event) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.client.Events(ctx, false, func(e control.Event) { all = append(all, e) }); err != nil {
		m.t.Fatal(err)
	}
	return all
}

// succeed has the supervisor end by a signal, and another program's follow.
func (m *manager) succeed(program string, sig unix.Signal) {
	m.t.Helper()
	m.die(sig)
	m.program = program
	m.start()
}

// named are clients that have a name, at two listeners.
func (m *manager) named(n int) (all []*talker) {
	m.t.Helper()
	for i := range n {
		name := []string{"mortal", "secure"}[i%2]
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.ports[name]))
		if err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() { conn.Close() })
		if conn, err = greet(conn, name); err != nil {
			m.t.Fatal(err)
		}
		c := &talker{conn, bufio.NewReader(conn)}
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			m.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// wantNamed wants them to be who they were, served by one of these processes,
// and to have been taken over last for that reason; empty: whatever it was.
func (m *manager) wantNamed(clients []*talker, by []int, why string) {
	m.t.Helper()
	for i, c := range clients {
		pid, answer, err := c.ask("who")
		name, reasons, _ := strings.Cut(answer, " ")
		if err != nil || name != fmt.Sprint("n", i) || !strings.HasSuffix(reasons, why) || !slices.Contains(by, pid) {
			m.t.Errorf("client %d: %q by %d, %v, want n%d, taken over last for %q, by one of %v", i, answer, pid, err, i, why, by)
		}
	}
}

// move has one connection moved to another worker, as an operator does who has
// looked for it.
func (m *manager) move() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := m.client.Connections(ctx, control.ConnectionsRequest{})
	if err != nil || len(list.Connections) == 0 {
		m.t.Fatalf("%d connections, %v", len(list.Connections), err)
	}
	c := list.Connections[0]
	to := (c.Slot + 1) % m.workers
	if moved, err := m.client.Move(ctx, control.MoveRequest{Conn: c.ID, Slot: to}); err != nil || moved.To != to {
		m.t.Errorf("move: %+v, %v", moved, err)
	}
	if _, err := m.client.Rebalance(ctx, control.RebalanceRequest{}); err != nil {
		m.t.Errorf("rebalance: %v", err)
	}
}

// letGo says whether the service has told of workers that it did not adopt.
func (m *manager) letGo() bool {
	return slices.ContainsFunc(m.events(), func(e control.Event) bool { return e.Kind == "let-go" && strings.Contains(e.Message, "contract") })
}

func TestRestartBetweenContractsAdoptsNeighboursAndReplacesOthers(t *testing.T) {
	before, after := builtAs(t, "before", elder()), builtAs(t, "after", speaking(link.Contract+2))

	t.Run("from the contract before", func(t *testing.T) {
		m := startManagerOf(t, 2, before)
		m.configure("reload.bake = \"50ms\"\n") // from the next supervisor on
		old := pidsOf(m.well())
		clients := m.named(20)
		g := m.talkers(30, 50*time.Millisecond)

		m.succeed(own(t), unix.SIGKILL)
		if got := pidsOf(m.well()); !slices.Equal(got, old) {
			t.Fatalf("the workers were %v and are %v", old, got)
		}
		m.wantNamed(clients, old, "")
		m.move()
		m.everyVerbWorks() // with old workers, until the reload, which is last
		now := pidsOf(m.renewed())
		m.wantNamed(clients, now, "reload")

		// Back to the program of before, its workers under this supervisor.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.client.Rollback(ctx, func(string) {}); err != nil {
			t.Fatalf("rollback: %v", err)
		}
		old = pidsOf(m.renewed())
		m.wantNamed(clients, old, "reload")
		m.move()
		if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.await("the dead one has a successor", func(st control.Status) bool {
			return st.State == control.StateServing && !slices.Contains(pidsOf(st), old[0])
		})
		m.wantNamed(clients, pidsOf(m.well()), "")

		// And forward by a restart.
		m.succeed(own(t), restartSignal)
		m.wantNamed(clients, pidsOf(m.renewed()), "")
		if m.letGo() {
			t.Errorf("workers were let go: %+v", m.events())
		}
		if r := g.Stop(); r.Wrong+r.Refused > 0 {
			t.Error(r) // who was in a callback of the one that was killed is lost
		}
		m.wantStored()
	})

	t.Run("between others", func(t *testing.T) {
		m := startManagerOf(t, 2, own(t))
		m.configure("reload.bake = \"50ms\"\n")
		text, err := os.ReadFile(m.dir + "/app.toml")
		if err == nil { // whom nobody adopts goes at the end of it
			err = os.WriteFile(m.dir+"/app.toml", bytes.Replace(text, []byte("\ngrace = \"5s\""), []byte("\ngrace = \"1s\""), 1), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		// To a contract two further on, back from it, and back to the one before
		// ours, which cannot adopt ours.
		for _, next := range []string{after, own(t), before} {
			old := pidsOf(m.well())
			clients := m.named(10)
			m.succeed(next, restartSignal)
			m.await("it serves with workers of its own", func(st control.Status) bool {
				return st.PID == m.run.Process.Pid && st.State == control.StateServing && !slices.ContainsFunc(pidsOf(st), func(pid int) bool { return slices.Contains(old, pid) })
			})
			if !m.letGo() {
				t.Errorf("the events do not tell of the workers %v: %+v", old, m.events())
			}
			m.named(4)                  // they are served, by whomever
			for i, c := range clients { // who was there ends in order, within the grace
				if err := c.ends(); err != nil {
					t.Errorf("client %d of the workers %v: %v", i, old, err)
				}
			}
			m.wantNamed(m.named(4), pidsOf(m.well()), "")
			m.await("they are gone", func(control.Status) bool { return len(m.family()) == 1+2*m.workers })
			m.wantStored()
		}
		m.everyVerbWorks()
	})
}
