package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
)

// A release is good when it has served and another one took its place: the
// program and the configuration are held open, in this process and in the
// service manager's store, so that there is a way back whatever became of the
// files. There is one such release. One that was returned from is not good, so
// a second rollback has nowhere to go; a reload goes forward to what is on disk.

var (
	errNoGood      = errors.New("there is no earlier release: nothing else has served since the service was started, or the last rollback has returned to it")
	errRollbackNow = errors.New("a reload is under way: it returns by itself if it fails; ask again when it is done")
)

// Rollback implements control.Reverter: slot by slot, as a reload does, it
// returns to the release that served before the one that serves now, with the
// program and the configuration of then. It returns nil when that serves, or
// why it does not: there is none, a reload is under way, or its workers do not
// become ready; then the newer one serves on. It goes on when ctx ends. Any
// goroutine may call it.
func (s *Supervisor) Rollback(ctx context.Context, step func(string)) error {
	q := &reloadRequest{step: make(chan string, 256), verdict: make(chan error, 1), back: true}
	if err := s.ask(ctx, q); err != nil {
		return err
	}
	return s.follow(ctx, q, step)
}

// beginRollback begins to return to the last good release. It needs nothing
// from the disk, so it rolls at once.
func (s *Supervisor) beginRollback(q *reloadRequest) {
	switch {
	case s.phase == booting:
		q.judge(errors.New("the service starts"))
		return
	case s.job != nil:
		q.judge(errRollbackNow)
		return
	case s.good == nil:
		q.judge(errNoGood)
		return
	}
	s.job = &reload{requests: []*reloadRequest{q}, began: time.Now(), from: s.current, back: true, begun: make(map[*slot]beginning)}
	s.tell(EventRollbackBegun, fmt.Sprintf("from generation %d to generation %d", s.current.generation, s.good.generation), nil)
	s.log.Info("rollback begins", zap.Uint64("generation", s.good.generation), zap.Uint64("from_generation", s.current.generation))
	s.notified("reloading", s.conf.Notify.Reloading(s.statusLine()))
	s.rollTo(s.good, s.env)
}

// remember notes what there is to return to when a reload is done. One that
// has brought nothing new leaves it as it is: otherwise a second reload of
// something bad would make it good.
func (s *Supervisor) remember(r *reload) {
	switch {
	case r.back:
		s.good = nil
	case !r.to.equals(r.from):
		s.good = r.from
	}
}

// equals says whether two releases are of the same program and configuration,
// as far as the operator has written them: certificates, which are renewed at
// any time, make no other release.
func (r *release) equals(other *release) bool {
	return r.exe.dev == other.exe.dev && r.exe.ino == other.exe.ino && string(r.settings.Memo) == string(other.settings.Memo)
}

// tellRollback tells how a rollback has ended.
func (s *Supervisor) tellRollback(r *reload, err error, took time.Duration) {
	fields := []zap.Field{zap.Uint64("generation", r.to.generation), zap.Uint64("from_generation", r.from.generation), zap.Duration("took", took)}
	if err != nil {
		s.tell(EventRollbackFailed, fmt.Sprintf("generation %d serves on, generation %d does not: %v", r.from.generation, r.to.generation, err), nil)
		s.log.Error("rollback failed, the newer generation serves", append(fields, zap.Error(err))...)
		return
	}
	s.tell(EventRollbackDone, fmt.Sprintf("generation %d serves again", r.to.generation), nil)
	s.log.Warn("rolled back", append(fields, journal.ID(journal.RolledBack))...)
}

// shown is the release as the operator sees it, but for what has become of the
// file.
func (r *release) shown() control.Release {
	return control.Release{Generation: r.generation, Build: r.build, Executable: r.exe.path}
}

// replaced says whether the path of a program does not name it any more.
func (e executable) replaced() bool {
	var st unix.Stat_t
	return unix.Stat(e.path, &st) != nil || st.Dev != e.dev || st.Ino != e.ino
}
