package service

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (s *Service) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print what completes this command line in a shell",
		Long: `Print a script that completes this command line. For the running shell:

  bash   source <(` + s.programName() + ` completion bash)
  zsh    source <(` + s.programName() + ` completion zsh)
  fish   ` + s.programName() + ` completion fish | source

For all: into /usr/share/bash-completion/completions/` + s.programName() + `,
/usr/share/zsh/site-functions/_` + s.programName() + `, or
/usr/share/fish/vendor_completions.d/` + s.programName() + `.fish.`,
		ValidArgs: shells,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			var err error
			switch args[0] {
			case "bash":
				err = root.GenBashCompletionV2(out, true)
			case "zsh":
				err = root.GenZshCompletion(out)
			case "fish":
				err = root.GenFishCompletion(out, true)
			}
			if err != nil {
				return &exitError{exitFailed, err}
			}
			return nil
		},
	}
}

func (s *Service) manCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "man DIR",
		Short:  "Write a manual page for each command into a directory",
		Hidden: true, // for packaging
		Args:   cobra.ExactArgs(1),
	}
	name := cmd.Flags().String("name", s.programName(), "`NAME` under which the program is installed")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		installed := *s
		installed.program = *name
		root := installed.commands()
		for _, page := range manPages(root, s.name+" "+buildVersion()) {
			if err := os.WriteFile(filepath.Join(args[0], page.file), page.text, 0o644); err != nil {
				return &exitError{exitFailed, err}
			}
		}
		return nil
	}
	return cmd
}

// manPage is a page of section 1.
type manPage struct {
	file string
	text []byte
}

// manPages are those of a command and of all below it that are not hidden.
func manPages(cmd *cobra.Command, source string) []manPage {
	pages := []manPage{{manName(cmd) + ".1", roff(cmd, source)}}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			pages = append(pages, manPages(sub, source)...)
		}
	}
	return pages
}

func manName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-")
}

// roff is a command's page in the macros of man(7).
func roff(cmd *cobra.Command, source string) []byte {
	var b bytes.Buffer
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	// No date: the same program gives the same pages.
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"%s\"\n", strings.ToUpper(manName(cmd)), roffText(source))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roffText(manName(cmd)), roffText(cmd.Short))
	section("SYNOPSIS")
	fmt.Fprintf(&b, ".nf\n\\fB%s\\fR\n.fi\n", roffText(cmd.UseLine()))
	section("DESCRIPTION")
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	roffParagraphs(&b, long)
	roffFlags(&b, "OPTIONS", cmd.NonInheritedFlags())
	roffFlags(&b, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		section("EXAMPLES")
		roffParagraphs(&b, cmd.Example)
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, cmd.Parent().CommandPath())
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			also = append(also, sub.CommandPath())
		}
	}
	if len(also) > 0 {
		section("SEE ALSO")
		for i, path := range also {
			end := ","
			if i == len(also)-1 {
				end = ""
			}
			fmt.Fprintf(&b, ".BR %s (1)%s\n", roffText(strings.ReplaceAll(path, " ", "-")), end)
		}
	}
	return b.Bytes()
}

func roffFlags(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "\\fB" + roffText("--"+f.Name) + "\\fR"
		if f.Shorthand != "" {
			name = "\\fB" + roffText("-"+f.Shorthand) + "\\fR, " + name
		}
		if value != "" {
			name += " \\fI" + roffText(value) + "\\fR"
		}
		fmt.Fprintf(b, ".TP\n%s\n%s\n", name, roffText(usage))
	})
}

// roffParagraphs writes text: paragraphs between empty lines, and lines that
// are indented as they are.
func roffParagraphs(b *bytes.Buffer, text string) {
	asIs := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		indented := strings.HasPrefix(line, "  ")
		switch {
		case line == "":
			if !asIs {
				b.WriteString(".PP\n")
			}
			continue
		case indented && !asIs:
			b.WriteString(".PP\n.nf\n")
		case !indented && asIs:
			b.WriteString(".fi\n.PP\n")
		}
		asIs = indented
		fmt.Fprintln(b, roffText(line))
	}
	if asIs {
		b.WriteString(".fi\n")
	}
}

// roffText escapes what roff would act on.
func roffText(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
