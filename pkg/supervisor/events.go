package supervisor

import (
	"context"
	"slices"
	"time"

	"github.com/mainstay-go/mainstay/pkg/control"
)

// Kinds of events.
const (
	EventWorkerReady       = "worker-ready"
	EventWorkerStartFailed = "worker-start-failed"
	EventWorkerDied        = "worker-died"
	EventWorkerHung        = "worker-hung"
	EventWorkerDraining    = "worker-draining"
	EventWorkerLeft        = "worker-left"
	EventListenerPaused    = "listener-paused"
	EventHarvested         = "harvested"
	EventHandingOver       = "handing-over"
	EventHandedOver        = "handed-over"
	EventMoved             = "moved"
	EventRebalanced        = "rebalanced"
	EventReloadBegun       = "reload-begun"
	EventReloadDone        = "reload-done"
	EventReloadFailed      = "reload-failed"
	EventRollbackBegun     = "rollback-begun"
	EventRollbackDone      = "rollback-done"
	EventRollbackFailed    = "rollback-failed"
	EventScaled            = "scaled"
	EventRecycling         = "recycling"
	EventHeld              = "held"
	EventResumed           = "resumed"
	EventServiceReady      = "service-ready"
	EventServiceStopping   = "service-stopping"
	EventAdopted           = "adopted"
	EventLetGo             = "let-go"
	EventStranger          = "stranger"
)

const (
	eventsKept    = 256 // events that a new listener is told of
	eventsWaiting = 256 // events that a slow listener may be behind

	eventsSaved      = 128      // events that the next supervisor is told of, at most
	eventsSavedBytes = 64 << 10 // and how long they may be in sum
	eventFields      = 256      // bytes of an event beside its message, at most
)

// chronicle is the last events, and those who want to hear of the next.
type chronicle struct {
	kept      []control.Event
	listeners []chan control.Event // closed for one that does not keep up
}

// tell notes an event. inc is nil for one of the whole service.
func (s *Supervisor) tell(kind, message string, inc *incarnation) {
	e := control.Event{At: time.Now().UTC().Format(time.RFC3339Nano), Kind: kind, Slot: -1, Message: message}
	if inc != nil {
		e.Pool, e.Slot = inc.slot.pool.name, inc.slot.index
		e.Generation, e.Incarnation, e.PID = inc.release.generation, inc.number, inc.pid()
	}
	s.note(e)
}

// tellSlot notes an event of a slot that has no process to speak of.
func (s *Supervisor) tellSlot(kind, message string, sl *slot) {
	s.note(control.Event{
		At: time.Now().UTC().Format(time.RFC3339Nano), Kind: kind,
		Pool: sl.pool.name, Slot: sl.index, Message: message,
	})
}

// saved are the last events, as many as the next supervisor is told of.
func (c *chronicle) saved() []control.Event {
	kept := c.kept[max(0, len(c.kept)-eventsSaved):]
	size := 0
	for i := len(kept) - 1; i >= 0; i-- {
		if size += eventFields + len(kept[i].Message); size > eventsSavedBytes {
			return kept[i+1:]
		}
	}
	return kept
}

func (s *Supervisor) note(e control.Event) {
	s.unsaved = true
	c := &s.chronicle
	c.kept = append(c.kept, e)
	if len(c.kept) > eventsKept {
		c.kept = slices.Delete(c.kept, 0, len(c.kept)-eventsKept)
	}
	c.listeners = slices.DeleteFunc(c.listeners, func(l chan control.Event) bool {
		select {
		case l <- e:
			return false
		default:
			close(l)
			return true
		}
	})
}

// Events tells the last events, and then each new one as it happens, until
// ctx is done (nil) or the supervisor has ended (nil). follow false: only the
// last ones. A listener that falls too far behind gets an error. Any
// goroutine may call it.
func (s *Supervisor) Events(ctx context.Context, follow bool, tell func(control.Event)) error {
	m := eventsRequest{follow: follow, reply: make(chan eventsReply, 1)}
	if err := s.ask(ctx, m); err != nil {
		return err
	}
	var r eventsReply
	select {
	case r = <-m.reply:
	case <-s.done:
		return nil
	}
	for _, e := range r.kept {
		tell(e)
	}
	if !follow {
		return nil
	}
	defer s.post(eventsDone{r.next})
	for {
		select {
		case e, ok := <-r.next:
			if !ok {
				return errBehind
			}
			tell(e)
		case <-ctx.Done():
			return nil
		case <-s.done:
			return nil
		}
	}
}

type (
	eventsRequest struct {
		follow bool
		reply  chan eventsReply
	}
	eventsReply struct {
		kept []control.Event
		next chan control.Event
	}
	eventsDone struct{ listener chan control.Event }
)

func (eventsRequest) isMessage() {}
func (eventsDone) isMessage()    {}

func (s *Supervisor) listenEvents(m eventsRequest) {
	r := eventsReply{kept: slices.Clone(s.chronicle.kept)}
	if m.follow {
		r.next = make(chan control.Event, eventsWaiting)
		s.chronicle.listeners = append(s.chronicle.listeners, r.next)
	}
	m.reply <- r
}

func (s *Supervisor) unlistenEvents(m eventsDone) {
	s.chronicle.listeners = slices.DeleteFunc(s.chronicle.listeners, func(l chan control.Event) bool { return l == m.listener })
}
