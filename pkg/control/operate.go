package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// eventsPath is the one request that streams without an end.
const eventsPath = "/v1/events"

// maxStreams bounds how many askers follow the events at a time. They stay, so
// they do not take the others' places, and further ones are refused.
const maxStreams = 16

// Operator is a Backend that can deal with single workers and remembers what
// has happened. Its methods are called as Backend's are.
type Operator interface {
	// Recycle replaces a slot's worker, which is well, by a new one of the
	// same generation, and tells what it has done with its connections.
	Recycle(ctx context.Context, r SlotRequest) ([]Handover, error)
	// Drain takes a slot out of service: its worker hands its connections
	// over, finishes those that stay, and no other is started.
	Drain(ctx context.Context, r SlotRequest) ([]Handover, error)
	// Resume fills a slot that was drained.
	Resume(ctx context.Context, r SlotRequest) error
	// Events tells the events that are remembered, oldest first, and with
	// follow then those that happen, until ctx ends, which is no error. tell
	// is called from one goroutine at a time.
	Events(ctx context.Context, follow bool, tell func(Event)) error
}

// Reverter is a Backend that remembers the release before the one that runs.
type Reverter interface {
	// Rollback returns to the last good release and tells its steps; the error
	// says why there is none, or why the other one serves on. It goes on when
	// ctx ends.
	Rollback(ctx context.Context, step func(string)) error
}

// Examiner is a Backend that can tell how its process stands.
type Examiner interface {
	// Examine looks at limits, store, sandbox and configuration.
	Examine(ctx context.Context) (Examination, error)
}

// ConnectionLister is a Backend that can list its workers' connections.
type ConnectionLister interface {
	// Connections lists them; those of a worker that does not answer are
	// missing, and it is named.
	Connections(ctx context.Context, r ConnectionsRequest) (Connections, error)
}

// stepTimeout is how long an asker may take to read a step of what lasts.
const stepTimeout = 5 * time.Second

// errNotHere answers what this backend cannot do.
var errNotHere = errors.New("the running supervisor does not know this request: it is of an older version, restart the service")

// answerErr refuses with the status that err stands for; false: err is nil.
func answerErr(w http.ResponseWriter, err error) bool {
	switch {
	case err == nil:
		return false
	case errors.Is(err, ErrInvalid):
		refuse(w, http.StatusBadRequest, err)
	default:
		refuse(w, http.StatusConflict, err)
	}
	return true
}

// DecodeSlot reads the body of a request about a slot. Its errors match
// ErrInvalid.
func DecodeSlot(r io.Reader) (SlotRequest, error) { return decode[SlotRequest](r, false) }

// slot makes the handler of a request about a slot; done says with its number
// what was done.
func (s *Server) slot(done string, do func(Operator, context.Context, SlotRequest) ([]Handover, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, err := DecodeSlot(r.Body)
		if answerErr(w, err) {
			return
		}
		op, ok := s.backend.(Operator)
		if !ok {
			refuse(w, http.StatusNotImplemented, errNotHere)
			return
		}
		left, err := do(op, r.Context(), req) // may last longer than the write deadline
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stepTimeout))
		if answerErr(w, err) {
			return
		}
		answer(w, Done{Message: fmt.Sprintf(done, req.Slot), Handovers: left})
	}
}

// ParseConnections reads the query of a request for connections. Its errors
// match ErrInvalid.
func ParseConnections(q url.Values) (ConnectionsRequest, error) {
	r := ConnectionsRequest{Listener: q.Get("listener"), Peer: q.Get("peer"), Sort: q.Get("sort")}
	for key, values := range q {
		switch {
		case len(values) != 1:
			return r, fmt.Errorf("%w: %s is said %d times", ErrInvalid, key, len(values))
		case key != "listener" && key != "peer" && key != "sort" && key != "limit":
			return r, fmt.Errorf("%w: no filter %q, want listener, peer, limit or sort", ErrInvalid, key)
		}
	}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n == 0 {
			return r, fmt.Errorf("%w: limit %q, want 1 to %d", ErrInvalid, v, MaxLimit)
		}
		r.Limit = n
	}
	return r, r.Check()
}

func (s *Server) connections(w http.ResponseWriter, r *http.Request) {
	req, err := ParseConnections(r.URL.Query())
	if answerErr(w, err) {
		return
	}
	lister, ok := s.backend.(ConnectionLister)
	if !ok {
		refuse(w, http.StatusNotImplemented, errNotHere)
		return
	}
	all, err := lister.Connections(r.Context(), req)
	if answerErr(w, err) {
		return
	}
	answer(w, all)
}

// follows says whether a request is one for events that has no end.
func follows(r *http.Request) bool {
	return r.URL.Path == eventsPath && r.URL.Query().Get("follow") != "false"
}

// events streams until the asker leaves or the server closes; with
// follow=false it ends with what the backend remembers.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	if v := r.URL.Query().Get("follow"); v != "" && v != "true" && v != "false" {
		refuse(w, http.StatusBadRequest, fmt.Errorf("%w: follow %q, want true or false", ErrInvalid, v))
		return
	}
	op, ok := s.backend.(Operator)
	if !ok {
		refuse(w, http.StatusNotImplemented, errNotHere)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	ctl := http.NewResponseController(w)
	ctl.SetWriteDeadline(time.Now().Add(stepTimeout))
	ctl.Flush() // so that the asker knows it is heard
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	err := op.Events(ctx, follows(r), func(e Event) {
		ctl.SetWriteDeadline(time.Now().Add(stepTimeout))
		if ctx.Err() == nil && (enc.Encode(e) != nil || ctl.Flush() != nil) {
			cancel()
		}
	})
	ctl.SetWriteDeadline(time.Now().Add(stepTimeout))
	if err != nil && ctx.Err() == nil {
		enc.Encode(Problem{Error: err.Error()}) // an asker that has gone needs none
	}
}
