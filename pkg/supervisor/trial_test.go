package supervisor

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/keeper"
)

func TestAllConnectionsOfATrialComeBackAndNothingIsLeft(t *testing.T) {
	if err := keeper.Probe(); err != nil {
		t.Skipf("keepers cannot work here: %v", err)
	}
	s := &Supervisor{conf: Config{Name: "test"}, log: zap.NewNop(), clock: monotonic, trying: make(chan struct{}, 1)}
	before, children := openFDs(os.Getpid()), childrenOf(t)
	for range 3 {
		trial := s.try(t.Context())
		if trial == nil || trial.Error != "" || trial.Back != trialConnections || trial.Connections != trialConnections || trial.TookNS <= 0 {
			t.Fatalf("trial %+v, want %d connections back", trial, trialConnections)
		}
	}
	if after := openFDs(os.Getpid()); after > before { // others may be closed meanwhile
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
	for pid := range childrenOf(t) {
		if !children[pid] {
			t.Errorf("process %d is left", pid)
		}
	}
}

// childrenOf returns the children of this process, those that are not reaped
// included.
func childrenOf(t *testing.T) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	children := make(map[int]bool)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, _, ok := origin(pid); ok && parent == os.Getpid() {
			children[pid] = true
		}
	}
	return children
}

func TestTrialWaitsForItsTurnOnlySoLong(t *testing.T) {
	s := &Supervisor{trying: make(chan struct{}, 1)}
	s.trying <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if trial := s.try(ctx); trial != nil {
		t.Errorf("trial %+v beside another one", trial)
	}
}

func TestReplyOfATrialIsUnderstoodOrRefused(t *testing.T) {
	for _, tt := range []struct {
		name, reply string
		keeper      int
		want        string // in the error; empty: none
	}{
		{name: "a keeper", reply: `{"keeper":7}`, keeper: 7},
		{name: "why there is none", reply: `{"keeper":0,"error":"a filter"}`},
		{name: "nothing", reply: "", want: "before it had a keeper"},
		{name: "no keeper", reply: "{}", want: "names no keeper"},
		{name: "no JSON", reply: "x", want: "invalid character"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[0])
			if tt.reply != "" {
				if _, err := unix.Write(fds[1], []byte(tt.reply)); err != nil {
					t.Fatal(err)
				}
			}
			unix.Close(fds[1])
			r, err := readTrialReply(fds[0])
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || r.Keeper != tt.keeper {
				t.Errorf("%+v, %v; want keeper %d and an error with %q", r, err, tt.keeper, tt.want)
			}
		})
	}
}

func TestConnectionOfATrialHasToBeTheRightOneAndCarryWhatIsSent(t *testing.T) {
	if err := keeper.Probe(); err != nil {
		t.Skipf("keepers cannot work here: %v", err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(self)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	cookie, err := keeper.Cookie(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{pid: os.Getpid(), pidfd: self}
	if err := comesBack(k, fds[0], cookie, fds[1]); err != nil {
		t.Error(err)
	}
	if err := comesBack(k, fds[0], cookie+1, fds[1]); err == nil || !strings.Contains(err.Error(), "is another one") {
		t.Errorf("another socket: %v", err)
	}
	if err := comesBack(k, fds[0], cookie, fds[0]); err == nil || !strings.Contains(err.Error(), "has not come") {
		t.Errorf("a byte that is sent elsewhere: %v", err)
	}
	if err := comesBack(k, 1<<20, cookie, fds[1]); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
