package unit

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMachineIsJudgedByWhatItHas(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "journal")
	l, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	yama := func(scope string) string {
		root := filepath.Join(dir, scope)
		path := filepath.Join(root, "kernel/yama")
		if err := errors.Join(os.MkdirAll(path, 0o755), os.WriteFile(filepath.Join(path, "ptrace_scope"), []byte(scope+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		return root
	}
	for _, tt := range []struct {
		name    string
		machine Machine
		want    []string // severity and key
	}{
		{name: "nothing is asked"},
		{name: "all is well", machine: Machine{Release: "6.18.44", Kernel: yama("1"), Journal: socket}},
		{name: "an old kernel", machine: Machine{Release: "5.4.0-99-generic"}, want: []string{"error kernel"}},
		{name: "the first kernel that will do", machine: Machine{Release: "5.6"}, want: []string{"warning kernel"}},
		{name: "a kernel that does not say how others' children die", machine: Machine{Release: "6.1.0-18-amd64"}, want: []string{"warning kernel"}},
		{name: "a release that is none", machine: Machine{Release: "unknown"}},
		{name: "no reaching in", machine: Machine{Kernel: yama("2")}, want: []string{"error kernel.yama.ptrace_scope"}},
		{name: "no yama", machine: Machine{Kernel: filepath.Join(dir, "none")}},
		{name: "no journal", machine: Machine{Journal: filepath.Join(dir, "none")}, want: []string{"warning journald"}},
	} {
		var got []string
		for _, f := range LintMachine(tt.machine) {
			got = append(got, string(f.Severity)+" "+f.Key)
			if f.Got == "" || f.Want == "" || f.Why == "" {
				t.Errorf("%s: %+v", tt.name, f)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
