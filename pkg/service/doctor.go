package service

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
	"github.com/mainstay-go/mainstay/pkg/unit"
)

// Levels of findings: what breaks a promise; what costs something in a rarer
// case, or soon; what is worth knowing.
const (
	levelError   = string(unit.Error)
	levelWarning = string(unit.Warning)
	levelNote    = "note"
)

var levels = []string{levelError, levelWarning, levelNote}

// ailment is something that the doctor has found.
type ailment struct {
	Level string `json:"level"`
	What  string `json:"what"`
	Why   string `json:"why"` // it matters
	Do    string `json:"do"`
}

// checkup is the outcome of doctor.
type checkup struct {
	Running  bool      `json:"running"`
	Checked  []string  `json:"checked"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Notes    int       `json:"notes"`
	Findings []ailment `json:"findings"`
}

func (s *Service) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the running service and the machine for what would break a promise",
		Long: `Check the service that runs, its units and the machine for what would break one
of the service's promises: connections that outlive a worker, the supervisor and
a reload, ports that are never closed. Each finding says what it is, why it
matters and what to do. The units are judged by the rules of unit-lint; where the
service does not run, they and the machine are all that is checked.

The supervisor is asked for what only it can see: its limits, its store, whether
its sandbox lets it reach into other processes, whether the configuration on disk
is the one that runs. It also starts a worker for the trial, which has no part in
the service, gives it connections, kills it and counts how many come back.

The exit code is 1 if there are errors, 0 if there are only warnings and notes.`,
		Args: cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "as JSON")
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		r := s.examine(ctx, c)
		out := cmd.OutOrStdout()
		var err error
		if *asJSON {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			err = enc.Encode(r)
		} else {
			err = r.write(out)
		}
		if err == nil && r.Errors > 0 {
			err = fmt.Errorf("doctor: %d errors", r.Errors)
		}
		return err
	})
}

func (r *checkup) add(level, what, why, do string) {
	r.Findings = append(r.Findings, ailment{level, what, why, do})
}

// examine checks everything.
func (s *Service) examine(ctx context.Context, c *control.Client) *checkup {
	r := &checkup{Findings: []ailment{}}
	s.examineRunning(ctx, c, r)
	s.examineUnits(ctx, r)
	r.Checked = append(r.Checked, "the machine")
	for _, f := range unit.LintMachine(unit.ThisMachine()) {
		r.found(f)
	}
	slices.SortStableFunc(r.Findings, func(a, b ailment) int {
		return cmp.Compare(slices.Index(levels, a.Level), slices.Index(levels, b.Level))
	})
	for _, f := range r.Findings {
		switch f.Level {
		case levelError:
			r.Errors++
		case levelWarning:
			r.Warnings++
		default:
			r.Notes++
		}
	}
	return r
}

// found takes over a finding of the rules for units and machines.
func (r *checkup) found(f unit.Finding) {
	got := "not set"
	if f.Got != "" {
		got = strconv.Quote(f.Got)
	}
	do := fmt.Sprintf("set it in a drop-in (systemctl edit %s), then systemctl daemon-reload; what concerns the process holds from the next restart on, which drops nobody", f.Unit)
	switch f.Unit {
	case "kernel":
		do = fmt.Sprintf("sysctl -w %s=..., and in /etc/sysctl.d for the next boot", f.Key)
	case "machine":
		do = "provide " + f.Want
	}
	r.add(string(f.Severity), fmt.Sprintf("%s: %s is %s, want %s", cmp.Or(f.Where, f.Unit), f.Key, got, f.Want), f.Why, do)
}

func (s *Service) examineUnits(ctx context.Context, r *checkup) {
	c, err := s.load(runFlags{}, s.environment())
	if err != nil { // the service itself says so, which may have another file
		c = defaults(s.name)
	}
	units, err := s.units(ctx, nil)
	if err != nil {
		r.add(levelNote, "no units are checked: "+err.Error(), "a service that is started by hand has no systemd to start it again and to keep what its workers need", "see deploy/systemd")
		return
	}
	for _, u := range units {
		r.Checked = append(r.Checked, u.Name)
	}
	for _, f := range unit.Lint(units, c.rules()) {
		r.found(f)
	}
}

// examineRunning asks the service that runs, if there is one.
func (s *Service) examineRunning(ctx context.Context, c *control.Client, r *checkup) {
	st, err := within(ctx, c.Status)
	if errors.Is(err, control.ErrNotRunning) {
		s.examineLeftovers(ctx, c.Address(), r)
		return
	}
	if err != nil {
		r.add(levelError, "the supervisor does not answer: "+err.Error(), "nobody starts a worker that dies, nor reloads", "see journalctl -u "+s.name+"; its watchdog ends it, and the next one adopts the workers")
		return
	}
	r.Running = true
	r.Checked = append(r.Checked, fmt.Sprintf("the service (pid %d)", st.PID))
	r.status(st)
	if x, err := within(ctx, c.Examine); err != nil {
		r.add(levelWarning, "the supervisor was not examined: "+err.Error(), "its limits, its store and its configuration are not checked", "systemctl restart brings in a supervisor that can answer, and drops nobody")
	} else {
		start := x.FilesSoft
		if name := filepath.Base(x.Cgroup); x.Cgroup != "" {
			state := unitState(ctx, name)
			r.manager(name, state, x)
			if most, err := strconv.Atoi(state["FileDescriptorStoreMax"]); err == nil && x.StoreMax == 0 {
				x.StoreMax = most // before 254 systemd does not tell it to the service
			}
			if soft, err := strconv.ParseUint(state["LimitNOFILESoft"], 10, 64); err == nil {
				start = soft // Go's runtime has raised the process's own, if it could
			}
		}
		r.process(x, len(st.Listeners), start)
	}
	if text, err := within(ctx, c.Metrics); err != nil {
		r.add(levelWarning, "certificates are not checked: "+err.Error(), "one that expires refuses every client", "see /metrics of the control socket")
	} else {
		r.certificates(text, time.Now())
	}
}

func (s *Service) examineLeftovers(ctx context.Context, address string, r *checkup) {
	left, err := supervisor.FindLeftovers(s.name, address)
	switch {
	case err != nil:
		r.add(levelWarning, "whether the service runs is not known: "+err.Error(), "only units and machine are checked", "ask as root")
	case len(left.Status.Pools[0].Workers) > 0:
		p := explain(left, unitState(ctx, left.Unit))
		r.add(levelError, fmt.Sprintf("%d workers serve %d connections without a supervisor", len(left.Status.Pools[0].Workers), left.Status.Connections), p.what+"; "+p.next, strings.Join(p.do, "; "))
	default:
		r.add(levelNote, "the service does not run", "only units and machine are checked", "ask again when it does")
	}
}

// status judges what everybody may see.
func (r *checkup) status(st control.Status) {
	if st.State == control.StateDegraded {
		r.add(levelError, "the service is degraded: "+st.Reason, "a part of it does not serve, or not what it should", "see status, and journalctl -x for that worker")
	}
	if l := st.LastReload; l != nil && !l.OK {
		r.add(levelWarning, fmt.Sprintf("the last reload, to generation %d, has failed: %s", l.Generation, l.Reason), "what is on disk is not what runs: a restart, and every reload, would meet the same", "correct it and reload again, or put back what was there")
	} else if st.Release.Replaced {
		r.add(levelNote, "the program "+st.Release.Executable+" has been replaced since the workers were started", "they run the one that was there before", "reload brings in the new one")
	}
	old := 0
	for _, p := range st.Pools {
		for _, w := range p.Workers {
			r.worker(st, w)
			if w.State == "draining" && w.Generation != st.Generation {
				old++
			}
		}
	}
	if old > 0 {
		r.add(levelNote, fmt.Sprintf("%d workers of other generations still finish connections", old), "they need memory, and answer by what they were started with", "nothing: grace bounds it")
	}
	for _, x := range st.Strangers {
		level := levelNote
		if x.Kind == supervisor.StrangerOther {
			level = levelWarning
		}
		r.add(level, fmt.Sprintf("pid %d (%s) is a stranger in the unit's cgroup", x.PID, x.Name), x.Account, "see what it is: systemctl status; end it if nobody needs it")
	}
}

func (r *checkup) worker(st control.Status, w control.Worker) {
	if why, ok := strings.CutPrefix(w.Protection, "unprotected: "); ok {
		r.add(levelError, fmt.Sprintf("worker %d (pid %d) is unprotected: %s", w.Slot, w.PID, why), "its connections end with it when it is killed or crashes", "lift what forbids it, then recycle "+strconv.Itoa(w.Slot))
	}
	if w.Build != "" && st.Version != "" && w.Build != st.Version {
		r.add(levelWarning, fmt.Sprintf("worker %d runs %s, the supervisor %s", w.Slot, w.Build, st.Version), "the supervisor is older or newer code: what has been mended in it does not hold yet", "systemctl restart brings in the supervisor that is on disk, and drops nobody")
	}
	if w.Handler != "" && w.HandlerMS > time.Second.Milliseconds() {
		r.add(levelWarning, fmt.Sprintf("a callback of listener %s holds the loop of worker %d since %s", w.Handler, w.Slot, age(w.HandlerMS)), "no other connection of that worker is served meanwhile", "let it not wait: without Inline it runs on the pool")
	}
}

// process judges what the supervisor says of itself. start is the soft limit of
// open files with which systemd starts it.
func (r *checkup) process(x control.Examination, listeners int, start uint64) {
	if x.Unprotected != "" {
		r.add(levelError, "the supervisor cannot reach into its workers: "+x.Unprotected, "connections end with the worker that has them", "allow pidfd_getfd in SystemCallFilter= and in the container, and have kernel.yama.ptrace_scope 0 or 1; then restart")
	}
	if t := x.Trial; t != nil {
		r.Checked = append(r.Checked, fmt.Sprintf("a worker that was started for the trial and killed (%d of %d connections came back, %v)", t.Back, t.Connections, time.Duration(t.TookNS).Round(time.Millisecond)))
		if t.Error != "" || t.Back < t.Connections {
			r.add(levelError, fmt.Sprintf("of %d connections of a worker that was started for the trial and killed, %d came back: %s", t.Connections, t.Back, t.Error), "so it would be with the connections of the service's own workers", "see which call is refused, and lift what forbids it: a limit, a filter, the container")
		}
	}
	if !x.Stores {
		r.add(levelNote, "nobody keeps the supervisor's descriptors: it was not started by systemd", "its workers finish their connections and exit when it dies", "start it as a unit, with FileDescriptorStoreMax=")
	}
	if x.StoreMax > 0 && x.StoreMax < x.StoreNeed {
		r.add(levelWarning, fmt.Sprintf("systemd keeps %d descriptors (FileDescriptorStoreMax=), a reload needs up to %d", x.StoreMax, x.StoreNeed), "what finds no room is not handed to the next supervisor: those workers drain when this one dies", "raise FileDescriptorStoreMax=")
	}
	if x.FilesSoft < uint64(x.FilesNeed) {
		r.add(levelError, fmt.Sprintf("the supervisor may open %d files (soft limit), a reload needs up to %d", x.FilesSoft, x.FilesNeed), "workers cannot be started, nor connections rescued", "raise LimitNOFILE=")
	}
	if trap := x.StoreMax + listeners + 64; x.StoreMax > 0 && start < uint64(trap) {
		r.add(levelError, fmt.Sprintf("the soft limit of open files is %d at the start, and %d descriptors may be stored", start, x.StoreMax), "a start that is handed more than the limit fails, and so does every one after it (202/FDS)", fmt.Sprintf("set LimitNOFILE= to %d or more", trap))
	}
	for _, name := range x.Blocking {
		r.add(levelError, "the socket of listener "+name+" was handed over blocking", "the next start does so again, under workers that serve: they hang in accept", "set NonBlocking=yes in the service unit")
	}
	switch {
	case x.ConfigError != "":
		r.add(levelError, "the configuration on disk cannot be used: "+x.ConfigError, "a reload fails, and after the end of the workers so does the start", "correct it: config check")
	case x.ConfigDiffers:
		r.add(levelNote, "the configuration on disk is not the one that runs", "it comes in with the next reload or restart, be it an unforeseen one", "reload, or take the change back")
	}
	if x.LinesDropped > 0 {
		r.add(levelWarning, fmt.Sprintf("%d lines of the supervisor's log were dropped", x.LinesDropped), "what they told is told nowhere", "see whether journald keeps up, and whether its disk is full")
	}
}

// manager judges what systemd says of the unit.
func (r *checkup) manager(name string, state map[string]string, x control.Examination) {
	if state == nil {
		r.add(levelNote, "systemd does not say how "+name+" is", "what it keeps for the next supervisor is not checked", "ask where systemctl works")
		return
	}
	if kept, err := strconv.Atoi(state["NFileDescriptorStore"]); err == nil && kept < x.Stored {
		r.add(levelError, fmt.Sprintf("systemd keeps %d descriptors, the supervisor has given it %d", kept, x.Stored), "the next supervisor does not get what is missing: those workers drain when this one dies", "raise FileDescriptorStoreMax=, then reload")
	}
}

// expiryMetric is when a certificate expires, in seconds since the epoch.
const expiryMetric = "mainstay_certificate_expiry_seconds"

// certificateMargin is how long before its end a certificate ought to have been
// renewed: those of 90 days are renewed after 60.
const certificateMargin = 14 * 24 * time.Hour

func (r *checkup) certificates(page []byte, now time.Time) {
	for line := range bytes.Lines(page) {
		text := strings.TrimSuffix(string(line), "\n")
		labels, ok := strings.CutPrefix(text, expiryMetric+"{")
		if !ok {
			continue
		}
		end := strings.LastIndex(labels, "} ")
		if end < 0 {
			continue
		}
		seconds, err := strconv.ParseFloat(labels[end+2:], 64)
		if err != nil {
			continue
		}
		at := time.Unix(int64(seconds), 0)
		left := at.Sub(now)
		level, what := levelError, "expired at"
		switch {
		case left > certificateMargin:
			continue
		case left > 0:
			level, what = levelWarning, "expires at"
		}
		r.add(level, fmt.Sprintf("the certificate with %s %s %s", labels[:end], what, at.UTC().Format(time.RFC3339)), "clients refuse it from then on", "renew it, then reload")
	}
}

func (r *checkup) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Findings {
		fmt.Fprintf(b, "%s: %s\n    %s\n    to do: %s\n", f.Level, f.What, f.Why, f.Do)
	}
	fmt.Fprintf(b, "%d errors, %d warnings, %d notes; checked: %s\n", r.Errors, r.Warnings, r.Notes, strings.Join(r.Checked, ", "))
	return b.Flush()
}
