package system

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/test/certs"
)

// certificatesComeAsCredentials: the files are root's, and the service's user
// gets what the unit loads. A restart brings in a renewed one and leaves whoever
// is connected where he is.
func certificatesComeAsCredentials(t *testing.T, m *machine) {
	s := install(t, m, server(t))
	folder := s.rename("/etc/app-tls")
	t.Cleanup(func() { s.quietly("rm", "-rf", folder) })
	renew := func() certs.Certificate {
		t.Helper()
		c, err := certs.Make(30*24*time.Hour, "echo.example.org")
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, folder+"/echo.pem", c.Cert, 0o600)
		s.write(t, folder+"/echo.key", c.Key, 0o600)
		return c
	}
	s.dropIn("app.service", "30-tls.conf", fmt.Sprintf("[Service]\nLoadCredential=echo.pem:%[1]s/echo.pem\nLoadCredential=echo.key:%[1]s/echo.key\n", folder))
	s.configure("workers = 2\n[listener.echo.tls]\ncert = \"credential:echo.pem\"\nkey = \"credential:echo.key\"\n")
	s.daemonReload()
	connect := func(c certs.Certificate, version uint16) *tls.Conn {
		t.Helper()
		raw, err := s.dial(s.address("app.socket"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { raw.Close() })
		conn := tls.Client(raw, &tls.Config{ServerName: "echo.example.org", RootCAs: c.Pool(), MaxVersion: version})
		if err := echo(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		return conn
	}

	first := renew()
	s.start()
	s.awaitStatus(10*time.Second, allProtected(2))
	open := connect(first, tls.VersionTLS13)
	leaf, err := tls.X509KeyPair(first.Cert, first.Key)
	if err != nil {
		t.Fatal(err)
	}
	// Each of the two workers tells it.
	if expires, err := s.metric("mainstay_certificate_expiry_seconds"); err != nil || int64(expires) != 2*leaf.Leaf.NotAfter.Unix() {
		t.Errorf("the metric's sum is %v, %v, want two times %v", expires, err, leaf.Leaf.NotAfter.Unix())
	}

	if all := s.status().Certificates; len(all) != 1 || all[0].Listener != "echo" || all[0].Name != "echo.example.org" || !all[0].Expires.Equal(leaf.Leaf.NotAfter) {
		t.Errorf("status has the certificates %+v", all)
	}

	second := renew()
	s.must(t, "systemctl", "restart", s.unit)
	s.awaitStatus(20*time.Second, renewed(2))
	connect(second, tls.VersionTLS13)
	connect(second, tls.VersionTLS12)
	if err := echo(open, "still here"); err != nil {
		t.Errorf("whoever was connected: %v", err)
	}
	if _, err := open.ConnectionState().PeerCertificates[0].Verify(x509.VerifyOptions{Roots: first.Pool()}); err != nil {
		t.Errorf("whoever was connected has another certificate: %v", err)
	}

	// One of two files is not there yet: nothing changes, and it is said why.
	s.write(t, folder+"/echo.pem", first.Cert, 0o600)
	s.must(t, "systemctl", "restart", s.unit)
	st := s.awaitStatus(20*time.Second, allReady(2))
	if st.LastReload == nil || st.LastReload.OK || !strings.Contains(st.LastReload.Reason, "private key") {
		t.Errorf("after half a renewal the last reload is %+v", st.LastReload)
	}
	connect(second, tls.VersionTLS13)
	if err := echo(open, "and still"); err != nil {
		t.Errorf("whoever was connected: %v", err)
	}
}
