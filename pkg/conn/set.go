package conn

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"golang.org/x/sys/unix"
)

// Set is all connections of one loop. Its methods are for that loop only.
type Set struct {
	// Set once in NewSet.

	loop       *reactor.Loop
	settleAll  func()
	processAll func()
	eventsOver func()
	freezeAll  func()

	// Owned by the loop.

	alloc      *rows.Allocator // nil: not made yet
	own        *rows.Table     // its table, if nobody has given one
	settings   map[*Config]*settings
	conns      crowd
	waiting    []*Conn       // with input that was held up, for the next turn
	settling   []*Conn       // taken from dirty, then spare room
	freezing   []*Frozen     // to be looked at at the end of the turn
	freezes    []*Frozen     // the same, while that is done
	processing []*Conn       // the same for waiting
	since      time.Duration // when the running callbacks were started
	unclocked  int           // callbacks since the clock was read
	called     *Conn         // whose was the last one of these
	waryUntil  time.Duration // until then it is read after each
	iovecs     []unix.Iovec
	scratch    []byte           // of slabLocked
	plain      []byte           // of a send queue, in one piece to be sealed
	sealed     []byte           // the same, sealed
	drain      *drain           // of the accepted ones
	last       *drain           // of the outgoing ones
	outgoing   int              // of conns
	clients    map[*Client]bool // that have no connection, and try to get one
	noDials    bool             // nor may they
	current    *Conn            // whose input from the loop's buffer is being handled
	direct     []byte           // what current has sent out of that: the start of its send queue
	inEvents   bool             // reading, not yet at the end of the turn's events
	noted      *settings        // whose callback the seat was told of since; nil: of none
	counts     counts
	arena      *arena // of Packets; nil: there are none
	resolver   resolver
	warm       []*Conn        // with TLS, that were not idle for long when that was looked at last
	cooling    *reactor.Timer // to look again; nil: there is none
	offered    state          // that is being adopted
	adopted    []Adopted      // for those that will be
	frozen     []Frozen       // for those that will be frozen

	// Guarded by mu.

	mu    sync.Mutex
	dirty []*Conn // to be settled
}

// NewSet makes an empty set of connections for loop. alloc, of which the set
// is the only user, gives each its row in the table of all connections; nil
// means that the set makes a table of its own, which Close gives back.
func NewSet(loop *reactor.Loop, alloc *rows.Allocator) *Set {
	s := &Set{loop: loop, alloc: alloc, settings: make(map[*Config]*settings), clients: make(map[*Client]bool)}
	s.settleAll = s.settle
	s.processAll = s.process
	s.eventsOver = s.afterEvents
	s.freezeAll = s.freeze
	return s
}

// Close gives back the table that the set has made for itself, if it has. It
// is called when no connection is left and the loop turns no more.
func (s *Set) Close() error {
	s.resolver.close()
	if s.own == nil {
		return nil
	}
	err := s.own.Close()
	s.own, s.alloc = nil, nil
	return err
}

// ownRows is how many connections a set can have that has no table given.
const ownRows = 1 << 16

// allocator returns where rows come from.
func (s *Set) allocator() (*rows.Allocator, error) {
	if s.alloc == nil {
		table, err := rows.Create(ownRows)
		if err != nil {
			return nil, err
		}
		s.own, s.alloc = table, table.Allocator(1)
	}
	return s.alloc, nil
}

// Accepted takes over fd, a connected stream socket as accept4(2) gave it
// with SOCK_NONBLOCK and SOCK_CLOEXEC, and its peer's address, which may be
// nil. A TCP socket is to have TCP_NODELAY, which it inherits from the one that
// listens: what is sent in a turn leaves in one write anyway. It calls OnConnect, Inline or through the Pool; the connection that it
// returns may be over already. With TLS, or behind a proxy, OnConnect
// comes when the peer has done its part, and nobody is told of one that does
// not. It fails if cfg is not usable, with ErrUntrusted, if the table of
// all connections is full (rows.ErrFull) or if epoll_ctl(2) refuses fd; fd is
// closed then. Loop only, and not in a callback.
func (s *Set) Accepted(fd int, peer unix.Sockaddr, cfg *Config) (*Conn, error) {
	c, err := s.open(fd, peer, cfg)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.greet()
	c.note()
	return c, nil
}

// Arrived is Accepted for a connection that is to be served elsewhere: it is
// frozen at the end of the turn, without that OnConnect was called. That is
// called by whoever serves it: by the process that adopts it, or here after
// Thaw, or after an error. frozen is told as by Freeze. Loop only, and not in
// a callback.
func (s *Set) Arrived(fd int, peer unix.Sockaddr, cfg *Config, frozen func(*Frozen, error)) error {
	c, err := s.open(fd, peer, cfg)
	if err != nil {
		unix.Close(fd)
		return err
	}
	c.note()
	s.Freeze(c, frozen)
	return nil
}

// greet has OnConnect called if that is still to be done here, and can be.
func (c *Conn) greet() {
	if c.has(flagNew) && !c.has(flagOpening) {
		c.flags.And(^flagNew)
		c.disturb()
		c.deliver(event{kind: connected})
	}
}

func (s *Set) open(fd int, peer unix.Sockaddr, cfg *Config) (*Conn, error) {
	settings, err := s.settingsOf(cfg)
	if err != nil {
		return nil, err
	}
	if settings.Proxy != nil && !trusts(settings.Proxy, peer) {
		return nil, fmt.Errorf("%w: listener %q: %s", ErrUntrusted, settings.Listener, address(peer))
	}
	alloc, err := s.allocator()
	if err != nil {
		return nil, fmt.Errorf("conn: %w", err)
	}
	now := s.loop.Now()
	c := &Conn{
		set:     s,
		cfg:     settings,
		peer:    address(peer),
		fd:      int32(fd),
		watched: watchInput,
		opened:  ticksAt(now),
		lastIn:  ticksAt(now),
		lastOut: ticksAt(now),
		partial: someTicks(now),
	}
	switch peer.(type) {
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		c.tcp = !settings.packets
	}
	c.flags.Store(flagNew)
	layer := settings.layerFor()
	if layer != nil {
		c.flags.Or(flagOpening)
	}
	if settings.NewSession != nil {
		c.extra.Store(&extra{session: settings.NewSession(), layer: layer})
	} else if layer != nil {
		c.extra.Store(&extra{layer: layer})
	}
	if c.token, err = s.loop.Add(fd, c.watched.events(), (*watcher)(c)); err != nil {
		return nil, fmt.Errorf("conn: %w", err)
	}
	if err := c.takeRow(alloc); err != nil {
		_ = s.loop.Remove(c.token)
		return nil, fmt.Errorf("conn: %w", err)
	}
	s.add(c)
	c.expired(now)
	s.drainOf(c).joined(c)
	return c, nil
}

func (s *Set) settingsOf(cfg *Config) (*settings, error) {
	if known := s.settings[cfg]; known != nil {
		return known, nil
	}
	made, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	s.settings[cfg] = made
	return made, nil
}

// takeRow has c known to all processes.
func (c *Conn) takeRow(alloc *rows.Allocator) error {
	cookie, err := unix.GetsockoptUint64(int(c.fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	id, row, err := alloc.Take()
	if err != nil {
		return err
	}
	c.id = id
	row.Cookie.Store(cookie)
	c.tellRow(row, false)
	return nil
}

// add has c in the set.
func (s *Set) add(c *Conn) {
	s.conns.add(c)
	c.cfg.Seat.Connections.Add(1)
	if c.cfg.dialer != nil {
		s.outgoing++
	}
}

// remove forgets c.
func (s *Set) remove(c *Conn) {
	c.cfg.Seat.Connections.Add(-1)
	if c.cfg.dialer != nil {
		s.outgoing--
	}
	s.conns.remove(c)
}

// Len returns the number of connections that are not Closed. Loop only.
func (s *Set) Len() int { return s.conns.count }

// Each calls f for each connection that is not Closed, in no order. Loop only.
func (s *Set) Each(f func(*Conn)) {
	for i := 0; i < s.conns.count; i++ {
		f(s.conns.at(i))
	}
}

// Get returns the connection with this ID, or nil if it is over or another
// process's. Loop only.
func (s *Set) Get(id uint64) *Conn {
	if s.alloc == nil {
		return nil
	}
	row := s.alloc.Table().Row(rows.ID(id))
	if row == nil || row.Owner().Incarnation != s.alloc.Incarnation() {
		return nil
	}
	h, _ := s.loop.Lookup(reactor.Token(row.Local.Load()))
	w, _ := h.(*watcher)
	if w == nil || w.set != s || w.id != rows.ID(id) {
		return nil
	}
	return (*Conn)(w)
}

// settleLater has c settled at the end of this turn, or of the next one. Any
// goroutine may call it, without mu. It returns false if the loop turns no
// more; the connection counts as closed then, though nobody closes it.
func (s *Set) settleLater(c *Conn) bool {
	s.mu.Lock()
	s.dirty = append(s.dirty, c)
	first := len(s.dirty) == 1
	s.mu.Unlock()
	if !first || s.loop.Post(s.settleAll) == nil {
		return true
	}
	s.mu.Lock()
	lost := s.dirty
	s.dirty = nil
	s.mu.Unlock()
	for _, c := range lost {
		c.mu.Lock()
		c.flags.Or(flagClosed)
		c.mu.Unlock()
	}
	return false
}

func (s *Set) settle() {
	s.mu.Lock()
	s.dirty, s.settling = s.settling[:0], s.dirty
	s.mu.Unlock()
	for i, c := range s.settling {
		s.settling[i] = nil
		c.settle()
	}
}

// processLater has c go on with its input in the next turn. Loop only.
func (s *Set) processLater(c *Conn) {
	if c.listed {
		return
	}
	c.listed = true
	s.waiting = append(s.waiting, c)
	if len(s.waiting) == 1 {
		s.loop.NextTurn(s.processAll)
	}
}

func (s *Set) process() {
	s.waiting, s.processing = s.processing[:0], s.waiting
	for i, c := range s.processing {
		s.processing[i] = nil
		c.listed = false
		c.processHeld()
	}
}
