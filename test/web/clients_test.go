package web

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
	"github.com/mainstay-go/mainstay/test/browser"
	"github.com/mainstay-go/mainstay/test/proxies"
)

// tool returns the path of a program, and skips the test if it is not
// installed.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: %v", name, err)
	}
	return path
}

func TestCurlNoticesNoReload(t *testing.T) {
	curl := tool(t, "curl")
	s := start(t, 1)
	for generation, tt := range []struct{ listener, want string }{{"inline", "0/2 /up 200000"}, {"pool", "0/2 /up 200000"}} {
		upload := exec.CommandContext(t.Context(), curl, "-sS", "--max-time", "30", "--noproxy", "*", "-T", "-", "http://"+s.Addr(tt.listener)+"/up")
		in, err := upload.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		upload.Stdout, upload.Stderr = &out, &out
		if err := upload.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		s.Reload()
		if _, err := in.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		in.Close()
		// On the loop it moves in the middle; a handler is waited for.
		want := fmt.Sprintf("0/%d /up 200000", generation+2)
		if err := upload.Wait(); err != nil || out.String() != want && (tt.listener == "inline" || out.String() != fmt.Sprintf("0/%d /up 200000", generation+1)) {
			t.Errorf("%s: %v: %s, want %s", tt.listener, err, &out, want)
		}
	}
}

// curl sends many requests on one connection, and the service is reloaded
// meanwhile: it is the same connection to the end.
func TestCurlKeepsItsConnection(t *testing.T) {
	curl := tool(t, "curl")
	for _, listener := range []string{"inline", "pool"} {
		t.Run(listener, func(t *testing.T) {
			s := start(t, 1)
			asks := exec.CommandContext(t.Context(), curl, "-sS", "--max-time", "60", "--noproxy", "*", "-w", " %{num_connects}\\n", "http://"+s.Addr(listener)+"/[1-8000]")
			asks.Stderr = os.Stderr
			out, err := asks.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := asks.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			by := map[string]bool{}
			for n := 1; lines.Scan(); n++ {
				who, rest, _ := strings.Cut(lines.Text(), " ")
				by[who] = true
				connects := 0
				if n == 1 {
					connects = 1
				}
				if want := fmt.Sprintf("/%d 0 %d", n, connects); rest != want {
					t.Fatalf("answer %d: %q, want %q", n, rest, want)
				}
				if n == 10 || n == 20 { // curl waits in its pipe
					s.Reload()
				}
			}
			if err := asks.Wait(); err != nil || len(by) < 2 {
				t.Errorf("%v, answered by %v, want more than one", err, by)
			}
		})
	}
}

// curl waits for 100 before it sends the body, though not for ever.
func TestCurlIsToldToGoOn(t *testing.T) {
	curl := tool(t, "curl")
	s := start(t, 1)
	for _, listener := range []string{"inline", "pool"} {
		for _, args := range [][]string{{"--data-binary", "@-"}, {"-T", "-"}} { // with a length, and chunked
			asks := exec.CommandContext(t.Context(), curl, append(args, "-sS", "-v", "--max-time", "60", "--noproxy", "*", "--expect100-timeout", "60",
				"-H", "Expect: 100-continue", "http://"+s.Addr(listener)+"/up")...)
			asks.Stdin = strings.NewReader(strings.Repeat("x", 100_000))
			var out, log bytes.Buffer
			asks.Stdout, asks.Stderr = &out, &log
			err := asks.Run()
			if err != nil || out.String() != "0/1 /up 100000" || !strings.Contains(log.String(), "< HTTP/1.1 100 Continue") {
				t.Errorf("%s %v: %v: %s\n%s", listener, args, err, &out, &log)
			}
		}
	}
}

// page keeps an EventSource and a WebSocket, and tells who serves them, and
// what else becomes of them.
const page = `<!doctype html><title>test</title><script>
const where = new URLSearchParams(location.search).get("tell");
const tell = (what) => fetch(where + "/?" + what, { mode: "no-cors" });
const seen = (kind, by) => { if (by != seen[kind]) { seen[kind] = by; tell(kind + " by " + by); } };
const events = new EventSource("/events");
let next = 1;
events.onopen = () => tell("events open");
events.onerror = () => tell("events broken");
events.addEventListener("n", (e) => {
  if (e.lastEventId != "" + next++) tell("events out of order");
  seen("events", e.data.split("\n")[0]);
});
const ws = new WebSocket("ws://" + location.host + "/ws");
let n = 0;
ws.onopen = () => { tell("socket open"); ws.send("hello"); };
ws.onclose = (e) => tell("socket closed " + e.code);
ws.onmessage = (m) => {
  const [by, text, count] = m.data.split(" ");
  if (text != "hello" || count != "" + ++n) tell("socket out of order");
  seen("socket", by);
  setTimeout(() => ws.send("hello"), 1);
};
</script>`

func TestPageInABrowserNoticesNoReload(t *testing.T) {
	s := start(t, 1)
	var mu sync.Mutex
	told := map[string]int{}
	ear := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what, err := url.QueryUnescape(r.URL.RawQuery)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		told[what]++
	}))
	defer ear.Close()
	browser.Open(t, "http://"+s.Addr("inline")+"/page?tell="+ear.URL)
	for generation := 1; generation <= 4; generation++ {
		if generation > 1 {
			s.Reload()
		}
		for _, kind := range []string{"events", "socket"} {
			what := fmt.Sprintf("%s by 0/%d", kind, generation)
			s.Await(what, func(control.Status) bool {
				mu.Lock()
				defer mu.Unlock()
				return told[what] == 1
			})
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for what, times := range told {
		if !strings.Contains(what, " by ") && !strings.HasSuffix(what, " open") && what != "" || times != 1 {
			t.Errorf("the page has told %q %d times", what, times)
		}
	}
	if told["events open"] != 1 || told["socket open"] != 1 {
		t.Errorf("the page has told %v", told)
	}
}

const pythonClient = `
import http.client, sys
c = http.client.HTTPConnection(sys.argv[1], timeout=30)
ports = set()
for line in sys.stdin:
    c.request("POST", "/up", body=iter([b"hello", b"moon"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    r = c.getresponse()
    text = r.read().decode()
    ports.add(c.sock.getsockname())
    print(r.status, text, len(ports), flush=True)
`

func TestPythonKeepsItsConnection(t *testing.T) {
	python := tool(t, "python3")
	s := start(t, 1)
	cmd := exec.CommandContext(t.Context(), python, "-c", pythonClient, s.Addr("inline"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			s.Reload()
			gone(s, uint64(generation))
		}
		io.WriteString(in, "ask\n")
		want := fmt.Sprintf("200 0/%d /up 9 1", generation)
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

const nginxConf = `
	upstream app { server SERVER; keepalive 8; }
	map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
	server {
		listen ADDR;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection $connection_upgrade;
			proxy_set_header Upgrade $http_upgrade;
			proxy_request_buffering off;
			proxy_next_upstream off;
		}
	}
`

const haproxyConf = `
defaults
	mode http
	timeout connect 10s
	timeout client 60s
	timeout server 60s
	timeout tunnel 60s
	retries 0
frontend front
	bind ADDR
	default_backend back
backend back
	http-reuse always
	server app SERVER
`

// Proxies keep their connections to the service, and send requests of all
// clients over them: not one may fail, though the service is reloaded.
func TestProxiesInFrontNoticeNoReload(t *testing.T) {
	for name, front := range map[string]func(t *testing.T, server string) *proxies.Proxy{
		"nginx": func(t *testing.T, server string) *proxies.Proxy {
			return proxies.Nginx(t, strings.ReplaceAll(nginxConf, "SERVER", server), "")
		},
		"haproxy": func(t *testing.T, server string) *proxies.Proxy {
			return proxies.HAProxy(t, strings.ReplaceAll(haproxyConf, "SERVER", server))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, 2)
			addr := front(t, s.Addr("inline")).Addr
			var clients sync.WaitGroup
			defer clients.Wait()
			stop := make(chan struct{})
			defer close(stop)
			transport := new(http.Transport)
			t.Cleanup(transport.CloseIdleConnections)
			asker := &http.Client{Transport: transport, Timeout: servicetest.Patience}
			for range 4 {
				clients.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						body := strings.Repeat("x", n%5*1000)
						r, err := asker.Post("http://"+addr+"/up", "text/plain", io.NopCloser(strings.NewReader(body))) // chunked
						if err != nil {
							t.Errorf("request %d: %v", n, err)
							return
						}
						text, err := io.ReadAll(r.Body)
						r.Body.Close()
						if err != nil || r.StatusCode != 200 || !strings.HasSuffix(string(text), fmt.Sprintf(" /up %d", len(body))) {
							t.Errorf("request %d: %d %s, %v", n, r.StatusCode, text, err)
							return
						}
					}
				})
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, stream := range []func(*client, context.Context) string{readEvents, talk} {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				c.SetDeadline(time.Now().Add(servicetest.Patience))
				clients.Go(func() {
					if problem := stream(&client{t, c, bufio.NewReader(c)}, ctx); problem != "" {
						t.Error(problem)
					}
				})
			}
			for range 3 {
				s.Reload()
			}
			gone(s, 4)
		})
	}
}
