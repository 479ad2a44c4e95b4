package scoreboard

import (
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestSeatIs512Bytes(t *testing.T) {
	if got := unsafe.Sizeof(Seat{}); got != 512 {
		t.Errorf("a seat has %d bytes, want 512", got)
	}
	if got := unsafe.Sizeof(handler{}); got != handlerSize {
		t.Errorf("handler has %d bytes, handlerSize says %d", got, handlerSize)
	}
	if got := unsafe.Sizeof(header{}); got != 128 {
		t.Errorf("the header has %d bytes, want 128", got)
	}
}

func TestWhatOneMappingWritesAnotherReads(t *testing.T) {
	writer, err := Create(3)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	dup, err := unix.FcntlInt(uintptr(writer.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := Open(dup)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writer.Epoch().Store(7)
	s := writer.Seat(2)
	s.Messages.Store(42)
	s.SetHandler("chat", 99, 1234)
	if got := reader.Epoch().Load(); got != 7 {
		t.Errorf("epoch %d, want 7", got)
	}
	r := reader.Seat(2)
	if got := r.Messages.Load(); got != 42 {
		t.Errorf("messages %d, want 42", got)
	}
	listener, conn, since, ok := r.Handler()
	if listener != "chat" || conn != 99 || since != 1234 || !ok {
		t.Errorf("handler %q %d %d %v, want chat 99 1234 true", listener, conn, since, ok)
	}
	s.MoveHandler(100)
	if listener, conn, since, ok = r.Handler(); listener != "chat" || conn != 100 || since != 1234 || !ok {
		t.Errorf("handler %q %d %d %v after MoveHandler, want chat 100 1234 true", listener, conn, since, ok)
	}
	s.ClearHandler()
	if _, _, _, ok := r.Handler(); ok {
		t.Error("a handler runs after ClearHandler")
	}
	s.Clear()
	if got := r.Messages.Load(); got != 0 {
		t.Errorf("messages %d after Clear, want 0", got)
	}
}

func TestHandlerIsNeverReadTorn(t *testing.T) {
	s := NewSeat()
	names := map[string]uint64{"a": 1, strings.Repeat("b", 64): 2}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 20_000 {
			for name, conn := range names {
				s.SetHandler(name, conn, int64(conn))
			}
		}
	})
	for range 20_000 {
		name, conn, since, ok := s.Handler()
		if ok && (names[name] != conn || since != int64(conn)) {
			t.Fatalf("read %q %d %d", name, conn, since)
		}
	}
	wg.Wait()
}

func TestForeignDescriptorIsRefused(t *testing.T) {
	memfd := func(size int64, seals int, content string) int {
		t.Helper()
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if content != "" {
			if _, err := unix.Pwrite(fd, []byte(content), 0); err != nil {
				t.Fatal(err)
			}
		}
		if seals != 0 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	for _, tt := range []struct {
		name string
		fd   int
		want string
	}{
		{"not open", 9999, "F_GET_SEALS"},
		{"unsealed", memfd(4096, 0, ""), "not sealed"},
		{"short", memfd(10, sealed, ""), "too short"},
		{"zeros", memfd(128+512, sealed, ""), "not a scoreboard"},
		{"other version", memfd(128+512, sealed, "MAINSTAY\x09\x00\x00\x00"), "layout version 9"},
		{"other seats", memfd(128+512, sealed, "MAINSTAY\x04\x00\x00\x00\x01\x00\x00\x00"), "seats of 1 bytes"},
		{"wrong count", memfd(128+512, sealed, "MAINSTAY\x04\x00\x00\x00\x00\x02\x00\x00"), "header says 0 seats"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := Open(tt.fd)
			if err == nil {
				b.Close()
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want it to say %q", err, tt.want)
			}
		})
	}
	for _, n := range []int{-1, 0, MaxSeats + 1} {
		if _, err := Create(n); err == nil {
			t.Errorf("Create(%d) made a board", n)
		}
	}
}
