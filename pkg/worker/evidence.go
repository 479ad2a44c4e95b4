package worker

import (
	"runtime"
	"runtime/metrics"
	"time"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

// runtimeEvery is how often the figures of the Go runtime are taken.
const runtimeEvery = 5 * time.Second

// evidence is what the seat is given besides the counters: by it the
// supervisor judges whether a worker is well, also one that hangs. The loop
// owns it.
type evidence struct {
	poolAt    time.Duration // when the pool was looked at last
	runtimeAt time.Duration // when the runtime was asked last; 0: never
	samples   [5]metrics.Sample

	supervisorAt time.Duration // when the supervisor's heartbeat was looked at last
}

// The names of the samples, in the order of evidence.samples. None of them
// needs the world to be stopped.
var samples = [5]string{
	"/sched/goroutines:goroutines",
	"/memory/classes/heap/objects:bytes",
	"/memory/classes/total:bytes",
	"/gc/cycles/total:gc-cycles",
	// The runtime's estimate, for all processors; while one is stopped all are.
	"/cpu/classes/gc/pause:cpu-seconds",
}

// maxSleep is how long the loop may sleep if it is taken for hung after timeout.
func maxSleep(timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return reactor.DefaultMaxSleep
	}
	return max(time.Millisecond, min(reactor.DefaultMaxSleep, timeout/4))
}

// turned stamps the seat at the end of each of the loop's turns.
func (w *Worker) turned(now time.Duration) {
	w.seat.Timers.Store(int64(w.loop.Timers()))
	e := &w.evidence
	if now-e.poolAt >= scoreboard.PoolAge {
		e.poolAt = now
		running, oldest := w.pool.Running()
		w.seat.PoolRunning.Store(int64(running))
		w.seat.PoolOldest.Store(int64(w.oldestRequest(now, oldest)))
	}
	w.seat.Heartbeat.Store(int64(now)) // after the pool's, by which both are judged together
	if e.runtimeAt == 0 || now-e.runtimeAt >= runtimeEvery {
		e.runtimeAt = now
		w.stampRuntime()
	}
	if now-e.supervisorAt >= w.conf.OrphanGrace/orphanLooks {
		e.supervisorAt = now
		w.checkSupervisor(now)
	}
}

// oldestRequest is oldest, since when a callback runs on the pool, or the earlier
// time since when a request waits for the beginning of its answer.
func (w *Worker) oldestRequest(now, oldest time.Duration) time.Duration {
	earlier := func(since time.Duration) {
		if since > 0 && (oldest == 0 || since < oldest) {
			oldest = since
		}
	}
	for _, s := range w.servers {
		earlier(s.oldest())
	}
	for _, a := range w.handlers {
		if d := a.Longest(); d > 0 {
			earlier(now - d)
		}
	}
	return oldest
}

func (w *Worker) stampRuntime() {
	s := &w.evidence.samples
	for i := range s {
		s[i].Name = samples[i]
	}
	metrics.Read(s[:])
	w.seat.Goroutines.Store(int64(s[0].Value.Uint64()))
	w.seat.HeapBytes.Store(int64(s[1].Value.Uint64()))
	w.seat.SysBytes.Store(int64(s[2].Value.Uint64()))
	w.seat.GCCycles.Store(s[3].Value.Uint64())
	pauses := s[4].Value.Float64() / float64(runtime.GOMAXPROCS(0))
	w.seat.GCPauseNS.Store(uint64(pauses * float64(time.Second)))
}
