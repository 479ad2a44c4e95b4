package supervisor

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// beatEvery is how often the keepers are shown that there is a supervisor:
// they wait for 120 s for another one, and nobody is woken more often than
// need be.
const beatEvery = 10 * time.Second

// harvestMargin is what connections of a dead worker may wait for another one
// beyond the time that its start may take.
const harvestMargin = 5 * time.Second

// Words of control.Worker.Protection; empty: it has said nothing yet.
const (
	protected     = "protected"
	unprotectedAs = "unprotected: " // and why
)

type (
	incarnationKept struct {
		inc   *incarnation
		kept  link.Kept
		pidfd int // the supervisor's to close; -1: none
	}
	keeperReaped struct {
		inc   *incarnation
		exit  Exit
		saved int // connections that are not its any more
	}
	harvested struct {
		obituary harvestObituary
		result   harvestResult
	}
)

func (incarnationKept) isMessage() {}
func (keeperReaped) isMessage()    {}
func (harvested) isMessage()       {}

// harvestObituary is what is known of a dead worker when its harvest is over,
// and the worker itself long forgotten.
type harvestObituary struct {
	number uint64       // of the incarnation
	inc    *incarnation // nil: an earlier supervisor, which had them in hand
	fields []zap.Field
}

// enableHarvest has workers start keepers, if we can reach into them.
func (s *Supervisor) enableHarvest() error {
	if err := keeper.Probe(); err != nil {
		s.unprotected = err.Error()
		s.log.Warn("no connection outlives its worker", zap.Error(err))
		return nil
	}
	var names []string
	for _, sock := range s.conf.Sockets {
		names = append(names, sock.Name)
	}
	var err error
	s.harvester, err = newHarvester(harvesterNumber(s.epoch), s.rows, names, s.protectSelf(), s.clock, s.log)
	return err
}

// endHarvest ends the harvester and this process's keeper, if they have not
// ended yet. What is left for another supervisor is left.
func (s *Supervisor) endHarvest() {
	leave := s.restarting && s.own != nil
	if h := s.harvester; h != nil {
		s.harvester = nil
		if leave {
			h.leave()
		} else {
			h.close()
		}
	}
	if k := s.own; k != nil {
		s.own = nil
		k.close(leave, s.log)
	}
}

// harvesterNumber is what the harvester of an epoch is called among the
// incarnations.
func harvesterNumber(epoch uint64) uint64 { return rows.MaxIncarnation + 1 - epoch }

// beat shows the keepers that there is a supervisor.
func (s *Supervisor) beat() {
	now := s.clock()
	s.board.SupervisorBeat().Store(int64(now))
	if s.own != nil {
		s.own.showLife(now)
	}
}

// introduce has a worker and the harvester know one another as they are.
func (s *Supervisor) introduce(inc *incarnation) {
	h := s.harvester
	if h == nil || !inc.isPeer() {
		return
	}
	if m := inc.asPeer(); inc.harvesterKnows != m {
		fd := -1
		if inc.harvesterKnows == (link.Peer{}) {
			var err error
			if fd, err = unix.FcntlInt(uintptr(inc.inbox), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				s.log.Warn("worker is not given connections of dead ones", append(inc.fields(), zap.Error(os.NewSyscallError("fcntl", err)))...)
				return
			}
		}
		inc.harvesterKnows = m
		h.met(m, inc.seat, fd)
	}
	if inc.knowsHarvester || inc.behind || !inc.listens() {
		return
	}
	m := h.asPeer()
	inc.knowsHarvester = s.wasHeard(inc, m, inc.process.SendFile(m, h.inbox))
}

// noteKeeper takes note of a worker's keeper.
func (s *Supervisor) noteKeeper(m incarnationKept) {
	inc := m.inc
	if m.pidfd < 0 || inc.keeper != nil {
		if m.pidfd >= 0 {
			unix.Close(m.pidfd) // said twice
		}
		if inc.keeper == nil {
			inc.protection = unprotectedAs + m.kept.Reason
		}
		return
	}
	inc.keeper = &kept{pid: m.kept.PID, pidfd: m.pidfd}
	inc.protection = protected
	s.store.put(numbered(storedKeeper, inc.number), m.pidfd)
	s.unsaved = true
	s.checkSharing(inc)
}

// checkSharing looks whether a worker's descriptors are still its keeper's.
func (s *Supervisor) checkSharing(inc *incarnation) {
	if inc.keeper == nil || inc.process == nil || inc.protection != protected {
		return
	}
	why := "its keeper is dead"
	if !isDead(inc.keeper.pidfd) {
		shares, err := keeper.SharesFiles(inc.pid(), inc.keeper.pid)
		if err != nil || shares {
			return // it cannot be told, or the worker is dead and will be noticed
		}
		why = "it has left its keeper's descriptor table"
	}
	inc.protection = unprotectedAs + why
	s.log.Warn("worker has lost its keeper", append(inc.fields(), zap.String("reason", inc.protection))...)
}

// exited is told of a death. The rest of it is for when the keeper is gone
// too: until then the worker's seat, its files and its place are taken.
func (s *Supervisor) exited(inc *incarnation, exit Exit) {
	if inc.keeper == nil && s.harvester != nil {
		inc.keeper = s.findKeeper(inc)
	}
	obituary := harvestObituary{inc.number, inc, inc.fields()}
	if inc.keeper == nil || s.harvester == nil { // it was adopted by one that cannot reach into it
		if inc.keeper != nil {
			inc.keeper.end(s.log)
			inc.keeper = nil
		}
		s.tellAccount(inc.number, obituary)
		s.dead(inc, exit)
		return
	}
	job := &harvest{
		number: inc.number, keeper: inc.keeper,
		// In the end of the service connections end.
		connections: s.phase != stopping && inc.seat.Released.Load() == 0 && inc.protection == protected,
		patience:    s.startTimeout(inc) + harvestMargin,
		reaped:      func(saved int) { s.post(keeperReaped{inc, exit, saved}) },
	}
	inc.keeper = nil // it is the harvester's
	inc.dead = true
	inc.disarm()
	s.tellPeers(inc)
	if job.connections {
		job.account = s.openAccount(inc.number)
		job.done = func(r harvestResult) { s.post(harvested{obituary, r}) }
	}
	if !job.connections {
		s.tellAccount(inc.number, obituary)
	}
	s.harvester.start(job)
}

// buried is told that nothing is left of a worker.
func (s *Supervisor) buried(m keeperReaped) {
	m.inc.seat.Connections.Add(int64(-m.saved)) // what stays there is lost
	s.dead(m.inc, m.exit)
}

// findKeeper returns the keeper of a worker that was killed before it could
// tell of it, nil if there is none. The seat has its number; that it is our
// child says that it is no stranger's.
func (s *Supervisor) findKeeper(inc *incarnation) *kept {
	if inc.seat == nil {
		return nil
	}
	pid := int(inc.seat.KeeperPID.Load())
	if pid <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	if inc.adopted {
		err = isKeeper(pid)
	} else {
		err = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	}
	if err != nil {
		unix.Close(fd)
		return nil
	}
	return &kept{pid: pid, pidfd: fd}
}

// isKeeper says whether a process looks like a keeper of this service: for
// those that are not our children.
func isKeeper(pid int) error {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	its, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(name), keeperName) || string(own) != string(its) {
		return fmt.Errorf("process %d is %q", pid, name)
	}
	return nil
}

// tornInAll is how many connections have ended with workers that had a keeper.
func (b *books) tornInAll() (n uint64) {
	for _, k := range b.torn {
		n += k
	}
	return n
}

// tellHarvest tells what has become of a dead worker's connections.
func (s *Supervisor) tellHarvest(m harvested) {
	r := m.result
	number := m.obituary.number
	delete(s.accounts.harvests, number)
	defer s.wasTold(number)
	if r.Kept+r.Ended+r.torn() == 0 {
		return
	}
	counted := s.accounts.counted[number] // by an earlier supervisor, which did not come to close the account
	if s.ledger.find(number) != nil {
		s.accounts.counted[number] = true
	}
	if !counted {
		s.books.kept += uint64(r.Kept)
	}
	if s.books.torn == nil {
		s.books.torn = make(map[string]uint64)
	}
	var reasons []string
	for _, why := range slices.Sorted(maps.Keys(r.Torn)) {
		if !counted {
			s.books.torn[why] += uint64(r.Torn[why])
		}
		reasons = append(reasons, fmt.Sprintf("%d %s", r.Torn[why], why))
	}
	text := fmt.Sprintf("%d connections kept, longest stall %v, %d ended by themselves, %d torn", r.Kept, r.Longest.Round(100*time.Microsecond), r.Ended, r.torn())
	if len(reasons) > 0 {
		text += ": " + strings.Join(reasons, ", ")
	}
	s.tell(EventHarvested, text, m.obituary.inc)
	s.log.Info("connections of a dead worker", append(m.obituary.fields, journal.ID(journal.WorkerHarvested),
		zap.Int("kept", r.Kept), zap.Int("ended", r.Ended), zap.Int("torn", r.torn()), zap.Strings("reasons", reasons), zap.Duration("longest_stall", r.Longest))...)
}
