package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// Workers that have sent an inbox with their Hello are peers: each is told of
// all others, so that connections can go from any to any without us. A worker
// without one is not told and not told of.
//
// What a worker was told is kept beside what is true. A message that finds no
// room leaves the worker behind; it is caught up a little later, so that in
// the end everybody knows what is true, in the order in which it matters:
// first who is there, then who is gone, then whatever else was said.

// checkInbox says whether fd can be the sending end of an inbox.
func checkInbox(fd int) error {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("its inbox: %w", os.NewSyscallError("getsockopt", err))
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("its inbox: %w", os.NewSyscallError("getsockopt", err))
	}
	if typ != unix.SOCK_SEQPACKET || domain != unix.AF_UNIX {
		return fmt.Errorf("its inbox is a socket of family %d and type %d, want AF_UNIX and SOCK_SEQPACKET", domain, typ)
	}
	return nil
}

// isPeer reports whether the worker can give and take connections.
func (inc *incarnation) isPeer() bool { return inc.inbox >= 0 }

// takes reports whether the worker may be given connections: it was told to
// accept, and neither hangs nor leaves.
func (inc *incarnation) takes() bool { return inc.isPeer() && inc.state == ready && !inc.dead }

// asPeer is what the others are told of a worker.
func (inc *incarnation) asPeer() link.Peer {
	return link.Peer{
		Incarnation: inc.number, Pool: inc.slot.pool.name, Slot: inc.slot.index,
		Generation: inc.release.generation, Seat: inc.seatNo, Serving: inc.takes(),
	}
}

// listens reports whether a worker is to know the others: those that are
// being killed read no more.
func (inc *incarnation) listens() bool {
	return inc.isPeer() && !inc.dead && (inc.state == unready || inc.state == ready || inc.state == draining)
}

// greeted notes a worker's inbox.
func (s *Supervisor) greeted(inc *incarnation, m link.Hello, inbox int) {
	if inbox >= 0 && inc.state == spawned {
		if err := checkInbox(inbox); err != nil {
			unix.Close(inbox)
			inc.reason = err.Error()
			s.happen(inc, unsettling)
			return
		}
		s.store.put(numbered(storedInbox, inc.number), inbox)
		inc.inbox, inbox = inbox, -1
	}
	if inbox >= 0 {
		unix.Close(inbox) // said twice, or too late
	}
	inc.build = m.Build
	inc.release.build = m.Build
	if !link.Speaks(m.Contract) || m.Incarnation != inc.number {
		inc.reason = fmt.Sprintf("said hello as incarnation %d of contract %d, want %d of %d or %d", m.Incarnation, m.Contract, inc.number, link.Contract-1, link.Contract)
		s.happen(inc, unsettling)
		return
	}
	inc.contract, inc.release.contract = m.Contract, m.Contract
	s.happen(inc, saidHello)
}

// tellPeers has the workers know one another as they are, after the state of
// one has changed.
func (s *Supervisor) tellPeers(inc *incarnation) {
	if !inc.isPeer() {
		return
	}
	s.introduce(inc)
	fresh := inc.told == nil && inc.listens()
	for other := range s.living() {
		s.acquaint(other, inc)
		if fresh {
			s.acquaint(inc, other)
		}
	}
}

// acquaint tells one worker of another, unless it knows.
func (s *Supervisor) acquaint(inc, other *incarnation) {
	if inc == other || inc.behind || !inc.listens() || !other.isPeer() || inc.slot.pool != other.slot.pool {
		return
	}
	m := other.asPeer()
	known, met := inc.told[other.number]
	if met && known == m {
		return
	}
	var err error
	if met {
		err = inc.process.Send(m)
	} else {
		err = inc.process.SendFile(m, other.inbox)
	}
	if s.wasHeard(inc, m, err) {
		if inc.told == nil {
			inc.told = make(map[uint64]link.Peer)
		}
		inc.told[other.number] = m
	}
}

// partWith tells a worker that another is dead.
func (s *Supervisor) partWith(inc *incarnation, number uint64) {
	if _, met := inc.told[number]; !met || inc.behind || !inc.listens() {
		return
	}
	m := link.PeerGone{Incarnation: number}
	if s.wasHeard(inc, m, inc.process.Send(m)) {
		delete(inc.told, number)
	}
}

// wasHeard judges the sending of a message about a peer. A worker that cannot
// be told at all is about to be reaped.
func (s *Supervisor) wasHeard(inc *incarnation, m link.Body, err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, link.ErrBusy):
		s.fallBehind(inc)
	default:
		s.log.Debug("worker not reached", append(inc.fields(), zap.String("message", fmt.Sprintf("%T", m)), zap.Error(err))...)
	}
	return false
}

// forgetPeer has everybody part with a dead worker. It is done before the
// dead one's seat is given away; whoever is behind finds another incarnation
// there.
func (s *Supervisor) forgetPeer(inc *incarnation) {
	if !inc.isPeer() {
		return
	}
	unix.Close(inc.inbox)
	inc.inbox = -1
	if s.harvester != nil {
		s.harvester.gone(inc.number)
	}
	for other := range s.living() {
		s.partWith(other, inc.number)
	}
}

const (
	// catchUpPause is the time until a worker that did not read is told the
	// rest.
	catchUpPause = 20 * time.Millisecond

	// maxOutbox bounds the messages that wait for a worker that does not
	// read. One that lets so many wait is about to be found hanging.
	maxOutbox = 64
)

// fallBehind notes that a worker has not heard everything.
func (s *Supervisor) fallBehind(inc *incarnation) {
	if inc.behind {
		return
	}
	inc.behind = true
	time.AfterFunc(catchUpPause, func() { s.post(incarnationBehind{inc}) })
}

// catchUp tells a worker what it has not heard.
func (s *Supervisor) catchUp(inc *incarnation) {
	if !inc.behind || inc.state == gone {
		return
	}
	inc.behind = false
	s.introduce(inc)
	for other := range s.living() {
		s.acquaint(inc, other)
	}
	for number := range inc.told {
		if s.incarnations[number] == nil {
			s.partWith(inc, number)
		}
	}
	for len(inc.outbox) > 0 && !inc.behind {
		err := inc.process.Send(inc.outbox[0])
		if errors.Is(err, link.ErrBusy) {
			s.fallBehind(inc)
			return
		}
		s.unreached(inc, inc.outbox[0], err)
		inc.outbox = inc.outbox[1:]
	}
}

// send tells the process something, after all that it was told before. A
// process that does not read is told by its deadlines, one that is gone by its
// exit.
func (s *Supervisor) send(inc *incarnation, body link.Body) {
	err := error(link.ErrBusy)
	if !inc.behind {
		err = inc.process.Send(body)
	}
	if !errors.Is(err, link.ErrBusy) || len(inc.outbox) >= maxOutbox {
		s.unreached(inc, body, err)
		return
	}
	if _, again := body.(link.Rearm); again && slices.Contains(inc.outbox, body) {
		return // once is enough
	}
	inc.outbox = append(inc.outbox, body)
	s.fallBehind(inc)
}

func (s *Supervisor) unreached(inc *incarnation, body link.Body, err error) {
	if err != nil {
		s.log.Warn("worker not reached", append(inc.fields(), zap.String("message", fmt.Sprintf("%T", body)), zap.Error(err))...)
	}
}
