package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// manager stands in for the service manager.
type manager struct {
	address string
	conn    *net.UnixConn
}

// newManager listens at a path or, if name begins with @, an abstract address.
func newManager(t *testing.T, address string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{address: address, conn: conn}
}

// receive returns the next message and the fds that came with it.
func (m *manager) receive(t *testing.T) (message string, fds []int) {
	t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	data, control := make([]byte, maxMessage+1), make([]byte, 1024)
	n, cn, _, _, err := m.conn.ReadMsgUnix(data, control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		t.Fatal(err)
	}
	for i := range messages {
		rights, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, rights...)
	}
	return string(data[:n]), fds
}

// notifier is FromEnv with the variables set for the duration of the test.
func notifier(t *testing.T, socket, usec, pid string) (*Notifier, error) {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", usec)
	t.Setenv("WATCHDOG_PID", pid)
	return FromEnv()
}

func connected(t *testing.T) (*manager, *Notifier) {
	t.Helper()
	m := newManager(t, t.TempDir()+"/notify")
	n, err := notifier(t, m.address, "", "")
	if err != nil {
		t.Fatal(err)
	}
	return m, n
}

func TestEachCallIsOneDatagram(t *testing.T) {
	m, n := connected(t)
	tests := []struct {
		name string
		send func() error
		want string // a regular expression
	}{
		{"ready", func() error { return n.Ready("") }, `READY=1`},
		{"ready with status", func() error { return n.Ready("2/2 ready") }, `READY=1\nSTATUS=2/2 ready`},
		{"reloading", func() error { return n.Reloading("generation 2") }, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\nSTATUS=generation 2`},
		{"stopping", func() error { return n.Stopping("draining") }, `STOPPING=1\nSTATUS=draining`},
		{"status", func() error { return n.Status("degraded") }, `STATUS=degraded`},
		{"no status any more", func() error { return n.Status("") }, `STATUS=`},
		{"watchdog", func() error { return n.Watchdog() }, `WATCHDOG=1`},
		{"extension", func() error { return n.ExtendTimeout(1500 * time.Millisecond) }, `EXTEND_TIMEOUT_USEC=1500000`},
		{"an extension rounded up", func() error { return n.ExtendTimeout(1) }, `EXTEND_TIMEOUT_USEC=1`},
		{"failed", func() error { return n.Failed(syscall.EINVAL, "bad configuration") }, `ERRNO=22\nSTATUS=bad configuration`},
		{"failed without errno", func() error { return n.Failed(0, "worker 1 exited") }, `STATUS=worker 1 exited`},
		{"line ends", func() error { return n.Status("a\nREADY=1\r\n\x00b\n") }, `STATUS=a READY=1   b`},
		{"no UTF-8", func() error { return n.Status("a\xffb") }, "STATUS=a\uFFFDb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.send(); err != nil {
				t.Fatal(err)
			}
			got, fds := m.receive(t)
			if !regexp.MustCompile("^"+tt.want+"$").MatchString(got) || len(fds) > 0 {
				t.Errorf("got %q and fds %v, want %s and none", got, fds, tt.want)
			}
		})
	}
}

func TestDescriptorsAreStoredAndRemovedByName(t *testing.T) {
	m, n := connected(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := n.Store("app/control/7", int(file.Fd())); err != nil {
		t.Fatal(err)
	}
	got, fds := m.receive(t)
	if want := "FDSTORE=1\nFDPOLL=0\nFDNAME=app/control/7"; got != want || len(fds) != 1 {
		t.Errorf("got %q and fds %v, want %q and one", got, fds, want)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	if err := n.Unstore("app/control/7"); err != nil {
		t.Fatal(err)
	}
	if got, fds := m.receive(t); got != "FDSTOREREMOVE=1\nFDNAME=app/control/7" || len(fds) > 0 {
		t.Errorf("got %q and fds %v", got, fds)
	}
	if err := (*Notifier)(nil).Store("x", 0); err != nil {
		t.Errorf("without a manager: %v", err)
	}
}

func TestReloadingTellsTheMonotonicTime(t *testing.T) {
	m, n := connected(t)
	usec := func() (us int64) {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		return now.Nano() / 1000
	}
	before := usec()
	if err := n.Reloading(""); err != nil {
		t.Fatal(err)
	}
	after := usec()
	msg, _ := m.receive(t)
	var got int64
	if _, err := fmt.Sscanf(msg, "RELOADING=1\nMONOTONIC_USEC=%d", &got); err != nil || got < before || got > after {
		t.Errorf("got %q (%v), want a time from %d to %d", msg, err, before, after)
	}
}

func TestNothingToSaySendsNothing(t *testing.T) {
	m, n := connected(t)
	if err := n.Failed(0, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.Watchdog(); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.receive(t); got != "WATCHDOG=1" {
		t.Errorf("got %q, want the watchdog's message first", got)
	}
}

func TestExtensionByNothingIsAnError(t *testing.T) {
	_, n := connected(t)
	for _, d := range []time.Duration{0, -time.Second} {
		if err := n.ExtendTimeout(d); err == nil || !strings.Contains(err.Error(), d.String()) {
			t.Errorf("%v: got %v, want an error with the value", d, err)
		}
	}
}

func TestLongStatusIsCutAtARuneAndTheMessageFits(t *testing.T) {
	m, n := connected(t)
	for _, pad := range []string{"", "x", "xx"} {
		if err := n.Ready(pad + strings.Repeat("€", 3000)); err != nil {
			t.Fatal(err)
		}
		got, _ := m.receive(t)
		if len(got) > maxMessage || len(got) < maxMessage-2 || !utf8.ValidString(got) || !strings.HasPrefix(got, "READY=1\nSTATUS="+pad+"€") {
			t.Errorf("after %q: %d bytes, valid UTF-8 %v, begins %.20q; want at most %d, all runes whole",
				pad, len(got), utf8.ValidString(got), got, maxMessage)
		}
	}
}

func TestAbstractAddressIsReached(t *testing.T) {
	m := newManager(t, fmt.Sprintf("@mainstay-notify-test-%d", os.Getpid()))
	n, err := notifier(t, m.address, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(""); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.receive(t); got != "READY=1" {
		t.Errorf("got %q, want READY=1", got)
	}
}

func TestEnvironmentIsTakenWhateverItHolds(t *testing.T) {
	for _, socket := range []string{"", "/run/systemd/notify", "nonsense"} {
		_, _ = notifier(t, socket, "1000000", "1")
		for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
			if value, ok := os.LookupEnv(name); ok {
				t.Errorf("NOTIFY_SOCKET=%q: %s=%q is left, want it unset", socket, name, value)
			}
		}
	}
}

func TestNilNotifierDoesNothing(t *testing.T) {
	n, err := notifier(t, "", "1000000", "")
	if n != nil || err != nil {
		t.Fatalf("got %v, %v, want nil, nil", n, err)
	}
	calls := map[string]error{
		"Ready": n.Ready("x"), "Reloading": n.Reloading("x"), "Stopping": n.Stopping("x"), "Status": n.Status("x"),
		"Watchdog": n.Watchdog(), "ExtendTimeout": n.ExtendTimeout(time.Second), "Failed": n.Failed(syscall.EIO, "x"),
		"Barrier": n.Barrier(time.Second),
	}
	for name, err := range calls {
		if err != nil {
			t.Errorf("%s: %v, want nil", name, err)
		}
	}
	if got := n.WatchdogInterval(); got != 0 {
		t.Errorf("watchdog interval %v, want 0", got)
	}
}

func TestWatchdogIntervalIsReadForThisProcessOnly(t *testing.T) {
	self := fmt.Sprint(os.Getpid())
	tests := []struct {
		name, usec, pid string
		want            time.Duration
	}{
		{name: "none"},
		{name: "no pid", usec: "3000000", want: 3 * time.Second},
		{name: "our pid", usec: "3000000", pid: self, want: 3 * time.Second},
		{name: "another's pid", usec: "3000000", pid: "1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := notifier(t, "/run/systemd/notify", tt.usec, tt.pid)
			if err != nil {
				t.Fatal(err)
			}
			if got := n.WatchdogInterval(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestMalformedEnvironmentIsAnErrorThatNamesTheVariable(t *testing.T) {
	tests := []struct{ name, socket, usec, pid, want string }{
		{"relative path", "run/notify", "", "", `NOTIFY_SOCKET="run/notify"`},
		{"vsock", "vsock:2:1234", "", "", `NOTIFY_SOCKET="vsock:2:1234"`},
		{"a root", "/", "", "", `NOTIFY_SOCKET="/"`},
		{"nameless", "@", "", "", `NOTIFY_SOCKET="@"`},
		{"too long", "/" + strings.Repeat("x", 107), "", "", "108 bytes, want at most 107"},
		{"interval is no number", "/n", "soon", "", `WATCHDOG_USEC="soon"`},
		{"interval is zero", "/n", "0", "", `WATCHDOG_USEC="0"`},
		{"interval is negative", "/n", "-1", "", `WATCHDOG_USEC="-1"`},
		{"interval is too large", "/n", "9223372036854775807", "", `WATCHDOG_USEC="9223372036854775807"`},
		{"pid is no number", "/n", "1", "me", `WATCHDOG_PID="me"`},
		{"pid is zero", "/n", "1", "0", `WATCHDOG_PID="0"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := notifier(t, tt.socket, tt.usec, tt.pid)
			if n != nil || err == nil || !strings.HasPrefix(err.Error(), "notify: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v, want nil and an error with %q", n, err, tt.want)
			}
		})
	}
}

func TestManagerThatIsAwayIsAnError(t *testing.T) {
	m, n := connected(t)
	m.conn.Close()
	err := n.Ready("")
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), m.address) || !strings.Contains(err.Error(), "READY=1") {
		t.Errorf("got %v, want ENOENT or ECONNREFUSED with the address and the message", err)
	}
	if err := n.Barrier(time.Minute); err == nil {
		t.Error("Barrier: no error")
	}
}

func TestManagerThatReadsNothingDelaysForASecondAtMost(t *testing.T) {
	_, n := connected(t)
	var err error
	start := time.Now()
	for range 10_000 { // net.unix.max_dgram_qlen is less
		start = time.Now()
		if err = n.Watchdog(); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	if took := time.Since(start); took < sendTimeout {
		t.Errorf("gave up after %v, want not before %v", took, sendTimeout)
	}
}

func TestMessageWaitsForRoomInTheManagersQueue(t *testing.T) {
	m, n := connected(t)
	const messages = 1000
	sent := make(chan error)
	go func() {
		for range messages {
			if err := n.Watchdog(); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range messages {
		if got, _ := m.receive(t); got != "WATCHDOG=1" {
			t.Fatalf("message %d is %q", i, got)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestSeveralGoroutinesMaySendAtATime(t *testing.T) {
	m, n := connected(t)
	const goroutines, messages = 4, 50
	var g sync.WaitGroup
	for range goroutines {
		g.Go(func() {
			for range messages {
				if err := n.Watchdog(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range goroutines * messages {
		if got, _ := m.receive(t); got != "WATCHDOG=1" {
			t.Fatalf("message %d is %q", i, got)
		}
	}
	g.Wait()
}

func TestBarrierReturnsWhenTheManagerClosesThePipe(t *testing.T) {
	m, n := connected(t)
	if err := n.Status("before"); err != nil {
		t.Fatal(err)
	}
	returned := make(chan error, 1)
	go func() { returned <- n.Barrier(time.Minute) }()
	if got, _ := m.receive(t); got != "STATUS=before" {
		t.Fatalf("first message %q, want STATUS=before", got)
	}
	got, fds := m.receive(t)
	if got != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("got %q with fds %v, want BARRIER=1 alone with one", got, fds)
	}
	select {
	case err := <-returned:
		t.Errorf("returned %v before the manager closed the pipe", err)
	default:
	}
	unix.Close(fds[0])
	if err := <-returned; err != nil {
		t.Error(err)
	}
}

func TestBarrierGivesUpAtItsTimeout(t *testing.T) {
	m, n := connected(t)
	for _, timeout := range []time.Duration{-time.Second, 0, 10 * time.Millisecond} {
		start := time.Now()
		err := n.Barrier(timeout)
		took := time.Since(start)
		if !errors.Is(err, os.ErrDeadlineExceeded) || took < timeout {
			t.Errorf("timeout %v: %v after %v, want %v, not sooner", timeout, err, took, os.ErrDeadlineExceeded)
		}
		_, fds := m.receive(t)
		unix.Close(fds[0])
	}
}

func TestMessagesLeaveNoDescriptorOpen(t *testing.T) {
	m, n := connected(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	if err := n.Ready(""); err != nil {
		t.Error(err)
	}
	if err := n.Barrier(0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	m.receive(t)
	_, fds := m.receive(t)
	unix.Close(fds[0])
	if after := count(); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add("READY=1", "2/2 ready")
	f.Add("", "a\nREADY=1")
	f.Add("STOPPING=1", strings.Repeat("€", 2000))
	f.Add("", "\xff\x00")
	f.Fuzz(func(t *testing.T, assignments, status string) {
		if len(assignments) > 1000 {
			return
		}
		got := message(assignments, status)
		if len(got) > maxMessage && len(assignments) <= maxMessage {
			t.Fatalf("%d bytes", len(got))
		}
		text, ok := strings.CutPrefix(got, assignments)
		if !ok || strings.Count(text, "\n") > 1 || strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
			t.Fatalf("%q and status %q became %q", assignments, status, got)
		}
	})
}
