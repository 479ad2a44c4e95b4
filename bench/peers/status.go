package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// Status is what is looked at of `server status --json`.
type Status struct {
	PID   int    `json:"pid"` // of the supervisor
	State string `json:"state"`
	Pools []struct {
		Workers []Worker `json:"workers"`
	} `json:"pools"`
}

// Worker is a line of Status.
type Worker struct {
	Slot        int    `json:"slot"`
	PID         int    `json:"pid"`
	State       string `json:"state"`
	Connections int64  `json:"connections"`
}

// Workers returns the workers of all pools.
func (s *Status) Workers() []Worker {
	var all []Worker
	for _, p := range s.Pools {
		all = append(all, p.Workers...)
	}
	return all
}

// statusTimeout is how long one `status` may take.
const statusTimeout = 15 * time.Second

// Status asks Mainstay, as an operator would: by the command `status --json`.
// A server without a control socket is an error.
func (s *Process) Status(ctx context.Context) (*Status, error) {
	if s.Control == "" {
		return nil, fmt.Errorf("peers: %s: it has no status", s.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.cmd.Path, "status", "--json", "--control", "unix://"+s.Control)
	cmd.Env = cleanEnv(cmd.Environ())
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return nil, fmt.Errorf("peers: %s: status: %w", s.Name, err)
	}
	var st Status
	if err := json.Unmarshal(out, &st); err != nil {
		return nil, fmt.Errorf("peers: %s: status: %w", s.Name, err)
	}
	return &st, nil
}

// again is the time between two looks at something that is waited for.
const again = 20 * time.Millisecond

// AwaitWorkers waits until so many workers of Mainstay are ready and no
// connection is open at any, and returns that status. It waits for patience
// at most; the error tells the last status.
func (s *Process) AwaitWorkers(ctx context.Context, n int, patience time.Duration) (*Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%d idle workers are wanted for %v", n, patience))
	defer cancel()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		st, err := s.Status(ctx)
		if err == nil && st.idle(n) {
			return st, nil
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return nil, fmt.Errorf("peers: %s: it has ended: %v%s", s.Name, s.err, s.LastWords())
		case <-ctx.Done():
			return nil, fmt.Errorf("peers: %s: %w: status %+v, %v%s", s.Name, context.Cause(ctx), st, err, s.LastWords())
		}
	}
}

// idle says whether exactly n workers are ready and none has a connection.
func (s *Status) idle(n int) bool {
	workers := s.Workers()
	for _, w := range workers {
		if w.State != "ready" || w.Connections != 0 {
			return false
		}
	}
	return len(workers) == n
}
