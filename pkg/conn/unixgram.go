package conn

import (
	"os"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"golang.org/x/sys/unix"
)

// A reply by a unix datagram socket is not taken while its receiver has not
// read what it has (net.unix.max_dgram_qlen), which epoll(7) does not tell the
// sender's end of. So it is tried again after a while, and what is for others
// goes on meanwhile.
//
// The kernel does not count so for a receiver that is connected to the socket:
// what that does not read takes from the socket's own send buffer, which all
// share. Nobody is answered then until it reads or ends, so replies are dropped
// here too when their time is over.

const (
	// fullRetry is how long a receiver that takes nothing is left alone.
	fullRetry = 10 * time.Millisecond

	// fullPatience is how long a reply waits for its receiver.
	fullPatience = time.Second

	// fullShare is which part of SendLimit may wait for one receiver that
	// takes nothing.
	fullShare = 8
)

// fullPaths are the receivers that take nothing now, by their raw addresses,
// until they are tried again.
type fullPaths struct {
	waiting map[string]int // what waits for each: bytes, and replyCost a reply
	untried int            // the same of the replies that came after the last flush
	retry   *reactor.Timer // nil: none are there
}

// replyCost is what a reply that waits counts beside its bytes, so that empty
// ones are bounded too.
const replyCost = 64

// has says whether the receiver of that name is one of them.
func (f *fullPaths) has(name []byte) bool {
	_, ok := f.waiting[string(name)]
	return ok
}

// begin takes note that the receiver takes nothing.
func (f *fullPaths) begin(name []byte) {
	if f.waiting == nil {
		f.waiting = make(map[string]int)
	}
	f.waiting[string(name)] = 0
}

// add takes note of a reply of n bytes that waits, if its receiver is one of
// them.
func (f *fullPaths) add(name []byte, n int) {
	if f.has(name) {
		f.waiting[string(name)] += n + replyCost
	}
}

// room says whether a reply of n bytes may wait for that receiver as well. So
// that none has more than its share once it is found to take nothing, no more
// than that is untried.
func (f *fullPaths) room(name []byte, n, limit int) bool {
	waiting, ok := f.waiting[string(name)]
	if !ok {
		waiting = f.untried
	}
	return waiting == 0 || waiting+n+replyCost <= limit/fullShare
}

// sendToPaths is flush for unix sockets: it sends what waits, but for the
// receivers that take nothing, and keeps each one's replies in order. It
// returns how many bytes left.
func (p *Packets) sendToPaths() (out int) {
	now := p.set.loop.Now()
	p.full.untried = 0
	for name := range p.full.waiting {
		p.full.waiting[name] = 0 // what stays is counted anew
	}
	kept, keptBytes := p.queue[:0], p.bytes[:0] // in the place of what has left
	queue, bytes := p.queue, p.bytes
	for len(queue) > 0 {
		r := &queue[0]
		name, size := bytes[:r.nameLen], r.size()
		if !p.full.has(name) {
			n, errno := reactor.Sendmmsg(p.fd, p.fill(queue[:p.ready(queue, bytes)], bytes))
			if errno == 0 {
				for i := range queue[:n] {
					out += queue[i].length
					bytes = bytes[queue[i].size():]
				}
				queue = queue[n:]
				continue
			}
			switch {
			case errno == unix.EINTR:
				continue
			case errno == unix.EAGAIN && now-r.since < fullPatience:
				p.full.begin(name)
			default: // the receiver is gone, or reads nothing
				p.cfg.Seat.SendFailures.Add(1)
				p.drop(os.NewSyscallError("sendmmsg", errno))
				p.waiting -= r.length
				queue, bytes = queue[1:], bytes[size:]
				continue
			}
		}
		p.full.add(name, r.length)
		kept, keptBytes = append(kept, *r), append(keptBytes, bytes[:size]...)
		queue, bytes = queue[1:], bytes[size:]
	}
	p.queue, p.bytes = kept, keptBytes
	p.waiting -= out
	if len(kept) > 0 && p.full.retry == nil {
		p.full.retry = p.set.loop.After(fullRetry, p.retryFull)
	}
	return out
}

// ready returns how many of the first replies, up to a batch, are for
// receivers that may take them. The first one is.
func (p *Packets) ready(queue []reply, bytes []byte) int {
	n := 1
	for n < len(queue) && n < packetBatch {
		bytes = bytes[queue[n-1].size():]
		if p.full.has(bytes[:queue[n].nameLen]) {
			break
		}
		n++
	}
	return n
}

// retryFull tries again who took nothing.
func (p *Packets) retryFull() {
	p.full.retry = nil
	clear(p.full.waiting)
	p.flush()
}
