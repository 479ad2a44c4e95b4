package service

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/supervisor"
)

func (s *Service) connectionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "List the connections of all workers",
		Long: `List the connections of all workers. They are asked, so one that hangs or is
stopped has no say: it is named on standard error, and the command exits with 1.

recv and send are bytes in the service's own queues: read, but no whole message
yet; and not yet taken by the kernel. wait are messages that wait for a handler.`,
		Args: cobra.NoArgs,
	}
	var r control.ConnectionsRequest
	f := cmd.Flags()
	asJSON := f.Bool("json", false, "as JSON")
	f.StringVar(&r.Listener, "listener", "", "only those of the listener of this `NAME`")
	f.StringVar(&r.Peer, "peer", "", "only those of a peer: `ADDRESS`, ADDRESS:PORT, a prefix such as 192.0.2.0/24, or the beginning of a unix path")
	f.IntVar(&r.Limit, "limit", control.DefaultLimit, fmt.Sprintf("list at most `N`, up to %d", control.MaxLimit))
	f.StringVar(&r.Sort, "sort", control.Sorts[0], "`ORDER`, the most first: "+strings.Join(control.Sorts, ", "))
	complete(cmd, "sort", control.Sorts)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if r.Limit == 0 { // which would be the default
			return fmt.Errorf("--limit: got 0, want 1 to %d", control.MaxLimit)
		}
		return r.Check()
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		all, err := c.Connections(ctx, r)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			err = enc.Encode(all)
		} else {
			err = writeConnections(out, all)
		}
		for _, w := range all.Silent {
			err = errors.Join(err, fmt.Errorf("incomplete: %d connections of worker %d (pid %d) are not listed: %s", w.Connections, w.Slot, w.PID, w.Reason))
		}
		return err
	})
}

func writeConnections(w io.Writer, all control.Connections) error {
	b := bufio.NewWriter(w)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "slot\tpid\tid\tlistener\tstate\tage\tidle\trecv\tsend\twait\tin\tout\tlocal\tpeer\t")
	for _, c := range all.Connections {
		fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t\n",
			c.Slot, c.PID, c.ID, c.Listener, c.State, age(c.AgeMS), age(c.IdleMS),
			showBytes(int64(c.Buffered)), showBytes(int64(c.Queued)), c.Messages,
			showBytes(int64(c.BytesIn)), showBytes(int64(c.BytesOut)), orDash(c.Local), orDash(c.Peer))
	}
	t.Flush() // into a bufio.Writer, which keeps the error
	fmt.Fprintf(b, "%d of %d connections\n", len(all.Connections), all.Matching)
	return b.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// complete has a flag's values completed.
func complete(cmd *cobra.Command, flag string, values []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // only a flag that does not exist fails
	}
}

func (s *Service) recycleCommand() *cobra.Command {
	return s.slotCommand(&cobra.Command{
		Use:   "recycle [POOL] SLOT",
		Short: "Replace one worker by a new one of the same generation",
		Long: `Start a new worker of the same program and configuration beside that of the
slot, and have the old one hand its connections over once the new one serves.
The command waits for that, for five seconds at most, and tells how many have
moved; it fails, and the old one stays, if the new one does not become ready.`,
	}, (*control.Client).Recycle)
}

func (s *Service) drainCommand() *cobra.Command {
	return s.slotCommand(&cobra.Command{
		Use:   "drain [POOL] SLOT",
		Short: "Take one worker out of service",
		Long: `Have the worker of the slot hand its connections over to the others and finish
what stays, within grace, and start no other in its place until resume or
restart; a reload passes the slot over. The command waits for the hand-over, for
five seconds at most, and tells how many have moved.`,
	}, (*control.Client).Drain)
}

func (s *Service) resumeCommand() *cobra.Command {
	return s.slotCommand(&cobra.Command{
		Use:   "resume [POOL] SLOT",
		Short: "Put a slot back into service that was drained",
	}, (*control.Client).Resume)
}

// slotCommand makes a command that does something with a slot.
func (s *Service) slotCommand(cmd *cobra.Command, do func(*control.Client, context.Context, control.SlotRequest) (control.Done, error)) *cobra.Command {
	var r control.SlotRequest
	cmd.Args = func(_ *cobra.Command, args []string) (err error) {
		r, err = slotOf(cmd.Name(), "[POOL] SLOT", args)
		return err
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		d, err := do(c, ctx, r)
		if err != nil {
			return err
		}
		writeDone(cmd.OutOrStdout(), d)
		return nil
	})
}

// slotOf reads the arguments [POOL] SLOT; want is all that the command takes.
func slotOf(command, want string, args []string) (r control.SlotRequest, err error) {
	if len(args) < 1 || len(args) > 2 {
		return r, fmt.Errorf("%s: got %d arguments, want %s", command, len(args), want)
	}
	last := args[len(args)-1]
	r.Pool = strings.Join(args[:len(args)-1], "")
	if r.Slot, err = strconv.Atoi(last); err != nil || r.Slot < 0 || r.Slot >= supervisor.MaxWorkers {
		return r, fmt.Errorf("%s: got %q, want a slot, from 0 to %d, as status shows it", command, last, supervisor.MaxWorkers-1)
	}
	return r, nil
}

// writeDone tells what was done, and what those workers have done with their
// connections that leave because of it.
func writeDone(w io.Writer, d control.Done) {
	for _, h := range d.Handovers {
		if h.Moved+h.Left > 0 {
			fmt.Fprintf(w, "worker %d (pid %d): %v\n", h.Slot, h.PID, h)
		}
	}
	fmt.Fprintln(w, d.Message)
}

func (s *Service) moveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "move CONN [POOL] SLOT",
		Short: "Move a connection to another worker",
		Long: `Move the connection with this id, as connections shows it, to the worker of the
slot; its peer does not notice. It fails, with the reason, if there is no such
connection, if it cannot move, as those of net/http and those whose application
holds them, if nobody takes connections in the slot, and if the other worker
refuses it: the connection stays where it is then. It fails as well if that
takes over a second, for instance because a callback runs: then the connection
moves when the callback has returned.`,
	}
	var r control.MoveRequest
	cmd.Args = func(_ *cobra.Command, args []string) error {
		const want = "CONN [POOL] SLOT"
		if len(args) < 2 || len(args) > 3 {
			return fmt.Errorf("move: got %d arguments, want %s", len(args), want)
		}
		to, err := slotOf("move", want, args[1:])
		if err != nil {
			return err
		}
		if r.Conn, err = strconv.ParseUint(args[0], 10, 64); err != nil {
			return fmt.Errorf("move: got %q, want the id of a connection, as connections shows it", args[0])
		}
		r.Pool, r.Slot = to.Pool, to.Slot
		return nil
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		m, err := c.Move(ctx, r)
		if err != nil {
			return err
		}
		if m.From == m.To {
			fmt.Fprintf(cmd.OutOrStdout(), "connection %d is with worker %d already\n", m.Conn, m.To)
			return nil
		}
		fmt.Fprintf(cmd.OutOrStdout(), "connection %d moved from worker %d to worker %d, it stood still for %s\n", m.Conn, m.From, m.To, control.Stall(m.LongestStallUS))
		return nil
	})
}

func (s *Service) rebalanceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Move connections until all workers have as many",
		Long: `Have the workers that have more connections than the average give what is above
it to those that have less; their peers do not notice. A worker some of whose
connections cannot move gives what it can, and the command exits with 1.`,
		Args: cobra.NoArgs,
	}
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		b, err := c.Rebalance(ctx, control.RebalanceRequest{})
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		var failed error
		for _, g := range b.Givers {
			line := fmt.Sprintf("worker %d (pid %d): %d of %d connections moved", g.Slot, g.PID, g.Moved, g.Excess)
			if g.Refused > 0 {
				line += fmt.Sprintf(", %d refused", g.Refused)
			}
			if g.Moved > 0 {
				line += ", longest stall " + control.Stall(g.LongestStallUS)
			}
			fmt.Fprintln(out, line)
			if g.Error != "" {
				failed = errors.Join(failed, fmt.Errorf("worker %d (pid %d): %s", g.Slot, g.PID, g.Error))
			}
		}
		if len(b.Givers) == 0 {
			fmt.Fprintln(out, "nothing to move: all workers have as many")
		}
		return failed
	})
}

func (s *Service) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened to the service",
		Long: `Show the last events that the supervisor remembers; with -f, then go on with
those that happen, until Ctrl-C or the end of the service.`,
		Args: cobra.NoArgs,
	}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what happens")
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line")
	return s.ask(cmd, func(ctx context.Context, c *control.Client, _ []string) error {
		out := cmd.OutOrStdout()
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		var failed error
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		err := c.Events(ctx, *follow, func(e control.Event) {
			if *asJSON {
				failed = enc.Encode(e)
			} else {
				_, failed = fmt.Fprintln(out, eventLine(e))
			}
			if failed != nil {
				cancel(failed)
			}
		})
		return errors.Join(err, failed)
	})
}

// eventLine shows an event to people, in a line.
func eventLine(e control.Event) string {
	at := e.At
	if t, err := time.Parse(time.RFC3339Nano, e.At); err == nil {
		at = t.Local().Format("2006-01-02 15:04:05.000")
	}
	parts := []string{at, e.Kind}
	if e.Slot >= 0 && e.Pool != "" {
		parts = append(parts, fmt.Sprintf("%s %d", e.Pool, e.Slot))
	}
	if e.Generation != 0 {
		parts = append(parts, fmt.Sprintf("generation %d", e.Generation))
	}
	if e.PID != 0 {
		parts = append(parts, fmt.Sprintf("pid %d", e.PID))
	}
	line := strings.Join(parts, "  ") + ": " + e.Message
	var fields []string
	for _, key := range sortedKeys(e.Fields) {
		fields = append(fields, fmt.Sprintf("%s=%q", key, e.Fields[key]))
	}
	if len(fields) > 0 {
		line += "  " + strings.Join(fields, " ")
	}
	return strings.ReplaceAll(line, "\n", "\n    ")
}
