package conn

import (
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"golang.org/x/sys/unix"
)

// State is how far a connection is in its life.
type State uint8

const (
	// Open means that messages come and go.
	Open State = iota

	// Closing means that nothing more is taken: what is queued still
	// leaves, what the peer sends is thrown away.
	Closing

	// Closed means that the descriptor is closed.
	Closed
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case Closing:
		return "closing"
	case Closed:
		return "closed"
	default:
		return "conn.State(" + strconv.Itoa(int(s)) + ")"
	}
}

// Conn is one connection, made by Set.Accepted. Its methods may be called
// from any goroutine, in callbacks and after OnClose too. Those that change
// it only leave a mark. The loop acts on the marks when it has read from the
// connection and its callbacks have returned, and on all others at the end of
// the turn.
//
// The fields stand in groups by who may touch them. What is told to another
// process that takes over the descriptor is in capture.go.
type Conn struct {
	// Set once in Accepted.

	set   *Set
	cfg   *settings
	token reactor.Token // 0 until Adopted.Serve
	id    rows.ID
	peer  string

	// Owned by the loop.

	index    int32 // in set.conns
	counted  int32 // what the seat's QueueBytes has of queued
	watched  watching
	state    State
	eof      bool // the peer sends no more
	shut     bool // we send no more
	hup      bool // both of it, and nobody wants to read: not watched
	peerGone bool // RDHUP was told while nobody wanted to read
	blocked  bool // the kernel takes no more until it is Writable
	held     bool // in may hold complete messages: they wait for their turn, Resume or the Pool
	listed   bool // in set.waiting
	tcp      bool // the kernel counts its bytes
	due      bool // to be closed at the next message boundary
	ending   bool // no more messages come: to be ended with extra.over when those that came are handled
	opened   ticks
	lastIn   ticks // last byte in, or the accept
	lastOut  ticks // last byte out, or the accept
	partial  ticks // first byte of the incomplete message in in, 0: none; before the first byte the accept
	progress ticks // since when the kernel takes nothing; once Closing: since when there is no progress
	in       *buffer
	rx, tx   atomic.Uint64 // read by anyone

	value atomic.Pointer[any]   // read and written by anyone
	extra atomic.Pointer[extra] // nil: none; made under mu

	// Guarded by mu.

	mu    sync.Mutex
	fd    int32         // -1: closed; the loop may read it without mu
	flags atomic.Uint32 // read by anyone
	out   queue         // to be written
	inbox *inbox
}

// extra is what few connections have, or for a short time.
type extra struct {
	client  *Client      // of an outgoing connection; set before its first callback
	session wire.Session // set before the first message; nil: the protocol has no state
	layer   *layer       // what stands before the descriptor; nil: nothing; set by the loop, under mu
	origin  atomic.Pointer[origin]
	pipe    atomic.Pointer[Conn] // where the messages go; nil: to OnMessage

	// Owned by the loop.

	over   error         // of Conn.ending
	frozen *Frozen       // from Freeze to its end
	become *become       // while flagBecome is set
	probed time.Duration // Config.Probe was called last; 0: the peer has answered since
	before uint64        // rx at that time

	// Guarded by the connection's mu.

	why      error // what Close was given first
	timers   map[string]*timer
	late     queue  // behind out, while flagLate is set
	bound    uint64 // Bind's
	saved    []byte // Save's, to be put into the slab; nil: none is
	holds    int32  // Hold without Release, and partial
	slot     int32  // MoveTo's, and where it went once flagLeft is set
	packets  int32  // datagrams in out
	partly   bool   // Partial was called with true
	noted    bool   // what stays as it is was put into the slab
	tooLarge bool   // state has no room in the slab
}

// extraLocked returns c's extra, which it makes if there is none. It needs mu.
func (c *Conn) extraLocked() *extra {
	x := c.extra.Load()
	if x == nil {
		x = new(extra)
		c.extra.Store(x)
	}
	return x
}

// tidyLocked gives c's extra back if there is nothing in it. It needs mu, and
// is for the loop only.
func (c *Conn) tidyLocked() {
	x := c.extra.Load()
	if x != nil && x.client == nil && x.session == nil && x.layer == nil && x.origin.Load() == nil && x.pipe.Load() == nil && !c.ending &&
		x.frozen == nil && x.why == nil && x.saved == nil && len(x.timers) == 0 && x.holds == 0 && !c.has(flagLate|flagsMove) {
		c.extra.Store(nil)
	}
}

// piped returns the other end of c's pipe, or nil. Any goroutine may call it.
func (c *Conn) piped() *Conn {
	if x := c.extra.Load(); x != nil {
		return x.pipe.Load()
	}
	return nil
}

// unpipe forgets the other end of c's pipe.
func (c *Conn) unpipe() {
	if x := c.extra.Load(); x != nil {
		x.pipe.Store(nil)
	}
}

// endLater has c ended when what came is handled. Loop only.
func (c *Conn) endLater(why error) {
	if c.ending {
		return
	}
	c.ending = true
	c.mu.Lock()
	c.extraLocked().over = why
	c.mu.Unlock()
}

// timersLocked returns c's timers, nil if it never had one. It needs mu.
func (c *Conn) timersLocked() map[string]*timer {
	if x := c.extra.Load(); x != nil {
		return x.timers
	}
	return nil
}

// The flags of a connection.
const (
	flagDirty         uint32 = 1 << iota // settle is to come
	flagPaused                           // Pause was called
	flagThrottled                        // QueueDepth messages, or MaxMessage bytes, wait: reading pauses
	flagClogged                          // the pipe's other end is full: reading pauses
	flagFull                             // over SendHigh, until SendLow
	flagTellFull                         // OnBufferFull is due
	flagTellDrain                        // OnBufferDrain is due
	flagGoodbye                          // Close was called
	flagCloseNow                         // CloseNow was called, or a callback panicked
	flagClosed                           // the descriptor is closed
	flagRunning                          // on the Pool's list, or on one of its goroutines
	flagAwaited                          // the loop wants to know when that is over
	flagAuthenticated                    // Authenticated was called
	flagMove                             // MoveTo was called
	flagBind                             // Bind was called
	flagFreezing                         // Freeze was called: not read, to be frozen when no callback runs
	flagFrozen                           // it stands still: out of epoll, nothing is acted on
	flagLate                             // what is sent goes to extra.late
	flagLeft                             // another process has it
	flagNew                              // OnConnect is still to be called, here or elsewhere
	flagLeaving                          // Freeze was called, and is put off by Hold
	flagBecome                           // Become was called
	flagUnsettled                        // it is to be settled when it is not running any more, for its journal
	flagOpening                          // it cannot be called yet: see opening.go
	flagStays                            // it does not move
)

const (
	flagsEnded   = flagGoodbye | flagCloseNow | flagClosed                 // no more messages in or out
	flagsHeld    = flagsEnded | flagsPause | flagBecome                    // no more messages in for now
	flagsPause   = flagPaused | flagThrottled | flagClogged | flagsFreezes // not read for now
	flagsFreezes = flagFreezing | flagFrozen
	flagsTell    = flagTellFull | flagTellDrain | flagsMove
	flagsMove    = flagMove | flagBind
)

func (c *Conn) has(bits uint32) bool { return c.flags.Load()&bits != 0 }

// ID returns the number of the connection, which it keeps when it moves to
// another process. No other connection of the service has it while it is
// open; one that comes 65535 connections after it may get it again.
func (c *Conn) ID() uint64 { return uint64(c.id) }

// Listener returns the name of the listener it came by.
func (c *Conn) Listener() string { return c.cfg.Listener }

// Local returns this end's address in Peer's form, or "" once the connection
// is over. It makes a system call, unless a PROXY header has told the address.
func (c *Conn) Local() string {
	if o := c.origin(); o != nil && o.local != "" {
		return o.local
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return ""
	}
	sa, err := unix.Getsockname(int(c.fd))
	if err != nil {
		return ""
	}
	return address(sa)
}

// State returns the connection's state.
func (c *Conn) State() State {
	switch flags := c.flags.Load(); {
	case flags&flagClosed != 0:
		return Closed
	case flags&flagsEnded != 0:
		return Closing
	default:
		return Open
	}
}

// BytesIn returns how many bytes were read from the descriptor.
func (c *Conn) BytesIn() uint64 { return c.rx.Load() }

// BytesOut returns how many bytes the kernel has taken. An outgoing connection
// of TCP begins with one, as the kernel counts its SYN, and behind a proxy both
// counts have the talk with that.
func (c *Conn) BytesOut() uint64 { return c.tx.Load() }

// Queued returns how many bytes wait to be sent.
func (c *Conn) Queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queuedLocked()
}

// Value returns what SetValue was given last, or nil.
func (c *Conn) Value() any {
	v := c.value.Load()
	if v == nil {
		return nil
	}
	return *v
}

// Session returns what Config.NewSession has made for this connection, nil
// without that. Which of its methods may be called here, the session says.
func (c *Conn) Session() wire.Session {
	if x := c.extra.Load(); x != nil {
		return x.session
	}
	return nil
}

// SetValue keeps the application's own state of this connection.
func (c *Conn) SetValue(v any) { c.value.Store(&v) }

// SetValueAt is SetValue(*v) for whoever has room for the interface anyway,
// most often in what it points to: many idle connections then take less memory. *v is not
// to be changed any more.
func (c *Conn) SetValueAt(v *any) { c.value.Store(v) }

// Authenticated says that the peer has shown who it is: Limits.Auth is over
// for this connection.
func (c *Conn) Authenticated() { c.flags.Or(flagAuthenticated) }

// Pause stops reading: no more OnMessage until Resume, except for messages
// that were read before and wait for the Pool. The peer is held up once the
// kernel's buffers are full; its going away is not noticed, and the deadlines
// of reading stand still.
func (c *Conn) Pause() { c.mark(flagPaused, 0) }

// Resume undoes Pause, however often that was called.
func (c *Conn) Resume() { c.mark(0, flagPaused) }

// mark changes flags and has the loop look at them.
func (c *Conn) mark(set, clear uint32) {
	c.mu.Lock()
	c.flags.And(^clear)
	c.flags.Or(set)
	first := c.dirtyLocked()
	c.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
}

// dirtyLocked says whether the caller has to call settleLater once it has
// let go of mu. It needs mu.
func (c *Conn) dirtyLocked() bool {
	if c.has(flagDirty | flagClosed) {
		return false
	}
	c.flags.Or(flagDirty)
	return true
}

// settle acts on all marks. Loop only, and in no callback.
func (c *Conn) settle() {
	c.mu.Lock()
	flags := c.flags.Load()
	if flags&flagFrozen != 0 {
		c.flags.And(^flagDirty)
		c.mu.Unlock()
		return // Thaw and Serve come back to what was marked
	}
	if flags&flagFreezing != 0 {
		flags &^= flagsTell // they wait, so that their callbacks do not put off the freeze for ever
		c.set.freezeLater(c.extra.Load().frozen)
	}
	if flags&flagLeaving != 0 {
		flags &^= flagsMove // it is about to, as soon as it is let go of
		c.set.freezeLater(c.extra.Load().frozen)
	}
	c.flags.And(^(flagDirty | flags&flagsTell))
	if c.state == Closed {
		c.mu.Unlock()
		return
	}
	if flags&(flagCloseNow|flagGoodbye|flagTellFull|flagTellDrain) != 0 {
		why := c.whyLocked()
		c.mu.Unlock()
		if flags&flagCloseNow != 0 {
			c.release(why)
			return
		}
		if flags&flagGoodbye != 0 && c.state == Open {
			c.startClosing()
		}
		if flags&flagTellFull != 0 && c.state == Open {
			c.deliver(event{kind: bufferFull})
		}
		if flags&flagTellDrain != 0 && c.state == Open {
			c.deliver(event{kind: bufferDrain})
		}
		c.mu.Lock()
	}
	c.flushLocked()
	if c.state == Closed {
		return
	}
	if !c.tcp {
		c.note()
	}
	if flags&flagBecome != 0 && c.state == Open && !c.has(flagsEnded) {
		c.turnInto()
	}
	if c.state == Open {
		c.settleInput()
	}
	if c.state == Closing && c.outEmpty() {
		c.flushed()
	}
	if c.state != Closed {
		c.watch()
	}
	if flags&flagsMove != 0 && c.state == Open && !c.has(flagsEnded) {
		c.tellMove(flags)
	}
}

// settleInput is settle's part for an open connection's input: go on with
// what was held up, end after the peer's end, drain at a boundary.
func (c *Conn) settleInput() {
	if c.held && !c.has(flagsHeld|flagAwaited) {
		c.set.processLater(c)
		return
	}
	if c.held || !c.ending && !c.due || c.has(flagsEnded) {
		return
	}
	if c.running() || c.onHold() {
		return // it is settled again afterwards
	}
	if c.ending {
		c.end(c.extra.Load().over)
	} else if !c.has(flagFreezing|flagLeaving) && c.atBoundary() {
		c.end(c.set.drainOf(c).why)
	}
}

// watch tells the reactor what to watch the descriptor for.
func (c *Conn) watch() {
	flags := c.flags.Load()
	wanted := c.state == Closing || flags&flagsPause == 0 && !(c.held && flags&flagAwaited != 0)
	if flags&flagOpening != 0 && c.state == Open {
		wanted = c.readsToOpen(flags)
	}
	var w watching
	switch {
	case c.eof:
	case wanted:
		w = watchInput
		if c.watched&watchInput == 0 {
			c.restamp()
		}
		c.hup, c.peerGone = false, false
	case !c.peerGone:
		w = watchEnd
	}
	if c.blocked {
		w |= watchOutput
	}
	if c.hup {
		w = 0
	}
	if w == c.watched {
		return
	}
	if err := c.set.loop.Modify(c.token, w.events()); err != nil {
		c.release(err)
		return
	}
	c.watched = w
}

// watching is what a descriptor is watched for, in a byte.
type watching uint8

const (
	watchInput watching = 1 << iota // and for the peer's end
	watchEnd                        // for that alone
	watchOutput
)

// events is the same in the reactor's words.
func (w watching) events() reactor.Events {
	var ev reactor.Events
	if w&watchInput != 0 {
		ev = reactor.Readable | reactor.PeerClosed
	}
	if w&watchEnd != 0 {
		ev |= reactor.PeerClosed
	}
	if w&watchOutput != 0 {
		ev |= reactor.Writable
	}
	return ev
}

func address(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		if sa.Name == "" || sa.Name == "@" { // getsockname(2) of a socket without a name gives the latter
			return "unix"
		}
		return sa.Name
	default:
		return ""
	}
}
