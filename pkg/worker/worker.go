package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/handoff"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
)

// Config is what a worker is to serve and how.
type Config struct {
	// Listeners says what is served on the inherited sockets, by name: there
	// is one for each of them.
	Listeners []Listener

	// Dials declares what is connected from here.
	Dials []Dial

	// OnStart, if not nil, is called once the loop turns. The worker is ready
	// when it has returned nil; an error or a panic ends the worker.
	OnStart func(*Worker) error
	// OnDrain, if not nil, is called when the worker has left its listeners,
	// beside the drain of its connections. ctx ends at the end of the grace.
	OnDrain func(ctx context.Context, w *Worker)
	// OnStop, if not nil, is called last, when the connections are gone.
	OnStop func(*Worker)

	Grace time.Duration // of the patient drain when the supervisor is gone; zero: 30 s
	// OrphanGrace is how long the worker serves on without a supervisor, as long
	// as its control socket is kept for the next one; zero: 120 s.
	OrphanGrace time.Duration
	StopGrace   time.Duration // of the prompt drain at SIGTERM; zero: 10 s

	// HangTimeout is after how long without a turn of the loop the supervisor
	// takes the worker for hung: the loop turns four times as often, also with
	// nothing to do. Zero or negative: once a second.
	HangTimeout time.Duration

	// MemorySoft is the memory beyond which the supervisor replaces the
	// worker, in bytes; zero: none. The Go runtime is told to stay 10 % below
	// it, unless GOMEMLIMIT says otherwise.
	MemorySoft int64

	PoolSize       int // goroutines for callbacks that are not inline; zero: 256
	Handshakes     int // of TLS that may be under way at a time, those of net/http aside; zero: 1024
	MaxDescriptors int // the descriptor table is made large enough for so many; zero: 65536

	Metrics *metrics.Registry // the application's own figures; nil: an empty one

	Build string           // what was built, for status
	Log   *zap.Logger      // nil: nothing is logged
	Level *zap.AtomicLevel // follows the supervisor's LogLevel; nil: stays
}

// Listener is what is served on one inherited socket: connections of ours,
// datagrams, or HTTP by net/http.
type Listener struct {
	Name string
	// Conn configures the connections; the worker sets its Listener, Pool,
	// Seat, Seqpacket, Event, Move, Bound, TLS, KernelTLS, Handshakes, Proxy and
	// Identified, and those of what they may become. nil: Packet or HTTP is
	// served.
	Conn *conn.Config
	// Dispatch says which worker serves a new connection; empty means
	// DispatchShared. It is for connections of Conn that are not Pinned.
	Dispatch Dispatch
	// Accept bounds the connections, those of net/http too.
	Accept AcceptLimits
	// TLS, if not nil, has the peers speak TLS. The worker sets the keys of its
	// session tickets, and nothing else; no other listener may have it.
	TLS *tls.Config
	// KernelTLS has the kernel seal what connections of Conn with TLS 1.3 send,
	// if it can; the worker of slot 0 says in its log why it cannot.
	KernelTLS bool
	// TicketSeed is what these keys are made of, see tlsrec.TicketKeys: workers
	// that have the same resume one another's sessions. It is to be another one
	// where other certificates of clients are accepted. nil: this worker's own.
	TicketSeed []byte
	// Proxy, if not nil, is who passes connections on, with a PROXY header in
	// front; whoever else comes is refused. Accept.PerPeer, DispatchHashIP and
	// all that is shown go by the address that the header tells.
	Proxy *proxyproto.Trusted
	// Packet configures a datagram socket; the worker sets its Listener,
	// OnPacket, Seat and Event. nil unless Conn is.
	Packet *conn.PacketConfig
	// OnPacket goes with Packet, as conn.PacketConfig's.
	OnPacket func(*Worker, *conn.Datagram)
	// HTTP answers the requests; nil unless Conn and Packet are.
	HTTP http.Handler
	// HTTPLimits go with HTTP.
	HTTPLimits HTTPLimits
	// Upgrades go with HTTP: by a name of the application's, what its handler
	// may have a connection become on the loop, see NewUpgrade. Each has a
	// ProtocolName of its own. nil: nothing.
	Upgrades map[string]*conn.Config
}

// Application is what a conn.Handler may be besides, if it has goroutines of
// its own.
type Application interface {
	// Serving tells, before the first connection, where panics are reported
	// and where requests and panics are counted.
	Serving(event func(conn.Event), seat *scoreboard.Seat)
	// Drain says that the worker leaves, and that its connections end with it:
	// it is called on the loop, before they are drained, or in the middle of
	// the grace if they are handed over and some are left. It may be called
	// again.
	Drain()
	// Longest returns for how long that request has been worked on, not on the
	// loop, which has waited longest for the beginning of its answer; zero:
	// there is none. It is called on the loop, ten times a second.
	Longest() time.Duration
	// Close waits until all goroutines have ended. The connections are gone.
	Close()
}

const (
	defaultGrace          = 30 * time.Second
	defaultStopGrace      = 10 * time.Second
	defaultOrphanGrace    = link.OrphanGrace
	defaultPoolSize       = 256
	defaultMaxDescriptors = 64 << 10

	// defaultProcs leaves a thread for handlers and the garbage collector
	// beside the loop; workers are scaled by processes.
	defaultProcs = 2
)

// ErrOverdue is returned by Run when something, such as a handler that does
// not end, was still running when the worker's time was over.
var ErrOverdue = errors.New("worker: still running when the grace was over")

// Worker is this process, as the application sees it. Its exported methods
// may be called from any goroutine.
type Worker struct {
	// Set once in Run.

	id         link.Identity
	conf       Config
	log        *zap.Logger
	control    *link.Channel
	seat       *scoreboard.Seat
	loop       *reactor.Loop
	set        *conn.Set
	pool       *conn.Pool
	handshakes *conn.Handshakes
	idled      int  // connections with TLS, since the last tidy
	tidying    bool // it was done less than tidyEvery ago
	stderr     int
	board      *scoreboard.Board
	gates      map[string]*gate // by listener; nil: all are taken
	listeners  []*listener
	packets    []*packets
	servers    []*httpServer
	handlers   []Application
	dials      map[string]*conn.Dialer // by name

	// overdue is closed when Run must return whatever still runs.
	overdue  chan struct{}
	expiring sync.Once

	tellers sync.Map // of Tell: string to Teller

	// Owned by the loop.

	phase     link.State
	failure   error
	drain     *drain // from the first Drain on
	evidence  evidence
	readiness readiness
	peers     peers
	ends      *handoff.Endpoint

	dispatched map[uint64][]handoff.Unit // accepted in this turn, by taker
	onTheWay   map[uint64]int            // of those, and given but not answered, by taker

	background background

	// Guarded by endingMu.

	endingMu sync.Mutex
	ending   *time.Timer // its firing ends Run

	started  atomic.Bool // OnStart has returned; written by the loop
	draining atomic.Bool
}

// Run is the worker process's life. It takes over what in owns and returns
// when the process is to exit: nil after an orderly drain, the reason when
// the worker could not start, ErrOverdue when its time was over. Goroutines
// of the application may still run then; the caller exits.
//
// Run changes the process: SIGPIPE, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are
// ignored, SIGTERM drains and a second one stops, GOMAXPROCS is 2 and
// GOMEMLIMIT 90 % of MemorySoft unless the environment says otherwise, the
// descriptor table is grown to MaxDescriptors, crashes of the runtime are noted for the
// supervisor, and standard output and error lead to the service's own once
// the worker is ready. It is called once.
func Run(in *link.Inherited, conf Config) error {
	terminated := make(chan os.Signal, 4)
	signal.Notify(terminated, unix.SIGTERM)
	defer signal.Stop(terminated)

	w, err := prepare(in, conf)
	if err != nil {
		if in.Control != nil {
			in.Control.Send(link.Failed{Reason: err.Error()}) // the caller's exit tells it as well
		}
		return err
	}
	defer w.control.Close()

	var listening sync.WaitGroup
	listening.Go(w.listen)
	defer listening.Wait()
	defer w.control.Interrupt()

	looped := make(chan error, 1)
	go func() { looped <- w.loop.Run() }()
	go w.start()
	for again := false; ; again = true {
		select {
		case <-terminated:
			w.leave(terms{prompt: true, stop: true, grace: w.conf.StopGrace, hasten: again})
		case err := <-looped:
			w.bequeath()
			return w.close(err)
		case <-w.overdue:
			w.bequeath()
			return w.giveUp()
		}
	}
}

// prepare makes the process a worker that has said Hello.
func prepare(in *link.Inherited, conf Config) (_ *Worker, err error) {
	signal.Ignore(unix.SIGPIPE, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(defaultProcs)
	}
	if conf.MemorySoft > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(conf.MemorySoft / 10 * 9)
	}
	w := &Worker{
		id: in.Identity, conf: conf.withDefaults(), control: in.Control, stderr: in.Stderr,
		overdue: make(chan struct{}),
	}
	w.background.init()
	w.log = w.conf.Log
	w.Tell("metrics", w.tellMetrics)
	nameProcess(fmt.Sprintf("%s/%d", in.Service, in.Slot))
	if err := noteCrashes(in.Crash); err != nil {
		return nil, err
	}
	// Before the first connection, so that accepting never waits for it.
	if err := reactor.ReserveDescriptors(w.conf.MaxDescriptors); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := w.checkDescriptors(len(in.Sockets)); err != nil {
		return nil, err
	}
	board, err := scoreboard.Open(in.Stats)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if in.Seat >= board.Seats() {
		return nil, fmt.Errorf("worker: seat %d of a scoreboard with %d", in.Seat, board.Seats())
	}
	w.board, w.seat = board, board.Seat(in.Seat)
	w.seat.PID.Store(int64(os.Getpid())) // the supervisor may have died before it could
	kept, err := w.protect(in)
	if err != nil {
		return nil, err
	}
	defer kept.close()
	defer func() {
		if err != nil {
			w.seat.Released.Store(1)
		}
	}()
	w.pool = conn.NewPool(w.conf.PoolSize)
	if w.loop, err = reactor.New(reactor.Options{OnTurn: w.turned, MaxSleep: maxSleep(w.conf.HangTimeout)}); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	inbox, err := w.openRows(in)
	if err != nil {
		return nil, err
	}
	if err := w.makeListeners(in); err != nil {
		return nil, err
	}
	if err := w.makeDials(); err != nil {
		return nil, err
	}
	w.Tell("connections", w.tellConnections)
	w.Tell("move", w.tellMove)
	w.Tell("give", w.tellGive)
	w.enter(link.StateStarting)
	hello := link.Hello{Contract: in.Contract, Incarnation: in.Incarnation, Generation: in.Generation, Build: w.conf.Build}
	if err := w.control.SendFile(hello, inbox); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := kept.tell(w.control); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return w, nil
}

// descriptorsAside is how many files a worker has open beside its connections
// and listeners: standard ones, epoll, the runtime, the log, an answer to the
// supervisor, the one that net.FileConn needs for a moment.
const descriptorsAside = 32

// checkDescriptors warns if the worker may be told to take more connections
// than it can have.
func (w *Worker) checkDescriptors(listeners int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("worker: %w", os.NewSyscallError("getrlimit", err))
	}
	connections := 0 // that are allowed; 0: no number is configured
	for _, l := range w.conf.Listeners {
		connections += l.Accept.Connections
	}
	if need := connections + listeners + descriptorsAside; connections > 0 && limit.Cur < uint64(need) {
		w.log.Warn("limit of open files is lower than the connections that are allowed: raise LimitNOFILE= of the unit",
			zap.Uint64("limit", limit.Cur), zap.Int("connections", connections), zap.Int("want", need))
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.StopGrace <= 0 {
		c.StopGrace = defaultStopGrace
	}
	if c.OrphanGrace <= 0 {
		c.OrphanGrace = defaultOrphanGrace
	}
	if c.PoolSize <= 0 {
		c.PoolSize = defaultPoolSize
	}
	if c.MaxDescriptors <= 0 {
		c.MaxDescriptors = defaultMaxDescriptors
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewRegistry()
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c
}

// nameProcess sets what ps and top show as the command. The kernel cuts it
// to 15 bytes. A worker without its name works as well.
func nameProcess(name string) {
	// prctl(2) PR_SET_NAME would name this thread; the process has the name
	// of its first one.
	os.WriteFile("/proc/self/comm", []byte(name), 0)
}

// noteCrashes has the runtime write its last words into the memfd, from
// where the supervisor takes them, besides standard error.
func noteCrashes(fd int) error {
	f := os.NewFile(uintptr(fd), "crash")
	defer f.Close()
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return fmt.Errorf("worker: crash output: fd %d: %w", fd, err)
	}
	return nil
}

// makeListeners pairs the inherited sockets with what is to be served on
// them.
func (w *Worker) makeListeners(in *link.Inherited) error {
	if err := w.prepareTLS(); err != nil {
		return err
	}
	w.gates = make(map[string]*gate)
	byName := make(map[string]*Listener, len(w.conf.Listeners))
	for i := range w.conf.Listeners {
		byName[w.conf.Listeners[i].Name] = &w.conf.Listeners[i]
	}
	for i, inherited := range in.Identity.Listeners {
		c := byName[inherited.Name]
		if c == nil {
			return fmt.Errorf("worker: listener %q: nothing is served on it", inherited.Name)
		}
		if wants := c.Packet != nil; wants != isDatagram(in.Sockets[i]) {
			return fmt.Errorf("worker: listener %q: %s is a %s socket, but what is served on it wants a %s one",
				c.Name, inherited.Address, socketKind(!wants), socketKind(wants))
		}
		if c.Packet != nil {
			if err := w.addPackets(in.Sockets[i], c); err != nil {
				return err
			}
			continue
		}
		l := &listener{worker: w, name: c.Name, fd: in.Sockets[i], isTCP: isTCP(in.Sockets[i])}
		if l.isPackets = isPackets(in.Sockets[i]); l.isPackets {
			if err := c.Packetable(); err != nil {
				return fmt.Errorf("worker: listener %q: %s is a seqpacket socket: %w", c.Name, inherited.Address, err)
			}
		}
		l.prepare()
		l.gate = w.newGate(c.Name, c.Accept, c.Proxy)
		w.gates[c.Name] = l.gate
		if c.Conn != nil {
			if !c.Conn.Pinned {
				l.dispatch = dispatcher{w: w, mode: c.Dispatch}
			}
			l.conns = w.configure(c.Conn, c, l)
		} else {
			l.http = newHTTPServer(w, c, l.gate)
			l.conns = w.upgradesOf(c, l)
			w.servers = append(w.servers, l.http)
		}
		w.listeners = append(w.listeners, l)
	}
	return nil
}

// upgradesOf has net/http know what connections may become, and returns the
// Config by which other workers' are found; nil if there are none.
func (w *Worker) upgradesOf(c *Listener, l *listener) *conn.Config {
	plain := *c
	plain.Proxy, plain.TLS = nil, nil // both have done their part
	var all *conn.Config              // one of them, which has the others
	l.http.upgrades = make(map[string]*conn.Config)
	for name, from := range c.Upgrades {
		to := w.configure(from, &plain, l)
		if c.TLS != nil {
			to.Handshakes, to.KernelTLS = w.handshakes, c.KernelTLS
		}
		l.http.upgrades[name] = to
		if all == nil {
			all = to
		} else {
			all.Becomes = append(all.Becomes, to)
		}
	}
	return all
}

// configure returns a copy of a Config that knows its listener, and of what
// its connections may become.
func (w *Worker) configure(from *conn.Config, l *Listener, at *listener) *conn.Config {
	c, g := *from, at.gate
	c.Becomes = nil
	for _, other := range from.Becomes {
		c.Becomes = append(c.Becomes, w.configure(other, l, at))
	}
	c.Listener, c.Pool, c.Seat, c.Event, c.Move = l.Name, w.pool, w.seat, w.connEvent, w.moveTo
	if l.Dispatch == DispatchHashID {
		c.Bound = w.bound
	}
	if a, ok := c.Handler.(Application); ok {
		a.Serving(w.connEvent, w.seat)
		w.handlers = append(w.handlers, a)
	}
	if released := c.Released; g != nil {
		c.Released = func(c *conn.Conn) {
			if released != nil {
				released(c)
			}
			g.left(peerOf(c))
		}
	}
	c.TLS, c.Proxy, c.Seqpacket = l.TLS, l.Proxy, at.isPackets
	if c.TLS != nil {
		c.Handshakes, c.KernelTLS = w.handshakes, l.KernelTLS
	}
	if c.Proxy != nil {
		c.Identified = at.identified
	}
	return &c
}

// connEvent logs what a connection's callbacks have done.
func (w *Worker) connEvent(e conn.Event) {
	fields := []zap.Field{zap.String("listener", e.Listener)}
	if e.Conn != nil {
		fields = append(fields, zap.Uint64("conn", e.Conn.ID()))
	}
	if e.Peer != "" {
		fields = append(fields, zap.String("peer", e.Peer))
	}
	switch e.Kind {
	case conn.SlowCallback:
		w.log.Warn("callback held the loop", append(fields, zap.Duration("took", e.Took), zap.Int("skipped", e.Skipped))...)
	case conn.CallbackPanicked:
		fields = append(fields, zap.Error(e.Err))
		if p, ok := errors.AsType[*conn.PanicError](e.Err); ok {
			fields = append(fields, zap.ByteString("stack", p.Stack))
		}
		w.log.Error("callback panicked", fields...)
	case conn.DatagramsDropped:
		w.log.Warn("datagrams dropped", append(fields, zap.Error(e.Err), zap.Int("skipped", e.Skipped))...)
	case conn.NotOpened:
		w.log.Info("connection not opened", append(fields, zap.Error(e.Err), zap.Int("skipped", e.Skipped))...)
	case conn.PacketsBroken:
		w.listenerBroken(e.Listener, e.Err)
	}
}

func (w *Worker) enter(phase link.State) {
	w.phase = phase
	w.seat.State.Store(uint32(phase))
}

// post has f run on the loop, if that still turns.
func (w *Worker) post(f func()) { _ = w.loop.Post(f) }

// send tells the supervisor something. If that is gone, listen notices.
func (w *Worker) send(body link.Body) {
	if err := w.control.Send(body); err != nil {
		w.log.Warn("supervisor not reached", zap.String("message", fmt.Sprintf("%T", body)), zap.Error(err))
	}
}

// listen obeys the supervisor until it is gone.
func (w *Worker) listen() {
	for {
		m, err := w.control.Recv()
		switch {
		case err == nil:
			w.told(m)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, io.EOF):
			w.orphaned(0)
			return
		default:
			w.log.Error("message of the supervisor not understood", zap.Error(err))
			if _, ok := errors.AsType[*os.SyscallError](err); ok { // not Decode: it will fail for ever
				w.orphaned(0)
				return
			}
		}
	}
}

func (w *Worker) told(message link.Message) {
	switch m := message.Body.(type) {
	case link.Adopt:
		w.post(func() { w.adoptedBy(m, message.Epoch) })
	case link.Accept:
		w.post(w.accept)
	case link.Rearm:
		w.post(func() {
			for _, l := range w.listeners {
				l.rearm()
			}
			for _, p := range w.packets {
				p.rearm()
			}
		})
	case link.Drain:
		w.leave(terms{prompt: m.Prompt, stop: m.Prompt && !m.Hand && !m.Stays, grace: m.Grace, hand: m.Hand, to: m.To, restart: m.Restart})
	case link.Peer:
		fd := message.FD
		message.FD = -1
		w.post(func() { w.peers.told(m, fd) })
	case link.PeerGone:
		w.post(func() { w.peers.gone(m.Incarnation) })
	case link.Stop:
		w.leave(terms{prompt: true, hasten: true})
	case link.Gather:
		go w.answer(m)
	case link.LogLevel:
		w.setLevel(m.Level)
	}
	if message.FD >= 0 {
		unix.Close(message.FD) // of a kind that should have none
	}
}

func (w *Worker) setLevel(level string) {
	if w.conf.Level == nil {
		return
	}
	if err := w.conf.Level.UnmarshalText([]byte(level)); err != nil {
		w.log.Warn("log level not understood", zap.String("level", level), zap.Error(err))
	}
}

// start runs OnStart; it has a goroutine of its own.
func (w *Worker) start() {
	var err error
	if w.conf.OnStart != nil {
		err = guard("OnWorkerStart", func() error { return w.conf.OnStart(w) })
	}
	w.post(func() { w.startReturned(err) })
}

// callbackPanic is a panic of the application.
type callbackPanic struct {
	who   string
	value any
	stack []byte
}

func (p *callbackPanic) Error() string { return fmt.Sprintf("%s panicked: %v", p.who, p.value) }

// guard calls f and returns its panic as a *callbackPanic.
func guard(who string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &callbackPanic{who, v, debug.Stack()}
		}
	}()
	return f()
}

// logPanic logs err with its stack if it is a callback's panic.
func (w *Worker) logPanic(err error) {
	if p, ok := errors.AsType[*callbackPanic](err); ok {
		w.seat.Panics.Add(1)
		w.log.Error("callback panicked", zap.Error(err), zap.ByteString("stack", p.stack))
	}
}

func (w *Worker) startReturned(err error) {
	w.started.Store(true)
	switch {
	case w.drain != nil: // told to leave meanwhile
		w.drain.progress()
	case err != nil:
		w.logPanic(err)
		w.failure = err
		w.send(link.Failed{Reason: err.Error()})
		w.loop.Stop()
	default:
		w.becomeReady()
	}
}

// ready tells the supervisor that the worker could serve. What is written to
// standard output and error belonged to the start until now.
func (w *Worker) ready() {
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(w.stderr, fd, 0); err != nil {
			w.log.Warn("standard error not replaced", zap.Int("fd", fd), zap.Error(os.NewSyscallError("dup3", err)))
		}
	}
	w.enter(link.StateReady)
	w.send(link.Ready{})
}

// accept begins to serve.
func (w *Worker) accept() {
	if w.phase != link.StateReady {
		return
	}
	w.enter(link.StateServing)
	for _, s := range w.servers {
		s.start()
	}
	if w.readiness.withdrawn {
		return
	}
	for _, l := range w.listeners {
		l.watch()
	}
	for _, p := range w.packets {
		p.watch()
	}
}

// close ends a worker whose loop has ended.
func (w *Worker) close(err error) error {
	if w.set.Len() == 0 {
		w.seat.Released.Store(1) // all is closed that a keeper would hold
	}
	w.loop.Close()
	if err == nil {
		err = w.failure
	}
	return err
}

func (w *Worker) giveUp() error {
	listener, id, _, ok := w.seat.Handler()
	if ok {
		w.log.Error("worker gives up what still runs", zap.String("listener", listener), zap.Uint64("conn", id))
	} else {
		w.log.Error("worker gives up what still runs")
	}
	return ErrOverdue
}
