package web

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// exchange is a request and its response. Nothing of it is used again, unless
// Config.Reuse allows it.
type exchange struct {
	p        *peer
	next     *exchange     // in the peer's requests
	queued   int           // how many these are, if it is the last of them
	request  *http.Request // own; nil: there is only an end, of the connection
	own      http.Request
	handler  http.Handler
	url      url.URL
	ctx      requestContext
	response response
	kept     *kept   // nil unless Config.Reuse is set
	body     *body   // nil: none, or it is complete
	runner   *runner // that has it answered; nil: the loop does

	minor int
	head  bool // the method is HEAD
	close bool // the request is the connection's last

	// Of an exchange without a request, and of one that ends the connection.

	status int // of the answer; 0: none
	reason string
	why    error
	cut    bool // what was sent looks complete, and is not
}

// blank is what requests are copies of.
var blank http.Request

// newExchange makes the exchange for the turn's head, or nil if that cannot be.
func newExchange(p *peer, t *turn) *exchange {
	h := &t.head
	x := t.spare
	t.spare = nil
	if x == nil {
		x = new(exchange)
	}
	x.p, x.handler, x.minor, x.close = p, p.h.config.Handler, h.Minor, h.Close
	if string(h.Target) == "*" {
		x.handler = serverOptions
	}
	x.head = string(h.Method) == http.MethodHead
	x.ctx.c = p.c
	r := &x.own
	var room *http1.Room
	if p.h.config.Reuse {
		if x.kept == nil {
			x.kept = &kept{request: *blank.WithContext(&x.ctx)}
		}
		*r = x.kept.request
		r.Header, room = x.kept.header, &x.kept.room
	} else {
		*r = *blank.WithContext(&x.ctx)
	}
	if h.Fill(r, &x.url, room) != nil {
		return nil
	}
	r.Body = http.NoBody
	r.RemoteAddr, r.TLS = p.c.Peer(), p.tlsState()
	x.request = r
	x.response.x = x
	x.response.length = -1
	return x
}

// kept is what an exchange keeps for the next request.
type kept struct {
	request http.Request // empty, with the exchange's context
	header  http.Header
	room    http1.Room
}

// recycle makes x empty, but for its maps, which are, and what is written anew
// for each request.
func (x *exchange) recycle() {
	header := x.response.header
	clear(header)
	x.kept.header = x.own.Header
	x.request, x.body, x.why = nil, nil, nil
	x.url = url.URL{}
	x.response = response{header: header}
	x.status, x.reason, x.cut, x.runner = 0, "", false, nil
	x.ctx.ended.Store(false)
}

// keep leaves x to the turn's next request, if the handler may not hold it.
func (t *turn) keep(x *exchange) {
	if !t.h.config.Reuse || !t.h.config.Inline {
		return
	}
	if x.ctx.inner.Load() != nil || x.kept == nil || x.own.Header == nil || len(x.own.Header) > maxKept || len(x.response.header) > maxKept {
		return // others may hold the context; large maps stay large
	}
	x.recycle()
	t.spare = x
}

// maxKept is how many fields a header may have that is used again.
const maxKept = 32

// newExchangeOf makes the exchange for a request whose body was collected.
func newExchangeOf(p *peer, t *turn, in *inlineBody, trailer []byte) *exchange {
	var parser http1.Parser
	if _, kind, _, err := parser.Next(&p.h.limits.Wire, &t.head, in.head); err != nil || kind != http1.RequestHead {
		return nil
	}
	x := newExchange(p, t)
	if x != nil {
		http1.FillTrailer(x.request, trailer)
		x.request.Body = io.NopCloser(bytes.NewReader(in.body))
	}
	return x
}

// serve has the request answered and says whether the connection ends with
// it, which end does. r is the goroutine of the pool; nil: this is the loop.
func (x *exchange) serve(r *runner) (closing bool) {
	if x.request == nil {
		return true
	}
	returned := false
	defer func() {
		v := recover()
		x.ctx.cancel()
		if f := x.request.MultipartForm; f != nil {
			_ = f.RemoveAll() // what is left of it is in a directory for such files
		}
		if !returned {
			closing = true
			x.panicked(v)
		}
		x.response.over()
	}()
	if r != nil {
		x.runner = r
		if x.body != nil {
			x.body.runner = r
		}
		r.since.Store(max(1, int64(x.p.h.clock())))
		defer r.since.Store(0)
	}
	x.handler.ServeHTTP(&x.response, x.request)
	closing = x.response.finish()
	returned = true
	return closing
}

// panicked answers for a handler that did not return. v is nil if that has
// ended its goroutine.
func (x *exchange) panicked(v any) {
	if v == nil {
		v = "the handler has ended its goroutine by runtime.Goexit"
	}
	err := &conn.PanicError{Value: v, Stack: debug.Stack()}
	x.why = err
	if v != http.ErrAbortHandler {
		x.p.h.report(x.p.c, err)
	}
	w := &x.response
	switch {
	case w.sent:
		x.cut = w.framing == http1.ToClose
	case v != http.ErrAbortHandler:
		x.status = http.StatusInternalServerError
	}
}

// end closes the connection behind the answer, or with one.
func (x *exchange) end() {
	c := x.p.c
	if x.why == nil && x.body != nil {
		x.why = x.body.failure()
	}
	switch {
	case x.cut:
		c.CloseNow(x.why)
	case x.status != 0:
		_ = c.Close(x.why, http1.AppendError(nil, x.status, x.reason, time.Now()))
	default:
		_ = c.Close(x.why)
	}
}

// busy answers what there is no goroutine for.
var busy = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "too many requests are being answered", http.StatusServiceUnavailable)
})

// serverOptions answers what is asked of the server as a whole (RFC 9110
// 9.3.7), which is no handler's, as with net/http. Only OPTIONS has the target "*".
var serverOptions = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "0")
})

// requestContext is the context of a request. Most handlers do not ask it, so
// it becomes a context of package context only when one does: then those that
// are derived from it need no goroutine each.
type requestContext struct {
	c     *conn.Conn
	inner atomic.Pointer[cancelable] // nil: nobody has asked
	ended atomic.Bool
}

// cancelable is what package context makes.
type cancelable struct {
	context.Context
	stop context.CancelFunc
}

var _ context.Context = (*requestContext)(nil)

func (x *requestContext) get() context.Context {
	if x.inner.Load() == nil {
		made := new(cancelable)
		made.Context, made.stop = context.WithCancel(context.Background())
		if !x.inner.CompareAndSwap(nil, made) {
			made.stop() // another was quicker
		}
	}
	in := x.inner.Load()
	// Either cancel, which comes to inner behind ended, finds it, or it is
	// found here.
	if x.ended.Load() {
		in.stop()
	}
	return in
}

// cancel ends it. Any goroutine may call it.
func (x *requestContext) cancel() {
	x.ended.Store(true)
	if in := x.inner.Load(); in != nil {
		in.stop()
	}
}

// Deadline returns that there is none.
func (x *requestContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// Done is closed when the handler has returned or the peer has gone.
func (x *requestContext) Done() <-chan struct{} { return x.get().Done() }

// Err returns context.Canceled after that.
func (x *requestContext) Err() error {
	if x.ended.Load() {
		return context.Canceled
	}
	return nil
}

// connKey is the key of a request's connection.
type connKey struct{}

// Value knows http.LocalAddrContextKey, and what Conn asks for.
func (x *requestContext) Value(key any) any {
	switch key {
	case connKey{}:
		return x.c
	case http.LocalAddrContextKey:
		return localAddr(x.c.Local())
	}
	if in := x.inner.Load(); in != nil {
		return in.Value(key)
	}
	return nil
}

func localAddr(s string) net.Addr {
	if at, err := netip.ParseAddrPort(s); err == nil {
		return net.TCPAddrFromAddrPort(at)
	}
	return &net.UnixAddr{Name: s, Net: "unix"}
}

// Conn returns the connection of the request whose context ctx is, or is
// derived from; nil if that is none of this package's. Whoever sends on it or closes it disturbs what is
// said there.
func Conn(ctx context.Context) *conn.Conn {
	c, _ := ctx.Value(connKey{}).(*conn.Conn)
	return c
}
