package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/test/certs"
)

// cmdCertificate makes FILE.pem and FILE.key: certificate FILE HOST [LIFE].
// They are replaced as a renewal does, by renames.
func cmdCertificate(ts *testscript.TestScript, neg bool, args []string) {
	life := 90 * 24 * time.Hour
	if len(args) > 2 {
		var err error
		life, err = time.ParseDuration(args[2])
		ts.Check(err)
	}
	c, err := certs.Make(life, args[1])
	ts.Check(err)
	for ending, text := range map[string][]byte{".pem": c.Cert, ".key": c.Key} {
		path := ts.MkAbs(args[0] + ending)
		ts.Check(os.WriteFile(path+".new", text, 0o600))
		ts.Check(os.Rename(path+".new", path))
	}
}

// shake connects by TLS; a client without certificates has none as own.
func shake(ts *testscript.TestScript, listener, host, ca, own string, version uint16) (*tls.Conn, error) {
	pem, err := os.ReadFile(ts.MkAbs(ca))
	ts.Check(err)
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: host, MaxVersion: version, NextProtos: strings.Fields(ts.Getenv("ALPN"))}
	cfg.RootCAs.AppendCertsFromPEM(pem)
	if own != "" {
		pair, err := tls.LoadX509KeyPair(ts.MkAbs(own+".pem"), ts.MkAbs(own+".key"))
		ts.Check(err)
		cfg.Certificates = []tls.Certificate{pair}
	}
	c := tls.Client(dial(ts, listener), cfg)
	if err := c.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// cmdTLS sends a text by TLS and wants it back, or, with !, wants to be refused:
// tls LISTENER HOST AUTHORITY TEXT [CERTIFICATE].
func cmdTLS(ts *testscript.TestScript, neg bool, args []string) {
	own := ""
	if len(args) > 4 {
		own = args[4]
	}
	c, err := shake(ts, args[0], args[1], args[2], own, 0)
	if neg {
		if err == nil { // the server's word on the client comes later
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || strings.Contains(err.Error(), "timeout") {
			ts.Fatalf("not refused: %v", err)
		}
		ts.Logf("refused: %v", err)
		return
	}
	ts.Check(err)
	defer c.Close()
	roundTrip(ts, c, args[3])
}

// cmdHoldTLS is hold by TLS: holdtls LISTENER HOST AUTHORITY 1.2|1.3.
func cmdHoldTLS(ts *testscript.TestScript, neg bool, args []string) {
	c, err := shake(ts, args[0], args[1], args[2], "", map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[args[3]])
	ts.Check(err)
	ts.Defer(func() { c.Close() })
	roundTrip(ts, c, `held\n`)
	*ts.Value(heldKey{}).(*net.Conn) = c
}

// cmdPort sets a variable to the port of a listener: port LISTENER NAME.
func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	st := status(ts, "listener "+args[0], func(control.Status) bool { return true })
	for _, l := range st.Listeners {
		if l.Name == args[0] {
			ts.Setenv(args[1], l.Address[strings.LastIndexByte(l.Address, ':')+1:])
			return
		}
	}
	ts.Fatalf("no listener %q", args[0])
}

// cmdSClient has openssl s_client say a line, after what commands it may be
// given, and wants it back: sclient LISTENER HOST AUTHORITY COMMANDS ARG...
func cmdSClient(ts *testscript.TestScript, neg bool, args []string) {
	cmdPort(ts, false, []string{args[0], "SCLIENT"})
	arg := append([]string{"s_client", "-connect", "127.0.0.1:" + ts.Getenv("SCLIENT"), "-servername", args[1], "-CAfile", ts.MkAbs(args[2]), "-verify_return_error"}, args[4:]...)
	cmd := exec.Command("openssl", arg...)
	in, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	complaints, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	said := false
	diagnosis := bufio.NewScanner(complaints)
	for _, c := range args[3] { // k and K, which it does not see in one piece with what follows
		_, err = io.WriteString(in, string(c)+"\n")
		ts.Check(err)
		for diagnosis.Scan() && diagnosis.Text() != "KEYUPDATE" {
		}
	}
	go func() {
		for diagnosis.Scan() {
		}
	}()
	_, err = io.WriteString(in, "all is well\n")
	ts.Check(err)
	for lines := bufio.NewScanner(out); !said && lines.Scan(); {
		said = lines.Text() == "all is well"
	}
	in.Close() // which makes it say goodbye
	go io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil || !said {
		ts.Fatalf("said %v, %v", said, err)
	}
}

// cmdProxied sends a PROXY header and a text and wants the text back, or, with
// !, the end: proxied LISTENER HEADER TEXT. Escapes as in Go.
func cmdProxied(ts *testscript.TestScript, neg bool, args []string) {
	c := dial(ts, args[0])
	ts.Defer(func() { c.Close() })
	header, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	_, err = io.WriteString(c, header)
	ts.Check(err)
	if neg {
		if b, err := io.ReadAll(c); len(b) > 0 || os.IsTimeout(err) {
			ts.Fatalf("got %q, %v, want the end", b, err)
		}
		return
	}
	roundTrip(ts, c, args[2])
	*ts.Value(heldKey{}).(*net.Conn) = c
}
