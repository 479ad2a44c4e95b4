package reactor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrStopped says that the loop has been told to stop and takes nothing more.
var ErrStopped = errors.New("reactor: loop is stopped")

// ErrUnknownToken says that a token's registration is over.
var ErrUnknownToken = errors.New("reactor: no such registration")

const (
	// ReadBufferSize is the length of a loop's ReadBuffer.
	ReadBufferSize = 64 << 10

	// DefaultMaxSleep is the MaxSleep of Options that name none.
	DefaultMaxSleep = time.Second

	// busyTurns is how many turns in a row may go by without a chance for
	// the other goroutines of this processor.
	busyTurns = 64

	// restTurns is how many times the loop may fall asleep in a row without
	// such a chance, if nobody has asked for one.
	restTurns = 16

	// pollAgain is after how many turns the loop tries again whether looking
	// without waiting is enough, once it was not.
	pollAgain = 8

	// bufferOffset is where in a page the buffer begins. The kernel's side of
	// a copy most often begins with a page, and copying is up to a sixth
	// slower between addresses that are equal in their last 12 bits.
	bufferOffset = 2048

	// wakeToken is the registration of the poller's own eventfd.
	wakeToken Token = 0
)

// Options are a loop's settings. The zero value is usable.
type Options struct {
	// MaxSleep bounds the wait of a turn. Zero means DefaultMaxSleep.
	MaxSleep time.Duration

	// OnTurn, if not nil, is called on the loop at the end of each turn,
	// with the time at which the turn's wait ended.
	OnTurn func(now time.Duration)
}

// Loop is a reactor. Methods marked "loop only" may be called before Run, by
// the goroutine that will call it, and then only on the loop itself: from a
// Handler, a timer or a posted function.
type Loop struct {
	// Set once in New.

	maxSleep time.Duration
	onTurn   func(now time.Duration)
	clock    clock

	// Owned by the loop.

	poller  poller
	table   table
	wheel   wheel
	timers  timerHeap
	now     time.Duration
	next    batch  // of NextTurn
	events  batch  // of AfterEvents
	ends    batch  // of AtTurnEnd
	running batch  // of Post, taken out of posted
	alone   bool   // no other processor runs goroutines
	yield   bool   // Yield was called
	rests   int    // times it has fallen asleep since other goroutines had a chance
	missed  int    // turns since looking without waiting was not enough; 0: it is
	buffer  []byte // headroom, then what ReadBuffer returns

	// Guarded by mu.

	mu      sync.Mutex
	posted  []func()
	stopped bool // nothing more is taken

	// asleep is set before the loop looks for posted functions the last
	// time and then waits; whoever posts looks at it afterwards. So one of
	// the two sees the other.
	asleep atomic.Bool
	ending atomic.Bool // Stop was called
}

// New makes a loop. The caller runs it with Run and releases it with Close.
// It fails if the system gives no epoll instance or eventfd: EMFILE, ENFILE,
// ENOMEM.
func New(o Options) (*Loop, error) {
	l := &Loop{
		maxSleep: o.MaxSleep,
		onTurn:   o.OnTurn,
		buffer:   make([]byte, 2*ReadBufferSize+bufferOffset)[bufferOffset:],
	}
	if l.maxSleep <= 0 {
		l.maxSleep = DefaultMaxSleep
	}
	l.table.pages = []*[pageRows]row{new([pageRows]row)}
	if err := l.clock.set(); err != nil {
		return nil, fmt.Errorf("reactor: %w", err)
	}
	l.now = l.clock.read()
	l.wheel.init(&l.table, l.now)
	if err := l.poller.open(); err != nil {
		return nil, fmt.Errorf("reactor: %w", err)
	}
	return l, nil
}

// Run turns the loop on the caller's goroutine until Stop. It returns nil
// then, after the functions posted before have been run, or the error of
// epoll_pwait(2), which means that the loop is broken. A panic in a handler
// or a posted function is not caught. Run is called once.
func (l *Loop) Run() error {
	defer l.shut()
	l.alone = runtime.GOMAXPROCS(0) == 1
	busy := false
	for turn := 1; !l.ending.Load(); turn++ {
		n, err := l.wait(busy, turn%busyTurns == 0)
		if err != nil {
			return err
		}
		l.now = l.clock.read()
		l.next.take()
		l.dispatch(n)
		l.next.run()
		l.events.take()
		l.events.run()
		l.wheel.expire(l.now)
		l.timers.fire(l.now)
		l.runPosted()
		l.ends.take()
		l.ends.run()
		if l.onTurn != nil {
			l.onTurn(l.now)
		}
		busy = n > 0
	}
	return nil
}

// shut runs what was posted in time, then refuses more.
func (l *Loop) shut() {
	for {
		l.mu.Lock()
		if len(l.posted) == 0 {
			l.stopped = true
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		l.runPosted()
		l.ends.take()
		l.ends.run()
	}
}

// wait waits for events and returns their number. After a busy turn it looks
// first without waiting: under load that is nearly always enough, and a raw
// call costs less than one that the Go scheduler is told of. Where it is not
// enough, it is not tried each time.
func (l *Loop) wait(busy, yield bool) (int, error) {
	if yield {
		runtime.Gosched()
	}
	if l.missed > 0 {
		l.missed++
	}
	if busy && (l.missed == 0 || l.missed > pollAgain) {
		n, err := l.poller.poll()
		if n > 0 || err != nil {
			l.missed = 0
			return n, err
		}
		l.missed = 1
	}
	l.rest()
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	if l.pending() {
		return l.poller.poll()
	}
	timeout := l.timeout()
	if timeout <= 0 {
		return l.poller.poll()
	}
	// Rounded up: a wake-up before the time would only be followed by another.
	return l.poller.wait(int((timeout + time.Millisecond - 1) / time.Millisecond))
}

// rest lets other goroutines run before this thread sleeps in the kernel and
// takes its processor along. That costs more than it seems, since the
// scheduler wakes another thread for the loop, and most often nobody waits: a
// goroutine that becomes ready is taken by another processor, if one is idle.
func (l *Loop) rest() {
	l.rests++
	if l.alone || l.yield || l.rests >= restTurns {
		l.yield, l.rests = false, 0
		runtime.Gosched()
	}
}

// Yield has the loop let other goroutines run before it sleeps next. Whoever
// wakes a goroutine from the loop, and cannot have it wait until a processor
// is free, calls it. Loop only.
func (l *Loop) Yield() { l.yield = true }

// pending says whether there is work for the next turn that no descriptor
// will tell of.
func (l *Loop) pending() bool {
	if len(l.next.later) > 0 || len(l.events.later) > 0 || len(l.ends.later) > 0 || l.ending.Load() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0
}

// timeout returns how long the loop may sleep.
func (l *Loop) timeout() time.Duration {
	now := l.clock.read()
	next := now + l.maxSleep
	if at, ok := l.wheel.next(); ok {
		next = min(next, at)
	}
	if at, ok := l.timers.next(); ok {
		next = min(next, at)
	}
	return next - now
}

func (l *Loop) dispatch(n int) {
	for i := range n {
		token, ev := l.poller.event(i)
		if r := l.table.find(token); r != nil {
			r.handler.OnReady(ev)
		}
	}
}

// runPosted runs what was posted until now. What these functions post is for
// the next turn, which then does not sleep, so that descriptors have theirs.
func (l *Loop) runPosted() {
	l.mu.Lock()
	if len(l.posted) == 0 {
		l.mu.Unlock()
		return
	}
	l.posted, l.running.now = l.running.now[:0], l.posted
	l.mu.Unlock()
	l.running.run()
}

// batch is a list of functions to be run together, apart from those that are
// added meanwhile.
type batch struct {
	later, now []func()
}

func (b *batch) add(f func()) { b.later = append(b.later, f) }

// take fixes what the next run will run.
func (b *batch) take() { b.later, b.now = b.now[:0], b.later }

func (b *batch) run() {
	for i, f := range b.now {
		b.now[i] = nil
		f()
	}
	b.now = b.now[:0]
}

// Post has f run on the loop, at the end of this turn or the next one. It
// returns ErrStopped, and f is not run, after Run has returned. Any goroutine
// may call it, before Run too.
func (l *Loop) Post(f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return ErrStopped
	}
	l.posted = append(l.posted, f)
	l.wakeLocked()
	return nil
}

// wakeLocked ends the loop's sleep, if it sleeps, with one write however many
// wake it at once. It needs mu, and a loop that is not stopped: otherwise the
// write could meet a descriptor that Close has closed.
func (l *Loop) wakeLocked() {
	if l.asleep.Load() && l.asleep.CompareAndSwap(true, false) {
		l.poller.wake()
	}
}

// NextTurn has f run in the next turn, after its events; that turn does not
// sleep. Loop only.
func (l *Loop) NextTurn(f func()) { l.next.add(f) }

// AfterEvents has f run in this turn, after its events and what NextTurn has
// left for it, before deadlines, timers and posted functions; called later in
// a turn, in the next one. Loop only.
func (l *Loop) AfterEvents(f func()) { l.events.add(f) }

// AtTurnEnd has f run when the posted functions of this turn have been run.
// Called by such an f, it is for the next turn, which then does not sleep.
// Loop only.
func (l *Loop) AtTurnEnd(f func()) { l.ends.add(f) }

// Stop makes Run return after its current turn. Any goroutine may call it,
// and more than once.
func (l *Loop) Stop() {
	l.ending.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.wakeLocked()
	}
}

// Close releases the loop's own descriptors; those that were added stay
// open. It must not be called before Run has returned, if Run was called.
func (l *Loop) Close() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.poller.close()
}

// Now returns the time at which this turn's wait ended, as CLOCK_MONOTONIC
// (clock_gettime(2)) has it. Loop only.
func (l *Loop) Now() time.Duration { return l.now }

// Clock reads the clock that Now is taken from. Any goroutine may call it.
func (l *Loop) Clock() time.Duration { return l.clock.read() }

// Watched returns how many descriptors are registered. Loop only.
func (l *Loop) Watched() int { return l.table.count }

// ReadBuffer returns the loop's read buffer, ReadBufferSize bytes. Its
// content is the caller's until it returns to the loop. Loop only.
func (l *Loop) ReadBuffer() []byte { return l.buffer[ReadBufferSize:] }

// Prepend returns head, followed by the first n bytes of the read buffer, in
// one piece: it is there that the read buffer has room in front for up to
// ReadBufferSize bytes. It panics if head is longer. Loop only.
func (l *Loop) Prepend(head []byte, n int) []byte {
	start := ReadBufferSize - len(head)
	copy(l.buffer[start:ReadBufferSize], head)
	return l.buffer[start : ReadBufferSize+n]
}

// Around returns p, which lies in what ReadBuffer or Prepend has returned, with
// so many bytes of that before and behind it; nil if it has not as many. Loop only.
func (l *Loop) Around(p []byte, before, after int) []byte {
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(p))) - uintptr(unsafe.Pointer(unsafe.SliceData(l.buffer))))
	if at < before || at+len(p)+after > len(l.buffer) {
		return nil
	}
	return l.buffer[at-before : at+len(p)+after]
}

// Holds says whether p lies in what ReadBuffer or Prepend has returned. Any
// goroutine may call it.
func (l *Loop) Holds(p []byte) bool {
	first, at := uintptr(unsafe.Pointer(unsafe.SliceData(l.buffer))), uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return at-first < uintptr(len(l.buffer)) // also false for what lies before: the difference wraps
}

// clock reads CLOCK_MONOTONIC through the Go runtime, which does so without
// a system call; unix.ClockGettime makes one.
type clock struct {
	start  time.Time
	offset time.Duration // CLOCK_MONOTONIC at start
}

func (c *clock) set() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return os.NewSyscallError("clock_gettime", err)
	}
	c.start, c.offset = time.Now(), time.Duration(ts.Nano())
	return nil
}

func (c *clock) read() time.Duration { return c.offset + time.Since(c.start) }
