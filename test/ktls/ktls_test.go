package ktls

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// limit is for the machine, from its start to its end.
const limit = 10 * time.Minute

// connTests are those of package conn that are about what the kernel seals.
var connTests = []string{
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

// serverTests are those of the whole program: with reloads, moves and kills.
var serverTests = []string{
	"TestKernelGoesOnSealingOverReloadsMovesAndDeaths",
	"TestOpenSSLOutlivesTheDeathOfItsWorker",
	"TestHalfARecordIsReadByTheNextUnlessTheDeadHasReadIt",
	"TestConnectionsAtABoundaryOutliveTheDeathOfTheirWorker",
}

// program is a test binary that runs in the machine.
type program struct {
	pkg, run string
	wants    []string // lines of its output; a test that was skipped is told otherwise
}

var programs = map[string]program{
	"conn.test": {"../../pkg/conn", alternatives(connTests), []string{
		"--- PASS: TestKernelSealsWhatTheClientReads",
		"--- PASS: TestKeysOfTheKernelChangeWhenThePeerAsks",
		"--- PASS: TestTLSConnectionTravels",
	}},
	// From process to process.
	"worker.test": {"../../pkg/worker", "^TestTLSConnectionsAreHandedOver.*/^talker$", []string{"--- PASS: TestTLSConnectionsAreHandedOver"}},
	"server.test": {"../../cmd/server", alternatives(serverTests) + "/sealed", []string{
		"--- PASS: TestKernelGoesOnSealingOverReloadsMovesAndDeaths",
		"    --- PASS: TestHalfARecordIsReadByTheNextUnlessTheDeadHasReadIt/sealed,_read_false",
	}},
}

func alternatives(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }

func TestTLSOnAKernelThatSeals(t *testing.T) {
	if os.Getenv("MAINSTAY_KTLS_TESTS") == "" {
		t.Skip("boots a machine in qemu; MAINSTAY_KTLS_TESTS=1, as `make test` sets it, runs it")
	}
	if runtime.GOARCH != "amd64" {
		t.Skipf("the machine is amd64, which qemu cannot emulate truly on %s with several processors", runtime.GOARCH)
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("no machine can be emulated: %v", err)
	}
	kernel := kernelDir(t)
	dir := t.TempDir()
	build := func(args ...string) {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	build("build", "-o", filepath.Join(dir, "init"), "./init")
	for name, p := range programs {
		build("test", "-c", "-o", filepath.Join(dir, name), p.pkg)
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
	archive.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))
	var script []byte
	wants := []string{}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		p := programs[name]
		archive.copy(t, name, filepath.Join(dir, name))
		script = fmt.Appendf(script, "/%s -test.run=%s -test.v -test.short -test.timeout=%v\n", name, p.run, limit/3)
		wants = append(append(wants, p.wants...), fmt.Sprintf("init: /%s: <nil>\n", name))
	}
	if openSSL(t, archive) {
		wants = append(wants, "    --- PASS: TestOpenSSLOutlivesTheDeathOfItsWorker/sealed")
	}
	archive.file("run", 0o644, script)
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
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("the machine does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it says:\n%s", text)
		return
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "--- ") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
}

// openSSL puts this host's openssl into the archive, and what it is linked to: a
// client that offers the suites one by one. It returns false if there is none.
func openSSL(t *testing.T, archive *cpio) bool {
	t.Helper()
	file, err := exec.LookPath("openssl")
	if err != nil {
		return false
	}
	needs, err := exec.Command("ldd", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ldd %s: %v: %s", file, err, needs)
	}
	made := map[string]bool{".": true}
	archive.tree(made, "bin")
	archive.copy(t, "bin/openssl", file)
	for line := range strings.Lines(string(needs)) { // NAME => FILE (ADDRESS), or FILE (ADDRESS)
		for _, word := range strings.Fields(line) {
			if filepath.IsAbs(word) {
				name := strings.TrimPrefix(word, "/")
				archive.tree(made, filepath.Dir(name))
				archive.copy(t, name, word)
			}
		}
	}
	return true
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

func (c *cpio) dir(name string) { c.add(name, 0o040755, 0, 0, nil) }

// tree is dir for a directory and those above it that are not made yet.
func (c *cpio) tree(made map[string]bool, name string) {
	if made[name] {
		return
	}
	made[name] = true
	c.tree(made, filepath.Dir(name))
	c.dir(name)
}

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
