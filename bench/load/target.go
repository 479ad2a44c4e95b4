package load

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// target is where connections go and come from.
type target struct {
	family  int
	addr    unix.Sockaddr
	sources []unix.Sockaddr // empty: the kernel chooses
}

// parseTarget reads "tcp://ADDRESS:PORT" or "unix:///PATH". It takes
// addresses, no names ("localhost" apart, which is 127.0.0.1): what a name
// stands for may change between the check and the connection.
func parseTarget(s string, allowRemote bool) (*target, error) {
	wrong := func(why string) error {
		return fmt.Errorf("load: target %q: %s", s, why)
	}
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, wrong("want an absolute path, as in unix:///run/echo.sock")
		}
		if len(path) > 107 { // sun_path, unix(7)
			return nil, wrong("the path is longer than 107 bytes")
		}
		return &target{family: unix.AF_UNIX, addr: &unix.SockaddrUnix{Name: path}}, nil
	}
	hostport, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		return nil, wrong("want tcp://ADDRESS:PORT or unix:///PATH")
	}
	if port, ok := strings.CutPrefix(hostport, "localhost:"); ok {
		hostport = "127.0.0.1:" + port
	}
	a, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return nil, wrong("want an address and a port, as in tcp://127.0.0.1:7007 or tcp://[::1]:7007")
	}
	switch {
	case a.Port() == 0:
		return nil, wrong("port 0 cannot be connected to")
	case a.Addr().Zone() != "":
		return nil, wrong("addresses with a zone are not supported")
	case !a.Addr().Unmap().IsLoopback() && !allowRemote:
		return nil, wrong("not a loopback address; --allow-remote loads it all the same, if the machine is yours to load")
	}
	t := &target{addr: sockaddr(a)}
	t.family = familyOf(a.Addr())
	return t, nil
}

func familyOf(a netip.Addr) int {
	if a.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if familyOf(a.Addr()) == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// Check returns the first thing in c that is impossible, nil if Run would
// begin.
func (c Config) Check() error {
	_, err := c.check()
	return err
}

// check fills in what zero stands for and returns the target, or the first
// thing that is impossible.
func (c *Config) check() (*target, error) {
	t, err := parseTarget(c.Target, c.AllowRemote)
	if err != nil {
		return nil, err
	}
	least := MinRawSize
	switch c.Mode {
	case Raw:
	case Text:
		least = MinTextSize
	default:
		return nil, fmt.Errorf("load: mode %q: want %q or %q", c.Mode, Raw, Text)
	}
	for _, v := range []struct {
		name          string
		got, min, max int
	}{
		{"connections", c.Connections, 1, MaxConnections},
		{"message size in mode " + string(c.Mode), c.Size, least, MaxSize},
		{"pipeline", c.Pipeline, 0, MaxPipeline},
		{"threads", c.Threads, 1, MaxThreads},
	} {
		if v.got < v.min || v.got > v.max {
			return nil, fmt.Errorf("load: %s: got %d, want %d to %d", v.name, v.got, v.min, v.max)
		}
	}
	if n := c.Connections * c.Pipeline; n > MaxInFlight {
		return nil, fmt.Errorf("load: %d connections with %d messages in flight each: %d in all, want at most %d", c.Connections, c.Pipeline, n, MaxInFlight)
	}
	if c.Threads > c.Connections {
		return nil, fmt.Errorf("load: %d threads for %d connections: a thread needs one at least", c.Threads, c.Connections)
	}
	if c.Duration <= 0 {
		return nil, fmt.Errorf("load: duration %v: want more than zero", c.Duration)
	}
	if !(c.Ramp >= 0) {
		return nil, fmt.Errorf("load: ramp %v: want connections a second, zero for no limit", c.Ramp)
	}
	for _, v := range []struct {
		name string
		d    *time.Duration
		zero time.Duration
	}{
		{"warm-up", &c.Warmup, 0},
		{"connect timeout", &c.ConnectTimeout, 10 * time.Second},
		{"drain timeout", &c.DrainTimeout, 2 * time.Second},
	} {
		if *v.d < 0 {
			return nil, fmt.Errorf("load: %s %v: want zero or more", v.name, *v.d)
		}
		if *v.d == 0 {
			*v.d = v.zero
		}
	}
	for _, a := range c.Sources {
		if t.family == unix.AF_UNIX || familyOf(a) != t.family || a.Zone() != "" {
			return nil, fmt.Errorf("load: source %s: not of the target's family: %s", a, c.Target)
		}
		t.sources = append(t.sources, sockaddr(netip.AddrPortFrom(a, 0)))
	}
	return t, nil
}
