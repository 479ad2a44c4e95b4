package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/valyala/fasthttp"
)

// serveFast is the peer fasthttp: this binary itself, on a port of loopback.
func serveFast(port string) error {
	s := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("text/plain; charset=utf-8")
		_, _ = ctx.WriteString("hello\n") // to memory
	}}
	if err := s.ListenAndServe("127.0.0.1:" + port); err != nil {
		return fmt.Errorf("http: fasthttp: %w", err)
	}
	return nil
}

// fastCommand is the command of that.
func fastCommand() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	return "fasthttp=" + self + " " + fastRole + " {port}", nil
}

// fastRole is the first argument of the process that is fasthttp.
const fastRole = "serve-fasthttp"

// nginxConf is nginx with one worker that answers by itself.
const nginxConf = `daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid DIR/nginx.pid;
events { worker_connections 8192; }
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
	path := dir + "/nginx.conf"
	text := strings.NewReplacer("DIR", dir, "{port}", port).Replace(nginxConf)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	return path, nil
}
