package tlsrec

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var testSeed = bytes.Repeat([]byte("seed"), 8)

func TestTicketKeysAreTheSameForAll(t *testing.T) {
	noon := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	keys := func(now time.Time) [][32]byte {
		t.Helper()
		k, until, err := TicketKeys(testSeed, now)
		if err != nil {
			t.Fatal(err)
		}
		if !until.After(now) || until.Sub(now) > TicketRotation {
			t.Errorf("keys of %v until %v", now, until)
		}
		return k
	}
	today := keys(noon)
	if !slices.Equal(today, keys(noon.Add(11*time.Hour).Local())) {
		t.Error("keys change within their time")
	}
	tomorrow := keys(noon.Add(TicketRotation))
	if today[0] == tomorrow[0] {
		t.Error("keys do not change")
	}
	for _, tt := range []struct {
		name  string
		days  int
		reads bool
	}{
		{name: "itself", days: 0, reads: true},
		{name: "who has rotated", days: 1, reads: true},
		{name: "who has not yet", days: -1, reads: true},
		{name: "a week later", days: 7, reads: true},
		{name: "too late", days: 8},
		{name: "too early", days: -2},
	} {
		other := keys(noon.Add(time.Duration(tt.days) * TicketRotation))
		if got := slices.Contains(other, today[0]); got != tt.reads {
			t.Errorf("%s: reads today's tickets %v, want %v", tt.name, got, tt.reads)
		}
	}
	seen := map[[32]byte]bool{}
	for _, k := range today {
		if seen[k] || k == [32]byte{} {
			t.Error("a key is there twice, or is none")
		}
		seen[k] = true
	}
	if other, _, err := TicketKeys(append(testSeed[:31:31], 'x'), noon); err != nil || slices.Contains(other, today[0]) {
		t.Errorf("another seed has the same keys, or fails: %v", err)
	}
	if k, _, err := TicketKeys(testSeed, time.Unix(0, 0)); err != nil || len(k) != 2 {
		t.Errorf("the first period has %d keys, %v, want its own and the next", len(k), err)
	}
	if _, _, err := TicketKeys(testSeed[:31], noon); err == nil {
		t.Error("a short seed is taken")
	}
}

// writePEM writes a certificate and its key to a new file and returns its name.
func writePEM(t *testing.T, c tls.Certificate) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	name := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// playWorker serves one connection, in a process of its own. role is the
// certificate's file, and how far in the future the process lives.
func playWorker(role string) error {
	file, shift, _ := strings.Cut(role, "|")
	ahead, err := time.ParseDuration(shift)
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return err
	}
	keys, _, err := TicketKeys(testSeed, time.Now().Add(ahead))
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	config.SetSessionTicketKeys(keys)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
		return err
	}
	h := Server(context.Background(), config)
	r, err := shake(c, h, 4096)
	if err != nil {
		return err
	}
	if r.Legacy != nil {
		return echoLegacy(c, h, r.Legacy)
	}
	return echo(c, r.Conn, r.Rest, nil)
}

func TestSessionResumesInAnotherProcess(t *testing.T) {
	file := writePEM(t, certificate("localhost"))
	for _, tt := range []struct {
		name    string
		version uint16
		ahead   time.Duration // of the second worker
		resumes bool
	}{
		{name: "TLS 1.3", version: tls.VersionTLS13, resumes: true},
		{name: "TLS 1.2", version: tls.VersionTLS12, resumes: true},
		{name: "after the rotation", version: tls.VersionTLS13, ahead: TicketRotation, resumes: true},
		{name: "before the rotation of others", version: tls.VersionTLS13, ahead: -TicketRotation, resumes: true},
		{name: "when the key is forgotten", version: tls.VersionTLS13, ahead: 9 * TicketRotation},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := &tls.Config{
				RootCAs: pool(), ServerName: "localhost", MaxVersion: tt.version,
				ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			for i, worker := range []struct {
				ahead   time.Duration
				resumes bool
			}{{0, false}, {tt.ahead, tt.resumes}} {
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%v", roleEnv, file, worker.ahead), "GORACE=atexit_sleep_ms=0")
				cmd.Stderr = t.Output()
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				addr, err := bufio.NewReader(out).ReadString('\n')
				if err != nil {
					t.Fatal(errors.Join(err, cmd.Wait()))
				}
				c, err := tls.Dial("tcp", strings.TrimSpace(addr), client)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
					t.Fatal(err)
				}
				err = converse(c)
				resumed := c.ConnectionState().DidResume
				c.Close()
				if _, rerr := io.Copy(io.Discard, out); rerr != nil && err == nil {
					err = rerr
				}
				if err := errors.Join(err, cmd.Wait()); err != nil {
					t.Fatal(err)
				}
				if resumed != worker.resumes {
					t.Errorf("connection %d has resumed %v, want %v", i, resumed, worker.resumes)
				}
			}
		})
	}
}
