package system

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// server is the reference service.
func server(t testing.TB) string {
	t.Helper()
	return program(t, "github.com/mainstay-go/mainstay/cmd/server")
}

func firstConnectionStartsTheService(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.must(t, "systemctl", "start", s.rename("app.socket"))
	if got := s.show(t, s.unit, "ActiveState"); got != "inactive" {
		t.Fatalf("before the first connection the service is %s", got)
	}
	if err := s.echoed("app.socket", "who starts you?"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { // the answer may come before READY=1 is seen
		if got := s.show(t, s.unit, "ActiveState"); got != "active" {
			return fmt.Errorf("after the first connection the service is %s", got)
		}
		return nil
	})
}

func socketsAreKnownByNameNotByOrder(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	six := fmt.Sprintf("[::1]:%d", m.freePort(t, "::1"))
	s.unitFile("app-six.socket", []byte("[Socket]\nListenStream="+six+"\nFileDescriptorName=six\nService=app.service\n"))
	s.unitFile("app-local.socket", readFile(t, "../../deploy/systemd/examples/app-local.socket"))
	s.configure(string(readFile(t, "../../deploy/systemd/examples/app.toml")) + "\n[listener.six]\nserve = \"echo\"\n")
	s.daemonReload()
	s.must(t, "systemctl", "start", s.rename("app-six.socket"), s.rename("app-local.socket"))
	s.start()

	// Within one run of the manager the order stays what it is; another one
	// has another.
	for range 3 {
		for _, unit := range []string{"app.socket", "app-six.socket"} {
			if err := s.echoed(unit, "no line end"); err != nil {
				t.Errorf("%s: %v", unit, err)
			}
		}
		for _, unit := range []string{"app-text.socket", "app-local.socket"} {
			if got, err := s.line(unit, "a line"); got != "a line" || err != nil {
				t.Errorf("%s: %q, %v", unit, got, err)
			}
		}
		if body, err := s.get("app-http.socket"); !strings.Contains(strings.ToLower(body), "hello") || err != nil {
			t.Errorf("app-http.socket: %q, %v", body, err)
		}
		s.must(t, "systemctl", "daemon-reexec")
		s.must(t, "systemctl", "restart", s.unit)
	}
	listeners := make(map[string]control.Listener)
	for _, l := range s.status().Listeners {
		listeners[l.Name] = l
	}
	for name, unit := range map[string]string{"echo": "app.socket", "text-echo": "app-text.socket", "nethttp-hello": "app-http.socket", "six": "app-six.socket", "local": "app-local.socket"} {
		_, address := s.address(unit)
		if l := listeners[name]; !l.Inherited || !strings.HasSuffix(l.Address, address) {
			t.Errorf("listener %s is %+v, want it inherited from %s", name, l, address)
		}
	}
}

func brokenConfigurationFailsTheStartAndSaysWhere(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("# a comment\n\nwokers = 4\n")
	if r := s.run(t, "systemctl", "start", s.unit); r.code == 0 {
		t.Fatal("the service has started")
	}
	if got := s.show(t, s.unit, "ExecMainStatus"); got != "78" {
		t.Errorf("exit status is %s, want 78", got)
	}
	eventually(t, 5*time.Second, func() error {
		if got := s.show(t, s.unit, "ActiveState"); got != "failed" {
			return fmt.Errorf("the service is %s", got)
		}
		return nil
	})
	if got := s.show(t, s.unit, "NRestarts"); got != "0" {
		t.Errorf("it was started again %s times: it does not become better", got)
	}
	entries := s.journal()
	if where := s.config() + ":3"; !says(entries, where) || !says(entries, "wokers") {
		t.Errorf("the journal does not name %s and wokers: %v", where, messages(entries))
	}
}

func firstGenerationThatCannotStartFailsTheStart(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", "exit"))
	s.configure("workers = 2\nstart_attempts = 2\n")
	// From 254 on `systemctl start` waits for the restarts as well.
	s.dropIn("app.service", "30-twice.conf", "[Unit]\nStartLimitBurst=2\n")
	s.daemonReload()
	if r := s.run(t, "systemctl", "start", s.unit); r.code == 0 {
		t.Fatal("the service has started")
	}
	if entries := s.journal(); !says(entries, lastWord) {
		t.Errorf("the worker's last word is not in the journal: %v", messages(entries))
	}
}

func dropInChangesTheNumberOfWorkersAtReload(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("[reload]\nbake = \"100ms\"\n")
	s.dropIn("app.service", "30-two.conf", "[Service]\nEnvironment=APP_WORKERS=2\n")
	s.daemonReload()
	s.start()
	before := s.awaitStatus(10*time.Second, allReady(2))

	s.dropIn("app.service", "workers.conf", string(readFile(t, "../../deploy/systemd/examples/workers.conf")))
	s.daemonReload()
	s.must(t, "systemctl", "reload", s.unit)
	after := s.awaitStatus(10*time.Second, allReady(4))
	if before.PID != after.PID {
		t.Errorf("the supervisor was pid %d and is pid %d: a reload is no restart", before.PID, after.PID)
	}
}

func instancesHaveSocketsAndSettingsOfTheirOwn(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	for i, workers := range []int{1, 3} {
		port := m.freePort(t, "127.0.0.1")
		name := fmt.Sprintf("%s@%d", s.prefix, port)
		s.write(t, fmt.Sprintf("/etc/%s/%d.env", s.prefix, port), fmt.Appendf(nil, "APP_WORKERS=%d\nAPP_RELOAD_BAKE=100ms\n", workers), 0o644)
		s.must(t, "systemctl", "start", name+".socket")
		if err := s.echoed(name+".socket", "hello"); err != nil {
			t.Fatalf("instance %d: %v", i, err)
		}
		instance := *s
		instance.controlURL = fmt.Sprintf("unix:///run/%s-%d/control.sock", s.prefix, port)
		instance.awaitStatus(10*time.Second, allReady(workers))
		s.must(t, "systemctl", "reload", name+".service")
	}
}

// get fetches / from an HTTP socket.
func (s *service) get(unit string) (string, error) {
	conn, err := s.dial(s.address(unit))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	request, err := http.NewRequest("GET", "http://localhost/", nil)
	if err != nil {
		return "", err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
