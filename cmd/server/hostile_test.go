package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// The limits of the service that is attacked. They are small, so that memory
// which is bounded by something else would be seen.
const (
	maxMessage = 16 << 10
	sendHigh   = 32 << 10
	sendLimit  = 64 << 10

	// deadline is the one short deadline of each listener that has one;
	// distant is what the others are.
	deadline = 500 * time.Millisecond
	distant  = 40 * time.Second

	// lateness is how much later than its deadline a connection may end on a
	// machine that is busy. It is less than any other deadline.
	lateness = 15 * time.Second

	// promptness is how long an answer to a good client may take meanwhile,
	// but for one in a hundred: where many programs share the processors, that
	// one tells of them.
	promptness = 5 * time.Second

	// little is what a connection may take beside what the limits allow: its
	// own structures, with net/http also a goroutine and two buffers.
	little = 16 << 10
)

// hostileListeners are the listeners of the service, by name. Those with an
// address of unix have small buffers in the kernel, so that many may be full.
var hostileListeners = []struct {
	name    string
	kind    string
	unix    bool
	setting string // key of the short deadline
}{
	{name: "echo", kind: "echo"},
	{name: "text", kind: "text-echo"},
	{name: "web", kind: "nethttp-hello"},
	{name: "local", kind: "echo", unix: true},
	{name: "local-text", kind: "text-echo", unix: true},
	{name: "mute", kind: "text-echo", setting: "first_byte_timeout"},
	{name: "slow", kind: "text-echo", setting: "message_timeout"},
	{name: "idle", kind: "echo", setting: "idle_timeout"},
	{name: "stall", kind: "echo", unix: true, setting: "write_timeout"},
	{name: "stall-text", kind: "text-echo", setting: "write_timeout"},
	{name: "cut", kind: "text-echo", setting: "close_timeout"},
	{name: "web-slow", kind: "nethttp-hello", setting: "message_timeout"},
	{name: "web-idle", kind: "nethttp-hello", setting: "idle_timeout"},
	{name: "web-stall", kind: "nethttp-hello", setting: "write_timeout"},
	{name: "loop-web", kind: "http-hello"},
	{name: "loop-web-mute", kind: "http-hello", setting: "first_byte_timeout"},
	{name: "loop-web-slow", kind: "http-hello", setting: "message_timeout"},
	{name: "loop-web-idle", kind: "http-hello", setting: "idle_timeout"},
	{name: "loop-web-body", kind: "http-hello", setting: "read_idle_timeout"},
	{name: "loop-web-stall", kind: "http-hello", setting: "write_timeout"},
	{name: "ws", kind: "ws-echo"},
	{name: "ws-slow", kind: "ws-echo", setting: "message_timeout"},
	{name: "ws-stall", kind: "ws-echo", setting: "write_timeout"},
	{name: "ws-cut", kind: "ws-echo", setting: "close_timeout"},
}

// hostileKinds are the ways to be hostile. Each attack goes on until the
// connection has ended as it should, and says what was otherwise.
var hostileKinds = []struct {
	name     string
	listener string
	few      bool // in a crowd, since it takes much of the memory or of the time
	alone    bool // in a crowd, what it does first could come too late
	late     bool // its deadline runs from the accept: in a crowd it comes last
	attack   func(*visit) error
}{
	{name: "one that connects and is silent", listener: "mute", late: true, attack: beSilent},
	{name: "one that connects and is silent, http", listener: "web-slow", late: true, attack: beSilent},
	{name: "one that falls silent", listener: "idle", alone: true, attack: func(v *visit) error {
		return v.fallSilent("hello", "hello")
	}},
	{name: "one that falls silent, http", listener: "web-idle", attack: func(v *visit) error {
		return v.fallSilent(request, "")
	}},
	{name: "a dribbler", listener: "slow", attack: func(v *visit) error { return v.dribbleOn("", "x") }},
	{name: "a dribbler, http", listener: "web-slow", late: true, attack: func(v *visit) error {
		return v.dribbleOn("GET / HTTP/1.1\r\nHost: a\r\n", "X: y\r\n")
	}},
	{name: "a dribbler that comes to an end", listener: "text", attack: dribbleOneLine},
	{name: "an endless line", listener: "text", attack: sendEndlessLine},
	{name: "an endless line that goes on", listener: "cut", attack: goOnAfterTheEnd},
	{name: "an endless head, http", listener: "web", attack: sendEndlessHead},
	{name: "a flooder that reads slowly", listener: "local", attack: func(v *visit) error { return v.floodAndRead(false) }},
	{name: "a flooder that half-closes", listener: "local-text", attack: func(v *visit) error { return v.floodAndRead(true) }},
	{name: "one that never reads", listener: "stall", attack: neverRead},
	{name: "one that never reads, lines", listener: "stall-text", few: true, attack: neverRead},
	{name: "one that never reads and resets", listener: "echo", few: true, attack: floodAndReset},
	{name: "a half-closer", listener: "text", attack: func(v *visit) error { return v.halfClose("one\ntwo\nthr", "one\ntwo\n") }},
	{name: "a half-closer, http", listener: "web", attack: halfCloseHTTP},
	{name: "a body that never comes, http", listener: "web-stall", late: true, attack: keepTheBody},
	{name: "a pipeliner that never reads, http", listener: "web-stall", few: true, attack: pipelineAndNeverRead},
	{name: "one that connects and is silent, http on the loop", listener: "loop-web-mute", late: true, attack: beSilent},
	{name: "one that falls silent, http on the loop", listener: "loop-web-idle", attack: func(v *visit) error {
		return v.fallSilent(request, "")
	}},
	{name: "a dribbler, http on the loop", listener: "loop-web-slow", attack: func(v *visit) error {
		return v.dribbleOn("GET / HTTP/1.1\r\nHost: a\r\n", "X: y\r\n")
	}},
	{name: "a dribbler of a body, http on the loop", listener: "loop-web-body", attack: func(v *visit) error {
		return v.dribbleOn("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n", "x")
	}},
	{name: "an endless head, http on the loop", listener: "loop-web", attack: sendEndlessHead},
	{name: "a half-closer, http on the loop", listener: "loop-web", attack: halfCloseHTTP},
	{name: "a pipeliner that never reads, http on the loop", listener: "loop-web-stall", few: true, attack: pipelineAndNeverRead},
	{name: "a resetter in mid-message", listener: "text", attack: resetInMidMessage},
	{name: "an endless head, websocket", listener: "ws", attack: sendEndlessHead},
	{name: "a dribbler of fragments, websocket", listener: "ws-slow", attack: dribbleFragments},
	{name: "a liar, websocket", listener: "ws", attack: func(v *visit) error {
		return v.breakWebSocket("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 1009)
	}},
	{name: "a decompression bomb, websocket", listener: "ws", few: true, attack: sendBomb},
	{name: "a stranger to masks, websocket", listener: "ws", attack: func(v *visit) error { return v.breakWebSocket("\x81\x02hi", 1002) }},
	{name: "text that is none, websocket", listener: "ws", attack: func(v *visit) error {
		return v.breakWebSocket("\x01\x82\x00\x00\x00\x00\xc0\x80", 1007)
	}},
	{name: "one that goes on after its close, websocket", listener: "ws-cut", attack: goOnAfterTheClose},
	{name: "a pinger that never reads, websocket", listener: "ws-stall", few: true, attack: pingAndNeverRead},
}

const request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

// flood is 1 MiB of numbered lines: more than the kernel and the server
// together keep of one that does not read.
var flood = func() []byte {
	var b bytes.Buffer
	for i := range 16 << 10 {
		fmt.Fprintf(&b, "%015d %047d\n", i, i*i)
	}
	return b.Bytes()
}()

func TestHostileClients(t *testing.T) {
	s := besiege(t)
	s.befriend(t, 20)

	for _, kind := range hostileKinds {
		t.Run(kind.name, func(t *testing.T) {
			s.sample()
			v, err := s.visit(kind.listener)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if err := kind.attack(v); err != nil {
				t.Error(err)
			}
			v.Close()
			s.isWell(t)
			if peak := s.sampled(); peak.queue > sendLimit {
				t.Errorf("up to %d bytes waited to be sent, want at most %d", peak.queue, sendLimit)
			}
		})
	}
	t.Run("many of all kinds at once", func(t *testing.T) { attackInWaves(t, s) })
}

// attackInWaves has many hostile clients of all kinds at once, three times,
// and looks at the worker's memory.
func attackInWaves(t *testing.T, s *siege) {
	many := 50
	if testing.Short() {
		many = 20
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	many = min(many, (int(limit.Cur)-200)/len(hostileKinds)) // both in this process and in the worker
	base := s.isWell(t).RSSBytes

	var first, last, afterFirst int64
	for wave := range 3 {
		s.sample()
		visitors := attackByMany(t, s, many)
		after := s.isWell(t).RSSBytes
		peak := s.sampled()
		t.Logf("wave %d: %d hostile clients, up to %d connections; resident before any %s, at most %s, after it %s; up to %s waited to be sent; slowest answer to a good client %v",
			wave+1, visitors, peak.connections, mib(base), mib(peak.rss), mib(after), mib(peak.queue), s.slowest())

		if bound := base + int64(visitors)*(sendLimit+maxMessage+little); peak.rss > bound {
			t.Errorf("wave %d: worker had up to %s resident, want at most %s by its limits", wave+1, mib(peak.rss), mib(bound))
		}
		if bound := int64(visitors) * sendLimit; peak.queue > bound {
			t.Errorf("wave %d: up to %d bytes waited to be sent, want at most %d", wave+1, peak.queue, bound)
		}
		if wave == 0 {
			first, afterFirst = peak.rss, after
		}
		last = peak.rss
	}
	const slack = 8 << 20
	if last > first*13/10+slack {
		t.Errorf("worker had up to %s resident in the third wave, %s in the first", mib(last), mib(first))
	}
	// What was given back at a moment depends on when the collector ran last.
	s.await(t, fmt.Sprintf("memory of the third wave to be given back, down to about the %s after the first", mib(afterFirst)), func(w control.Worker) bool {
		return w.RSSBytes <= afterFirst*13/10+slack
	})
}

// attackByMany lets clients of all kinds loose when all of them are there, and
// waits until they have gone. It returns how many they were.
func attackByMany(t *testing.T, s *siege, many int) (visitors int) {
	var clients sync.WaitGroup
	defer clients.Wait()
	now := make(chan struct{})
	var early int64
	for _, kind := range hostileKinds {
		n := many
		switch {
		case kind.alone:
			continue
		case kind.few:
			n = max(1, many/20)
		}
		visitors += n
		if !kind.late {
			early += int64(n)
		}
		for range n {
			clients.Go(func() {
				if kind.late {
					<-now
				}
				v, err := s.visit(kind.listener)
				if err != nil {
					t.Errorf("%s: %v", kind.name, err)
					return
				}
				defer v.Close()
				<-now
				if err := kind.attack(v); err != nil {
					t.Errorf("%s: %v", kind.name, err)
				}
			})
		}
	}
	defer close(now)
	s.await(t, "all to be connected", func(w control.Worker) bool { return w.Connections >= s.good.Load()+early })
	return visitors
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// visit is a hostile client's connection.
type visit struct {
	net.Conn
	began time.Time // before it was connected
}

// in says whether what happens now, because of the short deadline, happens in
// time: the deadline began to run after from and before to.
func (v *visit) in(from, to time.Time) error {
	// The server's clock stands still while its loop turns: it may be a
	// little behind.
	if took := time.Since(from); took < deadline*3/4 {
		return fmt.Errorf("ended after %v, want %v", took, deadline)
	}
	if took := time.Since(to); took > deadline+lateness {
		return fmt.Errorf("ended only after %v, want %v", took, deadline)
	}
	return nil
}

// expect reads what is wanted and, if nothing is, the end in good order.
func (v *visit) expect(want string) error {
	got := make([]byte, max(len(want), 1))
	n, err := io.ReadFull(v, got)
	if want == "" && errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil || string(got[:n]) != want {
		return fmt.Errorf("got %.60q, %v, want %.60q", got[:n], err, want)
	}
	return nil
}

// isGone says whether an error tells the end of a connection by a peer that
// did not want to know what else was sent.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// receive reads in the background until the end.
func (v *visit) receive() <-chan received {
	done := make(chan received, 1)
	go func() {
		var r received
		r.text, r.err = io.ReadAll(v)
		done <- r
	}()
	return done
}

// received is what came until the end, which is no error if in good order.
type received struct {
	text []byte
	err  error
}

func beSilent(v *visit) error {
	connected := time.Now()
	if err := v.expect(""); err != nil {
		return err
	}
	return v.in(v.began, connected)
}

// fallSilent says something, is answered, and says nothing more. An empty
// answer stands for a response of HTTP.
func (v *visit) fallSilent(text, answer string) error {
	from := time.Now()
	if _, err := io.WriteString(v, text); err != nil {
		return err
	}
	var err error
	if answer == "" {
		err = readHello(v)
	} else {
		err = v.expect(answer)
	}
	if err != nil {
		return err
	}
	to := time.Now()
	if err := v.expect(""); err != nil {
		return err
	}
	return v.in(from, to)
}

// dribbleOn sends the head, then the piece again and again, until it is cut
// off without a word.
func (v *visit) dribbleOn(head, piece string) error {
	if _, err := io.WriteString(v, head+piece); err != nil {
		return err
	}
	to := time.Now()
	end := v.receive()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case r := <-end:
			told := strings.HasPrefix(string(r.text), "HTTP/1.1 408 ")
			if len(r.text) > 0 && !told || r.err != nil && !isGone(r.err) {
				return fmt.Errorf("got %.60q, %v, want the end", r.text, r.err)
			}
			return v.in(v.began, to)
		case <-tick.C:
			io.WriteString(v, piece) // it is the reader that is told the end
		}
	}
}

// dribbleOneLine is slow, but not too slow: each line is answered.
func dribbleOneLine(v *visit) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, b := range []byte("hello\nyou\n") {
		if _, err := v.Write([]byte{b}); err != nil {
			return err
		}
		<-tick.C
	}
	return v.expect("hello\nyou\n")
}

// sendEndlessLine finds that the longest line is answered, and that the end
// comes behind the answers to what came before the line that is longer.
func sendEndlessLine(v *visit) error {
	longest := strings.Repeat("x", maxMessage) + "\n"
	if _, err := io.WriteString(v, longest); err != nil {
		return err
	}
	if err := v.expect(longest); err != nil {
		return err
	}
	if _, err := io.WriteString(v, "before\n"+strings.Repeat("x", maxMessage+1)); err != nil {
		return err
	}
	if err := v.expect("before\n"); err != nil {
		return err
	}
	return v.expect("")
}

// goOnAfterTheEnd is told the end, and cut off when it does not stop.
func goOnAfterTheEnd(v *visit) error {
	from := time.Now()
	line := make([]byte, 2*maxMessage)
	if _, err := v.Write(line); err != nil {
		return err
	}
	if err := v.expect(""); err != nil {
		return err
	}
	to := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := v.Write(line[:4<<10]); isGone(err) {
			return v.in(from, to)
		} else if err != nil {
			return err
		}
		<-tick.C
	}
}

func sendEndlessHead(v *visit) error {
	go io.WriteString(v, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 256<<10))
	r, err := http.ReadResponse(bufio.NewReader(v), nil)
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusRequestHeaderFieldsTooLarge || !r.Close {
		return fmt.Errorf("got %v, connection closed: %v, want 431 and the end", r.Status, r.Close)
	}
	return nil
}

// floodAndRead sends without a pause, and reads with pauses: all comes back.
// With halfClose that is the end of what it sends, and then of what it gets.
func (v *visit) floodAndRead(halfClose bool) error {
	sent := make(chan error, 1)
	go func() {
		_, err := v.Write(flood)
		if err == nil && halfClose {
			err = v.Conn.(closeWriter).CloseWrite()
		}
		sent <- err
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	part := make([]byte, 16<<10)
	for want := flood; len(want) > 0; <-tick.C {
		n, err := v.Read(part)
		if err != nil || !bytes.HasPrefix(want, part[:n]) {
			return fmt.Errorf("after %d bytes: got %.60q, %v, want %.60q", len(flood)-len(want), part[:n], err, want)
		}
		want = want[n:]
	}
	if err := <-sent; err != nil || !halfClose {
		return err
	}
	return v.expect("")
}

// closeWriter is a connection of which one half can be closed.
type closeWriter interface{ CloseWrite() error }

// neverRead sends for as long as it can: the server reads no more once enough
// waits to be sent, and ends the connection when that has not left in time.
func neverRead(v *visit) error {
	return v.sendAndNeverRead(func(taken int) []byte { return flood[taken%len(flood):][:4<<10] })
}

// sendAndNeverRead sends what next returns, which is told how much was taken.
func (v *visit) sendAndNeverRead(next func(taken int) []byte) error {
	from := time.Now()
	to := from
	most, err := keptByKernel()
	if err != nil {
		return err
	}
	for taken := 0; taken < most; {
		n, err := v.Write(next(taken))
		taken += n
		switch {
		case isGone(err):
			return v.in(from, to)
		case err != nil:
			return fmt.Errorf("after %d bytes: %w", taken, err)
		}
		to = time.Now()
	}
	return fmt.Errorf("the server still reads after %d bytes", most)
}

// keptByKernel returns more bytes than the buffers of a connection, at both
// ends and in both directions, can grow to: the kernel makes a buffer larger
// even for one who does not read, if what comes lies in it ill packed.
func keptByKernel() (int, error) {
	sum := 0
	for _, file := range []string{"tcp_rmem", "tcp_wmem"} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/" + file)
		if err != nil {
			return 0, err
		}
		var least, initial, most int
		if _, err := fmt.Sscan(string(text), &least, &initial, &most); err != nil {
			return 0, fmt.Errorf("%s: %q: %w", file, text, err)
		}
		sum += most
	}
	return 2*sum + sendLimit + maxMessage, nil
}

// floodAndReset resets a connection whose queue to send is full.
func floodAndReset(v *visit) error {
	v.SetWriteDeadline(time.Now().Add(deadline))
	for {
		if _, err := v.Write(flood); errors.Is(err, os.ErrDeadlineExceeded) {
			return v.reset()
		} else if err != nil {
			return err
		}
	}
}

// reset has the connection end by a reset.
func (v *visit) reset() error {
	if err := v.Conn.(*net.TCPConn).SetLinger(0); err != nil {
		return err
	}
	return v.Close()
}

func resetInMidMessage(v *visit) error {
	if _, err := io.WriteString(v, "one\ntw"); err != nil {
		return err
	}
	if err := v.expect("one\n"); err != nil {
		return err
	}
	return v.reset()
}

// halfClose sends, says that this was all, and gets the answers and the end.
func (v *visit) halfClose(text, want string) error {
	if _, err := io.WriteString(v, text); err != nil {
		return err
	}
	if err := v.Conn.(closeWriter).CloseWrite(); err != nil {
		return err
	}
	if err := v.expect(want); err != nil {
		return err
	}
	return v.expect("")
}

func halfCloseHTTP(v *visit) error {
	if _, err := io.WriteString(v, request); err != nil {
		return err
	}
	if err := v.Conn.(closeWriter).CloseWrite(); err != nil {
		return err
	}
	if err := readHello(v); err != nil {
		return err
	}
	return v.expect("")
}

// keepTheBody announces a body and sends none: it is answered and sent away
// at the deadline.
func keepTheBody(v *visit) error {
	from := time.Now()
	if _, err := io.WriteString(v, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"); err != nil {
		return err
	}
	to := time.Now()
	if err := readHello(v); err != nil {
		return err
	}
	if err := v.expect(""); err != nil {
		return err
	}
	return v.in(from, to)
}

// pipelineAndNeverRead asks again and again, and reads no answer.
func pipelineAndNeverRead(v *visit) error {
	from := time.Now()
	requests := []byte(strings.Repeat(request, 1000))
	const most = 64 << 20 // of requests whose answers do not fit into the kernel
	for taken := 0; taken < most; {
		n, err := v.Write(requests)
		taken += n
		switch {
		case isGone(err):
			if early := time.Since(from); early < deadline {
				return fmt.Errorf("sent away after %v, before the deadline", early)
			}
			return nil
		case err != nil:
			return fmt.Errorf("after %d bytes: %w", taken, err)
		}
	}
	return fmt.Errorf("the server still answers after %d bytes", most)
}

// readHello reads one response of the kind nethttp-hello.
func readHello(c net.Conn) error {
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if body, err := io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK || string(body) != "hello\n" {
		return fmt.Errorf("got %v, %q, %v, want 200 and a hello", r.Status, body, err)
	}
	return nil
}

// siege is a running service with one worker, under attack.
type siege struct {
	// Set once.

	client    *control.Client
	addresses map[string]string // of listeners, as net.Dial takes them behind the network
	pid       int               // of the worker

	good atomic.Int64 // connections of good clients
	slow atomic.Int64 // the slowest answer to a good client, ns

	answers, late atomic.Int64 // to good clients; those that were not prompt

	// Guarded by mu.

	mu   sync.Mutex
	peak peak
}

// peak is the most that was seen.
type peak struct{ rss, queue, connections int64 }

// besiege builds the program, without the race detector, so that its memory
// is what it would be, and runs it until the end of the test.
func besiege(t *testing.T) *siege {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "server")
	if out, err := exec.Command("go", "build", "-race=false", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "app.toml"), []byte(hostileFile(dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "run", "--config", filepath.Join(dir, "app.toml"))
	// The collector lets garbage grow by a tenth, and not to as much as is
	// in use, so that what is seen is closer to what is kept.
	cmd.Env = append(os.Environ(), "GOGC=10")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := "unix://" + dir + "/c.sock"
	s := &siege{addresses: make(map[string]string)}
	t.Cleanup(func() {
		kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("service ended: %v", err)
		}
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the service said:\n%s", text)
		}
	})
	if s.client, err = control.NewClient(address); err != nil {
		t.Fatal(err)
	}
	first := s.await(t, "a worker", func(w control.Worker) bool { return w.State == "ready" })
	s.pid = first.PID
	st, err := s.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range st.Listeners {
		s.addresses[l.Name] = l.Address
	}
	s.watch(t)
	t.Cleanup(func() {
		s.isWell(t)
		checkStatusCommand(t, program, address, s.pid)
	})
	return s
}

// hostileFile is the configuration file.
func hostileFile(dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "workers = 1\nstop_grace = \"1s\"\ncontrol = \"unix://%s/c.sock\"\n", dir)
	for _, l := range hostileListeners {
		address := "tcp://127.0.0.1:0"
		if l.unix {
			address = "unix://" + dir + "/" + l.name + ".sock"
		}
		fmt.Fprintf(&b, "[listener.%s]\naddress = %q\nserve = %q\n", l.name, address, l.kind)
		if l.kind != "nethttp-hello" {
			if l.kind == "ws-echo" {
				b.WriteString("compress_above = 64\n")
			}
			fmt.Fprintf(&b, "max_message = %d\nsend_high = %d\nsend_limit = %d\n", maxMessage, sendHigh, sendLimit)
		}
		deadlines := []string{"message_timeout", "write_timeout"}
		if l.kind != "nethttp-hello" {
			deadlines = append(deadlines, "first_byte_timeout", "close_timeout")
		}
		if l.setting == "idle_timeout" || l.setting == "read_idle_timeout" {
			deadlines = append(deadlines, l.setting)
		}
		for _, key := range deadlines {
			d := distant
			if key == l.setting {
				d = deadline
			}
			fmt.Fprintf(&b, "%s = %q\n", key, d)
		}
	}
	return b.String()
}

// checkStatusCommand wants the command line to say what was seen here, too.
func checkStatusCommand(t *testing.T, program, address string, pid int) {
	t.Helper()
	out, err := exec.Command(program, "status", "--json", "--control", address).Output()
	var st control.Status
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		t.Errorf("status --json: %v\n%s", err, out)
		return
	}
	w := st.Pools[0].Workers[0]
	if st.State != control.StateServing || st.Connections != 0 || w.PID != pid || w.Panics != 0 || w.Respawns != 0 || w.RSSBytes == 0 {
		t.Errorf("status --json: %s\nwant a worker %d that is well and has no connections", out, pid)
	}
}

// worker asks for the state of the one worker.
func (s *siege) worker(ctx context.Context) (control.Worker, error) {
	st, err := s.client.Status(ctx)
	if err != nil {
		return control.Worker{}, err
	}
	if n := len(st.Pools[0].Workers); n != 1 {
		return control.Worker{}, fmt.Errorf("%d workers, want 1", n)
	}
	return st.Pools[0].Workers[0], nil
}

// await asks until cond holds.
func (s *siege) await(t *testing.T, what string, cond func(control.Worker) bool) control.Worker {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		w, err := s.worker(ctx)
		if err == nil && cond(w) {
			return w
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s; last error %v, last state %+v", what, err, w)
		}
	}
}

// isWell waits until only the good clients are left, and wants the worker to
// be the same one as ever, and to have had no trouble.
func (s *siege) isWell(t *testing.T) control.Worker {
	t.Helper()
	w := s.await(t, "the hostile to leave", func(w control.Worker) bool { return w.Connections == s.good.Load() })
	if w.PID != s.pid || w.State != "ready" || w.Panics != 0 || w.SendFailures != 0 || w.Respawns != 0 {
		t.Errorf("worker is %+v, want number %d, without panics and refused messages", w, s.pid)
	}
	return w
}

// watch looks at the worker until the end of the test.
func (s *siege) watch(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			w, err := s.worker(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				t.Errorf("status: %v", err)
				return
			}
			s.mu.Lock()
			s.peak.rss = max(s.peak.rss, w.RSSBytes)
			s.peak.queue = max(s.peak.queue, w.QueueBytes)
			s.peak.connections = max(s.peak.connections, w.Connections)
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

// sample begins to look for the peak anew, sampled returns it.
func (s *siege) sample() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peak = peak{}
}

func (s *siege) sampled() peak {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak
}

func (s *siege) dial(listener string, d net.Dialer) (net.Conn, error) {
	network, address, ok := strings.Cut(s.addresses[listener], "://")
	if !ok {
		return nil, fmt.Errorf("no listener %q in %v", listener, s.addresses)
	}
	c, err := d.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(patience))
}

// visit connects a hostile client. Its own side of the connection is small,
// so that the server's is soon full.
func (s *siege) visit(listener string) (*visit, error) {
	began := time.Now()
	c, err := s.dial(listener, net.Dialer{Control: func(network, _ string, raw syscall.RawConn) error {
		if network == "unix" {
			return nil // what it sends takes room, not what it gets
		}
		var err error
		if failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
		}); failed != nil {
			return failed
		}
		return err
	}})
	if err != nil {
		return nil, err
	}
	return &visit{Conn: c, began: began}, nil
}

// befriend connects n good clients, which say something all the while until
// the end of the test, and want their answers, nearly all promptly.
func (s *siege) befriend(t *testing.T, n int) {
	t.Helper()
	stop := make(chan struct{})
	var friends sync.WaitGroup
	t.Cleanup(func() {
		close(stop)
		friends.Wait()
		if late, all := s.late.Load(), s.answers.Load(); late*100 > all {
			t.Errorf("%d of %d answers to good clients took more than %v, the slowest %v", late, all, promptness, s.slowest())
		}
	})
	for i := range n {
		listener := []string{"echo", "text", "web"}[i%3]
		c, err := s.dial(listener, net.Dialer{})
		if err != nil {
			t.Fatal(err)
		}
		s.good.Add(1)
		friends.Go(func() {
			defer s.good.Add(-1)
			defer c.Close()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for turn := 0; ; turn++ {
				began := time.Now()
				c.SetDeadline(began.Add(patience))
				var err error
				if listener == "web" {
					if _, err = io.WriteString(c, request); err == nil {
						err = readHello(c)
					}
				} else {
					text := fmt.Sprintf("friend %d, turn %d\n", i, turn)
					if _, err = io.WriteString(c, text); err == nil {
						err = (&visit{Conn: c}).expect(text)
					}
				}
				if err != nil {
					t.Errorf("a good client of %s, turn %d: %v", listener, turn, err)
					return
				}
				s.tellSlow(time.Since(began))
				select {
				case <-tick.C:
				case <-stop:
					return
				}
			}
		})
	}
}

func (s *siege) tellSlow(took time.Duration) {
	s.answers.Add(1)
	if took > promptness {
		s.late.Add(1)
	}
	for {
		slowest := s.slow.Load()
		if int64(took) <= slowest || s.slow.CompareAndSwap(slowest, int64(took)) {
			return
		}
	}
}

// slowest returns what the slowest answer to a good client took so far.
func (s *siege) slowest() time.Duration { return time.Duration(s.slow.Load()) }
