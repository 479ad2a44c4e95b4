package service

import (
	"encoding/json"
	"strings"
)

// command is a setting that is a program and its arguments.
func command[T any](key string, field func(*T) *[]string) setting[T] {
	return words(key, `a program and its arguments such as ["/usr/bin/notify", "worker"]`, field)
}

// words is a setting that is some strings, the first of which is not empty: in
// the file an array, elsewhere the same as JSON. An empty array is none.
func words[T any](key, want string, field func(*T) *[]string) setting[T] {
	return setting[T]{key, want, false, func(t *T, v any) error {
		var words []string
		switch v := v.(type) {
		case word:
			d := json.NewDecoder(strings.NewReader(string(v)))
			if err := d.Decode(&words); err != nil || d.More() {
				return errWant
			}
		case []any:
			for _, one := range v {
				s, ok := one.(string)
				if !ok {
					return errWant
				}
				words = append(words, s)
			}
		default:
			return errWant
		}
		for i, s := range words {
			if i == 0 && s == "" || strings.ContainsRune(s, 0) {
				return errWant
			}
		}
		if len(words) == 0 {
			words = nil
		}
		*field(t) = words
		return nil
	}, func(t *T) string {
		text, err := json.Marshal(*field(t)) // as TOML has it, too
		if err != nil || *field(t) == nil {
			return "[]"
		}
		return string(text)
	}}
}
