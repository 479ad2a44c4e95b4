package system

import (
	"os"
	"strings"
	"testing"
)

// lastWord is what a worker of a misbehaving probe says before it goes.
const lastWord = "probe: this is my last word"

// probe is testdata/probe, built to tell a version and to behave in its
// workers: "", "exit", "hang" or "crash".
func probe(t testing.TB, version, behaviour string) string {
	t.Helper()
	return program(t, "./testdata/probe", "main.version="+version, "main.behaviour="+behaviour)
}

// versionOf asks a probe for its version.
func (s *service) versionOf() string {
	s.t.Helper()
	version, err := s.line("app-text.socket", "version?")
	if err != nil {
		s.t.Fatal(err)
	}
	return version
}

// behave makes the probe's workers behave so from their next start on; "": as
// they were built.
func (s *service) behave(behaviour string) {
	s.t.Helper()
	file := "/run/" + s.prefix + "/behaviour"
	if behaviour == "" {
		if err := os.Remove(s.path(file)); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	s.write(s.t, file, []byte(behaviour), 0o644)
}

// starts counts how often a worker of the probe was started.
func (s *service) starts() int {
	s.t.Helper()
	return strings.Count(string(readFile(s.t, s.path("/run/"+s.prefix+"/starts"))), "\n")
}
