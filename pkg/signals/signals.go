// Package signals takes over the supervisor's signals as early as a Go program
// can.
//
// A signal of which nobody has told the Go runtime that he wants it ends the
// process, or, as that of a restart, is dropped without a trace: the service
// manager would then wait for an end that nobody knows of. A supervisor reads
// files and adopts workers before it comes to act on signals, so they are
// collected from the start of the process on. Invariants:
//
//   - Restart is collected from the initialization of this package on, in every
//     process that has it. Elsewhere than in a supervisor that changes nothing:
//     Go drops it unless somebody wants it.
//   - The others are collected from Watch on, which the role of the supervisor
//     calls first: in every other role they do what they do in any program.
//   - What is collected waits until it is received, up to 16 signals.
//
// What is left is the time from exec(2) to this package's initialization. For
// the most of it the runtime is not there yet, and every signal kills. In the rest
// it drops Restart, which no process can find out by itself: the supervisor asks
// the service manager.
//
// Start reading at Watch.
package signals

import (
	"os"
	"os/signal"
	"syscall"
)

// Restart is SIGRTMIN+1 as systemd counts (RestartKillSignal=): the service
// ends, but only to be started again at once.
const Restart = syscall.Signal(35)

// collected is where all signals go. It is made while the package is
// initialized, which this package's few imports let come early.
var collected = collect()

func collect() chan os.Signal {
	c := make(chan os.Signal, 16)
	signal.Notify(c, Restart)
	return c
}

// Watch takes over the signals by which a supervisor is told to stop (SIGTERM,
// SIGINT), to leave for another (Restart), to reload (SIGHUP, SIGUSR1,
// SIGUSR2) and to scale (SIGTTIN, SIGTTOU), and has SIGPIPE ignored: a journal
// that goes away must not end the service. It returns where they are received;
// all callers share that, as the signals are the process's. Any goroutine may
// call it.
func Watch() <-chan os.Signal {
	signal.Ignore(syscall.SIGPIPE)
	signal.Notify(collected, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGTTIN, syscall.SIGTTOU, Restart)
	return collected
}

// Unwatch gives back what Watch has taken over: from then on the signals do
// what they do in any program. Any goroutine may call it.
func Unwatch() { signal.Stop(collected) }
