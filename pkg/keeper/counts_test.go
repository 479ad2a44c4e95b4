package keeper

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair is a connection: a client, and the server's end, which is counted.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	c, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c.SetDeadline(time.Now().Add(patience))
	s.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// control calls f with the descriptor of c.
func control(t *testing.T, c rawConn, f func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

func countsOf(t *testing.T, c rawConn) (k Kernel, err error) {
	t.Helper()
	control(t, c, func(fd int) { k, err = Counts(fd) })
	return k, err
}

func send(t *testing.T, c net.Conn, n int) {
	t.Helper()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, n int) {
	t.Helper()
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

func setOption(t *testing.T, c rawConn, level, option, value int) {
	t.Helper()
	control(t, c, func(fd int) {
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			t.Fatal(err)
		}
	})
}

func infoOf(t *testing.T, c rawConn) (info unix.TCPInfo) {
	t.Helper()
	control(t, c, func(fd int) {
		got, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		info = *got
	})
	return info
}

// TestKernelCountsWhatAProcessHasReadAndWritten plays both ends. Each case
// returns what the server's process has noted of itself, and the verdict it
// deserves; Unread and Unacked of want are compared if they are not below 0.
func TestKernelCountsWhatAProcessHasReadAndWritten(t *testing.T) {
	const whatever, many = -1, 32 << 10 // many is less than any window
	tests := []struct {
		name    string
		play    func(t *testing.T, client, server *net.TCPConn) (want Kernel)
		verdict Verdict
	}{
		{
			name: "nothing has happened",
			play: func(*testing.T, *net.TCPConn, *net.TCPConn) Kernel { return Kernel{State: Established} },
		},
		{
			name: "part of the input was read",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 1000)
				receive(t, server, 300)
				return Kernel{Position: Position{Consumed: 300}, Unread: 700, State: Established}
			},
		},
		{
			name: "input was looked at, and thrown away",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 1000)
				receive(t, server, 300)
				control(t, server, func(fd int) {
					buf := make([]byte, 500)
					unix.Recvfrom(fd, buf, unix.MSG_PEEK)
					unix.Recvfrom(fd, buf[:100], unix.MSG_TRUNC)
				})
				return Kernel{Position: Position{Consumed: 400}, Unread: 600, State: Established}
			},
		},
		{
			name: "request and reply",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 10)
				receive(t, server, 10)
				send(t, server, 777)
				return Kernel{Position: Position{Consumed: 10, Written: 777}, State: Established}
			},
		},
		{
			name: "large unread input, and a peer that has more",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				fill(t, client)
				receive(t, server, 12345)
				return Kernel{Position: Position{Consumed: 12345}, Unread: whatever, State: Established}
			},
		},
		{
			name: "large output to a peer that does not read, probed for its window",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				sum := fill(t, server)
				eventually(t, "a probe of the window", func() bool { return infoOf(t, server).Backoff > 0 })
				return Kernel{Position: Position{Written: uint64(sum)}, Unacked: whatever, State: Established}
			},
		},
		{
			name: "large output, read in part",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				sum := fill(t, server)
				receive(t, client, sum/2)
				return Kernel{Position: Position{Written: uint64(sum)}, Unacked: whatever, State: Established}
			},
		},
		{
			name: "keep-alive probes from both ends",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 5)
				receive(t, server, 5)
				send(t, server, 6)
				receive(t, client, 6)
				for _, c := range []rawConn{client, server} {
					setOption(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
					setOption(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
				}
				before := infoOf(t, server)
				eventually(t, "keep-alive probes", func() bool {
					now := infoOf(t, server)
					return now.Segs_in >= before.Segs_in+2 && now.Segs_out >= before.Segs_out+2
				})
				return Kernel{Position: Position{Consumed: 5, Written: 6}, State: Established}
			},
		},
		{
			name: "peer's FIN after unread input",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 1000)
				client.CloseWrite()
				receive(t, server, 400)
				return Kernel{Position: Position{Consumed: 400}, Unread: 600, State: CloseWait}
			},
		},
		{
			name: "peer's FIN, all but it read",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 1000)
				receive(t, server, 1000)
				client.CloseWrite()
				return Kernel{Position: Position{Consumed: 1000}, State: CloseWait}
			},
		},
		{
			name: "peer's FIN, read",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 1000)
				client.CloseWrite()
				if n, err := io.Copy(io.Discard, server); n != 1000 || err != nil {
					t.Fatalf("read %d, %v", n, err)
				}
				return Kernel{Position: Position{Consumed: 1000}, State: CloseWait}
			},
		},
		{
			name: "nothing but the peer's FIN",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				client.CloseWrite()
				return Kernel{State: CloseWait}
			},
		},
		{
			name: "half-closed by the peer, and answered",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 10)
				client.CloseWrite()
				io.Copy(io.Discard, server)
				send(t, server, 5000)
				receive(t, client, 5000)
				return Kernel{Position: Position{Consumed: 10, Written: 5000}, State: CloseWait}
			},
		},
		{
			name: "half-closed by the peer, which does not read",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				client.CloseWrite()
				sum := fill(t, server)
				return Kernel{Position: Position{Written: uint64(sum)}, Unacked: whatever, State: CloseWait}
			},
		},
		{
			name: "urgent data, in line",
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				setOption(t, server, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
				send(t, client, 3)
				receive(t, server, 3)
				sendUrgent(t, client)
				return Kernel{Position: Position{Consumed: 3}, Unread: 1, State: Established}
			},
		},
		{
			name:    "urgent data, out of line: the kernel's counts are no good",
			verdict: Reading,
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 3)
				receive(t, server, 3)
				sendUrgent(t, client)
				return Kernel{Position: Position{Consumed: 4}, State: Established}
			},
		},
		{
			name:    "shut down by us",
			verdict: Ending,
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				server.CloseWrite()
				return Kernel{Position: Position{Written: 1}, State: FinWait2}
			},
		},
		{
			name:    "shut down by us after the peer, which does not read",
			verdict: Ending,
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				client.CloseWrite()
				eventually(t, "the peer's FIN", func() bool { return State(infoOf(t, server).State) == CloseWait })
				sum := fill(t, server)
				server.CloseWrite()
				return Kernel{Position: Position{Written: uint64(sum) + 1}, Unacked: whatever, State: LastAck}
			},
		},
		{
			name:    "reset by the peer",
			verdict: Broken,
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				client.SetLinger(0)
				client.Close()
				return Kernel{State: Closed}
			},
		},
		{
			name:    "reset by the peer, which had sent something",
			verdict: Broken,
			play: func(t *testing.T, client, server *net.TCPConn) Kernel {
				send(t, client, 100)
				receive(t, server, 100)
				client.SetLinger(0)
				client.Close()
				return Kernel{Position: Position{Consumed: 100}, State: Closed}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client, server := tcpPair(t)
			want := tt.play(t, client, server)
			var got Kernel
			defer func() { // it says more than "not within"
				if t.Failed() {
					t.Logf("got %+v, want %+v", got, want)
				}
			}()
			// Acknowledgements and FINs are still on their way.
			eventually(t, "the counts", func() bool {
				var err error
				if got, err = countsOf(t, server); err != nil {
					t.Fatal(err)
				}
				compared := got
				if want.Unread == whatever {
					compared.Unread = whatever
				}
				if want.Unacked == whatever {
					compared.Unacked = whatever
				}
				return compared == want
			})
			if want.Unread == whatever && got.Unread < many || want.Unacked == whatever && got.Unacked < many {
				t.Errorf("%d bytes unread and %d unacknowledged, want many", got.Unread, got.Unacked)
			}
			noted := want.Position
			if tt.verdict == Reading {
				noted.Consumed = 3 // the urgent byte was not read
			}
			if verdict := Judge(noted, got); verdict != tt.verdict {
				t.Errorf("verdict %v, want %v", verdict, tt.verdict)
			}
			// What a process may have noted: less than it has read, and what it
			// was about to write.
			for _, noted := range []Position{noted, {noted.Consumed, noted.Written + 1}, {noted.Consumed, noted.Written - 1}, {noted.Consumed / 2, noted.Written}} {
				control(t, server, func(fd int) {
					if verdict, err := Examine(fd, noted); err != nil || verdict != Judge(noted, got) {
						t.Errorf("examined with %+v noted: %v, %v; want %v", noted, verdict, err, Judge(noted, got))
					}
				})
			}
		})
	}
}

func sendUrgent(t *testing.T, c rawConn) {
	t.Helper()
	control(t, c, func(fd int) {
		if err := unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCountsOfAConnectedSocketStartWithItsSYN(t *testing.T) {
	client, server := tcpPair(t)
	send(t, client, 10)
	receive(t, server, 10)
	var got Kernel
	eventually(t, "the acknowledgement", func() bool {
		var err error
		if got, err = countsOf(t, client); err != nil {
			t.Fatal(err)
		}
		return got.Unacked == 0
	})
	if want := (Kernel{Position: Position{Written: 11}, State: Established}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestCountsAreNeverWrongWhileThePeerSends counts a connection into which the
// peer pours all it can. Nobody reads, so 0 bytes are consumed, whenever the
// numbers stand still.
func TestCountsAreNeverWrongWhileThePeerSends(t *testing.T) {
	client, server := tcpPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		chunk := make([]byte, 1000)
		for {
			if _, err := client.Write(chunk); err != nil {
				return
			}
		}
	}()
	last, grown, still := 0, 0, 0
	for deadline := time.Now().Add(patience); last == 0 || still < 1000; {
		if time.Now().After(deadline) {
			t.Fatalf("the window is not full within %v", patience)
		}
		k, err := countsOf(t, server)
		switch {
		case errors.Is(err, ErrUnsettled):
			continue
		case err != nil:
			t.Fatal(err)
		case k.Consumed != 0:
			t.Fatalf("consumed %d, unread %d; nothing was read", k.Consumed, k.Unread)
		}
		if still++; k.Unread != last {
			last, still = k.Unread, 0
			grown++
		}
	}
	client.Close() // ends the write that waits
	<-done
	t.Logf("%d bytes came, seen to grow %d times", last, grown)
}

func TestOneLookTellsOfRestOnlyWhereNothingGoesOn(t *testing.T) {
	noted := Position{Consumed: 10, Written: 20}
	for _, tt := range []struct {
		name string
		make func(info *unix.TCPInfo)
		want bool
	}{
		{name: "all was read and acknowledged", make: func(*unix.TCPInfo) {}, want: true},
		{name: "more has come", make: func(info *unix.TCPInfo) { info.Bytes_received++ }},
		{name: "less has come", make: func(info *unix.TCPInfo) { info.Bytes_received-- }},
		{name: "more was written", make: func(info *unix.TCPInfo) { info.Bytes_acked++ }},
		{name: "less was written", make: func(info *unix.TCPInfo) { info.Bytes_acked-- }},
		{name: "a segment is under way", make: func(info *unix.TCPInfo) { info.Unacked = 1 }},
		{name: "something was not sent", make: func(info *unix.TCPInfo) { info.Notsent_bytes = 1 }},
		{name: "the peer has ended", make: func(info *unix.TCPInfo) { info.State = uint8(CloseWait) }},
		{name: "it is broken", make: func(info *unix.TCPInfo) { info.State = uint8(Closed) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := unix.TCPInfo{State: uint8(Established), Bytes_received: 10, Bytes_acked: 20}
			tt.make(&info)
			if got := rests(&info, noted); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// TestExamineIsNeverWrongWhileThePeerSends has a process killed at any instant
// while the peer sends and ends: it has read as much as it has
// noted, or one byte more.
func TestExamineIsNeverWrongWhileThePeerSends(t *testing.T) {
	for i := range 200 {
		client, server := tcpPair(t)
		read := 5 + i%2
		send(t, client, read)
		receive(t, server, read)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range i % 7 {
				client.Write([]byte("more"))
			}
			client.CloseWrite()
		}()
		for over := false; !over; {
			select {
			case <-done:
				over = true // once more
			default:
			}
			want := Boundary
			if read != 5 {
				want = Reading
			}
			control(t, server, func(fd int) {
				v, err := Examine(fd, Position{Consumed: 5})
				if err != nil && !errors.Is(err, ErrUnsettled) || err == nil && v != want {
					t.Fatalf("round %d: %v, %v; want %v", i, v, err, want)
				}
			})
		}
		client.Close()
		server.Close()
	}
}

func TestOnlyTCPIsCounted(t *testing.T) {
	socket := func(domain, kind, protocol int) func(t *testing.T) int {
		return func(t *testing.T) int {
			fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
			if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EAFNOSUPPORT) {
				t.Skipf("this kernel has no such socket: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	tests := []struct {
		name string
		open func(t *testing.T) int
		want error // nil: it is counted
	}{
		{name: "unix stream", open: socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), want: ErrNotTCP},
		{name: "UDP", open: socket(unix.AF_INET, unix.SOCK_DGRAM, 0), want: ErrNotTCP},
		{name: "MPTCP", open: socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), want: ErrNotTCP},
		{name: "TCP, never connected", open: socket(unix.AF_INET, unix.SOCK_STREAM, 0)},
		{name: "TCP over IPv6, never connected", open: socket(unix.AF_INET6, unix.SOCK_STREAM, 0)},
		{
			name: "a listener",
			open: func(t *testing.T) int {
				fd := socket(unix.AF_INET, unix.SOCK_STREAM, 0)(t)
				if err := unix.Listen(fd, 1); err != nil {
					t.Fatal(err)
				}
				return fd
			},
			want: unix.EINVAL,
		},
		{
			name: "no socket",
			open: func(t *testing.T) int {
				fd, err := unix.MemfdCreate("none", unix.MFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				return fd
			},
			want: unix.ENOTSOCK,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fd := tt.open(t)
			defer unix.Close(fd)
			k, err := Counts(fd)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%+v, %v; want %v", k, err, tt.want)
			}
			if err == nil && (k.State != Closed || Judge(k.Position, k) != Broken) {
				t.Errorf("%+v, %v; want closed and broken", k, Judge(k.Position, k))
			}
			if v, err := Examine(fd, k.Position); !errors.Is(err, tt.want) || err == nil && v != Broken {
				t.Errorf("examined: %v, %v; want broken, or %v", v, err, tt.want)
			}
		})
	}
}

// TestConnectionsOfFastOpenAreCounted needs a network of its own, because
// the setting is the network's.
func TestConnectionsOfFastOpenAreCounted(t *testing.T) {
	p := launch(t, "fastopen")
	p.cmd.SysProcAttr = newNamespace(unix.CLONE_NEWNET)
	if err := p.run(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("network namespaces are not permitted here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	for p.out.Scan() {
		line := p.out.Text()
		switch {
		case line == "end":
			return
		case strings.HasPrefix(line, "skip "):
			t.Skip(line)
		case !strings.HasPrefix(line, "ok "):
			t.Error(line)
		default:
			t.Log(line)
		}
	}
	t.Error("the helper has not come to its end")
}

// playFastOpen prints a line for each thing that it has found.
func playFastOpen() {
	if err := fastOpenNetwork(); err != nil {
		say("skip TCP Fast Open cannot be had here: %v", err)
		return
	}
	for _, tt := range []struct {
		name    string
		ending  bool // the client's FIN follows at once
		read    int
		want    Kernel
		verdict Verdict
	}{
		{name: "data with the SYN, unread", want: Kernel{Unread: 100, State: Established, FastOpen: true}},
		{name: "data with the SYN, read in part", read: 40, want: Kernel{Position: Position{Consumed: 40}, Unread: 60, State: Established, FastOpen: true}},
		{name: "data with the SYN, and an end", ending: true, read: 40, want: Kernel{Position: Position{Consumed: 40}, Unread: 60, State: CloseWait, FastOpen: true}, verdict: Uncertain},
	} {
		got, err := fastOpen(tt.want, tt.ending, tt.read)
		verdict := Judge(Position{Consumed: uint64(tt.read)}, got)
		if err != nil || got != tt.want || verdict != tt.verdict {
			say("%s: got %+v %v %v, want %+v %v", tt.name, got, verdict, err, tt.want, tt.verdict)
			continue
		}
		say("ok %s: %+v", tt.name, got)
	}
	say("end")
}

// fastOpenNetwork raises the loopback interface and allows data in a SYN
// without a cookie: ip-sysctl, tcp_fastopen.
func fastOpenNetwork() error {
	const client, server, clientWithoutCookie, serverWithoutCookie = 1, 2, 4, 0x200
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return os.NewSyscallError("ioctl SIOCSIFFLAGS", err)
	}
	setting := strconv.Itoa(client | server | clientWithoutCookie | serverWithoutCookie)
	return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte(setting), 0)
}

// fastOpen sends 100 bytes with a SYN and counts until the kernel says what is
// wanted, or for a second.
func fastOpen(want Kernel, ending bool, read int) (Kernel, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	config.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 8) })
		return err
	}
	l, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return Kernel{}, err
	}
	defer l.Close()
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Kernel{}, err
	}
	defer unix.Close(client)
	to := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Sendto(client, make([]byte, 100), unix.MSG_FASTOPEN, to); err != nil {
		return Kernel{}, err
	}
	if ending {
		if err := unix.Shutdown(client, unix.SHUT_WR); err != nil {
			return Kernel{}, err
		}
	}
	server, err := l.Accept()
	if err != nil {
		return Kernel{}, err
	}
	defer server.Close()
	if _, err := io.ReadFull(server, make([]byte, read)); err != nil {
		return Kernel{}, err
	}
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		return Kernel{}, err
	}
	var got Kernel
	for deadline := time.Now().Add(time.Second); got != want && err == nil && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
		if controlErr := raw.Control(func(fd uintptr) { got, err = Counts(int(fd)) }); controlErr != nil {
			return got, controlErr
		}
	}
	return got, err
}

func TestStatesHaveNames(t *testing.T) {
	for s := Established; s <= newSynReceived; s++ {
		if name := s.String(); name == "" || strings.HasPrefix(name, "state") {
			t.Errorf("state %d is %q", uint8(s), name)
		}
	}
	if got := State(99).String(); got != "state 99" {
		t.Errorf("state 99 is %q", got)
	}
}
