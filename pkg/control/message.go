// Package control is the operator's interface: a supervisor answers HTTP
// with JSON on a unix socket, and the command line, or curl, asks.
//
//	GET  /v1/status  Status
//	POST /v1/reload  ReloadRequest; a stream of Progress, one JSON object a
//	                 line, the last one has Done
//	POST /v1/scale   ScaleRequest; Done
//	POST /v1/stop    Done
//
// A refusal is an HTTP status of 400 and above with Problem as its body.
// Requests are bounded: MaxRequest bytes, a deadline for every read, a number
// of conversations at a time. Who may ask is decided by the mode of the
// socket (0660) and by the peer's credentials: root, the service's own user,
// and members of the socket's group.
//
// Start reading at Status; Server serves a Backend, Client asks a Server.
package control

// MaxRequest is the largest body of a request, in bytes.
const MaxRequest = 64 << 10

// States of the whole service, in Status.State.
const (
	StateStarting  = "starting"  // the first generation is not ready yet
	StateServing   = "serving"   // every slot has a ready worker
	StateDegraded  = "degraded"  // some slot has none, or the last reload was rolled back half-way
	StateReloading = "reloading" // a reload is under way
	StateStopping  = "stopping"  // the service drains
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
	Connections int64      `json:"connections"` // of all workers
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
	HeartbeatAgeMS int64  `json:"heartbeat_age_ms"` // -1: no heartbeat yet
	RSSBytes       int64  `json:"rss_bytes"`
	Handler        string `json:"handler,omitempty"` // listener of the callback that runs on the loop
	HandlerMS      int64  `json:"handler_ms,omitempty"`
	Respawns       uint64 `json:"respawns"`             // of the slot: deaths that were not asked for
	StartFailures  uint64 `json:"start_failures"`       // of the slot: those that died before they were ready
	RetryMS        int64  `json:"retry_ms,omitempty"`   // backing off: time until the next start
	Unready        string `json:"unready,omitempty"`    // why its application wants no new connections
	LastDeath      string `json:"last_death,omitempty"` // of the slot's last worker that died unasked, with its last words
}

// Reload is how a reload ended.
type Reload struct {
	Generation uint64 `json:"generation"` // the one that was to be
	OK         bool   `json:"ok"`
	Reason     string `json:"reason,omitempty"`
	At         string `json:"at"` // RFC 3339
	TookMS     int64  `json:"took_ms"`
}

// ReloadRequest asks for a reload.
type ReloadRequest struct {
	// Env are settings from the asker's environment, name to value: after
	// daemon-reload, the ExecReload helper has the drop-ins' new ones while
	// the supervisor still has the old. They replace the supervisor's own.
	// nil: the supervisor's own are kept.
	Env map[string]string `json:"env"`
	// Detach: do not wait, answer when the reload is queued.
	Detach bool `json:"detach,omitempty"`
}

// ScaleRequest asks for another number of workers.
type ScaleRequest struct {
	Pool string `json:"pool,omitempty"` // empty: the pool "worker"
	N    int    `json:"n"`
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
}

// Problem is the body of a refusal.
type Problem struct {
	Error string `json:"error"`
}
