package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// statusTimeout bounds how long a caller waits for the supervisor's
// goroutine.
const statusTimeout = 5 * time.Second

// snapshot is what only the supervisor's goroutine knows; the figures of the
// scoreboard are read afterwards, beside it.
type snapshot struct {
	status control.Status
	seats  []seated   // as Pools[0].Workers
	exe    executable // of Release
	good   executable // of LastGood, if there is one
}

type seated struct {
	seat   *scoreboard.Seat
	number uint64
}

// Status implements control.Backend. It does not ask the workers, so one
// that hangs is shown with its last figures. It fails if the supervisor does
// not answer within 5 s. Any goroutine may call it.
func (s *Supervisor) Status(ctx context.Context) (control.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusTimeout, errors.New("the supervisor does not answer"))
	defer cancel()
	m := statusRequest{reply: make(chan snapshot, 1)}
	if err := s.ask(ctx, m); err != nil {
		return control.Status{}, err
	}
	select {
	case snap := <-m.reply:
		return snap.fill(), nil
	case <-s.done:
		return control.Status{}, errNotRunning
	case <-ctx.Done():
		return control.Status{}, context.Cause(ctx)
	}
}

func (s *Supervisor) snapshot() snapshot {
	st := control.Status{
		Service: s.conf.Name, Version: s.conf.Version, PID: os.Getpid(),
		Generation: s.current.generation, UptimeMS: time.Since(s.began).Milliseconds(),
		LastReload: s.lastReload, Listeners: []control.Listener{},
	}
	st.State, st.Reason = s.judge()
	st.Release, st.Certificates = s.current.shown(), s.current.settings.Certificates
	snap := snapshot{exe: s.current.exe}
	if s.good != nil {
		good := s.good.shown()
		st.LastGood, snap.good = &good, s.good.exe
	}
	st.Strangers = s.shownStrangers()
	st.Kept, st.Torn = s.books.kept, s.books.tornInAll()
	for _, sock := range s.conf.Sockets {
		st.Listeners = append(st.Listeners, control.Listener{
			Name: sock.Name, Address: sock.Address, Serve: s.conf.Serve[sock.Name], Inherited: sock.Inherited,
		})
	}
	for _, sock := range s.conf.Monitor {
		st.Listeners = append(st.Listeners, control.Listener{Name: sock.Name, Address: sock.Address, Serve: "monitoring", Inherited: sock.Inherited})
	}
	p := control.Pool{Name: s.pool.name, Want: len(s.pool.slots), Workers: []control.Worker{}}
	shown := make(map[*incarnation]bool)
	show := func(sl *slot, inc *incarnation) {
		shown[inc] = true
		p.Workers = append(p.Workers, s.describe(sl, inc))
		snap.seats = append(snap.seats, seated{inc.seat, inc.number})
	}
	for _, sl := range s.pool.slots {
		p.Respawns += sl.respawns
		if sl.accepts() {
			p.Ready++
		}
		for _, inc := range []*incarnation{sl.current, sl.next} {
			if inc != nil {
				show(sl, inc)
			}
		}
		if sl.current == nil && sl.next == nil {
			w := control.Worker{Slot: sl.index, Generation: sl.release.generation, State: sl.place.String(), HeartbeatAgeMS: -1,
				Respawns: sl.respawns, StartFailures: sl.startFailures, LastDeath: sl.lastDeath}
			if sl.place == backingOff {
				w.RetryMS = max(0, time.Until(sl.retryAt).Milliseconds())
			}
			p.Workers = append(p.Workers, w)
			snap.seats = append(snap.seats, seated{})
		}
		for _, inc := range sl.draining {
			show(sl, inc)
		}
	}
	// Those whose slot is gone.
	for inc := range s.living() {
		if !shown[inc] {
			show(inc.slot, inc)
		}
	}
	st.Pools = []control.Pool{p}
	snap.status = st
	return snap
}

func (s *Supervisor) describe(sl *slot, inc *incarnation) control.Worker {
	keeper := 0
	if inc.keeper != nil {
		keeper = inc.keeper.pid
	}
	return control.Worker{
		Slot: sl.index, PID: inc.pid(), Incarnation: inc.number, Generation: inc.release.generation, Build: inc.build,
		State: inc.state.String(), UptimeMS: time.Since(inc.born).Milliseconds(), HeartbeatAgeMS: -1,
		Respawns: sl.respawns, StartFailures: sl.startFailures, LastDeath: sl.lastDeath, Unready: inc.unready, Protection: inc.protection, KeeperPID: keeper,
	}
}

// fill adds the figures of the scoreboard and of the process table.
func (snap snapshot) fill() control.Status {
	st := snap.status
	st.Release.Replaced = snap.exe.replaced()
	if st.LastGood != nil {
		good := *st.LastGood
		good.Replaced = snap.good.replaced()
		st.LastGood = &good
	}
	workers := st.Pools[0].Workers
	now := monotonic()
	for i := range workers {
		w, seat := &workers[i], snap.seats[i].seat
		if seat == nil {
			continue
		}
		figures := figuresOf(*w, seat, now)
		// The seat may have got another owner meanwhile.
		if seat.Incarnation.Load() == snap.seats[i].number {
			*w = figures
			st.Connections += w.Connections
		}
	}
	return st
}

// figuresOf adds the figures of a seat and of the process table to what is known
// of a worker.
func figuresOf(w control.Worker, seat *scoreboard.Seat, now time.Duration) control.Worker {
	w.Connections = seat.Connections.Load()
	w.Accepts = seat.Accepts.Load()
	w.Messages = seat.Messages.Load()
	w.BytesIn = seat.BytesIn.Load()
	w.BytesOut = seat.BytesOut.Load()
	w.SendFailures = seat.SendFailures.Load()
	w.Panics = seat.Panics.Load()
	w.Timers = seat.Timers.Load()
	w.QueueBytes = seat.QueueBytes.Load()
	w.Given = seat.HandoffsGiven.Load()
	w.Taken = seat.HandoffsTaken.Load()
	w.Refused = seat.HandoffsRefused.Load()
	w.Thawed = seat.HandoffsThawed.Load()
	w.LongestStallUS = seat.HandoffMaxNS.Load() / 1000
	if beat := seat.Heartbeat.Load(); beat != 0 {
		w.HeartbeatAgeMS = max(0, (now - time.Duration(beat)).Milliseconds())
	}
	if listener, _, since, ok := seat.Handler(); ok {
		w.Handler, w.HandlerMS = listener, max(0, (now-time.Duration(since)).Milliseconds())
	}
	w.RSSBytes = residentBytes(w.PID)
	w.CPUMS = int64(cpuSeconds(w.PID) * 1000)
	return w
}

// judge says how the service is and, if it is not well, why.
func (s *Supervisor) judge() (state, reason string) {
	switch {
	case s.phase == booting:
		return control.StateStarting, s.absent()
	case s.phase == stopping:
		return control.StateStopping, ""
	case s.job != nil:
		if s.job.failure != nil {
			return control.StateReloading, "rolling back: " + s.job.failure.Error()
		}
		return control.StateReloading, ""
	}
	if why := s.ailing(); why != "" {
		return control.StateDegraded, why
	}
	return control.StateServing, ""
}

// absent names the first slot that has no ready worker; empty if all have.
func (s *Supervisor) absent() string {
	for _, sl := range s.pool.slots {
		switch {
		case !sl.hasWorker() && sl.lastDeath != "":
			return fmt.Sprintf("worker %d %s: %s", sl.index, sl.place, sl.lastDeath)
		case !sl.hasWorker():
			return fmt.Sprintf("worker %d %s", sl.index, sl.place)
		}
	}
	return ""
}

// ailing names the first slot that has lost its worker, or whose worker is
// not of the generation that serves; empty if all are well. A slot that is
// filled for the first time is well.
func (s *Supervisor) ailing() string {
	for _, sl := range s.pool.slots {
		switch {
		case sl.place != held && sl.current != nil && sl.current.state == hung:
			return fmt.Sprintf("worker %d hangs: %s", sl.index, sl.current.reason)
		case sl.place != held && !sl.hasWorker() && sl.lastDeath != "":
			return fmt.Sprintf("worker %d %s: %s", sl.index, sl.place, sl.lastDeath)
		case sl.place == held, sl.current == nil:
			// empty because somebody wants it so, or being filled
		case sl.current.release != s.current && s.job == nil:
			return fmt.Sprintf("worker %d serves generation %d, not %d: %s", sl.index, sl.current.release.generation, s.current.generation, sl.lastDeath)
		}
	}
	return ""
}

// statusLine is what systemctl status shows.
func (s *Supervisor) statusLine() string {
	up, connections := 0, int64(0)
	for _, sl := range s.pool.slots {
		if sl.accepts() {
			up++
		}
	}
	for _, inc := range s.incarnations {
		if inc.seat != nil {
			connections += inc.seat.Connections.Load()
		}
	}
	line := fmt.Sprintf("%d/%d ready, generation %d, %d connections", up, len(s.pool.slots), s.current.generation, connections)
	state, reason := s.judge()
	if state != control.StateServing {
		line = state + ": " + line
	}
	if reason != "" {
		line += "; " + reason
	}
	if r := s.lastReload; r != nil && !r.OK && s.job == nil {
		line += fmt.Sprintf("; reload to generation %d failed: %s", r.Generation, r.Reason)
	}
	return line
}

// showStatus tells systemd when the line has changed.
func (s *Supervisor) showStatus() {
	if s.conf.Notify == nil || s.verdict != nil {
		return
	}
	if line := s.statusLine(); line != s.lastLine {
		s.lastLine = line
		s.notified("status", s.conf.Notify.Status(line))
	}
}

// monotonic is CLOCK_MONOTONIC, the clock of the workers' heartbeats. The Go
// scheduler is not told of the call, which wakes its monitor.
func monotonic() time.Duration {
	var ts unix.Timespec
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0) // cannot fail
	return time.Duration(ts.Nano())
}

// residentBytes returns the resident set of a process, 0 if it is gone.
func residentBytes(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// oomKills returns how many processes of our cgroup the kernel has killed
// for want of memory, 0 where it does not say.
func oomKills() uint64 {
	dir, err := ownCgroup()
	if err != nil {
		return 0
	}
	text, err := os.ReadFile(dir + "/memory.events")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text)
	i := slices.IndexFunc(fields, func(f []byte) bool { return string(f) == "oom_kill" })
	if i < 0 || i+1 >= len(fields) {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[i+1]), 10, 64)
	return n
}
