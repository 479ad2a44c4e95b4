package peers

import (
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestACustomPeersWordsAreFilledIn(t *testing.T) {
	p, err := customPeer("mine=/opt/echo --port={port} -n {workers} --addr 127.0.0.1:{port}")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/opt/echo", "--port=7", "-n", "2", "--addr", "127.0.0.1:7"}
	if got := p.argv(7, 2); p.Name != "mine" || !slices.Equal(got, want) {
		t.Errorf("got %q %q, want mine %q", p.Name, got, want)
	}
}

func TestTheEnvironmentOfServersIsClean(t *testing.T) {
	got := cleanEnv([]string{"PATH=/bin", "APP_WORKERS=9", "LISTEN_FDS=1", "NOTIFY_SOCKET=/x", "GOGC=off", "APPLE=1", "MAINSTAY_WORKER=1"})
	if want := []string{"PATH=/bin", "APPLE=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
