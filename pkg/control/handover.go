package control

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// How far a Handover is.
const (
	HandoverOver   = "over"
	HandoverGoesOn = "going on" // it lasts, for instance because callbacks run
	HandoverCut    = "cut off"  // the worker died over it
	HandoverNone   = "none"     // nothing is handed over: there is nobody who could take it, or the worker cannot
)

// Handover is what a worker that leaves has done with its connections.
type Handover struct {
	Pool           string `json:"pool"`
	Slot           int    `json:"slot"`
	PID            int    `json:"pid"`
	To             int    `json:"to,omitempty"` // process that gets them; 0: all that serve
	State          string `json:"state"`
	Moved          int    `json:"moved"`
	Left           int    `json:"left"` // still with the worker, which drains them; lost, if the worker has died
	LongestStallUS int64  `json:"longest_stall_us"`
}

// String tells it without the worker, for people: "498 connections moved, 2
// left, longest stall 12ms".
func (h Handover) String() string {
	moved := fmt.Sprintf("%d connections moved", h.Moved)
	switch h.State {
	case HandoverNone:
		return fmt.Sprintf("%d connections drain", h.Left)
	case HandoverGoesOn:
		return fmt.Sprintf("%s so far, %d still there", moved, h.Left)
	case HandoverCut:
		return fmt.Sprintf("%s, %d lost with it", moved, h.Left)
	}
	text := fmt.Sprintf("%s, %d left", moved, h.Left)
	if h.Moved > 0 {
		text += ", longest stall " + Stall(h.LongestStallUS)
	}
	return text
}

// Stall shows a time of so many microseconds to people.
func Stall(us int64) string {
	d := time.Duration(us) * time.Microsecond
	if d >= 10*time.Millisecond {
		d = d.Round(time.Millisecond)
	}
	return d.String()
}

// MoveRequest asks for a connection to be moved.
type MoveRequest struct {
	Conn uint64 `json:"conn"`           // Connection.ID
	Pool string `json:"pool,omitempty"` // empty: the pool "worker"
	Slot int    `json:"slot"`           // whose worker is to have it
}

// Moved says that a connection was moved.
type Moved struct {
	Conn           uint64 `json:"conn"`
	From           int    `json:"from"` // slot
	To             int    `json:"to"`   // the same as From: it was there already
	LongestStallUS int64  `json:"longest_stall_us"`
}

// RebalanceRequest asks for connections to be moved so that all workers of a
// pool have as many.
type RebalanceRequest struct {
	Pool string `json:"pool,omitempty"` // empty: the pool "worker"
}

// Rebalanced is what came of it.
type Rebalanced struct {
	Moved  int     `json:"moved"`
	Givers []Giver `json:"givers"` // by slot; those that had too many
	Counts []int   `json:"counts"` // connections before, by slot of those that serve
}

// Giver is a worker that had too many connections.
type Giver struct {
	Slot           int    `json:"slot"`
	PID            int    `json:"pid"`
	Excess         int    `json:"excess"` // how many it had too many
	Moved          int    `json:"moved"`
	Refused        int    `json:"refused"` // by those who should have taken them
	LongestStallUS int64  `json:"longest_stall_us"`
	Error          string `json:"error,omitempty"` // why it gave no more
}

// Mover is a Backend that can move connections.
type Mover interface {
	// Move hands one connection to the worker of a slot; the error says why
	// it stays.
	Move(ctx context.Context, r MoveRequest) (Moved, error)
	// Rebalance moves connections from workers that have too many. What a
	// worker could not give is told in its Giver; an error says that nothing
	// was begun.
	Rebalance(ctx context.Context, r RebalanceRequest) (Rebalanced, error)
}

// moves makes the handler of a request to a Mover.
func moves[R, A any](s *Server, do func(Mover, context.Context, R) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req, err := decode[R](r.Body, false)
		if answerErr(w, err) {
			return
		}
		mover, ok := s.backend.(Mover)
		if !ok {
			refuse(w, http.StatusNotImplemented, errNotHere)
			return
		}
		a, err := do(mover, r.Context(), req) // may last longer than the write deadline
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(stepTimeout))
		if answerErr(w, err) {
			return
		}
		answer(w, a)
	}
}

// Move hands one connection to the worker of a slot.
func (c *Client) Move(ctx context.Context, r MoveRequest) (Moved, error) {
	var m Moved
	err := c.call(ctx, http.MethodPost, "/v1/move", r, &m)
	return m, err
}

// Rebalance moves connections so that all workers have as many, and waits for
// the end.
func (c *Client) Rebalance(ctx context.Context, r RebalanceRequest) (Rebalanced, error) {
	var b Rebalanced
	err := c.call(ctx, http.MethodPost, "/v1/rebalance", r, &b)
	return b, err
}
