package supervisor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// Leftovers is what is left of a service whose supervisor is gone.
type Leftovers struct {
	// Status is as far as the workers' scoreboard tells it; the state is
	// control.StateOrphaned.
	Status control.Status
	// Silent is how long ago the supervisor gave its last sign of life, which
	// it gives every ten seconds; negative: that cannot be read.
	Silent time.Duration
	// Unit is the systemd unit that the workers are of; empty: of none.
	Unit string
	// Hidden are the processes that look like workers of the service and may not
	// be looked at: that wants root, or the service's user.
	Hidden []int
}

// FindLeftovers looks for living workers of a service in the process table:
// those that were told at their start that their supervisor is asked at the
// address. It is for whoever has asked there in vain. What it finds is shown as
// control.Status.Pools; it finds nothing if there is none and none hidden. It
// fails if the process table cannot be read.
func FindLeftovers(service, address string) (Leftovers, error) {
	left := Leftovers{Silent: -1, Status: control.Status{Service: service, State: control.StateOrphaned, Listeners: []control.Listener{}}}
	pids, err := processes("/proc")
	if err != nil {
		return left, fmt.Errorf("supervisor: leftovers: %w", err)
	}
	p := control.Pool{Name: poolName, Workers: []control.Worker{}}
	listeners := map[string]control.Listener{}
	for _, pid := range pids {
		id, err := link.IdentityOf(pid)
		switch {
		case errors.Is(err, fs.ErrPermission) && titled(pid, service) && unitOf(pid) == service+".service":
			left.Hidden = append(left.Hidden, pid)
			continue
		case err != nil, id.Service != service, namedKeeper(pid), isZombie(pid):
			continue
		case id.Control == "" && unitOf(pid) != service+".service", id.Control != "" && id.Control != address:
			continue // one of contract 1 does not know where it is asked
		}
		w := control.Worker{Slot: id.Slot, PID: pid, Incarnation: id.Incarnation, Generation: id.Generation, State: "unknown", HeartbeatAgeMS: -1}
		w = left.look(w, id)
		p.Workers = append(p.Workers, w)
		left.Unit = cmp.Or(left.Unit, unitOf(pid))
		left.Status.Connections += w.Connections
		left.Status.Generation = max(left.Status.Generation, w.Generation)
		if w.State == link.StateServing.String() {
			p.Ready++
		}
		for _, l := range id.Listeners {
			listeners[l.Name] = control.Listener{Name: l.Name, Address: l.Address, Inherited: left.Unit != ""}
		}
	}
	slices.SortFunc(p.Workers, func(a, b control.Worker) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(b.Incarnation, a.Incarnation))
	})
	slots := make(map[int]bool)
	for _, w := range p.Workers {
		slots[w.Slot] = true
	}
	p.Want = len(slots)
	for _, l := range listeners {
		left.Status.Listeners = append(left.Status.Listeners, l)
	}
	slices.SortFunc(left.Status.Listeners, func(a, b control.Listener) int { return cmp.Compare(a.Name, b.Name) })
	left.Status.Pools = []control.Pool{p}
	return left, nil
}

// look fills in what a worker's seat says.
func (left *Leftovers) look(w control.Worker, id link.Identity) control.Worker {
	// Its own descriptor of the scoreboard, opened anew and to be read only.
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", w.PID, link.FDStats), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return w
	}
	board, err := scoreboard.Look(fd)
	if err != nil {
		unix.Close(fd)
		return w
	}
	defer board.Close()
	if id.Seat >= board.Seats() || board.Seat(id.Seat).Incarnation.Load() != id.Incarnation {
		return w
	}
	seat, now := board.Seat(id.Seat), monotonic()
	if beat := time.Duration(board.SupervisorBeat().Load()); beat != 0 {
		if silent := max(0, now-beat); left.Silent < 0 || silent < left.Silent {
			left.Silent = silent
		}
	}
	w = figuresOf(w, seat, now)
	w.State = link.State(seat.State.Load()).String()
	w.UptimeMS = uptime(w.PID).Milliseconds()
	w.Protection = unprotectedAs + "its keeper is gone"
	if keeper := int(seat.KeeperPID.Load()); keeper > 0 && namedKeeper(keeper) {
		w.Protection, w.KeeperPID = protected, keeper
	}
	return w
}

// processes lists the process table below root.
func processes(root string) ([]int, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// titled says whether a process has the title of a worker of the service.
func titled(pid int, service string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasPrefix(string(text), service+": "+poolName+" ")
}

// namedKeeper says whether a process has a keeper's name.
func namedKeeper(pid int) bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.HasPrefix(string(name), keeperName)
}

// keeperName begins the names of keepers.
const keeperName = "keeper "

// unitOf returns the systemd service whose cgroup a process is in, empty if it
// is in none.
func unitOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if ok && strings.HasSuffix(path, ".service") {
			return filepath.Base(path)
		}
	}
	return ""
}

// uptime is for how long a process has been there, 0 if it is gone.
func uptime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc_pid_stat(5): starttime is field 22, in ticks since boot.
	_, rest, ok := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // cannot fail
	return max(0, time.Duration(now.Nano())-time.Duration(ticks)*time.Second/clockTicks)
}
