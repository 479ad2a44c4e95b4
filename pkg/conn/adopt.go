package conn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// Adopted is a connection that another process has offered, rebuilt here but
// not served. It ends by Serve, once this process has committed itself, or by
// Drop or Decline, if it may not. Its methods are for the loop only, and in no callback.
type Adopted struct {
	conn   *Conn
	row    *rows.Row
	resume resume
	joined bool // to the other end of its pipe
	served bool // or dropped
	tailed bool // Tail was called
}

// resume is what of a captured state Serve needs.
type resume struct {
	flags                                      uint64
	opened, lastIn, lastOut, partial, progress time.Duration
	partner                                    rows.ID
	timers                                     []stateTimer
}

// adoptedAtOnce is how many are made at a time: those of a batch come and go
// together.
const adoptedAtOnce = 32

func (s *Set) newAdopted() *Adopted {
	if len(s.adopted) == 0 {
		s.adopted = make([]Adopted, adoptedAtOnce)
	}
	a := &s.adopted[0]
	s.adopted = s.adopted[1:]
	return a
}

// Adopt rebuilds the connection that a process has captured: body is what
// Frozen.Capture has appended there, fd the descriptor, of which the caller
// has made sure that it is the one of row. config returns what is served on
// the listener of that name, nil if nothing is. On success fd is the
// connection's. Nothing is read or written, and nothing is registered, until
// Serve.
//
// On failure fd stays the caller's and nothing has changed: ErrState,
// ErrStateVersion, ErrListener, ErrProtocol, the application's error or
// panic, or a Config that is not usable. Loop only, and in no callback.
func (s *Set) Adopt(fd int, id rows.ID, row *rows.Row, config func(listener string) *Config, body []byte) (*Adopted, error) {
	st := &s.offered
	defer st.forget()
	if err := st.parse(body); err != nil {
		return nil, err
	}
	cfg := config(st.listener)
	if cfg == nil {
		return nil, fmt.Errorf("%w: %q", ErrListener, st.listener)
	}
	settings, err := s.settingsFor(cfg, st)
	if err != nil {
		return nil, err
	}
	if _, err := s.allocator(); err != nil {
		return nil, fmt.Errorf("conn: %w", err)
	}
	a := s.newAdopted()
	a.conn, a.row = s.rebuild(fd, id, settings, st), row
	a.resume = resume{st.flags, st.opened, st.lastIn, st.lastOut, st.partial, st.progress, rows.ID(st.partner), st.timers}
	if err = a.restoreLayer(st); err == nil {
		err = a.restore(st)
	}
	if err != nil {
		a.Decline()
		return nil, err
	}
	return a, nil
}

// forget lets go of the bytes that s was parsed from.
func (s *state) forget() { *s = state{listener: s.listener, protocol: s.protocol} }

// settingsFor returns what a captured connection is served by: what its
// listener's are accepted with, or what that may become.
func (s *Set) settingsFor(cfg *Config, st *state) (*settings, error) {
	for i := -1; i < len(cfg.Becomes); i++ {
		c := cfg
		if i >= 0 {
			c = cfg.Becomes[i]
		}
		settings, err := s.settingsOf(c)
		if err != nil {
			return nil, err
		}
		if st.hasProtocol(settings) {
			return settings, nil
		}
	}
	return nil, fmt.Errorf("%w: listener %q has %q, want %q", ErrProtocol, st.listener, cfg.ProtocolName, st.protocol)
}

// rebuild makes a frozen connection of what was captured.
func (s *Set) rebuild(fd int, id rows.ID, settings *settings, st *state) *Conn {
	c := &Conn{set: s, cfg: settings, id: id, peer: st.peer, fd: int32(fd)}
	has := func(bit uint64) bool { return st.flags&bit != 0 }
	c.held, c.eof, c.blocked = has(stateHeld), has(stateEOF), has(stateBlocked)
	c.rx.Store(st.rx)
	c.tx.Store(st.tx)
	if len(st.in) > 0 {
		c.in = getBuffer(len(st.in)).add(st.in)
	}
	c.out.add(st.out)
	if settings.NewSession != nil {
		c.extra.Store(&extra{session: settings.NewSession()})
	}
	if c.eof {
		why := error(ErrPeerClosed)
		if st.layer != nil && st.layer.flags&layerTruncated != 0 {
			why = fmt.Errorf("%w: %w", ErrPeerClosed, ErrTruncated)
		}
		c.endLater(why)
	}
	flags := flagFrozen | flagLate
	for _, f := range []struct {
		bit  uint64
		flag uint32
	}{
		{stateNew, flagNew}, {statePaused, flagPaused}, {stateAuthenticated, flagAuthenticated}, {stateFull, flagFull},
		{stateTellFull, flagTellFull}, {stateTellDrain, flagTellDrain}, {stateClogged, flagClogged},
	} {
		if has(f.bit) {
			flags |= f.flag
		}
	}
	c.flags.Store(flags)
	return c
}

// restoreLayer makes what stands between descriptor and messages. A connection
// goes on as it began, whatever the listener has here, but a handshake that is
// still to come is that of here.
func (a *Adopted) restoreLayer(st *state) error {
	c, s := a.conn, st.layer
	if len(st.header) == 0 && s == nil {
		return nil
	}
	c.mu.Lock()
	x := c.extraLocked()
	c.mu.Unlock()
	if len(st.header) > 0 {
		n, h, err := headerParser.Parse(st.header)
		if err != nil || n != len(st.header) {
			return fmt.Errorf("%w: PROXY header of %d bytes: %w", ErrState, len(st.header), err)
		}
		x.origin.Store(originOf(st.header, h))
	}
	if s == nil {
		return nil
	}
	l := &layer{stage: stageOpen, quiet: s.flags&layerQuiet != 0, truncated: s.flags&layerTruncated != 0}
	if len(s.tls) == 0 && s.flags&layerNoted == 0 {
		l.stage = stageHello
		if s.flags&layerProxy != 0 {
			l.stage = stageProxy
		}
		if l.stage == stageProxy != (c.cfg.Proxy != nil && len(st.header) == 0) || l.stage == stageHello && c.cfg.TLS == nil {
			return fmt.Errorf("%w: listener %q does not open connections so", ErrProtocol, st.listener)
		}
		c.flags.Or(flagOpening)
		x.layer = l
		return nil
	}
	keys, err := a.restoreKeys(s)
	if err != nil {
		return err
	}
	info, err := tlsrec.ParseInfo(s.info)
	if err != nil {
		keys.Drop()
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	l.tls, l.info = keys, &info
	if err := c.findKernel(l, s.flags&layerKernel != 0); err != nil {
		keys.Drop()
		return err
	}
	if len(s.in) > 0 {
		l.in = getBuffer(len(s.in)).add(s.in)
	}
	l.sealed.add(s.ready)
	x.layer = l
	return nil
}

// restoreKeys returns the state of TLS, from the capture or, if the connection
// was at rest when its process died, from the slab.
func (a *Adopted) restoreKeys(s *layerState) (*tlsrec.Conn, error) {
	if s.flags&layerNoted != 0 {
		return notedKeys(a.conn.set.alloc.Table(), a.conn.id, a.row)
	}
	keys, err := tlsrec.RestoreState(s.tls)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return keys, nil
}

// restore has protocol and application take up their parts.
func (a *Adopted) restore(st *state) error {
	c := a.conn
	switch session := c.Session(); {
	case session != nil:
		if err := guard(func() error { return session.RestoreState(st.session) }); err != nil {
			return fmt.Errorf("conn: listener %q: state of the protocol: %w", st.listener, err)
		}
	case len(st.session) > 0:
		return fmt.Errorf("%w: listener %q has one without a state", ErrProtocol, st.listener)
	}
	if decode := c.cfg.DecodeValue; decode != nil && !c.has(flagNew) {
		var value []byte
		if st.flags&stateHasValue != 0 {
			value = append([]byte{}, st.value...)
		}
		if err := guard(func() error { return decode(c, value) }); err != nil {
			return fmt.Errorf("conn: listener %q: state of the application: %w", st.listener, err)
		}
	}
	return nil
}

// Conn returns the connection, of which nobody is to be told before Serve.
func (a *Adopted) Conn() *Conn { return a.conn }

// Join makes two connections the ends of a pipe again. It does nothing if
// they were not. What was the end of a pipe and is not joined is closed by
// Serve.
func (a *Adopted) Join(other *Adopted) {
	if a.resume.partner != other.conn.id || other.resume.partner != a.conn.id {
		return
	}
	a.conn.pipeTo(other.conn)
	other.conn.pipeTo(a.conn)
	a.joined, other.joined = true, true
}

// Drop forgets the connection, which is not this process's: its copy of the
// descriptor is closed, which the peer does not notice. No callback is called.
func (a *Adopted) Drop() {
	if a.served {
		return
	}
	fd := int(a.conn.fd)
	a.Decline()
	unix.Close(fd)
}

// Decline is Drop for a caller whose descriptor it stays.
func (a *Adopted) Decline() {
	if a.served {
		return
	}
	a.served = true
	c := a.conn
	c.mu.Lock()
	c.fd = -1
	c.dropLocked()
	c.flags.And(^(flagFrozen | flagLate))
	c.flags.Or(flagClosed)
	c.mu.Unlock()
	c.state = Closed
	c.dropInput()
	if l := c.layered(); l != nil {
		l.end(c)
	}
	c.endPipe(ErrClosed)
	c.unpipe()
}

// Serve begins to serve the connection, which is this process's now. OnAdopt
// is told why, before any other callback; deadlines and timers go on where
// they were; then comes the input that was held. What was captured as unsent
// leaves at once. What is sent here waits for Tail if waitForTail is set.
func (a *Adopted) Serve(why Reason, waitForTail bool) {
	if a.served {
		return
	}
	a.served = true
	c, st := a.conn, &a.resume
	s := c.set
	loop := s.loop
	now := loop.Now()
	c.opened = ticksAt(now - st.opened)
	c.lastIn, c.lastOut = ticksAt(now-st.lastIn), ticksAt(now-st.lastOut)
	c.progress = ticksAt(now - st.progress)
	if st.partial != 0 {
		c.partial = someTicks(now - st.partial)
	}
	s.add(c)
	c.token, _ = loop.Add(int(c.fd), 0, (*watcher)(c)) // it is not told to epoll yet, so nothing can fail
	c.tcp = a.row.What.Load()&whatCounted != 0
	adopter, ok := c.cfg.Handler.(SilentAdopter)
	silent := ok && adopter.AdoptsSilently()
	c.tellRow(a.row, silent && !c.has(flagNew))

	c.mu.Lock()
	for _, t := range st.timers {
		x := c.extraLocked()
		if x.timers == nil {
			x.timers = make(map[string]*timer)
		}
		if x.timers[t.name] == nil { // DecodeValue may have set it
			x.timers[t.name] = &timer{conn: c, name: t.name, at: loop.Clock() + t.left, moved: true}
		}
	}
	c.flags.And(^flagFrozen)
	if !waitForTail {
		c.lateLocked()
	}
	c.fitLocked()
	c.tidyLocked()
	c.mu.Unlock()
	if !c.has(flagFull) {
		c.unclog()
	}
	st.timers = nil

	switch {
	case c.has(flagNew):
		c.greet()
	case !silent:
		c.deliver(event{kind: adopted, reason: why})
	}
	if st.partner != 0 && !a.joined {
		c.end(ErrClosed)
	}
	c.goOn(st.flags&stateReading != 0)
	if c.state != Closed {
		c.note() // not at the end of the turn: there may be hundreds of others before that
		s.drainOf(c).joined(c)
	}
}

// fitLocked fits the marks of a full send queue to the limits that hold here.
// It needs mu.
func (c *Conn) fitLocked() {
	c.markFullLocked()
	if c.has(flagFull) && c.queuedLocked() <= c.cfg.Limits.SendLow {
		c.flags.And(^flagFull)
		c.flags.Or(flagTellDrain)
	}
}

var errTail = errors.New("conn: a tail before Serve, or a second one")

// Tail is the last word of the process that had the connection before: what
// Frozen.Left has returned there, nil if that was nothing or if nothing will
// come any more. What was sent there goes before what was sent here since.
// A timer that was set there replaces the one of that name unless that was
// set here; a Close there closes the connection, with ErrClosedBefore, when
// all has left. It is called once, after Serve. An error, ErrState, ErrStateVersion or the
// protocol's, means that the connection is being closed, for what was sent is
// lost.
func (a *Adopted) Tail(b []byte) error {
	if a.tailed || !a.served {
		return errTail
	}
	a.tailed = true
	c := a.conn
	if c.state == Closed {
		return nil
	}
	var t tail
	err := t.parse(b)
	c.mu.Lock()
	if err == nil {
		err = c.tailLocked(&t)
	}
	if err != nil {
		c.failLocked(err)
	}
	if c.has(flagLate) {
		c.lateLocked()
	}
	c.fitLocked()
	c.tidyLocked()
	c.mu.Unlock()
	if err != nil {
		c.mark(0, 0)
		return err
	}
	a.setTimers(&t)
	if t.flags&tailMove != 0 {
		_ = c.MoveTo(int(t.slot)) // an error says that it does not move, or is over
	}
	if t.flags&tailBind != 0 {
		c.Bind(t.bound)
	}
	switch {
	case t.flags&tailCloseNow != 0:
		c.CloseNow(t.reason())
	case t.flags&tailClose != 0:
		_ = c.Close(t.reason())
	}
	c.mark(0, 0)
	return nil
}

// Lost says that there was a tail after all, of which Tail was told that there
// is none: the connection is closed at once, with ErrTailLost. Loop only.
func (a *Adopted) Lost() { a.conn.CloseNow(ErrTailLost) }

// tailLocked puts what was sent behind the send queue and before what was
// sent here. It needs mu.
func (c *Conn) tailLocked(t *tail) error {
	switch {
	case len(t.sent) == 0:
	case t.flags&tailMessages != 0 != (c.cfg.NewSession != nil):
		return fmt.Errorf("%w: late messages of another kind", ErrState)
	case t.flags&tailMessages != 0:
		if err := c.encodeAllLocked(t.sent); err != nil {
			return err
		}
	default:
		c.out.add(t.sent)
	}
	switch {
	case t.flags&tailPaused != 0:
		c.flags.Or(flagPaused)
	case t.flags&tailResumed != 0:
		c.flags.And(^flagPaused)
	}
	if t.flags&tailAuthenticated != 0 {
		c.flags.Or(flagAuthenticated)
	}
	return nil
}

// setTimers does what was done to timers in the other process.
func (a *Adopted) setTimers(t *tail) {
	c := a.conn
	for _, late := range t.timers {
		c.mu.Lock()
		now := c.timersLocked()[late.name]
		c.mu.Unlock()
		switch {
		case now != nil && !now.moved: // set here, which is later
		case late.stopped:
			c.StopTimer(late.name)
		default:
			c.SetTimer(late.name, late.left)
		}
	}
}

// hasProtocol says whether the protocol of a captured state is the one that is
// served.
func (s *state) hasProtocol(served *settings) bool {
	if s.flags&stateResting == 0 {
		return s.protocol == served.ProtocolName
	}
	return len(s.protocol) == 4 && binary.LittleEndian.Uint32([]byte(s.protocol)) == served.kind
}
