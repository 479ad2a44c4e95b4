package handoff

import (
	"errors"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// call is a call of Give.
type call struct {
	outcome Outcome
	open    int // connections whose fate is not known
	done    func(Outcome)
}

// parcel is a unit on its way.
type parcel struct {
	unit Unit
	call *call
	why  uint8
	by   time.Duration // when it is thawed, if it was not offered until then
}

// connections returns how many there are in it.
func (u Unit) connections() int {
	if u.Second != nil {
		return 2
	}
	return 1
}

// batch is what was offered together.
type batch struct {
	number      uint64
	parcels     []parcel
	connections int
	by          time.Duration // when it is decided, answered or not
	bulk        bulk
	bulkSize    int

	// unsent is the message, if it waits for room in the inbox, in which case
	// nobody can have read it.
	unsent []byte
}

// excluded returns why a peer is offered nothing; nil: it is.
func (p *peer) excluded() error {
	switch {
	case p.broken || p.dying:
		return ErrPeerGone
	case p.inbox < 0:
		return ErrUnknownPeer
	case len(p.late) > 0:
		return ErrPeerLate
	}
	return nil
}

// waiting returns the batch that waits for room in the inbox, or nil.
func (p *peer) waiting() *batch {
	if n := len(p.sent); n > 0 && p.sent[n-1].unsent != nil {
		return p.sent[n-1]
	}
	return nil
}

// Give gives units, which stand still, to another process. why comes out as
// Offer.Why. done, which may be nil, is called once, when the fate of all is
// known: at the latest a little after twice Options.Deadline, at the earliest
// before Give returns. The slice stays the caller's.
//
// What does not fit into the window waits, standing still: a caller freezes
// Room connections, gives them, and goes on when done is called.
func (e *Endpoint) Give(to uint64, why uint8, units []Unit, done func(Outcome)) {
	e.enter()
	c := &call{done: done}
	for _, u := range units {
		c.open += u.connections()
	}
	if c.open == 0 {
		e.over = append(e.over, c)
	}
	err := error(ErrUnknownPeer)
	p := e.peers[to]
	if p != nil {
		err = p.excluded()
	}
	if e.closed {
		err = ErrClosed
	}
	by := e.options.Now() + e.options.Deadline
	for _, u := range units {
		x := parcel{unit: u, call: c, why: why, by: by}
		if err != nil {
			e.thaw(x, err)
			continue
		}
		p.queue = append(p.queue, x)
		p.queued += u.connections()
	}
	e.leave()
}

// pump offers what waits, as far as the window goes. It returns whether it
// did anything.
func (e *Endpoint) pump(p *peer) (did bool) {
	for len(p.queue) > 0 {
		if err := p.excluded(); err != nil {
			e.thawQueue(p, err)
			return true
		}
		if len(p.sent) >= Window || len(p.out) > 0 || p.waiting() != nil || p.bulkSize() >= bulkLimit {
			return did
		}
		e.offer(p)
		did = true
	}
	return did
}

// bulkSize returns how many bytes lie in memfds that were not answered.
func (p *peer) bulkSize() (n int) {
	for _, b := range p.sent {
		n += b.bulkSize
	}
	return n
}

// offer makes a batch of what waits and sends it.
func (e *Endpoint) offer(p *peer) {
	e.batches++
	b := e.newBatch()
	m := begin(e.message[:0], header{version: version, kind: kindOffer, from: e.options.Self, batch: e.batches})
	taken := 0
	for taken < len(p.queue) {
		x := p.queue[taken]
		n := x.unit.connections()
		if b.connections+n > BatchConnections {
			break
		}
		start := len(m)
		var err error
		m, err = e.capture(p, b, m, x)
		if errors.Is(err, errCut) {
			m = m[:start]
			break
		}
		if err == nil {
			e.at(pointOffer)
			if first := x.unit.First; !first.Row().Offer(first.ID(), e.options.Self, p.incarnation) {
				err = ErrNotOwned
			}
		}
		taken++
		p.queued -= n
		if err != nil {
			m = m[:start]
			e.thaw(x, err)
			continue
		}
		b.parcels = append(b.parcels, x)
		b.connections += n
	}
	// Not before: Thaw may have called Give, which appends.
	p.queue = slices.Delete(p.queue, 0, taken)
	if cap(m) <= keepBuffer {
		e.message = m[:0]
	} else {
		e.message = nil
	}
	if b.bulk.size == 0 {
		b.bulk.close()
	}
	if b.connections == 0 {
		e.spare = append(e.spare, b)
		return
	}
	flags := uint8(0)
	if b.bulk.fd >= 0 {
		flags = flagBulk
	}
	seal(m, flags, b.connections)
	b.bulkSize = b.bulk.size
	b.by = e.options.Now() + e.options.Deadline
	p.sent = append(p.sent, b)
	if err := b.bulk.seal(); err != nil {
		e.endBatch(p, b, nil, err)
		return
	}
	e.send(p, b, m)
}

// newBatch returns an empty batch with the next number.
func (e *Endpoint) newBatch() *batch {
	b := new(batch)
	if n := len(e.spare); n > 0 {
		b, e.spare = e.spare[n-1], e.spare[:n-1]
	}
	*b = batch{number: e.batches, parcels: b.parcels[:0], bulk: bulk{fd: -1}}
	return b
}

// errCut says that something does not fit into a batch that is not empty.
var errCut = errors.New("handoff: batch is full")

// capture appends the records of a unit to a message. It returns errCut if
// they do not fit any more, and another error if they never will.
func (e *Endpoint) capture(p *peer, b *batch, m []byte, x parcel) ([]byte, error) {
	inline := min(maxInline, p.limit/4)
	size := b.bulk.size
	for i, c := range [2]Outgoing{x.unit.First, x.unit.Second} {
		if c == nil {
			break
		}
		start := len(m)
		m = beginRecord(m, record{id: c.ID(), since: c.Since(), why: x.why, second: i == 1})
		var err error
		if m, err = c.Capture(m); err != nil {
			b.bulk.size = size
			return m, err
		}
		body := m[start+recordSize:]
		if len(body) <= inline {
			endRecord(m, start)
			continue
		}
		if b.bulk.size+len(body) > bulkLimit {
			b.bulk.size = size
			if size == 0 || len(body) > bulkLimit { // it would not fit alone
				return m, ErrTooLarge
			}
			return m, errCut
		}
		offset, err := b.bulk.add(body)
		if err != nil {
			b.bulk.size = size
			return m, err
		}
		m = endRecordInBulk(m, start, offset)
	}
	if len(m) > p.limit && b.connections > 0 {
		b.bulk.size = size
		return m, errCut
	}
	return m, nil
}

// send sends the message of a batch, or leaves it to be tried again.
func (e *Endpoint) send(p *peer, b *batch, m []byte) {
	e.fds = e.fds[:0]
	if b.bulk.fd >= 0 {
		// First, so that it is the last that a taker is without.
		e.fds = append(e.fds, b.bulk.fd)
	}
	for _, x := range b.parcels {
		e.fds = append(e.fds, x.unit.First.FD())
		if x.unit.Second != nil {
			e.fds = append(e.fds, x.unit.Second.FD())
		}
	}
	e.at(pointSend)
	err := e.kernel.send(p.inbox, m, e.fds)
	switch {
	case errors.Is(err, errFull):
		if b.unsent == nil {
			b.unsent = slices.Clone(m) // m's buffer is for the next message
		}
		e.postpone(p)
	case errors.Is(err, errBroken):
		e.breakOff(p, err)
	case err != nil:
		e.endBatch(p, b, nil, err)
	default:
		b.unsent = nil
		b.bulk.close()
		p.pause = 0
		e.at(pointSent)
	}
}

// expire acts on the deadlines of what a peer was to get.
func (e *Endpoint) expire(p *peer, now time.Duration) {
	for len(p.sent) > 0 && p.sent[0].by <= now {
		b := p.sent[0]
		if b.unsent != nil {
			e.endBatch(p, b, nil, ErrInboxFull)
			e.thawQueue(p, ErrInboxFull)
			continue
		}
		// Before anything is thawed: what is thawed may be given again.
		p.late = append(p.late, b.number)
		e.endBatch(p, b, nil, ErrPeerLate)
	}
	for len(p.queue) > 0 && p.queue[0].by <= now {
		x := p.queue[0]
		p.queue = slices.Delete(p.queue, 0, 1)
		p.queued -= x.unit.connections()
		e.thaw(x, ErrPeerLate)
	}
}

// endOffers decides all that a peer was to get.
func (e *Endpoint) endOffers(p *peer, err error) {
	for len(p.sent) > 0 {
		e.endBatch(p, p.sent[0], nil, err)
	}
	e.thawQueue(p, err)
}

// thawQueue thaws what waits for the window.
func (e *Endpoint) thawQueue(p *peer, err error) {
	queue := p.queue
	p.queue, p.queued = nil, 0
	for _, x := range queue {
		e.thaw(x, err)
	}
}

// onAnswer acts on an answer. It is a hint: that the owner words are worth a
// look now, and what to say of those that have stayed.
func (e *Endpoint) onAnswer(h header, rest []byte) error {
	p := e.peers[h.from]
	if p == nil {
		return nil
	}
	if i := slices.Index(p.late, h.batch); i >= 0 {
		p.late = slices.Delete(p.late, i, i+1)
		return nil
	}
	i := slices.IndexFunc(p.sent, func(b *batch) bool { return b.number == h.batch && b.unsent == nil })
	if i < 0 {
		return nil // a second answer
	}
	b := p.sent[i]
	codes, err := parseAnswer(h, rest, b.connections)
	if err != nil {
		return err
	}
	e.endBatch(p, b, codes, Refused)
	return nil
}

// endBatch decides a batch: each connection is thawed, or has left, as its
// owner word says. codes are those of the answer, one for each or one for
// all; nil: there is none, and err tells why those that stay do so.
func (e *Endpoint) endBatch(p *peer, b *batch, codes []byte, err error) {
	p.sent = slices.DeleteFunc(p.sent, func(x *batch) bool { return x == b })
	b.bulk.close()
	tails := tails{endpoint: e, peer: p, batch: b.number}
	now := e.options.Now()
	place := 0
	for _, x := range b.parcels {
		reason := err
		if code := codeOf(codes, place); code != 0 {
			reason = Refusal(code)
		}
		first := x.unit.First
		e.at(pointDecide)
		if first.Row().TakeBack(first.ID(), e.options.Self, p.incarnation) {
			e.thaw(x, reason)
		} else {
			e.left(p, x, place, now, &tails)
		}
		place += x.unit.connections()
	}
	tails.end()
	clear(b.parcels)
	b.unsent = nil
	e.spare = append(e.spare, b)
}

func codeOf(codes []byte, place int) byte {
	switch {
	case len(codes) == 0:
		return 0
	case place < len(codes):
		return codes[place]
	}
	return codes[0]
}

// thaw ends a parcel's way where it began.
func (e *Endpoint) thaw(x parcel, err error) {
	o := &x.call.outcome
	n := x.unit.connections()
	if _, refused := errors.AsType[Refusal](err); refused {
		o.Refused += n
	} else {
		o.Thawed += n
	}
	if o.Err == nil {
		o.Err = err
	}
	x.count(e.options.Now())
	x.unit.First.Thaw()
	if x.unit.Second != nil {
		x.unit.Second.Thaw()
	}
	e.ended(x)
}

// left ends a parcel's way at the peer.
func (e *Endpoint) left(p *peer, x parcel, place int, now time.Duration, tails *tails) {
	x.call.outcome.Given += x.unit.connections()
	x.count(now)
	tails.add(place, x.unit.First.Left(p.slot))
	e.at(pointLeft)
	if second := x.unit.Second; second != nil {
		id, row := second.ID(), second.Row()
		tails.add(place+1, second.Left(p.slot))
		e.follow(p, id, row)
	}
	e.ended(x)
}

// follow sees to the row of a second whose first is the taker's. The taker
// moves it right after the first. If it died in between, the row is freed: at
// once if that is known, else when this process ends. It is not moved here,
// where it could reach one that is dead and whose rows were freed already.
func (e *Endpoint) follow(p *peer, id rows.ID, row *rows.Row) {
	if e.peers[p.incarnation] != p && row.Owner().Incarnation == e.options.Self {
		e.options.Free(id)
	}
}

// count notes for how long a parcel stood still.
func (x parcel) count(now time.Duration) {
	o := &x.call.outcome
	o.Longest = max(o.Longest, now-x.unit.First.Since())
	if x.unit.Second != nil {
		o.Longest = max(o.Longest, now-x.unit.Second.Since())
	}
}

// ended notes that a parcel's fate is known.
func (e *Endpoint) ended(x parcel) {
	if x.call.open -= x.unit.connections(); x.call.open == 0 {
		e.over = append(e.over, x.call)
	}
}

// tails puts the tails of a batch into messages.
type tails struct {
	endpoint *Endpoint
	peer     *peer
	batch    uint64
	m        []byte // nil: nothing has left yet
	count    int
}

func (t *tails) begin() {
	t.m = begin(t.m[:0], header{version: version, kind: kindTails, from: t.endpoint.options.Self, batch: t.batch})
	t.count = 0
}

// add adds the tail of a connection that has left, which may be empty.
func (t *tails) add(place int, tail []byte) {
	if t.m == nil {
		t.m = t.endpoint.message
		t.begin()
	}
	for len(tail) > 0 {
		room := t.peer.limit - len(t.m) - pieceSize
		if room <= 0 {
			t.send(0)
			t.begin()
			continue
		}
		n := min(room, len(tail))
		t.m = appendPiece(t.m, place, tail[:n], n < len(tail))
		t.count++
		tail = tail[n:]
	}
}

// end says that this was all, if there is anybody who waits for it.
func (t *tails) end() {
	if t.m != nil {
		t.send(flagEnd)
		t.endpoint.message = t.m[:0]
	}
}

func (t *tails) send(flags uint8) {
	e := t.endpoint
	if e.peers[t.peer.incarnation] != t.peer {
		return // dead
	}
	seal(t.m, flags, t.count)
	e.at(pointTails)
	e.tell(t.peer, t.m)
	e.at(pointTold)
}
