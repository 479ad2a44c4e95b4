package service

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/worker"
	"github.com/mainstay-go/mainstay/test/certs"
)

// files writes a certificate and returns its directory.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	other, err := certs.Make(time.Hour, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"cert": c.Cert, "key": c.Key, "other": other.Key, "text": []byte("no certificate"), "large": make([]byte, maxPEM+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCertificateThatCannotBeUsedIsToldWithItsKey(t *testing.T) {
	dir := files(t)
	t.Setenv(credentialsVariable, "")
	for _, tt := range []struct{ name, lines, want string }{
		{"no file", "cert = \"@/none\"\nkey = \"@/key\"", `app.toml:2: key "listener.a.tls.cert": stat @/none: no such file or directory`},
		{"a directory", "cert = \"@\"\nkey = \"@/key\"", `app.toml:2: key "listener.a.tls.cert": @: not a file`},
		{"too large", "cert = \"@/large\"\nkey = \"@/key\"", `app.toml:2: key "listener.a.tls.cert": @/large: 1048577 bytes, want at most 1048576`},
		{"another's key", "cert = \"@/cert\"\nkey = \"@/other\"", `app.toml:3: key "listener.a.tls.key": @/cert with @/other: tls: private key does not match public key`},
		{"no certificate", "cert = \"@/text\"\nkey = \"@/key\"", `app.toml:3: key "listener.a.tls.key": @/text with @/key: tls: failed to find any PEM data in certificate input`},
		{"no credentials", "cert = \"credential:c\"\nkey = \"@/key\"", `app.toml:2: key "listener.a.tls.cert": credential:c: CREDENTIALS_DIRECTORY is not set: want LoadCredential=c:PATH in the unit`},
		{
			"one of several", "cert = \"@/cert\"\nkey = \"@/key\"\ncertificate = [{cert = \"@/cert\", key = \"@/none\"}]",
			`app.toml:4: key "listener.a.tls.certificate": stat @/none: no such file or directory`,
		},
		{
			"no authority", "cert = \"@/cert\"\nkey = \"@/key\"\nclient_ca = \"@/text\"",
			`app.toml:4: key "listener.a.tls.client_ca": @/text: no certificate of an authority`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			here := strings.NewReplacer("@", dir)
			c, err := parse("[listener.a.tls]\n" + here.Replace(tt.lines))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.readCertificates(); err == nil || err.Error() != here.Replace(tt.want) {
				t.Errorf("got  %v\nwant %s", err, here.Replace(tt.want))
			}
		})
	}
}

// secured is what a worker makes of a listener's settings, which have come to
// it as they do.
func secured(t *testing.T, text string, protocol Protocol, seed string) worker.Listener {
	t.Helper()
	c, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.readCertificates(); err != nil {
		t.Fatal(err)
	}
	c.seed = []byte(seed)
	settings, err := c.settings()
	if err != nil {
		t.Fatal(err)
	}
	var w workerConfig
	if err := json.Unmarshal(settings.Worker, &w); err != nil {
		t.Fatal(err)
	}
	l, err := protocol.listener("a", w.Listeners["a"])
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Listeners["a"].secure(&l, w.TLS["a"], w.TicketSeed); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWorkerGetsWhatTheOperatorHasSet(t *testing.T) {
	dir := files(t)
	t.Setenv(credentialsVariable, dir)
	base := fmt.Sprintf("[listener.a]\nproxy_protocol = [\"unix\"]\nhandshake_timeout = \"3s\"\n[listener.a.tls]\ncert = \"credential:cert\"\nkey = %q\n", dir+"/key")
	l := secured(t, base, Raw[struct{}]{}, "seed")
	if l.TLS == nil || len(l.TLS.Certificates) != 1 || l.TLS.MinVersion != tls.VersionTLS12 || l.TLS.ClientAuth != tls.NoClientCert || l.TLS.NextProtos != nil {
		t.Errorf("%+v", l.TLS)
	}
	if l.Proxy == nil || !l.Proxy.Unix || l.Conn.Limits.Handshake != 3*time.Second {
		t.Errorf("proxy %+v, limits %+v", l.Proxy, l.Conn.Limits)
	}
	full := secured(t, base+fmt.Sprintf("min_version = \"1.3\"\nalpn = [\"x\"]\nclient_ca = %q\n", dir+"/cert"), Raw[struct{}]{}, "seed")
	if c := full.TLS; c.MinVersion != tls.VersionTLS13 || c.ClientAuth != tls.RequireAndVerifyClientCert || c.ClientCAs == nil || len(c.NextProtos) != 1 {
		t.Errorf("%+v", c)
	}
	if asked := secured(t, base+fmt.Sprintf("client_ca = %q\nclient_auth = \"request\"\n", dir+"/cert"), Raw[struct{}]{}, "seed"); asked.TLS.ClientAuth != tls.VerifyClientCertIfGiven {
		t.Errorf("%v", asked.TLS.ClientAuth)
	}
	web := secured(t, strings.Replace(base, "handshake_timeout = \"3s\"\n", "", 1), HTTP{Handler: http.NotFoundHandler()}, "seed")
	if got := fmt.Sprint(web.TLS.NextProtos); got != "[h2 http/1.1]" {
		t.Errorf("net/http offers %s", got)
	}
	// A ticket is good where its client would be let in, and nowhere else.
	if again := secured(t, base, Raw[struct{}]{}, "seed"); !bytes.Equal(again.TicketSeed, l.TicketSeed) {
		t.Error("another seed for the same")
	}
	if bytes.Equal(full.TicketSeed, l.TicketSeed) || bytes.Equal(secured(t, base, Raw[struct{}]{}, "other").TicketSeed, l.TicketSeed) {
		t.Error("one seed for different things")
	}
}

func TestDatagramsHaveNoTLS(t *testing.T) {
	for _, set := range []listenerConfig{{TLS: tlsConfig{Cert: "/a", Key: "/b"}}, {ProxyProtocol: []string{"unix"}}} {
		if _, err := (Packet{OnPacket: replyNothing}).listener("a", set); err == nil {
			t.Errorf("%+v was taken", set)
		}
	}
	if _, err := (HTTP{}).listener("a", listenerConfig{HandshakeTimeout: time.Second}); err == nil {
		t.Error("net/http takes handshake_timeout")
	}
}

func replyNothing(*Worker, *Datagram) {}

func TestSecretsAreInNoTextThatIsShown(t *testing.T) {
	dir := files(t)
	c, err := parse(fmt.Sprintf("[listener.a.tls]\ncert = %q\nkey = %q\n", dir+"/cert", dir+"/key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.readCertificates(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeConfig(&out, c.shown()); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Contains(text, "PRIVATE") || !strings.Contains(text, "tls.key = ") {
		t.Errorf("shown:\n%s", text)
	}
	back, err := parse(strings.ReplaceAll(out.String(), "\n\n", "\n"))
	if err != nil || back.Listeners["a"].TLS.Key != dir+"/key" {
		t.Errorf("what is shown is not what was set: %v, %+v", err, back.Listeners)
	}
}

func TestWebSocketOfAWebListenerIsServedByTLS(t *testing.T) {
	bothWays(t, func(t *testing.T, inline bool) {
		certificate, err := certs.Make(time.Hour, "localhost")
		if err != nil {
			t.Fatal(err)
		}
		pair, err := certificate.Pair()
		if err != nil {
			t.Fatal(err)
		}
		seen := make(chan *tls.ConnectionState, 2)
		chat := hall(make(chan string, 16), inline)
		upgrade := chat.OnUpgrade
		chat.OnUpgrade = func(r *http.Request) (guest, error) { seen <- r.TLS; return upgrade(r) }
		w := newWorkers(t, Web{
			Inline: inline, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.TLS }),
			Streams: map[string]Stream{"/chat": chat},
		}, listenerConfig{})
		handshakes := conn.NewHandshakes(0)
		t.Cleanup(handshakes.Close)
		for _, c := range w.confs {
			for _, becomes := range c.Becomes {
				becomes.Pool, becomes.Listener = c.Pool, c.Listener
			}
			c.TLS, c.Handshakes = &tls.Config{Certificates: []tls.Certificate{pair}}, handshakes
		}
		nc := tls.Client(w.connect(), &tls.Config{RootCAs: certificate.Pool(), ServerName: "localhost"})
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", r, err)
		}
		if (<-seen) == nil {
			t.Error("the request has no TLS")
		}
		w.move()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, _, err := coder.Dial(ctx, "wss://localhost/chat?name=ann", &coder.DialOptions{
			HTTPClient: &http.Client{Transport: &http.Transport{
				DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return nc, nil },
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		if (<-seen) == nil {
			t.Error("the upgrade has no TLS")
		}
		expect := func(want string) {
			t.Helper()
			if _, m, err := c.Read(ctx); err != nil || string(m) != want {
				t.Fatalf("got %q, %v, want %q", m, err, want)
			}
		}
		expect("welcome ann")
		w.move()
		if err := c.Write(ctx, coder.MessageText, []byte("who am i")); err != nil {
			t.Fatal(err)
		}
		expect(`ann 1001 ""`)
		if err := c.Close(4000, "enough"); err != nil {
			t.Error(err)
		}
	})
}
