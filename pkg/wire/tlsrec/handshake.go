package tlsrec

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync/atomic"
)

// What a peer may send before the handshake is over, in bytes: a ClientHello
// with tickets, each of which may hold a chain of certificates; and the chain
// itself where one is wanted. crypto/tls bounds each message, not their sum.
const (
	maxHello      = 96 << 10
	maxHelloChain = 352 << 10

	// maxWaiting is what Feed takes before a Step: some reads' worth, of
	// which a part may be behind the handshake.
	maxWaiting = 128 << 10
)

var (
	// ErrFlood says that a handshake has brought more bytes than one needs.
	ErrFlood = errors.New("tlsrec: handshake is too long")

	// ErrNotDone says that a handshake has no result yet.
	ErrNotDone = errors.New("tlsrec: handshake is not over")

	errAborted = errors.New("tlsrec: handshake was aborted")
)

// Handshake is a handshake of crypto/tls that waits for nothing: Feed what has
// come, Step, send the Output, until Step says that it is over. Between two
// steps it occupies no thread and is no goroutine that could run; it keeps the
// stack of one, and of a server nothing until the first record is complete. So
// peers that are slow or silent hold up nobody, and cost memory that the
// number of handshakes bounds.
//
// Its methods must not be called concurrently. Step computes signatures, about
// half a millisecond, so it is best called from a bounded pool; it may be
// called from another goroutine each time, but none that runtime.LockOSThread
// has tied to its thread. Whoever makes a Handshake must see it done, or Abort
// it: before that it holds memory which no garbage collector frees.
type Handshake struct {
	ctx  context.Context // the handshake's, not a call's: crypto/tls gives it to callbacks
	tr   *transport
	tls  *tls.Conn
	next func() (struct{}, bool)
	stop func()

	keeps  bool     // session tickets, as a client
	left   []string // protocols of ALPN that are left to crypto/tls
	done   bool
	err    error
	result Result
}

// Result is what a handshake has led to.
type Result struct {
	// Conn protects the connection from now on, if it is of TLS 1.3.
	Conn *Conn

	// Legacy does, if it is of TLS 1.2 or older, which cannot be taken over, or
	// was left to crypto/tls.
	Legacy *Legacy

	// Rest is input that came behind the handshake: for Conn.Open, before
	// anything else. Legacy has it already.
	Rest []byte

	// Tickets takes the server's session tickets to the configuration's
	// ClientSessionCache; nil if there is none, or nothing to be waited for.
	Tickets *Tickets

	// Info is what was agreed on.
	Info Info

	// State is the same as crypto/tls has it, with what does not travel.
	State tls.ConnectionState
}

// Server begins the handshake of an accepted connection. config is not changed
// and may be shared, also with other uses. It should have ticket keys set with
// SetSessionTicketKeys, see TicketKeys, or tickets disabled: keys that
// crypto/tls makes by itself are made anew for each handshake here, so that
// nothing resumes.
//
// crypto/tls hands ctx to the callbacks of config. When it ends, the next Step
// fails with its cause; nobody calls Step for a silent peer, so a deadline
// needs a timer of the caller's, too.
func Server(ctx context.Context, config *tls.Config) *Handshake {
	h := newHandshake(ctx, config, false)
	cfg := h.watch(config)
	if choose := config.GetConfigForClient; choose != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen == nil || err != nil {
				return chosen, err
			}
			return h.watch(chosen), nil
		}
	}
	h.tls = tls.Server(h.tr, cfg)
	return h
}

// Client begins the handshake of a connection that we have made. As Server,
// and the first Step needs no input. config must have a ServerName, or
// InsecureSkipVerify. Sessions of TLS 1.3 get into its ClientSessionCache if
// the Result's Tickets is fed: they come after the handshake.
func Client(ctx context.Context, config *tls.Config) *Handshake {
	h := newHandshake(ctx, config, true)
	h.keeps = config.ClientSessionCache != nil && !config.SessionTicketsDisabled
	h.tls = tls.Client(h.tr, h.watch(config))
	return h
}

func newHandshake(ctx context.Context, config *tls.Config, client bool) *Handshake {
	limit := maxHello
	if client || config.ClientAuth != tls.NoClientCert || config.GetConfigForClient != nil {
		limit = maxHelloChain
	}
	return &Handshake{ctx: ctx, tr: &transport{client: client, limit: limit, secrets: new(secrets)}}
}

// Leave has crypto/tls go on, as Result.Legacy, if the handshake agrees on one of
// these protocols by ALPN. It is to be called before the first Step.
func (h *Handshake) Leave(protocols ...string) { h.left = protocols }

// watch returns a copy of the configuration that tells us the secrets. It
// writes to the configuration's own KeyLogWriter as well.
func (h *Handshake) watch(config *tls.Config) *tls.Config {
	cfg := config.Clone()
	log := cfg.KeyLogWriter
	cfg.KeyLogWriter = keyLog{h.tr}
	if log != nil {
		cfg.KeyLogWriter = io.MultiWriter(keyLog{h.tr}, log)
	}
	return cfg
}

// Feed gives what the peer has sent, of which it keeps a copy. It does no
// work. It fails with ErrFlood if more than 128 KiB would then wait for Step,
// and once the handshake is over, when input is for its result.
func (h *Handshake) Feed(in []byte) error {
	switch {
	case h.done:
		return errors.New("tlsrec: handshake is over, input is for its result")
	case len(h.tr.in)+len(in) > maxWaiting:
		return fmt.Errorf("%w: %d bytes wait, and %d more have come", ErrFlood, len(h.tr.in), len(in))
	}
	h.tr.in = append(h.tr.in, in...)
	return nil
}

// Step goes on until more input is wanted, or the handshake is over: done is
// then true, as it stays. It fails with what crypto/tls says, the context's
// cause, or ErrFlood; then, too, the Output should be sent: it may end with an
// alert. A panic in a callback of the configuration is an error.
func (h *Handshake) Step() (done bool, err error) {
	switch {
	case h.done:
		return true, h.err
	case h.ctx.Err() != nil:
		h.abort(context.Cause(h.ctx))
		return true, h.err
	case h.next == nil && !h.tr.client && !h.tr.begun():
		return false, nil
	case h.next == nil:
		h.next, h.stop = iter.Pull(h.run)
	}
	if _, waits := h.next(); waits {
		return false, nil
	}
	h.finish()
	return true, h.err
}

// begun reports whether the first record is complete, or will never be one.
func (t *transport) begun() bool {
	if len(t.in) < headerSize {
		return len(t.in) > 0 && t.in[0] != byte(typeHandshake)
	}
	n := int(t.in[3])<<8 | int(t.in[4])
	return t.in[0] != byte(typeHandshake) || n > maxCiphertext || len(t.in) >= headerSize+n
}

// run is the handshake itself. It is suspended in yield whenever crypto/tls
// reads and there is nothing.
func (h *Handshake) run(yield func(struct{}) bool) {
	defer func() {
		if r := recover(); r != nil {
			h.err = fmt.Errorf("tlsrec: panic in the handshake: %v", r)
		}
	}()
	h.tr.wait = func() bool { return yield(struct{}{}) }
	growStack()
	h.err = h.tls.HandshakeContext(h.ctx)
}

// stackNeeded is what the deepest calls of a handshake take, those of ML-KEM.
const stackNeeded = 20 << 10

// growStack has the stack of a new goroutine grow to what a handshake needs at
// once. It would otherwise be copied each time that it has become twice as large.
//
//go:noinline
func growStack() byte {
	var room [stackNeeded]byte
	return room[len(room)-int(stackGrown.Load())-1]
}

// stackGrown is 0. The compiler does not know, and so makes room.
var stackGrown atomic.Int32

// finish makes the result.
func (h *Handshake) finish() {
	h.done = true
	h.tr.wait = nil
	if h.err == nil {
		h.err = h.conclude()
	} else {
		h.err = fmt.Errorf("tlsrec: handshake: %w", h.err)
	}
	h.tr.forget()
	h.next, h.stop, h.tls = nil, nil, nil
	if h.result.Legacy == nil {
		h.tr.in = nil
	}
}

func (h *Handshake) conclude() error {
	state := h.tls.ConnectionState()
	h.result.Info, h.result.State = InfoOf(&state), state
	h.tr.limit = 0
	if state.Version < tls.VersionTLS13 || slices.Contains(h.left, state.NegotiatedProtocol) {
		h.result.Legacy = &Legacy{tls: h.tls, tr: h.tr}
		return nil
	}
	if h.tr.fault != nil {
		return h.tr.fault
	}
	s := suiteOf(state.CipherSuite)
	if s == nil {
		return fmt.Errorf("tlsrec: cipher suite %#04x is not known", state.CipherSuite)
	}
	in, out := h.tr.secrets.client, h.tr.secrets.server
	if h.tr.client {
		in, out = out, in
	}
	read, err := newHalf(s, in, 0)
	if err != nil {
		return err
	}
	// A client has sent nothing under its final key, a server its tickets.
	write := h.tr.sent
	if h.tr.sent = nil; write == nil {
		if write, err = newHalf(s, out, 0); err != nil {
			return err
		}
	}
	h.result.Conn = newConn(h.tr.client, read, write)
	h.result.Rest = h.tr.in
	if h.keeps {
		h.result.Tickets = &Tickets{tls: h.tls, tr: h.tr, left: maxTickets}
	}
	return nil
}

// Output returns what is to be sent to the peer, and forgets it: the bytes are
// the caller's. All of it goes before anything that the result seals. Legacy
// has an Output of its own.
func (h *Handshake) Output() []byte {
	out := h.tr.out
	h.tr.out = nil
	return out
}

// Done reports whether the handshake is over, by success or failure.
func (h *Handshake) Done() bool { return h.done }

// Result returns what the handshake has led to. It fails with ErrNotDone, or
// as Step did.
func (h *Handshake) Result() (Result, error) {
	switch {
	case !h.done:
		return Result{}, ErrNotDone
	case h.err != nil:
		return Result{}, h.err
	}
	return h.result, nil
}

// Abort ends the handshake, if it is not over, and frees what it holds. Its
// result is an error then.
func (h *Handshake) Abort() {
	if !h.done {
		h.abort(errAborted)
	}
}

func (h *Handshake) abort(cause error) {
	h.tr.err = cause
	if h.stop != nil {
		h.stop()
	}
	h.err = cause
	h.finish()
}

// Format prints how far the handshake is, whatever the verb.
func (h Handshake) Format(s fmt.State, _ rune) {
	taken := 0
	if h.tr != nil {
		taken = h.tr.taken
	}
	fmt.Fprintf(s, "tlsrec.Handshake{taken:%d done:%v}", taken, h.done)
}
