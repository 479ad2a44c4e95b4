// Package proxies runs nginx and HAProxy for tests: in the foreground, as the
// user of the test, with all their files in a directory of the test, and for
// no longer than it runs.
package proxies

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// limit bounds how long a proxy may take to listen, and to end.
const limit = 30 * time.Second

// Proxy is a program that runs until the test ends.
type Proxy struct {
	// Addr is where it listens: 127.0.0.1 and a port.
	Addr string
	// Pid is its process, the only one it has.
	Pid int
}

// nginxConf is what every nginx of ours has around its http block. One process:
// it is ended by one signal. Everything it writes is in DIR.
const nginxConf = `
daemon off;
master_process off;
error_log stderr warn;
pid DIR/nginx.pid;
include /etc/nginx/modules-enabled/*.conf; # Debian has the stream block apart
events {}
`

// nginxFiles are where nginx keeps what it does not keep in memory, of an http
// block: those it was built with may not be writable.
const nginxFiles = `
access_log off;
client_body_temp_path DIR/body;
proxy_temp_path DIR/proxy;
fastcgi_temp_path DIR/fastcgi;
uwsgi_temp_path DIR/uwsgi;
scgi_temp_path DIR/scgi;
`

// Nginx starts nginx with what is given in its http block. In that, and in
// main (what stands beside the http block: a stream block, or nothing), ADDR
// is replaced by the address to listen on and DIR by a directory of its own.
// It returns when that address takes connections. The test is skipped where
// nginx is not installed.
func Nginx(t testing.TB, http, main string) *Proxy {
	t.Helper()
	if http != "" {
		http = "http {" + nginxFiles + http + "}\n"
	}
	return start(t, "nginx", nginxConf+main+http, func(file string) []string { return []string{"-c", file} })
}

// HAProxy starts HAProxy with a configuration, in which ADDR is replaced by
// the address to listen on and DIR by a directory of its own. It returns when
// that address takes connections. The test is skipped where HAProxy is not
// installed.
func HAProxy(t testing.TB, conf string) *Proxy {
	t.Helper()
	return start(t, "haproxy", conf, func(file string) []string { return []string{"-db", "-f", file} })
}

// find returns the path of a program. Those that only administrators start
// are not in everyone's PATH.
func find(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed: %v", name, err)
	return ""
}

func start(t testing.TB, name, conf string, args func(file string) []string) *Proxy {
	t.Helper()
	path := find(t, name)
	dir := t.TempDir()
	// Somebody else may take the port between our looking for it and the
	// proxy's binding it: then another one is tried.
	var problem error
	for range 5 {
		addr, err := freeAddr()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name+".conf")
		text := strings.NewReplacer("ADDR", addr, "DIR", dir).Replace(conf)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := run(t, path, args(file), addr)
		if err == nil {
			return p
		}
		problem = err
	}
	t.Fatal(problem)
	return nil
}

// freeAddr returns an address that nobody listens on at the moment.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// run starts a program and waits until it listens. The test's end ends it.
func run(t testing.TB, path string, args []string, addr string) (*Proxy, error) {
	t.Helper()
	cmd := exec.Command(path, args...)
	// It ends with us, also where no cleanup runs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer // read once the process is gone
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	var exit error
	go func() {
		exit = cmd.Wait()
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Kill() // or it has ended by itself
		<-ended
	}
	tick := time.NewTicker(5 * time.Millisecond) // between two looks at the condition
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("%s: ended before it listened on %s: %w\n%s", path, addr, exit, &log)
		case <-tick.C:
		}
		if time.Now().After(deadline) {
			stop()
			return nil, fmt.Errorf("%s: does not listen on %s\n%s", path, addr, &log)
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("the log of %s:\n%s", path, &log)
		}
	})
	return &Proxy{Addr: addr, Pid: cmd.Process.Pid}, nil
}
