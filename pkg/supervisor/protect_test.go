package supervisor

import (
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
)

func TestWorkerThatCannotHaveAKeeperIsShownAsUnprotected(t *testing.T) {
	s := &Supervisor{log: zap.NewNop()}
	inc := &incarnation{number: 1}
	s.noteKeeper(incarnationKept{inc, link.Kept{Reason: "a filter forbids it"}, -1})
	if inc.keeper != nil || inc.protection != "unprotected: a filter forbids it" {
		t.Errorf("keeper %v, protection %q", inc.keeper, inc.protection)
	}
}

func TestKeeperThatIsToldTwiceIsNotKeptTwice(t *testing.T) {
	s := &Supervisor{log: zap.NewNop()}
	inc := &incarnation{number: 1}
	var pidfds [2]int
	for i := range pidfds {
		fd, err := unix.PidfdOpen(unix.Getpid(), 0)
		if err != nil {
			t.Fatal(err)
		}
		pidfds[i] = fd
		s.noteKeeper(incarnationKept{inc, link.Kept{PID: unix.Getpid()}, fd})
	}
	defer unix.Close(pidfds[0])
	if inc.keeper.pidfd != pidfds[0] || inc.protection != protected {
		t.Errorf("keeper %+v, protection %q, want the first, %d", inc.keeper, inc.protection, pidfds[0])
	}
	if _, err := unix.FcntlInt(uintptr(pidfds[1]), unix.F_GETFD, 0); err == nil {
		t.Error("the second is still open")
	}
}

func TestHarvestIsToldInOneLine(t *testing.T) {
	s := &Supervisor{log: zap.NewNop(), pool: &pool{name: poolName}}
	inc := &incarnation{number: 1, slot: &slot{pool: s.pool}, release: &release{generation: 1}}
	s.tellHarvest(harvested{harvestObituary{1, inc, nil}, harvestResult{Kept: 3, Ended: 1, Torn: map[string]int{"writing": 1, "reading": 2}}})
	s.tellHarvest(harvested{harvestObituary{1, inc, nil}, harvestResult{}})
	if n := len(s.chronicle.kept); n != 1 {
		t.Fatalf("%d events, want 1", n)
	}
	if got := s.chronicle.kept[0].Message; !strings.HasPrefix(got, "3 connections kept") || !strings.HasSuffix(got, "1 ended by themselves, 3 torn: 2 reading, 1 writing") {
		t.Errorf("told %q", got)
	}
	if s.books.kept != 3 || s.books.tornInAll() != 3 || s.books.torn["reading"] != 2 {
		t.Errorf("%d kept, torn %v", s.books.kept, s.books.torn)
	}
}
