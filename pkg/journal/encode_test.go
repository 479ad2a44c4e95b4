package journal

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestKeysBecomeValidFieldNames(t *testing.T) {
	tests := []struct{ key, want string }{
		{"worker", "WORKER"},
		{"WORKER", "WORKER"},
		{"message_id", "MESSAGE_ID"},
		{"errorVerbose", "ERROR_VERBOSE"},
		{"connID", "CONN_ID"},
		{"peer.port", "PEER_PORT"},
		{"app/worker", "APP_WORKER"},
		{"a b-c", "A_B_C"},
		{"__cursor", "CURSOR"},
		{"_pid", "PID"},
		{"99problems", "X99PROBLEMS"},
		{"_9", "X9"},
		{"größe", "GR____E"},
		{"", "FIELD"},
		{"___", "FIELD"},
		{"message", "FIELD_MESSAGE"},
		{"priority", "FIELD_PRIORITY"},
		{"code.file", "FIELD_CODE_FILE"},
		{strings.Repeat("x", 100), strings.Repeat("X", 64)},
		{strings.Repeat("x", 63) + "Y", strings.Repeat("X", 63) + "_"},
		{"1" + strings.Repeat("x", 63), "X1" + strings.Repeat("X", 62)},
	}
	for _, tt := range tests {
		t.Run(tt.key, func(t *testing.T) {
			got := fieldName(tt.key)
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if err := checkFieldName(got); err != nil {
				t.Error(err)
			}
		})
	}
}

type address struct {
	host string
	port int
}

func (a address) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("host", a.host)
	e.AddInt("port", a.port)
	return nil
}

func TestValuesOfEveryKind(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6000000, time.UTC)
	tests := []struct {
		name  string
		field zap.Field
		want  string // the native fields
		text  string
	}{
		{"string", zap.String("k", "a=b"), "K=a=b\n", ` k="a=b"`},
		{"empty", zap.String("k", ""), "K=\n", ` k=""`},
		{"bytes", zap.ByteString("k", []byte("ab")), "K=ab\n", ` k=ab`},
		{"binary", zap.Binary("k", []byte{0xff, '\n', 0}), "K\n\x03\x00\x00\x00\x00\x00\x00\x00\xff\n\x00\n", "\n    k:\n      \uFFFD\n      \uFFFD"},
		{"bool", zap.Bool("k", true), "K=true\n", ` k=true`},
		{"int", zap.Int("k", -1), "K=-1\n", ` k=-1`},
		{"int8", zap.Int8("k", -8), "K=-8\n", ` k=-8`},
		{"int16", zap.Int16("k", -16), "K=-16\n", ` k=-16`},
		{"int32", zap.Int32("k", -32), "K=-32\n", ` k=-32`},
		{"int64", zap.Int64("k", -64), "K=-64\n", ` k=-64`},
		{"uint", zap.Uint("k", 1), "K=1\n", ` k=1`},
		{"uint8", zap.Uint8("k", 8), "K=8\n", ` k=8`},
		{"uint16", zap.Uint16("k", 16), "K=16\n", ` k=16`},
		{"uint32", zap.Uint32("k", 32), "K=32\n", ` k=32`},
		{"uint64", zap.Uint64("k", 1<<63), "K=9223372036854775808\n", ` k=9223372036854775808`},
		{"uintptr", zap.Uintptr("k", 7), "K=7\n", ` k=7`},
		{"float64", zap.Float64("k", 0.25), "K=0.25\n", ` k=0.25`},
		{"float32", zap.Float32("k", 0.1), "K=0.1\n", ` k=0.1`},
		{"complex128", zap.Complex128("k", 1+2i), "K=(1+2i)\n", ` k=(1+2i)`},
		{"complex64", zap.Complex64("k", 1+2i), "K=(1+2i)\n", ` k=(1+2i)`},
		{"duration", zap.Duration("k", 250*time.Millisecond), "K=0.25\n", ` k=250ms`},
		{"time", zap.Time("k", when), "K=2026-01-02T03:04:05.006Z\n", ` k=2026-01-02T03:04:05.006Z`},
		{"error", zap.Error(errors.New("a b")), "ERROR=a b\n", ` error="a b"`},
		{"no error", zap.Error(nil), "", ""},
		{"strings", zap.Strings("k", []string{"a", `b"`}), `K=["a","b\""]` + "\n", ` k="[\"a\",\"b\\\"\"]"`},
		{"durations", zap.Durations("k", []time.Duration{time.Second / 2}), "K=[0.5]\n", ` k=[0.5]`},
		{"reflected", zap.Reflect("k", map[string]int{"a": 1}), `K={"a":1}` + "\n", ` k="{\"a\":1}"`},
		{"reflected HTML", zap.Reflect("k", "<a>"), `K="<a>"` + "\n", ` k="\"<a>\""`},
		{"object", zap.Object("peer", address{"::1", 80}), "PEER_HOST=::1\nPEER_PORT=80\n", ` peer.host=::1 peer.port=80`},
		{"inline object", zap.Inline(address{"::1", 80}), "HOST=::1\nPORT=80\n", ` host=::1 port=80`},
		{"what can not be marshalled", zap.Reflect("k", func() {}), "K_ERROR=json: unsupported type: func()\n", ` kError="json: unsupported type: func()"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := fieldEncoder{native: true}
			tt.field.AddTo(&e)
			if string(e.fields) != tt.want {
				t.Errorf("native %q, want %q", e.fields, tt.want)
			}
			if got := string(e.pairs) + string(e.blocks); got != tt.text {
				t.Errorf("text %q, want %q", got, tt.text)
			}
			if _, err := decode(e.fields); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNamespacesStandInFront(t *testing.T) {
	f := fieldFormat{native: true}.with([]zap.Field{zap.Int("a", 1), zap.Namespace("peer"), zap.Int("b", 2)})
	ln := f.line(zapcore.Entry{Message: "x"}, []zap.Field{
		zap.Object("local", address{"::1", 80}), zap.Namespace("tls"), zap.Int("c", 3),
	})
	e, err := decode(ln.data)
	if err != nil {
		t.Fatal(err)
	}
	const want = "x a=1 peer.b=2 peer.local.host=::1 peer.local.port=80 peer.tls.c=3"
	if got := e.one(t, "MESSAGE"); got != want {
		t.Errorf("MESSAGE is %q, want %q", got, want)
	}
	for name, want := range map[string]string{"A": "1", "PEER_B": "2", "PEER_LOCAL_HOST": "::1", "PEER_TLS_C": "3"} {
		if got := e.one(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestLoggersFromOneParentDoNotShareFields(t *testing.T) {
	parent := fieldFormat{native: true}.with([]zap.Field{zap.Int("a", 1)})
	one := parent.with([]zap.Field{zap.Int("b", 2)})
	two := parent.with([]zap.Field{zap.Int("c", 3)})
	for i, tt := range []struct {
		f    format
		want string
	}{{parent, "x a=1"}, {one, "x a=1 b=2"}, {two, "x a=1 c=3"}} {
		e, err := decode(tt.f.line(zapcore.Entry{Message: "x"}, nil).data)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.one(t, "MESSAGE"); got != tt.want {
			t.Errorf("logger %d writes %q, want %q", i, got, tt.want)
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add("worker exited", "peer", "127.0.0.1:80")
	f.Add("a\nb", "message", "c\nd\n")
	f.Add("", "", "")
	f.Add("\x1b[2J", "9\xff", "\x00=\n")
	f.Fuzz(func(t *testing.T, message, key, value string) {
		format := fieldFormat{identifier: "app", native: true}
		ln := format.line(zapcore.Entry{Message: message, Level: zap.ErrorLevel}, []zap.Field{zap.String(key, value)})
		e, err := decode(ln.data)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.one(t, "EVENT"); got != message && fieldName(key) != "EVENT" {
			t.Fatalf("EVENT is %q, want %q", got, message)
		}
		values := e[fieldName(key)]
		if len(values) == 0 || values[len(values)-1] != value {
			t.Fatalf("%s is %q, want %q", fieldName(key), values, value)
		}
		for _, text := range strings.Split(strings.TrimSuffix(string(ln.fallback), "\n"), "\n") {
			if !strings.HasPrefix(text, "<3>") || printable(text) != text {
				t.Fatalf("fallback line %q", text)
			}
		}
	})
}
