package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/keeper"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// harvester takes the connections of dead workers out of their keepers and
// gives them to workers that live. It has a goroutine of its own: a harvest is
// thousands of system calls. As the giver of a hand-off it has a number among
// the incarnations, which are counted from 1: its own is counted from the
// largest downward, by epoch.
//
// A harvest, step by step:
//
//	take back   Endpoint.Gone: what was offered by or to the dead is decided
//	reach       keeper.Reach by the row's descriptor number, verified by its cookie
//	own         Row.Move, and the number here noted: the row is ours
//	judge       keeper.Examine: do the kernel's counts agree with the row?
//	offer       a batch to the worker that has the fewest; refused ones again, to another
//	end         the keeper is killed and reaped: from here on the slot may have a successor
//	wait        connections for which there is no worker wait here, until one serves
//
// A connection that was under way is shut down, so that its peer learns it at
// once: a request that kills workers kills one. So it needs no guard that counts
// deaths, and those at rest beside it need not suffer for it.
//
// At any instant a process that does not die with the supervisor has the
// connection's descriptor, and the row's owner says which: the dead worker's
// keeper until it is ours, the supervisor's own keeper (ownkeeper.go) from then
// on, the taker once it has committed. So a supervisor that dies in the middle
// of a harvest is harvested by the next one, as its workers are.
type harvester struct {
	// Set once.

	number    uint64
	table     *rows.Table
	rows      *rows.Allocator
	listeners map[uint32]string // by conn.ListenerKey; "" if two have the same
	log       *zap.Logger
	clock     func() time.Duration
	inbox     int // the sending end, which workers are given
	watched   *os.File
	wake      chan struct{}   // there is something in queue
	safe      <-chan struct{} // closed when what is in our hands outlives this process; nil: it does, or never will
	quit      chan struct{}   // closed by close and leave
	leaving   bool            // set before quit is closed
	ended     sync.WaitGroup

	// Owned by the goroutine.

	ends    *handoff.Endpoint
	takers  map[uint64]*taker
	jobs    []*harvest    // to be done
	ahead   *ahead        // of the harvest that is under way
	waiting []*rescued    // in no worker's hands
	open    int           // rescued whose fate is not known, waiting included
	now     time.Duration // when work or dispatch has begun
	left    []int         // descriptors that workers have taken, to be closed
	spare   []rescued
	choices []choice       // of dispatch
	units   []handoff.Unit // of dispatch
	other   []*rescued     // an empty one, for waiting

	// Guarded by mu.

	mu    sync.Mutex
	queue []func()
}

// taker is a worker, as the harvester knows it.
type taker struct {
	link.Peer
	seat *scoreboard.Seat
	sent int // offered and not decided
}

// takes says whether it may be given connections now.
func (t *taker) takes() bool {
	return t.Serving && t.seat.Incarnation.Load() == t.Incarnation && link.State(t.seat.State.Load()) == link.StateServing
}

// harvest is what is to be done after a worker's death.
type harvest struct {
	number      uint64 // of the dead incarnation
	keeper      *kept
	connections bool                // they are to be rescued
	account     *account            // where it is written down what becomes of them; may be nil
	patience    time.Duration       // how long they may wait for a worker
	reaped      func(saved int)     // called once, when the keeper is gone, with how many connections are kept or wait for a worker
	done        func(harvestResult) // called once, when the fate of all is known

	since  time.Duration
	by     time.Duration
	open   int           // connections whose fate is not known
	over   bool          // all rows were looked at
	served chan struct{} // closed when open is 0 then; nil: nobody waits for that
	result harvestResult
	found  map[uint64]int // descriptors by cookie, if the rows did not tell
}

// harvestResult is what has become of the connections of a dead worker.
type harvestResult struct {
	Kept    int            // another worker has them
	Ended   int            // were ending anyway, or broken by their peers
	Torn    map[string]int // were shut down, by reason
	Longest time.Duration  // for which one of those that were kept was without a worker
}

func (r *harvestResult) torn() (n int) {
	for _, k := range r.Torn {
		n += k
	}
	return n
}

// kept is a worker's keeper.
type kept struct {
	pid   int
	pidfd int
}

// newHarvester starts a harvester, which the caller ends by close or leave.
func newHarvester(number uint64, table *rows.Table, names []string, safe <-chan struct{}, clock func() time.Duration, log *zap.Logger) (*harvester, error) {
	h := &harvester{
		number: number, table: table, rows: table.Allocator(number), listeners: make(map[uint32]string),
		log: log, clock: clock, wake: make(chan struct{}, 1), safe: safe, quit: make(chan struct{}), takers: make(map[uint64]*taker),
	}
	for _, name := range names {
		key := conn.ListenerKey(name)
		if _, twice := h.listeners[key]; twice {
			log.Warn("connections of a listener do not outlive a worker: its name is too like another's", zap.String("listener", name))
			name = ""
		}
		h.listeners[key] = name
	}
	receiving, sending, err := handoff.Pair()
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	// The endpoint closes its own; this one is watched.
	watched, err := unix.FcntlInt(uintptr(receiving), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(receiving)
		unix.Close(sending)
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("fcntl", err))
	}
	h.ends, err = handoff.New(handoff.Options{
		Self: number, Table: table, Inbox: receiving,
		Adopt: func(handoff.Offer) (handoff.Incoming, error) { return nil, handoff.NotServing },
		Join:  func(handoff.Incoming, handoff.Incoming) {},
		Free:  h.rows.Free, Now: clock,
		Trouble: func(err error) { log.Warn("harvest", zap.Error(err)) },
		After: func(d time.Duration, f func()) func() {
			t := time.AfterFunc(d, func() { h.post(f) })
			return func() { t.Stop() }
		},
	})
	if err != nil {
		unix.Close(receiving)
		unix.Close(sending)
		unix.Close(watched)
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	h.inbox, h.watched = sending, os.NewFile(uintptr(watched), "inbox")
	h.ended.Go(h.run)
	h.ended.Go(h.listen)
	return h, nil
}

// leave ends the harvester and leaves what it has to the next supervisor: the
// connections in the keeper of this one, the others in their keepers.
func (h *harvester) leave() {
	h.leaving = true
	h.close()
}

// close ends the harvester. Connections that it still has are closed.
func (h *harvester) close() {
	close(h.quit)
	h.watched.Close()
	h.ended.Wait()
	unix.Close(h.inbox)
}

// asPeer is what workers are told of the harvester.
func (h *harvester) asPeer() link.Peer { return link.Peer{Incarnation: h.number, Slot: -1, Seat: -1} }

// post has f called by the harvester's goroutine. Any goroutine may call it.
func (h *harvester) post(f func()) {
	h.mu.Lock()
	h.queue = append(h.queue, f)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// work does what was posted.
func (h *harvester) work() {
	h.now = h.clock()
	h.mu.Lock()
	queue := h.queue
	h.queue = nil
	h.mu.Unlock()
	for _, f := range queue {
		f()
	}
	h.closeLeft()
}

// closeLeft closes what workers have taken. Those of a batch mostly have numbers
// in a row, which are closed by one call.
func (h *harvester) closeLeft() {
	slices.Sort(h.left)
	for todo := h.left; len(todo) > 0; {
		n := 1
		for n < len(todo) && todo[n] == todo[0]+n {
			n++
		}
		if n == 1 || unix.CloseRange(uint(todo[0]), uint(todo[n-1]), 0) != nil { // it wants Linux 5.9
			for _, fd := range todo[:n] {
				unix.Close(fd)
			}
		}
		todo = todo[n:]
	}
	h.left = h.left[:0]
}

// retryPause is how long connections wait before it is looked again whether
// there is somebody to take them.
const retryPause = 5 * time.Millisecond

func (h *harvester) run() {
	h.awaitSafety()
	for {
		h.work()
		h.dispatch()
		if len(h.jobs) > 0 && !h.over() {
			job := h.jobs[0]
			h.jobs = h.jobs[1:]
			h.collect(job)
			continue
		}
		if !h.rest(retryPause) {
			break
		}
	}
	h.work()
	if h.leaving {
		return // what is open ends with the process
	}
	for _, job := range h.jobs {
		job.keeper.end(h.log)
	}
	h.ends.Close()
	h.closeLeft()
	for _, c := range h.waiting {
		c.tear(tornStopping)
	}
}

// awaitSafety waits until the next supervisor would find what we take.
func (h *harvester) awaitSafety() {
	if h.safe == nil {
		return
	}
	t := time.NewTimer(flushTimeout)
	defer t.Stop()
	select {
	case <-h.safe:
	case <-h.quit:
	case <-t.C:
		h.log.Warn("service manager has not taken the supervisor's keeper: connections that wait for a worker may not outlive the supervisor")
	}
}

// over says whether the harvester is being ended, and leaves whether what it
// has not taken yet is the next one's.
func (h *harvester) over() bool {
	select {
	case <-h.quit:
		return true
	default:
		return false
	}
}

func (h *harvester) leaves() bool { return h.over() && h.leaving }

// rest waits for something to do, at most for d if there is something that
// has to be tried again. It returns false if it is over.
func (h *harvester) rest(d time.Duration) bool {
	var again <-chan time.Time
	if len(h.waiting) > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-h.wake:
	case <-again:
	case <-h.quit:
		return false
	}
	return true
}

// listen has what comes into the inbox read.
func (h *harvester) listen() {
	raw, err := h.watched.SyscallConn()
	if err != nil {
		return
	}
	for {
		err := raw.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return // closed
		}
		done := make(chan struct{})
		h.post(func() { _ = h.ends.Readable(); close(done) }) // an inbox that is broken gives no answers: the deadlines decide
		select {
		case <-done:
		case <-h.quit:
			return
		}
	}
}

// met takes note of a worker, or of how it is now. inbox is the harvester's;
// -1: it has it. Any goroutine may call it.
func (h *harvester) met(m link.Peer, seat *scoreboard.Seat, inbox int) {
	h.post(func() {
		t := h.takers[m.Incarnation]
		if t == nil {
			t = &taker{seat: seat}
			h.takers[m.Incarnation] = t
		}
		t.Peer = m
		if inbox >= 0 {
			h.ends.Peer(m.Incarnation, m.Slot, inbox)
		}
	})
}

// gone takes note of a death. Any goroutine may call it.
func (h *harvester) gone(number uint64) {
	h.post(func() { h.forget(number) })
}

func (h *harvester) forget(number uint64) {
	delete(h.takers, number)
	h.ends.Gone(number)
}

// start begins a harvest. Any goroutine may call it.
func (h *harvester) start(job *harvest) {
	job.since = h.clock()
	job.by = job.since + job.patience
	job.result = job.account.result()
	h.post(func() { h.jobs = append(h.jobs, job) })
}

// collectAtOnce is how many rows are looked at before others have their turn:
// a full batch for each worker, but not so many that they wait for it.
func (h *harvester) collectAtOnce() int {
	const mostTakers = 4
	return handoff.BatchConnections * min(max(len(h.takers), 1), mostTakers)
}

// collect does a harvest up to the end of the keeper.
func (h *harvester) collect(job *harvest) {
	failpoint.Here("harvest.begin")
	h.now = h.clock()
	h.forget(job.number)
	failpoint.Here("harvest.forgotten")
	if job.connections && !h.gather(job) {
		return
	}
	failpoint.Here("harvest.collected")
	job.over = true
	saved := job.result.Kept + job.open
	var served <-chan struct{}
	if job.open > len(h.waiting) {
		job.served = make(chan struct{})
		served = job.served
	}
	h.ended.Go(func() {
		h.beforeKeeper(served)
		failpoint.Here("harvest.end")
		job.keeper.end(h.log)
		failpoint.Here("harvest.ended")
		job.reaped(saved)
	})
	job.finish()
}

// keeperPause bounds how long a keeper's end waits for those who are being
// served.
const keeperPause = 20 * time.Millisecond

// beforeKeeper waits until those whom workers have been offered are served, if
// there are any. The end of a keeper that has thousands of descriptors keeps a
// core busy for milliseconds, and so does the successor's start.
func (h *harvester) beforeKeeper(served <-chan struct{}) {
	if served == nil {
		return
	}
	t := time.NewTimer(keeperPause)
	defer t.Stop()
	select {
	case <-served:
	case <-h.quit:
	case <-t.C:
	}
}

// finish tells what has become of the connections when all of it is known.
func (job *harvest) finish() {
	if job.over && job.open == 0 && job.done != nil {
		done := job.done
		job.done = nil
		failpoint.Here("harvest.done")
		done(job.result)
	}
	if job.served != nil && job.open == 0 {
		close(job.served)
		job.served = nil
	}
}

// gather takes what the dead had and offers it. It returns false if the rest is
// the next harvester's.
func (h *harvester) gather(job *harvest) bool {
	var all []look
	h.table.Owned(job.number, func(id rows.ID, row *rows.Row) { all = append(all, look{id: id, row: row, fd: -1}) })
	h.ahead = h.lookAhead(job, all)
	defer func() {
		h.ahead.end()
		h.ahead = nil
	}()
	next := handoff.BatchConnections // the first worker begins
	for i := range all {
		if i == next {
			h.work()
			h.dispatch()
			next += h.collectAtOnce()
		}
		h.rescue(job, h.ahead.next())
		if h.leaves() {
			return false
		}
	}
	h.dispatch()
	return true
}

// look is a connection of the dead as it was found before it was made the
// harvester's. If it could be made that, nobody has touched it in between: it
// goes from the dead to whom it was offered, and nowhere else.
type look struct {
	id      rows.ID
	row     *rows.Row
	fd      int // ours; -1: it was not found at once
	judged  bool
	verdict keeper.Verdict
	err     error // instead of a verdict
}

// ahead looks at connections on another core, up to three batches before they
// are rescued. Its methods are the harvester's.
type ahead struct {
	all    []look
	passed int           // of all
	looked chan struct{} // a batch was looked at; closed: the others will not be
	stop   chan struct{} // closed by end
	over   bool
}

func (h *harvester) lookAhead(job *harvest, all []look) *ahead {
	const batches = 2 // and the one that is being looked at
	a := &ahead{all: all, looked: make(chan struct{}, batches), stop: make(chan struct{})}
	h.ended.Go(func() {
		defer close(a.looked)
		for batch := range slices.Chunk(all, handoff.BatchConnections) {
			for i := range batch {
				batch[i].look(job.keeper.pidfd)
			}
			select {
			case a.looked <- struct{}{}:
			case <-a.stop:
				return
			}
		}
	})
	return a
}

// next returns the next one, whose descriptor is the caller's.
func (a *ahead) next() *look {
	if a.passed%handoff.BatchConnections == 0 {
		<-a.looked
	}
	a.passed++
	return &a.all[a.passed-1]
}

// end stops the looking and gives back the descriptors of those that next has
// not returned. It says whether there were any.
func (a *ahead) end() (some bool) {
	if a.over {
		return false
	}
	a.over = true
	close(a.stop)
	for range a.looked {
	}
	for i := range a.all[a.passed:] {
		l := &a.all[a.passed+i]
		if l.fd >= 0 {
			unix.Close(l.fd)
			some = true
		}
		*l = look{id: l.id, row: l.row, fd: -1}
	}
	return some
}

// look reaches a connection where its row says that it is, and judges it.
func (l *look) look(keeperFD int) {
	n := conn.NotedIn(l.row)
	fd, err := keeper.Reach(keeperFD, n.FD)
	if err != nil {
		return
	}
	if cookie, err := keeper.Cookie(fd); err != nil || cookie != l.row.Cookie.Load() {
		unix.Close(fd)
		return
	}
	l.fd = fd
	if n.AtRest && n.Counted {
		l.judged = true
		l.verdict, l.err = keeper.Examine(fd, keeper.Position{Consumed: n.Read, Written: n.Written})
	}
}

// rescue makes a connection the harvester's, if it can be had, and says what is
// to come of it.
func (h *harvester) rescue(job *harvest, l *look) {
	c := h.newRescued()
	*c = rescued{h: h, job: job, id: l.id, row: l.row, fd: l.fd}
	var err error
	if c.fd < 0 {
		if c.fd, err = h.reach(job, c.row); err != nil {
			c.fd = -1
		}
	}
	failpoint.Here("harvest.reached")
	// Not before: who owns the row has the descriptor.
	if err != nil && h.leaves() || !c.row.Move(c.id, job.number, h.number) {
		if c.fd >= 0 { // whoever has committed itself to it meanwhile has it
			unix.Close(c.fd)
		}
		return
	}
	job.open++
	h.open++
	if err != nil {
		h.log.Debug("connection of a dead worker not reached", zap.Uint64("conn", uint64(c.id)), zap.Error(err))
		c.tear(tornUnreachable)
		return
	}
	failpoint.Here("harvest.moved")
	conn.NoteFD(c.row, c.fd)
	why, torn := h.judge(c, l)
	switch {
	case why == "":
		h.waiting = append(h.waiting, c)
	case torn:
		c.tear(why)
	default:
		job.result.Ended++
		c.shut("")
	}
}

// reach returns the connection's descriptor. The row may have the number in
// another process, if this one died before it had told its own: then the
// cookie finds it.
func (h *harvester) reach(job *harvest, row *rows.Row) (int, error) {
	cookie := row.Cookie.Load()
	fd, err := h.get(job, conn.NotedIn(row).FD)
	if err == nil {
		got, cookieErr := keeper.Cookie(fd)
		if cookieErr == nil && got == cookie {
			return fd, nil
		}
		unix.Close(fd)
	} else if !errors.Is(err, unix.EBADF) {
		return -1, err
	}
	if job.found == nil {
		job.found = h.search(job)
	}
	number, ok := job.found[cookie]
	if !ok {
		return -1, fmt.Errorf("no descriptor has its cookie, %#x", cookie)
	}
	return h.get(job, number)
}

// descriptorPause is how long connections that are here already have to be
// taken, if no more can be held, until it is looked again.
const descriptorPause = 10 * time.Millisecond

// get duplicates a descriptor out of the keeper. If this process can hold no
// more it waits for the workers to take some: those that have no worker yet
// wait, as long as they may, here or in their keeper.
func (h *harvester) get(job *harvest, number int) (int, error) {
	for {
		fd, err := keeper.Reach(job.keeper.pidfd, number)
		full := errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
		if full && h.ahead.end() {
			continue
		}
		if !full || h.open < 2 || h.clock() > job.by || !h.rest(descriptorPause) {
			return fd, err
		}
		h.work()
		h.dispatch()
	}
}

// search returns the keeper's connections by cookie.
func (h *harvester) search(job *harvest) map[uint64]int {
	found := make(map[uint64]int)
	dir := fmt.Sprintf("/proc/%d/fd", job.keeper.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		h.log.Warn("descriptors of a dead worker not listed", zap.Error(err))
	}
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink(dir + "/" + e.Name()); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		fd, err := keeper.Reach(job.keeper.pidfd, number)
		if err != nil {
			continue
		}
		if cookie, err := keeper.Cookie(fd); err == nil {
			found[cookie] = number
		}
		unix.Close(fd)
	}
	return found
}

// tornReasons are all reasons why a connection ends with its worker. The next
// supervisor knows them by their places (ledger.go): new ones come last.
var tornReasons = []string{
	keeper.Reading.String(), keeper.Writing.String(), keeper.Opening.String(), keeper.Uncertain.String(),
	tornBusy, tornUncountable, tornUnreachable, tornListener, tornRefused, tornUnserved, tornStopping,
}

const (
	tornBusy        = "busy"        // by its own word: a first callback runs, it is piped, or a unix socket was in use
	tornUncountable = "uncountable" // the kernel does not say what was read and written
	tornUnreachable = "unreachable" // its descriptor is not to be had
	tornListener    = "listener"    // it is not known by which it came
	tornRefused     = "refused"     // no worker has taken it
	tornUnserved    = "unserved"    // there was no worker in time
	tornStopping    = "stopping"    // the service has ended meanwhile
)

// judge says why a connection cannot go on, and whether that is for the death
// of its worker; empty: it can.
func (h *harvester) judge(c *rescued, l *look) (why string, torn bool) {
	n := conn.NotedIn(c.row)
	if c.listener = h.listeners[n.Listener]; c.listener == "" && !n.Dialed {
		return tornListener, true
	}
	if !n.AtRest {
		return tornBusy, true
	}
	if !n.Counted {
		return "", false
	}
	v, err := l.verdict, l.err
	if !l.judged {
		v, err = keeper.Examine(c.fd, keeper.Position{Consumed: n.Read, Written: n.Written})
	}
	switch {
	case err != nil:
		return tornUncountable, true
	case v == keeper.Boundary:
		return "", false
	default:
		return v.String(), v != keeper.Ending && v != keeper.Broken
	}
}

// maxRefusals is how often a connection is offered.
const maxRefusals = 4

// dispatch offers what waits to those who have the fewest connections.
func (h *harvester) dispatch() {
	if len(h.waiting) == 0 {
		return
	}
	h.now = h.clock()
	waiting := h.waiting
	h.waiting, h.other = h.other, nil // Thaw may fill it meanwhile
	todo := waiting
	for _, x := range h.choose(len(waiting)) {
		h.units = h.units[:0]
		for _, c := range todo[:x.share] {
			c.to = x.taker
			h.units = append(h.units, handoff.Unit{First: c})
		}
		todo = todo[x.share:]
		x.sent += x.share
		h.ends.Give(x.Incarnation, uint8(conn.Crash), h.units, nil)
	}
	for _, c := range todo {
		if c.job.by < h.now {
			c.tear(tornUnserved)
		} else {
			h.waiting = append(h.waiting, c)
		}
	}
	clear(waiting)
	h.other = waiting[:0]
}

// choice is how many connections a worker gets.
type choice struct {
	*taker
	load, room int64
	share      int
}

// choose says who gets how many of n connections: each goes to the one that
// has the fewest then. It says nothing of those for which there is no worker.
func (h *harvester) choose(n int) []choice {
	h.choices = h.choices[:0]
	for _, t := range h.takers {
		if t.takes() {
			h.choices = append(h.choices, choice{t, t.seat.Connections.Load() + int64(t.sent), int64(h.ends.Room(t.Incarnation)), 0})
		}
	}
	for range n {
		var least *choice
		for i := range h.choices {
			if x := &h.choices[i]; x.room > 0 && (least == nil || x.load < least.load) {
				least = x
			}
		}
		if least == nil {
			break
		}
		least.load++
		least.room--
		least.share++
	}
	return h.choices
}

// newRescued returns one of those that are made at a time.
func (h *harvester) newRescued() *rescued {
	if len(h.spare) == 0 {
		h.spare = make([]rescued, handoff.BatchConnections)
	}
	c := &h.spare[0]
	h.spare = h.spare[1:]
	return c
}

// rescued is a connection whose process is dead. It is a handoff.Outgoing.
type rescued struct {
	h        *harvester
	job      *harvest
	id       rows.ID
	row      *rows.Row
	fd       int // ours; -1: none
	listener string
	to       *taker // to whom it is offered
	refusals int
}

// ID is the connection's.
func (c *rescued) ID() rows.ID { return c.id }

// Row is the connection's.
func (c *rescued) Row() *rows.Row { return c.row }

// FD is the descriptor, which stays the harvester's.
func (c *rescued) FD() int { return c.fd }

// Since is when its process died, as far as is known.
func (c *rescued) Since() time.Duration { return c.job.since }

// Capture makes of the journal what the taker needs.
func (c *rescued) Capture(dst []byte) ([]byte, error) {
	return conn.Resting(dst, c.h.table, c.id, c.row, c.fd, c.listener, c.h.now)
}

// Thaw says that nobody has taken it: it is offered again, a few times.
func (c *rescued) Thaw() {
	c.to.sent--
	failpoint.Here("harvest.thaw")
	if c.refusals++; c.refusals >= maxRefusals {
		c.tear(tornRefused)
		return
	}
	c.h.waiting = append(c.h.waiting, c)
}

// Left says that a worker has it.
func (c *rescued) Left(int) []byte {
	c.to.sent--
	failpoint.Here("harvest.left")
	c.h.left = append(c.h.left, c.fd)
	r := &c.job.result
	r.Kept++
	c.job.account.kept()
	r.Longest = max(r.Longest, c.h.now-c.job.since)
	c.over()
	return nil
}

// tear ends a connection for the death of its process.
func (c *rescued) tear(why string) {
	failpoint.Here("harvest.tear")
	c.job.result.Torn[why]++
	c.shut(why)
}

// shut has the peer told of the end, and forgets the connection. The keeper
// may still have its descriptor, so that closing ours is not enough.
func (c *rescued) shut(why string) {
	c.job.account.ending(c.id, why)
	if c.fd >= 0 {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // ENOTCONN: the peer knows
		unix.Close(c.fd)
	}
	c.h.rows.Free(c.id)
	c.job.account.ended()
	c.over()
}

func (c *rescued) over() {
	c.h.open--
	c.job.open--
	c.job.finish()
}

// end kills and reaps the keeper.
func (k *kept) end(log *zap.Logger) {
	defer unix.Close(k.pidfd)
	if err := unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		log.Warn("keeper not killed", zap.Int("keeper_pid", k.pid), zap.Error(os.NewSyscallError("pidfd_send_signal", err)))
	}
	for deadline := time.Now().Add(keeperTimeout); ; {
		p := []unix.PollFd{{Fd: int32(k.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 {
			log.Warn("keeper not reaped: it does not die", zap.Int("keeper_pid", k.pid), zap.Duration("waited", keeperTimeout))
			return
		}
		break
	}
	if err := unix.Waitid(unix.P_PIDFD, k.pidfd, nil, unix.WEXITED|unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) { // ECHILD: of an adopted worker
		log.Warn("keeper not reaped", zap.Int("keeper_pid", k.pid), zap.Error(os.NewSyscallError("waitid", err)))
	}
}

// keeperTimeout bounds the wait for the end of a keeper that was killed.
const keeperTimeout = 5 * time.Second
