package conn

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"time"
	"unsafe"

	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/scoreboard"
	"golang.org/x/sys/unix"
)

const (
	// MaxDatagram is the longest datagram that UDP over IPv4 can carry.
	MaxDatagram = 65507

	// DefaultPacketQueue is the SendLimit of a PacketConfig that has none.
	DefaultPacketQueue = 1 << 20

	// packetBatch is how many datagrams are received or sent in one call.
	packetBatch = 64

	// packetSlot is the room for one received datagram; of those that are
	// not touched no memory is used.
	packetSlot = 64 << 10

	// dropsEvery is how often dropped datagrams are told of.
	dropsEvery = time.Second
)

// PacketConfig is how a datagram socket is served.
type PacketConfig struct {
	Listener string // its name, for the seat

	// OnPacket is given each datagram. It runs on the loop and must not
	// block. A panic in it costs that datagram.
	OnPacket func(*Datagram)

	MaxMessage int // longest datagram, others are dropped; default what UDP can carry, at most 64 KiB
	SendLimit  int // bytes of replies that may wait while the kernel takes none; default 1 MiB

	Seat  *scoreboard.Seat // gets the counters; nil: nobody reads them
	Event func(Event)      // is told what ought to be logged, on the loop; may be nil
}

// Datagram is a datagram that was received. It is valid until OnPacket
// returns, and is used on its goroutine only.
type Datagram struct {
	Data []byte         // must not be changed or kept
	Peer netip.AddrPort // who sent it; not valid with a unix socket, see Path

	packets *Packets
	slot    int // in the arena
}

// Packets is a datagram socket on a loop. Its methods are for that loop only.
//
// Several processes may serve one socket: whoever is not busy takes what is
// there, so that the datagrams of one peer may reach different ones.
type Packets struct {
	set   *Set
	fd    int
	cfg   PacketConfig
	token reactor.Token
	local bool // bound to no one address: replies have to say theirs
	paths bool // a unix socket

	events  reactor.Events
	reading bool // Watch was called, and not Unwatch
	blocked bool // the kernel takes no more until it is Writable
	queue   []reply
	bytes   []byte // of the queue's replies, one after the other: the receiver's address, then the datagram
	waiting int    // of these, what the datagrams have
	counted int    // what the seat's QueueBytes has of waiting
	full    fullPaths
	drained func() // told when nothing is left to be sent

	dropped  int           // since it was told last
	told     time.Duration // when that was
	slowTold time.Duration // when a slow callback was told
}

// reply is a datagram to be sent.
type reply struct {
	nameLen    uint32
	controlLen uint32
	control    [controlSize]byte // the source address
	length     int
	since      time.Duration // of a unix socket: when it was given
}

// size is how many of the bytes are the reply's.
func (r *reply) size() int { return int(r.nameLen) + r.length }

// controlSize is room for struct in6_pktinfo, or in_pktinfo, as a control
// message.
const controlSize = 40

// arena is where a loop's datagrams are received, 64 at a time, and from
// where they are sent.
type arena struct {
	data    []byte
	in, out [packetBatch]reactor.Datagram
	inIOV   [packetBatch]unix.Iovec
	outIOV  [packetBatch]unix.Iovec
	names   [packetBatch]unix.RawSockaddrUnix // or a shorter one of IP
	control [packetBatch][controlSize]byte
	current Datagram // that is being handled
}

func newArena() *arena {
	a := &arena{data: make([]byte, packetBatch*packetSlot)}
	for i := range packetBatch {
		a.inIOV[i].Base = &a.data[i*packetSlot]
		h := &a.in[i].Header
		h.Name = (*byte)(unsafe.Pointer(&a.names[i]))
		h.Iov, h.Iovlen = &a.inIOV[i], 1
		h.Control = &a.control[i][0]
		h = &a.out[i].Header
		h.Iov, h.Iovlen = &a.outIOV[i], 1
	}
	return a
}

// Packets makes fd, a bound datagram socket of IPv4, IPv6 or AF_UNIX that does
// not block, ready to be served. It stays the caller's, who closes it after
// Unwatch, and not while replies wait: see Drain. It fails if cfg has no OnPacket or a negative limit, or if the
// system refuses the socket's options. Loop only.
func (s *Set) Packets(fd int, cfg PacketConfig) (*Packets, error) {
	if cfg.OnPacket == nil || cfg.MaxMessage < 0 || cfg.SendLimit < 0 {
		return nil, fmt.Errorf("conn: listener %q: MaxMessage %d, SendLimit %d: want OnPacket, and at least 0", cfg.Listener, cfg.MaxMessage, cfg.SendLimit)
	}
	if cfg.MaxMessage == 0 {
		cfg.MaxMessage = MaxDatagram
	}
	if cfg.SendLimit == 0 {
		cfg.SendLimit = DefaultPacketQueue
	}
	if cfg.Seat == nil {
		cfg.Seat = scoreboard.NewSeat()
	}
	p := &Packets{set: s, fd: fd, cfg: cfg, told: -time.Hour, slowTold: -time.Hour}
	if err := p.wantAddress(); err != nil {
		return nil, fmt.Errorf("conn: listener %q: %w", cfg.Listener, err)
	}
	if s.arena == nil {
		s.arena = newArena()
	}
	return p, nil
}

// wantAddress has the kernel tell to which address a datagram was sent, if
// that may be one of several: a reply that comes from another one is not
// recognised.
func (p *Packets) wantAddress() error {
	sa, err := unix.Getsockname(p.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		if p.local = sa.Addr == [4]byte{}; p.local {
			err = unix.SetsockoptInt(p.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	case *unix.SockaddrInet6:
		if p.local = sa.Addr == [16]byte{}; p.local {
			err = unix.SetsockoptInt(p.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	case *unix.SockaddrUnix:
		p.paths = true
	default:
		return errors.New("a socket of another family than AF_INET, AF_INET6 and AF_UNIX")
	}
	return os.NewSyscallError("setsockopt", err)
}

// Watch begins to read. It fails if epoll_ctl(2) does. Loop only.
func (p *Packets) Watch() error {
	p.reading = true
	return p.watch()
}

// Unwatch ends reading; what waits to be sent still leaves. What the kernel
// has stays there for the other processes that read from this socket. Loop
// only.
func (p *Packets) Unwatch() error {
	p.reading = false
	return p.watch()
}

// Rearm watches anew: what waits is told to this loop, whoever was told of it
// before. Loop only.
func (p *Packets) Rearm() error {
	if p.token == 0 {
		return nil
	}
	return p.set.loop.Rearm(p.token)
}

// Drain ends reading and calls done on the loop when no reply waits any more.
// Loop only.
func (p *Packets) Drain(done func()) error {
	p.drained = done
	err := p.Unwatch()
	p.tellDrained()
	return err
}

func (p *Packets) tellDrained() {
	if p.drained != nil && len(p.queue) == 0 {
		p.set.loop.AtTurnEnd(p.drained)
		p.drained = nil
	}
}

// watch tells the reactor what to watch the socket for.
func (p *Packets) watch() error {
	var ev reactor.Events
	if p.reading {
		ev = reactor.Readable | reactor.Exclusive
	}
	if p.blocked {
		ev |= reactor.Writable
	}
	loop := p.set.loop
	switch {
	case ev == p.events:
		return nil
	case ev == 0:
		token := p.token
		p.token, p.events = 0, 0
		return loop.Remove(token)
	case p.token == 0:
		token, err := loop.Add(p.fd, ev, p)
		if err != nil {
			return err
		}
		p.token, p.events = token, ev
		return nil
	}
	p.events = ev
	return loop.Modify(p.token, ev)
}

// OnReady is called by the reactor.
func (p *Packets) OnReady(ev reactor.Events) {
	if ev&reactor.Writable != 0 {
		p.blocked = false
	}
	if p.reading && ev&^reactor.Writable != 0 {
		p.receive()
	}
	p.flush()
	if err := p.watch(); err != nil {
		p.tell(Event{Kind: PacketsBroken, Err: err})
	}
}

// receive reads one batch and has it handled.
func (p *Packets) receive() {
	a := p.set.arena
	for i := range a.in {
		a.inIOV[i].SetLen(min(p.cfg.MaxMessage, packetSlot))
		h := &a.in[i].Header
		h.Namelen = unix.SizeofSockaddrUnix
		h.SetControllen(0)
		if p.local {
			h.SetControllen(controlSize)
		}
		h.Flags = 0
	}
	n, errno := reactor.Recvmmsg(p.fd, a.in[:])
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return // another process has taken it
	case unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT:
		p.reading = false
		p.tell(Event{Kind: PacketsBroken, Err: os.NewSyscallError("recvmmsg", errno)})
		return
	default:
		return // the network's word on something that was sent; the next call is another one's
	}
	seat, bytes := p.cfg.Seat, 0
	for i := range n {
		bytes += int(a.in[i].Len)
	}
	seat.Datagrams.Add(uint64(n))
	seat.BytesIn.Add(uint64(bytes))
	for i := range n {
		if a.in[i].Header.Flags&unix.MSG_TRUNC != 0 {
			p.drop(fmt.Errorf("datagram of more than %d bytes: %w", p.cfg.MaxMessage, ErrTooLong))
			continue
		}
		a.current = Datagram{
			Data:    a.data[i*packetSlot:][:a.in[i].Len:a.in[i].Len],
			packets: p, slot: i,
		}
		if !p.paths {
			a.current.Peer = peerAddress((*unix.RawSockaddrInet6)(unsafe.Pointer(&a.names[i])))
		}
		p.handle(&a.current)
	}
}

// handle calls OnPacket.
func (p *Packets) handle(d *Datagram) {
	s := p.set
	s.unnote()
	s.since = max(s.since, s.loop.Now())
	p.cfg.Seat.SetHandler(p.cfg.Listener, 0, int64(s.since))
	defer func() {
		if v := recover(); v != nil {
			p.cfg.Seat.Panics.Add(1)
			p.tell(Event{Kind: CallbackPanicked, Peer: d.from(), Err: &PanicError{Value: v, Stack: debug.Stack()}})
		}
		p.cfg.Seat.ClearHandler()
		now := s.loop.Clock()
		if took := now - s.since; took > slow && now-p.slowTold >= slowEvery {
			p.slowTold = now
			p.tell(Event{Kind: SlowCallback, Peer: d.from(), Took: took})
		}
		s.since = now
	}()
	p.cfg.OnPacket(d)
}

// Path returns the path, or "@name", of the unix socket that sent d; "" if that
// is bound to none, which cannot be answered, and with UDP, see Peer.
func (d *Datagram) Path() string {
	if !d.packets.paths {
		return ""
	}
	a := d.packets.set.arena
	sa := &a.names[d.slot]
	return reactor.UnixName(sa, int(a.in[d.slot].Header.Namelen)-int(unsafe.Offsetof(sa.Path)))
}

// from is who sent it, for people.
func (d *Datagram) from() string {
	if d.packets.paths {
		return cmp.Or(d.Path(), "unix")
	}
	return d.Peer.String()
}

// Reply sends b to where d came from, and from the address that it was sent
// to; b is copied. nil means that it is in the queue, which leaves when the
// datagrams that came together have been handled; the network may lose it
// then, and so is it lost if a unix socket that it is for takes nothing for a
// second. It returns ErrFull, and takes nothing, if more than SendLimit bytes
// would wait, or more than an eighth of it for a unix socket that takes nothing;
// ErrNoAddress if d came from a unix socket that is not bound, and ErrTooLong
// if no datagram is so long. It may be called any number of times.
func (d *Datagram) Reply(b []byte) error {
	p := d.packets
	if len(b) > MaxDatagram {
		p.cfg.Seat.SendFailures.Add(1)
		return fmt.Errorf("conn: datagram of %d bytes, want at most %d: %w", len(b), MaxDatagram, ErrTooLong)
	}
	a := p.set.arena
	name := unsafe.Slice((*byte)(unsafe.Pointer(&a.names[d.slot])), a.in[d.slot].Header.Namelen)
	r := reply{nameLen: uint32(len(name)), length: len(b)}
	if p.paths {
		if len(name) <= int(unsafe.Offsetof(a.names[0].Path)) {
			p.cfg.Seat.SendFailures.Add(1)
			return ErrNoAddress
		}
		r.since = p.set.loop.Now()
	}
	if !p.room(name, len(b)) {
		p.flush()
	}
	if !p.room(name, len(b)) {
		p.cfg.Seat.SendFailures.Add(1)
		p.drop(ErrFull)
		return fmt.Errorf("%w: %d bytes wait, %d more would pass %d", ErrFull, p.waiting, len(b), p.cfg.SendLimit)
	}
	r.controlLen = sourceAddress(&r.control, a.control[d.slot][:a.in[d.slot].Header.Controllen])
	p.queue = append(p.queue, r)
	p.bytes = append(append(p.bytes, name...), b...)
	p.waiting += len(b)
	if p.paths {
		p.full.add(name, len(b))
		p.full.untried += len(b) + replyCost
	}
	return nil
}

// room says whether a reply of n bytes may wait as well.
func (p *Packets) room(name []byte, n int) bool {
	return p.waiting+n <= p.cfg.SendLimit && len(p.queue) < p.maxReplies() && (!p.paths || p.full.room(name, n, p.cfg.SendLimit))
}

// maxReplies bounds the replies that wait by what they take beside their
// bytes: empty ones count too.
func (p *Packets) maxReplies() int { return max(packetBatch, p.cfg.SendLimit/64) }

// flush sends what waits, as far as the kernel takes it.
func (p *Packets) flush() {
	out := 0
	if p.paths {
		out = p.sendToPaths()
	} else {
		out = p.send()
	}
	if out > 0 {
		p.cfg.Seat.BytesOut.Add(uint64(out))
	}
	if p.waiting != p.counted {
		p.cfg.Seat.QueueBytes.Add(int64(p.waiting - p.counted))
		p.counted = p.waiting
	}
	p.tellDrained()
}

// send is flush for UDP. It returns how many bytes left.
func (p *Packets) send() (out int) {
	sent, bytes := 0, 0
	for sent < len(p.queue) && !p.blocked {
		batch := p.fill(p.queue[sent:min(sent+packetBatch, len(p.queue))], p.bytes[bytes:])
		n, errno := reactor.Sendmmsg(p.fd, batch)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			p.blocked = true
			continue
		default:
			// This one cannot be sent: no route, a firewall, no memory. The
			// sender of a datagram reckons with its loss.
			p.cfg.Seat.SendFailures.Add(1)
			p.drop(os.NewSyscallError("sendmmsg", errno))
			bytes += p.queue[sent].size()
			p.waiting -= p.queue[sent].length
			sent++
			continue
		}
		for i := range p.queue[sent : sent+n] {
			bytes += p.queue[sent+i].size()
			out += p.queue[sent+i].length
		}
		sent += n
	}
	p.waiting -= out
	if sent > 0 {
		p.queue = p.queue[:copy(p.queue, p.queue[sent:])]
		p.bytes = p.bytes[:copy(p.bytes, p.bytes[bytes:])]
	}
	return out
}

// fill makes up to a batch of replies ready to be sent.
func (p *Packets) fill(replies []reply, bytes []byte) []reactor.Datagram {
	a := p.set.arena
	for i := range replies {
		r, h := &replies[i], &a.out[i].Header
		h.Name, h.Namelen = unsafe.SliceData(bytes), r.nameLen
		bytes = bytes[r.nameLen:]
		h.Control, h.Controllen = nil, 0
		if r.controlLen > 0 {
			h.Control = &r.control[0]
			h.SetControllen(int(r.controlLen))
		}
		a.outIOV[i] = unix.Iovec{}
		if r.length > 0 {
			a.outIOV[i].Base = &bytes[0]
			a.outIOV[i].SetLen(r.length)
		}
		bytes = bytes[r.length:]
	}
	return a.out[:len(replies)]
}

// drop counts a datagram that was lost here, and tells of it now and then.
func (p *Packets) drop(why error) {
	p.dropped++
	now := p.set.loop.Now()
	if now-p.told < dropsEvery {
		return
	}
	p.tell(Event{Kind: DatagramsDropped, Skipped: p.dropped - 1, Err: why})
	p.told, p.dropped = now, 0
}

func (p *Packets) tell(e Event) {
	if p.cfg.Event != nil {
		e.Listener = p.cfg.Listener
		p.cfg.Event(e)
	}
}

// peerAddress reads a sockaddr_in or sockaddr_in6.
func peerAddress(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	n := uint16(port[0])<<8 | uint16(port[1])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), n)
	}
	ip := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && ip.Is6() {
		ip = ip.WithZone(strconv.Itoa(int(sa.Scope_id)))
	}
	return netip.AddrPortFrom(ip, n)
}

// sourceAddress makes of the address that a datagram was sent to, a control
// message that has come with it, one that has a reply come from there: ip(7)
// and ipv6(7). It returns its length; 0 if there is no such address.
func sourceAddress(out *[controlSize]byte, in []byte) uint32 {
	if len(in) < unix.SizeofCmsghdr {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&in[0]))
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(in) >= unix.CmsgLen(unix.SizeofInet4Pktinfo):
		copy(out[:], in)
		info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&out[unix.CmsgLen(0)]))
		info.Ifindex, info.Addr = 0, [4]byte{} // the routes say by which interface
		return uint32(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(in) >= unix.CmsgLen(unix.SizeofInet6Pktinfo):
		copy(out[:], in)
		info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&out[unix.CmsgLen(0)]))
		ip := netip.AddrFrom16(info.Addr)
		if ip.IsMulticast() {
			return 0
		}
		if !ip.IsLinkLocalUnicast() {
			info.Ifindex = 0
		}
		return uint32(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	}
	return 0
}
