package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journald stands in for systemd-journald.
type journald struct {
	path string
	conn *net.UnixConn
}

func startJournald(t *testing.T, path string) *journald {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &journald{path: path, conn: conn}
}

// entry is what journald would store: the values of each field, in order.
type entry map[string][]string

// one returns the only value of a field.
func (e entry) one(t *testing.T, name string) string {
	t.Helper()
	if len(e[name]) != 1 {
		t.Fatalf("field %s has the values %q, want one; all: %q", name, e[name], e)
	}
	return e[name][0]
}

// next returns the next entry, and whether it came in a file.
func (j *journald) next(t *testing.T) (e entry, inFile bool) {
	t.Helper()
	if err := j.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	data, control := make([]byte, 1<<20), make([]byte, 256)
	n, cn, _, _, err := j.conn.ReadMsgUnix(data, control)
	if err != nil {
		t.Fatalf("no entry: %v", err)
	}
	data = data[:n]
	if cn > 0 {
		if n > 0 {
			t.Errorf("%d bytes beside the file, want none", n)
		}
		inFile, data = true, readSealed(t, control[:cn])
	}
	e, err = decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return e, inFile
}

// readSealed reads the file as journald does: only if nobody can change it.
func readSealed(t *testing.T, control []byte) []byte {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("fds %v (%v), want one", fds, err)
	}
	file := os.NewFile(uintptr(fds[0]), "entry")
	defer file.Close()
	const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); seals != want || err != nil {
		t.Errorf("seals %#x (%v), want %#x", seals, err, want)
	}
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, st.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// decode reads the native protocol, strictly: systemd.io/JOURNAL_NATIVE_PROTOCOL.
func decode(data []byte) (entry, error) {
	e := entry{}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("no line end after %q", data)
		}
		name, value, simple := bytes.Cut(line, []byte("="))
		if !simple {
			if len(rest) < 8 {
				return nil, fmt.Errorf("field %s: no length", name)
			}
			size := binary.LittleEndian.Uint64(rest)
			rest = rest[8:]
			if size >= uint64(len(rest)) || rest[size] != '\n' {
				return nil, fmt.Errorf("field %s: length %d of %d bytes", name, size, len(rest))
			}
			value, rest = rest[:size], rest[size+1:]
		}
		if err := checkFieldName(string(name)); err != nil {
			return nil, err
		}
		e[string(name)] = append(e[string(name)], string(value))
		data = rest
	}
	return e, nil
}

// checkFieldName is journal_field_valid of systemd's journal-file.c, without
// leave for protected names.
func checkFieldName(name string) error {
	if name == "" || len(name) > 64 {
		return fmt.Errorf("field name %q: %d bytes, want 1 to 64", name, len(name))
	}
	if name[0] == '_' || '0' <= name[0] && name[0] <= '9' {
		return fmt.Errorf("field name %q: begins with %q", name, name[0])
	}
	if i := strings.IndexFunc(name, func(r rune) bool {
		return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}); i >= 0 {
		return fmt.Errorf("field name %q: has %q", name, name[i])
	}
	return nil
}

// collector is a pipe to stand in for stderr.
type collector struct {
	w    *os.File
	done chan struct{}
	text bytes.Buffer // once done is closed
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{w: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_, _ = c.text.ReadFrom(r)
		r.Close()
	}()
	t.Cleanup(func() { w.Close(); <-c.done })
	return c
}

// all returns what was written; nothing can be written afterwards.
func (c *collector) all() string {
	c.w.Close()
	<-c.done
	return c.text.String()
}

// openLog opens a Log that the test's end closes.
func openLog(t *testing.T, o Options, socket string) *Log {
	t.Helper()
	l, err := open(o, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

var errTest = errors.New("connection reset")
