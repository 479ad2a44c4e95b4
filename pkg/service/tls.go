package service

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"github.com/mainstay-go/mainstay/pkg/worker"
)

// tlsConfig is what an operator can set in [listener.NAME.tls]. Files are
// absolute paths or credential:NAME.
type tlsConfig struct {
	Cert         string
	Key          string
	Certificates []certificateFiles // more of them
	ClientCA     string
	ClientAuth   string   // empty: require with a ClientCA, else none
	MinVersion   string   // empty: 1.2
	ALPN         []string // empty: none; with net/http HTTP/2 and HTTP/1.1
	KTLS         bool     // the kernel seals, if it can
}

// certificateFiles is one certificate, with its chain, and its key.
type certificateFiles struct{ Cert, Key string }

// tlsMaterial is what the files of a tlsConfig hold, as PEM. It is read by the
// supervisor and handed to the workers of a generation, so that all that the
// generation ever has serve the same.
type tlsMaterial struct {
	Certificates []certificatePEM `json:"certificates"`
	ClientCA     []byte           `json:"client_ca,omitempty"`
}

type certificatePEM struct {
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`
}

const (
	// credentialPrefix begins the name of a file that systemd has put into the
	// directory of credentialsVariable.
	credentialPrefix    = "credential:"
	credentialsVariable = "CREDENTIALS_DIRECTORY"

	wantFile = "an absolute path, or credential:NAME"

	// maxPEM is the largest file of certificates or keys, in bytes.
	maxPEM = 1 << 20
)

// tlsSettings are the keys in [listener.NAME.tls], with their table.
var tlsSettings = []setting[listenerConfig]{
	pemFile("tls.cert", func(l *listenerConfig) *string { return &l.TLS.Cert }),
	pemFile("tls.key", func(l *listenerConfig) *string { return &l.TLS.Key }),
	{"tls.certificate", `tables [[listener.NAME.tls.certificate]] with cert and key`, false, func(l *listenerConfig, v any) error {
		tables, ok := asTables(v)
		if !ok {
			return errWant
		}
		l.TLS.Certificates = nil
		for i, table := range tables {
			var c certificateFiles
			for _, key := range sortedKeys(table) {
				path, ok := table[key].(string)
				switch {
				case key != "cert" && key != "key":
					return fmt.Errorf("number %d: unknown key %q", i+1, key)
				case !ok || !isFile(path):
					return fmt.Errorf("number %d: %s: got %s, want %s", i+1, key, show(table[key]), wantFile)
				case key == "cert":
					c.Cert = path
				default:
					c.Key = path
				}
			}
			if c.Cert == "" || c.Key == "" {
				return fmt.Errorf("number %d: want both cert and key", i+1)
			}
			l.TLS.Certificates = append(l.TLS.Certificates, c)
		}
		return nil
	}, func(l *listenerConfig) string {
		var tables []string
		for _, c := range l.TLS.Certificates {
			tables = append(tables, fmt.Sprintf("{cert = %q, key = %q}", c.Cert, c.Key))
		}
		return "[" + strings.Join(tables, ", ") + "]"
	}},
	pemFile("tls.client_ca", func(l *listenerConfig) *string { return &l.TLS.ClientCA }),
	oneOf("tls.client_auth", []string{"none", "request", "require"}, func(l *listenerConfig) *string { return &l.TLS.ClientAuth }),
	oneOf("tls.min_version", []string{"1.2", "1.3"}, func(l *listenerConfig) *string { return &l.TLS.MinVersion }),
	stringList("tls.alpn", `names such as ["h2", "http/1.1"]`, func(l *listenerConfig) *[]string { return &l.TLS.ALPN }, func(names []string) error {
		for _, name := range names {
			if name == "" || len(name) > 255 {
				return errWant
			}
		}
		return nil
	}),
	{"tls.ktls", "true or false", false, func(l *listenerConfig, v any) error {
		b, ok := asBool(v)
		if !ok {
			return errWant
		}
		l.TLS.KTLS = b
		return nil
	}, func(l *listenerConfig) string { return strconv.FormatBool(l.TLS.KTLS) }},
}

// proxySetting is proxy_protocol.
var proxySetting = stringList("proxy_protocol", `addresses of proxies such as ["10.0.0.0/8", "unix"]`,
	func(l *listenerConfig) *[]string { return &l.ProxyProtocol }, func(list []string) error {
		_, err := proxyproto.ParseTrusted(list)
		return err
	})

func pemFile(key string, field func(*listenerConfig) *string) setting[listenerConfig] {
	return setting[listenerConfig]{key, wantFile, false, func(l *listenerConfig, v any) error {
		s, ok := asString(v)
		if !ok || !isFile(s) {
			return errWant
		}
		*field(l) = s
		return nil
	}, func(l *listenerConfig) string { return quoteSet(*field(l)) }}
}

// isFile says whether s names a file as wantFile has it.
func isFile(s string) bool {
	if name, ok := strings.CutPrefix(s, credentialPrefix); ok {
		return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
	}
	return filepath.IsAbs(s) && !strings.ContainsRune(s, 0)
}

// asTables is v as a file has an array of tables, and the environment JSON.
func asTables(v any) ([]map[string]any, bool) {
	switch v := v.(type) {
	case []map[string]any:
		return v, true
	case []any:
		tables := make([]map[string]any, len(v))
		for i, one := range v {
			var ok bool
			if tables[i], ok = one.(map[string]any); !ok {
				return nil, false
			}
		}
		return tables, true
	case word:
		var tables []map[string]any
		d := json.NewDecoder(strings.NewReader(string(v)))
		if err := d.Decode(&tables); err != nil || d.More() {
			return nil, false
		}
		return tables, true
	}
	return nil, false
}

// stringList is a setting of several strings, in the environment as JSON.
func stringList[T any](key, want string, field func(*T) *[]string, check func([]string) error) setting[T] {
	return setting[T]{key, want, false, func(t *T, v any) error {
		var words []string
		switch v := v.(type) {
		case word:
			d := json.NewDecoder(strings.NewReader(string(v)))
			if err := d.Decode(&words); err != nil || d.More() {
				return errWant
			}
		case []any:
			for _, one := range v {
				s, ok := one.(string)
				if !ok {
					return errWant
				}
				words = append(words, s)
			}
		default:
			return errWant
		}
		if len(words) == 0 {
			words = nil
		}
		if err := check(words); err != nil {
			return err
		}
		*field(t) = words
		return nil
	}, func(t *T) string {
		text, err := json.Marshal(*field(t)) // as TOML has it, too
		if err != nil || *field(t) == nil {
			return "[]"
		}
		return string(text)
	}}
}

// isSet says whether anything of it was set.
func (t *tlsConfig) isSet() bool {
	return t.Cert != "" || t.Key != "" || len(t.Certificates) > 0 || t.ClientCA != "" || t.ClientAuth != "" || t.MinVersion != "" || len(t.ALPN) > 0 || t.KTLS
}

// check compares the settings with one another. The key is without tls.
func (t *tlsConfig) check() (key string, err error) {
	switch {
	case !t.isSet():
		return "", nil
	case t.Cert == "":
		return "cert", errors.New("TLS without a certificate: want cert and key")
	case t.Key == "":
		return "key", errors.New("cert without key: want both")
	case t.ClientCA == "" && (t.ClientAuth == "request" || t.ClientAuth == "require"):
		return "client_auth", fmt.Errorf("client_auth is %q without client_ca: want the authorities whose certificates are accepted", t.ClientAuth)
	case t.ClientCA != "" && t.ClientAuth == "none":
		return "client_auth", errors.New(`client_auth is "none" with client_ca: want "request" or "require"`)
	}
	return "", nil
}

// read reads the files and says what cannot be used. The key is without tls.
func (t *tlsConfig) read() (m tlsMaterial, key string, err error) {
	files := append([]certificateFiles{{t.Cert, t.Key}}, t.Certificates...)
	for i, f := range files {
		key := "certificate"
		if i == 0 {
			key = "cert"
		}
		var pem certificatePEM
		if pem.Cert, err = readPEM(f.Cert); err != nil {
			return m, key, err
		}
		if i == 0 {
			key = "key"
		}
		if pem.Key, err = readPEM(f.Key); err != nil {
			return m, key, err
		}
		if _, err := tls.X509KeyPair(pem.Cert, pem.Key); err != nil {
			return m, key, fmt.Errorf("%s with %s: %w", f.Cert, f.Key, err)
		}
		m.Certificates = append(m.Certificates, pem)
	}
	if t.ClientCA == "" {
		return m, "", nil
	}
	if m.ClientCA, err = readPEM(t.ClientCA); err == nil && !x509.NewCertPool().AppendCertsFromPEM(m.ClientCA) {
		err = fmt.Errorf("%s: no certificate of an authority", t.ClientCA)
	}
	return m, "client_ca", err
}

// readPEM reads a file, which isFile.
func readPEM(name string) ([]byte, error) {
	path := name
	if credential, ok := strings.CutPrefix(name, credentialPrefix); ok {
		dir := os.Getenv(credentialsVariable)
		if dir == "" {
			return nil, fmt.Errorf("%s: %s is not set: want LoadCredential=%s:PATH in the unit", name, credentialsVariable, credential)
		}
		path = filepath.Join(dir, credential)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a file", path)
	case info.Size() > maxPEM:
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", path, info.Size(), maxPEM)
	}
	return os.ReadFile(path)
}

// readCertificates reads what the listeners' files hold.
func (c *config) readCertificates() error {
	c.material = map[string]tlsMaterial{}
	for _, name := range sortedKeys(c.Listeners) {
		t := c.Listeners[name].TLS
		if !t.isSet() {
			continue
		}
		m, key, err := t.read()
		if err != nil {
			return c.refuse(err, listenerKey(name)+".tls."+key, listenerKey(name))
		}
		c.material[name] = m
	}
	return nil
}

// certificates are those that were read, for status.
func (c *config) certificates() (all []control.Certificate) {
	for _, name := range sortedKeys(c.material) {
		for _, pem := range c.material[name].Certificates {
			pair, err := tls.X509KeyPair(pem.Cert, pem.Key)
			if err != nil {
				continue // it was read without one
			}
			all = append(all, control.Certificate{Listener: name, Name: certificateName(pair.Leaf), Expires: pair.Leaf.NotAfter})
		}
	}
	return all
}

// secure has the listener speak TLS and believe proxies, as is set. seed is
// that of the service's session tickets.
func (l listenerConfig) secure(to *worker.Listener, m tlsMaterial, seed []byte) error {
	if len(l.ProxyProtocol) > 0 {
		trusted, err := proxyproto.ParseTrusted(l.ProxyProtocol)
		if err != nil {
			return err
		}
		to.Proxy = &trusted
	}
	if !l.TLS.isSet() {
		return nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: slices.Clone(l.TLS.ALPN)}
	if l.TLS.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	if to.HTTP != nil && len(c.NextProtos) == 0 {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	for _, pem := range m.Certificates {
		pair, err := tls.X509KeyPair(pem.Cert, pem.Key)
		if err != nil {
			return err
		}
		c.Certificates = append(c.Certificates, pair)
	}
	if len(c.Certificates) == 0 {
		return errors.New("TLS without a certificate")
	}
	if len(m.ClientCA) > 0 {
		c.ClientCAs = x509.NewCertPool()
		c.ClientCAs.AppendCertsFromPEM(m.ClientCA)
		c.ClientAuth = tls.RequireAndVerifyClientCert
		if l.TLS.ClientAuth == "request" {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
	}
	to.TLS, to.KernelTLS = c, l.TLS.KTLS
	if len(seed) > 0 {
		to.TicketSeed = ticketSeed(seed, to.Name, c.ClientAuth, m.ClientCA)
	}
	return nil
}

// ticketSeed is a listener's own: a session of one must not be resumed on
// another, or after a reload, that would not have let its client in.
func ticketSeed(seed []byte, name string, auth tls.ClientAuthType, clientCA []byte) []byte {
	mac := hmac.New(sha256.New, seed)
	fmt.Fprintf(mac, "%s\x00%d\x00", name, auth)
	mac.Write(clientCA)
	return mac.Sum(nil)
}

// newTicketSeed makes the seed of a service's session tickets.
func newTicketSeed() []byte {
	seed := make([]byte, tlsrec.MinTicketSeed)
	rand.Read(seed) // never fails
	return seed
}

const (
	// expiresSoon is when the end of a certificate is worth a warning, and
	// expiryEvery how often it is looked at.
	expiresSoon = 14 * 24 * time.Hour
	expiryEvery = 24 * time.Hour
)

// tellExpiry has the ends of the certificates known: in the metrics of each
// worker, and, soon before, in the log of the first.
func (s *Service) tellExpiry(listeners []worker.Listener) {
	gauge := s.metrics.OwnGauge("mainstay_certificate_expiry_seconds", "When the certificate expires, since the epoch.", "listener", "certificate")
	warn := func(w *Worker) {
		for _, l := range listeners {
			for _, c := range certificatesOf(l) {
				if left := time.Until(c.NotAfter); left < expiresSoon {
					w.Log().Warn("certificate expires soon", zap.String("listener", l.Name), zap.String("certificate", certificateName(c)),
						zap.Time("expires", c.NotAfter), zap.Bool("expired", left < 0))
				}
			}
		}
	}
	some := false
	for _, l := range listeners {
		for _, c := range certificatesOf(l) {
			some = true
			gauge.With(l.Name, certificateName(c)).Set(float64(c.NotAfter.Unix()))
		}
	}
	if !some {
		return
	}
	s.onStart = append(s.onStart, func(w *Worker) error {
		if w.Slot() == 0 {
			warn(w)
			w.Every(expiryEvery, func() { warn(w) })
		}
		return nil
	})
}

func certificatesOf(l worker.Listener) (all []*x509.Certificate) {
	if l.TLS == nil {
		return nil
	}
	for _, c := range l.TLS.Certificates {
		all = append(all, c.Leaf)
	}
	return all
}

// certificateName is a certificate's first name of a host, or its common name.
func certificateName(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return c.Subject.CommonName
}
