package service

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
)

func ExampleUpgrade() {
	type guest struct{ Name string }
	hall := WebSocket[guest]{
		OnMessage: func(c *Conn[guest], m Message) { _ = c.Send(append([]byte(c.State.Name+": "), m.Data...)) },
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /chat", func(w http.ResponseWriter, r *http.Request) {
		user, _, ok := r.BasicAuth() // or whatever the application checks
		if !ok {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "user", Value: user}) // goes with the answer
		if err := Upgrade(w, r, "hall", guest{Name: user}); err != nil {
			fmt.Println(err) // the client has been told
		}
	})
	s := New("app")
	s.Listen("web", "tcp://127.0.0.1:8080", HTTP{Handler: mux, WebSockets: map[string]Stream{"hall": hall}})
	// s.Main()

	// Elsewhere, as in a test of the handler without the service, it refuses:
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/chat", nil)
	r.SetBasicAuth("ann", "secret")
	mux.ServeHTTP(w, r)
	fmt.Println(w.Code)
	// Output:
	// websocket: handshake refused with 500: worker: the request has come by no listener of HTTP
	// 500
}

func TestRequestThatIsNotServedIsAnswered(t *testing.T) {
	w := httptest.NewRecorder()
	err := Upgrade(w, httptest.NewRequest("GET", "/", nil), "hall", 1)
	refusal, ok := errors.AsType[*Refusal](err)
	if !errors.Is(err, ErrNotServed) || !ok || refusal.Status != 500 || w.Code != 500 {
		t.Errorf("got %v and status %d, want ErrNotServed and 500", err, w.Code)
	}
}

// asking is a request for a WebSocket.
func asking(change func(*http.Request)) *http.Request {
	r := httptest.NewRequest("GET", "http://example.org/chat?room=1", nil)
	for name, value := range map[string]string{
		"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	} {
		r.Header.Set(name, value)
	}
	r.RequestURI, r.Proto = "/chat?room=1", "HTTP/1.1"
	if change != nil {
		change(r)
	}
	return r
}

func TestHeadIsWrittenDownAsItCame(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*http.Request)
		want   string // of the parser: what it has, or its error
	}{
		{name: "as it is", want: `/chat?room=1 example.org "" []`},
		{name: "a router has cut the path", change: func(r *http.Request) { r.URL.Path = "/" }, want: `/chat?room=1 example.org "" []`},
		{name: "fields", change: func(r *http.Request) {
			r.Header.Set("Origin", "https://example.org")
			r.Header["Sec-Websocket-Protocol"] = []string{"a, b", "c"}
			r.Header.Set("Cookie", "a=b; c=d")
		}, want: `/chat?room=1 example.org "https://example.org" [a b c]`},
		{name: "a field that was set to two lines", change: func(r *http.Request) { r.Header.Set("X", "a\r\nOrigin: b") }, want: `/chat?room=1 example.org "" []`},
		{name: "POST", change: func(r *http.Request) { r.Method = "POST" }, want: "405: method POST, want GET"},
		{name: "HTTP/2", change: func(r *http.Request) { r.Proto = "HTTP/2.0" }, want: "505: request of HTTP/2.0, want HTTP/1.1"},
		{name: "HTTP/1.0", change: func(r *http.Request) { r.Proto = "HTTP/1.0" }, want: "505: request of HTTP/1.0, want HTTP/1.1"},
		{name: "no upgrade", change: func(r *http.Request) { r.Header.Del("Upgrade") }, want: "426: request for something else than websocket"},
		{name: "no host", change: func(r *http.Request) { r.Host = "" }, want: `400: host ""`},
		{name: "another host in a field", change: func(r *http.Request) { r.Header.Set("Host", "b") }, want: "400: field Host more than once"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			head := headOf(asking(tt.change))
			got := ""
			u, err := websocket.ParseRequest(head)
			if refusal, ok := errors.AsType[*Refusal](err); ok {
				got = fmt.Sprintf("%d: %v", refusal.Status, refusal.Err)
			} else if err != nil {
				t.Fatal(err)
			} else {
				got = fmt.Sprintf("%s %s %q %v", u.Target, u.Host, u.Origin, u.Protocols)
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %s, want %s; head\n%s", got, tt.want, head)
			}
		})
	}
}

func TestAnswerHasTheFieldsOfTheHandler(t *testing.T) {
	h := &web[int]{WebSocket: WebSocket[int]{Subprotocols: []string{"chat"}, CompressAbove: 1}}
	fields := http.Header{
		"Set-Cookie": {"a=b", "c=d"}, "Content-Type": {"text/html"}, "Content-Length": {"5"}, "Connection": {"close"},
		"Upgrade": {"h2c"}, "Transfer-Encoding": {"chunked"}, "Sec-Websocket-Protocol": {"other"}, "sec-websocket-accept": {"x"},
	}
	before := fields.Clone()
	answer, err := h.accept(fields, asking(func(r *http.Request) { r.Header.Set("Sec-WebSocket-Protocol", "chat") }))
	if err != nil {
		t.Fatal(err)
	}
	want := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n" +
		"Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n"
	if got := string(answer[1:]); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !reflect.DeepEqual(fields, before) {
		t.Errorf("the handler's fields have become %v", fields)
	}
	if _, err := h.accept(http.Header{"X": {"a\nb"}}, asking(nil)); err == nil {
		t.Error("a field with two lines was sent")
	}
	for name, change := range map[string]func(*http.Request){
		"origin":   func(r *http.Request) { r.Header.Set("Origin", "https://elsewhere.example") },
		"body":     func(r *http.Request) { r.ContentLength = 3 },
		"chunks":   func(r *http.Request) { r.ContentLength = -1 },
		"POST":     func(r *http.Request) { r.Method = "POST" },
		"HTTP/2.0": func(r *http.Request) { r.Proto = "HTTP/2.0" },
	} {
		_, err := h.accept(nil, asking(change))
		status := map[string]int{"origin": 403, "body": 400, "chunks": 400, "POST": 405, "HTTP/2.0": 505}[name]
		if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Status != status {
			t.Errorf("%s: got %v, want a refusal with %d", name, err, status)
		}
	}
}

func TestRefusalIsAnsweredByNetHTTP(t *testing.T) {
	for status, want := range map[int]http.Header{
		426: {"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"}},
		405: {"Allow": {"GET"}},
		503: {},
	} {
		w := httptest.NewRecorder()
		if err := refuse(w, &Refusal{Status: status}); err == nil || w.Code != status {
			t.Errorf("%d: %v and status %d", status, err, w.Code)
		}
		for name := range want {
			if got := w.Header().Get(name); got != want.Get(name) {
				t.Errorf("%d: %s is %q, want %q", status, name, got, want.Get(name))
			}
		}
	}
}

func TestWebSocketsOfNetHTTPTakeTheOperatorsSettings(t *testing.T) {
	movable := false
	set := listenerConfig{
		Origins: []string{"https://*.example.org"}, CompressAbove: 77, PingInterval: 2 * time.Second, PongTimeout: 3 * time.Second,
		MaxMessage: 1 << 17, SendHigh: 100, SendLow: 10, SendLimit: 1000, WriteTimeout: 4 * time.Second, CloseTimeout: 5 * time.Second,
		Movable: &movable, MessageTimeout: 6 * time.Second, IdleTimeout: 7 * time.Second, MaxConnections: 8,
	}
	l, err := HTTP{WebSockets: map[string]Stream{"a": WebSocket[int]{}, "b": WebSocket[string]{}}}.listener("main", set)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for name, c := range l.Upgrades {
		names[c.ProtocolName] = true
		if c.ProbeAfter != 2*time.Second || c.ProbeWait != 3*time.Second || !c.Pinned {
			t.Errorf("%s: %v, %v, pinned %v", name, c.ProbeAfter, c.ProbeWait, c.Pinned)
		}
		limits := c.Limits
		if limits.MaxMessage != 1<<17+1 || limits.SendHigh != 100 || limits.SendLow != 10 || limits.SendHard != 1000 || limits.WriteStall != 4*time.Second || limits.Close != 5*time.Second {
			t.Errorf("%s: %+v", name, limits)
		}
		if limits.Idle != 0 || limits.Message != 0 {
			t.Errorf("%s: %+v has the timeouts of HTTP", name, limits)
		}
	}
	h := l.Upgrades["a"].Handler.(*web[int])
	if len(names) != 2 || h.CompressAbove != 77 || len(h.Origins) != 1 {
		t.Errorf("%v, %+v", names, h.WebSocket)
	}
	if l.HTTPLimits.Header != 6*time.Second || l.HTTPLimits.Idle != 7*time.Second || l.HTTPLimits.Stall != 4*time.Second || l.Accept.Connections != 8 {
		t.Errorf("%+v, %+v", l.HTTPLimits, l.Accept)
	}
}

func TestUnusableUpgradeIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name       string
		webSockets map[string]Stream
		set        listenerConfig
		want       string
	}{
		{name: "nothing", webSockets: map[string]Stream{"a": nil}, want: `WebSocket "a": want a name`},
		{name: "no name", webSockets: map[string]Stream{"": WebSocket[int]{}}, want: `WebSocket "": want a name`},
		{name: "events", webSockets: map[string]Stream{"a": Events[int]{}}, want: `WebSocket "a": it is none`},
		{name: "a hook", webSockets: map[string]Stream{"a": WebSocket[int]{OnUpgrade: func(*http.Request) (int, error) { return 0, nil }}}, want: "the Handler decides"},
		{name: "fields", webSockets: map[string]Stream{"a": WebSocket[int]{Header: func(*http.Request) http.Header { return nil }}}, want: "the Handler decides"},
		{name: "an origin", webSockets: map[string]Stream{"a": WebSocket[int]{}}, set: listenerConfig{Origins: []string{"["}}, want: "origin"},
		{name: "a setting without one", set: listenerConfig{PingInterval: 1}, want: "WebSockets would have it"},
		{name: "a setting of neither", webSockets: map[string]Stream{"a": WebSocket[int]{}}, set: listenerConfig{AuthTimeout: 1}, want: "pong_timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := (HTTP{WebSockets: tt.webSockets}).listener("main", tt.set); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
