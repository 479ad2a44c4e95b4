package proc

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestAParentIsFoundBehindAnyName(t *testing.T) {
	for _, c := range []struct {
		name, stat string
		want       int
		bad        bool
	}{
		{"plain", "12 (sh) S 7 12 12 0 -1\n", 7, false},
		{"blanks and parentheses", "12 (a) S 1 (b) S 9 12 12\n", 9, false},
		{"cut off", "12 (sh) S", 0, true},
		{"no name", "12 S 7", 0, true},
		{"empty", "", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseParent([]byte(c.stat))
			if got != c.want || (err != nil) != c.bad {
				t.Errorf("got %d, %v, want %d, an error: %v", got, err, c.want, c.bad)
			}
		})
	}
}

func TestFieldsAreReadFromTheKernelsFormats(t *testing.T) {
	if d, err := parseSchedstat([]byte("13640207 6879232 51\n")); err != nil || d != 13640207 {
		t.Errorf("schedstat: got %d, %v", d, err)
	}
	if _, err := parseSchedstat([]byte("13640207\n")); err == nil {
		t.Error("schedstat with one number: got no error")
	}
	m, err := parseRollup([]byte("5581-7ffc ---p 00000000 00:00 0 [rollup]\nRss:    3000 kB\nPss:    1500 kB\nPss_Dirty: 9 kB\nPss_Anon: 1000 kB\nPss_File: 300 kB\nPss_Shmem: 200 kB\n"))
	if err != nil || m != (Memory{RSS: 3000 << 10, PSS: 1500 << 10, Anon: 1000 << 10, File: 300 << 10, Shared: 200 << 10}) {
		t.Errorf("smaps_rollup: got %+v, %v", m, err)
	}
	if _, err := parseRollup([]byte("Rss:    3000 kB\n")); err == nil {
		t.Error("smaps_rollup without Pss: got no error")
	}
	d, err := parseBusy([]byte("cpu  100 20 3 99999 88888 7 8 5555 4444 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if err != nil || d != 1380*time.Millisecond {
		t.Errorf("stat: got %v, %v, want 1.38s", d, err)
	}
	if _, err := parseBusy([]byte("cpu0 1 1 1 1 1 1 1 1\n")); err == nil {
		t.Error("stat without a line of all CPUs: got no error")
	}
}

func TestSpentIsTheDifferenceOfEachThread(t *testing.T) {
	earlier := &Usage{threads: map[int]time.Duration{1: 10, 2: 20, 5: 50}}
	later := &Usage{
		threads: map[int]time.Duration{1: 11, 2: 25, 3: 7, 5: 52},
		byPID:   map[int][]int{1: {1, 2}, 3: {3}, 5: {5}},
	}
	if got, want := later.Since(earlier), (Spent{Total: 15, Busiest: 7, Complete: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	delete(later.threads, 5)
	later.byPID[5] = nil
	if got := later.Since(earlier); got.Complete {
		t.Errorf("a thread has ended: got %+v, want it incomplete", got)
	}
}

func TestAProcessIsReadWhileItLives(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	tree, err := Tree(os.Getpid())
	if err != nil || tree[0] != os.Getpid() || !slices.Contains(tree, pid) {
		t.Errorf("tree is %v, %v, want this process, %d, and its child %d", tree, err, os.Getpid(), pid)
	}
	if u, err := UsageOf(tree); err != nil || u.Since(&Usage{}).Total <= 0 {
		t.Errorf("usage is %+v, %v, want more than none", u, err)
	}
	if m, err := MemoryOf([]int{pid}); err != nil || m.PSS == 0 || m.RSS < m.PSS {
		t.Errorf("memory is %+v, %v, want RSS >= PSS > 0", m, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Tree(pid); err == nil {
		t.Error("the tree of a process that has ended: got no error")
	}
	if _, err := MemoryOf([]int{pid}); err == nil {
		t.Error("the memory of a process that has ended: got no error")
	}
	if u, err := UsageOf([]int{pid}); err != nil || len(u.threads) != 0 {
		t.Errorf("the usage of a process that has ended: %+v, %v, want no threads", u, err)
	}
	if a, err := Busy(); err != nil || a <= 0 {
		t.Errorf("busy is %v, %v", a, err)
	}
}

func TestABoundThreadStartsWhatIsBoundToo(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := BindSelf(all); err != nil {
			t.Error(err)
		}
	}()
	last := all[len(all)-1:]
	if err := BindThread(last); err != nil {
		t.Fatal(err)
	}
	if got, err := Allowed(); err != nil || !slices.Equal(got, last) {
		t.Errorf("allowed are %v, %v, want %v", got, err, last)
	}
	out, err := exec.Command("grep", "Cpus_allowed_list", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), "Cpus_allowed_list:\t"+strconv.Itoa(last[0])+"\n"; got != want {
		t.Errorf("child: got %q, want %q", got, want)
	}
}
