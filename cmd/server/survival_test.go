package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/test/certs"
	"github.com/mainstay-go/mainstay/test/talk"
)

// withMortals makes the test binary a service whose clients can kill workers.
const withMortals = "SERVICE_WITH_MORTALS"

// mortal is the state of a connection there.
type mortal struct {
	Name   string
	Adopts []string // why, each time
}

func mortalMain() {
	s := newService()
	s.Kind("mortal", service.Text[mortal]{OnMessage: onMortal, OnAdopt: onMortalAdopted})
	s.Kind("mortal-inline", service.Text[mortal]{OnMessage: onMortal, OnAdopt: onMortalAdopted, Inline: true})
	s.Main()
}

func onMortalAdopted(c *service.Conn[mortal], why service.Reason) {
	c.State.Adopts = append(c.State.Adopts, why.String())
	_ = c.Save()
}

// onMortal answers "pid line", and does what the line says.
func onMortal(c *service.Conn[mortal], m []byte) {
	verb, arg, _ := strings.Cut(string(m), " ")
	switch verb {
	case "name":
		c.State.Name = arg
		if err := c.Save(); err != nil {
			m = []byte(err.Error())
		}
	case "who":
		m = fmt.Appendf(nil, "%s %s", c.State.Name, strings.Join(c.State.Adopts, ","))
	case "exit":
		os.Exit(1)
	case "panic":
		go func() { panic("told to") }()
		select {}
	case "segv":
		unix.Kill(os.Getpid(), unix.SIGSEGV)
		select {}
	case "abort":
		unix.Kill(os.Getpid(), unix.SIGABRT)
		select {}
	case "memory":
		_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
		for n := 1; ; n *= 2 {
			m = append(m, make([]byte, n)...)
		}
	case "hang":
		select {}
	}
	if err := c.Send(fmt.Appendf(nil, "%d %s", os.Getpid(), m)); err != nil {
		c.CloseNow(err)
	}
}

// survival is such a service.
type survival struct{ *chaos }

// certificate is what the listeners with TLS have, for localhost.
var certificate = sync.OnceValues(func() (certs.Certificate, error) { return certs.Make(24*time.Hour, "localhost") })

// withTLS writes the certificate into a folder, and returns the settings of a
// listener that has it.
func withTLS(t *testing.T, dir, listener string) string {
	t.Helper()
	c, err := certificate()
	if err == nil {
		err = errors.Join(os.WriteFile(dir+"/cert.pem", c.Cert, 0o600), os.WriteFile(dir+"/key.pem", c.Key, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[listener.%s.tls]\ncert = %q\nkey = %q\n", listener, dir+"/cert.pem", dir+"/key.pem")
}

// greet does what a client of a listener has to do before it speaks: behind
// TLS and PROXY, or behind TLS.
func greet(conn net.Conn, listener string) (net.Conn, error) {
	if listener == "passed" {
		if _, err := io.WriteString(conn, "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\n"); err != nil {
			return conn, err
		}
	}
	if listener != "passed" && listener != "secure" {
		return conn, nil
	}
	c, err := certificate()
	if err != nil {
		return conn, err
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	secure := tls.Client(conn, &tls.Config{RootCAs: c.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS13})
	err = secure.Handshake()
	conn.SetDeadline(time.Time{})
	return secure, err
}

func startSurvival(t *testing.T, workers int) *survival {
	t.Helper()
	dir := t.TempDir()
	c := startService(t, workers, withMortals, `
handler_timeout = "700ms"
hang_timeout = "3s"`, `
[listener.mortal]
address = "tcp://127.0.0.1:0"
[listener.inline]
address = "tcp://127.0.0.1:0"
serve = "mortal-inline"
[listener.local]
address = "unix://%[1]s/local.sock"
serve = "mortal"
[listener.secure]
address = "tcp://127.0.0.1:0"
serve = "mortal"
`+withTLS(t, dir, "secure")+`
[listener.passed]
address = "tcp://127.0.0.1:0"
serve = "mortal"
proxy_protocol = ["127.0.0.0/8"]
`+withTLS(t, dir, "passed"))
	return &survival{c}
}

// dial connects to a listener.
func (s *survival) dial(name string) (net.Conn, error) {
	st, err := s.status()
	if err != nil {
		return nil, err
	}
	for _, l := range st.Listeners {
		if network, address, ok := strings.Cut(l.Address, "://"); ok && l.Name == name {
			conn, err := net.Dial(network, address)
			if err != nil {
				return nil, err
			}
			greeted, err := greet(conn, name)
			if err != nil {
				conn.Close()
				return nil, err
			}
			return greeted, nil
		}
	}
	return nil, fmt.Errorf("no listener %q", name)
}

// talker is a connection to it.
type talker struct {
	conn net.Conn
	in   *bufio.Reader
}

func (s *survival) connect(name string) *talker {
	s.t.Helper()
	conn, err := s.dial(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return &talker{conn, bufio.NewReader(conn)}
}

// ask sends a line and returns who has answered, and what.
func (c *talker) ask(line string) (pid int, answer string, err error) {
	c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c.conn, line+"\n"); err != nil {
		return 0, "", err
	}
	answer, err = c.in.ReadString('\n')
	if err != nil {
		return 0, "", err
	}
	who, answer, _ := strings.Cut(strings.TrimSuffix(answer, "\n"), " ")
	pid, err = strconv.Atoi(who)
	return pid, answer, err
}

// ends waits for the end of the connection.
func (c *talker) ends() error {
	c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := c.in.ReadByte()
	if err == nil {
		return fmt.Errorf("got %q", b)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// well waits until all workers serve and nothing else is there.
func (s *survival) well() control.Status {
	s.t.Helper()
	return s.await("all workers serve", func(st control.Status) bool {
		if st.State != control.StateServing || len(st.Pools[0].Workers) != s.workers {
			return false
		}
		for _, w := range st.Pools[0].Workers {
			if w.State != "ready" || w.Protection != "protected" {
				return false
			}
		}
		return true
	})
}

func TestConnectionsAtABoundaryOutliveTheDeathOfTheirWorker(t *testing.T) {
	s := startSurvival(t, 3)
	s.well()
	before := s.descriptors()
	for _, listener := range []string{"mortal", "inline", "local", "secure", "passed"} {
		for _, death := range []string{"exit", "panic", "segv", "abort", "memory", "hang"} {
			t.Run(listener+"/"+death, func(t *testing.T) {
				s.t = t
				defer func() { s.t = nil }()
				var clients []*talker
				pids := map[*talker]int{}
				for i := range 12 {
					c := s.connect(listener)
					clients = append(clients, c)
					pid, _, err := c.ask(fmt.Sprint("name n", i))
					if err != nil {
						t.Fatal(err)
					}
					pids[c] = pid
				}
				// The killer is one of them.
				killer := clients[0]
				if _, err := io.WriteString(killer.conn, death+"\n"); err != nil {
					t.Fatal(err)
				}
				if err := killer.ends(); err != nil {
					t.Errorf("the one that has killed its worker: %v", err)
				}
				moved := 0
				for i, c := range clients[1:] {
					pid, answer, err := c.ask("who")
					want := fmt.Sprintf("n%d ", i+1)
					if pid != pids[c] {
						want += "crash"
						moved++
					}
					if err != nil || answer != want || pids[c] == pids[killer] != (pid != pids[c]) {
						t.Errorf("client %d of worker %d: answered %q by %d, %v, want %q", i+1, pids[c], answer, pid, err, want)
					}
				}
				t.Logf("%d of %d clients were moved", moved, len(clients)-1)
				for _, c := range clients {
					c.conn.Close()
				}
				s.well()
			})
		}
	}
	s.t = t
	s.leavesNothing(before)
}

func TestConnectionsOfTheOnlyWorkerWaitForItsSuccessor(t *testing.T) {
	s := startSurvival(t, 1)
	before := s.well().Pools[0].Workers[0].PID
	var clients []*talker
	for i := range 50 {
		c := s.connect("mortal")
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		pid, answer, err := c.ask("who")
		if want := fmt.Sprintf("n%d crash", i); answer != want || pid == before || err != nil {
			t.Errorf("client %d: %q by %d, %v, want %q by another than %d", i, answer, pid, err, want, before)
		}
	}
	st := s.well()
	if st.Kept != 50 || st.Torn != 0 || st.Connections != 50 {
		t.Errorf("status has %d kept, %d torn, %d open, want 50, 0, 50", st.Kept, st.Torn, st.Connections)
	}
}

// leavesNothing looks for what deaths may have left behind.
func (s *survival) leavesNothing(descriptors int) {
	s.t.Helper()
	s.well()
	if n := len(s.children()); n != 2*s.workers {
		s.t.Errorf("%d children, want %d workers and as many keepers: %v", n, s.workers, s.children())
	}
	for _, child := range s.children() {
		if strings.HasSuffix(child, " Z") {
			s.t.Errorf("a zombie: %s", child)
		}
	}
	if now := s.descriptors(); now > descriptors+4 {
		s.t.Errorf("the supervisor has %d descriptors, %d before", now, descriptors)
	}
}

func TestClientsOutliveFiftyKills(t *testing.T) {
	idle, kills := 500, 50
	if testing.Short() {
		idle, kills = 100, 15
	}
	s := startSurvival(t, 3)
	s.well()
	before := s.descriptors()
	var sleepers []*talker
	for i := range idle {
		c := s.connect([]string{"mortal", "secure", "passed"}[i%3])
		if _, _, err := c.ask("hello"); err != nil {
			t.Fatal(err)
		}
		sleepers = append(sleepers, c)
	}
	stop := make(chan struct{})
	verdict := make(chan string, 2)
	for _, listener := range []string{"mortal", "secure"} {
		go func() { verdict <- s.busy(listener, 50, stop) }()
	}
	for range kills {
		st := s.well()
		w := st.Pools[0].Workers[rand.IntN(s.workers)]
		if err := unix.Kill(w.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await("it is gone", func(st control.Status) bool {
			for _, now := range st.Pools[0].Workers {
				if now.Incarnation == w.Incarnation {
					return false
				}
			}
			return true
		})
	}
	close(stop)
	t.Log(<-verdict)
	t.Log(<-verdict)
	answered := map[int]int{}
	for i, c := range sleepers {
		pid, answer, err := c.ask("hello")
		if err != nil || answer != "hello" {
			t.Errorf("idle client %d: %q, %v", i, answer, err)
			break
		}
		answered[pid]++
	}
	t.Logf("idle clients by worker: %v", answered)
	for _, c := range sleepers {
		c.conn.Close()
	}
	s.leavesNothing(before)
}

// busy has clients talk, each of which connects anew when it has lost its
// connection; none may wait in silence or be answered wrongly.
func (s *survival) busy(listener string, clients int, stop <-chan struct{}) string {
	groups := make(chan talk.Report, clients)
	for range clients {
		go func() {
			var sum talk.Report
			defer func() { groups <- sum }()
			for {
				g, err := talk.Start(func() (net.Conn, error) { return s.dial(listener) }, talk.Options{Pause: 5 * time.Millisecond, Limit: 10 * time.Second})
				if err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						s.t.Errorf("a busy client: %v", err)
					}
					select {
					case <-stop:
						return
					default:
						continue
					}
				}
				lost := false
				tick := time.NewTicker(10 * time.Millisecond)
				for !lost {
					select {
					case <-stop:
						lost = true
					case <-tick.C:
						lost = g.Report().Lost+g.Report().Wrong > 0
					}
				}
				tick.Stop()
				r := g.Stop()
				sum.Answered += r.Answered
				sum.Lost += r.Lost
				sum.Wrong += r.Wrong
				sum.Changes += r.Changes
				sum.Longest = max(sum.Longest, r.Longest)
				if r.Wrong > 0 || r.Lost > 0 && errors.Is(r.First, os.ErrDeadlineExceeded) {
					s.t.Errorf("a busy client: %v", r)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
	}
	var sum talk.Report
	for range clients {
		r := <-groups
		sum.Answered += r.Answered
		sum.Lost += r.Lost
		sum.Wrong += r.Wrong
		sum.Changes += r.Changes
		sum.Longest = max(sum.Longest, r.Longest)
	}
	return fmt.Sprintf("busy clients of %s: %d lines answered, %d connections lost, %d moved, %d answers wrong, longest wait %v", listener, sum.Answered, sum.Lost, sum.Changes, sum.Wrong, sum.Longest)
}
