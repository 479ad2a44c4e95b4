package conn

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mainstay-go/mainstay/pkg/backoff"
	"github.com/mainstay-go/mainstay/pkg/reactor"
	"github.com/mainstay-go/mainstay/pkg/wire"
	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
	"golang.org/x/sys/unix"
)

// DialConfig is what the outgoing connections of one kind have in common.
type DialConfig struct {
	// Config is of the connections, as for accepted ones: the callbacks are
	// the same. Limits.FirstByte is none by default, as a server need not
	// speak first. TLS is that of addresses with tls://, may be nil (the
	// system's roots) and needs Handshakes in either case; without a ServerName
	// the address has that. With a ClientSessionCache sessions are resumed.
	// Config.Proxy and Becomes are for accepted ones only. Those
	// of UDP are always Pinned, and have no Protocol.
	Config

	// Address is where Dial connects to if it is not told: tcp://HOST:PORT,
	// tls://HOST:PORT, udp://HOST:PORT, unix:///PATH or unix://@NAME. It may be
	// empty. One of UDP makes that of all.
	Address string

	// Route, if not nil, makes of an address, this one or Dial's, one of those
	// above; Client.Address stays what it was.
	Route func(address string) (string, error)

	// Negotiates says that the protocol has something to agree on first: a
	// connection is not up, and what Client.Send was given waits, until
	// Client.Ready is called. If it ends before, that is a failed attempt. One
	// that Client.Close ends is told Config.Farewell, which any goroutine may
	// call then.
	Negotiates bool

	// Proxy, if not empty, is asked for the connections, which are of TCP:
	// socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT.
	// It looks up the names. The way to it is not encrypted, but TLS is spoken
	// with the far end, through it.
	Proxy string

	Timeout   time.Duration  // for all of an attempt: name, addresses, proxy, TLS; zero: DefaultConnect
	Reconnect bool           // until Client.Close: what fails or ends is tried again
	Backoff   backoff.Policy // how long between; it counts from the end of a connection, and forgets while one lasts
	Resolver  *net.Resolver  // nil: net.DefaultResolver

	// OnDown, if not nil, says that cl has no connection: an attempt has
	// failed, or the connection has ended and its OnClose has returned. why is
	// the reason, a *ConnectError or several joined if it is an attempt's;
	// next is after which time the next attempt begins. A negative one means
	// never: that is told once, and last, but not if the connection has moved
	// to another process. OnDown runs on the loop and must not block; a panic
	// in it is told to Config.Event.
	OnDown func(cl *Client, why error, next time.Duration)
}

// Dialer makes outgoing connections.
type Dialer struct {
	// Set once.

	set       *Set
	cfg       Config // of the connections
	dial      DialConfig
	proxy     *via
	datagrams bool

	// Owned by the loop.

	clients int // of a Pinned Config, that are not over
}

// NewDialer returns a Dialer of the set. It fails if cfg's addresses or limits
// are not usable. Any goroutine may call it.
func (s *Set) NewDialer(cfg DialConfig) (*Dialer, error) {
	if _, err := cfg.settings(); err != nil {
		return nil, err
	}
	d, err := cfg.dialer()
	if err != nil {
		return nil, err
	}
	d.set = s
	d.cfg.dialer = d
	d.cfg.Handler = dialed{cfg.Handler}
	d.cfg.EncodeValue, d.cfg.DecodeValue, d.cfg.Released = d.encode, d.decode, d.released
	return d, nil
}

// Check says what is wrong with the addresses and limits. A Config that has
// neither Handler nor Pool yet is right.
func (cfg DialConfig) Check() error {
	_, err := cfg.dialer()
	return err
}

// dialer returns a Dialer that is of no Set yet.
func (cfg DialConfig) dialer() (*Dialer, error) {
	d := &Dialer{cfg: cfg.Config, dial: cfg, datagrams: strings.HasPrefix(cfg.Address, "udp:")}
	if cfg.Timeout <= 0 {
		d.dial.Timeout = DefaultConnect
	}
	if c := &cfg.Config; c.Proxy != nil || len(c.Becomes) > 0 {
		return nil, fmt.Errorf("conn: listener %q: outgoing connections with a trusted proxy or what they may become, want none", cfg.Listener)
	}
	d.cfg.TLS = nil // it is of accepted ones there
	var err error
	if cfg.Proxy != "" {
		if d.proxy, err = parseProxy(cfg.Proxy); err != nil {
			return nil, err
		}
	}
	if cfg.Address != "" {
		if _, err = d.route(cfg.Address); err != nil {
			return nil, err
		}
	}
	if _, raw := cfg.protocol().(wire.Raw); d.datagrams && (!raw || cfg.NewSession != nil) {
		return nil, fmt.Errorf("conn: address %q: datagrams with a Protocol, want none", cfg.Address)
	}
	if d.cfg.Limits.FirstByte == 0 {
		d.cfg.Limits.FirstByte = -1
	}
	d.cfg.Pinned = cfg.Pinned || d.datagrams
	if err = cfg.Limits.Check(); err != nil {
		return nil, fmt.Errorf("conn: listener %q: %w", cfg.Listener, err)
	}
	return d, nil
}

// Config is what Set.Adopt needs to take over a connection of this Dialer.
func (d *Dialer) Config() *Config { return &d.cfg }

// Datagrams says whether it connects UDP.
func (d *Dialer) Datagrams() bool { return d.datagrams }

func (d *Dialer) route(address string) (route, error) {
	to := address
	if d.dial.Route != nil {
		var err error
		if to, err = d.dial.Route(address); err != nil {
			return route{}, err
		}
	}
	r, err := parseRoute(to, d.proxy)
	r.address = address
	switch {
	case err != nil:
	case (r.network == "udp") != d.datagrams:
		err = fmt.Errorf("conn: address %q: datagrams and connections are not of one Dialer", address)
	case r.secure && d.set != nil && d.cfg.Handshakes == nil:
		err = fmt.Errorf("conn: address %q: TLS without Handshakes", address)
	case r.secure:
		r.tls = tlsTo(d.dial.TLS, r.host)
	case d.dial.TLS != nil:
		err = fmt.Errorf("conn: address %q: it would not be encrypted, and there are settings for TLS: want one with TLS, as tls://HOST:PORT", address)
	}
	return r, err
}

// Dial begins to connect to address, the Dialer's own if it is empty, and
// returns at once. The address may not be usable; that is all that it fails
// with, besides ErrClosed on a loop that turns no more. value is for
// Client.Value. Any goroutine may call it.
func (d *Dialer) Dial(address string, value any) (*Client, error) {
	if address == "" {
		address = d.dial.Address
	}
	r, err := d.route(address)
	if err != nil {
		return nil, err
	}
	cl := &Client{dialer: d, route: r, value: value}
	cl.backoff.Policy = d.dial.Backoff
	if err := d.set.loop.Post(cl.begin); err != nil {
		return nil, ErrClosed
	}
	return cl, nil
}

// Client is one outgoing connection, and with DialConfig.Reconnect those that
// follow it. Its methods may be called from any goroutine.
type Client struct {
	// Set once.

	dialer *Dialer
	route  route
	value  any

	// Owned by the loop.

	attempt *attempt
	retry   *reactor.Timer
	backoff backoff.Backoff
	ended   bool // OnDown was told never

	// Guarded by mu.

	mu       sync.Mutex
	conn     *Conn // nil: none
	up       bool  // conn's first callback has returned, and what was queued is in its send queue
	since    time.Duration
	over     bool     // nothing more is taken
	why      error    // of over
	now      bool     // over by CloseNow
	queue    []byte   // to be sent once up, encoded
	messages [][]byte // the same where the connection has to encode it
	queued   int      // bytes of both
}

// Client returns the Client of an outgoing connection; nil of an accepted one.
func (c *Conn) Client() *Client {
	if c.cfg.dialer == nil {
		return nil
	}
	if x := c.extra.Load(); x != nil {
		return x.client
	}
	return nil
}

// Address returns where it connects to, as it was given to Dial.
func (cl *Client) Address() string { return cl.route.address }

// Value returns what was given to Dial; nil of a connection that came from
// another process.
func (cl *Client) Value() any { return cl.value }

// Conn returns the connection, nil while there is none.
func (cl *Client) Conn() *Conn {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.conn
}

// Protocol returns the ProtocolName of the connections.
func (cl *Client) Protocol() string { return cl.dialer.cfg.ProtocolName }

// Ready says that the protocol of c, the client's connection, has agreed on what it
// has to: see DialConfig.Negotiates. It is called once, in a callback of c,
// behind what is to be sent first; in OnAdopt too, if that was so already.
func (cl *Client) Ready(c *Conn) { cl.started(c) }

// Up says whether there is a connection of which OnConnect has returned, or
// for which Ready was called.
func (cl *Client) Up() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.up
}

// Send sends m on the connection, as Conn.Send. While there is none, but may
// be one, m waits for it, and leaves behind what OnConnect or OnAdopt sends;
// then Limits.SendHard bounds what waits (ErrFull, ErrTooLong). What was in the
// send queue of a connection that broke is lost. It returns ErrClosed after
// Close, or once there will be no connection any more, a *MovedError if the
// connection has moved to another process.
func (cl *Client) Send(m []byte) error {
	cl.mu.Lock()
	for {
		c := cl.conn
		if !cl.up || cl.over {
			break
		}
		cl.mu.Unlock()
		err := c.Send(m)
		if !errors.Is(err, ErrClosed) || !cl.dialer.dial.Reconnect {
			return err
		}
		cl.mu.Lock()
		if cl.conn == c && cl.up { // it has ended, and its OnClose is still to come
			break
		}
	}
	defer cl.mu.Unlock()
	return cl.queueLocked(m)
}

// queueLocked has m wait for a connection. It needs mu.
func (cl *Client) queueLocked(m []byte) error {
	if cl.over {
		return cl.goneLocked()
	}
	cfg := &cl.dialer.cfg
	limit := cl.dialer.limits().SendHard
	size := len(m) + overhead
	if cl.encodesEarly() {
		encoded, err := cfg.protocol().Append(cl.queue, m)
		if err != nil {
			return fmt.Errorf("conn: %w", err)
		}
		size = len(encoded) - len(cl.queue)
		if size <= limit && cl.queued+size <= limit {
			cl.queue = encoded
		}
	} else if size <= limit && cl.queued+size <= limit {
		cl.messages = append(cl.messages, slices.Clone(m))
	}
	switch {
	case size > limit:
		return fmt.Errorf("conn: message of %d bytes, want at most %d: %w", size, limit, ErrTooLong)
	case cl.queued+size > limit:
		return fmt.Errorf("%w: %d bytes wait, %d more would pass %d", ErrFull, cl.queued, size, limit)
	}
	cl.queued += size
	return nil
}

// encodesEarly says whether messages can be encoded before there is a
// connection, and one may stand directly behind the other.
func (cl *Client) encodesEarly() bool {
	return cl.dialer.cfg.NewSession == nil && !cl.dialer.datagrams
}

func (cl *Client) goneLocked() error {
	if cl.conn != nil && cl.conn.has(flagLeft) {
		return cl.conn.gone()
	}
	return ErrClosed
}

// Queued returns how many bytes wait, for a connection or to be sent on it.
func (cl *Client) Queued() int {
	cl.mu.Lock()
	n, c := cl.queued, cl.conn
	cl.mu.Unlock()
	if c != nil {
		n += c.Queued()
	}
	return n
}

// Close ends the client for good: its connection as by Conn.Close, and no
// attempt follows. If an attempt is under way and something waits to be sent,
// it goes on, and the connection is closed when that has left. last are
// messages as of Conn.Close, of which it returns the first error; ErrClosed if
// the client was over before. Without last it returns nil.
func (cl *Client) Close(why error, last ...[]byte) (err error) {
	cl.mu.Lock()
	c := cl.conn
	if cl.over {
		defer cl.mu.Unlock()
		if len(last) > 0 {
			err = cl.goneLocked()
		}
		return err
	}
	if cl.up {
		cl.endLocked(why)
		cl.mu.Unlock()
		return cl.bye(c, why, last)
	}
	for _, m := range last {
		if e := cl.queueLocked(m); e != nil && err == nil {
			err = e
		}
	}
	cl.endLocked(why)
	cl.mu.Unlock()
	// An error means that the loop turns no more, and nothing happens at all.
	_ = cl.dialer.set.loop.Post(cl.stop)
	return err
}

// bye closes the connection as Close says.
func (cl *Client) bye(c *Conn, why error, last [][]byte) error {
	told := len(last)
	if f := c.cfg.Farewell; f != nil && cl.dialer.dial.Negotiates {
		if m := f(c, why); m != nil {
			last = append(last[:told:told], m)
		}
	}
	err := c.Close(why, last...)
	if told == 0 {
		return nil
	}
	return err
}

// CloseNow is Close without waiting for anything.
func (cl *Client) CloseNow(why error) {
	cl.mu.Lock()
	if !cl.over {
		cl.endLocked(why)
	}
	c := cl.conn
	cl.now = true
	cl.mu.Unlock()
	if c != nil {
		c.CloseNow(why)
		return
	}
	_ = cl.dialer.set.loop.Post(cl.stop)
}

func (cl *Client) endLocked(why error) { cl.over, cl.why = true, why }

// stop acts on Close while there is no connection. Loop only.
func (cl *Client) stop() {
	cl.mu.Lock()
	wait := cl.conn != nil || cl.attempt != nil && cl.queued > 0 && !cl.now
	cl.mu.Unlock()
	if !wait {
		cl.finish()
	}
}

// begin is the first attempt. Loop only, as is all from here on that is not
// said to be otherwise.
func (cl *Client) begin() {
	s := cl.dialer.set
	cl.dialer.clients++
	if s.noDials {
		cl.failed(ErrDrained)
		return
	}
	s.clients[cl] = true
	cl.try()
}

func (cl *Client) try() {
	cl.retry = nil
	cl.attempt = &attempt{set: cl.dialer.set, client: cl, route: &cl.route}
	cl.attempt.start(cl.dialer.dial.Timeout, cl.dialer.dial.Resolver)
}

// failed is told that an attempt has.
func (cl *Client) failed(err error) {
	cl.attempt = nil
	cl.down(err, 0)
}

// arrived is given the descriptor of a connection that an attempt has made,
// the counts of its bytes, and what TLS was agreed on, nil if none.
func (cl *Client) arrived(fd int, peer unix.Sockaddr, rx, tx uint64, tls *tlsrec.Result) {
	cl.attempt = nil
	s := cl.dialer.set
	c, err := s.open(fd, peer, &cl.dialer.cfg)
	if err != nil {
		unix.Close(fd)
		if tls != nil && tls.Conn != nil {
			tls.Conn.Drop()
		}
		cl.down(err, 0)
		return
	}
	delete(s.clients, cl)
	c.rx.Store(rx)
	c.tx.Store(tx)
	if rx > 0 && tls == nil {
		c.partial = 0 // the deadline of the first byte does not hold: it was the proxy's
	}
	c.mu.Lock()
	c.extraLocked().client = cl
	c.mu.Unlock()
	cl.mu.Lock()
	cl.conn, cl.since = c, s.loop.Now()
	cl.mu.Unlock()
	if tls != nil {
		c.beginSecured(tls)
		return
	}
	c.greet()
	c.note()
}

// started sends what has waited for the connection: its first callback has
// returned. It runs where that does.
func (cl *Client) started(c *Conn) {
	cl.mu.Lock()
	if cl.conn != c {
		cl.mu.Unlock()
		return
	}
	first := c.sendWaiting(cl)
	cl.up = true
	over, now, why := cl.over, cl.now, cl.why
	cl.mu.Unlock()
	if first {
		c.set.settleLater(c)
	}
	switch {
	case now:
		c.CloseNow(why)
	case over:
		_ = cl.bye(c, why, nil)
	}
}

// sendWaiting puts in the send queue what cl has, and says whether
// settleLater has to be called. It needs cl.mu.
func (c *Conn) sendWaiting(cl *Client) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has(flagsEnded) || cl.queued == 0 {
		return false // it waits for the next one
	}
	c.out.add(cl.queue)
	for _, m := range cl.messages {
		// Its length was seen to; so an error is the protocol's.
		if err := c.encodeLocked(&c.out, m, math.MaxInt); err != nil {
			c.failLocked(err)
			break
		}
	}
	c.markFullLocked()
	cl.queue, cl.messages, cl.queued = nil, nil, 0
	return c.dirtyLocked()
}

// lost is told that OnClose has returned.
func (cl *Client) lost(why error) {
	cl.mu.Lock()
	healthy := max(cl.dialer.set.loop.Now()-cl.since, 1)
	if cl.dialer.dial.Negotiates && !cl.up {
		why = &ConnectError{Step: Negotiating, Address: cl.conn.Peer(), Target: cl.route.address, Err: cmp.Or(why, ErrClosed)}
		healthy = 0
	}
	cl.conn, cl.up = nil, false
	cl.mu.Unlock()
	cl.down(why, healthy)
}

// down is told that there is no connection now.
func (cl *Client) down(why error, healthy time.Duration) {
	s := cl.dialer.set
	cl.mu.Lock()
	if !cl.over && (!cl.dialer.dial.Reconnect || s.noDials) {
		cl.endLocked(why)
	}
	over := cl.over
	if over && why != nil { // what really was goes before what was asked for
		cl.why = why
	}
	cl.mu.Unlock()
	if over {
		cl.finish()
		return
	}
	next := cl.backoff.Next(healthy)
	s.clients[cl] = true
	cl.retry = s.loop.After(next, cl.try)
	cl.tell(why, next)
}

// finish ends the client.
func (cl *Client) finish() {
	if cl.ended {
		return
	}
	cl.ended = true
	cl.mu.Lock()
	cl.queue, cl.messages, cl.queued = nil, nil, 0
	why := cl.why
	cl.mu.Unlock()
	cl.forget()
	cl.tell(why, -1)
}

// forget gives back all that a client without a connection has.
func (cl *Client) forget() {
	d := cl.dialer
	if cl.retry != nil {
		cl.retry.Stop()
		cl.retry = nil
	}
	if cl.attempt != nil {
		cl.attempt.drop()
		cl.attempt = nil
	}
	delete(d.set.clients, cl)
	// The settings of a Dialer that is not used any more are not kept.
	if d.clients--; d.clients == 0 && d.cfg.Pinned {
		delete(d.set.settings, &d.cfg)
	}
}

// tell calls OnDown.
func (cl *Client) tell(why error, next time.Duration) {
	d := cl.dialer
	if d.dial.OnDown == nil {
		return
	}
	err := guard(func() error { d.dial.OnDown(cl, why, next); return nil })
	if err == nil {
		return
	}
	if d.cfg.Seat != nil {
		d.cfg.Seat.Panics.Add(1)
	}
	if d.cfg.Event != nil {
		d.cfg.Event(Event{Kind: CallbackPanicked, Listener: d.cfg.Listener, Peer: cl.route.address, Err: err})
	}
}

// stopDials ends the clients that have no connection; those that lose theirs
// end then.
func (s *Set) stopDials() {
	if s.noDials {
		return
	}
	s.noDials = true
	for cl := range s.clients {
		cl.mu.Lock()
		if !cl.over {
			cl.endLocked(ErrDrained)
		}
		cl.mu.Unlock()
		cl.finish()
	}
}

// limits returns the limits with their defaults.
func (d *Dialer) limits() Limits {
	l := d.cfg.Limits
	_ = l.fill() // NewDialer has seen to it
	return l
}

// dialed is the application's Handler with a Client told of what matters to it.
type dialed struct{ Handler }

// OnConnect is called in the place of the application's.
func (h dialed) OnConnect(c *Conn) {
	h.Handler.OnConnect(c)
	if cl := c.Client(); !cl.dialer.dial.Negotiates {
		cl.started(c)
	}
}

// OnAdopt is called in the place of the application's.
func (h dialed) OnAdopt(c *Conn, why Reason) {
	h.Handler.OnAdopt(c, why)
	if cl := c.Client(); !cl.dialer.dial.Negotiates {
		cl.started(c)
	}
}

// OnClose is called in the place of the application's.
func (h dialed) OnClose(c *Conn, why error) {
	cl := c.Client()
	defer func() {
		// An error means that the loop turns no more: nothing follows.
		_ = c.set.loop.Post(func() { cl.lost(why) })
	}()
	h.Handler.OnClose(c, why)
}

// OnPeerClosed is the application's, if it has one.
func (h dialed) OnPeerClosed(c *Conn) {
	if p, ok := h.Handler.(PeerClosedHandler); ok {
		p.OnPeerClosed(c)
	}
}

// released is told that a connection is over here. One that another process
// has is the client there from now on.
func (d *Dialer) released(c *Conn) {
	if c.has(flagLeft) {
		cl := c.Client()
		cl.mu.Lock()
		cl.endLocked(ErrMoved)
		cl.mu.Unlock()
		cl.ended = true
		cl.forget()
	}
	if d.dial.Released != nil {
		d.dial.Released(c)
	}
}

// What goes to the process that takes over an outgoing connection:
//
//	string  the address that was given to Dial
//	1 B     whether the application's value follows
//	rest    the value

// encode is EncodeValue.
func (d *Dialer) encode(c *Conn) ([]byte, error) {
	b := appendString(nil, c.Client().route.address)
	if d.dial.EncodeValue == nil {
		return append(b, 0), nil
	}
	value, err := d.dial.EncodeValue(c)
	if err != nil || value == nil {
		return append(b, 0), err
	}
	return append(append(b, 1), value...), nil
}

var errNotDialed = errors.New("conn: value of no outgoing connection")

// appendAddress appends what encode would for an application without a value.
func (d *Dialer) appendAddress(dst []byte, c *Conn) []byte {
	return append(appendString(dst, c.Client().route.address), 0)
}

// overhead is how many bytes encode has beside the value; none of an accepted
// connection, which has no Dialer.
func (d *Dialer) overhead(c *Conn) int {
	if d == nil {
		return 0
	}
	return len(d.appendAddress(nil, c))
}

// decode is DecodeValue.
func (d *Dialer) decode(c *Conn, b []byte) error {
	n, size := binary.Uvarint(b)
	if size <= 0 || n >= uint64(len(b)-size) {
		return errNotDialed
	}
	b = b[size:]
	r, err := d.route(string(b[:n]))
	if err != nil {
		return err
	}
	cl := &Client{dialer: d, route: r, conn: c, since: d.set.loop.Now()}
	cl.backoff.Policy = d.dial.Backoff
	d.clients++
	c.mu.Lock()
	c.extraLocked().client = cl
	c.mu.Unlock()
	if d.dial.DecodeValue == nil {
		return nil
	}
	var value []byte
	if b[n] != 0 {
		value = b[n+1:]
	}
	return d.dial.DecodeValue(c, value)
}
