package journal

import "go.uber.org/zap"

// Message ids: by these the journal knows the events that an operator looks
// for (journalctl MESSAGE_ID=...), and finds what the catalog
// deploy/journal/mainstay.catalog has to say of them (journalctl -x). An id
// never changes its meaning.
const (
	WorkerReady         = "3e0f8f0e5d7e4a5891b119dcc963349f" // a worker is ready to serve
	WorkerDied          = "d3b923c58e85479cb4b315dee374c973" // a worker died unasked
	WorkerFailedToStart = "37932d48a01f41638818e12326d961f9" // a worker died, or was killed, before it was ready
	WorkerHung          = "7693bff0e92a45ed919acc6a5d695cf1" // a worker did not turn any more and is killed
	ReloadDone          = "8eeffdb708e9407585963098e01d3dcb" // a new generation serves
	ReloadRolledBack    = "85e6a5a4994f48b9b01842780ed01009" // a reload failed and the old generation serves
	RolledBack          = "5fb1c2a4cf7a4f0c9d2b8e3b6a07d914" // somebody has returned to the last good release
	ServiceDegraded     = "8751320c8f58411bbe3b8cd5e54a9974" // some worker is missing, or not of the generation that serves
	ServiceWell         = "f29ae1e83a264b338d15701e5d8a63ab" // all workers are there again
	ListenerPaused      = "caa3f05455ab420483e51e41494dfe3f" // a worker cannot accept connections for now
	ListenerAccepting   = "ed903a2cdb944a8c8faa214092a4a256" // it can again
	WorkerHarvested     = "59e1d6b7a5a44a1ab7bb2f7a36e0c7f4" // what has become of the connections of a worker that died
	LinesDropped        = "d6c90e7f60bc42eda2492002f3fccca0" // lines of the log were dropped
)

// ID is the field by which a line carries a message id.
func ID(id string) zap.Field { return zap.String("message_id", id) }
