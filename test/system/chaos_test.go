package system

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/journal"
	"github.com/mainstay-go/mainstay/test/talk"
)

// The chaos test does to the service, under traffic, whatever may happen to
// one, in an order drawn from a seed, and after each step wants everything to
// be as it was: clients that had nothing under way have noticed nothing, what
// the others have lost is explained in the journal, and no process, zombie or
// descriptor is left over.
//
// The steps come as cards from a deck, which is shuffled anew when it is used
// up: so a short run has seen each of them, too. Nothing but the seed decides
// what comes; the time decides only how far it goes.
var (
	chaosSeed    = flag.Uint64("chaos.seed", 0, "of the steps of the chaos test; 0: another each time")
	chaosTime    = flag.Duration("chaos.time", 0, "how long the chaos test goes on; 0: long enough to have seen each step (60 s), or 20 s where systemd is older than 254")
	chaosClients = flag.Int("chaos.clients", 2000, "of the chaos test, over four protocols, two of them with TLS as well")
)

const (
	// chaosPatience is how long the service may take to be as before. A
	// worker that is stopped is found by its heartbeat, and a program that
	// hangs by start_timeout, both on a machine that has other things to do.
	chaosPatience = time.Minute

	chaosLeast, chaosMost = 2, 4 // workers

	chaosConfig = `workers = 3
start_timeout = "5s"
grace = "10s"
hang_timeout = "2s"
[reload]
bake = "200ms"
[respawn]
first = "10ms"
max = "500ms"
[listener.text-echo]
serve = "text-numbers"
[listener.tls-numbers]
serve = "text-numbers"
tls.cert = "credential:numbers.pem"
tls.key = "credential:numbers.key"
[listener.wss-numbers]
serve = "ws-numbers"
tls.cert = "credential:numbers.pem"
tls.key = "credential:numbers.key"
`
)

// chaosStep is something that happens to the service. draw tells the details.
type chaosStep struct {
	name string
	do   func(c *chaos, draw int) error
}

var chaosSteps = []chaosStep{
	{"reload", (*chaos).reload},
	{"reload to a program that does not work", (*chaos).reloadBroken},
	{"reload, in which a worker is killed", func(c *chaos, draw int) error { return c.during(draw, "reload", (*chaos).killWorker) }},
	{"reload, in which the supervisor is killed", func(c *chaos, draw int) error { return c.during(draw, "reload", (*chaos).killSupervisor) }},
	{"worker killed", (*chaos).killWorker},
	{"all workers killed", (*chaos).killWorkers},
	{"worker stopped", (*chaos).stopWorker},
	{"keeper killed", (*chaos).killKeeper},
	{"supervisor killed", (*chaos).killSupervisor},
	{"worker and supervisor killed", (*chaos).killBoth},
	{"restart", (*chaos).restart},
	{"restart, in which a worker is killed", func(c *chaos, draw int) error { return c.during(draw, "restart", (*chaos).killWorker) }},
	{"restart into a program that does not work", (*chaos).restartBroken},
	{"scale", (*chaos).scale},
	{"move", (*chaos).move},
	{"rebalance", func(c *chaos, _ int) error { return c.operate("rebalance") }},
	{"recycle", func(c *chaos, draw int) error { return c.operate("recycle", strconv.Itoa(draw%c.want)) }},
	{"daemon-reload", func(c *chaos, _ int) error { return c.systemctl("daemon-reload") }},
	{"daemon-reexec", func(c *chaos, _ int) error { return c.systemctl("daemon-reexec") }},
}

// chaos is a run of the test.
type chaos struct {
	*service
	begun   time.Time
	want    int // workers
	version int // of the program that works

	groups []*talk.Group
	inodes map[string]string // of the listening sockets, by unit
	cursor string            // of the journal, up to where it was read
	told   map[string]ended  // by what and incarnation: a supervisor tells again what the one before may not have come to tell
	ended  ended             // the sum of it

	rest map[int]counts

	history []string
}

// ended is what the journal says of connections that have ended with a process.
type ended struct{ torn, ended, lost int }

func (e ended) total() int { return e.torn + e.ended + e.lost }

// counts are the descriptors at rest, of a service with so many workers.
type counts struct{ stored, supervisor, worker int }

func everythingAtOnceInAnyOrder(t *testing.T, m *machine) {
	lasting, clients := *chaosTime, *chaosClients
	switch {
	case lasting > 0:
	case testing.Short():
		lasting, clients = 10*time.Second, min(clients, 400)
	case m.version < 254:
		lasting = 20 * time.Second
	default:
		lasting = time.Minute
	}
	seed := *chaosSeed
	for seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-chaos.seed=%d brings the same steps again", seed)

	c := startChaos(t, m, clients)
	t.Cleanup(c.tell)
	draws := rand.New(rand.NewPCG(seed, seed))
	var deck []int
	for !t.Failed() && time.Since(c.begun) < lasting {
		if len(deck) == 0 {
			deck = draws.Perm(len(chaosSteps))
		}
		step := chaosSteps[deck[0]]
		deck = deck[1:]
		draw := draws.IntN(1 << 16)
		c.note("%s (%d)", step.name, draw)
		if err := step.do(c, draw); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if err := c.recover(); err != nil {
			t.Errorf("after %s: %v", step.name, err)
		}
	}
	if t.Failed() {
		return
	}
	st := c.status()
	c.stopTalk()
	c.must(t, "systemctl", "stop", c.unit)
	c.nothingRuns(st)
}

// startChaos starts a service and its clients.
func startChaos(t *testing.T, m *machine, clients int) *chaos {
	c := &chaos{service: install(t, m, probe(t, "1", "")), want: 3, version: 1, inodes: make(map[string]string), rest: make(map[int]counts), told: make(map[string]ended)}
	c.configure(chaosConfig)
	sockets := map[string]talk.Tongue{
		"app.socket": talk.Bytes, "app-text.socket": talk.Lines, "app-ws.socket": talk.WebSocket, "app-numbers.socket": talk.HTTP,
		"app-tls.socket": talk.Lines, "app-wss.socket": talk.WebSocket,
	}
	for unit, listener := range map[string]string{"app-ws.socket": "ws-numbers", "app-numbers.socket": "http-numbers", "app-tls.socket": "tls-numbers", "app-wss.socket": "wss-numbers"} {
		c.listen(unit, listener)
	}
	certificate := c.certify("numbers")
	c.credentials("numbers")
	c.start()
	c.awaitStatus(chaosPatience, allProtected(c.want))
	for unit, tongue := range sockets {
		c.inodes[unit] = m.listenInode(t, c.port(unit))
		network, address := c.address(unit)
		o := talk.Options{Clients: clients / len(sockets), Pause: time.Second, Size: 60, Limit: 30 * time.Second, Tongue: tongue, Again: true}
		if unit == "app-tls.socket" || unit == "app-wss.socket" {
			o.Secure = securely(certificate, nil)
		}
		g, err := talk.Start(func() (net.Conn, error) { return c.dial(network, address) }, o)
		if err != nil {
			t.Fatalf("%s: %v", tongue, err)
		}
		t.Cleanup(func() { g.Stop() })
		c.groups = append(c.groups, g)
	}
	if err := c.readJournal(); err != nil {
		t.Fatal(err)
	}
	c.begun = time.Now()
	// A release that was replaced is kept, so a service has all that it ever
	// will after its first reload.
	if err := errors.Join(c.reload(0), c.recover()); err != nil {
		t.Fatal(err)
	}
	return c
}

// note adds a line to what is told of a run that fails.
func (c *chaos) note(format string, args ...any) {
	c.history = append(c.history, fmt.Sprintf("%8.3f s  ", time.Since(c.begun).Seconds())+fmt.Sprintf(format, args...))
}

// tell ends the talk and tells what has happened.
func (c *chaos) tell() {
	c.stopTalk()
	c.t.Logf("%d steps:\n%s", len(c.history), strings.Join(c.history, "\n"))
	if !c.t.Failed() {
		return
	}
	for _, g := range c.groups {
		losses := g.Report().Losses
		for _, l := range losses[:min(len(losses), 50)] {
			c.t.Log(l)
		}
	}
	r, err := c.try(c.program, "events", "--control", c.controlURL)
	c.t.Logf("events: %v %v", r, err)
}

// stopTalk ends the talk, and wants what came of it to be as at rest.
func (c *chaos) stopTalk() {
	for _, g := range c.groups {
		g.Stop()
	}
	if err := c.judgeClients(); err != nil {
		c.t.Error(err)
	}
}

func (c *chaos) systemctl(args ...string) error {
	return c.command(append([]string{"systemctl"}, args...)...)
}

func (c *chaos) operate(args ...string) error {
	return c.command(append([]string{c.program}, append(args, "--control", c.controlURL)...)...)
}

func (c *chaos) command(args ...string) error {
	r, err := c.try(args...)
	if err == nil && r.code != 0 {
		err = fmt.Errorf("%s: %v", strings.Join(args, " "), r)
	}
	return err
}

func (c *chaos) good() string { return probe(c.t, strconv.Itoa(c.version), "") }

func (c *chaos) reload(int) error {
	c.version = 3 - c.version
	c.replace(c.good())
	return c.systemctl("reload", c.unit)
}

// breakProgram installs a program whose workers do not work, each in its way.
func (c *chaos) breakProgram(draw int) {
	behaviour := []string{"exit", "hang", "crash"}[draw%3]
	c.note("    the program will %s", behaviour)
	c.replace(probe(c.t, "9", behaviour))
}

func (c *chaos) reloadBroken(draw int) error {
	c.breakProgram(draw)
	defer func() { c.replace(c.good()) }()
	if err := c.systemctl("reload", c.unit); err == nil {
		return errors.New("the reload has succeeded")
	}
	return nil
}

func (c *chaos) restart(int) error {
	c.version = 3 - c.version
	c.replace(c.good())
	return c.restarted(true)
}

func (c *chaos) restartBroken(draw int) error {
	c.breakProgram(draw)
	defer func() { c.replace(c.good()) }()
	return c.restarted(false)
}

// restarted restarts the service and waits for the verdict on the reload that
// follows.
func (c *chaos) restarted(ok bool) error {
	before := c.status()
	if err := c.systemctl("restart", c.unit); err != nil {
		return err
	}
	return c.until("the restart is over", func(st control.Status) error {
		last := st.LastReload
		// Not by its time alone, which is told in seconds.
		if st.PID == before.PID || last == nil || before.LastReload != nil && *last == *before.LastReload || last.OK != ok {
			return fmt.Errorf("supervisor %d, was %d; last reload %+v", st.PID, before.PID, last)
		}
		return nil
	})
}

// during has something happen while a reload or a restart is under way.
func (c *chaos) during(draw int, verb string, do func(*chaos, int) error) error {
	c.version = 3 - c.version
	c.replace(c.good())
	before := c.status()
	if err := c.systemctl("--no-block", verb, c.unit); err != nil {
		return err
	}
	if verb == "restart" {
		// Not before it is told that it is one, which a signal at the wrong
		// time could make a death.
		if err := c.until("another supervisor", func(st control.Status) error {
			if st.PID == before.PID {
				return errors.New("it is the same")
			}
			return nil
		}); err != nil {
			return err
		}
	}
	delay := time.Duration(draw>>4%1200) * time.Millisecond
	c.note("    %v later", delay)
	<-time.After(delay)
	return do(c, draw)
}

// victims are the workers that serve, by slot; there is one at least.
func (c *chaos) victims() (all []control.Worker, err error) {
	err = c.until("a worker", func(st control.Status) error {
		all = all[:0]
		for _, w := range st.Pools[0].Workers {
			if w.State == "ready" {
				all = append(all, w)
			}
		}
		if len(all) == 0 {
			return errors.New("none is ready")
		}
		return nil
	})
	return all, err
}

// signal sends a signal to a process, which may have ended by itself.
func (c *chaos) signal(name string, pid int) {
	c.note("    SIG%s to %d", name, pid)
	c.quietly("kill", "-s", name, strconv.Itoa(pid))
}

func (c *chaos) killWorker(draw int) error {
	all, err := c.victims()
	if err == nil {
		c.signal("KILL", all[draw%len(all)].PID)
	}
	return err
}

func (c *chaos) killWorkers(int) error {
	all, err := c.victims()
	for _, w := range all {
		c.signal("KILL", w.PID)
	}
	return err
}

func (c *chaos) stopWorker(draw int) error {
	all, err := c.victims()
	if err != nil {
		return err
	}
	victim := all[draw%len(all)].PID
	c.signal("STOP", victim)
	return c.until("it is found to hang", func(st control.Status) error {
		for _, w := range st.Pools[0].Workers {
			if w.PID == victim {
				return fmt.Errorf("worker %+v", w)
			}
		}
		return nil
	})
}

func (c *chaos) killKeeper(draw int) error {
	all, err := c.victims()
	if err != nil {
		return err
	}
	victim := all[draw%len(all)]
	c.signal("KILL", victim.KeeperPID)
	err = c.until("its loss is told", func(st control.Status) error {
		for _, w := range workers(st) {
			if w.PID == victim.PID && w.Protection == "protected" {
				return fmt.Errorf("worker %d is %q", w.Slot, w.Protection)
			}
		}
		return nil
	})
	if err == nil { // as an operator does
		err = c.operate("recycle", strconv.Itoa(victim.Slot))
	}
	return err
}

func (c *chaos) killSupervisor(int) error {
	pid, err := strconv.Atoi(c.show(c.t, c.unit, "MainPID"))
	if err != nil || pid == 0 {
		return fmt.Errorf("main pid %d: %w", pid, err)
	}
	c.signal("KILL", pid)
	return c.until("another supervisor", func(st control.Status) error {
		if st.PID == pid {
			return errors.New("it is the same")
		}
		return nil
	})
}

func (c *chaos) killBoth(draw int) error {
	return errors.Join(c.killWorker(draw), c.killSupervisor(draw))
}

func (c *chaos) scale(draw int) error {
	n := chaosLeast + draw%(chaosMost-chaosLeast)
	if n >= c.want {
		n++
	}
	c.note("    from %d to %d", c.want, n)
	if err := c.operate("scale", strconv.Itoa(n)); err != nil {
		return err
	}
	c.want = n
	// A reload would bring back what the configuration says.
	c.configure(strings.Replace(chaosConfig, "workers = 3", "workers = "+strconv.Itoa(n), 1))
	return nil
}

func (c *chaos) move(draw int) error {
	r, err := c.try(c.program, "connections", "--json", "--limit", "50", "--control", c.controlURL)
	if err != nil {
		return err
	}
	var all control.Connections
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || len(all.Connections) == 0 {
		return fmt.Errorf("connections: %w: %v", err, r)
	}
	for i := range 10 {
		id := all.Connections[(draw+i)%len(all.Connections)].ID
		// What has moved by itself meanwhile is not where it is looked for.
		if r, err := c.try(c.program, "move", fmt.Sprint(id), strconv.Itoa((draw+i)%c.want), "--control", c.controlURL); err != nil {
			return err
		} else if r.code != 0 && !strings.Contains(r.stderr, "is not here") {
			return fmt.Errorf("move: %v", r)
		}
	}
	return nil
}

// until waits for a status.
func (c *chaos) until(what string, check func(control.Status) error) error {
	err := wait(chaosPatience, func() error {
		st, err := c.tryStatus()
		if err == nil {
			err = check(st)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// recover waits until everything is as it should be.
func (c *chaos) recover() error {
	begun := time.Now()
	err := wait(chaosPatience, func() error {
		st, err := c.tryStatus()
		if err != nil {
			return err
		}
		if err := settled(st, c.want); err != nil {
			return err
		}
		if err := c.readJournal(); err != nil {
			return err
		}
		return errors.Join(c.judgeProcesses(st), c.judgeDescriptors(st), c.judgeSockets(), c.explained())
	})
	c.note("    well after %v; %+v, %d lost", time.Since(begun).Round(time.Millisecond), c.ended, c.losses())
	return errors.Join(err, c.judgeClients())
}

// settled wants as many workers, ready, protected and of the generation that
// serves.
func settled(st control.Status, n int) error {
	if err := allProtected(n)(st); err != nil {
		return fmt.Errorf("%w: %+v", err, st.Pools)
	}
	for _, w := range workers(st) {
		if w.Generation != st.Generation {
			return fmt.Errorf("worker %d is of generation %d, not %d", w.Slot, w.Generation, st.Generation)
		}
	}
	return nil
}

// judgeProcesses wants the supervisor, the workers and their keepers, and
// nobody else, and no zombie anywhere.
func (c *chaos) judgeProcesses(st control.Status) error {
	want := []int{st.PID}
	for _, w := range workers(st) {
		want = append(want, w.PID, w.KeeperPID)
	}
	got := c.processes(c.t, c.unit)
	for i, pid := range got {
		if !slices.Contains(want, pid) && c.isKeeper(pid) { // the supervisor's
			got = slices.Delete(got, i, i+1)
			break
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		return fmt.Errorf("in the control group are %v, want %v", got, want)
	}
	all, err := filepath.Glob(c.path("/proc/[0-9]*/stat"))
	if err != nil {
		return err
	}
	for _, file := range all {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(rest, "Z") {
			return fmt.Errorf("a zombie: %s", stat)
		}
	}
	return nil
}

// judgeDescriptors wants as many descriptors as there were when there were as
// many workers the first time.
func (c *chaos) judgeDescriptors(st control.Status) error {
	stored, err := strconv.Atoi(c.show(c.t, c.unit, "NFileDescriptorStore"))
	if err != nil {
		return err
	}
	now := counts{stored: stored}
	if now.supervisor, err = c.descriptors(st.PID); err != nil {
		return err
	}
	for _, w := range workers(st) {
		n, err := c.descriptors(w.PID)
		if err != nil {
			return err
		}
		now.worker = max(now.worker, n-int(w.Connections))
	}
	was, ok := c.rest[c.want]
	if !ok {
		c.rest[c.want] = now
		c.note("    descriptors with %d workers: %+v", c.want, now)
		return nil
	}
	if now.stored != was.stored || now.supervisor > was.supervisor || now.worker > was.worker {
		return fmt.Errorf("descriptors: %+v, want %+v;\n%s", now, was, c.kinds(st))
	}
	return nil
}

// kinds tells what descriptors each worker has, what its sockets are, and how
// many connections it counts.
func (c *chaos) kinds(st control.Status) string {
	holders := make(map[string][]int) // of a socket, by inode: a pid as often as it has it
	all := append(slices.Collect(maps.Values(workers(st))), control.Worker{PID: st.PID, Slot: -1})
	links := make(map[int][]string)
	for _, w := range all {
		fds, _ := filepath.Glob(c.path(fmt.Sprintf("/proc/%d/fd/*", w.PID))) // the pattern is valid
		for _, fd := range fds {
			to, err := os.Readlink(fd)
			if err != nil {
				continue // closed meanwhile
			}
			links[w.PID] = append(links[w.PID], to)
			if strings.HasPrefix(to, "socket:") {
				holders[to] = append(holders[to], w.PID)
			}
		}
	}
	sockets := c.sockets()
	var text strings.Builder
	for _, w := range all {
		kinds := make(map[string]int)
		for _, to := range links[w.PID] {
			kind, _, _ := strings.Cut(to, ":[") // socket:[1234]
			kinds[kind]++
			if kind != "socket" {
				continue
			}
			what := sockets[to]
			if what == "" {
				what = "that no table has"
			}
			if with := holders[to]; len(with) > 1 && !strings.HasPrefix(what, "tcp listening") {
				what += fmt.Sprintf(", of %v", with)
			}
			if strings.HasPrefix(what, "unix") {
				what += " " + to
			}
			kinds["    "+what]++
		}
		fmt.Fprintf(&text, "pid %d, slot %d, %d connections:\n", w.PID, w.Slot, w.Connections)
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			fmt.Fprintf(&text, "    %6d %s\n", kinds[kind], kind)
		}
	}
	return text.String()
}

// sockets tells what the machine's sockets are, by what /proc/PID/fd says of
// them.
func (c *chaos) sockets() map[string]string {
	all := make(map[string]string)
	lines := func(table string, fields int, tell func(f []string) (inode, what string)) {
		text, err := os.ReadFile(c.proc + "/net/" + table)
		if err != nil {
			return // there are no such sockets
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) >= fields {
				inode, what := tell(f)
				all["socket:["+inode+"]"] = what
			}
		}
	}
	// proc(5), and enum tcp_state of the kernel: sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
	states := map[string]string{"01": "established", "04": "fin-wait-1", "05": "fin-wait-2", "07": "closed", "08": "close-wait", "09": "last-ack", "0A": "listening", "0B": "closing"}
	for _, table := range []string{"tcp", "tcp6"} {
		lines(table, 10, func(f []string) (string, string) {
			_, port, _ := strings.Cut(f[1], ":")
			n, _ := strconv.ParseUint(port, 16, 16)
			return f[9], fmt.Sprintf("%s %s on port %d", table, states[f[3]], n)
		})
	}
	// proc(5): Num RefCount Protocol Flags Type St Inode Path
	lines("unix", 7, func(f []string) (string, string) {
		return f[6], "unix type " + f[4] + " state " + f[5] + " " + strings.Join(f[7:], " ")
	})
	return all
}

func (c *chaos) descriptors(pid int) (int, error) {
	all, err := os.ReadDir(c.path(fmt.Sprintf("/proc/%d/fd", pid)))
	return len(all), err
}

// judgeSockets wants the listening sockets to be the same.
func (c *chaos) judgeSockets() error {
	for unit, was := range c.inodes {
		if now := c.listenInode(c.t, c.port(unit)); now != was {
			return fmt.Errorf("%s was inode %s and is %s", unit, was, now)
		}
	}
	return nil
}

// losses is how many connections the clients have lost.
func (c *chaos) losses() (n int) {
	for _, g := range c.groups {
		n += g.Report().Lost
	}
	return n
}

// explained wants each lost connection to be one that the journal tells of.
func (c *chaos) explained() error {
	if lost := c.losses(); lost != c.ended.total() {
		return fmt.Errorf("%d connections were lost, the journal has %+v", lost, c.ended)
	}
	return nil
}

// judgeClients wants that no connection was lost on which nothing was under
// way, nor refused, nor answered wrongly.
func (c *chaos) judgeClients() error {
	for _, g := range c.groups {
		r := g.Report()
		if r.Wrong+r.Refused > 0 {
			return fmt.Errorf("clients: %v", r)
		}
		for _, l := range r.Losses {
			if !l.Busy {
				return fmt.Errorf("a connection was lost at rest: %v", l)
			}
			if errors.Is(l.Err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("a connection was forgotten: %v", l)
			}
		}
	}
	return nil
}

// readJournal adds up what it says since it was read last.
func (c *chaos) readJournal() error {
	if err := c.command("journalctl", "--sync"); err != nil {
		return err
	}
	args := []string{"journalctl", "--output=json", "--show-cursor", "--unit=" + c.unit}
	if c.cursor == "" {
		args = append(args, c.since)
	} else {
		args = append(args, "--after-cursor="+c.cursor)
	}
	r, err := c.try(args...)
	if err != nil || r.code != 0 {
		return fmt.Errorf("journalctl: %w: %v", err, r)
	}
	for line := range strings.Lines(r.stdout) {
		if !strings.HasPrefix(line, "{") && !strings.HasPrefix(line, "-- cursor: ") {
			continue // "-- No entries --"
		}
		if cursor, ok := strings.CutPrefix(line, "-- cursor: "); ok {
			c.cursor = strings.TrimSpace(cursor)
			continue
		}
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			return fmt.Errorf("journal: %w: %q", err, line)
		}
		number := func(field string) int {
			text, _ := entry[field].(string)
			n, _ := strconv.Atoi(text)
			return n
		}
		message, _ := entry["MESSAGE"].(string)
		switch {
		case entry["MESSAGE_ID"] == journal.WorkerHarvested:
			c.told[fmt.Sprint("harvested ", entry["INCARNATION"])] = ended{torn: number("TORN"), ended: number("ENDED")}
		case strings.HasPrefix(message, "connections lost with a worker"):
			c.told[fmt.Sprint("lost ", entry["INCARNATION"])] = ended{lost: number("CONNECTIONS")}
		}
	}
	c.ended = ended{}
	for _, e := range c.told {
		c.ended.torn, c.ended.ended, c.ended.lost = c.ended.torn+e.torn, c.ended.ended+e.ended, c.ended.lost+e.lost
	}
	return nil
}
