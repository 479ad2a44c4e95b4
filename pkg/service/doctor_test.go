package service

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/unit"
)

// well is the status and the examination of a service that lacks nothing.
func well() (control.Status, control.Examination) {
	return control.Status{
			Service: "app", Version: "v2", State: control.StateServing, Generation: 3, PID: 7,
			Release: control.Release{Generation: 3, Executable: "/usr/bin/app"},
			Pools: []control.Pool{{Name: "worker", Want: 1, Ready: 1, Workers: []control.Worker{
				{PID: 8, Generation: 3, State: "ready", Build: "v2", Protection: "protected"},
			}}},
		}, control.Examination{
			PID: 7, Stores: true, Stored: 10, StoreMax: 4096, StoreNeed: 40, FilesSoft: 524288, FilesHard: 524288, FilesNeed: 600,
		}
}

func TestEachAilmentIsFoundAndExplained(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ail   func(st *control.Status, x *control.Examination)
		level string // empty: nothing is found
		what  string
	}{
		{name: "all is well", ail: func(*control.Status, *control.Examination) {}},
		{"degraded", func(st *control.Status, _ *control.Examination) {
			st.State, st.Reason = control.StateDegraded, "worker 0 backing off"
		}, levelError, "degraded: worker 0 backing off"},
		{"a reload that failed", func(st *control.Status, _ *control.Examination) {
			st.LastReload = &control.Reload{Generation: 4, Reason: "no such key"}
		}, levelWarning, "to generation 4, has failed: no such key"},
		{"a new program on disk", func(st *control.Status, _ *control.Examination) { st.Release.Replaced = true }, levelNote, "/usr/bin/app has been replaced"},
		{"no keeper", func(st *control.Status, _ *control.Examination) {
			st.Pools[0].Workers[0].Protection = "unprotected: its keeper is gone"
		}, levelError, "unprotected: its keeper is gone"},
		{"other code", func(st *control.Status, _ *control.Examination) { st.Pools[0].Workers[0].Build = "v3" }, levelWarning, "runs v3, the supervisor v2"},
		{"an old worker", func(st *control.Status, _ *control.Examination) {
			st.Pools[0].Workers = append(st.Pools[0].Workers, control.Worker{PID: 9, Generation: 2, State: "draining", Build: "v2"})
		}, levelNote, "1 workers of other generations"},
		{"a callback that holds the loop", func(st *control.Status, _ *control.Examination) {
			st.Pools[0].Workers[0].Handler, st.Pools[0].Workers[0].HandlerMS = "ws", 3000
		}, levelWarning, "a callback of listener ws holds the loop"},
		{"a stranger", func(st *control.Status, _ *control.Examination) {
			st.Strangers = []control.Stranger{{PID: 11, Name: "x", Kind: "other", Account: "a"}}
		}, levelWarning, "pid 11 (x)"},
		{"a worker that was let go", func(st *control.Status, _ *control.Examination) {
			st.Strangers = []control.Stranger{{PID: 12, Name: "y", Kind: "worker", Account: "a"}}
		}, levelNote, "pid 12 (y)"},
		{"no reaching in", func(_ *control.Status, x *control.Examination) { x.Unprotected = "a filter forbids it" }, levelError, "a filter forbids it"},
		{"a trial of which something is missing", func(_ *control.Status, x *control.Examination) {
			x.Trial = &control.Trial{Connections: 16, Back: 3, Error: "pidfd_getfd: operation not permitted"}
		}, levelError, "of 16 connections of a worker that was started for the trial and killed, 3 came back: pidfd_getfd: operation not permitted"},
		{name: "a trial that went well", ail: func(_ *control.Status, x *control.Examination) { x.Trial = &control.Trial{Connections: 16, Back: 16} }},
		{"no store", func(_ *control.Status, x *control.Examination) { x.Stores = false }, levelNote, "not started by systemd"},
		{"a small store", func(_ *control.Status, x *control.Examination) { x.StoreMax = 20 }, levelWarning, "keeps 20 descriptors"},
		{"few files", func(_ *control.Status, x *control.Examination) { x.FilesSoft, x.StoreMax = 500, 100 }, levelError, "may open 500 files"},
		{"fewer files than may be stored", func(_ *control.Status, x *control.Examination) { x.FilesSoft = 4096 }, levelError, "4096 descriptors may be stored"},
		{"a blocking socket", func(_ *control.Status, x *control.Examination) { x.Blocking = []string{"ws"} }, levelError, "listener ws was handed over blocking"},
		{"a broken configuration", func(_ *control.Status, x *control.Examination) { x.ConfigError = "line 3" }, levelError, "cannot be used: line 3"},
		{"another configuration", func(_ *control.Status, x *control.Examination) { x.ConfigDiffers = true }, levelNote, "not the one that runs"},
		{"a log that was dropped", func(_ *control.Status, x *control.Examination) { x.LinesDropped = 4 }, levelWarning, "4 lines"},
	} {
		st, x := well()
		tt.ail(&st, &x)
		var r checkup
		r.status(st)
		r.process(x, 2, x.FilesSoft)
		switch {
		case tt.level == "" && len(r.Findings) == 0:
		case len(r.Findings) != 1:
			t.Errorf("%s: findings %+v, want one", tt.name, r.Findings)
		case r.Findings[0].Level != tt.level || !strings.Contains(r.Findings[0].What, tt.what) || r.Findings[0].Why == "" || r.Findings[0].Do == "":
			t.Errorf("%s: %+v, want %q of %s", tt.name, r.Findings[0], tt.what, tt.level)
		}
	}
}

func TestLimitOfTheNextStartCountsAndNotTheOneThatTheRuntimeHasRaised(t *testing.T) {
	_, x := well()
	for _, tt := range []struct {
		start    uint64
		findings int
	}{{start: 524288}, {start: 1024, findings: 1}} {
		var r checkup
		if r.process(x, 2, tt.start); len(r.Findings) != tt.findings {
			t.Errorf("with a soft limit of %d at the start: %+v, want %d findings", tt.start, r.Findings, tt.findings)
		}
	}
}

func TestStoreThatHasDroppedSomethingIsFound(t *testing.T) {
	_, x := well()
	for _, tt := range []struct {
		kept  string
		level string
	}{{"10", ""}, {"12", ""}, {"9", levelError}} {
		var r checkup
		r.manager("app.service", map[string]string{"NFileDescriptorStore": tt.kept}, x)
		if got := len(r.Findings); got > 1 || (got == 1) != (tt.level != "") || got == 1 && r.Findings[0].Level != tt.level {
			t.Errorf("%s kept: %+v", tt.kept, r.Findings)
		}
	}
}

func TestCertificatesAreJudgedByTheirEnd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name  string
		left  time.Duration
		level string
	}{{"fresh", 60 * 24 * time.Hour, ""}, {"soon", 3 * 24 * time.Hour, levelWarning}, {"over", -time.Hour, levelError}} {
		page := fmt.Sprintf("# TYPE %[1]s gauge\n%[1]s{listener=\"ws\",certificate=\"a b} c\"} %[2]g\nother{} 3\n", expiryMetric, float64(now.Add(tt.left).Unix()))
		var r checkup
		r.certificates([]byte(page), now)
		if got := len(r.Findings); (got == 1) != (tt.level != "") || got == 1 && (r.Findings[0].Level != tt.level || !strings.Contains(r.Findings[0].What, `listener="ws"`)) {
			t.Errorf("%s: %+v", tt.name, r.Findings)
		}
	}
	var r checkup
	r.certificates([]byte(expiryMetric+"{\n"+expiryMetric+"{} x\n"), now)
	if len(r.Findings) != 0 {
		t.Errorf("%+v of lines that are none", r.Findings)
	}
}

func TestFindingsOfTheRulesSayWhatIsToBeDone(t *testing.T) {
	var r checkup
	r.found(unit.Finding{Unit: "app.service", Where: "app.service:3", Key: "Service.KillMode", Severity: unit.Error, Got: "mixed", Want: "process", Why: "w"})
	r.found(unit.Finding{Unit: "kernel", Key: "net.core.somaxconn", Severity: unit.Warning, Got: "128", Want: "at least 4096", Why: "w"})
	for i, want := range []ailment{
		{levelError, `app.service:3: Service.KillMode is "mixed", want process`, "w", "systemctl edit app.service"},
		{levelWarning, `kernel: net.core.somaxconn is "128", want at least 4096`, "w", "sysctl -w net.core.somaxconn"},
	} {
		if got := r.Findings[i]; got.Level != want.Level || got.What != want.What || !strings.Contains(got.Do, want.Do) {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
