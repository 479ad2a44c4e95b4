package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/valyala/fasthttp"
)

// roles are the peers that are this binary itself, each on an address of
// loopback, by the first argument of their process.
var roles = map[string]func(addr string) error{
	"serve-" + std:  serveStd,
	"serve-" + fast: serveFast,
}

// Names of two of the servers: what Go has, against which all are compared,
// and fasthttp.
const (
	std  = "net-http"
	fast = "fasthttp"
)

// roleCommand is the command of one of them.
func roleCommand(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	return name + "=" + self + " serve-" + name + " 127.0.0.1:{port}", nil
}

// plain is a header's value, in the form that leaves no garbage.
var plain = []string{"text/plain; charset=utf-8"}

// serveStd answers as the kinds of Mainstay's server do.
func serveStd(addr string) error {
	err := http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = plain
		_, _ = io.WriteString(w, "hello\n") // to whom has gone
	}))
	return fmt.Errorf("http: net/http: %w", err)
}

func serveFast(addr string) error {
	s := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("text/plain; charset=utf-8")
		_, _ = ctx.WriteString("hello\n") // to memory
	}}
	if err := s.ListenAndServe(addr); err != nil {
		return fmt.Errorf("http: fasthttp: %w", err)
	}
	return nil
}

// nginxConf is nginx with one worker that answers by itself. What it keeps of
// a connection, but for its buffers, it has from the start.
const nginxConf = `daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid DIR/nginx.pid;
worker_rlimit_nofile {connections};
events { worker_connections {connections}; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen 127.0.0.1:{port};
		default_type "text/plain; charset=utf-8";
		location / { return 200 "hello\n"; }
	}
}
`

// nginxCommand is the command of nginx, for a configuration that is written
// when the port is known. The error says that there is none.
func nginxCommand() (string, error) {
	path, err := exec.LookPath("nginx")
	if err != nil {
		for _, path = range []string{"/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
			if _, err = os.Stat(path); err == nil {
				break
			}
		}
	}
	if err != nil {
		return "", fmt.Errorf("nginx takes no part: %w", err)
	}
	return "nginx=" + path + " -c {nginx}", nil
}

// writeNginx writes the configuration for a port and returns its path.
func writeNginx(dir, port string) (string, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return "", fmt.Errorf("http: %w", os.NewSyscallError("getrlimit", err))
	}

	path := dir + "/nginx.conf"
	text := strings.NewReplacer("DIR", dir, "{port}", port, "{connections}", strconv.FormatUint(min(limit.Max, 1<<16), 10)).Replace(nginxConf)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	return path, nil
}
