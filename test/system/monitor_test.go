package system

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// fetch asks for a page on a socket.
func (s *service) fetch(network, address, path string) (code int, body string, err error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return s.dial(network, address) },
	}}
	resp, err := client.Get("http://service" + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// metric is the sum of a metric's samples over all labels, as the control
// socket has it.
func (s *service) metric(name string) (float64, error) {
	code, page, err := s.fetch("unix", strings.TrimPrefix(s.controlURL, "unix://"), "/metrics")
	if err != nil || code != http.StatusOK {
		return 0, fmt.Errorf("/metrics: %d %w: %s", code, err, page)
	}
	samples := regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(page, -1)
	if samples == nil {
		return 0, fmt.Errorf("no %s in:\n%s", name, page)
	}
	var sum float64
	for _, sample := range samples {
		v, err := strconv.ParseFloat(sample[1], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

func metricsAreServedOnASocketOfTheirOwn(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure("workers = 2\n")
	example := string(readFile(t, "../../deploy/systemd/examples/app-metrics.socket"))
	port := m.freePort(t, "127.0.0.1")
	s.unitFile("app-metrics.socket", []byte(strings.Replace(example, "127.0.0.1:9100", fmt.Sprintf("127.0.0.1:%d", port), 1)))
	s.daemonReload()
	s.must(t, "systemctl", "start", s.rename("app-metrics.socket"))
	address := fmt.Sprintf("127.0.0.1:%d", port)
	inode := m.listenInode(t, port)

	// Being asked starts the service.
	eventually(t, 10*time.Second, func() error {
		if code, body, err := s.fetch("tcp", address, "/readyz"); err != nil || code != http.StatusOK {
			return fmt.Errorf("/readyz: %d %q, %v", code, body, err)
		}
		return nil
	})
	st := s.awaitStatus(10*time.Second, allReady(2))
	// A supervisor that follows another answers on the same socket.
	s.kill(t, "KILL", st.PID)
	eventually(t, 10*time.Second, func() error {
		code, body, err := s.fetch("tcp", address, "/metrics")
		if err != nil || code != http.StatusOK || !strings.Contains(body, `mainstay_pool_workers_ready{pool="worker"} 2`) {
			return fmt.Errorf("/metrics: %d %q, %v", code, body, err)
		}
		return nil
	})
	if got := m.listenInode(t, port); got != inode {
		t.Errorf("the socket was inode %s and is %s", inode, got)
	}
	for _, name := range []string{"mainstay_worker_resident_memory_bytes", "mainstay_worker_open_fds", "mainstay_supervisor_open_fds"} {
		if v, err := s.metric(name); err != nil || v == 0 {
			t.Errorf("%s in the sandbox is %v, %v", name, v, err)
		}
	}
}

func deathOfAWorkerIsToldToACommand(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	s.configure(`workers = 2` + "\n" + `on_worker_error = ["/bin/sh", "-c", "echo slot $MAINSTAY_SLOT died by $MAINSTAY_SIGNAL: $1", "sh", "alas"]` + "\n")
	s.start()
	before := workers(s.awaitStatus(10*time.Second, allReady(2)))
	s.kill(t, "SEGV", before[1].PID)
	s.awaitStatus(10*time.Second, func(st control.Status) error {
		if err := allReady(2)(st); err != nil {
			return err
		}
		if workers(st)[1].PID == before[1].PID {
			return fmt.Errorf("worker 1 is still there")
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		// A Go program dies of SIGSEGV with status 2, unless it cannot: both are told.
		entries := s.journal("EVENT=on_worker_error wrote")
		if !says(entries, "slot 1 died by") || !says(entries, ": alas") {
			return fmt.Errorf("the journal has %v", messages(entries))
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		if n, err := s.metric("mainstay_hook_runs_total"); err != nil || n != 1 {
			return fmt.Errorf("%v runs, %v", n, err)
		}
		return nil
	})
}

func workerThatIsNotReadyIsSpared(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 2\n")
	s.start()
	s.awaitStatus(10*time.Second, allReady(2))
	socket := strings.TrimPrefix(s.controlURL, "unix://")
	var told []net.Conn // to a worker each
	tell := func(conn net.Conn, word string) {
		t.Helper()
		if _, err := ask(conn, word); err != nil {
			t.Fatal(err)
		}
	}
	spared := func(n int) func(control.Status) error {
		return func(st control.Status) error {
			var unready int
			for _, w := range workers(st) {
				if w.Unready == "probe was told so" {
					unready++
				}
			}
			if unready != n || st.Pools[0].Ready != 2-n {
				return fmt.Errorf("%d workers are not ready, and the pool has %d that are, want %d and %d", unready, st.Pools[0].Ready, n, 2-n)
			}
			return nil
		}
	}
	for n := range 2 {
		conn, err := s.dial(s.address("app-text.socket"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		told = append(told, conn)
		tell(conn, "unready")
		before := workers(s.awaitStatus(10*time.Second, spared(n+1)))
		if n == 1 {
			break
		}
		for i := range 20 {
			if err := s.echoed("app.socket", fmt.Sprintf("client %d", i)); err != nil {
				t.Error(err)
			}
		}
		for slot, w := range workers(s.status()) {
			if took := w.Accepts - before[slot].Accepts; (w.Unready == "") != (took == 20) {
				t.Errorf("worker %d (unready: %q) took %d of 20 connections", slot, w.Unready, took)
			}
		}
		if code, body, err := s.fetch("unix", socket, "/readyz"); code != http.StatusOK {
			t.Errorf("/readyz: %d %q, %v although a worker is ready", code, body, err)
		}
	}
	if code, body, err := s.fetch("unix", socket, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "probe was told so") {
		t.Errorf("/readyz: %d %q, %v although no worker is ready", code, body, err)
	}
	served := s.connect(10)
	tell(told[0], "ready")
	served()
	tell(told[1], "ready")
	s.awaitStatus(10*time.Second, spared(0))
}

func applicationsFiguresOutliveReloads(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(reloadable)
	s.start()
	s.awaitStatus(10*time.Second, allReady(2))
	const rounds, lines = 3, 10
	for round := range rounds {
		for range lines {
			if got := s.versionOf(); got != "1" {
				t.Fatalf("version %q", got)
			}
		}
		if got, err := s.metric("probe_lines_total"); err != nil || got < float64((round+1)*lines) {
			t.Errorf("round %d: %v lines, %v, want %d", round, got, err, (round+1)*lines)
		}
		s.must(t, "systemctl", "reload", s.unit)
	}
	s.awaitStatus(20*time.Second, allReady(2)) // the old ones have left
	if got, err := s.metric("probe_lines_total"); err != nil || got != rounds*lines {
		t.Errorf("%v lines, %v, want %d", got, err, rounds*lines)
	}
}

// counters are all that only grows: name and labels to value.
func (s *service) counters() (map[string]float64, error) {
	code, page, err := s.fetch("unix", strings.TrimPrefix(s.controlURL, "unix://"), "/metrics")
	if err != nil || code != http.StatusOK {
		return nil, fmt.Errorf("/metrics: %d %w: %s", code, err, page)
	}
	sums := make(map[string]float64)
	for _, sample := range regexp.MustCompile(`(?m)^(\w+_total(?:\{.*\})?) (\S+)$`).FindAllStringSubmatch(page, -1) {
		if sums[sample[1]], err = strconv.ParseFloat(sample[2], 64); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

func sumsNeverGoBackWhileWorkersAreKilled(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure("workers = 3\n[respawn]\nfirst = \"10ms\"\nmax = \"50ms\"\n")
	s.start()
	s.awaitStatus(10*time.Second, allReady(3))
	before, err := s.counters()
	if err != nil {
		t.Fatal(err)
	}
	const rounds, clients = 9, 6
	for round := range rounds {
		for i := range clients {
			if err := s.echoed("app.socket", fmt.Sprintf("client %d", i)); err != nil {
				t.Fatal(err)
			}
			s.versionOf()
		}
		st := s.awaitStatus(10*time.Second, allReady(3))
		victim := workers(st)[round%3]
		s.kill(t, []string{"KILL", "ABRT", "STOP"}[round%3], victim.PID)
		scrapes := 5 // while it dies and is followed
		if round%3 == 2 {
			scrapes = 1 // which waits for the one that was stopped
		}
		for range scrapes {
			after, err := s.counters()
			if err != nil {
				t.Fatal(err)
			}
			for name, was := range before {
				if is, ok := after[name]; !ok || is < was {
					t.Fatalf("round %d: %s was %v and is %v (there: %v)", round, name, was, is, ok)
				}
			}
			before = after
		}
		if round%3 == 2 {
			s.kill(t, "KILL", victim.PID)
		}
		s.awaitStatus(10*time.Second, func(st control.Status) error {
			if err := allReady(3)(st); err != nil {
				return err
			}
			if workers(st)[round%3].PID == victim.PID {
				return fmt.Errorf("worker %d is still there", round%3)
			}
			return nil
		})
	}
	// A worker writes into shared memory: nothing of it is lost with it.
	if got, err := s.metric("mainstay_connections_accepted_total"); err != nil || got != rounds*clients*2 {
		t.Errorf("%v connections accepted, %v, want %d", got, err, rounds*clients*2)
	}
	if got, err := s.metric("mainstay_worker_respawns_total"); err != nil || got != rounds {
		t.Errorf("%v respawns, %v, want %d", got, err, rounds)
	}
}
