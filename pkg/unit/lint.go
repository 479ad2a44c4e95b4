package unit

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Severity says how bad a finding is.
type Severity string

const (
	// Error is what breaks a promise of the service.
	Error Severity = "error"
	// Warning is what costs something in a rarer case.
	Warning Severity = "warning"
)

// Finding is something that ought to be otherwise.
type Finding struct {
	Unit     string   `json:"unit"`            // its name, or "kernel"
	Where    string   `json:"where,omitempty"` // FILE:LINE; empty: the key is not set
	Key      string   `json:"key"`             // Service.KillMode, or the name of a sysctl
	Severity Severity `json:"severity"`
	Got      string   `json:"got"`  // the value; empty: not set
	Want     string   `json:"want"` // in words
	Why      string   `json:"why"`
}

// String is the finding in two lines, without the last newline.
func (f Finding) String() string {
	where, got := f.Where, strconv.Quote(f.Got)
	if where == "" {
		where = f.Unit
	}
	if f.Got == "" {
		got = "not set"
	}
	return fmt.Sprintf("%s: %s: %s is %s, want %s\n    %s", where, f.Severity, f.Key, got, f.Want, f.Why)
}

// Context is what the rules have to know beside the units.
type Context struct {
	StopGrace    time.Duration // stop_grace of the configuration
	StartTimeout time.Duration // start_timeout of the configuration
	Kernel       string        // where sysctls are read: /proc/sys; empty: they are not
	Store        int           // descriptors that the supervisor stores at most; 0: not known, 100 then
}

func (c Context) store() int {
	if c.Store > 0 {
		return c.Store
	}
	return 100
}

// Lint judges units: services, and socket units (by the ending of their
// names; others are left alone), and the kernel's limits that concern them.
// The findings are ordered as the units are, errors first.
func Lint(units []Unit, c Context) []Finding {
	var all []Finding
	for _, u := range units {
		var found []Finding
		switch filepath.Ext(u.Name) {
		case ".service":
			found = apply(serviceRules, u, c)
		case ".socket":
			found = apply(socketRules, u, c)
		}
		slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
		all = append(all, found...)
	}
	if c.Kernel != "" {
		all = append(all, lintKernel(units, c.Kernel)...)
	}
	return all
}

// rule is what a key of a unit has to be.
type rule struct {
	section, key string
	severity     Severity
	want         string
	why          string

	// ok judges the value that counts, empty if the key is not set.
	ok func(value string, u Unit, c Context) bool
}

func apply(rules []rule, u Unit, c Context) []Finding {
	var found []Finding
	for _, r := range rules {
		a, _ := u.last(r.section, r.key)
		if r.ok(a.Value, u, c) {
			continue
		}
		f := Finding{
			Unit: u.Name, Key: r.section + "." + r.key, Severity: r.severity, Got: a.Value, Why: r.why,
			Want: strings.NewReplacer("{stop_grace}", c.StopGrace.String(), "{start_timeout}", c.StartTimeout.String(), "{store}", strconv.Itoa(c.store())).Replace(r.want),
		}
		if a.Value != "" {
			f.Where = a.where()
		}
		found = append(found, f)
	}
	return found
}

// sysctl is a limit of the kernel's.
type sysctl struct {
	name string
	want func(units []Unit) uint64 // at least; 0: it does not matter
	why  string
	most bool // want is the most that is well
}

func lintKernel(units []Unit, root string) []Finding {
	var found []Finding
	for _, s := range sysctls {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(strings.ReplaceAll(s.name, ".", "/"))))
		if err != nil {
			continue // not of this kernel, or not visible in this sandbox
		}
		value := strings.TrimSpace(string(text))
		n, err := strconv.ParseUint(value, 10, 64)
		want := s.want(units)
		if err != nil || s.most && n <= want || !s.most && n >= want {
			continue
		}
		words := fmt.Sprintf("at least %d", want)
		if s.most {
			words = strconv.FormatUint(want, 10)
		}
		found = append(found, Finding{Unit: "kernel", Key: s.name, Severity: Warning, Got: value, Want: words, Why: s.why})
	}
	return found
}
