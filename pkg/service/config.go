package service

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// config is what an operator can set, merged from the built-in defaults, the
// configuration file, the environment and the command line, each over the
// one before. It is plain data.
type config struct {
	Workers        int           // zero: one for each CPU
	Control        string        // URL of the control socket
	StartTimeout   time.Duration // for a worker to become ready
	StartAttempts  int           // for the first generation
	Grace          time.Duration // of a worker that drains at a reload or a scale-down
	StopGrace      time.Duration // of a worker that drains at a stop
	MaxOld         int           // draining workers a slot may have
	Parallel       int           // slots replaced at a time by a reload
	Bake           time.Duration // that a new worker must live before the next is replaced
	RespawnFirst   time.Duration // first delay of the back-off
	RespawnMax     time.Duration // longest delay of the back-off
	Rebalance      string        // "off" or rebalanceAfterChange
	RebalanceRate  int           // connections a second
	OnWorkerError  []string      // command to be run when a worker dies unasked
	HangTimeout    time.Duration // negative: none
	HandlerTimeout time.Duration // negative: none
	MemorySoft     int64         // 0: none
	MemoryHard     int64         // 0: none
	MaxRequests    int           // 0: none
	MaxAge         time.Duration // negative: none
	LogLevel       string
	LogFormat      string
	Listeners      map[string]listenerConfig // by name

	// material is what the files of the listeners' TLS hold, once they were
	// read, and seed that of the service's session tickets.
	material map[string]tlsMaterial
	seed     []byte

	// origin says where a key's value was set, "FILE:LINE" or the name of a
	// variable or flag; a key that has its default is absent.
	origin map[string]string
}

// listenerConfig is what an operator can set for one listener. Zero means:
// what the code says, and if that says nothing, the default.
type listenerConfig struct {
	Address string // URL to bind; empty: the socket comes from systemd
	Serve   string // kind of the protocol
	Inline  *bool  // callbacks run on the loop
	Movable *bool  // connections move to other workers

	Dispatch worker.Dispatch // who serves a new connection

	MaxMessage int // bytes
	SendHigh   int // bytes
	SendLow    int // bytes
	SendLimit  int // bytes
	QueueDepth int // messages

	MaxConnections        int
	MaxConnectionsPerPeer int
	AcceptRate            int // a second
	AcceptBurst           int

	// A negative timeout means none.

	FirstByteTimeout time.Duration
	MessageTimeout   time.Duration
	AuthTimeout      time.Duration
	IdleTimeout      time.Duration
	ReadIdleTimeout  time.Duration
	WriteIdleTimeout time.Duration
	WriteTimeout     time.Duration
	CloseTimeout     time.Duration
	HandshakeTimeout time.Duration

	ProxyProtocol []string // who passes connections on
	TLS           tlsConfig

	// Of HTTP.

	MaxRunning int // requests
	MaxWaiting int // connections

	// Of WebSocket.

	Origins       []string
	CompressAbove int // bytes
	PingInterval  time.Duration
	PongTimeout   time.Duration
}

// rebalanceAfterChange has connections rebalanced when a worker has come that
// has none.
const rebalanceAfterChange = "after-change"

// noTimeout is what the word "none" stands for.
const noTimeout = time.Duration(-1)

// defaults is the configuration of a service about which nobody has said
// anything.
func defaults(name string) config {
	return config{
		Control:        "unix:///run/" + name + "/control.sock",
		StartTimeout:   30 * time.Second,
		StartAttempts:  3,
		Grace:          30 * time.Second,
		StopGrace:      10 * time.Second,
		MaxOld:         2,
		Parallel:       1,
		Bake:           time.Second,
		RespawnFirst:   200 * time.Millisecond,
		RespawnMax:     30 * time.Second,
		Rebalance:      "off",
		RebalanceRate:  1000,
		HangTimeout:    10 * time.Second,
		HandlerTimeout: noTimeout,
		MaxAge:         noTimeout,
		LogLevel:       "info",
		LogFormat:      "auto",
		Listeners:      map[string]listenerConfig{},
		origin:         map[string]string{},
	}
}

// setting is a key of the configuration: its name, what it wants, and how a
// value gets into T and, as a file would have it, out again.
type setting[T any] struct {
	key     string
	want    string
	restart bool // only a restart changes it
	set     func(*T, any) error
	get     func(*T) string // empty: nothing is set
}

// errWant says that a value is not what the setting wants.
var errWant = errors.New("not what is wanted")

// word is a value from the environment or the command line, where all types
// are written as a string.
type word string

// settings are the keys outside of [listener.NAME].
var settings = []setting[config]{
	integer("workers", 0, supervisor.MaxWorkers, func(c *config) *int { return &c.Workers }),
	{"control", "unix:///PATH", true, func(c *config, v any) error {
		s, ok := asString(v)
		if !ok || checkControl(s) != nil {
			return errWant
		}
		c.Control = s
		return nil
	}, func(c *config) string { return strconv.Quote(c.Control) }},
	duration("start_timeout", 100*time.Millisecond, time.Hour, func(c *config) *time.Duration { return &c.StartTimeout }),
	integer("start_attempts", 1, 100, func(c *config) *int { return &c.StartAttempts }),
	duration("grace", time.Millisecond, 24*time.Hour, func(c *config) *time.Duration { return &c.Grace }),
	duration("stop_grace", time.Millisecond, time.Hour, func(c *config) *time.Duration { return &c.StopGrace }),
	integer("max_old", 1, 16, func(c *config) *int { return &c.MaxOld }),
	integer("reload.parallel", 1, supervisor.MaxWorkers, func(c *config) *int { return &c.Parallel }),
	duration("reload.bake", 0, time.Hour, func(c *config) *time.Duration { return &c.Bake }),
	duration("respawn.first", time.Millisecond, time.Hour, func(c *config) *time.Duration { return &c.RespawnFirst }),
	duration("respawn.max", time.Millisecond, time.Hour, func(c *config) *time.Duration { return &c.RespawnMax }),
	timeout("hang_timeout", func(c *config) *time.Duration { return &c.HangTimeout }),
	timeout("handler_timeout", func(c *config) *time.Duration { return &c.HandlerTimeout }),
	size("memory_soft", 0, maxMemory, func(c *config) *int64 { return &c.MemorySoft }),
	size("memory_hard", 0, maxMemory, func(c *config) *int64 { return &c.MemoryHard }),
	integer("max_requests", 0, 1<<40, func(c *config) *int { return &c.MaxRequests }),
	timeout("max_age", func(c *config) *time.Duration { return &c.MaxAge }),
	oneOf("rebalance", []string{"off", rebalanceAfterChange}, func(c *config) *string { return &c.Rebalance }),
	integer("rebalance_rate", 1, 1_000_000, func(c *config) *int { return &c.RebalanceRate }),
	command("on_worker_error", func(c *config) *[]string { return &c.OnWorkerError }),
	oneOf("log.level", []string{"debug", "info", "warn", "error"}, func(c *config) *string { return &c.LogLevel }),
	oneOf("log.format", []string{"auto", "journal", "text", "json"}, func(c *config) *string { return &c.LogFormat }),
}

// maxMemory is the largest limit of a worker's memory, in bytes; maxBuffer of
// a connection's.
const (
	maxMemory int64 = 1 << 40
	maxBuffer int   = 1 << 30
)

// listenerSettings are the keys in [listener.NAME].
var listenerSettings = slices.Concat([]setting[listenerConfig]{
	{"address", "tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH, unixgram:///PATH or unixpacket:///PATH", true, func(l *listenerConfig, v any) error {
		s, ok := asString(v)
		if !ok {
			return errWant
		}
		if _, _, _, err := activation.ParseURL(s); err != nil {
			return err
		}
		l.Address = s
		return nil
	}, func(l *listenerConfig) string { return quoteSet(l.Address) }},
	{"serve", "the name of a kind", false, func(l *listenerConfig, v any) error {
		s, ok := asString(v)
		if !ok || s == "" {
			return errWant
		}
		l.Serve = s
		return nil
	}, func(l *listenerConfig) string { return quoteSet(l.Serve) }},
	{"inline", "true or false", false, func(l *listenerConfig, v any) error {
		b, ok := asBool(v)
		if !ok {
			return errWant
		}
		l.Inline = &b
		return nil
	}, func(l *listenerConfig) string {
		if l.Inline == nil {
			return ""
		}
		return strconv.FormatBool(*l.Inline)
	}},
	{"movable", "true or false", false, func(l *listenerConfig, v any) error {
		b, ok := asBool(v)
		if !ok {
			return errWant
		}
		l.Movable = &b
		return nil
	}, func(l *listenerConfig) string {
		if l.Movable == nil {
			return ""
		}
		return strconv.FormatBool(*l.Movable)
	}},
	oneOf("dispatch", []worker.Dispatch{
		worker.DispatchShared, worker.DispatchRoundRobin, worker.DispatchLeastConnections, worker.DispatchHashIP, worker.DispatchHashID,
	}, func(l *listenerConfig) *worker.Dispatch { return &l.Dispatch }),
	size("max_message", 1, maxBuffer, func(l *listenerConfig) *int { return &l.MaxMessage }),
	size("send_high", 1, maxBuffer, func(l *listenerConfig) *int { return &l.SendHigh }),
	size("send_low", 1, maxBuffer, func(l *listenerConfig) *int { return &l.SendLow }),
	size("send_limit", 1, maxBuffer, func(l *listenerConfig) *int { return &l.SendLimit }),
	integer("queue_depth", 1, 1<<20, func(l *listenerConfig) *int { return &l.QueueDepth }),
	integer("max_running", 1, 1<<20, func(l *listenerConfig) *int { return &l.MaxRunning }),
	integer("max_waiting", 1, 1<<20, func(l *listenerConfig) *int { return &l.MaxWaiting }),
	integer("max_connections", 1, 1<<20, func(l *listenerConfig) *int { return &l.MaxConnections }),
	integer("max_connections_per_peer", 1, 1<<20, func(l *listenerConfig) *int { return &l.MaxConnectionsPerPeer }),
	integer("accept_rate", 1, 1<<20, func(l *listenerConfig) *int { return &l.AcceptRate }),
	integer("accept_burst", 1, 1<<20, func(l *listenerConfig) *int { return &l.AcceptBurst }),
	timeout("first_byte_timeout", func(l *listenerConfig) *time.Duration { return &l.FirstByteTimeout }),
	timeout("message_timeout", func(l *listenerConfig) *time.Duration { return &l.MessageTimeout }),
	timeout("auth_timeout", func(l *listenerConfig) *time.Duration { return &l.AuthTimeout }),
	timeout("idle_timeout", func(l *listenerConfig) *time.Duration { return &l.IdleTimeout }),
	timeout("read_idle_timeout", func(l *listenerConfig) *time.Duration { return &l.ReadIdleTimeout }),
	timeout("write_idle_timeout", func(l *listenerConfig) *time.Duration { return &l.WriteIdleTimeout }),
	timeout("write_timeout", func(l *listenerConfig) *time.Duration { return &l.WriteTimeout }),
	timeout("close_timeout", func(l *listenerConfig) *time.Duration { return &l.CloseTimeout }),
	words("origins", `origins such as ["https://*.example.com"]`, func(l *listenerConfig) *[]string { return &l.Origins }),
	size("compress_above", 1, maxBuffer, func(l *listenerConfig) *int { return &l.CompressAbove }),
	timeout("ping_interval", func(l *listenerConfig) *time.Duration { return &l.PingInterval }),
	duration("pong_timeout", time.Millisecond, time.Hour, func(l *listenerConfig) *time.Duration { return &l.PongTimeout }),
	timeout("handshake_timeout", func(l *listenerConfig) *time.Duration { return &l.HandshakeTimeout }),
	proxySetting,
}, tlsSettings)

// checkControl says what is wrong with the URL of a control socket.
func checkControl(address string) error {
	_, err := control.NewClient(address)
	return err
}

func asString(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case word:
		return string(v), true
	}
	return "", false
}

func asBool(v any) (b, ok bool) {
	if w, isWord := v.(word); isWord {
		return w == "true", w == "true" || w == "false"
	}
	b, ok = v.(bool)
	return b, ok
}

// quoteSet is s as a file has it, empty if s is.
func quoteSet(s string) string {
	if s == "" {
		return ""
	}
	return strconv.Quote(s)
}

func asInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case word:
		n, err := strconv.ParseInt(string(v), 10, 64)
		return n, err == nil
	}
	return 0, false
}

func integer[T any](key string, low, high int, field func(*T) *int) setting[T] {
	return setting[T]{key, fmt.Sprintf("a number from %d to %d", low, high), false, func(t *T, v any) error {
		n, ok := asInt(v)
		if !ok || n < int64(low) || n > int64(high) {
			return errWant
		}
		*field(t) = int(n)
		return nil
	}, func(t *T) string { return strconv.Itoa(*field(t)) }}
}

func duration[T any](key string, low, high time.Duration, field func(*T) *time.Duration) setting[T] {
	want := fmt.Sprintf("a duration such as \"30s\", from %s to %s", showDuration(low), showDuration(high))
	return setting[T]{key, want, false, func(t *T, v any) error {
		s, _ := asString(v)
		d, err := time.ParseDuration(s)
		if err != nil || d < low || d > high {
			return errWant
		}
		*field(t) = d
		return nil
	}, func(t *T) string { return strconv.Quote(showDuration(*field(t))) }}
}

func timeout[T any](key string, field func(*T) *time.Duration) setting[T] {
	const low, high = time.Millisecond, 30 * 24 * time.Hour
	return setting[T]{key, `a duration such as "30s", from 1ms to 720h, or "none"`, false, func(l *T, v any) error {
		s, _ := asString(v)
		if s == "none" {
			*field(l) = noTimeout
			return nil
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < low || d > high {
			return errWant
		}
		*field(l) = d
		return nil
	}, func(l *T) string {
		if *field(l) < 0 {
			return `"none"`
		}
		return strconv.Quote(showDuration(*field(l)))
	}}
}

func oneOf[T any, S ~string](key string, words []S, field func(*T) *S) setting[T] {
	var list []string
	for _, w := range words {
		list = append(list, string(w))
	}
	return setting[T]{key, "one of " + strings.Join(list, ", "), false, func(c *T, v any) error {
		s, _ := asString(v)
		if !slices.Contains(words, S(s)) {
			return errWant
		}
		*field(c) = S(s)
		return nil
	}, func(c *T) string { return strconv.Quote(string(*field(c))) }}
}

// units of a size, the longer suffix before the one it ends with.
var units = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}, {"", 1}}

func size[T any, N int | int64](key string, low, high N, field func(*T) *N) setting[T] {
	want := `bytes, or a size such as "1MiB", up to ` + strings.Trim(showSize(int64(high)), `"`)
	return setting[T]{key, want, false, func(l *T, v any) error {
		n, ok := v.(int64)
		if !ok {
			s, _ := asString(v)
			if n, ok = parseSize(s); !ok {
				return errWant
			}
		}
		if n < int64(low) || n > int64(high) {
			return errWant
		}
		*field(l) = N(n)
		return nil
	}, func(l *T) string { return showSize(int64(*field(l))) }}
}

// showSize is n as a file would have it: with the largest unit that divides
// it.
func showSize(n int64) string {
	for _, u := range []string{"GiB", "MiB", "KiB"} {
		if one, _ := parseSize("1" + u); n > 0 && n%one == 0 {
			return strconv.Quote(strconv.FormatInt(n/one, 10) + u)
		}
	}
	return strconv.FormatInt(n, 10)
}

func parseSize(s string) (int64, bool) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			return 0, false
		}
		return n * u.bytes, true
	}
	return 0, false
}

// showDuration is d without the zero units that Duration.String adds.
func showDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// apply sets a key from where origin says. The error is without the origin.
func (s setting[T]) apply(t *T, v any) error {
	err := s.set(t, v)
	switch {
	case errors.Is(err, errWant):
		return fmt.Errorf("got %s, want %s", show(v), s.want)
	case err != nil:
		return fmt.Errorf("got %s, want %s: %w", show(v), s.want, err)
	}
	return nil
}

// show writes a value as a configuration file would.
func show(v any) string {
	const most = 80
	out := ""
	switch v := v.(type) {
	case word:
		out = strconv.Quote(string(v))
	case string:
		out = strconv.Quote(v)
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "an array"
	default:
		out = fmt.Sprint(v)
	}
	if len(out) > most {
		out = strings.ToValidUTF8(out[:most], "") + "..."
	}
	return out
}

// maxFile is the largest configuration file, in bytes.
const maxFile = 1 << 20

// readFile merges the file at path into c. With mayBeAbsent a file that does
// not exist changes nothing.
func (c *config) readFile(path string, mayBeAbsent bool) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && mayBeAbsent:
		return nil
	case err != nil:
		return fmt.Errorf("configuration: %w", err)
	case info.Size() > maxFile:
		return fmt.Errorf("configuration: %s: %d bytes, want at most %d", path, info.Size(), maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return c.parse(path, b)
}

// printable is s without the control characters that a file may have brought
// into it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// parse merges the TOML text b into c; path is its name in errors. An error
// names the file, the line and the key.
func (c *config) parse(path string, b []byte) error {
	f := file{path: path, config: c}
	var top map[string]toml.Primitive
	md, err := toml.Decode(string(b), &top)
	if pe, ok := errors.AsType[toml.ParseError](err); ok {
		line := pe.Position.Line
		if line < 1 { // so it says of what is cut off by the end of the file
			line = 1 + bytes.Count(bytes.TrimRight(b, "\n"), []byte("\n"))
		}
		return fmt.Errorf("%s:%d: %s", path, line, printable(pe.Message))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f.md = md
	for _, name := range sortedKeys(top) {
		switch name {
		case "listener":
			err = f.listeners(top[name])
		case "pool": // after the others, to see what they have set
		default:
			err = f.value(name, top[name])
		}
		if err != nil {
			return err
		}
	}
	if p, ok := top["pool"]; ok {
		return f.pools(p)
	}
	return nil
}

// file is a configuration file that is being read.
type file struct {
	path   string
	md     toml.MetaData
	config *config
}

// value sets the key, or the keys of the table, that p holds.
func (f *file) value(key string, p toml.Primitive) error {
	v, line := f.look(p)
	isTable := slices.ContainsFunc(settings, func(s setting[config]) bool { return strings.HasPrefix(s.key, key+".") })
	if _, ok := v.(map[string]any); ok && isTable {
		return f.table(p, func(name string, p toml.Primitive) error { return f.value(key+"."+name, p) })
	}
	if isTable {
		return f.refuse(line, key, fmt.Errorf("got %s, want a table [%s]", show(v), key))
	}
	i := slices.IndexFunc(settings, func(s setting[config]) bool { return s.key == key })
	if i < 0 {
		return f.refuse(line, key, errUnknownKey)
	}
	if err := settings[i].apply(f.config, v); err != nil {
		return f.refuse(line, key, err)
	}
	f.config.origin[key] = f.origin(line)
	return nil
}

// poolName is the one pool that there is.
const poolName = "worker"

// ofPool says whether a key may stand in [pool.NAME], too.
func ofPool(key string) bool { return key != "control" && !strings.HasPrefix(key, "log.") }

func (f *file) pools(p toml.Primitive) error {
	v, line := f.look(p)
	if _, ok := v.(map[string]any); !ok {
		return f.refuse(line, "pool", fmt.Errorf("got %s, want tables [pool.NAME]", show(v)))
	}
	return f.table(p, func(name string, p toml.Primitive) error {
		if name != poolName {
			_, line := f.look(p)
			return f.refuse(line, "pool."+name, fmt.Errorf("no pool %q, there is %q", name, poolName))
		}
		return f.poolValue("", p)
	})
}

// poolValue sets the keys below prefix that stand in the table p.
func (f *file) poolValue(prefix string, p toml.Primitive) error {
	const pool = "pool." + poolName + "."
	if v, line := f.look(p); !isTable(v) {
		return f.refuse(line, strings.TrimSuffix(pool+prefix, "."), fmt.Errorf("got %s, want a table [%s]", show(v), strings.TrimSuffix(pool+prefix, ".")))
	}
	return f.table(p, func(name string, p toml.Primitive) error {
		key := prefix + name
		if slices.ContainsFunc(settings, func(s setting[config]) bool { return strings.HasPrefix(s.key, key+".") }) {
			return f.poolValue(key+".", p)
		}
		v, line := f.look(p)
		i := slices.IndexFunc(settings, func(s setting[config]) bool { return s.key == key && ofPool(key) })
		if i < 0 {
			return f.refuse(line, pool+key, errUnknownKey)
		}
		if before := f.config.origin[key]; before != "" {
			return f.refuse(line, pool+key, fmt.Errorf("%s is set at %s: want it in one place", key, before))
		}
		if err := settings[i].apply(f.config, v); err != nil {
			return f.refuse(line, pool+key, err)
		}
		f.config.origin[key] = f.origin(line)
		return nil
	})
}

func isTable(v any) bool {
	_, ok := v.(map[string]any)
	return ok
}

var errUnknownKey = errors.New("unknown key")

func (f *file) listeners(p toml.Primitive) error {
	v, line := f.look(p)
	if _, ok := v.(map[string]any); !ok {
		return f.refuse(line, "listener", fmt.Errorf("got %s, want tables [listener.NAME]", show(v)))
	}
	return f.table(p, f.listener)
}

func (f *file) listener(name string, p toml.Primitive) error {
	key := listenerKey(name)
	v, line := f.look(p)
	if _, ok := v.(map[string]any); !ok {
		return f.refuse(line, key, fmt.Errorf("got %s, want a table [listener.NAME]", show(v)))
	}
	if err := checkListenerName(name); err != nil {
		return f.refuse(line, key, err)
	}
	l := f.config.Listeners[name]
	first := line // 0: the table has no line of its own, only its keys have
	var values func(prefix string, p toml.Primitive) error
	values = func(prefix string, p toml.Primitive) error {
		return f.table(p, func(name string, p toml.Primitive) error {
			v, line := f.look(p)
			if line > 0 && (first == 0 || line < first) {
				first = line
			}
			field := prefix + name
			key := key + "." + field
			if slices.ContainsFunc(listenerSettings, func(s setting[listenerConfig]) bool { return strings.HasPrefix(s.key, field+".") }) {
				if !isTable(v) {
					return f.refuse(line, key, fmt.Errorf("got %s, want a table [%s]", show(v), key))
				}
				return values(field+".", p)
			}
			i := slices.IndexFunc(listenerSettings, func(s setting[listenerConfig]) bool { return s.key == field })
			if i < 0 {
				return f.refuse(line, key, errUnknownKey)
			}
			if err := listenerSettings[i].apply(&l, v); err != nil {
				return f.refuse(line, key, err)
			}
			f.config.origin[key] = f.origin(line)
			return nil
		})
	}
	if err := values("", p); err != nil {
		return err
	}
	f.config.Listeners[name] = l
	f.config.origin[key] = f.origin(first)
	return nil
}

// table calls do for each key of the table that p holds, in their order by
// name.
func (f *file) table(p toml.Primitive, do func(string, toml.Primitive) error) error {
	var keys map[string]toml.Primitive
	if err := f.md.PrimitiveDecode(p, &keys); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	for _, name := range sortedKeys(keys) {
		if err := do(name, keys[name]); err != nil {
			return err
		}
	}
	return nil
}

// look returns what p holds and the line on which it stands; 0 for a table
// that only its keys' names speak of.
func (f *file) look(p toml.Primitive) (v any, line int) {
	var l lookout
	err := f.md.PrimitiveDecode(p, &l)
	pe, _ := errors.AsType[toml.ParseError](err)
	return l.value, pe.Position.Line
}

// lookout takes any value and refuses it: only an error tells its line.
type lookout struct{ value any }

var errSeen = errors.New("seen")

func (l *lookout) UnmarshalTOML(v any) error {
	l.value = v
	return errSeen
}

func (f *file) origin(line int) string { return fmt.Sprintf("%s:%d", f.path, max(line, 1)) }

func (f *file) refuse(line int, key string, err error) error {
	return fmt.Errorf("%s: key %q: %w", f.origin(line), key, err)
}

// setFlag merges what a flag says into c. The error names the flag.
func (c *config) setFlag(flag, key, value string) error {
	i := slices.IndexFunc(settings, func(s setting[config]) bool { return s.key == key })
	if err := settings[i].apply(c, word(value)); err != nil {
		return fmt.Errorf("--%s: %w", flag, err)
	}
	c.origin[key] = "--" + flag
	return nil
}

// setListenerFlag merges NAME=VALUE of --listen or --serve into c.
func (c *config) setListenerFlag(flag, key, value string) error {
	name, v, ok := strings.Cut(value, "=")
	if !ok {
		return fmt.Errorf("--%s: got %q, want NAME=%s", flag, value, map[string]string{"address": "URL", "serve": "KIND"}[key])
	}
	if err := checkListenerName(name); err != nil {
		return fmt.Errorf("--%s %q: %w", flag, value, err)
	}
	if c.origin[listenerKey(name)+"."+key] == "--"+flag {
		return fmt.Errorf("--%s: listener %q is given twice", flag, name)
	}
	l := c.Listeners[name]
	i := slices.IndexFunc(listenerSettings, func(s setting[listenerConfig]) bool { return s.key == key })
	if err := listenerSettings[i].apply(&l, word(v)); err != nil {
		return fmt.Errorf("--%s %s: %w", flag, name, err)
	}
	c.Listeners[name] = l
	c.origin[listenerKey(name)+"."+key] = "--" + flag
	if c.origin[listenerKey(name)] == "" {
		c.origin[listenerKey(name)] = "--" + flag
	}
	return nil
}

// check compares settings with one another, once all are merged.
func (c *config) check() error {
	if c.RespawnFirst > c.RespawnMax {
		return c.refuse(fmt.Errorf("respawn.first is %s, want at most respawn.max, which is %s", c.RespawnFirst, c.RespawnMax),
			"respawn.first", "respawn.max")
	}
	if c.MemorySoft > 0 && c.MemoryHard > 0 && c.MemorySoft > c.MemoryHard {
		return c.refuse(fmt.Errorf("memory_soft is %d, want at most memory_hard, which is %d", c.MemorySoft, c.MemoryHard), "memory_soft", "memory_hard")
	}
	for _, name := range sortedKeys(c.Listeners) {
		l := c.Listeners[name].withSizes()
		key := listenerKey(name) + "."
		if l.SendLow > l.SendHigh {
			return c.refuse(fmt.Errorf("send_low is %d, want at most send_high, which is %d", l.SendLow, l.SendHigh),
				key+"send_low", key+"send_high")
		}
		if l.SendHigh > l.SendLimit {
			return c.refuse(fmt.Errorf("send_high is %d, want at most send_limit, which is %d", l.SendHigh, l.SendLimit),
				key+"send_high", key+"send_limit")
		}
		if l.AcceptBurst > 0 && l.AcceptRate == 0 {
			return c.refuse(errors.New("accept_burst without accept_rate"), key+"accept_burst")
		}
		if missing, err := l.TLS.check(); err != nil {
			keys := []string{key + "tls." + missing}
			for _, s := range tlsSettings {
				keys = append(keys, key+s.key)
			}
			return c.refuse(err, keys...)
		}
	}
	return nil
}

// refuse is err at the first of keys that was set.
func (c *config) refuse(err error, keys ...string) error {
	for _, key := range keys {
		if from := c.origin[key]; from != "" {
			return fmt.Errorf("%s: key %q: %w", from, key, err)
		}
	}
	return err
}

// withSizes is l with the marks of the send queue filled in, as conn.Limits
// does.
func (l listenerConfig) withSizes() listenerConfig {
	if l.SendLimit == 0 {
		l.SendLimit = max(conn.DefaultSendHard, l.SendHigh)
	}
	if l.SendHigh == 0 {
		l.SendHigh = min(conn.DefaultSendHigh, l.SendLimit/2)
	}
	if l.SendLow == 0 {
		l.SendLow = l.SendHigh / 4
	}
	return l
}

func listenerKey(name string) string { return "listener." + name }

// maxListenerName is what a seat of the scoreboard keeps of a name.
const maxListenerName = 64

// checkListenerName says what is wrong with a listener's name.
func checkListenerName(name string) error {
	if name == "" || len(name) > maxListenerName {
		return fmt.Errorf("a listener's name of %d bytes, want 1 to %d", len(name), maxListenerName)
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || strings.ContainsRune(`:="'/`, r) {
			return fmt.Errorf("listener %q: has %q, want printable ASCII without space, colon, quote, slash and equals sign", name, r)
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
