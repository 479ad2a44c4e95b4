package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
	"github.com/mainstay-go/mainstay/test/browser"
	"github.com/mainstay-go/mainstay/test/node"
)

// startWS starts the reference service with two workers and ws-echo.
func startWS(t *testing.T, settings string) *servicetest.Service {
	t.Helper()
	return servicetest.Start(t, servicetest.Options{
		Listeners: []string{"ws-echo"}, Workers: 2,
		Config: "reload.bake = \"10ms\"\n[listener.ws-echo]\n" + settings,
	})
}

func TestWebSocketClientsNoticeNoReloadAndNoMove(t *testing.T) {
	const clients, reloads = 20, 3
	s := startWS(t, "compress_above = 64\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*servicetest.Patience)
	defer cancel()
	done := make(chan struct{})
	var echoes atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		mode := []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionNoContextTakeover}[i%2]
		c, _, err := websocket.Dial(ctx, "ws://"+s.Addr("ws-echo"), &websocket.DialOptions{CompressionMode: mode})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer c.CloseNow()
			c.SetReadLimit(1 << 20)
			if err := talkWS(ctx, c, done, &echoes); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	grown := func(by int64) {
		t.Helper()
		from := echoes.Load()
		s.Await("the clients go on", func(control.Status) bool { return echoes.Load() >= from+by })
	}
	for range reloads {
		grown(5 * clients)
		s.Reload()
	}
	list, err := s.Control().Connections(ctx, control.ConnectionsRequest{})
	if err != nil || len(list.Connections) != clients {
		t.Errorf("%d connections, %v", len(list.Connections), err)
	}
	for _, c := range list.Connections {
		if c.Generation != reloads+1 {
			t.Errorf("connection of generation %d", c.Generation)
		}
		s.Move(c.ID, 1-c.Slot)
	}
	grown(5 * clients)
	close(done)
	all.Wait()
}

// talkWS sends messages in fragments and wants each of them back, until done
// is closed. Then it closes, and wants that answered.
func talkWS(ctx context.Context, c *websocket.Conn, done <-chan struct{}, echoes *atomic.Int64) error {
	for n := 0; ; n++ {
		select {
		case <-done:
			return c.Close(4001, "enough")
		default:
		}
		kind := []websocket.MessageType{websocket.MessageText, websocket.MessageBinary}[n%2]
		m := strings.Repeat(fmt.Sprintf("message %d, ", n), n%300)
		w, err := c.Writer(ctx, kind)
		if err != nil {
			return err
		}
		for _, part := range []string{m[:len(m)/3], m[len(m)/3:]} {
			if _, err := io.WriteString(w, part); err != nil {
				return err
			}
		}
		if err := w.Close(); err != nil {
			return err
		}
		got, echo, err := c.Read(ctx)
		if err != nil || got != kind || string(echo) != m {
			return fmt.Errorf("message %d: got %v of %d bytes, %w, want %v of %d", n, got, len(echo), err, kind, len(m))
		}
		echoes.Add(1)
	}
}

func TestWebSocketIsHandedOverInTheMiddleOfAnything(t *testing.T) {
	const key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
	s := startWS(t, "compress_above = 1000\n")
	c := s.Dial("ws-echo")
	in := bufio.NewReader(c)
	sent := 0
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		sent += len(text)
	}
	reloaded := func(before, after string) {
		t.Helper()
		send(before)
		s.Await("it is read", func(control.Status) bool {
			list, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{})
			return err == nil && len(list.Connections) == 1 && list.Connections[0].BytesIn == uint64(sent)
		})
		s.Reload()
		send(after)
	}
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if n, err := io.ReadFull(in, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got[:n], err, want)
		}
	}
	reloaded("GET / HTTP/1.1\r\nHost: a\r\nUpgr", key[4:])
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("response %+v, %v", r, err)
	}
	reloaded("\x81\x85\x00\x00\x00\x00he", "llo") // in a frame
	expect("\x81\x05hello")
	reloaded("\x01\x83\x00\x00\x00\x00abc", "\x89\x80\x00\x00\x00\x00\x80\x83\x00\x00\x00\x00def") // between two fragments
	expect("\x8a\x00\x81\x06abcdef")
	reloaded("\x82\xfe\x00", "\x80\x00\x00\x00\x00"+strings.Repeat("x", 128)) // in a header
	expect("\x82\x7e\x00\x80" + strings.Repeat("x", 128))
	reloaded("\xc1\x87\x00\x00\x00\x00\xf2\x48\xcd", "\xc9\xc9\x07\x00") // in a compressed frame
	expect("\x81\x05Hello")
	reloaded("\x41\x83\x00\x00\x00\x00\xf2\x48\xcd", "\x80\x84\x00\x00\x00\x00\xc9\xc9\x07\x00") // between two compressed fragments
	expect("\x81\x05Hello")
	reloaded("\x88\x82\x00\x00\x00\x00\x03", "\xe8") // in a close
	expect("\x88\x02\x03\xe8")
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after the close: %v, want the end", err)
	}
}

func TestWebSocketClientsAreToldWhyTheyHaveToGo(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings string
		end      func(s *servicetest.Service)
		code     websocket.StatusCode
	}{
		{name: "stop", end: (*servicetest.Service).Stop, code: 1001},
		{name: "reload of what does not move", settings: "movable = false\n", end: (*servicetest.Service).Reload, code: 1012},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := servicetest.Start(t, servicetest.Options{
				Listeners: []string{"ws-echo"}, Config: "grace = \"1s\"\nreload.bake = \"10ms\"\n[listener.ws-echo]\n" + tt.settings,
			})
			c, _, err := websocket.Dial(t.Context(), "ws://"+s.Addr("ws-echo"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			told := make(chan error, 1)
			go func() {
				_, _, err := c.Read(t.Context())
				told <- err
			}()
			tt.end(s)
			if err := <-told; websocket.CloseStatus(err) != tt.code {
				t.Errorf("got %v, want code %d", err, tt.code)
			}
		})
	}
}

// nodeTalks sends a message after each echo until its input ends, and then
// closes.
const nodeTalks = `
const WebSocket = require("ws");
const ws = new WebSocket(process.argv.at(-1), { perMessageDeflate: { threshold: 0 } });
const fail = (why) => { console.error(why); process.exit(1); };
let n = 0, over = false, want;
const next = () => { want = ("κόσμε " + n).repeat(n % 500); ws.send(want.slice(0, 3), { fin: false }); ws.ping("" + n); ws.send(want.slice(3), { fin: true }); };
process.stdin.on("end", () => { over = true; }).resume();
ws.on("error", (e) => fail(e.stack));
ws.on("open", next);
ws.on("message", (data) => {
  if (String(data) != want) fail("echo of " + want.length + " is " + data.length);
  console.log(++n);
  if (over) ws.close(4001, "enough"); else setTimeout(next, 1);
});
ws.on("close", (code, reason) => { if (code != 4001 || reason != "enough") fail("close " + code + " " + reason); process.exit(0); });
`

func TestNodeClientNoticesNoReload(t *testing.T) {
	s := startWS(t, "compress_above = 64\n")
	talksOverReloads(t, s, node.Command(t, nodeTalks, "ws://"+s.Addr("ws-echo")))
}

// talksOverReloads runs a client that tells of each echo in a line, until its
// input ends.
func talksOverReloads(t *testing.T, s *servicetest.Service, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	echoes := func() {
		t.Helper()
		for range 20 {
			if !lines.Scan() {
				t.Fatalf("the client has ended: %v", cmd.Wait())
			}
		}
	}
	echoes()
	for range 5 {
		s.Reload()
		echoes()
	}
	stdin.Close()
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// pythonTalks is the same by Python's websockets.
const pythonTalks = `
import asyncio, sys, threading, websockets
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
async def main():
    async with websockets.connect(sys.argv[1], compression="deflate", max_size=None) as ws:
        n = 0
        while not over.is_set():
            text = ("κόσμε %d" % n) * (n % 500 + 1)
            await ws.send([text[:3], text[3:]])
            pong = await ws.ping(str(n))
            if await ws.recv() != text: raise Exception("another echo")
            await ws.send(text.encode())
            if await ws.recv() != text.encode(): raise Exception("another echo of bytes")
            await pong
            n += 1
            print(n, flush=True)
            await asyncio.sleep(0.001)
        await ws.close(4001, "enough")
    if ws.close_code != 4001: raise Exception("closed with %s" % ws.close_code)
asyncio.run(main())
`

// withWebsockets returns a Python that has websockets.
func withWebsockets(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import websockets").Run() == nil {
			return name
		}
	}
	t.Skip("no Python with its package websockets is installed; scripts/install-test-tools does it")
	return ""
}

func TestPythonClientNoticesNoReload(t *testing.T) {
	python := withWebsockets(t)
	s := startWS(t, "compress_above = 64\n")
	cmd := exec.CommandContext(t.Context(), python, "-c", pythonTalks, "ws://"+s.Addr("ws-echo"))
	talksOverReloads(t, s, cmd)
}

// page keeps one WebSocket: after each echo it asks whether it is to go on.
const page = `<!doctype html><title>test</title><script>
const tell = (what) => fetch("/tell?" + what).then((r) => r.text());
const ws = new WebSocket("ADDRESS");
let n = 0;
ws.onopen = () => { tell("open"); ws.send("0"); };
ws.onmessage = async (m) => {
  if (m.data != "" + n) { tell("wrong " + m.data); return; }
  n++;
  if (await tell("echo") == "stop") ws.close(4001, "enough"); else ws.send("" + n);
};
ws.onclose = (e) => tell("close " + e.code + " " + e.wasClean);
</script>`

func TestBrowserKeepsItsWebSocketOverReloads(t *testing.T) {
	s := startWS(t, "origins = [\"http://127.0.0.1:*\"]\ncompress_above = 1\n")
	browserTalks(t, s, "ws://"+s.Addr("ws-echo")+"/")
}

// browserTalks has a browser keep its WebSocket over some reloads.
func browserTalks(t *testing.T, s *servicetest.Service, address string, flags ...string) {
	t.Helper()
	var mu sync.Mutex
	told, stop := map[string]int{}, false
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, strings.ReplaceAll(page, "ADDRESS", address))
		case "/tell":
			mu.Lock()
			defer mu.Unlock()
			told[strings.ReplaceAll(r.URL.RawQuery, "%20", " ")]++
			if stop {
				io.WriteString(w, "stop")
			}
		default:
			http.NotFound(w, r)
		}
	}))
	defer pages.Close()

	browser.Open(t, pages.URL, flags...)
	saw := func(what string, times int) {
		t.Helper()
		s.Await(what+" in the browser", func(control.Status) bool {
			mu.Lock()
			defer mu.Unlock()
			return told[what] >= times
		})
	}
	echoes := func() {
		t.Helper()
		mu.Lock()
		n := told["echo"]
		mu.Unlock()
		saw("echo", n+10)
	}
	echoes()
	for range 5 {
		s.Reload()
		echoes()
	}
	mu.Lock()
	stop = true
	mu.Unlock()
	saw("close 4001 true", 1)
	mu.Lock()
	defer mu.Unlock()
	delete(told, "echo")
	if want := (map[string]int{"open": 1, "close 4001 true": 1}); fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("the page has told %v, want %v", told, want)
	}
}
