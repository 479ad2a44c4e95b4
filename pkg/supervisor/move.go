package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/mainstay-go/mainstay/pkg/control"
	"github.com/mainstay-go/mainstay/pkg/link"
	"github.com/mainstay-go/mainstay/pkg/rows"
)

// errSteady says that the service is not in a state in which connections are
// moved on request.
var errSteady = errors.New("the service starts or stops: no connection is moved")

// Move implements control.Mover: it has the worker that owns a connection hand
// it to the worker that serves in a slot. It fails, with control.ErrInvalid,
// if there is no such slot, and says why a connection stays: there is none of
// that number, nobody takes connections in the slot, it cannot move, or the
// other worker refused it. One that a callback holds up for most of a second
// stays too. It fails as well if the hand-off has not ended in two seconds,
// because the other worker does not answer; then it ends a little later, in
// whichever way.
// Any goroutine may call it.
func (s *Supervisor) Move(ctx context.Context, r control.MoveRequest) (control.Moved, error) {
	if err := checkPool(r.Pool); err != nil {
		return control.Moved{}, err
	}
	m := control.Moved{Conn: r.Conn, To: r.Slot}
	var giver *slot
	answers, err := s.gather(ctx, "move", func(s *Supervisor) ([]*incarnation, any, error) {
		from, to, err := s.mayMove(r)
		if err != nil {
			return nil, nil, err
		}
		m.From, giver = from.slot.index, from.slot
		if from == to {
			return nil, nil, nil
		}
		return []*incarnation{from}, link.MoveRequest{Conn: r.Conn, To: to.number}, nil
	})
	if err != nil || len(answers) == 0 {
		return m, err
	}
	if err := answers[0].Err; err != nil {
		return m, err
	}
	result, err := readGiven(answers[0])
	if err != nil {
		return m, err
	}
	m.LongestStallUS = result.Longest.Microseconds()
	s.post(happened{EventMoved, fmt.Sprintf("connection %d to worker %d, it stood still for %s", m.Conn, m.To, control.Stall(m.LongestStallUS)), giver})
	return m, nil
}

// readGiven reads a worker's answer to "move" or "give".
func readGiven(a Answer) (link.GiveResult, error) {
	var result link.GiveResult
	if err := json.Unmarshal(a.Data, &result); err != nil {
		return result, fmt.Errorf("answer of worker %d (pid %d): %w", a.Slot, a.PID, err)
	}
	return result, nil
}

// mayMove finds who has a connection and who is to get it.
func (s *Supervisor) mayMove(r control.MoveRequest) (from, to *incarnation, err error) {
	if s.phase != running {
		return nil, nil, errSteady
	}
	sl, err := s.slotAt(r.Slot)
	if err != nil {
		return nil, nil, err
	}
	row := s.rows.Row(rows.ID(r.Conn))
	if row == nil {
		return nil, nil, fmt.Errorf("no connection %d that could move: it is closed, or net/http serves it, or there never was one", r.Conn)
	}
	owner := row.Owner().Incarnation
	from = s.incarnations[owner]
	switch to = sl.current; {
	case from == nil:
		return nil, nil, fmt.Errorf("no connection %d: its worker has just died", r.Conn)
	case to == nil:
		return nil, nil, fmt.Errorf("worker %d is %s: it takes no connections", sl.index, sl.place)
	case from == to:
		return from, to, nil
	case to.state != ready:
		return nil, nil, fmt.Errorf("worker %d (pid %d) is %s: it takes no connections", sl.index, to.pid(), to.state)
	case to.unready != "":
		return nil, nil, fmt.Errorf("worker %d (pid %d) takes no connections: %s", sl.index, to.pid(), to.unready)
	case !to.isPeer():
		return nil, nil, fmt.Errorf("worker %d (pid %d) is of a version that takes no connections from others", sl.index, to.pid())
	case from.state != ready && from.state != draining:
		return nil, nil, fmt.Errorf("connection %d stays: its worker %d (pid %d) is %s", r.Conn, from.slot.index, from.pid(), from.state)
	}
	return from, to, nil
}

// slotAt returns a slot by its number.
func (s *Supervisor) slotAt(i int) (*slot, error) {
	if i < 0 || i >= len(s.pool.slots) {
		return nil, fmt.Errorf("%w: no worker %d, there are 0 to %d", control.ErrInvalid, i, len(s.pool.slots)-1)
	}
	return s.pool.slots[i], nil
}

// chronicled notes what was found out beside the supervisor's goroutine.
func (s *Supervisor) chronicled(m happened) {
	s.log.Info("connections moved", append(m.slot.fields(), zap.String("what", m.message))...)
	s.tellSlot(m.kind, m.message, m.slot)
}

// longest is the longer of two stalls, in microseconds.
func longest(us int64, d time.Duration) int64 { return max(us, d.Microseconds()) }
