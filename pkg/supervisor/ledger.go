package supervisor

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/rows"
)

// ledger is where it is written down at once what becomes of the connections of
// dead workers, so that the next supervisor tells of those that ended under one
// that died before it could. It is memory of the file with the state, behind the
// state's halves: an account for each dead worker, and for each supervisor that
// had connections in its hands, by the number of their incarnation.
//
// A row is freed and its end counted at one instant, as far as the next supervisor
// can see: what is being ended is noted before, with what the counter will be. If
// its row is there afterwards, it is harvested again; if not, the counter is set.
//
// An account is closed when what it says is in the saved state and in the journal;
// so a supervisor that dies between the two has the journal say it twice, each
// time the whole of it. A nil ledger, or account, keeps nothing.
type ledger struct {
	mem   []byte
	words []atomic.Uint64
}

// account is a part of the ledger. The goroutine that owns the ledger's
// supervisor opens and closes it, the harvester's writes to it.
type account struct {
	ledger *ledger
	words  []atomic.Uint64 // accountWords of them
}

// An account's words; the ledger's head is as long as one.
const (
	accountNumber = 0 // of the incarnation; 0: not open
	accountKept   = 1
	accountEnded  = 2
	accountLost   = 3 // were not to be reached
	accountTorn   = 4 // by reason, as tornReasons
	accountWords  = 32

	headMagic  = 0
	headEnding = 1 // the connection that is being ended; 0: none
	headWord   = 2 // which of the ledger's words counts it
	headCount  = 3 // what that will be then

	ledgerAt    = 2 * savedHalf
	ledgerSize  = (1 + 4*MaxWorkers + 8) * accountWords * 8 // only what is used costs memory
	ledgerMagic = 0x1052454744454c4d                        // "MLEDGER" and the version of the layout
)

// openLedger returns the ledger of a state's file, whose descriptor stays the
// caller's. It has one made where there is none, or one of another layout.
func openLedger(fd int) (*ledger, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("supervisor: ledger: %w", os.NewSyscallError("fstat", err))
	}
	if st.Size < ledgerAt+ledgerSize {
		if err := unix.Ftruncate(fd, ledgerAt+ledgerSize); err != nil {
			return nil, fmt.Errorf("supervisor: ledger: %w", os.NewSyscallError("ftruncate", err))
		}
	}
	mem, err := unix.Mmap(fd, ledgerAt, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("supervisor: ledger: %w", os.NewSyscallError("mmap", err))
	}
	l := &ledger{mem: mem, words: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), ledgerSize/8)}
	if l.words[headMagic].Load() != ledgerMagic {
		clear(mem)
		l.words[headMagic].Store(ledgerMagic)
	}
	return l, nil
}

func (l *ledger) close() {
	if l != nil {
		unix.Munmap(l.mem)
	}
}

// resolve decides about the connection that was being ended when the supervisor
// before died. It is called before any row is freed.
func (l *ledger) resolve(table *rows.Table) {
	if l == nil {
		return
	}
	id, word := rows.ID(l.words[headEnding].Load()), l.words[headWord].Load()
	if id != 0 && word < uint64(len(l.words)) && table.Row(id) == nil {
		l.words[word].Store(l.words[headCount].Load())
	}
	l.words[headEnding].Store(0)
}

// numbers returns whose accounts are open.
func (l *ledger) numbers() (all []uint64) {
	if l == nil {
		return nil
	}
	for at := accountWords; at < len(l.words); at += accountWords {
		if n := l.words[at+accountNumber].Load(); n != 0 {
			all = append(all, n)
		}
	}
	return all
}

// find returns the account of an incarnation, nil if there is none.
func (l *ledger) find(number uint64) *account {
	if l == nil {
		return nil
	}
	for at := accountWords; at < len(l.words); at += accountWords {
		if l.words[at+accountNumber].Load() == number {
			return &account{l, l.words[at : at+accountWords]}
		}
	}
	return nil
}

// open is find for an account that is to be there; nil: there is no room.
func (l *ledger) open(number uint64) *account {
	if a := l.find(number); a != nil {
		return a
	}
	a := l.find(0)
	if a == nil {
		return nil
	}
	for i := range a.words {
		a.words[i].Store(0)
	}
	a.words[accountNumber].Store(number)
	return a
}

// drop closes the account of an incarnation, if there is one.
func (l *ledger) drop(number uint64) {
	if a := l.find(number); a != nil {
		a.words[accountNumber].Store(0)
	}
}

// result is what the account says.
func (a *account) result() harvestResult {
	r := harvestResult{Torn: make(map[string]int)}
	if a == nil {
		return r
	}
	r.Kept, r.Ended = int(a.words[accountKept].Load()), int(a.words[accountEnded].Load())
	for i, why := range tornReasons {
		if n := a.words[accountTorn+i].Load(); n > 0 {
			r.Torn[why] = int(n)
		}
	}
	return r
}

func (a *account) kept() {
	if a != nil {
		a.words[accountKept].Add(1)
	}
}

// ending notes that a connection is going to be ended and its row to be freed;
// why is of tornReasons, or empty if it was ending anyway. ended is called when
// that is done.
func (a *account) ending(id rows.ID, why string) {
	if a == nil {
		return
	}
	i := accountEnded
	for n, reason := range tornReasons {
		if reason == why {
			i = accountTorn + n
		}
	}
	head := a.ledger.words
	head[headWord].Store(uint64(uintptr(unsafe.Pointer(&a.words[i]))-uintptr(unsafe.Pointer(&head[0]))) / 8)
	head[headCount].Store(a.words[i].Load() + 1)
	head[headEnding].Store(uint64(id))
}

func (a *account) ended() {
	if a == nil {
		return
	}
	head := a.ledger.words
	head[head[headWord].Load()].Store(head[headCount].Load())
	head[headEnding].Store(0)
}

// openBooks opens the ledger, which an earlier supervisor may have left.
func (s *Supervisor) openBooks() {
	var err error
	if s.ledger, err = openLedger(s.saved.fd); err != nil {
		s.log.Warn("what becomes of the connections of a dead worker is not told if the supervisor dies as well", zap.Error(err))
	}
	s.ledger.resolve(s.rows)
	s.accounts = bookkeeping{harvests: make(map[uint64]bool), counted: make(map[uint64]bool), telling: make(map[uint64]int)}
}

// bookkeeping is what is going on with those of the ledger, by number.
type bookkeeping struct {
	harvests map[uint64]bool // under way, so that there is more to come
	counted  map[uint64]bool // they are in the books
	telling  map[uint64]int  // how often the journal is being written for them
}

// openAccount opens the account of a harvest that begins.
func (s *Supervisor) openAccount(number uint64) *account {
	s.accounts.harvests[number] = true
	return s.ledger.open(number)
}

// accountTold is told that what an account says is in the journal, and was in
// the state before.
type accountTold struct{ number uint64 }

func (accountTold) isMessage() {}

// wasTold closes an account that was told, once the state has been saved and the
// journal written.
func (s *Supervisor) wasTold(number uint64) {
	if s.ledger.find(number) == nil {
		return
	}
	s.accounts.telling[number]++
	s.looks.Go(func() {
		// What cannot be written now is not told better later.
		_ = s.log.Sync()
		s.post(accountTold{number})
	})
}

func (s *Supervisor) closeAccount(m accountTold) {
	if s.accounts.telling[m.number]--; s.accounts.telling[m.number] > 0 || s.accounts.harvests[m.number] {
		return // there is more to come
	}
	delete(s.accounts.telling, m.number)
	delete(s.accounts.counted, m.number)
	s.ledger.drop(m.number)
}

// tellAccount tells what an earlier supervisor has done with the connections of
// a dead worker that are not harvested any more.
func (s *Supervisor) tellAccount(number uint64, o harvestObituary) {
	a := s.ledger.find(number)
	if a == nil {
		return
	}
	s.tellHarvest(harvested{o, a.result()})
	if n := a.words[accountLost].Load(); n > 0 {
		s.tellLost(int(n), o.fields)
	}
	s.wasTold(number)
}

// tellPast tells what the accounts say of those of whom nobody else will: who is
// adopted is told of when it is known to be dead.
func (s *Supervisor) tellPast() {
	for _, number := range s.ledger.numbers() {
		if _, adopted := s.incarnations[number]; adopted {
			continue
		}
		inHand := false
		for epoch := range s.hands {
			inHand = inHand || harvesterNumber(epoch) == number
		}
		if !inHand {
			s.tellAccount(number, harvestObituary{number: number, fields: []zap.Field{zap.Uint64("incarnation", number)}})
		}
	}
}

// reclaim frees the rows that the dead still owns, and tells of them.
func (s *Supervisor) reclaim(number uint64, fields []zap.Field) {
	owned := 0
	s.rows.Owned(number, func(rows.ID, *rows.Row) { owned++ })
	a := s.ledger.find(number)
	if a == nil && owned > 0 {
		a = s.ledger.open(number)
	}
	lost := owned
	if a != nil { // an earlier supervisor may have begun with it
		lost = max(lost, int(a.words[accountLost].Load()))
		a.words[accountLost].Store(uint64(lost))
	}
	if freed := s.rows.Reclaim(number); freed < owned { // somebody has taken some meanwhile
		lost -= owned - freed
		if a != nil {
			a.words[accountLost].Store(uint64(lost))
		}
	}
	if lost > 0 {
		s.tellLost(lost, fields)
		s.wasTold(number)
	}
}

func (s *Supervisor) tellLost(n int, fields []zap.Field) {
	s.log.Warn("connections lost with a worker", append(fields, zap.Int("connections", n))...)
}
