package servicetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
)

func TestMain(m *testing.M) { Main(m, main) }

// main is a service that tells who answers.
func main() {
	s := service.New("test")
	s.OnWorkerStart(func(w *service.Worker) error {
		slot, generation = w.Slot(), w.Generation()
		w.Log().Info("it starts")
		return nil
	})
	s.Listen("who", "tcp://127.0.0.1:0", service.Text[struct{}]{OnMessage: func(c *service.Conn[struct{}], line []byte) {
		c.Send(fmt.Appendf(nil, "%s: slot %d, generation %d", line, slot, generation))
	}})
	s.Listen("bound", "tcp://127.0.0.1:0", service.Text[struct{}]{
		OnMessage: func(c *service.Conn[struct{}], line []byte) {
			if id, err := strconv.ParseUint(string(line), 10, 64); err == nil {
				c.Bind(id)
			}
			c.Send(strconv.AppendInt(nil, int64(slot), 10))
		},
	})
	s.Main()
}

// Of the worker.
var (
	slot       int
	generation uint64
)

func ask(t *testing.T, s *Service, listener string) string {
	t.Helper()
	c := s.Dial(listener)
	defer c.Close()
	if _, err := io.WriteString(c, "who\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func TestServiceIsStartedReloadedAndKilled(t *testing.T) {
	s := Start(t, Options{Listeners: []string{"who"}, Config: "reload.bake = \"10ms\"\nrespawn.first = \"1ms\"\n"})
	if !strings.HasPrefix(s.Addr("who"), "127.0.0.1:") {
		t.Errorf("address %q", s.Addr("who"))
	}
	if got, want := ask(t, s, "who"), "who: slot 0, generation 1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s.Reload()
	if got, want := ask(t, s, "who"), "who: slot 0, generation 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	before := s.worker(s.Status(), 0)
	s.Kill(0)
	if got, want := ask(t, s, "who"), "who: slot 0, generation 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	after := s.Await("the old ones are gone", func(st control.Status) bool { return len(st.Pools[0].Workers) == 1 })
	if w := s.worker(after, 0); w.PID == before.PID || w.Respawns != 1 {
		t.Errorf("worker %+v, before %+v", w, before)
	}
	if !strings.Contains(s.Log(), "it starts") {
		t.Errorf("log %q", s.Log())
	}
	if _, err := s.Control().Scale(t.Context(), control.ScaleRequest{N: 2}); err != nil {
		t.Error(err)
	}
	s.Stop()
}

func TestServiceMayHaveUnixSocketsAndMoreWorkers(t *testing.T) {
	path := t.TempDir() + "/s"
	s := Start(t, Options{Workers: 2, Args: []string{"--listen", "who=unix://" + path}, Env: []string{"TEST_RELOAD_BAKE=10ms"}})
	if s.Addr("who") != path || len(s.Status().Pools[0].Workers) != 2 {
		t.Errorf("address %q, status %+v", s.Addr("who"), s.Status())
	}
	if got := ask(t, s, "who"); !strings.HasSuffix(got, "generation 1") {
		t.Errorf("got %q", got)
	}
}

func TestConnectionIsMovedAndOutlivesAReload(t *testing.T) {
	s := Start(t, Options{Listeners: []string{"who"}, Workers: 2, Config: "reload.bake = \"10ms\"\n"})
	c := s.Dial("who")
	in := bufio.NewReader(c)
	want := func(want string) {
		t.Helper()
		if _, err := io.WriteString(c, "who\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != "who: "+want+"\n" {
			t.Errorf("got %q, %v, want %s", line, err, want)
		}
	}
	id := s.ID(c)
	for range 2 {
		for slot := range 2 {
			s.Move(id, slot)
			want(fmt.Sprintf("slot %d, generation 1", slot))
		}
	}
	s.Reload()
	want("slot 1, generation 2")
}

func TestConnectionsOfAnIDComeTogether(t *testing.T) {
	s := Start(t, Options{Listeners: []string{"bound"}, Workers: 3, Config: "[listener.bound]\ndispatch = \"hash-id\"\n"})
	slotOf := func(c net.Conn, say string) string {
		t.Helper()
		if _, err := io.WriteString(c, say+"\n"); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 2)
		if _, err := io.ReadFull(c, line); err != nil {
			t.Fatal(err)
		}
		return string(line[:1])
	}
	var all []net.Conn
	for range 6 {
		c := s.Dial("bound")
		slotOf(c, "7")
		all = append(all, c)
	}
	s.Await("all are with one worker", func(control.Status) bool {
		slots := map[string]bool{}
		for _, c := range all {
			slots[slotOf(c, "where?")] = true
		}
		return len(slots) == 1
	})
}

func TestConnectionsAreDispatchedInTurn(t *testing.T) {
	s := Start(t, Options{Listeners: []string{"bound"}, Workers: 2, Config: "[listener.bound]\ndispatch = \"round-robin\"\n"})
	for range 4 {
		ask(t, s, "bound")
		s.Dial("bound")
	}
	s.Await("both have some", func(st control.Status) bool {
		return len(st.Pools[0].Workers) == 2 && st.Pools[0].Workers[0].Connections > 0 && st.Pools[0].Workers[1].Connections > 0
	})
}

// failing is a test that can be seen to fail.
type failing struct {
	testing.TB
	failed   bool
	said     string
	cleanups []func()
}

var errFatal = errors.New("test ended by Fatalf")

func (f *failing) Helper()                   {}
func (f *failing) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *failing) Failed() bool              { return f.failed }
func (f *failing) Logf(s string, a ...any)   { f.said += fmt.Sprintf(s, a...) + "\n" }
func (f *failing) Errorf(s string, a ...any) { f.failed = true; f.Logf(s, a...) }
func (f *failing) Fatalf(s string, a ...any) { f.Errorf(s, a...); panic(errFatal) }

func TestServiceThatDoesNotStartFailsTheTestAndShowsItsLog(t *testing.T) {
	f := &failing{TB: t}
	func() {
		defer func() {
			if v := recover(); v != errFatal {
				t.Errorf("panic with %v, want %v", v, errFatal)
			}
		}()
		Start(f, Options{Config: "wrokers = 3\n"})
	}()
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		f.cleanups[i]()
	}
	for _, want := range []string{"exit status 78", "waited for: all workers serve", `key "wrokers": unknown key`} {
		if !strings.Contains(f.said, want) {
			t.Errorf("said %q, want %q in it", f.said, want)
		}
	}
}
