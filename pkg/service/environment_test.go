package service

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEveryKeyWrongInTheEnvironmentIsNamed(t *testing.T) {
	for _, s := range settings {
		checkWrongVariable(t, envName("APP_", s.key), s.key, s.want)
	}
	for _, s := range listenerSettings {
		checkWrongVariable(t, envName("APP_LISTENER_A_B_", s.key), "listener.a-b."+s.key, s.want)
	}
}

// checkWrongVariable sets a variable to nothing, which no key takes.
func checkWrongVariable(t *testing.T, variable, key, want string) {
	t.Helper()
	c := defaults("app")
	err := c.readEnv("APP_", map[string]string{variable: ""}, nil)
	if prefix := fmt.Sprintf(`%s: key %q: got "", want %s`, variable, key, want); err == nil || !strings.HasPrefix(err.Error(), prefix) {
		t.Errorf("got %v, want %s", err, prefix)
	}
}

func TestEveryKeyWrongInAPoolsTableIsNamed(t *testing.T) {
	for _, s := range settings {
		want := fmt.Sprintf(`app.toml:2: key "pool.worker.%s": got "", want %s`, s.key, s.want)
		if !ofPool(s.key) {
			want = fmt.Sprintf(`app.toml:2: key "pool.worker.%s": unknown key`, s.key)
		}
		if _, err := parse("\npool.worker." + s.key + ` = ""`); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestPoolsTableSetsWhatTheTopDoes(t *testing.T) {
	got, err := parse("[pool.worker]\nworkers = 3\ngrace = \"2s\"\nreload.bake = \"3s\"\n[pool.worker.respawn]\nfirst = \"1s\"\n")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults("app")
	want.Workers, want.Grace, want.Bake, want.RespawnFirst = 3, 2*time.Second, 3*time.Second, time.Second
	if diff := cmp.Diff(want, got, ignoreOrigin); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got.origin["grace"] != "app.toml:3" {
		t.Errorf("grace comes from %q", got.origin["grace"])
	}
}

func TestWrongPoolIsTold(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"pool = 3", `app.toml:1: key "pool": got 3, want tables [pool.NAME]`},
		{"pool.worker = 3", `app.toml:1: key "pool.worker": got 3, want a table [pool.worker]`},
		{"pool.worker.reload = 3", `app.toml:1: key "pool.worker.reload": got 3, want a table [pool.worker.reload]`},
		{"pool.task.workers = 3", `app.toml:1: key "pool.task": no pool "task", there is "worker"`},
		{"workers = 2\npool.worker.workers = 3", `app.toml:2: key "pool.worker.workers": workers is set at app.toml:1: want it in one place`},
	} {
		if _, err := parse(tt.text); err == nil || err.Error() != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %s", tt.text, err, tt.want)
		}
	}
}

func TestVariablesOfListenersFindTheirListener(t *testing.T) {
	tests := []struct {
		name  string
		env   map[string]string
		known []string
		file  string
		want  map[string]listenerConfig
		err   string
	}{
		{name: "a new one", env: map[string]string{"APP_LISTENER_ECHO_ADDRESS": "tcp://127.0.0.1:1"},
			want: map[string]listenerConfig{"echo": {Address: "tcp://127.0.0.1:1"}}},
		{name: "hyphens", env: map[string]string{"APP_LISTENER_TEXT_ECHO_IDLE_TIMEOUT": "5s"},
			want: map[string]listenerConfig{"text-echo": {IdleTimeout: 5 * time.Second}}},
		{name: "a known name with other signs", env: map[string]string{"APP_LISTENER_B_C_SERVE": "echo"}, known: []string{"b.C"},
			want: map[string]listenerConfig{"b.C": {Serve: "echo"}}},
		{name: "over the file", env: map[string]string{"APP_LISTENER_A_B_QUEUE_DEPTH": "3", "APP_LISTENER_A_B_INLINE": "false"}, file: "listener.a_b = {queue_depth = 2, serve = \"echo\"}",
			want: map[string]listenerConfig{"a_b": {QueueDepth: 3, Serve: "echo", Inline: new(bool)}}},
		{name: "sizes", env: map[string]string{"APP_LISTENER_A_MAX_MESSAGE": "2KiB"},
			want: map[string]listenerConfig{"a": {MaxMessage: 2048}}},
		{name: "two that are written alike", env: map[string]string{"APP_LISTENER_A_B_SERVE": "echo"}, known: []string{"a-b", "a_b"},
			err: "APP_LISTENER_A_B_SERVE: may mean each of the listeners a-b, a_b: set it in the file"},
		{name: "no key", env: map[string]string{"APP_LISTENER_A_PORT": "80"},
			err: "APP_LISTENER_A_PORT: ends with no key of a listener: want APP_LISTENER_NAME_KEY"},
		{name: "no name", env: map[string]string{"APP_LISTENER_SERVE": "echo"},
			err: "APP_LISTENER_SERVE: ends with no key of a listener: want APP_LISTENER_NAME_KEY"},
		{name: "the application's own", env: map[string]string{"APP_LISTENERS": "80"}, want: map[string]listenerConfig{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parse(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			err = c.readEnv("APP_", tt.env, tt.known)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, c.Listeners); diff != "" || err != nil {
				t.Errorf("%v, -want +got:\n%s", err, diff)
			}
		})
	}
}

func FuzzListenerVariable(f *testing.F) {
	for _, s := range listenerSettings {
		f.Add(envName("A_", s.key), "1")
	}
	f.Add("_SERVE", "echo")
	f.Fuzz(func(t *testing.T, rest, value string) {
		c := defaults("app")
		if err := c.readEnv("APP_", map[string]string{"APP_LISTENER_" + rest: value}, []string{"a.b"}); err != nil {
			if !strings.HasPrefix(err.Error(), "APP_LISTENER_"+rest+": ") {
				t.Errorf("error without the variable: %v", err)
			}
			return
		}
		for name := range c.Listeners {
			if err := checkListenerName(name); err != nil {
				t.Error(err)
			}
		}
	})
}
