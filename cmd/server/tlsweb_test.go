package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	_ "unsafe" // for linkname

	"github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
	"github.com/mainstay-go/mainstay/test/certs"
)

// startSecure starts the reference service with a listener that has TLS,
// behind a proxy if proxied, and returns the client that trusts it.
func startSecure(t *testing.T, listener string, proxied bool) (*servicetest.Service, *http.Client) {
	t.Helper()
	return startSecureWith(t, listener, proxied, "", t.TempDir())
}

// renew puts a certificate for localhost into dir, as a renewal does.
func renew(t *testing.T, dir string) certs.Certificate {
	t.Helper()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cert": c.Cert, "key": c.Key} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// startSecureWith is startSecure with more settings of the listener, variables,
// and a folder for the certificate.
func startSecureWith(t *testing.T, listener string, proxied bool, settings, dir string, env ...string) (*servicetest.Service, *http.Client) {
	t.Helper()
	c := renew(t, dir)
	proxies := settings
	if proxied {
		proxies += "proxy_protocol = [\"127.0.0.1/32\"]\n"
	}
	s := servicetest.Start(t, servicetest.Options{
		Listeners: []string{listener}, Workers: 2, Env: env,
		Config: fmt.Sprintf("log.level = \"debug\"\nreload.bake = \"10ms\"\n[listener.%s]\n%stls.cert = %q\ntls.key = %q\n", listener, proxies, dir+"/cert", dir+"/key"),
	})
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.Pool(), ServerName: "localhost"},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil && proxied {
				_, err = io.WriteString(nc, "PROXY TCP4 192.0.2.1 198.51.100.1 1000 443\r\n")
			}
			return nc, err
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return s, &http.Client{Transport: transport, Timeout: servicetest.Patience}
}

// peerOf returns the peer of the one connection, as an operator sees it.
func peerOf(t *testing.T, s *servicetest.Service) string {
	t.Helper()
	list, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{})
	if err != nil || len(list.Connections) != 1 {
		t.Fatalf("%d connections, %v", len(list.Connections), err)
	}
	return list.Connections[0].Peer
}

func TestWebSocketIsServedByTLSAndBehindAProxy(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxied %t", proxied), func(t *testing.T) {
			s, client := startSecure(t, "ws-echo", proxied)
			ctx, cancel := context.WithTimeout(t.Context(), servicetest.Patience)
			defer cancel()
			// The handshake of WebSocket ends the client's own timeout.
			c, _, err := websocket.Dial(ctx, "wss://"+s.Addr("ws-echo"), &websocket.DialOptions{HTTPClient: &http.Client{Transport: client.Transport}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			if peer := peerOf(t, s); (peer == "192.0.2.1:1000") != proxied {
				t.Errorf("the peer is %s", peer)
			}
			var echoes atomic.Int64
			done, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- talkWS(ctx, c, done, &echoes) }()
			for range 2 {
				n := echoes.Load()
				s.Await("the client goes on", func(control.Status) bool { return echoes.Load() > n })
				s.Reload()
			}
			close(done)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHTTPIsServedByTLSAndBehindAProxy(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxied %t", proxied), func(t *testing.T) {
			s, client := startSecure(t, "http-hello", proxied)
			for i := range 3 {
				r, err := client.Get("https://" + s.Addr("http-hello") + "/")
				if err != nil {
					t.Fatal(err)
				}
				first, err := bufio.NewReader(r.Body).ReadString('\n')
				r.Body.Close()
				if r.StatusCode != http.StatusOK || first == "" || err != nil && err != io.EOF || r.TLS == nil {
					t.Errorf("request %d: %s, %q, %v", i, r.Status, first, err)
				}
				if peer := peerOf(t, s); (peer == "192.0.2.1:1000") != proxied {
					t.Errorf("the peer is %s", peer)
				}
				s.Reload() // the connection moves, and is used again
			}
		})
	}
}

// suites are those of TLS 1.3, by their numbers of RFC 8446 B.4.
var suites = map[uint16]string{
	tls.TLS_AES_128_GCM_SHA256: "TLS_AES_128_GCM_SHA256", tls.TLS_AES_256_GCM_SHA384: "TLS_AES_256_GCM_SHA384",
	tls.TLS_CHACHA20_POLY1305_SHA256: "TLS_CHACHA20_POLY1305_SHA256",
}

// relay passes connections on, and tells which suite each ServerHello has.
func relay(t *testing.T, to string) (address string, chosen <-chan uint16) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan uint16, 100)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			stop := context.AfterFunc(t.Context(), func() { client.Close(); server.Close() })
			all.Go(func() {
				defer server.(*net.TCPConn).CloseWrite()
				io.Copy(server, client)
			})
			all.Go(func() {
				defer stop()
				defer client.Close()
				defer server.Close()
				in := bufio.NewReader(server)
				// 5 of the record, 4 of the message, 2 of the version, 32
				// random ones, a session's id with its length, the suite:
				// RFC 8446 4.1.3.
				const session = 5 + 4 + 2 + 32
				if head, err := in.Peek(session + 1); err == nil && head[0] == 22 && head[5] == 2 {
					at := session + 1 + int(head[session])
					if head, err := in.Peek(at + 2); err == nil {
						select {
						case told <- binary.BigEndian.Uint16(head[at:]):
						default:
						}
					}
				}
				io.Copy(client, in)
			})
		}
	})
	return l.Addr().String(), told
}

// withSuite makes the test binary a service whose crypto/tls has that suite of
// TLS 1.3 alone, by its number. There is no setting for it, and a server takes
// what stands first in an order of its own, whatever its client likes better:
// AES-256 would never be what a browser, or a client of crypto/tls, gets.
const withSuite = "SERVICE_WITH_SUITE"

// The orders of crypto/tls, with hardware for AES and without, which it lets
// others reach.
var (
	//go:linkname suitesTLS13 crypto/tls.defaultCipherSuitesTLS13
	suitesTLS13 []uint16
	//go:linkname suitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
	suitesTLS13NoAES []uint16
)

func haveSuite(number string) {
	id, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		panic(err)
	}
	suitesTLS13, suitesTLS13NoAES = []uint16{uint16(id)}, []uint16{uint16(id)}
}

func TestBrowserKeepsItsSecureWebSocketOverReloadsByEachSuite(t *testing.T) {
	for suite, name := range suites {
		t.Run(name, func(t *testing.T) {
			s, _ := startSecureWith(t, "ws-echo", false, "origins = [\"http://127.0.0.1:*\"]\n", t.TempDir(), fmt.Sprint(withSuite, "=", suite))
			address, chosen := relay(t, s.Addr("ws-echo"))
			browserTalks(t, s, "wss://"+address+"/", "--ignore-certificate-errors")
			select {
			case got := <-chosen:
				if got != suite {
					t.Errorf("they have agreed on %s, want %s", tls.CipherSuiteName(got), name)
				}
			default:
				t.Error("no ServerHello was seen")
			}
		})
	}
}

func TestCryptoTLSTalksOverReloadsAndDeathsByEachSuite(t *testing.T) {
	for suite, name := range suites {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := startSecureWith(t, "echo", false, "", dir, fmt.Sprint(withSuite, "=", suite))
			authority, err := os.ReadFile(filepath.Join(dir, "cert"))
			if err != nil {
				t.Fatal(err)
			}
			c, err := dialSecure(s, certs.Certificate{Cert: authority}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.ConnectionState().CipherSuite; got != suite {
				t.Errorf("they have agreed on %s, want %s", tls.CipherSuiteName(got), name)
			}
			for i, event := range []func(){s.Reload, func() { killStopped(t, s, func() {}) }, s.Reload, func() { s.Move(s.ID(c), 0) }, func() { s.Move(s.ID(c), 1) }} {
				if err := echoes(c, fmt.Sprint("before ", i)); err != nil {
					t.Fatal(err)
				}
				event()
			}
			if err := echoes(c, "in the end"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCurlIsServedByEachSuite(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	s, _ := startSecure(t, "http-hello", false)
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), curl, "-sSvk", "--noproxy", "*", "--max-time", "30", "--tlsv1.3", "--tls13-ciphers", suite,
				"https://"+s.Addr("http-hello")+"/", "https://"+s.Addr("http-hello")+"/").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "TLSv1.3 / "+suite) || strings.Count(string(out), "< HTTP/1.1 200") != 2 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// dialSecure connects by TLS; keys may be nil.
func dialSecure(s *servicetest.Service, c certs.Certificate, keys io.Writer) (*tls.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{RootCAs: c.Pool(), ServerName: "localhost", KeyLogWriter: keys}}
	nc, err := d.Dial("tcp", s.Addr("echo"))
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(4 * servicetest.Patience))
	return nc.(*tls.Conn), nil
}

// echoes sends a text and wants it back.
func echoes(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		return fmt.Errorf("got %q, %w, want %q", got, err, text)
	}
	return nil
}

// A renewal is a reload with new files: who is connected goes on, and who comes
// gets the new certificate.
func TestCertificateIsRenewedUnderAClientThatTalks(t *testing.T) {
	dir := t.TempDir()
	s, _ := startSecureWith(t, "echo", false, "", dir)
	c, err := os.ReadFile(filepath.Join(dir, "cert"))
	if err != nil {
		t.Fatal(err)
	}
	now := certs.Certificate{Cert: c}
	var talks sync.WaitGroup
	done := make(chan struct{})
	var turns atomic.Int64
	talk := func(c *tls.Conn) {
		talks.Go(func() {
			defer c.Close()
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := echoes(c, fmt.Sprintf("message %d\n", n)); err != nil {
					t.Errorf("message %d: %v", n, err)
					return
				}
				turns.Add(1)
			}
		})
	}
	for range 4 {
		old, err := dialSecure(s, now, nil)
		if err != nil {
			t.Fatal(err)
		}
		talk(old)
		before := now
		now = renew(t, dir)
		n := turns.Load()
		s.Await("it talks", func(control.Status) bool { return turns.Load() > n+10 })
		s.Reload()
		n = turns.Load()
		s.Await("it talks on", func(control.Status) bool { return turns.Load() > n+10 })
		if c, err := dialSecure(s, before, nil); err == nil {
			c.Close()
			t.Error("after the reload the old certificate is shown")
		} else if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
			t.Errorf("by the old certificate: %v", err)
		}
	}
	close(done)
	talks.Wait()
}

// What a service writes, and what it answers, holds no key: neither the
// certificate's nor one of its connections', whatever happens to its workers.
// crashOf opens the memory file into which the runtime of a process writes its
// last words, to be read when that has ended.
func crashOf(t *testing.T, pid int) *os.File {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "/memfd:mainstay-crash") {
			f, err := os.Open(fd)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("process %d has no file for its last words", pid)
	return nil
}

func TestNoSecretIsInLogsAnswersStateFilesOrDumps(t *testing.T) {
	dir := t.TempDir()
	s, _ := startSecureWith(t, "echo", false, "", dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(dir, "cert"))
	if err != nil {
		t.Fatal(err)
	}
	var keys bytes.Buffer
	clients := make([]*tls.Conn, 10)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}()
	talk := func() {
		t.Helper()
		for i, c := range clients {
			// One whose worker was killed in its callback has ended.
			if c != nil && echoes(c, "hello\n") == nil {
				continue
			}
			if c != nil {
				c.Close()
			}
			c, err := dialSecure(s, certs.Certificate{Cert: authority}, &keys)
			if err == nil {
				clients[i] = c
				err = echoes(c, "hello\n")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	talk()
	s.Kill(0)
	talk()
	s.Reload()
	talk()

	// What the runtime writes down of a worker that is told to die.
	dumps := map[string]*os.File{}
	for slot, signal := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT} {
		worker := s.Status().Pools[0].Workers[slot]
		name := fmt.Sprintf("what %v has worker %d write", signal, worker.PID)
		dumps[name] = crashOf(t, worker.PID)
		defer dumps[name].Close()
		if err := syscall.Kill(worker.PID, signal); err != nil {
			t.Fatal(err)
		}
		s.Await("its successor serves", func(st control.Status) bool {
			next := st.Pools[0].Workers[slot]
			return next.Incarnation != worker.Incarnation && next.State == "ready"
		})
		talk()
	}

	private, err := pair.PrivateKey.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"the certificate's key": private}
	for line := range strings.Lines(keys.String()) { // LABEL RANDOM SECRET
		words := strings.Fields(line)
		secret, err := hex.DecodeString(words[len(words)-1])
		if err != nil {
			t.Fatal(err)
		}
		secrets[fmt.Sprintf("%s of %.8s", words[0], words[1])] = secret
	}
	if len(secrets) < 1+2*len(clients) {
		t.Fatalf("%d secrets are known", len(secrets))
	}
	holds := func(text []byte) (found []string) {
		for name, secret := range secrets {
			for _, form := range [][]byte{
				secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret))),
				[]byte(base64.StdEncoding.EncodeToString(secret)), []byte(fmt.Sprint(secret)),
			} {
				if bytes.Contains(text, form) {
					found = append(found, name)
				}
			}
		}
		if bytes.Contains(text, []byte("PRIVATE KEY")) {
			found = append(found, "a key in PEM")
		}
		return found
	}
	if len(holds(keys.Bytes())) < 2*len(clients) {
		t.Fatal("secrets are not found where they are")
	}
	texts := map[string][]byte{"the log": []byte(s.Log())}
	for name, f := range dumps {
		text, err := io.ReadAll(f)
		if err != nil || !bytes.Contains(text, []byte("\ngoroutine ")) || !bytes.Contains(text, []byte("pkg/reactor")) {
			t.Errorf("%s: %v, no goroutines with the loop's among them: %q", name, err, text)
		}
		texts[name] = text
	}
	if len(s.Log()) < 1000 {
		t.Errorf("the log is %q", s.Log())
	}
	answer := func(name string, v any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if texts[name], err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	st := s.Status()
	answer("status", st, nil)
	list, err := s.Control().Connections(t.Context(), control.ConnectionsRequest{Limit: control.MaxLimit})
	answer("connections", list, err)
	x, err := s.Control().Examine(t.Context())
	answer("examine", x, err)
	page, err := s.Control().Metrics(t.Context())
	answer("metrics", string(page), err)
	var events []control.Event
	err = s.Control().Events(t.Context(), false, func(e control.Event) { events = append(events, e) })
	answer("events", events, err)
	// The memory files of supervisor and workers, but for those that are there
	// for keys: the sealed configuration and the table of connections.
	pids := []int{st.PID}
	for _, w := range st.Pools[0].Workers {
		pids = append(pids, w.PID)
	}
	for _, pid := range pids {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			to, err := os.Readlink(fd)
			if err != nil || !strings.HasPrefix(to, "/memfd:mainstay-state") && !strings.HasPrefix(to, "/memfd:mainstay-stats") && !strings.HasPrefix(to, "/memfd:mainstay-crash") {
				continue
			}
			if texts[fmt.Sprintf("%s of %d", to, pid)], err = os.ReadFile(fd); err != nil {
				t.Fatal(err)
			}
		}
	}
	memory := 0
	for name, text := range texts {
		if strings.HasPrefix(name, "/memfd:") {
			memory++
		}
		if found := holds(text); len(found) > 0 {
			t.Errorf("%s has %v", name, found)
		}
	}
	if memory < 2 {
		t.Errorf("%d memory files were read", memory)
	}
	// What it writes to disk lies beside its control socket.
	err = filepath.WalkDir(filepath.Dir(strings.TrimPrefix(s.Control().Address(), "unix://")), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if found := holds(text); len(found) > 0 {
			t.Errorf("%s has %v", path, found)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
