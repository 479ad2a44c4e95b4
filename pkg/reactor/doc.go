// Package reactor is the loop that waits for descriptors. It knows
// descriptors, epoll(7), wake-ups and timers; it knows nothing of
// connections.
//
// One turn of a Loop is: wait, dispatch the events, run what the turn before
// left (NextTurn) and what waits for that (AfterEvents), expire deadlines, fire timers, run what was posted (Post),
// run what was left for the turn's end (AtTurnEnd), Options.OnTurn.
//
// Invariants: everything a loop calls, it calls on the goroutine that called
// Run, one after the other; the clock is read once a turn; registrations are
// level-triggered; an event never reaches a handler that was removed, nor the
// next user of its descriptor; a descriptor is taken out of epoll before it
// leaves the loop, since a registration outlives close(2) while another
// process holds the same open file.
//
// Start reading at Loop.Run in loop.go; then epoll.go (the only place that
// knows the system calls), table.go (tokens), wheel.go (deadlines, coarse and
// cheap) and timer.go (timers of the application).
package reactor
