package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/mainstay-go/mainstay/bench/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on loopback by handle until the test is over.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return "tcp://" + l.Addr().String()
}

func echo(c net.Conn) { io.Copy(c, struct{ io.Reader }{c}) }

func TestTheExitCodeTellsWhatBecameOfIt(t *testing.T) {
	good := serve(t, echo)
	bad := serve(t, func(c net.Conn) { c.Read(make([]byte, 1)) })
	for _, c := range []struct {
		name string
		args []string
		code int
		say  string
	}{
		{"all right", []string{"--connections", "3", "--warmup", "0", "--messages", "50", good}, 0, "errors       0"},
		{"text", []string{"--mode", "text", "--connections", "3", "--warmup", "0", "--messages", "50", good}, 0, "text  64 B"},
		{"the server closes", []string{"--connections", "3", "--warmup", "0", "--duration", "1s", bad}, 1, "errors       3"},
		{"help", []string{"--help"}, 0, "--connections"},
		{"no target", nil, 2, "want one TARGET"},
		{"two targets", []string{good, good}, 2, "got 2"},
		{"unknown flag", []string{"--speed", "9", good}, 2, "-speed"},
		{"remote", []string{"tcp://192.0.2.1:80"}, 2, "not a loopback address"},
		{"source", []string{"--sources", "127.0.0.1,here", good}, 2, "--sources"},
		{"size", []string{"--size", "3", good}, 2, "message size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if got := run(c.args, &out, &out); got != c.code || !strings.Contains(out.String(), c.say) {
				t.Errorf("exit code %d, want %d and %q in:\n%s", got, c.code, c.say, out.String())
			}
		})
	}
}

func TestTheResultIsPrintedAsJSON(t *testing.T) {
	var out, errs bytes.Buffer
	code := run([]string{"--json", "--connections", "2", "--warmup", "0", "--messages", "50", serve(t, echo)}, &out, &errs)
	var r load.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || code != 0 || r.Messages < 50 || r.Connected != 2 {
		t.Errorf("exit code %d, %v, got %+v from:\n%s%s", code, err, r, out.String(), errs.String())
	}
}
