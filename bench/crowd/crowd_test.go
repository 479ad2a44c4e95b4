package crowd

import (
	"context"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/bench/proc"
)

func TestMain(m *testing.M) {
	Member()
	goleak.VerifyTestMain(m)
}

// serve gives each connection of a listener to handle, in a goroutine, and
// returns its port.
func serve(t *testing.T, handle func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().(*net.TCPAddr).Port
}

func echo(c net.Conn) {
	defer c.Close()
	var b [16]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		c.Write(b[:n])
	}
}

func open(t *testing.T, cfg Config) (*Crowd, error) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	return Open(t.Context(), cfg)
}

func TestACrowdIsOpenedHeldAndClosed(t *testing.T) {
	closed := make(chan struct{}, 100)
	port := serve(t, func(c net.Conn) { echo(c); closed <- struct{}{} })
	began := monotonic()
	c, err := open(t, Config{Port: port, Connections: 41, Members: 3, Rate: 400, Waiting: 6, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Connections) != 41 || c.Failed != 0 || c.FirstError != "" {
		t.Errorf("%d connections, %d failed: %s, want 41 and 0", len(c.Connections), c.Failed, c.FirstError)
	}
	from := map[string]int{}
	for _, v := range c.Connections {
		from[v.From.Addr().String()]++
		if v.Open < began || v.Delay() <= 0 {
			t.Errorf("%+v: want it open after %v and answered later", v, began)
		}
	}
	if from["127.0.0.1"] != 14 || from["127.0.0.2"] != 14 || from["127.0.0.3"] != 13 {
		t.Errorf("from %v, want 14, 14 and 13", from)
	}
	if !slices.IsSortedFunc(c.Connections, func(a, b Connection) int { return int(a.Open - b.Open) }) {
		t.Error("not in the order in which they were opened")
	}
	// 40 intervals of 2.5 ms, however fast the machine is.
	if took := c.Connections[40].Open - c.Connections[0].Open; took < 90*time.Millisecond {
		t.Errorf("all were open within %v, want 100 ms or more", took)
	}
	if len(closed) != 0 {
		t.Errorf("%d connections were closed, want them held", len(closed))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 41 {
		<-closed
	}
	tree, err := proc.Tree(os.Getpid())
	if err != nil || len(tree) != 1 {
		t.Errorf("processes %v are left, %v", tree, err)
	}
}

func TestWhatFailsIsCounted(t *testing.T) {
	free := serve(t, echo)
	for _, tt := range []struct {
		name string
		port int
		want string
	}{
		{"closes", serve(t, func(c net.Conn) { c.Read(make([]byte, 1)); c.Close() }), "closed"},
		{"wrong", serve(t, func(c net.Conn) { c.Read(make([]byte, 1)); c.Write([]byte("?")); c.Close() }), `"?" came back`},
		{"never answers", serve(t, func(c net.Conn) { c.Read(make([]byte, 2)); c.Read(make([]byte, 1)); c.Close() }), "not answered in time"},
		{"answers", free, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := time.Minute
			if tt.name == "never answers" {
				timeout = 500 * time.Millisecond
			}
			c, err := open(t, Config{Port: tt.port, Connections: 5, Members: 2, Waiting: 2, Timeout: timeout})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			failed := 5
			if tt.want == "" {
				failed = 0
			}
			if c.Failed != failed || len(c.Connections) != 5-failed || !strings.Contains(c.FirstError, tt.want) {
				t.Errorf("%d answered, %d failed: %q, want %d failed: %q", len(c.Connections), c.Failed, c.FirstError, failed, tt.want)
			}
		})
	}
}

func TestACrowdThatIsCalledOffLeavesNothing(t *testing.T) {
	port := serve(t, echo)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := Open(ctx, Config{Port: port, Connections: 100, Members: 2, Rate: 1, Waiting: 2, Timeout: time.Hour}); err == nil {
		t.Errorf("got %d connections and no error", len(c.Connections))
	}
	tree, err := proc.Tree(os.Getpid())
	if err != nil || len(tree) != 1 {
		t.Errorf("processes %v are left, %v", tree, err)
	}
}

func TestAnInterruptedConnectIsAwaited(t *testing.T) {
	port := serve(t, echo)
	for _, tt := range []struct {
		name string
		port int
		want error
	}{
		{"open", port, nil},
		{"refused", freePort(t), unix.ECONNREFUSED},
	} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: tt.port, Addr: [4]byte{127, 0, 0, 1}}); err != unix.EINPROGRESS {
			t.Errorf("%s: connect: got %v, want that it goes on", tt.name, err)
		}
		if err := connected(fd); err != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		unix.Close(fd)
	}
}

// freePort returns a port that is bound and not listened on, as long as the
// test runs.
func freePort(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return name.(*unix.SockaddrInet4).Port
}

func TestTheScheduleIsDividedInTurns(t *testing.T) {
	cfg := Config{Port: 7, Connections: 5, Members: 2, Rate: 100, Waiting: 9, Timeout: time.Second}
	got := cfg.tasks(1000 * time.Millisecond)
	want := []task{
		{Source: [4]byte{127, 0, 0, 1}, Port: 7, Connections: 3, Begin: 1000 * time.Millisecond, Interval: 20 * time.Millisecond, Waiting: 4, Until: 2 * time.Second},
		{Source: [4]byte{127, 0, 0, 2}, Port: 7, Connections: 2, Begin: 1010 * time.Millisecond, Interval: 20 * time.Millisecond, Waiting: 4, Until: 2 * time.Second},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	cfg.Rate = 0
	for _, task := range cfg.tasks(0) {
		if task.Begin != 0 || task.Interval != 0 {
			t.Errorf("without a rate: got %+v, want no times", task)
		}
	}
}

func TestTheRateIsToTheLastAnswer(t *testing.T) {
	c := Crowd{Connections: []Connection{{Open: 1 * time.Second, Answered: 3 * time.Second}, {Open: 2 * time.Second, Answered: 2500 * time.Millisecond}}}
	if got := c.Rate(); got != 1 {
		t.Errorf("got %v, want 2 in 2 s", got)
	}
	if got := (&Crowd{}).Rate(); got != 0 {
		t.Errorf("of none: got %v, want 0", got)
	}
}

func TestWhatIsImpossibleIsRefused(t *testing.T) {
	good := Config{Port: 7, Connections: 10, Members: 2, Waiting: 2, Timeout: time.Second}
	for _, tt := range []struct {
		name string
		edit func(*Config)
		say  string
	}{
		{"no port", func(c *Config) { c.Port = 0 }, "port"},
		{"no connections", func(c *Config) { c.Connections = 0 }, "connections"},
		{"more members than connections", func(c *Config) { c.Members, c.Waiting = 11, 11 }, "members"},
		{"nobody may wait", func(c *Config) { c.Waiting = 1 }, "waiting"},
		{"negative rate", func(c *Config) { c.Rate = -1 }, "rate"},
		{"no time", func(c *Config) { c.Timeout = 0 }, "timeout"},
	} {
		c := good
		tt.edit(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.say)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	if err := good.fits(6 + spareFiles); err != nil {
		t.Error(err)
	}
	if err := good.fits(5 + spareFiles); err == nil || !strings.Contains(err.Error(), "among more") {
		t.Errorf("one descriptor too few: got %v", err)
	}
}
