package control

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mainstay-go/mainstay/pkg/metrics"
)

// Monitor is what a Backend may be as well: what monitoring asks of it. Its
// methods are called from many goroutines at a time; ctx ends when the asker
// has gone.
type Monitor interface {
	// Metrics returns all figures in Prometheus' text format.
	Metrics(ctx context.Context) ([]byte, error)
	// Healthy returns nil while the supervisor answers.
	Healthy(ctx context.Context) error
	// Ready says how much of the service serves, or why it does not.
	Ready(ctx context.Context) (string, error)
}

// monitor adds the requests of monitoring to mux:
//
//	GET /metrics   200, or 503 with the reason
//	GET /healthz   200 while the supervisor answers, else 503
//	GET /readyz    200 while the service serves, else 503 with the reason
func monitor(mux *http.ServeMux, m Monitor) {
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		page, err := m.Metrics(r.Context())
		if err != nil {
			say(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		w.Header().Set("Content-Type", metrics.ContentType)
		w.Write(page) // a peer that has gone needs no answer
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Healthy(r.Context()); err != nil {
			say(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		say(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		text, err := m.Ready(r.Context())
		if err != nil {
			say(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		say(w, http.StatusOK, text)
	})
}

func say(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, text+"\n")
}

const (
	// maxMonitors bounds how many connections a monitoring listener has at a
	// time; further ones wait in the socket's backlog.
	maxMonitors = 32

	// monitorTimeout is how long a connection of monitoring lasts at most,
	// whatever its peer does.
	monitorTimeout = 15 * time.Second
)

// NewMonitor returns a server that answers what monitoring asks and nothing
// else, to anybody: it is for a network. A connection is for one request and
// ends within 15 seconds; there are 32 at a time.
func NewMonitor(m Monitor) *Server {
	mux := http.NewServeMux()
	monitor(mux, m)
	s := &Server{open: make(chan struct{}, maxMonitors)}
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      monitorTimeout,
		MaxHeaderBytes:    16 << 10,
	}
	s.http.SetKeepAlivesEnabled(false)
	return s
}

// bound limits the connections that are open at a time, if open is not nil.
func bound(l net.Listener, open chan struct{}) net.Listener {
	if open == nil {
		return l
	}
	return &bounded{Listener: l, open: open, closed: make(chan struct{})}
}

// bounded accepts only as many connections as open has room for.
type bounded struct {
	net.Listener
	open   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.open <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.open
		return nil, err
	}
	return &boundedConn{Conn: c, release: sync.OnceFunc(func() { <-b.open })}, nil
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
