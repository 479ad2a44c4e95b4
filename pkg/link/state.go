package link

// State is a worker's own word on how far it is, on its seat of the
// scoreboard.
type State uint32

// The states of a worker, in the order in which it passes them.
const (
	// StateStarting: from exec until OnWorkerStart has returned.
	StateStarting State = iota
	// StateReady: it could serve and waits to be told to accept.
	StateReady
	// StateServing: it accepts connections.
	StateServing
	// StateDraining: it accepts no more and finishes what is open.
	StateDraining
	// StateStopping: its connections are gone, OnWorkerStop runs.
	StateStopping
)

// String returns the state in lower case, "unknown" for a foreign value.
func (s State) String() string {
	switch s {
	case StateStarting:
		return "starting"
	case StateReady:
		return "ready"
	case StateServing:
		return "serving"
	case StateDraining:
		return "draining"
	case StateStopping:
		return "stopping"
	}
	return "unknown"
}
