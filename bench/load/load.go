// Package load drives an echo server: it opens connections, keeps a number
// of messages in flight on each, compares every byte that comes back and
// tells how many came and how long they took.
//
// Invariants. There is no goroutine per connection: a thread is one goroutine
// with its own epoll, its own connections, buffers and histograms, and it
// shares nothing with the others but the phase of the run and a few counters.
// Every phase ends by time. A run's memory does not grow while it lasts. What
// is sent is computed (see messages in message.go), so what comes back can be
// compared without keeping it. Nothing but loopback is loaded unless
// AllowRemote says so.
//
// A run has these phases; thread 0 alone goes from one to the next:
//
//	connecting  connections are opened, at Ramp a second; each begins to send at once
//	warming     all are open or given up; nothing is counted yet
//	measured    what comes back is counted
//	cooling     traffic goes on uncounted while OnStop looks at the server
//	draining    nothing new is sent; the replies still due are awaited
//	over        everything is closed
//
// The loop is closed: a message is sent when a reply has come in, so latency
// says how long the Connections x Pipeline messages in flight wait for their
// turn, not how long one would at a given rate.
//
// Start reading at Run, then thread.run in thread.go.
package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a run.
const (
	MaxConnections = 1 << 20
	MaxPipeline    = 1 << 16
	MaxThreads     = 256
	MaxInFlight    = 1 << 26 // Connections times Pipeline
)

// Config says what a run does. Where no zero is explained a value is needed.
type Config struct {
	Target      string // "tcp://127.0.0.1:7007", "tcp://[::1]:7007" or "unix:///run/echo.sock"
	Mode        Mode
	Connections int // 1 to MaxConnections
	Size        int // bytes of a message: MinRawSize or MinTextSize to MaxSize
	Pipeline    int // messages in flight on each connection, to MaxPipeline; zero: the connections are opened and held idle
	Threads     int // 1 to MaxThreads, and not more than Connections

	Warmup   time.Duration // zero: counting begins when the last connection is open
	Duration time.Duration // how long is counted
	Messages uint64        // ends the counting earlier, when about as many have come back; zero: only Duration ends it

	Ramp           float64       // connections opened a second; zero: as fast as it goes
	ConnectTimeout time.Duration // a connection not open so long after the last was begun is given up; zero: 10 s
	DrainTimeout   time.Duration // a reply not there so long after the last message was sent is missing; zero: 2 s

	// Sources are the addresses connections come from, in turn. None: the
	// kernel chooses. A source has about 28 000 ports.
	Sources     []netip.Addr
	AllowRemote bool // load a target that is not on loopback

	// OnStart runs right before counting begins, OnStop right after it ended,
	// both on thread 0, which sends nothing meanwhile. With OnStop all
	// connections are still open and, where there are other threads, busy.
	// nil: nothing is run.
	OnStart, OnStop func()
}

// Errors counts what went wrong in a run, in all its phases.
type Errors struct {
	Refused    uint64 `json:"refused"`         // connect(2) was refused
	Timeout    uint64 `json:"connect_timeout"` // not connected in time
	Reset      uint64 `json:"reset"`           // the peer broke the connection off
	Short      uint64 `json:"short"`           // the peer closed while replies were due, or while connections were to be held
	Wrong      uint64 `json:"wrong_byte"`      // a byte came back that was not sent
	Unanswered uint64 `json:"unanswered"`      // messages without a reply when the drain was over
	Other      uint64 `json:"other"`           // any other error of a system call
	// Samples are the texts of the first few, one of a kind from each thread.
	Samples []string `json:"samples,omitempty"`
}

// Total returns how many errors there were of all kinds.
func (e *Errors) Total() uint64 {
	return e.Refused + e.Timeout + e.Reset + e.Short + e.Wrong + e.Unanswered + e.Other
}

// Result is what a run measured.
type Result struct {
	Target      string  `json:"target"`
	Mode        Mode    `json:"mode"`
	Connections int     `json:"connections"`
	Connected   int     `json:"connected"` // how many of them were opened
	Size        int     `json:"size"`
	Pipeline    int     `json:"pipeline"`
	Threads     int     `json:"threads"`
	ConnectTime float64 `json:"connect_seconds"` // from the first connect(2) until all were open or given up
	Seconds     float64 `json:"seconds"`         // how long was counted
	Messages    uint64  `json:"messages"`        // replies counted, each compared to the last byte
	Rate        float64 `json:"messages_per_second"`
	Bytes       uint64  `json:"bytes"` // of those replies

	Latency    Summary `json:"latency"`     // from write(2) of a message to read(2) of its last byte
	Connect    Summary `json:"connect"`     // from connect(2) to writable
	FirstReply Summary `json:"first_reply"` // from connect(2) to the first reply: what accepting costs is in here
	Errors     Errors  `json:"errors"`

	// Histogram is what Latency was taken from, to be merged with others.
	Histogram *Histogram `json:"-"`
}

type phase int32

const (
	connecting phase = iota
	warming
	measured
	cooling
	draining
	over
)

// run is what the threads of one run share.
type run struct {
	cfg      Config
	messages *messages
	base     time.Time // all times are since then
	idBase   uint64    // tells this run's connections from another process's

	phase      atomic.Int32
	drainUntil atomic.Int64 // since base; set before the phase
	settled    atomic.Int64 // connections open or given up
	open       atomic.Int64
	threads    []*thread

	// Owned by thread 0 until all have ended.
	connectedAt, startedAt, stoppedAt time.Duration
}

// Run loads the target as cfg says and returns what it measured. It takes no
// longer than ConnectTimeout, Connections/Ramp, Warmup, Duration and
// DrainTimeout together. Connections that fail are counted in Result.Errors;
// an error is returned when cfg asks for something impossible, when no
// connection could be opened, when the system refuses a thread its epoll, and
// when ctx ends, then with what was measured so far.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if _, err := cfg.check(); err != nil {
		return nil, err
	}
	if err := enoughFiles(cfg.Connections + 4*cfg.Threads); err != nil {
		return nil, err
	}
	r := &run{
		cfg:      cfg,
		messages: newMessages(cfg.Mode, cfg.Size),
		base:     time.Now(),
		idBase:   uint64(rand.Uint32()) << 32,
	}
	defer func() {
		for _, t := range r.threads {
			t.close()
		}
	}()
	for i := range cfg.Threads {
		t, err := newThread(r, i)
		if err != nil {
			return nil, err
		}
		r.threads = append(r.threads, t)
	}
	ended := make(chan struct{})
	var threads, watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-ctx.Done():
			r.enter(over)
		case <-ended:
		}
	})
	for _, t := range r.threads {
		threads.Go(t.run)
	}
	threads.Wait()
	close(ended)
	watcher.Wait()
	res := r.result()
	if ctx.Err() != nil {
		return res, fmt.Errorf("load: %s: %w", cfg.Target, context.Cause(ctx))
	}
	if res.Connected == 0 {
		why := "no reason known"
		if len(res.Errors.Samples) > 0 {
			why = res.Errors.Samples[0]
		}
		return res, fmt.Errorf("load: %s: none of %d connections could be opened: %s", cfg.Target, cfg.Connections, why)
	}
	return res, nil
}

// enter goes on to phase p and wakes every thread. A run never goes back: it
// does nothing when p has been reached.
func (r *run) enter(p phase) {
	for {
		at := r.phase.Load()
		if at >= int32(p) {
			return
		}
		if r.phase.CompareAndSwap(at, int32(p)) {
			break
		}
	}
	for _, t := range r.threads {
		t.wake()
	}
}

// now returns the time since the run began.
func (r *run) now() time.Duration { return time.Since(r.base) }

// result adds up what the threads counted. They must have ended.
func (r *run) result() *Result {
	var latency, connect, reply Histogram
	res := &Result{
		Target:      r.cfg.Target,
		Mode:        r.cfg.Mode,
		Connections: r.cfg.Connections,
		Size:        r.cfg.Size,
		Pipeline:    r.cfg.Pipeline,
		Threads:     r.cfg.Threads,
		ConnectTime: r.connectedAt.Seconds(),
		Histogram:   &latency,
	}
	for _, t := range r.threads {
		res.Connected += t.connected
		res.Messages += t.counted.Load()
		latency.Merge(&t.latency)
		connect.Merge(&t.connect)
		reply.Merge(&t.firstReply)
		res.Errors.add(&t.errors)
	}
	res.Bytes = res.Messages * uint64(r.cfg.Size)
	if r.startedAt > 0 {
		if r.stoppedAt == 0 { // ended by ctx while it was counting
			r.stoppedAt = r.now()
		}
		res.Seconds = (r.stoppedAt - r.startedAt).Seconds()
		res.Rate = float64(res.Messages) / res.Seconds
	}
	res.Latency, res.Connect, res.FirstReply = latency.Summary(), connect.Summary(), reply.Summary()
	return res
}

// maxSamples bounds Errors.Samples.
const maxSamples = 8

func (e *Errors) add(o *Errors) {
	e.Refused += o.Refused
	e.Timeout += o.Timeout
	e.Reset += o.Reset
	e.Short += o.Short
	e.Wrong += o.Wrong
	e.Unanswered += o.Unanswered
	e.Other += o.Other
	e.Samples = append(e.Samples, o.Samples[:min(len(o.Samples), maxSamples-len(e.Samples))]...)
}

// enoughFiles says whether n more descriptors can be had. The Go runtime has
// raised the soft limit to the hard one.
func enoughFiles(n int) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("load: %w", os.NewSyscallError("getrlimit", err))
	}
	if need := uint64(n + spareFiles); need > l.Cur {
		return fmt.Errorf("load: %d descriptors are needed, the limit is %d: raise it (ulimit -n) or divide the connections among several processes", need, l.Cur)
	}
	return nil
}

// spareFiles are left to the rest of the program.
const spareFiles = 64
