package conn

import (
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
	"golang.org/x/sys/unix"
)

// Frozen is a connection that stands still, so that another process can take
// it over. Nothing is read or written, no callback runs, no deadline passes.
// What is sent to it meanwhile waits. It ends by Thaw or by Left; each is
// called once, and nothing else after it. Its methods are for the loop only.
type Frozen struct {
	conn    *Conn
	row     *rows.Row
	partner *Frozen // the other end of the pipe
	second  bool    // it follows partner, which was asked for

	told      func(*Frozen, error) // nil: it was told, or is not wanted any more
	listed    bool                 // in set.freezing
	watched   bool                 // the reactor knows that it is not read
	reading   bool                 // it was, before
	since, at time.Duration        // Freeze, and the end of all callbacks

	// As Capture told them.

	flags  uint32
	timers map[string]*timer

	extra extra // for a connection that has none
}

// frozenAtOnce is how many are made at a time: most often many connections
// move, and their Frozen are gone soon after. It is not more, since a Conn that
// somebody keeps after it has moved keeps all of them.
const frozenAtOnce = 16

func (s *Set) newFrozen() *Frozen {
	if len(s.frozen) == 0 {
		s.frozen = make([]Frozen, frozenAtOnce)
	}
	f := &s.frozen[0]
	s.frozen = s.frozen[1:]
	return f
}

// Freeze has c stand still. It is not read any more from now on; when the
// callbacks that run or wait for the Pool have returned, and what Hold keeps
// was let go of, frozen is called at the end of a turn, in no callback and
// exactly once. With Config.FinishFirst all of it begins when nothing is kept. A callback that does not return holds it up for as long. The
// two ends of a pipe freeze together, whichever was asked for: see
// Frozen.Partner.
//
// frozen is given the Frozen, or an error: ErrClosed if the connection ended
// or was told to, a *MovedError if another process has it already, ErrPinned
// if it, or its pipe's other end, does not move, ErrFrozen if somebody else
// freezes it. Loop only, and in no callback.
func (s *Set) Freeze(c *Conn, frozen func(f *Frozen, err error)) {
	if err := c.mayFreeze(); err != nil {
		s.loop.AtTurnEnd(func() { frozen(nil, err) })
		return
	}
	f := s.newFrozen()
	f.conn, f.told = c, frozen
	if c.cfg.FinishFirst && c.kept() {
		f.announce()
	} else {
		f.begin()
	}
	s.freezeLater(f)
}

// mayFreeze says why c is not to be frozen, nil: it may be.
func (c *Conn) mayFreeze() error {
	switch {
	case c.state != Open || c.has(flagsEnded):
		return c.gone()
	case c.has(flagsFreezes | flagLeaving):
		return ErrFrozen
	case c.pinned():
		return ErrPinned
	}
	return nil
}

// Unfreeze gives up a Freeze whose frozen was not called yet, and is not
// called then. Of a pipe's two ends either will do. Otherwise it does nothing.
// Loop only.
func (s *Set) Unfreeze(c *Conn) {
	if !c.has(flagFreezing | flagLeaving) {
		return
	}
	f := c.extra.Load().frozen.first()
	f.told = nil
	f.giveUp()
}

// first returns the one that was asked for.
func (f *Frozen) first() *Frozen {
	if f.second {
		return f.partner
	}
	return f
}

// all calls do for f and its partner.
func (f *Frozen) all(do func(*Frozen)) {
	do(f)
	if f.partner != nil {
		do(f.partner)
	}
}

// tell calls frozen, once.
func (f *Frozen) tell(frozen *Frozen, err error) {
	if told := f.told; told != nil {
		f.told = nil
		told(frozen, err)
	}
}

// announce has begin put off until Release.
func (f *Frozen) announce() {
	c := f.conn
	c.mu.Lock()
	f.noteLocked()
	c.flags.Or(flagLeaving)
	c.mu.Unlock()
}

// noteLocked has the connection know of f. It needs mu.
func (f *Frozen) noteLocked() {
	c := f.conn
	if c.extra.Load() == nil {
		c.extra.Store(&f.extra)
	}
	c.extra.Load().frozen = f
}

// begin stops reading.
func (f *Frozen) begin() {
	c := f.conn
	f.since = c.set.loop.Now()
	f.reading = c.watched&watchInput != 0
	c.mu.Lock()
	f.noteLocked()
	c.flags.And(^flagLeaving)
	c.flags.Or(flagFreezing)
	c.mu.Unlock()
}

// giveUp takes back begin.
func (f *Frozen) giveUp() {
	f.all(func(f *Frozen) {
		c := f.conn
		c.extra.Load().frozen = nil
		c.mark(0, flagFreezing|flagLeaving)
		if c.state == Open {
			c.greet()
			c.startTimers() // those that were over meanwhile
		}
	})
}

// fail ends the attempt.
func (f *Frozen) fail(err error) {
	f.giveUp()
	f.tell(nil, err)
}

// freezeLater has a freeze looked at at the end of the turn.
func (s *Set) freezeLater(f *Frozen) {
	f = f.first()
	if f.listed {
		return
	}
	f.listed = true
	s.freezing = append(s.freezing, f)
	if len(s.freezing) == 1 {
		s.loop.AtTurnEnd(s.freezeAll)
	}
}

func (s *Set) freeze() {
	s.freezing, s.freezes = s.freezes[:0], s.freezing
	for i, f := range s.freezes {
		s.freezes[i] = nil
		f.listed = false
		if f.told != nil {
			f.try()
		}
	}
}

// try freezes if nothing stands in the way. Otherwise whatever does has the
// connection settled when it is over, and that comes back here.
func (f *Frozen) try() {
	if c := f.conn; c.has(flagLeaving) {
		switch {
		case c.state != Open || c.has(flagsEnded):
			f.fail(c.gone())
			return
		case c.kept():
			return // Release comes back here
		}
		f.begin()
	}
	if p := f.conn.piped(); p != nil && f.partner == nil && !f.include(p) {
		return
	}
	ready, over := true, false
	f.all(func(f *Frozen) {
		over = over || f.conn.state != Open || f.conn.has(flagsEnded)
		ready = f.conn.still() && ready
	})
	switch {
	case over:
		f.fail(f.conn.gone())
	case ready && f.stop():
		f.all((*Frozen).stopped)
		f.tell(f, nil)
	default:
		f.all(func(f *Frozen) {
			if !f.watched {
				f.watched = true
				f.conn.watch()
			}
		})
	}
}

// include makes the other end of the pipe a part of the freeze. If it cannot
// be, the attempt is over.
func (f *Frozen) include(p *Conn) bool {
	switch {
	case p.state != Open || p.has(flagsEnded):
		f.fail(p.gone())
		return false
	case p.pinned():
		f.fail(ErrPinned)
		return false
	case p.has(flagFreezing | flagLeaving): // by an attempt of its own
		p.extra.Load().frozen.fail(ErrFrozen)
	}
	f.partner = p.set.newFrozen()
	f.partner.conn, f.partner.partner, f.partner.second = p, f, true
	f.partner.begin()
	return true
}

// still says whether nothing happens on an open connection that is not read.
func (c *Conn) still() bool {
	// A connection whose own end is due is ended when it is settled, one that
	// waits for a tail would have to wait for it twice.
	return !c.running() && !c.kept() && !(c.ending && !c.held) && !c.has(flagLate|flagBecome) && !c.handshaking()
}

// stop makes it frozen, both ends at once, unless somebody was quicker.
func (f *Frozen) stop() bool {
	joining.Lock()
	defer joining.Unlock()
	if p := f.conn.piped(); p != nil && f.partner == nil {
		f.conn.set.freezeLater(f)
		return false
	}
	if !f.conn.stop() {
		return false
	}
	if f.partner != nil && !f.partner.conn.stop() {
		f.conn.flags.And(^(flagFrozen | flagLate))
		f.conn.flags.Or(flagFreezing)
		f.conn.set.freezeLater(f)
		return false
	}
	return true
}

func (c *Conn) stop() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has(flagsEnded|flagRunning|flagBecome) || c.keptLocked() {
		return false // it is settled again
	}
	c.flags.And(^flagFreezing)
	c.flags.Or(flagFrozen | flagLate)
	return true
}

// stopped takes c out of epoll, where a registration would outlive the close
// here while the taker has the file open, and disarms what would go on by
// itself. The time in which callbacks were waited for does not count against
// the peer.
func (f *Frozen) stopped() {
	c := f.conn
	loop := c.set.loop
	f.at = loop.Now()
	if f.reading {
		c.lastIn = c.lastIn.moved(f.at-f.since, f.at)
		if c.partial != 0 {
			c.partial = c.partial.moved(f.at-f.since, f.at)
		}
	}
	if l := c.layered(); l != nil && l.stage == stagePlace {
		l.stage = stageHello // for whoever goes on
	}
	_ = loop.Modify(c.token, 0) // it fails only for what epoll does not have
	loop.Disarm(c.token)
	c.stopTimers()
	f.row = c.set.alloc.Table().Row(c.id)
}

// ID returns the connection's ID.
func (f *Frozen) ID() rows.ID { return f.conn.id }

// Row returns its row.
func (f *Frozen) Row() *rows.Row { return f.row }

// FD returns its descriptor, which stays the connection's.
func (f *Frozen) FD() int { return int(f.conn.fd) }

// Conn returns the connection.
func (f *Frozen) Conn() *Conn { return f.conn }

// Partner returns the other end of its pipe, or nil. Each end is thawed, or
// left, by itself.
func (f *Frozen) Partner() *Frozen { return f.partner }

// Since returns when reading stopped, by the loop's clock.
func (f *Frozen) Since() time.Duration { return f.since }

// Thaw has everything go on as before: the connection stays here. What was
// sent and what was asked of it meanwhile counts from now on.
func (f *Frozen) Thaw() {
	c := f.conn
	loop := c.set.loop
	now := loop.Now()
	stood := now - f.at
	c.lastIn, c.lastOut, c.progress = c.lastIn.moved(stood, now), c.lastOut.moved(stood, now), c.progress.moved(stood, now)
	if c.partial != 0 {
		c.partial = c.partial.moved(stood, now)
	}
	c.extra.Load().frozen = nil
	c.mu.Lock()
	c.flags.And(^flagFrozen)
	c.lateLocked()
	c.tidyLocked()
	c.mu.Unlock()
	c.greet()
	c.goOn(f.reading)
}

// Left says that another process has committed itself to the connection: it
// is over here. The descriptor is closed, which the peer does not notice, and
// OnClose is not called, that is the other's, but OnLeave. Methods answer *MovedError with
// the slot. It returns what was sent, or asked of the connection, since
// Capture, for Adopted.Tail there; nil if there is nothing.
func (f *Frozen) Left(slot int) (tail []byte) {
	c := f.conn
	c.mu.Lock()
	tail = f.tailLocked()
	x := c.extra.Load()
	x.slot, x.frozen = int32(slot), nil
	fd := int(c.fd)
	c.fd = -1
	c.dropLocked()
	c.flags.And(^(flagFrozen | flagLate))
	c.flags.Or(flagClosed | flagLeft)
	c.mu.Unlock()
	c.state = Closed
	_ = c.set.loop.Remove(c.token) // out of epoll since the freeze
	// It never blocks, so the Go scheduler need not know of it: no process has
	// it linger.
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	c.count(0)
	c.dropInput()
	if x.layer != nil {
		x.layer.end(c)
	}
	c.unpipe()
	c.set.remove(c)
	if c.cfg.Released != nil {
		c.cfg.Released(c)
	}
	if c.cfg.OnLeave != nil && !c.has(flagNew) {
		c.deliver(event{kind: left, slot: slot})
	}
	c.set.drained()
	return tail
}

// goOn has a connection served that stood still. reading says that it was
// read before: then the peer's deadlines go on, and do not start anew.
func (c *Conn) goOn(reading bool) {
	c.hup, c.peerGone, c.watched = false, false, 0
	if reading {
		c.watched = watchInput
	}
	if c.blocked {
		c.watched |= watchOutput
	}
	if err := c.set.loop.Modify(c.token, c.watched.events()); err != nil {
		c.release(err)
		return
	}
	c.armDeadlines(c.set.loop.Now())
	c.startTimers()
	if c.has(flagOpening) && !c.has(flagsEnded) {
		c.openFurther(c.layered())
	}
	c.mark(0, 0)
}
