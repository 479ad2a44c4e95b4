// Command status measures how long the operator waits for a service's status:
// one caller, and many at once, while the service is idle, while it is loaded,
// and while one of its workers is stopped. See status --help.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/bench/load"
)

const usage = `status starts a service, and measures how long its control socket takes to
answer GET /v1/status: to one caller, and to many who ask at the same moment,
each by a connection of its own, as the command line does. A round is one
question of each caller; the rows take turns.

usage:
  status [flags]

flags:
`

type settings struct {
	server      string
	workers     int
	callers     int
	rounds      int
	cycles      int
	connections int
	asJSON      bool
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	var s settings
	f := flag.NewFlagSet("status", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&s.server, "server", "../bin/server", "the reference service's `program`")
	f.IntVar(&s.workers, "workers", 4, "`number` of its workers")
	f.IntVar(&s.callers, "callers", 50, "`number` of those who ask at once")
	f.IntVar(&s.rounds, "rounds", 40, "`rounds` of a row in a cycle")
	f.IntVar(&s.cycles, "cycles", 5, "`cycles` that are counted, after one that is not")
	f.IntVar(&s.connections, "connections", 100, "`connections` that load the service, 64 bytes at a time")
	f.BoolVar(&s.asJSON, "json", false, "print the result as JSON")
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
		fmt.Fprint(stderr, "\nexit codes: 0 every question was answered; 1 something failed; 2 the command line\nis wrong.\n")
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if f.NArg() > 0 || s.workers < 2 || s.callers < 1 || s.rounds < 1 || s.cycles < 1 || s.connections < 1 {
		fmt.Fprintln(stderr, "status: want no arguments, at least 2 workers, and at least 1 caller, round, cycle and connection")
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	rows, err := measure(ctx, s)
	if err == nil {
		err = report(stdout, rows, s.asJSON)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	for _, r := range rows {
		if r.Errors > 0 {
			return 1
		}
	}
	return 0
}

// row is a kind of round.
type row struct {
	Name    string  `json:"name"`
	Callers int     `json:"callers"`
	Answers uint64  `json:"answers"`
	Errors  uint64  `json:"errors"`
	First   string  `json:"first_error,omitempty"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	Max     float64 `json:"max_us"`

	// during runs f while the service is in the row's condition.
	during func(ctx context.Context, f func()) error
	took   load.Histogram
}

// service is the reference service, running.
type service struct {
	cmd     *exec.Cmd
	log     string
	control string
	port    int
}

func measure(ctx context.Context, s settings) ([]*row, error) {
	dir, err := os.MkdirTemp("", "status")
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	defer os.RemoveAll(dir)
	svc, err := start(ctx, dir, s)
	if err != nil {
		return nil, err
	}
	defer svc.stop()
	target := "tcp://127.0.0.1:" + strconv.Itoa(svc.port)
	idle := func(_ context.Context, f func()) error { f(); return nil }
	loaded := func(ctx context.Context, f func()) error { return underLoad(ctx, target, s.connections, f) }
	stopped := func(ctx context.Context, f func()) error { return svc.whileStopped(ctx, f) }
	rows := []*row{
		{Name: "idle", Callers: 1, during: idle},
		{Name: "idle", Callers: s.callers, during: idle},
		{Name: "loaded", Callers: s.callers, during: loaded},
		{Name: "a worker stopped", Callers: s.callers, during: stopped},
	}
	for cycle := range s.cycles + 1 {
		for _, r := range rows {
			counted := cycle > 0
			err := r.during(ctx, func() {
				for range s.rounds {
					if ctx.Err() == nil {
						r.round(ctx, svc.control, counted)
					}
				}
			})
			if err = errors.Join(err, ctx.Err()); err != nil {
				return nil, fmt.Errorf("status: %s: %w", r.Name, err)
			}
		}
	}
	for _, r := range rows {
		r.Answers = r.took.Count()
		r.P50, r.P99, r.Max = micros(r.took.Quantile(0.5)), micros(r.took.Quantile(0.99)), micros(r.took.Quantile(1))
	}
	return rows, nil
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// start starts the service and waits until it serves.
func start(ctx context.Context, dir string, s settings) (*service, error) {
	program, err := filepath.Abs(s.server)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("status: %w: build it, or name it by --server", err)
	}
	// An empty file keeps a configuration that the machine may have out.
	config := filepath.Join(dir, "app.toml")
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	svc := &service{log: filepath.Join(dir, "log"), control: filepath.Join(dir, "c.sock")}
	logFile, err := os.Create(svc.log)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	defer logFile.Close()
	svc.cmd = exec.Command(program, "run", "--config", config, "--workers", strconv.Itoa(s.workers),
		"--listen", "echo=tcp://127.0.0.1:0", "--control", "unix://"+svc.control)
	svc.cmd.Stdout, svc.cmd.Stderr = logFile, logFile
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "APP_") && !strings.HasPrefix(kv, "LISTEN_") {
			svc.cmd.Env = append(svc.cmd.Env, kv)
		}
	}
	svc.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := svc.cmd.Start(); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if err := svc.await(ctx); err != nil {
		svc.stop()
		text, _ := os.ReadFile(svc.log)
		return nil, fmt.Errorf("status: the service does not serve: %w\n%s", err, text)
	}
	return svc, nil
}

// await waits until the service serves, for ten seconds at most.
func (svc *service) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := ask(ctx, svc.control)
		if err == nil && st.State == "serving" && len(st.Listeners) == 1 {
			port := st.Listeners[0].Address[strings.LastIndex(st.Listeners[0].Address, ":")+1:]
			svc.port, err = strconv.Atoi(port)
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func (svc *service) stop() {
	svc.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(15*time.Second, func() { svc.cmd.Process.Kill() })
	defer late.Stop()
	svc.cmd.Wait() // how it ended does not matter any more
}

// whileStopped runs f while one worker is stopped.
func (svc *service) whileStopped(ctx context.Context, f func()) error {
	st, err := ask(ctx, svc.control)
	if err != nil {
		return err
	}
	if len(st.Pools) == 0 || len(st.Pools[0].Workers) == 0 || st.Pools[0].Workers[0].PID == 0 {
		return errors.New("no worker to stop")
	}
	worker, err := os.FindProcess(st.Pools[0].Workers[0].PID)
	if err != nil {
		return err
	}
	defer worker.Release()
	if err := worker.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer worker.Signal(syscall.SIGCONT) // it may have been replaced meanwhile
	f()
	return nil
}

// underLoad runs f while messages are echoed.
func underLoad(ctx context.Context, target string, connections int, f func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := load.Run(ctx, load.Config{
			Target: target, Mode: load.Raw, Connections: connections, Size: 64, Pipeline: 1, Threads: 1,
			Duration: time.Hour, ConnectTimeout: 5 * time.Second, DrainTimeout: time.Second,
			OnStart: func() { close(begun) },
		})
		ended <- err
	}()
	select {
	case <-begun:
	case err := <-ended:
		return err
	}
	f()
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func report(w io.Writer, rows []*row, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "service\tcallers at once\tanswers\terrors\tp50 ms\tp99 ms\tmax ms\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.2f\t%.2f\t%.2f\t\n", r.Name, r.Callers, r.Answers, r.Errors, r.P50/1e3, r.P99/1e3, r.Max/1e3)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.First != "" {
			fmt.Fprintf(w, "%s: %s\n", r.Name, r.First)
		}
	}
	return nil
}
