package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
)

// activate starts the program as systemd does, with sockets from fd 3 on.
// The variables are the program's, LISTEN_PID=self its own number.
func activate(t *testing.T, sockets []activation.Socket, env []string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	const asSystemd = `if [ "$LISTEN_PID" = self ]; then LISTEN_PID=$$; fi; exec "$0" "$@"`
	cmd := exec.Command("sh", append([]string{"-c", asSystemd, "server"}, args...)...)
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	for _, s := range sockets {
		fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), s.Name)
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &stderr
}

func bind(t *testing.T, name, url string) activation.Socket {
	t.Helper()
	s, err := activation.Listen(name, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSocketsOfSystemdAreServedByName(t *testing.T) {
	dir := t.TempDir()
	sockets := []activation.Socket{
		bind(t, "text-echo", "unix://"+dir+"/t.sock"),
		bind(t, "six", "tcp6://[::1]:0"),
		bind(t, "echo", "tcp4://127.0.0.1:0"),
		bind(t, "udp-echo", "udp://127.0.0.1:0"),
		bind(t, "log", "unixgram://"+dir+"/d.sock"),
		bind(t, "seq", "unixpacket://"+dir+"/p.sock"),
	}
	address := "unix://" + dir + "/c.sock"
	cmd, stderr := activate(t, sockets, []string{"LISTEN_PID=self", "LISTEN_FDS=6", "LISTEN_FDNAMES=text-echo:six:echo:udp-echo:log:seq"},
		"run", "--workers", "1", "--serve", "six=echo", "--serve", "log=udp-echo", "--serve", "seq=echo", "--control", address)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer func() {
		cmd.Process.Signal(unix.SIGTERM)
		if err := <-exited; err != nil {
			t.Errorf("%v\n%s", err, stderr)
		}
		// They are systemd's: neither shut down nor unlinked.
		for _, s := range sockets {
			c := connect(t, s)
			c.Close()
		}
	}()
	for _, s := range sockets {
		// Before the service is ready too: the connection waits.
		c := connect(t, s)
		io.WriteString(c, "hello\n")
		got := make([]byte, 6)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello\n" {
			t.Errorf("%s: got %q, %v", s.Name, got, err)
		}
		c.Close()
	}
	client, err := control.NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	st, err := client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range st.Listeners {
		if !l.Inherited || l.Address != sockets[i].Address || l.Name != sockets[i].Name {
			t.Errorf("listener is %+v, want %+v", l, sockets[i])
		}
	}
}

func connect(t *testing.T, s activation.Socket) net.Conn {
	t.Helper()
	network, address, _ := strings.Cut(s.Address, "://")
	dialer := net.Dialer{}
	if network == "unixgram" {
		dialer.LocalAddr = &net.UnixAddr{Name: t.TempDir() + "/c", Net: network} // what is answered has a path
	}
	c, err := dialer.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestBrokenActivationEndsTheStartWithItsReason(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"number of sockets", []string{"LISTEN_PID=self", "LISTEN_FDS=x", "LISTEN_FDNAMES=echo"}, `activation: LISTEN_FDS="x": `},
		{"number of names", []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=echo:more"}, `activation: LISTEN_FDNAMES="echo:more": `},
		{"closed descriptor", []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=echo:discard"}, `fd 4`},
		{"unknown name", []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=other"}, `activation: fd 3: listener "other" is not known: want one of discard, echo`},
		{"process number", []string{"LISTEN_PID=no", "LISTEN_FDS=1", "LISTEN_FDNAMES=echo"}, `activation: LISTEN_PID="no": `},
		{"another's sockets", []string{"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=echo"}, `no listener: `},
		{"address to notify", []string{"NOTIFY_SOCKET=nonsense"}, `notify: NOTIFY_SOCKET="nonsense": `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cmd, stderr := activate(t, []activation.Socket{bind(t, "echo", "tcp://127.0.0.1:0")}, tt.env, "run", "--control", "unix://"+dir+"/c.sock")
			err := cmd.Wait()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 78 {
				t.Errorf("got %v, want exit code 78", err)
			}
			if !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("got  %s\nwant %s", stderr, tt.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "c.sock")); err == nil {
				t.Error("the control socket was left behind")
			}
		})
	}
}
