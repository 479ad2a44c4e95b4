package handoff

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Endpoint is a process's part in all hand-offs, as giver and as taker. All
// its methods are for the loop only.
type Endpoint struct {
	options Options
	peers   map[uint64]*peer
}

// peer is another process.
type peer struct {
	slot int
	fd   int // sending end of its inbox; -1: not known yet
}

// New makes an Endpoint, which the caller ends by Close. It fails if Inbox is
// no SOCK_SEQPACKET socket; the inbox stays the caller's then.
func New(o Options) (*Endpoint, error) {
	if typ, err := unix.GetsockoptInt(o.Inbox, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("handoff: fd %d is no inbox (SOCK_SEQPACKET)", o.Inbox)
	}
	if o.Deadline <= 0 {
		o.Deadline = DefaultDeadline
	}
	if o.TailWait <= 0 {
		o.TailWait = DefaultTailWait
	}
	return &Endpoint{options: o, peers: make(map[uint64]*peer)}, nil
}

// Peer makes another process known to which Give may give, or changes its
// slot. fd is the sending end of its inbox; the Endpoint takes it over and
// closes the one it had. A negative fd leaves the one it has.
func (e *Endpoint) Peer(incarnation uint64, slot, fd int) {
	p := e.peers[incarnation]
	if p == nil {
		p = &peer{fd: -1}
		e.peers[incarnation] = p
	}
	p.slot = slot
	if fd >= 0 {
		if p.fd >= 0 {
			unix.Close(p.fd)
		}
		p.fd = fd
	}
}

// Gone says that a process is dead: what it was offered and has not taken, it
// never will, and no tails will come from it any more than have come. What it
// was given is over. Its descriptor is closed.
func (e *Endpoint) Gone(incarnation uint64) {
	if p := e.peers[incarnation]; p != nil && p.fd >= 0 {
		unix.Close(p.fd)
	}
	delete(e.peers, incarnation)
}

// Room returns how many connections Give would offer to a peer at once, the
// window being open; more would wait. It returns 0 if the peer is unknown,
// dead or late.
func (e *Endpoint) Room(to uint64) int { return 0 }

// Give gives units, which stand still, to another process. why comes out as
// Offer.Why. done, which may be nil, is called once, when the fate of all is
// known: at the latest a little after Options.Deadline, at the earliest before
// Give returns. Thaw, Left and done may call Give and Room, and no other
// method. The slice stays the caller's.
//
// What does not fit into the window waits, standing still: a caller freezes
// Room connections, gives them, and goes on when done is called.
func (e *Endpoint) Give(to uint64, why uint8, units []Unit, done func(Outcome)) {
	o := Outcome{Err: ErrUnknownPeer}
	for _, u := range units {
		for _, c := range []Outgoing{u.First, u.Second} {
			if c != nil {
				o.Thawed++
				o.Longest = max(o.Longest, e.options.Now()-c.Since())
				c.Thaw()
			}
		}
	}
	if done != nil {
		done(o)
	}
}

// Readable reads messages from the inbox until it is empty or a budget is
// used up, so it is to be called as long as the inbox is readable.
func (e *Endpoint) Readable() {}

// Close ends the hand-offs that are under way: what is offered and not taken
// is thawed, who waits for a tail goes on without. It closes the inbox and
// what Peer has taken over. Nothing may be called afterwards but Give, which
// thaws.
func (e *Endpoint) Close() {
	for incarnation := range e.peers {
		e.Gone(incarnation)
	}
	unix.Close(e.options.Inbox)
}
