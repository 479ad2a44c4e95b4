package service

import "strings"

// command is a setting that is a program and its arguments.
func command[T any](key string, field func(*T) *[]string) setting[T] {
	return words(key, `a program and its arguments such as ["/usr/bin/notify", "worker"]`, field)
}

// words is a setting that is some strings, the first of which is not empty.
func words[T any](key, want string, field func(*T) *[]string) setting[T] {
	return stringList(key, want, field, func(words []string) error {
		for i, s := range words {
			if i == 0 && s == "" || strings.ContainsRune(s, 0) {
				return errWant
			}
		}
		return nil
	})
}
