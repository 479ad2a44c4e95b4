package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on a control socket of its own, every nth question with an
// error.
func serve(t *testing.T, nth int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := asked.Add(1); nth > 0 && n%nth == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, `{"state":"serving","listeners":[{"address":"tcp://127.0.0.1:7"}],"pools":[{"workers":[{"pid":42}]}]}`)
	})}
	ended := make(chan struct{})
	go func() { s.Serve(l); close(ended) }()
	t.Cleanup(func() { s.Close(); <-ended })
	return path
}

func TestEveryAnswerOfARoundIsCounted(t *testing.T) {
	r := &row{Callers: 20}
	path := serve(t, 5)
	r.round(t.Context(), path, true)
	if r.took.Count() != 16 || r.Errors != 4 || !strings.Contains(r.First, "503") {
		t.Errorf("%d answers, %d errors, first %q, want 16 and 4", r.took.Count(), r.Errors, r.First)
	}
	r.round(t.Context(), path, false)
	if r.took.Count() != 16 || r.Errors != 4 {
		t.Errorf("a round that does not count was counted")
	}
}

func TestStatusIsRead(t *testing.T) {
	a, err := ask(t.Context(), serve(t, 0))
	if err != nil || a.State != "serving" || a.Listeners[0].Address != "tcp://127.0.0.1:7" || a.Pools[0].Workers[0].PID != 42 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "usage:"},
		{[]string{"--speed"}, 2, "not defined"},
		{[]string{"extra"}, 2, "want no arguments"},
		{[]string{"--workers", "1"}, 2, "at least 2 workers"},
		{[]string{"--server", "/nonexistent/server"}, 1, "build it, or name it by --server"},
	} {
		var out bytes.Buffer
		if code := run(tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: exit code %d, %s, want %d and %q", tt.args, code, &out, tt.code, tt.want)
		}
	}
}
