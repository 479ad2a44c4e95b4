package service

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// What an application needs of the packages below, so that one import is
// enough.
type (
	// Worker is a worker process, as the hooks get it.
	Worker = worker.Worker
	// Timer is made by Worker.After and Worker.Every.
	Timer = worker.Timer
	// Death says how a worker's predecessor died.
	Death = link.Death
	// Metrics makes the application's own figures, Counter, Gauge and
	// Histogram.
	Metrics   = metrics.Registry
	Counter   = metrics.Counter
	Gauge     = metrics.Gauge
	Histogram = metrics.Histogram
	// PanicError is told to OnClose when a callback panicked.
	PanicError = conn.PanicError
	// ProtocolError is told to OnClose when the peer broke the protocol.
	ProtocolError = conn.ProtocolError
	// MovedError is the answer of a Conn that another worker has now.
	MovedError = conn.MovedError
	// Reason is told to OnAdopt.
	Reason = conn.Reason
)

// Why another worker's connection is here now.
const (
	Reload  = conn.Reload  // the service has new code or a new configuration
	Move    = conn.Move    // somebody wanted it here: the application, the operator, or the balance of the load
	Crash   = conn.Crash   // the worker that had it is dead
	Restart = conn.Restart // the service was restarted: as Reload
)

// Why a connection ended, or why it refused what was asked of it; see package conn.
var (
	ErrClosed          = conn.ErrClosed
	ErrFull            = conn.ErrFull
	ErrTooLong         = conn.ErrTooLong
	ErrPeerClosed      = conn.ErrPeerClosed
	ErrTruncated       = conn.ErrTruncated
	ErrReset           = conn.ErrReset
	ErrUnauthenticated = conn.ErrUnauthenticated
	ErrIdle            = conn.ErrIdle
	ErrFirstByte       = conn.ErrFirstByte
	ErrMessageDeadline = conn.ErrMessageDeadline
	ErrStalled         = conn.ErrStalled
	ErrDrained         = conn.ErrDrained
	ErrStopping        = conn.ErrStopping
	ErrPiped           = conn.ErrPiped
	ErrPinned          = conn.ErrPinned
	ErrFrozen          = conn.ErrFrozen
	ErrMoved           = conn.ErrMoved
	ErrClosedBefore    = conn.ErrClosedBefore
)

// Service is what an application serves. It is filled by one goroutine and
// then run by Main.
type Service struct {
	name      string
	program   string // name of its command line; empty: what it was called by
	listeners []declared
	dials     []worker.Dial
	kinds     map[string]Protocol
	metrics   *metrics.Registry

	onStart []func(*Worker) error
	onDrain []func(context.Context, *Worker)
	onStop  []func(*Worker)
}

// declared is a listener of the code.
type declared struct {
	name     string
	address  string
	protocol Protocol
}

var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// New returns an empty service. The name stands for the unit NAME.service,
// the configuration /etc/NAME/NAME.toml, the runtime directory /run/NAME and,
// in upper case with underscores, the variables NAME_*. It panics unless name
// is a lower-case letter followed by up to 31 lower-case letters, digits and
// hyphens.
func New(name string) *Service {
	if !validName.MatchString(name) {
		panic(fmt.Sprintf("service: name %q, want a lower-case letter, then up to 31 lower-case letters, digits or hyphens", name))
	}
	return &Service{name: name, kinds: map[string]Protocol{}, metrics: metrics.NewRegistry()}
}

// Listen serves protocol on the listener of that name. Under systemd it is
// the socket with FileDescriptorName=name; started by hand, the one bound to
// address (tcp://HOST:PORT, unix:///PATH, as activation.ParseURL has it; empty:
// none, --listen must say). It panics if the name is not usable or taken, or
// "metrics", which the supervisor serves by itself.
func (s *Service) Listen(name, address string, protocol Protocol) {
	if err := checkListenerName(name); err != nil {
		panic("service: " + err.Error())
	}
	if name == metricsListener {
		panic(fmt.Sprintf("service: listener %q is the supervisor's own", name))
	}
	if s.declared(name) != nil {
		panic(fmt.Sprintf("service: listener %q is declared twice", name))
	}
	if protocol == nil {
		panic(fmt.Sprintf("service: listener %q has no protocol", name))
	}
	s.listeners = append(s.listeners, declared{name, address, protocol})
}

// HTTP serves h by net/http on the listener of that name; the rest is as with
// Listen.
func (s *Service) HTTP(name, address string, h http.Handler) {
	s.Listen(name, address, HTTP{Handler: h})
}

// Kind gives a protocol a name, by which an operator can have it served on
// any listener (serve = "NAME"). A listener called so is served by it if
// nobody says otherwise. It panics if the name is not usable or taken.
func (s *Service) Kind(name string, protocol Protocol) {
	if err := checkListenerName(name); err != nil {
		panic("service: kind: " + err.Error())
	}
	if s.kinds[name] != nil {
		panic(fmt.Sprintf("service: kind %q is declared twice", name))
	}
	if protocol == nil {
		panic(fmt.Sprintf("service: kind %q has no protocol", name))
	}
	s.kinds[name] = protocol
}

// Metrics returns where the application makes figures of its own: counters,
// gauges and histograms, best made right after New, so that callbacks can use
// them. They are on /metrics with the labels pool and worker; see
// Worker.Metrics for what becomes of them when a worker ends.
func (s *Service) Metrics() *metrics.Registry { return s.metrics }

// OnWorkerStart has f called in each worker when it starts. The worker is
// ready, and accepts, when all such functions have returned nil, in the order
// in which they were given. An error or a panic ends the worker; its text is
// what the operator reads. f may block, within start_timeout.
func (s *Service) OnWorkerStart(f func(w *Worker) error) { s.onStart = append(s.onStart, f) }

// OnWorkerDrain has f called when a worker has stopped accepting, while its
// connections are drained. ctx ends at the end of the grace; the worker waits
// for f until then.
func (s *Service) OnWorkerDrain(f func(ctx context.Context, w *Worker)) {
	s.onDrain = append(s.onDrain, f)
}

// OnWorkerStop has f called when a worker's connections are gone, right
// before it exits. It has a second at most.
func (s *Service) OnWorkerStop(f func(w *Worker)) { s.onStop = append(s.onStop, f) }

// Main plays the role in which the process was started and exits. It is the
// last call of main.
func (s *Service) Main() { os.Exit(s.Run(os.Args[1:])) }

// Run is Main without the exit: it returns the exit code. args is the command
// line without the program's name; a worker looks only at its environment.
//
//	0   done
//	1   refused or failed; the reason is on standard error
//	2   usage
//	3   the service is not running
//	78  broken configuration or activation (run only)
func (s *Service) Run(args []string) int {
	if link.IsWorker() {
		return s.work()
	}
	if supervisor.IsTrial() {
		return supervisor.PlayTrial()
	}
	return s.command(args)
}

// Exit codes.
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
	exitConfig     = 78 // EX_CONFIG of sysexits.h; the unit does not restart on it
)

// prefix is what the names of the service's variables begin with.
func (s *Service) prefix() string {
	return strings.ToUpper(strings.ReplaceAll(s.name, "-", "_")) + "_"
}

func (s *Service) declared(name string) *declared {
	for i := range s.listeners {
		if s.listeners[i].name == name {
			return &s.listeners[i]
		}
	}
	return nil
}

// complain writes an error for people.
func (s *Service) complain(err error) { fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err) }

// Logger is what Worker.Log returns.
type Logger = zap.Logger
