package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// told are the MAINSTAY_ variables of a hook.
func told(env []string) map[string]string {
	vars := make(map[string]string)
	for _, v := range env {
		if name, value, ok := strings.Cut(v, "="); ok && strings.HasPrefix(name, "MAINSTAY_") {
			vars[strings.TrimPrefix(name, "MAINSTAY_")] = value
		}
	}
	return vars
}

func TestHookIsToldOfEachDeathThatNobodyAskedFor(t *testing.T) {
	settings := quick
	settings.OnWorkerError = []string{"tell", "me"}
	supervise(t, settings, serve, func(r *rig) {
		calls := make(chan map[string]string, 16)
		got := make(map[string]map[string]string) // by class: commands that run at a time are in no order
		r.hooks.run = func(_ context.Context, command, env []string, _ *zap.Logger) error {
			if !slices.Equal(command, settings.OnWorkerError) {
				t.Errorf("ran %q", command)
			}
			calls <- told(env)
			return nil
		}
		want := func(want map[string]string) {
			t.Helper()
			synctest.Wait()
			for len(calls) > 0 {
				call := <-calls
				got[call["CLASS"]] = call
			}
			call := got[want["CLASS"]]
			if call == nil {
				t.Fatalf("not run, want %v", want)
			}
			for name, value := range want {
				if call[name] != value {
					t.Errorf("%s is %q, want %q", name, call[name], value)
				}
			}
			if _, ok := call[strings.TrimPrefix(link.Env, "MAINSTAY_")]; ok {
				t.Error("the command would be taken for a worker")
			}
		}
		pid := fmt.Sprint(r.fakes.last(1).pid)
		r.fakes.last(1).exit(Exit{Signal: unix.SIGSEGV, Words: "nil\x00 pointer"})
		want(map[string]string{
			"SERVICE": "test", "POOL": "worker", "SLOT": "1", "PID": pid, "GENERATION": "1", "CLASS": ClassSignal,
			"CODE": "", "SIGNAL": "SIGSEGV", "STATUS": "killed by SIGSEGV", "LAST_WORDS": "nil pointer",
		})
		r.fakes.set(brokenStart)
		r.fakes.last(0).exit(Exit{Code: 7})
		want(map[string]string{"SLOT": "0", "CLASS": ClassExit, "CODE": "7", "SIGNAL": ""})
		time.Sleep(time.Nanosecond)
		want(map[string]string{"SLOT": "0", "CLASS": ClassStart, "CODE": "3", "LAST_WORDS": "cannot open the database"})
		r.fakes.set(serve)
		time.Sleep(time.Minute)
		synctest.Wait()
		for len(calls) > 0 {
			<-calls
		}
		if err := r.reload(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(calls) > 0 {
			t.Errorf("run for workers that were to leave: %v", <-calls)
		}
	})
}

func TestHooksAreBounded(t *testing.T) {
	settings := quick
	settings.OnWorkerError = []string{"hang"}
	supervise(t, settings, serve, func(r *rig) {
		r.hooks.run = func(ctx context.Context, _, _ []string, _ *zap.Logger) error {
			<-ctx.Done()
			return ctx.Err()
		}
		for range 3 * maxHooks {
			r.fakes.last(0).exit(Exit{Code: 2})
			time.Sleep(time.Millisecond)
			r.fakes.last(1).exit(Exit{Code: 2})
			time.Sleep(500 * time.Millisecond) // more than the first delays of the back-off
			synctest.Wait()
		}
		counts := r.hooks.count()
		if counts[hookDropped] == 0 || counts[hookKilled] != 0 {
			t.Errorf("after %v: %v", time.Second, counts)
		}
		time.Sleep(hookTimeout)
		synctest.Wait()
		if got := r.hooks.count(); got[hookKilled] < maxHooks {
			t.Errorf("after %v: %v", hookTimeout, got)
		}
	})
}

func TestEndOfTheSupervisorEndsItsHooks(t *testing.T) {
	settings := quick
	settings.OnWorkerError = []string{"hang"}
	supervise(t, settings, serve, func(r *rig) {
		r.hooks.run = func(ctx context.Context, _, _ []string, _ *zap.Logger) error {
			<-ctx.Done()
			return ctx.Err()
		}
		r.fakes.last(0).exit(Exit{Code: 2})
		synctest.Wait()
		r.Stop(r.t.Context())
		began := time.Now()
		<-r.ended
		if took := time.Since(began); took > time.Second+hookFarewell { // a worker's drain takes a second
			t.Errorf("took %v", took)
		}
	})
}

// observed returns a logger and what it was given.
func observed() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	return zap.New(core), logs
}

func TestHookRunsWithItsEnvironmentAndItsOutputIsLogged(t *testing.T) {
	log, logs := observed()
	err := runHook(t.Context(), []string{"/bin/sh", "-c", "echo slot $MAINSTAY_SLOT; echo \"$1\" >&2; printf rest", "sh", "a b"}, []string{"MAINSTAY_SLOT=3"}, log)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range logs.All() {
		lines = append(lines, e.ContextMap()["line"].(string))
	}
	if want := []string{"slot 3", "a b", "rest"}; !slices.Equal(lines, want) {
		t.Errorf("logged %q, want %q", lines, want)
	}
}

func TestOutputOfAHookIsBounded(t *testing.T) {
	log, logs := observed()
	if err := runHook(t.Context(), []string{"/bin/sh", "-c", "yes | head -n 5000"}, os.Environ(), log); err != nil {
		t.Fatal(err)
	}
	if n := logs.Len(); n != maxHookLines {
		t.Errorf("%d lines logged, want %d", n, maxHookLines)
	}
}

func TestHookThatFailsSaysWhy(t *testing.T) {
	log, _ := observed()
	if err := runHook(t.Context(), []string{"/bin/sh", "-c", "exit 5"}, nil, log); err == nil || !strings.Contains(err.Error(), "exit status 5") {
		t.Errorf("error %v", err)
	}
	if err := runHook(t.Context(), []string{"/no/such/program"}, nil, log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestHookThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	log, _ := observed()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// The child waits in open(2) for somebody to write.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := runHook(ctx, []string{"/bin/sh", "-c", "(cat " + fifo + ") & exec sleep 60"}, []string{"PATH=/usr/bin:/bin"}, log)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		t.Errorf("error %v, want that of a process that was killed", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	await(t, "the death of its child", func() bool {
		fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK, 0) // fifo(7): ENXIO without a reader
		if err == nil {
			unix.Close(fd)
		}
		return errors.Is(err, unix.ENXIO)
	})
}
