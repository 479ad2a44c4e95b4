package conn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"math/bits"
	"runtime/debug"
	"time"

	"github.com/mainstay-go/mainstay/pkg/wire/tlsrec"
)

// Why Adopt refuses a connection.
var (
	// ErrState says that a captured state is damaged, or none at all.
	ErrState = errors.New("conn: captured state is malformed")

	// ErrStateVersion says that a captured state is of a version that this
	// program does not know.
	ErrStateVersion = errors.New("conn: captured state of an unknown version")

	// ErrListener says that nothing is served here on the connection's
	// listener.
	ErrListener = errors.New("conn: no such listener")

	// ErrProtocol says that its listener has another protocol here.
	ErrProtocol = errors.New("conn: another protocol")
)

// A captured state. Numbers are varints as encoding/binary has them, times
// are nanoseconds, a string of bytes comes behind its length:
//
//	2 B     version, little endian
//	1..10   flags
//	5 times opened, lastIn, lastOut, partial, progress: how long ago
//	1..10   bytes read from the descriptor
//	1..10   bytes written to it
//	1..10   ID of the pipe's other end, 0: none
//	string  listener
//	string  protocol's name
//	string  session's state
//	string  peer's address
//	string  the application's value
//	1..10   number of timers, then of each
//	        string  name
//	        time    how long until it is over
//	string  input that no callback has got
//	string  output that the kernel has not got
//	string  the layer before the descriptor, empty: none; otherwise
//	        1 B     its flags
//	        string  TLS: keys and sequence numbers, see package tlsrec; empty: they are in the slab, if the flags say so, or the handshake is to come
//	        string  TLS: what was agreed on
//	        string  an incomplete record that has come
//	        string  records that the kernel has not got, before the output
//	string  PROXY header, empty: none
//	4 B     CRC-32C of all before it, little endian
//
// Version 1 ended with the output.
//
// A tail, which is what comes after a capture, is laid out in tail.go.
const (
	stateVersion    = 2
	stateVersionOld = 1
)

// The flags of a captured state.
const (
	statePaused = 1 << iota
	stateAuthenticated
	stateReading // the peer's deadlines go on
	stateHeld
	stateEOF
	stateBlocked
	stateFull
	stateTellFull
	stateTellDrain
	stateClogged
	stateHasValue
	stateNew
	stateResting // made by Resting: the protocol's name is 4 bytes of hash, little endian

	stateKnown = 1<<iota - 1
)

// state is a captured state, taken apart. The slices alias what it was parsed
// from, but for that of the timers.
type state struct {
	flags                                      uint64
	opened, lastIn, lastOut, partial, progress time.Duration
	rx, tx, partner                            uint64
	listener, protocol                         string
	session                                    []byte
	peer                                       string
	value                                      []byte
	timers                                     []stateTimer
	in                                         []byte
	out                                        []byte // of parse only: append takes it from the queue
	layer                                      *layerState
	header                                     []byte // PROXY's
}

// layerState is the layer's part.
type layerState struct {
	flags                uint8
	tls, info, in, ready []byte
}

const (
	layerProxy = 1 << iota // the PROXY header is to come
	layerQuiet
	layerTruncated
	layerNoted  // made by Resting: the keys are in the slab
	layerKernel // the kernel seals, see ktls.go

	layerKnown = 1<<iota - 1
)

type stateTimer struct {
	name string
	left time.Duration
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Capture appends to dst what another process needs to go on with the
// connection: Set.Adopt there understands it. The connection stays as it is.
// It fails, with dst as it was, if the protocol or the application cannot say
// its part; the connection is to be thawed then.
//
// What other goroutines change of the application's value afterwards does not
// travel, unlike what they send, and unlike timers, Pause, Resume,
// Authenticated and Close, which go with Left. Conn.Hold is the way to keep
// the connection until such work is done.
func (f *Frozen) Capture(dst []byte) ([]byte, error) {
	c := f.conn
	s := state{
		listener: c.cfg.Listener, protocol: c.cfg.ProtocolName, peer: c.peer,
		opened: c.opened.until(c.set.loop.Clock()), lastIn: c.lastIn.until(f.at), lastOut: c.lastOut.until(f.at),
		rx: c.rx.Load(), tx: c.tx.Load(),
	}
	var err error
	if encode := c.cfg.EncodeValue; encode != nil && !c.has(flagNew) {
		if err = guard(func() (err error) { s.value, err = encode(c); return err }); err != nil {
			return dst, fmt.Errorf("conn: state of the application: %w", err)
		}
	}
	if s.value != nil {
		s.flags |= stateHasValue
	}
	if f.partner != nil {
		s.partner = uint64(f.partner.ID())
	}
	if c.partial != 0 {
		s.partial = max(c.partial.until(f.at), 1)
	}
	if c.in != nil {
		s.in = c.in.bytes()
	}
	set := func(bit uint64, when bool) {
		if when {
			s.flags |= bit
		}
	}
	set(stateReading, f.reading)
	set(stateHeld, c.held)
	set(stateEOF, c.eof)
	if c.blocked {
		s.flags |= stateBlocked
		s.progress = c.progress.until(f.at)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	f.flags = c.flags.Load()
	set(stateNew, f.flags&flagNew != 0)
	set(statePaused, f.flags&flagPaused != 0)
	set(stateAuthenticated, f.flags&flagAuthenticated != 0)
	set(stateFull, f.flags&flagFull != 0)
	set(stateTellFull, f.flags&flagTellFull != 0)
	set(stateTellDrain, f.flags&flagTellDrain != 0)
	set(stateClogged, f.flags&flagClogged != 0)
	x := c.extra.Load()
	if err = c.passSavedLocked(); err != nil {
		return dst, err
	}
	f.timers = maps.Clone(x.timers)
	if len(f.timers) > 0 {
		now := c.set.loop.Clock()
		for name, t := range f.timers {
			s.timers = append(s.timers, stateTimer{name, max(t.at-now, 0)})
		}
	}
	if x.session != nil {
		if err = guard(func() (err error) { s.session, err = x.session.AppendState(nil); return err }); err != nil {
			return dst, fmt.Errorf("conn: state of the protocol: %w", err)
		}
	}
	if o := x.origin.Load(); o != nil {
		s.header = o.header
	}
	if x.layer != nil {
		if s.layer, err = x.layer.capture(); err != nil {
			return dst, fmt.Errorf("conn: state of TLS: %w", err)
		}
		defer clear(s.layer.tls)
	}
	return s.append(dst, &c.out), nil
}

// capture returns what the other process needs of the layer. The keys are a
// copy of the caller's.
func (l *layer) capture() (*layerState, error) {
	s := new(layerState)
	set := func(bit uint8, when bool) {
		if when {
			s.flags |= bit
		}
	}
	set(layerProxy, l.stage == stageProxy)
	set(layerQuiet, l.quiet)
	set(layerTruncated, l.truncated)
	set(layerKernel, l.kernel)
	if l.in != nil {
		s.in = l.in.bytes()
	}
	s.ready = l.sealed.appendTo(nil)
	if l.tls == nil {
		return s, nil
	}
	var err error
	if s.tls, err = l.tls.AppendState(make([]byte, 0, tlsrec.MaxState)); err != nil {
		return nil, err
	}
	s.info, err = l.info.Append(nil)
	return s, err
}

func (s *layerState) append(dst []byte) []byte {
	if s == nil {
		return appendString(dst, "")
	}
	size := 1
	for _, part := range [][]byte{s.tls, s.info, s.in, s.ready} {
		size += uvarintSize(uint64(len(part))) + len(part)
	}
	dst = append(binary.AppendUvarint(dst, uint64(size)), s.flags)
	for _, part := range [][]byte{s.tls, s.info, s.in, s.ready} {
		dst = appendString(dst, part)
	}
	return dst
}

func uvarintSize(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

// parseLayer takes the layer's part apart; nil if there is none.
func parseLayer(b []byte) (*layerState, error) {
	if len(b) == 0 {
		return nil, nil
	}
	s, p := &layerState{flags: b[0]}, &parser{b: b[1:]}
	if s.flags&^layerKnown != 0 {
		p.fail("unknown flags of the layer")
	}
	for _, part := range []*[]byte{&s.tls, &s.info, &s.in, &s.ready} {
		*part = p.bytes()
	}
	hasKeys := len(s.tls) > 0 || s.flags&layerNoted != 0
	if !hasKeys && (len(s.info)+len(s.in)+len(s.ready) > 0 || s.flags&^layerProxy != 0) || hasKeys && s.flags&layerProxy != 0 {
		p.fail("a layer that cannot be")
	}
	return s, p.end()
}

// guard calls the application's f, whose panic is an error.
func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return f()
}

// append appends the state with the bytes of out.
func (s *state) append(dst []byte, out *queue) []byte {
	start := len(dst)
	b := binary.LittleEndian.AppendUint16(dst, stateVersion)
	b = binary.AppendUvarint(b, s.flags)
	for _, d := range []time.Duration{s.opened, s.lastIn, s.lastOut, s.partial, s.progress} {
		b = appendTime(b, d)
	}
	for _, n := range []uint64{s.rx, s.tx, s.partner} {
		b = binary.AppendUvarint(b, n)
	}
	b = appendString(b, s.listener)
	b = appendString(b, s.protocol)
	b = appendString(b, s.session)
	b = appendString(b, s.peer)
	b = appendString(b, s.value)
	b = binary.AppendUvarint(b, uint64(len(s.timers)))
	for _, t := range s.timers {
		b = appendString(b, t.name)
		b = appendTime(b, t.left)
	}
	b = appendString(b, s.in)
	b = binary.AppendUvarint(b, uint64(out.bytes))
	b = out.appendTo(b)
	b = s.layer.append(b)
	b = appendString(b, s.header)
	return seal(b, start)
}

// parse takes a captured state apart. What s was before is forgotten, but for
// names that come again: those of one listener are many.
func (s *state) parse(body []byte) error {
	*s = state{listener: s.listener, protocol: s.protocol}
	p, version, err := unseal(body, stateVersionOld, stateVersion)
	if err != nil {
		return err
	}
	s.flags = p.number()
	if s.flags&^stateKnown != 0 {
		p.fail("unknown flags")
	}
	for _, d := range []*time.Duration{&s.opened, &s.lastIn, &s.lastOut, &s.partial, &s.progress} {
		*d = p.time()
	}
	for _, n := range []*uint64{&s.rx, &s.tx, &s.partner} {
		*n = p.number()
	}
	s.listener = again(s.listener, p.bytes())
	s.protocol = again(s.protocol, p.bytes())
	s.session = p.bytes()
	s.peer = string(p.bytes())
	s.value = p.bytes()
	var seen map[string]bool
	for n := p.number(); n > 0 && p.err == nil; n-- {
		t := stateTimer{string(p.bytes()), p.time()}
		if seen[t.name] {
			p.fail("a timer twice")
		}
		if seen == nil {
			seen = make(map[string]bool)
		}
		seen[t.name] = true
		s.timers = append(s.timers, t)
	}
	s.in, s.out = p.bytes(), p.bytes()
	if version > stateVersionOld {
		layer := p.bytes()
		if header := p.bytes(); len(header) > 0 {
			s.header = header
		}
		if s.layer, err = parseLayer(layer); err != nil {
			return err
		}
	}
	if s.layer != nil && len(s.layer.tls) == 0 && s.layer.flags&layerNoted == 0 && s.flags&stateNew == 0 {
		p.fail("keys are missing")
	}
	if s.flags&stateHasValue == 0 && len(s.value) > 0 {
		p.fail("a value that is none")
	}
	return p.end()
}

// again is b as a string, known if it is that one.
func again(known string, b []byte) string {
	if string(b) == known {
		return known
	}
	return string(b)
}

func appendString[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTime(b []byte, d time.Duration) []byte { return binary.AppendUvarint(b, uint64(max(d, 0))) }

// seal appends the checksum of b from start on.
func seal(b []byte, start int) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// unseal checks version, which may be one of two, and checksum and returns
// what lies between them.
func unseal(b []byte, oldest, newest uint16) (p parser, version uint16, err error) {
	if len(b) < 2+4 {
		return p, 0, fmt.Errorf("%w: %d bytes", ErrState, len(b))
	}
	if version = binary.LittleEndian.Uint16(b); version < oldest || version > newest {
		return p, 0, fmt.Errorf("%w: %d, want %d", ErrStateVersion, version, newest)
	}
	end := len(b) - 4
	if crc32.Checksum(b[:end], castagnoli) != binary.LittleEndian.Uint32(b[end:]) {
		return p, 0, fmt.Errorf("%w: checksum", ErrState)
	}
	return parser{b: b[2:end]}, version, nil
}

// parser takes bytes apart. After an error it returns zeros.
type parser struct {
	b   []byte
	err error
}

func (p *parser) fail(why string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s, %d bytes before the end", ErrState, why, len(p.b))
	}
	p.b = nil
}

func (p *parser) number() uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.fail("no number")
		return 0
	}
	p.b = p.b[size:]
	return n
}

func (p *parser) time() time.Duration {
	n := p.number()
	if n > math.MaxInt64/4 { // a sum with the clock is still a time
		p.fail("a time beyond all bounds")
		return 0
	}
	return time.Duration(n)
}

func (p *parser) bytes() []byte {
	n := p.number()
	if n > uint64(len(p.b)) {
		p.fail("a length beyond the end")
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) end() error {
	if p.err == nil && len(p.b) > 0 {
		p.fail("more than all")
	}
	return p.err
}
