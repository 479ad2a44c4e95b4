// Package ktls runs tests of TLS in packages conn and worker, and of the whole
// program, on a kernel that has it: in a small machine without a disk, emulated
// by qemu, in which they are with conn.Config.KernelTLS. Hardware need not help;
// it takes about a minute. openssl, if this host has it, comes along.
//
//	MAINSTAY_KTLS_TESTS=1    run it; otherwise it is skipped
//	MAINSTAY_KTLS_KERNEL     directory that kernel.sh has made, default ~/.cache/mainstay/kernel-ktls
//
// scripts/test-ktls does it all. Start reading at ktls_test.go; init is all that
// runs in the machine beside the tests.
package ktls
