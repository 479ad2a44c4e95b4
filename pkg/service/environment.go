package service

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// envName is the variable that sets a key: APP_RELOAD_BAKE for reload.bake.
func envName(prefix, key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// listenerVariable begins the variables about listeners, behind the prefix:
// APP_LISTENER_TEXT_ECHO_IDLE_TIMEOUT for idle_timeout of text-echo. All that
// begin so are ours.
const listenerVariable = "LISTENER_"

// environment returns the variables of this process that are settings of the
// service.
func (s *Service) environment() map[string]string {
	env := map[string]string{}
	for _, key := range settings {
		name := envName(s.prefix(), key.key)
		if v, ok := os.LookupEnv(name); ok {
			env[name] = v
		}
	}
	for _, kv := range os.Environ() {
		if name, v, _ := strings.Cut(kv, "="); strings.HasPrefix(name, s.prefix()+listenerVariable) {
			env[name] = v
		}
	}
	return env
}

// readEnv merges the variables of env into c: those of the settings' names
// behind prefix, and those about listeners, of which names are known. Others
// are left to the application. An error names the variable.
func (c *config) readEnv(prefix string, env map[string]string, names []string) error {
	for _, s := range settings {
		name := envName(prefix, s.key)
		v, ok := env[name]
		if !ok {
			continue
		}
		if err := s.apply(c, word(v)); err != nil {
			return fmt.Errorf("%s: key %q: %w", name, s.key, err)
		}
		c.origin[s.key] = name
	}
	for _, variable := range sortedKeys(env) {
		if rest, ok := strings.CutPrefix(variable, prefix+listenerVariable); ok {
			if err := c.readListenerEnv(variable, rest, env[variable], names); err != nil {
				return fmt.Errorf("%s: %w", variable, err)
			}
		}
	}
	return nil
}

// readListenerEnv merges a variable about a listener into c; rest is what
// stands behind LISTENER_.
func (c *config) readListenerEnv(variable, rest, value string, names []string) error {
	written, s, ok := splitListenerVariable(rest)
	if !ok {
		return errors.New("ends with no key of a listener: want " + strings.TrimSuffix(variable, rest) + "NAME_KEY")
	}
	name, err := listenerNamed(written, append(sortedKeys(c.Listeners), names...))
	if err != nil {
		return err
	}
	if err := checkListenerName(name); err != nil {
		return err
	}
	key := listenerKey(name)
	l := c.Listeners[name]
	if err := s.apply(&l, word(value)); err != nil {
		return fmt.Errorf("key %q: %w", key+"."+s.key, err)
	}
	c.Listeners[name] = l
	c.origin[key+"."+s.key] = variable
	if c.origin[key] == "" {
		c.origin[key] = variable
	}
	return nil
}

// splitListenerVariable splits NAME_KEY at the longest key it ends with.
func splitListenerVariable(rest string) (name string, s setting[listenerConfig], ok bool) {
	for _, each := range listenerSettings {
		before, found := strings.CutSuffix(rest, envName("_", each.key))
		if found && before != "" && len(each.key) > len(s.key) {
			name, s, ok = before, each, true
		}
	}
	return name, s, ok
}

// listenerNamed finds the name that is written so in a variable: that of a
// known listener, else in lower case with hyphens.
func listenerNamed(written string, known []string) (string, error) {
	var found []string
	for _, name := range known {
		if envListenerName(name) == written && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 0:
		return strings.ReplaceAll(strings.ToLower(written), "_", "-"), nil
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("may mean each of the listeners %s: set it in the file", list(found))
}

// envListenerName is how a listener's name is written in a variable: in upper
// case, what is no letter or digit as an underscore.
func envListenerName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// names are the listeners that may be meant in a variable: systemd's, those
// of the command line, of the code, and the kinds.
func (s *Service) names(flags runFlags) []string {
	names := slices.Clone(flags.sockets)
	for _, f := range flags.set {
		if name, _, ok := strings.Cut(f.value, "="); ok && f.listener {
			names = append(names, name)
		}
	}
	for _, l := range s.listeners {
		names = append(names, l.name)
	}
	return append(names, sortedKeys(s.kinds)...)
}
