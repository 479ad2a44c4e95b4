package journal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// messageIDs are the constants of ids.go: value to name.
func messageIDs(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "ids.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]string)
	ast.Inspect(file, func(n ast.Node) bool {
		if c, ok := n.(*ast.ValueSpec); ok {
			id := strings.Trim(c.Values[0].(*ast.BasicLit).Value, `"`)
			if other := ids[id]; other != "" {
				t.Errorf("%s and %s are the same", other, c.Names[0].Name)
			}
			ids[id] = c.Names[0].Name
			if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
				t.Errorf("%s is %q, want 128 bits in hexadecimal", c.Names[0].Name, id)
			}
		}
		return true
	})
	return ids
}

// entry is what the catalog says of an id.
type explanation struct{ subject, text string }

func catalog(t *testing.T) map[string]explanation {
	t.Helper()
	text, err := os.ReadFile("../../deploy/journal/mainstay.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entries := make(map[string]explanation)
	for _, part := range strings.Split(string(text), "\n-- ")[1:] {
		id, rest, _ := strings.Cut(part, "\n")
		head, body, ok := strings.Cut(rest, "\n\n")
		if _, twice := entries[id]; twice || !ok {
			t.Errorf("%s is there twice, or has no text", id)
		}
		var e explanation
		for line := range strings.Lines(head) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch name {
			case "Subject":
				e.subject = value
			case "Defined-By", "Support", "Documentation":
			default:
				t.Errorf("%s: header %q", id, line)
			}
		}
		e.text = strings.TrimSpace(body)
		entries[id] = e
	}
	return entries
}

func TestCatalogExplainsEveryIDAndNoOther(t *testing.T) {
	ids, entries := messageIDs(t), catalog(t)
	for id, name := range ids {
		if e := entries[id]; e.subject == "" || e.text == "" {
			t.Errorf("%s (%s) has no subject or no text in the catalog", name, id)
		}
	}
	for id := range entries {
		if ids[id] == "" {
			t.Errorf("the catalog explains %s, which is no id", id)
		}
	}
}

// What is between two @ is a field of the entry.
func TestCatalogNamesOnlyFieldsThatEntriesHave(t *testing.T) {
	fields := map[string]bool{}
	for _, key := range []string{
		"pool", "worker", "generation", "worker_pid", "status", "error", "reason", "listener", "connections", "dropped",
		"kept", "ended", "torn", "reasons", "from_generation",
	} {
		fields[fieldName(key)] = true
	}
	for id, e := range catalog(t) {
		for _, m := range regexp.MustCompile(`@([^@\s]+)@`).FindAllStringSubmatch(e.subject+e.text, -1) {
			if !fields[m[1]] {
				t.Errorf("%s: no entry has %s", id, m[1])
			}
		}
	}
}

func TestEveryIDIsUsedAtALine(t *testing.T) {
	var sources strings.Builder
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || d.Name() == "ids.go" {
			return err
		}
		b, err := os.ReadFile(name)
		sources.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range messageIDs(t) {
		if !regexp.MustCompile(`\bID\((journal\.)?` + name + `\)`).MatchString(sources.String()) {
			t.Errorf("no line has the id %s", name)
		}
	}
}
