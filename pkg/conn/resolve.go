package conn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLookups is how many names are looked up at a time; maxWaiting is how
	// many more may wait for that.
	maxLookups = 16
	maxWaiting = 4096
)

var errLookups = errors.New("too many names wait to be looked up")

// resolver looks up names, on goroutines of its own that end when nothing is
// left to do. The zero value is ready.
type resolver struct {
	wg sync.WaitGroup

	// Guarded by mu.

	mu      sync.Mutex
	waiting []*lookup
	running int
	closed  bool
}

// lookup is one name to be looked up.
type lookup struct {
	ctx    context.Context // ends at the deadline, or when nobody wants it any more
	cancel context.CancelFunc
	by     *net.Resolver
	host   string
	port   int
	done   func([]unix.Sockaddr, error) // on the resolver's goroutine
}

// look has done called with the addresses of a name, from another goroutine.
// The caller calls cancel of what it returns when it does not want them any
// more, or has got them.
func (r *resolver) look(l *lookup, timeout time.Duration) (cancel context.CancelFunc, err error) {
	if l.by == nil {
		l.by = net.DefaultResolver
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if len(r.waiting) >= maxWaiting {
		r.sweepLocked()
	}
	if len(r.waiting) >= maxWaiting {
		return nil, errLookups
	}
	l.ctx, l.cancel = context.WithTimeout(context.Background(), timeout)
	r.waiting = append(r.waiting, l)
	if r.running < maxLookups {
		r.running++
		r.wg.Go(r.run)
	}
	return l.cancel, nil
}

// sweepLocked forgets those that nobody waits for any more. It needs mu.
func (r *resolver) sweepLocked() {
	kept := r.waiting[:0]
	for _, l := range r.waiting {
		if l.ctx.Err() == nil {
			kept = append(kept, l)
		}
	}
	clear(r.waiting[len(kept):])
	r.waiting = kept
}

func (r *resolver) run() {
	for l := r.take(); l != nil; l = r.take() {
		if l.ctx.Err() != nil {
			continue // whoever asked knows that the time is over
		}
		l.done(l.find())
	}
}

// take returns the next one; nil ends the goroutine.
func (r *resolver) take() *lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		r.running--
		return nil
	}
	l := r.waiting[0]
	r.waiting[0] = nil
	r.waiting = r.waiting[1:]
	return l
}

// find may leave a query of package net behind, which ends within its own
// deadline of some seconds.
func (l *lookup) find() ([]unix.Sockaddr, error) {
	if ip, err := netip.ParseAddr(l.host); err == nil { // with a zone
		sa, err := sockaddr(ip, l.port)
		return []unix.Sockaddr{sa}, err
	}
	ips, err := l.by.LookupNetIP(l.ctx, "ip", l.host)
	if err != nil {
		return nil, err
	}
	all := make([]unix.Sockaddr, 0, len(ips))
	seen := make(map[netip.Addr]bool)
	for _, ip := range ips {
		ip = ip.Unmap()
		if seen[ip] {
			continue
		}
		seen[ip] = true
		sa, err := sockaddr(ip, l.port)
		if err != nil {
			return nil, err
		}
		all = append(all, sa)
	}
	return all, nil
}

// close waits for the goroutines. Nothing is looked up any more.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	for _, l := range r.waiting {
		l.cancel()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
