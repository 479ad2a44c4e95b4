package worker

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"github.com/mainstay-go/mainstay/test/certs"
)

// unworked is a server of net/http for connections that a test makes, of a
// worker whose loop does not turn any more.
func unworked(t *testing.T, l Listener) *httpServer {
	t.Helper()
	loop, err := reactor.New(reactor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	loop.Stop()
	if err := loop.Run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { loop.Close() })
	s := newHTTPServer(&Worker{log: zap.NewNop(), loop: loop, seat: scoreboard.NewSeat()}, &l, nil)
	s.upgrades = l.Upgrades
	return s
}

func securedBy(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := c.Pair()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, &tls.Config{RootCAs: c.Pool(), ServerName: "localhost"}
}

// ends are a client's and a server's, of TCP.
func ends(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	client.SetDeadline(time.Now().Add(patience))
	return client, server
}

// sealing is a connection of TLS 1.3 of both sides.
func sealing(t *testing.T) (below net.Conn, client *tls.Conn, server *sealed) {
	t.Helper()
	serverTLS, clientTLS := securedBy(t)
	s := unworked(t, Listener{Name: "web", TLS: serverTLS})
	below, accepting := ends(t)
	client = tls.Client(below, clientTLS)
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	c, err := s.greet(newHTTPConn(s, accepting, accepted{}))
	if err := errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	server, ok := c.(*sealed)
	if !ok {
		t.Fatalf("TLS 1.3 is %T", c)
	}
	return below, client, server
}

func TestSealedConnectionCarriesEveryByte(t *testing.T) {
	_, client, server := sealing(t)
	go func() {
		_, _ = io.Copy(server, server) // in parts as they come
		server.Close()
	}()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	go func() {
		for rest, n := sent, 1; len(rest) > 0; n = n*3%50000 + 1 {
			n = min(n, len(rest))
			if _, err := client.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		if err := client.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(client) // without close_notify that were an error
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v, want the %d that were sent", len(got), err, len(sent))
	}
	if server.out != nil && cap(server.out) > 64<<10 {
		t.Errorf("%d bytes are kept to write in", cap(server.out))
	}
}

func TestReadOfASealedConnectionIsGivenUpAndGoesOn(t *testing.T) {
	_, client, server := sealing(t)
	b := make([]byte, 10)
	for range 3 {
		server.SetReadDeadline(time.Unix(1, 0)) // as net/http gives up its background read
		if n, err := server.Read(b); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
		server.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(client, "on"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, b[:2]); err != nil || string(b[:2]) != "on" {
			t.Fatalf("%q, %v", b[:2], err)
		}
	}
	client.Close()
	if n, err := server.Read(b); n > 0 || err != io.EOF {
		t.Errorf("%d, %v, want the end", n, err)
	}
}

func TestEndOfASealedConnectionIsToldAsCryptoTLSDoes(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(below net.Conn, client *tls.Conn)
		want error
	}{
		{name: "close_notify", end: func(_ net.Conn, client *tls.Conn) { client.Close() }, want: io.EOF},
		{name: "between records", end: func(below net.Conn, _ *tls.Conn) { below.Close() }, want: io.EOF},
		{name: "inside a record", end: func(below net.Conn, _ *tls.Conn) { below.Write([]byte{23, 3, 3, 0, 50, 1}); below.Close() }, want: io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			below, client, server := sealing(t)
			io.WriteString(client, "last")
			tt.end(below, client)
			server.SetReadDeadline(time.Now().Add(patience))
			got := make([]byte, 4)
			if _, err := io.ReadFull(server, got); err != nil || string(got) != "last" {
				t.Fatalf("got %q, %v", got, err)
			}
			for range 2 {
				if n, err := server.Read(got); n > 0 || err != tt.want {
					t.Errorf("got %d, %v, want %v", n, err, tt.want)
				}
			}
		})
	}
	below, client, server := sealing(t)
	if _, err := below.Write(append([]byte{23, 3, 3, 0, 50}, make([]byte, 50)...)); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(patience))
	if n, err := server.Read(make([]byte, 1)); n > 0 || err == nil || !strings.Contains(err.Error(), "record 0") {
		t.Errorf("a record of nobody's: %d, %v", n, err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("the client was told %v, want an alert", err)
	}
	if _, err := server.Write([]byte("more")); err == nil {
		t.Error("writing goes on")
	}
}

func TestHandshakeThatTakesTooLongIsEnded(t *testing.T) {
	serverTLS, _ := securedBy(t)
	s := unworked(t, Listener{Name: "web", TLS: serverTLS, HTTPLimits: HTTPLimits{Header: 50 * time.Millisecond}})
	client, accepting := ends(t)
	client.Write([]byte{22, 3, 1})
	if c, err := s.greet(newHTTPConn(s, accepting, accepted{})); c != nil || err == nil {
		t.Errorf("got %v, %v", c, err)
	}
	if n, err := client.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client has %d, %v, want the end", n, err)
	}
	// One that has all the time of the world has a second when nothing more is accepted.
	s = unworked(t, Listener{Name: "web", TLS: serverTLS, HTTPLimits: HTTPLimits{Header: -1}})
	_, accepting = ends(t)
	greeted := make(chan error, 1)
	go func() {
		_, err := s.greet(newHTTPConn(s, accepting, accepted{}))
		greeted <- err
	}()
	intake{s}.Close()
	select {
	case err := <-greeted:
		if err == nil {
			t.Error("there was a handshake")
		}
	case <-time.After(patience):
		t.Error("it is waited for")
	}
}

func TestConnectionThatTheLoopDoesNotTakeIsAnswered(t *testing.T) {
	for _, tt := range []struct {
		name    string
		version uint16 // of TLS; 0: none
	}{{"plain", 0}, {"TLS 1.2", tls.VersionTLS12}, {"TLS 1.3", tls.VersionTLS13}} {
		t.Run(tt.name, func(t *testing.T) {
			serverTLS, clientTLS := securedBy(t)
			l := Listener{Name: "web", Upgrades: map[string]*conn.Config{"talk": {Handler: conn.NopHandler{}}}}
			if tt.version != 0 {
				l.TLS, clientTLS.MinVersion, clientTLS.MaxVersion = serverTLS, tt.version, tt.version
			}
			told := make(chan error, 1)
			l.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				u, err := NewUpgrade(r, "talk")
				if err != nil {
					told <- err
					return
				}
				hijacked, err := u.Move(w, nil, nil, []byte("HTTP/1.1 503 Sorry\r\nContent-Length: 0\r\n\r\n"))
				if !hijacked {
					err = errors.New("not hijacked")
				}
				told <- err
			})
			s := unworked(t, l)
			s.start()
			defer s.server.Close()
			client, accepting := ends(t)
			fd, err := duplicate(accepting)
			if err != nil {
				t.Fatal(err)
			}
			accepting.Close()
			s.open.Add(1)
			s.queue <- accepted{fd: fd}
			if tt.version != 0 {
				client = tls.Client(client, clientTLS)
			}
			if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			r, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil || r.StatusCode != 503 {
				t.Errorf("got %v, %v, want 503", r, err)
			}
			if err := <-told; !errors.Is(err, reactor.ErrStopped) {
				t.Errorf("got %v, want ErrStopped", err)
			}
			if _, err := io.ReadAll(client); err != nil {
				t.Error(err)
			}
			if n := s.open.Load(); n != 0 {
				t.Errorf("%d connections are open", n)
			}
		})
	}
}
