package conn

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/text"
	"golang.org/x/sys/unix"
)

// rawPair connects a blocking descriptor, which the test closes, with a new
// connection.
func (r *rig) rawPair(cfg *Config) (client int, c *Conn) {
	r.t.Helper()
	ours, theirs := socketpair(r.t, unix.SOCK_STREAM)
	if err := unix.SetNonblock(theirs, false); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Close(theirs) })
	return theirs, r.accepted(ours, nil, cfg)
}

// roundTrip writes m and reads it back.
func roundTrip(t testing.TB, fd int, m, buf []byte) {
	if _, err := unix.Write(fd, m); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(m); {
		k, err := unix.Read(fd, buf[n:])
		if k <= 0 {
			t.Fatalf("read %d, %v", k, err)
		}
		n += k
	}
}

// echoHandler is as little of an application as can be.
type echoHandler struct{ NopHandler }

func (echoHandler) OnMessage(c *Conn, m []byte) { _ = c.Send(m) }

func TestInlineMessagesCostNoAllocation(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol wire.Protocol
		in       string
	}{
		{"raw", wire.Raw{}, "hello"},
		{"lines", text.Protocol{}, "hello\nhello\nhello\nhello\n"},
	} {
		r := newRig(t)
		cfg := r.config(echoHandler{}, true)
		cfg.Protocol = tt.protocol
		fd, _ := r.rawPair(cfg)
		m, buf := []byte(tt.in), make([]byte, 4096)
		// A collection empties the pools of buffers, and then one is made anew.
		got := testing.AllocsPerRun(2000, func() { roundTrip(t, fd, m, buf) })
		if got >= 0.1 && !raceEnabled {
			t.Errorf("%s: %v allocations a message, want none", tt.name, got)
		}
	}
}

func TestIdleConnectionIsSmall(t *testing.T) {
	const (
		conns = 4000
		want  = 384
	)
	r := newRig(t)
	cfg := r.config(echoHandler{}, true)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < 2*conns+100 {
		t.Skipf("the descriptor limit is %d, the measure needs %d", limit.Cur, 2*conns+100)
	}
	clients := make([]int, conns)
	ours := make([]int, conns)
	for i := range clients {
		ours[i], clients[i] = socketpair(t, unix.SOCK_STREAM)
		defer unix.Close(clients[i])
	}
	peer := &unix.SockaddrInet6{Port: 65535, Addr: [16]byte{0: 0x20, 1: 0x01, 3: 1, 5: 1, 7: 1, 9: 1, 11: 1, 13: 1, 15: 1}}
	measure := func() uint64 {
		runtime.GC()
		runtime.GC() // the first only ages the pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := measure()
	r.do(func() {
		for _, fd := range ours {
			c, err := r.set.open(fd, nil, cfg)
			if err != nil {
				t.Error(err)
				return
			}
			c.peer = address(peer) // longer than most; a TCP socket each would need too many ports
		}
	})
	buf := make([]byte, 64)
	for _, fd := range clients {
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, fd, []byte("once"), buf)
	}
	each := int64(measure()-before) / conns
	t.Logf("%d bytes an idle connection, of which %d are the Conn", each, unsafe.Sizeof(Conn{}))
	if each > want && !raceEnabled {
		t.Errorf("an idle connection takes %d bytes, want at most %d", each, want)
	}
	r.do(func() {
		if r.set.Len() != conns {
			t.Errorf("%d connections, want %d", r.set.Len(), conns)
		}
	})
}

func BenchmarkEcho(b *testing.B) {
	for _, way := range []struct {
		name   string
		inline bool
	}{{"inline", true}, {"pool", false}} {
		for _, lines := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/%d", way.name, lines), func(b *testing.B) {
				r := newRig(b)
				cfg := r.config(echoHandler{}, way.inline)
				cfg.Protocol = text.Protocol{}
				fd, _ := r.rawPair(cfg)
				m := bytes.Repeat(append(bytes.Repeat([]byte{'x'}, 63), '\n'), lines)
				buf := make([]byte, len(m))
				b.SetBytes(int64(len(m)))
				b.ReportAllocs()
				for b.Loop() {
					roundTrip(b, fd, m, buf)
				}
			})
		}
	}
}

func BenchmarkSendAndFlush(b *testing.B) {
	for _, sends := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(sends), func(b *testing.B) {
			r := newRig(b)
			fd, c := r.rawPair(r.config(NopHandler{}, true))
			m := bytes.Repeat([]byte{'x'}, 64)
			buf := make([]byte, sends*len(m))
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			done := make(chan struct{})
			turn := func() {
				for range sends {
					if err := c.Send(m); err != nil {
						b.Error(err)
					}
				}
				c.settle()
				done <- struct{}{}
			}
			for b.Loop() {
				if err := r.loop.Post(turn); err != nil {
					b.Fatal(err)
				}
				<-done
				for n := 0; n < len(buf); {
					k, err := unix.Read(fd, buf[n:])
					if k <= 0 {
						b.Fatal(k, err)
					}
					n += k
				}
			}
		})
	}
}
