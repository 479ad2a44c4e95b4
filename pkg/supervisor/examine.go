package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/keeper"
)

type examineRequest struct{ reply chan examined }

func (examineRequest) isMessage() {}

// examined is what only the loop knows of an examination.
type examined struct {
	examination control.Examination
	memo        []byte            // of the configuration that runs
	env         map[string]string // with which it was read
}

// Examine implements control.Examiner: it tells how this process stands, which
// nobody can see from outside: its limits, its store, what its sandbox allows,
// what comes back of a worker that is started for the trial and killed, and
// whether it could read its configuration now. It fails if the supervisor
// does not answer. Any goroutine may call it.
func (s *Supervisor) Examine(ctx context.Context) (control.Examination, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusTimeout, errors.New("the supervisor does not answer"))
	defer cancel()
	m := examineRequest{reply: make(chan examined, 1)}
	if err := s.ask(ctx, m); err != nil {
		return control.Examination{}, err
	}
	var e examined
	select {
	case e = <-m.reply:
	case <-s.done:
		return control.Examination{}, errNotRunning
	case <-ctx.Done():
		return control.Examination{}, context.Cause(ctx)
	}
	x := e.examination
	x.Open = openFDs(os.Getpid())
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return x, fmt.Errorf("supervisor: %w", os.NewSyscallError("getrlimit", err))
	}
	x.FilesSoft, x.FilesHard = limit.Cur, limit.Max
	if err := keeper.Probe(); err != nil {
		x.Unprotected = err.Error()
	} else {
		x.Trial = s.try(ctx)
	}
	settings, err := s.load(e.env)
	switch {
	case err != nil:
		x.ConfigError = err.Error()
	case string(settings.Memo) != string(e.memo):
		x.ConfigDiffers = true
	}
	if s.conf.LinesDropped != nil {
		x.LinesDropped = s.conf.LinesDropped()
	}
	return x, nil
}

// examine is the loop's part of an examination.
func (s *Supervisor) examine() examined {
	settings := s.current.settings
	x := control.Examination{
		PID: os.Getpid(), Stores: s.store != nil, StoreMax: s.conf.StoreMax, StoreNeed: Storage(settings),
		FilesNeed: Descriptors(len(s.conf.Sockets), settings), Cgroup: s.conf.Cgroup,
	}
	if s.store != nil {
		x.Stored = len(s.store.names)
	}
	for _, sock := range s.conf.Sockets {
		if sock.Blocking {
			x.Blocking = append(x.Blocking, sock.Name)
		}
	}
	return examined{x, settings.Memo, s.env}
}

// load reads the configuration, one caller at a time.
func (s *Supervisor) load(env map[string]string) (Settings, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	return s.conf.Load(env)
}
