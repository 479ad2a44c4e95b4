package main

import (
	"context"
	"net/http"
	"testing"

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, main) }

// client is somebody in a room.
type client struct {
	t   *testing.T
	ctx context.Context
	c   *websocket.Conn
}

func enter(t *testing.T, s *servicetest.Service, path string) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), servicetest.Patience)
	t.Cleanup(cancel)
	c, _, err := websocket.Dial(ctx, "ws://"+s.Addr("ws")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	return &client{t, ctx, c}
}

func (c *client) say(text string) {
	c.t.Helper()
	if err := c.c.Write(c.ctx, websocket.MessageText, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) hears(want ...string) {
	c.t.Helper()
	for _, want := range want {
		if _, got, err := c.c.Read(c.ctx); err != nil || string(got) != want {
			c.t.Fatalf("heard %q, %v, want %q", got, err, want)
		}
	}
}

func TestPeopleTalkInRoomsAcrossReloads(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"ws"}, Config: "reload.bake = \"10ms\"\n"})
	ann := enter(t, s, "/tea?name=Ann")
	ann.hears("Ann is here")
	eve := enter(t, s, "/attic?name=Eve")
	eve.hears("Eve is here")
	bob := enter(t, s, "/tea?name=Bob")
	bob.hears("Bob is here")
	ann.hears("Bob is here")
	for range 3 {
		ann.say("tea?")
		bob.hears("Ann: tea?")
		bob.say("please")
		ann.hears("Ann: tea?", "Bob: please")
		bob.hears("Bob: please")
		s.Reload()
	}
	if err := bob.c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	ann.hears("Bob has left")
	eve.say("anybody?")
	eve.hears("Eve: anybody?")
}

func TestPeopleAreStillWhoTheyAreWhenTheirWorkerIsKilled(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"ws"}, Config: "respawn.first = \"10ms\"\n"})
	ann := enter(t, s, "/tea?name=Ann")
	ann.hears("Ann is here")
	eve := enter(t, s, "/attic?name=Eve")
	eve.hears("Eve is here")
	s.Kill(0)
	ann.say("tea?")
	ann.hears("Ann: tea?")
	eve.say("anybody?")
	eve.hears("Eve: anybody?")
}

func TestNobodyEntersWithoutAName(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"ws"}})
	_, r, err := websocket.Dial(t.Context(), "ws://"+s.Addr("ws")+"/tea", nil)
	if err == nil || r == nil || r.StatusCode != http.StatusBadRequest {
		t.Errorf("response %v, %v, want 400", r, err)
	}
}
