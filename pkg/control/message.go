// Package control is the operator's interface: a supervisor answers HTTP
// with JSON on a unix socket, and the command line, or curl, asks.
//
//	GET  /v1/status       Status
//	GET  /v1/examine      Examination
//	GET  /v1/connections  ?listener= &peer= &limit= &sort=; Connections
//	GET  /v1/events       a stream of Event, one JSON object a line: those
//	                      that are remembered, then those that happen, until
//	                      the asker leaves; ?follow=false: the former only
//	POST /v1/reload       ReloadRequest; a stream of Progress, one JSON object
//	                      a line, the last one has Done
//	POST /v1/rollback     as reload, without a body
//	POST /v1/scale        ScaleRequest; Done
//	POST /v1/recycle      SlotRequest; Done
//	POST /v1/drain        SlotRequest; Done
//	POST /v1/resume       SlotRequest; Done
//	POST /v1/move         MoveRequest; Moved
//	POST /v1/rebalance    RebalanceRequest; Rebalanced
//	POST /v1/stop         Done
//
// A refusal is an HTTP status of 400 and above with Problem as its body.
// Requests are bounded: MaxRequest bytes, a deadline for every read, a number
// of conversations at a time. Who may ask is decided by the mode of the
// socket (0660) and by the peer's credentials: root, the service's own user,
// and members of the socket's group.
//
// Start reading at Status; Server serves a Backend, Client asks a Server.
package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxRequest is the largest body of a request, in bytes.
const MaxRequest = 64 << 10

// States of the whole service, in Status.State.
const (
	StateStarting  = "starting"  // the first generation is not ready yet
	StateServing   = "serving"   // every slot has a ready worker
	StateDegraded  = "degraded"  // some slot has none, or the last reload was rolled back half-way
	StateReloading = "reloading" // a reload is under way
	StateStopping  = "stopping"  // the service drains
	StateOrphaned  = "orphaned"  // there is no supervisor, and workers serve on: told by the command line, not by a server
)

// Status is how the service is at one moment.
type Status struct {
	Service     string     `json:"service"`
	Version     string     `json:"version"` // of the supervisor
	PID         int        `json:"pid"`     // of the supervisor
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"` // why it is degraded, or what it waits for
	Generation  uint64     `json:"generation"`       // the one that serves
	UptimeMS    int64      `json:"uptime_ms"`        // of the supervisor
	Listeners   []Listener `json:"listeners"`
	Pools       []Pool     `json:"pools"`
	LastReload  *Reload    `json:"last_reload,omitempty"`
	Release     Release    `json:"release"`             // what the workers run
	LastGood    *Release   `json:"last_good,omitempty"` // to which rollback returns; nil: there is none
	Connections int64      `json:"connections"`         // of all workers

	Certificates []Certificate `json:"certificates,omitempty"` // that the listeners of this generation have, for TLS

	Strangers []Stranger `json:"strangers,omitempty"` // processes in the unit's cgroup that nobody supervises

	// Of the connections of workers that died, since the supervisor's start.

	Kept uint64 `json:"connections_kept"` // other workers have them
	Torn uint64 `json:"connections_torn"` // ended with their worker, because something was under way
}

// Release is a program and a configuration as they were when a generation was
// made of them. Both are held open, whatever becomes of the files.
type Release struct {
	Generation uint64 `json:"generation"`
	Build      string `json:"build,omitempty"`    // as its workers said
	Executable string `json:"executable"`         // the path of its program
	Replaced   bool   `json:"replaced,omitempty"` // another file is there now, or none
}

// Certificate is one that a listener shows its clients.
type Certificate struct {
	Listener string    `json:"listener"`
	Name     string    `json:"name"` // its first host name, or its common name
	Expires  time.Time `json:"expires"`
}

// Stranger is a process in the unit's cgroup that is neither the supervisor, nor
// a worker of it or a worker's keeper, nor started by one of those.
type Stranger struct {
	PID     int    `json:"pid"`
	Name    string `json:"name"`
	Kind    string `json:"kind"`    // worker or keeper, of an earlier supervisor; other
	AgeMS   int64  `json:"age_ms"`  // since it was seen first
	Account string `json:"account"` // what it is, and what will become of it
}

// Examination is what a supervisor says of itself to a doctor.
type Examination struct {
	PID           int      `json:"pid"`
	Stores        bool     `json:"stores"`              // the service manager keeps descriptors for it
	Stored        int      `json:"stored"`              // descriptors that it has asked to be kept
	StoreMax      int      `json:"store_max,omitempty"` // that are kept at most; 0: not known, as before systemd 254
	StoreNeed     int      `json:"store_need"`          // at most, in a reload
	FilesSoft     uint64   `json:"files_soft"`          // RLIMIT_NOFILE
	FilesHard     uint64   `json:"files_hard"`
	FilesNeed     int      `json:"files_need"`               // at most, in a reload
	Open          int      `json:"open"`                     // files
	Cgroup        string   `json:"cgroup,omitempty"`         // that is the service's alone
	Blocking      []string `json:"blocking,omitempty"`       // listeners that were blocking when they were handed over
	Unprotected   string   `json:"unprotected,omitempty"`    // why it cannot reach the connections of a dead worker
	Trial         *Trial   `json:"trial,omitempty"`          // nil: there was none, since it cannot reach them or had no time
	ConfigDiffers bool     `json:"config_differs,omitempty"` // what is on disk is not what runs
	ConfigError   string   `json:"config_error,omitempty"`   // why what is on disk cannot be used
	LinesDropped  uint64   `json:"lines_dropped"`            // of its log
}

// Trial is what has come of a worker that was started for the trial where the
// workers run, beside them, and killed.
type Trial struct {
	Connections int    `json:"connections"`     // that it was given
	Back        int    `json:"back"`            // that came out of its keeper, and carried a byte
	TookNS      int64  `json:"took_ns"`         // from its start to the last of them
	Error       string `json:"error,omitempty"` // why not all came back
}

// Listener is a socket the service listens on.
type Listener struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	Serve     string `json:"serve,omitempty"` // the kind of its protocol, where it has a name
	Inherited bool   `json:"inherited"`       // from systemd; otherwise bound by the supervisor itself
}

// Pool is a pool of workers.
type Pool struct {
	Name     string   `json:"name"`
	Want     int      `json:"want"`  // slots
	Ready    int      `json:"ready"` // slots whose worker takes new connections
	Respawns uint64   `json:"respawns"`
	Workers  []Worker `json:"workers"` // by slot; draining ones behind the one that serves
}

// Worker is one process, or a slot that has none at the moment.
type Worker struct {
	Slot           int    `json:"slot"`
	PID            int    `json:"pid"` // 0: no process
	Incarnation    uint64 `json:"incarnation"`
	Generation     uint64 `json:"generation"`
	Build          string `json:"build,omitempty"`
	State          string `json:"state"` // of its process: spawned, unready, ready, late, draining, overdue; or of a slot that has none: backing off, starting
	UptimeMS       int64  `json:"uptime_ms"`
	Connections    int64  `json:"connections"`
	Accepts        uint64 `json:"accepts"`
	Messages       uint64 `json:"messages"`
	BytesIn        uint64 `json:"bytes_in"`
	BytesOut       uint64 `json:"bytes_out"`
	SendFailures   uint64 `json:"send_failures"`
	Panics         uint64 `json:"panics"`
	Timers         int64  `json:"timers"`
	QueueBytes     int64  `json:"queue_bytes"`
	Given          uint64 `json:"handoffs_given"`   // connections that another worker has taken
	Taken          uint64 `json:"handoffs_taken"`   // connections taken from another worker
	Refused        uint64 `json:"handoffs_refused"` // offers of other workers that it refused
	Thawed         uint64 `json:"handoffs_thawed"`  // connections that it offered and that stayed
	LongestStallUS uint64 `json:"longest_stall_us"` // the longest time that one it gave stood still
	HeartbeatAgeMS int64  `json:"heartbeat_age_ms"` // -1: no heartbeat yet
	RSSBytes       int64  `json:"rss_bytes"`
	CPUMS          int64  `json:"cpu_ms"`            // processor time since its start
	Handler        string `json:"handler,omitempty"` // listener of the callback that runs on the loop
	HandlerMS      int64  `json:"handler_ms,omitempty"`
	Respawns       uint64 `json:"respawns"`             // of the slot: deaths that were not asked for
	StartFailures  uint64 `json:"start_failures"`       // of the slot: those that died before they were ready
	RetryMS        int64  `json:"retry_ms,omitempty"`   // backing off: time until the next start
	Unready        string `json:"unready,omitempty"`    // why its application wants no new connections
	KeeperPID      int    `json:"keeper_pid,omitempty"` // of the process that holds its sockets beyond its death
	Protection     string `json:"protection,omitempty"` // "protected": its connections outlive it; "unprotected: " and why not
	LastDeath      string `json:"last_death,omitempty"` // of the slot's last worker that died unasked, with its last words
}

// Reload is how a reload ended.
type Reload struct {
	Generation uint64 `json:"generation"` // the one that was to be
	OK         bool   `json:"ok"`
	Back       bool   `json:"back,omitempty"` // a rollback that somebody asked for
	Reason     string `json:"reason,omitempty"`
	At         string `json:"at"` // RFC 3339
	TookMS     int64  `json:"took_ms"`

	// What the workers that were replaced have done with their connections,
	// in sum.

	Moved          int   `json:"moved"`
	Left           int   `json:"left"` // that the old workers keep and drain
	Lost           int   `json:"lost"` // with workers that died over it
	LongestStallUS int64 `json:"longest_stall_us"`
}

// ReloadRequest asks for a reload.
type ReloadRequest struct {
	// Env are settings from the asker's environment, name to value: after
	// daemon-reload, the ExecReload helper has the drop-ins' new ones while
	// the supervisor still has the old. They replace the supervisor's own.
	// nil: the supervisor's own are kept, and systemd, which does not know of
	// this reload, is told of it.
	Env map[string]string `json:"env"`
	// Detach: do not wait, answer when the reload is queued.
	Detach bool `json:"detach,omitempty"`
}

// ScaleRequest asks for another number of workers.
type ScaleRequest struct {
	Pool string `json:"pool,omitempty"` // empty: the pool "worker"
	N    int    `json:"n"`
}

// Orders in which connections are listed. Each begins with what an operator
// looks for: the longest idle, the oldest, the fullest queue, the most bytes.
const (
	SortIdle  = "idle"
	SortAge   = "age"
	SortQueue = "queue"
	SortBytes = "bytes"
)

// Sorts are all orders, the default first.
var Sorts = []string{SortAge, SortIdle, SortQueue, SortBytes}

// Bounds of ConnectionsRequest.Limit.
const (
	DefaultLimit = 100
	MaxLimit     = 10000
)

// ConnectionsRequest asks for connections.
type ConnectionsRequest struct {
	Listener string `json:"listener,omitempty"` // only of this listener; empty: of all
	// Peer is an address (192.0.2.1, 2001:db8::1), an address with its port
	// as Connection.Peer has it, or a prefix (192.0.2.0/24): only of such
	// peers. Anything else is the beginning of Connection.Peer, for unix
	// sockets. Empty: of all.
	Peer  string `json:"peer,omitempty"`
	Limit int    `json:"limit"` // of the answer; 0: DefaultLimit
	Sort  string `json:"sort"`  // one of Sorts; empty: the first
}

// Check fills in the defaults. It fails, with ErrInvalid, if the order is
// unknown or the limit is not in 1..MaxLimit.
func (r *ConnectionsRequest) Check() error {
	if r.Limit == 0 {
		r.Limit = DefaultLimit
	}
	if r.Sort == "" {
		r.Sort = Sorts[0]
	}
	if r.Limit < 1 || r.Limit > MaxLimit {
		return fmt.Errorf("%w: limit %d, want 1 to %d", ErrInvalid, r.Limit, MaxLimit)
	}
	if !slices.Contains(Sorts, r.Sort) {
		return fmt.Errorf("%w: order %q, want one of %s", ErrInvalid, r.Sort, strings.Join(Sorts, ", "))
	}
	return nil
}

// Connections is what the workers say of their connections.
type Connections struct {
	Matching    int          `json:"matching"`         // how many there are; more than len(Connections) if Limit cut them
	Silent      []Silent     `json:"silent,omitempty"` // workers whose connections are missing here
	Connections []Connection `json:"connections"`      // in the order asked for
}

// Silent is a worker that has not answered.
type Silent struct {
	Pool        string `json:"pool"`
	Slot        int    `json:"slot"`
	PID         int    `json:"pid"`
	Connections int64  `json:"connections"` // as it counted last
	Reason      string `json:"reason"`
}

// Connection is an open connection of a worker.
type Connection struct {
	Pool       string `json:"pool"`
	Slot       int    `json:"slot"`
	PID        int    `json:"pid"`
	Generation uint64 `json:"generation"`
	ID         uint64 `json:"id"` // no other connection of this worker process has it
	Listener   string `json:"listener"`
	Peer       string `json:"peer"`
	Local      string `json:"local"`
	State      string `json:"state"` // open, paused, full (the peer reads too slowly), closing; net/http: new, active, idle
	AgeMS      int64  `json:"age_ms"`
	IdleMS     int64  `json:"idle_ms"` // since the last byte in or out
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
	Buffered   int    `json:"buffered"`         // bytes read that are no whole message yet
	Queued     int    `json:"queued"`           // bytes that wait to be sent
	Messages   int    `json:"messages"`         // that wait for the pool
	Mortal     string `json:"mortal,omitempty"` // why it ends if its worker is killed, even between two messages; empty: it need not
}

// SortConnections puts all into an order of Sorts.
func SortConnections(all []Connection, order string) {
	key := func(c Connection) int64 {
		switch order {
		case SortIdle:
			return c.IdleMS
		case SortQueue:
			return int64(c.Queued)
		case SortBytes:
			return int64(c.BytesIn + c.BytesOut)
		default:
			return c.AgeMS
		}
	}
	slices.SortStableFunc(all, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(key(b), key(a)), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.PID, b.PID), cmp.Compare(a.ID, b.ID))
	})
}

// Progress is a step of work that is under way.
type Progress struct {
	Message string `json:"message"`
	Done    bool   `json:"done,omitempty"` // the last one
	OK      bool   `json:"ok,omitempty"`   // with Done
}

// Done answers what is done at once.
type Done struct {
	Message string `json:"message"`
	// Handovers are those of the workers that leave because of it.
	Handovers []Handover `json:"handovers,omitempty"`
}

// Problem is the body of a refusal.
type Problem struct {
	Error string `json:"error"`
}
