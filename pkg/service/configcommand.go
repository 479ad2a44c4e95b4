package service

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
)

func (s *Service) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the configuration, or show what it comes to",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return fmt.Errorf("config: want check or show") },
	}
	cmd.AddCommand(s.configCheckCommand(), s.configShowCommand())
	return cmd
}

// checked loads the configuration as run would with these flags, and says what
// is wrong with it. What depends on the sockets that systemd hands over is not
// known here.
func (s *Service) checked(flags runFlags) (config, error) {
	c, err := s.load(flags, s.environment())
	if _, ok := errors.AsType[usageError](err); ok {
		return c, err
	}
	if err == nil {
		for _, name := range sortedKeys(c.Listeners) {
			err = errors.Join(err, s.check(c, name))
		}
	}
	if err != nil {
		return c, &exitError{exitFailed, err}
	}
	return c, nil
}

func (s *Service) configCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether the configuration is right, without using it",
		Long: fmt.Sprintf(`Read the configuration file, the %s* variables of this command's environment,
flags, and the files of certificates as run would, and say what is wrong. Whether
each listener has a socket, and what systemd's credentials hold, is known only to
the service itself.`, s.prefix()),
		Args: cobra.NoArgs,
	}
	flags := s.settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.checked(flags())
		if err != nil {
			return err
		}
		if err := c.readCertificates(); err != nil {
			return &exitError{exitFailed, err}
		}
		fmt.Fprintln(cmd.OutOrStdout(), "the configuration is right")
		return nil
	}
	return cmd
}

func (s *Service) configShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the merged configuration, and where each value comes from",
		Long: fmt.Sprintf(`Show what the defaults, the configuration file, the %s* variables of this
command's environment and the flags come to, as a configuration file, with the
source of each value: default, FILE:LINE, the variable or the flag. The unit's
variables and flags are not known here. Of a listener, only what is set is
shown: the rest is the program's, or as the documentation says.`, s.prefix()),
		Args: cobra.NoArgs,
	}
	flags := s.settingFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "as JSON: an array of key, value (as a file would have it) and source")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.checked(flags())
		if err != nil {
			return err
		}
		show := writeConfig
		if *asJSON {
			show = func(w io.Writer, values []shownValue) error {
				enc := json.NewEncoder(w)
				enc.SetEscapeHTML(false)
				return enc.Encode(values)
			}
		}
		if err := show(cmd.OutOrStdout(), c.shown()); err != nil {
			return &exitError{exitFailed, err}
		}
		return nil
	}
	return cmd
}

// shownValue is a value of the merged configuration.
type shownValue struct {
	Key      string `json:"key"`
	Value    string `json:"value"`  // as in a file
	Source   string `json:"source"` // default, FILE:LINE, or the name of a variable or flag
	listener string
	name     string // of the key within its table
}

// shown lists the merged configuration: all keys outside of listeners, and
// what is set of these.
func (c *config) shown() []shownValue {
	var all []shownValue
	source := func(key string) string {
		if from := c.origin[key]; from != "" {
			return from
		}
		return "default"
	}
	for _, s := range settings {
		all = append(all, shownValue{Key: s.key, name: s.key, Value: s.get(c), Source: source(s.key)})
	}
	for _, name := range sortedKeys(c.Listeners) {
		l := c.Listeners[name]
		for _, s := range listenerSettings {
			key := listenerKey(name) + "." + s.key
			if c.origin[key] != "" {
				all = append(all, shownValue{Key: key, name: s.key, listener: name, Value: s.get(&l), Source: source(key)})
			}
		}
	}
	return all
}

// writeConfig writes values as a file that sets them, the sources as
// comments.
func writeConfig(w io.Writer, values []shownValue) error {
	b := bufio.NewWriter(w)
	table := ""
	for _, v := range values {
		if v.listener != table {
			table = v.listener
			fmt.Fprintf(b, "\n[listener.%s]\n", tomlKey(table))
		}
		fmt.Fprintf(b, "%-34s # %s\n", v.name+" = "+v.Value, v.Source)
	}
	return b.Flush()
}

// tomlKey is a key as TOML has it: bare, or quoted.
func tomlKey(key string) string {
	for _, r := range key {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
			return strconv.Quote(key)
		}
	}
	return key
}
