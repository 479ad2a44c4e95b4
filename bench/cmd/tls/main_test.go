package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/stats"
	"github.com/mainstay-go/mainstay/test/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCommandLineIsChecked(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "exit codes:"},
		{[]string{"--parts", "sleep"}, 2, `part "sleep"`},
		{[]string{"--sizes", "7"}, 2, `size "7"`},
		{[]string{"--cycles", "0"}, 2, "want no arguments"},
		{[]string{"more"}, 2, "want no arguments"},
	} {
		var out, problems bytes.Buffer
		if code := run(tt.args, &out, &problems); code != tt.code || !strings.Contains(problems.String(), tt.want) {
			t.Errorf("%v: exit code %d, %s", tt.args, code, &problems)
		}
	}
}

func TestFiguresAreHeldAgainstTheMarks(t *testing.T) {
	r := &result{
		Echo: []rates{{Size: 64, Servers: []rate{
			{Name: cryptoTLS, OfBase: stats.Of([]float64{1})}, {Name: mainstay, OfBase: stats.Of([]float64{1.25})}, {Name: nginx, OfBase: stats.Of([]float64{0.5})},
		}}},
		Memory:  []memory{{Name: cryptoTLS, Each: 30_000}, {Name: mainstay, Each: 2561}},
		Handoff: &handoff{Quiet: timesOf([]time.Duration{1e6, 2e6}), Said: "reloaded"},
	}
	r.mark()
	if len(r.Marks) != 2 || !r.Marks[0].Met || r.Marks[1].Met {
		t.Errorf("marks %v", r.Marks)
	}
	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{"MISSED", "2561", "reloaded", "2.00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the tables:\n%s", want, &out)
		}
	}
}

func TestCrowdHasItsRepliesFromAnEcho(t *testing.T) {
	dir := t.TempDir()
	c, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, text := range map[string][]byte{cert: c.Cert, key: c.Key} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := &field{plan: &plan{}, trust: c}
	pair, err := c.Pair()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served = make(chan error, 1)
	go func() { served <- serveEcho(secure(l, pair)) }()
	crowd, err := openCrowd(context.Background(), l.Addr().String(), f.client(), 20, 5000)
	if err != nil {
		t.Fatal(err)
	}
	if err := crowd.start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		n, err := crowd.count()
		if err != nil || time.Now().After(end) {
			t.Fatalf("%d replies: %v", n, err)
		}
		if n > 200 {
			break
		}
	}
	if err := crowd.close(); err != nil {
		t.Error(err)
	}
	l.Close()
	<-served
}
