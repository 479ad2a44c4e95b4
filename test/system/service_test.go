package system

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

const unitDir = "/run/systemd/system"

// service is the service as installed in a machine for one test: the units of
// deploy/systemd, a program, a configuration. Nothing of it is started.
type service struct {
	*machine
	t     testing.TB
	unit  string // app.service
	since string // the test's begin, as journalctl(1) takes it

	controlURL string // of the control socket
}

// install lays the units and the program, and takes everything away at the
// end of the test. The program is a file built by program.
func install(t testing.TB, m *machine, program string) *service {
	t.Helper()
	s := &service{
		machine: m, t: t, unit: m.prefix + ".service", since: fmt.Sprintf("--since=@%.6f", float64(time.Now().UnixMicro())/1e6),
		controlURL: "unix:///run/" + m.prefix + "/control.sock",
	}
	t.Cleanup(s.remove)
	s.replace(program)
	units := "../../deploy/systemd"
	err := filepath.WalkDir(units, func(file string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if entry.Name() == "examples" {
				return filepath.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(units, file)
		if err != nil {
			return err
		}
		s.unitFile(name, readFile(t, file))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if m.version < 254 {
		for _, dir := range []string{"app.service.d", "app@.service.d"} {
			if err := os.RemoveAll(m.path(filepath.Join(unitDir, m.rename(dir)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if m.prefix != "app" { // the defaults of the program are those of the name "app"
		s.dropIn("app.service", "20-prefix.conf", "[Service]\nEnvironment=APP_CONTROL=unix://%t/app/control.sock\nExecStart=\nExecStart=/usr/bin/mainstay run --config /etc/app/app.toml\n")
		s.configure("")
		for _, socket := range []string{"app", "app-text", "app-http"} {
			s.dropIn(socket+".socket", "20-port.conf", fmt.Sprintf("[Socket]\nListenStream=\nListenStream=127.0.0.1:%d\n", m.freePort(t, "127.0.0.1")))
		}
	}
	s.daemonReload()
	return s
}

// remove ends the service and takes its files away; if the test failed it
// first logs what there is to know.
func (s *service) remove() {
	if s.t.Failed() {
		s.explain()
	}
	all := []string{s.prefix + ".target", s.prefix + "*.socket", s.prefix + ".service", s.prefix + "@*.service", s.prefix + "-reap.service"}
	s.quietly(append([]string{"systemctl", "stop"}, all...)...)
	s.quietly("systemctl", "kill", "--kill-whom=all", "--signal=KILL", s.prefix+".service")
	s.quietly(append([]string{"systemctl", "reset-failed"}, all...)...)
	for _, pattern := range []string{
		unitDir + "/" + s.prefix + "*", "/etc/" + s.prefix, "/run/" + s.prefix + "*",
		// The state, which DynamicUser= makes a link to a private one.
		"/var/lib/" + s.prefix, "/var/lib/" + s.prefix + "-*", "/var/lib/private/" + s.prefix, "/var/lib/private/" + s.prefix + "-*",
	} {
		files, err := filepath.Glob(s.path(pattern))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, file := range files {
			if err := os.RemoveAll(file); err != nil {
				s.t.Error(err)
			}
		}
	}
	s.quietly("systemctl", "daemon-reload")
}

// quietly runs a command that may fail because there is nothing to do.
func (s *service) quietly(args ...string) {
	if _, err := s.try(args...); err != nil {
		s.t.Error(err)
	}
}

// explain logs the state of the service and its journal.
func (s *service) explain() {
	for _, args := range [][]string{
		{"systemctl", "status", "--no-pager", "--full", "--lines=0", s.prefix + "*"},
		{s.program, "status", "--json", "--control", s.controlURL},
		{"journalctl", "--no-pager", "--output=short-precise", "--lines=2000", s.since},
	} {
		r, err := s.try(args...)
		s.t.Logf("%s: %d %v\n%s%s", strings.Join(args, " "), r.code, err, r.stdout, r.stderr)
	}
}

// unitFile writes a unit or a drop-in.
func (s *service) unitFile(name string, text []byte) {
	s.t.Helper()
	s.write(s.t, filepath.Join(unitDir, s.rename(name)), []byte(s.rename(string(text))), 0o644)
}

// dropIn writes a drop-in of a unit; daemonReload makes it known.
func (s *service) dropIn(unit, name, text string) {
	s.t.Helper()
	s.unitFile(unit+".d/"+name, []byte(text))
}

func (s *service) daemonReload() {
	s.t.Helper()
	s.must(s.t, "systemctl", "daemon-reload")
}

// configure writes the service's configuration file.
func (s *service) configure(text string) {
	s.t.Helper()
	s.write(s.t, s.config(), []byte(text), 0o644)
}

func (s *service) config() string { return s.rename("/etc/app/app.toml") }

// replace puts another program in the place of the installed one, as a package
// manager does: the new file gets the old one's name.
func (s *service) replace(program string) {
	s.t.Helper()
	s.write(s.t, s.program, readFile(s.t, program), 0o755)
}

// start starts the sockets and the service.
func (s *service) start() {
	s.t.Helper()
	s.must(s.t, "systemctl", "start", s.unit)
}

// ctl runs the service's command line as an operator does.
func (s *service) ctl(args ...string) result {
	s.t.Helper()
	return s.run(s.t, append([]string{s.program}, append(args, "--control", s.controlURL)...)...)
}

// status is what `status --json` says.
func (s *service) status() control.Status {
	s.t.Helper()
	st, err := s.tryStatus()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *service) tryStatus() (st control.Status, err error) {
	r, err := s.try(s.program, "status", "--json", "--control", s.controlURL)
	if err != nil {
		return st, err
	}
	if r.code != 0 {
		return st, fmt.Errorf("status: %v", r)
	}
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		return st, fmt.Errorf("status: %w: %s", err, r.stdout)
	}
	return st, nil
}

// awaitStatus waits until check is content with the status, and returns it.
func (s *service) awaitStatus(limit time.Duration, check func(control.Status) error) (st control.Status) {
	s.t.Helper()
	eventually(s.t, limit, func() (err error) {
		if st, err = s.tryStatus(); err != nil {
			return err
		}
		if err := check(st); err != nil {
			return fmt.Errorf("%w: %+v", err, st)
		}
		return nil
	})
	return st
}

// allReady wants n slots, each with a ready worker, and no worker besides.
func allReady(n int) func(control.Status) error {
	return func(st control.Status) error {
		if st.State != control.StateServing {
			return fmt.Errorf("state is %q, want %q", st.State, control.StateServing)
		}
		var ready, others int
		for _, pool := range st.Pools {
			for _, w := range pool.Workers {
				if w.State == "ready" {
					ready++
				} else {
					others++
				}
			}
		}
		if ready != n || others != 0 {
			return fmt.Errorf("%d workers are ready and %d are not, want %d and 0", ready, others, n)
		}
		return nil
	}
}

// workers are the ready workers by slot.
func workers(st control.Status) map[int]control.Worker {
	bySlot := make(map[int]control.Worker)
	for _, pool := range st.Pools {
		for _, w := range pool.Workers {
			if w.State == "ready" {
				bySlot[w.Slot] = w
			}
		}
	}
	return bySlot
}

// address is where a socket unit listens, as net.Dial wants it.
func (s *service) address(unit string) (network, address string) {
	s.t.Helper()
	// 127.0.0.1:7007 (Stream)
	listen, _, _ := strings.Cut(s.show(s.t, s.rename(unit), "Listen"), " ")
	if strings.HasPrefix(listen, "/") {
		return "unix", listen
	}
	return "tcp", listen
}

// port is the port of a TCP socket unit.
func (s *service) port(unit string) int {
	s.t.Helper()
	_, address := s.address(unit)
	port, err := strconv.Atoi(address[strings.LastIndex(address, ":")+1:])
	if err != nil {
		s.t.Fatalf("%s listens on %q: %v", unit, address, err)
	}
	return port
}

// text is the unit's StatusText, what the supervisor told systemd last.
func (s *service) text() string {
	s.t.Helper()
	return s.show(s.t, s.unit, "StatusText")
}

// journal are the service's entries since the test began; match are further
// matches of fields, as journalctl(1) takes them.
func (s *service) journal(match ...string) []map[string]any {
	s.t.Helper()
	s.must(s.t, "journalctl", "--sync")
	args := append([]string{"journalctl", "--output=json", "--all", "--unit=" + s.unit, s.since}, match...)
	var entries []map[string]any
	for line := range strings.Lines(s.must(s.t, args...)) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			s.t.Fatalf("%s: %v: %q", strings.Join(args, " "), err, line)
		}
		entries = append(entries, entry)
	}
	return entries
}

// says tells whether an entry of the journal has a text in its message.
func says(entries []map[string]any, text string) bool {
	for _, entry := range entries {
		if message, ok := entry["MESSAGE"].(string); ok && strings.Contains(message, text) {
			return true
		}
	}
	return false
}

// messages are the entries' texts, for a failure.
func messages(entries []map[string]any) (texts []any) {
	for _, entry := range entries {
		texts = append(texts, entry["MESSAGE"])
	}
	return texts
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
