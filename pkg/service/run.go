package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/pkg/notify"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
)

// runFlags is the command line of run, as far as it says something.
type runFlags struct {
	config string // file; empty: the default one, which may be absent
	set    []flagValue

	sockets []string // names of systemd's sockets
}

// flagValue is a flag that sets a key of the configuration.
type flagValue struct {
	flag, key, value string
	listener         bool // value is NAME=VALUE, key a listener's
}

// usageError is a flag that cannot be understood.
type usageError struct{ error }

// load merges all that configures the service; env are its variables.
func (s *Service) load(flags runFlags, env map[string]string) (config, error) {
	c := defaults(s.name)
	path, mayBeAbsent := flags.config, false
	if path == "" {
		path, mayBeAbsent = s.defaultFile(), true
	}
	if err := c.readFile(path, mayBeAbsent); err != nil {
		return config{}, err
	}
	if err := c.readEnv(s.prefix(), env, s.names(flags)); err != nil {
		return config{}, err
	}
	for _, f := range flags.set {
		var err error
		if f.listener {
			err = c.setListenerFlag(f.flag, f.key, f.value)
		} else {
			err = c.setFlag(f.flag, f.key, f.value)
		}
		if err != nil {
			return config{}, usageError{err}
		}
	}
	if c.origin["control"] == "" {
		c.Control = s.defaultControl()
	}
	return c, c.check()
}

// defaultControl is where the control socket is if nobody says: in /run/NAME,
// or, for a user who has started the service by hand, in the user's own
// runtime directory.
func (s *Service) defaultControl() string {
	system := "/run/" + s.name + "/control.sock"
	own := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 || runtimeDir() != "" || !filepath.IsAbs(own) {
		return "unix://" + system
	}
	if _, err := os.Lstat(system); err == nil {
		return "unix://" + system
	}
	return "unix://" + filepath.Join(own, s.name, "control.sock")
}

func (s *Service) defaultFile() string { return "/etc/" + s.name + "/" + s.name + ".toml" }

// run is the supervisor's role.
func (s *Service) run(ctx context.Context, flags runFlags) int {
	// Before anything else opens a file or starts a process.
	inherited, stored, activationErr := activation.InheritedAndStored(supervisor.StorePrefix)
	notifier, err := notify.FromEnv()
	if err = errors.Join(activationErr, err); err != nil {
		return s.refuseStart(notifier, exitConfig, err)
	}
	for _, socket := range inherited {
		flags.sockets = append(flags.sockets, socket.Name)
	}
	c, err := s.load(flags, s.environment())
	var plan []planned
	if err == nil {
		plan, err = s.plan(c, inherited)
	}
	if err == nil {
		err = c.readCertificates()
	}
	if err != nil {
		// Workers that serve are not given up for that: they go on as they
		// are, and the supervisor tells what is wrong.
		if old, ok := recall(stored); ok {
			if p, planErr := s.plan(old, inherited); planErr == nil {
				s.complain(err)
				c, plan, err = old, p, nil
			}
		}
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return s.refuseStart(notifier, exitUsage, err)
	}
	if err != nil {
		return s.refuseStart(notifier, exitConfig, err)
	}
	if settings, err := c.settings(); err != nil {
		return s.refuseStart(notifier, exitConfig, err)
	} else if err := checkDescriptors(len(plan), settings); err != nil {
		return s.refuseStart(notifier, exitConfig, err)
	}
	if err := s.supervise(ctx, flags, c, plan, stored, notifier); err != nil {
		return s.refuseStart(notifier, exitFailed, err)
	}
	return exitDone
}

// recall returns the configuration with which the workers run that an earlier
// supervisor has left.
func recall(stored []activation.Stored) (c config, ok bool) {
	memo, ok := supervisor.Recall(stored)
	return c, ok && json.Unmarshal(memo, &c) == nil
}

// refuseStart tells systemd and standard error why the service does not run.
func (s *Service) refuseStart(n *notify.Notifier, code int, err error) int {
	s.complain(err)
	errno := syscall.Errno(0)
	if code == exitConfig {
		errno = syscall.EINVAL
	}
	if err := n.Failed(errno, err.Error()); err != nil {
		s.complain(err)
	}
	return code
}

// supervise opens what the plan says and supervises until the service ends.
func (s *Service) supervise(ctx context.Context, flags runFlags, c config, plan []planned, stored []activation.Stored, notifier *notify.Notifier) error {
	level, err := zap.ParseAtomicLevel(c.LogLevel)
	if err != nil {
		return err
	}
	log, err := journal.Open(journal.Options{Format: logFormat(c), Level: &level, Identifier: s.name})
	if err != nil {
		return err
	}
	defer log.Close()

	// First: an instance that runs already is best told by its control socket.
	listener, err := s.listenControl(c.Control)
	if err != nil {
		return err
	}
	defer listener.Close()
	sockets, err := open(plan)
	defer func() {
		for _, socket := range sockets {
			if err := socket.Close(); err != nil {
				log.Logger().Warn("socket not closed", zap.Error(err))
			}
		}
	}()
	if err != nil {
		return err
	}
	executable, err := executablePath()
	if err != nil {
		return err
	}
	workers, monitoring := split(sockets)
	serve := map[string]string{}
	for _, p := range plan {
		serve[p.name] = p.serve
	}
	l := &loader{service: s, flags: flags, env: s.environment(), first: c, plan: plan, level: &level, log: log.Logger(), seed: newTicketSeed()}
	sup, err := supervisor.New(supervisor.Config{
		Name: s.name, Version: buildVersion(), Log: log.Logger(), Notify: notifier,
		Sockets: workers, Serve: serve, Executable: executable, Args: os.Args[1:],
		Load: l.load, RuntimeDir: runtimeDir(), Monitor: monitoring, LinesDropped: log.Dropped,
		Control: c.Control, Cgroup: unitCgroup(), Stored: stored, StoreMax: storeMax(),
	})
	if err != nil {
		return err
	}
	server := control.NewServer(sup)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	stopMonitor, err := serveMonitor(sup, monitoring, log.Logger())
	if err != nil {
		stopMonitor = func() {}
		log.Logger().Error("metrics are served on the control socket only", zap.Error(err))
	}
	defer stopMonitor()

	err = sup.Run(ctx)

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	closed := errors.Join(server.Close(ctx), <-served)
	if closed == nil { // otherwise somebody may still look at the scoreboard
		closed = sup.Close()
	}
	if closed != nil {
		log.Logger().Warn("control socket not closed in order", zap.Error(closed))
	}
	return err
}

// split takes the sockets of monitoring out of those that workers get.
func split(all []activation.Socket) (workers, monitoring []activation.Socket) {
	for _, socket := range all {
		if socket.Name == metricsListener {
			monitoring = append(monitoring, socket)
		} else {
			workers = append(workers, socket)
		}
	}
	return workers, monitoring
}

// serveMonitor answers what monitoring asks on the sockets, until stop is
// called. The sockets stay open: they may be systemd's.
func serveMonitor(m control.Monitor, sockets []activation.Socket, log *zap.Logger) (stop func(), err error) {
	var servers []*control.Server
	var serving sync.WaitGroup
	stop = func() {
		// What is asked at the end is not worth waiting for.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		for _, s := range servers {
			if err := s.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				log.Warn("metrics not closed in order", zap.Error(err))
			}
		}
		serving.Wait()
	}
	for _, socket := range sockets {
		l, err := listenerOf(socket)
		if err != nil {
			stop()
			return nil, err
		}
		s := control.NewMonitor(m)
		servers = append(servers, s)
		serving.Go(func() {
			if err := s.Serve(l); err != nil {
				log.Error("metrics are not served any more", zap.String("listener", socket.Name), zap.Error(err))
			}
		})
	}
	return stop, nil
}

// listenerOf returns a listener on a copy of the socket's descriptor. It is
// non-blocking already, so that nothing changes for others who share it.
func listenerOf(socket activation.Socket) (net.Listener, error) {
	fd, err := unix.FcntlInt(uintptr(socket.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listener %q: %w", socket.Name, os.NewSyscallError("fcntl", err))
	}
	f := os.NewFile(uintptr(fd), socket.Name)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener %q: %w", socket.Name, err)
	}
	return l, nil
}

// listenControl binds the control socket. Its directory is the service's
// runtime directory, which systemd makes and which nobody else may write.
func (s *Service) listenControl(address string) (net.Listener, error) {
	dir := filepath.Dir(strings.TrimPrefix(address, "unix://"))
	if address == s.defaultControl() && runtimeDir() == "" {
		// By hand nobody makes it for us. Whether that worked is told by what follows.
		_ = os.Mkdir(dir, 0o755)
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control: directory %s does not exist: make it, or give --control unix:///PATH", dir)
	}
	return control.Listen(address)
}

// open binds what has no socket yet. What it returns is open even if it
// fails.
func open(plan []planned) ([]activation.Socket, error) {
	var sockets []activation.Socket
	for _, p := range plan {
		if p.socket != nil {
			sockets = append(sockets, *p.socket)
			continue
		}
		socket, err := activation.Listen(p.name, p.address)
		if err != nil {
			return sockets, err
		}
		sockets = append(sockets, socket)
	}
	return sockets, nil
}

// runtimeDir is the first directory of the unit's RuntimeDirectory=; empty
// when it has none, or by hand.
func runtimeDir() string {
	first, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	return first
}

// unitCgroup is the cgroup that is the service's alone; empty by hand, where
// others share it.
func unitCgroup() string {
	if runtimeDir() == "" {
		return ""
	}
	return supervisor.UnitCgroup()
}

// storeMax is FileDescriptorStoreMax= of the unit, zero if systemd does not
// tell, as before 254.
func storeMax() int {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// checkDescriptors says whether the supervisor may open as many files as it
// needs to.
func checkDescriptors(listeners int, settings supervisor.Settings) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if need := supervisor.Descriptors(listeners, settings); limit.Cur < uint64(need) {
		return fmt.Errorf("the limit of open files is %d (RLIMIT_NOFILE): a supervisor of %d listeners and %d workers needs %d: raise LimitNOFILE= of the unit, or ulimit -n",
			limit.Cur, listeners, settings.Workers, need)
	}
	return nil
}

// loader reads the configuration for the supervisor, at the start and at
// each reload.
type loader struct {
	service *Service
	flags   runFlags
	env     map[string]string // of this process
	first   config            // with which the service was started
	plan    []planned         // sockets, which no reload changes
	level   *zap.AtomicLevel
	log     *zap.Logger
	seed    []byte // of session tickets, in all generations
}

// load returns the settings that hold with env, or this process's own
// environment if env is nil.
func (l *loader) load(env map[string]string) (supervisor.Settings, error) {
	if env == nil {
		env = l.env
	}
	c, err := l.service.load(l.flags, env)
	if err != nil {
		return supervisor.Settings{}, err
	}
	notes, err := l.fits(c)
	if err != nil {
		return supervisor.Settings{}, err
	}
	if err := c.readCertificates(); err != nil {
		return supervisor.Settings{}, err
	}
	c.seed = l.seed
	settings, err := c.settings()
	if err != nil {
		return supervisor.Settings{}, err
	}
	settings.Notes = notes
	if err := checkDescriptors(len(l.plan), settings); err != nil {
		return supervisor.Settings{}, err
	}
	level, err := zapcore.ParseLevel(c.LogLevel)
	if err != nil {
		return supervisor.Settings{}, err
	}
	settings.Apply = func() { l.level.SetLevel(level) }
	return settings, nil
}

// fits says what in c the running service cannot do, and notes what only a
// restart would change.
func (l *loader) fits(c config) (notes []string, err error) {
	note := func(key, have, want string) {
		l.log.Warn("change ignored, it needs a restart", zap.String("key", key), zap.String("have", have), zap.String("want", want))
		if from := c.origin[key]; from != "" {
			key += " (" + from + ")"
		}
		notes = append(notes, fmt.Sprintf("only a restart changes %s: it stays %s, not %s", key, have, want))
	}
	served := map[string]bool{}
	for _, p := range l.plan {
		served[p.name] = true
		if err := l.service.check(c, p.name); err != nil {
			return nil, err
		}
		if err := p.fits(l.service, c); err != nil {
			return nil, err
		}
		if was, is := l.first.Listeners[p.name].Address, c.Listeners[p.name].Address; was != is {
			note(listenerKey(p.name)+".address", strconv.Quote(was), strconv.Quote(is))
		}
	}
	for _, name := range sortedKeys(c.Listeners) {
		if !served[name] {
			return nil, c.refuse(fmt.Errorf("listener %q has no socket in the running service: a new listener needs a restart", name), listenerKey(name))
		}
	}
	if c.Control != l.first.Control {
		note("control", strconv.Quote(l.first.Control), strconv.Quote(c.Control))
	}
	if c.LogFormat != l.first.LogFormat {
		l.log.Warn("changed for the workers, for the supervisor it needs a restart", zap.String("key", "log.format"))
		notes = append(notes, fmt.Sprintf("only a restart changes log.format for the supervisor: it stays %q, the workers get %q", l.first.LogFormat, c.LogFormat))
	}
	return notes, nil
}

// settings is c as the supervisor and its workers take it.
func (c config) settings() (supervisor.Settings, error) {
	w, err := json.Marshal(workerConfig{
		Grace: c.Grace, StopGrace: c.StopGrace, LogLevel: c.LogLevel, LogFormat: logFormat(c), Listeners: c.Listeners,
		HangTimeout: c.HangTimeout, MemorySoft: c.MemorySoft, TLS: c.material, TicketSeed: c.seed,
	})
	if err != nil {
		return supervisor.Settings{}, fmt.Errorf("configuration: %w", err)
	}
	memo, err := json.Marshal(c)
	if err != nil {
		return supervisor.Settings{}, fmt.Errorf("configuration: %w", err)
	}
	workers := c.Workers
	if workers == 0 {
		workers = min(runtime.NumCPU(), supervisor.MaxWorkers)
	}
	return supervisor.Settings{
		Memo: memo, Certificates: c.certificates(),
		Workers: workers, StartAttempts: c.StartAttempts, MaxOld: c.MaxOld, Parallel: c.Parallel,
		StartTimeout: c.StartTimeout, Grace: c.Grace, StopGrace: c.StopGrace, Bake: c.Bake,
		Respawn:   backoff.Policy{First: c.RespawnFirst, Max: c.RespawnMax},
		Rebalance: c.Rebalance == rebalanceAfterChange, RebalanceRate: c.RebalanceRate,
		OnWorkerError: c.OnWorkerError,
		Health: supervisor.Health{
			HangTimeout: c.HangTimeout, HandlerTimeout: max(0, c.HandlerTimeout),
			MemorySoft: c.MemorySoft, MemoryHard: c.MemoryHard,
			MaxMessages: uint64(c.MaxRequests), MaxAge: max(0, c.MaxAge),
		},
		Worker: w,
	}, nil
}

// logFormat decides "auto" once for all processes: a worker's standard error
// is a pipe at first.
func logFormat(c config) string {
	if c.LogFormat != "auto" {
		return c.LogFormat
	}
	if ok, err := systemd.StderrIsJournalStream(); ok && err == nil {
		return "journal"
	}
	return "text"
}

// executablePath is the path by which this program was started, symbolic
// links kept: who changes the link changes the program of the next reload. If
// that path does not lead to this program, it is the program's own.
func executablePath() (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("executable: %w", err)
	}
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return own, nil
	}
	if path, err = filepath.Abs(path); err != nil {
		return own, nil
	}
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return own, nil
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(named, running) {
		return own, nil
	}
	return path, nil
}

// buildVersion says what was built: the module's version and the revision of
// its source, as far as the build knows them.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	parts := []string{info.Main.Version}
	set := map[string]string{}
	for _, kv := range info.Settings {
		set[kv.Key] = kv.Value
	}
	if rev := set["vcs.revision"]; rev != "" && !strings.Contains(info.Main.Version, rev[:min(12, len(rev))]) {
		parts = append(parts, rev[:min(12, len(rev))])
		if set["vcs.modified"] == "true" {
			parts = append(parts, "modified")
		}
	}
	return strings.Join(parts, " ")
}
