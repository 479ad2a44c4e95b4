// Package system holds the tests that run the service the way an operator
// does: its units, installed in a machine whose PID 1 is a real systemd, with
// clients that count what they lose.
//
// A machine is a container with systemd 252 (Debian 12) or 257 (Debian 13),
// made once by mmdebstrap, kept in a cache, and booted by systemd-nspawn with
// a volatile overlay and a network of its own that has nothing but loopback.
// Where no container can be had and the host's PID 1 is systemd, the host is
// the machine, and the units get a prefix of their own. Both need root.
//
// One container runs at a time, all tests of one systemd version share its
// boot, and each test starts from freshly installed units. Nothing is left
// behind: the container ends with the test, also when the test is killed.
//
//	MAINSTAY_SYSTEM_TESTS=1    run them; otherwise all are skipped
//	MAINSTAY_ROOTFS_DIR        where the trees are, default ~/.cache/mainstay
//	MAINSTAY_SYSTEM_BACKEND    "container" or "host" instead of whichever is possible
//
// The chaos test (chaos_test.go) has flags: -chaos.seed brings the steps of a
// run that failed again, -chaos.time has it go on for longer, as `make soak`
// does.
//
// Start reading at systemd_test.go, the list of what is shown; machine_test.go
// is what a test can do to a machine, service_test.go what it can do to the
// service on it.
package system
