// Package report is what the measuring commands have in common when they tell
// what they found: the machine, the file of all figures, and marks.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where and when something was measured.
type Machine struct {
	Time   time.Time `json:"time"`
	CPU    string    `json:"cpu"`
	CPUs   int       `json:"cpus"`
	Kernel string    `json:"kernel"`
	Go     string    `json:"go"`
}

// ThisMachine reads it from the kernel; what cannot be read is "unknown" or
// empty.
func ThisMachine() Machine {
	m := Machine{Time: time.Now().UTC().Truncate(time.Second), CPU: "unknown", CPUs: runtime.NumCPU(), Go: runtime.Version() + " " + runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// String returns it in a line.
func (m Machine) String() string {
	return fmt.Sprintf("%s, %d x %s, Linux %s, %s", m.Time.Format("2006-01-02 15:04 MST"), m.CPUs, m.CPU, m.Kernel, m.Go)
}

// Write writes v to the file as JSON: to stdout if it is called "-", nowhere
// if it has no name.
func Write(v any, file string, stdout io.Writer) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		b = append(b, '\n')
		if file == "-" {
			_, err = stdout.Write(b)
		} else {
			err = os.WriteFile(file, b, 0o644)
		}
	}
	if err != nil {
		return fmt.Errorf("report: --json %s: %w", file, err)
	}
	return nil
}

// Tables returns where the tables for people go: nowhere if standard output
// is the file of Write.
func Tables(file string, stdout io.Writer) io.Writer {
	if file == "-" {
		return io.Discard
	}
	return stdout
}

// Mark is what a figure is held against.
type Mark struct {
	Figure string  `json:"figure"`
	Got    float64 `json:"got"`
	Most   float64 `json:"mark"` // Got may be as much
	Met    bool    `json:"met"`
}

// NewMark holds got against most.
func NewMark(figure string, got, most float64) Mark {
	return Mark{Figure: figure, Got: got, Most: most, Met: got <= most}
}

// String returns the mark in a line.
func (m Mark) String() string {
	verdict := "met"
	if !m.Met {
		verdict = "MISSED"
	}
	return fmt.Sprintf("%s: %.4g, mark %.4g: %s", m.Figure, m.Got, m.Most, verdict)
}
