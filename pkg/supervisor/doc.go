// Package supervisor keeps a pool of workers alive: it spawns them, hands
// them the listening sockets, reaps and respawns them, replaces them by a
// new generation, scales, and ends them in order. No byte of a connection
// passes through it and no application code runs in it.
//
// # Invariants
//
//   - One goroutine, Run's, owns all slots and incarnations. Processes, their
//     pipes, timers, signals and operators only send it messages.
//   - What happens to a process is a row of the table in incarnation.go, what
//     happens to a place in the pool is a row of the table in slot.go. A pair
//     of state and event that is in neither is dropped, and the tests list
//     each such pair with the reason.
//   - A process is known by its pidfd: signals cannot hit a stranger, and it
//     is reaped by its own number before that number can be given away.
//   - The listening sockets are never closed, shut down or opened anew.
//   - A slot's serving worker is not asked to leave before its replacement
//     accepts connections and has lived through the bake time.
//   - A worker that leaves hands its connections over first, unless the whole
//     service ends: to the one that takes its place, else to all others. Who
//     owns a connection is told by its row; nothing here decides that.
//   - Nothing that a worker needs to serve is only in this process: when it
//     dies they serve on, and the next supervisor, one epoch higher, adopts
//     them. Where no service manager keeps what that takes, they drain.
//   - A dead worker keeps its seat and its place until its keeper is reaped
//     too: what it had open is closed before its successor starts.
//   - Every wait has a deadline: for readiness, for the end of a drain, for
//     the end of the service.
//
// # The walk of a worker
//
//	spawn    process.go      fork and exec, its descriptors, its pidfd
//	hello    incarnation.go  spawned -> unready
//	ready    incarnation.go  unready -> ready; slot.go: it may accept
//	retire   incarnation.go  ready -> draining
//	hand     handover.go     its connections go to others
//	exit     process.go      reaped, its last words collected
//	harvest  protect.go      its connections are taken out of its keeper,
//	         harvest.go      and given to others; the keeper is reaped
//	         slot.go         respawned, at once or after a delay
//
// Beside that: workers are told of one another in peers.go; connections are
// moved on request in move.go and spread in balance.go; what dead workers have
// counted is kept in metrics.go; whether the service serves is told in
// readiness.go; and the operator's command for a death is run in hook.go.
//
// What the next supervisor needs is stored in store.go and saved.go, and taken
// over in adopt.go.
//
// Start reading at the two tables, then reload.go.
package supervisor
