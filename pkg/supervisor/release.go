package supervisor

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
)

// MaxWorkers is the largest number of workers of a pool.
const MaxWorkers = 256

// Settings is what a configuration says to the supervisor. A zero duration
// or number stands for the default in brackets.
type Settings struct {
	Workers       int           // slots [1], at most MaxWorkers
	StartAttempts int           // starts in a row that may fail in the first generation before the service has failed to start [3]
	MaxOld        int           // workers of a slot that may drain at a time; the oldest is hastened beyond that [2]
	Parallel      int           // slots that a reload replaces at a time [1]
	StartTimeout  time.Duration // from spawn to readiness [30 s]
	Grace         time.Duration // for a drain at reload and scale-down [30 s]
	StopGrace     time.Duration // for a drain at the end of the service [10 s]
	Bake          time.Duration // how long a new worker serves beside the old one before that leaves; zero: not at all
	Respawn       backoff.Policy
	Health        Health
	OnWorkerError []string // command to be run when a worker dies unasked, with its arguments; empty: none
	Rebalance     bool     // after a respawn or a scale-up connections are moved, so that all workers have as many
	RebalanceRate int      // connections that are moved a second then [1000]

	// Apply, if not nil, is called when the generation with these settings
	// begins to serve: what a rollback must not leave behind is done there.
	Apply func() `json:"-"`

	// Notes are told to who asked for the reload that brings these settings
	// in: what they say that only a restart would change.
	Notes []string

	// Certificates are those of the listeners, for status.
	Certificates []control.Certificate

	// Memo is what Recall returns to the next supervisor's process while workers
	// run with these settings; not looked at here.
	Memo []byte

	Worker []byte `json:"-"` // configuration for the workers, not looked at here
}

func (s Settings) apply() {
	if s.Apply != nil {
		s.Apply()
	}
}

func (s Settings) withDefaults() (Settings, error) {
	number := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	duration := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	number(&s.Workers, 1)
	number(&s.StartAttempts, 3)
	number(&s.MaxOld, 2)
	number(&s.Parallel, 1)
	number(&s.RebalanceRate, 1000)
	duration(&s.StartTimeout, 30*time.Second)
	duration(&s.Grace, 30*time.Second)
	duration(&s.StopGrace, 10*time.Second)
	s.Health = s.Health.withDefaults()
	switch {
	case s.Workers < 1 || s.Workers > MaxWorkers:
		return s, fmt.Errorf("supervisor: %d workers, want 1 to %d", s.Workers, MaxWorkers)
	case s.StartAttempts < 0 || s.MaxOld < 0 || s.Parallel < 0:
		return s, errors.New("supervisor: a negative number of start attempts, old workers or parallel replacements")
	case s.RebalanceRate < 0:
		return s, errors.New("supervisor: a negative rate of rebalancing")
	case s.StartTimeout < 0 || s.Grace < 0 || s.StopGrace < 0 || s.Bake < 0:
		return s, errors.New("supervisor: a negative duration")
	}
	return s, nil
}

// release is what the workers of one generation run: an executable and a
// configuration, both held open, so that a rollback returns to them whatever
// became of the files.
type release struct {
	generation uint64
	build      string // as a worker of it said; empty: none has yet
	contract   int    // that its workers speak; 0: none has said so yet
	settings   Settings
	exe        executable
	config     *os.File
}

// executable is an open program.
type executable struct {
	path string
	file *os.File
	dev  uint64
	ino  uint64
}

// openExecutable opens the program that path names now.
func openExecutable(path string) (executable, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return executable{}, fmt.Errorf("supervisor: executable: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	// High enough not to be overwritten by the descriptors that the child
	// gets before it executes the file through this one.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highFD)
	unix.Close(fd)
	if err != nil {
		return executable{}, fmt.Errorf("supervisor: executable %s: a descriptor above %d: %w", path, highFD, os.NewSyscallError("fcntl", err))
	}
	e := executable{path: path, file: os.NewFile(uintptr(high), path)}
	var st unix.Stat_t
	if err := unix.Fstat(high, &st); err != nil {
		e.close()
		return executable{}, fmt.Errorf("supervisor: executable %s: %w", path, os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		e.close()
		return executable{}, fmt.Errorf("supervisor: executable %s: not an executable file", path)
	}
	e.dev, e.ino = st.Dev, st.Ino
	return e, nil
}

// highFD is above any descriptor number that a worker is started with.
const highFD = 512

const (
	descriptorsPerWorker  = 8   // channel, process, keeper, inbox, the harvester's of that, output, last words; the far ends while it starts
	descriptorsPerRelease = 2   // executable, configuration
	descriptorsAside      = 128 // the control socket's askers, answers to questions, the journal, the runtime
)

// Descriptors is how many files a supervisor with these settings opens in a
// reload, when every slot has an old worker and a new one.
func Descriptors(listeners int, settings Settings) int {
	processes := 2*settings.Workers + settings.Parallel
	low := listeners + processes*descriptorsPerWorker + descriptorsAside
	return max(low, highFD) + (settings.MaxOld+4)*descriptorsPerRelease
}

// Storage is how many descriptors a supervisor with these settings has in the
// service manager's store in a reload, when every slot has an old worker and a
// new one.
func Storage(settings Settings) int {
	const own = 3 + 2 // the state and the tables; our keeper, and that of the supervisor before
	return own + (2*settings.Workers+settings.Parallel)*len(ofWorker) + (settings.MaxOld+4)*descriptorsPerRelease
}

// name returns what to execute: the path while it still names the same file,
// which also serves scripts and gives the process its name, else the open
// descriptor.
func (e executable) name() string {
	if !e.replaced() {
		return e.path
	}
	return fmt.Sprintf("/proc/self/fd/%d", e.file.Fd())
}

func (e executable) close() { e.file.Close() }

// adoptExecutable makes an executable of the open program that an earlier
// supervisor had; fd stays the caller's.
func adoptExecutable(path string, fd int) (executable, error) {
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highFD)
	if err != nil {
		return executable{}, fmt.Errorf("supervisor: executable %s: a descriptor above %d: %w", path, highFD, os.NewSyscallError("fcntl", err))
	}
	e := executable{path: path, file: os.NewFile(uintptr(high), path)}
	var st unix.Stat_t
	if err := unix.Fstat(high, &st); err != nil {
		e.close()
		return executable{}, fmt.Errorf("supervisor: executable %s: %w", path, os.NewSyscallError("fstat", err))
	}
	e.dev, e.ino = st.Dev, st.Ino
	return e, nil
}

func newRelease(generation uint64, settings Settings, path string) (*release, error) {
	settings, err := settings.withDefaults()
	if err != nil {
		return nil, err
	}
	exe, err := openExecutable(path)
	if err != nil {
		return nil, err
	}
	config, err := link.ConfigFile(settings.Worker)
	if err != nil {
		exe.close()
		return nil, err
	}
	return &release{generation: generation, settings: settings, exe: exe, config: config}, nil
}

func (r *release) close() {
	r.exe.close()
	r.config.Close()
}

// speaks returns the contract in which a worker of the release is spoken to: that
// of its workers before, and ours if there was none.
func (r *release) speaks() int { return cmp.Or(r.contract, link.Contract) }
