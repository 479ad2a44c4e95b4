package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crowd is many connections of one kind, driven by one goroutine.
type crowd struct {
	fds []int
}

func newCrowd(t *testing.T, n int, addr unix.Sockaddr) *crowd {
	t.Helper()
	c := new(crowd)
	t.Cleanup(func() {
		for _, fd := range c.fds {
			unix.Close(fd)
		}
	})
	for range n {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.fds = append(c.fds, fd)
		if err := unix.Connect(fd, addr); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// each calls f for one connection after the other, once a period, until stop.
func (c *crowd) each(stop *atomic.Bool, period time.Duration, f func(fd int)) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for ; !stop.Load(); <-tick.C {
		for _, fd := range c.fds {
			f(fd)
		}
	}
}

func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// A thousand clients that dribble, a thousand that flood and a thousand that
// never read do not keep a hundred good ones waiting, and cost no memory
// beyond their limits.
func TestHostileCrowdDoesNotKeepOthersWaiting(t *testing.T) {
	const (
		good    = 100
		rounds  = 8
		slowest = 10 * time.Second // of one reply, on a busy machine under the race detector
	)
	many := 1000
	if raceEnabled {
		many = 200 // the detector makes each message some ten times as dear
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < uint64(3*many+good+200) {
		t.Skipf("the descriptor limit is %d, the crowd needs %d", limit.Cur, 3*many+good+200)
	}
	s := listenOn(t, "unix://"+t.TempDir()+"/s")
	p := serving(t, "crowd", 0, s) // lines, echoed; 16 KiB may wait, then reading pauses
	addr := &unix.SockaddrUnix{Name: strings.TrimPrefix(s.Address, "unix://")}
	dribblers, flooders, deaf, polite := newCrowd(t, many, addr), newCrowd(t, many, addr), newCrowd(t, many, addr), newCrowd(t, good, addr)
	await(t, "all are connected", func() bool { return p.seat.Connections.Load() == int64(3*many+good) })

	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	lines := bytes.Repeat([]byte(strings.Repeat("x", 63)+"\n"), 16)
	block := bytes.Repeat(lines, 64) // more than the kernel takes at once
	buf := make([]byte, 64<<10)
	wg.Go(func() { dribblers.each(&stop, 20*time.Millisecond, func(fd int) { unix.Write(fd, []byte("x")) }) })
	wg.Go(func() {
		flooders.each(&stop, time.Millisecond, func(fd int) {
			unix.Write(fd, lines)
			unix.Read(fd, buf)
		})
	})
	wg.Go(func() { deaf.each(&stop, 20*time.Millisecond, func(fd int) { unix.Write(fd, block) }) })
	p.awaitMessages("the crowd is at it", func() bool {
		return p.seat.Messages.Load() > uint64(20*many) && p.seat.QueueBytes.Load() > int64(many*(16<<10)/4)
	})

	var worst time.Duration
	before, window := 0, uint64(0)
	for round := range rounds {
		if round == rounds/2 {
			before, window = rss(t, p.cmd.Process.Pid), p.seat.Messages.Load()
		}
		began := time.Now()
		line := func(i int) string { return fmt.Sprintf("%d %d\n", round, i) }
		for i, fd := range polite.fds {
			if _, err := unix.Write(fd, []byte(line(i))); err != nil {
				t.Fatal(err)
			}
		}
		for i, fd := range polite.fds {
			line := line(i)
			got := readLine(t, fd, len(line))
			if took := time.Since(began); took > worst {
				worst = took
			}
			if got != line {
				t.Fatalf("got %q, want %q", got, line)
			}
		}
	}
	after := rss(t, p.cmd.Process.Pid)
	t.Logf("slowest reply %v, RSS %d MiB, then %d MiB, %d messages", worst, before>>20, after>>20, p.seat.Messages.Load())
	if worst > slowest {
		t.Errorf("slowest reply of a good client after %v, want at most %v", worst, slowest)
	}
	// Bounded is what ceases to grow: on a busy machine queues and garbage may
	// take longer until then. Each window is twice as long as the last one, so
	// that what grows for ever is seen in any of them.
	window = p.seat.Messages.Load() - window
	for try := 0; try < 3 && after > before+before/4; try++ {
		window *= 2
		end := p.seat.Messages.Load() + window
		p.awaitMessages("more messages", func() bool { return p.seat.Messages.Load() >= end })
		before, after = after, rss(t, p.cmd.Process.Pid)
		t.Logf("RSS %d MiB after %d messages more", after>>20, window)
	}
	if after > before+before/4 {
		t.Errorf("memory grew from %d to %d MiB under the crowd", before>>20, after>>20)
	}
	if n := p.seat.Connections.Load(); n < int64(2*many+good) {
		t.Errorf("%d connections are left", n)
	}
}

// awaitMessages waits until cond, as long as messages are handled: a busy
// machine may take its time.
func (p *proc) awaitMessages(what string, cond func() bool) {
	p.t.Helper()
	for done := false; !done; {
		seen := p.seat.Messages.Load()
		await(p.t, what, func() bool {
			done = cond()
			return done || p.seat.Messages.Load() > seen
		})
	}
}

// readLine reads n bytes from a descriptor that does not block.
func readLine(t *testing.T, fd, n int) string {
	t.Helper()
	buf := make([]byte, n)
	for got := 0; got < n; {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if k, err := unix.Poll(poll, int(patience/time.Millisecond)); k == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("no reply: %v", err)
		}
		k, err := unix.Read(fd, buf[got:])
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if k <= 0 || err != nil {
			t.Fatalf("read %d, %v", k, err)
		}
		got += k
	}
	return string(buf)
}
