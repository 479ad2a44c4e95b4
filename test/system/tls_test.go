package system

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/certs"
	"github.com/mainstay-go/mainstay/test/talk"
)

// certify makes a certificate for localhost, and puts it and its key, as
// NAME.pem and NAME.key, where root alone can read them.
func (s *service) certify(name string) certs.Certificate {
	s.t.Helper()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		s.t.Fatal(err)
	}
	for ending, text := range map[string][]byte{".pem": c.Cert, ".key": c.Key} {
		s.write(s.t, s.rename("/etc/app/private/"+name+ending), text, 0o600)
	}
	return c
}

// credentials has systemd give the service the certificates of certify.
func (s *service) credentials(names ...string) {
	s.t.Helper()
	text := "[Service]\n"
	for _, name := range names {
		for _, file := range []string{name + ".pem", name + ".key"} {
			text += fmt.Sprintf("LoadCredential=%s:/etc/app/private/%s\n", file, file)
		}
	}
	s.dropIn("app.service", "20-tls.conf", text)
	s.daemonReload()
}

// listen makes and starts a socket unit of the service, for a listener of that
// name, on some port.
func (s *service) listen(unit, listener string) {
	s.t.Helper()
	s.unitFile(unit, fmt.Appendf(nil, "[Socket]\nListenStream=127.0.0.1:%d\nFileDescriptorName=%s\nService=app.service\nNoDelay=yes\n", s.freePort(s.t, "127.0.0.1"), listener))
	s.daemonReload()
	s.must(s.t, "systemctl", "start", s.rename(unit))
}

// securely shakes hands by TLS 1.3 with who has that certificate. keys may be nil.
func securely(c certs.Certificate, keys io.Writer) func(net.Conn) (net.Conn, error) {
	cfg := &tls.Config{RootCAs: c.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS13, KeyLogWriter: keys}
	return func(conn net.Conn) (net.Conn, error) {
		secure := tls.Client(conn, cfg)
		return secure, secure.Handshake()
	}
}

// talkSecurely has clients talk to a socket unit of a listener with TLS.
func (s *service) talkSecurely(unit string, o talk.Options) *talk.Group {
	s.t.Helper()
	network, address := s.address(unit)
	g, err := talk.Start(func() (net.Conn, error) { return s.dial(network, address) }, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { g.Stop() })
	return g
}

// shows wants a socket unit's listener to have a certificate.
func (s *service) shows(unit string, c certs.Certificate) error {
	conn, err := s.dial(s.address(unit))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = securely(c, nil)(conn)
	return err
}

func renewedCertificateIsShownAndNobodyIsLost(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	files := s.rename("/etc/app/readable")
	s.configure(fmt.Sprintf(`workers = 2
grace = "10s"
reload.bake = "100ms"
[listener.credential-numbers]
serve = "text-numbers"
tls.cert = "credential:numbers.pem"
tls.key = "credential:numbers.key"
[listener.file-numbers]
serve = "text-numbers"
tls.cert = "%[1]s/cert.pem"
tls.key = "%[1]s/cert.key"
`, files))
	renew := func() certs.Certificate {
		t.Helper()
		c, err := certs.Make(time.Hour, "localhost")
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, files+"/cert.pem", c.Cert, 0o644)
		s.write(t, files+"/cert.key", c.Key, 0o644)
		return c
	}
	s.listen("app-credential.socket", "credential-numbers")
	s.listen("app-file.socket", "file-numbers")
	byCredential, byFile := s.certify("numbers"), renew()
	s.credentials("numbers")
	s.start()
	s.awaitStatus(10*time.Second, allProtected(2))
	o := talk.Options{Clients: 50, Pause: 50 * time.Millisecond}
	o.Secure = securely(byCredential, nil)
	groups := []*talk.Group{s.talkSecurely("app-credential.socket", o)}
	o.Secure = securely(byFile, nil)
	groups = append(groups, s.talkSecurely("app-file.socket", o))

	// want compares what is shown with what was before.
	want := func(unit string, now, before certs.Certificate) {
		t.Helper()
		if err := s.shows(unit, now); err != nil {
			t.Errorf("%s does not show the new certificate: %v", unit, err)
		}
		if _, other := errors.AsType[*tls.CertificateVerificationError](s.shows(unit, before)); !other {
			t.Errorf("%s shows the old certificate", unit)
		}
	}
	for range 3 {
		before := byFile
		byFile = renew()
		s.must(t, "systemctl", "reload", s.unit)
		want("app-file.socket", byFile, before)

		// A half of a renewal changes nothing.
		s.write(t, files+"/cert.key", before.Key, 0o644)
		if r := s.run(t, "systemctl", "reload", s.unit); r.code == 0 {
			t.Error("reloaded with another certificate's key")
		}
		want("app-file.socket", byFile, before)
		s.write(t, files+"/cert.key", byFile.Key, 0o644)

		before = byCredential
		byCredential = s.certify("numbers")
		if m.version >= 260 {
			s.must(t, "systemctl", "reload", s.unit)
		} else {
			old := s.status()
			s.must(t, "systemctl", "restart", s.unit)
			s.awaitStatus(20*time.Second, func(st control.Status) error { return errors.Join(successor(old, 2)(st), renewed(2)(st)) })
		}
		want("app-credential.socket", byCredential, before)
	}
	for _, g := range groups {
		r := g.Stop()
		t.Log(r)
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		// Of six; one that comes soon after another may go unnoticed.
		if r.Changes < 4*50 {
			t.Errorf("clients were served by another worker %d times, want %d", r.Changes, 4*50)
		}
	}
}

// secrets are what must not be found, by name.
type secrets map[string][]byte

// addKeys adds the secrets of a log of keys, and the keys for records that are
// made of them, RFC 8446 7.3.
func (s secrets) addKeys(t *testing.T, log []byte) {
	t.Helper()
	for line := range strings.Lines(string(log)) { // LABEL RANDOM SECRET
		words := strings.Fields(line)
		secret, err := hex.DecodeString(words[len(words)-1])
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s of %.8s", words[0], words[1])
		s[name] = secret
		if len(secret) != sha256.Size {
			continue // of AES-256, which these clients are never given
		}
		for _, n := range []int{16, 32} { // of AES-128, or ChaCha20
			info := append(binary.BigEndian.AppendUint16(nil, uint16(n)), "\x09tls13 key\x00"...)
			key, err := hkdf.Expand(sha256.New, secret, string(info), n)
			if err != nil {
				t.Fatal(err)
			}
			s[fmt.Sprintf("key of %d bytes, of %s", n, name)] = key
		}
	}
}

// finder looks for secrets in a text: as bytes, in hex, in base64, as Go prints
// a slice, and, eight bytes or more of them, as words of a trace of the stack
// or of registers.
func (s secrets) finder() func(text []byte) (found []string) {
	type form struct {
		name string
		text []byte
	}
	// By the first eight bytes, so that a text is gone through once.
	const prefix = 8
	forms := make(map[[prefix]byte][]form)
	add := func(name string, text []byte) {
		first := [prefix]byte(text)
		forms[first] = append(forms[first], form{name, text})
	}
	for name, secret := range s {
		add(name, secret)
		add(name, []byte(hex.EncodeToString(secret)))
		add(name, []byte(strings.ToUpper(hex.EncodeToString(secret))))
		add(name, []byte(base64.StdEncoding.EncodeToString(secret)))
		add(name, []byte(fmt.Sprint(secret)))
		for i := 0; i+8 <= len(secret); i += 8 {
			for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
				if word := fmt.Appendf(nil, "%x", order.Uint64(secret[i:])); len(word) > 12 {
					add(name+", a word", word)
				}
			}
		}
	}
	return func(text []byte) (found []string) {
		for i := range max(0, len(text)-prefix+1) {
			for _, f := range forms[[prefix]byte(text[i:])] {
				if bytes.HasPrefix(text[i:], f.text) {
					found = append(found, f.name)
				}
			}
		}
		if bytes.Contains(text, []byte("PRIVATE KEY")) {
			found = append(found, "a key in PEM")
		}
		return found
	}
}

// The journal with what dying processes say, and all files of the service, hold
// no key: neither the certificate's nor one of its connections.
func secretsAreInNothingThatIsWritten(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	s.configure(`workers = 2
grace = "10s"
hang_timeout = "2s"
log.level = "debug"
[respawn]
first = "10ms"
max = "200ms"
[listener.tls-numbers]
serve = "text-numbers"
tls.cert = "credential:numbers.pem"
tls.key = "credential:numbers.key"
`)
	s.listen("app-tls.socket", "tls-numbers")
	certificate := s.certify("numbers")
	s.credentials("numbers")
	s.start()
	st := s.awaitStatus(10*time.Second, allProtected(2))
	var keys bytes.Buffer // crypto/tls writes one line at a time
	g := s.talkSecurely("app-tls.socket", talk.Options{Clients: 50, Pause: 10 * time.Millisecond, Again: true, Secure: securely(certificate, &keys)})

	// A dump of core is written by the kernel, with all memory in it.
	for _, pid := range s.processes(t, s.unit) {
		limits := string(readFile(t, s.path(fmt.Sprintf("/proc/%d/limits", pid))))
		if _, rest, _ := strings.Cut(limits, "Max core file size"); !strings.HasPrefix(strings.TrimSpace(rest), "0 ") {
			t.Errorf("process %d may dump core:\n%s", pid, limits)
		}
		s.isClosedToOthers(pid)
	}
	s.isClosedToOthers(1) // which stores descriptors

	traces := []string{"QUIT", "ABRT", "SEGV"}
	for _, signal := range traces { // each has the runtime write what every goroutine does
		victim := workers(st)[0].PID
		s.kill(t, signal, victim)
		st = s.awaitStatus(20*time.Second, func(st control.Status) error {
			if workers(st)[0].PID == victim {
				return fmt.Errorf("worker 0 is still pid %d", victim)
			}
			return allProtected(2)(st)
		})
	}
	s.kill(t, "ABRT", st.PID) // as the watchdog does
	st = s.awaitStatus(20*time.Second, successor(st, 2))
	s.must(t, "systemctl", "reload", s.unit)
	s.must(t, "systemctl", "restart", s.unit)
	s.awaitStatus(20*time.Second, func(now control.Status) error { return errors.Join(successor(st, 2)(now), renewed(2)(now)) })
	s.ctl("connections", "--json", "--limit", "50")
	s.ctl("doctor")
	r := g.Stop()
	t.Log(r)
	if r.Wrong > 0 || r.Answered < 1000 {
		t.Errorf("clients: %v", r)
	}

	all := make(secrets)
	pair, err := certificate.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if all["the certificate's key"], err = pair.PrivateKey.(*ecdsa.PrivateKey).Bytes(); err != nil {
		t.Fatal(err)
	}
	all.addKeys(t, keys.Bytes())
	find := all.finder()
	if len(find(keys.Bytes())) < 2*50 || len(find(certificate.Key)) == 0 {
		t.Fatalf("of %d secrets not all are found where they are", len(all))
	}
	s.must(t, "journalctl", "--sync")
	export := []byte(s.must(t, "journalctl", "--output=export", "--all", s.since))
	for _, want := range []string{"SIGQUIT: quit", "SIGABRT: abort", "SIGSEGV: segmentation", "goroutine 1 "} {
		if !bytes.Contains(export, []byte(want)) {
			t.Errorf("the journal, %d bytes, does not say %q", len(export), want)
		}
	}
	if found := find(export); len(found) > 0 {
		t.Errorf("the journal has %v", found)
	}
	t.Logf("%d secrets are not in the journal of %d bytes", len(all), len(export))
	for _, pattern := range []string{"/run/app*", "/var/lib/app*", "/var/lib/private/app*", "/var/lib/systemd/coredump"} {
		roots, err := filepath.Glob(s.path(s.rename(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				text, err := os.ReadFile(path)
				if found := find(text); len(found) > 0 {
					t.Errorf("%s has %v", path, found)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// isClosedToOthers wants that another user cannot look at what a process has
// open, such as memory with keys.
func (s *service) isClosedToOthers(pid int) {
	s.t.Helper()
	r := s.run(s.t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", fmt.Sprintf("/proc/%d/fd/", pid))
	if r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
		s.t.Errorf("another user may look at process %d: %v", pid, r)
	}
}

// A key that was replaced is with the release that had it, until that is not
// the last good one any more, or the service is stopped.
func replacedKeyIsForgottenAfterTwoReloads(t *testing.T, m *machine) {
	s := install(t, m, probe(t, "1", ""))
	files := s.rename("/etc/app/readable")
	s.configure(fmt.Sprintf("workers = 2\nreload.bake = \"50ms\"\n[listener.tls-numbers]\nserve = \"text-numbers\"\ntls.cert = \"%[1]s/cert.pem\"\ntls.key = \"%[1]s/cert.key\"\n", files))
	s.listen("app-tls.socket", "tls-numbers")
	renew := func() certs.Certificate {
		t.Helper()
		c, err := certs.Make(time.Hour, "localhost")
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, files+"/cert.pem", c.Cert, 0o644)
		s.write(t, files+"/cert.key", c.Key, 0o644)
		return c
	}
	first := renew()
	s.start()
	s.awaitStatus(10*time.Second, allProtected(2))
	if n := s.holders(first); n == 0 {
		t.Error("a configuration is not found where it is")
	}
	now := first
	for range 2 {
		now = renew()
		s.must(t, "systemctl", "reload", s.unit)
		s.awaitStatus(10*time.Second, func(st control.Status) error { return errors.Join(allProtected(2)(st), renewed(2)(st)) })
	}
	eventually(t, 10*time.Second, func() error {
		if n := s.holders(first); n > 0 {
			return fmt.Errorf("%d descriptors lead to the first key", n)
		}
		return nil
	})
	if n := s.holders(now); n == 0 {
		t.Error("none leads to the key that is used")
	}
	s.must(t, "systemctl", "stop", s.unit)
	if n := s.holders(now); n > 0 {
		t.Errorf("after the stop %d descriptors lead to the key", n)
	}
}

// holders counts the descriptors of the service's processes, and of PID 1 for
// it, that lead to memory with a certificate's key.
func (s *service) holders(c certs.Certificate) (n int) {
	s.t.Helper()
	key := []byte(base64.StdEncoding.EncodeToString(c.Key)) // as JSON has it
	for _, pid := range append(s.processes(s.t, s.unit), 1) {
		fds, err := filepath.Glob(s.path(fmt.Sprintf("/proc/%d/fd/*", pid)))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err != nil || !strings.HasPrefix(to, "/memfd:mainstay-config") {
				continue
			}
			text, err := os.ReadFile(fd)
			if err == nil && bytes.Contains(text, key) {
				n++
			}
		}
	}
	return n
}
