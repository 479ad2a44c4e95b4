package handoff

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// inboxBuffer is how many bytes an inbox should hold; the system may allow
// less.
const inboxBuffer = 1 << 20

// Pair makes an inbox: a process receives by the one end, through
// Options.Inbox, and its peers send by the other, through Endpoint.Peer. Both
// are close-on-exec, do not block, and are the caller's. It fails as
// socketpair(2) does.
func Pair() (receiving, sending int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("handoff: %w", os.NewSyscallError("socketpair", err))
	}
	// The sender's buffer is what holds messages that were not received. It
	// does as it is, if no more is allowed.
	_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, inboxBuffer)
	return fds[0], fds[1], nil
}
