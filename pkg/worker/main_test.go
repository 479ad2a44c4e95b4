package worker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/metrics"
	"github.com/mainstay-go/mainstay/pkg/rows"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"github.com/mainstay-go/mainstay/test/certs"
)

// The test binary, started as a worker by a test that plays the supervisor,
// is the worker that helperEnv names.
const helperEnv = "MAINSTAY_TEST_HELPER"

func TestMain(m *testing.M) {
	if link.IsWorker() {
		os.Exit(helper(os.Getenv(helperEnv)))
	}
	goleak.VerifyTestMain(m)
}

// patience is after what time a test gives up.
const patience = 20 * time.Second

// echo sends everything back, and has a few words with a meaning.
type echo struct {
	conn.NopHandler
	log io.Writer
}

func (e echo) OnConnect(c *conn.Conn) { fmt.Fprintln(e.log, "OnConnect") }

func (e echo) OnMessage(c *conn.Conn, m []byte) {
	switch string(m) {
	case "panic":
		panic("asked for")
	case "hang":
		select {}
	case "work":
		for range 1000 { // longer than it is looked at
			<-time.After(10 * time.Millisecond)
			c.Working()
		}
	case "close":
		c.Close(nil)
	default:
		c.Send(m)
	}
}

func (e echo) OnClose(c *conn.Conn, why error) { fmt.Fprintln(e.log, "OnClose:", why) }

// polite sends everything back, and waits for those that do not read it.
type polite struct{ conn.NopHandler }

func (polite) OnMessage(c *conn.Conn, m []byte) { c.Send(m) }
func (polite) OnBufferFull(c *conn.Conn)        { c.Pause() }
func (polite) OnBufferDrain(c *conn.Conn)       { c.Resume() }

// helper is a worker's main. Its log is text on what the supervisor gave it
// as the service's standard error.
func helper(name string) int {
	in, err := link.Inherit()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	stderr := os.NewFile(uintptr(in.Stderr), "stderr")
	log := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "m"}), zapcore.Lock(stderr), zap.DebugLevel))
	c := Config{
		Log: log, Build: "test", MaxDescriptors: 1024, Grace: 300 * time.Millisecond,
		OnStart: func(*Worker) error { return nil },
		OnDrain: func(ctx context.Context, w *Worker) { fmt.Fprintln(stderr, "OnWorkerDrain") },
		OnStop:  func(*Worker) { fmt.Fprintln(stderr, "OnWorkerStop") },
	}
	for _, l := range in.Identity.Listeners {
		c.Listeners = append(c.Listeners, Listener{Name: l.Name, Conn: &conn.Config{Handler: echo{log: stderr}, Inline: name != "pool"}})
	}
	if mode, ok := strings.CutPrefix(name, "dispatch "); ok {
		name = "talker"
		if rest, ok := strings.CutSuffix(mode, " on the pool"); ok {
			mode, name = rest, "talker on the pool"
		}
		for i := range c.Listeners {
			c.Listeners[i].Dispatch = Dispatch(mode)
		}
	}
	if rest, ok := strings.CutSuffix(name, " with limits"); ok {
		for i := range c.Listeners {
			c.Listeners[i].Accept = AcceptLimits{Connections: 5}
		}
		name = rest
	}
	secure := false
	if rest, ok := strings.CutPrefix(name, "tls "); ok {
		name, secure = rest, true
	}
	proxied := false
	if rest, ok := strings.CutPrefix(name, "proxied "); ok {
		name, proxied = rest, true
	}
	switch name {
	case "talker", "talker on the pool":
		for i, l := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{
				Handler:  talker{name: fmt.Sprintf("%d/%d", in.Slot, in.Generation)},
				Protocol: text.Protocol{}, ProtocolName: "text", Inline: name == "talker", Pinned: l.Name == "pinned",
			}
		}
	case "reasoner":
		for i := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{Handler: reasoner{}, Protocol: text.Protocol{}, ProtocolName: "text", Inline: true}
		}
	case "packet talker":
		for i := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{
				Handler: talker{name: fmt.Sprintf("%d/%d", in.Slot, in.Generation)}, ProtocolName: "raw", Inline: true,
			}
		}
	case "traveller", "traveller on the pool":
		h := traveller{name: fmt.Sprintf("%d/%d", in.Slot, in.Generation), mu: new(sync.Mutex), waiting: new(*conn.Conn)}
		for i := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{
				Handler: h, Protocol: text.Protocol{}, ProtocolName: "text", Inline: name == "traveller",
				Limits: conn.Limits{SendHigh: 8 << 20, SendHard: 16 << 20},
			}
		}
	case "polished talker":
		for i := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{
				Handler:  polished{talker{name: fmt.Sprintf("%d/%d", in.Slot, in.Generation)}, new(atomic.Bool)},
				Protocol: text.Protocol{}, ProtocolName: "text",
			}
		}
	case "fails":
		c.OnStart = func(*Worker) error { return errors.New("no database") }
	case "panics":
		c.OnStart = func(*Worker) error { panic("no database") }
	case "slow start":
		c.OnStart = func(w *Worker) error {
			for !w.Draining() {
				time.Sleep(time.Millisecond)
			}
			return nil
		}
	case "timers":
		c.OnStart = func(w *Worker) error {
			w.Every(time.Millisecond, func() { fmt.Fprintln(stderr, "tick") })
			w.After(time.Millisecond, func() { panic("in a timer") })
			w.Post(func() { w.After(0, func() { fmt.Fprintln(stderr, "never") }).Stop() })
			return nil
		}
	case "orphan":
		c.OrphanGrace = 500 * time.Millisecond
	case "prints":
		c.OnStart = func(*Worker) error { fmt.Println("before ready"); return nil }
		c.OnDrain = func(context.Context, *Worker) { fmt.Println("after ready") }
	case "few descriptors":
		// As many as are open, and four for connections.
		probe, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 1
		}
		unix.Close(probe)
		c.OnStart = func(*Worker) error {
			probe, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Close(probe)
			limit := uint64(probe) + 4
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit})
		}
	case "many connections":
		for i := range c.Listeners {
			c.Listeners[i].Accept.Connections = 1 << 30
		}
	case "memory":
		c.MemorySoft = 1 << 30
		c.OnStart = func(w *Worker) error {
			fmt.Fprintln(stderr, "limit", debug.SetMemoryLimit(-1), "procs", runtime.GOMAXPROCS(0))
			return nil
		}
	case "crowd":
		for i := range c.Listeners {
			c.Listeners[i].Conn = &conn.Config{
				Handler: polite{}, Protocol: text.Protocol{}, Inline: true,
				Limits: conn.Limits{SendHigh: 16 << 10, SendHard: 1 << 20},
			}
		}
	case "limits", "http limits":
		for i := range c.Listeners {
			if name != "limits" {
				c.Listeners[i] = Listener{Name: c.Listeners[i].Name, HTTP: http.HandlerFunc(serveTest)}
			}
			c.Listeners[i].Accept = AcceptLimits{Connections: 5, PerPeer: 2}
		}
	case "http":
		for i := range c.Listeners {
			c.Listeners[i] = Listener{Name: c.Listeners[i].Name, HTTP: http.HandlerFunc(serveTest)}
		}
	case "counts":
		c.Metrics = metrics.NewRegistry()
		n := c.Metrics.Counter("test_total", "Test.")
		c.OnStart = func(w *Worker) error { w.Metrics().Gauge("test_open", "Test.").Set(3); n.Inc(); return nil }
		c.OnStop = func(*Worker) { n.Add(10) }
	case "counts and hangs":
		c.OnStart = func(w *Worker) error {
			w.Metrics().GaugeFunc("test_hang", "Test.", func() float64 { select {} })
			return nil
		}
	case "unready", "not ready at first":
		c.OnStart = func(w *Worker) error {
			w.SetReady(name == "unready", "no database")
			told := make(chan os.Signal, 1)
			signal.Notify(told, unix.SIGWINCH, unix.SIGPWR)
			go func() {
				for sig := range told {
					w.SetReady(sig == unix.SIGWINCH, "no database")
				}
			}()
			return nil
		}
	case "background":
		c.OnStart = func(w *Worker) error {
			if !w.Go(func(context.Context) { panic("in the background") }) {
				return errors.New("Go refuses")
			}
			w.Go(func(ctx context.Context) {
				<-ctx.Done()
				fmt.Fprintln(stderr, "background ends, connections:", w.Connections(), "more:", w.Go(func(context.Context) {}))
			})
			return nil
		}
	case "background hangs":
		c.OnStart = func(w *Worker) error {
			w.Go(func(context.Context) { select {} })
			return nil
		}
	case "packets":
		for i := range c.Listeners {
			c.Listeners[i] = Listener{Name: c.Listeners[i].Name, Packet: &conn.PacketConfig{}, OnPacket: func(w *Worker, d *conn.Datagram) {
				if string(d.Data) == "panic" {
					panic("asked for")
				}
				d.Reply(fmt.Appendf(nil, "%s from %d", d.Data, w.Slot()))
			}}
		}
	case "forwarder", "forwarder of its own":
		forward(in, &c, os.Getenv("MAINSTAY_TEST_UPSTREAM"), name == "forwarder")
	case "drain waits":
		c.OnDrain = func(ctx context.Context, w *Worker) {
			<-ctx.Done()
			fmt.Fprintln(stderr, "OnWorkerDrain:", ctx.Err())
		}
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if secure {
			own, err := certs.Make(time.Hour, "localhost")
			if err != nil {
				return 1
			}
			pair, err := own.Pair()
			if err != nil {
				return 1
			}
			l.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
			l.KernelTLS = true // where there is none, it is as without
			l.TicketSeed = bytes.Repeat([]byte("seed"), 8)
			if l.HTTP != nil {
				l.TLS.NextProtos = []string{"h2", "http/1.1"}
			}
		}
		if proxied {
			l.Proxy = &proxyproto.Trusted{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
		}
	}
	if err := Run(in, c); err != nil {
		fmt.Fprintln(stderr, "Run:", err)
		return 1
	}
	return 0
}

// serveTest sends the body back, piece by piece.
func serveTest(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/panic" {
		panic("asked for")
	}
	if r.URL.Path == "/late" { // it has the whole body before it begins to answer
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
		return
	}
	http.NewResponseController(w).EnableFullDuplex()
	w.Header().Set("X-Worker", "yes")
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush()
	io.Copy(w, r.Body)
}

// proc is a worker process, seen from its supervisor.
type proc struct {
	t       *testing.T
	cmd     *exec.Cmd
	channel *link.Channel
	said    chan link.Body
	answers chan gathered
	seat    *scoreboard.Seat
	cluster *cluster
	inbox   int // sending end

	incarnation uint64
	slot        int
	generation  uint64

	output *syncBuffer // what it wrote before it was ready
	stderr *syncBuffer
	exited chan int // exit code; -1: by signal
}

// syncBuffer collects what a process writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func listen(t *testing.T) activation.Socket { return listenOn(t, "tcp://127.0.0.1:0") }

func listenOn(t *testing.T, url string) activation.Socket {
	t.Helper()
	s, err := activation.Listen("main", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// cluster is what the workers of a service share.
type cluster struct {
	t     *testing.T
	board *scoreboard.Board
	table *rows.Table
	last  uint64 // incarnation
	procs []*proc
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	board, err := scoreboard.Create(16)
	if err != nil {
		t.Fatal(err)
	}
	table, err := rows.Create(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { board.Close(); table.Close() })
	return &cluster{t: t, board: board, table: table}
}

// spawn starts the helper of that name as a worker, which has said hello when
// spawn returns.
func spawn(t *testing.T, name string, slot int, sockets ...activation.Socket) *proc {
	t.Helper()
	return newCluster(t).spawn(name, slot, 7, sockets...)
}

// spawn starts a worker of a generation. It has said hello when spawn returns,
// and the others have heard of it.
func (cl *cluster) spawn(name string, slot int, generation uint64, sockets ...activation.Socket) *proc {
	t := cl.t
	t.Helper()
	cl.last++
	p := &proc{t: t, cluster: cl, incarnation: cl.last, slot: slot, generation: generation, inbox: -1, said: make(chan link.Body, 64), answers: make(chan gathered, 64), output: new(syncBuffer), stderr: new(syncBuffer), exited: make(chan int, 1)}
	id := link.Identity{
		Contract: link.Contract, Service: "test", Pool: "worker", Slot: slot,
		Incarnation: p.incarnation, Generation: generation, Epoch: 1, Seat: int(p.incarnation) - 1,
	}
	for _, s := range sockets {
		id.Listeners = append(id.Listeners, link.Listener{Name: s.Name, Address: s.Address})
	}
	channel, far, err := link.Pair(1)
	if err != nil {
		t.Fatal(err)
	}
	p.channel = channel
	p.seat = cl.board.Seat(id.Seat)
	p.seat.Incarnation.Store(p.incarnation)
	config, err := link.ConfigFile([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	crash, err := unix.MemfdCreate("crash", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	r, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(exe)
	p.cmd.Env = id.Environ(append(os.Environ(), helperEnv+"="+name, "GORACE=atexit_sleep_ms=0"))
	p.cmd.Stdout = p.output
	p.cmd.Stderr = p.output
	files := []int{far, cl.board.FD(), int(config.Fd()), int(stderr.Fd()), crash, cl.table.FD()}
	for _, s := range sockets {
		files = append(files, s.FD)
	}
	for _, fd := range files {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, os.NewFile(uintptr(dup), "inherited"))
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.cmd.ExtraFiles {
		f.Close()
	}
	unix.Close(far)
	unix.Close(crash)
	config.Close()
	stderr.Close()

	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(p.stderr, r); r.Close() })
	wg.Go(func() {
		for {
			m, err := p.channel.Recv()
			if err != nil {
				return
			}
			switch m.Body.(type) {
			case link.Gathered:
				if m.FD >= 0 {
					p.gathered(m)
					continue
				}
			case link.Hello:
				p.inbox = m.FD
			}
			p.said <- m.Body
		}
	})
	wg.Go(func() {
		p.cmd.Wait()
		p.exited <- p.cmd.ProcessState.ExitCode()
	})
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.channel.Interrupt()
		wg.Wait()
		p.channel.Close()
		unix.Close(p.inbox)
		if t.Failed() {
			t.Logf("worker %d wrote:\n%s%s", slot, p.output, p.stderr)
		}
	})
	if hello := expect[link.Hello](p); hello.Incarnation != id.Incarnation || hello.Generation != generation || hello.Build != "test" || p.inbox < 0 {
		t.Fatalf("hello is %+v, inbox %d", hello, p.inbox)
	}
	for _, other := range cl.procs {
		other.meet(p, false)
		p.meet(other, true)
	}
	cl.procs = append(cl.procs, p)
	return p
}

// meet tells p of another worker.
func (p *proc) meet(other *proc, serving bool) {
	p.t.Helper()
	m := link.Peer{
		Incarnation: other.incarnation, Pool: "worker", Slot: other.slot, Generation: other.generation,
		Seat: int(other.incarnation) - 1, Serving: serving,
	}
	if err := p.channel.SendFile(m, other.inbox); err != nil {
		p.t.Fatal(err)
	}
}

// serve has p accept and tells the others.
func (p *proc) serve() *proc {
	p.t.Helper()
	expect[link.Ready](p)
	p.tell(link.Accept{})
	p.awaitState(link.StateServing)
	for _, other := range p.cluster.procs {
		if other != p {
			other.tell(link.Peer{
				Incarnation: p.incarnation, Pool: "worker", Slot: p.slot, Generation: p.generation, Seat: int(p.incarnation) - 1, Serving: true,
			})
		}
	}
	return p
}

// serving starts a worker that accepts.
func serving(t *testing.T, name string, slot int, sockets ...activation.Socket) *proc {
	t.Helper()
	return spawn(t, name, slot, sockets...).serve()
}

// expect waits for the worker's next message, which is to be a T.
func expect[T link.Body](p *proc) T {
	p.t.Helper()
	select {
	case body := <-p.said:
		got, ok := body.(T)
		if !ok {
			p.t.Fatalf("worker said %T %+v, want %T", body, body, got)
		}
		return got
	case <-time.After(patience):
		var want T
		p.t.Fatalf("worker said nothing, want %T", want)
		panic("unreachable")
	}
}

func (p *proc) tell(body link.Body) {
	p.t.Helper()
	if err := p.channel.Send(body); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proc) awaitState(want link.State) {
	p.t.Helper()
	await(p.t, want.String(), func() bool { return link.State(p.seat.State.Load()) == want })
}

func (p *proc) awaitExit(want int) {
	p.t.Helper()
	select {
	case code := <-p.exited:
		if code != want {
			p.t.Fatalf("worker exited with %d, want %d", code, want)
		}
	case <-time.After(patience):
		p.t.Fatal("worker does not exit")
	}
}

// wrote waits until the worker has written the text to the service's standard
// error.
func (p *proc) wrote(text string) {
	p.t.Helper()
	await(p.t, text, func() bool { return strings.Contains(p.stderr.String(), text) })
}

func (p *proc) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// await waits for a condition.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// gathered is an answer that came with a file.
type gathered struct {
	link.Gathered
	text []byte
}

func (p *proc) gathered(m link.Message) {
	g, ok := m.Body.(link.Gathered)
	text, err := link.ReadAnswer(m.FD)
	if !ok || err != nil {
		p.t.Errorf("received %+v with %q, %v", m, text, err)
		return
	}
	p.answers <- gathered{g, text}
}

// answer waits for the worker's next answer.
func (p *proc) answer() gathered {
	p.t.Helper()
	select {
	case g := <-p.answers:
		return g
	case <-time.After(patience):
		p.t.Fatal("worker does not answer")
		panic("unreachable")
	}
}
