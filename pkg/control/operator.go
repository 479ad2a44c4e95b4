package control

// SlotRequest names a worker's place.
type SlotRequest struct {
	Pool string `json:"pool,omitempty"` // empty: the pool "worker"
	Slot int    `json:"slot"`
}

// Event is something that has happened to the service.
type Event struct {
	At          string            `json:"at"`   // RFC 3339 with nanoseconds
	Kind        string            `json:"kind"` // worker-ready, worker-died, reload-done, ...
	Pool        string            `json:"pool,omitempty"`
	Slot        int               `json:"slot"` // -1: it concerns no worker
	Generation  uint64            `json:"generation,omitempty"`
	Incarnation uint64            `json:"incarnation,omitempty"`
	PID         int               `json:"pid,omitempty"`
	Message     string            `json:"message"`
	Fields      map[string]string `json:"fields,omitempty"`
}
