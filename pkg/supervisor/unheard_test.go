package supervisor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/notify"
	"github.com/mainstay-go/mainstay/pkg/signals"
)

func TestRestartThatWasNotHeardIsFoundOutFromTheManager(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ending bool
		err    error
		leaves bool
	}{
		{name: "it ends the service", ending: true, leaves: true},
		{name: "it does not"},
		{name: "it cannot be asked", err: errors.New("no bus")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Supervisor{
					inbox: make(chan message, 1), done: make(chan struct{}), log: zap.NewNop(),
					ending: func(context.Context) (bool, error) { return tt.ending, tt.err },
				}
				s.findUnheard(t.Context())
				if leaves := len(s.inbox) == 1; leaves != tt.leaves {
					t.Fatalf("told to leave: %v, want %v", leaves, tt.leaves)
				}
				if tt.leaves {
					if m, ok := (<-s.inbox).(signalled); !ok || m.sig != signals.Restart {
						t.Errorf("told %+v", m)
					}
				}
			})
		})
	}
}

func TestSupervisorThatEndsDoesNotWaitForTheManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Supervisor{
			inbox: make(chan message), done: make(chan struct{}), log: zap.NewNop(),
			ending: func(ctx context.Context) (bool, error) { <-ctx.Done(); return false, ctx.Err() },
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.findUnheard(ctx)
	})
}

func TestOnlyTheManagerOfTheServiceIsAsked(t *testing.T) {
	n := &notify.Notifier{}
	for _, tt := range []struct {
		name string
		conf Config
		asks bool
	}{
		{name: "a unit", conf: Config{Cgroup: "/sys/fs/cgroup/system.slice/app.service", Notify: n}, asks: true},
		{name: "by hand", conf: Config{Notify: n}},
		{name: "nobody is notified", conf: Config{Cgroup: "/sys/fs/cgroup/system.slice/app.service"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := askEnding(tt.conf) != nil; got != tt.asks {
				t.Errorf("%v, want %v", got, tt.asks)
			}
		})
	}
}
