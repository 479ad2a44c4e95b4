package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
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
		if os.Getenv("MAINSTAY_KTLS") != "" {
			t.Fatal(err)
		}
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

// suites are those of TLS 1.3: crypto/tls lets nobody choose, but does by what
// hardware and peer prefer, so that ours is a client of records.
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
		if _, _, bits := c.row().Published(); bits&noteAtRest == 0 {
			t.Error("it is not noted as at rest")
		}
	})
	client.Close()
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
