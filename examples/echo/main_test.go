package main

import (
	"bufio"
	"fmt"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/service/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, main) }

func TestLinesAreCountedAndSentBackAcrossAReload(t *testing.T) {
	s := servicetest.Start(t, servicetest.Options{Listeners: []string{"line"}, Config: "reload.bake = \"10ms\"\n"})
	c := s.Dial("line")
	in := bufio.NewScanner(c)
	expect := func(want string) {
		t.Helper()
		if !in.Scan() || in.Text() != want {
			t.Errorf("got %q %v, want %q", in.Text(), in.Err(), want)
		}
	}
	fmt.Fprint(c, "hello\nworld\n")
	expect("1: hello")
	expect("2: world")
	s.Reload()
	fmt.Fprint(c, "again\n")
	expect("3: again")
}
