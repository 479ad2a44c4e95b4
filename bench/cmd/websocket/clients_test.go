package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// talker is a client of another implementation.
type talker struct {
	conn interface {
		// sendInTwo sends a message in fragments, and calls between when the first
		// of its parts is written.
		sendInTwo(binary bool, first []byte, between func(), second []byte) error
		ping(text string) error
		close(code int, reason string) error
	}
	name, extensions string // agreed on
	told             chan event
}

// event is what a talker is told.
type event struct {
	kind string // "text", "binary", "pong" or "close"
	data string // of a close "CODE REASON"
}

// next returns what the client is told next.
func (c *talker) next() (event, error) {
	select {
	case e := <-c.told:
		return e, nil
	case <-time.After(patience):
		return event{}, fmt.Errorf("%s: is told nothing within %v", c.name, patience)
	}
}

// want wants to be told e next.
func (c *talker) want(e event) error {
	got, err := c.next()
	if err == nil && got != e {
		err = fmt.Errorf("%s: is told %s of %d bytes, %.40q, want %s of %d, %.40q", c.name, got.kind, len(got.data), got.data, e.kind, len(e.data), e.data)
	}
	return err
}

// echo has a message echoed that is sent in two parts.
func (c *talker) echo(binary bool, first []byte, between func(), second []byte) error {
	if err := c.conn.sendInTwo(binary, first, between, second); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	kind := "text"
	if binary {
		kind = "binary"
	}
	return c.want(event{kind, string(first) + string(second)})
}

// gwsTalker is a client of gws. It is told of what comes in a goroutine.
type gwsTalker struct {
	gws.BuiltinEventHandler
	*gws.Conn
	told chan event
}

func (g *gwsTalker) OnMessage(_ *gws.Conn, m *gws.Message) {
	defer m.Close()
	kind := "text"
	if m.Opcode == gws.OpcodeBinary {
		kind = "binary"
	}
	g.told <- event{kind, m.Data.String()}
}

func (g *gwsTalker) OnPong(_ *gws.Conn, payload []byte) { g.told <- event{"pong", string(payload)} }

func (g *gwsTalker) OnClose(_ *gws.Conn, err error) {
	e := event{"close", err.Error()}
	if closed, ok := errors.AsType[*gws.CloseError](err); ok {
		e.data = fmt.Sprintf("%d %s", closed.Code, closed.Reason)
	}
	g.told <- e
}

// between calls itself and has nothing to read.
type between func()

func (b between) Read([]byte) (int, error) {
	b()
	return 0, io.EOF
}

func (g *gwsTalker) sendInTwo(binary bool, first []byte, then func(), second []byte) error {
	kind := gws.OpcodeText
	if binary {
		kind = gws.OpcodeBinary
	}
	return g.WriteFile(kind, io.MultiReader(bytes.NewReader(first), between(then), bytes.NewReader(second)))
}

func (g *gwsTalker) ping(text string) error { return g.WritePing([]byte(text)) }
func (g *gwsTalker) close(code int, reason string) error {
	return g.WriteClose(uint16(code), []byte(reason))
}

func dialGWS(addr string, deflate bool) (*talker, error) {
	g := &gwsTalker{told: make(chan event, 16)}
	c, r, err := gws.NewClient(g, &gws.ClientOption{
		Addr: "ws://" + addr, PermessageDeflate: gws.PermessageDeflate{Enabled: deflate, Threshold: 1}, CheckUtf8Enabled: true,
	})
	if err != nil {
		return nil, err
	}
	g.Conn = c
	go c.ReadLoop()
	return &talker{conn: g, told: g.told, extensions: r.Header.Get("Sec-WebSocket-Extensions")}, nil
}

// gorillaTalker is a client of gorilla.
type gorillaTalker struct{ *gorilla.Conn }

func (g gorillaTalker) sendInTwo(binary bool, first []byte, then func(), second []byte) error {
	kind := gorilla.TextMessage
	if binary {
		kind = gorilla.BinaryMessage
	}
	w, err := g.NextWriter(kind)
	if err != nil {
		return err
	}
	if _, err := w.Write(first); err != nil {
		return err
	}
	then()
	if _, err := w.Write(second); err != nil {
		return err
	}
	return w.Close()
}

func (g gorillaTalker) control(kind int, data []byte) error {
	return g.WriteControl(kind, data, time.Now().Add(patience))
}

func (g gorillaTalker) ping(text string) error { return g.control(gorilla.PingMessage, []byte(text)) }
func (g gorillaTalker) close(code int, reason string) error {
	return g.control(gorilla.CloseMessage, gorilla.FormatCloseMessage(code, reason))
}

func dialGorilla(addr string, deflate bool) (*talker, error) {
	// Buffers that are small make fragments of what is not compressed, too.
	d := gorilla.Dialer{HandshakeTimeout: patience, EnableCompression: deflate, WriteBufferSize: 1000}
	c, r, err := d.Dial("ws://"+addr, nil)
	if err != nil {
		return nil, err
	}
	told := make(chan event, 16)
	c.SetPongHandler(func(text string) error { told <- event{"pong", text}; return nil })
	go func() {
		for {
			kind, m, err := c.ReadMessage()
			e := event{"text", string(m)}
			if kind == gorilla.BinaryMessage {
				e.kind = "binary"
			}
			if err != nil {
				e = event{"close", err.Error()}
				if closed, ok := errors.AsType[*gorilla.CloseError](err); ok {
					e.data = fmt.Sprintf("%d %s", closed.Code, closed.Text)
				}
			}
			told <- e
			if err != nil {
				c.Close()
				return
			}
		}
	}()
	return &talker{conn: gorillaTalker{c}, told: told, extensions: r.Header.Get("Sec-WebSocket-Extensions")}, nil
}

// built is the program server, as it is built, with two workers and ws-echo.
type built struct {
	t      *testing.T
	addr   string
	client *control.Client
	cmd    *exec.Cmd
	log    bytes.Buffer // to be read once it has ended
}

// startBuilt builds and starts the server. It is stopped at the end of the test,
// if the test has not.
func startBuilt(t *testing.T) *built {
	t.Helper()
	dir, err := os.MkdirTemp("", "mainstay-bench-") // a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	server, config, address := filepath.Join(dir, "server"), filepath.Join(dir, "app.toml"), "unix://"+filepath.Join(dir, "control.sock")
	build := exec.Command("go", "build", "-trimpath", "-o", server, "github.com/mainstay-go/mainstay/cmd/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(config, []byte("reload.bake = \"10ms\"\nlistener.ws-echo.compress_above = 64\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &built{t: t, cmd: exec.Command(server, "run", "--config", config, "--control", address, "--workers", "2", "--listen", "ws-echo=tcp://127.0.0.1:0")}
	if b.client, err = control.NewClient(address); err != nil {
		t.Fatal(err)
	}
	b.cmd.Stdout, b.cmd.Stderr = &b.log, &b.log
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	b.await("it serves", func() bool {
		st, err := b.client.Status(t.Context())
		if err != nil || st.State != control.StateServing || st.Pools[0].Ready < 2 {
			return false
		}
		b.addr = strings.TrimPrefix(st.Listeners[0].Address, "tcp://")
		return true
	})
	return b
}

func (b *built) stop() {
	if b.cmd == nil {
		return
	}
	cmd := b.cmd
	b.cmd = nil
	_ = cmd.Process.Signal(syscall.SIGTERM) // an error: it has ended
	late := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		b.t.Errorf("the server has ended with %v", err)
	}
	if b.t.Failed() {
		b.t.Logf("the server's log:\n%s", &b.log)
	}
}

func (b *built) await(what string, cond func() bool) {
	b.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond) // between two looks at the condition
	defer tick.Stop()
	for late := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(late) {
			b.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (b *built) reload() {
	b.t.Helper()
	if err := b.client.Reload(b.t.Context(), control.ReloadRequest{}, func(string) {}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *built) connections() []control.Connection {
	b.t.Helper()
	list, err := b.client.Connections(b.t.Context(), control.ConnectionsRequest{})
	if err != nil {
		b.t.Fatal(err)
	}
	return list.Connections
}

func TestClientsOfGWSAndGorillaNoticeNoReloadOfTheServerAsItIsBuilt(t *testing.T) {
	b := startBuilt(t)
	var talkers []*talker
	for _, tt := range []struct {
		name    string
		dial    func(addr string, deflate bool) (*talker, error)
		deflate bool
	}{
		{"gws", dialGWS, false}, {"gws, compressed", dialGWS, true},
		{"gorilla", dialGorilla, false}, {"gorilla, compressed", dialGorilla, true},
	} {
		c, err := tt.dial(b.addr, tt.deflate)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if c.name = tt.name; strings.Contains(c.extensions, "permessage-deflate") != tt.deflate {
			t.Errorf("%s: extensions %q", c.name, c.extensions)
		}
		talkers = append(talkers, c)
	}
	all := func(do func(c *talker) error) (wait func()) {
		var each sync.WaitGroup
		for _, c := range talkers {
			each.Go(func() {
				if err := do(c); err != nil {
					t.Error(err)
				}
			})
		}
		return func() {
			t.Helper()
			each.Wait()
			if t.Failed() {
				t.FailNow()
			}
		}
	}

	// One message after the other, while workers come and go.
	var echoes atomic.Int64
	done := make(chan struct{})
	wait := all(func(c *talker) error {
		for n := 0; ; n++ {
			select {
			case <-done:
				return nil
			default:
			}
			text := strings.Repeat(fmt.Sprintf("κόσμε %d, ", n), n%300+1)
			half := len(text) / 2
			if err := c.echo(n%2 == 0, []byte(text[:half]), func() {}, []byte(text[half:])); err != nil {
				return fmt.Errorf("message %d: %w", n, err)
			}
			ping := fmt.Sprint("there ", n)
			if err := c.conn.ping(ping); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if err := c.want(event{"pong", ping}); err != nil {
				return err
			}
			echoes.Add(1)
		}
	})
	for range 3 {
		from := echoes.Load()
		b.await("the clients go on", func() bool { return t.Failed() || echoes.Load() >= from+40 })
		b.reload()
	}
	close(done)
	wait()

	// In the middle of a message of noise, which stays as long compressed.
	noise := make([]byte, 600_000)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(noise)
	before := map[uint64]uint64{}
	for _, c := range b.connections() {
		before[c.ID] = c.BytesIn
	}
	reloaded := make(chan struct{})
	wait = all(func(c *talker) error {
		return c.echo(true, noise[:500_000], func() { <-reloaded }, noise[500_000:])
	})
	b.await("half of a message is with the server", func() bool {
		halfway := 0
		for _, c := range b.connections() {
			if c.BytesIn >= before[c.ID]+100_000 {
				halfway++
			}
		}
		return t.Failed() || halfway == len(talkers)
	})
	b.reload()
	close(reloaded)
	wait()
	for _, c := range b.connections() {
		if _, known := before[c.ID]; !known || c.Generation != 5 {
			t.Errorf("connection %d of generation %d, want one of %v in generation 5", c.ID, c.Generation, before)
		}
	}

	// The end, by the client and by the server. gws does not wait for the answer.
	for _, tt := range []struct {
		of   int
		want string // empty: it is not told
	}{{1, ""}, {3, "4001 enough"}} {
		c := talkers[tt.of]
		if err := c.conn.close(4001, "enough"); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if tt.want == "" {
			continue
		}
		if err := c.want(event{"close", tt.want}); err != nil {
			t.Error(err)
		}
	}
	b.await("two have gone", func() bool { return len(b.connections()) == 2 })
	b.stop()
	for _, of := range []int{0, 2} {
		got, err := talkers[of].next()
		if err != nil || got.kind != "close" || !strings.HasPrefix(got.data, "1001 ") {
			t.Errorf("%s: is told %v, %v at the stop, want code 1001", talkers[of].name, got, err)
		}
	}
}
