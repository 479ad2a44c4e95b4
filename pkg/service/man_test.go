package service

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// walk calls f for each command that is not hidden, save help.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			walk(sub, f)
		}
	}
}

func TestEveryCommandHasAManualPageWithItsFlags(t *testing.T) {
	dir := t.TempDir()
	root := New("app").commands()
	root.SetArgs([]string{"man", "--name", "mainstay", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	root = New("app").commands()
	root.Use = "mainstay"
	pages := 0
	walk(root, func(cmd *cobra.Command) {
		pages++
		text, err := os.ReadFile(filepath.Join(dir, manName(cmd)+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		for _, want := range []string{".TH " + strings.ToUpper(manName(cmd)) + " 1", ".SH NAME", ".SH DESCRIPTION", roffText(cmd.Short)} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s: no %q", cmd.CommandPath(), want)
			}
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !bytes.Contains(text, []byte(roffText("--"+f.Name))) {
				t.Errorf("%s: no flag %s", cmd.CommandPath(), f.Name)
			}
		})
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, ".") && !regexp.MustCompile(`^\.(TH|SH|PP|TP|nf|fi|BR)\b`).MatchString(line) {
				t.Errorf("%s: a line that roff would act on: %s", cmd.CommandPath(), line)
			}
		}
	})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != pages {
		t.Errorf("%d files, %v, want %d", len(files), err, pages)
	}
}

func TestTextIsHarmlessToRoff(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"--json", `\-\-json`}, {".conf", `\&.conf`}, {"'quoted'", `\&'quoted'`}, {`C:\dir`, `C:\edir`}, {"two\nlines", "two lines"},
	} {
		if got := roffText(tt.text); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestEveryCommandSaysWhatItDoes(t *testing.T) {
	walk(New("app").commands(), func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: %q", cmd.CommandPath(), cmd.Short)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", cmd.CommandPath(), f.Name)
			}
		})
	})
}

func TestCompletionIsForTheShellThatIsAskedFor(t *testing.T) {
	for shell, want := range map[string]string{"bash": "__start_", "zsh": "#compdef", "fish": "complete -c"} {
		root := New("app").commands()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs([]string{"completion", shell})
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, %.80s", shell, err, &out)
		}
	}
	root := New("app").commands()
	root.SetArgs([]string{"completion", "csh"})
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), `invalid argument "csh"`) {
		t.Errorf("csh: %v", err)
	}
}
