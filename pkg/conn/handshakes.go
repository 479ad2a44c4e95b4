package conn

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// DefaultHandshakes is how many handshakes may be under way where nobody has
// said.
const DefaultHandshakes = 1024

// Handshakes bounds the TLS handshakes of a process: how many are under way,
// each of which takes some 40 KiB and may wait for its peer, and how many are
// computed at a time, about a millisecond each. A connection whose turn has not
// come waits, within Limits.Handshake, with what its peer has sent first. A
// Handshakes may serve several sets and listeners.
type Handshakes struct {
	most, goroutines int

	done, resumed, failed atomic.Uint64
	cooled                func(n int) // nil: nobody wants to know

	// Guarded by mu.

	mu      sync.Mutex
	places  int            // taken
	waiting []applicant    // for a place; some of them may be over
	sweepAt int            // how many there are when those that are over are taken out
	queue   []func()       // to be computed
	running int            // goroutines
	wg      sync.WaitGroup // of these
}

// applicant is what a handshake is for.
type applicant interface {
	waits() bool         // false: it is over; any goroutine
	post(f func()) error // to its loop
	placeFree()          // it has a place, to be given back by leave; on its loop
}

// NewHandshakes allows most handshakes at a time; zero means DefaultHandshakes.
// They are computed by one goroutine for each processor but one, which is left
// to the loop, and at least one; they end when there is nothing to be done.
func NewHandshakes(most int) *Handshakes {
	if most <= 0 {
		most = DefaultHandshakes
	}
	return &Handshakes{most: most, goroutines: max(1, runtime.GOMAXPROCS(0)-1)}
}

// OnCooled has f told on the loop that n connections with TLS have become
// idle: what their handshakes have left, and some of their keys' memory, is
// garbage, of which there is several times as much as they still take. To be called before the first
// handshake.
func (h *Handshakes) OnCooled(f func(n int)) { h.cooled = f }

// HandshakeFigures are the counts of a Handshakes.
type HandshakeFigures struct {
	Done    uint64 // that have led to a connection
	Resumed uint64 // of those, from a session ticket
	Failed  uint64 // that have not, or not in time
	Running int    // under way
	Waiting int    // for their turn
}

// Figures returns the counts. Any goroutine may call it.
func (h *Handshakes) Figures() HandshakeFigures {
	h.mu.Lock()
	defer h.mu.Unlock()
	return HandshakeFigures{
		Done: h.done.Load(), Resumed: h.resumed.Load(), Failed: h.failed.Load(),
		Running: h.places, Waiting: len(h.waiting),
	}
}

// enter says whether a may begin now. Otherwise its turn is told by placeFree.
func (h *Handshakes) enter(a applicant) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.places < h.most {
		h.places++
		return true
	}
	if len(h.waiting) >= h.sweepAt {
		// Peers that come, say something and go are not to be kept until places
		// are free, which slow ones may hold.
		h.waiting = slices.DeleteFunc(h.waiting, func(a applicant) bool { return !a.waits() })
		h.sweepAt = max(minSweep, 2*len(h.waiting))
	}
	h.waiting = append(h.waiting, a)
	return false
}

// minSweep is how many wait, at least, before it is looked who still does: so
// that looking costs each of them about one look.
const minSweep = 256

// leave gives a place to the next that waits.
func (h *Handshakes) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.waiting) > 0 {
		next := h.waiting[0]
		h.waiting[0] = nil
		h.waiting = h.waiting[1:]
		if next.waits() && next.post(next.placeFree) == nil {
			return
		}
	}
	h.places--
}

// compute has f called by one of the goroutines.
func (h *Handshakes) compute(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queue = append(h.queue, f)
	if h.running < h.goroutines {
		h.running++
		h.wg.Go(h.run)
	}
}

func (h *Handshakes) run() {
	for {
		h.mu.Lock()
		if len(h.queue) == 0 {
			h.queue = nil
			h.running--
			h.mu.Unlock()
			return
		}
		f := h.queue[0]
		h.queue[0] = nil
		h.queue = h.queue[1:]
		h.mu.Unlock()
		f()
	}
}

// Close waits until what is being computed has returned. It is to be called
// when the loops have ended.
func (h *Handshakes) Close() { h.wg.Wait() }
