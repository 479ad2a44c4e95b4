// Package servicetest starts a service in a test, as it runs in earnest: the
// test binary is supervisor and workers, each in a process of its own, on
// sockets of loopback or on unix sockets, with a control socket of its own.
//
//	func TestMain(m *testing.M) { servicetest.Main(m, main) }
//
//	func TestConnectionsOutliveAReload(t *testing.T) {
//		s := servicetest.Start(t, servicetest.Options{Listeners: []string{"chat"}, Workers: 2})
//		c := s.Dial("chat")
//		s.Reload()
//		...
//	}
//
// Invariants: each wait ends after Patience at the latest, and fails the test;
// the service ends with the test, and a test that has failed shows the
// service's log. Start at Start.
package servicetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// Patience is after what time a wait fails its test.
const Patience = 30 * time.Second

// role is set in the processes that are the service.
const role = "MAINSTAY_SERVICETEST"

// Main is to be called by TestMain. In a process that Start has made, or a
// supervisor of it, it calls main, which does not return; otherwise it runs
// the tests and exits.
func Main(m *testing.M, main func()) {
	if IsService() {
		main()
		fmt.Fprintln(os.Stderr, "servicetest: main has returned, want it to end in Service.Main")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// IsService says whether this process is to be the service, for a TestMain
// that has more to decide than Main.
func IsService() bool { return os.Getenv(role) != "" || link.IsWorker() }

// Options say how a service is started.
type Options struct {
	Listeners []string // names; each gets a port of loopback, or its address of Config
	Workers   int      // zero: 1
	Config    string   // configuration file, TOML; empty: none
	Args      []string // more arguments of the command run
	Env       []string // more variables, "NAME=VALUE"
}

// Service is a service that runs. Its methods are for the test's own
// goroutine, because they end the test when something goes wrong.
type Service struct {
	t      testing.TB
	cmd    *exec.Cmd
	client *control.Client
	log    *logged
	ended  chan error // it has exited; nil afterwards
}

// logged is what the service has written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Start starts the service of Main's main and returns when all workers serve.
// It is stopped at the end of the test.
func Start(t testing.TB, o Options) *Service {
	t.Helper()
	// Not t.TempDir, whose path holds the test's name: a unix socket's is
	// bounded to 108 bytes.
	dir, err := os.MkdirTemp("", "servicetest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(dir, "control.sock")
	s := &Service{t: t, log: new(logged), ended: make(chan error, 1)}
	if s.client, err = control.NewClient(address); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte(o.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "--config", config, "--control", address, "--workers", strconv.Itoa(max(o.Workers, 1))}
	for _, name := range o.Listeners {
		args = append(args, "--listen", name+"=tcp://127.0.0.1:0")
	}
	s.cmd = exec.Command(self, append(args, o.Args...)...)
	s.cmd.Env = append(append(os.Environ(), role+"=1", "GORACE=atexit_sleep_ms=0"), o.Env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.WaitDelay = Patience
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := s.ended
	go func() { ended <- s.cmd.Wait() }()
	t.Cleanup(s.end)
	s.Await("all workers serve", serving)
	return s
}

func serving(st control.Status) bool {
	for _, p := range st.Pools {
		if p.Ready < p.Want {
			return false
		}
	}
	return st.State == control.StateServing
}

// end stops the service at the test's end, if the test has not.
func (s *Service) end() {
	if s.ended != nil {
		s.Stop()
	}
	if s.t.Failed() {
		s.t.Logf("the service's log:\n%s", s.log)
	}
}

// Stop stops the service, as systemctl stop does, and waits for its end, in
// order or not: the latter fails the test. Nothing else may be called after it.
func (s *Service) Stop() {
	s.t.Helper()
	ended := s.ended
	s.ended = nil
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // an error: it has exited, which is told below
	select {
	case err := <-ended:
		if err != nil {
			s.t.Errorf("the service has ended with %v", err)
		}
	case <-time.After(Patience):
		_ = s.cmd.Process.Kill()
		s.t.Errorf("the service has not stopped within %v", Patience)
		<-ended
	}
}

// Log returns what the service has logged until now.
func (s *Service) Log() string { return s.log.String() }

// Control returns a client of the service's control socket, for all that the
// command line can do.
func (s *Service) Control() *control.Client { return s.client }

// Status returns the service's status.
func (s *Service) Status() control.Status {
	s.t.Helper()
	return s.Await("it answers", func(control.Status) bool { return true })
}

// Await asks for the status until cond is true for it, and returns it.
func (s *Service) Await(what string, cond func(control.Status) bool) control.Status {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond) // between two looks at the condition
	defer tick.Stop()
	for {
		st, err := s.client.Status(ctx)
		if err == nil && cond(st) {
			return st
		}
		select {
		case <-tick.C:
		case err := <-s.ended:
			s.ended = nil
			s.t.Fatalf("the service has ended with %v, waited for: %s", err, what)
		case <-ctx.Done():
			s.t.Fatalf("not within %v: %s; last status %+v, %v", Patience, what, st, err)
		}
	}
}

// Addr returns the address of a listener: "127.0.0.1:PORT", or the path of a
// unix socket.
func (s *Service) Addr(listener string) string {
	s.t.Helper()
	_, address := s.where(listener)
	return address
}

func (s *Service) where(listener string) (network, address string) {
	s.t.Helper()
	st := s.Status()
	for _, l := range st.Listeners {
		if l.Name == listener {
			network, address, _ = strings.Cut(l.Address, "://")
			return network, address
		}
	}
	s.t.Fatalf("no listener %q in %+v", listener, st.Listeners)
	return "", ""
}

// Dial connects to a listener. The connection has a deadline, after Patience,
// and is closed at the test's end.
func (s *Service) Dial(listener string) net.Conn {
	s.t.Helper()
	network, address := s.where(listener)
	c, err := net.Dial(network, address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(Patience)); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Reload brings in a new generation of workers and returns when it serves.
// One that is rolled back fails the test.
func (s *Service) Reload() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := s.client.Reload(ctx, control.ReloadRequest{}, func(string) {}); err != nil {
		s.t.Fatalf("reload: %v", err)
	}
}

// ID returns the service's number of the connection whose client's end is c,
// on TCP.
func (s *Service) ID(c net.Conn) uint64 {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	all, err := s.client.Connections(ctx, control.ConnectionsRequest{Peer: c.LocalAddr().String()})
	if err != nil || len(all.Connections) != 1 {
		s.t.Fatalf("connection of %v: %+v, %v, want one", c.LocalAddr(), all, err)
	}
	return all.Connections[0].ID
}

// Move hands the connection with that number to the worker in a slot, from 0
// on, and returns when that has it. A connection that stays where it is fails
// the test.
func (s *Service) Move(id uint64, slot int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := s.client.Move(ctx, control.MoveRequest{Conn: id, Slot: slot}); err != nil {
		s.t.Fatalf("move of connection %d to slot %d: %v", id, slot, err)
	}
}

// Kill kills the worker that serves in a slot, from 0 on, by SIGKILL, and
// returns when its successor serves.
func (s *Service) Kill(slot int) {
	s.t.Helper()
	worker := s.worker(s.Status(), slot)
	if worker.PID == 0 {
		s.t.Fatalf("nobody serves in slot %d", slot)
	}
	// The supervisor has not reaped it yet, so the number is still its own.
	if err := syscall.Kill(worker.PID, syscall.SIGKILL); err != nil {
		s.t.Fatalf("worker %d, pid %d: %v", slot, worker.PID, err)
	}
	s.Await(fmt.Sprintf("worker %d has a successor", slot), func(st control.Status) bool {
		next := s.worker(st, slot)
		return next.PID != 0 && next.Incarnation != worker.Incarnation && serving(st)
	})
}

// worker returns the one that serves in a slot; without a PID if none does.
func (s *Service) worker(st control.Status, slot int) (found control.Worker) {
	for _, w := range st.Pools[0].Workers {
		if w.Slot == slot && w.State == "ready" {
			return w
		}
	}
	return control.Worker{}
}
