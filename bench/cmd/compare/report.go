package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/mainstay-go/mainstay/bench/report"
)

// result is the whole of what was measured, as JSON.
type result struct {
	Machine   report.Machine `json:"machine"`
	Burst     float64        `json:"burst_seconds"`
	Warmup    float64        `json:"warmup_seconds"`
	MaxOthers float64        `json:"max_other_cores"`
	Scenarios []*scenario    `json:"scenarios"`
}

// mostForJournal is what the journal may cost, in per cent.
const mostForJournal = 5

// title names the scenario in a line.
func (s *scenario) title() string {
	return fmt.Sprintf("%s: %d B, %d in flight on each of %d connections, %d cycles", s.Table.Name, s.Size, s.Pipeline, s.Connections, s.Table.Cycles)
}

// print writes the scenario as a table for people.
func (s *scenario) print(w io.Writer) {
	fmt.Fprintln(w, s.title())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "\tmsg/s\tmsg/CPU s\tof c-floor [quartiles]\tCPU µs/msg\trate of c-floor\tp50 µs\tp99 µs\tRSS MiB\tPSS MiB\tbusiest\tbursts\terrors\t\n")
	for _, f := range s.Figures {
		fmt.Fprintf(t, "%s\t", f.Peer)
		if f.Bursts == 0 {
			fmt.Fprintf(t, "-\t-\t-\t-\t-\t-\t-\t-\t-\t-\t0+%d\t%d\t\n", f.LeftOut, f.Errors)
			continue
		}
		fmt.Fprintf(t, "%.0f\t%.0f\t%s\t%.2f\t%s\t%.0f\t%.0f\t%s\t%s\t%.0f%%\t%d+%d\t%d\t\n",
			f.Rate, f.PerCPU, f.RatioCPU, f.MicrosPerMessage, f.RatioRate, f.P50, f.P99,
			mebibytes(f.RSS), mebibytes(f.PSS), 100*f.Busiest, f.Bursts, f.LeftOut, f.Errors)
	}
	t.Flush()
	if s.Journal.N > 0 {
		fmt.Fprintf(w, "  the journal, %% of CPU time a message in %d cycles: %s\n", s.Journal.N, s.Journal)
		fmt.Fprintln(w, "  "+report.NewMark("the journal, upper quartile in %", s.Journal.Q3, mostForJournal).String())
	}
	for _, line := range s.remarks() {
		fmt.Fprintln(w, "  "+line)
	}
	fmt.Fprintln(w)
}

// remarks tell why bursts were left out and what the errors were, each once.
func (s *scenario) remarks() []string {
	leftOut, errs := map[string]int{}, map[string]bool{}
	for _, b := range s.Bursts {
		if b.LeftOut != "" {
			leftOut[b.LeftOut]++
		}
		for _, e := range b.Errors.Samples {
			errs[b.Peer+": "+e] = true
		}
	}
	var lines []string
	for _, why := range slices.Sorted(maps.Keys(leftOut)) {
		lines = append(lines, fmt.Sprintf("left out: %d of %d bursts: %s", leftOut[why], len(s.Bursts), why))
	}
	return append(lines, slices.Sorted(maps.Keys(errs))...)
}

func mebibytes(b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", b/(1<<20))
}
