package conn

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/wire/text"
)

// client connects by a unix socket.
func (r *rig) client(cfg *Config) net.Conn {
	r.t.Helper()
	ours, theirs := socketpair(r.t, unix.SOCK_STREAM)
	f := os.NewFile(uintptr(theirs), "client")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	r.accepted(ours, nil, cfg)
	return nc
}

func exchange(t testing.TB, c net.Conn, m, buf []byte) {
	if _, err := c.Write(m); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:len(m)]); err != nil {
		t.Fatal(err)
	}
}

func TestTLSMessagesCostNoAllocation(t *testing.T) {
	for _, raw := range []bool{true, false} {
		r := newRig(t)
		cfg := secured(t, r.config(echoHandler{}, true))
		if !raw {
			cfg.Protocol = text.Protocol{}
		}
		client := handshaken(t, r.client(cfg), clientTLS(tls.VersionTLS13))
		client.SetDeadline(time.Time{})
		m, buf := []byte("hello\nhello\nhello\n"), make([]byte, 4096)
		exchange(t, client, m, buf) // and takes the session ticket
		// One is the client's, in crypto/tls.
		if got := testing.AllocsPerRun(2000, func() { exchange(t, client, m, buf) }); got >= 1.5 && !raceEnabled {
			t.Errorf("raw %v: %v allocations a message beside the client's, want none", raw, got-1)
		}
	}
}

func TestIdleTLSConnectionIsSmall(t *testing.T) {
	const (
		conns = 300
		want  = 2560
	)
	r := newRig(t)
	cfg := secured(t, r.config(echoHandler{}, true))
	m, buf := []byte("once"), make([]byte, 64)
	exchange(t, handshaken(t, r.client(cfg), clientTLS(tls.VersionTLS13)), m, buf)
	clients := make([]net.Conn, conns)
	for i := range clients {
		clients[i] = r.client(cfg)
	}
	measure := func() int64 {
		runtime.GC()
		runtime.GC() // the first only ages the pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := measure()
	for _, nc := range clients {
		exchange(t, handshaken(t, nc, clientTLS(tls.VersionTLS13)), m, buf) // whose state is garbage then
	}
	each := (measure() - before) / conns
	t.Logf("TLS makes an idle connection %d bytes larger", each)
	if each > want && !raceEnabled {
		t.Errorf("TLS makes an idle connection %d bytes larger, want at most %d", each, want)
	}
	runtime.KeepAlive(clients)
}

// What a server of crypto/tls with a goroutine for the connection does is
// there to be compared with.
func BenchmarkTLSEcho(b *testing.B) {
	for _, size := range []int{64, 4096} {
		m := bytes.Repeat([]byte{'x'}, size)
		buf := make([]byte, size)
		b.Run(fmt.Sprintf("ours/%d", size), func(b *testing.B) {
			r := newRig(b)
			client := handshaken(b, r.client(secured(b, r.config(echoHandler{}, true))), clientTLS(tls.VersionTLS13))
			client.SetDeadline(time.Time{})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				exchange(b, client, m, buf)
			}
		})
		b.Run(fmt.Sprintf("crypto-tls/%d", size), func(b *testing.B) {
			ours, theirs := socketpair(b, unix.SOCK_STREAM)
			var ends [2]net.Conn
			for i, fd := range []int{ours, theirs} {
				f := os.NewFile(uintptr(fd), "end")
				nc, err := net.FileConn(f)
				f.Close()
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { nc.Close() })
				ends[i] = nc
			}
			go func() {
				server := tls.Server(ends[0], serverTLS())
				io.Copy(struct{ io.Writer }{server}, struct{ io.Reader }{server})
			}()
			client := handshaken(b, ends[1], clientTLS(tls.VersionTLS13))
			client.SetDeadline(time.Time{})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				exchange(b, client, m, buf)
			}
		})
	}
}

func BenchmarkTLSHandshake(b *testing.B) {
	r := newRig(b)
	cfg := secured(b, r.config(echoHandler{}, true))
	for b.Loop() {
		b.StopTimer()
		nc := r.client(cfg)
		b.StartTimer()
		handshaken(b, nc, clientTLS(tls.VersionTLS13))
		nc.Close()
	}
}
