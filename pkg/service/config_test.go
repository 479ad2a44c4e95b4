package service

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var ignoreOrigin = cmpopts.IgnoreUnexported(config{})

func parse(text string) (config, error) {
	c := defaults("app")
	err := c.parse("app.toml", []byte(text))
	if err == nil {
		err = c.check()
	}
	return c, err
}

func TestFileSetsEveryKey(t *testing.T) {
	got, err := parse(`
workers = 3
control = "unix:///tmp/x.sock"
start_timeout = "1m"
start_attempts = 4
grace = "2s"
stop_grace = "3s"
max_old = 5
hang_timeout = "10s"
handler_timeout = "11s"
memory_soft = "12MiB"
memory_hard = "13MiB"
max_requests = 14
max_age = "15h"
rebalance = "after-change"
rebalance_rate = 16
on_worker_error = ["/bin/tell", "it is dead"]

[reload]
parallel = 6
bake = "7s"

[respawn]
first = "1s"
max = "9s"

[log]
level = "debug"
format = "json"

[listener.a]
address = "tcp://127.0.0.1:80"
serve = "echo"
inline = true
movable = true
dispatch = "hash-id"
max_message = 1000
send_high = "2KiB"
send_low = "1KiB"
send_limit = "1MiB"
queue_depth = 7
max_running = 12
max_waiting = 13
max_connections = 8
max_connections_per_peer = 9
accept_rate = 10
accept_burst = 11
auth_timeout = "5s"
read_idle_timeout = "6s"
write_idle_timeout = "7s"
first_byte_timeout = "1s"
message_timeout = "2s"
idle_timeout = "3s"
write_timeout = "4s"
close_timeout = "none"
origins = ["https://*.example.com", "null"]
compress_above = "1KiB"
ping_interval = "8s"
pong_timeout = "9s"
handshake_timeout = "8s"
proxy_protocol = ["10.0.0.0/8", "unix"]

[listener.a.tls]
cert = "/etc/a/cert.pem"
key = "credential:a.key"
client_ca = "/etc/a/ca.pem"
client_auth = "request"
min_version = "1.3"
alpn = ["a/1"]
ktls = true

[[listener.a.tls.certificate]]
cert = "/etc/a/other.pem"
key = "/etc/a/other.key"

[listener."b.c"]
serve = "discard"
`)
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	want := config{
		Workers: 3, Control: "unix:///tmp/x.sock", StartTimeout: time.Minute, StartAttempts: 4,
		Grace: 2 * time.Second, StopGrace: 3 * time.Second, MaxOld: 5, Parallel: 6, Bake: 7 * time.Second,
		RespawnFirst: time.Second, RespawnMax: 9 * time.Second, OnWorkerError: []string{"/bin/tell", "it is dead"}, LogLevel: "debug", LogFormat: "json",
		HangTimeout: 10 * time.Second, HandlerTimeout: 11 * time.Second, MemorySoft: 12 << 20, MemoryHard: 13 << 20, MaxRequests: 14, MaxAge: 15 * time.Hour,
		Rebalance: "after-change", RebalanceRate: 16,
		Listeners: map[string]listenerConfig{
			"a": {
				Address: "tcp://127.0.0.1:80", Serve: "echo", Inline: &yes, Movable: &yes, Dispatch: "hash-id", MaxMessage: 1000,
				SendHigh: 2048, SendLow: 1024, SendLimit: 1 << 20, QueueDepth: 7, MaxRunning: 12, MaxWaiting: 13,
				MaxConnections: 8, MaxConnectionsPerPeer: 9, AcceptRate: 10, AcceptBurst: 11,
				AuthTimeout: 5 * time.Second, ReadIdleTimeout: 6 * time.Second, WriteIdleTimeout: 7 * time.Second,
				FirstByteTimeout: time.Second, MessageTimeout: 2 * time.Second, IdleTimeout: 3 * time.Second,
				WriteTimeout: 4 * time.Second, CloseTimeout: noTimeout, HandshakeTimeout: 8 * time.Second,
				Origins: []string{"https://*.example.com", "null"}, CompressAbove: 1024, PingInterval: 8 * time.Second, PongTimeout: 9 * time.Second,
				ProxyProtocol: []string{"10.0.0.0/8", "unix"},
				TLS: tlsConfig{
					Cert: "/etc/a/cert.pem", Key: "credential:a.key", ClientCA: "/etc/a/ca.pem", ClientAuth: "request", MinVersion: "1.3",
					ALPN: []string{"a/1"}, KTLS: true, Certificates: []certificateFiles{{"/etc/a/other.pem", "/etc/a/other.key"}},
				},
			},
			"b.c": {Serve: "discard"},
		},
	}
	if diff := cmp.Diff(want, got, ignoreOrigin); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, s := range settings {
		if got.origin[s.key] == "" {
			t.Errorf("%s is set nowhere in this test", s.key)
		}
	}
	for _, s := range listenerSettings {
		if got.origin["listener.a."+s.key] == "" {
			t.Errorf("listener.a.%s is set nowhere in this test", s.key)
		}
	}
}

// wrongKeys are files with one fault each; it is on line 3.
var wrongKeys = []struct {
	name  string
	lines string
	want  string // behind "app.toml:3: "
}{
	{"unknown key", "wrokers = 2", `key "wrokers": unknown key`},
	{"unknown table", "[nothing]", `key "nothing": unknown key`},
	{"unknown key of a table", "log.colour = true", `key "log.colour": unknown key`},
	{"unknown key of a listener", `listener.a.port = 80`, `key "listener.a.port": unknown key`},
	{"table for a value", "[workers]", `key "workers": got a table, want a number from 0 to 256`},
	{"value for a table", "reload = 3", `key "reload": got 3, want a table [reload]`},
	{"array of listeners", "[[listener]]", `key "listener": got an array, want tables [listener.NAME]`},
	{"listener is a value", `listener.a = "echo"`, `key "listener.a": got "echo", want a table [listener.NAME]`},
	{"listener's name", `[listener."a b"]`, `key "listener.a b": listener "a b": has ' ', want printable ASCII without space, colon, quote, slash and equals sign`},
	{"workers", `workers = "2"`, `key "workers": got "2", want a number from 0 to 256`},
	{"workers", `workers = 257`, `key "workers": got 257, want a number from 0 to 256`},
	{"workers", `workers = -1`, `key "workers": got -1, want a number from 0 to 256`},
	{"workers", `workers = 1.5`, `key "workers": got 1.5, want a number from 0 to 256`},
	{"control", `control = "/run/x"`, `key "control": got "/run/x", want unix:///PATH`},
	{"start_timeout", `start_timeout = 30`, `key "start_timeout": got 30, want a duration such as "30s", from 100ms to 1h`},
	{"start_timeout", `start_timeout = "30"`, `key "start_timeout": got "30", want a duration such as "30s", from 100ms to 1h`},
	{"start_attempts", `start_attempts = 0`, `key "start_attempts": got 0, want a number from 1 to 100`},
	{"grace", `grace = "-1s"`, `key "grace": got "-1s", want a duration such as "30s", from 1ms to 24h`},
	{"stop_grace", `stop_grace = false`, `key "stop_grace": got false, want a duration such as "30s", from 1ms to 1h`},
	{"max_old", `max_old = 17`, `key "max_old": got 17, want a number from 1 to 16`},
	{"reload.parallel", `reload.parallel = 0`, `key "reload.parallel": got 0, want a number from 1 to 256`},
	{"reload.bake", `reload.bake = "2h"`, `key "reload.bake": got "2h", want a duration such as "30s", from 0s to 1h`},
	{"respawn.first", `respawn.first = ""`, `key "respawn.first": got "", want a duration such as "30s", from 1ms to 1h`},
	{"respawn.max", `respawn.max = []`, `key "respawn.max": got an array, want a duration such as "30s", from 1ms to 1h`},
	{"respawn.first over respawn.max", `respawn.first = "31s"`, `key "respawn.first": respawn.first is 31s, want at most respawn.max, which is 30s`},
	{"hang_timeout", `hang_timeout = "0s"`, `key "hang_timeout": got "0s", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"handler_timeout", `handler_timeout = 5`, `key "handler_timeout": got 5, want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"memory_soft", `memory_soft = "2TiB"`, `key "memory_soft": got "2TiB", want bytes, or a size such as "1MiB", up to 1024GiB`},
	{"memory_hard", `memory_hard = -1`, `key "memory_hard": got -1, want bytes, or a size such as "1MiB", up to 1024GiB`},
	{"memory_soft over memory_hard", "memory_soft = 2\nmemory_hard = 1", `key "memory_soft": memory_soft is 2, want at most memory_hard, which is 1`},
	{"max_requests", `max_requests = -1`, `key "max_requests": got -1, want a number from 0 to 1099511627776`},
	{"max_age", `max_age = "1d"`, `key "max_age": got "1d", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"rebalance", `rebalance = true`, `key "rebalance": got true, want one of off, after-change`},
	{"rebalance", `rebalance = "always"`, `key "rebalance": got "always", want one of off, after-change`},
	{"rebalance_rate", `rebalance_rate = 0`, `key "rebalance_rate": got 0, want a number from 1 to 1000000`},
	{"on_worker_error", `on_worker_error = "/bin/tell"`, `key "on_worker_error": got "/bin/tell", want a program and its arguments such as ["/usr/bin/notify", "worker"]`},
	{"on_worker_error", `on_worker_error = ["/bin/tell", 3]`, `key "on_worker_error": got an array, want a program and its arguments such as ["/usr/bin/notify", "worker"]`},
	{"on_worker_error", `on_worker_error = [""]`, `key "on_worker_error": got an array, want a program and its arguments such as ["/usr/bin/notify", "worker"]`},
	{"log.level", `log.level = "loud"`, `key "log.level": got "loud", want one of debug, info, warn, error`},
	{"log.format", `log.format = 1`, `key "log.format": got 1, want one of auto, journal, text, json`},
	{"address", `listener.a.address = "tcp://localhost:1"`, `key "listener.a.address": got "tcp://localhost:1", want tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH, unixgram:///PATH or unixpacket:///PATH: activation: `},
	{"address", `listener.a.address = 80`, `key "listener.a.address": got 80, want tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH, unixgram:///PATH or unixpacket:///PATH`},
	{"serve", `listener.a.serve = ""`, `key "listener.a.serve": got "", want the name of a kind`},
	{"inline", `listener.a.inline = "yes"`, `key "listener.a.inline": got "yes", want true or false`},
	{"movable", `listener.a.movable = 1`, `key "listener.a.movable": got 1, want true or false`},
	{"dispatch", `listener.a.dispatch = "random"`, `key "listener.a.dispatch": got "random", want one of shared, round-robin, least-connections, hash-ip, hash-id`},
	{"max_message", `listener.a.max_message = 0`, `key "listener.a.max_message": got 0, want bytes, or a size such as "1MiB", up to 1GiB`},
	{"max_message", `listener.a.max_message = "1MB"`, `key "listener.a.max_message": got "1MB", want bytes, or a size such as "1MiB", up to 1GiB`},
	{"send_high", `listener.a.send_high = "2GiB"`, `key "listener.a.send_high": got "2GiB", want bytes, or a size such as "1MiB", up to 1GiB`},
	{"send_low", `listener.a.send_low = true`, `key "listener.a.send_low": got true, want bytes, or a size such as "1MiB", up to 1GiB`},
	{"send_low over send_high", `listener.a.send_low = "2MiB"`, `key "listener.a.send_low": send_low is 2097152, want at most send_high, which is 1048576`},
	{"send_limit", `listener.a.send_limit = "-1B"`, `key "listener.a.send_limit": got "-1B", want bytes, or a size such as "1MiB", up to 1GiB`},
	{"send_high over send_limit", `listener.a = {send_high = "2MiB", send_limit = "1MiB"}`, `key "listener.a.send_high": send_high is 2097152, want at most send_limit, which is 1048576`},
	{"queue_depth", `listener.a.queue_depth = "many"`, `key "listener.a.queue_depth": got "many", want a number from 1 to 1048576`},
	{"first_byte_timeout", `listener.a.first_byte_timeout = "0s"`, `key "listener.a.first_byte_timeout": got "0s", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"message_timeout", `listener.a.message_timeout = 1`, `key "listener.a.message_timeout": got 1, want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"idle_timeout", `listener.a.idle_timeout = "never"`, `key "listener.a.idle_timeout": got "never", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"write_timeout", `listener.a.write_timeout = "721h"`, `key "listener.a.write_timeout": got "721h", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"close_timeout", `listener.a.close_timeout = {}`, `key "listener.a.close_timeout": got a table, want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"max_running", `listener.a.max_running = 0`, `key "listener.a.max_running": got 0, want a number from 1 to 1048576`},
	{"max_waiting", `listener.a.max_waiting = "all"`, `key "listener.a.max_waiting": got "all", want a number from 1 to 1048576`},
	{"max_connections", `listener.a.max_connections = 0`, `key "listener.a.max_connections": got 0, want a number from 1 to 1048576`},
	{"max_connections_per_peer", `listener.a.max_connections_per_peer = "x"`, `key "listener.a.max_connections_per_peer": got "x", want a number from 1 to 1048576`},
	{"accept_rate", `listener.a.accept_rate = 0.5`, `key "listener.a.accept_rate": got 0.5, want a number from 1 to 1048576`},
	{"accept_burst", `listener.a.accept_burst = -1`, `key "listener.a.accept_burst": got -1, want a number from 1 to 1048576`},
	{"accept_burst without accept_rate", `listener.a.accept_burst = 5`, `key "listener.a.accept_burst": accept_burst without accept_rate`},
	{"auth_timeout", `listener.a.auth_timeout = 10`, `key "listener.a.auth_timeout": got 10, want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"read_idle_timeout", `listener.a.read_idle_timeout = ""`, `key "listener.a.read_idle_timeout": got "", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"write_idle_timeout", `listener.a.write_idle_timeout = "1us"`, `key "listener.a.write_idle_timeout": got "1us", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"origins", `listener.a.origins = "*"`, `key "listener.a.origins": got "*", want origins such as ["https://*.example.com"]`},
	{"compress_above", `listener.a.compress_above = 0`, `key "listener.a.compress_above": got 0, want bytes, or a size such as "1MiB", up to 1GiB`},
	{"ping_interval", `listener.a.ping_interval = "off"`, `key "listener.a.ping_interval": got "off", want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"pong_timeout", `listener.a.pong_timeout = "none"`, `key "listener.a.pong_timeout": got "none", want a duration such as "30s", from 1ms to 1h`},
	{"handshake_timeout", `listener.a.handshake_timeout = 10`, `key "listener.a.handshake_timeout": got 10, want a duration such as "30s", from 1ms to 720h, or "none"`},
	{"proxy_protocol", `listener.a.proxy_protocol = "10.0.0.0/8"`, `key "listener.a.proxy_protocol": got "10.0.0.0/8", want addresses of proxies such as ["10.0.0.0/8", "unix"]`},
	{"proxy_protocol", `listener.a.proxy_protocol = ["10.0.0.1/8"]`, `key "listener.a.proxy_protocol": got an array, want addresses of proxies such as ["10.0.0.0/8", "unix"]: proxyproto: trusted "10.0.0.1/8": bits behind the prefix, did you mean 10.0.0.0/8`},
	{"unknown key of TLS", `listener.a.tls.ca = "/a"`, `key "listener.a.tls.ca": unknown key`},
	{"TLS is a value", `listener.a.tls = true`, `key "listener.a.tls": got true, want a table [listener.a.tls]`},
	{"tls.cert", `listener.a.tls.cert = "cert.pem"`, `key "listener.a.tls.cert": got "cert.pem", want an absolute path, or credential:NAME`},
	{"tls.key", `listener.a.tls.key = "credential:../x"`, `key "listener.a.tls.key": got "credential:../x", want an absolute path, or credential:NAME`},
	{"tls.client_ca", `listener.a.tls.client_ca = 1`, `key "listener.a.tls.client_ca": got 1, want an absolute path, or credential:NAME`},
	{"tls.client_auth", `listener.a.tls.client_auth = "maybe"`, `key "listener.a.tls.client_auth": got "maybe", want one of none, request, require`},
	{"tls.min_version", `listener.a.tls.min_version = "1.1"`, `key "listener.a.tls.min_version": got "1.1", want one of 1.2, 1.3`},
	{"tls.ktls", `listener.a.tls.ktls = "yes"`, `key "listener.a.tls.ktls": got "yes", want true or false`},
	{"tls.alpn", `listener.a.tls.alpn = [""]`, `key "listener.a.tls.alpn": got an array, want names such as ["h2", "http/1.1"]`},
	{"tls.certificate", `listener.a.tls.certificate = [{cert = "/a"}]`, `key "listener.a.tls.certificate": got an array, want tables [[listener.NAME.tls.certificate]] with cert and key: number 1: want both cert and key`},
	{"tls.certificate", `listener.a.tls.certificate = [{cert = "/a", key = "b"}]`, `key "listener.a.tls.certificate": got an array, want tables [[listener.NAME.tls.certificate]] with cert and key: number 1: key: got "b", want an absolute path, or credential:NAME`},
	{"tls.certificate", `listener.a.tls.certificate = [{name = "/a"}]`, `key "listener.a.tls.certificate": got an array, want tables [[listener.NAME.tls.certificate]] with cert and key: number 1: unknown key "name"`},
	{"tls.cert without tls.key", `listener.a.tls.cert = "/a"`, `key "listener.a.tls.cert": cert without key: want both`},
	{"tls without a certificate", `listener.a.tls.min_version = "1.3"`, `key "listener.a.tls.min_version": TLS without a certificate: want cert and key`},
	{"tls.client_auth without authorities", `listener.a.tls = {cert = "/a", key = "/b", client_auth = "require"}`, `key "listener.a.tls.client_auth": client_auth is "require" without client_ca: want the authorities whose certificates are accepted`},
	{"authorities for nothing", `listener.a.tls = {cert = "/a", key = "/b", client_ca = "/c", client_auth = "none"}`, `key "listener.a.tls.client_auth": client_auth is "none" with client_ca: want "request" or "require"`},
	{"no TOML", `workers 2`, ``},
	{"key twice", `start_attempts = 1`, ``},
}

func TestFaultInTheFileIsToldWithLineAndKey(t *testing.T) {
	for _, tt := range wrongKeys {
		t.Run(tt.lines, func(t *testing.T) {
			_, err := parse("# a comment\n" + map[bool]string{true: "start_attempts = 2"}[tt.name == "key twice"] + "\n" + tt.lines + "\n")
			if err == nil {
				t.Fatal("no error")
			}
			if want := "app.toml:3: " + tt.want; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
	for _, s := range settings {
		if !tested(s.key) {
			t.Errorf("no test for a wrong value of %s", s.key)
		}
	}
	for _, s := range listenerSettings {
		if !tested(s.key) {
			t.Errorf("no test for a wrong value of %s of a listener", s.key)
		}
	}
}

func tested(key string) bool {
	for _, tt := range wrongKeys {
		if tt.name == key {
			return true
		}
	}
	return false
}

func TestEnvironmentGoesOverTheFileAndFlagsOverBoth(t *testing.T) {
	s := New("app")
	path := filepath.Join(t.TempDir(), "app.toml")
	if err := os.WriteFile(path, []byte("workers = 2\ngrace = \"2s\"\nmax_old = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"APP_WORKERS": "3", "APP_GRACE": "3s", "APP_SECRET": "not ours", "APP_RELOAD_BAKE": "0s"}
	flags := runFlags{config: path, set: []flagValue{
		{flag: "workers", key: "workers", value: "4"},
		{flag: "listen", key: "address", value: "a=unix:///tmp/a.sock?mode=0600", listener: true},
		{flag: "serve", key: "serve", value: "a=echo", listener: true},
	}}
	c, err := s.load(flags, env)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults("app")
	want.Workers, want.Grace, want.MaxOld, want.Bake = 4, 3*time.Second, 2, 0
	want.Listeners = map[string]listenerConfig{"a": {Address: "unix:///tmp/a.sock?mode=0600", Serve: "echo"}}
	if diff := cmp.Diff(want, c, ignoreOrigin); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFaultInTheEnvironmentNamesTheVariable(t *testing.T) {
	for _, tt := range []struct{ name, value, want string }{
		{"APP_WORKERS", "many", `APP_WORKERS: key "workers": got "many", want a number from 0 to 256`},
		{"APP_RELOAD_BAKE", "1", `APP_RELOAD_BAKE: key "reload.bake": got "1", want a duration such as "30s", from 0s to 1h`},
		{"APP_LOG_LEVEL", "", `APP_LOG_LEVEL: key "log.level": got "", want one of debug, info, warn, error`},
		{"APP_CONTROL", "tcp://x", `APP_CONTROL: key "control": got "tcp://x", want unix:///PATH`},
	} {
		c := defaults("app")
		err := c.readEnv("APP_", map[string]string{tt.name: tt.value}, nil)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s=%q: got %v, want %s", tt.name, tt.value, err, tt.want)
		}
	}
}

func TestFaultInAFlagIsAUsageErrorThatNamesIt(t *testing.T) {
	s := New("app")
	for _, tt := range []struct {
		flag flagValue
		want string
	}{
		{flagValue{"workers", "workers", "x", false}, `--workers: got "x", want a number from 0 to 256`},
		{flagValue{"grace", "grace", "5", false}, `--grace: got "5", want a duration such as "30s", from 1ms to 24h`},
		{flagValue{"listen", "address", "tcp://127.0.0.1:1", true}, `--listen: got "tcp://127.0.0.1:1", want NAME=URL`},
		{flagValue{"listen", "address", "=tcp://127.0.0.1:1", true}, `--listen "=tcp://127.0.0.1:1": a listener's name of 0 bytes, want 1 to 64`},
		{flagValue{"listen", "address", "a=:80", true}, `--listen a: got ":80", want tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH, unixgram:///PATH or unixpacket:///PATH: activation: ":80": want tcp://HOST:PORT, udp://HOST:PORT or unix:///PATH`},
		{flagValue{"serve", "serve", "a", true}, `--serve: got "a", want NAME=KIND`},
		{flagValue{"serve", "serve", "a=", true}, `--serve a: got "", want the name of a kind`},
	} {
		_, err := s.load(runFlags{set: []flagValue{tt.flag}}, nil)
		if _, ok := errors.AsType[usageError](err); !ok || err.Error() != tt.want {
			t.Errorf("--%s %s: got %v, want the usage error %s", tt.flag.flag, tt.flag.value, err, tt.want)
		}
	}
}

func TestFileThatIsNamedMustBeThere(t *testing.T) {
	s := New("app")
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := s.load(runFlags{config: path}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want one that says it does not exist", err)
	}
	if err := os.Truncate(path, 0); err == nil {
		t.Fatal("the file is there")
	}
	if err := os.WriteFile(path, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(runFlags{config: path}, nil); err == nil || !strings.Contains(err.Error(), "want at most") {
		t.Errorf("got %v, want one that says it is too large", err)
	}
}

func TestWorkersGetTheirConfigurationUnchanged(t *testing.T) {
	c, err := parse("grace = \"5s\"\n[listener.a]\ninline = false\nidle_timeout = \"none\"\nmax_message = 7\n")
	if err != nil {
		t.Fatal(err)
	}
	settings, err := c.settings()
	if err != nil {
		t.Fatal(err)
	}
	var got workerConfig
	if err := json.Unmarshal(settings.Worker, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Listeners, got.Listeners); diff != "" || got.Grace != 5*time.Second {
		t.Errorf("grace %v, listeners -want +got:\n%s", got.Grace, diff)
	}
	if settings.Workers < 1 {
		t.Errorf("%d workers, want one for each CPU", settings.Workers)
	}
}

func FuzzConfig(f *testing.F) {
	for _, tt := range wrongKeys {
		f.Add(tt.lines)
	}
	f.Add("[listener.a]\nserve = \"echo\"\n[reload]\nbake = \"1s\"\n")
	line := regexp.MustCompile(`^app\.toml:[1-9][0-9]*: `)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if err != nil {
			if !line.MatchString(err.Error()) {
				t.Errorf("error without file and line: %v", err)
			}
			return
		}
		if _, err := c.settings(); err != nil {
			t.Errorf("accepted, but: %v", err)
		}
		for name, l := range c.Listeners {
			if err := checkListenerName(name); err != nil {
				t.Error(err)
			}
			if m := l.withSizes(); m.SendLow > m.SendHigh || m.SendHigh > m.SendLimit {
				t.Errorf("accepted %+v", l)
			}
		}
	})
}

func TestCommandIsAnArrayInTheEnvironmentToo(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  []string
		ok    bool
	}{
		{`["/bin/tell", "it is \"dead\""]`, []string{"/bin/tell", `it is "dead"`}, true},
		{`[]`, nil, true},
		{`/bin/tell`, nil, false},
		{`["/bin/tell"] x`, nil, false},
		{`[1]`, nil, false},
		{``, nil, false},
	} {
		c := defaults("app")
		err := c.readEnv("APP_", map[string]string{"APP_ON_WORKER_ERROR": tt.value}, nil)
		if (err == nil) != tt.ok || !cmp.Equal(c.OnWorkerError, tt.want) {
			t.Errorf("%s: got %q, %v, want %q", tt.value, c.OnWorkerError, err, tt.want)
		}
	}
}
