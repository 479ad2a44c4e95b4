package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/control"
)

func (s *Service) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the service and its workers are",
		Long: `Show how the service and its workers are. No worker is asked: one that hangs or
is stopped is shown with its last figures, and the age of its heartbeat.

Where the supervisor is gone and workers live on without it, they are looked for
in the process table and shown by what they have written on the scoreboard, with
what will happen and what is to be done; the exit code is 1 then, and 3 only if
nothing is left.

With --watch the figures are shown anew each second, with how fast they grow;
Ctrl-C ends that.`,
		Args: cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "as JSON; with --watch one object a line")
	watch := cmd.Flags().BoolP("watch", "w", false, "show it again and again")
	interval := cmd.Flags().Duration("interval", time.Second, "`DURATION` between two looks of --watch, at least 10ms")
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		out := cmd.OutOrStdout()
		show := func(st control.Status, r rates) error { return writeStatus(out, st, r) }
		switch {
		case *asJSON:
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			show = func(st control.Status, _ rates) error { return enc.Encode(st) }
		case *watch:
			show = newScreen(out).show
		}
		if *watch {
			return watchStatus(ctx, c, max(*interval, 10*time.Millisecond), show)
		}
		st, err := within(ctx, c.Status)
		if errors.Is(err, control.ErrNotRunning) {
			return s.orphaned(ctx, out, c.Address(), show, *asJSON, err)
		}
		if err != nil {
			return err
		}
		return show(st, nil)
	})
}

// watchStatus shows the status again and again until ctx ends, which is its
// orderly end.
func watchStatus(ctx context.Context, c *control.Client, interval time.Duration, show func(control.Status, rates) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last look
	for {
		st, err := within(ctx, c.Status)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		now := look{at: time.Now(), status: st}
		if err := show(st, now.since(last)); err != nil {
			return err
		}
		last = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// screen shows texts one after the other: on a terminal in the same place,
// elsewhere one below the other.
type screen struct {
	out      io.Writer
	terminal bool
	begun    bool
}

func newScreen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	return &screen{out: out, terminal: ok && isTerminal(f)}
}

func isTerminal(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var no error
	err = raw.Control(func(fd uintptr) { _, no = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	return errors.Join(err, no) == nil && os.Getenv("TERM") != "dumb"
}

// Sequences of ECMA-48: to the upper left corner; erase to the end of the
// line, and to the end of the screen.
const (
	home      = "\x1b[H"
	eraseLine = "\x1b[K"
	eraseRest = "\x1b[J"
	eraseAll  = "\x1b[2J"
)

func (s *screen) show(st control.Status, r rates) error {
	var text bytes.Buffer
	if err := writeStatus(&text, st, r); err != nil {
		return err
	}
	head := ""
	switch {
	case s.terminal && !s.begun:
		head = eraseAll
	case !s.terminal && s.begun:
		head = "\n"
	}
	s.begun = true
	if !s.terminal {
		_, err := io.WriteString(s.out, head+text.String())
		return err
	}
	// In one write, and without erasing all before: it would flicker.
	_, err := io.WriteString(s.out, head+home+strings.ReplaceAll(text.String(), "\n", eraseLine+"\n")+eraseRest)
	return err
}

// look is a status at a time.
type look struct {
	at     time.Time
	status control.Status
}

// rates says by incarnation how fast a worker's counters grow.
type rates map[uint64]rate

// rate is a growth in a second; the zero rate is unknown.
type rate struct {
	known                                bool
	accepts, messages, bytesIn, bytesOut float64
	cpu                                  float64 // of one processor
}

// since compares two looks. A worker that the earlier one does not have has
// an unknown rate; so has everyone if there was none.
func (l look) since(before look) rates {
	all := rates{}
	took := l.at.Sub(before.at).Seconds()
	if before.at.IsZero() || took <= 0 {
		return all
	}
	old := map[uint64]control.Worker{}
	for _, p := range before.status.Pools {
		for _, w := range p.Workers {
			old[w.Incarnation] = w
		}
	}
	for _, p := range l.status.Pools {
		for _, w := range p.Workers {
			if was, ok := old[w.Incarnation]; ok && w.Incarnation != 0 {
				per := func(now, then uint64) float64 { return float64(now-min(now, then)) / took }
				all[w.Incarnation] = rate{true, per(w.Accepts, was.Accepts), per(w.Messages, was.Messages), per(w.BytesIn, was.BytesIn), per(w.BytesOut, was.BytesOut), per(uint64(w.CPUMS), uint64(was.CPUMS)) / 1000}
			}
		}
	}
	return all
}

func (r rate) plus(o rate) rate {
	if !o.known {
		return r
	}
	return rate{true, r.accepts + o.accepts, r.messages + o.messages, r.bytesIn + o.bytesIn, r.bytesOut + o.bytesOut, r.cpu + o.cpu}
}

// write appends the five cells of a table.
func (r rate) write(w io.Writer) {
	if !r.known {
		fmt.Fprint(w, "-\t-\t-\t-\t-\t")
		return
	}
	fmt.Fprintf(w, "%.0f\t%.0f\t%s\t%s\t%.0f\t", r.accepts, r.messages, showBytes(int64(r.bytesIn)), showBytes(int64(r.bytesOut)), 100*r.cpu)
}
