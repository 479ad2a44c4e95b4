package unit

import (
	"slices"
	"strings"
	"time"
)

// stopMargin is what the supervisor takes beyond stop_grace before it kills.
const stopMargin = 5 * time.Second

// fileMargin is how many descriptors a supervisor has beside those that are
// stored, at the moment of its start: its sockets and its own.
const fileMargin = 256

// minFiles is how many connections a worker's descriptor table is made for.
const minFiles = 65536

func is(words ...string) func(string, Unit, Context) bool {
	return func(v string, _ Unit, _ Context) bool { return slices.Contains(words, v) }
}

func yes(v string, _ Unit, _ Context) bool { return isYes(v) }
func no(v string, _ Unit, _ Context) bool  { return !isYes(v) }
func set(v string, _ Unit, _ Context) bool { return v != "" }

// serviceRules are those of the service unit.
var serviceRules = []rule{
	{"Service", "Type", Error, "notify",
		"notify-reload cannot report that a reload was rolled back, and the other types do not know when the workers are ready",
		is("notify")},
	{"Service", "NotifyAccess", Error, "main, which is the default",
		"only the supervisor speaks to systemd: a worker's word must not count as the service's",
		is("", "main")},
	{"Service", "NonBlocking", Error, "yes",
		"otherwise each start makes the shared listening sockets blocking again, under workers that outlived the supervisor before: they would hang in accept",
		yes},
	{"Service", "ExecReload", Error, "... reload --wait",
		"without --wait `systemctl reload` succeeds before anything has happened, and a reload that was rolled back counts as done",
		func(_ string, u Unit, _ Context) bool {
			return slices.ContainsFunc(u.all("Service", "ExecReload"), func(a Assignment) bool {
				words := strings.Fields(a.Value)
				return slices.Contains(words, "reload") && slices.Contains(words, "--wait")
			})
		}},
	{"Service", "ExecStopPost", Warning, "... reap",
		"after an orderly stop it kills what was left in the control group; KillMode=process leaves it alone",
		func(_ string, u Unit, _ Context) bool {
			return slices.ContainsFunc(u.all("Service", "ExecStopPost"), func(a Assignment) bool {
				return slices.Contains(strings.Fields(a.Value), "reap")
			})
		}},
	{"Service", "KillMode", Error, "process",
		"with the default, control-group, a crash of the supervisor ends every connection; with process its workers serve on",
		is("process")},
	{"Service", "FileDescriptorStoreMax", Warning, "{store} or more, five for each worker and as many again for a reload",
		"what makes a supervisor its workers' is stored there: without it they drain when it dies or is restarted, and whoever has not left by then is cut off",
		func(v string, _ Unit, c Context) bool {
			n, ok := parseLimit(v)
			return ok && n >= uint64(c.store())
		}},
	{"Service", "FileDescriptorStorePreserve", Error, "restart, which is the default, or yes",
		"with no the store is emptied at a restart, and the workers with nobody to adopt them drain",
		is("", "restart", "yes")},
	{"Service", "KillSignal", Error, "SIGTERM, which is the default",
		"SIGHUP, SIGUSR1 and SIGUSR2 mean reload; others kill the supervisor before it could drain its workers",
		is("", "SIGTERM", "TERM", "15", "SIGINT", "INT", "2")},
	{"Service", "RestartKillSignal", Error, "SIGRTMIN+1",
		"it tells `systemctl restart` from `systemctl stop`: otherwise a restart ends all connections as a stop does, instead of leaving the workers to the next supervisor",
		is("SIGRTMIN+1")},
	{"Service", "SuccessExitStatus", Error, "SIGRTMIN+1 in it",
		"a restart that is asked for in the first millisecond of the supervisor kills it: as a failure that ends in OnFailure=, which kills the workers",
		func(_ string, u Unit, _ Context) bool {
			return slices.ContainsFunc(u.all("Service", "SuccessExitStatus"), func(a Assignment) bool {
				words := strings.Fields(a.Value)
				return slices.Contains(words, "SIGRTMIN+1") || slices.Contains(words, "RTMIN+1")
			})
		}},
	{"Service", "Restart", Error, "on-failure",
		"a crash of the supervisor must be answered by a start; but with always, `stop` is undone by systemd",
		is("on-failure", "on-abnormal")},
	{"Service", "RestartMode", Warning, "direct (systemd 254 and later)",
		"otherwise a restart passes through failed, where OnFailure= kills the workers",
		is("direct")},
	{"Service", "RestartSec", Warning, "at most 1s",
		"new connections wait in the listening socket for so long after each crash",
		func(v string, _ Unit, _ Context) bool {
			d, err := parseSpan(v)
			return v == "" || err == nil && d <= time.Second
		}},
	{"Service", "RestartPreventExitStatus", Warning, "78",
		"with that exit code a start has refused its configuration, which is no better the next time",
		func(_ string, u Unit, _ Context) bool {
			return slices.ContainsFunc(u.all("Service", "RestartPreventExitStatus"), func(a Assignment) bool {
				words := strings.Fields(a.Value)
				return slices.Contains(words, "78") || slices.Contains(words, "CONFIG")
			})
		}},
	{"Service", "ExitType", Error, "main, which is the default",
		"with cgroup a supervisor that has died is not started again as long as one of its workers drains",
		is("", "main")},
	{"Service", "OOMPolicy", Error, "continue",
		"the default, stop, ends the whole service because the kernel has killed one worker",
		is("continue")},
	{"Service", "LimitNOFILE", Error, "at least 65536, with a soft limit of 256 more than FileDescriptorStoreMax=",
		"each connection is a descriptor, and a worker makes its descriptor table for so many at its start; what is not set is 524288 in systemd's defaults, but a distribution's or a container's may be 1024. With a soft limit below what is stored systemd cannot start the service any more (202/FDS, again and again); and so many descriptors may be on their way between workers",
		func(v string, u Unit, _ Context) bool {
			soft, hard, _ := strings.Cut(v, ":")
			if hard == "" {
				hard = soft
			}
			least, ok := parseLimit(soft)
			most, ok2 := parseLimit(hard)
			stored, _ := u.last("Service", "FileDescriptorStoreMax")
			n, _ := parseLimit(stored.Value)
			return ok && ok2 && most >= minFiles && least >= n+fileMargin
		}},
	{"Service", "SystemCallFilter", Error, "pidfd_getfd in it, if there is a filter",
		"it is part of @debug and not of @system-service: without it nobody reaches the connections of a worker that died, and they end with it",
		func(_ string, u Unit, _ Context) bool {
			lists, allowed := false, false
			for _, a := range u.all("Service", "SystemCallFilter") {
				denied, isDenied := strings.CutPrefix(a.Value, "~")
				words := strings.Fields(denied)
				names := slices.Contains(words, "pidfd_getfd") || slices.Contains(words, "@debug") || slices.Contains(words, "@known")
				switch {
				case isDenied && names:
					return false
				case !isDenied:
					lists, allowed = true, allowed || names
				}
			}
			return !lists || allowed
		}},
	{"Service", "Delegate", Error, "no, which is the default",
		"a cgroup of its own for each worker keeps systemd from starting the service anew while those workers live: the restart after a crash fails for ever",
		no},
	{"Service", "PrivatePIDs", Error, "no, which is the default",
		"the kernel ends all processes of the namespace with the supervisor, which is the first of it",
		no},
	{"Service", "RestartSteps", Warning, "0, which is the default",
		"each start that fails would delay the next one more, beyond the time for which the workers wait for a supervisor",
		is("", "0")},
	{"Service", "RuntimeDirectory", Error, "a directory",
		"the control socket is bound there, and the mark of an orderly stop; nobody else can write it",
		set},
	{"Service", "RuntimeDirectoryPreserve", Error, "restart",
		"by default the directory is removed at every exit, and the control socket of the next supervisor or the workers' temporary files with it",
		is("restart", "yes")},
	{"Service", "Environment", Warning, "TMPDIR=%t/... in it",
		"PrivateTmp= (part of DynamicUser=) is emptied when the supervisor ends, under workers that still drain; the runtime directory is not",
		func(_ string, u Unit, _ Context) bool {
			private, _ := u.last("Service", "PrivateTmp")
			dynamic, _ := u.last("Service", "DynamicUser")
			if !isYes(private.Value) && !isYes(dynamic.Value) {
				return true
			}
			return slices.ContainsFunc(u.all("Service", "Environment"), func(a Assignment) bool {
				return slices.ContainsFunc(strings.Fields(a.Value), func(w string) bool { return strings.HasPrefix(strings.Trim(w, `"'`), "TMPDIR=%t/") })
			})
		}},
	{"Service", "PrivateUsers", Error, "no, which is the default",
		"each start would get a user namespace of its own, from which the processes of the supervisor before cannot be reached",
		is("", "no", "false", "off", "0")},
	{"Service", "TimeoutStopSec", Error, "more than stop_grace, which is {stop_grace}, and 5s",
		"systemd would kill the supervisor while its workers still finish what is open, and leave them without it",
		func(v string, _ Unit, c Context) bool {
			if v == "" {
				v = "90s"
			}
			d, err := parseSpan(v)
			return err == nil && d > c.StopGrace+stopMargin
		}},
	{"Service", "TimeoutStartSec", Error, "at least start_timeout, which is {start_timeout}",
		"it bounds start and reload until the first worker is ready; after that each step lengthens it",
		func(v string, _ Unit, c Context) bool {
			if v == "" {
				v = "90s"
			}
			d, err := parseSpan(v)
			return err == nil && d >= c.StartTimeout
		}},
	{"Service", "WatchdogSec", Warning, "2s or more, such as 20s",
		"a supervisor that hangs is noticed by nobody else; below 2s a loaded machine is taken for one",
		func(v string, _ Unit, _ Context) bool {
			d, err := parseSpan(v)
			return err == nil && d >= 2*time.Second
		}},
	{"Service", "DynamicUser", Warning, "yes, or User= another than root",
		"the service needs no privilege: its sockets are handed to it",
		func(v string, u Unit, _ Context) bool {
			user, ok := u.last("Service", "User")
			return isYes(v) || ok && user.Value != "root" && user.Value != "0"
		}},
	{"Unit", "StartLimitBurst", Warning, "10 or more (or StartLimitIntervalSec=0)",
		"a unit that was started too often fails, and its sockets with it: the ports are closed. The default is 5 starts in 10s, those by hand included",
		func(v string, u Unit, _ Context) bool {
			if i, ok := u.last("Unit", "StartLimitIntervalSec"); ok && (i.Value == "0" || i.Value == "0s") {
				return true
			}
			n, ok := parseLimit(v)
			return ok && n >= 10
		}},
	{"Unit", "OnFailure", Warning, "a unit that kills what is left, as app-reap.service does",
		"after the final failure nobody adopts workers that are still there",
		set},
}

// socketRules are those of socket units.
var socketRules = []rule{
	{"Socket", "FileDescriptorName", Error, "the listener's name",
		"listeners are found by name: their order between units is random, and the default is the unit's own name",
		set},
	{"Socket", "TriggerLimitIntervalSec", Error, "0 (or TriggerLimitBurst=0)",
		"many connections while the service is down or starting would put the socket into failed, and close the port",
		func(v string, u Unit, _ Context) bool {
			burst, _ := u.last("Socket", "TriggerLimitBurst")
			return v == "0" || v == "0s" || burst.Value == "0"
		}},
	{"Socket", "Accept", Error, "no, which is the default",
		"with yes systemd accepts, and starts a service for each connection",
		no},
	{"Socket", "ListenStream", Error, "one address a unit",
		"two listening sockets of one unit have the same name",
		func(_ string, u Unit, _ Context) bool {
			return len(u.all("Socket", "ListenStream"))+len(u.all("Socket", "ListenDatagram"))+len(u.all("Socket", "ListenSequentialPacket")) == 1
		}},
	{"Socket", "ReusePort", Error, "no, which is the default",
		"several sockets on a port share the connections that wait: what waits in the one that is closed is reset",
		no},
	{"Socket", "SocketProtocol", Error, "not set",
		"with mptcp or sctp the kernel does not count bytes as it does for TCP: connections end with their worker",
		is("")},
	{"Socket", "RemoveOnStop", Warning, "no, which is the default",
		"the path of a unix socket would be gone for all who connect while the socket unit is restarted, although workers still serve",
		no},
	{"Socket", "FlushPending", Warning, "no, which is the default",
		"with yes, connections that wait when the service exits are dropped instead of served by the next one",
		no},
	{"Socket", "Backlog", Warning, "at least 1024, or nothing, which is as many as the kernel allows",
		"connections wait there while the service restarts; those beyond it are refused",
		func(v string, _ Unit, _ Context) bool {
			n, ok := parseLimit(v)
			return v == "" || ok && n >= 1024
		}},
}

// goodBacklog is what a burst of clients that come back at once may need.
const goodBacklog = 4096

func atLeast(n uint64) func([]Unit) uint64 { return func([]Unit) uint64 { return n } }

// files is the largest LimitNOFILE= of the services.
func files(units []Unit) uint64 {
	most := uint64(0)
	for _, u := range units {
		if a, ok := u.last("Service", "LimitNOFILE"); ok {
			if n, ok := parseLimit(a.Value); ok && a.Value != "infinity" {
				most = max(most, n)
			}
		}
	}
	return most
}

// unixDatagrams is what systemd sets for its own sockets, if one of the units
// has a unix datagram socket.
func unixDatagrams(units []Unit) uint64 {
	for _, u := range units {
		for _, a := range u.all("Socket", "ListenDatagram") {
			if strings.HasPrefix(a.Value, "/") || strings.HasPrefix(a.Value, "@") {
				return 512
			}
		}
	}
	return 0
}

// sysctls are the kernel's limits. net.ipv4.tcp_migrate_req is not among them:
// there is one listening socket, which is never closed, so there is nothing
// to migrate.
var sysctls = []sysctl{
	{name: "net.core.somaxconn", want: atLeast(goodBacklog),
		why: "it caps the backlog of every listening socket: connections that come while all workers are busy or the service restarts are refused beyond it"},
	{name: "net.ipv4.tcp_max_syn_backlog", want: atLeast(1024),
		why: "beyond so many half-open connections SYN cookies are sent, or SYNs are dropped and clients wait a second"},
	{name: "net.ipv4.tcp_abort_on_overflow", want: atLeast(0), most: true,
		why: "a connection that finds the backlog full would be reset instead of trying again"},
	{name: "net.unix.max_dgram_qlen", want: unixDatagrams,
		why: "so many datagrams wait in the socket while all workers are busy or the service restarts; who sends more is held up"},
	{name: "fs.nr_open", want: files,
		why: "no process may have a higher LimitNOFILE=: the service would not start"},
	{name: "fs.file-max", want: func(units []Unit) uint64 { return 2 * files(units) },
		why: "it bounds the open files of the whole machine; at that number every worker fails to accept at once"},
}
