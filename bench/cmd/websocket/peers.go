package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"
)

// roles are the peers that are this binary itself, each an echo on a port of
// loopback, written as its documentation has it.
var roles = map[string]func(addr string) error{
	"gws":     serveGWS,
	"gorilla": serveGorilla,
	"coder":   serveCoder,
}

// rolePrefix begins the first argument of such a process.
const rolePrefix = "serve-"

// roleNames are those of roles, in the order of the tables.
var roleNames = []string{"gws", "gorilla", "coder"}

// roleCommand is the command of one of them.
func roleCommand(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("websocket: %w", err)
	}
	return name + "=" + self + " " + rolePrefix + name + " {port}", nil
}

// playRole is such a process, if the arguments ask for one.
func playRole(args []string) (played bool, err error) {
	if len(args) != 2 {
		return false, nil
	}
	i := slices.IndexFunc(roleNames, func(name string) bool { return rolePrefix+name == args[0] })
	if i < 0 {
		return false, nil
	}
	return true, roles[roleNames[i]]("127.0.0.1:" + args[1])
}

type gwsEcho struct{ gws.BuiltinEventHandler }

func (gwsEcho) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	_ = c.WriteMessage(m.Opcode, m.Bytes()) // it is over otherwise, which OnClose is told
}

func serveGWS(addr string) error {
	s := gws.NewServer(gwsEcho{}, nil)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.OnError = func(net.Conn, error) {}
	return s.RunListener(l)
}

func serveGorilla(addr string) error {
	var upgrader gorilla.Upgrader
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, m, err := c.ReadMessage()
			if err != nil {
				return
			}
			if err := c.WriteMessage(kind, m); err != nil {
				return
			}
		}
	}))
}

func serveCoder(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := coder.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, m, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), kind, m); err != nil {
				return
			}
		}
	}))
}
