package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
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
	// What is answered inline is at rest when the answer leaves: its callback
	// has returned. Tests that kill right behind an answer want that.
	s.Kind("mortal-inline", service.Text[mortal]{OnMessage: onMortal, OnAdopt: onMortalAdopted, Inline: true})
	s.Kind("upgrading", service.HTTP{
		Handler:    http.HandlerFunc(helloOrEcho),
		WebSockets: map[string]service.Stream{"chat": service.WebSocket[none]{OnMessage: replyMessage, Inline: true}},
	})
	s.Dial("peer", "", service.Dialer[mortal]{Protocol: text.Protocol{}, OnMessage: onMortal, OnAdopt: onMortalAdopted, Inline: true})
	s.Dial("secure-peer", "", service.Dialer[mortal]{
		Protocol: text.Protocol{}, OnMessage: onMortal, OnAdopt: onMortalAdopted, Inline: true, TLS: &tls.Config{InsecureSkipVerify: true},
	})
	s.OnWorkerStart(func(w *service.Worker) error {
		mortalWorker.Store(w)
		return nil
	})
	s.Main()
}

// helloOrEcho says hello, but under /chat it makes WebSockets.
func helloOrEcho(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/chat" {
		hello(w, r)
		return
	}
	_ = service.Upgrade(w, r, "chat", none{}) // the client has been told
}

var mortalWorker atomic.Pointer[service.Worker]

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
	case "call":
		name := "peer"
		if strings.HasPrefix(arg, "tls:") {
			name = "secure-peer"
		}
		if _, err := service.Dial(mortalWorker.Load(), name, arg, mortal{}); err != nil {
			m = []byte(err.Error())
		}
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
	if listener != "passed" && listener != "secure" && listener != "sealed" {
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
[listener.upgrading]
address = "tcp://127.0.0.1:0"
[listener.secure]
address = "tcp://127.0.0.1:0"
serve = "mortal-inline"
`+withTLS(t, dir, "secure")+`
[listener.sealed]
address = "tcp://127.0.0.1:0"
serve = "mortal-inline"
`+withTLS(t, dir, "sealed")+`ktls = true
[listener.passed]
address = "tcp://127.0.0.1:0"
serve = "mortal"
proxy_protocol = ["127.0.0.0/8"]
`+withTLS(t, dir, "passed"))
	return &survival{c}
}

// secureListeners are those with TLS alone, where the kernel has it also the one
// for which that seals.
func secureListeners() []string {
	if kernelTLS() != nil {
		return []string{"secure"}
	}
	return []string{"secure", "sealed"}
}

// reach connects to a listener.
func (s *survival) reach(name string) (net.Conn, error) {
	st, err := s.status()
	if err != nil {
		return nil, err
	}
	for _, l := range st.Listeners {
		if network, address, ok := strings.Cut(l.Address, "://"); ok && l.Name == name {
			return net.Dial(network, address)
		}
	}
	return nil, fmt.Errorf("no listener %q", name)
}

// dial is reach, and greet.
func (s *survival) dial(name string) (net.Conn, error) {
	conn, err := s.reach(name)
	if err != nil {
		return nil, err
	}
	greeted, err := greet(conn, name)
	if err != nil {
		conn.Close()
	}
	return greeted, err
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
	for _, listener := range append(secureListeners(), "mortal", "inline", "local", "passed") {
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

func TestConnectionsWaitForSuccessorsWhenAllWorkersAreKilledAtOnce(t *testing.T) {
	const workers, clients = 8, 200
	s := startSurvival(t, workers)
	st := s.well()
	var all []*talker
	for i := range clients {
		c := s.connect([]string{"inline", "local", "secure"}[i%3])
		if _, _, err := c.ask(fmt.Sprint("name n", i)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	// A client has its answer before the turn is over in which it was written,
	// and a UNIX connection is at a boundary only then. The loops answer between
	// two turns.
	if _, err := s.client.Connections(t.Context(), control.ConnectionsRequest{Limit: 1}); err != nil {
		t.Fatal(err)
	}
	// Whoever is to take a connection may be dead when it is offered.
	for _, w := range st.Pools[0].Workers {
		if err := unix.Kill(w.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range all {
		_, answer, err := c.ask("who")
		if want := fmt.Sprintf("n%d crash", i); answer != want || err != nil {
			t.Errorf("client %d: %q, %v, want %q", i, answer, err, want)
		}
	}
	if st := s.well(); st.Kept < clients || st.Torn != 0 {
		t.Errorf("status has %d kept, %d torn, want at least %d and 0", st.Kept, st.Torn, clients)
	}
}

func TestOutgoingConnectionsOutliveTheDeathOfTheirWorker(t *testing.T) {
	s := startSurvival(t, 2)
	s.well()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	made, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := made.Pair()
	if err != nil {
		t.Fatal(err)
	}
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	c := s.connect("mortal")
	for scheme, l := range map[string]net.Listener{"tcp": plain, "tls": secure} {
		if _, answer, err := c.ask("call " + scheme + "://" + l.Addr().String()); err != nil || !strings.HasPrefix(answer, "call ") {
			t.Fatalf("%q, %v", answer, err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		called := &talker{conn, bufio.NewReader(conn)}
		adopts := ""
		for i := range 4 {
			before, _, err := called.ask(fmt.Sprint("name n", i))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(before, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			adopts = strings.TrimPrefix(adopts+",crash", ",")
			pid, answer, err := called.ask("who")
			if want := fmt.Sprintf("n%d %s", i, adopts); answer != want || pid == before || err != nil {
				t.Errorf("%s: answered %q by %d, %v, want %q by another than %d", scheme, answer, pid, err, want, before)
			}
			s.well()
		}
		conn.Close()
	}
	if st := s.well(); st.Torn != 0 {
		t.Errorf("status has %d torn", st.Torn)
	}
}

// TestOpenSSLOutlivesTheDeathOfItsWorker has s_client talk through deaths, and
// change the keys of both directions or of its own before and after.
func TestOpenSSLOutlivesTheDeathOfItsWorker(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("there is no openssl")
	}
	for _, listener := range secureListeners() {
		t.Run(listener, func(t *testing.T) { openSSLOutlivesTheDeathOfItsWorker(t, listener) })
	}
}

func openSSLOutlivesTheDeathOfItsWorker(t *testing.T, listener string) {
	s := startSurvival(t, 2)
	address := ""
	for _, l := range s.well().Listeners {
		if l.Name == listener {
			address = strings.TrimPrefix(l.Address, "tcp://")
		}
	}
	made, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	ca := t.TempDir() + "/ca.pem"
	if err := os.WriteFile(ca, made.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		sealed := 0
		if listener == "sealed" {
			sealed = kernelSeals(t)
		}
		cmd := exec.Command("openssl", "s_client", "-connect", address, "-servername", "localhost", "-CAfile", ca, "-verify_return_error", "-ciphersuites", suite)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		told, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		lines, diagnosis := bufio.NewScanner(out), bufio.NewScanner(told)
		command := func(c string) {
			if _, err := io.WriteString(in, c+"\n"); err != nil {
				t.Error(err)
			}
			for diagnosis.Scan() && diagnosis.Text() != "KEYUPDATE" {
			}
		}
		serving := 0
		ask := func(line string, moved bool) {
			t.Helper()
			if _, err := io.WriteString(in, line+"\n"); err != nil {
				t.Error(err)
			}
			for lines.Scan() {
				if who, answer, _ := strings.Cut(lines.Text(), " "); answer == line {
					pid, err := strconv.Atoi(who)
					if err != nil || (pid != serving) != moved {
						t.Errorf("%s: %q by %s, %v, before by %d, want another %t", suite, line, who, err, serving, moved)
					}
					serving = pid
					if listener == "sealed" && kernelSeals(t) <= sealed {
						t.Errorf("%s: %q: not sealed by the kernel", suite, line)
					}
					return
				}
			}
			t.Fatalf("%s: no answer to %q: %v", suite, line, lines.Err())
		}
		kill := func() {
			if err := unix.Kill(serving, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		ask("begin", true)
		kill()
		ask("after a death", true)
		command("K")
		ask("the keys of both directions were changed", false)
		kill()
		ask("and with them", true)
		command("k")
		ask("the key of one direction was changed", false)
		kill()
		ask("end", true)
		in.Close()
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		limit.Stop()
	}
	if st := s.await("all are counted", func(st control.Status) bool { return st.Kept+st.Torn >= 9 }); st.Torn != 0 || st.Kept != 9 {
		t.Errorf("status has %d kept, %d torn, want 9, 0", st.Kept, st.Torn)
	}
}

// holder keeps what is written, so that it can be sent in parts.
type holder struct {
	net.Conn
	hold bool
	held []byte
}

func (h *holder) Write(b []byte) (int, error) {
	if !h.hold {
		return h.Conn.Write(b)
	}
	h.held = append(h.held, b...)
	return len(b), nil
}

// stop stops a process, and returns when none of its threads runs any more.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		running := len(tasks) == 0
		for _, task := range tasks {
			stat, _ := os.ReadFile(task)
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				running = true
			}
		}
		if !running {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is not stopped: %v", pid, err)
		}
	}
}

// TestHalfARecordIsReadByTheNextUnlessTheDeadHasReadIt kills a worker when a
// client has sent half of a message.
func TestHalfARecordIsReadByTheNextUnlessTheDeadHasReadIt(t *testing.T) {
	s := startSurvival(t, 2)
	s.well()
	// Inline: whoever has the answer knows that the callback has returned.
	for _, listener := range append(secureListeners(), "inline") {
		for _, read := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, read %t", listener, read), func(t *testing.T) {
				s.t = t
				plain, err := s.reach(listener)
				if err != nil {
					t.Fatal(err)
				}
				defer plain.Close()
				h := &holder{Conn: plain}
				conn, err := greet(h, listener)
				if err != nil {
					t.Fatal(err)
				}
				c := &talker{conn, bufio.NewReader(conn)}
				pid, _, err := c.ask("hello")
				if err != nil {
					t.Fatal(err)
				}
				if !read {
					stop(t, pid)
				}
				h.hold = true
				if _, err := io.WriteString(conn, "in two parts\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := plain.Write(h.held[:len(h.held)/2]); err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(30 * time.Second); read; {
					list, err := s.client.Connections(t.Context(), control.ConnectionsRequest{Limit: 10, Listener: listener})
					if err != nil || time.Now().After(deadline) {
						t.Fatalf("%+v, %v", list, err)
					}
					if len(list.Connections) == 1 && list.Connections[0].Buffered > 0 {
						break
					}
				}
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if read {
					if err := c.ends(); err != nil {
						t.Error(err)
					}
					s.well()
					return
				}
				if _, err := plain.Write(h.held[len(h.held)/2:]); err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				if line, err := c.in.ReadString('\n'); err != nil || !strings.HasSuffix(line, " in two parts\n") || strings.HasPrefix(line, fmt.Sprint(pid, " ")) {
					t.Errorf("%q, %v", line, err)
				}
				conn.Close()
				s.well()
			})
		}
	}
	s.t = t
}

func TestTLS12EndsWithItsWorker(t *testing.T) {
	s := startSurvival(t, 2)
	s.well()
	made, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := s.reach("secure")
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(plain, &tls.Config{RootCAs: made.Pool(), ServerName: "localhost", MaxVersion: tls.VersionTLS12})
	defer conn.Close()
	c := &talker{conn, bufio.NewReader(conn)}
	pid, _, err := c.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := s.client.Connections(ctx, control.ConnectionsRequest{Limit: 10})
	if err != nil || len(list.Connections) != 1 || list.Connections[0].Mortal != "TLS 1.2" {
		t.Errorf("connections says %+v, %v", list, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.ends(); err != nil {
		t.Error(err)
	}
	if st := s.await("it is counted", func(st control.Status) bool { return st.Torn > 0 }); st.Torn != 1 || st.Kept != 0 {
		t.Errorf("status has %d kept, %d torn, want 0, 1", st.Kept, st.Torn)
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
