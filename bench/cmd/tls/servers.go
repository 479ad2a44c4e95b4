package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mainstay-go/mainstay/bench/proc"
	"github.com/mainstay-go/mainstay/test/certs"
)

// roleArgument makes this program one of the servers that it measures.
const roleArgument = "serve-as"

// play is a server: its role, its address, and the files of its certificate.
func play(args []string) error {
	if len(args) == 2 && args[0] == "plain" {
		l, err := net.Listen("unix", args[1])
		if err != nil {
			return err
		}
		return serveEcho(l)
	}
	if len(args) != 4 {
		return fmt.Errorf("tls: role %q", args)
	}
	pair, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	if args[0] == "http" {
		s := &http.Server{TLSConfig: serverTLS(pair), Handler: http.NotFoundHandler()}
		return s.ServeTLS(l, "", "")
	}
	return serveEcho(secure(l, pair))
}

func serverTLS(pair tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
}

// secure has a listener speak TLS.
func secure(l net.Listener, pair tls.Certificate) net.Listener {
	return tls.NewListener(l, serverTLS(pair))
}

// serveEcho has a goroutine for each connection, with a buffer of 4 KiB.
func serveEcho(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 4<<10)
			for {
				n, err := c.Read(buf)
				if n > 0 {
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// server is a peer that runs.
type server struct {
	name string
	addr string
	cmd  *exec.Cmd
}

// The names of servers.
const (
	mainstay  = "mainstay"
	cryptoTLS = "crypto/tls"
	netHTTP   = "net/http"
	nginx     = "nginx"
)

// field is all that takes part.
type field struct {
	*plan
	dir     string
	control string // of mainstay
	trust   certs.Certificate
	backend *server // of nginx
	servers []*server
	custom  []string // names of peers
}

// open starts the servers, bound as this process is.
func open(ctx context.Context, p *plan, dir string, stderr io.Writer) (_ *field, err error) {
	f := &field{plan: p, dir: dir, control: filepath.Join(dir, "control.sock")}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if f.trust, err = certs.Make(time.Hour, "localhost"); err != nil {
		return nil, err
	}
	cert, key, config := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "app.toml")
	for name, text := range map[string][]byte{
		cert: f.trust.Cert, key: f.trust.Key,
		config: fmt.Appendf(nil, "[listener.echo.tls]\ncert = %q\nkey = %q\nmin_version = \"1.3\"\n", cert, key),
	} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if _, err := os.Stat(p.server); err != nil {
		return nil, fmt.Errorf("tls: %w: build it, or name it by --server", err)
	}
	if p.server, err = filepath.Abs(p.server); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	start := func(name string, argv func(addr string) []string) error {
		s, err := f.start(ctx, name, argv)
		if err == nil {
			f.servers = append(f.servers, s)
		}
		return err
	}
	err = errors.Join(
		start(mainstay, func(addr string) []string {
			return []string{p.server, "run", "--workers", "1", "--config", config, "--control", "unix://" + f.control, "--listen", "echo=tcp://" + addr}
		}),
		start(cryptoTLS, func(addr string) []string { return []string{self, roleArgument, "echo", addr, cert, key} }),
		start(netHTTP, func(addr string) []string { return []string{self, roleArgument, "http", addr, cert, key} }),
	)
	if err != nil {
		return nil, err
	}
	for _, peer := range p.peers {
		name, command, _ := strings.Cut(peer, "=")
		if name == "" || len(strings.Fields(command)) == 0 {
			return nil, fmt.Errorf("tls: --peer %q: want NAME=COMMAND", peer)
		}
		err := start(name, func(addr string) []string {
			_, port, _ := net.SplitHostPort(addr)
			return strings.Fields(strings.NewReplacer("{port}", port, "{cert}", cert, "{key}", key).Replace(command))
		})
		if err != nil {
			return nil, err
		}
		f.custom = append(f.custom, name)
	}
	path := findNginx()
	if path == "" {
		fmt.Fprintln(stderr, "tls: nginx takes no part: it is not installed")
		return f, nil
	}
	backend := filepath.Join(dir, "echo.sock")
	f.backend = &server{name: "nginx's backend"}
	if f.backend.cmd, err = launch([]string{self, roleArgument, "plain", backend}); err != nil {
		return nil, err
	}
	err = start(nginx, func(addr string) []string {
		file := filepath.Join(dir, "nginx.conf")
		text := strings.NewReplacer("DIR", dir, "ADDR", addr, "CERT", cert, "KEY", key, "BACKEND", backend).Replace(nginxConf)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return []string{"/nonexistent"}
		}
		return []string{path, "-c", file}
	})
	if err != nil {
		fmt.Fprintln(stderr, "tls: nginx takes no part:", err)
	}
	return f, nil
}

// nginxConf is nginx with one process.
const nginxConf = `daemon off;
master_process off;
error_log stderr crit;
pid DIR/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;
worker_rlimit_nofile 20000;
events { worker_connections 16384; }
stream {
	server {
		listen ADDR ssl backlog=4096;
		tcp_nodelay on;
		ssl_certificate CERT;
		ssl_certificate_key KEY;
		ssl_protocols TLSv1.3;
		proxy_pass unix:BACKEND;
		proxy_timeout 10m;
	}
}
`

func findNginx() string {
	for _, path := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}

func launch(argv []string) (*exec.Cmd, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return cmd, nil
}

// ready is how long a server may take until it shakes hands.
const ready = 20 * time.Second

// start starts a server on a free port and waits until it shakes hands.
func (f *field) start(ctx context.Context, name string, argv func(addr string) []string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	s := &server{name: name, addr: l.Addr().String()}
	l.Close()
	if s.cmd, err = launch(argv(s.addr)); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, name)
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for late := time.Now().Add(ready); ; {
		c, err := tls.Dial("tcp", s.addr, f.client())
		if err == nil {
			c.Close()
			return s, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			s.stop()
			return nil, ctx.Err()
		}
		if time.Now().After(late) {
			s.stop()
			return nil, fmt.Errorf("tls: %s: shakes no hands: %w", name, err)
		}
	}
}

// client is what clients have.
func (f *field) client() *tls.Config {
	return &tls.Config{RootCAs: f.trust.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// of returns those servers that take part, of the names, in this order.
func (f *field) of(names ...string) (list []*server) {
	for _, name := range names {
		if i := slices.IndexFunc(f.servers, func(s *server) bool { return s.name == name }); i >= 0 {
			list = append(list, f.servers[i])
		}
	}
	return list
}

func (f *field) close() {
	for _, s := range f.servers {
		s.stop()
	}
	if f.backend != nil && f.backend.cmd != nil {
		f.backend.stop()
	}
}

// stop ends the server: SIGTERM, later SIGKILL, to its process group.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(12*time.Second, func() { _ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	_ = s.cmd.Wait()
}

// pids are the processes of the server.
func (s *server) pids() ([]int, error) { return proc.Tree(s.cmd.Process.Pid) }
