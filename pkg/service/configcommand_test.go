package service

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

// everything is a file that sets each key to something.
const everything = `workers = 3
control = "unix:///tmp/x.sock"
start_timeout = "1m"
start_attempts = 4
grace = "2s"
stop_grace = "1m1s"
max_old = 5
reload.parallel = 6
reload.bake = "0s"
respawn.first = "1s"
respawn.max = "9s"
log.level = "debug"
log.format = "json"

[listener.a]
address = "tcp://127.0.0.1:80"
serve = "echo"
inline = true
max_message = 1000
send_high = "2KiB"
send_low = "1KiB"
send_limit = "1MiB"
queue_depth = 7
max_running = 12
max_waiting = 13
first_byte_timeout = "1s"
message_timeout = "2s"
idle_timeout = "720h"
write_timeout = "1.5s"
close_timeout = "none"

[listener."b.c"]
serve = "discard"
`

func TestShownConfigurationIsTheSameWhenItIsRead(t *testing.T) {
	c, err := parse(everything)
	if err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	if err := writeConfig(&shown, c.shown()); err != nil {
		t.Fatal(err)
	}
	again, err := parse(shown.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, &shown)
	}
	if diff := cmp.Diff(c, again, ignoreOrigin); diff != "" {
		t.Errorf("-set +shown:\n%s", diff)
	}
}

func TestShownConfigurationSaysWhereEachValueComesFrom(t *testing.T) {
	s := New("app")
	s.Kind("echo", HTTP{})
	path := filepath.Join(t.TempDir(), "app.toml")
	if err := os.WriteFile(path, []byte("workers = 2\ngrace = \"2s\"\n[pool.worker]\nmax_old = 3\n[listener.echo]\nidle_timeout = \"1m\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APP_GRACE", "3s")
	t.Setenv("APP_LISTENER_ECHO_MESSAGE_TIMEOUT", "4s")
	c, err := s.checked(runFlags{config: path, set: []flagValue{{flag: "log-level", key: "log.level", value: "debug"}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range c.shown() {
		if v.Source != "default" {
			got = append(got, v.Key+" = "+v.Value+" from "+strings.TrimPrefix(v.Source, filepath.Dir(path)+"/"))
		}
	}
	want := []string{
		"workers = 2 from app.toml:1", `grace = "3s" from APP_GRACE`, "max_old = 3 from app.toml:4", `log.level = "debug" from --log-level`,
		`listener.echo.message_timeout = "4s" from APP_LISTENER_ECHO_MESSAGE_TIMEOUT`, `listener.echo.idle_timeout = "1m" from app.toml:6`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEveryDefaultIsShown(t *testing.T) {
	c := defaults("app")
	values := c.shown()
	if len(values) != len(settings) {
		t.Errorf("%d values, want %d", len(values), len(settings))
	}
	for _, v := range values {
		if v.Source != "default" || v.Value == "" || v.Value == `""` {
			t.Errorf("%+v", v)
		}
	}
}

func TestWhatOnlyARestartChangesIsNoted(t *testing.T) {
	s := New("app")
	s.Kind("echo", Raw[struct{}]{})
	first, err := parse("listener.echo.address = \"tcp://127.0.0.1:1\"")
	if err != nil {
		t.Fatal(err)
	}
	now, err := parse("control = \"unix:///tmp/x\"\nlog.format = \"json\"\nlistener.echo.address = \"tcp://127.0.0.1:2\"")
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{service: s, first: first, plan: []planned{{name: "echo"}}, log: zap.NewNop()}
	got, err := l.fits(now)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`only a restart changes listener.echo.address (app.toml:3): it stays "tcp://127.0.0.1:1", not "tcp://127.0.0.1:2"`,
		`only a restart changes control (app.toml:1): it stays "unix:///run/app/control.sock", not "unix:///tmp/x"`,
		`only a restart changes log.format for the supervisor: it stays "auto", the workers get "json"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got, err := l.fits(first); err != nil || len(got) != 0 {
		t.Errorf("nothing has changed, but %q, %v", got, err)
	}
}
