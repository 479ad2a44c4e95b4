package supervisor

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/notify"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/signals"
)

// Config is what a Supervisor is made of.
type Config struct {
	Name    string              // of the service, for status and process titles
	Version string              // of the supervisor's own build, for status
	Log     *zap.Logger         // nil: nothing is logged
	Notify  *notify.Notifier    // nil: nobody is notified
	Sockets []activation.Socket // listening; they stay the caller's, open until Run has returned
	Serve   map[string]string   // listener's name to its kind, for status; may be nil
	Args    []string            // of a worker, behind its title; may be nil
	Stderr  *os.File            // the workers' standard error once they are ready; nil: os.Stderr

	// Executable is the path of the workers' program. It is opened anew at
	// each reload, so replacing the file is how new code gets in.
	Executable string

	// Load reads the configuration: at the start with a nil env, at a reload
	// with the settings that came with the last request that had some, which
	// then stand for the supervisor's own environment. It is called from one
	// goroutine at a time.
	Load func(env map[string]string) (Settings, error)

	// Control is where this supervisor is asked, a URL; empty: nowhere. Its
	// workers remember it, so that they are found when it is dead.
	Control string

	// Cgroup is the folder of the cgroup whose processes are all the service's:
	// it is looked through for strangers; empty: it is not.
	Cgroup string

	// RuntimeDir is where an orderly end of the service leaves its mark for
	// Reap; empty: nowhere.
	RuntimeDir string

	// Stored is what an earlier supervisor of the service has left for this one
	// in the service manager's store: the descriptors whose names begin with
	// StorePrefix. New takes them over.
	Stored []activation.Stored
	// StoreMax is how many descriptors that store takes; zero: not known.
	StoreMax int

	// Monitor are listeners that the caller serves itself, for status.
	Monitor []activation.Socket
	// LinesDropped counts the lines that the log lost; nil: not told.
	LinesDropped func() uint64
}

// StartError is returned by Run when the first generation could not become
// ready.
type StartError struct {
	Worker int    // its slot
	Reason string // how it died, with its last words
}

func (e *StartError) Error() string {
	return fmt.Sprintf("supervisor: worker %d did not become ready: %s", e.Worker, e.Reason)
}

// phase is how far the service as a whole is.
type phase int

const (
	booting  phase = iota // the first generation is not ready yet
	running               // READY was sent
	stopping              // everybody leaves
)

// pool is the workers of one kind.
type pool struct {
	name  string
	slots []*slot // by index
}

func (p *pool) add() *slot {
	sl := &slot{pool: p, index: len(p.slots)}
	p.slots = append(p.slots, sl)
	return sl
}

func (p *pool) removeLast() *slot {
	last := p.slots[len(p.slots)-1]
	p.slots = p.slots[:len(p.slots)-1]
	return last
}

// Supervisor supervises. Make one with New, then call Run once. It
// implements control.Backend.
type Supervisor struct {
	// Set once in New.

	conf        Config
	log         *zap.Logger
	launcher    launcher
	clock       func() time.Duration                // CLOCK_MONOTONIC, the heartbeats' clock
	resident    func(pid int) int64                 // bytes of memory of a process
	ending      func(context.Context) (bool, error) // whether the service manager ends the service; nil: nobody is to be asked
	kernelKills func() uint64                       // processes of ours killed for want of memory
	makeRelease func(generation uint64, settings Settings, path string) (*release, error)
	inbox       chan message
	done        chan struct{} // closed when Run has returned
	began       time.Time
	epoch       uint64
	board       *scoreboard.Board
	rows        *rows.Table
	store       *store // nil: workers do not outlive this process
	past        *past  // nil: there is nobody to adopt, or all are adopted
	refused     error  // why the configuration was not taken, there being a past

	// Owned by Run's goroutine.

	phase         phase
	verdict       error // what Run will return
	pool          *pool
	current       *release // the generation that serves
	good          *release // what served before it and differs from it; nil: there is none, or it was returned to
	releases      []*release
	incarnations  map[uint64]*incarnation
	freeSeats     []int
	lastNumber    uint64 // of incarnations
	generations   uint64 // the last number given
	env           map[string]string
	job           *reload
	queued        []*reloadRequest
	lastReload    *control.Reload
	saved         *stateFile
	ledger        *ledger // nil: it could not be opened
	accounts      bookkeeping
	unsaved       bool           // something has changed
	vacated       []*incarnation // dead, and not known to be by the saved state
	restarting    bool           // this process ends for another
	agenda        []func()       // what follows from the message that is being handled
	epilogue      []func()       // what follows when the agenda is empty
	farewells     []*farewell
	lastJob       *reload // the reload that lastReload is about
	lastLine      string  // STATUS= as sent
	oomKills      uint64  // of kernelKills, those that are accounted for
	hastened      bool
	questions     map[uint64]*question
	lastQuestion  uint64
	chronicle     chronicle
	alarm         alarm     // for look; made by Run
	lookDue       time.Time // when the workers are judged next
	lifeDue       time.Time // when it is shown next that there is a supervisor
	books         books
	hooks         *hooks
	harvester     *harvester     // nil: connections do not outlive their workers
	own           *ownKeeper     // nil: what the harvester has in hand does not outlive us
	hands         map[uint64]int // by epoch: keepers of earlier supervisors, by pid, whose connections are being harvested
	unprotected   string         // why not
	balance       balance
	degraded      bool              // and the log knows
	strangers     map[int]*stranger // by pid
	lookingAround bool
	lookedAround  time.Time

	loading sync.Mutex     // held while the configuration is read
	looks   sync.WaitGroup // for strangers, and for a signal that was not heard

	scraper   *scraper
	balancing chan struct{} // holds a token while connections are being rebalanced
	trying    chan struct{} // holds a token while there is a trial
}

// poolName is the name of the one pool there is so far.
const poolName = "worker"

// New prepares a supervisor: it reads the configuration and opens the
// executable, but starts nothing. Its errors are those of Load, or say which
// setting or file cannot be used. If there are workers of an earlier supervisor
// to be adopted, they serve on as they are, and a configuration or an executable
// that cannot be used is told as a reload that has failed.
func New(conf Config) (*Supervisor, error) {
	if conf.Stderr == nil {
		conf.Stderr = os.Stderr
	}
	if conf.Log == nil {
		conf.Log = zap.NewNop()
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	l := &osLauncher{args: conf.Args, stderr: conf.Stderr, log: conf.Log, null: null}
	s, err := newSupervisor(conf, l, newRelease)
	if err != nil {
		return nil, err
	}
	s.ending = askEnding(conf)
	if err := s.enableHarvest(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func newSupervisor(conf Config, l launcher, makeRelease func(uint64, Settings, string) (*release, error)) (*Supervisor, error) {
	s := &Supervisor{
		conf: conf, log: conf.Log, launcher: l, makeRelease: makeRelease,
		clock: monotonic, resident: residentBytes, kernelKills: oomKills,
		inbox: make(chan message, 64), done: make(chan struct{}),
		pool:         &pool{name: poolName},
		incarnations: make(map[uint64]*incarnation), questions: make(map[uint64]*question),
		scraper: newScraper(), hooks: newHooks(conf.Log), balancing: make(chan struct{}, 1), trying: make(chan struct{}, 1),
	}
	p, err := readPast(conf.Stored, conf.Name)
	if err != nil && !errors.Is(err, errNoPast) {
		s.tell(EventLetGo, fmt.Sprintf("workers of the supervisor before finish their connections, new ones serve: %v", err), nil)
		s.log.Error("workers of the supervisor before are not adopted: they drain", zap.Error(err))
	}
	settings, loadErr := s.load(nil)
	if p == nil {
		if loadErr != nil {
			return nil, loadErr
		}
		err = s.begin(settings)
	} else {
		s.succeed(p, loadErr)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	s.openBooks()
	s.board.Epoch().Store(s.epoch)
	if conf.Notify != nil {
		s.openStore(conf.Notify)
	}
	return s, nil
}

// begin makes the first generation of a service, and its shared tables.
func (s *Supervisor) begin(settings Settings) error {
	first, err := s.makeRelease(1, settings, s.conf.Executable)
	if err != nil {
		return err
	}
	const seats = 4*MaxWorkers + 8
	if s.board, err = scoreboard.Create(seats); err != nil {
		first.close()
		return err
	}
	if s.rows, err = makeRows(); err != nil {
		first.close()
		s.board.Close()
		return err
	}
	if s.saved, err = newStateFile(); err != nil {
		first.close()
		s.board.Close()
		s.rows.Close()
		return err
	}
	s.epoch, s.generations = 1, 1
	s.current, s.releases = first, []*release{first}
	for i := seats - 1; i >= 0; i-- {
		s.freeSeats = append(s.freeSeats, i)
	}
	return nil
}

// succeed takes over what an earlier supervisor has left. The workers are
// adopted when Run begins.
func (s *Supervisor) succeed(p *past, refused error) {
	s.past, s.refused = p, refused
	s.saved, s.board, s.rows = p.file, p.board, p.rows
	p.file, p.board, p.rows = nil, nil, nil
	st := &p.state
	// One that died early has not come to save its epoch.
	s.epoch = max(st.Epoch, s.board.Epoch().Load()) + 1
	s.generations, s.lastNumber = st.Generation, max(st.Incarnation, p.lastNumber(s.board))
	s.lastQuestion = s.epoch << 32 // no answer to a question of before is taken for one of ours
	s.env, s.lastReload = st.Env, st.LastReload
	s.inheritBooks(st.Books)
	s.chronicle.kept = st.Events
	s.current, s.good = p.releases[st.Current], p.releases[st.Good]
	for _, saved := range st.Releases {
		if r := p.releases[saved.Generation]; r != nil {
			s.releases = append(s.releases, r)
		}
	}
}

// openStore has the manager keep what every next supervisor needs, and nothing
// else that it may still have.
func (s *Supervisor) openStore(m manager) {
	s.store = startStore(m, s.log)
	for _, sock := range s.conf.Sockets {
		if sock.Blocking {
			// Each start would make it so again, under workers that serve.
			s.log.Error("a listening socket was handed over blocking: workers that outlive a supervisor hang in accept at the next start: set NonBlocking=yes in the unit",
				zap.String("listener", sock.Name))
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && s.conf.StoreMax > 0 && files.Cur < uint64(s.conf.StoreMax+len(s.conf.Sockets)+startMargin) {
		s.log.Error("the service may store more descriptors than it may be started with (202/FDS): raise LimitNOFILE= of the unit, or lower FileDescriptorStoreMax=",
			zap.Uint64("limit", files.Cur), zap.Int("store", s.conf.StoreMax))
	}
	if need := Storage(s.current.settings); s.conf.StoreMax > 0 && need > s.conf.StoreMax {
		s.log.Warn("not all workers outlive their supervisor in a reload: raise FileDescriptorStoreMax= of the unit",
			zap.Int("limit", s.conf.StoreMax), zap.Int("want", need))
	}
	stale := make(map[string]bool)
	for _, d := range s.conf.Stored {
		name := d.Name[len(StorePrefix):]
		s.store.names[name] = true
		stale[name] = s.past == nil
	}
	for name, is := range stale {
		if is {
			s.store.remove(name)
		}
	}
	if s.past == nil {
		s.store.put(storedState, s.saved.fd)
		s.store.put(storedStats, s.board.FD())
		s.store.put(storedRows, s.rows.FD())
		s.storeRelease(s.current)
	}
	s.unsaved = true
}

// startMargin is how many descriptors a process has open when systemd starts it,
// beside those it is handed.
const startMargin = 64

func (s *Supervisor) storeRelease(r *release) {
	s.store.put(numbered(storedExe, r.generation), int(r.exe.file.Fd()))
	s.store.put(numbered(storedConfig, r.generation), int(r.config.Fd()))
}

// Close gives back what New has opened: the scoreboard, executables and
// configurations. It is called once, when Run has returned and nobody asks for
// Status any more.
func (s *Supervisor) Close() error {
	if s.past != nil { // Run was not called
		for _, r := range s.past.workers {
			r.close()
		}
		for _, fd := range s.past.ownKeepers {
			unix.Close(fd)
		}
	}
	if s.began.IsZero() { // Run was not called, which ends it
		s.endHarvest()
	}
	s.store.close()
	s.ledger.close()
	s.saved.close()
	for _, r := range s.releases {
		r.close()
	}
	for _, inc := range s.incarnations { // after a restart's signal
		if inc.keeper != nil {
			unix.Close(inc.keeper.pidfd)
		}
		if inc.inbox >= 0 {
			unix.Close(inc.inbox)
		}
	}
	return errors.Join(s.rows.Close(), s.board.Close())
}

// maxRowsPerWorker bounds the table of connections: 8 GiB of addresses, of
// which only what is used costs memory.
const maxRowsPerWorker = 1 << 18

// makeRows makes the table of connections: room for as many as the files that
// the largest number of workers may open.
func makeRows() (*rows.Table, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("getrlimit", err))
	}
	return rows.Create(int(min(limit.Max, maxRowsPerWorker)) * MaxWorkers)
}

// message is what reaches Run's goroutine; this is the closed list.
type message interface{ isMessage() }

type (
	incarnationGreeted struct {
		inc   *incarnation
		hello link.Hello
		inbox int // the supervisor's to close; -1: none
	}
	incarnationSaid struct {
		inc  *incarnation
		body link.Body
	}
	incarnationBehind struct{ inc *incarnation } // it may hear the rest now
	farewellTimeout   struct{ farewell *farewell }
	balancePlan       struct{ reply chan planned }
	happened          struct { // something for the events and the log
		kind, message string
		slot          *slot
	}
	balanced         struct{}
	incarnationBroke struct {
		inc *incarnation
		err error
	}
	incarnationExited struct {
		inc  *incarnation
		exit Exit
	}
	incarnationTimeout struct {
		inc  *incarnation
		turn int
	}
	slotTimeout struct {
		slot  *slot
		round int
	}
	released struct { // a reload's configuration has been read
		release *release
		env     map[string]string
		err     error
	}
	signalled    struct{ sig os.Signal }
	scaleRequest struct {
		n       int          // if add is 0
		add     int          // relative, by a signal
		verdict chan outcome // buffered for one
	}
	stopRequest   struct{ verdict chan error }
	statusRequest struct{ reply chan snapshot }
	gatherRequest struct {
		what  string
		to    whom
		reply chan posed
	}
	gatherDone          struct{ question *question }
	incarnationAnswered struct {
		inc    *incarnation
		answer link.Gathered
		fd     int // the supervisor's to close
	}
)

func (incarnationGreeted) isMessage()  {}
func (incarnationSaid) isMessage()     {}
func (incarnationBehind) isMessage()   {}
func (farewellTimeout) isMessage()     {}
func (balancePlan) isMessage()         {}
func (balanced) isMessage()            {}
func (happened) isMessage()            {}
func (incarnationBroke) isMessage()    {}
func (incarnationExited) isMessage()   {}
func (incarnationTimeout) isMessage()  {}
func (slotTimeout) isMessage()         {}
func (released) isMessage()            {}
func (signalled) isMessage()           {}
func (scaleRequest) isMessage()        {}
func (stopRequest) isMessage()         {}
func (statusRequest) isMessage()       {}
func (gatherRequest) isMessage()       {}
func (gatherDone) isMessage()          {}
func (incarnationAnswered) isMessage() {}
func (*reloadRequest) isMessage()      {}

// post sends a message that must not get lost while Run runs.
func (s *Supervisor) post(m message) {
	select {
	case s.inbox <- m:
	case <-s.done:
	}
}

// errNotRunning answers requests after the end.
var errNotRunning = errors.New("the supervisor has ended")

// ask sends an operator's message.
func (s *Supervisor) ask(ctx context.Context, m message) error {
	select {
	case s.inbox <- m:
		return nil
	case <-s.done:
		return errNotRunning
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Run starts the first generation and supervises until the service ends: by
// ctx, by a signal (SIGTERM, SIGINT), or by Stop. It returns nil after an
// orderly end and a *StartError if the first generation did not become
// ready; in both cases no worker is left. After the signal of a restart
// (SIGRTMIN+1) it returns nil at once, and the workers serve on until the next
// supervisor adopts them; without a service manager to keep what that needs
// they drain. It fails at once if the system has no timerfd to give: EMFILE,
// ENFILE, ENOMEM. It may be called once.
func (s *Supervisor) Run(ctx context.Context) error {
	alarm, err := newKernelAlarm()
	if err != nil {
		return err
	}
	s.alarm = alarm
	s.unmark()
	collected := signals.Watch()
	defer signals.Unwatch()
	go func() {
		for {
			select {
			case sig := <-collected:
				s.post(signalled{sig})
			case <-s.done:
				return
			}
		}
	}()
	return s.run(ctx)
}

func (s *Supervisor) run(ctx context.Context) error {
	if s.alarm == nil {
		s.alarm = timerAlarm{time.NewTimer(beatEvery)}
	}
	defer s.alarm.close()
	defer s.hooks.close()
	defer s.looks.Wait()
	defer s.endHarvest()
	defer s.balance.running.Wait()
	alive, cancel := context.WithCancel(context.Background())
	s.balance.ctx = alive
	defer cancel()
	defer close(s.done)
	s.began = time.Now()
	if s.ending != nil {
		s.looks.Go(func() { s.findUnheard(alive) })
	}
	s.oomKills = s.kernelKills()
	s.current.settings.apply()
	s.beat()
	if p := s.past; p != nil {
		s.past = nil
		s.adoptPast(p)
	} else {
		for range s.current.settings.Workers {
			sl := s.pool.add()
			sl.release = s.current
			s.occur(sl, fill)
		}
	}
	s.lookAround()
	s.extendTimeout(s.current.settings.StartTimeout)
	ending := ctx.Done()
	interval := s.current.settings.Health.judgeInterval()
	s.lookAgain(interval)
	s.showLife()
	s.setAlarm()
	for {
		s.settleAgenda()
		s.save()
		s.rebalanceAfterChange()
		if d := s.current.settings.Health.judgeInterval(); d != interval { // a reload has changed it
			interval = d
			s.lookAgain(d)
			s.setAlarm()
		}
		s.showStatus()
		s.watchHealth()
		if s.phase == stopping && len(s.incarnations) == 0 {
			s.store.clear()
			return s.verdict
		}
		select {
		case m := <-s.inbox:
			if s.handle(m) {
				return s.verdict
			}
		case <-s.alarm.rings():
			s.look()
			s.setAlarm()
		case <-ending:
			ending = nil
			s.stop()
		}
	}
}

// look does all that has to be done from time to time, at once, so that an idle
// supervisor wakes up as seldom as the most frequent of it needs: it shows that
// there is a supervisor, and judges the workers if that is due.
func (s *Supervisor) look() {
	s.showLife()
	for inc := range s.living() {
		s.checkSharing(inc)
	}
	if time.Since(s.lookedAround) >= beatEvery {
		s.lookAround()
	}
	if time.Until(s.lookDue) <= 0 {
		s.lookAgain(s.judgeWorkers())
	}
}

// showLife tells the keepers, the workers and systemd's watchdog that there is
// a supervisor.
func (s *Supervisor) showLife() {
	s.beat()
	next := beatEvery
	if d := s.conf.Notify.WatchdogInterval(); d > 0 {
		s.notified("watchdog", s.conf.Notify.Watchdog())
		next = min(next, d/2)
	}
	s.lifeDue = time.Now().Add(next)
}

// lookAgain has the workers judged in d.
func (s *Supervisor) lookAgain(d time.Duration) { s.lookDue = time.Now().Add(d) }

// setAlarm sets the alarm to the next look.
func (s *Supervisor) setAlarm() { s.alarm.set(min(time.Until(s.lookDue), time.Until(s.lifeDue))) }

// settleAgenda does what has followed from a message, and what follows from
// that.
func (s *Supervisor) settleAgenda() {
	for {
		var next func()
		switch {
		case len(s.agenda) > 0:
			next, s.agenda = s.agenda[0], s.agenda[1:]
		case len(s.epilogue) > 0:
			next, s.epilogue = s.epilogue[0], s.epilogue[1:]
		default:
			return
		}
		next()
		s.unsaved = true
	}
}

// handle applies a message; true ends Run at once.
func (s *Supervisor) handle(m message) (leave bool) {
	switch m := m.(type) {
	case incarnationGreeted:
		s.greeted(m.inc, m.hello, m.inbox)
	case incarnationSaid:
		s.heard(m.inc, m.body)
	case incarnationBehind:
		s.catchUp(m.inc)
	case farewellTimeout:
		s.endFarewell(m.farewell)
	case balancePlan:
		m.reply <- s.planBalance()
	case balanced:
		s.balance.underWay = false
	case happened:
		s.chronicled(m)
	case incarnationBroke:
		m.inc.reason = m.err.Error()
		s.happen(m.inc, unsettling)
	case incarnationKept:
		s.noteKeeper(m)
	case incarnationExited:
		s.exited(m.inc, m.exit)
	case keeperReaped:
		s.buried(m)
	case ownKeeperSafe:
		s.beat()
	case accountTold:
		s.closeAccount(m)
	case handsTaken:
		s.tookHands(m)
	case harvested:
		s.tellHarvest(m)
	case examineRequest:
		m.reply <- s.examine()
	case strangersSeen:
		s.noteStrangers(m)
	case incarnationTimeout:
		if m.turn == m.inc.turn {
			s.happen(m.inc, timeout)
		}
	case slotTimeout:
		if m.round == m.slot.round {
			s.occur(m.slot, due)
		}
	case released:
		s.beginRolling(m)
	case *reloadRequest:
		s.requestReload(m)
	case scaleRequest:
		s.scale(m)
	case stopRequest:
		s.stop()
		m.verdict <- nil
	case statusRequest:
		m.reply <- s.snapshot()
	case verb:
		s.obey(m)
	case eventsRequest:
		s.listenEvents(m)
	case eventsDone:
		s.unlistenEvents(m)
	case metricsRequest:
		m.reply <- s.figures(m)
	case readyRequest:
		m.reply <- s.readiness()
	case gatherRequest:
		s.pose(m)
	case incarnationAnswered:
		s.hearAnswer(m)
	case gatherDone:
		s.forgetQuestion(m.question)
	case signalled:
		return s.onSignal(m.sig)
	}
	return false
}

// heard sorts what a worker says into events.
func (s *Supervisor) heard(inc *incarnation, body link.Body) {
	switch m := body.(type) {
	case link.Ready:
		s.happen(inc, saidReady)
	case link.Draining:
		s.happen(inc, saidLeft)
	case link.Handed:
		inc.handed = m
		s.happen(inc, saidHanded)
	case link.Failed:
		inc.reason = m.Reason
	case link.Paused:
		s.tell(EventListenerPaused, "listener "+m.Listener+": "+m.Reason, inc)
		s.log.Warn("listener paused", append(inc.fields(), zap.String("listener", m.Listener), zap.String("reason", m.Reason))...)
		s.rearm()
	case link.Readiness:
		s.heardReadiness(inc, m)
	default:
		inc.reason = fmt.Sprintf("sent a %T, which is not a worker's to send", body)
		s.happen(inc, unsettling)
	}
}

func (s *Supervisor) dead(inc *incarnation, exit Exit) {
	// Several may be killed before the first death is told.
	oom := exit.Signal == unix.SIGKILL && inc.state != late && inc.state != overdue && s.kernelKills() > s.oomKills
	if oom {
		s.oomKills++
	}
	inc.exit = exit
	inc.exit.classify(inc.state, oom)
	if inc.reason != "" && strings.HasSuffix(inc.exit.Words, inc.reason) {
		inc.exit.Words = "" // it has said the same in two ways
	}
	if s.phase != booting {
		s.extendTimeout(s.current.settings.StopGrace + drainMargin)
	}
	s.happen(inc, exited)
}

// spawn starts a worker in the slot. One that cannot even be started is a
// start that failed.
func (s *Supervisor) spawn(sl *slot) {
	s.lastNumber++
	inc := &incarnation{number: s.lastNumber, slot: sl, release: sl.release, seatNo: -1, inbox: -1, born: time.Now()}
	sl.next = inc
	s.incarnations[inc.number] = inc
	var err error
	if n := len(s.freeSeats); n == 0 {
		err = errors.New("no seat is free: too many old workers still drain")
	} else {
		inc.seatNo = s.freeSeats[n-1]
		s.freeSeats = s.freeSeats[:n-1]
		inc.seat = s.board.Seat(inc.seatNo)
		inc.seat.Clear()
		inc.seat.Slot.Store(int64(sl.index))
		inc.seat.Generation.Store(inc.release.generation)
		inc.seat.Incarnation.Store(inc.number)
		s.beat()
		inc.process, err = s.launch(inc)
	}
	if err != nil {
		inc.process = nil
		s.agenda = append(s.agenda, func() { s.dead(inc, Exit{Err: err}) })
		return
	}
	inc.seat.PID.Store(int64(inc.pid()))
	s.log.Debug("worker spawned", inc.fields()...)
	s.arm(inc, s.startTimeout(inc))
}

func (s *Supervisor) launch(inc *incarnation) (process, error) {
	if s.harvester == nil && s.unprotected != "" {
		inc.protection = unprotectedAs + s.unprotected
	}
	o := s.orderFor(inc)
	inc.slot.predecessor = nil
	return s.launcher.launch(o)
}

// orderFor is what to launch, or to adopt.
func (s *Supervisor) orderFor(inc *incarnation) order {
	sl := inc.slot
	id := link.Identity{
		Contract: inc.release.speaks(), Control: s.conf.Control, Service: s.conf.Name, Pool: sl.pool.name, Slot: sl.index,
		Incarnation: inc.number, Generation: inc.release.generation, Epoch: s.epoch, Seat: inc.seatNo,
		Predecessor: sl.predecessor, Keeper: s.harvester != nil,
	}
	id.Listeners = s.listeners()
	return order{
		release: inc.release, identity: id, sockets: s.conf.Sockets, stats: s.board.FD(), rows: s.rows.FD(),
		greeted: func(h link.Hello, inbox int) {
			select {
			case s.inbox <- incarnationGreeted{inc, h, inbox}:
			case <-s.done:
				if inbox >= 0 {
					unix.Close(inbox)
				}
			}
		},
		kept: func(k link.Kept, pidfd int) {
			select {
			case s.inbox <- incarnationKept{inc, k, pidfd}:
			case <-s.done:
				if pidfd >= 0 {
					unix.Close(pidfd)
				}
			}
		},
		said:    func(b link.Body) { s.post(incarnationSaid{inc, b}) },
		unknown: func(err error) { s.post(incarnationBroke{inc, err}) },
		exited:  func(e Exit) { s.post(incarnationExited{inc, e}) },
		answered: func(g link.Gathered, fd int) {
			select {
			case s.inbox <- incarnationAnswered{inc, g, fd}:
			case <-s.done:
				answered{fd: fd}.close()
			}
		},
		keep: func(kind string, fd int) { s.store.put(numbered(kind, inc.number), fd) },
	}
}

// vacate takes a dead worker off the books. What the next supervisor would count
// it by is there until the state says that this one has: save.
func (s *Supervisor) vacate(inc *incarnation) {
	s.fallSilent(inc)
	s.cutHandover(inc)
	s.countDead(inc)
	delete(s.incarnations, inc.number)
	s.reclaim(inc.number, inc.fields())
	s.forgetPeer(inc)
	s.vacated, s.unsaved = append(s.vacated, inc), true
	s.sweepReleases()
}

// clearVacated gives away what the dead have had.
func (s *Supervisor) clearVacated() {
	for _, inc := range s.vacated {
		s.store.removeWorker(inc.number)
		if inc.seat != nil {
			inc.seat.Clear()
			s.freeSeats = append(s.freeSeats, inc.seatNo)
		}
	}
	clear(s.vacated)
	s.vacated = s.vacated[:0]
}

// sweepReleases closes what nobody will run any more.
func (s *Supervisor) sweepReleases() {
	s.releases = slices.DeleteFunc(s.releases, func(r *release) bool {
		if r == s.current || r == s.good || s.job != nil && (r == s.job.from || r == s.job.to) {
			return false
		}
		for _, sl := range s.pool.slots {
			if sl.release == r {
				return false
			}
		}
		for _, inc := range s.incarnations {
			if inc.release == r {
				return false
			}
		}
		s.store.remove(numbered(storedExe, r.generation))
		s.store.remove(numbered(storedConfig, r.generation))
		r.close()
		return true
	})
}

// living yields the workers that are not reaped yet, oldest first.
func (s *Supervisor) living() iter.Seq[*incarnation] {
	all := make([]*incarnation, 0, len(s.incarnations))
	for _, inc := range s.incarnations {
		if inc.process != nil {
			all = append(all, inc)
		}
	}
	slices.SortFunc(all, func(a, b *incarnation) int { return int(a.number) - int(b.number) })
	return slices.Values(all)
}

func (s *Supervisor) startTimeout(inc *incarnation) time.Duration {
	return inc.release.settings.StartTimeout
}

// progress looks whether the first generation is complete.
func (s *Supervisor) progress() {
	if s.phase != booting {
		return
	}
	s.extendTimeout(s.current.settings.StartTimeout)
	for _, sl := range s.pool.slots {
		if !sl.hasWorker() {
			return
		}
	}
	s.phase = running
	s.tell(EventServiceReady, "every worker is ready", nil)
	s.log.Info("service ready", zap.Int("workers", len(s.pool.slots)), zap.Duration("took", time.Since(s.began)))
	s.lastLine = s.statusLine()
	s.notified("ready", s.conf.Notify.Ready(s.lastLine))
	if len(s.queued) > 0 {
		requests := s.queued
		s.queued = nil
		s.beginReload(requests)
	}
}

// judgeStart ends the service if its first generation cannot become ready.
func (s *Supervisor) judgeStart(sl *slot) {
	if sl.failures < s.current.settings.StartAttempts && !sl.tooLate {
		return
	}
	s.verdict = &StartError{Worker: sl.index, Reason: sl.lastDeath}
	s.log.Error("service cannot start", append(sl.fields(), zap.String("status", sl.lastDeath))...)
	s.notified("failed", s.conf.Notify.Status("cannot start: "+s.verdict.Error()))
	s.wind()
}

// Scale implements control.Backend: it sets the number of workers. It
// returns what those that leave have done with their connections, when they
// have handed them over or have had five seconds for it. It fails with
// control.ErrInvalid if the pool is unknown or the number is not in
// 1..MaxWorkers, and if a reload is under way. The number holds until the
// next reload or restart. Any goroutine may call it.
func (s *Supervisor) Scale(ctx context.Context, r control.ScaleRequest) ([]control.Handover, error) {
	if err := checkPool(r.Pool); err != nil {
		return nil, err
	}
	m := scaleRequest{n: r.N, verdict: make(chan outcome, 1)}
	return s.outcomeOf(ctx, m, m.verdict)
}

func checkPool(name string) error {
	if name != "" && name != poolName {
		return fmt.Errorf("%w: no pool %q, there is %q", control.ErrInvalid, name, poolName)
	}
	return nil
}

func (s *Supervisor) scale(m scaleRequest) {
	givers, err := s.resize(m)
	if err != nil {
		m.verdict <- outcome{err: err}
		return
	}
	s.bid(givers, func(all []control.Handover) { m.verdict <- outcome{handovers: all} })
}

// resize gives the pool another number of slots. It returns the workers that
// leave.
func (s *Supervisor) resize(m scaleRequest) (givers []*incarnation, err error) {
	n := m.n
	if m.add != 0 {
		n = len(s.pool.slots) + m.add
	}
	switch {
	case n < 1 || n > MaxWorkers:
		return nil, fmt.Errorf("%w: %d workers, want 1 to %d", control.ErrInvalid, n, MaxWorkers)
	case s.phase != running:
		return nil, errors.New("the service starts or stops: not scaled")
	case s.job != nil:
		return nil, errors.New("a reload is under way: not scaled")
	case s.onlyHeld(n):
		return nil, errOnlyHeld
	}
	s.tell(EventScaled, fmt.Sprintf("from %d to %d workers", len(s.pool.slots), n), nil)
	s.log.Info("scaling", zap.Int("from", len(s.pool.slots)), zap.Int("to", n))
	for len(s.pool.slots) > n {
		sl := s.pool.removeLast()
		givers = append(givers, sl.servers()...)
		s.occur(sl, dismiss)
	}
	for len(s.pool.slots) < n {
		sl := s.pool.add()
		sl.release = s.current
		s.occur(sl, fill)
	}
	return givers, nil
}

// Stop implements control.Backend: it begins the orderly end of the service.
// Any goroutine may call it.
func (s *Supervisor) Stop(ctx context.Context) error {
	m := stopRequest{verdict: make(chan error, 1)}
	if err := s.ask(ctx, m); err != nil {
		return err
	}
	select {
	case err := <-m.verdict:
		return err
	case <-s.done:
		return nil
	}
}

// stop begins the end of the service; asked again, it hastens it.
func (s *Supervisor) stop() {
	if s.phase != stopping {
		s.mark()
		s.tell(EventServiceStopping, "asked for", nil)
		s.log.Info("service stops", zap.Duration("grace", s.current.settings.StopGrace))
		s.notified("stopping", s.conf.Notify.Stopping("stopping"))
		s.wind()
		return
	}
	if s.hastened {
		return
	}
	s.hastened = true
	s.log.Info("stop hastened")
	for inc := range s.living() {
		s.happen(inc, hasten)
	}
}

// wind has everybody leave.
func (s *Supervisor) wind() {
	s.phase = stopping
	grace := s.current.settings.StopGrace
	s.extendTimeout(grace + drainMargin)
	if s.job != nil {
		s.finish(errStopping)
	}
	for _, q := range s.queued {
		q.judge(errStopping)
	}
	s.queued = nil
	for _, sl := range s.pool.slots {
		s.occur(sl, dismiss)
	}
	for inc := range s.living() {
		if inc.state == draining {
			inc.terms = terms{prompt: true, grace: min(grace, inc.terms.grace)}
			s.happen(inc, retire)
		}
	}
	for _, f := range slices.Clone(s.farewells) {
		s.endFarewell(f)
	}
}

// leave hands over to the next supervisor: the workers serve on. Where nobody
// keeps what that one needs, they are told to drain.
func (s *Supervisor) leave() {
	s.notified("stopping", s.conf.Notify.Stopping("restarting"))
	s.restarting, s.unsaved = true, true
	s.save()
	if s.store != nil {
		s.log.Info("supervisor leaves, its workers serve on", zap.Int("workers", len(s.incarnations)))
		if !s.store.flush(flushTimeout) {
			s.log.Warn("service manager has not taken all that the next supervisor needs: what it lacks drains")
		}
		return
	}
	s.log.Info("supervisor leaves, its workers drain")
	for inc := range s.living() {
		if inc.state == ready {
			s.send(inc, link.Drain{Grace: inc.release.settings.Grace})
		} else if inc.state != draining {
			s.kill(inc)
		}
	}
}

func (s *Supervisor) notified(what string, err error) {
	if err != nil {
		s.log.Warn("systemd not notified", zap.String("what", what), zap.Error(err))
	}
}

// extendTimeout asks systemd for more time, because something went on.
func (s *Supervisor) extendTimeout(d time.Duration) {
	if s.phase == running && s.job == nil {
		return
	}
	s.notified("progress", s.conf.Notify.ExtendTimeout(d+extendMargin))
}

// extendMargin is added to what a step may take before systemd loses its
// patience.
const extendMargin = 5 * time.Second

// markName is the file in the runtime directory that says the service was
// ended in order.
const markName = "stopped"

func (s *Supervisor) mark() {
	if s.conf.RuntimeDir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(s.conf.RuntimeDir, markName), nil, 0o644); err != nil {
		s.log.Warn("orderly stop not marked", zap.Error(err))
	}
}

func (s *Supervisor) unmark() {
	if s.conf.RuntimeDir == "" {
		return
	}
	if err := os.Remove(filepath.Join(s.conf.RuntimeDir, markName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("mark of the last stop not removed", zap.Error(err))
	}
}
