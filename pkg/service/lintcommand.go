package service

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainstay-go/mainstay/pkg/supervisor"
	"github.com/mainstay-go/mainstay/pkg/unit"
)

// deployDir is where a source tree keeps its units.
const deployDir = "deploy/systemd"

// lintReport is the outcome of unit-lint.
type lintReport struct {
	Units    []string       `json:"units"` // that were looked at
	Errors   int            `json:"errors"`
	Warnings int            `json:"warnings"`
	Findings []unit.Finding `json:"findings"`
}

func (s *Service) unitLintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unit-lint [UNITFILE...]",
		Short: "Check systemd units, and say why each finding matters",
		Long: fmt.Sprintf(`Check the settings of service and socket units that the service's promises
depend on: connections that survive a crash or a restart of the supervisor,
ports that are never closed, reloads whose failure is told. Say what each
finding costs. Limits of the kernel (/proc/sys) are looked at, too, as far as
this command may read them.

Without UNITFILE the installed unit %[1]s.service is checked with the sockets it
names, by systemctl cat; where there is none, those in %[2]s
below the current directory. With UNITFILE only those files are read, each with
the drop-ins in UNITFILE.d.

The exit code is 1 if there are errors, 0 if there are only warnings.`, s.name, deployDir),
	}
	asJSON := cmd.Flags().Bool("json", false, "as JSON")
	file := cmd.Flags().String("config", "", "configuration `FILE` for stop_grace and start_timeout; default "+s.defaultFile()+", which may be absent")
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		report, err := s.lint(cmd.Context(), *file, paths)
		if err != nil {
			return &exitError{exitFailed, err}
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			err = enc.Encode(report)
		} else {
			err = report.write(out)
		}
		if err == nil && report.Errors > 0 {
			err = fmt.Errorf("unit-lint: %d errors", report.Errors)
		}
		if err != nil {
			return &exitError{exitFailed, err}
		}
		return nil
	}
	return cmd
}

func (s *Service) lint(ctx context.Context, config string, paths []string) (lintReport, error) {
	report := lintReport{Findings: []unit.Finding{}}
	c, err := s.load(runFlags{config: config}, s.environment())
	if err != nil {
		return report, err
	}
	units, err := s.units(ctx, paths)
	if err != nil {
		return report, err
	}
	for _, u := range units {
		report.Units = append(report.Units, u.Name)
	}
	found := unit.Lint(units, c.rules())
	report.Findings = append(report.Findings, found...)
	for _, f := range found {
		if f.Severity == unit.Error {
			report.Errors++
		} else {
			report.Warnings++
		}
	}
	return report, nil
}

// rules is what the rules for units have to know of a configuration.
func (c config) rules() unit.Context {
	rules := unit.Context{StopGrace: c.StopGrace, StartTimeout: c.StartTimeout, Kernel: "/proc/sys"}
	if settings, err := c.settings(); err == nil { // otherwise the start says why
		rules.Store = supervisor.Storage(settings)
	}
	return rules
}

func (r lintReport) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Findings {
		fmt.Fprintln(b, f)
	}
	fmt.Fprintf(b, "%d errors, %d warnings in %s\n", r.Errors, r.Warnings, strings.Join(r.Units, ", "))
	return b.Flush()
}

// units reads the files, or finds the service's own units.
func (s *Service) units(ctx context.Context, paths []string) ([]unit.Unit, error) {
	if len(paths) > 0 {
		var units []unit.Unit
		for _, path := range paths {
			if ext := filepath.Ext(path); ext != ".service" && ext != ".socket" {
				return nil, fmt.Errorf("unit-lint: %s: want a file NAME.service or NAME.socket", path)
			}
			u, err := unit.Read(path)
			if err != nil {
				return nil, fmt.Errorf("unit-lint: %w", err)
			}
			units = append(units, u)
		}
		return units, nil
	}
	installed, err := withSockets(s.name+".service", func(name string) (unit.Unit, error) { return catUnit(ctx, name) })
	if err == nil {
		return installed, nil
	}
	deployed, deployErr := withSockets(s.name+".service", func(name string) (unit.Unit, error) { return unit.Read(filepath.Join(deployDir, name)) })
	if deployErr != nil {
		return nil, fmt.Errorf("unit-lint: no unit found, name its files: %w", errors.Join(err, deployErr))
	}
	return deployed, nil
}

// withSockets reads a service unit and the socket units that it names.
func withSockets(name string, read func(string) (unit.Unit, error)) ([]unit.Unit, error) {
	u, err := read(name)
	if err != nil {
		return nil, err
	}
	units := []unit.Unit{u}
	for _, socket := range u.Sockets() {
		u, err := read(socket)
		if err != nil {
			return nil, err
		}
		units = append(units, u)
	}
	return units, nil
}

// catTimeout bounds a question to systemd.
const catTimeout = 5 * time.Second

// catUnit reads a unit as systemd has it, drop-ins included.
func catUnit(ctx context.Context, name string) (unit.Unit, error) {
	ctx, cancel := context.WithTimeout(ctx, catTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", "--no-pager", "cat", "--", name)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "LC_ALL=C")
	text, err := cmd.Output()
	if err != nil {
		reason := err.Error()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && len(exit.Stderr) > 0 {
			reason = strings.TrimSpace(string(exit.Stderr))
		}
		return unit.Unit{}, fmt.Errorf("systemctl cat %s: %s", name, reason)
	}
	return unit.Parse(name, string(text))
}
