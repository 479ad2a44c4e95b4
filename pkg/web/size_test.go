package web

import (
	"net/http"
	"runtime"
	"testing"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/conn"
)

func TestIdleConnectionTakesLittleMemory(t *testing.T) {
	s := start(t, Config{Inline: true, Handler: http.HandlerFunc(echoPath)}, conn.Limits{})
	const n = 500
	heap := func() int64 {
		var m runtime.MemStats
		for range 3 { // what pools hold goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(t, s.addr)
		clients[i].ask(get)
	}
	with := heap()
	s.do(func() { s.set.Drain(conn.DrainPrompt, 0, nil) })
	s.until("they are closed", func() bool { return s.set.Len() == 0 })
	for len(s.conns) > 0 {
		<-s.conns
	}
	got := (with - heap()) / n
	t.Logf("%d bytes of heap an idle connection; %d are conn.Conn, %d this package's", got, unsafe.Sizeof(conn.Conn{}), unsafe.Sizeof(peer{}))
	if size := unsafe.Sizeof(peer{}); unsafe.Sizeof(uintptr(0)) == 8 && size > 80 {
		t.Errorf("a peer has %d bytes, want at most 80, which is what the allocator has", size)
	}
	if own := got - int64(unsafe.Sizeof(conn.Conn{})); own > 128 {
		t.Errorf("%d bytes of heap an idle connection beside its conn.Conn, want at most 128", own)
	}
}
