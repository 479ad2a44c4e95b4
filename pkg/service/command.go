package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/signals"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
)

// exitError is the end of a command that did run: its exit code and, unless
// it was told already, the reason.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return fmt.Sprintf("exit %d: %v", e.code, e.err) }

// command plays the role that the command line asks for.
func (s *Service) command(args []string) int {
	if len(args) > 0 && args[0] == runName {
		signals.Watch() // a stop must not come before it is awaited; the supervisor receives it
	}
	root := s.commands()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		if e.err != nil {
			s.complain(e.err)
		}
		return e.code
	}
	// Whatever else cobra refuses was asked for wrongly.
	fmt.Fprintf(os.Stderr, "%s: %v\nTry \"%s --help\".\n", s.name, err, root.Name())
	return exitUsage
}

// programName is what the program was called by, or is installed as.
func (s *Service) programName() string {
	if s.program != "" {
		return s.program
	}
	return filepath.Base(os.Args[0])
}

func (s *Service) commands() *cobra.Command {
	root := &cobra.Command{
		Use:   s.programName(),
		Short: "The service " + s.name + ": run it, or ask one that runs",
		Long: "The service " + s.name + `: run it, or ask one that runs.

Exit codes: 0 done, 1 refused or failed (the reason is on standard error),
2 usage, 3 the service is not running, 78 broken configuration (run only).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.New("which command?")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true // completionCommand says it in our words
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(
		s.runCommand(), s.stopCommand(), s.reloadCommand(), s.rollbackCommand(),
		s.statusCommand(), s.connectionsCommand(), s.eventsCommand(),
		s.scaleCommand(), s.recycleCommand(), s.drainCommand(), s.resumeCommand(),
		s.moveCommand(), s.rebalanceCommand(),
		s.configCommand(), s.unitLintCommand(), s.doctorCommand(), s.versionCommand(), s.reapCommand(),
		s.completionCommand(), s.manCommand(),
	)
	return root
}

// helpCommand is cobra's own, but for a topic that does not exist: that is an
// error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Explain a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("help: no command %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

// runName is the command that is the supervisor's role.
const runName = "run"

func (s *Service) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   runName,
		Short: "Run the service in the foreground, as systemd does",
		Long: fmt.Sprintf(`Run the service in the foreground until it is told to stop.

Settings come from the file, over it from the environment (%[1]sWORKERS for the
key workers, %[1]sLOG_LEVEL for log.level, %[1]sLISTENER_TEXT_ECHO_SERVE for serve of
the listener text-echo), over that from the flags.

Signals: TERM and INT stop, a second one hastens; HUP, USR1 and USR2 reload;
TTIN and TTOU add and remove a worker.`, s.prefix()),
		Example: fmt.Sprintf("  %s run --workers 2 --listen NAME=tcp://127.0.0.1:7007 --control unix:///tmp/control.sock", s.programName()),
		Args:    cobra.NoArgs,
	}
	flags := s.settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if code := s.run(cmd.Context(), flags()); code != exitDone {
			return &exitError{code: code}
		}
		return nil
	}
	return cmd
}

// settingFlags gives a command the flags that set something, and returns what
// reads them when the command runs.
func (s *Service) settingFlags(cmd *cobra.Command) func() runFlags {
	f := cmd.Flags()
	config := f.String("config", "", "configuration `FILE` (TOML); default "+s.defaultFile()+", which may be absent")
	f.String("workers", "", "number `N` of workers; 0: one for each CPU")
	listen := f.StringArray("listen", nil, "bind a listener: `NAME=URL`, URL being tcp://HOST:PORT, udp://HOST:PORT, unix:///PATH, unixgram:///PATH or unixpacket:///PATH; may be repeated")
	serve := f.StringArray("serve", nil, "serve a kind on a listener: `NAME=KIND`, KIND being one of "+list(sortedKeys(s.kinds))+"; may be repeated")
	f.String("control", "", "`URL` of the control socket; default "+defaults(s.name).Control)
	f.String("grace", "", "`DURATION` for which a worker that is replaced may go on with its connections; default 30s")
	f.String("log-level", "", "`LEVEL` from which on to log: debug, info, warn or error; default info")
	f.String("log-format", "", "`FORMAT` of the log: auto, journal, text or json; default auto")
	keys := map[string]string{
		"workers": "workers", "control": "control", "grace": "grace", "log-level": "log.level", "log-format": "log.format",
	}
	return func() runFlags {
		flags := runFlags{config: *config}
		for _, name := range sortedKeys(keys) {
			if flag := f.Lookup(name); flag.Changed {
				flags.set = append(flags.set, flagValue{flag: name, key: keys[name], value: flag.Value.String()})
			}
		}
		for _, v := range *listen {
			flags.set = append(flags.set, flagValue{flag: "listen", key: "address", value: v, listener: true})
		}
		for _, v := range *serve {
			flags.set = append(flags.set, flagValue{flag: "serve", key: "serve", value: v, listener: true})
		}
		return flags
	}
}

// askTimeout bounds a question that is answered at once.
const askTimeout = 10 * time.Second

// ask makes a command that asks a running service.
func (s *Service) ask(cmd *cobra.Command, do func(ctx context.Context, c *control.Client, args []string) error) *cobra.Command {
	address := cmd.Flags().String("control", "", fmt.Sprintf("`URL` of the control socket; default $%s, the key control of %s, %s",
		envName(s.prefix(), "control"), s.defaultFile(), defaults(s.name).Control))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *address == "" {
			*address = s.controlAddress()
		}
		c, err := control.NewClient(*address)
		if err != nil {
			return err
		}
		ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer cancel()
		err = do(ctx, c, args)
		if _, ok := errors.AsType[*exitError](err); ok {
			return err
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, control.ErrNotRunning):
			return &exitError{exitNotRunning, err}
		}
		return &exitError{exitFailed, err}
	}
	return cmd
}

// controlAddress is where the service is asked if the command line does not
// say. A file that is broken does not keep its operator from asking.
func (s *Service) controlAddress() string {
	if v := os.Getenv(envName(s.prefix(), "control")); v != "" {
		return v
	}
	var c struct {
		Control string `toml:"control"`
	}
	if _, err := toml.DecodeFile(s.defaultFile(), &c); err == nil && checkControl(c.Control) == nil {
		return c.Control
	}
	return s.defaultControl()
}

// within asks with the deadline for what is answered at once.
func within[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return ask(ctx)
}

// mainPID is set by systemd for the commands of a unit's ExecReload=.
const mainPID = "MAINPID"

func (s *Service) reloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Replace the workers by new ones, with new code and configuration",
		Long: fmt.Sprintf(`Read the configuration again, start workers of the program as it is on disk
now, and have the old ones hand their connections over to them, worker by
worker. If the new ones do not become ready, or die, the old ones serve on, or
come back and get the connections. With --wait each worker is told with how
many connections have moved, how many the old one keeps and finishes within
grace, and the longest time for which one stood still.

Called by systemd as ExecReload=, the %s* variables of the command, which
drop-ins may have changed, replace those the service was started with.
Otherwise the environment of the command does not matter.`, s.prefix()),
		Args: cobra.NoArgs,
	}
	wait := cmd.Flags().Bool("wait", false, "wait for the end, show the steps, and fail if the reload does")
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		r := control.ReloadRequest{Detach: !*wait}
		if os.Getenv(mainPID) != "" && *wait {
			r.Env = s.environment()
		}
		out := cmd.OutOrStdout()
		if !*wait {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			if err := c.Reload(ctx, r, func(string) {}); err != nil {
				return err
			}
			fmt.Fprintln(out, "reload is queued")
			return nil
		}
		if err := c.Reload(ctx, r, func(step string) { fmt.Fprintln(out, step) }); err != nil {
			return err
		}
		fmt.Fprintln(out, "reloaded")
		return nil
	})
}

func (s *Service) rollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Return to the last good program and configuration",
		Long: `Replace the workers, one by one as reload does, by those of the release that
served before this one: its program and its configuration, certificates
included, as they were then, whatever became of the files since. status shows
which one that is. Show the steps, and wait for the end. If those workers do not
become ready, the newer ones serve on, or come back.

A release that was returned from is not returned to: a second rollback is
refused. The files on disk are left alone, and the next reload or restart goes
forward to them.`,
		Args: cobra.NoArgs,
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		out := cmd.OutOrStdout()
		if err := c.Rollback(ctx, func(step string) { fmt.Fprintln(out, step) }); err != nil {
			return err
		}
		fmt.Fprintln(out, "rolled back")
		return nil
	})
}

func (s *Service) scaleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scale [POOL] N",
		Short: "Set the number of workers, until the next reload",
		Long: `Set the number of workers, until the next reload. Those that leave hand their
connections over to the others first; the command waits for that, for five
seconds at most, and tells how many have moved. New ones begin without
connections: see rebalance.`,
	}
	var r control.ScaleRequest
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) < 1 || len(args) > 2 {
			return fmt.Errorf("scale: got %d arguments, want [POOL] N", len(args))
		}
		r.Pool = strings.Join(args[:len(args)-1], "")
		n, err := strconv.Atoi(args[len(args)-1])
		if err != nil || n < 1 || n > supervisor.MaxWorkers {
			return fmt.Errorf("scale: got %q, want a number of workers from 1 to %d", args[len(args)-1], supervisor.MaxWorkers)
		}
		r.N = n
		return nil
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		d, err := c.Scale(ctx, r)
		if err != nil {
			return err
		}
		writeDone(cmd.OutOrStdout(), d)
		return nil
	})
}

// stopInterval is how often stop looks whether the service has ended.
const stopInterval = 50 * time.Millisecond

func (s *Service) stopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the service in order, and wait for its end",
		Long: `Close the connections that are between two messages, let the others finish
within stop_grace, and end the service. systemd does not start it again by
itself; a connection to one of its socket units does. The command returns when
the service has ended; if it is interrupted the service ends all the same.

To stop a service that stops already ends the grace: what is still open is
closed within a second.`,
		Args: cobra.NoArgs,
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		before, err := within(ctx, c.Status)
		if err != nil {
			return err
		}
		d, err := within(ctx, c.Stop)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), d.Message)
		tick := time.NewTicker(stopInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return errors.New("interrupted; the service is still stopping")
			case <-tick.C:
			}
			now, err := within(ctx, c.Status)
			switch {
			case errors.Is(err, control.ErrNotRunning):
				fmt.Fprintln(cmd.OutOrStdout(), "stopped")
				return nil
			case err == nil && now.PID != before.PID:
				fmt.Fprintf(cmd.OutOrStdout(), "stopped; another one has been started, pid %d\n", now.PID)
				return nil
			case errors.Is(err, context.DeadlineExceeded):
				return fmt.Errorf("the supervisor (pid %d) does not answer", before.PID)
			}
		}
	})
}

func (s *Service) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print what was built", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s %s/%s\n", s.name, buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

func (s *Service) reapCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reap",
		Short: "Kill what an orderly stop has left behind (for ExecStopPost=)",
		Long: `Kill what is left in the control group of this command, if the service noted in
its runtime directory that it was stopped in order, or systemd says that it died
of the signal of a stop (EXIT_STATUS); otherwise do nothing: after a crash the
workers serve on. It is the unit's ExecStopPost=.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := runtimeDir()
			if dir == "" {
				dir = "/run/" + s.name
			}
			killed, err := supervisor.Reap(dir, diedOfStop(os.Getenv))
			if err != nil {
				return &exitError{exitFailed, err}
			}
			if killed > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "killed %d processes that were left\n", killed)
			}
			return nil
		},
	}
}

// diedOfStop reports whether systemd tells an ExecStopPost= (systemd.exec(5))
// that the supervisor died of the signal of a stop: it came before the
// supervisor could take it. systemd counts that as a clean end, after which it
// starts no other that would adopt the workers.
func diedOfStop(getenv func(string) string) bool {
	if getenv("SERVICE_RESULT") != "success" || getenv("EXIT_CODE") != "killed" {
		return false
	}
	switch getenv("EXIT_STATUS") {
	case "TERM", "INT", "HUP":
		return true
	}
	return false
}
