// Command init is the first and only process of the machine that the test of
// package ktls boots: it loads the modules in /modules, runs what /run says, one
// command a line, says how each has ended, and switches the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	defer unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	for _, m := range []struct{ what, where string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		os.MkdirAll(m.where, 0o755)
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil {
			fmt.Println("init: mount", m.where, err)
		}
	}
	loadModules()
	if err := loopbackUp(); err != nil {
		fmt.Println("init: lo:", err)
	}
	script, err := os.ReadFile("/run")
	if err != nil {
		fmt.Println("init:", err)
		return
	}
	for line := range strings.Lines(string(script)) {
		args := strings.Fields(line)
		c := exec.Command(args[0], args[1:]...)
		c.Dir, c.Stdout, c.Stderr = "/tmp", os.Stdout, os.Stdout
		c.Env = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}
		err := c.Run()
		fmt.Printf("init: %s: %v\n", args[0], err)
	}
	unix.Sync()
}

// loadModules loads all of them, whatever their order is.
func loadModules() {
	left, _ := filepath.Glob("/modules/*.ko") // the pattern is valid
	for more := true; more; {
		more = false
		var again []string
		for _, name := range left {
			if err := load(name); err != nil {
				again = append(again, name)
				continue
			}
			more = true
		}
		left = again
	}
	for _, name := range left {
		fmt.Println("init: module", name, load(name))
	}
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}
