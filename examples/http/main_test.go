package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, main) }

func TestNumbersGoOnOverAReload(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"http"}, Config: "reload.bake = \"10ms\"\n"})
	client := &http.Client{Timeout: servicetest.Patience, Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	r, err := http.NewRequest("GET", "http://"+s.Addr("http")+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", "6")
	began := time.Now()
	a, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if a.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("header %v", a.Header)
	}
	in := bufio.NewReader(a.Body)
	event := func() (text string) {
		for line := ""; line != "\n"; text += line {
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatalf("after %q, %v: %v", text+line, time.Since(began), err)
			}
		}
		return text
	}
	if got, want := event(), "id: 7\ndata: 7, from worker 0, generation 1\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s.Reload()
	for n, generation := 8, 1; generation < 2; n++ {
		got := event()
		if strings.Contains(got, "generation 2") {
			generation = 2
		}
		if want := fmt.Sprintf("id: %d\ndata: %d, from worker 0, generation %d\n\n", n, n, generation); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestNumbersGoOnWhenTheirWorkerIsKilled(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"http"}, Config: "respawn.first = \"10ms\"\n"})
	c := s.Dial("http")
	if _, err := io.WriteString(c, "GET /events HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for n, killed := 1, false; n <= 4; n++ {
		want := fmt.Sprintf("data: %d, from worker 0, generation 1\n", n)
		for line := ""; line != want; {
			var err error
			if line, err = in.ReadString('\n'); err != nil || strings.HasPrefix(line, "data: ") && line != want {
				t.Fatalf("got %q, %v, want %q", line, err, want)
			}
		}
		if n >= 2 && !killed {
			killed = true
			s.ID(c) // which the worker says behind the event that it has just sent
			s.Kill(0)
		}
	}
}

func TestPageAndUploadAreServed(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"http"}})
	client := &http.Client{Timeout: servicetest.Patience, Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	for _, tt := range []struct{ method, path, body, want string }{
		{method: "GET", path: "/", want: page},
		{method: "POST", path: "/count", body: strings.Repeat("a", 300_000), want: "300000 bytes, counted by worker 0, generation 1\n"},
		{method: "GET", path: "/none", want: "404 page not found\n"},
	} {
		r, err := http.NewRequest(tt.method, "http://"+s.Addr("http")+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		a, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(a.Body)
		a.Body.Close()
		if err != nil || string(got) != tt.want {
			t.Errorf("%s %s: got %.60q, %v", tt.method, tt.path, got, err)
		}
	}
}
