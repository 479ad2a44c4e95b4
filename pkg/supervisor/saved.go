package supervisor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/failpoint"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// savedState is what the next supervisor has to know and cannot see: the
// tables, in short. It stands as JSON in a memfd of the store. A field that is
// unknown is skipped, so a newer supervisor may add some; Format says that the
// meaning of one has changed.
type savedState struct {
	Format   int    `json:"format"`
	Contract int    `json:"contract"` // of this supervisor
	Service  string `json:"service"`

	Epoch       uint64            `json:"epoch"`
	Incarnation uint64            `json:"incarnation"` // the last number given
	Generation  uint64            `json:"generation"`  // the last number given
	Current     uint64            `json:"current"`     // the generation that serves
	Good        uint64            `json:"good,omitempty"`
	Stopping    bool              `json:"stopping,omitempty"`
	Restarting  bool              `json:"restarting,omitempty"` // it left so that another takes over
	Env         map[string]string `json:"env,omitempty"`
	Reload      *savedReload      `json:"reload,omitempty"` // that is under way
	LastReload  *control.Reload   `json:"last_reload,omitempty"`
	Listeners   []link.Listener   `json:"listeners"`
	Releases    []savedRelease    `json:"releases"`
	Slots       []savedSlot       `json:"slots"`
	Workers     []savedWorker     `json:"workers"`

	// What it has counted and told; nil if there was no room for it.

	Books  *savedBooks     `json:"books,omitempty"`
	Told   []uint64        `json:"told,omitempty"` // accounts of the ledger that are in the books
	Events []control.Event `json:"events,omitempty"`
}

type savedReload struct {
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Extra []int  `json:"extra,omitempty"` // slots that only the new release has
	Back  bool   `json:"back,omitempty"`  // it is a rollback
}

type savedRelease struct {
	Generation uint64   `json:"generation"`
	Build      string   `json:"build,omitempty"`
	Contract   int      `json:"contract,omitempty"` // that its workers speak; 0: the supervisor's
	Path       string   `json:"path"`
	Settings   Settings `json:"settings"`
}

type savedSlot struct {
	Generation    uint64 `json:"generation"` // what its next worker runs
	Held          bool   `json:"held,omitempty"`
	Respawns      uint64 `json:"respawns,omitempty"`
	StartFailures uint64 `json:"start_failures,omitempty"`
	LastDeath     string `json:"last_death,omitempty"`
}

// Roles of a worker in its slot.
const (
	roleCurrent  = "current"
	roleNext     = "next"
	roleDraining = "draining"
)

type savedWorker struct {
	Incarnation uint64 `json:"incarnation"`
	PID         int    `json:"pid"`
	Keeper      int    `json:"keeper,omitempty"` // its pid
	Protection  string `json:"protection,omitempty"`
	Slot        int    `json:"slot"`
	Seat        int    `json:"seat"`
	Generation  uint64 `json:"generation"`
	Build       string `json:"build,omitempty"`
	Contract    int    `json:"contract,omitempty"` // that it speaks; 0: the supervisor's
	State       string `json:"state"`
	Role        string `json:"role"`
	Unready     string `json:"unready,omitempty"`
	BornNS      int64  `json:"born_ns"`            // CLOCK_REALTIME
	ReadyNS     int64  `json:"ready_ns,omitempty"` // CLOCK_REALTIME
	ReadyMonoNS int64  `json:"ready_mono_ns,omitempty"`

	// Of one that drains.

	DeadlineNS int64 `json:"deadline_ns,omitempty"` // CLOCK_REALTIME
	Prompt     bool  `json:"prompt,omitempty"`
	Hand       bool  `json:"hand,omitempty"`
}

const (
	savedFormat = 1
	savedMagic  = 0x545359414e49414d // "MAINAYST", little endian
	savedHalf   = 1 << 20            // bytes for one state
	savedHead   = 32                 // magic, sequence, length, checksum, zero
)

// stateFile is the memfd with a savedState: two halves, written in turn, so
// that one is whole whenever the writer dies.
type stateFile struct {
	fd   int
	seq  uint64
	last []byte
}

func newStateFile() (*stateFile, error) {
	fd, err := unix.MemfdCreate("mainstay-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("memfd_create", err))
	}
	if err := unix.Ftruncate(fd, 2*savedHalf); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("supervisor: %w", os.NewSyscallError("ftruncate", err))
	}
	return &stateFile{fd: fd}, nil
}

// openStateFile reads what was written last. It takes over fd if it returns no
// error.
func openStateFile(fd int) (*stateFile, savedState, error) {
	f := &stateFile{fd: fd}
	var body []byte
	for half := range int64(2) {
		if seq, b, err := readHalf(fd, half); err == nil && seq > f.seq {
			f.seq, body = seq, b
		}
	}
	if body == nil {
		return nil, savedState{}, errors.New("no state that is whole")
	}
	var state savedState
	if err := json.Unmarshal(body, &state); err != nil {
		return nil, savedState{}, err
	}
	if state.Format != savedFormat {
		return nil, savedState{}, fmt.Errorf("state of format %d, want %d", state.Format, savedFormat)
	}
	return f, state, nil
}

func readHalf(fd int, half int64) (seq uint64, body []byte, err error) {
	head := make([]byte, savedHead)
	if n, err := unix.Pread(fd, head, half*savedHalf); err != nil || n < savedHead {
		return 0, nil, fmt.Errorf("%d bytes: %w", n, err)
	}
	n := binary.LittleEndian.Uint64(head[16:])
	if binary.LittleEndian.Uint64(head) != savedMagic || n > savedHalf-savedHead {
		return 0, nil, errors.New("no header")
	}
	seq = binary.LittleEndian.Uint64(head[8:])
	body = make([]byte, n)
	if got, err := unix.Pread(fd, body, half*savedHalf+savedHead); err != nil || got < len(body) {
		return 0, nil, fmt.Errorf("%d of %d bytes: %w", got, n, err)
	}
	if savedSum(head, body) != binary.LittleEndian.Uint32(head[24:]) {
		return 0, nil, errors.New("wrong checksum")
	}
	return seq, body, nil
}

func savedSum(head, body []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(head[:24]), crc32.IEEETable, body)
}

var errStateTooLong = errors.New("supervisor: state too long")

// write puts down a state, if it differs from the last.
func (f *stateFile) write(state savedState) error {
	state.Format = savedFormat
	body, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("supervisor: state: %w", err)
	}
	if string(body) == string(f.last) {
		return nil
	}
	if len(body) > savedHalf-savedHead {
		return fmt.Errorf("%w: %d bytes, want at most %d", errStateTooLong, len(body), savedHalf-savedHead)
	}
	seq := f.seq + 1
	b := make([]byte, savedHead, savedHead+len(body))
	binary.LittleEndian.PutUint64(b[0:], savedMagic)
	binary.LittleEndian.PutUint64(b[8:], seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(len(body)))
	binary.LittleEndian.PutUint32(b[24:], savedSum(b, body))
	b = append(b, body...)
	if n, err := unix.Pwrite(f.fd, b, int64(seq%2)*savedHalf); err != nil || n < len(b) {
		return fmt.Errorf("supervisor: state: %d of %d bytes written: %w", n, len(b), err)
	}
	f.seq, f.last = seq, body
	return nil
}

func (f *stateFile) close() { unix.Close(f.fd) }

// state is what is to be known of this supervisor.
func (s *Supervisor) state() savedState {
	st := savedState{
		Contract: link.Contract, Service: s.conf.Name, Epoch: s.epoch, Incarnation: s.lastNumber, Generation: s.generations,
		Current: s.current.generation, Stopping: s.phase == stopping, Restarting: s.restarting, Env: s.env,
		LastReload: s.lastReload, Listeners: s.listeners(),
	}
	st.Books, st.Events = s.books.saved(), s.chronicle.saved()
	st.Told = slices.Sorted(maps.Keys(s.accounts.counted))
	if s.good != nil {
		st.Good = s.good.generation
	}
	if r := s.job; r != nil && r.to != nil {
		st.Reload = &savedReload{From: r.from.generation, To: r.to.generation, Back: r.back}
		for _, sl := range r.extra {
			st.Reload.Extra = append(st.Reload.Extra, sl.index)
		}
	}
	for _, r := range s.releases {
		st.Releases = append(st.Releases, savedRelease{Generation: r.generation, Build: r.build, Contract: r.contract, Path: r.exe.path, Settings: r.settings})
	}
	for _, sl := range s.pool.slots {
		release := sl.release
		if release == nil { // a reload has added it, and has not come to it
			release = s.current
		}
		st.Slots = append(st.Slots, savedSlot{
			Generation: release.generation, Held: sl.place == held,
			Respawns: sl.respawns, StartFailures: sl.startFailures, LastDeath: sl.lastDeath,
		})
	}
	for inc := range s.living() {
		st.Workers = append(st.Workers, inc.saved())
	}
	return st
}

func (inc *incarnation) saved() savedWorker {
	w := savedWorker{
		Incarnation: inc.number, PID: inc.pid(), Protection: inc.protection, Slot: inc.slot.index, Seat: inc.seatNo,
		Generation: inc.release.generation, Build: inc.build, Contract: inc.contract, State: inc.state.String(), Role: roleDraining, Unready: inc.unready,
		BornNS: inc.born.UnixNano(), ReadyMonoNS: int64(inc.readyMono), Prompt: inc.terms.prompt, Hand: inc.terms.hand,
	}
	switch inc {
	case inc.slot.current:
		w.Role = roleCurrent
	case inc.slot.next:
		w.Role = roleNext
	}
	if inc.seat != nil {
		w.Keeper = int(inc.seat.KeeperPID.Load())
	}
	if !inc.readyAt.IsZero() {
		w.ReadyNS = inc.readyAt.UnixNano()
	}
	if !inc.deadline.IsZero() {
		w.DeadlineNS = inc.deadline.UnixNano()
	}
	return w
}

// listeners are the workers' sockets, as they are told.
func (s *Supervisor) listeners() (all []link.Listener) {
	for _, sock := range s.conf.Sockets {
		all = append(all, link.Listener{Name: sock.Name, Address: sock.Address})
	}
	return all
}

// save puts down how it is, for the next supervisor, and then gives away what
// those had who are dead in it. It is called when all has settled.
func (s *Supervisor) save() {
	defer s.clearVacated()
	if s.store == nil || !s.unsaved {
		return
	}
	s.unsaved = false
	failpoint.Here("saved.write")
	state := s.state()
	err := s.saved.write(state)
	if errors.Is(err, errStateTooLong) { // the workers matter more than figures
		state.Books, state.Told, state.Events = nil, nil, nil
		err = s.saved.write(state)
	}
	if err != nil {
		s.log.Error("state not saved: the next supervisor finds an old one", zap.Error(err))
	}
	failpoint.Here("saved.written")
}
