package handoff

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/failpoint"
)

const (
	// readBudget is how many messages are read at most in one call of
	// Readable: the connections that are served already have their turn.
	readBudget = 8

	// goneBudget is how many messages are read at most before a death is acted
	// on, should others not let the inbox become empty. It holds no more: each
	// takes a kilobyte of its sender's inboxBuffer or more.
	goneBudget = 1 << 14

	// A message that does not fit into an inbox is tried again after firstRetry,
	// then after twice the time each, up to lastRetry.
	firstRetry = time.Millisecond
	lastRetry  = 64 * time.Millisecond

	// maxUnknown bounds the peers that are known by their offers only.
	maxUnknown = 64

	// keepBuffer is the largest buffer that is kept for the next batch.
	keepBuffer = 1 << 20
)

// Endpoint is a process's part in all hand-offs, as giver and as taker. All
// its methods are for the loop only. What it calls, of Outgoing, Incoming,
// Options and done, may call Give and Room, and no other method.
type Endpoint struct {
	// Set once in New.

	options Options
	kernel  kernel
	step    func(point) // told of every step; nil but in tests

	// Both as giver and taker.

	peers   map[uint64]*peer
	unknown int // peers without an inbox
	closed  bool
	busy    int // calls that are under way: the outermost settles
	timer   struct {
		at   time.Duration
		stop func() // nil: it is not set
	}

	// As giver.

	batches uint64  // how many were made
	over    []*call // of Give, done not called yet
	message []byte  // that is being made
	fds     []int   // of it
	spare   []*batch

	// As taker.

	waits    []*wait // for tails, oldest first
	dead     []death // processes whose last messages may still be in the inbox
	inbox    []byte  // what was received last
	received [maxDescriptors]int
	records  []record
	entrants []entrant
	body     []byte // from a memfd
}

// peer is another process.
type peer struct {
	incarnation uint64
	slot        int
	inbox       int  // sending end; -1: not known yet
	limit       int  // of a message there
	broken      bool // nobody receives there any more

	// What waits for room in the inbox: out before what is in batches.
	out   [][]byte
	retry time.Duration // when it is tried again; 0: nothing waits
	pause time.Duration // between the last two tries

	queue  []parcel // for which the window has no room
	queued int      // connections in it
	sent   []*batch // offered and not decided, in order; the last may wait for room
	late   []uint64 // batches decided without an answer, which may still be read

	dying bool // it is in dead
}

// death is a process that is dead.
type death struct {
	incarnation uint64
	budget      int // messages until it is acted on, if the inbox is not empty before
}

// point is a step at which tests end or stop a process.
type point uint8

const (
	pointOffer     point = iota + 1 // giver: before a row is offered
	pointSend                       // giver: before the offer is sent
	pointSent                       // giver: the offer is sent
	pointDecide                     // giver: before a row is looked at
	pointLeft                       // giver: a connection has left
	pointTails                      // giver: before tails are sent
	pointTold                       // giver: they are sent
	pointRead                       // taker: an offer was read
	pointCommit                     // taker: before a commit
	pointHalf                       // taker: the first of a pair is committed
	pointCommitted                  // taker: after a commit
	pointAnswer                     // taker: before the answer
	pointAnswered                   // taker: before the first is served
	pointServed                     // taker: all are served
	points
)

// failpoints are what the points are called outside of this package.
var failpoints = [points]string{
	pointOffer: "handoff.offer", pointSend: "handoff.send", pointSent: "handoff.sent", pointDecide: "handoff.decide",
	pointLeft: "handoff.left", pointTails: "handoff.tails", pointTold: "handoff.told", pointRead: "handoff.read",
	pointCommit: "handoff.commit", pointHalf: "handoff.half", pointCommitted: "handoff.committed",
	pointAnswer: "handoff.answer", pointAnswered: "handoff.answered", pointServed: "handoff.served",
}

func (e *Endpoint) at(p point) {
	if failpoint.Enabled {
		failpoint.Here(failpoints[p])
	}
	if e.step != nil {
		e.step(p)
	}
}

// New makes an Endpoint, which the caller ends by Close. It fails if Inbox is
// no SOCK_SEQPACKET socket; the inbox stays the caller's then.
func New(o Options) (*Endpoint, error) {
	if typ, err := unix.GetsockoptInt(o.Inbox, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("handoff: fd %d is no inbox (SOCK_SEQPACKET)", o.Inbox)
	}
	return newEndpoint(o, new(system)), nil
}

func newEndpoint(o Options, k kernel) *Endpoint {
	if o.Deadline <= 0 {
		o.Deadline = DefaultDeadline
	}
	if o.TailWait <= 0 {
		o.TailWait = DefaultTailWait
	}
	return &Endpoint{options: o, kernel: k, peers: make(map[uint64]*peer)}
}

// Peer makes another process known to which Give may give, or changes its
// slot. fd is the sending end of its inbox; the Endpoint takes it over and
// closes the one it had. A negative fd leaves the one it has.
func (e *Endpoint) Peer(incarnation uint64, slot, fd int) {
	if e.closed {
		if fd >= 0 {
			e.kernel.close(fd)
		}
		return
	}
	p := e.peers[incarnation]
	if p == nil {
		p = e.meet(incarnation)
	}
	p.slot = slot
	if fd < 0 {
		return
	}
	if p.inbox >= 0 {
		e.kernel.close(p.inbox)
	} else {
		e.unknown--
	}
	p.inbox, p.limit = fd, e.kernel.limit(fd)
	e.enter()
	e.flush(p)
	e.leave()
}

// meet makes a peer whose inbox is not known yet.
func (e *Endpoint) meet(incarnation uint64) *peer {
	p := &peer{incarnation: incarnation, inbox: -1}
	e.peers[incarnation] = p
	e.unknown++
	return p
}

// Gone says that a process is dead: what it was offered and has not taken, it
// never will, and no tails will come from it any more than have come. What it
// was given is over. Its descriptor is closed. All that happens when what the
// inbox has now is read: by this call, by the next ones of Readable, or by a
// timer that is due at once.
func (e *Endpoint) Gone(incarnation uint64) {
	if e.closed {
		return
	}
	e.enter()
	if p := e.peers[incarnation]; p != nil {
		p.dying = true
	}
	// Its last words are in the inbox already: after them nothing comes.
	e.dead = append(e.dead, death{incarnation, goneBudget})
	_ = e.read(readBudget)
	e.leave()
}

// bury notes that so many messages were read, and acts on the deaths of those
// of whom no more can come.
func (e *Endpoint) bury(messages int) {
	if len(e.dead) == 0 {
		return
	}
	left := e.dead[:0]
	var buried []uint64
	for _, d := range e.dead {
		if d.budget -= messages; d.budget > 0 {
			left = append(left, d)
		} else {
			buried = append(buried, d.incarnation)
		}
	}
	e.dead = left
	for _, incarnation := range buried {
		e.abandonTails(incarnation)
		if p := e.peers[incarnation]; p != nil {
			e.forget(p)
		}
	}
}

// forget ends all that there was with a peer that is dead.
func (e *Endpoint) forget(p *peer) {
	delete(e.peers, p.incarnation)
	e.endOffers(p, ErrPeerGone)
	if p.inbox >= 0 {
		e.kernel.close(p.inbox)
	} else {
		e.unknown--
	}
}

// Room returns how many connections Give would offer to a peer at once, the
// window being open; more would wait. It returns 0 if the peer is unknown,
// dead or late.
func (e *Endpoint) Room(to uint64) int {
	p := e.peers[to]
	if p == nil || p.excluded() != nil {
		return 0
	}
	return max(0, (Window-len(p.sent))*BatchConnections-p.queued)
}

// Owes returns whether answers or tails wait for room in the inbox of a peer
// that lives. They are lost if the process ends before they have gone.
func (e *Endpoint) Owes() bool {
	for _, p := range e.peers {
		if len(p.out) > 0 {
			return true
		}
	}
	return false
}

// Readable reads messages from the inbox until it is empty or a budget is
// used up, so it is to be called as long as the inbox is readable. It returns
// io.EOF if nobody has a sending end any more, and recvmsg(2)'s error if the
// inbox is broken: the caller stops watching it then.
func (e *Endpoint) Readable() error {
	if e.closed {
		return nil
	}
	e.enter()
	err := e.read(readBudget)
	e.leave()
	return err
}

// read handles at most so many messages.
func (e *Endpoint) read(budget int) error {
	if e.inbox == nil {
		e.inbox = make([]byte, maxMessage)
	}
	for range budget {
		n, nfds, truncated, err := e.kernel.receive(e.options.Inbox, e.inbox, e.received[:])
		if errors.Is(err, unix.EAGAIN) {
			e.bury(goneBudget)
			return nil
		}
		if err != nil {
			e.bury(goneBudget)
			return err
		}
		fds := e.received[:nfds]
		if err := e.handle(e.inbox[:n], fds, truncated); err != nil {
			e.options.Trouble(err)
		}
		for _, fd := range fds {
			if fd >= 0 { // not taken over by anyone
				e.kernel.close(fd)
			}
		}
		e.bury(1)
	}
	return nil
}

// handle acts on a message. Descriptors that are kept are replaced by -1 in
// fds. An error says what was wrong with the message.
func (e *Endpoint) handle(m []byte, fds []int, truncated bool) error {
	h, rest, err := parse(m)
	switch {
	case err != nil:
		return err
	case h.from == e.options.Self:
		return fmt.Errorf("handoff: message of kind %d from %d, which is this process", h.kind, h.from)
	case h.version != version && h.kind == kindOffer:
		e.refuse(h, Version)
		return fmt.Errorf("handoff: offer from %d: version %d, want %d", h.from, h.version, version)
	case h.version != version:
		return fmt.Errorf("handoff: message of kind %d from %d: version %d, want %d", h.kind, h.from, h.version, version)
	}
	switch h.kind {
	case kindOffer:
		return e.onOffer(h, rest, fds, truncated)
	case kindAnswer:
		return e.onAnswer(h, rest)
	case kindTails:
		return e.onTails(h, rest)
	}
	return fmt.Errorf("handoff: message of unknown kind %d from %d", h.kind, h.from)
}

// Close ends the hand-offs that are under way: what is offered and not taken
// is thawed, who waits for a tail goes on without. It closes the inbox and
// what Peer has taken over. Give thaws from now on; the other methods do
// nothing.
func (e *Endpoint) Close() {
	if e.closed {
		return
	}
	e.enter()
	e.closed = true
	for incarnation, p := range e.peers {
		e.abandonTails(incarnation)
		e.endOffers(p, ErrClosed)
		if p.inbox >= 0 {
			e.kernel.close(p.inbox)
		}
	}
	clear(e.peers)
	e.kernel.close(e.options.Inbox)
	e.leave()
}

// enter begins what leave ends: the outermost of the calls that are under
// way does what these have left to do. It is not deferred: what panics in
// between is not to be gone on with.
func (e *Endpoint) enter() { e.busy++ }

func (e *Endpoint) leave() {
	if e.busy > 1 {
		e.busy--
		return
	}
	for again := true; again; {
		again = false
		for len(e.over) > 0 {
			c := e.over[0]
			e.over = e.over[1:]
			if c.done != nil {
				c.done(c.outcome)
			}
		}
		for _, p := range e.peers {
			if e.pump(p) {
				again = true
			}
		}
		again = again || len(e.over) > 0
	}
	e.over = nil
	e.busy--
	e.arm()
}

// arm sets the timer to the next deadline.
func (e *Endpoint) arm() {
	next := time.Duration(-1)
	due := func(at time.Duration) {
		if next < 0 || at < next {
			next = at
		}
	}
	for _, p := range e.peers {
		if p.retry > 0 {
			due(p.retry)
		}
		if len(p.sent) > 0 {
			due(p.sent[0].by)
		}
		if len(p.queue) > 0 {
			due(p.queue[0].by)
		}
	}
	for _, w := range e.waits {
		if !w.over {
			due(w.by)
			break
		}
	}
	if len(e.dead) > 0 {
		// The last message may have been the last of a budget: then nobody has
		// seen that the inbox is empty, and nobody calls Readable for that.
		due(e.options.Now())
	}
	// One that is early is left alone: it finds nothing to do and sets itself
	// anew. Deadlines move with every batch, and most never come.
	if e.timer.stop != nil && (next < 0 || e.timer.at > next || e.closed) {
		e.timer.stop()
		e.timer.stop = nil
	}
	if e.timer.stop == nil && next >= 0 && !e.closed {
		e.timer.at = next
		e.timer.stop = e.options.After(max(0, next-e.options.Now()), e.tick)
	}
}

// tick acts on the deadlines that have come.
func (e *Endpoint) tick() {
	e.timer.stop = nil
	e.enter()
	// A loop that was held up has the answers in its inbox.
	_ = e.read(readBudget)
	now := e.options.Now()
	for _, p := range e.peers {
		if p.retry > 0 && p.retry <= now {
			e.flush(p)
		}
		e.expire(p, now)
	}
	for _, w := range e.waits {
		if w.by > now {
			break
		}
		if !w.over {
			e.goOn(w)
			e.options.Trouble(fmt.Errorf("handoff: batch %d from %d: no tails after %v", w.batch, w.from, e.options.TailWait))
		}
	}
	e.leave()
}

// tell sends a message that no deadline revokes, now or later.
func (e *Endpoint) tell(p *peer, m []byte) {
	if p.broken {
		return
	}
	if p.inbox >= 0 && len(p.out) == 0 {
		err := e.kernel.send(p.inbox, m, nil)
		if err == nil {
			return
		}
		if !errors.Is(err, errFull) {
			e.breakOff(p, err)
			return
		}
	}
	p.out = append(p.out, append([]byte(nil), m...))
	e.postpone(p)
}

// postpone sets the time for trying again what did not fit.
func (e *Endpoint) postpone(p *peer) {
	if p.inbox >= 0 {
		p.pause = min(max(2*p.pause, firstRetry), lastRetry)
		p.retry = e.options.Now() + p.pause
	}
}

// flush tries again what did not fit.
func (e *Endpoint) flush(p *peer) {
	p.retry = 0
	for len(p.out) > 0 {
		err := e.kernel.send(p.inbox, p.out[0], nil)
		switch {
		case errors.Is(err, errFull):
			e.postpone(p)
			return
		case err != nil:
			e.breakOff(p, err)
			return
		}
		p.out = p.out[1:]
		p.pause = 0
	}
	p.out = nil
	if b := p.waiting(); b != nil {
		e.send(p, b, b.unsent)
	}
}

// breakOff gives up a peer whose inbox is no more: nothing in it will be
// read.
func (e *Endpoint) breakOff(p *peer, err error) {
	p.broken = true
	p.out, p.retry = nil, 0
	e.options.Trouble(fmt.Errorf("handoff: inbox of %d: %w", p.incarnation, err))
	e.endOffers(p, ErrPeerGone)
}
