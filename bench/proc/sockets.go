package proc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Accepted returns the descriptors by which the processes hold the
// connections that came to a port over TCP and IPv4, by the address of their
// peers. One that two processes hold is told once.
func Accepted(pids []int, port int) (map[netip.AddrPort]int, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	peers, err := parseTCP(table, port)
	if err != nil {
		return nil, fmt.Errorf("proc: /proc/net/tcp: %w", err)
	}
	found := map[netip.AddrPort]int{}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("proc: %w", err)
		}
		for _, e := range entries {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			link, err := os.Readlink(filepath.Join(dir, e.Name()))
			if errors.Is(err, os.ErrNotExist) { // closed meanwhile
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("proc: %w", err)
			}
			inode, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			if peer, ok := peers[strings.TrimSuffix(inode, "]")]; ok {
				found[peer] = fd
			}
		}
	}
	return found, nil
}

// established is TCP_ESTABLISHED, in the column st.
const established = "01"

// parseTCP returns the peers of the established connections whose own port
// is port, by inode. A line is, in proc_net_tcp(5):
//
//	sl local_address rem_address st tx_queue:rx_queue tr:when retrnsmt uid timeout inode ...
func parseTCP(b []byte, port int) (map[string]netip.AddrPort, error) {
	peers := map[string]netip.AddrPort{}
	first := true
	for line := range bytes.Lines(b) {
		if first { // the names of the columns
			first = false
			continue
		}
		f := strings.Fields(string(line))
		if len(f) < 10 {
			return nil, fmt.Errorf("%q: want ten columns at least", line)
		}
		if f[3] != established {
			continue
		}
		local, err := parseAddrPort(f[1])
		if err != nil {
			return nil, err
		}
		if int(local.Port()) != port {
			continue
		}
		if peers[f[9]], err = parseAddrPort(f[2]); err != nil {
			return nil, err
		}
	}
	return peers, nil
}

// parseAddrPort reads 0100007F:1F90, the address as the machine holds it in
// memory: amd64 and arm64 have the last byte first.
func parseAddrPort(s string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(s, ":")
	a, err := hex.DecodeString(address)
	if err != nil || len(a) != 4 {
		return netip.AddrPort{}, fmt.Errorf("%q: want eight hexadecimal digits, a colon and a port", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %w", s, err)
	}
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], binary.LittleEndian.Uint32(a))
	return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(p)), nil
}
