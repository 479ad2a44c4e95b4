package handoff

import (
	"fmt"
	"hash/maphash"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// The model: a few processes, each with a real Endpoint on a real table, whose
// kernel, clock and connections are made here. Every Endpoint runs as a
// coroutine that stops at each of its steps, and at each stop every
// continuation is tried: which process goes on, which message is read, lost or
// doubled, whose deadline comes, who dies, who hears of it and when its rows
// are reclaimed. What is tried is the code itself, run from the beginning for
// each continuation; states that were seen before are not tried again.

// scenario bounds what may happen in a model.
type scenario struct {
	name      string
	processes int
	conns     int // all of process 1 at the beginning
	pair      bool
	gives     []give // each may happen, when the giver serves all of it
	deaths    int
	losses    int
	doubles   int
	full      bool // inbox 2 is full until it has room
	deadlines int  // that may come before their messages
}

// give is a call of Give that may happen.
type give struct{ from, to int }

// process is a process of the model.
type process struct {
	*Endpoint
	world   *world
	number  int
	alive   bool
	inbox   []packet
	full    bool
	budget  int // messages it may receive in this command
	clock   time.Duration
	timerAt time.Duration
	timer   func()
	command string
	next    func() (struct{}, bool) // nil: no command is running
	stop    func()
	trace   []point
	conns   []*modelConn // that it has, in whatever state
	fds     int          // open in it
	told    []bool       // which deaths it was told of
	gone    bool         // its rows were reclaimed
}

type packet struct {
	m   []byte
	fds []int // conns' numbers
}

type modelState uint8

const (
	serving modelState = iota
	frozen
	held // adopted, not served
	ended
)

// modelConn is a process's copy of a connection.
type modelConn struct {
	p       *process
	number  int // of the connection
	state   modelState
	version byte // of what it knows of the connection
	tails   int
	lost    bool
	partner *modelConn
}

type world struct {
	scenario
	table     *rows.Table
	ps        []*process
	ids       []rows.ID
	rows      []*rows.Row
	version   []byte // what the last who served has made of the connection
	ownerDead []bool // somebody died who owned it
	gave      []bool // which gives have happened
	trouble   bool   // a message or process was lost, or a deadline came: tails may be missing
	log       []string
	failed    string
}

type action struct {
	name string
	do   func()
}

func newWorld(table *rows.Table, s scenario) *world {
	w := &world{scenario: s, table: table, gave: make([]bool, len(s.gives)), version: make([]byte, s.conns), ownerDead: make([]bool, s.conns)}
	for i := range s.processes {
		p := &process{world: w, number: i + 1, alive: true, told: make([]bool, s.processes+1)}
		alloc := table.Allocator(uint64(p.number))
		p.Endpoint = newEndpoint(Options{
			Self: uint64(p.number), Table: table, Inbox: p.number,
			Adopt: p.adopt, Join: func(a, b Incoming) {
				a.(*modelConn).partner, b.(*modelConn).partner = b.(*modelConn), a.(*modelConn)
			},
			Free: alloc.Free, Trouble: func(error) {},
			Now: func() time.Duration { return p.clock },
			After: func(d time.Duration, f func()) func() {
				p.timerAt, p.timer = p.clock+d, f
				return func() { p.timer = nil }
			},
		}, (*modelKernel)(p))
		w.ps = append(w.ps, p)
		if i == 0 {
			for n := range s.conns {
				id, row, err := alloc.Take()
				if err != nil {
					panic(err)
				}
				row.Cookie.Store(uint64(n))
				w.ids, w.rows = append(w.ids, id), append(w.rows, row)
				p.conns = append(p.conns, &modelConn{p: p, number: n})
				p.fds++
			}
			if s.pair {
				p.conns[0].partner, p.conns[1].partner = p.conns[1], p.conns[0]
			}
		}
	}
	for _, p := range w.ps {
		for _, q := range w.ps {
			if p != q {
				p.Peer(uint64(q.number), q.number, q.number)
			}
		}
		p.Endpoint.step = p.stopAt
	}
	if s.full {
		w.ps[1].full = true
	}
	return w
}

// modelKernel is what a process sees of the system. An inbox's descriptor is
// the number of its process; a connection's is 100 and its number.
type modelKernel process

func (k *modelKernel) limit(int) int { return maxMessage }
func (k *modelKernel) close(fd int) {
	if fd >= 100 {
		k.fds--
	}
}
func (k *modelKernel) cookie(fd int) (uint64, error) { return uint64(fd - 100), nil }

func (k *modelKernel) send(inbox int, m []byte, fds []int) error {
	q := k.world.ps[inbox-1]
	switch {
	case !q.alive:
		return errBroken
	case q.full:
		return errFull
	}
	x := packet{m: slices.Clone(m)}
	for _, fd := range fds {
		x.fds = append(x.fds, fd-100)
	}
	q.inbox = append(q.inbox, x)
	return nil
}

func (k *modelKernel) receive(inbox int, m []byte, fds []int) (n, nfds int, truncated bool, err error) {
	if k.budget == 0 || len(k.inbox) == 0 {
		return 0, 0, false, unix.EAGAIN
	}
	k.budget--
	x := k.inbox[0]
	k.inbox = k.inbox[1:]
	for i, number := range x.fds {
		fds[i] = 100 + number
		k.fds++
	}
	return copy(m, x.m), len(x.fds), false, nil
}

func (p *process) adopt(o Offer) (Incoming, error) {
	number := o.FD - 100
	c := &modelConn{p: p, number: number, state: held, version: o.Body[0]}
	p.conns = append(p.conns, c)
	return c, nil
}

func (c *modelConn) ID() rows.ID          { return c.p.world.ids[c.number] }
func (c *modelConn) Row() *rows.Row       { return c.p.world.rows[c.number] }
func (c *modelConn) FD() int              { return 100 + c.number }
func (c *modelConn) Since() time.Duration { return 0 }

func (c *modelConn) Capture(dst []byte) ([]byte, error) { return append(dst, c.version), nil }

func (c *modelConn) Thaw() {
	c.must(frozen)
	c.serve()
}

func (c *modelConn) Left(int) []byte {
	c.must(frozen)
	c.end()
	return []byte{c.version}
}

func (c *modelConn) Serve(bool) {
	c.must(held)
	if c.version != c.p.world.version[c.number] {
		c.p.world.fail("process %d serves connection %d as it was at %d, but it is at %d", c.p.number, c.number, c.version, c.p.world.version[c.number])
	}
	c.serve()
}

func (c *modelConn) Tail(tail []byte) error {
	w := c.p.world
	if c.tails++; c.tails > 1 || c.state == held {
		w.fail("process %d: connection %d gets its tail in state %d for the %d. time", c.p.number, c.number, c.state, c.tails)
	}
	if tail == nil && !w.trouble {
		w.fail("process %d: connection %d gets no tail", c.p.number, c.number)
	}
	return nil
}

func (c *modelConn) Lost() {
	if c.lost || c.tails != 1 || c.state == held {
		c.p.world.fail("process %d: connection %d has lost its tail in state %d after %d tails, lost before: %v", c.p.number, c.number, c.state, c.tails, c.lost)
	}
	c.lost = true
}

func (c *modelConn) Drop() {
	c.must(held)
	c.end()
}

func (c *modelConn) must(s modelState) {
	if c.state != s {
		c.p.world.fail("process %d: connection %d is in state %d, want %d", c.p.number, c.number, c.state, s)
	}
}

// serve begins to serve: from here on the connection is another than what was
// known of it before.
func (c *modelConn) serve() {
	c.state = serving
	c.p.world.version[c.number]++
	c.version = c.p.world.version[c.number]
}

func (c *modelConn) end() {
	c.state = ended
	c.p.fds--
	c.p.conns = slices.DeleteFunc(c.p.conns, func(x *modelConn) bool { return x == c })
}

func (w *world) fail(format string, args ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
	}
}

// killed is the panic of a process that dies in the middle of a command.
type killed struct{}

// stopAt is where a process stops and another may go on.
func (p *process) stopAt(at point) {
	p.trace = append(p.trace, at)
	if yield := p.world.yield(p); !yield {
		panic(killed{})
	}
}

// The coroutine of each process has its own yield.
var yields = map[*process]func(struct{}) bool{}

func (w *world) yield(p *process) bool { return yields[p](struct{}{}) }

// run starts a command of a process, up to its first stop.
func (p *process) run(name string, budget int, f func()) {
	p.command, p.budget, p.trace = name, budget, p.trace[:0]
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		yields[p] = yield
		defer func() {
			if r := recover(); r != nil && r != (killed{}) {
				panic(r)
			}
		}()
		f()
	})
	p.resume()
}

func (p *process) resume() {
	if _, more := p.next(); !more {
		p.next, p.stop, p.command, p.budget = nil, nil, "", 0
		p.trace = p.trace[:0]
	}
}

func (p *process) die() {
	w := p.world
	p.alive = false
	if p.stop != nil {
		p.stop()
		p.next, p.stop = nil, nil
	}
	delete(yields, p)
	for n, r := range w.rows {
		if r.Owner().Incarnation == uint64(p.number) {
			w.ownerDead[n] = true
		}
	}
	if w.pair && slices.Contains(w.ownerDead, true) { // a pair ends as a whole
		w.ownerDead[0], w.ownerDead[1] = true, true
	}
	p.inbox, p.conns, p.timer, p.fds = nil, nil, nil, 0
	w.trouble = true
}

// actions are all that may happen next.
func (w *world) actions() (list []action) {
	can := func(do func(), format string, args ...any) {
		list = append(list, action{fmt.Sprintf(format, args...), do})
	}
	for _, p := range w.ps {
		if !p.alive {
			if !p.gone {
				can(func() { p.gone = true; w.table.Reclaim(uint64(p.number)) }, "reclaim %d", p.number)
			}
			continue
		}
		if w.deaths > 0 {
			can(func() { w.deaths--; p.die() }, "kill %d", p.number)
		}
		if p.full {
			can(func() { p.full = false }, "room %d", p.number)
		}
		if len(p.inbox) > 0 && w.losses > 0 {
			can(func() { w.losses--; w.trouble = true; p.inbox = p.inbox[1:] }, "lose %d", p.number)
		}
		if len(p.inbox) > 0 && w.doubles > 0 && len(p.inbox[0].fds) == 0 {
			can(func() { w.doubles--; p.inbox = append(p.inbox, p.inbox[0]) }, "double %d", p.number)
		}
		if p.next != nil {
			can(p.resume, "step %d", p.number)
			continue
		}
		if len(p.inbox) > 0 {
			can(func() { p.run("read", 1, func() { _ = p.Readable() }) }, "read %d", p.number)
		}
		// A retry is no deadline: it happens in order, not in place of something.
		if p.timer != nil {
			early := w.underWay(p)
			if !early || w.deadlines > 0 {
				can(func() {
					if early {
						w.deadlines--
						w.trouble = true
					}
					f := p.timer
					p.timer, p.clock = nil, max(p.clock, p.timerAt)
					p.run("tick", 0, f)
				}, "tick %d", p.number)
			}
		}
		for i, g := range w.gives {
			if !w.gave[i] && g.from == p.number && p.servesAll() {
				can(func() { w.gave[i] = true; p.run(fmt.Sprint("give", i), 0, func() { p.giveAll(g.to) }) }, "give %d to %d", g.from, g.to)
			}
		}
		for _, q := range w.ps {
			if !q.alive && !p.told[q.number] {
				can(func() {
					p.told[q.number] = true
					p.run(fmt.Sprint("gone", q.number), 1000, func() { p.Gone(uint64(q.number)) })
				}, "tell %d of %d", p.number, q.number)
			}
		}
	}
	return list
}

// underWay says whether anything could still happen that a deadline of p is
// there to wait for. If not, it is not early.
func (w *world) underWay(p *process) bool {
	for _, q := range w.ps {
		if q != p && (q.next != nil || len(q.inbox) > 0 || q.full || !q.alive && !p.told[q.number]) {
			return true
		}
	}
	return len(p.inbox) > 0
}

func (p *process) servesAll() bool {
	n := 0
	for _, c := range p.conns {
		if c.state == serving {
			n++
		}
	}
	return n == p.world.scenario.conns
}

func (p *process) giveAll(to int) {
	var units []Unit
	for _, c := range p.conns {
		c.state = frozen
		if c.partner == nil {
			units = append(units, Unit{First: c})
		}
	}
	if p.world.pair {
		units = []Unit{{First: p.conns[0], Second: p.conns[1]}}
	}
	p.Give(uint64(to), 0, units, nil)
}

// check holds at every instant.
func (w *world) check() {
	for n, r := range w.rows {
		var who []int
		for _, p := range w.ps {
			for _, c := range p.conns {
				if c.number == n && c.state == serving {
					who = append(who, p.number)
					if owner := r.Owner().Incarnation; owner != uint64(p.number) {
						w.fail("process %d serves connection %d, which is %d's", p.number, n, owner)
					}
				}
			}
		}
		if len(who) > 1 {
			w.fail("connection %d is served by %v", n, who)
		}
	}
}

// final holds when nothing can happen any more.
func (w *world) final() {
	for n, r := range w.rows {
		served := 0
		for _, p := range w.ps {
			for _, c := range p.conns {
				if c.number != n {
					continue
				}
				if c.state == serving {
					served = p.number
				} else {
					w.fail("in the end process %d has connection %d in state %d", p.number, n, c.state)
				}
			}
		}
		o := r.Owner()
		switch {
		case served == 0 && !w.ownerDead[n]:
			w.fail("in the end nobody serves connection %d, and no owner has died", n)
		case w.pair && n == 1 && served == 0 && o.Incarnation > 0 && o.Offered == 0 && w.ps[o.Incarnation-1].alive:
			// Freed when that process ends: the taker died between the two rows.
		case o.Incarnation != uint64(served) || o.Offered != 0:
			w.fail("in the end connection %d is served by %d, and its row says %+v", n, served, o)
		}
	}
	for _, p := range w.ps {
		if p.alive && p.fds != len(p.conns) {
			w.fail("in the end process %d has %d descriptors of %d connections", p.number, p.fds, len(p.conns))
		}
	}
}

var seed = maphash.MakeSeed()

// fingerprint tells states apart.
func (w *world) fingerprint() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	fmt.Fprint(&h, w.version, w.ownerDead, w.gave, w.trouble, w.deaths, w.losses, w.doubles, w.deadlines)
	for _, r := range w.rows {
		o := r.Owner()
		fmt.Fprint(&h, "|", o.Incarnation, o.Offered)
	}
	for _, p := range w.ps {
		fmt.Fprint(&h, "|p", p.alive, p.full, p.command, p.trace, p.told, p.gone, p.fds)
		if !p.alive {
			continue
		}
		for _, c := range p.conns {
			fmt.Fprint(&h, "|c", c.number, c.state, c.version, c.tails, c.lost)
		}
		for _, x := range p.inbox {
			w.print(&h, x)
		}
		if p.timer != nil {
			fmt.Fprint(&h, "|t", p.timerAt-p.clock)
		}
		for q := range w.ps {
			x := p.peers[uint64(q+1)]
			if x == nil {
				fmt.Fprint(&h, "|-")
				continue
			}
			fmt.Fprint(&h, "|q", x.broken, len(x.out), x.retry-p.clock, x.late, len(x.queue))
			for _, b := range x.sent {
				fmt.Fprint(&h, "|b", b.number, b.by-p.clock, b.unsent != nil, b.connections)
			}
		}
		for _, v := range p.waits {
			fmt.Fprint(&h, "|w", v.from, v.batch, v.by-p.clock, v.over)
			for _, c := range v.connections {
				fmt.Fprint(&h, c != nil)
			}
		}
	}
	return h.Sum64()
}

// print writes a message without what differs from run to run.
func (w *world) print(out io.Writer, x packet) {
	h, rest, err := parse(x.m)
	if err != nil {
		panic(err)
	}
	fmt.Fprint(out, "|m", h, x.fds)
	if h.kind != kindOffer {
		fmt.Fprintf(out, "%x", rest)
		return
	}
	records, err := parseOffer(nil, h, rest)
	if err != nil {
		panic(err)
	}
	for _, r := range records {
		fmt.Fprint(out, r.second, r.body)
	}
}

// explore tries all that may happen and returns how many states there are.
func explore(t *testing.T, s scenario) (states, ends int) {
	t.Helper()
	table := newTable(t, 512)
	seen := make(map[uint64]struct{})
	type choice struct{ taken, of int }
	var path []choice
	buffers := make([][]byte, s.processes)
	for i := range buffers {
		buffers[i] = make([]byte, 4096)
	}
	for {
		w := newWorld(table, s)
		for i, p := range w.ps {
			p.Endpoint.inbox = buffers[i]
		}
		depth := 0
		for ; ; depth++ {
			list := w.actions()
			if len(list) == 0 {
				w.final()
				ends++
			}
			if w.failed != "" {
				break
			}
			if len(list) == 0 {
				break
			}
			if depth == len(path) {
				f := w.fingerprint()
				if _, ok := seen[f]; ok {
					break
				}
				seen[f] = struct{}{}
				path = append(path, choice{0, len(list)})
			}
			a := list[path[depth].taken]
			w.log = append(w.log, a.name)
			a.do()
			w.check()
			if w.failed != "" {
				break
			}
		}
		for _, p := range w.ps {
			if p.stop != nil {
				p.stop()
			}
			delete(yields, p)
		}
		for i := range w.ps {
			table.Reclaim(uint64(i + 1))
		}
		if w.failed != "" {
			t.Fatalf("%s\nafter: %s", w.failed, strings.Join(w.log, ", "))
		}
		for len(path) > 0 && path[len(path)-1].taken+1 == path[len(path)-1].of {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			return len(seen), ends
		}
		path[len(path)-1].taken++
	}
}

func TestModel(t *testing.T) {
	if underRace {
		t.Skip("one coroutine at a time runs, so there is nothing to race, and it would take minutes")
	}
	for _, s := range []scenario{
		{name: "one connection that is given twice", processes: 2, conns: 1, gives: []give{{1, 2}, {1, 2}}, deaths: 2, losses: 1, doubles: 1, deadlines: 2},
		{name: "one connection that is given back", processes: 2, conns: 1, gives: []give{{1, 2}, {2, 1}}, deaths: 1, losses: 1, deadlines: 2},
		{name: "an inbox that is full", processes: 2, conns: 1, full: true, gives: []give{{1, 2}, {1, 2}}, deaths: 1, deadlines: 3},
		{name: "two connections", processes: 2, conns: 2, gives: []give{{1, 2}}, deaths: 2, losses: 1, deadlines: 2},
		{name: "a pair", processes: 2, conns: 2, pair: true, gives: []give{{1, 2}}, deaths: 2, losses: 1, deadlines: 2},
		{name: "a pair that is given back", processes: 2, conns: 2, pair: true, gives: []give{{1, 2}, {2, 1}}, deaths: 1, deadlines: 1},
		{name: "to one, then to another", processes: 3, conns: 1, gives: []give{{1, 2}, {1, 3}}, deaths: 1, deadlines: 1},
		{name: "to one, by way of another", processes: 3, conns: 1, gives: []give{{1, 2}, {1, 3}, {3, 2}}, losses: 1, deadlines: 2},
	} {
		t.Run(s.name, func(t *testing.T) {
			began := time.Now()
			states, ends := explore(t, s)
			t.Logf("%d states, %d ways to end, %v", states, ends, time.Since(began).Round(time.Millisecond))
		})
	}
}
