package keeper_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/keeper"
)

// The worker's side, first of all in main. The words lie in a page that the
// supervisor has made and passed on.
func ExampleStart() {
	var released *atomic.Uint32
	var supervisorBeat *atomic.Int64

	k, err := keeper.Start(keeper.Options{
		Name:           "app/3 keeper",
		Released:       released,
		SupervisorBeat: supervisorBeat,
		OrphanTTL:      30 * time.Second,
	})
	if unprotected, ok := errors.AsType[*keeper.UnprotectedError](err); ok {
		fmt.Println("serving without a keeper:", unprotected.Reason)
	} else if err != nil {
		fmt.Println(err)
		return
	}
	_ = k // its PIDFD goes to the supervisor
}

// The supervisor's side, when a worker is dead. A row is what the worker had
// noted of a connection in shared memory.
func ExampleReach() {
	var pidfd int // of the keeper
	var rows []struct {
		fd     int
		cookie uint64
		noted  keeper.Position
	}

	for _, row := range rows {
		fd, err := keeper.Reach(pidfd, row.fd)
		if err != nil {
			continue // closed before its row was
		}
		cookie, err := keeper.Cookie(fd)
		if err != nil || cookie != row.cookie {
			unix.Close(fd) // not the row's: the number was used again
			continue
		}
		kernel, err := keeper.Counts(fd)
		if err == nil && keeper.AtBoundary(row.noted, kernel) {
			continue // to a worker that lives, with what was saved
		}
		unix.Shutdown(fd, unix.SHUT_RDWR) // a close would not reach the peer yet
		unix.Close(fd)
	}
	unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
}
