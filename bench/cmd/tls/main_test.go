package main

import (
	"bytes"
	"context"
	"crypto/tls"
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
		{[]string{"--sizes", "64,7"}, 2, `"7", want numbers from 8`},
		{[]string{"--connections", "0"}, 2, `"0", want numbers from 1`},
		{[]string{"--pipeline", "one"}, 2, `"one", want numbers`},
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
		Echo: []rates{{Connections: 100, Size: 64, Depth: 16, Servers: []rate{
			{Name: cryptoTLS, OfBase: stats.Of([]float64{1})}, {Name: mainstay, OfBase: stats.Of([]float64{1.25})}, {Name: nginx, OfBase: stats.Of([]float64{0.5})},
		}}},
		Handshakes: []rates{{What: "resumed", Servers: []rate{
			{Name: netHTTP, OfBase: stats.Of([]float64{1})}, {Name: mainstay, OfBase: stats.Of([]float64{0.99})},
		}}},
		Memory:  []memory{{Name: cryptoTLS, Each: 30_000}, {Name: mainstay, Each: 2561}},
		Handoff: &handoff{Quiet: timesOf([]time.Duration{1e6, 2e6}), Said: "reloaded"},
	}
	r.mark()
	if len(r.Marks) != 3 || !r.Marks[0].Met || r.Marks[1].Met || r.Marks[2].Met {
		t.Errorf("marks %v", r.Marks)
	}
	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{"MISSED", "64 B x 16 on 100 connections", "resumed handshakes", "2561", "reloaded", "2.00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the tables:\n%s", want, &out)
		}
	}
}

func TestHandshakesAreFullOrResumed(t *testing.T) {
	trust, err := certs.Make(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := trust.Pair()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served = make(chan error, 1)
	go func() { served <- serveEcho(secure(l, pair)) }()
	f := &field{plan: &plan{}, trust: trust}
	for _, resume := range []bool{false, true} {
		cfg := f.client()
		if resume {
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		for i := range 3 {
			if err := shakeHands(l.Addr().String(), cfg, resume && i > 0); err != nil {
				t.Errorf("resume %v, handshake %d: %v", resume, i, err)
			}
		}
	}
	if err := shakeHands(l.Addr().String(), f.client(), true); err == nil {
		t.Error("a full handshake is taken for one that has resumed")
	}
	l.Close()
	<-served
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
	crowd, err := openCrowd(context.Background(), l.Addr().String(), f.client(), 20)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	before := 20 // the first of each
	for _, load := range []struct{ size, depth int }{{5000, 1}, {64, 16}} {
		if err := crowd.start(load.size, load.depth); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); ; <-tick.C {
			n, err := crowd.count()
			if err != nil || time.Now().After(end) {
				t.Fatalf("%+v: %d replies: %v", load, n, err)
			}
			if n > before+20*load.depth+200 {
				break
			}
		}
		if err := crowd.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if before, err = crowd.count(); err != nil {
			t.Fatal(err)
		}
		for _, x := range crowd.all { // which say no more
			if x.flying > 0 || x.got > 0 {
				t.Errorf("%+v: a client waits for %d replies, and has %d bytes of one", load, x.flying, x.got)
			}
		}
	}
	if err := crowd.close(); err != nil {
		t.Error(err)
	}
	l.Close()
	<-served
}
