package keeper

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Reason is why a process has no keeper, or why one would be of no use: a
// word for status pages, which never changes.
type Reason string

const (
	// Filtered: a seccomp filter (systemd: SystemCallFilter=) forbids the call.
	Filtered Reason = "filtered"

	// NamespaceInit: the worker is PID 1 of its PID namespace, which cannot
	// have a sibling (clone(2), CLONE_PARENT).
	NamespaceInit Reason = "namespace-init"

	// Limit: too many processes (systemd: TasksMax=, LimitNPROC=) or
	// descriptors, or too little memory.
	Limit Reason = "limit"

	// Ptrace: the supervisor may not reach into other processes: Yama's
	// ptrace_scope is 2 or more, or they are not dumpable, as after a change
	// of user without an exec (ptrace(2), "Ptrace access mode checking").
	Ptrace Reason = "ptrace"

	// Unsupported: the kernel, or the environment, lacks something else.
	Unsupported Reason = "unsupported"
)

// meaning tells an operator what to look at.
var meaning = map[Reason]string{
	Filtered:      "a seccomp filter forbids it",
	NamespaceInit: "this process is PID 1 of its namespace",
	Limit:         "a limit on processes, descriptors or memory is reached",
	Ptrace:        "Yama's ptrace_scope or a process that is not dumpable forbids it",
	Unsupported:   "not supported here",
}

// UnprotectedError says that a process runs without the protection of a
// keeper, and why. It serves as well as with one; only its death costs its
// connections.
type UnprotectedError struct {
	Reason Reason
	Err    error // the system call that was refused; an *os.SyscallError or what reading /proc gave
}

// Error tells the call, its error and what to look at.
func (e *UnprotectedError) Error() string {
	return fmt.Sprintf("keeper: unprotected: %v: %s", e.Err, meaning[e.Reason])
}

// Unwrap returns Err.
func (e *UnprotectedError) Unwrap() error { return e.Err }

// refused makes an UnprotectedError of what a system call returned.
func refused(call string, err error) *UnprotectedError {
	return &UnprotectedError{Reason: reasonOf(err), Err: os.NewSyscallError(call, err)}
}

// reasonOf classifies what a call may return that is right in all else. A
// filter of systemd's answers with EPERM unless SystemCallErrorNumber= says
// otherwise, one of a container runtime with ENOSYS for calls it does not know.
func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSYS):
		return Filtered
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return Limit
	default:
		return Unsupported
	}
}
