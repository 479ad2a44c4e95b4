package reactor

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Handler is told that its descriptor is ready. OnReady runs on the loop and
// must not block.
type Handler interface {
	OnReady(ev Events)
}

// row is one registration, with its deadline: 40 bytes.
type row struct {
	handler    Handler // nil: free
	fd         int32
	generation uint32
	events     Events
	next       uint32   // of a free row: the next free one; of an armed one: the next of its slot in the wheel
	prev       uint32   // of an armed row: the one before it, or slotMark and its slot; 0: not armed
	at         tickTime // of an armed row: its deadline
}

// pageRows is the number of rows of a page. The table grows by pages, so a
// row never moves, and growing costs the same however large the table is. A
// page of 40 KiB takes just that; one half as large is rounded up by a
// sixteenth.
const pageRows = 1024

// table holds the rows. Row 0 stays empty, so that no token is zero and so
// that 0 ends the list of free rows.
type table struct {
	pages []*[pageRows]row
	used  uint32 // rows that were ever used
	free  uint32 // first free row
	count int
}

func (t *table) at(index uint32) *row { return &t.pages[index/pageRows][index%pageRows] }

// add takes a free row.
func (t *table) add(fd int, ev Events, h Handler) Token {
	index := t.free
	if index == 0 {
		t.used++
		index = t.used
		if int(index/pageRows) >= len(t.pages) {
			t.pages = append(t.pages, new([pageRows]row))
		}
	} else {
		t.free = t.at(index).next
	}
	r := t.at(index)
	r.generation++
	r.handler, r.fd, r.events, r.next, r.prev, r.at = h, int32(fd), ev, 0, 0, 0
	t.count++
	return makeToken(index, r.generation)
}

// remove frees the row of a token that find knows, and that is not armed.
func (t *table) remove(token Token) {
	r := t.at(token.index())
	r.handler, r.fd = nil, -1
	r.next = t.free
	t.free = token.index()
	t.count--
}

// find returns the row of a token, or nil if the token is stale.
func (t *table) find(token Token) *row {
	index := token.index()
	if index == 0 || index > t.used {
		return nil
	}
	r := t.at(index)
	if r.handler == nil || r.generation != token.generation() {
		return nil
	}
	return r
}

// Add watches fd for ev, level-triggered, and calls h.OnReady when it is
// ready. The descriptor stays the caller's, who must call Remove before it
// closes or gives away fd. With ev 0 it is watched for nothing yet. Add fails
// if epoll_ctl(2) does: EEXIST if fd is watched already, EPERM if it cannot
// be watched, ENOMEM or ENOSPC if the system is out of room. Loop only.
func (l *Loop) Add(fd int, ev Events, h Handler) (Token, error) {
	token := l.table.add(fd, ev, h)
	if ev != 0 {
		if errno := l.poller.ctl(unix.EPOLL_CTL_ADD, fd, ev, token); errno != 0 {
			l.table.remove(token) // it cannot be armed yet
			return 0, ctlError(fd, errno)
		}
	}
	return token, nil
}

// Lookup returns the handler of a token whose registration is not over. Loop
// only.
func (l *Loop) Lookup(token Token) (Handler, bool) {
	r := l.table.find(token)
	if r == nil {
		return nil, false
	}
	return r.handler, true
}

// Modify changes what the token's descriptor is watched for. With ev 0 it is
// watched for nothing, not even for Hangup and Fault. It fails with
// ErrUnknownToken, or if epoll_ctl(2) does. Loop only.
func (l *Loop) Modify(token Token, ev Events) error {
	r := l.table.find(token)
	if r == nil {
		return ErrUnknownToken
	}
	if r.events == ev {
		return nil
	}
	// EPOLLEXCLUSIVE cannot be modified, only added (epoll_ctl(2)).
	var errno unix.Errno
	if r.events != 0 && (ev == 0 || (r.events|ev)&Exclusive != 0) {
		errno = l.poller.ctl(unix.EPOLL_CTL_DEL, int(r.fd), 0, token)
		r.events = 0
	}
	if errno == 0 && ev != 0 {
		op := unix.EPOLL_CTL_MOD
		if r.events == 0 {
			op = unix.EPOLL_CTL_ADD
		}
		errno = l.poller.ctl(op, int(r.fd), ev, token)
	}
	if errno != 0 {
		return ctlError(int(r.fd), errno)
	}
	r.events = ev
	return nil
}

// Rearm takes the token's descriptor out of epoll and puts it back, under the
// same token. The processes that watch one listener with Exclusive are woken
// in the order in which they were added, so doing this after each accept
// makes them take turns. It fails as Modify does. Loop only.
func (l *Loop) Rearm(token Token) error {
	r := l.table.find(token)
	if r == nil {
		return ErrUnknownToken
	}
	ev := r.events
	if err := l.Modify(token, 0); err != nil {
		return err
	}
	return l.Modify(token, ev)
}

// Remove ends a registration: events of it that are still to be dispatched
// are dropped, and so is its deadline. The descriptor must still be open. It fails with
// ErrUnknownToken, or if epoll_ctl(2) does; the registration is gone all the
// same. Loop only.
func (l *Loop) Remove(token Token) error {
	r := l.table.find(token)
	if r == nil {
		return ErrUnknownToken
	}
	fd, watched := int(r.fd), r.events != 0
	l.wheel.unlink(r)
	l.table.remove(token)
	if watched {
		if errno := l.poller.ctl(unix.EPOLL_CTL_DEL, fd, 0, token); errno != 0 {
			return ctlError(fd, errno)
		}
	}
	return nil
}

func ctlError(fd int, errno unix.Errno) error {
	return fmt.Errorf("reactor: fd %d: %w", fd, os.NewSyscallError("epoll_ctl", errno))
}
