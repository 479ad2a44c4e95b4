package service

import "strings"

// command is a setting that is a program and its arguments: in the file an
// array of strings, elsewhere the same as JSON. An empty array is none.
func command[T any](key string, field func(*T) *[]string) setting[T] {
	return stringList(key, `a program and its arguments such as ["/usr/bin/notify", "worker"]`, field, func(words []string) error {
		for i, s := range words {
			if i == 0 && s == "" || strings.ContainsRune(s, 0) {
				return errWant
			}
		}
		return nil
	})
}
