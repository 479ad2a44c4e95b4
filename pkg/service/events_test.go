package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestEventsAreEncodedAsBrowsersReadThem(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event Event
		want  string
		err   error
	}{
		{name: "nothing", want: "data: \n\n"},
		{name: "all", event: Event{ID: "7", Name: "n", Data: []byte("a"), Retry: 1500 * time.Millisecond}, want: "id: 7\nevent: n\nretry: 1500\ndata: a\n\n"},
		{name: "lines", event: Event{Data: []byte("a\nb\r\nc\rd\n")}, want: "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"},
		{name: "a carriage return at the end", event: Event{Data: []byte("a\r")}, want: "data: a\ndata: \n\n"},
		{name: "data that looks like a field", event: Event{Data: []byte("x\nid: 1\n\n")}, want: "data: x\ndata: id: 1\ndata: \ndata: \n\n"},
		{name: "a line's end in the ID", event: Event{ID: "1\ndata: x"}, err: ErrEvent},
		{name: "NUL in the ID", event: Event{ID: "\x00"}, err: ErrEvent},
		{name: "a line's end in the name", event: Event{Name: "a\rb"}, err: ErrEvent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := EncodeEvent(tt.event)
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

// readText reads until the text ends so.
func readText(t *testing.T, r *bufio.Reader, end string) (text string) {
	t.Helper()
	for !strings.HasSuffix(text, end) {
		line, err := r.ReadString('\n')
		if text += line; err != nil {
			t.Fatalf("after %q: %v", text, err)
		}
	}
	return text
}

func TestStreamOfEventsIsServed(t *testing.T) {
	closed := make(chan error, 1)
	type state struct{ Name string }
	stream := Events[state]{
		Inline: true, Heartbeat: 10 * time.Millisecond,
		OnRequest: func(r *http.Request) (state, error) { return state{r.URL.Query().Get("name")}, nil },
		Header: func(r *http.Request) http.Header {
			return http.Header{"Access-Control-Allow-Origin": {"*"}, "Content-Length": {"5"}, "Content-Type": {"text/plain"}, "Connection": {"keep-alive"}, "Cache-Control": {"no-cache"}}
		},
		OnConnect: func(c *EventStream[state]) {
			if err := c.Send(Event{Data: []byte("welcome " + c.State.Name)}); err != nil {
				t.Error(err)
			}
			if err := c.Send(Event{ID: "\n"}); !errors.Is(err, ErrEvent) {
				t.Errorf("Send: %v", err)
			}
			c.SetTimer("heartbeat", time.Millisecond) // the application's, whatever ours is called
		},
		OnTimer: func(c *EventStream[state], name string) {
			e, err := EncodeEvent(Event{Name: "timer", Data: []byte(name)})
			if err == nil {
				err = c.SendEncoded(e)
			}
			if err != nil {
				t.Error(err)
			}
		},
		OnClose: func(_ *EventStream[state], why error) { closed <- why },
	}
	c := serve(t, Web{Inline: true, Streams: map[string]Stream{"/events": stream}})
	fmt.Fprint(c, "GET /events?name=me HTTP/1.1\r\nHost: h\r\n\r\nwhatever it still sends")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*", "Content-Length": ""} {
		if got := strings.Join(r.Header[name], " and "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	in := bufio.NewReader(r.Body)
	if got, want := readText(t, in, "\n\n"), "data: welcome me\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	seen := map[string]int{}
	for seen[":\n\n"] < 2 || seen["event: timer\ndata: heartbeat\n\n"] < 1 {
		seen[readText(t, in, "\n\n")]++
	}
	if len(seen) != 2 || seen["event: timer\ndata: heartbeat\n\n"] != 1 {
		t.Errorf("got %v", seen)
	}
	c.Close()
	if why := <-closed; !errors.Is(why, ErrPeerClosed) && !errors.Is(why, ErrReset) {
		t.Errorf("OnClose with %v", why)
	}
}

func TestStreamsThatCannotBeAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		streams map[string]Stream
		set     listenerConfig
		want    string // in the error; empty: none
	}{
		{name: "events", streams: map[string]Stream{"/e": Events[none]{}}, set: listenerConfig{MaxMessage: 10, Origins: []string{"*"}}},
		{name: "both", streams: map[string]Stream{"/e": Events[none]{}, "/w": WebSocket[none]{}}},
		{name: "no path", streams: map[string]Stream{"e": Events[none]{}}, want: `stream at "e"`},
		{name: "a path with a query", streams: map[string]Stream{"/e?a": Events[none]{}}, want: `stream at "/e?a"`},
		{name: "nothing there", streams: map[string]Stream{"/e": nil}, want: `stream at "/e"`},
		{name: "limits", streams: map[string]Stream{"/e": Events[none]{Limits: Limits{SendHigh: 2, SendHard: 1}}}, want: "SendHigh 2"},
		{name: "an origin", streams: map[string]Stream{"/w": WebSocket[none]{}}, set: listenerConfig{Origins: []string{"["}}, want: "origin"},
		{name: "origins of nothing", set: listenerConfig{Origins: []string{"*"}}, want: "only WebSocket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Web{Streams: tt.streams}.listener("main", tt.set)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q in it", err, tt.want)
				}
				return
			}
			if err != nil || len(l.Conn.Becomes) != len(tt.streams) {
				t.Errorf("got %+v, %v", l.Conn, err)
			}
		})
	}
}

type none = struct{}

func TestRequestForEventsIsRefusedWithAStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		status int
		body   string
	}{
		{name: "by a Refusal", err: &Refusal{Status: 429, Body: "later\n"}, status: 429, body: "later\n"},
		{name: "by any error", err: errors.New("secret"), status: 403, body: "Forbidden\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, Web{Inline: true, Streams: map[string]Stream{"/": Events[none]{
				Inline:    true,
				OnRequest: func(*http.Request) (none, error) { return none{}, tt.err },
				OnClose:   func(*EventStream[none], error) { t.Error("OnClose of a stream that never was") },
			}}})
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(r.Body); r.StatusCode != tt.status || !r.Close || string(body) != tt.body || err != nil {
				t.Errorf("got %d, close %v, %q, %v", r.StatusCode, r.Close, body, err)
			}
		})
	}
}
