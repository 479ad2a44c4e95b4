package load

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server serves every connection to address by handle, and returns the target
// to load. All of it has ended when the test has.
func server(t *testing.T, network, address string, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return network + "://" + l.Addr().String()
}

func echo(c net.Conn) { io.Copy(c, struct{ io.Reader }{c}) }

// short is a run that is over soon.
func short(target string) Config {
	return Config{Target: target, Mode: Raw, Connections: 4, Size: 64, Pipeline: 2, Threads: 1, Duration: 30 * time.Second, Messages: 500}
}

func TestEveryReplyOfAnEchoIsCountedAndRight(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
	}{
		{"one in flight", func(c *Config) { c.Pipeline = 1 }},
		{"sixteen in flight", func(c *Config) { c.Pipeline = 16 }},
		{"three threads", func(c *Config) { c.Threads = 3 }},
		{"text", func(c *Config) { c.Mode, c.Size = Text, 100 }},
		{"smallest", func(c *Config) { c.Size = MinRawSize }},
		{"larger than every buffer", func(c *Config) { c.Size, c.Messages = 3<<20, 10 }},
		{"slow ramp", func(c *Config) { c.Ramp = 400 }},
		{"by time", func(c *Config) { c.Messages, c.Duration = 0, 20*time.Millisecond }},
		{"after a warm-up", func(c *Config) { c.Warmup = 10 * time.Millisecond }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := short(server(t, "tcp", "127.0.0.1:0", echo))
			c.change(&cfg)
			r, err := Run(t.Context(), cfg)
			if err != nil || r.Errors.Total() > 0 {
				t.Fatalf("Run: %v, errors %+v", err, r.Errors)
			}
			if r.Messages == 0 || r.Messages < cfg.Messages {
				t.Errorf("got %d messages, want %d at least", r.Messages, max(cfg.Messages, 1))
			}
			if r.Latency.Count != r.Messages || r.Histogram.Count() != r.Messages {
				t.Errorf("got %d latencies for %d messages", r.Latency.Count, r.Messages)
			}
			if r.Connected != cfg.Connections || r.Connect.Count != uint64(cfg.Connections) || r.FirstReply.Count != uint64(cfg.Connections) {
				t.Errorf("connected %d, connect times %d, first replies %d, want %d of each", r.Connected, r.Connect.Count, r.FirstReply.Count, cfg.Connections)
			}
			if l := r.Latency; !(0 < l.P50 && l.P50 <= l.P90 && l.P90 <= l.P99 && l.P99 <= l.P999 && l.P999 <= l.Max) {
				t.Errorf("percentiles are not in order: %+v", l)
			}
			if r.Seconds <= 0 || r.Rate <= 0 || r.Bytes != r.Messages*uint64(cfg.Size) {
				t.Errorf("seconds %v, rate %v, bytes %d do not fit %d messages of %d B", r.Seconds, r.Rate, r.Bytes, r.Messages, cfg.Size)
			}
		})
	}
}

func TestUnixAndIPv6TargetsAreLoaded(t *testing.T) {
	for _, c := range []struct {
		name, network, address string
		sources                []netip.Addr
	}{
		{"unix", "unix", filepath.Join(t.TempDir(), "echo.sock"), nil},
		{"ipv6", "tcp", "[::1]:0", nil},
		{"ipv6 with a source", "tcp", "[::1]:0", []netip.Addr{netip.IPv6Loopback()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := short(server(t, c.network, c.address, echo))
			cfg.Sources = c.sources
			if r, err := Run(t.Context(), cfg); err != nil || r.Errors.Total() > 0 {
				t.Fatalf("Run: %v, %+v", err, r)
			}
		})
	}
}

func TestConnectionsComeFromTheSourcesInTurn(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	cfg := short(server(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		mu.Lock()
		seen[c.RemoteAddr().(*net.TCPAddr).IP.String()]++
		mu.Unlock()
		echo(c)
	}))
	cfg.Sources = []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	if r, err := Run(t.Context(), cfg); err != nil || r.Errors.Total() > 0 {
		t.Fatalf("Run: %v, %+v", err, r)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["127.0.0.2"] != 2 || seen["127.0.0.3"] != 2 {
		t.Errorf("got connections from %v, want 2 from each source", seen)
	}
}

func TestIdleConnectionsAreHeldUntilTheEnd(t *testing.T) {
	cfg := short(server(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			t.Error("got a byte on an idle connection")
		}
	}))
	cfg.Pipeline, cfg.Messages, cfg.Duration = 0, 0, 20*time.Millisecond
	r, err := Run(t.Context(), cfg)
	if err != nil || r.Errors.Total() > 0 || r.Connected != cfg.Connections || r.Messages != 0 {
		t.Fatalf("Run: %v, %+v", err, r)
	}
}

func TestHooksStandAtTheEdgesOfWhatIsCounted(t *testing.T) {
	var order []string
	cfg := short(server(t, "tcp", "127.0.0.1:0", echo))
	cfg.OnStart = func() { order = append(order, "start") }
	cfg.OnStop = func() { order = append(order, "stop") }
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, " "); got != "start stop" {
		t.Errorf("hooks ran: %q, want \"start stop\"", got)
	}
}

func TestWhatAServerDoesWrongIsCounted(t *testing.T) {
	// after echoes n messages of 64 bytes and then leaves c to act.
	after := func(n int64, act func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			io.CopyN(c, struct{ io.Reader }{c}, n*64)
			act(c)
		}
	}
	wait := func(c net.Conn) { io.Copy(io.Discard, c) }
	for _, c := range []struct {
		name   string
		handle func(net.Conn)
		got    func(*Errors) uint64
		say    string
	}{
		{"a wrong byte", func(c net.Conn) {
			b := make([]byte, 64)
			io.ReadFull(c, b)
			b[40] ^= 0x10
			c.Write(b)
			wait(c)
		}, func(e *Errors) uint64 { return e.Wrong }, "message 0: byte 40"},
		{"more than was sent", func(c net.Conn) {
			m := newMessages(Raw, 64)
			b := make([]byte, 64)
			io.ReadFull(c, b)
			id := uint64(0)
			for _, x := range b[8:16] {
				id = id<<8 | uint64(x)
			}
			c.Write(stream(m, id, 9))
			wait(c)
		}, func(e *Errors) uint64 { return e.Wrong }, "came back before it was sent"},
		{"an early close", after(3, func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); wait(c) }),
			func(e *Errors) uint64 { return e.Short }, "closed the connection"},
		{"a reset", after(3, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }),
			func(e *Errors) uint64 { return e.Reset }, "reset"},
		{"silence", after(3, wait),
			func(e *Errors) uint64 { return e.Unanswered / 2 }, "no reply"}, // 2 are in flight
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := short(server(t, "tcp", "127.0.0.1:0", c.handle))
			cfg.Duration, cfg.DrainTimeout = 100*time.Millisecond, 50*time.Millisecond
			r, err := Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.got(&r.Errors); got != uint64(cfg.Connections) {
				t.Errorf("counted %d, want %d: %+v", got, cfg.Connections, r.Errors)
			}
			if s := strings.Join(r.Errors.Samples, "; "); !strings.Contains(s, c.say) {
				t.Errorf("samples are %q, want one with %q", s, c.say)
			}
		})
	}
}

func TestARunEndsEarlyWhenNoConnectionIsLeft(t *testing.T) {
	cfg := short(server(t, "tcp", "127.0.0.1:0", func(c net.Conn) { bufio.NewReader(c).ReadByte() }))
	begun := time.Now()
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > cfg.Duration/2 {
		t.Errorf("it took %v, want an end when the last connection was lost", d)
	}
}

func TestRefusedConnectionsAreAnErrorWhenThereIsNoOther(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cfg := short("tcp://" + l.Addr().String())
	r, err := Run(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "none of 4 connections") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want none of 4 and refused", err)
	}
	if r == nil || r.Errors.Refused != 4 {
		t.Errorf("got %+v, want 4 refused", r)
	}
}

func TestAFullBacklogIsWaitedForAndTimesOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "full.sock")
	l, err := net.Listen("unix", path) // and never accepted from
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := shrinkBacklog(raw); err != nil {
		t.Fatal(err)
	}
	cfg := short("unix://" + path)
	cfg.Connections, cfg.Pipeline, cfg.Messages = 8, 0, 0
	cfg.Duration, cfg.ConnectTimeout = 10*time.Millisecond, 30*time.Millisecond
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors.Timeout == 0 || r.Connected+int(r.Errors.Timeout) != 8 {
		t.Errorf("got %d connected and %+v, want the rest of 8 timed out", r.Connected, r.Errors)
	}
}

func TestARunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cfg := short(server(t, "tcp", "127.0.0.1:0", echo))
	cfg.Messages = 0
	cfg.OnStart = cancel
	r, err := Run(ctx, cfg)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if r == nil || r.Errors.Total() > 0 {
		t.Errorf("got %+v, want what was measured so far and no errors", r)
	}
}

func TestImpossibleRunsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		say    string
	}{
		{"remote", func(c *Config) { c.Target = "tcp://192.0.2.1:80" }, "not a loopback address"},
		{"remote in disguise", func(c *Config) { c.Target = "tcp://[::ffff:192.0.2.1]:80" }, "not a loopback address"},
		{"any address", func(c *Config) { c.Target = "tcp://0.0.0.0:80" }, "not a loopback address"},
		{"a name", func(c *Config) { c.Target = "tcp://example.com:80" }, "want an address and a port"},
		{"no port", func(c *Config) { c.Target = "tcp://127.0.0.1" }, "want an address and a port"},
		{"port 0", func(c *Config) { c.Target = "tcp://127.0.0.1:0" }, "port 0"},
		{"zone", func(c *Config) { c.Target = "tcp://[fe80::1%lo]:80" }, "zone"},
		{"scheme", func(c *Config) { c.Target = "127.0.0.1:80" }, "want tcp://"},
		{"relative path", func(c *Config) { c.Target = "unix://x.sock" }, "absolute path"},
		{"long path", func(c *Config) { c.Target = "unix:///" + strings.Repeat("x", 107) }, "107 bytes"},
		{"mode", func(c *Config) { c.Mode = "udp" }, `mode "udp"`},
		{"no connections", func(c *Config) { c.Connections = 0 }, "connections: got 0"},
		{"small", func(c *Config) { c.Size = 15 }, "got 15, want 16"},
		{"small text", func(c *Config) { c.Mode, c.Size = Text, 32 }, "got 32, want 33"},
		{"pipeline", func(c *Config) { c.Pipeline = -1 }, "pipeline: got -1"},
		{"in flight", func(c *Config) { c.Connections, c.Pipeline = 10_000, 10_000 }, "100000000 in all"},
		{"threads", func(c *Config) { c.Threads = 5 }, "5 threads for 4 connections"},
		{"duration", func(c *Config) { c.Duration = 0 }, "duration 0s"},
		{"warm-up", func(c *Config) { c.Warmup = -1 }, "warm-up -1ns"},
		{"ramp", func(c *Config) { c.Ramp = -1 }, "ramp -1"},
		{"family of a source", func(c *Config) { c.Sources = []netip.Addr{netip.IPv6Loopback()} }, "source ::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := short("tcp://127.0.0.1:1")
			c.change(&cfg)
			if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want an error with %q", err, c.say)
			}
		})
	}
}

// shrinkBacklog lets one connection wait to be accepted.
func shrinkBacklog(raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); e != nil {
		return e
	}
	return err
}

func TestMoreConnectionsThanDescriptorsAreRefused(t *testing.T) {
	if err := enoughFiles(1 << 40); err == nil || !strings.Contains(err.Error(), "descriptors are needed") {
		t.Errorf("got %v, want an error that says what is needed", err)
	}
	if err := enoughFiles(1); err != nil {
		t.Error(err)
	}
}
