package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mainstay-go/mainstay/bench/proc"
)

// Peer is a server that takes part. Make returns them.
type Peer struct {
	Name string

	argv    func(port, workers int) []string // its command line; the port is on 127.0.0.1
	control func(port int) string            // path of its control socket; nil: it has none
	ask     string                           // what it answers; empty: it echoes
	threads bool                             // the workers are in one process: GOMAXPROCS says how many
}

// The names of peers.
const (
	Mainstay     = "mainstay"      // with callbacks on the worker's loop, as the reference service has them
	MainstayPool = "mainstay-pool" // with callbacks on the worker's pool of goroutines
	MainstayHTTP = "mainstay-http" // its http-hello
	MainstayWS   = "mainstay-ws"   // its ws-echo
	Baseline     = "c-floor"       // what ratios are taken to
	GoNet        = "go-net"

	// NoJournal is Mainstay built without the journal that lets connections outlive
	// their process.
	NoJournal = "mainstay-nojournal"
)

// Make returns the peers called names, then those of custom, each
// NAME=COMMAND. What has to be compiled is compiled into dir, which also has
// the configuration and the control sockets of Mainstay, the program server.
func Make(ctx context.Context, dir, server string, names, custom []string) ([]Peer, error) {
	var list []Peer
	for _, name := range names {
		switch name {
		case Mainstay, MainstayPool, MainstayHTTP, MainstayWS:
			p, err := mainstay(dir, server, name)
			if err != nil {
				return nil, err
			}
			list = append(list, p)
		case NoJournal:
			binary, err := BuildNoJournal(ctx, dir)
			if err != nil {
				return nil, err
			}
			p, err := mainstay(dir, binary, name)
			if err != nil {
				return nil, err
			}
			list = append(list, p)
		case Baseline:
			binary, err := BuildFloor(ctx, dir)
			if err != nil {
				return nil, err
			}
			list = append(list, Peer{Name: name, argv: func(port, workers int) []string {
				return []string{binary, "127.0.0.1", strconv.Itoa(port), strconv.Itoa(workers)}
			}})
		case GoNet:
			binary, err := BuildGoNet(ctx, dir)
			if err != nil {
				return nil, err
			}
			list = append(list, Peer{Name: name, threads: true, argv: func(port, workers int) []string {
				return []string{binary, fmt.Sprintf("127.0.0.1:%d", port)}
			}})
		default:
			return nil, fmt.Errorf("peers: peer %q: want mainstay, mainstay-pool, mainstay-nojournal, mainstay-http, mainstay-ws, c-floor or go-net", name)
		}
	}
	for _, c := range custom {
		p, err := customPeer(c)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	if len(list) == 0 {
		return nil, errors.New("peers: no peers")
	}
	seen := map[string]bool{}
	for _, p := range list {
		if seen[p.Name] {
			return nil, fmt.Errorf("peers: peer %q is named twice", p.Name)
		}
		seen[p.Name] = true
	}
	return list, nil
}

// mainstay returns Mainstay's reference service under one of its names.
func mainstay(dir, server, name string) (Peer, error) {
	if _, err := os.Stat(server); err != nil {
		return Peer{}, fmt.Errorf("peers: %s: %w: build it, name it by --server, or leave it out by --peers", name, err)
	}
	path, err := filepath.Abs(server)
	if err != nil {
		return Peer{}, fmt.Errorf("peers: %w", err)
	}
	// A file of our own keeps a configuration that the machine may have out.
	config, text := filepath.Join(dir, name+".toml"), ""
	if name == MainstayPool {
		text = "[listener.echo]\ninline = false\n"
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return Peer{}, fmt.Errorf("peers: %w", err)
	}
	control := func(port int) string { return filepath.Join(dir, fmt.Sprintf("control-%d.sock", port)) }
	kind, ask := "echo", ""
	switch name {
	case MainstayHTTP:
		kind, ask = "http-hello", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	case MainstayWS:
		kind, ask = "ws-echo", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	}
	return Peer{Name: name, ask: ask, control: control, argv: func(port, workers int) []string {
		return []string{path, "run", "--config", config, "--workers", strconv.Itoa(workers),
			"--listen", fmt.Sprintf("%s=tcp://127.0.0.1:%d", kind, port), "--control", "unix://" + control(port)}
	}}, nil
}

// customPeer reads NAME=COMMAND; {port} and {workers} in its words stand for
// the numbers.
func customPeer(s string) (Peer, error) {
	name, command, _ := strings.Cut(s, "=")
	words := strings.Fields(command)
	if name == "" || len(words) == 0 || !strings.Contains(command, "{port}") {
		return Peer{}, fmt.Errorf("peers: --peer %q: want NAME=COMMAND with {port} in it", s)
	}
	return Peer{Name: name, threads: true, argv: func(port, workers int) []string {
		r := strings.NewReplacer("{port}", strconv.Itoa(port), "{workers}", strconv.Itoa(workers))
		argv := make([]string, len(words))
		for i, w := range words {
			argv[i] = r.Replace(w)
		}
		return argv
	}}, nil
}

// Process is a server that runs. It leads a process group of its own, so that
// a Ctrl-C meant for us reaches it through Stop only.
type Process struct {
	Name    string
	Port    int    // on 127.0.0.1
	Control string // path of its control socket; empty: it has none
	Ask     string // what it answers; empty: it echoes what it is sent

	cmd    *exec.Cmd
	log    string // path of what it wrote
	exited chan struct{}
	err    error // how it ended; valid when exited is closed
}

// Start starts p on a free port, bound to cpus. It must be called on the main
// goroutine, which is locked to the main thread: the server is sent SIGTERM
// when the thread that started it ends, and that thread lives as long as we.
func Start(dir string, p Peer, workers int, cpus []int) (*Process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.log", p.Name, port)))
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	defer logFile.Close()
	argv := p.argv(port, workers)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, logFile, logFile
	cmd.Env = cleanEnv(os.Environ())
	if p.threads {
		cmd.Env = append(cmd.Env, "GOMAXPROCS="+strconv.Itoa(workers))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

	if err := proc.Start(cmd, cpus); err != nil {
		return nil, fmt.Errorf("peers: %s: %w", p.Name, err)
	}
	s := &Process{Name: p.Name, Port: port, Ask: p.ask, cmd: cmd, log: logFile.Name(), exited: make(chan struct{})}
	if p.control != nil {
		s.Control = p.control(port)
	}
	go func() {
		s.err = cmd.Wait()
		close(s.exited)
	}()
	return s, nil
}

// PID returns the process that was started; there may be others below it.
func (s *Process) PID() int { return s.cmd.Process.Pid }

// cleanEnv leaves out what would make a server behave in another way than by
// its command line.
func cleanEnv(env []string) []string {
	var clean []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "APP_"), strings.HasPrefix(name, "MAINSTAY_"), strings.HasPrefix(name, "LISTEN_"),
			strings.HasPrefix(name, "WATCHDOG_"), name == "NOTIFY_SOCKET", name == "JOURNAL_STREAM",
			name == "GOMAXPROCS", name == "GOGC", name == "GOMEMLIMIT", name == "GODEBUG":
		default:
			clean = append(clean, v)
		}
	}
	return clean
}

// freePort returns a port of 127.0.0.1 nobody listens on, below those that
// the kernel gives to outgoing connections: one of these could take it before
// the server does, or be connected to itself while we wait for the server.
func freePort() (int, error) {
	low := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			if n, err := strconv.Atoi(f[0]); err == nil {
				low = n
			}
		}
	}
	const first = 10_000
	if low <= first {
		return 0, fmt.Errorf("peers: no port to listen on: net.ipv4.ip_local_port_range begins at %d, want more than %d", low, first)
	}
	var err error
	for range 100 {
		port := first + rand.IntN(low-first)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("peers: no free port after 100 tries: %w", err)
}

// readyTimeout is how long a server may take until it echoes.
const readyTimeout = 20 * time.Second

// Ready waits until the server echoes. The error holds the end of its log.
func (s *Process) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := s.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("peers: %s: ended at its start: %v%s", s.Name, s.err, s.LastWords())
		case <-ctx.Done():
			return fmt.Errorf("peers: %s: %w (%v)%s", s.Name, context.Cause(ctx), err, s.LastWords())
		case <-again.C:
		}
	}
}

// probe sends a few bytes and wants them back.
func (s *Process) probe(ctx context.Context) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if s.Ask != "" {
		if _, err := io.WriteString(c, s.Ask); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 ")))
		return err
	}
	want := []byte("are you there?\n")
	got := make([]byte, len(want))
	if _, err := c.Write(want); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%q came back, want %q", got, want)
	}
	return nil
}

// LastWords returns the end of what the server wrote, behind a newline; empty
// if it wrote nothing.
func (s *Process) LastWords() string {
	b, err := os.ReadFile(s.log)
	if err != nil || len(b) == 0 {
		return ""
	}
	const most = 2000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "\n" + string(b)
}

// stopTimeout is how long a server may take to end after SIGTERM.
const stopTimeout = 12 * time.Second

// Stop ends the server and whatever it left behind in its process group.
// It returns an error if it had to be killed.
func (s *Process) Stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	group := -s.cmd.Process.Pid
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	ended := s.exited
	for {
		select {
		case <-ended:
			ended = nil // what follows waits for the rest of the group
		case <-again.C:
			// As long as the group has a member no other gets its id.
			if ended == nil && syscall.Kill(group, 0) != nil {
				return nil
			}
		case <-late.C:
			syscall.Kill(group, syscall.SIGKILL)
			<-s.exited
			return fmt.Errorf("peers: %s: process %d or those it started did not end in %v and were killed", s.Name, s.cmd.Process.Pid, stopTimeout)
		}
	}
}
