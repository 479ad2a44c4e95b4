package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var programs struct {
	sync.Mutex
	dir   string
	built map[string]string // by package and flags
}

// program builds a main package of this module once, without the race
// detector and without cgo, so that it runs on any Linux; it returns the file.
// defines are for the linker: "main.version=2".
func program(t testing.TB, pkg string, defines ...string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	var flags []string
	for _, define := range defines {
		flags = append(flags, "-X", define)
	}
	key := pkg + " " + strings.Join(flags, " ")
	if file, ok := programs.built[key]; ok {
		return file
	}
	if programs.dir == "" {
		dir, err := os.MkdirTemp("", "mainstay-programs-")
		if err != nil {
			t.Fatal(err)
		}
		programs.dir, programs.built = dir, make(map[string]string)
	}
	file := filepath.Join(programs.dir, strconv.Itoa(len(programs.built)))
	cmd := exec.Command("go", "build", "-trimpath", "-o", file, "-ldflags", strings.Join(flags, " "), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	asInvoker(t, cmd, programs.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	programs.built[key] = file
	return file
}

// removePrograms takes the built programs away.
func removePrograms() {
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir) // a temporary directory; nothing depends on it
	}
}

// asInvoker lets a command run as the user who called sudo, if somebody did:
// root's files do not belong in their build cache. The command may write to
// dir.
func asInvoker(t testing.TB, cmd *exec.Cmd, dir string) {
	t.Helper()
	uid, err := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32)
	if err != nil {
		return
	}
	gid, err := strconv.ParseUint(os.Getenv("SUDO_GID"), 10, 32)
	if err != nil {
		return
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}
