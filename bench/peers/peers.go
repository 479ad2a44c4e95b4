// Package peers starts and ends the servers that are measured: Mainstay's
// reference service, and the echo servers it is measured beside, which it
// holds and builds.
//
// Those are two: c-floor, a bare epoll loop in C, below which no server can
// go, and go-net, package net with a goroutine a connection, which is what a
// Go program has for nothing. Both are kept as source inside the binary that
// measures, so that what ran is always what is written here. Each is one
// short file: cfloor/floor.c and gonet/main.go. What is started is ended by the
// process ids held here. Start reading at Make and Start.
package peers

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed cfloor/floor.c
var floorSource []byte

//go:embed gonet/main.go
var gonetSource []byte

// BuildFloor compiles c-floor into dir by gcc and returns the path of the
// binary, whose arguments are ADDRESS PORT PROCESSES. The error holds what
// gcc said; it wraps exec.ErrNotFound where there is no gcc.
func BuildFloor(ctx context.Context, dir string) (string, error) {
	source, binary := filepath.Join(dir, "floor.c"), filepath.Join(dir, "c-floor")
	if err := os.WriteFile(source, floorSource, 0o644); err != nil {
		return "", fmt.Errorf("peers: %w", err)
	}
	return binary, build(exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-o", binary, source))
}

// BuildGoNet compiles go-net into dir by the go command and returns the path
// of the binary, whose argument is ADDRESS:PORT. The error holds what the
// compiler said; it wraps exec.ErrNotFound where there is no go command.
func BuildGoNet(ctx context.Context, dir string) (string, error) {
	source, binary := filepath.Join(dir, "gonet.go"), filepath.Join(dir, "go-net")
	if err := os.WriteFile(source, gonetSource, 0o644); err != nil {
		return "", fmt.Errorf("peers: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, source)
	// The file needs nothing but the standard library: no module, no workspace.
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GO111MODULE=off", "GOWORK=off", "GOFLAGS=-trimpath")
	return binary, build(cmd)
}

// BuildNoJournal compiles Mainstay's reference service into dir by the go
// command, as it is in the module that is built here, but without the journal of
// its connections, and returns the path of the binary. It works in a folder of
// the module bench only.
func BuildNoJournal(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "server-nojournal")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "nojournal", "-o", binary, "github.com/mainstay-go/mainstay/cmd/server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return binary, build(cmd)
}

// build runs a compiler and puts its output into the error.
func build(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("peers: %s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
