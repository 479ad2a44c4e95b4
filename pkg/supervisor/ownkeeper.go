package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/keeper"
)

// The supervisor has a keeper as its workers have. What its harvester takes out
// of the keepers of dead workers is thereby safe at once, whether or not there
// is a worker to give it to: when the supervisor dies, the next one finds the
// rows that the harvester owned, and their connections in its keeper, and
// harvests both like a dead worker's. It has one only where there is a service
// manager that starts the next one and keeps the pidfd.
//
// Its keeper has the supervisor's other descriptors too, so until the next
// supervisor has killed it nobody sees the end of the dead one's pipes and
// sockets; who dials its control socket meanwhile is not accepted.

// ownKeeper is the keeper of this process.
type ownKeeper struct {
	kept
	words []byte          // a page of memory that the keeper shares: two words of 8 bytes
	safe  <-chan struct{} // closed when the next supervisor would find it
}

const (
	// orphanTTL is how long the keeper waits for the next supervisor: longer
	// than any restart.
	orphanTTL = 120 * time.Second

	// unfoundTTL is how long it waits for one that would not find it: nothing
	// is entrusted to it yet.
	unfoundTTL = 3 * time.Second
)

// beat is when the keeper was last shown that its supervisor lives. It is not
// the one of the scoreboard, which the next supervisor writes too: one that
// nobody finds is to end.
func (k *ownKeeper) beat() *atomic.Int64 { return (*atomic.Int64)(unsafe.Pointer(&k.words[8])) }

// showLife shows the keeper that its supervisor lives.
func (k *ownKeeper) showLife(now time.Duration) {
	select {
	case <-k.safe:
	default:
		now -= orphanTTL - unfoundTTL
	}
	k.beat().Store(int64(now))
}

// startOwnKeeper makes the keeper of this process. The error is keeper.Start's,
// or says which system call was refused.
func startOwnKeeper(name string, now time.Duration) (*ownKeeper, error) {
	words, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("supervisor: keeper: %w", os.NewSyscallError("mmap", err))
	}
	k := &ownKeeper{words: words}
	k.showLife(now)
	title := "keeper " + name
	made, err := keeper.Start(keeper.Options{
		Name: title[:min(len(title), keeper.MaxName)], Released: (*atomic.Uint32)(unsafe.Pointer(&words[0])),
		SupervisorBeat: k.beat(), OrphanTTL: orphanTTL,
	})
	if err != nil {
		unix.Munmap(words)
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	k.kept = kept{pid: made.PID, pidfd: made.PIDFD}
	return k, nil
}

// close ends the keeper, or leaves it for the next supervisor.
func (k *ownKeeper) close(leave bool, log *zap.Logger) {
	if leave {
		unix.Close(k.pidfd)
	} else {
		k.end(log)
	}
	unix.Munmap(k.words)
}

// protectSelf gives this process its keeper. It returns a channel that is closed
// when the next supervisor would find it; nil: there is none to be found.
func (s *Supervisor) protectSelf() (safe <-chan struct{}) {
	if s.store == nil {
		return nil // nobody comes after us
	}
	var err error
	if s.own, err = startOwnKeeper(s.conf.Name, s.clock()); err != nil {
		s.log.Warn("connections that wait for a worker do not outlive the supervisor", zap.Error(err))
		return nil
	}
	s.store.put(numbered(storedOwnKeeper, s.epoch), s.own.pidfd)
	safe = s.store.whenSaid(flushTimeout)
	s.own.safe = safe
	go func() {
		t := time.NewTimer(flushTimeout)
		defer t.Stop()
		select {
		case <-safe:
			s.post(ownKeeperSafe{})
		case <-t.C:
		case <-s.done:
		}
	}()
	return safe
}

// ownKeeperSafe is told that the next supervisor would find our keeper.
type ownKeeperSafe struct{}

func (ownKeeperSafe) isMessage() {}

// awaitOwnKeeper returns when the next supervisor would find our keeper, or
// after a while. What is taken from then on it may have to keep.
func (s *Supervisor) awaitOwnKeeper() {
	if s.own == nil {
		return
	}
	t := time.NewTimer(flushTimeout)
	defer t.Stop()
	select {
	case <-s.own.safe:
		s.beat()
	case <-t.C:
	}
}

// handsTaken is told that the connections which an earlier supervisor had in
// its hands are in ours.
type handsTaken struct{ epoch uint64 }

func (handsTaken) isMessage() {}

// inheritHands harvests what the harvesters of earlier supervisors owned.
func (s *Supervisor) inheritHands(p *past) {
	s.hands = make(map[uint64]int)
	for epoch, pidfd := range p.ownKeepers {
		failpoint.Here("adopt.inherit")
		k := &kept{pid: pidOf(pidfd), pidfd: pidfd}
		if s.harvester == nil {
			k.end(s.log)
			s.tookHands(handsTaken{epoch})
			continue
		}
		s.hands[epoch] = k.pid
		number := harvesterNumber(epoch)
		s.harvester.start(&harvest{
			number: number, keeper: k, connections: true, account: s.openAccount(number),
			patience: s.current.settings.StartTimeout + harvestMargin,
			reaped:   func(int) { s.post(handsTaken{epoch}) },
			done: func(r harvestResult) {
				s.post(harvested{harvestObituary{number: number, fields: []zap.Field{zap.Uint64("incarnation", number)}}, r})
			},
		})
	}
	for epoch := p.state.Epoch; epoch < s.epoch; epoch++ {
		if _, ok := p.ownKeepers[epoch]; !ok {
			s.giveUpHands(epoch)
		}
	}
	p.ownKeepers = nil
}

func (s *Supervisor) tookHands(m handsTaken) {
	delete(s.hands, m.epoch)
	s.store.remove(numbered(storedOwnKeeper, m.epoch))
	s.giveUpHands(m.epoch)
}

// giveUpHands frees the rows of connections that are not to be had any more.
func (s *Supervisor) giveUpHands(epoch uint64) {
	number := harvesterNumber(epoch)
	s.reclaim(number, []zap.Field{zap.Uint64("incarnation", number)})
}

// pidOf returns the number of the process that a pidfd names; -1: it is gone,
// or the number is not known here.
func pidOf(pidfd int) int {
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return -1
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
				return pid
			}
		}
	}
	return -1
}
