package main

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

	"github.com/mainstay-go/mainstay/bench/peers"
	"github.com/mainstay-go/mainstay/bench/proc"
)

// peer is a server that takes part. argv returns its command line for a port
// on 127.0.0.1 and a number of workers.
type peer struct {
	name string
	argv func(port, workers int) []string
	// threads are the workers in one process: GOMAXPROCS says how many.
	threads bool
}

const baseline = "c-floor"

// makePeers returns the peers called names, then those of custom, each
// NAME=COMMAND. What has to be compiled is compiled into dir.
func makePeers(ctx context.Context, dir, server string, names, custom []string) ([]peer, error) {
	var list []peer
	for _, name := range names {
		switch name {
		case "mainstay":
			if _, err := os.Stat(server); err != nil {
				return nil, fmt.Errorf("compare: mainstay: %w: build it, name it by --server, or leave it out by --peers", err)
			}
			path, err := filepath.Abs(server)
			if err != nil {
				return nil, fmt.Errorf("compare: %w", err)
			}
			// An empty file keeps a configuration that the machine may have out.
			config := filepath.Join(dir, "app.toml")
			if err := os.WriteFile(config, nil, 0o644); err != nil {
				return nil, fmt.Errorf("compare: %w", err)
			}
			list = append(list, peer{name: name, argv: func(port, workers int) []string {
				return []string{path, "run", "--config", config, "--workers", strconv.Itoa(workers),
					"--listen", fmt.Sprintf("echo=tcp://127.0.0.1:%d", port),
					"--control", "unix://" + filepath.Join(dir, fmt.Sprintf("control-%d.sock", port))}
			}})
		case baseline:
			binary, err := peers.BuildFloor(ctx, dir)
			if err != nil {
				return nil, err
			}
			list = append(list, peer{name: name, argv: func(port, workers int) []string {
				return []string{binary, "127.0.0.1", strconv.Itoa(port), strconv.Itoa(workers)}
			}})
		case "go-net":
			binary, err := peers.BuildGoNet(ctx, dir)
			if err != nil {
				return nil, err
			}
			list = append(list, peer{name: name, threads: true, argv: func(port, workers int) []string {
				return []string{binary, fmt.Sprintf("127.0.0.1:%d", port)}
			}})
		default:
			return nil, fmt.Errorf("compare: peer %q: want mainstay, c-floor or go-net", name)
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
		return nil, errors.New("compare: no peers")
	}
	seen := map[string]bool{}
	for _, p := range list {
		if seen[p.name] {
			return nil, fmt.Errorf("compare: peer %q is named twice", p.name)
		}
		seen[p.name] = true
	}
	return list, nil
}

// customPeer reads NAME=COMMAND; {port} and {workers} in its words stand for
// the numbers.
func customPeer(s string) (peer, error) {
	name, command, _ := strings.Cut(s, "=")
	words := strings.Fields(command)
	if name == "" || len(words) == 0 || !strings.Contains(command, "{port}") {
		return peer{}, fmt.Errorf("compare: --peer %q: want NAME=COMMAND with {port} in it", s)
	}
	return peer{name: name, threads: true, argv: func(port, workers int) []string {
		r := strings.NewReplacer("{port}", strconv.Itoa(port), "{workers}", strconv.Itoa(workers))
		argv := make([]string, len(words))
		for i, w := range words {
			argv[i] = r.Replace(w)
		}
		return argv
	}}, nil
}

// process is a server that runs. It leads a process group of its own, so that
// a Ctrl-C meant for us reaches it through stop only.
type process struct {
	name   string
	port   int
	cmd    *exec.Cmd
	log    string // path of what it wrote
	exited chan struct{}
	err    error // how it ended; valid when exited is closed
}

// start starts p on a free port, bound to cpus. It must be called on the main
// goroutine, which is locked to the main thread: the server is sent SIGTERM
// when the thread that started it ends, and that thread lives as long as we.
func start(dir string, p peer, workers int, cpus []int) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.log", p.name, port)))
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
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

	own, err := proc.Allowed()
	if err != nil {
		return nil, err
	}
	if err := proc.BindThread(cpus); err != nil {
		return nil, err
	}
	err = cmd.Start()
	if e := proc.BindThread(own); err == nil && e != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("compare: %s: %w", p.name, err)
	}
	s := &process{name: p.name, port: port, cmd: cmd, log: logFile.Name(), exited: make(chan struct{})}
	go func() {
		s.err = cmd.Wait()
		close(s.exited)
	}()
	return s, nil
}

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
		return 0, fmt.Errorf("compare: no port to listen on: net.ipv4.ip_local_port_range begins at %d, want more than %d", low, first)
	}
	var err error
	for range 100 {
		port := first + rand.IntN(low-first)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("compare: no free port after 100 tries: %w", err)
}

// readyTimeout is how long a server may take until it echoes.
const readyTimeout = 20 * time.Second

// ready waits until the server echoes. The error holds the end of its log.
func (s *process) ready(ctx context.Context) error {
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
			return fmt.Errorf("compare: %s: ended at its start: %v%s", s.name, s.err, s.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("compare: %s: %w (%v)%s", s.name, context.Cause(ctx), err, s.lastWords())
		case <-again.C:
		}
	}
}

// probe sends a few bytes and wants them back.
func (s *process) probe(ctx context.Context) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
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

// lastWords returns the end of what the server wrote.
func (s *process) lastWords() string {
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

// stop ends the server and whatever it left behind in its process group.
// It returns an error if it had to be killed.
func (s *process) stop() error {
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
			return fmt.Errorf("compare: %s: process %d or those it started did not end in %v and were killed", s.name, s.cmd.Process.Pid, stopTimeout)
		}
	}
}
