package worker

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
)

// AcceptLimits bound what one worker takes on a listener. What is beyond them
// is closed right after the accept. Zero means no limit.
type AcceptLimits struct {
	Connections int // open at a time
	PerPeer     int // open at a time from one address, in IPv6 from one network of 64 bits; not for unix sockets
	Rate        int // accepted a second
	Burst       int // accepted at once after a pause; zero: as many as Rate says
}

// refusedEvery is how often refused connections are logged.
const refusedEvery = time.Second

// gate holds a listener to its AcceptLimits.
type gate struct {
	// Set once.

	limits  AcceptLimits
	proxy   *proxyproto.Trusted // peers are proxies; nil: they are who they are
	refused *atomic.Uint64
	log     *zap.Logger
	name    string

	// Owned by the loop.

	tokens  float64       // connections that may be accepted at once
	filled  time.Duration // when tokens was right
	told    time.Duration // when a refusal was logged last
	skipped int           // refusals since then

	// Guarded by mu: connections of net/http end elsewhere.

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]int // only with a limit for them
}

// newGate returns a gate, or nil if there is nothing to refuse.
func (w *Worker) newGate(name string, limits AcceptLimits, proxy *proxyproto.Trusted) *gate {
	if limits == (AcceptLimits{}) && proxy == nil {
		return nil
	}
	if limits.Burst == 0 {
		limits.Burst = limits.Rate
	}
	return &gate{
		limits: limits, proxy: proxy, refused: &w.seat.Refused, log: w.log, name: name,
		tokens: float64(limits.Burst), told: -refusedEvery, peers: map[netip.Addr]int{},
	}
}

// admit says whether a connection from peer is taken; if not, it is counted
// and logged, and otherwise to be told to left. A nil gate takes all. Loop
// only.
func (g *gate) admit(peer unix.Sockaddr, now time.Duration) bool {
	if g == nil {
		return true
	}
	why := ""
	switch {
	case g.proxy == nil:
		why = g.refusal(networkOf(addressOf(peer)), now)
	case !trusts(g.proxy, peer):
		why = "it is not from a trusted proxy (proxy_protocol)"
	default:
		why = g.refusal(netip.Addr{}, now) // it is counted when it is known whose it is
	}
	if why == "" {
		return true
	}
	g.refused.Add(1)
	if now-g.told < refusedEvery {
		g.skipped++
		return false
	}
	fields := []zap.Field{zap.String("listener", g.name), zap.String("reason", why), zap.Int("skipped", g.skipped)}
	if ip := addressOf(peer); ip.IsValid() {
		fields = append(fields, zap.Stringer("peer", ip))
	}
	g.log.Warn("connection refused", fields...)
	g.told, g.skipped = now, 0
	return false
}

// trusts says whether a PROXY header of the peer is believed.
func trusts(proxy *proxyproto.Trusted, peer unix.Sockaddr) bool {
	if ip := addressOf(peer); ip.IsValid() {
		return proxy.Contains(ip)
	}
	return proxy.Unix
}

// address is what the connection of an accepted peer is counted for.
func (g *gate) address(peer unix.Sockaddr) netip.Addr {
	if g == nil || g.proxy != nil {
		return netip.Addr{}
	}
	return addressOf(peer)
}

// identified counts a connection for the peer that its PROXY header tells, in
// any case, and returns an error if that has too many. Any goroutine may call
// it.
func (g *gate) identified(peer netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.limits.PerPeer == 0 || !peer.IsValid() {
		return nil
	}
	network := networkOf(peer)
	if g.peers[network]++; g.peers[network] > g.limits.PerPeer {
		g.refused.Add(1)
		return fmt.Errorf("max_connections_per_peer, %d, are open from its address", g.limits.PerPeer)
	}
	return nil
}

// identified is told that a connection's PROXY header has come. Loop only.
func (l *listener) identified(c *conn.Conn) error {
	w, address := l.worker, textAddress(c.Peer())
	if err := l.gate.identified(address); err != nil {
		return err
	}
	if l.dispatch.mode == DispatchHashIP {
		if to := l.dispatch.target(address); to != nil {
			w.begin([]uint64{c.ID()}, func(map[uint64]int) *peer { return w.peers.of(to.Incarnation) }, func(moved) {})
		}
	}
	return nil
}

// peerOf is what a connection is counted for.
func peerOf(c *conn.Conn) netip.Addr {
	if !c.Identified() {
		return netip.Addr{}
	}
	return textAddress(c.Peer())
}

// adopt is admit for a connection that was accepted elsewhere: it has passed
// the rate of accepts there. It is taken even beyond the limits if it would
// be lost otherwise: those are for newcomers.
func (g *gate) adopt(peer netip.Addr, orLost bool) bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	network := networkOf(peer)
	if !orLost && g.excessLocked(network) != "" {
		return false
	}
	g.enterLocked(network)
	return true
}

// refusal takes a connection into account, or says why not.
func (g *gate) refusal(peer netip.Addr, now time.Duration) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if why := g.excessLocked(peer); why != "" {
		return why
	}
	if l := g.limits; l.Rate > 0 {
		g.tokens = min(float64(l.Burst), g.tokens+(now-g.filled).Seconds()*float64(l.Rate))
		g.filled = now
		if g.tokens < 1 {
			return fmt.Sprintf("accept_rate, %d a second, is exceeded", l.Rate)
		}
		g.tokens--
	}
	g.enterLocked(peer)
	return ""
}

// excessLocked says which limit of open connections is reached. It needs mu.
func (g *gate) excessLocked(peer netip.Addr) string {
	l := g.limits
	if l.Connections > 0 && g.open >= l.Connections {
		return fmt.Sprintf("max_connections, %d, are open", l.Connections)
	}
	if l.PerPeer > 0 && peer.IsValid() && g.peers[peer] >= l.PerPeer {
		return fmt.Sprintf("max_connections_per_peer, %d, are open from its address", l.PerPeer)
	}
	return ""
}

// enterLocked takes a connection into account. It needs mu.
func (g *gate) enterLocked(peer netip.Addr) {
	g.open++
	if g.limits.PerPeer > 0 && peer.IsValid() {
		g.peers[peer]++
	}
}

// left takes back admit; peer has the zero Addr on a unix socket. Any
// goroutine may call it, of a nil gate too.
func (g *gate) left(peer netip.Addr) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if g.limits.PerPeer == 0 || !peer.IsValid() {
		return
	}
	network := networkOf(peer)
	if g.peers[network]--; g.peers[network] == 0 {
		delete(g.peers, network)
	}
}

// addressOf returns the address of a peer; the zero Addr if it has none.
func addressOf(peer unix.Sockaddr) netip.Addr {
	switch sa := peer.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// textAddress is addressOf for an address and port as text.
func textAddress(peer string) netip.Addr {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{} // a unix socket's
	}
	return at.Addr()
}

// networkOf is what counts as one peer: an address of IPv4, or the network of
// IPv6 out of which one host may choose its addresses.
func networkOf(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if !ip.Is6() {
		return ip
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return ip
	}
	return p.Addr()
}
