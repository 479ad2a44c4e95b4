// Command chat is a whole service: rooms in which people talk by WebSocket.
// Run it with "go run ./examples/chat run", open ws://127.0.0.1:8080/ROOM?name=NAME
// from any client but a page of another host, and say "go run ./examples/chat
// reload --wait": nobody has to come back.
//
// A room is the people whom one worker serves, so run it with one, "--workers
// 1". While a reload hands them over, for some milliseconds, it is in two.
package main

import (
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/mainstay-go/mainstay/pkg/service"
)

// user is what the service knows of a connection. It travels with it, and
// outlives its worker, because OnConnect saves it.
type user struct{ Name, Room string }

type conn = service.Conn[user]

// rooms are the connections of this worker. They are made anew by OnAdopt
// where connections arrive.
type rooms struct {
	mu  sync.Mutex
	all map[string]map[*conn]bool
}

func (r *rooms) enter(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[c.State.Room] == nil {
		r.all[c.State.Room] = map[*conn]bool{}
	}
	r.all[c.State.Room][c] = true
}

func (r *rooms) leave(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all[c.State.Room], c)
	if len(r.all[c.State.Room]) == 0 {
		delete(r.all, c.State.Room)
	}
}

// say sends a text to all of a room. It is encoded once.
func (r *rooms) say(room, text string) {
	m := service.Prepare(service.Message{Data: []byte(text)})
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.all[room] {
		if errors.Is(c.SendPrepared(m), service.ErrMoved) {
			delete(r.all[room], c)
		}
	}
}

func main() {
	s := service.New("chat")
	r := &rooms{all: map[string]map[*conn]bool{}}
	s.Listen("ws", "tcp://127.0.0.1:8080", service.WebSocket[user]{
		OnUpgrade: func(q *http.Request) (user, error) {
			u := user{Name: q.FormValue("name"), Room: strings.Trim(q.URL.Path, "/")}
			if u.Name == "" || len(u.Name+u.Room) > 32 { // Save keeps 256 bytes of JSON
				return u, &service.Refusal{Status: http.StatusBadRequest, Body: "who are you?\n"}
			}
			return u, nil
		},
		OnConnect: func(c *conn) { c.Save(); r.enter(c); r.say(c.State.Room, c.State.Name+" is here") },
		OnAdopt:   func(c *conn, why service.Reason) { r.enter(c) },
		OnMessage: func(c *conn, m service.Message) { r.say(c.State.Room, c.State.Name+": "+string(m.Data)) },
		OnClose:   func(c *conn, why error) { r.leave(c); r.say(c.State.Room, c.State.Name+" has left") },
	})
	s.Main()
}
