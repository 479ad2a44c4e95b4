package service

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/websocket"
)

func TestIdleWebSocketTakesLittleMemory(t *testing.T) {
	w := newWorkers(t, WebSocket[struct{}]{Inline: true, OnMessage: func(c *Conn[struct{}], m Message) { c.SendMessage(m) }}, listenerConfig{})
	const n = 500
	heap := func() int64 {
		var m runtime.MemStats
		for range 3 { // what pools hold goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	clients := make([]*peer, n)
	for i := range clients {
		clients[i] = w.peer()
		clients[i].open(&websocket.RequestOptions{})
		clients[i].text("hello")
		clients[i].expect("hello")
	}
	with := heap()
	w.do(0, func(s *conn.Set) { s.Each(func(c *conn.Conn) { c.CloseNow(nil) }) })
	for again := true; again; {
		w.do(0, func(s *conn.Set) { again = s.Len() > 0 })
	}
	got := (with - heap()) / n
	runtime.KeepAlive(clients)
	t.Logf("%d bytes of heap an idle connection; %d are conn.Conn, %d its websocket.Session, %d its Conn[struct{}]",
		got, unsafe.Sizeof(conn.Conn{}), unsafe.Sizeof(websocket.Session{}), unsafe.Sizeof(Conn[struct{}]{}))
	if own := got - int64(unsafe.Sizeof(conn.Conn{})); own > 330 {
		t.Errorf("%d bytes of heap an idle connection beside its conn.Conn, want at most 330", own)
	}
}
