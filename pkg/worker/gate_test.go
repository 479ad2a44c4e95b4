package worker

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/scoreboard"
)

func sockaddr(text string) unix.Sockaddr {
	if text == "unix" {
		return &unix.SockaddrUnix{}
	}
	ip := netip.MustParseAddr(text)
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: 7, Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: 7, Addr: ip.As16()}
}

func TestGateKeepsToItsLimits(t *testing.T) {
	type step struct {
		peer  string
		leave bool // one from there ends, instead
		after time.Duration
		want  string // refused with this in the reason; empty: taken
	}
	for _, tt := range []struct {
		name   string
		limits AcceptLimits
		steps  []step
	}{
		{"connections", AcceptLimits{Connections: 2}, []step{
			{peer: "10.0.0.1"}, {peer: "unix"}, {peer: "10.0.0.2", want: "max_connections, 2,"},
			{peer: "10.0.0.1", leave: true}, {peer: "10.0.0.3"}, {peer: "10.0.0.3", want: "max_connections, 2,"},
		}},
		{"connections of an address", AcceptLimits{PerPeer: 1}, []step{
			{peer: "10.0.0.1"}, {peer: "10.0.0.1", want: "max_connections_per_peer, 1,"}, {peer: "10.0.0.2"},
			{peer: "10.0.0.1", leave: true}, {peer: "10.0.0.1"},
		}},
		{"connections of a network of IPv6", AcceptLimits{PerPeer: 1}, []step{
			{peer: "2001:db8::1"}, {peer: "2001:db8::ffff:0:1", want: "max_connections_per_peer"}, {peer: "2001:db8:0:1::1"},
			{peer: "2001:db8::2", leave: true}, {peer: "2001:db8::3"},
		}},
		{"an address of IPv4 however it comes", AcceptLimits{PerPeer: 1}, []step{
			{peer: "::ffff:10.0.0.1"}, {peer: "10.0.0.1", want: "max_connections_per_peer"}, {peer: "::ffff:10.0.0.2"},
		}},
		{"unix sockets have no address", AcceptLimits{PerPeer: 1}, []step{
			{peer: "unix"}, {peer: "unix"}, {peer: "unix", leave: true}, {peer: "unix"},
		}},
		{"rate", AcceptLimits{Rate: 10}, []step{
			{peer: "unix"}, {peer: "unix"}, {peer: "unix"}, {peer: "unix"}, {peer: "unix"},
			{peer: "unix"}, {peer: "unix"}, {peer: "unix"}, {peer: "unix"}, {peer: "unix"},
			{peer: "unix", want: "accept_rate, 10 a second,"},
			{peer: "unix", after: 99 * time.Millisecond, want: "accept_rate"},
			{peer: "unix", after: 2 * time.Millisecond}, {peer: "unix", want: "accept_rate"},
		}},
		{"burst", AcceptLimits{Rate: 1000, Burst: 2}, []step{
			{peer: "unix"}, {peer: "unix"}, {peer: "unix", want: "accept_rate"},
			{peer: "unix", after: time.Hour}, {peer: "unix"}, {peer: "unix", want: "accept_rate"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zap.InfoLevel)
			w := &Worker{seat: scoreboard.NewSeat(), log: zap.New(core)}
			g := w.newGate("main", tt.limits, nil)
			now, refused := time.Hour, 0
			for i, s := range tt.steps {
				now += s.after
				peer := sockaddr(s.peer)
				if s.leave {
					g.left(addressOf(peer))
					continue
				}
				g.told = -time.Hour // each refusal is logged
				took := g.admit(peer, now)
				if took != (s.want == "") {
					t.Fatalf("step %d: taken %v, want %v", i, took, !took)
				}
				if took {
					continue
				}
				refused++
				reason, _ := logs.TakeAll()[0].ContextMap()["reason"].(string)
				if !strings.Contains(reason, s.want) {
					t.Errorf("step %d: reason %q, want %q in it", i, reason, s.want)
				}
			}
			if n := w.seat.Refused.Load(); n != uint64(refused) {
				t.Errorf("%d refusals counted, want %d", n, refused)
			}
		})
	}
}

func TestRefusalsAreLoggedOnceASecond(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	w := &Worker{seat: scoreboard.NewSeat(), log: zap.New(core)}
	g := w.newGate("main", AcceptLimits{Connections: 1}, nil)
	g.admit(sockaddr("10.0.0.1"), 0)
	for i := range 100 {
		g.admit(sockaddr("10.0.0.2"), time.Duration(i)*20*time.Millisecond) // for 2 s
	}
	all := logs.TakeAll()
	if len(all) != 2 || all[0].ContextMap()["skipped"] != int64(0) || all[1].ContextMap()["skipped"] != int64(49) {
		t.Errorf("logged %d times: %v", len(all), all)
	}
	if all[0].ContextMap()["peer"] != "10.0.0.2" {
		t.Errorf("fields %v, want the peer", all[0].ContextMap())
	}
}

func TestNoLimitsNoGate(t *testing.T) {
	w := &Worker{}
	g := w.newGate("main", AcceptLimits{}, nil)
	if g != nil || !g.admit(sockaddr("unix"), 0) {
		t.Error("a gate without limits refuses")
	}
	g.left(netip.Addr{})
}

// refused wants the connection to be closed by the other side at once.
func refused(t *testing.T, c net.Conn) {
	t.Helper()
	awaitEOF(t, c)
}

func TestConnectionsBeyondTheLimitAreClosedAtOnce(t *testing.T) {
	for _, helper := range []string{"limits", "http limits"} {
		t.Run(helper, func(t *testing.T) {
			s := listen(t)
			p := serving(t, helper, 0, s) // two connections of one address
			served := func(c net.Conn) {
				t.Helper()
				if helper == "limits" {
					ask(t, c, "hello")
					return
				}
				resp, _ := request(t, c, "/", lastChunk)
				io.Copy(io.Discard, resp.Body)
			}
			a, b := dial(t, s), dial(t, s)
			served(a)
			served(b)
			refused(t, dial(t, s))
			refused(t, dial(t, s))
			await(t, "the count", func() bool { return p.seat.Refused.Load() == 2 && p.seat.Connections.Load() == 2 })
			p.wrote("connection refused")
			served(a)
			b.Close()
			await(t, "room", func() bool { return p.seat.Connections.Load() == 1 })
			c := dial(t, s)
			served(c)
			if n := p.seat.Accepts.Load(); n != 3 {
				t.Errorf("%d connections counted as accepted, want 3", n)
			}
			if n := strings.Count(p.stderr.String(), "connection refused"); n != 1 {
				t.Errorf("logged %d times within a second", n)
			}
		})
	}
}
