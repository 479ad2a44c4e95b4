package worker

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/control"
)

// tellConnections answers the supervisor's question "connections": arg is a
// control.ConnectionsRequest, the answer a control.Connections. It is sorted
// and cut here, so that the loop is held and the answer grows as little as
// can be, however many there are.
func (w *Worker) tellConnections(arg json.RawMessage) ([]byte, error) {
	var r control.ConnectionsRequest
	if err := json.Unmarshal(arg, &r); err != nil {
		return nil, fmt.Errorf("worker: connections: %w", err)
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	matches := peerFilter(r.Peer)
	var infos []conn.Info
	err := w.OnLoop(func() {
		w.set.Each(func(c *conn.Conn) {
			if (r.Listener == "" || c.Listener() == r.Listener) && matches(c.Peer()) {
				infos = append(infos, c.Info())
			}
		})
	})
	if err != nil {
		return nil, err
	}
	all := make([]control.Connection, 0, len(infos))
	own := make(map[uint64]*conn.Conn, len(infos))
	for _, i := range infos {
		own[i.Conn.ID()] = i.Conn
		all = append(all, control.Connection{
			ID: i.Conn.ID(), Listener: i.Conn.Listener(), Peer: i.Conn.Peer(), State: i.State,
			AgeMS: i.Age.Milliseconds(), IdleMS: i.Idle.Milliseconds(),
			BytesIn: i.Conn.BytesIn(), BytesOut: i.Conn.BytesOut(),
			Buffered: i.Buffered, Queued: i.Queued, Messages: i.Messages, Mortal: i.Mortal,
		})
	}
	for _, s := range w.servers {
		if r.Listener == "" || s.name == r.Listener {
			all = s.list(all, matches)
		}
	}
	answer := control.Connections{Matching: len(all)}
	control.SortConnections(all, r.Sort)
	answer.Connections = all[:min(len(all), r.Limit)]
	for i := range answer.Connections {
		c := &answer.Connections[i]
		c.Pool, c.Slot, c.PID, c.Generation = w.id.Pool, w.id.Slot, os.Getpid(), w.id.Generation
		// net/http has IDs of its own.
		if o := own[c.ID]; o != nil && o.Listener() == c.Listener {
			c.Local = o.Local() // a system call: only for those that are shown
		}
	}
	return json.Marshal(answer)
}

// peerFilter says which peers a ConnectionsRequest.Peer means.
func peerFilter(want string) func(peer string) bool {
	if want == "" {
		return func(string) bool { return true }
	}
	if prefix, err := netip.ParsePrefix(want); err == nil {
		return func(peer string) bool {
			p, err := netip.ParseAddrPort(peer)
			return err == nil && prefix.Masked().Contains(p.Addr().Unmap().WithZone(""))
		}
	}
	if addr, err := netip.ParseAddr(want); err == nil {
		addr = addr.Unmap()
		return func(peer string) bool {
			p, err := netip.ParseAddrPort(peer)
			return err == nil && (p.Addr().Unmap() == addr || addr.Zone() == "" && p.Addr().Unmap().WithZone("") == addr)
		}
	}
	return func(peer string) bool { return strings.HasPrefix(peer, want) }
}

// list appends those connections of net/http whose peer matches. Any
// goroutine may call it.
func (s *httpServer) list(all []control.Connection, matches func(string) bool) []control.Connection {
	now := time.Now()
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	for c, state := range s.conns {
		peer := c.shown()
		if !matches(peer) {
			continue
		}
		all = append(all, control.Connection{
			ID: c.id, Listener: s.name, Peer: peer, Local: c.LocalAddr().String(), State: state.String(),
			AgeMS: now.Sub(c.opened).Milliseconds(), IdleMS: now.Sub(time.Unix(0, c.active.Load())).Milliseconds(),
			BytesIn: c.in.Load(), BytesOut: c.out.Load(), Mortal: "net/http has it",
		})
	}
	return all
}
