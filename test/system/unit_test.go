package system

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func unitsAndExamplesAreCleanForVerify(t *testing.T, m *machine) {
	s := install(t, m, "/bin/true")
	examples, err := filepath.Glob("../../deploy/systemd/examples/*")
	if err != nil {
		t.Fatal(err)
	}
	var conditions int
	for _, example := range examples {
		name := filepath.Base(example)
		switch filepath.Ext(name) {
		case ".socket":
			s.unitFile(name, readFile(t, example))
		case ".conf": // its first line says where it goes
			first, _, _ := strings.Cut(string(readFile(t, example)), "\n")
			place, ok := strings.CutPrefix(first, "# /etc/systemd/system/")
			if !ok || filepath.Base(place) != name {
				t.Errorf("%s does not say where it goes: %q", example, first)
				continue
			}
			s.unitFile(place, readFile(t, example))
		default:
			continue
		}
		conditions++
	}
	if conditions == 0 {
		t.Error("no examples found")
	}
	s.daemonReload()

	args := []string{"systemd-analyze", "verify"}
	for _, unit := range unitNames(t) {
		args = append(args, s.rename(unit))
	}
	if r := s.run(t, args...); r.code != 0 || r.stdout+r.stderr != "" {
		t.Errorf("%s: %v", strings.Join(args, " "), r)
	}
}

func unitsAreAtMostOnePointExposed(t *testing.T, m *machine) {
	s := install(t, m, "/bin/true")
	level := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)
	for _, unit := range []string{"app.service", "app@.service"} {
		// Those of 252 want a file's path.
		out := s.must(t, "systemd-analyze", "security", "--offline=true", "--no-pager", filepath.Join(unitDir, s.rename(unit)))
		found := level.FindStringSubmatch(out)
		if found == nil {
			t.Fatalf("no level in %q", out)
		}
		if got, err := strconv.ParseFloat(found[1], 64); err != nil || got > 1.0 {
			t.Errorf("%s: exposure level is %s, want at most 1.0:\n%s", unit, found[1], out)
		} else {
			t.Logf("%s: exposure level %v", unit, got)
		}
	}
}

// unitNames are the units of deploy/systemd, a template as an instance.
func unitNames(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("../../deploy/systemd")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() {
			names = append(names, strings.Replace(entry.Name(), "@.", "@7101.", 1))
		}
	}
	return names
}
