// Package keeper lets the sockets of a process outlive it. A keeper is a tiny
// process that shares a worker's descriptor table: what the worker accepts
// the keeper holds too, at no cost per connection, and what the worker closes
// is closed for both, so that a peer sees a normal close at once. When the
// worker is killed, the table lives on in its keeper, and the supervisor takes
// the connections out of it.
//
// The walk, with the file of each step:
//
//	start    start.go     the worker, early: Start checks, plans, clones
//	hold     child.go     the keeper: gives its copy of the memory back, waits for the worker's end
//	check    probe.go     Probe: can keepers work here? SharesFiles: does this one still share?
//	reach    reach.go     the supervisor, after the worker's end: Reach and Cookie, descriptor by descriptor
//	count    counts.go    Counts: what the dead worker had consumed and written, as the kernel has it
//	judge    boundary.go  Judge: does the kernel agree with what the worker had noted? Examine: both at once
//
// Invariants of the keeper:
//
//   - It holds, it never acts: it closes nothing, reads nothing, signals nobody.
//     It uses the memory of its Options and the worker's pidfd, nothing else.
//   - It ends when its worker is gone and has said that it needs no keeper
//     (Options.Released), or when its worker is gone and no supervisor has
//     given a sign of life for Options.OrphanTTL. Else it is ended by SIGKILL:
//     every other signal is blocked, and it leads a session of its own, so
//     that signals to the worker's process group do not reach it. While the
//     worker lives it sleeps in one ppoll(2) without a timeout; after that it
//     looks once a second.
//   - It holds everything that the worker has open: listeners, pipes, locks,
//     control channels, its own pidfd. So nobody learns of the worker's death
//     by the end of a channel while the keeper lives, only by pidfd.
//   - It is the supervisor's child though the supervisor did not start it: who
//     waits for any child will meet it. It counts as a task (systemd:
//     TasksMax=) and lives in its worker's cgroup and namespaces.
//   - An exec in the worker, or close_range(2) with CLOSE_RANGE_UNSHARE, ends
//     the sharing without a word. SharesFiles tells.
//
// How it is made. Start clones with CLONE_FILES (the table is shared),
// CLONE_PARENT (the keeper is the supervisor's child, which reaps it, and may
// reach into it as an ancestor where Yama's ptrace_scope is 1) and CLONE_PIDFD;
// not with CLONE_VM, because who kills a process for want of memory, or dumps
// its core, ends all that share its memory. No vfork: the worker goes on at once.
//
// The kernel gives the keeper a copy-on-write copy of the worker's private
// memory. Copying the page tables takes time that grows with the heap (about
// 0.3 ms for a fresh program, some 20 ms a GiB), and until the keeper has
// given its copies back, each page that the worker writes is copied. So Start
// must be called early, right after exec, with a small heap, and before the
// first accept. The first thing a keeper does is madvise(MADV_DONTNEED) on all
// private writable memory but three pages of stack, its arguments and its
// environment, which leaves a few pages; what secrets the heap held leave
// with it. No thread of the Go runtime exists in the keeper and its code calls
// nothing of the runtime: it does not grow the stack, allocate, write
// pointers, or report to the race detector. It makes these system calls and no
// others: madvise, prctl, setsid, ppoll, clock_gettime, exit_group. All are in
// systemd's @system-service, as are clone and pidfd_open, which the worker
// needs, and kcmp; pidfd_getfd, which the supervisor needs, is not.
//
// Kernels: pidfd_getfd(2) wants Linux 5.6, the newest of what is used here,
// so that this is the least a keeper works on. The others: waiting for a
// pidfd's process by poll(2) 5.3, CLONE_PIDFD 5.2, SO_COOKIE 4.12,
// TCP_INFO's tcpi_bytes_acked and tcpi_bytes_received 4.1 (tcp(7)), its
// tcpi_notsent_bytes 4.6, SO_PROTOCOL 2.6.32, kcmp(2) 3.5 and CONFIG_KCMP.
package keeper
