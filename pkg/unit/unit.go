// Package unit reads systemd's unit files and says what in them would break
// the promises of a service of this framework, and why.
//
// A unit is read as systemd.syntax(7) has it, with the drop-ins that lie
// beside the file, or as `systemctl cat` prints it. Nothing is asked of
// systemd, so defaults that its version or manager changes are not known:
// what is not set is judged by the documented default.
//
// Start reading at Lint; the rules stand in tables in rules.go.
package unit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Assignment is a line KEY=VALUE of a unit.
type Assignment struct {
	Section string
	Key     string
	Value   string
	File    string // the base name of the file, or the path that systemctl cat prints
	Line    int    // from 1 on
}

// Unit is a unit with its drop-ins.
type Unit struct {
	Name        string // app.service
	Assignments []Assignment
}

// maxUnit is the largest file that is read, in bytes.
const maxUnit = 1 << 20

// Parse reads the text of a unit, as a file has it or as `systemctl cat`
// prints it. Its errors name the file and the line.
func Parse(name, text string) (Unit, error) {
	u := Unit{Name: name}
	return u, u.parse(name, text)
}

// parse adds the text of a file to u.
func (u *Unit) parse(file, text string) error {
	if len(text) > maxUnit {
		return fmt.Errorf("%s: %d bytes, want at most %d", file, len(text), maxUnit)
	}
	section, number := "", 0
	pending, first := "", 0 // a line that goes on, and where it began
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if path, ok := strings.CutPrefix(line, "# /"); ok && pending == "" && !strings.ContainsAny(path, " \t") {
			file, number, section = "/"+path, 0, "" // systemctl cat: another file begins
			continue
		}
		if line == "" && pending == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue // also within a line that goes on
		}
		if pending == "" {
			first = number
		}
		if rest, goesOn := strings.CutSuffix(line, `\`); goesOn {
			pending += rest + " "
			continue
		}
		line, pending = pending+line, ""
		if name, ok := strings.CutPrefix(line, "["); ok {
			if section, ok = strings.CutSuffix(name, "]"); !ok || section == "" {
				return fmt.Errorf("%s:%d: %q, want [Section]", file, first, line)
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" || strings.TrimSpace(key) == "" {
			return fmt.Errorf("%s:%d: %q, want KEY=VALUE within a [Section]", file, first, line)
		}
		u.Assignments = append(u.Assignments, Assignment{section, strings.TrimSpace(key), strings.TrimSpace(value), file, first})
	}
	if pending != "" {
		return fmt.Errorf("%s:%d: the last line goes on", file, first)
	}
	return nil
}

// Read reads the file of a unit and the drop-ins in the directory of the same
// name with .d behind it. Its errors name the file.
func Read(path string) (Unit, error) {
	u := Unit{Name: filepath.Base(path)}
	dropIns, err := filepath.Glob(escapeGlob(path) + ".d/*.conf")
	if err != nil {
		return u, fmt.Errorf("%s.d: %w", path, err)
	}
	slices.Sort(dropIns)
	for _, file := range append([]string{path}, dropIns...) {
		text, err := os.ReadFile(file)
		if err != nil {
			return u, err // names the file
		}
		if err := u.parse(filepath.Base(file), string(text)); err != nil {
			return u, err
		}
	}
	return u, nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// last is the assignment of a key that counts, where the last one does; ok is
// false if there is none or it is empty, which restores the default.
func (u Unit) last(section, key string) (a Assignment, ok bool) {
	for _, each := range u.Assignments {
		if each.Section == section && each.Key == key {
			a, ok = each, each.Value != ""
		}
	}
	return a, ok
}

// all are the assignments of a key that count, where they add up: an empty
// one takes back those before it.
func (u Unit) all(section, key string) []Assignment {
	var all []Assignment
	for _, each := range u.Assignments {
		if each.Section != section || each.Key != key {
			continue
		}
		if each.Value == "" {
			all = nil
			continue
		}
		all = append(all, each)
	}
	return all
}

// Sockets are the socket units that a service names.
func (u Unit) Sockets() []string {
	var names []string
	for _, a := range u.all("Service", "Sockets") {
		names = append(names, strings.Fields(a.Value)...)
	}
	return names
}

func (a Assignment) where() string {
	if a.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", a.File, a.Line)
}

// errTime says that a text is no span of time.
var errTime = errors.New("no span of time")
