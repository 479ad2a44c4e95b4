// Command http measures what an answer to "GET" costs servers of HTTP: each is
// a command that serves on a port, all are up at once, and are loaded in turn
// in bursts on keep-alive connections. The number to compare is that of
// requests a second of the server's CPU time; the README of this module says
// why.
//
//	http --server ../bin/server
//	http --connections 100,1000 --pipelines 1,16 --peer 'mine=/path/server --port {port}'
//	http --cycles 0 --idle 10000
//
// Then it measures what an idle connection takes of memory. Peers are net/http
// and fasthttp, which are this binary itself, and nginx where it is installed. Of
// Mainstay, http-hello is what answers on the loop, nethttp-hello is net/http as it
// serves that.
//
// It ends what it has started, by the process ids it holds. Start reading at
// run.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/bench/report"
)

func main() {
	if len(os.Args) == 3 && roles[os.Args[1]] != nil {
		fmt.Fprintln(os.Stderr, roles[os.Args[1]](os.Args[2])) // it serves until it is killed, or cannot
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, err)
		}
		stop()
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// server is a peer that runs.
type server struct {
	name string
	addr string
	cmd  *exec.Cmd
	done []float64 // requests a CPU second, a burst each
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var custom list
	f := flag.NewFlagSet("http", flag.ContinueOnError)
	f.SetOutput(stderr)
	binary := f.String("server", "../bin/server", "`path` of Mainstay's server binary: its http-hello and nethttp-hello take part; empty: they do not")
	f.Var(&custom, "peer", "one more server, `NAME=COMMAND`, with {port} in the command; may be repeated")
	connections := f.String("connections", "100", "`numbers` of connections, comma-separated")
	pipelines := f.String("pipelines", "1,16", "`requests` in flight on each connection, comma-separated")
	cycles := f.Int("cycles", 6, "bursts of each server; 0: none, as for the memory alone")
	burst := f.Duration("burst", 500*time.Millisecond, "`time` of a burst")
	idle := f.Int("idle", 10_000, "idle `connections` of each server whose memory is measured; 0: it is not")
	if err := f.Parse(args); err != nil {
		return err
	}
	cpus, err := proc.Allowed()
	if err != nil {
		return err
	}
	if len(cpus) < 2 {
		return fmt.Errorf("http: %d CPU, want two: one for the servers, one for the clients", len(cpus))
	}
	dir, err := os.MkdirTemp("", "mainstay-bench-")
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	base, err := roleCommand(std)
	if err != nil {
		return err
	}
	peers := list{base}
	if *binary != "" {
		config := dir + "/app.toml"
		if err := os.WriteFile(config, nil, 0o644); err != nil {
			return fmt.Errorf("http: %w", err)
		}
		for _, kind := range []string{"nethttp-hello", "http-hello"} {
			peers = append(peers, fmt.Sprintf("%s=%s run --workers 1 --config %s --control unix://%s/%s.sock --listen %s=tcp://127.0.0.1:{port}", kind, *binary, config, dir, kind, kind))
		}
	}
	quick, err := roleCommand(fast)
	if err != nil {
		return err
	}
	peers = append(peers, quick)
	if nginx, err := nginxCommand(); err == nil {
		peers = append(peers, nginx)
	} else {
		fmt.Fprintln(stderr, err)
	}
	peers = append(peers, custom...)
	var servers []*server
	defer func() {
		for _, s := range servers {
			s.stop()
		}
	}()
	// The servers are bound to the first CPU, this process then to the second.
	if err := proc.BindSelf(cpus[:1]); err != nil {
		return err
	}
	for _, p := range peers {
		s, err := start(ctx, p, dir)
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	if err := proc.BindSelf(cpus[1:2]); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	for _, c := range strings.Split(*connections, ",") {
		for _, p := range strings.Split(*pipelines, ",") {
			n, err1 := strconv.Atoi(c)
			depth, err2 := strconv.Atoi(p)
			if err := errors.Join(err1, err2); err != nil || n < 1 || depth < 1 {
				return fmt.Errorf("http: %q connections, %q in flight: want numbers of one or more", c, p)
			}
			if *cycles == 0 {
				continue
			}
			if err := measure(ctx, servers, n, depth, *cycles, *burst, stdout); err != nil {
				return err
			}
		}
	}
	if *idle > 0 {
		return rest(ctx, servers, *idle, stdout)
	}
	return nil
}

// start starts NAME=COMMAND on a free port.
func start(ctx context.Context, peer, dir string) (*server, error) {
	name, command, _ := strings.Cut(peer, "=")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	s := &server{name: name, addr: l.Addr().String()}
	l.Close()
	_, port, _ := net.SplitHostPort(s.addr)
	if strings.Contains(command, "{nginx}") {
		config, err := writeNginx(dir, port)
		if err != nil {
			return nil, err
		}
		command = strings.ReplaceAll(command, "{nginx}", config)
	}
	words := strings.Fields(strings.ReplaceAll(command, "{port}", port))
	if len(words) == 0 {
		return nil, fmt.Errorf("http: --peer %q: want NAME=COMMAND", peer)
	}
	s.cmd = exec.Command(words[0], words[1:]...)
	s.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("http: %s: %w", name, err)
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for late := time.Now().Add(20 * time.Second); ; {
		r, err := http.Get("http://" + s.addr + "/")
		if err == nil {
			r.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			return s, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			s.stop()
			return nil, ctx.Err()
		}
		if time.Now().After(late) {
			s.stop()
			return nil, fmt.Errorf("http: %s: does not answer: %w", name, err)
		}
	}
}

// stop ends the server: SIGTERM, later SIGKILL, to its process group.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(12*time.Second, func() { _ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	_ = s.cmd.Wait()
}

// measure loads the servers in turn and prints a table.
func measure(ctx context.Context, servers []*server, connections, depth, cycles int, burst time.Duration, out io.Writer) error {
	for _, s := range servers {
		s.done = nil
	}
	for cycle := range cycles + 1 {
		for i := range servers {
			s := servers[(i+cycle)%len(servers)]
			rate, err := s.load(ctx, connections, depth, burst)
			if err != nil {
				return fmt.Errorf("http: %s: %w", s.name, err)
			}
			if cycle > 0 { // the first one warms up
				s.done = append(s.done, rate)
			}
		}
	}
	fmt.Fprintf(out, "%d connections, %d in flight on each; bursts of %v, %d of each server\n", connections, depth, burst, cycles)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "server\treq/CPU s\tCPU µs/req\tof %s\t\n", servers[0].name)
	for _, s := range servers {
		rate := median(s.done)
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.2f\t\n", s.name, rate, 1e6/rate, of(s, servers[0]))
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return tellMark(servers, connections, depth, out)
}

// marks are how many times the requests of net/http the answers of http-hello
// are to reach, by connections and requests in flight.
var marks = map[[2]int]float64{{100, 1}: 2.5, {1000, 1}: 3.0, {100, 16}: 9, {1000, 16}: 9}

// tellMark says whether http-hello has reached the mark for such a load, if
// there is one and it takes part.
func tellMark(servers []*server, connections, depth int, out io.Writer) error {
	mark := marks[[2]int{connections, depth}]
	for _, s := range servers {
		if mark == 0 || s.name != "http-hello" || servers[0].name != std {
			continue
		}
		verdict := "reached"
		if of(s, servers[0]) < mark {
			verdict = "missed"
		}
		if _, err := fmt.Fprintf(out, "mark: %s %.2f of %s, want %.1f: %s\n\n", s.name, of(s, servers[0]), servers[0].name, mark, verdict); err != nil {
			return err
		}
	}
	return nil
}

// of returns the median of the paired ratios of two servers.
func of(s, base *server) float64 {
	ratios := make([]float64, len(s.done))
	for i := range s.done {
		ratios[i] = s.done[i] / base.done[i]
	}
	return median(ratios)
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

var request = []byte("GET /plaintext?id=42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: wrk/4.1.0\r\nAccept: */*\r\n\r\n")

// load answers how many requests a second of its CPU time the server has
// answered.
func (s *server) load(ctx context.Context, connections, depth int, burst time.Duration) (float64, error) {
	pids, err := proc.Tree(s.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	conns, err := s.dial(connections)
	defer closeAll(conns)
	if err != nil {
		return 0, err
	}
	size, err := sizeOf(conns[0])
	if err != nil {
		return 0, err
	}
	var answered atomic.Int64
	var stop atomic.Bool
	errs := make(chan error, connections)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop.Store(true)
	batch := bytes.Repeat(request, depth)
	for _, c := range conns {
		_ = c.SetDeadline(time.Now().Add(burst + 20*time.Second))
		clients.Go(func() {
			buf := make([]byte, size*depth)
			for !stop.Load() {
				if _, err := c.Write(batch); err != nil {
					errs <- err
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					errs <- err
					return
				}
				if !bytes.HasPrefix(buf[len(buf)-size:], []byte("HTTP/1.1 200")) {
					errs <- errors.New("answers of another length than the first")
					return
				}
				answered.Add(int64(depth))
			}
		})
	}
	if err := pause(ctx, burst/4); err != nil {
		return 0, err
	}
	before, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	from := answered.Load()
	if err := pause(ctx, burst); err != nil {
		return 0, err
	}
	after, err := proc.UsageOf(pids)
	if err != nil {
		return 0, err
	}
	n := answered.Load() - from
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	return float64(n) / after.Since(before).Total.Seconds(), nil
}

// dial opens connections. The caller closes what it gets, with an error too.
func (s *server) dial(n int) ([]net.Conn, error) {
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// settleTime is between the last answer and a look at the memory.
const settleTime = 3 * time.Second

// warmUp is how many connections are opened and closed before.
const warmUp = 500

// markIdle is what an idle connection may take.
const markIdle = 512

// rest measures what a connection takes that has had one request answered.
func rest(ctx context.Context, servers []*server, connections int, out io.Writer) error {
	fmt.Fprintf(out, "memory (PSS) of each of %d idle connections, one request answered, %v later\n", connections, settleTime)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "server\tbytes\t\n")
	var ours report.Mark
	for _, s := range servers {
		each, err := s.idle(ctx, connections)
		if err != nil {
			return fmt.Errorf("http: %s: %w", s.name, err)
		}
		fmt.Fprintf(t, "%s\t%.0f\t\n", s.name, each)
		if s.name == "http-hello" {
			ours = report.NewMark("bytes an idle connection", each, markIdle)
		}
	}
	if err := t.Flush(); err != nil || ours.Figure == "" {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s\n", ours)
	return err
}

// idle answers how many bytes a connection takes.
func (s *server) idle(ctx context.Context, n int) (float64, error) {
	pids, err := proc.Tree(s.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	memory := func() (uint64, error) {
		if err := pause(ctx, settleTime); err != nil {
			return 0, err
		}
		m, err := proc.MemoryOf(pids)
		return m.PSS, err
	}
	// A crowd before brings code and buffers into memory.
	warm, err := s.askOnce(warmUp)
	closeAll(warm)
	if err != nil {
		return 0, err
	}
	before, err := memory()
	if err != nil {
		return 0, err
	}
	conns, err := s.askOnce(n)
	defer closeAll(conns)
	if err != nil {
		return 0, err
	}
	after, err := memory()
	if err != nil {
		return 0, err
	}
	return (float64(after) - float64(before)) / float64(n), nil
}

// askOnce opens connections and has a request of each answered. The caller
// closes what it gets, with an error too.
func (s *server) askOnce(n int) ([]net.Conn, error) {
	conns, err := s.dial(n)
	if err != nil {
		return conns, err
	}
	for _, c := range conns {
		if _, err := sizeOf(c); err != nil {
			return conns, err
		}
	}
	return conns, nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sizeOf asks once and returns how long the answer is; all are.
func sizeOf(c net.Conn) (int, error) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	n := &counter{r: c}
	b := bufio.NewReader(n)
	r, err := http.ReadResponse(b, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0, err
	}
	return n.n - b.Buffered(), nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}
