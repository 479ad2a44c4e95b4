package scoreboard

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"
)

// PoolAge bounds by how much what a Seat says of the callbacks on the pool is
// older than its Heartbeat. It is written before that, so whoever reads the
// Heartbeat first has both as they were together, or younger.
const PoolAge = 100 * time.Millisecond

// Seat is one incarnation's place on the board: 512 bytes, every word an
// atomic. The worker that sits there writes, whoever maps the board reads.
// A Seat is never copied.
type Seat struct {
	// Written by the supervisor while nobody sits here.

	Incarnation atomic.Uint64 // 0: vacant
	Generation  atomic.Uint64
	Slot        atomic.Int64
	PID         atomic.Int64

	// Written by the worker.

	State     atomic.Uint32 // the worker's own word on its state, a link.State
	Released  atomic.Uint32 // not 0: its keeper is not needed any more, for it has no connections
	KeeperPID atomic.Int64  // of its keeper; 0: it has none, or not yet
	Heartbeat atomic.Int64  // CLOCK_MONOTONIC of the loop's last turn, in ns; 0: no turn yet

	// Gauges.

	Connections atomic.Int64
	Timers      atomic.Int64
	QueueBytes  atomic.Int64 // bytes waiting in all send queues

	// Counters. They only grow while somebody sits here.

	Accepts      atomic.Uint64
	Messages     atomic.Uint64
	BytesIn      atomic.Uint64
	BytesOut     atomic.Uint64
	SendFailures atomic.Uint64 // messages that Send refused
	Panics       atomic.Uint64 // callbacks that panicked
	Refused      atomic.Uint64 // connections closed at accept, because of a limit
	Datagrams    atomic.Uint64 // datagrams received

	// The callbacks on the pool, as they were at most PoolAge before Heartbeat:
	// who runs is not said again before the loop turns.

	PoolRunning atomic.Int64 // callbacks that run now
	PoolOldest  atomic.Int64 // since when the oldest of them runs, CLOCK_MONOTONIC in ns; 0: none runs

	// The Go runtime, every few seconds.

	Goroutines atomic.Int64
	HeapBytes  atomic.Int64  // of live and not yet collected objects
	SysBytes   atomic.Int64  // taken from the system by the runtime
	GCCycles   atomic.Uint64 // finished collections
	GCPauseNS  atomic.Uint64 // time all goroutines were stopped, in sum

	// Unready is 1 while the application says that it should get no new
	// connections.
	Unready atomic.Uint32
	_       uint32

	// Hand-offs, as the giver and as the taker of connections.

	HandoffsGiven   atomic.Uint64 // connections that another worker has taken
	HandoffsTaken   atomic.Uint64 // connections taken from another worker
	HandoffsRefused atomic.Uint64 // offers of other workers that were refused
	HandoffsThawed  atomic.Uint64 // connections that were offered and stayed
	HandoffMaxNS    atomic.Uint64 // the longest time that one of them stood still

	handler handler

	_ [512 - 31*8 - handlerSize]byte
}

// handlerSize is the size of handler.
const handlerSize = 8 + 8 + 8 + listenerWords*8

// listenerWords is how many words of a listener's name are kept.
const listenerWords = 8

// handler says which callback runs on the loop. Its words are guarded by
// seq: odd while they are being written.
type handler struct {
	seq      atomic.Uint64
	conn     atomic.Uint64
	since    atomic.Int64
	listener [listenerWords]atomic.Uint64
}

// NewSeat returns a vacant seat in private memory, for code that runs
// without a supervisor.
func NewSeat() *Seat { return new(Seat) }

// Clear makes the seat vacant and all its words zero. Only the supervisor
// calls it, when no process sits there.
func (s *Seat) Clear() {
	for _, w := range []*atomic.Uint64{
		&s.Incarnation, &s.Generation, &s.Accepts, &s.Messages, &s.BytesIn,
		&s.BytesOut, &s.SendFailures, &s.Panics, &s.Refused, &s.Datagrams, &s.GCCycles, &s.GCPauseNS,
		&s.HandoffsGiven, &s.HandoffsTaken, &s.HandoffsRefused, &s.HandoffsThawed, &s.HandoffMaxNS,
		&s.handler.seq, &s.handler.conn,
	} {
		w.Store(0)
	}
	for _, w := range []*atomic.Int64{
		&s.Slot, &s.PID, &s.KeeperPID, &s.Heartbeat, &s.Connections, &s.Timers, &s.QueueBytes, &s.PoolRunning, &s.PoolOldest,
		&s.Goroutines, &s.HeapBytes, &s.SysBytes, &s.handler.since,
	} {
		w.Store(0)
	}
	s.State.Store(0)
	s.Released.Store(0)
	s.Unready.Store(0)
}

// SetHandler notes that a callback of connection conn on the named listener
// runs on the loop since the given time, CLOCK_MONOTONIC in ns. Names longer
// than 64 bytes are cut. Only the goroutine of the worker's loop calls it.
func (s *Seat) SetHandler(listener string, conn uint64, since int64) {
	h := &s.handler
	h.seq.Add(1)
	h.conn.Store(conn)
	h.since.Store(since)
	var name [listenerWords * 8]byte
	copy(name[:], listener)
	for i := range h.listener {
		// A load costs next to nothing, a store a locked instruction.
		if w := binary.LittleEndian.Uint64(name[i*8:]); h.listener[i].Load() != w {
			h.listener[i].Store(w)
		}
	}
	h.seq.Add(1)
}

// MoveHandler notes that the callback which SetHandler noted has returned and
// that one of another connection on the same listener runs. The time stays
// that of SetHandler: for many short callbacks in a row one store each is
// enough. Only the goroutine of the worker's loop calls it.
//
// The store is a plain one, which costs a fraction of an atomic one: there is
// one for each message. A word is stored whole all the same.
//
//go:norace
func (s *Seat) MoveHandler(conn uint64) {
	*(*uint64)(unsafe.Pointer(&s.handler.conn)) = conn
}

// ClearHandler notes that no callback runs on the loop. Only the goroutine
// of the worker's loop calls it.
func (s *Seat) ClearHandler() {
	h := &s.handler
	h.seq.Add(1)
	h.since.Store(0)
	h.seq.Add(1)
}

// Handler returns what SetHandler noted last; ok is false if no callback
// runs. A worker that died while it wrote leaves a note that cannot be read:
// then ok is false too. Anyone may call it.
func (s *Seat) Handler() (listener string, conn uint64, since int64, ok bool) {
	h := &s.handler
	for range 100 {
		seq := h.seq.Load()
		if seq%2 == 1 {
			continue
		}
		conn, since = h.conn.Load(), h.since.Load()
		var name [listenerWords * 8]byte
		n := 0
		for i := range h.listener {
			w := h.listener[i].Load()
			for j := range 8 {
				if c := byte(w >> (8 * j)); c != 0 {
					name[n] = c
					n++
				}
			}
		}
		if h.seq.Load() == seq {
			return string(name[:n]), conn, since, since != 0
		}
	}
	return "", 0, 0, false
}
