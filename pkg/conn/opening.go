package conn

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/proxyproto"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// Before OnConnect a connection may have to show whose it is, by a PROXY
// header, and to agree on keys, by the handshake of TLS, in this order. It is
// opening until then: in is what has come, as it came, and nobody is told of
// the connection, nor of its end. It moves until its handshake has begun, and
// then when that is over.

// stage is how far a layer is.
type stage uint8

const (
	stageProxy       stage = iota // the PROXY header is to come
	stageHello                    // then the first record
	stagePlace                    // which is there, but too many handshakes are under way
	stageHandshaking              // a handshake has what comes
	stageOpen                     // over
)

var (
	// ErrHandshake ends a connection that had not shown whose it is, and
	// agreed on keys, within Limits.Handshake.
	ErrHandshake = errors.New("conn: no PROXY header and TLS handshake in time")

	// ErrUntrusted refuses a connection from an address from which no PROXY
	// header is believed, where one is wanted.
	ErrUntrusted = errors.New("conn: not from a trusted proxy")
)

// origin is what a PROXY header has told.
type origin struct {
	header      []byte // as it came
	peer, local string // of which it speaks; empty: the connection's own
}

// Peer returns the other end's address: "192.0.2.1:80", "[2001:db8::1]:80"
// (an IPv6 zone as its number), the path of a unix socket, "@name" of an
// abstract one, or "unix" for one without a name. Behind a trusted proxy it is
// that of which the PROXY header speaks, once OnConnect was called.
func (c *Conn) Peer() string {
	if o := c.origin(); o != nil && o.peer != "" {
		return o.peer
	}
	return c.peer
}

// Proxy returns what a trusted proxy has told of the connection; ok is false
// if none has. Any goroutine may call it.
func (c *Conn) Proxy() (h proxyproto.Header, ok bool) {
	o := c.origin()
	if o == nil {
		return proxyproto.Header{}, false
	}
	_, h, err := headerParser.Parse(o.header)
	return h, err == nil
}

// Identified says whether Peer is the address to go by. It is not while a
// PROXY header is still to come. Loop only.
func (c *Conn) Identified() bool {
	l := c.layered()
	return l == nil || l.stage != stageProxy
}

func (c *Conn) origin() *origin {
	if x := c.extra.Load(); x != nil {
		return x.origin.Load()
	}
	return nil
}

var headerParser proxyproto.Parser

// originOf takes in what a header tells.
func originOf(header []byte, h proxyproto.Header) *origin {
	o := &origin{header: append([]byte{}, header...)}
	switch h.Transport {
	case proxyproto.TCP4, proxyproto.TCP6, proxyproto.UDP4, proxyproto.UDP6:
		o.peer, o.local = h.Source.String(), h.Destination.String()
	case proxyproto.UnixStream, proxyproto.UnixDgram:
		o.peer, o.local = "unix", "unix"
		if h.SourcePath != "" {
			o.peer = h.SourcePath
		}
		if h.DestinationPath != "" {
			o.local = h.DestinationPath
		}
	}
	return o
}

// trusts says whether a PROXY header of the peer is believed.
func trusts(t *proxyproto.Trusted, peer unix.Sockaddr) bool {
	switch sa := peer.(type) {
	case *unix.SockaddrInet4:
		return t.Contains(netip.AddrFrom4(sa.Addr))
	case *unix.SockaddrInet6:
		return t.Contains(netip.AddrFrom16(sa.Addr))
	case *unix.SockaddrUnix:
		return t.Unix
	}
	return false
}

// layerFor returns what an accepted connection needs, nil if nothing.
func (s *settings) layerFor() *layer {
	switch {
	case s.Proxy != nil:
		return &layer{stage: stageProxy}
	case s.TLS != nil:
		return &layer{stage: stageHello}
	}
	return nil
}

// openOn is given what an opening connection's peer has sent.
func (c *Conn) openOn(l *layer, data []byte) {
	if l.stage == stageHandshaking {
		if err := l.handshake.Feed(data); err != nil {
			c.openFailed(l, err)
			return
		}
		c.step(l)
		return
	}
	if c.in == nil {
		c.in = getBuffer(len(data))
	}
	c.in = c.in.add(data)
	c.openFurther(l)
}

// openFurther goes on with what in has.
func (c *Conn) openFurther(l *layer) {
	if l.stage == stageProxy && !c.takeHeader(l) {
		return
	}
	if c.cfg.TLS == nil {
		c.openPlain()
		return
	}
	if l.stage == stageHello && c.in != nil && helloComplete(c.in.bytes()) {
		l.stage = stagePlace
		if c.cfg.Handshakes.enter(c) {
			c.beginHandshake(l)
		}
	}
	c.mark(0, 0)
}

// helloComplete says whether the first record is there, or bytes that begin no
// handshake.
func helloComplete(in []byte) bool {
	const handshake = 22 // ContentType, RFC 8446 5.1
	return in[0] != handshake || recordComplete(in)
}

// takeHeader takes the PROXY header off in, if it is there.
func (c *Conn) takeHeader(l *layer) bool {
	if c.in == nil {
		return false
	}
	n, h, err := headerParser.Parse(c.in.bytes())
	if err != nil {
		c.openFailed(l, err)
		return false
	}
	if n == 0 {
		return false
	}
	o := originOf(c.in.bytes()[:n], h)
	x := c.extra.Load()
	x.origin.Store(o)
	x.noted = false
	if c.in.off += n; len(c.in.bytes()) == 0 {
		c.in.free()
		c.in = nil
	}
	l.stage = stageHello
	if identified := c.cfg.Identified; identified != nil {
		if err := identified(c); err != nil {
			c.openFailed(l, err)
			return false
		}
	}
	return true
}

// openPlain is the end of opening without TLS: the layer is done with.
func (c *Conn) openPlain() {
	c.mu.Lock()
	c.extra.Load().layer = nil
	c.mu.Unlock()
	c.partial = 0
	c.expireBy(c.set.loop.Now()) // which looks for what comes first now
	c.begun()
	c.held = c.in != nil
	c.mark(0, 0)
}

// waits says that a place is of use.
func (c *Conn) waits() bool { return !c.has(flagClosed) }

func (c *Conn) post(f func()) error { return c.set.loop.Post(f) }

// placeFree is told on the loop that a handshake may begin.
func (c *Conn) placeFree() {
	l := c.layered()
	if l == nil || l.stage != stagePlace || c.state != Open || c.has(flagsEnded|flagFrozen) {
		c.cfg.Handshakes.leave()
		return
	}
	c.beginHandshake(l)
	c.mark(0, 0)
}

// beginHandshake is called with a place, which the handshake gives back.
func (c *Conn) beginHandshake(l *layer) {
	l.stage = stageHandshaking
	l.handshake = tlsrec.Server(context.Background(), c.cfg.TLS)
	err := l.handshake.Feed(c.in.bytes())
	c.in.free()
	c.in = nil
	if err != nil {
		c.openFailed(l, err)
		return
	}
	c.step(l)
}

// step has the handshake go on. The connection is not read meanwhile, but
// watched: most often nothing comes, and there is no need to ask the kernel for
// anything. If something does, it is watched no more until the step is done.
func (c *Conn) step(l *layer) {
	l.stepping = true
	h, places := l.handshake, c.cfg.Handshakes
	places.compute(func() {
		_, _ = h.Step() // Result tells it
		if c.set.loop.Post(func() { c.stepped(l) }) != nil {
			h.Abort()
			places.leave()
		}
	})
	c.set.loop.Yield()
}

// stepped goes on behind step.
func (c *Conn) stepped(l *layer) {
	l.stepping, l.behind = false, false
	if c.state != Open {
		l.abandon(c)
		return
	}
	if out := l.handshake.Output(); len(out) > 0 {
		c.mu.Lock()
		l.sealed.put(&buffer{b: out, class: -1})
		l.sealed.bytes += len(out)
		c.mu.Unlock()
	}
	if l.handshake.Done() {
		result, err := l.handshake.Result()
		l.handshake = nil
		c.cfg.Handshakes.leave()
		if err != nil {
			l.stage = stagePlace // and nobody will call
			c.openFailed(l, err)
		} else {
			c.handshaken(l, result)
		}
	}
	c.mark(0, 0)
}

// handshaken is the end of opening with TLS.
func (c *Conn) handshaken(l *layer, r tlsrec.Result) {
	places := c.cfg.Handshakes
	places.done.Add(1)
	if r.Info.Resumed {
		places.resumed.Add(1)
	}
	info := r.Info // not the rest of r
	c.mu.Lock()
	l.info = &info
	c.extra.Load().noted = false
	c.mu.Unlock()
	l.stage, l.tls, l.legacy, l.quiet = stageOpen, r.Conn, r.Legacy, true
	l.toKernel = c.cfg.KernelTLS && r.Conn != nil
	now := c.set.loop.Now()
	c.partial = someTicks(now)
	c.expireBy(now) // which looks for what comes first now
	if l.legacy != nil {
		c.flags.Or(flagStays)
	}
	c.begun()
	// What came behind the handshake is on hand already.
	switch loop := c.set.loop; {
	case l.legacy != nil:
		c.readLegacy(l)
	case len(r.Rest) > 0:
		c.openRecords(l, loop.Prepend(r.Rest, 0))
	}
}

// begun tells of the connection, which is open now.
func (c *Conn) begun() {
	c.flags.And(^flagOpening)
	if !c.has(flagFreezing) {
		c.greet()
	}
}

// openFailed ends a connection of which nobody was told. An alert may still
// have to leave.
func (c *Conn) openFailed(l *layer, err error) {
	c.dropInput()
	c.notOpened(l, err)
	c.end(err)
}

// notOpened counts and tells of a connection that does not open.
func (c *Conn) notOpened(l *layer, err error) {
	if c.cfg.TLS != nil && (l.stage > stageHello || l.stage == stageHello && errors.Is(err, ErrHandshake)) {
		c.cfg.Handshakes.failed.Add(1)
	}
	if c.rx.Load() > 0 { // whoever has said nothing has done no harm
		c.cfg.tellOpening(c, err)
	}
}

// abandon ends a handshake that nobody waits for any more. One that is being
// computed ends when that has returned.
func (l *layer) abandon(c *Conn) {
	if l.handshake == nil || l.stepping {
		return
	}
	l.handshake.Abort()
	l.handshake = nil
	c.cfg.Handshakes.leave()
}

// handshaking says whether c cannot be moved because of its handshake.
func (c *Conn) handshaking() bool {
	if !c.has(flagOpening) {
		return false
	}
	l := c.layered()
	return l != nil && l.stage == stageHandshaking
}

// readsToOpen says whether an opening connection is to be read.
func (c *Conn) readsToOpen(flags uint32) bool {
	switch l := c.layered(); l.stage {
	case stageHandshaking:
		return !l.behind // even if somebody waits to freeze it
	case stagePlace:
		return false
	default:
		return flags&flagsPause == 0
	}
}

// openingOver says whether an opening connection's time is over.
func (c *Conn) openingOver(now time.Duration) (due time.Duration, over error) {
	l := &c.cfg.Limits
	if at := c.partial.over(l.FirstByte, now); c.rx.Load() == 0 && l.FirstByte >= 0 && c.check(at, now) {
		return at, ErrFirstByte
	}
	if at := c.partial.over(l.Handshake, now); l.Handshake >= 0 && c.check(at, now) {
		return at, ErrHandshake
	}
	return 0, nil
}

// openEvery is how often connections that did not open are told.
const openEvery = time.Second

func (s *settings) tellOpening(c *Conn, err error) {
	if s.Event == nil {
		return
	}
	now := c.set.loop.Now()
	if now-s.openTold < openEvery {
		s.openSkipped++
		return
	}
	s.Event(Event{Kind: NotOpened, Listener: s.Listener, Conn: c, Peer: c.Peer(), Skipped: s.openSkipped, Err: err})
	s.openTold, s.openSkipped = now, 0
}
