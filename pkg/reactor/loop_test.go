package reactor

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what must happen.
const deadline = 10 * time.Second

// start runs a loop until the end of the test.
func start(t testing.TB, o Options) *Loop {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		l.Close()
	})
	return l
}

// do runs f on the loop and waits for it.
func do(t testing.TB, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if err := l.Post(func() { defer close(done); f() }); err != nil {
		t.Fatal(err)
	}
	wait(t, done)
}

func wait(t testing.TB, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatal("it did not happen")
	}
}

// socketpair returns two connected descriptors, which the test closes.
func socketpair(t testing.TB) (ours, theirs int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

type handlerFunc func(Events)

func (f handlerFunc) OnReady(ev Events) { f(ev) }

func TestReadinessIsToldUntilItIsOver(t *testing.T) {
	l := start(t, Options{})
	ours, theirs := socketpair(t)
	var told atomic.Int32
	done := make(chan struct{})
	do(t, l, func() {
		_, err := l.Add(ours, Readable, handlerFunc(func(ev Events) {
			if ev&Readable == 0 {
				t.Errorf("events %#x, want Readable among them", ev)
			}
			// Level-triggered: unread bytes are told again.
			if told.Add(1) == 3 {
				if n, errno := Read(ours, l.ReadBuffer()); n != 1 || errno != 0 {
					t.Errorf("Read %d, %v", n, errno)
				}
				close(done)
			}
		}))
		if err != nil {
			t.Error(err)
		}
	})
	Write(theirs, []byte{1})
	wait(t, done)
	do(t, l, func() {})
	if got := told.Load(); got != 3 {
		t.Errorf("told %d times, want 3", got)
	}
}

func TestEventOfARemovedRegistrationIsDropped(t *testing.T) {
	l := start(t, Options{})
	a, aPeer := socketpair(t)
	b, bPeer := socketpair(t)
	var calls []string
	done := make(chan struct{})
	do(t, l, func() {
		var tokens [2]Token
		handler := func(name string, other int, otherFD int) Handler {
			return handlerFunc(func(Events) {
				calls = append(calls, name)
				// Both are ready in this turn. The first to be told removes
				// the other, whose place and descriptor are used anew.
				if err := l.Remove(tokens[other]); err != nil {
					t.Error(err)
				}
				if _, err := l.Add(otherFD, Writable, handlerFunc(func(Events) {
					calls = append(calls, "next")
					if err := l.Modify(makeToken(tokens[other].index(), tokens[other].generation()+1), 0); err != nil {
						t.Error(err)
					}
					close(done)
				})); err != nil {
					t.Error(err)
				}
				if err := l.Modify(tokens[1-other], 0); err != nil {
					t.Error(err)
				}
			})
		}
		// Ready before they are added, so that one wait tells of both.
		Write(aPeer, []byte{1})
		Write(bPeer, []byte{1})
		var err error
		if tokens[0], err = l.Add(a, Readable, handler("a", 1, b)); err != nil {
			t.Error(err)
		}
		if tokens[1], err = l.Add(b, Readable, handler("b", 0, a)); err != nil {
			t.Error(err)
		}
	})
	wait(t, done)
	do(t, l, func() {
		if len(calls) != 2 || calls[1] != "next" {
			t.Errorf("calls %v, want one handler, then the next user of the place", calls)
		}
	})
}

func TestStaleTokenIsRefused(t *testing.T) {
	l := start(t, Options{})
	fd, _ := socketpair(t)
	do(t, l, func() {
		first, err := l.Add(fd, Readable, handlerFunc(func(Events) {}))
		if err != nil {
			t.Error(err)
			return
		}
		if err := l.Remove(first); err != nil {
			t.Error(err)
		}
		second, err := l.Add(fd, Readable, handlerFunc(func(Events) {}))
		if err != nil {
			t.Error(err)
			return
		}
		if second.index() != first.index() || second == first {
			t.Errorf("tokens %#x and %#x, want the same place and another generation", first, second)
		}
		for name, err := range map[string]error{
			"Remove": l.Remove(first),
			"Modify": l.Modify(first, Writable),
			"Rearm":  l.Rearm(first),
			"zero":   l.Remove(0),
			"beyond": l.Remove(makeToken(99, 1)),
		} {
			if !errors.Is(err, ErrUnknownToken) {
				t.Errorf("%s: %v, want ErrUnknownToken", name, err)
			}
		}
		if _, ok := l.Lookup(first); ok {
			t.Error("Lookup found a removed registration")
		}
		if _, ok := l.Lookup(second); !ok || l.Watched() != 1 {
			t.Errorf("Lookup %v, %d watched, want true, 1", ok, l.Watched())
		}
		if _, err := l.Add(fd, Readable, handlerFunc(func(Events) {})); !errors.Is(err, unix.EEXIST) {
			t.Errorf("second Add of a descriptor: %v, want EEXIST", err)
		}
		if l.Watched() != 1 {
			t.Errorf("%d watched after a failed Add, want 1", l.Watched())
		}
		if err := l.Remove(second); err != nil {
			t.Error(err)
		}
	})
}

func TestWatchedForNothingIsNotTold(t *testing.T) {
	l := start(t, Options{})
	ours, theirs := socketpair(t)
	var events []Events
	told := make(chan struct{})
	var token Token
	do(t, l, func() {
		var err error
		if token, err = l.Add(ours, 0, handlerFunc(func(ev Events) {
			events = append(events, ev)
			if err := l.Modify(token, 0); err != nil {
				t.Error(err)
			}
			close(told)
		})); err != nil {
			t.Error(err)
		}
	})
	unix.Shutdown(theirs, unix.SHUT_RDWR) // Hangup, which cannot be masked
	for range 3 {
		do(t, l, func() {})
	}
	do(t, l, func() {
		if len(events) != 0 {
			t.Errorf("told %#x while watched for nothing", events)
		}
		if err := l.Modify(token, Readable|PeerClosed); err != nil {
			t.Error(err)
		}
	})
	wait(t, told)
	do(t, l, func() {
		if len(events) != 1 || events[0]&Hangup == 0 {
			t.Errorf("told %#x, want Hangup once", events)
		}
		if err := l.Rearm(token); err != nil {
			t.Error(err)
		}
	})
}

func TestManyRegistrationsKeepTheirPlaces(t *testing.T) {
	l := start(t, Options{})
	fd, _ := socketpair(t)
	do(t, l, func() {
		// With no events nothing is added to epoll, so one descriptor will do.
		var tokens []Token
		seen := make(map[Token]bool)
		for range 3 * pageRows {
			token, err := l.Add(fd, 0, handlerFunc(nil))
			if err != nil {
				t.Error(err)
				return
			}
			if seen[token] || token == 0 {
				t.Errorf("token %#x given out twice, or zero", token)
				return
			}
			seen[token] = true
			tokens = append(tokens, token)
		}
		pages := len(l.table.pages)
		for _, token := range tokens {
			if err := l.Remove(token); err != nil {
				t.Error(err)
				return
			}
		}
		for range tokens {
			token, err := l.Add(fd, 0, handlerFunc(nil))
			if err != nil {
				t.Error(err)
				return
			}
			if seen[token] {
				t.Errorf("token %#x given out twice", token)
				return
			}
		}
		if got := len(l.table.pages); got != pages {
			t.Errorf("%d pages, want the %d there were", got, pages)
		}
	})
}

func TestPostedFunctionsRunInOrderOnTheLoop(t *testing.T) {
	l := start(t, Options{})
	const goroutines, each = 8, 500
	var got [goroutines][]int
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if err := l.Post(func() { got[g] = append(got[g], i) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	do(t, l, func() {
		for g := range got {
			if len(got[g]) != each || !slices.IsSorted(got[g]) {
				t.Errorf("goroutine %d: %d in order %v, want %d in order", g, len(got[g]), slices.IsSorted(got[g]), each)
			}
		}
	})
}

func TestTurnHasItsOrder(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	note := func(s string) func() {
		return func() { mu.Lock(); calls = append(calls, s); mu.Unlock() }
	}
	l := start(t, Options{OnTurn: func(time.Duration) { note("turn")() }})
	done := make(chan struct{})
	do(t, l, func() {
		mu.Lock()
		calls = nil
		mu.Unlock()
		note("posted")()
		l.AfterEvents(note("events of the next"))
		l.NextTurn(func() {
			note("next")()
			l.AfterEvents(func() { note("events")(); l.AfterEvents(note("never in this turn")) })
			l.NextTurn(func() { note("next again")(); close(done) })
		})
		l.AtTurnEnd(func() { note("end")(); l.AtTurnEnd(note("end again")) })
		if err := l.Post(note("posted again")); err != nil {
			t.Error(err)
		}
	})
	wait(t, done)
	mu.Lock()
	defer mu.Unlock()
	want := []string{"posted", "end", "turn", "next", "events of the next", "events", "posted again", "end again", "turn", "next again"}
	if len(calls) < len(want) || !slices.Equal(calls[:len(want)], want) {
		t.Errorf("order %q, want %q", calls, want)
	}
}

func TestLoopKnowsItsBuffer(t *testing.T) {
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := l.ReadBuffer()
	if len(b) != ReadBufferSize {
		t.Fatalf("%d bytes, want %d", len(b), ReadBufferSize)
	}
	for _, tt := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"all of it", b, true},
		{"its end", b[len(b)-1:], true},
		{"what was put in front", l.Prepend(make([]byte, 100), 1)[:1], true},
		{"the longest that can be put in front", l.Prepend(make([]byte, ReadBufferSize), 1)[:1], true},
		{"another's", make([]byte, 10), false},
		{"nothing", nil, false},
	} {
		if got := l.Holds(tt.p); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestStoppedLoopRunsWhatWasPostedAndTakesNoMore(t *testing.T) {
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var ran []int
	for i := range 3 {
		if err := l.Post(func() {
			ran = append(ran, i)
			if i == 0 {
				l.Stop()
				if err := l.Post(func() { ran = append(ran, 3) }); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if want := []int{0, 1, 2, 3}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
	if err := l.Post(func() {}); !errors.Is(err, ErrStopped) {
		t.Errorf("Post: %v, want ErrStopped", err)
	}
	l.Stop()
}

func TestIdleLoopTurnsAtLeastEveryMaxSleep(t *testing.T) {
	turns := make(chan time.Duration, 100)
	start(t, Options{MaxSleep: 5 * time.Millisecond, OnTurn: func(now time.Duration) {
		select {
		case turns <- now:
		default:
		}
	}})
	last := time.Duration(0)
	for range 5 {
		select {
		case now := <-turns:
			if now <= last {
				t.Errorf("turn at %v after one at %v", now, last)
			}
			last = now
		case <-time.After(deadline):
			t.Fatal("no turn")
		}
	}
}

func TestClockIsTheSystemsMonotonicOne(t *testing.T) {
	l := start(t, Options{})
	system := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	before := system()
	got := l.Clock()
	after := system()
	// The two are read one after the other in New, hence a little room.
	if room := time.Millisecond; got < before-room || got > after+room {
		t.Errorf("Clock %v, want between %v and %v", got, before, after)
	}
	do(t, l, func() {
		if now := l.Now(); now > l.Clock() || now == 0 {
			t.Errorf("Now %v, Clock %v", now, l.Clock())
		}
	})
}

func TestLoopLeavesRoomForOthersUnderLoad(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := start(t, Options{})
	ours, theirs := socketpair(t)
	do(t, l, func() {
		// Never read, so each turn is a busy one.
		if _, err := l.Add(ours, Readable, handlerFunc(func(Events) {})); err != nil {
			t.Error(err)
		}
	})
	Write(theirs, []byte{1})
	for range 20 {
		ran := make(chan struct{})
		go close(ran)
		wait(t, ran)
	}
}

func TestPrependPutsTheTailInFront(t *testing.T) {
	l := start(t, Options{})
	do(t, l, func() {
		buf := l.ReadBuffer()
		if len(buf) != ReadBufferSize {
			t.Errorf("read buffer of %d bytes, want %d", len(buf), ReadBufferSize)
		}
		copy(buf, "world, and more")
		if got := string(l.Prepend([]byte("hello "), 5)); got != "hello world" {
			t.Errorf("got %q", got)
		}
		if got := len(l.Prepend(make([]byte, ReadBufferSize), ReadBufferSize)); got != 2*ReadBufferSize {
			t.Errorf("got %d bytes, want %d", got, 2*ReadBufferSize)
		}
	})
}

func TestDescriptorsAreReservedWithoutTouchingOpenOnes(t *testing.T) {
	const n = 300
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	taken, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, n-1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(taken)
	for _, n := range []int{1, n, 1 << 40} {
		if err := ReserveDescriptors(n); err != nil {
			t.Errorf("ReserveDescriptors(%d): %v", n, err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(taken), unix.F_GETFD, 0); err != nil {
		t.Errorf("descriptor %d: %v", taken, err)
	}
}

func TestWriteTakesTheDataAsFarAsThereIsRoom(t *testing.T) {
	ours, theirs := socketpair(t)
	big := make([]byte, 4*MaxWrite)
	total := 0
	for {
		n, errno := Write(ours, big)
		if errno == unix.EAGAIN {
			break
		}
		if errno != 0 || n > MaxWrite {
			t.Fatalf("Write %d, %v", n, errno)
		}
		total += n
	}
	iov := []unix.Iovec{{Base: &big[0]}, {Base: &big[1]}}
	iov[0].SetLen(2)
	iov[1].SetLen(3)
	if _, errno := Writev(ours, iov); errno != unix.EAGAIN {
		t.Errorf("Writev to a full socket: %v, want EAGAIN", errno)
	}
	for total > 0 {
		n, errno := Read(theirs, big)
		if errno != 0 {
			t.Fatal(errno)
		}
		total -= n
	}
	if n, errno := Writev(ours, iov); n != 5 || errno != 0 {
		t.Errorf("Writev %d, %v, want 5", n, errno)
	}
	unix.Shutdown(theirs, unix.SHUT_RDWR)
	if _, errno := Write(ours, big); errno != unix.EPIPE {
		t.Errorf("Write to a closed peer: %v, want EPIPE", errno)
	}
}

func BenchmarkTurnWithOneEvent(b *testing.B) {
	l := start(b, Options{})
	ours, theirs := socketpair(b)
	done := make(chan struct{})
	n := 0
	do(b, l, func() {
		if _, err := l.Add(ours, Readable, handlerFunc(func(Events) {
			if n++; n == b.N {
				Read(ours, l.ReadBuffer())
				close(done)
			}
		})); err != nil {
			b.Error(err)
		}
	})
	b.ReportAllocs()
	b.ResetTimer()
	Write(theirs, []byte{1})
	<-done
}

func BenchmarkPost(b *testing.B) {
	l := start(b, Options{})
	b.ReportAllocs()
	f := func() {}
	for b.Loop() {
		if err := l.Post(f); err != nil {
			b.Fatal(err)
		}
	}
}
