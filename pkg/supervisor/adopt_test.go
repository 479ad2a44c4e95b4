package supervisor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/activation"
	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/signals"
)

// shelf is a service manager's store.
type shelf struct {
	mu  sync.Mutex
	all []activation.Stored // newest first
}

func (m *shelf) Store(name string, fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append([]activation.Stored{{Name: name, FD: own}}, m.all...)
	return nil
}

func (m *shelf) Unstore(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rest []activation.Stored
	for _, d := range m.all {
		if d.Name == name {
			unix.Close(d.FD)
		} else {
			rest = append(rest, d)
		}
	}
	m.all = rest
	return nil
}

func (m *shelf) Barrier(time.Duration) error { return nil }

// handOut is what the next process is started with.
func (m *shelf) handOut(t *testing.T) (out []activation.Stored) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.all {
		fd, err := unix.FcntlInt(uintptr(d.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, activation.Stored{Name: d.Name, FD: fd})
	}
	return out
}

func (m *shelf) names() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make(map[string]int)
	for _, d := range m.all {
		names[d.Name]++
	}
	return names
}

func (m *shelf) clear() {
	for name := range m.names() {
		m.Unstore(name)
	}
}

// handed keeps for a fake what osLauncher does for a worker.
func handed(f *fakes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.launching = func(o order) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		pid, err := unix.PidfdOpen(unix.Getpid(), 0)
		if err != nil {
			panic(err)
		}
		o.keep(storedControl, fds[0])
		o.keep(storedPidfd, pid)
		unix.Close(fds[0])
		unix.Close(fds[1])
		unix.Close(pid)
	}
}

// succession runs a supervisor, has it leave for another as at a restart or
// die where it is, and runs that other.
func succession(t *testing.T, settings Settings, behave func(*fake), during func(r *rig), dies bool, between func(m *shelf, st *savedState), after func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		shelf := &shelf{}
		defer shelf.clear()
		fakes := &fakes{behave: behave}
		handed(fakes)
		run := func(stored []activation.Stored) *rig {
			r := &rig{t: t, fakes: fakes, settings: &settings, ended: make(chan error, 1)}
			s, err := newSupervisor(Config{
				Name: "test", Executable: "/bin/true", Log: zap.NewNop(), Stored: stored,
				Sockets: []activation.Socket{{Name: "echo", FD: -1, Address: "tcp://127.0.0.1:1"}},
				Load:    func(map[string]string) (Settings, error) { return *r.settings, r.loadErr },
			}, fakes, newRelease)
			if err != nil {
				t.Fatal(err)
			}
			s.openStore(shelf)
			r.Supervisor = s
			ctx, cancel := context.WithCancel(t.Context())
			r.cancel = cancel
			go func() { r.ended <- s.run(ctx) }()
			synctest.Wait()
			return r
		}
		first := run(nil)
		during(first)
		synctest.Wait()
		// One that dies has said nothing: what it knew when all had settled
		// last is what the next one finds.
		_, last, err := openStateFile(first.saved.fd)
		if err != nil {
			t.Fatal(err)
		}
		first.post(signalled{signals.Restart})
		synctest.Wait()
		if dies {
			if err := first.saved.write(last); err != nil {
				t.Fatal(err)
			}
		}
		if between != nil {
			_, st, err := openStateFile(first.saved.fd)
			if err != nil {
				t.Fatal(err)
			}
			between(shelf, &st)
			if err := first.saved.write(st); err != nil {
				t.Fatal(err)
			}
		}
		first.cancel()
		stored := shelf.handOut(t)
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		second := run(stored)
		if second.epoch != 2 || second.board.Epoch().Load() != 2 {
			t.Errorf("epoch %d, want 2", second.epoch)
		}
		after(second)
		second.cancel()
		<-second.done
		for _, p := range fakes.every() {
			close(p.in)
		}
		synctest.Wait()
		if err := second.Close(); err != nil {
			t.Error(err)
		}
		if left := shelf.names(); len(left) > 0 {
			t.Errorf("after an orderly end the store has %v", left)
		}
	})
}

func (r *rig) look() control.Status {
	r.t.Helper()
	st, err := r.Status(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func pids(st control.Status) (all []int) {
	for _, w := range st.Pools[0].Workers {
		all = append(all, w.PID)
	}
	return all
}

func TestReadyWorkersAreAdoptedAsTheyAre(t *testing.T) {
	succession(t, quick, serve, func(*rig) {}, true, nil, func(r *rig) {
		if got := r.fakes.count(); got != 2 {
			t.Errorf("%d workers were launched, want the 2 of before", got)
		}
		if st := r.look(); st.State != control.StateServing || st.Generation != 1 || len(pids(st)) != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestRestartReplacesTheWorkersThatItHasAdopted(t *testing.T) {
	succession(t, quick, serve, func(*rig) {}, false, nil, func(r *rig) {
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		st := r.look()
		if st.State != control.StateServing || st.Generation != 2 || st.LastReload == nil || !st.LastReload.OK {
			t.Errorf("status %+v", st)
		}
		if got := r.fakes.count(); got != 4 {
			t.Errorf("%d workers were launched, want 2 and their successors", got)
		}
	})
}

func TestWorkersThatLeaveForARestartAreToldSoAndThoseOfAReloadAreNot(t *testing.T) {
	drains := make(chan link.Drain, 16)
	obedient := func(p *fake) {
		p.hello()
		p.order.said(link.Ready{})
		for m := range p.in {
			if d, ok := m.(link.Drain); ok {
				drains <- d
				p.order.said(link.Draining{})
				p.exit(Exit{})
				return
			}
		}
	}
	told := func(r *rig) (restarts, others int) {
		r.t.Helper()
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		for len(drains) > 0 {
			if d := <-drains; d.Restart {
				restarts++
			} else {
				others++
			}
		}
		return restarts, others
	}
	succession(t, quick, obedient, func(*rig) {}, false, nil, func(r *rig) {
		if restarts, others := told(r); restarts != 2 || others != 0 {
			t.Errorf("after a restart %d workers are told of it and %d are not, want 2 and 0", restarts, others)
		}
		if err := r.Supervisor.Reload(context.Background(), control.ReloadRequest{}, func(string) {}); err != nil {
			t.Error(err)
		}
		if restarts, others := told(r); restarts != 0 || others != 2 {
			t.Errorf("after a reload %d workers are told of a restart and %d are not, want 0 and 2", restarts, others)
		}
	})
	for len(drains) > 0 { // at the end of the service
		<-drains
	}
}

func TestDrainedSlotStaysEmptyUnderTheNextSupervisor(t *testing.T) {
	succession(t, quick, serve, func(r *rig) {
		if _, err := r.Supervisor.Drain(context.Background(), control.SlotRequest{Slot: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // fake time
	}, true, nil, func(r *rig) {
		if r.pool.slots[1].place != held {
			t.Errorf("slot 1 is %v", r.pool.slots[1].place)
		}
		if err := r.Supervisor.Resume(context.Background(), control.SlotRequest{Slot: 1}); err != nil {
			t.Error(err)
		}
	})
}

func TestWorkerThatWasNotReadyIsKilledAndReplaced(t *testing.T) {
	succession(t, quick, serve, func(r *rig) {
		r.fakes.set(mute)
		go r.Supervisor.Scale(context.Background(), control.ScaleRequest{N: 3})
		synctest.Wait()
	}, true, nil, func(r *rig) {
		r.fakes.set(serve)
		time.Sleep(time.Minute) // fake time: its successor was mute as well
		synctest.Wait()
		if st := r.look(); st.State != control.StateServing || len(pids(st)) != 3 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestWorkerOfWhichSomethingIsMissingGetsASuccessor(t *testing.T) {
	succession(t, quick, serve, func(*rig) {}, true, func(m *shelf, st *savedState) {
		m.Unstore(StorePrefix + numbered(storedControl, st.Workers[0].Incarnation))
	}, func(r *rig) {
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if got := r.fakes.count(); got != 3 {
			t.Errorf("%d workers were launched, want 3", got)
		}
		if st := r.look(); st.State != control.StateServing || len(pids(st)) != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestKeeperThatWasNotStoredIsFound(t *testing.T) {
	for _, tt := range []struct {
		name       string
		there      bool // it lives, and the seat has its number
		protection string
	}{
		{"it lives", true, protected},
		{"nobody knows it", false, unprotectedAs + "its keeper is not known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sleep, err := exec.LookPath("sleep")
			if err != nil {
				t.Fatal(err)
			}
			name := t.TempDir() + "/" + keeperName + " test"
			if err := os.Symlink(sleep, name); err != nil {
				t.Fatal(err)
			}
			pidfd := -1
			cmd := exec.Command(name, "100")
			cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			defer func() {
				_ = cmd.Process.Kill() // the supervisor has most likely
				_ = cmd.Wait()
			}()
			succession(t, quick, serve, func(r *rig) {
				p := r.fakes.last(0)
				if tt.there {
					r.board.Seat(p.order.identity.Seat).KeeperPID.Store(int64(pid))
				}
				p.order.kept(link.Kept{PID: pid}, pidfd)
				synctest.Wait()
				if w := r.look().Pools[0].Workers[0]; w.KeeperPID != pid || w.Protection != protected {
					t.Errorf("before: keeper %d, %q, want %d, %q", w.KeeperPID, w.Protection, pid, protected)
				}
			}, true, func(m *shelf, st *savedState) {
				for _, w := range st.Workers {
					m.Unstore(StorePrefix + numbered(storedKeeper, w.Incarnation))
				}
			}, func(r *rig) {
				want := 0
				if tt.there {
					want = pid
				}
				if w := r.look().Pools[0].Workers[0]; w.KeeperPID != want || w.Protection != tt.protection {
					t.Errorf("after: keeper %d, %q, want %d, %q", w.KeeperPID, w.Protection, want, tt.protection)
				}
			})
		})
	}
}

func TestWorkersOfAnotherContractAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := newStateFile()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.write(savedState{Contract: link.Contract + 1, Service: "test"}); err != nil {
			t.Fatal(err)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		// The dead supervisor's keeper, which has the same sockets.
		kept := exec.Command("sleep", "1000")
		pidfd := -1
		kept.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
		if err := kept.Start(); err != nil {
			t.Fatal(err)
		}
		_, err = readPast([]activation.Stored{
			{Name: StorePrefix + storedState, FD: f.fd}, {Name: StorePrefix + "control/1", FD: fds[0]}, {Name: numbered(StorePrefix+storedOwnKeeper, 1), FD: pidfd},
		}, "test")
		if err == nil || !strings.Contains(err.Error(), "contract") {
			t.Errorf("error %v", err)
		}
		if n, err := unix.Read(fds[1], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("read %d %v, want the end: so the worker drains", n, err)
		}
		if err := kept.Wait(); kept.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Errorf("the keeper of the supervisor before has ended with %v, want it killed", err)
		}
	})
}

func TestReloadCutOffIsRolledBack(t *testing.T) {
	succession(t, quick, serve, func(r *rig) {
		go r.Supervisor.Reload(context.Background(), control.ReloadRequest{Detach: true}, nil)
		time.Sleep(1500 * time.Millisecond) // fake time: one slot is done, the other is on trial
	}, true, nil, func(r *rig) {
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		st := r.look()
		if st.State != control.StateServing || st.Generation != 1 || st.LastReload == nil || st.LastReload.OK {
			t.Errorf("status %+v, last reload %+v", st, st.LastReload)
		}
		for _, w := range st.Pools[0].Workers {
			if w.Generation != 1 {
				t.Errorf("worker %+v", w)
			}
		}
	})
}

func TestSlotThatAReloadHasAddedAndNotComeToIsSavedWithTheReleaseThatServes(t *testing.T) {
	succession(t, quick, serve, func(r *rig) {
		r.settings.Workers += 2
		go r.Supervisor.Reload(context.Background(), control.ReloadRequest{Detach: true}, nil)
		time.Sleep(100 * time.Millisecond) // fake time: the first slot is on trial
		synctest.Wait()
		_, st, err := openStateFile(r.saved.fd)
		if err != nil {
			t.Fatal(err)
		}
		if st.Reload == nil || len(st.Slots) != r.settings.Workers {
			t.Fatalf("state has %d slots, reload %+v, want %d slots in the middle of a reload", len(st.Slots), st.Reload, r.settings.Workers)
		}
		if last := st.Slots[len(st.Slots)-1]; last.Generation != 1 {
			t.Errorf("the last slot is of generation %d, want 1: the reload has not come to it", last.Generation)
		}
	}, true, nil, func(r *rig) {
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		st := r.look()
		if st.State != control.StateServing || st.Generation != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestEveryHalfThatIsBrokenLeavesTheOther(t *testing.T) {
	f, err := newStateFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if _, _, err := openStateFile(f.fd); err == nil {
		t.Error("an empty file was read")
	}
	for _, n := range []uint64{7, 8, 9} {
		if err := f.write(savedState{Epoch: n}); err != nil {
			t.Fatal(err)
		}
	}
	_, st, err := openStateFile(f.fd)
	if err != nil || st.Epoch != 9 {
		t.Errorf("epoch %d, %v, want 9", st.Epoch, err)
	}
	for at := int64(8); at < 64; at++ { // sequence, length, checksum, body
		half := int64(f.seq%2) * savedHalf
		was := make([]byte, 1)
		if _, err := unix.Pread(f.fd, was, half+at); err != nil {
			t.Fatal(err)
		}
		if at >= 28 && at < 32 {
			continue // not used
		}
		unix.Pwrite(f.fd, []byte{was[0] ^ 0x41}, half+at)
		if _, st, err := openStateFile(f.fd); err != nil || st.Epoch != 8 {
			t.Errorf("byte %d changed: epoch %d, %v, want 8, the one before", at, st.Epoch, err)
		}
		unix.Pwrite(f.fd, was, half+at)
	}
	if _, err := readPast(nil, "test"); !errors.Is(err, errNoPast) {
		t.Errorf("error %v of an empty store", err)
	}
}

func FuzzStoredNumber(f *testing.F) {
	for _, name := range []string{"control/7", "state", "a/b/3", "/", "x/", "pidfd/18446744073709551616"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		kind, n, err := storedNumber(name)
		if err != nil {
			return
		}
		if k, again, err := storedNumber(numbered(kind, n)); err != nil || k != kind || again != n {
			t.Errorf("%q is %q %d, then %q %d, %v", name, kind, n, k, again, err)
		}
	})
}

func TestWhatWasCountedAndToldOutlivesTheSupervisor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		dies    bool
		between func(st *savedState)
		lost    bool
	}{
		{name: "restart"},
		{name: "death", dies: true},
		{name: "of the contract before", dies: true, between: func(st *savedState) { st.Contract = link.Contract - 1 }},
		{name: "of a supervisor that saved none", dies: true, lost: true, between: func(st *savedState) { st.Books, st.Events = nil, nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			settings := configured(quick, "one")
			var before map[string]float64
			var told []control.Event
			succession(t, settings, answering, func(r *rig) {
				r.seatOf(0).count(10)
				r.seatOf(1).count(7)
				r.samples() // the application's own are known now
				r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL, CPU: time.Second})
				synctest.Wait()
				time.Sleep(time.Second) // fake time
				r.loadErr = errors.New("broken")
				if err := r.reload(); err == nil {
					t.Error("a broken reload was done")
				}
				r.loadErr = nil
				r.seatOf(0).count(5)
				before, _ = r.samples()
				told = slices.Clone(r.chronicle.kept)
			}, tt.dies, func(_ *shelf, st *savedState) {
				if tt.between != nil {
					tt.between(st)
				}
			}, func(r *rig) {
				synctest.Wait()
				const messages = `mainstay_messages_total{pool="worker",worker="0"}`
				after, _ := r.samples()
				if before[messages] != 15 || before[`mainstay_worker_deaths_total{pool="worker",worker="0",class="signal"}`] != 1 || before[`mainstay_reloads_total{result="refused"}`] != 1 {
					t.Errorf("the first supervisor counted %v", before)
				}
				if tt.lost {
					if after[messages] != 5 {
						t.Errorf("%v messages, want those of the worker that lives", after[messages])
					}
					return
				}
				for key, was := range before {
					if strings.HasPrefix(key, "mainstay_supervisor_") || strings.HasPrefix(key, "mainstay_hook_runs_total") {
						continue // of this process
					}
					if is, ok := after[key]; !ok || is < was {
						t.Errorf("%s was %v and is %v (there: %v)", key, was, is, ok)
					}
				}
				if after[messages] != 15 {
					t.Errorf("%v messages, want 15", after[messages])
				}
				if got := r.chronicle.kept; len(got) < len(told) || !reflect.DeepEqual(got[:len(told)], told) {
					t.Errorf("events %+v, want them to begin with %+v", got, told)
				}
			})
		})
	}
}

func TestFiguresOfADeadWorkerStayWhereTheyAreUntilTheStateHasThem(t *testing.T) {
	succession(t, quick, serve, func(r *rig) {
		r.seatOf(0).count(10)
		dead := r.fakes.last(0).order.identity
		seat := r.board.Seat(dead.Seat)
		// In the step in which the dead is buried the others are woken for it.
		looked := false
		look := func(b link.Body) {
			if _, ok := b.(link.Rearm); !ok || looked {
				return
			}
			looked = true
			_, st, err := openStateFile(r.saved.fd)
			if err != nil {
				t.Error(err)
			}
			if !slices.ContainsFunc(st.Workers, func(w savedWorker) bool { return w.Incarnation == dead.Incarnation }) {
				t.Errorf("the state has the workers %+v, and not %d any more", st.Workers, dead.Incarnation)
			}
			if n, messages := seat.Incarnation.Load(), seat.Messages.Load(); n != dead.Incarnation || messages != 10 {
				t.Errorf("the seat has %d messages of worker %d, want the 10 of %d", messages, n, dead.Incarnation)
			}
		}
		r.fakes.last(1).sent.Store(&look)
		r.fakes.last(0).exit(Exit{Signal: unix.SIGKILL})
		synctest.Wait()
		r.fakes.last(1).sent.Store(nil)
		if !looked {
			t.Error("nobody was woken")
		}
	}, false, nil, func(r *rig) {
		synctest.Wait()
		samples, _ := r.samples()
		if got := samples[`mainstay_messages_total{pool="worker",worker="0"}`]; got != 10 {
			t.Errorf("%v messages, want 10", got)
		}
	})
}

func TestSavedEventsAndFiguresAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name          string
		message, want int
	}{
		{name: "by number", message: 10, want: eventsSaved},
		{name: "by bytes", message: 4096, want: eventsSavedBytes / (4096 + eventFields)},
		{name: "one that is too long", message: eventsSavedBytes, want: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c chronicle
			for i := range eventsKept {
				c.kept = append(c.kept, control.Event{Slot: i, Message: strings.Repeat("m", tt.message)})
			}
			got := c.saved()
			if len(got) != tt.want || len(got) > 0 && got[len(got)-1].Slot != eventsKept-1 {
				t.Errorf("%d events, want the last %d", len(got), tt.want)
			}
		})
	}
	app := []byte(`[{"name":"x","help":"` + strings.Repeat("x", savedApp/2) + `","type":"counter","series":null}]`)
	b := &books{tallies: make(map[tallyKey]*tally)}
	for slot := range 3 {
		b.tallies[tallyKey{"worker", slot}] = &tally{counters: make([]float64, len(seatCounters)), appSaved: app}
	}
	size := 0
	for _, entry := range b.saved().Tallies {
		size += len(entry.App)
	}
	if size == 0 || size > savedApp {
		t.Errorf("%d bytes of the application's figures, want some and at most %d", size, savedApp)
	}
}
