// Package node runs scripts by Node.js with the package ws, another
// implementation of WebSocket, for tests to speak with.
package node

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// version is the version of npm's ws that the tests speak with.
const version = "8.18.3"

// limit bounds what a script, and its installation, may take.
const limit = 60 * time.Second

// Command returns a command that runs a script which can require("ws"). That is
// installed once, in the user's cache; the test is skipped where that cannot
// be. What is still running is killed at the test's end.
func Command(t testing.TB, script string, args ...string) *exec.Cmd {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the peer is npm's ws, which needs %s: %v", tool, err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("the peer is npm's ws, which needs a place to be installed: %v", err)
	}
	dir := filepath.Join(cache, "mainstay-test", "npm-ws-"+version)
	if _, err := os.Stat(dir); err != nil {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		// Somewhere else first: two test runs may do this at once.
		fresh, err := os.MkdirTemp(filepath.Dir(dir), "installing-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(fresh)
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		out, err := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", fresh, "ws@"+version).CombinedOutput()
		if err != nil {
			t.Skipf("the peer is npm's ws, which cannot be installed: %v\n%s", err, out)
		}
		if err := os.Rename(fresh, dir); err != nil {
			if _, err := os.Stat(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "node", append([]string{"-e", script, "--"}, args...)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	return cmd
}

// server says its port.
const server = `
const { WebSocketServer } = require("ws");
const server = new WebSocketServer({ port: 0, host: "127.0.0.1", OPTIONS });
server.on("listening", () => console.log(server.address().port));
server.on("connection", ON_CONNECTION);
`

// Server starts a server of WebSockets, which runs until the test's end, and
// returns its address, 127.0.0.1:PORT. options are those of ws' WebSocketServer,
// onConnection is the function that is called with each connection.
func Server(t testing.TB, options, onConnection string) (address string) {
	t.Helper()
	cmd := Command(t, strings.NewReplacer("OPTIONS", options, "ON_CONNECTION", onConnection).Replace(server))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it was killed at the test's end
	port, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strings.TrimSpace(port)
}
