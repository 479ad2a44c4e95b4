package keeper

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKilledWorkersConnectionsLiveOn is what the package is for. One in four
// connections has sent more before its worker died, and nobody had read it.
func TestKilledWorkersConnectionsLiveOn(t *testing.T) {
	n := 2000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	n = min(n, int(limit.Cur-100)/2) // both ends of each will be ours
	if err := Probe(); err != nil {
		t.Skipf("keepers cannot work here: %v", err)
	}
	p := startWorker(t)
	conns := p.dial(n)

	stop(t, p)
	line := func(i int) string { return fmt.Sprintf("connection %d\n", i) }
	for i := 0; i < n; i += 4 {
		write(t, conns[i], line(i))
	}
	p.kill()

	all := p.harvest()
	if len(all) != n {
		t.Fatalf("%d connections, want %d", len(all), n)
	}
	unread := 0
	for _, s := range all {
		if verdict := Judge(s.noted, s.kernel); verdict != Boundary {
			t.Fatalf("verdict %v: noted %+v, kernel %+v", verdict, s.noted, s.kernel)
		}
		if s.kernel.Unread > 0 {
			unread++
		}
	}
	if want := (n + 3) / 4; unread != want {
		t.Errorf("%d connections with unread input, want %d", unread, want)
	}
	for i := range conns {
		if i%4 != 0 {
			write(t, conns[i], line(i))
		}
	}
	answerAll(t, all)
	for i, c := range conns {
		answered(t, c, line(i))
	}

	// With the keeper the last copy but ours goes: now a close is one.
	p.killKeeper()
	for _, s := range all {
		if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read at the end: %v, want EOF", err)
		}
	}
}

// stop stops a worker, so that it reads no more.
func stop(t *testing.T, p *process) {
	t.Helper()
	if err := unix.Kill(p.worker, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker's stop", func() bool { return strings.HasPrefix(status(t, p.worker, "State"), "T") })
}

func TestConnectionsOutliveEveryKindOfDeath(t *testing.T) {
	tests := []struct {
		name   string
		env    string
		signal unix.Signal
		tell   string
	}{
		{name: "SIGKILL", signal: unix.SIGKILL},
		{name: "SIGSEGV", signal: unix.SIGSEGV},
		{name: "SIGABRT", signal: unix.SIGABRT},
		{name: "SIGSYS, as a filter sends it", signal: unix.SIGSYS},
		{name: "SIGTERM, not handled", signal: unix.SIGTERM},
		{name: "a crash with a core dump", env: "GOTRACEBACK=crash", tell: "panic"},
		{name: "panic", tell: "panic"},
		{name: "fatal error", tell: "fatal"},
		{name: "os.Exit", tell: "exit 3"},
		{name: "os.Exit as if all were well", tell: "exit 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var env []string
			if tt.env != "" {
				env = append(env, tt.env)
			}
			p := startWorker(t, env...)
			if err := unix.Prlimit(p.worker, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
				t.Fatal(err)
			}
			conns := p.dial(30)
			if tt.tell != "" {
				p.tell(tt.tell)
			} else if err := unix.Kill(p.worker, tt.signal); err != nil {
				t.Fatal(err)
			}
			p.reap()
			all := p.harvest()
			if len(all) != len(conns) {
				t.Fatalf("%d connections, want %d", len(all), len(conns))
			}
			for _, s := range all {
				if verdict := Judge(s.noted, s.kernel); verdict != Boundary {
					t.Errorf("verdict %v: noted %+v, kernel %+v", verdict, s.noted, s.kernel)
				}
			}
			for _, c := range conns {
				write(t, c, "anybody\n")
			}
			answerAll(t, all)
			for _, c := range conns {
				answered(t, c, "anybody\n")
			}
			p.killKeeper()
		})
	}
}

func TestLargeAmountsOnTheWayAreKeptOrSeenToBeTorn(t *testing.T) {
	const fits, tooMuch = 64 << 10, 64 << 20
	p := startWorker(t)
	conns := p.dial(3)
	idle, answering, torn := conns[0], conns[1], conns[2]

	// A reply that the kernel has taken whole, and one it could not take.
	write(t, answering, fmt.Sprintf("give %d\n", fits))
	write(t, torn, fmt.Sprintf("give %d\n", tooMuch))
	eventually(t, "the small reply's write", func() bool {
		fd, err := Reach(p.keeperFD, int(p.page.rows[1].fd.Load()))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		k, err := Counts(fd)
		return err == nil && k.Written >= fits && p.page.rows[2].written.Load() > tooMuch
	})
	// And much that nobody has read.
	stop(t, p)
	sent := fill(t, idle)
	p.kill()

	all := p.harvest()
	verdicts := map[int]salvaged{}
	for i := range conns {
		verdicts[i] = all[p.page.rows[i].cookie.Load()]
	}
	if s := verdicts[0]; Judge(s.noted, s.kernel) != Boundary || s.kernel.Unread == 0 {
		t.Errorf("unread input: %v, %+v", Judge(s.noted, s.kernel), s.kernel)
	}
	if s := verdicts[1]; Judge(s.noted, s.kernel) != Boundary {
		t.Errorf("a reply on the way: %v, noted %+v, kernel %+v", Judge(s.noted, s.kernel), s.noted, s.kernel)
	}
	if s := verdicts[2]; Judge(s.noted, s.kernel) != Writing || s.kernel.Unacked == 0 {
		t.Errorf("half a reply: %v, noted %+v, kernel %+v", Judge(s.noted, s.kernel), s.noted, s.kernel)
	}

	answered(t, answering, strings.Repeat("\x00", fits))
	discard, got := make([]byte, 1<<20), 0
	unix.SetNonblock(verdicts[0].fd, false)
	for got < sent {
		n, err := unix.Read(verdicts[0].fd, discard)
		if err != nil || n == 0 {
			t.Fatalf("after %d of %d bytes: %d, %v", got, sent, n, err)
		}
		got += n
	}
	if k, err := Counts(verdicts[0].fd); err != nil || k.Consumed != verdicts[0].noted.Consumed+uint64(sent) {
		t.Errorf("consumed %d, %v; want %d more than %d", k.Consumed, err, sent, verdicts[0].noted.Consumed)
	}
}

func TestHarvesterThatMayHaveNoMoreDescriptorsGoesOnByBatches(t *testing.T) {
	const n, batch = 100, 20
	p := startWorker(t)
	p.dial(n)
	p.kill()

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	full := was
	full.Cur = uint64(limitThatLeaves(t, batch))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &full); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)

	var held []int
	passOn := func() {
		for _, fd := range held {
			unix.Close(fd)
		}
		held = held[:0]
	}
	defer passOn()
	reached, refusals := 0, 0
	for i := 0; i < n; {
		fd, err := Reach(p.keeperFD, int(p.page.rows[i].fd.Load()))
		if errors.Is(err, unix.EMFILE) && len(held) > 0 {
			refusals++
			passOn()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Cookie(fd); err != nil || got != p.page.rows[i].cookie.Load() {
			t.Fatalf("cookie %d, %v; want %d", got, err, p.page.rows[i].cookie.Load())
		}
		held = append(held, fd)
		reached++
		i++
	}
	if reached != n || refusals == 0 {
		t.Errorf("%d of %d reached, %d refusals", reached, n, refusals)
	}
}

// limitThatLeaves is a limit with which this process may have n more descriptors.
func limitThatLeaves(t *testing.T, n int) int {
	t.Helper()
	used := openDescriptorNumbers(t)
	limit := 0
	for ; n > 0; limit++ {
		if !used[limit] {
			n--
		}
	}
	return limit
}

func TestHarvestLeavesNoDescriptorBehind(t *testing.T) {
	warm := startWorker(t) // the runtime's poller has its own
	warm.dial(1)
	before := openDescriptors(t)
	t.Run("harvest", func(t *testing.T) {
		p := startWorker(t)
		p.dial(50)
		p.kill()
		if got := len(p.harvest()); got != 50 {
			t.Errorf("%d connections, want 50", got)
		}
		p.killKeeper()
	})
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// fill writes to c until the kernel takes no more, and says how much it took.
func fill(t *testing.T, c rawConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	sum, chunk := 0, make([]byte, 64<<10)
	err = raw.Control(func(fd uintptr) {
		for quiet := 0; quiet < 50; { // the peer's kernel grows its window meanwhile
			n, err := unix.Write(int(fd), chunk)
			switch {
			case errors.Is(err, unix.EAGAIN):
				quiet++
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1)
			case err != nil:
				t.Errorf("write: %v", err)
				quiet = math.MaxInt
			default:
				sum += n
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
