package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The operator's command for the death of a worker.
const (
	// maxHooks is how many of them run at a time; what comes beyond is
	// dropped, so that a crash loop is none of processes as well.
	maxHooks = 4

	// hookTimeout is when one that still runs is killed.
	hookTimeout = 10 * time.Second

	// hookFarewell is how long those that run are waited for when the
	// supervisor ends.
	hookFarewell = 2 * time.Second

	maxHookLines = 100 // of its output that are logged
)

// Results of a hook's run, for metrics.
const (
	hookDone    = "done"
	hookFailed  = "failed"  // it exited with another status than 0, or could not be started
	hookKilled  = "killed"  // it took too long
	hookDropped = "dropped" // too many ran
)

var hookResults = []string{hookDone, hookFailed, hookKilled, hookDropped}

// hooks runs the operator's command. begin and close are called from the
// supervisor's goroutine.
type hooks struct {
	log *zap.Logger
	run func(ctx context.Context, command, env []string, log *zap.Logger) error // runHook, or a test's

	ctx     context.Context // ends when the supervisor has waited long enough
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	n       int // that run
	results map[string]uint64
}

func newHooks(log *zap.Logger) *hooks {
	h := &hooks{log: log, run: runHook, results: make(map[string]uint64)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// begin runs the command beside the caller, or drops it.
func (h *hooks) begin(command, env []string, fields []zap.Field) {
	log := h.log.With(fields...)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n >= maxHooks {
		h.results[hookDropped]++
		log.Warn("on_worker_error not run: too many run already", zap.Int("running", h.n))
		return
	}
	h.n++
	h.running.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, hookTimeout)
		defer cancel()
		err := h.run(ctx, command, env, log)
		result := hookDone
		switch {
		case err == nil:
			log.Debug("on_worker_error done")
		case ctx.Err() != nil:
			result = hookKilled
			log.Warn("on_worker_error killed: it took too long", zap.Error(context.Cause(ctx)))
		default:
			result = hookFailed
			log.Warn("on_worker_error failed", zap.Error(err))
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.n--
		h.results[result]++
	})
}

// count returns how many runs have had each result.
func (h *hooks) count() map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	counts := make(map[string]uint64)
	for _, result := range hookResults {
		counts[result] = h.results[result]
	}
	return counts
}

// close waits for what runs, and kills it in the end.
func (h *hooks) close() {
	timer := time.AfterFunc(hookFarewell, h.cancel)
	h.running.Wait()
	timer.Stop()
	h.cancel()
}

// runHook runs a command until its end, or the end of ctx, which kills it.
// What it writes is logged.
func runHook(ctx context.Context, command, env []string, log *zap.Logger) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = w, w // files: nobody waits for who inherits them
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// With all that it has started: the number of its group stays taken as
	// long as the group has a member.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("supervisor: %w", err)
	}
	w.Close()
	var reading sync.WaitGroup
	reading.Go(func() { logLines(r, log) })
	err = cmd.Wait()
	// What it has started may hold the pipe for ever.
	r.SetReadDeadline(time.Now().Add(outputMargin))
	reading.Wait()
	if err != nil {
		return fmt.Errorf("supervisor: %s: %w", command[0], err)
	}
	return nil
}

// logLines logs what is written to r, up to a number of lines, until its end.
func logLines(r *os.File, log *zap.Logger) {
	lines := bufio.NewReaderSize(r, maxLine)
	for n := 0; ; {
		line, err := lines.ReadSlice('\n')
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			if n++; n <= maxHookLines {
				log.Info("on_worker_error wrote", zap.String("line", text))
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// deathTold has the operator's command run for a worker that died without
// having been asked to.
func (s *Supervisor) deathTold(inc *incarnation) {
	command := s.current.settings.OnWorkerError
	if len(command) == 0 {
		return
	}
	s.hooks.begin(command, s.deathEnv(inc), inc.fields())
}

// deathEnv is the command's environment: the supervisor's own, and what there
// is to know.
func (s *Supervisor) deathEnv(inc *incarnation) []string {
	// Not MAINSTAY_WORKER: that makes a process a worker.
	code, signal := strconv.Itoa(inc.exit.Code), ""
	if inc.exit.Signal != 0 {
		code, signal = "", unix.SignalName(inc.exit.Signal)
	}
	env := os.Environ()
	for _, v := range [][2]string{
		{"SERVICE", s.conf.Name},
		{"POOL", inc.slot.pool.name},
		{"SLOT", strconv.Itoa(inc.slot.index)},
		{"PID", strconv.Itoa(inc.pid())},
		{"GENERATION", strconv.FormatUint(inc.release.generation, 10)},
		{"CLASS", inc.exit.Class},
		{"CODE", code},
		{"SIGNAL", signal},
		{"STATUS", inc.exit.String()},
		{"LAST_WORDS", lastWords(inc.reason, "", inc.exit.Words)},
	} {
		env = append(env, "MAINSTAY_"+v[0]+"="+strings.ReplaceAll(v[1], "\x00", ""))
	}
	return env
}
