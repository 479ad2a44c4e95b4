// Package worker is the life of a worker process: it takes over what the
// supervisor has handed to it, serves, drains and ends.
//
// # The walk
//
//	inherit  link.Inherit    before Run: identity, sockets, control socket
//	prepare  worker.go       signals, descriptor table, seat, loop
//	start    worker.go       Hello; the application's OnStart, beside the turning loop
//	turn     evidence.go     each turn stamps the seat: what the supervisor judges by
//	ready    worker.go       standard error takes the place of the pipe; Ready
//	accept   accept.go       from Accept on: listener into connections, or into net/http (http.go);
//	         gate.go         whom it takes; tls.go: what is common to those that speak TLS
//	         httptls.go      the handshakes of net/http's connections, and which record layer these get
//	upgrade  httpmove.go     a handler of net/http gives its connection to the loop
//	dial     dial.go         connections to elsewhere, from OnStart on
//	drain    drain.go        leave the listeners, say Draining, finish what is open
//	end      background.go   what Worker.Go has started returns
//	exit     drain.go        OnStop, close everything, Run returns
//
// # Invariants
//
//   - The loop's goroutine owns the Worker's state; everything else posts to
//     it. OnStart, OnDrain and OnStop have goroutines of their own, so the
//     loop turns, and the heartbeat goes on, while they wait for something.
//   - Nothing is accepted before the supervisor said Accept, and nothing
//     after Draining was sent.
//   - No connection waits because this worker was woken for it and left: it
//     takes its listeners out of epoll first and then says Draining, and the
//     supervisor has all others watch the listeners anew. Connections that
//     wait stay in the kernel's backlog, where the others find them; a worker
//     that leaves does not take them for itself. One that cannot accept for
//     a while, being out of descriptors, does the same and says Paused.
//   - Every wait has a deadline. Whatever a handler does, the process ends
//     when the grace and a margin are over.
package worker
