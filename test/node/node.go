// Package node runs scripts by Node.js with the package ws, another
// implementation of WebSocket, for tests to speak with.
package node

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
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
