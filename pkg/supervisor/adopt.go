package supervisor

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// A supervisor may die, or be told to leave for another: its workers serve on.
// What makes it their supervisor is kept by the service manager (store.go), and
// the next one takes it over, step by step:
//
//	take     readPast      the state, the shared tables, what there is of each release and worker
//	fence    adoptPast     a higher epoch, which workers obey from then on
//	rebuild  adoptPast     slots and incarnations, as they were when all had settled last
//	bury     process.go    who has died meanwhile is found dead and harvested like any other
//	         ownkeeper.go  and so is the supervisor itself, for what it had of a harvest
//	greet    greetAdopted  Adopt to each, who the others are, READY to the manager
//	settle   adoptPast     a reload that was under way is rolled back; one that
//	                       was asked for by a restart begins
//
// A worker that was not ready yet is killed: nobody has been told of it. One
// of which something is missing, or that speaks a contract older than the one
// before ours, is let go: its control socket is closed, and so it drains. So are
// all, if the shared tables are of another version, or the supervisor was of such
// a contract.

// remains are the descriptors of a worker that outlive its supervisor; -1:
// none.
type remains struct{ control, pidfd, keeper, inbox, crash int }

func (r *remains) of(kind string) *int {
	switch kind {
	case storedControl:
		return &r.control
	case storedPidfd:
		return &r.pidfd
	case storedKeeper:
		return &r.keeper
	case storedInbox:
		return &r.inbox
	case storedCrash:
		return &r.crash
	}
	return nil
}

func (r *remains) close() {
	for _, fd := range []int{r.control, r.pidfd, r.keeper, r.inbox, r.crash} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// past is what an earlier supervisor has left.
type past struct {
	file     *stateFile
	state    savedState
	board    *scoreboard.Board
	rows     *rows.Table
	releases map[uint64]*release
	workers  map[uint64]*remains

	ownKeepers map[uint64]int // of supervisors, by epoch: pidfds
}

func (p *past) close() {
	if p.file != nil {
		p.file.close()
	}
	if p.board != nil {
		p.board.Close()
	}
	if p.rows != nil {
		p.rows.Close()
	}
	for _, r := range p.releases {
		r.close()
	}
	for _, r := range p.workers {
		r.close()
	}
	for _, fd := range p.ownKeepers {
		unix.Close(fd)
	}
}

// lastNumber returns the highest number of an incarnation of which there is a
// trace: one that was started just before its supervisor died is in no state.
func (p *past) lastNumber(board *scoreboard.Board) (n uint64) {
	for i := range board.Seats() {
		n = max(n, board.Seat(i).Incarnation.Load())
	}
	for number := range p.workers {
		n = max(n, number)
	}
	return n
}

// errNoPast says that there is nothing to take over.
var errNoPast = errors.New("nothing is stored")

// readPast takes over what is stored. If it returns an error everything is
// closed, so that workers which live drain: also in the keeper of the supervisor
// that was theirs, which has their control sockets too and is killed.
func readPast(stored []activation.Stored, service string) (_ *past, err error) {
	if len(stored) == 0 {
		return nil, errNoPast
	}
	p := &past{releases: make(map[uint64]*release), workers: make(map[uint64]*remains)}
	single := make(map[string]int)
	many := make(map[string]map[uint64]int)
	defer func() {
		if err != nil {
			for _, pidfd := range many[storedOwnKeeper] {
				_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // it may be gone
			}
		}
		for _, fd := range single {
			unix.Close(fd)
		}
		for _, fds := range many {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		if err != nil {
			p.close()
		}
	}()
	for _, d := range stored {
		name := d.Name[len(StorePrefix):]
		into, key := many, uint64(0)
		kind, n, numberErr := storedNumber(name)
		if numberErr == nil {
			key = n
			if into[kind] == nil {
				into[kind] = make(map[uint64]int)
			}
			if _, twice := into[kind][key]; !twice {
				into[kind][key] = d.FD
				continue
			}
		} else if _, twice := single[name]; !twice {
			single[name] = d.FD
			continue
		}
		unix.Close(d.FD) // an older one of the name: the newest comes first
	}
	take := func(name string) (int, error) {
		fd, ok := single[name]
		if !ok {
			return -1, fmt.Errorf("supervisor: the store has no %q", name)
		}
		return fd, nil
	}
	fd, err := take(storedState)
	if err != nil {
		return nil, err
	}
	if p.file, p.state, err = openStateFile(fd); err != nil {
		return nil, fmt.Errorf("supervisor: stored state: %w", err)
	}
	delete(single, storedState)
	switch st := &p.state; {
	case !link.Speaks(st.Contract):
		return nil, fmt.Errorf("supervisor: stored state: workers of contract %d, want %d or %d", st.Contract, link.Contract-1, link.Contract)
	case st.Service != service:
		return nil, fmt.Errorf("supervisor: stored state: of service %q, not %q", st.Service, service)
	}
	if fd, err = take(storedStats); err != nil {
		return nil, err
	}
	if p.board, err = scoreboard.Open(fd); err != nil {
		return nil, err
	}
	delete(single, storedStats)
	if fd, err = take(storedRows); err != nil {
		return nil, err
	}
	if p.rows, err = rows.Open(fd); err != nil {
		return nil, err
	}
	delete(single, storedRows)
	for _, saved := range p.state.Releases {
		saved.Contract = cmp.Or(saved.Contract, p.state.Contract)
		r, err := adoptRelease(saved, many)
		switch {
		case err == nil:
			p.releases[saved.Generation] = r
		case saved.Generation == p.state.Current:
			return nil, err
		}
	}
	if p.releases[p.state.Current] == nil {
		return nil, fmt.Errorf("supervisor: stored state: no release of generation %d", p.state.Current)
	}
	for _, kind := range ofWorker {
		for n, fd := range many[kind] {
			r := p.workers[n]
			if r == nil {
				r = &remains{-1, -1, -1, -1, -1}
				p.workers[n] = r
			}
			*r.of(kind) = fd
		}
		delete(many, kind)
	}
	p.ownKeepers = many[storedOwnKeeper]
	delete(many, storedOwnKeeper)
	failpoint.Here("adopt.taken")
	return p, nil
}

// Recall returns the Memo of the settings with which the service runs that an
// earlier supervisor has left, for a caller who cannot read its configuration
// any more. It is called before New, and takes nothing over. It returns false
// if nothing is left that New could adopt.
func Recall(stored []activation.Stored) (memo []byte, ok bool) {
	for _, d := range stored {
		if d.Name != StorePrefix+storedState {
			continue
		}
		_, state, err := openStateFile(d.FD)
		if err != nil || !link.Speaks(state.Contract) || len(state.Workers) == 0 {
			return nil, false
		}
		for _, r := range state.Releases {
			if r.Generation == state.Current {
				return r.Settings.Memo, true
			}
		}
	}
	return nil, false
}

func adoptRelease(saved savedRelease, stored map[string]map[uint64]int) (*release, error) {
	exe, ok := stored[storedExe][saved.Generation]
	config, ok2 := stored[storedConfig][saved.Generation]
	if !ok || !ok2 {
		return nil, fmt.Errorf("supervisor: the store has no executable and configuration of generation %d", saved.Generation)
	}
	e, err := adoptExecutable(saved.Path, exe)
	if err != nil {
		return nil, err
	}
	delete(stored[storedConfig], saved.Generation)
	return &release{generation: saved.Generation, build: saved.Build, contract: saved.Contract, settings: saved.Settings, exe: e, config: os.NewFile(uintptr(config), "config")}, nil
}

// adoptPast rebuilds the tables from what an earlier supervisor has left, and
// goes on where that one ended.
func (s *Supervisor) adoptPast(p *past) {
	st := &p.state
	s.awaitOwnKeeper()
	failpoint.Here("adopt.fenced")
	for i, saved := range st.Slots {
		sl := s.pool.add()
		sl.index = i
		if sl.release = p.releases[saved.Generation]; sl.release == nil {
			sl.release = s.current
		}
		sl.respawns, sl.startFailures, sl.lastDeath = saved.Respawns, saved.StartFailures, saved.LastDeath
		if saved.Held {
			sl.place = held
		}
	}
	slices.SortFunc(st.Workers, func(a, b savedWorker) int { return cmp.Compare(a.Incarnation, b.Incarnation) })
	for _, saved := range st.Workers {
		r := p.workers[saved.Incarnation]
		delete(p.workers, saved.Incarnation)
		if err := s.adoptWorker(saved, r, p); err != nil {
			s.tellSlot(EventLetGo, fmt.Sprintf("pid %d finishes its connections: %v", saved.PID, err), &slot{pool: s.pool, index: saved.Slot, release: s.current})
			s.log.Warn("worker not adopted: it drains", zap.Uint64("incarnation", saved.Incarnation), zap.Int("worker_pid", saved.PID), zap.Error(err))
			s.store.removeWorker(saved.Incarnation)
		}
	}
	for n, r := range p.workers { // that the state does not know: dead, or just born
		r.close()
		s.store.removeWorker(n)
	}
	p.workers = nil
	failpoint.Here("adopt.rebuilt")
	s.takeSeats(st.Incarnation)
	for _, number := range st.Told {
		s.accounts.counted[number] = true
	}
	s.inheritHands(p)
	s.tellPast()
	for _, sl := range s.pool.slots {
		s.placeAdopted(sl)
	}
	failpoint.Here("adopt.greet")
	s.greetAdopted()
	failpoint.Here("adopt.greeted")
	adopted := len(s.incarnations)
	s.tell(EventAdopted, fmt.Sprintf("%d workers of the supervisor before", adopted), nil)
	s.log.Info("workers adopted", zap.Int("workers", adopted), zap.Uint64("epoch", s.epoch), zap.Duration("took", time.Since(s.began)))
	if slices.ContainsFunc(s.pool.slots, func(sl *slot) bool { return sl.current != nil }) {
		// Somebody serves: what is missing comes, as after a death.
		s.phase = running
		s.lastLine = s.statusLine()
		s.notified("ready", s.conf.Notify.Ready(s.lastLine))
	}
	if r := st.Reload; r != nil && s.phase == running {
		s.rollBackAdopted(r, p)
	}
	switch {
	case st.Stopping:
		s.stop()
		return
	case s.phase != running:
		// all are new
	case st.Restarting, s.refused != nil, !slices.Equal(st.Listeners, s.listeners()):
		s.requestReload(&reloadRequest{restart: st.Restarting})
	}
	failpoint.Here("adopt.settled")
	s.sweepReleases()
}

// adoptWorker makes an incarnation of what is left of a worker. If it returns
// an error r is closed.
func (s *Supervisor) adoptWorker(saved savedWorker, r *remains, p *past) error {
	if r == nil {
		return errors.New("nothing is stored of it")
	}
	if r.control < 0 || r.pidfd < 0 {
		r.close()
		return errors.New("its control socket or its pidfd is not stored")
	}
	contract := cmp.Or(saved.Contract, p.state.Contract)
	if !link.Speaks(contract) {
		r.close()
		return fmt.Errorf("it speaks contract %d, want %d or %d", contract, link.Contract-1, link.Contract)
	}
	if saved.Seat < 0 || saved.Seat >= s.board.Seats() || s.board.Seat(saved.Seat).Incarnation.Load() != saved.Incarnation {
		r.close()
		return fmt.Errorf("seat %d is not its own", saved.Seat)
	}
	inc := &incarnation{
		number: saved.Incarnation, seatNo: saved.Seat, seat: s.board.Seat(saved.Seat), release: p.releases[saved.Generation],
		inbox: r.inbox, born: time.Unix(0, saved.BornNS), build: saved.Build, contract: contract, unready: saved.Unready, protection: saved.Protection,
		readyMono: time.Duration(saved.ReadyMonoNS), adopted: true,
	}
	if inc.release == nil {
		inc.release = s.current
	}
	if saved.ReadyNS != 0 {
		inc.readyAt = time.Unix(0, saved.ReadyNS)
	}
	inc.lot = inc.release.settings.Health.draw()
	if saved.Slot >= 0 && saved.Slot < len(s.pool.slots) {
		inc.slot = s.pool.slots[saved.Slot]
	} else { // it was given up
		inc.slot = &slot{pool: s.pool, index: saved.Slot, release: inc.release}
	}
	if r.keeper < 0 && saved.Protection == protected {
		// The service manager has not come to take it.
		if k := s.findKeeper(inc); k != nil {
			r.keeper = k.pidfd
			s.store.put(numbered(storedKeeper, inc.number), r.keeper)
		} else {
			inc.protection = unprotectedAs + "its keeper is not known"
		}
	}
	if r.keeper >= 0 {
		// What was saved may be from before the worker had it.
		inc.keeper = &kept{pid: max(pidOf(r.keeper), saved.Keeper), pidfd: r.keeper}
		inc.protection = protected
		if s.harvester == nil && s.unprotected != "" {
			inc.protection = unprotectedAs + s.unprotected
		}
	}
	inc.lifeless = isDead(r.pidfd)
	process, err := s.launcher.adopt(s.orderFor(inc), saved.PID, *r)
	if err != nil {
		r.close()
		return err
	}
	failpoint.Here("adopt.worker")
	inc.process = process
	s.incarnations[inc.number] = inc
	sl := inc.slot
	switch saved.State {
	case ready.String(), hung.String():
		inc.state = ready
		switch {
		case saved.Role == roleCurrent && sl.current == nil:
			sl.current = inc
		case saved.Role == roleNext && sl.next == nil:
			sl.next = inc
		default: // cannot be; it may leave
			sl.drainingSince(inc)
			s.lastly(func() { s.retire(inc, s.partingTerms(inc)) })
		}
	case draining.String():
		inc.state = draining
		sl.drainingSince(inc)
		inc.terms = terms{prompt: saved.Prompt, hand: saved.Hand, grace: max(0, time.Until(time.Unix(0, saved.DeadlineNS)))}
		s.lastly(func() { s.happen(inc, retire) }) // what it was told may not have reached it
	default:
		inc.state = overdue
		inc.reason = "was not ready when its supervisor died, or was being killed"
		sl.drainingSince(inc)
		s.lastly(func() { s.kill(inc) })
	}
	return nil
}

// takeSeats finds the seats that are free: nobody adopted has them, nor anybody
// who lives on without us. known is the last incarnation of which the
// supervisor before had taken note.
func (s *Supervisor) takeSeats(known uint64) {
	taken := make(map[int]bool)
	for _, inc := range s.incarnations {
		taken[inc.seatNo] = true
	}
	s.freeSeats = s.freeSeats[:0]
	for i := s.board.Seats() - 1; i >= 0; i-- {
		seat := s.board.Seat(i)
		if taken[i] {
			continue
		}
		if pid := int(seat.PID.Load()); pid > 0 && unix.Kill(pid, 0) == nil {
			continue // it drains, and looks at its seat until it is gone
		} else if pid == 0 && seat.Incarnation.Load() > known {
			continue // it is being started, and has not come to write its number
		}
		s.freeSeats = append(s.freeSeats, i)
	}
}

// placeAdopted puts a slot where it was, as far as that can be: one without a
// worker gets one at once.
func (s *Supervisor) placeAdopted(sl *slot) {
	switch {
	case sl.place == held:
	case sl.current == nil && sl.next != nil:
		sl.current, sl.next = sl.next, nil
		sl.place = serving
	case sl.current == nil:
		s.occur(sl, fill)
	case sl.next != nil:
		sl.place = proving
		s.armSlot(sl, sl.next.release.settings.Bake)
	default:
		sl.place = serving
	}
}

// greetAdopted has the workers obey us, know one another, and take
// connections, whatever the supervisor before had come to tell them.
func (s *Supervisor) greetAdopted() {
	var m link.Adopt
	if s.harvester != nil {
		m.Living = append(m.Living, s.harvester.number)
	}
	for inc := range s.living() {
		m.Living = append(m.Living, inc.number)
	}
	for inc := range s.living() {
		if inc.state == overdue || inc.lifeless {
			continue
		}
		s.send(inc, m)
		failpoint.Here("adopt.told")
		if inc.state == ready {
			s.send(inc, link.Accept{})
			s.send(inc, link.Rearm{})
		}
	}
	for inc := range s.living() {
		s.tellPeers(inc)
	}
}

// errCutOff is the verdict on a reload whose supervisor has died.
var errCutOff = errors.New("the supervisor died during the reload")

// rollBackAdopted rolls back a reload that was under way: whoever waits for its
// verdict is gone with the supervisor that ran it.
func (s *Supervisor) rollBackAdopted(saved *savedReload, p *past) {
	from, to := p.releases[saved.From], p.releases[saved.To]
	if from == nil || to == nil {
		return
	}
	s.job = &reload{began: s.began, from: from, to: to, back: saved.Back, begun: make(map[*slot]beginning)}
	for _, i := range saved.Extra {
		if i >= 0 && i < len(s.pool.slots) {
			s.job.extra = append(s.job.extra, s.pool.slots[i])
		}
	}
	s.notified("reloading", s.conf.Notify.Reloading(s.statusLine()))
	s.rollBack(errCutOff)
}
