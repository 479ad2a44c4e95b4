package keeper

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// State is a TCP state, as tcp_states.h of the kernel numbers them.
type State uint8

// The states of RFC 9293 3.3.2.
const (
	Established State = iota + 1
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Closed // the peer or the network has broken it, or it never was open
	CloseWait
	LastAck
	Listening
	Closing
	newSynReceived // of requests, which have no descriptor
)

var stateNames = [...]string{
	Established:    "established",
	SynSent:        "syn-sent",
	SynReceived:    "syn-received",
	FinWait1:       "fin-wait-1",
	FinWait2:       "fin-wait-2",
	TimeWait:       "time-wait",
	Closed:         "closed",
	CloseWait:      "close-wait",
	LastAck:        "last-ack",
	Listening:      "listening",
	Closing:        "closing",
	newSynReceived: "new-syn-received",
}

// String is the state's name in RFC 9293, in lower case.
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Position is how far the process at our end of a connection has come.
type Position struct {
	Consumed uint64 // bytes it has read
	Written  uint64 // bytes it has written, whether or not they have left
}

// Kernel is what the kernel knows of a TCP connection.
type Kernel struct {
	Position
	Unread   int // bytes that have come and were not read; the peer's FIN is none
	Unacked  int // bytes that were written and not acknowledged by the peer, sent or not
	State    State
	FastOpen bool // its SYN carried data (RFC 7413)
}

// Errors of Counts.
var (
	ErrNotTCP    = errors.New("not a TCP socket")
	ErrUnsettled = errors.New("the peer sends without a pause")
)

// settleTries is how often Counts looks before it gives up; each time takes
// some microseconds. A peer cannot keep it up: nobody reads what it sends.
const settleTries = 100

const fastOpenData = 32 // TCPI_OPT_SYN_DATA, linux/tcp.h

// Counts asks the kernel how far the last process that used the connection
// behind fd has come. Nobody may read or write the connection meanwhile, and
// what it tells holds until somebody does.
//
//	consumed = tcpi_bytes_received - SIOCINQ, less one once the peer's FIN has come
//	written  = tcpi_bytes_acked + SIOCOUTQ
//
// The counts are of the bytes on the wire, so they include a TLS handshake or
// a PROXY header. They start at 0 for a connection that was accepted. One that
// was made by connect(2) starts at Written 1 (its SYN is counted), so who
// keeps a count of its own starts it with what Counts says. After shutdown(2)
// for writing Written is one too many or two; State shows it. A socket for
// which the kernel opens TLS (TLS_RX), or with a shutdown for reading only, cannot be
// told from others and must not be asked about. Where it seals (TLS_TX), Written
// lags behind while a record waits for room in TCP's buffer.
//
// The error wraps ErrNotTCP if fd is a socket of another kind (MPTCP is one:
// its counts are its subflows'), ErrUnsettled if the numbers did not stand
// still, EINVAL if it listens.
func Counts(fd int) (Kernel, error) {
	if err := isTCP(fd); err != nil {
		return Kernel{}, err
	}
	var info [2]unix.TCPInfo
	if err := tcpInfo(fd, &info[0]); err != nil {
		return Kernel{}, err
	}
	return settle(fd, &info)
}

// Examine judges the connection behind fd as Judge would by what Counts says,
// whose errors it returns. Noted is what the process has noted: of what it has
// read, never more than that. A connection with which nothing goes on, as most
// of many are, is asked once.
func Examine(fd int, noted Position) (Verdict, error) {
	if err := isTCP(fd); err != nil {
		return 0, err
	}
	var info [2]unix.TCPInfo
	if err := tcpInfo(fd, &info[0]); err != nil {
		return 0, err
	}
	if rests(&info[0], noted) {
		return Boundary, nil
	}
	kernel, err := settle(fd, &info)
	if err != nil {
		return 0, err
	}
	return Judge(noted, kernel), nil
}

// rests says whether one look tells that a connection is at a boundary; if not,
// it may be all the same. The kernel reads all of it but the state under one
// lock. Nothing is on its way out, so what is acknowledged is what was written.
// All that has come is noted as read: it has been read, for noted is no more
// than that, and nothing is left to be. Was the peer's FIN among it, which may
// have come after the state was read, it is one too many.
func rests(info *unix.TCPInfo, noted Position) bool {
	return State(info.State) == Established && info.Bytes_received == noted.Consumed &&
		info.Unacked == 0 && info.Notsent_bytes == 0 && info.Bytes_acked == noted.Written
}

// settle goes on from the first look until the next one sees the same.
func settle(fd int, info *[2]unix.TCPInfo) (Kernel, error) {
	for i := range settleTries {
		before, after := &info[i&1], &info[(i+1)&1]
		unread, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return Kernel{}, fmt.Errorf("keeper: descriptor %d: %w", fd, os.NewSyscallError("ioctl SIOCINQ", err))
		}
		unacked, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return Kernel{}, fmt.Errorf("keeper: descriptor %d: %w", fd, os.NewSyscallError("ioctl SIOCOUTQ", err))
		}
		if err := tcpInfo(fd, after); err != nil {
			return Kernel{}, err
		}
		// All of these numbers only grow: equal before and after is equal between.
		if before.State == after.State && before.Bytes_received == after.Bytes_received && before.Bytes_acked == after.Bytes_acked {
			return newKernel(after, unread, unacked), nil
		}
	}
	return Kernel{}, fmt.Errorf("keeper: descriptor %d: %w", fd, ErrUnsettled)
}

// isTCP returns an error unless fd is a TCP socket.
func isTCP(fd int) error {
	var protocol int32
	if _, err := option(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL, unsafe.Pointer(&protocol), unsafe.Sizeof(protocol)); err != nil {
		return fmt.Errorf("keeper: descriptor %d: %w", fd, os.NewSyscallError("getsockopt SO_PROTOCOL", err))
	}
	if protocol != unix.IPPROTO_TCP {
		return fmt.Errorf("keeper: descriptor %d: protocol %d: %w", fd, protocol, ErrNotTCP)
	}
	return nil
}

// tcpInfo asks for as much as is needed here.
func tcpInfo(fd int, info *unix.TCPInfo) error {
	const size = unsafe.Offsetof(info.Min_rtt)
	n, err := option(fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(info), size)
	if err == nil && n < size {
		err = unix.ENOPROTOOPT
	}
	if err != nil {
		return fmt.Errorf("keeper: descriptor %d: %w", fd, os.NewSyscallError("getsockopt TCP_INFO", err))
	}
	return nil
}

// option is getsockopt(2) into size bytes at value; it returns how many of them
// were written. The Go scheduler is not told of the call, which takes a fraction
// of a microsecond: a harvest makes thousands.
func option(fd, level, name int, value unsafe.Pointer, size uintptr) (uintptr, error) {
	n := uint32(size)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return uintptr(n), nil
}

func newKernel(info *unix.TCPInfo, unread, unacked int) Kernel {
	k := Kernel{
		Position: Position{
			Consumed: info.Bytes_received - uint64(unread),
			Written:  info.Bytes_acked + uint64(unacked),
		},
		Unread:   unread,
		Unacked:  unacked,
		State:    State(info.State),
		FastOpen: info.Options&fastOpenData != 0,
	}
	switch k.State {
	case CloseWait, LastAck, Closing, TimeWait: // the peer's FIN is counted as received
		k.Consumed--
	}
	return k
}
