package tlsrec

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// program is another implementation that runs beside the test.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   io.Reader
	seen  []byte // of out, behind what expect has found
}

// start starts a program that the machine may have; otherwise the test is
// skipped.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed; scripts/install-test-tools does it", name)
	}
	p := &program{t: t, cmd: exec.CommandContext(t.Context(), path, args...)}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(testLimit, func() { _ = p.cmd.Process.Kill() })
	t.Cleanup(func() {
		limit.Stop()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // says that it was killed, if it was
		if t.Failed() {
			t.Logf("%s has said: %s", name, p.seen)
		}
	})
	return p
}

// say writes a line to the program.
func (p *program) say(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// expect reads on until the program says text, and returns the rest of that
// line as far as it is there.
func (p *program) expect(text string) string {
	p.t.Helper()
	buf := make([]byte, 4096)
	for {
		if _, after, ok := bytes.Cut(p.seen, []byte(text)); ok {
			line, rest, ended := bytes.Cut(after, []byte("\n"))
			if ended {
				p.seen = rest
				return string(line)
			}
		}
		n, err := p.out.Read(buf)
		p.seen = append(p.seen, buf[:n]...)
		if n == 0 && err != nil {
			p.t.Fatalf("%q is not said, %v", text, err)
		}
	}
}

// listen accepts one connection and has it served.
func listen(t *testing.T, serve func(net.Conn) error) (addr string, result <-chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
			done <- err
			return
		}
		done <- serve(c)
	}()
	return ln.Addr().String(), done
}

func TestOpenSSLClientSpeaksWithOurServer(t *testing.T) {
	server, _ := configs()
	ca := writePEM(t, authority())
	forEachSuite(t, func(t *testing.T, id uint16) {
		updates := 0
		addr, result := listen(t, func(c net.Conn) error {
			r, err := shake(c, Server(t.Context(), server), 4096)
			if err != nil {
				return err
			}
			if r.Info.Suite != id {
				return fmt.Errorf("suite %#x, want %#x", r.Info.Suite, id)
			}
			last := *r.Conn.in.keys
			mv := move(t)
			return echo(c, r.Conn, r.Rest, func(c *Conn) *Conn {
				if c.in.keys.secret != last.secret {
					last = *c.in.keys
					updates++
				}
				return mv(c)
			})
		})
		p := start(t, "openssl", "s_client", "-connect", addr, "-tls1_3", "-ciphersuites", tls.CipherSuiteName(id),
			"-servername", "localhost", "-CAfile", ca, "-verify_return_error")
		p.expect("Verify return code: 0")
		// One read that begins with K is a command; so each is said alone.
		for _, line := range []string{"hello", "K", "again", "k", strings.Repeat("0123456789", 1000) + " more", "K", "last"} {
			p.say(line)
			if len(line) == 1 {
				p.expect("KEYUPDATE")
			} else {
				p.expect(line[max(0, len(line)-5):])
			}
		}
		p.say("Q")
		if err := <-result; err != nil {
			t.Error(err)
		}
		if updates != 3 {
			t.Errorf("%d KeyUpdates came, want 3", updates)
		}
	})
}

func TestOurClientSpeaksWithOpenSSLServer(t *testing.T) {
	cert := writePEM(t, certificate("localhost"))
	_, client := configs()
	forEachSuite(t, func(t *testing.T, id uint16) {
		p := start(t, "openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", cert, "-key", cert, "-tls1_3",
			"-ciphersuites", tls.CipherSuiteName(id), "-naccept", "1", "-alpn", "echo")
		addr := strings.TrimSpace(p.expect("ACCEPT"))
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
			t.Fatal(err)
		}
		r, err := shake(c, Client(t.Context(), client), 4096)
		if err != nil {
			t.Fatal(err)
		}
		if r.Info.Suite != id || r.Info.Protocol != "echo" || !r.Info.Verified {
			t.Errorf("info %+v", r.Info)
		}
		tc, in := r.Conn, r.Rest
		send := func(text string) {
			t.Helper()
			if _, err := c.Write(mustSeal(t, tc, nil, []byte(text))); err != nil {
				t.Fatal(err)
			}
		}
		receive := func(enough func(got string) bool) error {
			var got []byte
			buf := make([]byte, 1000)
			for {
				advance, plain, err := tc.OpenAll(in)
				got = append(got, plain...)
				in = in[advance:]
				if err != nil || enough(string(got)) {
					return err
				}
				tc = move(t)(tc)
				n, err := c.Read(buf)
				if err != nil {
					return fmt.Errorf("got %q: %w", got, err)
				}
				in = append(in, buf[:n]...)
			}
		}
		for i, command := range []string{"", "K", "k", "K"} {
			if command != "" {
				p.say(command)
				old := tc.in.keys.secret
				if err := receive(func(string) bool { return tc.in.keys.secret != old }); err != nil {
					t.Fatal(err)
				}
			}
			out, back := fmt.Sprintf("from us %d", i), fmt.Sprintf("from them %d\n", i)
			p.say(strings.TrimSpace(back))
			if err := receive(func(got string) bool { return got == back }); err != nil {
				t.Fatal(err)
			}
			send(out + "\n") // answers the KeyUpdate first
			p.expect(out)
			if i == 2 { // and one of our own that asks
				tc.flags |= flagUpdateDue | flagAsk | flagAsked
				send("ours\n")
				p.expect("ours")
			}
		}
		if tc.flags&flagAsked != 0 {
			t.Error("our KeyUpdate was not answered")
		}
		if _, err := c.Write(tc.CloseNotify(nil)); err != nil {
			t.Fatal(err)
		}
		if err := receive(func(string) bool { return false }); err != io.EOF {
			t.Errorf("the end is %v, want close_notify", err)
		}
	})
}

func TestCurlSpeaksWithOurServer(t *testing.T) {
	server, _ := configs()
	server.NextProtos = []string{"http/1.1"}
	ca := writePEM(t, authority())
	body := strings.Repeat("hello, curl\n", 5000)
	requests := 0
	addr, result := listen(t, func(c net.Conn) error {
		r, err := shake(c, Server(t.Context(), server), 4096)
		if err != nil {
			return err
		}
		if r.Info.Protocol != "http/1.1" {
			return fmt.Errorf("protocol %q", r.Info.Protocol)
		}
		tc, in := r.Conn, r.Rest
		var request []byte
		buf := make([]byte, 4096)
		for {
			advance, plain, err := tc.OpenAll(in)
			request = append(request, plain...)
			in = in[advance:]
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if bytes.HasSuffix(request, []byte("\r\n\r\n")) {
				request = request[:0]
				requests++
				answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				if _, err := c.Write(mustSeal(t, tc, nil, []byte(answer))); err != nil {
					return err
				}
				tc = move(t)(tc)
			}
			n, err := c.Read(buf)
			if err != nil {
				return errors.Join(err, tc.End(len(in)))
			}
			in = append(in, buf[:n]...)
		}
	})
	url := "https://" + addr + "/"
	p := start(t, "curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", ca, "--tlsv1.3", url, url, url)
	got, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat(body, 3); string(got) != want {
		t.Errorf("curl got %d bytes, want %d: %.200s", len(got), len(want), got)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if requests != 3 {
		t.Errorf("%d requests over the connection, want 3", requests)
	}
}
