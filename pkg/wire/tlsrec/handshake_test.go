package tlsrec

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/google/go-cmp/cmp"
)

// crypto/tls has no setting for the suites of TLS 1.3, but lets others at its
// list by this name.
//
//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

// onlySuite has crypto/tls offer and take one suite until the test is over.
func onlySuite(t *testing.T, id uint16) {
	a, b := defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES
	defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = []uint16{id}, []uint16{id}
	t.Cleanup(func() { defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = a, b })
}

// testLimit is how long anything may take.
const testLimit = 20 * time.Second

// authority signs the certificates of one test binary.
var authority = sync.OnceValue(func() tls.Certificate { return newCertificate("authority", nil) })

// newCertificate makes a certificate for name, signed by the authority; the
// authority itself if there is none yet.
func newCertificate(name string, by *tls.Certificate) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true, IsCA: by == nil,
	}
	parent, signer := template, any(key)
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func certificate(name string) tls.Certificate {
	a := authority()
	return newCertificate(name, &a)
}

func pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(authority().Leaf)
	return p
}

// configs returns what a server and its client need.
func configs() (server, client *tls.Config) {
	server = &tls.Config{Certificates: []tls.Certificate{certificate("localhost")}, NextProtos: []string{"chat", "echo"}}
	server.SetSessionTicketKeys([][32]byte{{1}})
	client = &tls.Config{
		RootCAs: pool(), ServerName: "localhost", NextProtos: []string{"echo"},
		ClientSessionCache: tls.NewLRUClientSessionCache(1), // else it asks for no tickets
	}
	return server, client
}

// sockets returns the two ends of a TCP connection.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

// shake brings a handshake to its end over c, reading at most step bytes at a
// time.
func shake(c net.Conn, h *Handshake, step int) (Result, error) {
	defer h.Abort()
	buf := make([]byte, step)
	for {
		done, err := h.Step()
		if _, werr := c.Write(h.Output()); werr != nil && err == nil {
			err = werr
		}
		if err != nil {
			return Result{}, err
		}
		if done {
			return h.Result()
		}
		n, err := c.Read(buf)
		if err != nil {
			return Result{}, err
		}
		if err := h.Feed(buf[:n]); err != nil {
			return Result{}, err
		}
	}
}

// echo sends back what comes until the peer has said close_notify, or, with
// an error, until the stream ends. moved is asked before each read for the
// connection that goes on.
func echo(c net.Conn, tc *Conn, in []byte, moved func(*Conn) *Conn) error {
	buf := make([]byte, 5000)
	for {
		advance, p, err := tc.OpenAll(in)
		if len(p) > 0 || tc.Pending() {
			out, serr := tc.Seal(nil, p)
			if serr != nil {
				out = tc.AppendPending(nil)
			}
			if _, werr := c.Write(out); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			_, err = c.Write(tc.CloseNotify(nil))
			return err
		}
		if err != nil {
			return err
		}
		in = in[advance:]
		if moved != nil {
			tc = moved(tc)
		}
		n, err := c.Read(buf)
		if err != nil {
			return errors.Join(err, tc.End(len(in)))
		}
		in = append(in, buf[:n]...)
	}
}

// move is a hand-off without the other process.
func move(t testing.TB) func(*Conn) *Conn {
	return func(c *Conn) *Conn {
		state := mustState(t, c)
		c.Drop()
		c, err := RestoreState(state)
		if err != nil {
			t.Error(err)
		}
		return c
	}
}

// converse writes and reads messages over a peer of crypto/tls, then closes.
func converse(c *tls.Conn) error {
	for i := range 30 {
		msg := bytes.Repeat([]byte{byte(i)}, 1+i*1997)
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(msg)
			wrote <- err
		}()
		got := make([]byte, len(msg))
		_, err := io.ReadFull(c, got)
		if err := errors.Join(err, <-wrote); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if !bytes.Equal(got, msg) {
			return fmt.Errorf("message %d is not what was sent", i)
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("read %d, %w, want the peer's close_notify", n, err)
	}
	return nil
}

func TestConversationWithCryptoTLS(t *testing.T) {
	forEachSuite(t, func(t *testing.T, id uint16) {
		onlySuite(t, id)
		for _, tt := range []struct {
			name   string
			client bool // we are the client
			step   int
			change func(server, client *tls.Config)
			sent   uint64 // records under the final key in the handshake
		}{
			{name: "server", step: 4096, sent: 1},
			{name: "server, byte by byte", step: 1, sent: 1},
			{name: "server without tickets", step: 4096, change: func(s, _ *tls.Config) { s.SessionTicketsDisabled = true }},
			{name: "server whose client takes no tickets", step: 4096, change: func(_, c *tls.Config) { c.SessionTicketsDisabled = true }},
			{name: "server that asks for a certificate", step: 4096, sent: 1, change: func(s, c *tls.Config) {
				s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, pool()
				c.Certificates = []tls.Certificate{certificate("alice")}
			}},
			{name: "server that asks for a certificate in vain", step: 4096, sent: 1, change: func(s, _ *tls.Config) {
				s.ClientAuth = tls.RequestClientCert
			}},
			{name: "server that wants another key share", step: 100, sent: 1, change: func(s, c *tls.Config) {
				s.CurvePreferences = []tls.CurveID{tls.CurveP384}
				c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}
			}},
			{name: "server with a configuration by name", step: 4096, sent: 1, change: func(s, _ *tls.Config) {
				chosen := s.Clone()
				s.Certificates = nil
				s.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
					if hello.ServerName != "localhost" {
						return nil, errors.New("unknown name")
					}
					return chosen, nil
				}
			}},
			{name: "server whose tickets need two records", step: 4096, sent: 2, change: func(s, _ *tls.Config) {
				s.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return make([]byte, 20000), nil }
			}},
			{name: "client", client: true, step: 4096},
			{name: "client, byte by byte", client: true, step: 1},
			{name: "client with a certificate", client: true, step: 4096, change: func(s, c *tls.Config) {
				s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, pool()
				c.Certificates = []tls.Certificate{certificate("alice")}
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				server, client := configs()
				if tt.change != nil {
					tt.change(server, client)
				}
				ours, theirs := sockets(t)
				h, peer := Server(t.Context(), server), tls.Client(theirs, client)
				if tt.client {
					h, peer = Client(t.Context(), client), tls.Server(theirs, server)
				}
				result := make(chan error, 1)
				go func() { result <- converse(peer) }()
				r, err := shake(ours, h, tt.step)
				if err != nil {
					t.Fatal(err)
				}
				if r.Conn == nil || r.Legacy != nil || r.Conn.in.suite.id != id || r.Info.Suite != id {
					t.Fatalf("result %+v", r)
				}
				if r.Conn.out.seq != tt.sent || r.Conn.in.seq != 0 {
					t.Errorf("sequence numbers %d out, %d in, want %d, 0", r.Conn.out.seq, r.Conn.in.seq, tt.sent)
				}
				if err := echo(ours, r.Conn, r.Rest, move(t)); err != nil {
					t.Error(err)
				}
				if err := <-result; err != nil {
					t.Error(err)
				}
				if r.Info.Protocol != "echo" || r.Info.ServerName != "localhost" && !tt.client || r.Info.Version != tls.VersionTLS13 {
					t.Errorf("info %+v", r.Info)
				}
			})
		}
	})
}

func TestOurServerAndOurClientAgree(t *testing.T) {
	sc, cc := configs()
	s, c := Server(t.Context(), sc), Client(t.Context(), cc)
	defer s.Abort()
	defer c.Abort()
	for !s.Done() || !c.Done() {
		for _, pair := range [][2]*Handshake{{c, s}, {s, c}} {
			if pair[0].Done() {
				continue
			}
			if _, err := pair[0].Step(); err != nil {
				t.Fatal(err)
			}
			if out := pair[0].Output(); len(out) > 0 && !pair[1].Done() {
				if err := pair[1].Feed(out); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	sr, err := s.Result()
	if err != nil {
		t.Fatal(err)
	}
	cr, err := c.Result()
	if err != nil {
		t.Fatal(err)
	}
	if len(cr.Rest) == 0 {
		t.Error("the ticket is not behind the client's handshake")
	}
	in := mustSeal(t, sr.Conn, cr.Rest, []byte("hello"))
	if got, rest, err := openAll(cr.Conn, in); string(got) != "hello" || len(rest) > 0 || err != nil {
		t.Errorf("got %q, rest %d, %v", got, len(rest), err)
	}
	if got, _, err := openAll(sr.Conn, mustSeal(t, cr.Conn, nil, []byte("hi"))); string(got) != "hi" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if err := s.Feed([]byte("x")); err == nil {
		t.Error("Feed after the end does not fail")
	}
}

func TestDataBehindTheHandshakeIsNotLost(t *testing.T) {
	sc, cc := configs()
	cc.SessionTicketsDisabled = true
	s, c := Server(t.Context(), sc), Client(t.Context(), cc)
	defer s.Abort()
	defer c.Abort()
	exchange := func(from, to *Handshake) []byte {
		if _, err := from.Step(); err != nil {
			t.Fatal(err)
		}
		return from.Output()
	}
	if err := s.Feed(exchange(c, s)); err != nil {
		t.Fatal(err)
	}
	if err := c.Feed(exchange(s, c)); err != nil {
		t.Fatal(err)
	}
	last := exchange(c, s)
	cr, err := c.Result()
	if err != nil {
		t.Fatal(err)
	}
	early := mustSeal(t, cr.Conn, last, []byte("early"))
	cut := len(early) - 4
	if err := s.Feed(early[:cut]); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Step(); !done || err != nil {
		t.Fatal(done, err)
	}
	sr, err := s.Result()
	if err != nil {
		t.Fatal(err)
	}
	if got, rest, err := openAll(sr.Conn, append(sr.Rest, early[cut:]...)); string(got) != "early" || len(rest) > 0 || err != nil {
		t.Errorf("got %q, rest %d, %v", got, len(rest), err)
	}
}

func TestTLS12StaysWithCryptoTLS(t *testing.T) {
	for _, weAreClient := range []bool{false, true} {
		t.Run(fmt.Sprintf("client %v", weAreClient), func(t *testing.T) {
			server, client := configs()
			server.MaxVersion = tls.VersionTLS12
			ours, theirs := sockets(t)
			h, peer := Server(t.Context(), server), tls.Client(theirs, client)
			if weAreClient {
				h, peer = Client(t.Context(), client), tls.Server(theirs, server)
			}
			result := make(chan error, 1)
			go func() { result <- converse(peer) }()
			r, err := shake(ours, h, 100)
			if err != nil {
				t.Fatal(err)
			}
			if r.Conn != nil || r.Legacy == nil || r.Info.Version != tls.VersionTLS12 || r.Info.Protocol != "echo" {
				t.Fatalf("result %+v", r)
			}
			if err := echoLegacy(ours, h, r.Legacy); err != nil {
				t.Error(err)
			}
			if err := <-result; err != nil {
				t.Error(err)
			}
		})
	}
}

func echoLegacy(c net.Conn, h *Handshake, l *Legacy) error {
	buf, plain := make([]byte, 5000), make([]byte, 3000)
	for {
		n, err := l.Read(plain)
		switch {
		case err == ErrWantInput:
			if _, err := c.Write(l.Output()); err != nil {
				return err
			}
			if n, err = c.Read(buf); err != nil {
				return err
			}
			l.Feed(buf[:n])
		case err == io.EOF:
			if err := l.CloseNotify(); err != nil {
				return err
			}
			_, err := c.Write(l.Output())
			return err
		case err != nil:
			return err
		default:
			if err := l.Write(plain[:n]); err != nil {
				return err
			}
		}
	}
}

func TestPeersKeyUpdateIsAnsweredByCryptoTLS(t *testing.T) {
	server, client := configs()
	ours, theirs := sockets(t)
	peer := tls.Client(theirs, client)
	result := make(chan error, 1)
	go func() { result <- converse(peer) }()
	r, err := shake(ours, Server(t.Context(), server), 4096)
	if err != nil {
		t.Fatal(err)
	}
	// With each message we change our key and have the peer change its own.
	updates := 0
	err = echo(ours, r.Conn, r.Rest, func(c *Conn) *Conn {
		if c.flags&(flagAsked|flagUpdateDue) == 0 {
			c.flags |= flagUpdateDue | flagAsk | flagAsked
			updates++
		}
		return c
	})
	if err := errors.Join(err, <-result); err != nil {
		t.Error(err)
	}
	if updates < 10 {
		t.Errorf("%d updates were answered", updates)
	}
}

func TestSilentPeerCostsNothing(t *testing.T) {
	server, _ := configs()
	for _, in := range []string{"", "\x16", "\x16\x03\x01\x02\x00" + strings.Repeat("x", 511)} {
		h := Server(t.Context(), server)
		if err := h.Feed([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if done, err := h.Step(); done || err != nil || h.next != nil {
			t.Errorf("%d bytes: done %v, %v, begun %v", len(in), done, err, h.next != nil)
		}
		if _, err := h.Result(); err != ErrNotDone {
			t.Errorf("result %v, want ErrNotDone", err)
		}
		h.Abort()
		if _, err := h.Result(); !errors.Is(err, errAborted) {
			t.Errorf("result %v, want that it was aborted", err)
		}
	}
}

func TestHandshakeIsAbortedWhereItStands(t *testing.T) {
	server, client := configs()
	c := Client(t.Context(), client)
	defer c.Abort()
	if _, err := c.Step(); err != nil {
		t.Fatal(err)
	}
	hello := c.Output()
	for _, tt := range []struct {
		name string
		end  func(h *Handshake, cancel func(error))
		want error
	}{
		{name: "by Abort", want: errAborted, end: func(h *Handshake, _ func(error)) { h.Abort() }},
		{name: "by its context", want: errTooSlow, end: func(h *Handshake, cancel func(error)) {
			cancel(errTooSlow)
			if done, err := h.Step(); !done || !errors.Is(err, errTooSlow) {
				panic(fmt.Sprint(done, err))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			h := Server(ctx, server)
			if err := h.Feed(hello); err != nil {
				t.Fatal(err)
			}
			if done, err := h.Step(); done || err != nil {
				t.Fatal(done, err)
			}
			tt.end(h, cancel)
			if _, err := h.Result(); !h.Done() || !errors.Is(err, tt.want) {
				t.Errorf("result %v, want %v", err, tt.want)
			}
			h.Abort()
		})
	}
}

var errTooSlow = errors.New("too slow")

func TestFloodIsBounded(t *testing.T) {
	server, _ := configs()
	h := Server(t.Context(), server)
	defer h.Abort()
	if err := errors.Join(h.Feed(make([]byte, maxWaiting)), h.Feed([]byte{1})); !errors.Is(err, ErrFlood) {
		t.Errorf("Feed of too much: %v, want ErrFlood", err)
	}

	// A ClientHello of the largest kind, in records of one byte, is what
	// crypto/tls would wait for.
	h = Server(t.Context(), server)
	defer h.Abort()
	record := []byte{22, 3, 1, 0, 1, 1}
	fed := 0
	for _, b := range []byte{1, 0, 0xff, 0xff} {
		record[headerSize] = b
		if err := h.Feed(record); err != nil {
			t.Fatal(err)
		}
		fed += len(record)
	}
	for {
		if done, err := h.Step(); done {
			if !errors.Is(err, ErrFlood) || fed < maxHello || fed > maxHello+10 {
				t.Errorf("ended after %d bytes: %v, want ErrFlood after %d", fed, err, maxHello)
			}
			return
		}
		if err := h.Feed(record); err != nil {
			t.Fatal(err)
		}
		fed += len(record)
	}
}

func TestFailureIsToldByAnAlert(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(server, client *tls.Config)
		in     string // instead of a client
		want   string // in the error
		alert  string // what the client says
	}{
		{name: "plain HTTP", in: "GET / HTTP/1.1\r\nHost: x\r\n\r\n", want: "does not look like a TLS handshake"},
		{name: "junk", in: "\x16\x03\x01\xff\xff", want: "oversized"},
		{name: "no common protocol", want: "unsupported application protocols", alert: "no application protocol",
			change: func(_, c *tls.Config) { c.NextProtos = []string{"other"} }},
		{name: "no certificate", want: "didn't provide a certificate",
			change: func(s, _ *tls.Config) { s.ClientAuth = tls.RequireAnyClientCert }},
		{name: "old client", want: "unsupported versions", alert: "protocol version",
			change: func(s, c *tls.Config) { s.MinVersion, c.MaxVersion = tls.VersionTLS13, tls.VersionTLS12 }},
		{name: "panic", want: "panic in the handshake: callback",
			change: func(s, _ *tls.Config) {
				s.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("callback") }
				s.Certificates = nil
			}},
		{name: "unknown authority", want: "remote error", change: func(_, c *tls.Config) { c.RootCAs = x509.NewCertPool() }, alert: "unknown authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, client := configs()
			if tt.change != nil {
				tt.change(server, client)
			}
			ours, theirs := sockets(t)
			result := make(chan error, 1)
			go func() {
				defer theirs.Close()
				if tt.in != "" {
					_, err := io.WriteString(theirs, tt.in)
					result <- err
					return
				}
				result <- tls.Client(theirs, client).Handshake()
			}()
			_, err := shake(ours, Server(t.Context(), server), 4096)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			ours.Close()
			if err := <-result; tt.alert != "" && (err == nil || !strings.Contains(err.Error(), tt.alert)) {
				t.Errorf("the client says %v, want %q", err, tt.alert)
			}
		})
	}
}

func TestOwnKeyLogIsStillWritten(t *testing.T) {
	server, client := configs()
	var log bytes.Buffer
	server.KeyLogWriter = &log
	ours, theirs := sockets(t)
	result := make(chan error, 1)
	go func() { result <- tls.Client(theirs, client).Handshake() }()
	if _, err := shake(ours, Server(t.Context(), server), 4096); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines, want 4", n)
	}
}

func TestSecretsOfTheHandshakeAreOverwritten(t *testing.T) {
	server, client := configs()
	ours, theirs := sockets(t)
	result := make(chan error, 1)
	go func() { result <- tls.Client(theirs, client).Handshake() }()
	h := Server(t.Context(), server)
	if _, err := shake(ours, h, 4096); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	for i, secret := range [][]byte{h.tr.secrets.client, h.tr.secrets.server} {
		if len(secret) == 0 || len(bytes.Trim(secret, "\x00")) != 0 {
			t.Errorf("secret %d has %d bytes that are not zero, of %d", i, len(bytes.Trim(secret, "\x00")), len(secret))
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, &Legacy{tls: tls.Client(ours, client), tr: h.tr}); got != "tlsrec.Legacy{}" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
	if h.tr.sent != nil {
		t.Error("the keys that count are left, and are those of the Conn")
	}
}

func TestInfoTravels(t *testing.T) {
	server, client := configs()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, pool()
	client.Certificates = []tls.Certificate{certificate("alice")}
	ours, theirs := sockets(t)
	result := make(chan error, 1)
	go func() { result <- tls.Client(theirs, client).Handshake() }()
	r, err := shake(ours, Server(t.Context(), server), 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	b, err := r.Info.Append([]byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseInfo(b[4:])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Info, got); diff != "" {
		t.Errorf("info is changed by the journey: %s", diff)
	}
	cs, err := got.ConnectionState()
	if err != nil {
		t.Fatal(err)
	}
	if cs.NegotiatedProtocol != "echo" || cs.ServerName != "localhost" || !cs.HandshakeComplete || !got.Verified ||
		len(cs.PeerCertificates) != 1 || cs.PeerCertificates[0].Subject.CommonName != "alice" {
		t.Errorf("state %+v", cs)
	}
}

func TestInfoOfAnotherMakingIsRefused(t *testing.T) {
	i := Info{Version: tls.VersionTLS13, Suite: tls.TLS_AES_128_GCM_SHA256, Protocol: "h2", PeerCertificates: [][]byte{[]byte("der")}}
	good, err := i.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := ParseInfo(good[:n]); !errors.Is(err, ErrInfo) {
			t.Errorf("cut to %d bytes: %v, want ErrInfo", n, err)
		}
	}
	for name, b := range map[string][]byte{
		"longer":  append(bytes.Clone(good), 0),
		"version": append([]byte{2}, good[1:]...),
		"flags":   append([]byte{1, 4}, good[2:]...),
		"huge":    make([]byte, MaxInfo+1),
	} {
		if _, err := ParseInfo(b); !errors.Is(err, ErrInfo) {
			t.Errorf("%s: %v, want ErrInfo", name, err)
		}
	}
	for name, bad := range map[string]Info{
		"name":         {ServerName: strings.Repeat("x", 256)},
		"certificates": {PeerCertificates: make([][]byte, 256)},
		"size":         {PeerCertificates: [][]byte{make([]byte, MaxInfo)}},
	} {
		if b, err := bad.Append([]byte("kept")); !errors.Is(err, ErrInfo) || string(b) != "kept" {
			t.Errorf("%s: %d bytes, %v, want ErrInfo", name, len(b), err)
		}
	}
	if _, err := i.ConnectionState(); err == nil {
		t.Error("a certificate that is none is taken")
	}
}

func FuzzParseInfo(f *testing.F) {
	for _, i := range []Info{{}, {Protocol: "h2", ServerName: "example.org", Resumed: true, PeerCertificates: [][]byte{{1, 2}, {}}}} {
		b, err := i.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := ParseInfo(b)
		if err != nil {
			return
		}
		if again, err := i.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x comes back as %x, %v", b, again, err)
		}
	})
}

// FuzzHandshake gives a server whatever bytes.
func FuzzHandshake(f *testing.F) {
	server, client := configs()
	c := Client(context.Background(), client)
	if _, err := c.Step(); err != nil {
		f.Fatal(err)
	}
	f.Add(c.Output(), 100)
	c.Abort()
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 1)
	f.Add([]byte("\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01\x00"), 2)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		h := Server(context.Background(), server)
		defer h.Abort()
		step = max(1, step%3000)
		for len(in) > 0 {
			n := min(step, len(in))
			if err := h.Feed(in[:n]); err != nil {
				t.Fatal(err)
			}
			in = in[n:]
			if done, err := h.Step(); done {
				if err == nil {
					t.Fatal("a handshake without a client has succeeded")
				}
				return
			}
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	sc, cc := configs()
	b.ReportAllocs()
	for b.Loop() {
		s, c := Server(b.Context(), sc), Client(b.Context(), cc)
		for !s.Done() {
			if _, err := c.Step(); err != nil {
				b.Fatal(err)
			}
			if err := s.Feed(c.Output()); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Step(); err != nil {
				b.Fatal(err)
			}
			if !c.Done() {
				if err := c.Feed(s.Output()); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}

func BenchmarkHandshakeOfCryptoTLS(b *testing.B) {
	sc, cc := configs()
	b.ReportAllocs()
	for b.Loop() {
		x, y := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Client(y, cc).Handshake() }()
		if err := tls.Server(x, sc).Handshake(); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		x.Close()
		y.Close()
	}
}

// echoOnce reads and sends back as many bytes as want has.
func echoOnce(t *testing.T, c io.ReadWriter, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
	if _, err := c.Write(got); err != nil {
		t.Fatal(err)
	}
}

func TestProtocolThatIsLeftToCryptoTLSStaysThere(t *testing.T) {
	for _, left := range []string{"echo", "chat"} {
		server, client := configs()
		ours, theirs := sockets(t)
		result := make(chan error, 1)
		go func() { result <- converse(tls.Client(theirs, client)) }()
		h := Server(t.Context(), server)
		h.Leave("h2", left)
		r, err := shake(ours, h, 100)
		if err != nil {
			t.Fatal(err)
		}
		if r.State.NegotiatedProtocol != "echo" || !r.State.HandshakeComplete {
			t.Errorf("state %+v", r.State)
		}
		if left != "echo" {
			if r.Conn == nil || r.Legacy != nil {
				t.Fatalf("result %+v", r)
			}
			if err := echo(ours, r.Conn, r.Rest, nil); err != nil {
				t.Error(err)
			}
		} else {
			if r.Conn != nil || r.Legacy == nil || r.Info.Version != tls.VersionTLS13 {
				t.Fatalf("result %+v", r)
			}
			c := r.Legacy.Attach(ours)
			if below, ok := c.NetConn().(interface{ NetConn() net.Conn }); !ok || below.NetConn() != ours {
				t.Errorf("below is %T", c.NetConn())
			}
			if c.RemoteAddr() != ours.RemoteAddr() || c.LocalAddr() != ours.LocalAddr() {
				t.Errorf("%v to %v", c.LocalAddr(), c.RemoteAddr())
			}
			if _, err := io.Copy(c, c); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil { // with close_notify, and of what is below
				t.Error(err)
			}
			if _, err := ours.Write(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("what is below is open: %v", err)
			}
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

func TestLegacyIsDetachedWithWhatItHasRead(t *testing.T) {
	server, client := configs()
	server.MaxVersion = tls.VersionTLS12
	ours, theirs := sockets(t)
	peer := tls.Client(theirs, client)
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	r, err := shake(ours, Server(t.Context(), server), 100)
	if err := errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	c := r.Legacy.Attach(ours)
	for _, text := range []string{"one", "two"} {
		if _, err := io.WriteString(peer, text); err != nil {
			t.Fatal(err)
		}
		echoOnce(t, c, text)
		if _, err := io.ReadFull(peer, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
	}
	// A read that is given up for a deadline breaks nothing.
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 10)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d, %v", n, err)
	}
	if err := errors.Join(c.SetWriteDeadline(time.Time{}), c.SetDeadline(time.Now().Add(testLimit))); err != nil {
		t.Fatal(err)
	}
	// Of three bytes one is read, the others crypto/tls has.
	if _, err := io.WriteString(peer, "abc"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	r.Legacy.Detach()
	rest := make([]byte, 10)
	if n, err := r.Legacy.Read(rest); string(rest[:n]) != "bc" || err != nil {
		t.Fatalf("%q, %v", rest[:n], err)
	}
	if _, err := r.Legacy.Read(rest); !errors.Is(err, ErrWantInput) {
		t.Fatal(err)
	}
	if err := r.Legacy.Write([]byte("on")); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write(r.Legacy.Output()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, rest[:2]); err != nil || string(rest[:2]) != "on" {
		t.Fatalf("%q, %v", rest[:2], err)
	}
}
