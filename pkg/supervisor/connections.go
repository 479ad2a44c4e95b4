package supervisor

import (
	"context"
	"encoding/json"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// Connections implements control.ConnectionLister: it asks every worker and
// merges what they say. A worker that hangs or is stopped has no say; it is
// named, with the number of connections that it counted last. It fails, with
// control.ErrInvalid, if the request is not right, and if the supervisor has
// ended or ctx is done. Any goroutine may call it.
func (s *Supervisor) Connections(ctx context.Context, r control.ConnectionsRequest) (control.Connections, error) {
	all := control.Connections{Connections: []control.Connection{}}
	if err := r.Check(); err != nil {
		return all, err
	}
	answers, err := s.Gather(ctx, "connections", r)
	if err != nil {
		return all, err
	}
	silent := make(map[uint64]error)
	for _, a := range answers {
		var part control.Connections
		if a.Err == nil {
			a.Err = json.Unmarshal(a.Data, &part)
		}
		if a.Err != nil {
			silent[a.Incarnation] = a.Err
			continue
		}
		all.Matching += part.Matching
		all.Connections = append(all.Connections, part.Connections...)
	}
	control.SortConnections(all.Connections, r.Sort)
	all.Connections = all.Connections[:min(len(all.Connections), r.Limit)]
	if len(silent) == 0 {
		return all, nil
	}
	st, err := s.Status(ctx)
	if err != nil {
		return all, err
	}
	for _, p := range st.Pools {
		for _, w := range p.Workers {
			if err := silent[w.Incarnation]; err != nil {
				all.Silent = append(all.Silent, control.Silent{Pool: p.Name, Slot: w.Slot, PID: w.PID, Connections: w.Connections, Reason: err.Error()})
			}
		}
	}
	return all, nil
}
