package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/mainstay-go/mainstay/pkg/keeper"
	"golang.org/x/sys/unix"
)

// kernelTLS is what the probe says of this machine.
var kernelTLS = sync.OnceValue(ProbeKernelTLS)

// needsKernelTLS skips a test where it cannot be.
func needsKernelTLS(t *testing.T) {
	t.Helper()
	if err := kernelTLS(); err != nil {
		t.Skip(err)
	}
}

func TestProbeSaysWhyThereIsNoTLSInTheKernel(t *testing.T) {
	err := ProbeKernelTLS()
	if err == nil {
		return // then all tests of TLS are with it
	}
	if !errors.Is(err, ErrNoKernelTLS) || !strings.Contains(err.Error(), "setsockopt") {
		t.Errorf("got %v", err)
	}
}

func TestWithoutTLSInTheKernelItIsAsWithoutTheOption(t *testing.T) {
	if kernelTLS() == nil {
		t.Skip("this kernel has TLS")
	}
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.KernelTLS = true
	nc, c := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	write(t, client, "hello\n")
	expect(t, client, "hello\n")
	r.do(func() {
		if l := c.layered(); l.kernel || l.toKernel {
			t.Error("the kernel is believed to seal")
		}
	})
	client.Close()
}

func TestSocketWithoutTLSInTheKernelSaysSo(t *testing.T) {
	_, fd, _ := tcpPair(t, "tcp4", "127.0.0.1:0")
	defer unix.Close(fd)
	key, err := kernelHas(fd, make([]byte, 56))
	if key != nil || err != nil {
		t.Errorf("got %x, %v", key, err)
	}
}

func TestKernelSealsWhatTheClientReads(t *testing.T) {
	needsKernelTLS(t)
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	cfg.Limits = Limits{SendHard: 64 << 20, MaxMessage: 1 << 20}
	nc, c := r.tcp(cfg)
	client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
	for _, n := range []int{1, 16383, 16384, 16385, 100000} {
		m := string(bytes.Repeat([]byte{'x'}, n-1)) + "\n"
		go fmt.Fprint(client, m)
		expect(t, client, m)
	}
	r.until("what is counted is what the kernel counts", func() bool {
		k, err := keeper.Counts(int(c.fd))
		return err == nil && k.Written == c.tx.Load() && k.Consumed == c.rx.Load()
	})
	r.do(func() {
		l := c.layered()
		if !l.kernel {
			t.Error("the kernel does not seal")
			return
		}
		if err := c.findKernel(l, true); err != nil {
			t.Error(err)
		}
		l.tls.Sealed()
		if err := c.findKernel(l, true); !errors.Is(err, ErrState) {
			t.Errorf("with another number than the kernel's: %v", err)
		}
		l.tls.Unsealed()
		if _, _, bits := c.row().Published(); bits&noteAtRest == 0 {
			t.Error("it is not noted as at rest")
		}
	})
	client.Close()
}

func TestWhatTheKernelHasSealedComesBeforeTheEnd(t *testing.T) {
	needsKernelTLS(t)
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r := newRig(t)
			cfg := secured(t, r.config(funcs{message: echo(t)}, true))
			cfg.Limits = Limits{SendHigh: 1 << 20, SendHard: 64 << 20, Close: patience}
			nc, c := r.tcp(cfg)
			client := handshaken(t, nc, clientTLS(tls.VersionTLS13))
			write(t, client, "hello\n")
			expect(t, client, "hello\n")
			m := bytes.Repeat([]byte{'x'}, 6<<20+i*5000)
			if err := c.Send(m); err != nil {
				t.Fatal(err)
			}
			r.until("the peer is behind", func() bool { return c.blocked && c.layered().kernel })
			c.Close(nil)
			got, err := io.ReadAll(client) // until close_notify: without it that is an error
			if err != nil || len(got) != len(m) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(m))
			}
			if n, err := nc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("behind close_notify: %d bytes, %v", n, err)
			}
			client.Close()
		})
	}
}

func TestKeysOfTheKernelChangeWhenThePeerAsks(t *testing.T) {
	needsKernelTLS(t)
	r := newRig(t)
	cfg := secured(t, r.config(funcs{message: echo(t)}, true))
	nc, c := r.tcp(cfg)
	client := newRecordClient(t, nc, clientTLS(tls.VersionTLS13))
	for i := range 5 {
		m := fmt.Sprintf("message %d\n", i)
		client.write(client.seal(m))
		client.expect(m)
		client.update()
	}
	r.do(func() {
		if l := c.layered(); !l.kernel || l.tls.Updates() < 8 {
			t.Errorf("kernel %v, %d updates, want 8", l.kernel, l.tls.Updates())
		}
	})
	nc.Close()
}
