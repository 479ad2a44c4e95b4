package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainstay-go/mainstay/pkg/link"
)

// gatherTimeout is how long workers have to answer a question. One that
// hangs does not answer, and must not keep the operator from the others.
const gatherTimeout = 2 * time.Second

// Answer is what one worker said to a question.
type Answer struct {
	Pool        string
	Slot        int
	Incarnation uint64
	Generation  uint64
	PID         int
	Data        []byte // nil if Err is not
	Err         error  // the worker's own, or that it died or was silent
}

// question is a Gather under way.
type question struct {
	id      uint64
	asked   []*incarnation
	pending map[*incarnation]bool
	answers chan answered // buffered for one from each
}

// posed answers a gatherRequest.
type posed struct {
	question *question
	err      error // nobody was asked
}

type answered struct {
	inc *incarnation
	fd  int // -1: none
	err error
}

// Gather asks every worker that serves or drains for something that only it
// knows; arg is told as JSON. It returns their answers in the order of the
// slots; a worker that does not answer within two seconds has an Err, and one
// that drained and is gone by then has no answer. It
// fails if the supervisor has ended or ctx is done. Any goroutine may call
// it.
func (s *Supervisor) Gather(ctx context.Context, what string, arg any) ([]Answer, error) {
	return s.gather(ctx, what, func(s *Supervisor) (asked []*incarnation, _ any, _ error) {
		for inc := range s.living() {
			if inc.state == ready || inc.state == draining {
				asked = append(asked, inc)
			}
		}
		return asked, arg, nil
	})
}

// whom chooses, in the supervisor's goroutine, who is asked a question, and
// its argument; or says why nobody is.
type whom func(*Supervisor) (asked []*incarnation, arg any, err error)

// gather is Gather of those that to chooses; it fails with to's error too.
func (s *Supervisor) gather(ctx context.Context, what string, to whom) ([]Answer, error) {
	m := gatherRequest{what: what, to: to, reply: make(chan posed, 1)}
	if err := s.ask(ctx, m); err != nil {
		return nil, err
	}
	var q *question
	select {
	case p := <-m.reply:
		if p.err != nil {
			return nil, p.err
		}
		q = p.question
	case <-s.done:
		return nil, errNotRunning
	}
	defer s.post(gatherDone{q})
	got := make(map[*incarnation]answered, len(q.asked))
	silent := time.NewTimer(gatherTimeout)
	defer silent.Stop()
	for waiting := true; waiting && len(got) < len(q.asked); {
		select {
		case a := <-q.answers:
			got[a.inc] = a
		case <-silent.C:
			waiting = false
		case <-ctx.Done():
			closeAll(got)
			return nil, ctx.Err()
		case <-s.done:
			closeAll(got)
			return nil, errNotRunning
		}
	}
	answers := make([]Answer, 0, len(q.asked))
	for _, inc := range q.asked {
		a := Answer{Pool: inc.slot.pool.name, Slot: inc.slot.index, Incarnation: inc.number, Generation: inc.release.generation, PID: inc.pid()}
		switch g, ok := got[inc]; {
		case ok && g.err == errLeft:
			continue
		case !ok:
			a.Err = fmt.Errorf("worker %d (pid %d) does not answer", a.Slot, a.PID)
		case g.err != nil:
			g.close()
			a.Err = g.err
		case g.fd < 0:
			a.Err = fmt.Errorf("worker %d (pid %d) answers nothing", a.Slot, a.PID)
		default:
			a.Data, a.Err = link.ReadAnswer(g.fd)
		}
		answers = append(answers, a)
	}
	return answers, nil
}

func closeAll(got map[*incarnation]answered) {
	for _, a := range got {
		a.close()
	}
}

func (a answered) close() {
	if a.fd >= 0 {
		unix.Close(a.fd)
	}
}

// pose asks the workers.
func (s *Supervisor) pose(m gatherRequest) {
	asked, v, err := m.to(s)
	if err != nil {
		m.reply <- posed{err: err}
		return
	}
	arg, err := json.Marshal(v)
	if err != nil {
		m.reply <- posed{err: fmt.Errorf("supervisor: question %q: %w", m.what, err)}
		return
	}
	s.lastQuestion++
	q := &question{id: s.lastQuestion, asked: asked, pending: make(map[*incarnation]bool)}
	for _, inc := range asked {
		q.pending[inc] = true
	}
	q.answers = make(chan answered, len(q.asked))
	s.questions[q.id] = q
	for _, inc := range q.asked {
		if err := inc.process.Send(link.Gather{ID: q.id, What: m.what, Arg: arg}); err != nil {
			q.take(answered{inc, -1, unlessLeft(inc, err)})
		}
	}
	m.reply <- posed{question: q}
}

// take passes on a worker's first answer.
func (q *question) take(a answered) {
	if !q.pending[a.inc] {
		a.close()
		return
	}
	delete(q.pending, a.inc)
	q.answers <- a
}

// hearAnswer finds the question to an answer; one that came too late has
// none.
func (s *Supervisor) hearAnswer(m incarnationAnswered) {
	if m.answer.ID == link.Legacy {
		s.takeLegacy(m.inc, m.fd)
		return
	}
	a := answered{inc: m.inc, fd: m.fd}
	if m.answer.Error != "" {
		a.err = errors.New(m.answer.Error)
	}
	if q := s.questions[m.answer.ID]; q != nil {
		q.take(a)
		return
	}
	a.close()
}

// fallSilent answers for a worker that has died.
func (s *Supervisor) fallSilent(inc *incarnation) {
	for _, q := range s.questions {
		if q.pending[inc] {
			q.take(answered{inc, -1, unlessLeft(inc, fmt.Errorf("worker %d (pid %d) has died", inc.slot.index, inc.pid()))})
		}
	}
}

// errLeft is the answer of a worker that drained and is gone.
var errLeft = errors.New("it has drained and left")

// unlessLeft is what a worker that cannot answer has for an answer.
func unlessLeft(inc *incarnation, err error) error {
	if inc.state == draining || inc.exit.Class == ClassRequested {
		return errLeft
	}
	return err
}

// forgetQuestion is done when nobody waits for answers any more.
func (s *Supervisor) forgetQuestion(q *question) {
	delete(s.questions, q.id)
	for {
		select {
		case a := <-q.answers:
			a.close()
		default:
			return
		}
	}
}
