package service

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
)

// documented reads the tables of docs/configuration.md: key to default and
// what changes it.
func documented(t *testing.T) map[string][2]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][2]string{}
	row := regexp.MustCompile("^\\| `([a-z_.]+)` \\| (.*?) \\| (reload|restart) \\| .+ \\|$")
	for line := range strings.Lines(string(text)) {
		if m := row.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			rows[m[1]] = [2]string{m[2], m[3]}
		} else if strings.HasPrefix(line, "| `") {
			t.Errorf("row not understood: %s", line)
		}
	}
	return rows
}

func changedBy(restart bool) string {
	if restart {
		return "restart"
	}
	return "reload"
}

func TestDocumentationHasEveryKey(t *testing.T) {
	rows := documented(t)
	check := func(key string, restart bool) {
		row, ok := rows[key]
		if !ok {
			t.Errorf("%s is not documented", key)
			return
		}
		if want := changedBy(restart); row[1] != want {
			t.Errorf("%s: documented as changed by %s, want %s", key, row[1], want)
		}
		delete(rows, key)
	}
	for _, s := range settings {
		check(s.key, s.restart)
	}
	for _, s := range listenerSettings {
		check(s.key, s.restart)
	}
	for key := range rows {
		t.Errorf("%s is documented, but is no key", key)
	}
}

// What the guides for those who come from elsewhere call is there.
func TestGuidesNameWhatThereIs(t *testing.T) {
	has := map[string]reflect.Type{
		"c": reflect.TypeFor[*Conn[int]](), "w": reflect.TypeFor[*Worker](), "s": reflect.TypeFor[*Service](), "p": reflect.TypeFor[*Datagram](),
		"t": reflect.TypeFor[*Timer](),
	}
	call := regexp.MustCompile(`\b([cwspt])\.([A-Z]\w*)`)
	for _, name := range []string{"from-workerman", "from-swoole", "dispatch"} {
		text, err := os.ReadFile("../../docs/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			of := has[m[1]]
			_, method := of.MethodByName(m[2])
			if _, field := of.Elem().FieldByName(m[2]); !method && !field {
				t.Errorf("%s: %s is neither method nor field of %v", name, m[0], of)
			}
		}
	}
}

// A documented default, set, changes nothing.
func TestDocumentedDefaultsAreTheDefaults(t *testing.T) {
	rows := documented(t)
	toml := func(key string) string {
		return strings.Trim(rows[key][0], "`")
	}
	for _, s := range settings {
		c, err := parse(s.key + " = " + toml(s.key))
		if err != nil {
			t.Errorf("%s: %v", s.key, err)
			continue
		}
		want := defaults("app")
		c.origin, want.origin = nil, nil
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s: documented default %s is not the default", s.key, toml(s.key))
		}
	}
	for key, want := range map[string]any{
		"max_message": conn.DefaultMaxMessage, "send_high": conn.DefaultSendHigh, "send_limit": conn.DefaultSendHard,
		"queue_depth": conn.DefaultQueueDepth, "first_byte_timeout": conn.DefaultFirstByte, "message_timeout": conn.DefaultMessage,
		"write_timeout": conn.DefaultWriteStall, "close_timeout": conn.DefaultClose,
	} {
		c, err := parse("listener.a." + key + " = " + toml(key))
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		l := c.Listeners["a"].limits(Limits{})
		got := map[string]any{
			"max_message": l.MaxMessage, "send_high": l.SendHigh, "send_limit": l.SendHard, "queue_depth": l.QueueDepth,
			"first_byte_timeout": l.FirstByte, "message_timeout": l.Message, "write_timeout": l.WriteStall, "close_timeout": l.Close,
		}[key]
		if got != want {
			t.Errorf("%s: documented default %s is %v, want %v", key, toml(key), got, want)
		}
	}
	if got := toml("idle_timeout"); got != `"none"` || noTimeout >= time.Duration(0) {
		t.Errorf("idle_timeout: documented default %s", got)
	}
}
