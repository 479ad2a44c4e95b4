package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
)

// orphaned shows what is left of a service that does not answer, and returns
// the error with which the command ends: notRunning if nothing is left.
func (s *Service) orphaned(ctx context.Context, w io.Writer, address string, show func(control.Status, rates) error, asJSON bool, notRunning error) error {
	left, err := supervisor.FindLeftovers(s.name, address)
	switch {
	case err != nil:
		return errors.Join(notRunning, err)
	case len(left.Hidden) > 0 && len(left.Status.Pools[0].Workers) == 0:
		return &exitError{exitFailed, fmt.Errorf("%w, but there are processes that look like its workers (pid %s): ask as root, or as the service's user", notRunning, numbers(left.Hidden))}
	case len(left.Status.Pools[0].Workers) == 0:
		return notRunning
	}
	about := explain(left, unitState(ctx, left.Unit))
	left.Status.Reason = about.what
	if err := show(left.Status, nil); err != nil {
		return err
	}
	if !asJSON {
		if err := about.write(w); err != nil {
			return err
		}
	}
	return &exitError{exitFailed, fmt.Errorf("no supervisor: %d workers serve %d connections without one", len(left.Status.Pools[0].Workers), left.Status.Connections)}
}

func numbers(pids []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ", "), "[]")
}

// plight is what is to be known of workers without a supervisor.
type plight struct {
	what string   // has happened
	next string   // happens if nobody does anything
	unit string   // systemd's view; empty: there is no unit
	do   []string // is to be done
}

func (p plight) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "\nnext: %s\n", p.next)
	if p.unit != "" {
		fmt.Fprintf(b, "systemd: %s\n", p.unit)
	}
	for _, line := range p.do {
		fmt.Fprintf(b, "to do: %s\n", line)
	}
	return b.Flush()
}

// explain judges what is left by what systemd says of the unit.
func explain(left supervisor.Leftovers, unit map[string]string) plight {
	p := plight{what: "the supervisor is gone, its workers serve on without one"}
	wait := "for two minutes"
	if left.Silent >= 0 {
		p.what += fmt.Sprintf("; its last sign of life, of which it gives one every 10s, was %s ago", age(left.Silent.Milliseconds()))
		wait = "for " + age(max(0, link.OrphanGrace-left.Silent).Milliseconds()) + " more"
	}
	p.next = "the workers wait " + wait + " for a supervisor, which adopts them; then they finish their connections within `grace` and exit"
	if left.Unit == "" {
		p.next = "the workers finish their connections within `grace` and exit: started by hand, nobody keeps what it takes to adopt them"
		p.do = []string{"start the service again: it serves beside them"}
		return p
	}
	if unit == nil {
		p.do = []string{"see what systemd says: systemctl status " + left.Unit}
		return p
	}
	p.unit = fmt.Sprintf("%s is %s (%s), result %s, restarted %s times, %s descriptors in store", left.Unit, unit["ActiveState"], unit["SubState"], unit["Result"], unit["NRestarts"], unit["NFileDescriptorStore"])
	if says := unit["StatusText"]; says != "" {
		p.unit += "; the last one said: " + says
	}
	log := "see why it does not start: journalctl -n 50 -u " + left.Unit
	switch unit["ActiveState"] {
	case "failed":
		p.next = "systemd has given up and keeps nothing: the workers finish their connections and exit, or are ended by the unit's OnFailure="
		p.do = []string{log, fmt.Sprintf("correct it, then: systemctl reset-failed %[1]s; systemctl start %[1]s and its sockets", left.Unit)}
	case "inactive":
		p.next = "the service was stopped: the workers finish their connections within `grace` and exit"
		p.do = []string{"start it: systemctl start " + left.Unit}
	default:
		p.do = []string{log, "correct the program or the configuration: systemd tries again by itself, and the first start that succeeds adopts the workers"}
	}
	return p
}

// unitState asks systemd for the state of a unit; nil: it does not say.
func unitState(ctx context.Context, unit string) map[string]string {
	if unit == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, catTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", "--no-pager", "show", "--property=LoadState,ActiveState,SubState,Result,NRestarts,StatusText,NFileDescriptorStore,MainPID,ExecMainPID,FileDescriptorStoreMax,LimitNOFILESoft", "--", unit)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "LC_ALL=C")
	cmd.WaitDelay = time.Second
	text, err := cmd.Output()
	if err != nil {
		return nil
	}
	state := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			state[key] = value
		}
	}
	if state["LoadState"] != "loaded" {
		return nil
	}
	return state
}
