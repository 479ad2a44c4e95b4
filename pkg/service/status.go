package service

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// writeStatus shows a status to people. r, if not nil, says how fast the
// counters grow.
func writeStatus(w io.Writer, st control.Status, r rates) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s is %s: generation %d, %d connections", st.Service, st.State, st.Generation, st.Connections)
	if st.State != control.StateOrphaned {
		fmt.Fprintf(b, ", up %s, pid %d, version %s", age(st.UptimeMS), st.PID, st.Version)
	}
	fmt.Fprintln(b)
	if st.Reason != "" {
		fmt.Fprintf(b, "reason: %s\n", st.Reason)
	}
	if st.Release.Executable != "" {
		fmt.Fprintf(b, "release: %s\n", release(st.Release))
	}
	if st.LastGood != nil {
		fmt.Fprintf(b, "last good: %s\n", release(*st.LastGood))
	}
	if r := st.LastReload; r != nil {
		verdict := "done"
		if !r.OK {
			verdict = "failed: " + r.Reason
		}
		what := "last reload"
		if r.Back {
			what = "last reload: a rollback"
		}
		fmt.Fprintf(b, "%s: generation %d at %s, took %s, %s%s\n", what, r.Generation, r.At, age(r.TookMS), handedOver(r), verdict)
	}
	if st.Kept+st.Torn > 0 {
		fmt.Fprintf(b, "deaths of workers: %d connections kept, %d torn\n", st.Kept, st.Torn)
	}
	for _, c := range st.Certificates {
		fmt.Fprintf(b, "certificate: %s of listener %s, %s\n", c.Name, c.Listener, expiry(c.Expires, time.Now()))
	}
	for _, x := range st.Strangers {
		fmt.Fprintf(b, "stranger: pid %d (%s) since %s: %s\n", x.PID, x.Name, age(x.AgeMS), x.Account)
	}
	writeListeners(b, st.Listeners)
	for _, p := range st.Pools {
		writePool(b, p, r)
	}
	return b.Flush()
}

// expiry shows when a certificate ends.
func expiry(at, now time.Time) string {
	word := "expires"
	if at.Before(now) {
		word = "expired"
	} else if at.Sub(now) < certificateMargin {
		word = "expires soon:"
	}
	return word + " " + at.UTC().Format(time.RFC3339)
}

// release shows a release in a line.
func release(r control.Release) string {
	text := fmt.Sprintf("generation %d, %s", r.Generation, r.Executable)
	if r.Build != "" {
		text += ", version " + r.Build
	}
	if r.Replaced {
		text += " (the file has been replaced)"
	}
	return text
}

// handedOver tells what a reload has done with connections.
func handedOver(r *control.Reload) string {
	if r.Moved+r.Left+r.Lost == 0 {
		return ""
	}
	text := fmt.Sprintf("%d connections moved, %d left, ", r.Moved, r.Left)
	if r.Lost > 0 {
		text += fmt.Sprintf("%d lost, ", r.Lost)
	}
	if r.Moved > 0 {
		text += "longest stall " + control.Stall(r.LongestStallUS) + ", "
	}
	return text
}

func writeListeners(w io.Writer, listeners []control.Listener) {
	if len(listeners) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LISTENER\tADDRESS\tSERVES\tSOCKET")
	for _, l := range listeners {
		serves, socket := l.Serve, "own"
		if serves == "" {
			serves = "-"
		}
		if l.Inherited {
			socket = "systemd"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.Name, l.Address, serves, socket)
	}
	t.Flush() // into a bufio.Writer, which keeps the error
}

func writePool(w io.Writer, p control.Pool, r rates) {
	protected := 0
	for _, k := range p.Workers {
		if k.Protection == "protected" {
			protected++
		}
	}
	fmt.Fprintf(w, "\npool %s: %d of %d ready, %d protected, %d respawns\n", p.Name, p.Ready, p.Want, protected, p.Respawns)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "slot\tpid\tgen\tstate\tuptime\tcpu\trss\tconns\taccepts\tmessages\tin\tout\tqueue\tsend_fail\tpanics\ttimers\tgiven\ttaken\trefused\tthawed\tstall\tbeat\trespawns\t")
	if r != nil {
		fmt.Fprint(t, "acc/s\tmsg/s\tin/s\tout/s\tcpu%\t")
	}
	fmt.Fprintln(t)
	var sum control.Worker
	var fast rate
	for _, k := range p.Workers {
		pid := "-"
		if k.PID != 0 {
			pid = strconv.Itoa(k.PID)
		}
		beat := "-"
		if k.HeartbeatAgeMS >= 0 && k.PID != 0 {
			beat = age(k.HeartbeatAgeMS)
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t",
			k.Slot, pid, k.Generation, k.State, age(k.UptimeMS), age(k.CPUMS), showBytes(k.RSSBytes), k.Connections, k.Accepts, k.Messages,
			showBytes(int64(k.BytesIn)), showBytes(int64(k.BytesOut)), showBytes(k.QueueBytes), k.SendFailures, k.Panics, k.Timers,
			k.Given, k.Taken, k.Refused, k.Thawed, stall(k), beat, k.Respawns)
		if r != nil {
			one := r[k.Incarnation]
			one.write(t)
			fast = fast.plus(one)
		}
		fmt.Fprintln(t)
		sum.CPUMS += k.CPUMS
		sum.RSSBytes += k.RSSBytes
		sum.Connections += k.Connections
		sum.Accepts += k.Accepts
		sum.Messages += k.Messages
		sum.BytesIn += k.BytesIn
		sum.BytesOut += k.BytesOut
		sum.QueueBytes += k.QueueBytes
		sum.SendFailures += k.SendFailures
		sum.Panics += k.Panics
		sum.Timers += k.Timers
		sum.Given += k.Given
		sum.Taken += k.Taken
		sum.Refused += k.Refused
		sum.Thawed += k.Thawed
		sum.LongestStallUS = max(sum.LongestStallUS, k.LongestStallUS)
	}
	fmt.Fprintf(t, "sum\t\t\t\t\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t\t\t",
		age(sum.CPUMS), showBytes(sum.RSSBytes), sum.Connections, sum.Accepts, sum.Messages,
		showBytes(int64(sum.BytesIn)), showBytes(int64(sum.BytesOut)), showBytes(sum.QueueBytes), sum.SendFailures, sum.Panics, sum.Timers,
		sum.Given, sum.Taken, sum.Refused, sum.Thawed, stall(sum))
	if r != nil {
		fast.write(t)
	}
	fmt.Fprintln(t)
	t.Flush()
	for _, k := range p.Workers {
		writeTrouble(w, k)
	}
}

// stall is for how long one of those stood still that a worker gave away.
func stall(k control.Worker) string {
	if k.LongestStallUS == 0 {
		return "-"
	}
	return control.Stall(int64(k.LongestStallUS))
}

// writeTrouble tells, below the table, what does not fit into a column.
func writeTrouble(w io.Writer, k control.Worker) {
	if k.Handler != "" {
		fmt.Fprintf(w, "slot %d: a callback of listener %s runs since %s\n", k.Slot, k.Handler, age(k.HandlerMS))
	}
	if k.RetryMS > 0 {
		fmt.Fprintf(w, "slot %d: next start in %s, %d starts have failed\n", k.Slot, age(k.RetryMS), k.StartFailures)
	}
	if k.Unready != "" {
		fmt.Fprintf(w, "slot %d: takes no connections: %s\n", k.Slot, strings.ReplaceAll(k.Unready, "\n", "\n    "))
	}
	if why, ok := strings.CutPrefix(k.Protection, "unprotected: "); ok {
		fmt.Fprintf(w, "slot %d: unprotected, its connections die with it: %s\n", k.Slot, strings.ReplaceAll(why, "\n", "\n    "))
	}
	if k.LastDeath != "" {
		fmt.Fprintf(w, "slot %d: last death: %s\n", k.Slot, strings.ReplaceAll(k.LastDeath, "\n", "\n    "))
	}
}

// age shows a duration of ms milliseconds with the two units that matter.
func age(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return d.String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}

// showBytes shows n bytes with a unit: 999, 1.5K, 12M.
func showBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if v < 10 {
		return fmt.Sprintf("%.1f%c", v, units[i])
	}
	return fmt.Sprintf("%.0f%c", v, units[i])
}
