// Package metrics counts what an application does, sums the figures of many
// processes, and writes them in Prometheus' text format.
//
// A Registry belongs to one process; what it makes (Counter, Gauge,
// Histogram) costs an atomic operation a call and no allocation. Gather turns
// a Registry into plain data, Families, which travel as JSON; a Set sums
// Families, and Write writes them.
//
// Invariants:
//   - Names and labels are checked when a figure is made, by a panic: that is
//     in the program's text, not in its input. What is counted can be
//     written.
//   - The number of series is bounded (MaxSeries a family, whatever the values
//     of the labels are): what is beyond is counted in one series whose
//     labels all say "other".
//   - A Set only adds. Two families of one name that differ in type, labels
//     or bounds are never mixed.
//
// Start reading at Registry, then Set and Write.
package metrics
