package unit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var defaults = Context{StopGrace: 10 * time.Second, StartTimeout: 30 * time.Second}

const deploy = "../../deploy/systemd"

// delivered are the units of deploy/systemd that the rules are about.
func delivered(t *testing.T) []Unit {
	t.Helper()
	var units []Unit
	for _, pattern := range []string{"app.service", "app@.service", "*.socket", "examples/*.socket"} {
		paths, err := filepath.Glob(filepath.Join(deploy, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		for _, path := range paths {
			u, err := Read(path)
			if err != nil {
				t.Fatal(err)
			}
			units = append(units, u)
		}
	}
	return units
}

func TestDeliveredUnitsAreClean(t *testing.T) {
	units := delivered(t)
	if len(units) < 6 {
		t.Errorf("only %d units", len(units))
	}
	for _, f := range Lint(units, defaults) {
		t.Error(f)
	}
}

// breaks say, by rule, what is added to a clean unit to break it; an empty
// value takes away what is set.
var breaks = map[string][]string{
	"Service.Type":                        {"Type=notify-reload", "Type="},
	"Service.NotifyAccess":                {"NotifyAccess=all"},
	"Service.NonBlocking":                 {"NonBlocking=no", "NonBlocking="},
	"Service.ExecReload":                  {"ExecReload=", "ExecReload=\nExecReload=kill -HUP $MAINPID", "ExecReload=\nExecReload=/usr/bin/mainstay reload"},
	"Service.ExecStopPost":                {"ExecStopPost="},
	"Service.FileDescriptorStoreMax":      {"FileDescriptorStoreMax=", "FileDescriptorStoreMax=16"},
	"Service.FileDescriptorStorePreserve": {"FileDescriptorStorePreserve=no"},
	"Service.SystemCallFilter":            {"SystemCallFilter=\nSystemCallFilter=@system-service", "SystemCallFilter=~@debug", "SystemCallFilter=~pidfd_getfd"},
	"Service.Delegate":                    {"Delegate=yes"},
	"Service.PrivatePIDs":                 {"PrivatePIDs=yes"},
	"Service.RestartSteps":                {"RestartSteps=5"},
	"Service.KillMode":                    {"KillMode=mixed", "KillMode=control-group", "KillMode="},
	"Service.KillSignal":                  {"KillSignal=SIGHUP"},
	"Service.RestartKillSignal":           {"RestartKillSignal=SIGTERM", "RestartKillSignal="},
	"Service.SuccessExitStatus":           {"SuccessExitStatus=", "SuccessExitStatus=\nSuccessExitStatus=143 SIGUSR1"},
	"Service.Restart":                     {"Restart=always", "Restart=no", "Restart="},
	"Service.RestartMode":                 {"RestartMode=normal", "RestartMode="},
	"Service.RestartSec":                  {"RestartSec=5", "RestartSec=1min", "RestartSec=soon"},
	"Service.RestartPreventExitStatus":    {"RestartPreventExitStatus="},
	"Service.ExitType":                    {"ExitType=cgroup"},
	"Service.OOMPolicy":                   {"OOMPolicy=stop", "OOMPolicy=kill", "OOMPolicy="},
	"Service.LimitNOFILE":                 {"LimitNOFILE=1024", "LimitNOFILE=524288:4096", "LimitNOFILE=4096:524288", "LimitNOFILE=", "LimitNOFILE=many"},
	"Service.RuntimeDirectory":            {"RuntimeDirectory="},
	"Service.RuntimeDirectoryPreserve":    {"RuntimeDirectoryPreserve=no", "RuntimeDirectoryPreserve="},
	"Service.Environment":                 {"Environment=", "Environment=\nEnvironment=TMPDIR=/tmp"},
	"Service.PrivateUsers":                {"PrivateUsers=yes", "PrivateUsers=identity"},
	"Service.TimeoutStopSec":              {"TimeoutStopSec=10s", "TimeoutStopSec=15", "TimeoutStopSec=never"},
	"Service.TimeoutStartSec":             {"TimeoutStartSec=29s"},
	"Service.WatchdogSec":                 {"WatchdogSec=", "WatchdogSec=1s", "WatchdogSec=0"},
	"Service.DynamicUser":                 {"DynamicUser=", "DynamicUser=no\nUser=root"},
	"Unit.StartLimitBurst":                {"StartLimitBurst=", "StartLimitBurst=5"},
	"Unit.OnFailure":                      {"OnFailure="},

	"Socket.FileDescriptorName":      {"FileDescriptorName="},
	"Socket.TriggerLimitIntervalSec": {"TriggerLimitIntervalSec=", "TriggerLimitIntervalSec=2s"},
	"Socket.Accept":                  {"Accept=yes"},
	"Socket.ListenStream":            {"ListenStream=[::]:80", "ListenStream=", "ListenDatagram=53", "ListenDatagram=/run/x.sock", "ListenSequentialPacket=/run/x.sock", "ListenStream=\nListenFIFO=/run/x"},
	"Socket.ReusePort":               {"ReusePort=1"},
	"Socket.SocketProtocol":          {"SocketProtocol=mptcp"},
	"Socket.RemoveOnStop":            {"RemoveOnStop=yes"},
	"Socket.FlushPending":            {"FlushPending=yes"},
	"Socket.Backlog":                 {"Backlog=128"},
}

func TestEachRuleFiresOnABrokenCopy(t *testing.T) {
	for _, of := range []struct {
		file  string
		rules []rule
	}{{"app.service", serviceRules}, {"app.socket", socketRules}} {
		clean, err := Read(filepath.Join(deploy, of.file))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range of.rules {
			key := r.section + "." + r.key
			if len(breaks[key]) == 0 {
				t.Errorf("no broken copy for %s", key)
			}
			for _, lines := range breaks[key] {
				broken := Unit{Name: clean.Name, Assignments: slices.Clone(clean.Assignments)}
				if err := broken.parse("broken.conf", "["+r.section+"]\n"+lines+"\n"); err != nil {
					t.Fatal(err)
				}
				found := Lint([]Unit{broken}, defaults)
				if len(found) != 1 || found[0].Key != key || found[0].Severity != r.severity || found[0].Why == "" || found[0].Want == "" {
					t.Errorf("%q: findings %v, want one of %s", lines, found, key)
				}
			}
		}
	}
	for key := range breaks {
		if !slices.ContainsFunc(slices.Concat(serviceRules, socketRules), func(r rule) bool { return r.section+"."+r.key == key }) {
			t.Errorf("%s is no rule", key)
		}
	}
}

func TestRightWaysOfOthersAreLeftAlone(t *testing.T) {
	for _, tt := range []struct{ file, section, lines string }{
		{"app.service", "Service", "DynamicUser=no\nUser=app"},
		{"app.service", "Service", "LimitNOFILE=infinity"},
		{"app.service", "Service", "SystemCallFilter=\nSystemCallFilter=~@clock"},
		{"app.service", "Service", "SystemCallFilter=\nSystemCallFilter=@system-service @debug"},
		{"app.service", "Service", "FileDescriptorStorePreserve=yes"},
		{"app.service", "Service", "TimeoutStopSec=infinity\nTimeoutStartSec=1min 30s"},
		{"app.service", "Service", "TimeoutStopSec="},
		{"app.service", "Service", "PrivateTmp=no\nDynamicUser=no\nUser=app\nEnvironment="},
		{"app.service", "Service", "NonBlocking=1\nRuntimeDirectoryPreserve=yes"},
		{"app.service", "Unit", "StartLimitBurst=\nStartLimitIntervalSec=0"},
		{"app.socket", "Socket", "TriggerLimitIntervalSec=\nTriggerLimitBurst=0"},
		{"app.socket", "Socket", "ListenStream=\nListenStream=/run/x.sock"},
		{"app.socket", "Socket", "ListenStream=\nListenDatagram=53"},
		{"app.socket", "Socket", "ListenStream=\nListenSequentialPacket=/run/app/seq.sock\nSocketMode=0660"},
		{"app.socket", "Socket", "ListenStream=\nListenDatagram=/run/app/log.sock\nSocketMode=0660"},
		{"app.target", "Service", "Type=simple"},
	} {
		u, err := Read(filepath.Join(deploy, tt.file))
		if err != nil {
			t.Fatal(err)
		}
		if err := u.parse("other.conf", "["+tt.section+"]\n"+tt.lines+"\n"); err != nil {
			t.Fatal(err)
		}
		if found := Lint([]Unit{u}, defaults); len(found) != 0 {
			t.Errorf("%q: %v", tt.lines, found)
		}
	}
}

func TestFindingNamesFileLineAndReason(t *testing.T) {
	u, err := Parse("app.socket", "[Socket]\nListenStream=80\nFileDescriptorName=\\\n  web\nTriggerLimitIntervalSec=2s\n")
	if err != nil {
		t.Fatal(err)
	}
	found := Lint([]Unit{u}, defaults)
	const want = "app.socket:5: error: Socket.TriggerLimitIntervalSec is \"2s\", want 0 (or TriggerLimitBurst=0)\n    many connections while"
	if len(found) != 1 || !strings.HasPrefix(found[0].String(), want) {
		t.Errorf("got  %v\nwant %s", found, want)
	}
	u.Assignments = u.Assignments[:2]
	if found := Lint([]Unit{u}, defaults); len(found) != 1 || !strings.HasPrefix(found[0].String(), "app.socket: error: Socket.TriggerLimitIntervalSec is not set, want 0") {
		t.Errorf("got %v", found)
	}
}

func TestTextOfSystemctlCatIsSeveralFiles(t *testing.T) {
	u, err := Parse("app.service", `# /usr/lib/systemd/system/app.service
# A comment of the file.
[Service]
Type=notify

# /etc/systemd/system/app.service.d/override.conf
[Service]
; another
Type=exec
`)
	if err != nil {
		t.Fatal(err)
	}
	a, ok := u.last("Service", "Type")
	if !ok || a.Value != "exec" || a.where() != "/etc/systemd/system/app.service.d/override.conf:3" {
		t.Errorf("%+v", a)
	}
}

func TestLinesThatAreNoUnitAreRefused(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"Type=notify", "a.service:1: \"Type=notify\", want KEY=VALUE within a [Section]"},
		{"[Service]\n\nType", "a.service:3: \"Type\", want KEY=VALUE"},
		{"[Service", "a.service:1: \"[Service\", want [Section]"},
		{"[]", "want [Section]"},
		{"[Service]\n=x", "a.service:2: "},
		{"[Service]\nA=b\\", "a.service:2: the last line goes on"},
		{strings.Repeat("#\n", maxUnit), "want at most"},
	} {
		if _, err := Parse("a.service", tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40q: %v, want %q", tt.text, err, tt.want)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.service")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestDropInsComeAfterTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.service")
	for name, text := range map[string]string{
		"a.service": "[Service]\nType=simple\nSockets=a.socket b.socket\n", "a.service.d/20.conf": "[Service]\nType=notify\n",
		"a.service.d/10.conf": "[Service]\nType=exec\n", "a.service.d/30.txt": "[Service]\nType=idle\n",
	} {
		if err := errors.Join(os.MkdirAll(path+".d", 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := Read(path)
	if a, _ := u.last("Service", "Type"); err != nil || a.Value != "notify" || a.where() != "20.conf:2" {
		t.Errorf("%+v, %v", a, err)
	}
	if got := u.Sockets(); !slices.Equal(got, []string{"a.socket", "b.socket"}) {
		t.Errorf("sockets %q", got)
	}
}

var spans = []struct {
	text string
	want time.Duration // 0: refused
}{
	{"90", 90 * time.Second}, {"100ms", 100 * time.Millisecond}, {"1min 30s", 90 * time.Second}, {"1h30min", 90 * time.Minute},
	{"1.5s", 1500 * time.Millisecond}, {"infinity", forever}, {"2 days", 48 * time.Hour}, {"999999999999w", forever},
	{"", 0}, {"soon", 0}, {"5 parsecs", 0}, {"-1s", 0}, {"1..2", 0},
}

func TestSpansOfTimeAreReadAsSystemdDoes(t *testing.T) {
	for _, tt := range spans {
		got, err := parseSpan(tt.text)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%q: %v, %v, want %v", tt.text, got, err, tt.want)
		}
	}
}

func FuzzUnit(f *testing.F) {
	for _, lines := range breaks {
		f.Add("[Service]\n" + lines[0])
	}
	for _, tt := range spans {
		f.Add("[Service]\nRestartSec=" + tt.text + "\\\n #x\nWatchdogSec=" + tt.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"a.service", "a.socket"} {
			u, err := Parse(name, text)
			if err != nil {
				continue
			}
			for _, finding := range Lint([]Unit{u}, defaults) {
				if finding.Want == "" || finding.Why == "" || finding.Got != "" && finding.Where == "" {
					t.Errorf("%+v", finding)
				}
			}
		}
	})
}

func TestKernelsLimitsAreJudgedByTheUnits(t *testing.T) {
	root := t.TempDir()
	write := func(name, value string) {
		path := filepath.Join(root, filepath.FromSlash(strings.ReplaceAll(name, ".", "/")))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(value+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := Parse("app.service", "[Service]\nLimitNOFILE=524288\n")
	if err != nil {
		t.Fatal(err)
	}
	lint := func() (keys []string) {
		for _, f := range lintKernel([]Unit{u}, root) {
			keys = append(keys, f.Key+"="+f.Got+", "+f.Want)
		}
		return keys
	}
	if got := lint(); len(got) != 0 {
		t.Errorf("findings %q where nothing can be read", got)
	}
	for _, s := range sysctls {
		write(s.name, map[bool]string{true: "0", false: "9223372036854775807"}[s.most])
	}
	if got := lint(); len(got) != 0 {
		t.Errorf("findings %q with limits that do", got)
	}
	for _, s := range sysctls {
		write(s.name, map[bool]string{true: "1", false: "128"}[s.most])
	}
	if u, err = Parse("app.service", "[Service]\nLimitNOFILE=524288\n[Socket]\nListenDatagram=53\n"); err != nil {
		t.Fatal(err)
	}
	want := []string{"net.core.somaxconn=128, at least 4096", "net.ipv4.tcp_max_syn_backlog=128, at least 1024",
		"net.ipv4.tcp_abort_on_overflow=1, 0", "fs.nr_open=128, at least 524288", "fs.file-max=128, at least 1048576"}
	if got := lint(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, where := range []string{"/run/x", "@x"} {
		if u, err = Parse("app.service", "[Service]\nLimitNOFILE=524288\n[Socket]\nListenDatagram="+where+"\n"); err != nil {
			t.Fatal(err)
		}
		want := slices.Insert(slices.Clone(want), 3, "net.unix.max_dgram_qlen=128, at least 512")
		if got := lint(); !slices.Equal(got, want) {
			t.Errorf("%s: got  %q\nwant %q", where, got, want)
		}
	}
}
