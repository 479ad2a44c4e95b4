package handoff

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// entrant is a unit that was rebuilt and is to be committed.
type entrant struct {
	place         int // of the first, in the batch
	id, secondID  rows.ID
	row           *rows.Row
	secondRow     *rows.Row
	first, second Incoming // second nil: there is none
}

// wait is a batch that was taken and whose tails are awaited.
type wait struct {
	from, batch uint64
	by          time.Duration
	over        bool       // they are awaited no more, but may still come
	connections []Incoming // by their places; nil: not taken, or it has its tail
	partial     []byte     // of a tail whose rest is to follow
	partialOf   int        // its place
}

// onOffer takes what is offered: rebuilds all, commits, answers, serves.
// Descriptors that are kept are replaced by -1 in fds.
func (e *Endpoint) onOffer(h header, rest []byte, fds []int, truncated bool) error {
	e.at(pointRead)
	records, err := parseOffer(e.records[:0], h, rest)
	e.records = records[:0]
	if err != nil {
		e.refuse(h, Malformed)
		return err
	}
	large := bulk{fd: -1}
	if h.flags&flagBulk != 0 && len(fds) > 0 {
		if large, err = openBulk(fds[0]); err != nil {
			e.refuse(h, Malformed)
			return fmt.Errorf("handoff: batch %d from %d: %w", h.batch, h.from, err)
		}
		fds = fds[1:]
	}
	if len(fds) > len(records) || len(fds) < len(records) && !truncated {
		e.refuse(h, Malformed)
		return fmt.Errorf("handoff: batch %d from %d: %d descriptors for %d connections", h.batch, h.from, len(fds), len(records))
	}
	codes := make([]byte, len(records))
	e.rebuild(h, records, fds, large, codes)
	// Only now, so that a state that kills this process takes nothing along.
	taken := e.commit(h, codes)
	e.at(pointAnswer)
	e.answer(h, codes)
	e.at(pointAnswered)
	if taken == 0 {
		return nil
	}
	e.serve(h, len(records))
	e.at(pointServed)
	return nil
}

// rebuild makes entrants of what is offered, and writes why not into codes.
func (e *Endpoint) rebuild(h header, records []record, fds []int, large bulk, codes []byte) {
	e.entrants = e.entrants[:0]
	var worst error
	suspect := e.shifted(records, fds)
	for i := 0; i < len(records); {
		n := 1
		if i+1 < len(records) && records[i+1].second {
			n = 2
		}
		x := entrant{place: i, id: records[i].id}
		err := errNoDescriptor
		if i+n <= len(fds) {
			x.first, x.row, err = e.adopt(h.from, &records[i], &fds[i], large, suspect)
		}
		if err == nil && n == 2 {
			x.secondID = records[i+1].id
			if x.second, x.secondRow, err = e.adopt(h.from, &records[i+1], &fds[i+1], large, suspect); err != nil {
				x.first.Drop()
			} else {
				e.options.Join(x.first, x.second)
			}
		}
		if err == nil {
			e.entrants = append(e.entrants, x)
		} else {
			code := Refused
			if r, ok := errors.AsType[Refusal](err); ok && r != 0 {
				code = r
			}
			for j := i; j < i+n; j++ {
				codes[j] = byte(code)
			}
			if worst == nil && code != TakenBack {
				worst = fmt.Errorf("handoff: batch %d from %d: connection %d: %w", h.batch, h.from, records[i].id, err)
			}
		}
		i += n
	}
	if cap(e.body) > keepBuffer {
		e.body = nil
	}
	if worst != nil {
		e.options.Trouble(worst)
	}
}

// errNoDescriptor says that a descriptor did not come along: this process may
// open no more.
var errNoDescriptor = fmt.Errorf("handoff: RLIMIT_NOFILE is reached: %w", NoRoom)

// shifted says whether the descriptors may be those of other connections than
// the records beside them. Whoever owns a connection knows its descriptor, and
// the kernel keeps the order: what can go wrong between the two lists is that
// one is shifted against the other, and that shows at the ends. To ask the
// kernel for every cookie costs a tenth of the whole hand-off.
func (e *Endpoint) shifted(records []record, fds []int) bool {
	n := min(len(records), len(fds))
	return n > 0 && (e.checkCookie(records[0].id, fds[0]) != nil || e.checkCookie(records[n-1].id, fds[n-1]) != nil)
}

// checkCookie returns an error unless the descriptor is the connection's.
func (e *Endpoint) checkCookie(id rows.ID, fd int) error {
	row := e.options.Table.Row(id)
	if row == nil {
		return TakenBack
	}
	cookie, err := e.kernel.cookie(fd)
	if err != nil {
		return fmt.Errorf("%w: %w", Malformed, err)
	}
	if want := row.Cookie.Load(); cookie != want {
		return fmt.Errorf("%w: cookie %#x, the row has %#x", Malformed, cookie, want)
	}
	return nil
}

// adopt checks one connection, its cookie too if the descriptor is suspect,
// and rebuilds it. It sets *fd to -1 if it is kept.
func (e *Endpoint) adopt(from uint64, r *record, fd *int, large bulk, suspect bool) (Incoming, *rows.Row, error) {
	row := e.options.Table.Row(r.id)
	if row == nil {
		return nil, nil, TakenBack
	}
	if o := row.Owner(); o.Incarnation != from || o.Offered != e.options.Self && !r.second {
		return nil, nil, TakenBack
	}
	if suspect {
		if err := e.checkCookie(r.id, *fd); err != nil {
			return nil, nil, err
		}
	}
	body := r.body
	if r.inBulk {
		var err error
		if body, err = large.read(e.body, r.offset, r.size); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", Malformed, err)
		}
		e.body = body[:0]
	}
	in, err := e.options.Adopt(Offer{From: from, Why: r.why, ID: r.id, Row: row, FD: *fd, Since: r.since, Body: body})
	if err != nil {
		return nil, nil, err
	}
	*fd = -1
	return in, row, nil
}

// commit makes the entrants this process's, drops those that it cannot have,
// and returns how many units are left.
func (e *Endpoint) commit(h header, codes []byte) int {
	kept := e.entrants[:0]
	for _, x := range e.entrants {
		e.at(pointCommit)
		code := e.own(h, x)
		if code == 0 {
			kept = append(kept, x)
			continue
		}
		codes[x.place] = byte(code)
		x.first.Drop()
		if x.second != nil {
			codes[x.place+1] = byte(code)
			x.second.Drop()
		}
	}
	clear(e.entrants[len(kept):])
	e.entrants = kept
	return len(kept)
}

// own commits a unit; zero: it is this process's.
func (e *Endpoint) own(h header, x entrant) Refusal {
	if !x.row.Commit(x.id, h.from, e.options.Self) {
		return TakenBack
	}
	if x.second != nil {
		e.at(pointHalf)
		if !x.secondRow.Move(x.secondID, h.from, e.options.Self) {
			e.options.Free(x.id)
			e.options.Trouble(fmt.Errorf("handoff: batch %d from %d: connection %d: its partner %d died with the giver", h.batch, h.from, x.id, x.secondID))
			return Refused
		}
	}
	e.at(pointCommitted)
	return 0
}

// serve serves what was committed, and waits for the tails.
func (e *Endpoint) serve(h header, connections int) {
	w := &wait{from: h.from, batch: h.batch, by: e.options.Now() + e.options.TailWait, connections: make([]Incoming, connections)}
	for _, x := range e.entrants {
		w.connections[x.place] = x.first
		if x.second != nil {
			w.connections[x.place+1] = x.second
		}
	}
	clear(e.entrants)
	e.waits = append(e.waits, w)
	for _, c := range w.connections {
		if c != nil {
			c.Serve(true)
		}
	}
}

// refuse answers that nothing of a batch is taken.
func (e *Endpoint) refuse(h header, why Refusal) {
	m := begin(nil, header{version: min(version, h.version), kind: kindAnswer, from: e.options.Self, batch: h.batch})
	m = append(m, byte(why))
	seal(m, flagForAll, 1)
	e.reply(h, m)
}

// answer answers an offer, with a code for each connection.
func (e *Endpoint) answer(h header, codes []byte) {
	m := begin(e.message[:0], header{version: version, kind: kindAnswer, from: e.options.Self, batch: h.batch})
	m = append(m, codes...)
	seal(m, 0, len(codes))
	e.message = m[:0]
	e.reply(h, m)
}

// reply sends an answer. A giver whose inbox is not known yet gets it when it
// is: until then it is late for its deadline.
func (e *Endpoint) reply(h header, m []byte) {
	p := e.peers[h.from]
	if p == nil {
		if e.unknown >= maxUnknown {
			e.options.Trouble(fmt.Errorf("handoff: batch %d from %d: no answer: %d peers are unknown", h.batch, h.from, e.unknown))
			return
		}
		p = e.meet(h.from)
	}
	e.tell(p, m)
}

// onTails gives connections their tails.
func (e *Endpoint) onTails(h header, rest []byte) error {
	i := slices.IndexFunc(e.waits, func(w *wait) bool { return w.from == h.from && w.batch == h.batch })
	if i < 0 {
		if h.count == 0 {
			return nil
		}
		return fmt.Errorf("handoff: batch %d from %d: tails come too late", h.batch, h.from)
	}
	w := e.waits[i]
	var bad error
	err := parseTails(h, rest, func(place int, piece []byte, more bool) {
		if err := e.tail(w, place, piece, more); err != nil && bad == nil {
			bad = fmt.Errorf("handoff: batch %d from %d: %w", h.batch, h.from, err)
		}
	})
	if h.flags&flagEnd != 0 && err == nil {
		e.endWait(w)
	}
	return errors.Join(err, bad)
}

// tail takes a piece of a tail.
func (e *Endpoint) tail(w *wait, place int, piece []byte, more bool) error {
	if place >= len(w.connections) || w.connections[place] == nil {
		return fmt.Errorf("a tail for place %d, which has none to come", place)
	}
	if w.over {
		w.connections[place].Lost()
		w.connections[place] = nil
		return fmt.Errorf("a tail for place %d, of %d bytes or more, comes too late: the connection is closed", place, len(piece))
	}
	if len(w.partial) > 0 && w.partialOf != place {
		return fmt.Errorf("a tail for place %d within that for %d", place, w.partialOf)
	}
	if len(w.partial)+len(piece) > bulkLimit {
		return fmt.Errorf("a tail of over %d bytes for place %d", bulkLimit, place)
	}
	if more || len(w.partial) > 0 {
		w.partial, w.partialOf = append(w.partial, piece...), place
		piece = w.partial
	}
	if more {
		return nil
	}
	c := w.connections[place]
	w.connections[place], w.partial = nil, nil
	return c.Tail(piece)
}

// endWait has those who have no tail yet go on without: none will come.
func (e *Endpoint) endWait(w *wait) {
	e.waits = slices.DeleteFunc(e.waits, func(x *wait) bool { return x == w })
	e.goOn(w)
}

// goOn has those who have no tail yet go on without.
func (e *Endpoint) goOn(w *wait) {
	if w.over {
		return
	}
	w.over, w.partial = true, nil
	for _, c := range w.connections {
		if c == nil {
			continue
		}
		if err := c.Tail(nil); err != nil {
			e.options.Trouble(fmt.Errorf("handoff: batch %d from %d: %w", w.batch, w.from, err))
		}
	}
}

// abandonTails has those go on who wait for tails from a process that will
// send none.
func (e *Endpoint) abandonTails(from uint64) {
	for _, w := range slices.Clone(e.waits) {
		if w.from == from {
			e.endWait(w)
		}
	}
}
