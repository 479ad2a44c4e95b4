package ktls

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// limit is for the machine, from its start to its end.
const limit = 8 * time.Minute

// tests are those of package conn that are about what the kernel seals.
var tests = []string{
	"Test.*Kernel.*",
	"TestTLSEchoesEveryByte",
	"TestRepliesOfATurnShareRecords",
	"TestEndsAreToldWithinTLS",
	"TestPeerThatBreaksTLSGetsAnAlert",
	"TestDataRightBehindTheHandshakeIsDelivered",
	"TestTLSConnectionTravels",
	"TestTLSConnectionGoesRoundAndRoundWhileItsClientTalks",
	"TestOpeningConnectionsMoveBeforeOrAfterTheirHandshake",
	"TestTLSConnectionThatRestsIsTakenUp",
	"TestSessionOverTLSThatRestsIsTakenUp",
}

func TestTLSOnAKernelThatSeals(t *testing.T) {
	if os.Getenv("MAINSTAY_KTLS_TESTS") == "" {
		t.Skip("MAINSTAY_KTLS_TESTS is not set")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("no machine can be emulated: %v", err)
	}
	kernel := kernelDir(t)
	dir := t.TempDir()
	for program, pkg := range map[string][]string{"init": {"build", "./init"}, "conn.test": {"test", "-c", "../../pkg/conn"}, "worker.test": {"test", "-c", "../../pkg/worker"}} {
		args := append(pkg[:len(pkg)-1:len(pkg)-1], "-o", filepath.Join(dir, program), pkg[len(pkg)-1])
		build := exec.Command("go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	archive := new(cpio)
	archive.dir("dev")
	archive.dir("modules")
	archive.dir("etc")
	archive.console("dev/console")
	modules, err := filepath.Glob(filepath.Join(kernel, "modules", "*.ko"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("no modules in %s: %v", kernel, err)
	}
	for _, m := range modules {
		archive.copy(t, "modules/"+filepath.Base(m), m)
	}
	archive.copy(t, "init", filepath.Join(dir, "init"))
	archive.copy(t, "conn.test", filepath.Join(dir, "conn.test"))
	archive.copy(t, "worker.test", filepath.Join(dir, "worker.test"))
	archive.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))
	archive.file("run", 0o644, fmt.Appendf(nil, "/conn.test -test.run=^(%s)$ -test.v -test.timeout=%v\n/worker.test -test.run=^TestTLSConnectionsAreHandedOver.*/^talker$ -test.v -test.timeout=%v\n", strings.Join(tests, "|"), limit/2, limit/3))
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, archive.end(), 0o644); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	// Emulated, since a machine inside of a machine is often not to be had.
	machine := exec.CommandContext(ctx, qemu, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nographic", "-no-reboot", "-nic", "none", "-kernel", filepath.Join(kernel, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1")
	machine.WaitDelay = 10 * time.Second
	out, err := machine.CombinedOutput()
	out = bytes.ReplaceAll(out, []byte("\r"), nil)
	if err != nil || ctx.Err() != nil {
		t.Errorf("qemu: %v, %v", err, ctx.Err())
	}
	text := string(out)
	for _, want := range []string{
		"init: /conn.test: <nil>\n",
		"init: /worker.test: <nil>\n",                 // from process to process
		"--- PASS: TestKernelSealsWhatTheClientReads", // and was not skipped
		"--- PASS: TestKeysOfTheKernelChangeWhenThePeerAsks",
		"--- PASS: TestTLSConnectionTravels",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the machine does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it says:\n%s", text)
	}
}

// kernelDir is where kernel.sh has put a kernel.
func kernelDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("MAINSTAY_KTLS_KERNEL")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skipf("no place for a kernel: %v", err)
		}
		dir = filepath.Join(cache, "mainstay", "kernel-ktls")
	}
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err != nil {
		t.Skipf("no kernel (test/ktls/kernel.sh %s gets one): %v", dir, err)
	}
	return dir
}

// cpio is an archive that a kernel unpacks, of the format "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
type cpio struct {
	b     []byte
	files int
}

func (c *cpio) add(name string, mode, major, minor int, data []byte) {
	c.files++
	c.b = append(c.b, "070701"...)
	for _, n := range []int{c.files, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0} {
		c.b = fmt.Appendf(c.b, "%08x", n)
	}
	c.b = append(append(c.b, name...), 0)
	c.pad()
	c.b = append(c.b, data...)
	c.pad()
}

func (c *cpio) pad() {
	for len(c.b)%4 != 0 {
		c.b = append(c.b, 0)
	}
}

func (c *cpio) dir(name string)                         { c.add(name, 0o040755, 0, 0, nil) }
func (c *cpio) console(name string)                     { c.add(name, 0o020600, 5, 1, nil) }
func (c *cpio) file(name string, mode int, data []byte) { c.add(name, 0o100000|mode, 0, 0, data) }

func (c *cpio) copy(t *testing.T, name, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	c.file(name, 0o755, data)
}

func (c *cpio) end() []byte {
	c.add("TRAILER!!!", 0, 0, 0, nil)
	return c.b
}
