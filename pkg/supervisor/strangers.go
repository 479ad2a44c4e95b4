package supervisor

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// In the unit's cgroup there are to be this process, its workers and their
// keepers, what those have started, and what systemd runs beside us (ExecReload=
// and the like). Whoever else is there is a stranger: what an earlier supervisor
// has left that could not be adopted, or what one of its workers had started. It
// is told, and it is ended if it is provably a worker or a keeper of this service
// that nobody supervises any more, and has had its time to finish.

// Kinds of control.Stranger.
const (
	StrangerWorker = "worker" // of a supervisor before
	StrangerKeeper = "keeper" // of such a worker
	StrangerOther  = "other"  // not ours to judge
)

// stranger is one that was seen.
type stranger struct {
	sighting
	since time.Time // when it was seen first
}

// sighting is a stranger as a look has found it.
type sighting struct {
	pid      int
	name     string
	kind     string
	started  string        // when, in the kernel's words: tells it from another one of its number
	identity link.Identity // of a worker or a keeper
}

type strangersSeen struct {
	all []sighting
	err error
}

func (strangersSeen) isMessage() {}

// UnitCgroup returns the folder of this process' cgroup if that is a systemd
// service's, so that all processes in it ought to be the service's; empty
// otherwise.
func UnitCgroup() string {
	dir, err := ownCgroup()
	if err != nil || !strings.HasSuffix(dir, ".service") {
		return ""
	}
	return dir
}

// lookAround looks for strangers beside the loop; they are told to it. One look
// at a time is under way.
func (s *Supervisor) lookAround() {
	if s.conf.Cgroup == "" || s.lookingAround || s.phase == stopping {
		return
	}
	s.lookingAround, s.lookedAround = true, time.Now()
	known := map[int]bool{os.Getpid(): true}
	for _, inc := range s.incarnations {
		if inc.process != nil {
			known[inc.pid()] = true
		}
		if inc.keeper != nil {
			known[inc.keeper.pid] = true
		}
		if inc.seat != nil { // also of one that is being harvested
			known[int(inc.seat.KeeperPID.Load())] = true
		}
	}
	if s.own != nil {
		known[s.own.pid] = true
	}
	for _, pid := range s.hands {
		known[pid] = true
	}
	var overdue []sighting
	for _, x := range s.strangers {
		if s.outstayed(x) {
			overdue = append(overdue, x.sighting)
		}
	}
	s.looks.Go(func() {
		for _, x := range overdue {
			if err := endStranger(s.conf.Cgroup, x); err != nil {
				s.log.Warn("process of an earlier supervisor not ended", zap.Int("pid", x.pid), zap.String("kind", x.kind), zap.Error(err))
			}
		}
		all, err := findStrangers(s.conf.Cgroup, s.conf.Name, s.conf.Control, known)
		s.post(strangersSeen{all, err})
	})
}

// outstayed says whether a stranger that is ours has had its time: a worker that
// was let go drains within its grace, its keeper goes with it.
func (s *Supervisor) outstayed(x *stranger) bool {
	switch x.kind {
	case StrangerWorker:
		return time.Since(x.since) > s.current.settings.Grace+drainMargin
	case StrangerKeeper:
		for _, other := range s.strangers {
			if other.kind == StrangerWorker && other.identity.Incarnation == x.identity.Incarnation && other.identity.Epoch == x.identity.Epoch {
				return false // it holds what that one still uses
			}
		}
		return time.Since(x.since) >= beatEvery/2
	}
	return false
}

// noteStrangers takes note of a look.
func (s *Supervisor) noteStrangers(m strangersSeen) {
	s.lookingAround = false
	if m.err != nil {
		s.log.Debug("cgroup not read", zap.Error(m.err))
		return
	}
	before := s.strangers
	s.strangers = make(map[int]*stranger)
	for _, seen := range m.all {
		if x := before[seen.pid]; x != nil && x.started == seen.started {
			s.strangers[seen.pid] = x
			continue
		}
		x := &stranger{sighting: seen, since: time.Now()}
		s.strangers[seen.pid] = x
		text := fmt.Sprintf("pid %d (%s) in the unit's cgroup: %s", x.pid, x.name, x.account())
		s.tell(EventStranger, text, nil)
		s.log.Warn("a stranger in the unit's cgroup", zap.Int("pid", x.pid), zap.String("name", x.name), zap.String("kind", x.kind), zap.String("reason", x.account()))
	}
	for pid, x := range before {
		if s.strangers[pid] == nil || s.strangers[pid].started != x.started {
			s.log.Info("stranger is gone", zap.Int("pid", pid), zap.String("name", x.name), zap.String("kind", x.kind))
		}
	}
}

// account says what a stranger is.
func (x *stranger) account() string {
	switch x.kind {
	case StrangerWorker:
		return fmt.Sprintf("worker %d of generation %d, which was not adopted: it finishes its connections, and is ended if it does not", x.identity.Slot, x.identity.Generation)
	case StrangerKeeper:
		return fmt.Sprintf("the keeper of worker %d of generation %d, which was not adopted: it is ended when that worker is gone", x.identity.Slot, x.identity.Generation)
	}
	return "it is none of ours, and left alone until the service stops"
}

// shownStrangers are the strangers for status.
func (s *Supervisor) shownStrangers() (all []control.Stranger) {
	for _, x := range s.strangers {
		all = append(all, control.Stranger{PID: x.pid, Name: x.name, Kind: x.kind, AgeMS: time.Since(x.since).Milliseconds(), Account: x.account()})
	}
	slices.SortFunc(all, func(a, b control.Stranger) int { return cmp.Compare(a.PID, b.PID) })
	return all
}

// findStrangers lists the members of a cgroup that are not known, nor descend
// from one that is, nor are systemd's own helpers.
func findStrangers(cgroup, service, address string, known map[int]bool) ([]sighting, error) {
	pids, err := members(cgroup)
	if err != nil {
		return nil, err
	}
	pids = append(pids, hidden(cgroup)...)
	parents := make(map[int]int)
	var all []sighting
	for _, pid := range pids {
		if known[pid] {
			continue
		}
		parent, started, ok := origin(pid)
		if !ok && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue // gone since; otherwise another's, which ProtectProc= hides
		}
		parents[pid] = parent
		all = append(all, sighting{pid: pid, started: started})
	}
	all = slices.DeleteFunc(all, func(x sighting) bool { return descends(x.pid, parents, known) || helper(x.pid) })
	for i := range all {
		all[i].identify(service, address)
	}
	return slices.DeleteFunc(all, func(x sighting) bool { return x.kind == "" }), nil // gone since
}

// hidden lists the members of a cgroup that /proc does not show because they are
// another user's; members takes them for dead.
func hidden(cgroup string) (pids []int) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil // members has said so
	}
	for _, f := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid == 0 { // 0: of another namespace of processes
			continue
		}
		if _, err := os.Lstat("/proc/" + f); errors.Is(err, os.ErrNotExist) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// descends says whether a process comes from one that is known.
func descends(pid int, parents map[int]int, known map[int]bool) bool {
	for range len(parents) + 1 {
		if known[pid] {
			return true
		}
		parent, ok := parents[pid]
		if !ok {
			return false
		}
		pid = parent
	}
	return false
}

// identify says what the process is; nothing if it is gone.
func (x *sighting) identify(service, address string) {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", x.pid))
	if err != nil {
		if x.started == "" {
			x.name, x.kind = "another user's", StrangerOther
		}
		return
	}
	x.name, x.kind = strings.TrimSpace(string(name)), StrangerOther
	id, err := link.IdentityOf(x.pid)
	if err != nil || id.Service != service || id.Control != "" && id.Control != address {
		return
	}
	x.identity, x.kind = id, StrangerWorker
	if strings.HasPrefix(x.name, keeperName) {
		x.kind = StrangerKeeper
	}
}

// origin returns a process' parent and when it was started.
func origin(pid int) (parent int, started string, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", false
	}
	// proc_pid_stat(5): behind the name, which may hold anything, state is field
	// 3, ppid 4, starttime 22.
	_, rest, ok := strings.Cut(string(text[max(0, bytes.LastIndexByte(text, ')')):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, "", false
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, fields[19], err == nil
}

// helper says whether systemd has started a process beside the service's main
// one: it is told that one's number, which a worker is not.
func helper(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && (bytes.HasPrefix(text, []byte("MAINPID=")) || bytes.Contains(text, []byte("\x00MAINPID=")))
}

// endStranger kills a worker or a keeper of an earlier supervisor, by pidfd: it
// is looked at once more when that is there.
func endStranger(cgroup string, x sighting) error {
	fd, err := unix.PidfdOpen(x.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	pids, err := members(cgroup)
	if err != nil {
		return err
	}
	_, started, ok := origin(x.pid)
	if !slices.Contains(pids, x.pid) || !ok || started != x.started {
		return nil // it was gone, and this is another one
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}
