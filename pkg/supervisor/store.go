package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/failpoint"
)

// StorePrefix begins the names under which a supervisor puts descriptors into
// the service manager's store, for the next one: Config.Stored.
const StorePrefix = "mainstay/"

// Names in the store, behind the prefix. Those of a worker and of a release
// are followed by a slash and its number.
const (
	storedState  = "state"
	storedStats  = "stats"
	storedRows   = "rows"
	storedExe    = "exe"
	storedConfig = "config"

	storedOwnKeeper = "own-keeper" // a supervisor's, with its epoch

	storedControl = "control" // the supervisor's end
	storedPidfd   = "pidfd"
	storedKeeper  = "keeper" // its pidfd
	storedInbox   = "inbox"
	storedCrash   = "crash"
)

// ofWorker are the names of what is stored of a worker.
var ofWorker = []string{storedControl, storedPidfd, storedKeeper, storedInbox, storedCrash}

func numbered(kind string, n uint64) string { return kind + "/" + strconv.FormatUint(n, 10) }

// manager is the part of a notify.Notifier that the store needs.
type manager interface {
	Store(name string, fd int) error
	Unstore(name string) error
	Barrier(timeout time.Duration) error
}

// store has descriptors kept by the service manager, so that they outlive this
// process. The manager may be busy for seconds, so it is spoken to by a
// goroutine of the store's own, in the order in which things were asked for.
// What it does not keep, for it has no room or no store, is lost with this
// process, as all is where there is no manager. put, remove and close are for
// one goroutine. A nil store keeps nothing.
type store struct {
	manager manager
	log     *zap.Logger
	names   map[string]bool // what is there, or asked for
	wake    chan struct{}
	quit    chan struct{}
	ended   sync.WaitGroup

	// Guarded by mu. The queue is bounded by what a supervisor has open.

	mu    sync.Mutex
	queue []errand
}

// errand is something to be said to the manager.
type errand struct {
	name  string
	fd    int           // ours, to be stored; -1: to be removed, or done is set
	done  chan struct{} // closed when all before it has been said
	until time.Time     // of done: when nobody waits any more
}

// startStore returns a store at a manager, which the caller ends by close.
func startStore(m manager, log *zap.Logger) *store {
	s := &store{manager: m, log: log, names: make(map[string]bool), wake: make(chan struct{}, 1), quit: make(chan struct{})}
	s.ended.Go(s.run)
	return s
}

// close ends the store once all has been said, or the manager does not listen.
func (s *store) close() {
	if s == nil {
		return
	}
	s.flush(flushTimeout)
	close(s.quit)
	s.ended.Wait()
	for _, e := range s.queue {
		if e.fd >= 0 {
			unix.Close(e.fd)
		}
	}
}

// put has a copy of fd kept; fd stays the caller's.
func (s *store) put(name string, fd int) {
	if s == nil {
		return
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.log.Warn("descriptor not stored", zap.String("name", name), zap.Error(os.NewSyscallError("fcntl", err)))
		return
	}
	s.names[name] = true
	s.enqueue(errand{name: name, fd: own})
}

// remove has what is kept under the name closed.
func (s *store) remove(name string) {
	if s == nil || !s.names[name] {
		return
	}
	delete(s.names, name)
	s.enqueue(errand{name: name, fd: -1})
}

// clear is remove for everything.
func (s *store) clear() {
	if s == nil {
		return
	}
	for name := range s.names {
		s.remove(name)
	}
}

// removeWorker is remove for all that is stored of a worker.
func (s *store) removeWorker(number uint64) {
	if s == nil {
		return
	}
	for _, kind := range ofWorker {
		s.remove(numbered(kind, number))
	}
}

func (s *store) enqueue(e errand) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// flushTimeout is how long the end of this process waits for the manager to
// take what is stored for the next one.
const flushTimeout = 2 * time.Second

// flush waits until the manager has acted on all that was asked for. It
// reports whether it has, within the timeout.
func (s *store) flush(timeout time.Duration) bool {
	if s == nil {
		return true
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-s.whenSaid(timeout):
		return true
	case <-t.C:
		return false
	}
}

// whenSaid returns a channel that is closed when the manager has acted on all
// that was asked for; never, if it has not within the timeout.
func (s *store) whenSaid(timeout time.Duration) <-chan struct{} {
	e := errand{fd: -1, done: make(chan struct{}), until: time.Now().Add(timeout)}
	s.enqueue(e)
	return e.done
}

func (s *store) run() {
	for {
		s.mu.Lock()
		var e errand
		ok := len(s.queue) > 0
		if ok {
			e = s.queue[0]
			s.queue = s.queue[1:]
		}
		s.mu.Unlock()
		if ok {
			s.do(e)
			continue
		}
		select {
		case <-s.wake:
		case <-s.quit:
			return
		}
	}
}

// do says one thing to the manager, again if it was too busy.
func (s *store) do(e errand) {
	if e.fd >= 0 {
		defer unix.Close(e.fd)
	}
	for {
		var err error
		switch {
		case e.done != nil:
			if err = s.manager.Barrier(max(0, time.Until(e.until))); err == nil {
				close(e.done)
			}
			return
		case e.fd >= 0:
			failpoint.Here("store.put")
			err = s.manager.Store(StorePrefix+e.name, e.fd)
			failpoint.Here("store.kept")
		default:
			failpoint.Here("store.remove")
			err = s.manager.Unstore(StorePrefix + e.name)
			failpoint.Here("store.removed")
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if err != nil {
				s.log.Warn("store of the service manager not reached", zap.String("name", e.name), zap.Error(err))
			}
			return
		}
		select {
		case <-s.quit:
			return
		default:
		}
	}
}

// storedNumber takes a numbered name apart.
func storedNumber(name string) (kind string, n uint64, err error) {
	for i := len(name) - 1; i > 0; i-- {
		if name[i] == '/' {
			n, err = strconv.ParseUint(name[i+1:], 10, 64)
			return name[:i], n, err
		}
	}
	return "", 0, fmt.Errorf("%q has no number", name)
}
