package web

import (
	"net/http"
	"time"

	"github.com/mainstay-go/mainstay/pkg/conn"
	"github.com/mainstay-go/mainstay/pkg/wire/http1"
)

// Limits bound what peers may take of memory, time and goroutines. A zero
// field means its default, a negative duration that there is no such deadline.
type Limits struct {
	Wire http1.Limits // of heads and trailers

	// Body is the most bytes of a request's body; more is answered by 413, or
	// told to the handler's Read if that runs already. Default 1 MiB if
	// Inline, where it is kept in memory, otherwise none.
	Body int64

	Pipeline int // requests of a connection that are read ahead of the answers; default 16
	Running  int // requests that are answered at a time; default 256
	Waiting  int // connections whose requests wait for that, the next are answered by 503; default 1024

	HeadTimeout time.Duration // from the first byte of a head to its last; default 10 s
	IdleTimeout time.Duration // between two requests; default 75 s

	// BodyTimeout is how long a peer may fall behind with a body: it begins
	// with that much time, gets more with each byte by BodyRate, and never has more
	// than that much. While the handler does not read, no time passes. Default 30 s.
	BodyTimeout time.Duration
	BodyRate    int // bytes a second; default 512
}

// Defaults of Limits, and of what ConnConfig makes of conn.Limits.
const (
	DefaultInlineBody  = 1 << 20
	DefaultPipeline    = 16
	DefaultRunning     = 256
	DefaultWaiting     = 1024
	DefaultHeadTimeout = 10 * time.Second
	DefaultIdleTimeout = 75 * time.Second
	DefaultBodyTimeout = 30 * time.Second
	DefaultBodyRate    = 512

	// DefaultSendHigh is how many bytes of a response may wait to be sent
	// before the handler's Write waits, too.
	DefaultSendHigh = 256 << 10
)

// never is a deadline that is none.
const never = time.Duration(1<<63 - 1)

func (l Limits) withDefaults(inline bool) Limits {
	number := func(field *int, otherwise int) {
		if *field <= 0 {
			*field = otherwise
		}
	}
	number(&l.Pipeline, DefaultPipeline)
	number(&l.Running, DefaultRunning)
	number(&l.Waiting, DefaultWaiting)
	number(&l.BodyRate, DefaultBodyRate)
	if l.Body <= 0 {
		l.Body = 1<<63 - 1
		if inline {
			l.Body = DefaultInlineBody
		}
	}
	timeout := func(field *time.Duration, otherwise time.Duration) {
		if *field == 0 {
			*field = otherwise
		} else if *field < 0 {
			*field = never
		}
	}
	timeout(&l.HeadTimeout, DefaultHeadTimeout)
	timeout(&l.IdleTimeout, DefaultIdleTimeout)
	timeout(&l.BodyTimeout, DefaultBodyTimeout)
	return l
}

// Config is what a Handler serves and how.
type Config struct {
	Handler http.Handler // nil: http.DefaultServeMux; it is not asked for "OPTIONS *"

	// Inline runs the handler on the loop, which is fastest, and where it must
	// not block. Its requests come with their body complete, and what it
	// writes waits in memory, up to conn.Limits.SendHard. Otherwise each
	// request runs on a goroutine.
	Inline bool

	// Reuse, with Inline, allows the request, its Header with the values, and URL, the
	// ResponseWriter and its Header to be used for the next request when the
	// handler has returned: neither it nor anything it has started may hold them
	// then. Strings that were in them stay good, and so do contexts that were derived
	// with a deadline or a cancel function. That saves most of what an answer costs beside
	// the system calls.
	Reuse bool

	Limits Limits

	// Streams are, by the path of their request, what connections turn into:
	// for a GET of such a path, without a body, the Handler is not asked. The path
	// has to be in the request as it is here, without escapes.
	Streams map[string]Stream
}

// Stream is what a connection becomes with a request, behind the answers to
// those before it.
type Stream struct {
	// Conn serves the connection from then on. Its ProtocolName is its own.
	Conn *conn.Config

	// Begin, if not nil, is given the request, in a callback of c on the loop
	// and before OnConnect of Conn, which answers it; most often it sets c's Value.
	// Without it the head of the request is the first input, as it came. What
	// the peer has sent behind it is input too.
	Begin func(c *conn.Conn, r *http.Request)

	// Upgrade: only a request for another protocol (RFC 9110 7.8) is meant.
	Upgrade bool
}

// ConnConfig returns the configuration of connections that h serves, with
// limits, of which FirstByte, Send*, WriteStall and Close are of use. The caller sets
// Listener, Seat and Event; all else stays as it is.
func (h *Handler) ConnConfig(limits conn.Limits) *conn.Config {
	if limits.SendHigh == 0 {
		limits.SendHigh = DefaultSendHigh
		if limits.SendHard > 0 {
			limits.SendHigh = min(DefaultSendHigh, limits.SendHard/2)
		}
	}
	// What comes is a stream, and idle is between two requests: both are
	// judged here.
	limits.MaxMessage, limits.Message = 0, -1
	limits.Idle, limits.ReadIdle, limits.WriteIdle, limits.Auth = -1, -1, -1, -1
	h.sendHigh = limits.SendHigh
	// A part is sent while at most SendHigh bytes wait, and has to fit beside
	// them, with its framing.
	if limits.SendHard > 0 {
		h.sendStep = min(sendStep, max(limits.SendHard-limits.SendHigh-64, 1))
	}
	c := &conn.Config{
		Handler: h, Inline: true, Limits: limits, ProtocolName: "http/1", FinishFirst: true,
		EncodeValue: h.Capture, DecodeValue: h.Restore, Released: h.released,
	}
	for _, s := range h.config.Streams {
		c.Becomes = append(c.Becomes, s.Conn)
	}
	return c
}
