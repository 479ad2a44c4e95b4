package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors tells what stands on what: a package imports only packages of lower
// floors. Neighbours on a floor do not know one another.
var floors = map[string]int{
	"pkg/activation":      0,
	"pkg/backoff":         0,
	"pkg/failpoint":       0,
	"pkg/journal":         0,
	"pkg/keeper":          0,
	"pkg/metrics":         0,
	"pkg/notify":          0,
	"pkg/reactor":         0,
	"pkg/rows":            0,
	"pkg/scoreboard":      0,
	"pkg/signals":         0,
	"pkg/unit":            0,
	"pkg/wire":            0,
	"pkg/wire/delimiter":  0,
	"pkg/wire/frame":      0,
	"pkg/wire/http1":      0,
	"pkg/wire/length":     0,
	"pkg/wire/proxy":      0,
	"pkg/wire/proxyproto": 0,
	"pkg/wire/text":       0,
	"pkg/wire/tlsrec":     0,
	"pkg/wire/websocket":  0,
	"test/certs":          0, // for tests alone, as are the next
	"test/framing":        1, // it knows what a protocol is
	"test/talk":           0,

	"pkg/conn":    1,
	"pkg/control": 1,
	"pkg/handoff": 1,
	"pkg/link":    1,

	"pkg/hub":        2,
	"pkg/supervisor": 2,
	"pkg/web":        2,
	"pkg/worker":     2,

	"pkg/channel":             3,
	"pkg/gateway":             3,
	"pkg/service":             3,
	"pkg/service/servicetest": 3,
	"pkg/store":               3,
	"pkg/task":                3,

	"cmd/server": 4,
}

// neighbours are the imports on one floor that are right.
func neighbours(importer, imported string) bool {
	return imported == "pkg/wire" && strings.HasPrefix(importer, "pkg/wire/") ||
		imported == "pkg/service" && importer == "pkg/service/servicetest"
}

// loggers are packages that floors 0 and 1 do without, save the journal: they
// return errors, and who ends an error's journey logs it.
var loggers = []string{"go.uber.org/zap", "go.uber.org/zap/zapcore", "log", "log/slog"}

// checkImport returns what is wrong with an import of a package of ours (both
// as paths in the module) or of another module; empty: nothing.
func checkImport(importer, imported string, ours bool) string {
	floor, ok := floors[importer]
	if !ok {
		return importer + " has no floor: give it one in the table"
	}
	if !ours {
		if floor <= 1 && importer != "pkg/journal" && slices.Contains(loggers, imported) {
			return fmt.Sprintf("%s (floor %d) imports %s: floors 0 and 1 return errors and do not log", importer, floor, imported)
		}
		return ""
	}
	below, ok := floors[imported]
	switch {
	case !ok:
		return fmt.Sprintf("%s imports %s, which has no floor: give it one in the table", importer, imported)
	case imported == importer: // an external test package
		return ""
	case below > floor:
		return fmt.Sprintf("%s (floor %d) imports %s (floor %d): upwards", importer, floor, imported, below)
	case below == floor && !neighbours(importer, imported):
		return fmt.Sprintf("%s imports %s: sideways, both are on floor %d", importer, imported, floor)
	}
	return ""
}

func TestBadImportsAreSeen(t *testing.T) {
	tests := []struct {
		name     string
		importer string
		imported string
		foreign  bool
		want     string // in the verdict; empty: the import is right
	}{
		{name: "down by one", importer: "pkg/conn", imported: "pkg/reactor"},
		{name: "down by many", importer: "cmd/server", imported: "pkg/backoff"},
		{name: "a protocol and what a protocol is", importer: "pkg/wire/text", imported: "pkg/wire"},
		{name: "the service's test kit", importer: "pkg/service/servicetest", imported: "pkg/service"},
		{name: "its own external test", importer: "pkg/notify", imported: "pkg/notify"},
		{name: "another module", importer: "pkg/reactor", imported: "golang.org/x/sys/unix", foreign: true},
		{name: "logging upstairs", importer: "pkg/worker", imported: "go.uber.org/zap", foreign: true},
		{name: "logging in the journal", importer: "pkg/journal", imported: "go.uber.org/zap", foreign: true},

		{name: "up by one", importer: "pkg/reactor", imported: "pkg/conn", want: "upwards"},
		{name: "up by many", importer: "pkg/backoff", imported: "cmd/server", want: "upwards"},
		{name: "an application below", importer: "pkg/worker", imported: "pkg/service", want: "upwards"},
		{name: "worker and supervisor", importer: "pkg/worker", imported: "pkg/supervisor", want: "sideways"},
		{name: "supervisor and worker", importer: "pkg/supervisor", imported: "pkg/worker", want: "sideways"},
		{name: "leaves", importer: "pkg/notify", imported: "pkg/activation", want: "sideways"},
		{name: "the scoreboard knows nobody", importer: "pkg/scoreboard", imported: "pkg/wire", want: "sideways"},
		{name: "the reactor knows no bytes", importer: "pkg/reactor", imported: "pkg/wire", want: "sideways"},
		{name: "what a protocol is knows no protocol", importer: "pkg/wire", imported: "pkg/wire/text", want: "sideways"},
		{name: "two protocols", importer: "pkg/wire/websocket", imported: "pkg/wire/text", want: "sideways"},
		{name: "the service and its test kit", importer: "pkg/service", imported: "pkg/service/servicetest", want: "sideways"},
		{name: "a package without a floor", importer: "pkg/utils", imported: "pkg/wire", want: "pkg/utils has no floor"},
		{name: "a package without a floor that imports none of ours", importer: "pkg/utils", imported: "fmt", foreign: true, want: "pkg/utils has no floor"},
		{name: "an import of a package without a floor", importer: "pkg/worker", imported: "pkg/utils", want: "pkg/utils, which has no floor"},
		{name: "a protocol that is not in the table", importer: "pkg/worker", imported: "pkg/wire/mqtt", want: "pkg/wire/mqtt, which has no floor"},
		{name: "a log below", importer: "pkg/conn", imported: "log/slog", foreign: true, want: "do not log"},
		{name: "zap below", importer: "pkg/reactor", imported: "go.uber.org/zap", foreign: true, want: "do not log"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := checkImport(tt.importer, tt.imported, !tt.foreign)
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("%s importing %s: verdict %q, want %q", tt.importer, tt.imported, got, tt.want)
			}
		})
	}
}

func TestImportsOnlyGoDown(t *testing.T) {
	root := filepath.Join("..", "..")
	module := moduleName(t, root)
	files := 0
	for _, top := range []string{"pkg", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(name string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && entry.Name() == "testdata":
				return fs.SkipDir
			case entry.IsDir() || filepath.Ext(name) != ".go":
				return nil
			}
			files++
			return checkFile(t, root, module, name)
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files < len(floors) {
		t.Errorf("only %d files were read", files)
	}
}

// checkFile checks the imports of one file.
func checkFile(t *testing.T, root, module, name string) error {
	dir, err := filepath.Rel(root, filepath.Dir(name))
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	if _, ok := floors[dir]; !ok {
		t.Errorf("%s: %s has no floor: give it one in the table", name, dir)
		return nil
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		ours, isOurs := strings.CutPrefix(imported, module+"/")
		if isOurs {
			imported = ours
		}
		if strings.HasSuffix(name, "_test.go") && slices.Contains(loggers, imported) {
			continue // an Example may end by log.Fatal
		}
		if strings.HasSuffix(name, "_test.go") && isOurs && strings.HasPrefix(imported, "test/") {
			continue // peers to be tested with stand beside the floors
		}
		if verdict := checkImport(dir, imported, isOurs); verdict != "" {
			t.Errorf("%s: %s", set.Position(spec.Pos()), verdict)
		}
	}
	return nil
}

// moduleName is what go.mod calls the module.
func moduleName(t *testing.T, root string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(name)
		}
	}
	t.Fatal("go.mod names no module")
	return ""
}
