package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxConversations bounds how many requests are served at a time; further
// ones wait in the socket's backlog.
const maxConversations = 64

// Backend is what a Server serves. Its methods are called from many
// goroutines at a time; ctx ends when the asker has gone. What else it can do
// is found out by Operator, ConnectionLister and Mover.
type Backend interface {
	// Status tells how the service is.
	Status(ctx context.Context) (Status, error)
	// Reload runs a reload and tells its steps; the error says why it was
	// refused or rolled back. A reload goes on when ctx ends.
	Reload(ctx context.Context, r ReloadRequest, step func(string)) error
	// Scale sets the number of workers of a pool. It tells what those that
	// leave have done with their connections.
	Scale(ctx context.Context, r ScaleRequest) ([]Handover, error)
	// Stop begins the end of the service.
	Stop(ctx context.Context) error
}

// ErrInvalid marks a Backend's refusal of what was asked, rather than a
// failure to do it.
var ErrInvalid = errors.New("invalid request")

// Listen binds the control socket at address, a URL unix:///path, with mode
// 0660. A socket file that nobody listens on, or only the keeper of a dead
// process, is replaced; one that answers, or another kind of file, is an error, as is a path too long for the
// kernel's 107 bytes.
func Listen(address string) (net.Listener, error) {
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("control: %s exists and is no socket", path)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			process, dead := listenerOf(c.(*net.UnixConn))
			c.Close()
			if dead == nil {
				process.Close()
			}
			if !errors.Is(dead, errDead) {
				return nil, fmt.Errorf("control: %s: another process listens on it", path)
			}
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
	}
	// The file must not be open to more than its mode for a moment between
	// bind and chmod, and umask belongs to the whole process: so it is bound
	// in a private directory and moved into place.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".c")
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	defer os.RemoveAll(dir)
	temp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o660), os.Rename(temp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("control: %w", err)
	}
	return &listener{UnixListener: l, path: path}, nil
}

// listener unlinks its path when it is closed.
type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() { os.Remove(l.path) })
	return err
}

// maxPath is what sockaddr_un takes, its closing NUL and the detour through
// a directory of Listen's own not counted.
const maxPath = 107 - len("/.c0123456789/s")

func socketPath(address string) (string, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("control: address %q, want unix:///path", address)
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("control: path %q has %d bytes, want at most %d", path, len(path), maxPath)
	}
	return path, nil
}

// Server answers requests on a control socket.
type Server struct {
	backend Backend
	http    *http.Server
	slots   chan struct{} // requests under way
	open    chan struct{} // connections, if they are bounded as well
	streams chan struct{} // those who follow the events

	// closing ends the streams; nil if there are none.
	closing context.Context
	close   context.CancelFunc
}

// NewServer returns a server for backend.
func NewServer(backend Backend) *Server {
	s := &Server{backend: backend, slots: make(chan struct{}, maxConversations), streams: make(chan struct{}, maxStreams)}
	s.closing, s.close = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/examine", s.examine)
	mux.HandleFunc("GET /v1/connections", s.connections)
	mux.HandleFunc("GET "+eventsPath, s.events)
	mux.HandleFunc("POST /v1/recycle", s.slot("recycled worker %d", Operator.Recycle))
	mux.HandleFunc("POST /v1/drain", s.slot("worker %d is drained", Operator.Drain))
	mux.HandleFunc("POST /v1/resume", s.slot("worker %d is resumed", func(o Operator, ctx context.Context, r SlotRequest) ([]Handover, error) {
		return nil, o.Resume(ctx, r)
	}))
	mux.HandleFunc("POST /v1/move", moves(s, Mover.Move))
	mux.HandleFunc("POST /v1/rebalance", moves(s, Mover.Rebalance))
	mux.HandleFunc("POST /v1/reload", s.reload)
	mux.HandleFunc("POST /v1/rollback", s.rollback)
	mux.HandleFunc("POST /v1/scale", s.scale)
	mux.HandleFunc("POST /v1/stop", s.stop)
	if m, ok := backend.(Monitor); ok {
		monitor(mux, m)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("no such request: %s %s", r.Method, r.URL.Path))
	})
	s.http = &http.Server{
		Handler:           s.bounded(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second, // what lasts sets its own, for each step
		IdleTimeout:       10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ConnContext:       withPeer,
		ErrorLog:          nil,
	}
	return s
}

// Serve answers on l until Close; then it returns nil. It owns l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(bound(l, s.open)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// Close ends the server. Requests under way have until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	if s.close != nil {
		s.close()
	}
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := allowed(r.Context()); err != nil {
			refuse(w, http.StatusForbidden, err)
			return
		}
		if follows(r) {
			select {
			case s.streams <- struct{}{}:
				defer func() { <-s.streams }()
			default:
				refuse(w, http.StatusServiceUnavailable, fmt.Errorf("%d follow the events already", maxStreams))
				return
			}
		} else {
			select {
			case s.slots <- struct{}{}:
				defer func() { <-s.slots }()
			case <-r.Context().Done():
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, MaxRequest)
		next.ServeHTTP(w, r)
	})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.backend.Status(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, st)
}

func (s *Server) examine(w http.ResponseWriter, r *http.Request) {
	e, ok := s.backend.(Examiner)
	if !ok {
		refuse(w, http.StatusNotImplemented, errNotHere)
		return
	}
	x, err := e.Examine(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, x)
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	req, err := DecodeReload(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	stream(w, "reloaded", func(step func(string)) error { return s.backend.Reload(r.Context(), req, step) })
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	back, ok := s.backend.(Reverter)
	if !ok {
		refuse(w, http.StatusNotImplemented, errNotHere)
		return
	}
	stream(w, "rolled back", func(step func(string)) error { return back.Rollback(r.Context(), step) })
}

// stream answers with the steps of something that lasts, and then with done or
// why it failed.
func stream(w http.ResponseWriter, done string, do func(step func(string)) error) {
	// It lasts longer than any write deadline.
	ctl := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	var mu sync.Mutex
	enc := json.NewEncoder(w)
	tell := func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		ctl.SetWriteDeadline(time.Now().Add(stepTimeout))
		if enc.Encode(p) == nil {
			ctl.Flush()
		}
	}
	if err := do(func(step string) { tell(Progress{Message: step}) }); err != nil {
		tell(Progress{Message: err.Error(), Done: true})
		return
	}
	tell(Progress{Message: done, Done: true, OK: true})
}

func (s *Server) scale(w http.ResponseWriter, r *http.Request) {
	req, err := DecodeScale(r.Body)
	var left []Handover
	if err == nil {
		left, err = s.backend.Scale(r.Context(), req) // may last longer than the write deadline
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stepTimeout))
	}
	switch {
	case errors.Is(err, ErrInvalid):
		refuse(w, http.StatusBadRequest, err)
	case err != nil:
		refuse(w, http.StatusConflict, err)
	default:
		answer(w, Done{Message: fmt.Sprintf("scaled to %d", req.N), Handovers: left})
	}
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	if err := s.backend.Stop(r.Context()); err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	answer(w, Done{Message: "stopping"})
}

// DecodeReload reads the body of a reload request; an empty body asks for a
// plain reload. Its errors match ErrInvalid.
func DecodeReload(r io.Reader) (ReloadRequest, error) { return decode[ReloadRequest](r, true) }

// DecodeScale reads the body of a scale request. Its errors match
// ErrInvalid.
func DecodeScale(r io.Reader) (ScaleRequest, error) { return decode[ScaleRequest](r, false) }

func decode[T any](r io.Reader, mayBeEmpty bool) (v T, err error) {
	d := json.NewDecoder(io.LimitReader(r, MaxRequest+1))
	d.DisallowUnknownFields()
	err = d.Decode(&v)
	if mayBeEmpty && errors.Is(err, io.EOF) {
		return v, nil
	}
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return v, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return v, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // a peer that has gone needs no answer
}

func refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(Problem{Error: err.Error()})
}

// peerKey is the key of a connection's credentials in its context.
type peerKey struct{}

type peer struct {
	cred   *unix.Ucred
	groups []int
	own    int // group of the socket file
	err    error
}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := &peer{own: os.Getegid()}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		p.err = errors.New("control: not a unix socket")
		return context.WithValue(ctx, peerKey{}, p)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		p.err = fmt.Errorf("control: peer: %w", err)
		return context.WithValue(ctx, peerKey{}, p)
	}
	if path := uc.LocalAddr().String(); path != "" {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			p.own = int(st.Gid)
		}
	}
	err = raw.Control(func(fd uintptr) {
		p.cred, p.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if p.err == nil {
		p.err = err
	}
	if p.err == nil {
		p.groups = processGroups(int(p.cred.Pid))
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// processGroups returns the supplementary groups of a process, nil if they
// cannot be read.
func processGroups(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Groups:"); ok {
			var groups []int
			for _, f := range strings.Fields(rest) {
				var g int
				if _, err := fmt.Sscan(f, &g); err == nil {
					groups = append(groups, g)
				}
			}
			return groups
		}
	}
	return nil
}

// allowed says whether the peer may operate the service.
func allowed(ctx context.Context) error {
	p, _ := ctx.Value(peerKey{}).(*peer)
	switch {
	case p == nil || p.cred == nil:
		return errors.New("control: who asks is unknown")
	case p.err != nil:
		return fmt.Errorf("control: who asks is unknown: %w", p.err)
	case p.cred.Uid == 0, int(p.cred.Uid) == os.Geteuid(), int(p.cred.Gid) == p.own:
		return nil
	}
	for _, g := range p.groups {
		if g == p.own {
			return nil
		}
	}
	return fmt.Errorf("control: user %d may not operate this service: want root, its own user, or a member of group %d", p.cred.Uid, p.own)
}
