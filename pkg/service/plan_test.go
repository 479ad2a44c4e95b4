package service

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
)

func testService() *Service {
	s := New("app")
	s.Kind("echo", Raw[struct{}]{})
	s.Kind("hello", HTTP{})
	s.Kind("packets", Packet{OnPacket: func(*Worker, *Datagram) {}})
	s.Listen("ws", "tcp://127.0.0.1:1", Text[int]{})
	s.HTTP("web", "", http.NotFoundHandler())
	return s
}

func inherited(names ...string) []activation.Socket {
	var sockets []activation.Socket
	for i, name := range names {
		sockets = append(sockets, activation.Socket{Name: name, FD: 3 + i, Address: "tcp://127.0.0.1:80", Inherited: true})
	}
	return sockets
}

func TestSocketsAndProtocolsArePairedByName(t *testing.T) {
	type row struct{ name, serve, address, socket string }
	for _, tt := range []struct {
		name      string
		config    string
		inherited []activation.Socket
		want      []row
		wantErr   string
	}{
		{
			name:      "all from systemd",
			inherited: inherited("web", "echo", "ws"),
			want:      []row{{"web", "", "", "web"}, {"echo", "echo", "", "echo"}, {"ws", "", "", "ws"}},
		},
		{
			name:   "by hand: the code's address, and the operator's",
			config: "listener.web.address = \"unix:///tmp/web\"\nlistener.x = {address = \"tcp://:1\", serve = \"echo\"}",
			want:   []row{{"ws", "", "tcp://127.0.0.1:1", ""}, {"web", "", "unix:///tmp/web", ""}, {"x", "echo", "tcp://:1", ""}},
		},
		{
			name:      "the operator's kind goes before the code's",
			config:    `listener.ws.serve = "echo"`,
			inherited: inherited("ws", "web"),
			want:      []row{{"ws", "echo", "", "ws"}, {"web", "", "", "web"}},
		},
		{
			name:      "a socket beside an address",
			config:    `listener.web.address = "tcp://:1"`,
			inherited: inherited("ws"),
			want:      []row{{"ws", "", "", "ws"}, {"web", "", "tcp://:1", ""}},
		},
		{
			name:      "under systemd the code's address is not used",
			inherited: inherited("web"),
			wantErr:   `listener "ws" has no socket: want a socket unit with FileDescriptorName=ws, or an address, by --listen ws=URL or address in [listener.ws]`,
		},
		{
			name:    "by hand without an address",
			wantErr: `listener "web" has no socket: want a socket unit with FileDescriptorName=web, or an address, by --listen web=URL or address in [listener.web]`,
		},
		{
			name:      "configured without a socket",
			config:    `listener.echo.queue_depth = 1`,
			inherited: inherited("ws", "web"),
			wantErr:   `app.toml:1: key "listener.echo": listener "echo" has no socket: `,
		},
		{
			name:      "socket of no known name",
			inherited: inherited("ws", "web", "other"),
			wantErr:   `activation: fd 5: listener "other" is not known: want one of echo, hello, packets, web, ws, or say what to serve on it, by --serve other=KIND or serve in [listener.other]`,
		},
		{
			name:      "kind of no known name",
			config:    `listener.ws.serve = "ecko"`,
			inherited: inherited("ws", "web"),
			wantErr:   `app.toml:1: key "listener.ws.serve": listener "ws": no kind "ecko", want one of echo, hello, packets`,
		},
		{
			name:      "socket and address",
			config:    `listener.ws.address = "tcp://:1"`,
			inherited: inherited("ws", "web"),
			wantErr:   `app.toml:1: key "listener.ws.address": listener "ws" has a socket from systemd (fd 3, tcp://127.0.0.1:80) and an address to bind, tcp://:1: want one of them`,
		},
		{
			name:      "a datagram socket for connections",
			inherited: []activation.Socket{{Name: "ws", FD: 3, Network: "udp", Address: "udp://127.0.0.1:80", Inherited: true}},
			wantErr:   `listener "ws" is a datagram socket (fd 3, udp://127.0.0.1:80), and what the code serves on it wants connections: want tcp://HOST:PORT or unix:///PATH, or ListenStream= in the socket unit`,
		},
		{
			name:      "an address of datagrams for connections",
			inherited: inherited("ws", "web"),
			config:    `listener.echo.address = "udp://127.0.0.1:80"`,
			wantErr:   `app.toml:1: key "listener.echo.address": listener "echo" is a datagram socket (udp://127.0.0.1:80), and kind "echo" wants connections: `,
		},
		{
			name:    "an address of connections for datagrams",
			config:  `listener.ws = {address = "tcp://127.0.0.1:80", serve = "packets"}`,
			wantErr: `app.toml:1: key "listener.ws.serve": listener "ws" is a stream socket (tcp://127.0.0.1:80), and kind "packets" wants datagrams: want udp://HOST:PORT or unixgram:///PATH, or ListenDatagram= in the socket unit`,
		},
		{
			name:      "a unix datagram socket for connections",
			inherited: []activation.Socket{{Name: "ws", FD: 3, Network: "unixgram", Address: "unixgram:///run/x", Inherited: true}},
			wantErr:   `listener "ws" is a datagram socket (fd 3, unixgram:///run/x), and what the code serves on it wants connections: `,
		},
		{
			name:   "packets",
			config: `listener.web = {address = "unixpacket:///run/x", serve = "echo"}`,
			want:   []row{{"ws", "", "tcp://127.0.0.1:1", ""}, {"web", "echo", "unixpacket:///run/x", ""}},
		},
		{
			name:      "packets for what has a protocol",
			inherited: []activation.Socket{{Name: "ws", FD: 3, Network: "unixpacket", Address: "unixpacket:///run/x", Inherited: true}},
			wantErr:   `listener "ws" is a seqpacket socket (fd 3, unixpacket:///run/x), and what the code serves on it is not for one: `,
		},
		{
			name:   "datagrams of a unix socket",
			config: `listener.web = {address = "unixgram:///run/x", serve = "packets"}`,
			want:   []row{{"ws", "", "tcp://127.0.0.1:1", ""}, {"web", "packets", "unixgram:///run/x", ""}},
		},
		{
			name:   "datagrams",
			config: `listener.web = {address = "udp://127.0.0.1:80", serve = "packets"}`,
			want:   []row{{"ws", "", "tcp://127.0.0.1:1", ""}, {"web", "packets", "udp://127.0.0.1:80", ""}},
		},
		{
			name:      "setting that datagrams have not",
			inherited: inherited("ws", "web"),
			config:    `listener.packets = {address = "udp://127.0.0.1:80", idle_timeout = "1s"}`,
			wantErr:   `app.toml:1: key "listener.packets.idle_timeout": datagrams have no such setting, only max_message and send_limit`,
		},
		{
			name:      "setting that net/http has not",
			config:    `listener.web.send_high = 1`,
			inherited: inherited("ws", "web"),
			wantErr:   `app.toml:1: key "listener.web.send_high": net/http has no such setting, only message_timeout, idle_timeout, write_timeout, max_connections, max_connections_per_peer, accept_rate, accept_burst, proxy_protocol, tls; WebSockets would have it, and there is none`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parse(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := testService().plan(c, tt.inherited)
			if tt.wantErr != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.wantErr) {
					t.Errorf("got  %v\nwant %s", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []row
			for _, p := range plan {
				r := row{p.name, p.serve, p.address, ""}
				if p.socket != nil {
					r.socket = p.socket.Name
				}
				got = append(got, r)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(row{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestServiceWithoutAnythingToDoIsAnError(t *testing.T) {
	s := New("app")
	s.Kind("echo", Raw[struct{}]{})
	if _, err := s.plan(defaults("app"), nil); err == nil || !strings.HasPrefix(err.Error(), "no listener: ") {
		t.Errorf("got %v, want one that says there is no listener", err)
	}
	s.OnWorkerStart(func(*Worker) error { return nil })
	if _, err := s.plan(defaults("app"), nil); err != nil {
		t.Errorf("with OnWorkerStart: %v", err)
	}
}

func TestMistakesOfTheProgramPanic(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func()
	}{
		{"service's name", func() { New("App") }},
		{"listener's name", func() { New("app").Listen("a b", "", HTTP{}) }},
		{"listener twice", func() { s := New("app"); s.HTTP("a", "", nil); s.HTTP("a", "", nil) }},
		{"listener without protocol", func() { New("app").Listen("a", "", nil) }},
		{"kind twice", func() { s := New("app"); s.Kind("a", HTTP{}); s.Kind("a", HTTP{}) }},
		{"kind without protocol", func() { New("app").Kind("a", nil) }},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", tt.name)
				}
			}()
			tt.do()
		}()
	}
}

func TestOperatorsSettingsGoBeforeTheCodes(t *testing.T) {
	c, err := parse("[listener.a]\ninline = false\nmax_message = 10\nidle_timeout = \"none\"\n")
	if err != nil {
		t.Fatal(err)
	}
	code := Raw[struct{}]{Inline: true, Limits: Limits{MaxMessage: 5, QueueDepth: 6, Idle: 7, Close: 8}}
	l, err := code.listener("a", c.Listeners["a"])
	if err != nil {
		t.Fatal(err)
	}
	want := Limits{MaxMessage: 10, QueueDepth: 6, Idle: noTimeout, Close: 8}
	if diff := cmp.Diff(want, l.Conn.Limits); diff != "" || l.Conn.Inline {
		t.Errorf("inline %v, limits -want +got:\n%s", l.Conn.Inline, diff)
	}
}

func TestExpiryIsToldByHowNearItIs(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		left time.Duration
		want string
	}{
		{left: 90 * 24 * time.Hour, want: "expires 2026-04-01T00:00:00Z"},
		{left: 24 * time.Hour, want: "expires soon: 2026-01-02T00:00:00Z"},
		{left: -24 * time.Hour, want: "expired 2025-12-31T00:00:00Z"},
	} {
		if got := expiry(now.Add(tt.left), now); got != tt.want {
			t.Errorf("%v before its end: %q, want %q", tt.left, got, tt.want)
		}
	}
}

func TestStatusIsReadable(t *testing.T) {
	var b bytes.Buffer
	err := writeStatus(&b, control.Status{
		Service: "app", Version: "v1", PID: 100, State: "degraded", Reason: "slot 1 has no worker", Generation: 3, UptimeMS: 7_384_000, Connections: 12, Kept: 40, Torn: 2,
		Listeners:    []control.Listener{{Name: "ws", Address: "tcp://[::]:80", Inherited: true}, {Name: "x", Address: "unix:///tmp/x", Serve: "echo"}},
		LastReload:   &control.Reload{Generation: 4, Reason: "not ready within 30s", At: "2026-01-02T03:04:05Z", TookMS: 30_000, Moved: 498, Left: 2, Lost: 1, LongestStallUS: 12_345},
		Release:      control.Release{Generation: 3, Executable: "/usr/bin/app", Build: "v1", Replaced: true},
		LastGood:     &control.Release{Generation: 2, Executable: "/usr/bin/app"},
		Certificates: []control.Certificate{{Listener: "ws", Name: "ws.example.org", Expires: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)}},
		Pools: []control.Pool{{Name: "worker", Want: 2, Ready: 1, Respawns: 5, Workers: []control.Worker{
			{Slot: 0, PID: 101, Generation: 3, State: "ready", UptimeMS: 65_000, Connections: 12, Accepts: 20, Messages: 1000, BytesIn: 2048, BytesOut: 5 << 20, RSSBytes: 12 << 20, CPUMS: 4500, HeartbeatAgeMS: 12, Given: 498, Taken: 1, Refused: 3, Thawed: 2, LongestStallUS: 1500, Protection: "unprotected: a filter forbids it"},
			{Slot: 1, Generation: 3, State: "backing off", HeartbeatAgeMS: -1, Respawns: 5, StartFailures: 4, RetryMS: 1500, LastDeath: "exit code 1: no database"},
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = `app is degraded: generation 3, 12 connections, up 2h03m, pid 100, version v1
reason: slot 1 has no worker
release: generation 3, /usr/bin/app, version v1 (the file has been replaced)
last good: generation 2, /usr/bin/app
last reload: generation 4 at 2026-01-02T03:04:05Z, took 30s, 498 connections moved, 2 left, 1 lost, longest stall 12ms, failed: not ready within 30s
deaths of workers: 40 connections kept, 2 torn
certificate: ws.example.org of listener ws, expired 2001-02-03T04:05:06Z

LISTENER  ADDRESS        SERVES  SOCKET
ws        tcp://[::]:80  -       systemd
x         unix:///tmp/x  echo    own

pool worker: 1 of 2 ready, 0 protected, 5 respawns
  slot  pid  gen        state  uptime   cpu  rss  conns  accepts  messages    in   out  queue  send_fail  panics  timers  given  taken  refused  thawed  stall  beat  respawns
     0  101    3        ready   1m05s  4.5s  12M     12       20      1000  2.0K  5.0M      0          0       0       0    498      1        3       2  1.5ms  12ms         0
     1    -    3  backing off      0s    0s    0      0        0         0     0     0      0          0       0       0      0      0        0       0      -     -         5
   sum                                 4.5s  12M     12       20      1000  2.0K  5.0M      0          0       0       0    498      1        3       2  1.5ms                
slot 0: unprotected, its connections die with it: a filter forbids it
slot 1: next start in 1.5s, 4 starts have failed
slot 1: last death: exit code 1: no database
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestListenerOfMonitoringIsTheSupervisorsOwn(t *testing.T) {
	defer func() {
		if got := fmt.Sprint(recover()); !strings.Contains(got, "the supervisor's own") {
			t.Errorf("panic %q", got)
		}
	}()
	New("app").Listen("metrics", "", Raw[struct{}]{})
}

func TestMonitoringAloneIsNoService(t *testing.T) {
	c := defaults("app")
	if err := c.setListenerFlag("listen", "address", "metrics=tcp://127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := New("app").plan(c, nil); err == nil || !strings.Contains(err.Error(), "no listener") {
		t.Errorf("error %v", err)
	}
}

func TestMonitoringWantsConnections(t *testing.T) {
	c := defaults("app")
	if err := c.setListenerFlag("listen", "address", "metrics=udp://127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := New("app").plan(c, nil); err == nil || !strings.Contains(err.Error(), "wants connections") {
		t.Errorf("error %v", err)
	}
}
